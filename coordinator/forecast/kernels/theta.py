"""The Theta method: a smoothed level that drifts by a part of the linear trend.

Assimakopoulos and Nikolopoulos (2000), in the state-space form of Fiorucci et al., "Models for optimising the theta method" (2016):
mu_t = level_{t-1} + w (A q^t + B (1 - q^{t+1}) / alpha), q = 1 - alpha, w = 1 - 1/theta, with A + B t the line through the series. w = 1/2
(theta 2, half the drift) is the standard method; `start_optimised` fits w too. For a given alpha the one-step error is linear in the first
level and in w, so both are solved and only alpha is searched: sixteen alphas side by side, then sixteen around the best. As in
StatsForecast the first three errors do not count.
State f64[n, 7] = level, alpha, w, A, B, q^t, last value.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from coordinator.model import F64

ALPHA_LOW: Final = 0.1  # StatsForecast's bounds
ALPHA_HIGH: Final = 0.99
HALF: Final = 0.5
_WIDE: Final = 16
_ZOOMS: Final = 3
_SKIP: Final = 3
_TINY: Final = 1e-12  # below it a regressor has vanished: what it stands for does not show in the data
LEVEL, ALPHA, DRIFT, LINE, SLOPE, POWER, LAST = range(7)


@njit(cache=True)
def _line(row: F64) -> tuple[float, float]:
    """Least-squares line A + B t with t = 1 .. b."""
    b = row.shape[0]
    mean = row.mean()
    cross = 0.0
    for t in range(b):
        cross += (t - (b - 1) / 2.0) * (row[t] - mean)
    slope = cross / (b * (b * b - 1.0) / 12.0) if b > 1 else 0.0
    return mean - slope * (b + 1) / 2.0, slope


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
def _moments(row: F64, alphas: F64, line: float, slope: float, sums: F64, lanes: F64) -> None:
    """Sums of products of error, q^t and trend term over the counted buckets: sums f64[6, _WIDE] = uu, uq, ug, qq, qg, gg."""
    level, power = lanes[0], lanes[1]
    sums[:] = 0.0
    level[:] = 0.0
    power[:] = 1.0
    skip = _SKIP if row.shape[0] > 2 * _SKIP else 0
    for t in range(row.shape[0]):
        value = row[t]
        counted = 1.0 if t >= skip else 0.0
        for k in range(_WIDE):
            q = power[k]
            after = q * (1.0 - alphas[k])
            trend = line * q + slope * (1.0 - after) / alphas[k]
            error = value - level[k]
            sums[0, k] += counted * error * error
            sums[1, k] += counted * error * q
            sums[2, k] += counted * error * trend
            sums[3, k] += counted * q * q
            sums[4, k] += counted * q * trend
            sums[5, k] += counted * trend * trend
            level[k] += alphas[k] * error
            power[k] = after


@njit(cache=True, error_model="numpy")
def _solve(sums: F64, k: int, drift: float, line: float, slope: float, first: float) -> tuple[float, float, float]:
    """(first level, w, squared error) of alpha k; `drift` NaN: fit w in 0 .. 1."""
    uu, uq, ug, qq, qg, gg = sums[0, k], sums[1, k], sums[2, k], sums[3, k], sums[4, k], sums[5, k]
    w = drift
    if np.isnan(drift):
        determinant = qq * gg - qg * qg
        w = HALF if determinant <= _TINY * qq * gg else min(max((ug * qq - uq * qg) / determinant, 0.0), 1.0)
    level = (uq - w * qg) / qq if qq > _TINY else first - w * (line + slope)
    sse = uu + level * level * qq + w * w * gg - 2.0 * (level * uq + w * ug) + 2.0 * level * w * qg
    return level, w, sse


@njit(cache=True, error_model="numpy")
def _fit(filled: F64, drift: float) -> F64:
    """State at the start of each series with alpha, w and the first level fitted."""
    n, b = filled.shape
    state = np.full((n, 7), np.nan)
    if b == 0:
        return state
    alphas, sums, lanes = np.empty(_WIDE), np.empty((6, _WIDE)), np.empty((2, _WIDE))
    for i in range(n):
        centre = filled[i].mean()  # the model moves with the data; around 0 the sums of squares keep their digits
        row = filled[i] - centre
        line, slope = _line(row)
        low, high = ALPHA_LOW, ALPHA_HIGH
        for _ in range(_ZOOMS):
            least = np.inf
            best = 0
            for k in range(_WIDE):
                alphas[k] = low + (high - low) * k / (_WIDE - 1)
            _moments(row, alphas, line, slope, sums, lanes)
            for k in range(_WIDE):
                level, w, sse = _solve(sums, k, drift, line, slope, row[0])
                if sse < least:
                    least, best = sse, k
                    state[i, LEVEL], state[i, DRIFT] = level, w
            state[i, ALPHA] = alphas[best]
            spacing = (high - low) / (_WIDE - 1)
            low, high = max(alphas[best] - spacing, ALPHA_LOW), min(alphas[best] + spacing, ALPHA_HIGH)
        state[i, LEVEL] += centre * (1.0 - state[i, DRIFT])
        state[i, LINE], state[i, SLOPE], state[i, POWER] = line + centre, slope, 1.0
    return state


@njit(cache=True)
def _run(state: F64, filled: F64) -> None:
    """Filter to the end, row by row."""
    for i in range(filled.shape[0]):
        alpha = state[i, ALPHA]
        level, power = state[i, LEVEL], state[i, POWER]
        for t in range(filled.shape[1]):
            level += alpha * (filled[i, t] - level)
            power *= 1.0 - alpha
        state[i, LEVEL], state[i, POWER] = level, max(power, 1e-300)
        if filled.shape[1] > 0:
            state[i, LAST] = filled[i, -1]


@njit(cache=True)
def start(filled: F64) -> F64:
    """f64[n, b] without gaps -> state of the standard method (theta 2)."""
    state: F64 = _fit(filled, HALF)
    _run(state, filled)
    return state


@njit(cache=True)
def start_optimised(filled: F64) -> F64:
    """f64[n, b] without gaps -> state with theta fitted too (w in 0 .. 1)."""
    state: F64 = _fit(filled, np.nan)
    _run(state, filled)
    return state


@njit(cache=True)
def restart(state: F64, filled: F64) -> F64:
    """Same alpha and w, before the first bucket of `filled`: its own line, the first level so that the first error is 0."""
    fresh = state.copy()
    for i in range(state.shape[0]):
        fresh[i, LINE], fresh[i, SLOPE] = _line(filled[i])
        fresh[i, LEVEL] = filled[i, 0] - fresh[i, DRIFT] * (fresh[i, LINE] + fresh[i, SLOPE])
        fresh[i, POWER], fresh[i, LAST] = 1.0, np.nan
    return fresh


@njit(cache=True)
def append(state: F64, value: F64) -> None:
    """One more bucket, float[n]; NaN repeats the last value. The line stays as fitted."""
    for i in range(state.shape[0]):
        now = value[i] if np.isfinite(value[i]) else state[i, LAST]
        state[i, LAST] = now
        state[i, LEVEL] += state[i, ALPHA] * (now - state[i, LEVEL])
        state[i, POWER] = max(state[i, POWER] * (1.0 - state[i, ALPHA]), 1e-300)  # a denormal costs a hundred times a number


@njit(cache=True, error_model="numpy")
def forecast(state: F64, steps: int) -> F64:
    """f64[n, steps]."""
    out = np.empty((state.shape[0], steps))
    for i in range(state.shape[0]):
        level, power = state[i, LEVEL], state[i, POWER]
        alpha = state[i, ALPHA]
        for h in range(steps):
            after = power * (1.0 - alpha)
            mean = level + state[i, DRIFT] * (state[i, LINE] * power + state[i, SLOPE] * (1.0 - after) / alpha)
            out[i, h] = mean
            level += alpha * (mean - level)
            power = after
    return out
