"""Exact placement of a small shard by OR-Tools CP-SAT: which VM runs where so that overload and the moves' cost are least.

Variables: x[v, h] for the VMs that may move, one overload variable per tier, host, bucket and dimension that can be overloaded at all.
Deterministic: one worker, a fixed seed, a deterministic time limit (the wall limit is only the net under it).
Proves optima up to about 10 hosts; larger fleets go through shards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model

from coordinator.placement.instance import I64, Instance

# Deterministic seconds per wall second: low enough that on a loaded machine the deterministic limit ends the search first.
DETERMINISTIC_PER_S = 0.3


@dataclass(frozen=True, kw_only=True)
class Solution:
    """An assignment with what is known of its quality, in load units."""

    place: I64  # [v] host index
    bound: float  # no assignment costs less
    optimal: bool
    found: bool


def solve_exactly(instance: Instance, seed: int, deadline_s: float, hint: I64 | None = None) -> Solution:
    """The best assignment found within the deadline, starting from `hint` (the incumbent by default); the hint when nothing was found."""
    start = instance.home if hint is None else hint
    model = cp_model.CpModel()
    movable = instance.movable
    hosts = len(instance.host_ids)
    x = [[model.new_bool_var("") for _ in range(hosts)] for _ in movable]
    for i, v in enumerate(movable):
        model.add_exactly_one(x[i])
        for h in range(hosts):
            model.add_hint(x[i][h], int(start[v] == h))
    keep_promises(model, instance, movable, x)
    terms, weights = overload_terms(model, instance, movable, x)
    for i, v in enumerate(movable):
        terms.append(x[i][instance.home[v]])
        weights.append(-int(instance.move_cost[v]))
    constant = int(instance.move_cost[movable].sum())
    model.minimize(cp_model.LinearExpr.weighted_sum(terms, weights) + constant)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed % 2**31
    solver.parameters.max_time_in_seconds = deadline_s
    solver.parameters.max_deterministic_time = deadline_s * DETERMINISTIC_PER_S
    status = solver.solve(model)
    place = start.copy()
    found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    if found:
        for i, v in enumerate(movable):
            place[v] = next(h for h in range(hosts) if solver.boolean_value(x[i][h]))
    bound = float(solver.best_objective_bound) if found else 0.0
    return Solution(place=place, bound=bound, optimal=status == cp_model.OPTIMAL, found=found)


def keep_promises(model: cp_model.CpModel, instance: Instance, movable: list[int], x: list[list[cp_model.IntVar]]) -> None:
    """Promised CPU and memory stay within each host's commit limit."""
    fixed = np.zeros_like(instance.commit)
    stay = np.setdiff1d(np.arange(len(instance.vm_ids)), movable)
    np.add.at(fixed, instance.home[stay], instance.grant[stay])
    for g in range(instance.grant.shape[1]):
        sizes = instance.grant[movable, g]
        for h in range(len(instance.host_ids)):
            left = int(instance.commit[h, g] - fixed[h, g])
            if sizes.sum() > left:
                model.add(cp_model.LinearExpr.weighted_sum([row[h] for row in x], sizes.tolist()) <= left)


def overload_terms(
    model: cp_model.CpModel, instance: Instance, movable: list[int], x: list[list[cp_model.IntVar]]
) -> tuple[list[cp_model.IntVar], list[int]]:
    """One variable per place and time that can be overloaded, and its weight in the objective."""
    terms: list[cp_model.IntVar] = []
    weights: list[int] = []
    stay = np.setdiff1d(np.arange(len(instance.vm_ids)), movable)
    for member, weight in zip(instance.tier, instance.tier_weight, strict=True):
        free = [i for i, v in enumerate(movable) if member[v]]
        sizes = instance.load[[movable[i] for i in free]]
        fixed = np.zeros((len(instance.host_ids), *instance.load.shape[1:]), np.int64)
        held = stay[member[stay]]
        np.add.at(fixed, instance.home[held], instance.load[held])
        most = fixed + sizes.sum(axis=0)
        for h, b, d in np.argwhere(most > instance.room):
            over = model.new_int_var(0, int(most[h, b, d] - min(0, instance.room[h, b, d])), "")
            column = [x[i][h] for i in free]
            total = cp_model.LinearExpr.weighted_sum(column, sizes[:, b, d].tolist())
            model.add(total - over <= int(instance.room[h, b, d] - fixed[h, b, d]))
            terms.append(over)
            weights.append(int(weight))
    return terms, weights
