"""The kernels as models for StatsForecast: the same interface, so that both can be compared, cross-validated and mixed there.

`StatsForecast(models=[DampedTrend(), AutoETS()], freq="5min").cross_validation(...)` runs ours beside theirs. One call a series: this is
the way to compare, never the fast path (that calls the kernels for all series at once). StatsForecast is not imported: its models are
duck-typed.

Other than theirs: gaps (NaN) are filled by the kernels' rule instead of refused, one point is enough, and `forward` estimates the first
state anew from the series it is given (theirs keeps the first state of the series that was fitted, which a slid window contradicts).
Intervals are normal. Their spread at step h follows from the kernel itself: how much an error now moves each later forecast (psi weights,
Hyndman et al. 2008, ch. 6), for families that are linear in their values; median and intermittent demand keep the one-step spread.
Exogenous columns are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from statistics import NormalDist
from typing import Final, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.kernels import families, fill_gaps, intermittent
from coordinator.forecast.kernels.autoregression import ORDER
from coordinator.forecast.kernels.families import FAMILIES, Family
from coordinator.model import F64

METHODS: Final = ("conformal_distribution", "conformal_error")
Answer = dict[str, NDArray[np.float64]]


class Intervals(Protocol):
    """statsforecast.utils.ConformalIntervals: what StatsForecast sets where it is asked for conformal intervals."""

    n_windows: int
    h: int
    method: str


class Fit(NamedTuple):
    """A fitted series: the kernel's state f64[1, k], one-step forecasts and errors f64[b] (NaN where silent), root mean square error."""

    state: F64
    fitted: F64
    residuals: F64
    sigma: float


class KernelModel:
    """StatsForecast's model interface around one family. Raises ValueError for an empty series, a bad horizon or level."""

    uses_exog = False
    gaps = True  # fill them before the kernel sees the series

    def __init__(self, family: Family, alias: str, prediction_intervals: Intervals | None = None) -> None:
        self.family = family
        self.alias = alias
        self.prediction_intervals = prediction_intervals
        self.model_: Fit | None = None
        self._conformity: F64 | None = None

    def __repr__(self) -> str:
        return self.alias  # StatsForecast names its columns by this

    def new(self) -> Self:
        """A shallow copy."""
        return copy(self)

    def fit(self, y: F64, X: F64 | None = None) -> Self:
        """Fit to y float[b], gaps allowed."""
        row = self._row(y)
        state = self.family.start(row)
        self.model_ = self._filter(state, state, row)
        self._conformity = None if self.prediction_intervals is None else self._scores(fill_gaps(row)[0][0])
        return self

    def predict(self, h: int, X: F64 | None = None, level: Sequence[float] | None = None) -> Answer:
        """mean f64[h], and lo-L, hi-L for each level (per cent)."""
        return self._answer(self._known(), h, level, fitted=False, conformity=self._conformity)

    def predict_in_sample(self, level: Sequence[float] | None = None) -> Answer:
        """fitted f64[b], and fitted-lo-L, fitted-hi-L."""
        return _in_sample(self._known(), level)

    def forecast(
        self,
        y: F64,
        h: int,
        X: F64 | None = None,
        X_future: F64 | None = None,
        level: Sequence[float] | None = None,
        fitted: bool = False,
    ) -> Answer:
        """Fit and predict in one, keeping nothing."""
        model = self.new()
        if level is None:  # without intervals nothing needs the scores
            model.prediction_intervals = None
        if level is None and not fitted:
            return {"mean": model._path(model.family.start(model._row(y)), h)}
        model.fit(y)
        return model._answer(model._known(), h, level, fitted, model._conformity)

    def forward(
        self,
        y: F64,
        h: int,
        X: F64 | None = None,
        X_future: F64 | None = None,
        level: Sequence[float] | None = None,
        fitted: bool = False,
    ) -> Answer:
        """Predict from another series y with the parameters of the fitted one."""
        row = self._row(y)
        moved = self._filter(self._known().state, None, row)
        return self._answer(moved, h, level, fitted, self._conformity)

    # ---- inside

    def _known(self) -> Fit:
        if self.model_ is None:
            raise ValueError(f"{self.alias}: call fit before predict, predict_in_sample or forward")
        return self.model_

    def _row(self, y: F64) -> F64:
        series = np.asarray(y, dtype=np.float64)
        if series.ndim != 1 or len(series) == 0:
            raise ValueError(f"y has shape {series.shape}: one dimension of at least 1 value is needed")
        return fill_gaps(series[None])[0] if self.gaps else np.where(np.isfinite(series), series, np.nan)[None]

    def _path(self, state: F64, h: int) -> F64:
        if h < 1:
            raise ValueError(f"h {h}: allowed 1 and more")
        path: F64 = self.family.forecast(state, h)[0]
        return path

    def _filter(self, parameters: F64, end: F64 | None, row: F64) -> Fit:
        """One-step forecasts along f64[1, b] with given parameters. `end`: the state at the end where it is known, else it is filtered."""
        state = self.family.restart(parameters, row)
        fitted = np.empty(row.shape[1])
        for t in range(row.shape[1]):
            fitted[t] = self.family.forecast(state, 1)[0, 0]
            self.family.append(state, row[:, t])
        residuals = row[0] - fitted
        seen = residuals[np.isfinite(residuals)]
        sigma = float(np.sqrt(np.mean(np.square(seen)))) if len(seen) else 0.0
        return Fit(state if end is None else end, fitted, residuals, sigma)

    def _answer(self, fit: Fit, h: int, level: Sequence[float] | None, fitted: bool, conformity: F64 | None) -> Answer:
        out = {"mean": self._path(fit.state, h)}
        if level is not None:
            levels = _checked(level)
            if conformity is None:
                _add_normal(out, fit.sigma * self._growth(fit, h), levels)
            else:
                _add_conformal(out, conformity, levels, self.prediction_intervals.method if self.prediction_intervals else METHODS[0])
        if fitted:
            out |= _in_sample(fit, level)
        return out

    def _growth(self, fit: Fit, h: int) -> F64:
        """Standard deviation of step 1 .. h over that of step 1: f64[h]."""
        weights = np.zeros(h)
        if self.family.linear and h > 1:
            next_value = self.family.forecast(fit.state, 1)[:, 0]
            size = max(fit.sigma, 1.0)
            hit, calm = fit.state.copy(), fit.state.copy()
            self.family.append(hit, next_value + size)
            self.family.append(calm, next_value)
            weights[1:] = (self.family.forecast(hit, h - 1) - self.family.forecast(calm, h - 1))[0] / size
        return np.asarray(np.sqrt(1.0 + np.cumsum(np.square(weights))))

    def _scores(self, series: F64) -> F64:
        """Absolute errors of forecasts over the last windows of a series: f64[windows, h], as StatsForecast's."""
        asked = self.prediction_intervals
        windows = 0 if asked is None else min(asked.n_windows, (len(series) - 1) // asked.h)
        if asked is None or windows < 2:
            raise ValueError(f"y has {len(series)} values: conformal intervals need at least {2 * asked.h + 1 if asked else 0}")
        first = len(series) - windows * asked.h
        ends = [first + k * asked.h for k in range(windows)]
        return np.array([np.abs(self._path(self.family.start(series[None, :e]), asked.h) - series[e : e + asked.h]) for e in ends])


def _checked(level: Sequence[float]) -> list[float]:
    for value in level:
        if not 0 < value < 100:
            raise ValueError(f"level {value}: allowed above 0 and below 100 (per cent)")
    return sorted(level)


def _add_normal(out: Answer, deviation: F64, levels: list[float], prefix: str = "", centre: str = "mean") -> None:
    z = {value: NormalDist().inv_cdf(0.5 + value / 200) for value in levels}
    for value in reversed(levels):
        out[f"{prefix}lo-{value}"] = out[centre] - z[value] * deviation
    for value in levels:
        out[f"{prefix}hi-{value}"] = out[centre] + z[value] * deviation


def _add_conformal(out: Answer, scores: F64, levels: list[float], method: str) -> None:
    """The two methods of StatsForecast: quantiles of mean plus and minus the errors, or of their sizes."""
    if method not in METHODS:
        raise ValueError(f"method {method}: allowed {', '.join(METHODS)}")
    mean = out["mean"]
    steps = len(mean)
    if scores.shape[1] < steps:
        raise ValueError(f"h {steps}: the conformal intervals were made for {scores.shape[1]} steps")
    sizes = scores[:, :steps]
    both = np.vstack([mean - sizes, mean + sizes])
    tails = {value: (0.5 - value / 200, 0.5 + value / 200) for value in levels}
    for value in reversed(levels):
        low = np.quantile(both, tails[value][0], axis=0) if method == METHODS[0] else mean - np.quantile(sizes, value / 100, axis=0)
        out[f"lo-{value}"] = low
    for value in levels:
        high = np.quantile(both, tails[value][1], axis=0) if method == METHODS[0] else mean + np.quantile(sizes, value / 100, axis=0)
        out[f"hi-{value}"] = high


def _in_sample(fit: Fit, level: Sequence[float] | None) -> Answer:
    out: Answer = {"fitted": fit.fitted}
    if level is not None:
        _add_normal(out, np.full(len(fit.fitted), fit.sigma), _checked(level), "fitted-", "fitted")
    return out


def _whole(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} {value}: allowed 1 and more")


def _share(name: str, value: float) -> None:
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} {value}: allowed above 0 to 1")


class Naive(KernelModel):
    """StatsForecast's Naive."""

    def __init__(self, alias: str = "Naive", prediction_intervals: Intervals | None = None) -> None:
        super().__init__(FAMILIES["naive"], alias, prediction_intervals)


class SeasonalNaive(KernelModel):
    """StatsForecast's SeasonalNaive."""

    def __init__(self, season_length: int, alias: str = "SeasonalNaive", prediction_intervals: Intervals | None = None) -> None:
        _whole("season_length", season_length)
        super().__init__(families.seasonal_naive(season_length), alias, prediction_intervals)


class ExponentialSmoothing(KernelModel):
    """StatsForecast's SimpleExponentialSmoothing."""

    def __init__(self, alpha: float, alias: str = "ExponentialSmoothing", prediction_intervals: Intervals | None = None) -> None:
        _share("alpha", alpha)
        super().__init__(families.exponential_smoothing(alpha), alias, prediction_intervals)


class ExponentialSmoothingOptimised(KernelModel):
    """StatsForecast's SimpleExponentialSmoothingOptimized."""

    def __init__(self, alias: str = "ExponentialSmoothingOptimised", prediction_intervals: Intervals | None = None) -> None:
        super().__init__(FAMILIES["ses_optimised"], alias, prediction_intervals)


class DampedTrend(KernelModel):
    """StatsForecast's AutoETS(model="AAN", damped=True)."""

    def __init__(self, alias: str = "DampedTrend", prediction_intervals: Intervals | None = None) -> None:
        super().__init__(FAMILIES["damped_trend"], alias, prediction_intervals)


class Theta(KernelModel):
    """StatsForecast's Theta of season 1."""

    def __init__(self, alias: str = "Theta", prediction_intervals: Intervals | None = None) -> None:
        super().__init__(FAMILIES["theta"], alias, prediction_intervals)


class OptimisedTheta(KernelModel):
    """StatsForecast's OptimizedTheta of season 1."""

    def __init__(self, alias: str = "OptimisedTheta", prediction_intervals: Intervals | None = None) -> None:
        super().__init__(FAMILIES["theta_optimised"], alias, prediction_intervals)


class Autoregressive(KernelModel):
    """StatsForecast's AutoRegressive."""

    def __init__(self, lags: int = ORDER, alias: str = "Autoregressive", prediction_intervals: Intervals | None = None) -> None:
        _whole("lags", lags)
        super().__init__(families.autoregressive(lags), alias, prediction_intervals)


class HoltWinters(KernelModel):
    """StatsForecast's HoltWinters, additive."""

    def __init__(self, season_length: int, alias: str = "HoltWinters", prediction_intervals: Intervals | None = None) -> None:
        _whole("season_length", season_length)
        super().__init__(families.holt_winters(season_length), alias, prediction_intervals)


class SeasonalProfile(KernelModel):
    """For seasons too long for HoltWinters; the in-sample values use the profile of the end."""

    def __init__(self, season_length: int, alias: str = "SeasonalProfile", prediction_intervals: Intervals | None = None) -> None:
        _whole("season_length", season_length)
        super().__init__(families.seasonal_profile(season_length), alias, prediction_intervals)


class WindowMedian(KernelModel):
    """Median of the newest values (StatsForecast has none)."""

    def __init__(self, window_size: int, alias: str = "WindowMedian", prediction_intervals: Intervals | None = None) -> None:
        _whole("window_size", window_size)
        super().__init__(families.window_median(window_size), alias, prediction_intervals)


class WindowAverage(KernelModel):
    """StatsForecast's WindowAverage; a shorter series averages what it has."""

    def __init__(self, window_size: int, alias: str = "WindowAverage", prediction_intervals: Intervals | None = None) -> None:
        _whole("window_size", window_size)
        super().__init__(families.window_average(window_size), alias, prediction_intervals)


class CrostonClassic(KernelModel):
    """StatsForecast's CrostonClassic."""

    gaps = False  # a missing bucket is no bucket

    def __init__(self, alias: str = "CrostonClassic", prediction_intervals: Intervals | None = None) -> None:
        super().__init__(families.croston(1.0), alias, prediction_intervals)


class CrostonSBA(KernelModel):
    """StatsForecast's CrostonSBA."""

    gaps = False  # a missing bucket is no bucket

    def __init__(self, alias: str = "CrostonSBA", prediction_intervals: Intervals | None = None) -> None:
        super().__init__(families.croston(intermittent.SBA), alias, prediction_intervals)


class TSB(KernelModel):
    """StatsForecast's TSB."""

    gaps = False  # a missing bucket is no bucket

    def __init__(self, alpha_d: float, alpha_p: float, alias: str = "TSB", prediction_intervals: Intervals | None = None) -> None:
        _share("alpha_d", alpha_d)
        _share("alpha_p", alpha_p)
        super().__init__(families.tsb(alpha_d, alpha_p), alias, prediction_intervals)
