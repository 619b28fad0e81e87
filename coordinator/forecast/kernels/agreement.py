"""The last step of a forecast: mean and peak made to agree, widened over gaps, and their mean and stddev. One compiled pass, pure.

Whatever the mean of a bucket may reach, its peak may: the two distributions must not contradict each other. Above the middle the peak of
the whole hour is heard, because more sources speak of it and are weighed level by level: what it stays below, the means stay below. Raised
to the means instead, as all levels up to the middle are, it allocated a twentieth more at 95 % and a fifth more at 99 % (Bitbrains' CPU)
for the same risk. Each level stands for the share of probability between the middles to its neighbours. Invariants: quantiles stay
monotone in the level and inside [0, capacity], the peak's also in the step; NaN in, NaN out.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final

import numpy as np
from numba import njit

from coordinator.model import F32, F64, LEVELS

_BOUNDS: Final = np.array([0.0, *((a + b) / 2 for a, b in pairwise(LEVELS)), 1.0])
LEVEL_WEIGHTS: Final = np.diff(_BOUNDS)
_MIDDLE: Final = LEVELS.index(0.5)
_LEVELS: Final = len(LEVELS)  # known when compiled, so that the levels run side by side


def agree(point: F64, quantiles: F32, peaks: F32, gap: F64, capacity: F64) -> tuple[F32, F32, F32, F32]:
    """(mean [v, r, h], stddev [v, r, h], quantiles [v, r, h, q], peak quantiles [v, r, h, q]), all float32.

    point [v, r, h] is what quantiles and peaks [v, r, h, q] are laid around; gap [v, r] >= 1 widens them; capacity [v, r], NaN = unbounded.
    """
    steps, levels = quantiles.shape[2:]
    wide, highest = np.empty_like(quantiles, order="C"), np.empty_like(quantiles, order="C")
    mean, stddev = (np.empty(quantiles.shape[:3], dtype=np.float32) for _ in range(2))
    _agree(
        *(
            np.ascontiguousarray(part, dtype=np.float64).reshape(-1, *behind)
            for part, behind in ((point, (steps,)), (gap, ()), (capacity, ()))
        ),
        *(np.ascontiguousarray(part, dtype=np.float32).reshape(-1, steps, levels) for part in (quantiles, peaks)),
        LEVEL_WEIGHTS,
        *(part.reshape(-1, steps, levels) for part in (wide, highest)),
        *(part.reshape(-1, steps) for part in (mean, stddev)),
    )
    return mean, stddev, wide, highest


@njit(cache=True, error_model="numpy")
def _agree(
    point: F64, gap: F64, capacity: F64, quantiles: F32, peaks: F32, shares: F64, wide: F32, highest: F32, mean: F32, stddev: F32
) -> None:
    n, steps = quantiles.shape[:2]
    value = np.empty(_LEVELS)
    reached = np.empty(_LEVELS)  # by the mean of any bucket so far
    for s in range(n):
        top = np.inf if math.isnan(capacity[s]) else capacity[s]
        reached[:] = 0.0
        for h in range(steps):
            centre = min(point[s, h], top)
            widen = gap[s] if gap[s] > 1.0 else 1.0
            for q in range(_LEVELS):
                value[q] = _within(centre + (quantiles[s, h, q] - centre) * widen, top)
            for q in range(_MIDDLE + 1, _LEVELS):  # what the hour's peak seldom reaches, a bucket's mean reaches more seldom still
                highest_of_all = centre + (np.float64(peaks[s, steps - 1, q]) - centre) * widen
                value[q] = _larger(value[_MIDDLE], _smaller(value[q], highest_of_all))
            for q in range(_LEVELS):
                reached[q] = _larger(reached[q], _within(_larger(value[q], np.float64(peaks[s, h, q])), top))
            total, square = 0.0, 0.0
            for q in range(_LEVELS):
                wide[s, h, q] = value[q]
                highest[s, h, q] = reached[q]
                total += shares[q] * value[q]
            for q in range(_LEVELS):
                apart = value[q] - total
                square += shares[q] * apart * apart
            mean[s, h] = total
            stddev[s, h] = math.sqrt(square)


@njit(cache=True)
def _larger(one: float, other: float) -> float:
    """NaN where either is."""
    return one if one > other or math.isnan(one) else other


@njit(cache=True)
def _smaller(one: float, other: float) -> float:
    """NaN where the first is."""
    return other if other < one else one


@njit(cache=True)
def _within(value: float, top: float) -> float:
    """NaN stays."""
    value = 0.0 if value < 0.0 else value
    return top if value > top else value
