"""Prophet as a challenger (extra `prophet`): trend with change points plus Fourier seasons of the day and, from two weeks on, of the week.

It fits per series with Stan in a process of its own, tenths of a second each. Means only: its intervals come from sampling and are too
narrow for an hour ahead. Source: Taylor and Letham, "Forecasting at scale", The American Statistician 72(1), 2018.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from coordinator.forecast.challengers.port import Answer, Question, bounded
from coordinator.forecast.challengers.rows import demand, missing, one_by_one
from coordinator.model import F64
from shared.units import BUCKET_S

DAY: Final = 288
LEAST: Final = 48  # four hours


@dataclass(frozen=True, kw_only=True)
class ProphetModel:
    """`history`: newest buckets it sees."""

    name: str = "prophet"
    history: int = 2 * 2016
    alone: bool = True

    def available(self) -> str | None:
        """Why it cannot run here."""
        return missing("prophet", "prophet")

    def forecast(self, question: Question, seed: int = 0) -> Answer:
        """Means only; deterministic for a seed (Stan's optimiser)."""
        demand(self.name, self.available())
        pandas: Any = importlib.import_module("pandas")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Matplotlib, Stan and pandas' future
            importlib.import_module("cmdstanpy").disable_logging()  # two lines a fit
            kind: Any = importlib.import_module("prophet").Prophet

            def fit(values: F64) -> F64:
                stamps = question.issued_s + BUCKET_S * np.arange(-len(values), question.steps)
                moments = stamps.astype("datetime64[s]").astype("datetime64[ns]")
                model = kind(
                    daily_seasonality=len(values) >= 2 * DAY,
                    weekly_seasonality=len(values) >= 14 * DAY,
                    yearly_seasonality=False,
                    uncertainty_samples=0,
                )
                model.fit(pandas.DataFrame({"ds": moments[: len(values)], "y": values}), seed=seed + 1)
                said: F64 = model.predict(pandas.DataFrame({"ds": moments[len(values) :]}))["yhat"].to_numpy()
                return said

            mean, failures = one_by_one(question, self.history, fit, LEAST)
        return bounded(mean, None, failures)
