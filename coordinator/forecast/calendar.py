"""Where a bucket lies in the day, the week, the month and among public holidays. Pure.

`phases` and `slot_of` are UTC throughout: the models learn the local pattern from the data. Month ends and holidays are days of people, so
`day_features` takes the local days as spans (events/public_holidays.py makes them).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F64

DAY_S: Final = 86_400
WEEK_S: Final = 7 * DAY_S
SLOT_S: Final = 1800
SLOTS: Final = DAY_S // SLOT_S  # half hours of the day
NEAR_DAYS: Final = 5.0  # how far a month's end is felt
DAY_FEATURES: Final = ("day_of_month", "to_month_end", "from_month_start", "holiday", "holiday_eve", "after_holiday")


def slot_of(start_s: int) -> int:
    """The half hour of the day, 0..47, that holds a bucket's start."""
    return start_s % DAY_S // SLOT_S


def phases(start_s: NDArray[np.int64]) -> F64:
    """Phase features float64[..., 4]: sine and cosine of the time of day, day of the week as 0..1 (Thursday = 0), weekend 0 or 1."""
    angle = 2.0 * np.pi * (start_s % DAY_S) / DAY_S
    day = start_s % WEEK_S // DAY_S  # 1 January 1970 was a Thursday: Saturday = 2, Sunday = 3
    return np.stack([np.sin(angle), np.cos(angle), day / 7.0, ((day == 2) | (day == 3)).astype(np.float64)], axis=-1)


def day_features(start_s: NDArray[np.int64], holidays: NDArray[np.int64] | None = None) -> F64:
    """float64[..., 6] in the order of DAY_FEATURES, of each bucket's start.

    day_of_month 0..1; to_month_end and from_month_start fall from 1 at the month's last (first) day to 0 five days away; holiday 0 or 1,
    holiday_eve and after_holiday the day before and after one. `holidays` int64[n, 2]: ascending, disjoint [start, end); None = none known.
    """
    days = np.asarray(start_s, dtype=np.int64).astype("datetime64[s]").astype("datetime64[D]")
    month = days.astype("datetime64[M]")
    first = month.astype("datetime64[D]")
    length = ((month + 1).astype("datetime64[D]") - first).astype(np.float64)
    past = (days - first).astype(np.float64)
    left = length - 1.0 - past
    on = [_inside(start_s, holidays, shift) for shift in (0, DAY_S, -DAY_S)]
    return np.stack([past / length, np.maximum(1.0 - left / NEAR_DAYS, 0.0), np.maximum(1.0 - past / NEAR_DAYS, 0.0), *on], axis=-1)


def _inside(start_s: NDArray[np.int64], spans: NDArray[np.int64] | None, shift: int) -> F64:
    """1 where the bucket, moved by `shift` seconds, lies in a span while it does not itself (shift 0: where it does)."""
    if spans is None or not len(spans):
        return np.zeros(np.shape(start_s))

    def hit(moments: NDArray[np.int64]) -> NDArray[np.bool_]:
        at = np.searchsorted(spans[:, 0], moments, side="right") - 1
        return np.asarray((at >= 0) & (moments < spans[np.maximum(at, 0), 1]))

    now = np.asarray(start_s, dtype=np.int64)
    found = hit(now + shift)
    return (found & ~hit(now) if shift else found).astype(np.float64)
