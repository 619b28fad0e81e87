"""All kernel families by name, with their parameters bound: what reference.py wraps, warm.py compiles and the tests go through."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Final, NamedTuple

from coordinator.forecast.kernels import autoregression, damped, intermittent, naive, profile, seasonal, smoothing, theta, windows
from coordinator.model import F64

HOUR: Final = 12
SES_ALPHA: Final = 0.3
TSB_ALPHA: Final = 0.1


class Family(NamedTuple):
    """The functions of kernels/__init__.py with parameters bound. `linear`: the forecast is linear in the values once it is fitted."""

    start: Callable[[F64], F64]
    restart: Callable[[F64, F64], F64]
    append: Callable[[F64, F64], None]
    forecast: Callable[[F64, int], F64]
    linear: bool = True


def seasonal_naive(season: int) -> Family:
    """SeasonalNaive of `season` buckets."""
    return Family(lambda y: naive.start_seasonal(y, season), naive.restart_seasonal, naive.append_seasonal, naive.forecast_seasonal)


def exponential_smoothing(alpha: float) -> Family:
    """SimpleExponentialSmoothing with this alpha."""
    return Family(lambda y: smoothing.start_fixed(y, alpha), smoothing.restart, smoothing.append, smoothing.forecast)


def autoregressive(order: int) -> Family:
    """AutoRegressive with `order` lags."""
    return Family(lambda y: autoregression.start(y, order), autoregression.restart, autoregression.append, autoregression.forecast)


def holt_winters(season: int) -> Family:
    """HoltWinters, additive, of `season` buckets."""
    return Family(lambda y: seasonal.start(y, season), seasonal.restart, seasonal.append, seasonal.forecast)


def seasonal_profile(season: int) -> Family:
    """Profile of a long season."""
    return Family(lambda y: profile.start(y, season), profile.restart, profile.append, profile.forecast)


def window_median(width: int) -> Family:
    """Median of the newest `width` buckets."""
    return Family(lambda y: windows.start(y, width), windows.restart, windows.append, windows.forecast, linear=False)


def window_average(width: int) -> Family:
    """WindowAverage of the newest `width` buckets."""
    return Family(lambda y: windows.start(y, width), windows.restart, windows.append, windows.forecast_mean)


def croston(factor: float) -> Family:
    """CrostonClassic (factor 1) or CrostonSBA."""
    return Family(
        lambda y: intermittent.start_croston(y, factor),
        intermittent.restart,
        intermittent.append_croston,
        intermittent.forecast_croston,
        linear=False,
    )


def tsb(alpha_demand: float, alpha_probability: float) -> Family:
    """TSB."""
    return Family(
        lambda y: intermittent.start_tsb(y, alpha_demand, alpha_probability),
        intermittent.restart,
        intermittent.append_tsb,
        intermittent.forecast_tsb,
        linear=False,
    )


FAMILIES: Final = MappingProxyType(
    {
        "naive": Family(naive.start, naive.restart, naive.append, naive.forecast),
        "seasonal_naive": seasonal_naive(HOUR),
        "ses": exponential_smoothing(SES_ALPHA),
        "ses_optimised": Family(smoothing.start, smoothing.restart, smoothing.append, smoothing.forecast),
        "damped_trend": Family(damped.start, damped.restart, damped.append, damped.forecast),
        "theta": Family(theta.start, theta.restart, theta.append, theta.forecast),
        "theta_optimised": Family(theta.start_optimised, theta.restart, theta.append, theta.forecast),
        "autoregressive": autoregressive(autoregression.ORDER),
        "holt_winters": holt_winters(HOUR),
        "seasonal_profile": seasonal_profile(profile.SEASON),
        "window_median": window_median(36),
        "window_average": window_average(HOUR),
        "croston": croston(1.0),
        "croston_sba": croston(intermittent.SBA),
        "tsb": tsb(TSB_ALPHA, TSB_ALPHA),
    }
)
