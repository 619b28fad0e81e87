"""Learning from errors and laying the bands, compiled: one pass over the fleet each, all of one series at a time.

What calibrate.py says is done here; the arrays belong to its Calibrator. Series are numbered n = v * resources + r. Pure. NaN = unknown.
Layouts: points f32[78, n] and bands f32[78, n, q] (see combine.said_at), features f32[20, n, side, p - 1] and scales f32[20, n, side]
(part g of the horizon keeps as many origins as its last step needs), units f32[12, n], offset f32[n, h, q], errors f32[n, g, 2] and
covered f32[n, 2] (decayed sum, weight), target and point f64[n, h].
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.model import F32, F64, LEVELS

_STEPS: Final = 12
_LEVELS: Final = len(LEVELS)
_TURNS: Final = 4  # the twelve steps are far from independent: the regression hears each in one bucket of four
_GROUP: Final = (0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2)
_LEAST: Final = 0.05  # an error below this share of the unit counts as this share: logs need a floor
_LOW: Final = -3.0  # logs of residuals and features beyond these are clipped: one wild reading must not bend the fleet's law
_HIGH: Final = 6.0
_TINY: Final = 1e-30
_TRUSTED: Final = 3.0  # own errors before which the usual change speaks for them


@njit(cache=True, error_model="numpy")
def learn(
    target: F64,
    points: F32,
    bands: F32,
    at: NDArray[np.int64],
    features: F32,
    group_at: NDArray[np.int64],
    units: F32,
    unit_at: NDArray[np.int64],
    offset: F32,
    up: F32,
    down: F32,
    leak: float,
    limit: float,
    errors: F32,
    error_decay: float,
    covered: F32,
    coverage_decay: float,
    inner: tuple[int, int],
    normal: F64,
    moment: F64,
    turn: int,
) -> None:
    """Move offsets, coverage and own errors of every series whose actual came, and add its errors to the fleet's regression.

    at, group_at, unit_at int64[h]: where what was said of the newest bucket lies. normal f64[r, g, side, p, p] (upper triangle) and
    moment f64[r, g, side, p] grow. inner: the two levels of the band whose coverage is counted. turn: buckets so far.
    """
    n = offset.shape[0]
    resources, p = normal.shape[0], normal.shape[3]
    row = np.empty(p)
    row[0] = 1.0
    total, count = np.empty(3), np.empty(3)
    step_up, step_down = np.empty(_LEVELS, dtype=np.float32), np.empty(_LEVELS, dtype=np.float32)
    step_up[:], step_down[:] = up, down
    above, below = np.float32(1.0 + 1e-6), np.float32(1.0 - 1e-6)
    held, bound = np.float32(leak), np.float32(limit)
    low, high = inner
    for s in range(n):
        r = s % resources
        heard, inside = 0, 0
        total[:] = 0.0
        count[:] = 0.0
        for h in range(_STEPS):
            place = at[h]
            actual = np.float32(target[s, h])
            error = np.float64(actual) - np.float64(points[place, s])
            if math.isnan(error):
                continue
            g = _GROUP[h]
            heard += 1
            total[g] += abs(error)
            count[g] += 1.0
            for q in range(_LEVELS):
                moved = offset[s, h, q] * held + (step_up[q] if actual > bands[place, s, q] * above else step_down[q])
                offset[s, h, q] = min(max(moved, -bound), bound)
            inside += actual >= bands[place, s, low] * below and actual <= bands[place, s, high] * above
            if (h - turn) % _TURNS != 0:
                continue
            side = 0 if error >= 0 else 1
            size = min(max(math.log(max(abs(error) / units[unit_at[h], s], _LEAST)), _LOW), _HIGH)
            for a in range(1, p):
                row[a] = features[group_at[h], s, side, a - 1]
            for a in range(p):
                moment[r, g, side, a] += row[a] * size
                for b in range(a, p):
                    normal[r, g, side, a, b] += row[a] * row[b]
        if heard == 0:
            continue
        kept = coverage_decay ** (heard / _STEPS) if heard < _STEPS else coverage_decay
        covered[s, 0] = covered[s, 0] * kept + inside / _STEPS
        covered[s, 1] = covered[s, 1] * kept + heard / _STEPS
        for g in range(3):
            if count[g] > 0:
                errors[s, g, 0] = errors[s, g, 0] * error_decay + total[g] / count[g]
                errors[s, g, 1] = errors[s, g, 1] * error_decay + 1.0


@njit(cache=True, error_model="numpy")
def issue(
    point: F64,
    unit: F64,
    local: F64,
    capacity: F64,
    shape: F32,
    beta: F64,
    offset: F32,
    errors: F32,
    points: F32,
    bands: F32,
    at: NDArray[np.int64],
    features: F32,
    scales: F32,
    group_at: NDArray[np.int64],
    units: F32,
    quantiles: F32,
) -> None:
    """Quantiles f32[n, h, q] of each series; what learning needs of them is kept at `at` int64[h] and `group_at` int64[g].

    unit, capacity f64[n]; local f64[n, g, side, p - 2]; shape f32[r, h, q]; beta f64[r, g, side, p]; units f32[n].
    """
    n = offset.shape[0]
    resources, p = beta.shape[0], beta.shape[3]
    logs = np.empty((3, 2, p - 2))
    scale = np.empty((3, 2))
    for s in range(n):
        r = s % resources
        units[s] = unit[s]
        base = math.log(unit[s])
        for g in range(3):
            own = (errors[s, g, 0] + _TRUSTED * unit[s]) / (errors[s, g, 1] + _TRUSTED)
            own_log = min(max(math.log(max(own, _TINY)) - base, _LOW), _HIGH)
            for side in range(2):
                total = beta[r, g, side, 0] + beta[r, g, side, 1] * own_log
                for a in range(p - 2):
                    value = local[s, g, side, a]
                    # most features are the same on both sides or in all parts: a comparison is cheaper than a logarithm
                    if side == 1 and value == local[s, g, 0, a]:
                        log = logs[g, 0, a]
                    elif g > 0 and value == local[s, g - 1, side, a]:
                        log = logs[g - 1, side, a]
                    else:
                        log = min(max(math.log(max(value, _TINY)) - base, _LOW), _HIGH)
                    logs[g, side, a] = log
                    features[group_at[g], s, side, a + 1] = log
                    total += beta[r, g, side, a + 2] * log
                scale[g, side] = math.exp(min(max(total, _LOW), _HIGH)) * unit[s]
                scales[group_at[g], s, side] = scale[g, side]
                features[group_at[g], s, side, 0] = own_log
        top = np.inf if math.isnan(capacity[s]) else capacity[s]
        for h in range(_STEPS):
            centre = point[s, h]
            points[at[h], s] = centre
            higher, lower = scale[_GROUP[h], 0], scale[_GROUP[h], 1]
            place = at[h]
            if math.isnan(centre):
                quantiles[s, h] = np.nan
                bands[place, s] = np.nan
                continue
            highest = 0.0
            for q in range(_LEVELS):
                z = np.float64(shape[r, h, q]) + np.float64(offset[s, h, q])
                highest = max(highest, centre + z * (higher if z > 0 else lower))
                value = np.float32(min(highest, top))
                quantiles[s, h, q] = value
                bands[place, s, q] = value
