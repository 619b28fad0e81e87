"""The slow loop's challengers beside the simplest rules: what each is worth and what it costs, per set.

Every challenger that is installed here forecasts the same series at the same few origins of each set (traces.py); it sees nothing but these
series, up to the origin. All are scored alike: mean scaled pinball at seven levels (forecast_protocol.py) with pooled scaled conformal
quantiles around what they say, beside the last value, simple exponential smoothing and the rolling median of three hours. The pool of one
half of the series is the residuals of the other half, per pair and part of the hour, so nobody sees its own errors. Quantiles that a model
gives itself have a row of their own. CPU seconds a series are those of a turn over all of the set's series, training included, and count
the processes that a model starts (Prophet's Stan). A challenger whose extra is missing is left out and said so. --quick trains on less.

    python -m bench.challengers [--quick] [--data DIR] [--json FILE] [--sets a,b] [--only a,b]
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from bench.forecast_protocol import FLOORS, LEVEL_FLOOR, SCORED_LEVELS, pinball
from bench.report import Figure, options, publish
from bench.traces import Trace, chosen_sets, load
from coordinator.forecast import kernels
from coordinator.forecast.challengers import CONCEPT, LEAST_READINGS, Answer, Challenger, Question, find, registered
from coordinator.forecast.challengers.forests import TreeEnsemble
from coordinator.forecast.challengers.neural import NeuralModel
from coordinator.forecast.members import ALPHAS, look
from coordinator.model import F32, F64, LEVELS
from shared.units import BUCKET_S, HORIZON_STEPS

HISTORY: Final = 2304  # eight days
PARTS: Final = 4  # of the hour: residuals of three neighbouring steps are one pool
TAU: Final = np.array(LEVELS)


class Size(NamedTuple):
    """Series of each pair and origins."""

    series: int
    origins: int


QUICK: Final = Size(4, 1)
FULL: Final = Size(40, 6)


@dataclass(frozen=True)
class Case:
    """What is asked of every model in one set: the same series at every origin."""

    questions: tuple[Question, ...]  # one an origin
    scale: F64  # [n]
    actual: F64  # [o, n, 12]
    pair: np.ndarray[tuple[int, ...], np.dtype[np.int64]]  # [n] position in trace.pairs


def case_of(trace: Trace, size: Size) -> Case:
    """Series that have readings and a history, spread over the pairs; origins spread over the scored part."""
    b = trace.mean.shape[2]
    origins = np.linspace(trace.loaded, b - HORIZON_STEPS, size.origins).astype(int)
    chosen, pairs, resources = [], [], []
    for k, pair in enumerate(trace.pairs):
        part = trace.mean[:, list(pair.resources)]
        alive = (np.isfinite(part[..., : trace.loaded]).sum(axis=2) > 4 * LEAST_READINGS) & np.isfinite(part[..., trace.loaded :]).any(
            axis=2
        )
        for vm, place in np.argwhere(alive)[: size.series]:
            chosen.append(part[vm, place])
            pairs.append(k)
            resources.append(pair.resources[place])
    series, resource = np.array(chosen), np.array(resources)
    filled = kernels.fill_gaps(series[:, : trace.loaded])[0]
    scale = np.maximum(np.abs(np.diff(filled, axis=1)).mean(axis=1), np.maximum(FLOORS[resource], LEVEL_FLOOR * filled.mean(axis=1)))
    questions = tuple(
        Question(series=series[:, max(0, o - HISTORY) : o], resource=resource, start_s=trace.start_s + max(0, o - HISTORY) * BUCKET_S)
        for o in origins
    )
    actual = np.stack([series[:, o : o + HORIZON_STEPS] for o in origins]).astype(np.float64)
    return Case(questions, scale, actual, np.array(pairs))


def last_value(question: Question) -> Answer:
    """Naive."""
    return _flat(look(question.series).filled[:, -1])


def smoothing(question: Question) -> Answer:
    """Simple exponential smoothing, alpha by its errors of the newest day."""
    return _flat(kernels.smooth_best(look(question.series).filled, ALPHAS)[0])


def rolling_median(question: Question) -> Answer:
    """Of the newest three hours."""
    return _flat(look(question.series).hours3[:, 1])


RULES: Final[dict[str, Callable[[Question], Answer]]] = {"Naive": last_value, "SES": smoothing, "rolling median": rolling_median}


def _flat(level: F32 | F64) -> Answer:
    return Answer(mean=np.repeat(level[:, None], HORIZON_STEPS, axis=1).astype(np.float32))


def cpu_s() -> float:
    """User and system time of this process and of those it started."""
    taken = os.times()
    return taken.user + taken.system + taken.children_user + taken.children_system


def spreads(case: Case) -> F64:
    """[o, n] usual change of the newest three hours: what the conformal bands scale with."""
    found = []
    for question in case.questions:
        filled = look(question.series).filled[:, -36:]
        found.append(np.maximum(np.abs(np.diff(filled, axis=1)).mean(axis=1), 0.1 * case.scale))
    return np.stack(found)


def conformal(mean: F64, case: Case, unit: F64) -> F32:
    """Quantiles [o, n, 12, q] around means [o, n, 12] from the scaled residuals of the other half of the series of the same pair."""
    scaled = (case.actual - mean) / unit[..., None]
    out = np.full((*mean.shape, len(LEVELS)), np.nan)
    half = np.arange(len(case.pair)) % 2
    part = np.arange(HORIZON_STEPS) * PARTS // HORIZON_STEPS
    for k in np.unique(case.pair):
        for side in (0, 1):
            mine, others = (np.flatnonzero((case.pair == k) & (half == which)) for which in (side, 1 - side))
            for p in range(PARTS):
                pool = scaled[:, others][..., part == p]
                pool = pool[np.isfinite(pool)]
                if len(pool) and len(mine):
                    at = np.ix_(np.arange(len(mean)), mine, np.flatnonzero(part == p))
                    out[at] = mean[at][..., None] + unit[:, mine, None, None] * np.quantile(pool, TAU)
    return np.maximum(out, 0.0).astype(np.float32)


def loss_of(quantiles: F32, case: Case) -> F64:
    """Scaled pinball [o, n, 12], NaN where nothing was said or nothing came."""
    result: F64 = pinball(quantiles, case.actual.astype(np.float32), SCORED_LEVELS).astype(np.float64) / case.scale[None, :, None]
    return result


def lighter(challenger: Challenger, pairs: int, training_steps: int) -> Challenger:
    """The same, learning from less where it learns."""
    if isinstance(challenger, TreeEnsemble):
        return replace(challenger, pairs=pairs)
    return replace(challenger, training_steps=training_steps) if isinstance(challenger, NeuralModel) else challenger


def measured(trace: Trace, size: Size, challengers: dict[str, Challenger]) -> list[Figure]:
    """All rows of one set. What a model cannot say is scored as the last value, for all on the same points."""
    case = case_of(trace, size)
    unit, n = spreads(case), len(case.scale)
    methods: dict[str, Callable[[Question], Answer]] = {**RULES, **{name: challenger.forecast for name, challenger in challengers.items()}}
    losses, costs, figures, notes = {}, {}, [], []
    naive = np.stack([last_value(question).mean for question in case.questions]).astype(np.float64)
    for name, method in methods.items():
        if name in challengers:
            # imports and what is compiled once are not the series' cost
            few = Question(series=case.questions[0].series[:2, -320:], resource=case.questions[0].resource[:2], start_s=0)
            lighter(challengers[name], 300, 2).forecast(few)
        began = cpu_s()
        answers = [method(question) for question in case.questions]
        costs[name] = (cpu_s() - began) / (n * len(answers))
        mean = np.stack([answer.mean for answer in answers]).astype(np.float64)
        silent = np.isnan(mean)
        losses[name] = loss_of(conformal(np.where(silent, naive, mean), case, unit), case)
        if silent.mean() > 0.001:
            notes.append(f"{trace.name}: {name} could not say {100 * silent.mean():.1f} % of steps (the last value stands in)")
        notes += [f"{trace.name}: {name}: {failure}" for failure in sorted({line for answer in answers for line in answer.failures})]
        if answers[0].quantiles is not None:
            own = np.stack([answer.quantiles for answer in answers if answer.quantiles is not None])
            losses[f"{name}, own quantiles"] = loss_of(own, case)
    for line in notes:
        print(line)
    for k, pair in enumerate(trace.pairs):
        here = case.pair == k
        scored = {name: float(np.nanmean(loss[:, here])) for name, loss in losses.items() if np.isfinite(loss[:, here]).any()}
        best = min(scored[name] for name in RULES)
        figures += [
            Figure(name=f"{pair.name}: {name}", value=value, unit=f"pinball, x{value / best:.3f}") for name, value in scored.items()
        ]
    figures += [Figure(name=f"{trace.name}: {name}", value=cost, unit="CPU s/series") for name, cost in costs.items()]
    return figures


def summary(figures: list[Figure]) -> list[Figure]:
    """Geometric mean over all pairs of each method's pinball over the best of the three rules there."""
    factors: dict[str, list[float]] = {}
    for figure in figures:
        if figure.unit.startswith("pinball, x"):
            factors.setdefault(figure.name.split(": ", 1)[1], []).append(float(figure.unit.split(" x")[1]))
    return [
        Figure(name=f"all {len(found)} pairs: {name} / best of {', '.join(RULES)}", value=float(np.exp(np.log(found).mean())), unit="ratio")
        for name, found in factors.items()
    ]


def main() -> None:
    """All figures. The factor beside a pinball is over the best of the three rules."""
    parser = options(__doc__ or "")
    parser.add_argument("--sets", default="", help="only these sets, with commas")
    parser.add_argument("--only", default="", help="only these challengers, with commas")
    arguments = parser.parse_args()
    wanted = [find(name).name for name in arguments.only.split(",")] if arguments.only else list(registered())
    sets = chosen_sets(arguments.sets)
    challengers = {}
    for name in wanted:
        reason = find(name).available()
        if reason is None:
            challengers[name] = lighter(find(name), 3000, 40) if arguments.quick else find(name)
        else:
            print(f"left out: {name}: {reason}")
    for theirs, ours in CONCEPT.items():
        print(f"{theirs} = {ours}")
    figures: list[Figure] = []
    for trace in load(arguments.data, arguments.quick):
        if trace.name in sets:
            figures += measured(trace, QUICK if arguments.quick else FULL, challengers)
    publish(figures + summary(figures), arguments.json)


if __name__ == "__main__":
    main()
