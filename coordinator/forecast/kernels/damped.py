"""Damped trend: ETS(A,Ad,N) of Hyndman, Koehler, Ord, Snyder, "Forecasting with Exponential Smoothing" (2008), for many series at once.

In its error-correction form, fitted on the sum of squared one-step errors (damped_search.py). For given gains the errors are
linear in the two states at the start, so `start` also solves for those (AutoETS searches all five together); `fit_damped` and `run_damped`
leave them at AutoETS' first guess, which is all that windows sliding over the same series need. Series run in transposed blocks (gaps.py).
Invariant: finite input gives finite output.
State f64[n, 7] = level, trend, alpha, beta, phi, last value, mean squared one-step error (in the sample; `append` follows it slowly).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from coordinator.forecast.kernels.damped_search import improve, scale_block, search_grid
from coordinator.forecast.kernels.gaps import LANES, load_block
from coordinator.model import F64

VARIANCE_GAIN: Final = 1.0 / 288  # a day's memory
LEVEL, TREND, ALPHA, BETA, PHI, LAST, VARIANCE = range(7)
_REACH: Final = 0.2  # first step of the search
_ROUNDS: Final = 8
_POLISH: Final = 2  # rounds of solving the first states and searching on
_LEAST_POINTS: Final = 10  # fewer would be explained by the first states alone


@njit(cache=True)
def start(filled: F64) -> F64:
    """f64[n, b] without gaps -> state."""
    n, b = filled.shape
    state = np.full((n, 7), np.nan)
    if b == 0:
        return state
    block, scaled = np.empty((b, LANES)), np.empty((b, LANES), dtype=np.float32)
    first_states, best, scale = np.empty((2, LANES)), np.empty((3, LANES)), np.empty(2 * LANES)
    gains, work = np.empty((3, LANES)), np.empty((3, LANES))
    for first in range(0, n, LANES):
        load_block(filled, first, block)
        _start_states(block, first_states[0], first_states[1])
        scale_block(block, scale, scaled)
        search_grid(scaled, scale, first_states, best)
        improve(scaled, scale, first_states, best, _REACH, _ROUNDS)
        if b >= _LEAST_POINTS:
            for _ in range(_POLISH):
                _solve_start(block, best, first_states)
                improve(scaled, scale, first_states, best, _REACH / 4.0, 2)
        _try_block(block, best, gains, first_states, work)
        for j in range(min(LANES, n - first)):
            i = first + j
            state[i, LEVEL], state[i, TREND], state[i, VARIANCE] = work[0, j], work[1, j], work[2, j] / b
            state[i, ALPHA], state[i, BETA], state[i, PHI] = gains[0, j], gains[1, j], gains[2, j]
            state[i, LAST] = filled[i, b - 1]
    return state


@njit(cache=True)
def restart(state: F64, filled: F64) -> F64:
    """Same gains, before the first bucket of `filled`: level and trend that suit these gains and it best, as in `start`."""
    n, b = filled.shape
    fresh = state.copy()
    block, work = np.empty((b, LANES)), np.empty((2, LANES))
    best = np.empty((3, LANES))
    for first in range(0, n, LANES):
        load_block(filled, first, block)
        _start_states(block, work[0], work[1])
        if b >= _LEAST_POINTS:
            for j in range(LANES):
                i = min(first + j, n - 1)
                best[0, j], best[1, j], best[2, j] = state[i, ALPHA], state[i, BETA] / state[i, ALPHA], state[i, PHI]
            _solve_start(block, best, work)
        for j in range(min(LANES, n - first)):
            fresh[first + j, LEVEL], fresh[first + j, TREND], fresh[first + j, LAST] = work[0, j], work[1, j], np.nan
    return fresh


@njit(cache=True, error_model="numpy")
def append(state: F64, value: F64) -> None:
    """One more bucket, float[n]; NaN repeats the last value."""
    for i in range(state.shape[0]):
        now = value[i] if np.isfinite(value[i]) else state[i, LAST]
        state[i, LAST] = now
        carried = state[i, PHI] * state[i, TREND]
        predicted = state[i, LEVEL] + carried
        error = now - predicted
        state[i, LEVEL] = predicted + state[i, ALPHA] * error
        state[i, TREND] = carried + state[i, BETA] * error
        state[i, VARIANCE] += VARIANCE_GAIN * (error * error - state[i, VARIANCE])


@njit(cache=True, error_model="numpy")
def forecast(state: F64, steps: int) -> F64:
    """f64[n, steps]."""
    out = np.empty((state.shape[0], steps))
    for i in range(state.shape[0]):
        value, carried, phi = state[i, LEVEL], state[i, TREND], state[i, PHI]
        for h in range(steps):
            carried *= phi
            value += carried
            out[i, h] = value
    return out


@njit(cache=True, error_model="numpy")
def forecast_quantiles(state: F64, steps: int, z: F64) -> F64:
    """Normal quantiles at standard deviations z f64[q] around the forecast: f64[n, steps, q].

    Variance of step h = s2 (1 + sum of c_j^2, j < h), c_j = alpha + beta (phi + ... + phi^j): table 6.2 of the book.
    """
    n = state.shape[0]
    out = np.empty((n, steps, z.shape[0]))
    for i in range(n):
        value, carried, phi = state[i, LEVEL], state[i, TREND], state[i, PHI]
        spread, power, total = 1.0, 1.0, 0.0
        for h in range(steps):
            carried *= phi
            value += carried
            deviation = np.sqrt(state[i, VARIANCE] * spread)
            for k in range(z.shape[0]):
                out[i, h, k] = value + z[k] * deviation
            power *= phi
            total += power
            weight = state[i, ALPHA] + state[i, BETA] * total
            spread += weight * weight
    return out


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
def _solve_start(block: F64, best: F64, start: F64) -> None:
    """Move the first states [2, LANES] to those of least squared error for the gains in `best`, where that is better.

    The error's derivatives by level and trend follow the same recursion as the states; least squares on them.
    """
    w = np.zeros(15 * LANES)  # one flat array: see damped_search.py
    for j in range(LANES):
        w[j], w[LANES + j] = start[0, j], start[1, j]
        w[2 * LANES + j], w[3 * LANES + j], w[4 * LANES + j] = best[0, j], best[0, j] * best[1, j], best[2, j]
    w[5 * LANES : 6 * LANES] = 1.0  # derivatives of level by level, of trend by level, of level by trend, of trend by trend
    w[8 * LANES : 9 * LANES] = 1.0
    for t in range(block.shape[0]):
        row = block[t]
        for j in range(LANES):
            alpha, beta, phi = w[2 * LANES + j], w[3 * LANES + j], w[4 * LANES + j]
            carried = phi * w[LANES + j]
            error = row[j] - w[j] - carried
            trend_by_level, trend_by_trend = phi * w[6 * LANES + j], phi * w[8 * LANES + j]
            by_level, by_trend = w[5 * LANES + j] + trend_by_level, w[7 * LANES + j] + trend_by_trend
            w[9 * LANES + j] += by_level * by_level
            w[10 * LANES + j] += by_level * by_trend
            w[11 * LANES + j] += by_trend * by_trend
            w[12 * LANES + j] += by_level * error
            w[13 * LANES + j] += by_trend * error
            w[14 * LANES + j] += error * error
            w[j] += carried + alpha * error
            w[LANES + j] = carried + beta * error
            w[5 * LANES + j], w[7 * LANES + j] = by_level - alpha * by_level, by_trend - alpha * by_trend
            w[6 * LANES + j], w[8 * LANES + j] = trend_by_level - beta * by_level, trend_by_trend - beta * by_trend
    moved, work, natural = np.empty((2, LANES)), np.empty((3, LANES)), np.empty((3, LANES))
    for j in range(LANES):
        aa, ab, bb, ae, be = w[9 * LANES + j], w[10 * LANES + j], w[11 * LANES + j], w[12 * LANES + j], w[13 * LANES + j]
        determinant = aa * bb - ab * ab
        known = determinant > 1e-9 * aa * bb
        moved[0, j] = start[0, j] + ((ae * bb - be * ab) / determinant if known else 0.0)
        moved[1, j] = start[1, j] + ((be * aa - ae * ab) / determinant if known else 0.0)
    _try_block(block, best, natural, moved, work)
    for j in range(LANES):
        if work[2, j] < w[14 * LANES + j]:
            start[0, j], start[1, j] = moved[0, j], moved[1, j]


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
def fit_damped(filled: F64) -> tuple[F64, F64]:
    """f64[n, b] without gaps -> (parameters f64[n, 3] = alpha, beta, phi; in-sample SSE f64[n])."""
    n, b = filled.shape
    params = np.empty((n, 3))
    sse = np.empty(n)
    block, scaled = np.empty((b, LANES)), np.empty((b, LANES), dtype=np.float32)
    start, best, scale = np.empty((2, LANES)), np.empty((3, LANES)), np.empty(2 * LANES)
    gains, work = np.empty((3, LANES)), np.empty((3, LANES))
    for first in range(0, n, LANES):
        load_block(filled, first, block)
        _start_states(block, start[0], start[1])
        scale_block(block, scale, scaled)
        search_grid(scaled, scale, start, best)
        improve(scaled, scale, start, best, _REACH, _ROUNDS)
        _try_block(block, best, gains, start, work)
        for j in range(min(LANES, n - first)):
            params[first + j, :] = gains[:, j]
            sse[first + j] = work[2, j]
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
        load_block(filled, first, block)
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
