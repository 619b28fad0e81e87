"""Simple exponential smoothing, with a given alpha or the best one: the forecast of ETS(A,N,N) started at the first value.

The best alpha is looked for in ALPHA_LOW .. ALPHA_HIGH (the bounds of StatsForecast's SimpleExponentialSmoothingOptimized) by grids of
sixteen alphas that run side by side over one series, each grid around the best of the one before: the squared error may have several
minima, a golden section finds any of them, a grid the lowest. State f64[n, 3] = level, alpha, last value.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from coordinator.model import F64

ALPHA_LOW: Final = 0.01
ALPHA_HIGH: Final = 0.99
_WIDE: Final = 16
_ZOOMS: Final = 3  # spacing 0.065, then 0.0082, then 0.001: the squared error is flat below that


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
def _errors(row: F64, alphas: F64, level: F64, sse: F64) -> None:
    """Filter one series with all alphas; `level` and `sse` are overwritten."""
    for k in range(_WIDE):
        level[k] = row[0]
        sse[k] = 0.0
    for t in range(1, row.shape[0]):
        value = row[t]
        for k in range(_WIDE):
            error = value - level[k]
            level[k] += alphas[k] * error
            sse[k] += error * error


@njit(cache=True)
def start(filled: F64) -> F64:
    """f64[n, b] without gaps -> state with the best alpha of each series."""
    n, b = filled.shape
    state = np.full((n, 3), np.nan)
    if b == 0:
        return state
    alphas, level, sse = np.empty(_WIDE), np.empty(_WIDE), np.empty(_WIDE)
    for i in range(n):
        low, high = ALPHA_LOW, ALPHA_HIGH
        best = 0
        for _ in range(_ZOOMS):
            for k in range(_WIDE):
                alphas[k] = low + (high - low) * k / (_WIDE - 1)
            _errors(filled[i], alphas, level, sse)
            best = 0
            for k in range(1, _WIDE):
                if sse[k] < sse[best]:
                    best = k
            spacing = (high - low) / (_WIDE - 1)
            low, high = max(alphas[best] - spacing, ALPHA_LOW), min(alphas[best] + spacing, ALPHA_HIGH)
        state[i, 0], state[i, 1], state[i, 2] = level[best], alphas[best], filled[i, -1]
    return state


@njit(cache=True)
def start_fixed(filled: F64, alpha: float) -> F64:
    """f64[n, b] without gaps -> state with this alpha in every series."""
    n, b = filled.shape
    state = np.full((n, 3), np.nan)
    for i in range(n):
        state[i, 1] = alpha
        if b > 0:
            level = filled[i, 0]
            for t in range(1, b):
                level += alpha * (filled[i, t] - level)
            state[i, 0], state[i, 2] = level, filled[i, -1]
    return state


@njit(cache=True)
def restart(state: F64, filled: F64) -> F64:
    """Same alphas, before the first bucket of `filled`: the level is taken from that bucket, as StatsForecast does."""
    fresh = np.full_like(state, np.nan)
    fresh[:, 1] = state[:, 1]
    return fresh


@njit(cache=True, error_model="numpy")
def append(state: F64, value: F64) -> None:
    """One more bucket, float[n]; NaN repeats the last value."""
    for i in range(state.shape[0]):
        now = value[i] if np.isfinite(value[i]) else state[i, 2]
        state[i, 2] = now
        level = state[i, 0]
        state[i, 0] = now if np.isnan(level) else level + state[i, 1] * (now - level)


@njit(cache=True)
def forecast(state: F64, steps: int) -> F64:
    """f64[n, steps]: the level at every step."""
    out = np.empty((state.shape[0], steps))
    for i in range(state.shape[0]):
        out[i, :] = state[i, 0]
    return out


@njit(cache=True)
def smooth_best(filled: F64, alphas: F64) -> tuple[F64, F64]:
    """The alpha of least squared one-step error among the given: (level f64[n], alpha f64[n])."""
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
