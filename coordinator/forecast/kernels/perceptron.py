"""The two ends of the network's answer in numba: what goes into the matrix products, and what becomes of what comes out.

Both work on rows that are still in the cache. The logarithm is a polynomial: the C library's, called for every input of every series,
would cost more than the matrix products. Levels come out of the products level by level (`by_level`), so that sorting them works on
whole registers.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from coordinator.forecast.kernels.lanes import sorting_pairs
from coordinator.model import F32, F64, LEVELS
from shared.units import HORIZON_STEPS

_Q: Final = len(LEVELS)
_TARGETS: Final = 2  # mean and running peak
_STEPS: Final = _TARGETS * HORIZON_STEPS
_PAIRS: Final = sorting_pairs(_Q)
_TOGETHER: Final = 8  # series
_LN2: Final = np.float32(0.6931471805599453)
_ONE: Final = np.float32(1.0)


def by_level(columns: F32) -> F32:
    """Columns [..., target x step x level] in the order level x target x step, contiguous."""
    return np.ascontiguousarray(np.moveaxis(columns.reshape(*columns.shape[:-1], _STEPS, _Q), -1, -2).reshape(columns.shape))


@njit(cache=True, error_model="numpy")
def compress(inputs: F32, clip: float, out: F32) -> None:
    """arcsinh of float32[m, k] clipped to +-clip, to 2e-6."""
    size = inputs.shape[1]
    grown = np.empty(size, dtype=np.float32)
    bits = grown.view(np.int32)
    power = np.empty(size, dtype=np.float32)
    most = np.float32(clip)
    for i in range(inputs.shape[0]):
        row, target = inputs[i], out[i]
        for k in range(size):
            x = abs(row[k])
            x = x if x < most else most
            grown[k] = x + np.sqrt(x * x + _ONE)
        for k in range(size):  # mantissa in [1, 2) and power of two
            power[k] = np.float32((bits[k] >> 23) - 127)
            bits[k] = (bits[k] & 0x7FFFFF) | 0x3F800000
        for k in range(size):
            t = (grown[k] - _ONE) / (grown[k] + _ONE)
            s = t * t
            series = _ONE + s * (
                np.float32(1 / 3) + s * (np.float32(1 / 5) + s * (np.float32(1 / 7) + s * (np.float32(1 / 9) + s * np.float32(1 / 11))))
            )
            found = power[k] * _LN2 + np.float32(2.0) * t * series
            target[k] = found if row[k] > 0 else -found


@njit(cache=True, error_model="numpy")
def standardise(x: F32, centre: F32, scale: F32, edge: float) -> None:
    """(x - centre) * scale within +-edge, in place."""
    most = np.float32(edge)
    for i in range(x.shape[0]):
        row = x[i]
        for k in range(row.shape[0]):
            value = (row[k] - centre[k]) * scale[k]
            value = value if value < most else most
            row[k] = value if value > -most else -most


@njit(cache=True)
def bend(x: F32, bias: F32, leak: float) -> None:
    """Bias and leaky rectifier, in place."""
    slope = np.float32(leak)
    for i in range(x.shape[0]):
        row = x[i]
        for k in range(row.shape[0]):
            value = row[k] + bias[k]
            row[k] = value if value > 0 else slope * value


@njit(cache=True)
def quantiles(out: F32, bias: F32, base: F64, spread: F64, means: F32, peaks: F32) -> None:
    """Products float32[m, level x target x step] -> means, peaks float32[m, step, level]: around the base, monotone in level, >= 0;
    peaks monotone in step too. _TOGETHER series are sorted at once: a comparator's loop must be worth its beginning.
    """
    lanes = np.zeros((_Q, _TOGETHER * _STEPS), dtype=np.float32)
    for first in range(0, out.shape[0], _TOGETHER):
        held = min(_TOGETHER, out.shape[0] - first)
        for j in range(held):
            i = first + j
            for q in range(_Q):
                lane, row = lanes[q, j * _STEPS : (j + 1) * _STEPS], out[i, q * _STEPS : (q + 1) * _STEPS]
                offsets = bias[q * _STEPS : (q + 1) * _STEPS]
                for target in range(_TARGETS):
                    middle, size = np.float32(base[i, target, q]), np.float32(spread[i, target])
                    for k in range(target * HORIZON_STEPS, (target + 1) * HORIZON_STEPS):
                        value = middle + (row[k] + offsets[k]) * size
                        lane[k] = np.float32(0.0) if value < np.float32(0.0) else value
        for p in range(_PAIRS.shape[0]):
            low, high = lanes[_PAIRS[p, 0]], lanes[_PAIRS[p, 1]]
            for k in range(_TOGETHER * _STEPS):
                a, b = low[k], high[k]
                low[k] = a if a < b else b
                high[k] = b if a < b else a
        for j in range(held):
            _spell(lanes, j * _STEPS, means[first + j], peaks[first + j])


@njit(cache=True)
def _spell(lanes: F32, at: int, mean: F32, peak: F32) -> None:
    """The columns from `at` on, step by step; a peak is the highest so far."""
    for h in range(HORIZON_STEPS):
        for q in range(_Q):
            mean[h, q] = lanes[q, at + h]
            peak[h, q] = lanes[q, at + HORIZON_STEPS + h]
    for h in range(1, HORIZON_STEPS):
        before, here = peak[h - 1], peak[h]
        for q in range(_Q):
            here[q] = here[q] if here[q] > before[q] else before[q]
