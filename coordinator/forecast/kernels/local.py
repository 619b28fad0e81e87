"""locality.local_features in one pass: what the size of a series' error depends on, without a temporary array."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.model import F32, F64


@njit(cache=True, error_model="numpy")
def features(hours3: F64, step_hour: F64, said: F32, point: F64, floor: F64, boosted: F64, middles: NDArray[np.int64], out: F64) -> None:
    """hours3 [n, 3]; step_hour, floor [n]; said [k, n, 12]; point [n, 12]; boosted [n, 12, 2] or [0, 12, 2] -> out [n, g, 2, p]."""
    members, n = said.shape[0], said.shape[1]
    for i in range(n):
        low, middle, high = hours3[i, 0], hours3[i, 1], hours3[i, 2]
        for g in range(len(middles)):
            h = middles[g]
            centre = point[i, h]
            apart, spoken = 0.0, 0
            for k in range(members):
                value = float(said[k, i, h])
                if not np.isnan(value):
                    apart += abs(value - centre)
                    spoken += 1
            for side in range(2):
                row = out[i, g, side]
                spread = high - middle if side == 0 else middle - low
                row[0] = _known(spread) + floor[i]
                row[1] = _known(step_hour[i]) + floor[i]
                row[2] = _known(apart / max(spoken, 1)) + floor[i]
                row[3] = _known(max(centre, 0.0) if not np.isnan(centre) else centre) + floor[i]
                if boosted.shape[0] > 0:
                    value = boosted[i, h, side]
                    row[4] = _known(spread if np.isnan(value) else value) + floor[i]


@njit(cache=True)
def _known(value: float) -> float:
    """0 for NaN."""
    return 0.0 if np.isnan(value) else value
