"""Compiled steps of the genetic engine: whole hosts of one parent put into the other, and VMs without a place put where they cost least.

Invariant: no host is filled past a hard capacity by these steps, and no APART rule broken, except by VMs that go home for want of any other
place; the caller's verdict finds those. Groups and the rules TOGETHER and LICENSED are left to that verdict and to the true cost.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from coordinator.placement.chance import U64, below
from coordinator.placement.problem import F64, I32, NOWHERE, SLACK, Bool, Problem, RuleKind, allowed_hosts


class Ground(NamedTuple):
    """A problem as the kernels want it."""

    mean: F64  # [v, c]
    variance: F64  # [v, c]
    weight: F64  # [v]
    home: I32  # [v]
    allowed: Bool  # [v, h]
    own_cost: F64  # [v, h] kind, move and closed host, money
    capacity: F64  # [h, c]
    hard: Bool  # [c]
    z: F64  # [c]
    minutes: F64  # [c]
    open_cost: F64  # [h]
    limit: I32  # [r] of APART rules
    domain: I32  # [r, h] fault domain of each host at the rule's level
    outside: I32  # [r, domain]
    start: I32  # [v + 1]
    ruled: I32  # rules of v: ruled[start[v]:start[v + 1]]


def ground_of(problem: Problem) -> Ground:
    """The arrays of a problem."""
    allowed = allowed_hosts(problem)
    kinds = problem.kind_cost[problem.kind]
    own = np.where(np.isfinite(kinds), kinds, problem.broken_price) + np.where(problem.closed, problem.unplaced_cost[:, None], 0.0)
    own = own + problem.move_cost[:, None]
    at = np.flatnonzero(problem.home != NOWHERE)
    own[at, problem.home[at]] -= problem.move_cost[at]
    rules = problem.rules
    apart = np.flatnonzero(rules.kind == RuleKind.APART)
    domain = problem.domain[rules.level[apart]].astype(np.int32)
    outside = np.zeros((len(apart), max(int(problem.domain.max(initial=0)) + 1, rules.outside.shape[1])), np.int32)
    if rules.outside.size:
        outside[:, : rules.outside.shape[1]] = rules.outside[apart]
    sizes = rules.start[apart + 1] - rules.start[apart]
    member = np.concatenate([rules.members[rules.start[r] : rules.start[r + 1]] for r in apart]) if len(apart) else np.zeros(0, np.int32)
    of = np.repeat(np.arange(len(apart)), sizes)
    order = np.argsort(member, kind="stable")
    return Ground(
        mean=problem.mean, variance=problem.variance, weight=problem.weight, home=problem.home.astype(np.int32), allowed=allowed,
        own_cost=own,
        capacity=np.maximum(problem.capacity, 1e-12), hard=problem.hard, z=problem.z, minutes=problem.minutes,
        open_cost=problem.curve[:, 3] + problem.wake_cost - problem.empty_cost, limit=rules.limit[apart].astype(np.int32), domain=domain,
        outside=outside, start=np.searchsorted(member[order], np.arange(len(problem.vm_ids) + 1)).astype(np.int32),
        ruled=of[order].astype(np.int32),
    )  # fmt: skip


@njit(cache=True, nogil=True)
def passed(ground: Ground, mean: F64, variance: F64, h: int, v: int) -> tuple[float, bool]:
    """(overload x minutes of host h with VM v there, whether a hard capacity is passed); sums of the others given. v -1 = nobody more."""
    total = 0.0
    for c in range(len(mean)):
        load, spread = mean[c], variance[c]
        if v >= 0:
            load += ground.mean[v, c]
            spread += ground.variance[v, c]
        if ground.z[c] > 0.0:
            load += ground.z[c] * np.sqrt(spread)
        over = load / ground.capacity[h, c] - 1.0 - SLACK
        if over > 0.0:
            if ground.hard[c]:
                return 0.0, True
            total += over * ground.minutes[c]
    return total, False


@njit(cache=True, nogil=True)
def place_all(ground: Ground, place: I32, order: I32) -> None:
    """Every VM of `order`, one after another, on the host where it costs least now; among near-equals where it fills most. In place."""
    hosts, cells = ground.capacity.shape
    mean, variance = np.zeros((hosts, cells)), np.zeros((hosts, cells))
    weight, count = np.zeros(hosts), np.zeros(hosts, np.int32)
    inside = ground.outside.copy()
    for v in order:
        place[v] = -1
    for v in range(len(place)):
        if place[v] >= 0:
            add(ground, v, place[v], mean, variance, weight, count, inside)
    for v in order:
        best, target = 1e300, -1
        for h in range(hosts):
            if not ground.allowed[v, h]:
                continue
            crowded = False
            for i in range(ground.start[v], ground.start[v + 1]):
                r = ground.ruled[i]
                crowded = crowded or inside[r, ground.domain[r, h]] >= ground.limit[r]
            if crowded:
                continue
            after, broken = passed(ground, mean[h], variance[h], h, v)
            if broken:
                continue
            before, _ = passed(ground, mean[h], variance[h], h, -1)
            cost = ground.own_cost[v, h] + after * (weight[h] + ground.weight[v]) - before * weight[h]
            if count[h] == 0:
                cost += ground.open_cost[h]
            fullest = 0.0
            for c in range(cells):
                fullest = max(fullest, (mean[h, c] + ground.mean[v, c]) / ground.capacity[h, c])
            cost -= 1e-3 * abs(ground.open_cost[h]) * fullest
            if cost < best:
                best, target = cost, h
        if target < 0:
            target = ground.home[v]
        if target >= 0:
            place[v] = target
            add(ground, v, target, mean, variance, weight, count, inside)


@njit(cache=True, nogil=True)
def add(ground: Ground, v: int, h: int, mean: F64, variance: F64, weight: F64, count: I32, inside: I32) -> None:
    """VM v counted on host h."""
    for c in range(mean.shape[1]):
        mean[h, c] += ground.mean[v, c]
        variance[h, c] += ground.variance[v, c]
    weight[h] += ground.weight[v]
    count[h] += 1
    for i in range(ground.start[v], ground.start[v + 1]):
        r = ground.ruled[i]
        inside[r, ground.domain[r, h]] += 1


@njit(cache=True, nogil=True)
def cross(ground: Ground, one: I32, other: I32, movable: Bool, size: F64, dissolve: bool, state: U64) -> I32:
    """A child: `one` with some hosts' VM sets of `other`; what that leaves without a place is placed anew, largest first.

    Hosts of `one` that lose VMs to the sets taken over are emptied wholly (`dissolve`) or keep the rest.
    """
    hosts = ground.capacity.shape[0]
    taken = np.zeros(hosts, np.bool_)
    for _ in range(1 + below(state, max(1, hosts // 2))):
        taken[below(state, hosts)] = True
    child = one.copy()
    hit = np.zeros(hosts, np.bool_)
    loose = np.zeros(len(child), np.bool_)
    for v in range(len(child)):
        if other[v] >= 0 and taken[other[v]] and movable[v] and child[v] != other[v]:
            if child[v] >= 0:
                hit[child[v]] = True
            child[v] = other[v]
    for v in range(len(child)):
        stranger = child[v] >= 0 and taken[child[v]] and other[v] != child[v]
        loose[v] = movable[v] and (child[v] < 0 or stranger or (dissolve and hit[child[v]] and not taken[child[v]]))
    place_all(ground, child, largest_first(loose, size))
    return child


@njit(cache=True, nogil=True)
def emptied(ground: Ground, place: I32, movable: Bool, size: F64, hosts_out: int, state: U64) -> I32:
    """A child with some hosts emptied and their VMs placed anew, largest first; hosts are drawn, the emptier of two each time."""
    hosts = ground.capacity.shape[0]
    content = np.zeros(hosts)
    for v in range(len(place)):
        if place[v] >= 0:
            content[place[v]] += size[v]
    out = np.zeros(hosts, np.bool_)
    for _ in range(hosts_out):
        a, b = below(state, hosts), below(state, hosts)
        out[a if content[b] == 0.0 or 0.0 < content[a] <= content[b] else b] = True
    child = place.copy()
    loose = np.zeros(len(child), np.bool_)
    for v in range(len(child)):
        loose[v] = movable[v] and (child[v] < 0 or out[child[v]])
    place_all(ground, child, largest_first(loose, size))
    return child


@njit(cache=True, nogil=True)
def largest_first(loose: Bool, size: F64) -> I32:
    """Indices of the VMs marked, by size."""
    at = np.flatnonzero(loose)
    return at[np.argsort(-size[at], kind="mergesort")].astype(np.int32)
