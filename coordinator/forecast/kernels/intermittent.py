"""Demand that comes now and then (backups, batch jobs): Croston's method, its SBA correction, and TSB.

Croston, "Forecasting and stock control for intermittent demands" (1972) smooths the size of demands and the gap between them; Syntetos and
Boylan (2005) take off its bias; Teunter, Syntetos, Babai (2011) smooth the probability of a demand instead, in every bucket, so that
a demand that stays away is forgotten. The forecast is a mean rate, the same at every step; StatsForecast's fixed gains.

Rule for gaps, other than in the rest: a missing bucket is no bucket (NaN changes nothing), as a demand repeated through an outage would be
a demand that never was. `start` takes NaN for the same reason. Demand is what is above 0.
State f64[n, 6] = demand, interval (Croston) or probability (TSB), buckets since the last demand, gain of demand, gain of interval or
probability, factor. Demand NaN = none yet: the forecast is 0.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from coordinator.model import F64

ALPHA: Final = 0.1
SBA: Final = 0.95  # 1 - ALPHA / 2
DEMAND, RATE, SINCE, GAIN_DEMAND, GAIN_RATE, FACTOR = range(6)


@njit(cache=True)
def _blank(n: int, gain_demand: float, gain_rate: float, factor: float) -> F64:
    state = np.zeros((n, 6))
    state[:, DEMAND] = np.nan
    state[:, RATE] = np.nan
    state[:, GAIN_DEMAND] = gain_demand
    state[:, GAIN_RATE] = gain_rate
    state[:, FACTOR] = factor
    return state


@njit(cache=True)
def start_croston(series: F64, factor: float) -> F64:
    """float[n, b], NaN = no bucket -> state. `factor` 1 is Croston's method, SBA its correction."""
    state: F64 = _blank(series.shape[0], ALPHA, ALPHA, factor)
    for t in range(series.shape[1]):
        append_croston(state, series[:, t])
    return state


@njit(cache=True)
def append_croston(state: F64, value: F64) -> None:
    """One more bucket, float[n]; NaN changes nothing."""
    for i in range(state.shape[0]):
        now = value[i]
        if not np.isfinite(now):
            continue
        state[i, SINCE] += 1.0
        if now <= 0.0:
            continue
        if np.isnan(state[i, DEMAND]):
            state[i, DEMAND], state[i, RATE] = now, state[i, SINCE]
        else:
            state[i, DEMAND] += state[i, GAIN_DEMAND] * (now - state[i, DEMAND])
            state[i, RATE] += state[i, GAIN_RATE] * (state[i, SINCE] - state[i, RATE])
        state[i, SINCE] = 0.0


@njit(cache=True)
def forecast_croston(state: F64, steps: int) -> F64:
    """f64[n, steps]: demand over interval; 0 where no demand was ever seen."""
    out = np.empty((state.shape[0], steps))
    for i in range(state.shape[0]):
        out[i, :] = 0.0 if np.isnan(state[i, DEMAND]) else state[i, FACTOR] * (state[i, DEMAND] / state[i, RATE])
    return out


@njit(cache=True)
def start_tsb(series: F64, gain_demand: float, gain_probability: float) -> F64:
    """float[n, b], NaN = no bucket -> state."""
    state: F64 = _blank(series.shape[0], gain_demand, gain_probability, 1.0)
    for t in range(series.shape[1]):
        append_tsb(state, series[:, t])
    return state


@njit(cache=True)
def append_tsb(state: F64, value: F64) -> None:
    """One more bucket, float[n]; NaN changes nothing."""
    for i in range(state.shape[0]):
        now = value[i]
        if not np.isfinite(now):
            continue
        came = 1.0 if now > 0.0 else 0.0
        if np.isnan(state[i, RATE]):
            state[i, RATE] = came
        else:
            state[i, RATE] += state[i, GAIN_RATE] * (came - state[i, RATE])
        if now > 0.0:
            if np.isnan(state[i, DEMAND]):
                state[i, DEMAND] = now
            else:
                state[i, DEMAND] += state[i, GAIN_DEMAND] * (now - state[i, DEMAND])


@njit(cache=True)
def forecast_tsb(state: F64, steps: int) -> F64:
    """f64[n, steps]: demand times probability; 0 where no demand was ever seen."""
    out = np.empty((state.shape[0], steps))
    for i in range(state.shape[0]):
        out[i, :] = 0.0 if np.isnan(state[i, DEMAND]) else state[i, RATE] * state[i, DEMAND]
    return out


@njit(cache=True)
def restart(state: F64, series: F64) -> F64:
    """Same gains, before the first bucket: no demand seen."""
    fresh = state.copy()
    fresh[:, DEMAND] = np.nan
    fresh[:, RATE] = np.nan
    fresh[:, SINCE] = 0.0
    return fresh
