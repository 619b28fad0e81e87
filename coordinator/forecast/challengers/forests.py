"""Gradient boosting and random forest as challengers: forecast/boosting trained on the very series asked for.

One model for all of them, direct for the first hour, then fed with its own medians, hour by hour. The boosted model is a member of the tick
too; here it is one that learned nothing but the series that matter most this turn. A peak is not known here: the means stand for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coordinator.forecast.boosting import QUANTILES, QuantileBooster, Settings, train
from coordinator.forecast.challengers.port import Answer, Question, bounded
from coordinator.forecast.challengers.rows import askable, demand, known, missing
from coordinator.model import F32, N_RESOURCES, HistoryBlock
from shared.units import BUCKET_S, HORIZON_STEPS


@dataclass(frozen=True, kw_only=True)
class TreeEnsemble:
    """`mode` as of boosting.Settings: gbdt or rf. `pairs`: the most (series, origin) pairs it learns from."""

    name: str
    mode: str
    pairs: int = 12_000
    history: int = 2016
    alone: bool = False

    def available(self) -> str | None:
        """Why it cannot run here."""
        return missing("coordinator", "lightgbm")

    def forecast(self, question: Question, seed: int = 0) -> Answer:
        """Means only: medians of the trees; NaN for all when there is too little history to train on."""
        demand(self.name, self.available())
        n = len(question.series)
        mean = np.full((n, question.steps), np.nan, dtype=np.float32)
        rows, _ = askable(question)
        if not len(rows):
            return bounded(mean, None)
        series = known(question.series[rows])[:, -self.history :]
        resource = question.resource[rows]
        model = train(_block(series, resource, question.issued_s - BUCKET_S), seed, settings=Settings(mode=self.mode, pairs=self.pairs))
        if model is None:
            return bounded(mean, None, (f"too little history to train on ({len(rows)} series)",))
        booster = QuantileBooster(model)
        for first in range(0, question.steps, HORIZON_STEPS):
            said = _median(booster, series, resource, question.issued_s + first * BUCKET_S)
            mean[rows, first : first + HORIZON_STEPS] = said[:, : question.steps - first]
            series = np.concatenate([series, said], axis=1)
        return bounded(mean, None)


def _block(series: F32, resource: np.ndarray[tuple[int, ...], np.dtype[np.int64]], end_s: int) -> HistoryBlock:
    """Each series as a VM of its own, so that the features know its resource."""
    n, b = series.shape
    mean = np.full((n, N_RESOURCES, b), np.nan, dtype=np.float32)
    mean[np.arange(n), resource] = series
    return HistoryBlock(
        vm_ids=tuple(str(i) for i in range(n)),
        end_s=end_s,
        mean=mean,
        peak=mean,
        censored=np.zeros_like(mean),
        capacity=np.full((n, N_RESOURCES), np.nan, dtype=np.float32),
    )


def _median(booster: QuantileBooster, series: F32, resource: np.ndarray[tuple[int, ...], np.dtype[np.int64]], issued_s: int) -> F32:
    """The next hour, float32[n, 12]."""
    block = _block(series, resource, issued_s - BUCKET_S)
    flat = block.mean.reshape(-1, series.shape[1])
    features = booster.describe(flat, flat, np.full(len(flat), np.nan), end=series.shape[1], now_s=block.end_s)
    said = booster.bucket_quantiles(features)[QUANTILES.index(0.5)]
    result: F32 = said.reshape(len(series), N_RESOURCES, HORIZON_STEPS)[np.arange(len(series)), resource].astype(np.float32)
    return result


TREES = (TreeEnsemble(name="gradient_boosting", mode="gbdt"), TreeEnsemble(name="random_forest", mode="rf"))
