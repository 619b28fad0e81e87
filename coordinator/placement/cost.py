"""What an assignment costs, in money over the hour: the one objective, written plainly. Engines' own fast sums are tested on it.

hosts      power curve at the mean CPU of the hour, for hosts with VMs; `empty_cost` for the others; `wake_cost` of sleepers used
overload   of each host and soft cell: (load - capacity) / capacity x minutes x the sum of its VMs' weights: who shares a host that is
           short by 5 % of a resource is taken to lack 5 % of it (sizing then decides who really does, by priority)
moves      the cost of every VM that is not at home
kinds      preferences and risks of kinds of VMs on hosts
unplaced   VMs nowhere or left on a closed host
broken     rules not kept, hard cells passed: priced so that a plan mends what it can
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coordinator.placement.problem import CURVE_POINTS, F64, I32, NOWHERE, SLACK, Problem, RuleKind


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Money by cause."""

    hosts: float
    overload: float
    moves: float
    kinds: float
    unplaced: float
    broken: float

    @property
    def total(self) -> float:
        return self.hosts + self.overload + self.moves + self.kinds + self.unplaced + self.broken


def cost_of(problem: Problem, place: I32) -> Cost:
    """The whole objective of an assignment [v]; inf kinds where a VM stands on a host that its kind may not use."""
    on = np.flatnonzero(place != NOWHERE)
    used = np.zeros(len(problem.host_ids), bool)
    used[place[on]] = True
    load, mean = host_loads(problem, place)
    over = np.maximum(load - problem.capacity * (1.0 + SLACK), 0.0) / np.maximum(problem.capacity, 1e-12)
    weight = np.bincount(place[on], weights=problem.weight[on], minlength=len(used))
    soft = ~problem.hard
    left = (place == NOWHERE) | problem.closed[place]
    return Cost(
        hosts=float(np.where(used, on_cost(problem, mean) + problem.wake_cost, problem.empty_cost).sum()),
        overload=float((over[:, soft] @ problem.minutes[soft]) @ weight),
        moves=float(problem.move_cost[place != problem.home].sum()),
        kinds=float(problem.kind_cost[problem.kind[on], place[on]].sum()),
        unplaced=float(problem.unplaced_cost[left].sum()),
        broken=problem.broken_price * float(over[:, problem.hard].sum() + broken_rules(problem, place).sum()),
    )


def host_loads(problem: Problem, place: I32) -> tuple[F64, F64]:
    """(load, summed mean) [h, c] of an assignment."""
    on = np.flatnonzero(place != NOWHERE)
    mean = np.zeros_like(problem.capacity)
    variance = np.zeros_like(mean)
    np.add.at(mean, place[on], problem.mean[on])
    np.add.at(variance, place[on], problem.variance[on])
    grouped = on[problem.group[on] >= 0]
    if len(grouped):
        keys, inverse = np.unique(np.stack([place[grouped], problem.group[grouped]]), axis=1, return_inverse=True)
        spread = np.zeros((keys.shape[1], problem.mean.shape[1]))
        alone = np.zeros_like(spread)
        np.add.at(spread, inverse.ravel(), np.sqrt(problem.variance[grouped]))
        np.add.at(alone, inverse.ravel(), problem.variance[grouped])
        np.add.at(variance, keys[0], problem.rho[keys[1]][:, None] * (spread**2 - alone))
    return mean + problem.z * np.sqrt(np.maximum(variance, 0.0)), mean


def on_cost(problem: Problem, mean: F64) -> F64:
    """Money of each host while it has VMs, [h], at its mean CPU over the hour (more than 100 % costs what 100 % does)."""
    if not problem.cpu.any():
        return problem.curve[:, 0].copy()
    share = mean[:, problem.cpu] / np.maximum(problem.capacity[:, problem.cpu], 1e-12)
    at = np.clip(share.mean(axis=1), 0.0, 1.0) * (CURVE_POINTS - 1)
    below = np.minimum(at.astype(np.int64), CURVE_POINTS - 2)
    rows = np.arange(len(at))
    low, high = problem.curve[rows, below], problem.curve[rows, below + 1]
    money: F64 = low + (at - below) * (high - low)
    return money


def broken_rules(problem: Problem, place: I32) -> F64:
    """How far each rule is from being kept, [r]: VMs too many in a domain, VMs away from the others, domains too many."""
    rules = problem.rules
    found = np.zeros(len(rules))
    for r in range(len(rules)):
        members = rules.members[rules.start[r] : rules.start[r + 1]]
        at = place[members]
        domains = problem.domain[rules.level[r]][at[at != NOWHERE]]
        size = max(int(problem.domain[rules.level[r]].max()) + 1, rules.outside.shape[1])
        counts = np.bincount(domains, minlength=size)
        if rules.outside.size:
            counts[: rules.outside.shape[1]] += rules.outside[r]
        if rules.kind[r] == RuleKind.APART:
            found[r] = np.maximum(counts - rules.limit[r], 0).sum()
        elif rules.kind[r] == RuleKind.TOGETHER:
            found[r] = counts.sum() - counts.max()
        else:
            found[r] = max(int((counts > 0).sum()) - int(rules.limit[r]), 0)
    return found
