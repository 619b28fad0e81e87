"""What the laws look at: the summed series beside the sum of the members' forecasts, as pure numbers. Pure."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.aggregate.laws import PART_OF_STEP
from coordinator.forecast.aggregate.store import DAY
from coordinator.model import F64
from shared.units import HORIZON_STEPS

CLIP: Final = 6.0
_BASE: Final = 6  # the newest half hour fixes how far today lies above yesterday
_FADE: Final = 0.97 ** np.arange(1, HORIZON_STEPS + 1)
_EXPECTED: Final = 0.8  # mean |error| of a normal law, in deviations


def _mean(values: F64) -> F64:
    """Over the first axis, of what is known; NaN when nothing is."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def centre_features(past: F64, plain: F64, width: F64, one_step_error: F64, bias: F64) -> NDArray[np.float16]:
    """float16[g, r, h, 6]: how far direct forecasts of the sum lie above the plain one, and the plain one's errors of late.

    All in widths. past float64[ago, g, r] newest first; plain, width [g, r, h] in the data's unit; one_step_error [g, r]; bias [g, r, h].
    """
    out = np.zeros((*plain.shape, 6))
    out[..., 0] = past[0][..., None] - plain
    out[..., 1] = _mean(past[:12])[..., None] - plain
    out[..., 2] = _mean(past[:36])[..., None] - plain
    yesterday = _yesterday(past)
    lift = _mean(past[:_BASE] - past[DAY : DAY + _BASE])
    out[..., 3] = yesterday + lift[..., None] * _FADE - plain
    out[..., 4] = one_step_error[..., None]
    out[..., 5] = bias
    out /= width[..., None]
    return _bounded(out)


def width_features(past: F64, unit: F64, together: F64, own_error: F64) -> NDArray[np.float16]:
    """float16[g, r, h, 6]: 1 and logs of ratios to the unit: errors adding up in all members, own error, spread and changes of late,
    and how far the sum moved yesterday from now to then.

    together [g, r, h] = sum of the members' deviations; own_error [g, r, part] in units, NaN = not known yet. Each log is 0 for
    independent members with well-stated deviations, or where nothing is known.
    """
    out = np.zeros((*unit.shape, 6))
    out[..., 0] = 1.0
    out[..., 1] = np.log(np.maximum(together / unit, 1.0))
    out[..., 2] = np.log(np.maximum(own_error[:, :, PART_OF_STEP], 0.02) / _EXPECTED)
    level = _mean(past[:36])
    spread = np.sqrt(_mean((past[:36] - level) ** 2))
    change = _mean(np.abs(past[:12] - past[1:13]))
    for column, seen in ((3, spread), (4, change)):
        out[..., column] = np.log(np.maximum(seen[..., None] / unit, 0.02))
    surge = np.abs(_yesterday(past) - _mean(past[DAY - 1 : DAY + 2])[..., None])
    out[..., 5] = np.log1p(surge / unit)
    return _bounded(out)


def _yesterday(past: F64) -> F64:
    """The quarter of an hour around each step, a day before: float64[g, r, h]."""
    return np.stack([_mean(past[DAY - 2 - h : DAY + 1 - h]) for h in range(HORIZON_STEPS)], axis=-1)


def _bounded(values: F64) -> NDArray[np.float16]:
    """NaN says nothing, and one wild reading must not bend everybody's law; half precision is enough for what is at most CLIP."""
    features: NDArray[np.float16] = np.clip(np.nan_to_num(values, nan=0.0), -CLIP, CLIP).astype(np.float16)
    return features
