"""Seasonal profiles: what is usual at this time of the day (season 288), hour (12) or week (2016), and how far now is from it.

For seasons too long to fit: Holt-Winters with 288 phases takes seconds a series, a profile is read off. The family keeps one mean
a phase (updated with GAIN_PHASE) and a deviation from it (smoothed with GAIN_LEVEL) that fades by FADE a step in the forecast: Holt-Winters
with fixed gains, a damped level and no trend. State float[n, 3 + season] = phase of the next bucket, deviation, last value, the
profile; float32 in gives a float32 state (means need no more). NaN repeats the last value in the deviation and leaves the profile.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from coordinator.model import F64

SEASON: Final = 288  # five-minute buckets of a day
GAIN_PHASE: Final = 0.2
GAIN_LEVEL: Final = 0.3
FADE: Final = 0.97
_HEAD: Final = 3


@njit(cache=True)
def start(filled: F64, season: int) -> F64:
    """float[n, b] without gaps -> state. A phase without a reading stands at the mean of the others."""
    n, b = filled.shape
    state = np.zeros((n, _HEAD + season), dtype=filled.dtype)
    total, weight = np.empty(season), np.empty(season)
    for i in range(n):
        total[:] = 0.0
        weight[:] = 0.0
        for t in range(b):
            total[t % season] += filled[i, t]
            weight[t % season] += 1.0
        mean = total.sum() / b if b > 0 else np.nan
        for phase in range(season):
            state[i, _HEAD + phase] = total[phase] / weight[phase] if weight[phase] > 0.0 else mean
        deviation = 0.0
        for t in range(max(b - season, 0), b):
            deviation += GAIN_LEVEL * (filled[i, t] - state[i, _HEAD + t % season] - deviation)
        state[i, 0], state[i, 1] = b % season, deviation
        state[i, 2] = filled[i, b - 1] if b > 0 else np.nan
    return state


@njit(cache=True)
def restart(state: F64, filled: F64) -> F64:
    """The same profile at its first phase, nothing known of the level."""
    fresh = state.copy()
    fresh[:, 0] = 0.0
    fresh[:, 1] = 0.0
    fresh[:, 2] = np.nan
    return fresh


@njit(cache=True)
def append(state: F64, value: F64) -> None:
    """One more bucket, float[n]."""
    season = state.shape[1] - _HEAD
    for i in range(state.shape[0]):
        phase = int(state[i, 0])
        if np.isfinite(value[i]):
            state[i, 2] = value[i]
        gap = state[i, 2] - state[i, _HEAD + phase]
        if np.isfinite(gap):
            state[i, 1] += GAIN_LEVEL * (gap - state[i, 1])
        if np.isfinite(value[i]):
            state[i, _HEAD + phase] += GAIN_PHASE * gap
        state[i, 0] = phase + 1 if phase + 1 < season else 0


@njit(cache=True)
def forecast(state: F64, steps: int) -> F64:
    """f64[n, steps]."""
    season = state.shape[1] - _HEAD
    out = np.empty((state.shape[0], steps))
    for i in range(state.shape[0]):
        phase = int(state[i, 0])
        deviation = float(state[i, 1])
        for h in range(steps):
            deviation *= FADE
            out[i, h] = state[i, _HEAD + phase] + deviation
            phase = phase + 1 if phase + 1 < season else 0
    return out


@njit(cache=True)
def season_profile(series: F64, back: int, ahead: int, season: int, seasons: int, reach: int) -> F64:
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
