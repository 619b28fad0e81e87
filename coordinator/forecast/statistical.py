"""StatsForecast models as members of the pool: SeasonalNaive, WindowAverage, optimised SES and ETS(A,N,N).

They run per series in C++ (3 to 50 microseconds each, ETS 1 to 2 ms), so they speak in live buckets and the newest replayed ones only,
and the costly ETS fit goes round: each bucket fits one series in 24, the others filter with the alpha of their last fit. StatsForecast is
imported on first use: it takes seconds and 200 MiB, which the fast path does not need.
Rule for data it refuses (too short, NaN): the member answers NaN and its weight goes elsewhere.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.rows import take_rows
from coordinator.model import F32, F64, N_RESOURCES
from shared.units import HORIZON_STEPS

STATISTICAL: Final = ("sf_seasonal_naive", "sf_window_average", "sf_ses_optimized", "sf_ets_ann")
FIT_EVERY: Final = 24
SEASON: Final = 288
LEAST_POINTS: Final = 12


class StatisticalPool:
    """Keeps the alpha of the last ETS fit of every series [v, r]."""

    def __init__(self) -> None:
        self._alpha: F64 = np.zeros((0, N_RESOURCES))
        self._models: dict[str, Any] = {}

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        self._alpha = take_rows(self._alpha, take, 0, np.nan)

    def forecast(self, series: F32, filled: F64, tick: int) -> F64:
        """series float32[n, b] with NaN, filled f64[n, <= 288] -> float64[4, n, 12] in the order of STATISTICAL; NaN = cannot say."""
        models = self._load()
        out = np.full((len(STATISTICAL), len(filled), HORIZON_STEPS), np.nan)
        if filled.shape[1] < LEAST_POINTS:
            return out
        alpha = self._alpha.reshape(-1)
        for i, row in enumerate(filled):
            if series.shape[1] >= SEASON and filled.shape[1] >= SEASON:
                out[0, i] = models["sf_seasonal_naive"].forecast(y=row, h=HORIZON_STEPS)["mean"]
            out[1, i] = models["sf_window_average"].forecast(y=row, h=HORIZON_STEPS)["mean"]
            out[2, i] = models["sf_ses_optimized"].forecast(y=row, h=HORIZON_STEPS)["mean"]
            if (i + tick) % FIT_EVERY == 0 or np.isnan(alpha[i]):
                alpha[i] = self._fit_ets(row) if (i + tick) % FIT_EVERY == 0 else np.nan
        known = ~np.isnan(alpha)
        if known.any():
            out[3, known] = _filter(filled[known], alpha[known])[:, None]
        np.copyto(out, np.nan, where=~np.isfinite(out))
        bounded: F64 = np.maximum(out, 0.0)
        return bounded

    def _fit_ets(self, row: F64) -> float:
        if np.ptp(row) == 0.0:
            return 0.5  # constant: every alpha forecasts the same
        return float(self._models["sf_ets_ann"].fit(y=row).model_["par"][0])

    def _load(self) -> dict[str, Any]:
        if not self._models:
            from statsforecast.models import (  # noqa: PLC0415  (seconds and 200 MiB that the fast path does not need)
                AutoETS,
                SeasonalNaive,
                SimpleExponentialSmoothingOptimized,
                WindowAverage,
            )

            self._models = {
                "sf_seasonal_naive": SeasonalNaive(season_length=SEASON),
                "sf_window_average": WindowAverage(window_size=12),
                "sf_ses_optimized": SimpleExponentialSmoothingOptimized(),
                "sf_ets_ann": AutoETS(season_length=1, model="ANN"),
            }
        return self._models


def _filter(filled: F64, alpha: F64) -> F64:
    """Level of simple exponential smoothing with one alpha a series: the forecast of ETS(A,N,N) at every step."""
    level = filled[:, 0].copy()
    for t in range(1, filled.shape[1]):
        level += alpha * (filled[:, t] - level)
    return level
