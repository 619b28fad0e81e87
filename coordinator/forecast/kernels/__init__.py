"""Batched kernels (numba): thousands of series in one call, no Python per series.

One module a family of StatsForecast's; each has a state with one row a series and the same functions on it:

    start(filled f64[n, b], ...) -> state f64[n, k]     fit and run to the end
    append(state, value f64[n])                         one more bucket, in place, O(1) a series
    forecast(state, steps) -> f64[n, steps]
    restart(state, filled) -> state                     same parameters, before the first bucket of `filled`

naive (last value, season ago), smoothing (SES), damped (trend), theta, autoregression, seasonal (Holt-Winters), profile (long seasons),
windows (median, mean, quantiles), intermittent (Croston, SBA, TSB). The gap rule is in gaps.py. `families.FAMILIES` names them all.
Invariant: finite values and NaN in, finite values out (from the first reading on); the same input gives the same bytes, whatever
series stand beside it.

numba's cache notices a change of the file a kernel stands in, not of a kernel it calls in another: after editing gaps.py remove it.
"""

from __future__ import annotations

from coordinator.forecast.kernels.damped import fit_damped, run_damped
from coordinator.forecast.kernels.damped_search import ALPHA_MAX, ALPHA_MIN, PHI_MAX, PHI_MIN
from coordinator.forecast.kernels.gaps import LANES, fill_gaps
from coordinator.forecast.kernels.profile import SEASON, season_profile
from coordinator.forecast.kernels.smoothing import smooth_best
from coordinator.forecast.kernels.windows import sliding_maxima, window_quantiles

__all__ = [
    "ALPHA_MAX",
    "ALPHA_MIN",
    "LANES",
    "PHI_MAX",
    "PHI_MIN",
    "SEASON",
    "fill_gaps",
    "fit_damped",
    "run_damped",
    "season_profile",
    "sliding_maxima",
    "smooth_best",
    "window_quantiles",
]
