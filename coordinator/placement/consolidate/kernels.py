"""Compiled halves of planner.py over a state that is changed in place: repair, then empty.

A host's VMs are a linked list (first, after, before), so that a move costs nothing but its sums; sums are kept per host and cell. Groups of
VMs that peak together add covariances, found by a walk over the host's list when a VM with a group is looked at. One thread, no allocation
per VM tried.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numba import njit

from coordinator.placement.problem import CURVE_POINTS, F64, I32, NOWHERE, SLACK, Bool, Problem, RuleKind

_APART: Final = int(RuleKind.APART)
_TOGETHER: Final = int(RuleKind.TOGETHER)
ENDLESS: Final = 2**31 - 1


class Prices(NamedTuple):
    """The numbers of ConsolidationPolicy that kernels weigh; money but for the hours."""

    hours: float
    receiver: float
    tightness: float


class State(NamedTuple):
    """Axes as problem.py; k of `rule_of` = place in a list of the rules of each VM."""

    place: I32
    home: I32
    left: I32  # [v] host that is not gone back to
    fixed: Bool
    kind: I32
    mean: F64
    variance: F64
    move_cost: F64
    group: I32
    rho: F64
    capacity: F64
    z: F64
    cpu: Bool
    curve: F64
    dear: F64  # [h] money an hour of the CPU of the largest host, at this host's price when full
    empty_cost: F64
    wake_cost: F64
    closed: Bool
    kind_cost: F64
    sums: F64  # [h, c] of mean
    spread: F64  # [h, c] of variance, covariances included
    residents: I32  # [h]
    first: I32  # [h]
    after: I32  # [v]
    before: I32  # [v]
    arrivals: I32  # [h] still allowed
    departures: I32  # [h]
    budget: I32  # [1] moves still allowed
    receiving: Bool  # [h]
    rule_start: I32  # [v + 1]
    rule_of: I32
    rule_kind: I32
    rule_limit: I32
    rule_domain: I32  # [r, h]
    rule_count: I32  # [r, domain]


def make_state(problem: Problem, left: I32) -> State:
    """The incumbent, with its sums."""
    h, c = problem.capacity.shape
    rules = problem.rules
    width = max(int(problem.domain.max(initial=0)) + 1, rules.outside.shape[1])
    counts = np.zeros((len(rules), width), np.int32)
    owner = np.repeat(np.arange(len(rules)), np.diff(rules.start))
    at = problem.home[rules.members]
    there = at != NOWHERE
    np.add.at(counts, (owner[there], problem.domain[rules.level[owner[there]], at[there]]), 1)
    if rules.outside.size:
        counts[:, : rules.outside.shape[1]] += rules.outside
    order = np.argsort(rules.members, kind="stable")
    endless = np.full(h, ENDLESS, np.int32)
    size = problem.capacity[:, problem.cpu].mean(axis=1) if problem.cpu.any() else np.ones(h)
    state = State(
        place=np.full(len(problem.vm_ids), NOWHERE, np.int32),
        home=problem.home,
        left=left,
        fixed=problem.fixed,
        kind=problem.kind,
        mean=problem.mean,
        variance=problem.variance,
        move_cost=problem.move_cost,
        group=problem.group,
        rho=problem.rho if len(problem.rho) else np.zeros(1),
        capacity=problem.capacity * (1.0 + SLACK),
        z=problem.z,
        cpu=problem.cpu,
        curve=problem.curve,
        dear=problem.curve[:, -1] * size.max(initial=0.0) / np.maximum(size, 1e-12),
        empty_cost=problem.empty_cost,
        wake_cost=problem.wake_cost,
        closed=problem.closed,
        kind_cost=problem.kind_cost,
        sums=np.zeros((h, c)),
        spread=np.zeros((h, c)),
        residents=np.zeros(h, np.int32),
        first=np.full(h, NOWHERE, np.int32),
        after=np.full(len(problem.vm_ids), NOWHERE, np.int32),
        before=np.full(len(problem.vm_ids), NOWHERE, np.int32),
        arrivals=endless if problem.arrivals_max is None else problem.arrivals_max.astype(np.int32),
        departures=endless.copy() if problem.departures_max is None else problem.departures_max.astype(np.int32),
        budget=np.array([ENDLESS if problem.moves_max is None else problem.moves_max], np.int32),
        receiving=np.zeros(h, np.bool_),
        rule_start=np.searchsorted(rules.members[order], np.arange(len(problem.vm_ids) + 1)).astype(np.int32),
        rule_of=owner[order].astype(np.int32),
        rule_kind=rules.kind,
        rule_limit=rules.limit,
        rule_domain=problem.domain[rules.level].reshape(len(rules), h),
        rule_count=counts,
    )
    fill(state)
    return state


@njit(cache=True)
def fill(s: State) -> None:
    """Everybody at home; rule counts are there already."""
    for v in range(len(s.home)):
        if s.home[v] != NOWHERE:
            attach(s, v, s.home[v])


@njit(cache=True)
def covariance(s: State, v: int, h: int, c: int) -> float:
    """What the VM adds to the host's variance in a cell beyond its own, by the others of its group there."""
    g = s.group[v]
    if g < 0:
        return 0.0
    others, u = 0.0, s.first[h]
    while u != NOWHERE:
        if u != v and s.group[u] == g:
            others += math.sqrt(s.variance[u, c])
        u = s.after[u]
    return float(2.0 * s.rho[g] * math.sqrt(s.variance[v, c]) * others)


@njit(cache=True)
def attach(s: State, v: int, h: int) -> None:
    """Onto the host's list and sums."""
    for c in range(len(s.z)):
        s.sums[h, c] += s.mean[v, c]
        s.spread[h, c] += s.variance[v, c] + covariance(s, v, h, c)
    s.place[v], s.before[v], s.after[v] = h, NOWHERE, s.first[h]
    if s.first[h] != NOWHERE:
        s.before[s.first[h]] = v
    s.first[h] = v
    s.residents[h] += 1


@njit(cache=True)
def detach(s: State, v: int) -> None:
    """Off the list and sums of its host; an emptied host's sums are exactly 0 again."""
    h = s.place[v]
    if s.before[v] == NOWHERE:
        s.first[h] = s.after[v]
    else:
        s.after[s.before[v]] = s.after[v]
    if s.after[v] != NOWHERE:
        s.before[s.after[v]] = s.before[v]
    s.residents[h] -= 1
    for c in range(len(s.z)):
        s.sums[h, c] = s.sums[h, c] - s.mean[v, c] if s.residents[h] else 0.0
        s.spread[h, c] = max(s.spread[h, c] - s.variance[v, c] - covariance(s, v, h, c), 0.0) if s.residents[h] else 0.0
    s.place[v] = NOWHERE


@njit(cache=True)
def move(s: State, v: int, target: int) -> None:
    """From where it is (or nowhere) to the target, rules and allowances included."""
    source = s.place[v]
    for i in range(s.rule_start[v], s.rule_start[v + 1]):
        r = s.rule_of[i]
        if source != NOWHERE:
            s.rule_count[r, s.rule_domain[r, source]] -= 1
        s.rule_count[r, s.rule_domain[r, target]] += 1
    if source != NOWHERE:
        detach(s, v)
        s.departures[source] -= 1
    attach(s, v, target)
    s.arrivals[target] -= 1
    s.budget[0] -= 1


@njit(cache=True)
def unmove(s: State, v: int, source: int) -> None:
    """Take a move back."""
    target = s.place[v]
    move(s, v, source)
    s.arrivals[target] += 1
    s.departures[target] += 1
    s.arrivals[source] += 1
    s.departures[source] += 1
    s.budget[0] += 2


@njit(cache=True)
def keeps_rules(s: State, v: int, target: int) -> bool:
    """Whether no rule of the VM is broken further by its going there."""
    source = s.place[v]
    for i in range(s.rule_start[v], s.rule_start[v + 1]):
        r = s.rule_of[i]
        to = s.rule_domain[r, target]
        away = s.rule_domain[r, source] if source != NOWHERE else NOWHERE
        if to == away:
            continue
        here, kind = s.rule_count[r, to], s.rule_kind[r]
        if kind == _APART:
            if here >= s.rule_limit[r]:
                return False
        elif kind == _TOGETHER:
            most, then = 0, 0
            for d in range(s.rule_count.shape[1]):
                most = max(most, s.rule_count[r, d])
                then = max(then, s.rule_count[r, d] - (d == away) + (d == to))
            if then - (away == NOWHERE) < most:
                return False
        elif here == 0:
            used = 0
            for d in range(s.rule_count.shape[1]):
                used += s.rule_count[r, d] > 0
            last = away != NOWHERE and s.rule_count[r, away] == 1
            if used - last >= s.rule_limit[r]:
                return False
    return True


@njit(cache=True)
def room(s: State, v: int, h: int, level: float) -> float:
    """Share of capacity left in the scarcest cell once the VM is there, at `level` times the problem's z; negative = it does not fit."""
    least = np.inf
    for c in range(len(s.z)):
        load = s.sums[h, c] + s.mean[v, c]
        if s.z[c] > 0.0:
            load += level * s.z[c] * math.sqrt(s.spread[h, c] + s.variance[v, c] + covariance(s, v, h, c))
        free = s.capacity[h, c] - load
        if free < 0.0:
            return -1.0
        if s.capacity[h, c] > 0.0:
            least = min(least, free / s.capacity[h, c])
    return least


@njit(cache=True)
def excess(s: State, h: int, level: float, without: int) -> float:
    """By how much the host's load at `level` times z passes its capacities, in shares of them, summed; `without` one VM, or NOWHERE."""
    total = 0.0
    for c in range(len(s.z)):
        load, spread = s.sums[h, c], s.spread[h, c]
        if without != NOWHERE:
            load -= s.mean[without, c]
            spread -= s.variance[without, c] + covariance(s, without, h, c)
        load += level * s.z[c] * math.sqrt(max(spread, 0.0))
        if load > s.capacity[h, c]:
            total += (load - s.capacity[h, c]) / max(s.capacity[h, c], 1e-12)
    return total


@njit(cache=True)
def on_cost(s: State, h: int) -> float:
    """Money an hour while it has VMs."""
    share, cells = 0.0, 0
    for c in range(len(s.z)):
        if s.cpu[c]:
            share += s.sums[h, c] / max(s.capacity[h, c], 1e-12)
            cells += 1
    at = min(max(share / max(cells, 1), 0.0), 1.0) * (CURVE_POINTS - 1)
    below = min(int(at), CURVE_POINTS - 2)
    return float(s.curve[h, below] + (at - below) * (s.curve[h, below + 1] - s.curve[h, below]))


@njit(cache=True)
def find_target(s: State, v: int, barred: Bool, prices: Prices, level: float) -> int:
    """The cheapest host with room for the VM at `level` times z; NOWHERE if there is none. Sleeping hosts only when no other has room."""
    source = s.place[v]
    best, least, best_asleep, least_asleep = NOWHERE, np.inf, NOWHERE, np.inf
    for h in range(len(s.residents)):
        if h == source or barred[h] or s.closed[h] or s.arrivals[h] <= 0 or h == s.left[v] or s.kind_cost[s.kind[v], h] == np.inf:
            continue
        asleep = s.residents[h] == 0
        if asleep and best != NOWHERE:
            continue
        free = room(s, v, h, level)
        if free < 0.0:
            continue
        score = s.kind_cost[s.kind[v], h] + (0.0 if s.receiving[h] else prices.receiver)
        if asleep:
            score += s.wake_cost[h] + prices.hours * s.dear[h]  # per capacity: the larger host is not the dearer one
            if score < least_asleep and keeps_rules(s, v, h):
                best_asleep, least_asleep = h, score
        else:
            score += prices.tightness * free
            if score < least and keeps_rules(s, v, h):
                best, least = h, score
    return best if best != NOWHERE else best_asleep


@njit(cache=True)
def pick_to_relieve(s: State, h: int, tried: Bool, relief: float) -> int:
    """Of VMs that alone relieve the host, the one cheapest to move; else the one that relieves most for its cost. NOWHERE = none left."""
    now = excess(s, h, relief, NOWHERE)
    best, least, helpful, most = NOWHERE, np.inf, NOWHERE, 0.0
    v = s.first[h]
    while v != NOWHERE:
        if not s.fixed[v] and not tried[v]:
            then = excess(s, h, relief, v)
            if then <= 0.0:
                if s.move_cost[v] < least:
                    best, least = v, s.move_cost[v]
            else:
                gain = (now - then) / max(s.move_cost[v], 1e-12)
                if gain > most:
                    helpful, most = v, gain
        v = s.after[v]
    return best if best != NOWHERE else helpful


@njit(cache=True)
def repair(s: State, level: float, relief: float, prices: Prices) -> tuple[I32, I32]:
    """(VMs moved, hosts that could not be helped). Those that may not stay go first, then what the others have too much of."""
    n, v_n = len(s.residents), len(s.home)
    moved, stuck, m, k = np.empty(v_n, np.int32), np.empty(n, np.int32), 0, 0
    barred, tried = np.zeros(n, np.bool_), np.zeros(v_n, np.bool_)
    for h in range(n):
        barred[h] = s.closed[h] or (s.residents[h] > 0 and excess(s, h, level, NOWHERE) > 0.0)
    for h in range(n):
        v = next_to_leave(s, h, tried)
        while v != NOWHERE:
            tried[v] = True
            if send_away(s, v, barred, relief, prices):
                moved[m] = v
                m += 1
            v = next_to_leave(s, h, tried)
    for h in range(n):
        if s.residents[h] == 0:
            continue
        if barred[h] and not s.closed[h]:
            while excess(s, h, relief, NOWHERE) > 0.0:
                v = pick_to_relieve(s, h, tried, relief)
                if v == NOWHERE:
                    break
                tried[v] = True
                if send_away(s, v, barred, relief, prices):
                    moved[m] = v
                    m += 1
        if s.closed[h] or misplaced(s, h) or excess(s, h, level, NOWHERE) > 0.0:
            stuck[k] = h
            k += 1
    return moved[:m], stuck[:k]


@njit(cache=True)
def send_away(s: State, v: int, barred: Bool, relief: float, prices: Prices) -> bool:
    """Move the VM to the best host; whether that could be done."""
    if s.budget[0] <= 0 or s.departures[s.place[v]] <= 0:
        return False
    target = find_target(s, v, barred, prices, 1.0)
    if target == NOWHERE:
        target = find_target(s, v, barred, prices, relief)  # part of a margin is given up before demand is
    if target == NOWHERE:
        return False
    move(s, v, target)
    s.receiving[target] = True
    return True


@njit(cache=True)
def next_to_leave(s: State, h: int, tried: Bool) -> int:
    """A VM that may move and may not stay: the host is closed, or not for VMs of its kind. NOWHERE = none."""
    v = s.first[h]
    while v != NOWHERE:
        if not s.fixed[v] and not tried[v] and (s.closed[h] or s.kind_cost[s.kind[v], h] == np.inf):
            return int(v)
        v = s.after[v]
    return NOWHERE


@njit(cache=True)
def misplaced(s: State, h: int) -> bool:
    """Whether some VM is on the host that its kind may not be on."""
    v = s.first[h]
    while v != NOWHERE:
        if s.kind_cost[s.kind[v], h] == np.inf:
            return True
        v = s.after[v]
    return False


@njit(cache=True)
def empty(s: State, resting: Bool, prices: Prices) -> tuple[I32, I32]:
    """(VMs moved, hosts emptied): hosts one after another, those first whose capacity is dear and whose VMs are cheap to move."""
    n, v_n = len(s.residents), len(s.home)
    moved, freed, m, k = np.empty(v_n, np.int32), np.empty(n, np.int32), 0, 0
    key = np.full(n, np.inf)
    for h in range(n):
        if s.residents[h] == 0 or s.closed[h] or s.receiving[h] or s.departures[h] < s.residents[h] or s.empty_cost[h] >= on_cost(s, h):
            continue
        cost, v, stays = 0.0, s.first[h], False
        while v != NOWHERE and not stays:
            stays = s.fixed[v] or resting[v]
            cost += s.move_cost[v]
            v = s.after[v]
        if not stays and cost < prices.hours * (on_cost(s, h) - s.empty_cost[h]):
            key[h] = cost - prices.hours * s.dear[h]
    barred = s.closed | (s.residents == 0)
    tries = np.empty((2, v_n), np.int32)
    for h in np.argsort(key, kind="mergesort"):
        if key[h] == np.inf:
            break
        if s.receiving[h] or s.budget[0] < s.residents[h]:
            continue
        barred[h] = True
        gain, count = try_to_empty(s, h, barred, prices, tries)
        if gain > 0.0:
            moved[m : m + count] = tries[0, :count]
            m += count
            freed[k] = h
            k += 1
            continue
        for i in range(count - 1, -1, -1):
            unmove(s, tries[0, i], h)
            if tries[1, i] != NOWHERE:
                s.receiving[tries[1, i]] = False
        barred[h] = False
    return moved[:m], freed[:k]


@njit(cache=True)
def try_to_empty(s: State, h: int, barred: Bool, prices: Prices, tries: I32) -> tuple[float, int]:
    """(money gained, VMs moved so far): moves the host's VMs, largest first; a gain of 0 or less: take them back.

    tries [2, v]: the VMs in order, and which host became a receiver by each move, NOWHERE = none did.
    """
    n, v, vms, fresh = 0, s.first[h], tries[0], tries[1]
    weight = np.empty(s.residents[h])
    while v != NOWHERE:
        vms[n], weight[n] = v, 0.0
        for c in range(len(s.z)):
            weight[n] = max(weight[n], (s.mean[v, c] + s.z[c] * math.sqrt(s.variance[v, c])) / max(s.capacity[h, c], 1e-12))
        n += 1
        v = s.after[v]
    vms[:n] = vms[:n][np.argsort(-weight, kind="mergesort")]
    saved = prices.hours * (on_cost(s, h) - s.empty_cost[h])
    for i in range(n):
        v = vms[i]
        target = find_target(s, v, barred, prices, 1.0)
        if target == NOWHERE:
            return 0.0, i
        saved -= s.move_cost[v] + s.kind_cost[s.kind[v], target] - s.kind_cost[s.kind[v], h]
        fresh[i] = NOWHERE
        if not s.receiving[target]:
            saved -= prices.receiver
            fresh[i], s.receiving[target] = target, True
        before = on_cost(s, target)
        move(s, v, target)
        saved -= prices.hours * (on_cost(s, target) - before)
        if saved <= 0.0:
            return saved, i + 1
    return saved, n
