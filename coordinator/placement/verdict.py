"""Whether an assignment may be a plan: it breaks nothing more than another does. Plainly on cost.py's sums, for engines' last look."""

from __future__ import annotations

import numpy as np

from coordinator.placement.cost import broken_rules, host_loads
from coordinator.placement.problem import F64, I32, NOWHERE, SLACK, Problem


def worse(problem: Problem, place: I32, home: I32) -> bool:
    """True when `place` breaks a rule, a hard capacity, a cap on moves or a VM's place more than `home` (the incumbent) does.

    Rules are compared one by one, hard capacities by what each host passes of all of them. Caps count every VM that is not at home.
    """
    return breaks(problem, place, home) or bool((hard_over(problem, place) > hard_over(problem, home) + 1e-9).any())


def breaks(problem: Problem, place: I32, home: I32) -> bool:
    """`worse`, hard capacities left out."""
    moved = place != problem.home
    lost = moved & (place == NOWHERE)
    if lost.any() or (moved & problem.fixed).any():
        return True
    gone = np.flatnonzero((place != problem.home) & (place != NOWHERE))
    if problem.closed[place[gone]].any() or not np.isfinite(problem.kind_cost[problem.kind[gone], place[gone]]).all():
        return True
    hosts = len(problem.host_ids)
    if problem.moves_max is not None and moved.sum() > problem.moves_max:
        return True
    if problem.arrivals_max is not None and (np.bincount(place[moved], minlength=hosts) > problem.arrivals_max).any():
        return True
    left = problem.home[moved & (problem.home != NOWHERE)]
    if problem.departures_max is not None and (np.bincount(left, minlength=hosts) > problem.departures_max).any():
        return True
    return bool((broken_rules(problem, place) > broken_rules(problem, home)).any())


def first_place(problem: Problem, start: I32 | None) -> I32:
    """Where an engine begins: at `start`, or at home where there is none or it is worse than home. int32[v], a copy."""
    begin = problem.home if start is None or worse(problem, start, problem.home) else start
    return begin.astype(np.int32)


def hard_over(problem: Problem, place: I32) -> F64:
    """[h] shares of each hard capacity that are passed, summed over the cells."""
    load, _ = host_loads(problem, place)
    passed: F64 = np.maximum(load - problem.capacity * (1.0 + SLACK), 0.0) / np.maximum(problem.capacity, 1e-12)
    total: F64 = passed[:, problem.hard].sum(axis=1)
    return total
