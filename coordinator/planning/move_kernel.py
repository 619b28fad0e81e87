"""Which moves can begin at one moment: the hot loops behind coordinator/planning/order_moves.py, over arrays that they change in place.

A host's sums hold every VM that is there, comes or has not yet gone: a VM on its way counts on both hosts. Sums only grow while a stage is
filled, and every load grows with them, so what fits with all of a stage's moves under way fits in whatever order they begin and end.
Times are seconds from now; a step is one 5-minute bucket ahead.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from coordinator.placement.problem import F64, I32, Bool
from shared.units import BUCKET_S

APART: Final = 0  # as RuleKind: numba reads plain numbers
LICENSED: Final = 2
WAITS: Final = 0  # not looked at, or due later
STARTED: Final = 1
NO_ROOM: Final = 2  # a hard cell of the target, now
RULE: Final = 3  # now
RAMP: Final = 4  # the ramp at the source comes before it would be done
NO_CALM: Final = 5  # the target has no quiet time for it within the horizon


class Fixed(NamedTuple):
    """What does not change. Cells: `hard` indices; `soft` those of step s at soft[soft_start[s]:soft_start[s + 1]]."""

    mean: F64  # [v, c]
    variance: F64  # [v, c]
    z: F64  # [c]
    capacity: F64  # [h, c]
    allowed: F64  # [h, c] most that a hard cell may hold
    hard: I32
    soft: I32
    soft_start: I32  # [s + 1]
    group: I32  # [v]
    rho: F64  # [g]
    rule_kind: I32  # [r]
    rule_level: I32  # [r]
    rule_start: I32  # [v + 1] rules of a VM
    rule_of: I32
    domain: I32  # [level, h]
    apart_most: I32  # [r, domain]
    domains_most: I32  # [r]
    calm: float  # share of a capacity up to which a host is quiet
    margin_s: float  # to be done before a ramp


class Sums(NamedTuple):
    """What the hosts hold now."""

    mean: F64  # [h, c]
    variance: F64  # [h, c]
    spread: F64  # [h, g, c] sums of stddevs; [0, 0, 0] where no hard cell has a margin
    held: F64  # [h, c] what shrinks that are under way have not given back yet
    counts: I32  # [r, domain] members of a rule
    used: I32  # [r] domains with members
    slots_out: F64  # [h, n] when each of a host's slots for leaving VMs is free
    slots_in: F64  # [h, n]
    slots: F64  # [n] of the fleet


class Units(NamedTuple):
    """Moves that only go together; most stand alone. Arrays over moves m, and over units u."""

    vm: I32  # [m]
    source: I32  # [m]
    target: I32  # [m]
    seconds: F64  # [m]
    ready: F64  # [m] not before
    start: I32  # [u + 1]
    done: Bool  # [u]
    code: I32  # [u]
    wait: F64  # [u] when to look again
    begin: F64  # [m]
    latest: F64  # [m] latest begin, inf = no ramp


@njit(cache=True, nogil=True)
def put(fixed: Fixed, sums: Sums, v: int, h: int, sign: float) -> None:
    """Count a VM on a host, or (sign -1) no longer."""
    g = fixed.group[v]
    for c in range(fixed.mean.shape[1]):
        sums.mean[h, c] += sign * fixed.mean[v, c]
        sums.variance[h, c] += sign * fixed.variance[v, c]
    if g >= 0 and sums.spread.shape[1] > 0:
        for c in fixed.hard:
            deviation = np.sqrt(fixed.variance[v, c])
            if sign < 0.0:
                sums.spread[h, g, c] -= deviation
            sums.variance[h, c] += sign * fixed.rho[g] * 2.0 * deviation * sums.spread[h, g, c]
            if sign > 0.0:
                sums.spread[h, g, c] += deviation


@njit(cache=True, nogil=True)
def settle(fixed: Fixed, sums: Sums, home: I32) -> None:
    """Count every VM where it is."""
    for v in range(len(home)):
        if home[v] >= 0:
            put(fixed, sums, v, home[v], 1.0)


@njit(cache=True, nogil=True)
def fits(fixed: Fixed, sums: Sums, v: int, h: int) -> bool:
    """Whether every hard cell of the host has room for the VM beside all that is counted there."""
    g = fixed.group[v]
    for c in fixed.hard:
        variance = sums.variance[h, c] + fixed.variance[v, c]
        if g >= 0 and sums.spread.shape[1] > 0:
            variance += fixed.rho[g] * 2.0 * np.sqrt(fixed.variance[v, c]) * sums.spread[h, g, c]
        load = sums.mean[h, c] + fixed.mean[v, c] + fixed.z[c] * np.sqrt(max(variance, 0.0)) + sums.held[h, c]
        if load > fixed.allowed[h, c]:
            return False
    return True


@njit(cache=True, nogil=True)
def keeps_rules(fixed: Fixed, sums: Sums, v: int, source: int, target: int) -> bool:
    """Whether the VM may be on both hosts at once, as far as rules go."""
    for i in range(fixed.rule_start[v], fixed.rule_start[v + 1]):
        r = fixed.rule_of[i]
        there = fixed.domain[fixed.rule_level[r], target]
        if fixed.domain[fixed.rule_level[r], source] == there:
            continue
        if fixed.rule_kind[r] == APART and sums.counts[r, there] >= fixed.apart_most[r, there]:
            return False
        if fixed.rule_kind[r] == LICENSED and sums.counts[r, there] == 0 and sums.used[r] >= fixed.domains_most[r]:
            return False
    return True


@njit(cache=True, nogil=True)
def member(fixed: Fixed, sums: Sums, v: int, h: int, other: int, sign: int) -> None:  # noqa: PLR0917
    """Count a VM's membership of its rules in the host's domains, where `other`, its second host, is not in the same."""
    for i in range(fixed.rule_start[v], fixed.rule_start[v + 1]):
        r = fixed.rule_of[i]
        here = fixed.domain[fixed.rule_level[r], h]
        if fixed.domain[fixed.rule_level[r], other] == here:
            continue
        before = sums.counts[r, here]
        sums.counts[r, here] = before + sign
        if before == 0 and sign > 0:
            sums.used[r] += 1
        elif before + sign == 0 and sign < 0:
            sums.used[r] -= 1


@njit(cache=True, nogil=True)
def share(fixed: Fixed, sums: Sums, h: int, s: int, v: int) -> float:
    """Fullest soft cell of a host in a step, with VM v (-1 = none) on top; the sums' variances as if independent."""
    fullest = 0.0
    for i in range(fixed.soft_start[s], fixed.soft_start[s + 1]):
        c = fixed.soft[i]
        mean, variance = sums.mean[h, c], sums.variance[h, c]
        if v >= 0:
            mean += fixed.mean[v, c]
            variance += fixed.variance[v, c]
        fullest = max(fullest, (mean + fixed.z[c] * np.sqrt(max(variance, 0.0))) / max(fixed.capacity[h, c], 1e-12))
    return fullest


@njit(cache=True, nogil=True)
def when(fixed: Fixed, sums: Sums, v: int, source: int, target: int, t: float, seconds: float) -> tuple[int, float, float]:  # noqa: PLR0917
    """(code, when to begin, latest begin): now, a quieter step before the source's ramp, or never.

    A source that is over its capacity already is relieved at once, even by a target that is over its own by less.
    """
    steps = len(fixed.soft_start) - 1
    if steps == 0:
        return STARTED, t, np.inf
    first = int(t // BUCKET_S)
    if first >= steps:
        return NO_CALM, t, np.inf
    now = share(fixed, sums, source, first, -1)
    late = now > 1.0
    done_by = np.inf
    if not late:
        for s in range(first + 1, steps):
            if share(fixed, sums, source, s, -1) > 1.0:
                done_by = s * float(BUCKET_S) - fixed.margin_s
                break
    latest = done_by - seconds
    if t > latest:
        return RAMP, t, latest
    best, best_at = np.inf, -1.0
    for s in range(first, steps):
        at = max(t, s * float(BUCKET_S))
        if at > latest:
            break
        peak = 0.0
        for k in range(s, min(int((at + seconds) // BUCKET_S), steps - 1) + 1):
            there = share(fixed, sums, target, k, v)
            peak = max(peak, there if late else max(there, share(fixed, sums, source, k, -1)))
        if peak > (now if late else 1.0):
            continue
        if late or peak <= fixed.calm:
            return STARTED, at, latest
        if peak < best:
            best, best_at = peak, at
    return (STARTED, best_at, latest) if best_at >= 0.0 else (NO_CALM, t, latest)


@njit(cache=True, nogil=True)
def fill_stage(fixed: Fixed, sums: Sums, units: Units, order: I32, t: float) -> int:
    """Begin every unit that can begin at `t`, in `order`; how many. Leaves code and, for those that wait, the time in `units`."""
    started = 0
    for u in order:
        if units.done[u]:
            continue
        code, until, taken = STARTED, t, 0
        for m in range(units.start[u], units.start[u + 1]):
            v, source, target = units.vm[m], units.source[m], units.target[m]
            if units.ready[m] > t:
                code, until = WAITS, units.ready[m]
            elif not keeps_rules(fixed, sums, v, source, target):
                code = RULE
            elif not fits(fixed, sums, v, target):
                code = NO_ROOM
            else:
                free = max(t, sums.slots_out[source].min(), sums.slots_in[target].min(), sums.slots.min())
                code, at, units.latest[m] = when(fixed, sums, v, source, target, free, units.seconds[m])
                if code == STARTED and at > free:
                    code, until = WAITS, at
            if code != STARTED:
                break
            put(fixed, sums, v, target, 1.0)
            member(fixed, sums, v, target, source, 1)
            units.begin[m] = free
            taken += 1
        units.code[u] = code
        units.wait[u] = until
        if code == STARTED:
            units.done[u] = True
            started += 1
            for m in range(units.start[u], units.start[u + 1]):
                take_slots(sums, units, m)
        else:
            for m in range(units.start[u], units.start[u] + taken):
                put(fixed, sums, units.vm[m], units.target[m], -1.0)
                member(fixed, sums, units.vm[m], units.target[m], units.source[m], -1)
    return started


@njit(cache=True, nogil=True)
def take_slots(sums: Sums, units: Units, m: int) -> None:
    """Occupy one slot of source, target and fleet for the move's time."""
    source, target = units.source[m], units.target[m]
    i, k, n = sums.slots_out[source].argmin(), sums.slots_in[target].argmin(), sums.slots.argmin()
    begin = max(units.begin[m], sums.slots_out[source, i], sums.slots_in[target, k], sums.slots[n])
    units.begin[m] = begin
    sums.slots_out[source, i] = sums.slots_in[target, k] = sums.slots[n] = begin + units.seconds[m]


@njit(cache=True, nogil=True)
def leave(fixed: Fixed, sums: Sums, v: int, source: int, target: int) -> None:
    """A move is done: the VM counts on its target alone."""
    put(fixed, sums, v, source, -1.0)
    member(fixed, sums, v, source, target, -1)


@njit(cache=True, nogil=True)
def find_parking(fixed: Fixed, sums: Sums, v: int, source: int, goal: int, usable: Bool) -> int:  # noqa: PLR0917
    """The first usable host, counted on from the goal, that can hold the VM for a while; -1 = none."""
    hosts = len(usable)
    for i in range(1, hosts):
        h = (goal + i) % hosts
        if h != source and usable[h] and keeps_rules(fixed, sums, v, source, h) and fits(fixed, sums, v, h):
            return h
    return -1


@njit(cache=True, nogil=True)
def frees(fixed: Fixed, sums: Sums, v: int, source: int, others: I32) -> bool:
    """Whether one of the VMs that wait for room on v's host would fit there without v."""
    put(fixed, sums, v, source, -1.0)
    found = False
    for w in others:
        if w != v and fits(fixed, sums, w, source):
            found = True
            break
    put(fixed, sums, v, source, 1.0)
    return found


@njit(cache=True, nogil=True)
def urgency(fixed: Fixed, sums: Sums, units: Units) -> tuple[Bool, F64, F64]:
    """[u] of each unit's first move: whether it is too late already, its latest begin, and how full its source's fullest hard cell is."""
    count = len(units.done)
    late, latest, full = np.zeros(count, np.bool_), np.full(count, np.inf), np.zeros(count)
    for u in range(count):
        m = units.start[u]
        source = units.source[m]
        code, _, latest[u] = when(fixed, sums, units.vm[m], source, units.target[m], 0.0, units.seconds[m])
        late[u] = code == RAMP
        for c in fixed.hard:
            full[u] = max(full[u], sums.mean[source, c] / max(fixed.capacity[source, c], 1e-12))
    return late, latest, full
