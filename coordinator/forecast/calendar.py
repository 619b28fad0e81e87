"""Where a bucket lies in the day and the week. Pure; UTC throughout: the models learn the local pattern from the data."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F64

DAY_S: Final = 86_400
WEEK_S: Final = 7 * DAY_S
SLOT_S: Final = 1800
SLOTS: Final = DAY_S // SLOT_S  # half hours of the day


def slot_of(start_s: int) -> int:
    """The half hour of the day, 0..47, that holds a bucket's start."""
    return start_s % DAY_S // SLOT_S


def phases(start_s: NDArray[np.int64]) -> F64:
    """Phase features float64[..., 4]: sine and cosine of the time of day, day of the week as 0..1 (Thursday = 0), weekend 0 or 1."""
    angle = 2.0 * np.pi * (start_s % DAY_S) / DAY_S
    day = start_s % WEEK_S // DAY_S  # 1 January 1970 was a Thursday: Saturday = 2, Sunday = 3
    return np.stack([np.sin(angle), np.cos(angle), day / 7.0, ((day == 2) | (day == 3)).astype(np.float64)], axis=-1)
