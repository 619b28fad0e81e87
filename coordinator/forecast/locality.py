"""What the size of a forecast's error depends on: local features of each series, for the calibrator. Pure. Side 0 = up, 1 = down."""

from __future__ import annotations

from typing import Final

import numpy as np

from coordinator.forecast.combine import GROUP_MIDDLES, GROUPS
from coordinator.forecast.features import floor_of
from coordinator.forecast.kernels import local
from coordinator.forecast.members import Window
from coordinator.model import F32, F64

_MIDDLES: Final = np.array(GROUP_MIDDLES)
COLD_BUCKETS: Final = 24  # two hours: below that a series has no model of its own
COLD_SHARE: Final = 0.3  # at the very start errors of this share of the level are expected


def usual_change(seen: Window, shape: tuple[int, int]) -> tuple[F64, F64]:
    """(size of a usual change, least size that counts) float64[v, r], both positive; the least grows while a series is cold."""
    level = seen.level.reshape(shape)
    cold = np.clip(1.0 - seen.readings.reshape(shape) / COLD_BUCKETS, 0.0, 1.0)
    floor = floor_of(seen.level).reshape(shape) + COLD_SHARE * level * cold
    return seen.step.reshape(shape) + floor, floor


def local_features(seen: Window, forecasts: F32 | F64, point: F64, floor: F64, boosted: F64 | None = None) -> F64:
    """Local features float64[v, r, g, side, p], positive, in the data's unit: spread, steps, disagreement, level (, boosted spread).

    forecasts [k, v, r, 12]; point [v, r, 12]; floor [v, r]; boosted [v, r, 12, side] = distance of the boosted outer quantiles from their
    median, NaN where the model is silent (the spread of the last hours stands in).
    """
    v, r, steps = point.shape
    out = np.empty((v, r, GROUPS, 2, 4 + (boosted is not None)))
    local.features(
        seen.hours3,
        seen.step_hour,
        np.ascontiguousarray(forecasts, dtype=np.float32).reshape(len(forecasts), v * r, steps),
        np.ascontiguousarray(point).reshape(v * r, steps),
        np.ascontiguousarray(floor).reshape(-1),
        np.zeros((0, steps, 2)) if boosted is None else np.ascontiguousarray(boosted).reshape(-1, steps, 2),
        _MIDDLES,
        out.reshape(v * r, GROUPS, 2, out.shape[-1]),
    )
    return out
