"""A turn of the challengers: from the history of the chosen series to forecasts with an address. Meant to run in a task of the pool.

Pure but for the clock that is handed in, which ends a turn that costs more than it may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.challengers.port import MOST_STEPS, Answer, ChallengerForecast, MissingExtra, Question
from coordinator.forecast.challengers.registry import find
from coordinator.model import N_RESOURCES, HistoryBlock
from shared.units import BUCKET_S

PART: Final = 16  # series of one question to who looks at each alone


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Who is asked about what: rows int64[m] (v * N_RESOURCES + r) of a history by challenger, in the order of asking.

    `steps`: the reach in buckets; `budget_s`: CPU seconds that all of it may take.
    """

    chosen: Mapping[str, NDArray[np.int64]]
    steps: int
    budget_s: float
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a challenger did in a turn: series it was asked about and answered for, CPU seconds, and what failed, one line a kind."""

    name: str
    asked: int
    answered: int
    cpu_s: float
    failures: tuple[str, ...] = ()


def take_turn(
    history: HistoryBlock, turn: Turn, cpu: Callable[[], float], stop: Callable[[], bool] = lambda: False
) -> tuple[tuple[ChallengerForecast, ...], tuple[Report, ...]]:
    """Ask every challenger about its rows of the history (as `run`), in order, until the budget is spent or `stop` says so.

    cpu: seconds of processor time used so far; a question already put is answered to its end. Reports name who was asked at least one.
    """
    began = cpu()
    forecasts, reports = [], []
    for name, rows in turn.chosen.items():
        parts = [rows[i : i + PART] for i in range(0, len(rows), PART)] if find(name).alone else [rows] * (len(rows) > 0)
        start, answers = cpu(), []
        failures: dict[str, None] = {}
        try:
            if parts and not stop():
                run(name, history, rows[:0], turn.steps, turn.seed)  # what it imports, seconds for some, is not the cost of its series
                start = cpu()
            for part in parts:
                if stop() or cpu() - began > turn.budget_s:
                    break
                answers.append(run(name, history, part, turn.steps, turn.seed))
                failures |= dict.fromkeys(answers[-1].failures)
        except MissingExtra as error:
            failures[str(error)] = None
        if answers or failures:
            answered = sum(int(np.isfinite(answer.mean).any(axis=1).sum()) for answer in answers)
            asked = sum(len(answer.vm_ids) for answer in answers)
            reports.append(Report(name=find(name).name, asked=asked, answered=answered, cpu_s=cpu() - start, failures=tuple(failures)))
        if answers:
            forecasts.append(_joined(answers))
    return tuple(forecasts), tuple(reports)


def _joined(parts: list[ChallengerForecast]) -> ChallengerForecast:
    """Parts of one question as one answer."""
    given = [part.quantiles for part in parts if part.quantiles is not None]
    return replace(
        parts[0],
        vm_ids=tuple(vm_id for part in parts for vm_id in part.vm_ids),
        resource=np.concatenate([part.resource for part in parts]),
        mean=np.concatenate([part.mean for part in parts]),
        quantiles=np.concatenate(given) if given else None,
        failures=tuple(dict.fromkeys(failure for part in parts for failure in part.failures)),
    )


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
