"""Batched smoothing kernels (numba): thousands of series in one call, no Python per series.

Damped exponential smoothing is ETS(A,Ad,N) of Hyndman, Koehler, Ord, Snyder, "Forecasting with Exponential Smoothing" (2008), in its
error-correction form, fitted by a grid and a pattern search on the sum of squared one-step errors. Series run in transposed blocks of
LANES, so that LLVM vectorises across series: the recursion along time cannot be vectorised, sixteen of them side by side can.

Gap rule: a missing bucket repeats the last known value, leading gaps repeat the first known value, a series without any reading is 0
(and its count of readings is 0). Invariant: for input of finite values and NaN, every output is finite. All arrays are float64.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from coordinator.model import F64

LANES: Final = 16
SEASON: Final = 288  # five-minute buckets of a day
PHI_MIN: Final = 0.8
PHI_MAX: Final = 0.98  # the bounds of StatsForecast's AutoETS
ALPHA_MIN: Final = 1e-4
ALPHA_MAX: Final = 0.9999
_GRID: Final = np.array([(a, r, p) for a in (0.05, 0.2, 0.5, 0.9) for r in (0.01, 0.1, 0.4) for p in (0.8, 0.9, 0.98)])
_ROUNDS: Final = 6


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
def _start_states(block: F64, level0: F64, trend0: F64) -> None:
    """Least-squares line through the first ten points, as AutoETS starts its search: level at time -1 and slope."""
    m = min(10, block.shape[0])
    centre = (m - 1) / 2.0
    denominator = m * (m * m - 1) / 12.0
    for j in range(block.shape[1]):
        mean = 0.0
        cross = 0.0
        for t in range(m):
            mean += block[t, j]
            cross += (t - centre) * block[t, j]
        mean /= m
        slope = cross / denominator if denominator > 0 else 0.0
        level0[j] = mean - slope * (centre + 1.0)
        trend0[j] = slope


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
def _run_block(block: F64, params: F64, level: F64, trend: F64, sse: F64) -> None:
    """One pass of the recursion over a transposed block [b, LANES]; level and trend hold the start states and end as the last ones."""
    alpha, beta, phi = params[0], params[1], params[2]
    for j in range(LANES):
        sse[j] = 0.0
    for t in range(block.shape[0]):
        row = block[t]
        for j in range(LANES):
            carried = phi[j] * trend[j]
            predicted = level[j] + carried
            error = row[j] - predicted
            level[j] = predicted + alpha[j] * error
            trend[j] = carried + beta[j] * error
            sse[j] += error * error


@njit(cache=True)
def _try_block(block: F64, trial: F64, natural: F64, start: F64, work: F64) -> None:
    """Run natural parameters `trial` [3, LANES] = alpha, beta / alpha, phi from the start states; the result stands in work[2]."""
    for j in range(LANES):
        natural[0, j] = trial[0, j]
        natural[1, j] = trial[0, j] * trial[1, j]
        natural[2, j] = trial[2, j]
        work[0, j] = start[0, j]
        work[1, j] = start[1, j]
    _run_block(block, natural, work[0], work[1], work[2])


@njit(cache=True)
def _search_block(block: F64, best: F64, best_sse: F64, start: F64) -> None:
    """Grid, then pattern search with halving steps, lane by lane and in step."""
    trial = np.empty((3, LANES))
    natural = np.empty((3, LANES))
    work = np.empty((3, LANES))
    best_sse[:] = np.inf
    for g in range(_GRID.shape[0]):
        for k in range(3):
            trial[k, :] = _GRID[g, k]
        _try_block(block, trial, natural, start, work)
        for j in range(LANES):
            if work[2, j] < best_sse[j]:
                best_sse[j] = work[2, j]
                best[:, j] = trial[:, j]
    step = np.empty((3, LANES))
    step[0, :] = 0.2
    step[1, :] = 0.2
    step[2, :] = 0.05
    low = (ALPHA_MIN, 1e-4, PHI_MIN)
    high = (ALPHA_MAX, 0.9999, PHI_MAX)
    for _ in range(_ROUNDS):
        for k in range(3):
            for sign in (-1.0, 1.0):
                for j in range(LANES):
                    trial[0, j], trial[1, j], trial[2, j] = best[0, j], best[1, j], best[2, j]
                    trial[k, j] = min(max(best[k, j] + sign * step[k, j], low[k]), high[k])
                _try_block(block, trial, natural, start, work)
                for j in range(LANES):
                    if work[2, j] < best_sse[j]:
                        best_sse[j] = work[2, j]
                        best[k, j] = trial[k, j]
            for j in range(LANES):
                step[k, j] *= 0.6


@njit(cache=True)
def _load_block(series: F64, first: int, block: F64) -> None:
    """Rows first..first+LANES transposed; missing lanes repeat the last row."""
    n, b = series.shape
    for j in range(LANES):
        i = min(first + j, n - 1)
        for t in range(b):
            block[t, j] = series[i, t]


@njit(cache=True)
def fit_damped(filled: F64) -> tuple[F64, F64]:
    """f64[n, b] without gaps -> (parameters f64[n, 3] = alpha, beta, phi; in-sample SSE f64[n])."""
    n, b = filled.shape
    params = np.empty((n, 3))
    sse = np.empty(n)
    block = np.empty((b, LANES))
    start = np.empty((2, LANES))
    best = np.empty((3, LANES))
    best_sse = np.empty(LANES)
    best[0, :] = 0.5
    best[1, :] = 0.01
    best[2, :] = PHI_MIN
    for first in range(0, n, LANES):
        _load_block(filled, first, block)
        _start_states(block, start[0], start[1])
        _search_block(block, best, best_sse, start)
        for j in range(min(LANES, n - first)):
            params[first + j, 0] = best[0, j]
            params[first + j, 1] = best[0, j] * best[1, j]
            params[first + j, 2] = best[2, j]
            sse[first + j] = best_sse[j]
    return params, sse


@njit(cache=True)
def run_damped(filled: F64, params: F64, steps: int) -> F64:
    """Filter f64[n, b] with given parameters f64[n, 3] and forecast: f64[n, steps]."""
    n, b = filled.shape
    curve = np.empty((n, steps))
    block = np.empty((b, LANES))
    state = np.empty((3, LANES))
    lanes = np.empty((3, LANES))
    for first in range(0, n, LANES):
        _load_block(filled, first, block)
        for j in range(LANES):
            i = min(first + j, n - 1)
            lanes[0, j], lanes[1, j], lanes[2, j] = params[i, 0], params[i, 1], params[i, 2]
        _start_states(block, state[0], state[1])
        _run_block(block, lanes, state[0], state[1], state[2])
        for j in range(min(LANES, n - first)):
            value, carried = state[0, j], state[1, j]
            for h in range(steps):
                carried *= lanes[2, j]
                value += carried
                curve[first + j, h] = value
    return curve


@njit(cache=True)
def smooth_best(filled: F64, alphas: F64) -> tuple[F64, F64]:
    """Simple exponential smoothing, the alpha of least squared one-step error: (level f64[n], alpha f64[n])."""
    n, b = filled.shape
    level = np.empty(n)
    chosen = np.empty(n)
    states = np.empty(alphas.shape[0])
    sse = np.empty(alphas.shape[0])
    for i in range(n):
        states[:] = filled[i, 0]
        sse[:] = 0.0
        for t in range(1, b):
            value = filled[i, t]
            for k in range(alphas.shape[0]):
                error = value - states[k]
                states[k] += alphas[k] * error
                sse[k] += error * error
        best = 0
        for k in range(1, alphas.shape[0]):
            if sse[k] < sse[best]:
                best = k
        level[i] = states[best]
        chosen[i] = alphas[best]
    return level, chosen


@njit(cache=True)
def window_quantiles(filled: F64, width: int, levels: F64) -> F64:
    """Empirical quantiles (linear interpolation, as numpy) of the newest `width` points: f64[n, len(levels)]."""
    n, b = filled.shape
    w = min(width, b)
    out = np.empty((n, levels.shape[0]))
    for i in range(n):
        ordered = np.sort(filled[i, b - w :])
        for k in range(levels.shape[0]):
            position = levels[k] * (w - 1)
            low = int(position)
            high = min(low + 1, w - 1)
            out[i, k] = ordered[low] + (position - low) * (ordered[high] - ordered[low])
    return out


@njit(cache=True)
def season_profile(series: F64, back: int, ahead: int, season: int, seasons: int, reach: int) -> F64:  # noqa: PLR0917  (numba: no keyword-only)
    """Median over earlier seasons of the mean of phase - reach .. phase + reach: f64[n, back + ahead].

    Column `back + j` is the phase of the j-th bucket after the newest one. `series` float[n, b] may hold NaN. NaN where no earlier
    season has a reading.
    """
    n, b = series.shape
    out = np.full((n, back + ahead), np.nan)
    values = np.empty(seasons)
    for i in range(n):
        for column in range(back + ahead):
            found = 0
            for d in range(1, seasons + 1):
                centre = b - back + column - d * season
                total = 0.0
                weight = 0
                for t in range(max(centre - reach, 0), min(centre + reach + 1, b)):
                    if np.isfinite(series[i, t]):
                        total += series[i, t]
                        weight += 1
                if weight > 0 and centre >= 0:
                    place = found  # insertion keeps the few values ordered
                    while place > 0 and values[place - 1] > total / weight:
                        values[place] = values[place - 1]
                        place -= 1
                    values[place] = total / weight
                    found += 1
            if found > 0:
                out[i, column] = 0.5 * (values[(found - 1) // 2] + values[found // 2])
    return out


@njit(cache=True)
def sliding_maxima(filled: F64, count: int, steps: int) -> F64:
    """Mean over the newest `count` windows of the maximum of s + 1 buckets, s < steps: f64[n, steps]. How high it usually gets."""
    n, b = filled.shape
    out = np.zeros((n, steps))
    for i in range(n):
        windows = 0
        for start in range(max(b - count - steps, 0), b - steps + 1):
            highest = -np.inf
            for s in range(steps):
                highest = max(highest, filled[i, start + s])
                out[i, s] += highest
            windows += 1
        if windows == 0:
            highest = -np.inf
            for t in range(b):
                highest = max(highest, filled[i, t])
            out[i, :] = highest
        else:
            for s in range(steps):
                out[i, s] /= windows
    return out
