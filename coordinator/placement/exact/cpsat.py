"""The exact engine: OR-Tools CP-SAT on the whole objective of cost.py, for shards of up to about ten hosts.

What is linear is a linear row; what is not is met as it is: the root of the variances by r * r >= variance, groups by the square of their
summed stddevs, overload x weight of those who share it by a product, curves that are not convex by their pieces. Everything is an
integer: money in 1e-8 of the incumbent's cost, loads in 1e-6 of a capacity (1e-9 where it is hard). Every rounding is downwards, so the
model's least value is a lower bound; the answer's cost is cost.py's, never the model's, and within GAP of that bound it is `optimal`.

Symmetry: hosts that are alike and empty at home are opened in order, and the i-th VM stands on one of the first i of them.
Source of "the first i": partitioning orbitopes, V. Kaibel and M. Pfetsch, Mathematical Programming 114 (2008).
Deterministic: one worker, a fixed seed, a deterministic limit; the wall limit is the net under it and shows as `cut`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

import numpy as np
from ortools.sat.python import cp_model

from coordinator.placement.cost import cost_of
from coordinator.placement.exact.bounds import lower_bound
from coordinator.placement.exact.cpsat_model import build
from coordinator.placement.exact.cpsat_parts import Model
from coordinator.placement.problem import I32, NOWHERE, Problem, Solution
from coordinator.placement.verdict import first_place, worse

GAP: Final = 1e-4  # of the cost: what is nearer to its bound counts as proven
DETERMINISTIC_PER_S: Final = (
    0.5  # CP-SAT's deterministic seconds per wall second: low, so that on a loaded machine it ends the search first
)
USUAL_S: Final = 10.0  # of the deterministic limit at effort 1


def solve_cpsat(
    problem: Problem, *, seed: int, effort: float = 1.0, deadline_s: float, start: I32 | None = None, workers: int = 1
) -> Solution:
    """The best plan found from `start` (default: home), with a bound and whether it is proven. Never worse than home.

    Effort 0 proves what the linear bound proves and searches nothing. Raises ValueError for workers other than 1 or 2.
    """
    if workers not in (1, 2):
        raise ValueError(f"workers {workers}: allowed 1 or 2")
    begun = time.perf_counter()
    first = first_place(problem, start)
    cost = comparable(problem, first)
    bound = lower_bound(problem, deadline_s=0.5 * deadline_s, best=cost, place=first).value
    place, cut = first, False
    searching = effort > 0.0 and not problem.fixed.all()
    while searching and not cut and not close(cost, bound):
        left = deadline_s - (time.perf_counter() - begun)
        if left <= 0.0:
            cut = True
            break
        model = build(problem, place, cost, 0.8 * GAP)  # the rest of GAP is for rounding
        found, proven_at, cut = search(model, bound, seed=seed, effort=effort, left=left, workers=workers)
        bound = max(bound, proven_at)
        if found is None or worse(problem, found, problem.home) or (better := comparable(problem, found)) >= cost:
            break
        place, cost = found, better  # again, with units of the new cost
    return proven(problem, place, cost, bound, "cpsat", cut=cut, begun=begun)


def proven(problem: Problem, place: I32, cost: float, bound: float, engine: str, *, cut: bool, begun: float) -> Solution:
    """An exact engine's answer of this `comparable` cost; `begun` by time.perf_counter."""
    return Solution(
        place=place,
        cost=cost_of(problem, place).total,
        bound=min(bound, cost),
        engine=engine,
        optimal=close(cost, bound),
        cut=cut,
        seconds=time.perf_counter() - begun,
    )


def comparable(problem: Problem, place: I32) -> float:
    """The cost with a VM on a host that its kind may not use counted as one broken rule, as the models do: cost.py says infinity."""
    total = cost_of(problem, place).total
    if np.isfinite(total):
        return total
    kinds = np.where(np.isfinite(problem.kind_cost), problem.kind_cost, problem.broken_price)
    return cost_of(replace(problem, kind_cost=kinds), place).total


def close(cost: float, bound: float) -> bool:
    """True when the bound proves the cost, within GAP."""
    return bool(cost - bound <= GAP * max(abs(cost), 1e-9))


class _GoodEnough(cp_model.CpSolverSolutionCallback):  # type: ignore[misc]  # OR-Tools is untyped
    """Ends the search at an answer that a bound known before proves."""

    def __init__(self, bound: float, model: Model) -> None:
        super().__init__()
        self._bound, self._model = bound, model

    def on_solution_callback(self) -> None:
        """Called by the solver with every better answer."""
        if close(self._model.money(self.objective_value + 1.0), self._bound):
            self.stop_search()


def search(model: Model, bound: float, *, seed: int, effort: float, left: float, workers: int) -> tuple[I32 | None, float, bool]:
    """(plan or None, bound, whether the wall clock ended it); `bound` = what is known before."""
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = seed % 2**31
    solver.parameters.max_time_in_seconds = left
    solver.parameters.max_deterministic_time = USUAL_S * effort * DETERMINISTIC_PER_S
    status = solver.solve(model.cp, _GoodEnough(bound, model))
    cut = status in (cp_model.UNKNOWN, cp_model.FEASIBLE) and solver.wall_time >= 0.99 * left
    if status == cp_model.INFEASIBLE:  # nothing is better than the start by more than GAP
        return None, model.cutoff, False
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, model.money(solver.best_objective_bound), cut
    place = model.place.copy()
    chosen = np.array([solver.boolean_value(x) for x in model.x])
    place[model.vm[chosen]] = model.host[chosen]
    gone = np.setdiff1d(model.free, model.vm[chosen])
    place[gone] = NOWHERE
    return place, min(model.money(solver.best_objective_bound), model.cutoff), cut
