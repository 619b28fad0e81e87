"""Medians of earlier seasons, one bucket ahead at a time, WIDE series in step: lanes.season_medians across series instead of across phases.

What earlier seasons say of a bucket is settled once it is the farthest that is asked for, so a tick works out one bucket a profile and
keeps the others (coordinator/forecast/seasons.py). Pure. NaN = no earlier season has a reading.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.forecast.kernels.lanes import WIDE, sort_lanes
from coordinator.model import F32

_NOTHING = np.float32(np.inf)


@njit(cache=True, error_model="numpy")
def renew(
    flat: F32,
    apart: int,
    until: int,
    first: int,
    season: int,
    fit: int,
    reach: int,
    stale: int,
    turn: int,
    places: int,
    pairs: NDArray[np.int64],
    profile: F32,
) -> None:
    """Write columns `stale`.. of profile float32[columns, n], whose column c is bucket first + c and stands in row (turn + c) % columns.

    Each is the median over the newest `fit` seasons of the mean of its phase -+ reach (0 or 1). `pairs` sort `places` >= fit rows;
    buckets of a series are 0..until - 1 (lanes.flat).
    """
    columns, n = profile.shape
    work = np.empty((places, WIDE), dtype=np.float32)
    heard = np.empty(WIDE, dtype=np.int64)
    for low in range(0, n, WIDE):
        held = min(WIDE, n - low)
        for c in range(stale, columns):
            target = profile[(turn + c) % columns, low : low + held]
            if fit == 0:
                target[:] = np.nan
                continue
            work[:] = _NOTHING
            heard[:] = 0
            for d in range(fit):
                _listen(flat, low * apart, apart, until, first + c - (d + 1) * season, reach, held, work[d], heard)
            sort_lanes(work, pairs)
            for j in range(held):
                told = heard[j]
                target[j] = np.float32(0.5) * (work[(told - 1) // 2, j] + work[told // 2, j]) if told > 0 else np.float32(np.nan)


@njit(cache=True, error_model="numpy")
def _listen(flat: F32, begin: int, apart: int, until: int, at: int, reach: int, held: int, said: F32, heard: NDArray[np.int64]) -> None:
    """The mean about bucket `at` of each series, where there is one."""
    third = np.float32(1.0 / 3.0)
    for j in range(held):
        place = begin + j * apart
        if reach == 0:
            mean = flat[place + at]
        elif 1 <= at < until - 1:
            mean = (flat[place + at - 1] + flat[place + at] + flat[place + at + 1]) * third
        else:
            mean = np.float32(np.nan)
        if not abs(mean) < _NOTHING and reach > 0:
            mean = _mean_of_what_is_there(flat, place, max(at - reach, 0), min(at + reach + 1, until))
        if abs(mean) < _NOTHING:
            said[j] = mean
            heard[j] += 1


@njit(cache=True, error_model="numpy")
def _mean_of_what_is_there(flat: F32, place: int, low: int, high: int) -> np.float32:
    total, known = np.float32(0.0), 0
    for t in range(low, high):
        value = flat[place + t]
        if np.isfinite(value):
            total += value
            known += 1
    return total / np.float32(known) if known > 0 else np.float32(np.nan)
