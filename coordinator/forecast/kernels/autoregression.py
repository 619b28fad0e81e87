"""AR(p) around the mean, fitted by Burg's recursion: the next bucket from the newest p.

Burg, "Maximum entropy spectral analysis" (1975). Like Yule-Walker it always gives a stationary model (every reflection is below 1 in
size), so forecasts return to the mean and stay finite; unlike Yule-Walker it does not pull strong dependence towards 0 on short rows.
State f64[n, 2 + 2 p] = mean, last value, p coefficients, the newest p deviations from the mean (newest first). A series shorter than
twice the order has coefficients 0.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from coordinator.model import F64

ORDER: Final = 6
_SILENT: Final = 1e-24  # power, relative to the mean square, below which there is only rounding left to explain


@njit(cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def _reflection(forward: F64, backward: F64, m: int) -> tuple[float, float]:
    """(cross, power) of the errors of order m - 1."""
    cross = 0.0
    power = 0.0
    for t in range(m, forward.shape[0]):
        cross += forward[t] * backward[t - 1]
        power += forward[t] * forward[t] + backward[t - 1] * backward[t - 1]
    return cross, power


@njit(cache=True, error_model="numpy")
def _burg(deviations: F64, coefficients: F64, silent: float, forward: F64, backward: F64, before: F64) -> None:
    """Coefficients f64[p] (overwritten) of one series of deviations f64[b]."""
    forward[:] = deviations
    backward[:] = deviations
    coefficients[:] = 0.0
    for m in range(1, coefficients.shape[0] + 1):
        cross, power = _reflection(forward, backward, m)
        if power <= silent:
            return
        k = 2.0 * cross / power
        before[:] = coefficients
        coefficients[m - 1] = k
        for j in range(m - 1):
            coefficients[j] = before[j] - k * before[m - 2 - j]
        for t in range(forward.shape[0] - 1, m - 1, -1):
            ahead = forward[t]
            behind = backward[t - 1]
            forward[t] = ahead - k * behind
            backward[t] = behind - k * ahead


@njit(cache=True)
def start(filled: F64, order: int) -> F64:
    """f64[n, b] without gaps -> state f64[n, 2 + 2 order]."""
    n, b = filled.shape
    state = np.zeros((n, 2 + 2 * order))
    if b == 0:
        state[:, 1] = np.nan
        return state
    deviations, forward, backward = np.empty(b), np.empty(b), np.empty(b)
    before = np.empty(order)
    for i in range(n):
        mean = filled[i].mean()
        square = 0.0
        for t in range(b):
            deviations[t] = filled[i, t] - mean
            square += filled[i, t] * filled[i, t]
        if b >= 2 * order:
            _burg(deviations, state[i, 2 : 2 + order], _SILENT * square, forward, backward, before)
        state[i, 0], state[i, 1] = mean, filled[i, -1]
        for j in range(min(order, b)):
            state[i, 2 + order + j] = deviations[b - 1 - j]
    return state


@njit(cache=True)
def restart(state: F64, filled: F64) -> F64:
    """Same model, before the first bucket: all is at the mean."""
    fresh = state.copy()
    fresh[:, 2 + (state.shape[1] - 2) // 2 :] = 0.0
    fresh[:, 1] = state[:, 0]
    return fresh


@njit(cache=True)
def append(state: F64, value: F64) -> None:
    """One more bucket, float[n]; NaN repeats the last value."""
    order = (state.shape[1] - 2) // 2
    for i in range(state.shape[0]):
        if np.isfinite(value[i]):
            state[i, 1] = value[i]
        for j in range(1 + 2 * order, 2 + order, -1):
            state[i, j] = state[i, j - 1]
        state[i, 2 + order] = state[i, 1] - state[i, 0]


@njit(cache=True, error_model="numpy")
def forecast(state: F64, steps: int) -> F64:
    """f64[n, steps]."""
    order = (state.shape[1] - 2) // 2
    n = state.shape[0]
    out = np.empty((n, steps))
    path = np.empty(order + steps)  # oldest first
    for i in range(n):
        for j in range(order):
            path[j] = state[i, 1 + 2 * order - j]
        for h in range(steps):
            value = 0.0
            for j in range(order):
                value += state[i, 2 + j] * path[order + h - 1 - j]
            path[order + h] = value
            out[i, h] = state[i, 0] + value
    return out
