"""Holt-Winters, additive: level, trend and one correction a phase, for short seasons (an hour = 12 buckets).

ETS(A,A,A) of Hyndman, Koehler, Ord, Snyder (2008), fitted by a grid and a pattern search on the squared one-step error, in transposed
blocks. Long seasons (a day = 288) go through profile.py: here they would be seen too seldom to be fitted.
A series shorter than two seasons has no phases and no trend: what is left is exponential smoothing.
State f64[n, 7 + season] = level, trend, alpha, beta, gamma, phase of the next bucket, last value, then one correction a phase.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from coordinator.forecast.kernels.gaps import LANES, load_block
from coordinator.model import F64

_GRID: Final = np.array([(a, r, g) for a in (0.05, 0.3, 0.8) for r in (0.001, 0.05) for g in (0.01, 0.1, 0.4)])
_ROUNDS: Final = 6
_LOW: Final = (1e-4, 1e-4, 1e-4)  # of alpha, beta / alpha, gamma / (1 - alpha): inside these the model is stable
_HIGH: Final = (0.9999, 0.9999, 0.9999)
LEVEL, TREND, ALPHA, BETA, GAMMA, PHASE, LAST = range(7)
_HEAD: Final = 7


@njit(cache=True)
def _start_states(block: F64, season: int, level: F64, trend: F64, phases: F64) -> None:
    """Level before the first bucket and trend from the means of the first seasons, phases f64[season, LANES] from all of them.

    A phase is its mean distance from the mean of its own season: a level that wanders does not blur it.
    """
    phases[:] = 0.0
    seasons = block.shape[0] // season
    for j in range(LANES):
        if seasons < 2:
            level[j] = block[0, j]
            trend[j] = 0.0
            continue
        first = block[:season, j].mean()
        trend[j] = (block[season : 2 * season, j].mean() - first) / season
        level[j] = first - trend[j] * (season + 1) / 2.0
        slope = (block[(seasons - 1) * season : seasons * season, j].mean() - first) / ((seasons - 1) * season)
        for s in range(seasons):
            middle = block[s * season : (s + 1) * season, j].mean()
            for p in range(season):
                phases[p, j] += (block[s * season + p, j] - middle - slope * (p - (season - 1) / 2.0)) / seasons


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
def _run_block(block: F64, gains: F64, level: F64, trend: F64, phases: F64, sse: F64) -> None:
    """One pass; gains f64[3, LANES] = alpha, beta, gamma. States are overwritten by the last ones."""
    alpha, beta, gamma = gains[0], gains[1], gains[2]
    sse[:] = 0.0
    place = 0
    for t in range(block.shape[0]):
        row = block[t]
        phase = phases[place]
        for j in range(LANES):
            carried = level[j] + trend[j]
            error = row[j] - carried - phase[j]
            level[j] = carried + alpha[j] * error
            trend[j] += beta[j] * error
            phase[j] += gamma[j] * error
            sse[j] += error * error
        place = place + 1 if place + 1 < phases.shape[0] else 0


@njit(cache=True)
def _search_block(block: F64, season: int, best: F64) -> None:
    """Grid, then pattern search with shrinking steps; best f64[3, LANES] = alpha, beta / alpha, gamma / (1 - alpha), overwritten."""
    trial, gains = np.empty((3, LANES)), np.empty((3, LANES))
    start = np.empty((2, LANES))
    start_phases = np.empty((season, LANES))
    work, phases = np.empty((3, LANES)), np.empty((season, LANES))
    least = np.full(LANES, np.inf)
    _start_states(block, season, start[0], start[1], start_phases)
    still = block.shape[0] < 2 * season
    step = (0.2, 0.1, 0.1)
    for attempt in range(_GRID.shape[0] + 6 * _ROUNDS):
        turn = attempt - _GRID.shape[0]
        for j in range(LANES):
            for k in range(3):
                trial[k, j] = best[k, j] if turn >= 0 else _GRID[attempt, k]
            if turn >= 0:
                k = turn // 2 % 3
                move = step[k] * 0.6 ** (turn // 6)
                trial[k, j] = min(max(best[k, j] + (move if turn % 2 else -move), _LOW[k]), _HIGH[k])
            gains[0, j] = trial[0, j]
            gains[1, j] = 0.0 if still else trial[0, j] * trial[1, j]
            gains[2, j] = 0.0 if still else (1.0 - trial[0, j]) * trial[2, j]
        work[:2] = start
        phases[:] = start_phases
        _run_block(block, gains, work[0], work[1], phases, work[2])
        for j in range(LANES):
            if work[2, j] < least[j]:
                least[j] = work[2, j]
                for k in range(3):
                    best[k, j] = trial[k, j]


@njit(cache=True)
def _write_lane(state: F64, i: int, j: int, work: F64, gains: F64, phases: F64) -> None:
    state[i, LEVEL], state[i, TREND] = work[0, j], work[1, j]
    for k in range(3):
        state[i, ALPHA + k] = gains[k, j]
    for p in range(phases.shape[0]):
        state[i, _HEAD + p] = phases[p, j]


@njit(cache=True)
def start(filled: F64, season: int) -> F64:
    """f64[n, b] without gaps -> state f64[n, 7 + season]."""
    n, b = filled.shape
    state = np.full((n, _HEAD + season), np.nan)
    if b == 0:
        return state
    block, best, gains = np.empty((b, LANES)), np.empty((3, LANES)), np.empty((3, LANES))
    work, phases = np.empty((3, LANES)), np.empty((season, LANES))
    best[:] = 0.5  # where no grid point is better than another (a constant series) nothing depends on it
    for first in range(0, n, LANES):
        load_block(filled, first, block)
        _search_block(block, season, best)
        for j in range(LANES):
            gains[0, j] = best[0, j]
            gains[1, j] = 0.0 if b < 2 * season else best[0, j] * best[1, j]
            gains[2, j] = 0.0 if b < 2 * season else (1.0 - best[0, j]) * best[2, j]
        _start_states(block, season, work[0], work[1], phases)
        _run_block(block, gains, work[0], work[1], phases, work[2])
        for j in range(min(LANES, n - first)):
            _write_lane(state, first + j, j, work, gains, phases)
            state[first + j, PHASE], state[first + j, LAST] = b % season, filled[first + j, b - 1]
    return state


@njit(cache=True)
def restart(state: F64, filled: F64) -> F64:
    """Same gains, before the first bucket of `filled`: level, trend and phases are estimated from its beginning, as `start` does."""
    n, b = filled.shape
    season = state.shape[1] - _HEAD
    fresh = np.full_like(state, np.nan)
    if b == 0:
        return fresh
    block, work, phases = np.empty((b, LANES)), np.empty((2, LANES)), np.empty((season, LANES))
    gains = np.empty((3, LANES))
    for first in range(0, n, LANES):
        load_block(filled, first, block)
        _start_states(block, season, work[0], work[1], phases)
        for j in range(min(LANES, n - first)):
            for k in range(3):
                gains[k, j] = state[first + j, ALPHA + k]
            _write_lane(fresh, first + j, j, work, gains, phases)
            fresh[first + j, PHASE] = 0.0
    return fresh


@njit(cache=True, error_model="numpy")
def append(state: F64, value: F64) -> None:
    """One more bucket, float[n]; NaN repeats the last value."""
    season = state.shape[1] - _HEAD
    for i in range(state.shape[0]):
        now = value[i] if np.isfinite(value[i]) else state[i, LAST]
        state[i, LAST] = now
        place = int(state[i, PHASE])
        carried = state[i, LEVEL] + state[i, TREND]
        error = now - carried - state[i, _HEAD + place]
        state[i, LEVEL] = carried + state[i, ALPHA] * error
        state[i, TREND] += state[i, BETA] * error
        state[i, _HEAD + place] += state[i, GAMMA] * error
        state[i, PHASE] = place + 1 if place + 1 < season else 0


@njit(cache=True, error_model="numpy")
def forecast(state: F64, steps: int) -> F64:
    """f64[n, steps]."""
    season = state.shape[1] - _HEAD
    out = np.empty((state.shape[0], steps))
    for i in range(state.shape[0]):
        place = int(state[i, PHASE])
        level = state[i, LEVEL]
        for h in range(steps):
            level += state[i, TREND]
            out[i, h] = level + state[i, _HEAD + place]
            place = place + 1 if place + 1 < season else 0
    return out
