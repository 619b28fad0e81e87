"""The gap rule of every kernel, and the transposed blocks they run in.

Gap rule: a missing bucket repeats the last known value, leading gaps repeat the first known value, a series without any reading is 0 (and
its count of readings is 0). `append` of the families follows it: NaN counts as the last value once more. Intermittent demand is the
exception (intermittent.py): there a missing bucket is no bucket.

Blocks: LANES series side by side, time first. A recursion along time cannot be vectorised, many of them in step can.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from coordinator.model import F64

LANES: Final = 64


@njit(cache=True)
def fill_gaps(series: F64) -> tuple[F64, F64, F64]:
    """float[n, b] with NaN -> (filled f64[n, b], readings f64[n], age f64[n] = buckets since the newest reading, b when none)."""
    n, b = series.shape
    filled = np.zeros((n, b))
    readings = np.zeros(n)
    age = np.full(n, float(b))
    for i in range(n):
        last = 0.0
        first = -1
        for t in range(b):
            value = series[i, t]
            if np.isfinite(value):
                last = value
                if first < 0:
                    first = t
                readings[i] += 1.0
                age[i] = float(b - 1 - t)
            filled[i, t] = last
        for t in range(max(first, 0)):
            filled[i, t] = filled[i, first]
    return filled, readings, age


@njit(cache=True)
def load_block(series: F64, first: int, block: F64) -> None:
    """Rows first .. first + LANES of f64[n, b] into block f64[b, LANES]; lanes beyond the last row repeat it."""
    n, b = series.shape
    for j in range(LANES):
        i = min(first + j, n - 1)
        for t in range(b):
            block[t, j] = series[i, t]
