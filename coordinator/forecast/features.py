"""Features of the global model: what every series looks like at one origin, in its own scale. Pure.

All values are (x - anchor) / unit, clipped: anchor = median of the newest hour, unit = usual change plus floor. So one model serves idle
and busy VMs of every resource. NaN = not known (the trees handle it).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast import kernels
from coordinator.forecast.calendar import phases
from coordinator.forecast.members import WEEK, Window
from coordinator.model import F32, F64, N_RESOURCES
from shared.units import BUCKET_S, HORIZON_STEPS

# The smallest change worth telling apart, per resource: 2 millicores, 1 MiB, 1 KiB/s, 8 kbit/s twice. Keeps idle VMs from dividing by 0.
FLOORS: Final = np.array([2.0, 1024.0**2, 1024.0, 8000.0, 8000.0])
LEVEL_FLOOR: Final = 0.005  # ... and half a percent of the level
LAGS: Final = (0, 1, 2, 3, 5, 8, 11)
CLIP: Final = 30.0
DAYS: Final = 7


class Features(NamedTuple):
    """Per series and per (series, step) features, and what turns a prediction back into the data's unit."""

    series: F32  # [n, p]
    steps: F32  # [n, 12, s]
    anchor: F64  # [n]
    unit: F64  # [n]

    def rows(self, which: NDArray[np.int64], step: NDArray[np.int64]) -> F32:
        """Feature rows float32[len(which), p + s] for pairs (series, step)."""
        return np.concatenate([self.series[which], self.steps[which, step]], axis=1)


def floor_of(level: F64) -> F64:
    """Smallest change that counts, float64[n] for series in [v, r] order flattened."""
    floors = np.tile(FLOORS, len(level) // N_RESOURCES)
    floor: F64 = np.maximum(floors, LEVEL_FLOOR * level)
    return floor


def features(series: F32, peaks: F32, seen: Window, now_s: int, capacity: F64) -> Features:
    """series, peaks float32[n, b] up to the bucket `now_s` (n = v x r flattened), capacity float64[n] (NaN unknown)."""
    n, b = series.shape
    anchor = seen.hour[:, 1]
    unit = seen.step + floor_of(seen.level)

    def relative(values: F64) -> F64:
        scaled: F64 = np.clip((values - _like(anchor, values)) / _like(unit, values), -CLIP, CLIP)
        return scaled

    filled = seen.filled
    lags = np.stack([filled[:, -1 - min(lag, filled.shape[1] - 1)] for lag in LAGS], axis=1)
    top = np.max(np.nan_to_num(peaks[:, -12:]), axis=1).astype(np.float64)
    shape = np.stack([seen.step_hour / unit, np.log(unit), np.log1p(anchor / unit), np.log1p(capacity / unit)], axis=1)
    now = np.broadcast_to(phases(np.array([now_s]))[0], (n, 4))
    resource = (np.arange(n) % N_RESOURCES)[:, None]
    own = [relative(lags), relative(seen.hours3), relative(seen.hour[:, ::2]), relative(seen.level[:, None]), relative(top[:, None])]
    static = np.concatenate([*own, shape, now, resource], axis=1)

    ahead = np.arange(1, HORIZON_STEPS + 1)
    days = min(b // kernels.SEASON, DAYS)
    profile = kernels.season_profile(series, 0, HORIZON_STEPS, kernels.SEASON, days, 1) if days else np.full((n, HORIZON_STEPS), np.nan)
    per_step = [
        relative(profile),
        relative(_at(series, kernels.SEASON)),
        relative(_at(series, WEEK)),
        relative(_at(series, HORIZON_STEPS)),
        np.broadcast_to(ahead.astype(np.float64), (n, HORIZON_STEPS)),
        *np.moveaxis(np.broadcast_to(phases(now_s + ahead * BUCKET_S), (n, HORIZON_STEPS, 4)), -1, 0),
    ]
    return Features(static.astype(np.float32), np.stack(per_step, axis=-1).astype(np.float32), anchor, unit)


def _like(column: F64, values: F64) -> F64:
    return column[:, None] if values.ndim == 2 else column


def _at(series: F32, season: int) -> F64:
    """The values one season before each step: float64[n, 12]."""
    n, b = series.shape
    out = np.full((n, HORIZON_STEPS), np.nan)
    first = b - season
    if first >= 0:
        piece = series[:, first : min(first + HORIZON_STEPS, b)]
        out[:, : piece.shape[1]] = piece
    return out
