"""The cheap pool: point forecasts of the bucket mean and of the running peak, batched over all series.

Each member is fast enough to run for every series in every bucket, and wins somewhere: the last value and damped trends on drifting
load, rolling medians on noise (PlanetLab), daily, weekly and hourly profiles on surges that come back. Which one counts for which
series is combine.py's business. A member that cannot speak (no earlier season) answers NaN.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from coordinator.forecast.kernels import pool
from coordinator.forecast.kernels.lanes import flat
from coordinator.forecast.seasons import Profiles
from coordinator.model import F32, F64
from shared.units import HORIZON_STEPS

MEMBERS: Final = ("naive", "exponential_smoothing", "damped_trend", "median_hour", "median_3_hours", "daily", "weekly", "hourly")
PEAK_MEMBERS: Final = ("peak_over_mean", "usual_hour", "last_peaks", "highest_hour", "daily_peaks")
SMOOTHING_WINDOW: Final = 288
ALPHAS: Final = np.array([0.03, 0.08, 0.15, 0.25, 0.4, 0.6, 0.8, 1.0])
_ALPHAS: Final = ALPHAS.astype(np.float32)


class Window(NamedTuple):
    """Gap-free view of the newest day and simple statistics of it, rows = series (n = v x r)."""

    filled: F32  # [n, <= 288], C order
    readings: F64  # [n] in the window
    age: F64  # [n] buckets since the newest reading
    hour: F64  # [n, 3] quantiles .1 .5 .9 of the newest 12
    hours3: F64  # [n, 3] of the newest 36
    level: F64  # [n] mean of the window
    step: F64  # [n] mean absolute change from bucket to bucket in the window
    step_hour: F64  # [n] the same over the newest 12


def look(series: F32) -> Window:
    """float32[n, b] with NaN -> Window of its newest SMOOTHING_WINDOW buckets."""
    n, b = series.shape
    filled = np.empty((n, min(b, SMOOTHING_WINDOW)), dtype=np.float32)
    readings, age, level, step, step_hour = np.zeros((5, n))
    hour, hours3 = np.zeros((2, n, 3))
    if n and b:
        pool.look(*flat(series), b, filled, readings, age, hour, hours3, level, step, step_hour)
    return Window(filled, readings, age, hour, hours3, level, step, step_hour)


def mean_members(window: Window, damped: F64, profiles: Profiles, out: F32 | None = None) -> F32:
    """All of MEMBERS: float32[k, n, 12], written to `out` where it is given (contiguous).

    `damped` f64[n, 3] are the fitted parameters of the damped trend, `profiles` what earlier seasons say of the same series.
    """
    n = len(window.filled)
    out = np.empty((len(MEMBERS), n, HORIZON_STEPS), dtype=np.float32) if out is None else out
    by_season = profiles.daily, profiles.weekly, profiles.hourly
    if n:
        pool.mean_members(
            window.filled,
            window.hour,
            window.hours3,
            window.level,
            window.step,
            np.ascontiguousarray(damped),
            _ALPHAS,
            *(profile.rows for profile in by_season),
            np.array([profile.turn for profile in by_season]),
            out,
        )
    return out


def peak_members(window: Window, means: F32, point: F64, profiles: Profiles) -> F32:
    """All of PEAK_MEMBERS for the largest value within steps 0..s: float32[k, n, 12].

    `window` of the peaks, `means` f32[n, <= 288] filled bucket means of the same buckets, `point` f64[n, 12] the forecast of the means.
    """
    n = len(window.filled)
    out = np.empty((len(PEAK_MEMBERS), n, HORIZON_STEPS), dtype=np.float32)
    if n:
        pool.peak_members(window.filled, means, np.ascontiguousarray(point), *profiles.daily_peaks, out)
    return out
