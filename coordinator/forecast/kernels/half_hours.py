"""Members of the outlook's pool and its empirical law, compiled: a pass over the fleet each. Pure. NaN = unknown or silent.

Series s = v * resources + r; blocks are half hours, the newest last. `filled` f32[s, w] is gap-free, `series` f32[s, b] is not; both end
with the newest block. Target j lies j + 1 blocks ahead, so its fellow of d days before is column w + j - 48 d.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.model import F32, F64, LEVELS

_STEPS: Final = 12
_Q: Final = len(LEVELS)
_TAU: Final = np.array(LEVELS)
_DAY: Final = 48  # half hours
_WEEK: Final = 7 * _DAY
_BACK: Final = 6  # blocks before now in which the profile is compared with what came
_DAYS: Final = 5  # of the profile
_AGED: Final = 0.8  # a day older weighs so much
_HOLD: Final = 0.9  # of a deviation from the usual, a block later
_TREND: Final = 13  # blocks that tell the trend of late
_RATIO: Final = 3.0  # today may be so many times, or a so-manyth, of the usual day
_SHARED: Final = 3  # neighbouring targets that share a time of day
_LEAN_FIRST: Final = 0.8  # share of the way to the pool's median, first block
_LEAN_KEPT: Final = 0.93  # ... and what a block later keeps of it
_MIDDLE: Final = LEVELS.index(0.5)
_LAW_DAYS: Final = 6
_LAW: Final = _LAW_DAYS * _SHARED


@njit(cache=True, error_model="numpy")
def members(filled: F32, series: F32, out: F64, known: NDArray[np.int64], lately: F32) -> None:
    """Point forecasts out f64[k, s, 12] in the order of target.MEMBERS.

    Also known int64[s], the filled blocks from the first reading on, and lately f32[s, q], the quantiles of the newest day's blocks.
    """
    n, w = filled.shape
    usual = np.empty(_BACK + _STEPS)
    newest = np.empty(_DAY, dtype=np.float32)
    for s in range(n):
        have = _since_first(series[s], w)
        known[s] = have
        if have == 0:
            out[:, s, :] = np.nan
            lately[s] = np.nan
            continue
        row = filled[s]
        count = min(have, _DAY)
        newest[:count] = row[w - count :]
        newest[:count].sort()
        for q in range(_Q):
            lately[s, q] = _quantile(newest, count, _TAU[q])
        last, middle = np.float64(row[w - 1]), np.float64(lately[s, _MIDDLE])
        _profile(row, w, have, usual)
        shift, above, below = 0.0, 0.0, 0.0
        for i in range(_BACK):
            value = np.float64(row[w - _BACK + i]) if w >= _BACK else last
            shift += (value - usual[i]) / _BACK
            above += value
            below += usual[i]
        ratio = min(max(above / below, 1.0 / _RATIO), _RATIO) if below > 0.0 else 1.0
        slope = (last - np.float64(row[w - count])) / max(count - 1, 1)
        least = min(have, _TREND)
        steep = (last - np.float64(row[w - least])) / max(least - 1, 1)
        keep = 1.0
        for j in range(_STEPS):
            keep *= _HOLD
            out[0, s, j] = last
            out[1, s, j] = middle
            out[2, s, j] = _around(row, w + j - _DAY, w, have)
            out[3, s, j] = _week(series[s], j)
            out[4, s, j] = usual[_BACK + j]
            out[5, s, j] = max(usual[_BACK + j] + keep * shift, 0.0) if not math.isnan(shift) else math.nan
            out[6, s, j] = usual[_BACK + j] * ratio
            out[7, s, j] = max(last + (j + 1) * slope, 0.0)
            out[8, s, j] = max(last + steep * (1.0 - keep) * _HOLD / (1.0 - _HOLD), 0.0)


@njit(cache=True, error_model="numpy")
def _since_first(row: F32, w: int) -> int:
    """Blocks among the newest `w` from the first known one on."""
    for i in range(len(row) - w, len(row)):
        if not math.isnan(row[i]):
            return len(row) - i
    return 0


@njit(cache=True, error_model="numpy")
def _profile(row: F32, w: int, have: int, usual: F64) -> None:
    """The usual day from _BACK blocks before now to the last target; NaN throughout while there is no day before."""
    for i in range(len(usual)):
        total, weight, each = 0.0, 0.0, 1.0
        for day in range(1, _DAYS + 1):
            at = w - _BACK + i - day * _DAY
            if at < w - have or at < 0:
                break
            total += each * row[at]
            weight += each
            each *= _AGED
        usual[i] = total / weight if weight > 0.0 else math.nan


@njit(cache=True, error_model="numpy")
def _around(row: F32, at: int, w: int, have: int) -> float:
    """That block and, half as much, its neighbours."""
    if at - 1 < w - have or at - 1 < 0 or at + 1 >= w:
        return math.nan
    return 0.5 * np.float64(row[at]) + 0.25 * (np.float64(row[at - 1]) + np.float64(row[at + 1]))


@njit(cache=True, error_model="numpy")
def _week(row: F32, j: int) -> float:
    """The same weekday and time a week before; neighbours stand in where it is unknown."""
    total, weight = 0.0, 0.0
    for near in range(-1, 2):
        at = len(row) + j - _WEEK + near
        if at >= 0 and not math.isnan(row[at]):
            each = 0.5 if near == 0 else 0.25
            total += each * row[at]
            weight += each
    return total / weight if weight > 0.0 else math.nan


@njit(cache=True, error_model="numpy")
def law(filled: F32, known: NDArray[np.int64], lately: F32, pool: F32, top: F64, out: F32) -> None:
    """The second opinion f32[s, 12, q]: quantiles of the last day's blocks (`lately`) and of this time on earlier days, averaged.

    Both are moved towards the median of `pool` f32[s, 12, q], the nearer the block the more, because a level of today outlasts an hour or
    two. top f64[s] bounds; where `pool` is silent (NaN) nothing is said.
    """
    n, w = filled.shape
    sample = np.empty(_LAW, dtype=np.float32)
    said = np.empty(_Q)
    for s in range(n):
        have = min(known[s], w)
        if have == 0 or math.isnan(pool[s, 0, _MIDDLE]):
            out[s] = np.nan
            continue
        bound = math.inf if math.isnan(top[s]) else top[s]
        lean = _LEAN_FIRST
        for j in range(_STEPS):
            if j % _SHARED == 0:
                count, days = _same_time(filled[s], w, have, j, sample)
                for q in range(_Q):
                    said[q] = 0.5 * (lately[s, q] + _quantile(sample, count, _TAU[q])) if days >= 2 else np.float64(lately[s, q])
            move = lean * (pool[s, j, _MIDDLE] - said[_MIDDLE])
            for q in range(_Q):
                out[s, j, q] = min(max(said[q] + move, 0.0), bound)
            lean *= _LEAN_KEPT


@njit(cache=True, error_model="numpy")
def _same_time(row: F32, w: int, have: int, j: int, sample: F32) -> tuple[int, int]:
    """Fill `sample`, in order, with the blocks of earlier days at targets j to j + _SHARED - 1; (how many, of how many days)."""
    count, days = 0, 0
    for day in range(1, _LAW_DAYS + 1):
        at = w + j - day * _DAY
        if at < max(w - have, 0):
            break
        days += 1
        for i in range(at, at + _SHARED):
            value = row[i]
            place = count
            while place > 0 and sample[place - 1] > value:
                sample[place] = sample[place - 1]
                place -= 1
            sample[place] = value
            count += 1
    return count, days


@njit(cache=True, error_model="numpy")
def _quantile(ordered: F32, n: int, tau: float) -> float:
    place = min(max(tau * (n + 1) - 1.0, 0.0), n - 1.0)
    low = int(place)
    high = min(low + 1, n - 1)
    return np.float64(ordered[low]) + (place - low) * (np.float64(ordered[high]) - np.float64(ordered[low]))
