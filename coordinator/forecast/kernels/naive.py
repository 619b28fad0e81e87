"""The last value, and the value one season ago (SeasonalNaive): nothing to fit, but the yardstick of everything else.

State [n, 1] = the last value; seasonal [n, 1 + season] = phase of the next bucket, then one value a phase. It has the data's type:
values are only copied, so float32 in is float32 exact. A phase never seen is NaN and speaks as the newest value that is known.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from coordinator.model import F64


@njit(cache=True)
def start(filled: F64) -> F64:
    """float[n, b] without gaps -> state float[n, 1]."""
    state = np.full((filled.shape[0], 1), np.nan).astype(filled.dtype)
    if filled.shape[1] > 0:
        state[:, 0] = filled[:, -1]
    return state


@njit(cache=True)
def restart(state: F64, filled: F64) -> F64:
    """The state before the first bucket of `filled`: nothing is known."""
    return np.full_like(state, np.nan)


@njit(cache=True)
def append(state: F64, value: F64) -> None:
    """One more bucket, float[n]; NaN repeats the last value."""
    for i in range(state.shape[0]):
        if np.isfinite(value[i]):
            state[i, 0] = value[i]


@njit(cache=True)
def forecast(state: F64, steps: int) -> F64:
    """f64[n, steps]."""
    out = np.empty((state.shape[0], steps))
    for i in range(state.shape[0]):
        out[i, :] = state[i, 0]
    return out


@njit(cache=True)
def start_seasonal(filled: F64, season: int) -> F64:
    """float[n, b] without gaps -> state float[n, 1 + season]."""
    n, b = filled.shape
    state = np.full((n, 1 + season), np.nan).astype(filled.dtype)
    for i in range(n):
        state[i, 0] = b % season
        for t in range(max(b - season, 0), b):
            state[i, 1 + t % season] = filled[i, t]
    return state


@njit(cache=True)
def restart_seasonal(state: F64, filled: F64) -> F64:
    """The state before the first bucket of `filled`: no phase is known."""
    fresh = np.full_like(state, np.nan)
    fresh[:, 0] = 0.0
    return fresh


@njit(cache=True)
def append_seasonal(state: F64, value: F64) -> None:
    """One more bucket, float[n]; NaN repeats the last value."""
    season = state.shape[1] - 1
    for i in range(state.shape[0]):
        phase = int(state[i, 0])
        if np.isfinite(value[i]):
            state[i, 1 + phase] = value[i]
        else:
            state[i, 1 + phase] = state[i, 1 + (phase - 1) % season]
        state[i, 0] = (phase + 1) % season


@njit(cache=True)
def forecast_seasonal(state: F64, steps: int) -> F64:
    """f64[n, steps]."""
    season = state.shape[1] - 1
    out = np.empty((state.shape[0], steps))
    for i in range(state.shape[0]):
        phase = int(state[i, 0])
        newest = state[i, 1 + (phase - 1) % season]
        for h in range(steps):
            value = state[i, 1 + (phase + h) % season]
            out[i, h] = newest if np.isnan(value) else value
    return out
