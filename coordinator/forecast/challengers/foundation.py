"""A zero-shot foundation model as a challenger: fracast (Apache-2.0, 85,001 parameters, weights inside its wheel; extra `neural`).

No training: it sees up to 2,048 buckets of a series and says the deciles .1 to .9 of at most 48 steps. They become LEVELS linearly in the
normal score, beyond .1 and .9 with the slope of the outermost decile pair: the engine calibrates tails itself.
Source: https://pypi.org/project/fracast/.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np

from coordinator.forecast.challengers.port import Answer, Question, bounded
from coordinator.forecast.challengers.rows import askable, demand, missing
from coordinator.model import F64, LEVELS

DECILES: Final = tuple(round(0.1 * k, 1) for k in range(1, 10))
HISTORY: Final = 2048
LEAST: Final = 32  # readings; with fewer it refuses
MOST_STEPS: Final = 48
BATCH: Final = 256  # series a call: bounds its memory


@dataclass(frozen=True, kw_only=True)
class FoundationModel:
    """One for all series, nothing to tune."""

    name: str = "fracast"
    alone: bool = False  # it does, but loads its weights for each question

    def available(self) -> str | None:
        """Why it cannot run here."""
        return missing("neural", "torch", "fracast")

    def forecast(self, question: Question, seed: int = 0) -> Answer:
        """Mean (the median) and quantiles at LEVELS for up to 48 steps, NaN beyond; deterministic without a seed."""
        del seed
        demand(self.name, self.available())
        shape = (len(question.series), question.steps)
        quantiles = np.full((*shape, len(LEVELS)), np.nan, dtype=np.float32)
        rows, filled = askable(question, LEAST)
        steps = min(question.steps, MOST_STEPS)
        if not len(rows) or filled.shape[1] < LEAST:
            return bounded(quantiles[..., 0], quantiles)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's future
            importlib.import_module("torch").set_num_threads(1)
            model: Any = importlib.import_module("fracast").FracastModel.from_pretrained(weights="fp32")
            filled = filled[:, -HISTORY:]
            level = np.maximum(np.abs(filled).mean(axis=1, keepdims=True), 1e-9)
            scaled = (filled / level).astype(np.float32)
            said = np.concatenate([model.forecast_batch(scaled[i : i + BATCH], horizon=steps) for i in range(0, len(rows), BATCH)])
        quantiles[rows, :steps] = at_levels(np.sort(said.astype(np.float64), axis=-1)) * level[..., None]
        return bounded(quantiles[..., LEVELS.index(0.5)], quantiles)


def at_levels(deciles: F64) -> F64:
    """Deciles [..., 9] -> quantiles [..., q] at LEVELS."""
    score = NormalDist().inv_cdf
    places = np.array([score(decile) for decile in DECILES])
    parts = []
    for level in LEVELS:
        right = int(np.clip(np.searchsorted(places, score(level)), 1, len(places) - 1))
        share = (score(level) - places[right - 1]) / (places[right] - places[right - 1])
        parts.append(deciles[..., right - 1] * (1.0 - share) + deciles[..., right] * share)
    return np.stack(parts, axis=-1)
