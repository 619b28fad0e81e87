"""StatsForecast's models as challengers: ARIMA, exponential smoothing, complex exponential smoothing, MSTL, MFLES and the plain ones.

They run per series in C++, from microseconds (averages) to seconds (ARIMA). Without a season they see the newest day; season 288 (a day) is
left to the two decomposing models, because an ETS or ARIMA with it takes 1 to 60 s a series and never paid (FORECAST.md). Models with a
season need two of them and answer NaN before. Additive errors only: multiplicative ones overflow near zero.
Sources: Hyndman and Khandakar (2008) for ARIMA, Hyndman et al. (2002) for ETS, Svetunkov et al. (2022) for CES, Bandara et al. (2021) for
MSTL; MFLES is gradient-boosted decomposition (Tyler Blume's, as carried by StatsForecast).
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from coordinator.forecast.challengers.port import LEAST_READINGS, Answer, Question, bounded
from coordinator.forecast.challengers.rows import demand, missing, one_by_one
from coordinator.model import F64

DAY: Final = 288
WEEK: Final = 2016
_PACKAGE: Final = "statsforecast"


@dataclass(frozen=True, kw_only=True)
class StatsForecastModel:
    """A model of StatsForecast and its arguments. `history`: newest buckets it sees; `least`: of them it needs; `needs`: more packages."""

    name: str
    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    history: int = DAY
    least: int = LEAST_READINGS
    needs: tuple[str, ...] = ()
    alone: bool = True

    def available(self) -> str | None:
        """Why it cannot run here."""
        return missing("coordinator", _PACKAGE, *self.needs)

    def forecast(self, question: Question, seed: int = 0) -> Answer:
        """Deterministic without a seed; means only (its normal intervals break the upper side too often: the engine calibrates)."""
        del seed
        demand(self.name, self.available())
        models: Any = importlib.import_module(f"{_PACKAGE}.models")  # seconds and 200 MiB that the tick does not need
        kind = getattr(models, self.model)
        arguments = {**self.arguments, **({"trend_forecaster": models.AutoETS(model="AZN")} if self.model == "MSTL" else {})}

        def fit(values: F64) -> F64:
            if len(values) < self.least:
                return np.full(question.steps, np.nan)
            said: F64 = kind(**arguments).forecast(y=values, h=question.steps)["mean"]
            return said

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fits of noise warn in many ways; what counts is the score
            mean, failures = one_by_one(question, self.history, fit)
        return bounded(mean, None, failures)


CLASSICAL: Final = (
    StatsForecastModel(
        name="auto_arima", model="AutoARIMA", arguments={"season_length": 1, "max_p": 3, "max_q": 3, "max_d": 1, "approximation": True}
    ),
    StatsForecastModel(name="auto_ets", model="AutoETS", arguments={"season_length": 1, "model": "AZN"}),
    StatsForecastModel(name="auto_ces", model="AutoCES", arguments={"season_length": 1}),
    StatsForecastModel(name="mstl", model="MSTL", arguments={"season_length": DAY}, history=WEEK, least=2 * DAY),
    StatsForecastModel(name="mfles", model="MFLES", arguments={"season_length": DAY}, history=WEEK, least=2 * DAY, needs=("sklearn",)),
    StatsForecastModel(name="sf_seasonal_naive", model="SeasonalNaive", arguments={"season_length": DAY}, least=DAY),
    StatsForecastModel(name="sf_window_average", model="WindowAverage", arguments={"window_size": 12}),
    StatsForecastModel(name="sf_ses_optimized", model="SimpleExponentialSmoothingOptimized"),
)
