"""The engine on HiGHS: the linear model of relaxation.py with whole VMs and hosts.

Better than CP-SAT where the shard is larger (25 hosts) and its costs linear: hard capacities, one price a host. Where they are not
(margins under a root, soft cells, curves that are not convex) its bound is still valid and its answer is judged by cost.py like any other.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from coordinator.placement.exact.bounds import lower_bound
from coordinator.placement.exact.cpsat import GAP, close, comparable, proven
from coordinator.placement.exact.linear import LinearAnswer, solve_whole
from coordinator.placement.exact.relaxation import Relaxation, relax
from coordinator.placement.problem import I32, NOWHERE, Problem, Solution
from coordinator.placement.verdict import first_place, worse


def solve_highs(problem: Problem, *, seed: int, effort: float = 1.0, deadline_s: float, start: I32 | None = None) -> Solution:
    """The best plan found from `start` (default: home), with a bound. Never worse than home. Effort 0 proves what the linear bound proves.

    HiGHS is given no seed: the same input gives the same answer unless `cut`.
    """
    begun = time.perf_counter()
    place = first_place(problem, start)
    cost = comparable(problem, place)
    bound = lower_bound(problem, deadline_s=0.5 * deadline_s, best=cost, place=place).value
    left = deadline_s - (time.perf_counter() - begun)
    cut = False
    if effort > 0.0 and left > 0.0 and not close(cost, bound):
        model = relax(problem)
        answer = solve_whole(model, deadline_s=left, gap=0.5 * GAP)
        cut = time.perf_counter() - begun >= 0.99 * deadline_s
        bound = max(bound, answer.bound)
        found = place_of(problem, model, answer)
        if found is not None and not worse(problem, found, problem.home) and (better := comparable(problem, found)) < cost:
            place, cost = found, better
    return proven(problem, place, cost, bound, "highs", cut=cut, begun=begun)


def place_of(problem: Problem, model: Relaxation, answer: LinearAnswer) -> I32 | None:
    """The assignment in an answer with whole columns; None without one."""
    if answer.value is None:
        return None
    chosen = answer.value[: len(model.vm)] > 0.5
    place = np.full(len(problem.vm_ids), NOWHERE, np.int32)
    place[model.vm[chosen]] = model.host[chosen]
    return place


def on_fewer_hosts(problem: Problem, most: int, *, deadline_s: float) -> tuple[I32 | None, bool]:
    """Can all VMs stand on at most `most` hosts? (a plan that does, True), (None, True) = proven that none does, (None, False) = not known.

    A plan here breaks nothing that home does not; it may cost more than home. VMs without a home may stay without.
    """
    model = relax(problem)
    high = model.row_high.copy()
    high[model.used_row] = most
    answer = solve_whole(replace(model, row_high=high), deadline_s=deadline_s)
    if answer.infeasible:
        return None, True
    found = place_of(problem, model, answer)
    if found is None or worse(problem, found, problem.home):
        return None, False
    return found, True
