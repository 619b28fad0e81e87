"""One challenger's turn: from the history of the chosen series to a forecast with an address. Meant to run in a task of the pool."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.challengers.port import MOST_STEPS, Answer, ChallengerForecast, MissingExtra, Question
from coordinator.forecast.challengers.registry import find
from coordinator.model import N_RESOURCES, HistoryBlock
from shared.units import BUCKET_S


def run(name: str, history: HistoryBlock, rows: NDArray[np.int64], steps: int = MOST_STEPS, seed: int = 0) -> ChallengerForecast:
    """Forecast series `rows` (v * N_RESOURCES + r) of the history, inside [0, capacity].

    What the libraries cannot do is NaN and told in `failures`. Raises ValueError for an unknown name or row, MissingExtra when the
    challenger's packages are not installed.
    """
    challenger = find(name)
    v, r, b = history.mean.shape
    if len(rows) and not (rows.min() >= 0 and rows.max() < v * r):
        raise ValueError(f"rows {rows.min()} to {rows.max()}: allowed 0 to {v * r - 1}")
    question = Question(
        series=history.mean.reshape(v * r, b)[rows], resource=rows % N_RESOURCES, start_s=history.end_s - (b - 1) * BUCKET_S, steps=steps
    )
    try:
        answer = challenger.forecast(question, seed)
    except MissingExtra:
        raise
    except Exception as error:  # noqa: BLE001  (a library that fails as a whole silences one member, not the loop; the failure is told)
        silent = np.full((len(rows), steps), np.nan, dtype=np.float32)
        answer = Answer(mean=silent, failures=(f"{type(error).__name__}: {error}"[:200] + f" ({len(rows)} series)",))
    top = np.where(np.isnan(history.capacity), np.inf, history.capacity).reshape(-1)[rows].astype(np.float32)
    return ChallengerForecast(
        name=challenger.name,
        issued_s=question.issued_s,
        vm_ids=tuple(history.vm_ids[row // N_RESOURCES] for row in rows),
        resource=question.resource,
        mean=np.minimum(answer.mean, top[:, None]),
        quantiles=None if answer.quantiles is None else np.minimum(answer.quantiles, top[:, None, None]),
        failures=answer.failures,
    )
