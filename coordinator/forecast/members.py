"""The cheap pool: point forecasts of the bucket mean and of the running peak, batched over all series.

Each member is fast enough to run for every series in every bucket, and wins somewhere: the last value and damped trends on drifting
load, rolling medians on noise (PlanetLab), daily, weekly and hourly profiles on surges that come back. Which one counts for which
series is combine.py's business. A member that cannot speak (no earlier season) answers NaN.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast import kernels
from coordinator.model import F32, F64
from shared.units import HORIZON_STEPS

MEMBERS: Final = ("naive", "exponential_smoothing", "damped_trend", "median_hour", "median_3_hours", "daily", "weekly", "hourly")
PEAK_MEMBERS: Final = ("peak_over_mean", "usual_hour", "last_peaks", "highest_hour", "daily_peaks")
SMOOTHING_WINDOW: Final = 288
ALPHAS: Final = np.array([0.03, 0.08, 0.15, 0.25, 0.4, 0.6, 0.8, 1.0])
WEEK: Final = 2016
_BASE: Final = 6  # the newest half hour fixes how far today lies above its profile
_SHIFT_DECAY: Final = 0.97 ** np.arange(1, HORIZON_STEPS + 1)
_WINDOW_LEVELS: Final = np.array([0.1, 0.5, 0.9])


class Window(NamedTuple):
    """Gap-free view of the newest day and simple statistics of it, rows = series (n = v x r)."""

    filled: F64  # [n, <= 288]
    readings: F64  # [n] in the window
    age: F64  # [n] buckets since the newest reading
    hour: F64  # [n, 3] quantiles .1 .5 .9 of the newest 12
    hours3: F64  # [n, 3] of the newest 36
    level: F64  # [n] mean of the window
    step: F64  # [n] mean absolute change from bucket to bucket in the window
    step_hour: F64  # [n] the same over the newest 12


def look(series: F32) -> Window:
    """float32[n, b] with NaN -> Window of its newest SMOOTHING_WINDOW buckets."""
    filled, readings, age = kernels.fill_gaps(series[:, -SMOOTHING_WINDOW:])
    change = np.abs(np.diff(filled, axis=1, prepend=filled[:, :1]))
    return Window(
        filled=filled,
        readings=readings,
        age=age,
        hour=kernels.window_quantiles(filled, 12, _WINDOW_LEVELS),
        hours3=kernels.window_quantiles(filled, 36, _WINDOW_LEVELS),
        level=filled.mean(axis=1),
        step=change.mean(axis=1),
        step_hour=change[:, -12:].mean(axis=1),
    )


def mean_members(series: F32, window: Window, damped: F64) -> F64:
    """All of MEMBERS: float64[k, n, 12]. `damped` f64[n, 3] are the fitted parameters of the damped trend."""
    n = len(series)
    out = np.full((len(MEMBERS), n, HORIZON_STEPS), np.nan)
    filled = window.filled
    out[0] = filled[:, -1:]
    out[1] = kernels.smooth_best(filled, ALPHAS)[0][:, None]
    out[2] = kernels.run_damped(filled, damped, HORIZON_STEPS)
    out[3] = window.hour[:, 1:2]
    out[4] = window.hours3[:, 1:2]
    out[5] = _seasonal(series, filled, kernels.SEASON, 7, 1)
    out[6] = _seasonal(series, filled, WEEK, 3, 1)
    out[7] = _seasonal(series, filled, 12, 12, 0)
    bounded: F64 = np.maximum(out, 0.0)
    return bounded


def _seasonal(series: F32, filled: F64, season: int, seasons: int, reach: int) -> F64:
    """The profile of earlier seasons, lifted by how far the newest half hour lies above its own profile (fading)."""
    n, b = series.shape
    usable = min((b - _BASE) // season, seasons)
    if usable < 1:
        return np.full((n, HORIZON_STEPS), np.nan)
    profile = kernels.season_profile(series, _BASE, HORIZON_STEPS, season, usable, reach)
    base = profile[:, :_BASE]
    newest = filled[:, -_BASE:]
    known = ~np.isnan(base)
    weight = np.maximum(known.sum(axis=1), 1)
    shift = np.where(known, newest - base, 0.0).sum(axis=1) / weight
    curve: F64 = profile[:, _BASE:] + shift[:, None] * _SHIFT_DECAY
    return curve


def peak_members(peaks: F32, window: Window, means: F64, point: F64) -> F64:
    """All of PEAK_MEMBERS for the largest value within steps 0..s: float64[k, n, 12].

    `peaks` float32[n, b] history of bucket peaks, `window` its Window, `means` f64[n, <= 288] filled bucket means of the same buckets,
    `point` f64[n, 12] the forecast of the means.
    """
    n, b = peaks.shape
    filled = window.filled
    out = np.full((len(PEAK_MEMBERS), n, HORIZON_STEPS), np.nan)
    recent, recent_means = filled[:, -36:], means[:, -36:]
    ratio = np.median((recent + 1e-9) / (np.minimum(recent_means, recent) + 1e-9), axis=1)
    out[0] = np.maximum.accumulate(point, axis=1) * np.minimum(ratio, 20.0)[:, None]
    out[1] = kernels.sliding_maxima(filled, 72, HORIZON_STEPS)
    newest: NDArray[np.float64] = filled[:, : -HORIZON_STEPS - 1 : -1]
    lasts = np.maximum.accumulate(newest, axis=1)
    out[2, :, : lasts.shape[1]] = lasts
    out[2, :, lasts.shape[1] :] = lasts[:, -1:]
    out[3] = lasts[:, -1:]
    usable = min(b // kernels.SEASON, 7)
    if usable >= 1:
        profile = kernels.season_profile(peaks, 0, HORIZON_STEPS, kernels.SEASON, usable, 0)
        out[4] = np.fmax.accumulate(profile, axis=1)
    bounded: F64 = np.maximum(out, 0.0)
    return bounded
