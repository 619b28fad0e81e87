"""CloudSim's own policies for its PlanetLab experiment: first placement, overload tests THR, IQR, MAD and LR, and the decision of a tick.

As cloudsim_hosts.py: written from the rules. What looks odd is part of them: the power "before" is that of the last update all through a
tick; every non-sleeping host is a candidate for emptying, one after another, all or nothing; LR is a plain least-squares line, because the
weights that give it its name are never applied (so LRR is LR).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numba import njit

from bench.cloudsim_hosts import F64, HOST_RAM_MB, I32, NOWHERE, REMEMBERED, World, append, power, remove, utilisation

THR: Final = 0
IQR: Final = 1
MAD: Final = 2
LR: Final = 3
SAFETY: Final = (0.8, 1.5, 2.5, 1.2)
UNKNOWN_YET: Final = 0.7  # threshold while there is too little history
SPREAD_VALUES: Final = 12
LINE_VALUES: Final = 10


@njit(cache=True)
def place_first_fit(world: World) -> None:
    """VMs in order of id, each on the first host with core, MIPS and RAM for it."""
    free, ram = world.capacity.copy(), np.full(len(world.capacity), HOST_RAM_MB)
    for v in range(len(world.mips)):
        for h in range(len(free)):
            if world.core[h] >= world.mips[v] and free[h] >= world.mips[v] and ram[h] >= world.ram[v]:
                free[h] -= world.mips[v]
                ram[h] -= world.ram[v]
                world.host_of[v] = h
                append(world, h, v)
                break


@njit(cache=True)
def place_by_power(world: World, threshold: float) -> None:
    """VMs in order of id, each where it raises the power least over that of the idle host; so empty hosts win and the VMs are spread."""
    used, ram = np.zeros(len(world.capacity)), np.full(len(world.capacity), HOST_RAM_MB)
    for v in range(len(world.mips)):
        best, least = NOWHERE, np.inf
        for h in range(len(used)):
            if world.core[h] < world.mips[v] or world.capacity[h] - used[h] < world.mips[v] or ram[h] < world.ram[v]:
                continue
            if used[h] > 0.0 and world.mips[v] / world.capacity[h] > threshold:
                continue  # VMs already there report no demand yet
            rise = power(world.watts[h], (used[h] + world.mips[v]) / world.capacity[h]) - world.watts[h, 0]
            if rise < least:
                best, least = h, rise
        if best != NOWHERE:
            used[best] += world.mips[v]
            ram[best] -= world.ram[v]
            world.host_of[v] = best
            append(world, best, v)


@njit(cache=True)
def median(values: F64) -> float:
    """Of sorted values."""
    n = len(values)
    return float(values[n // 2]) if n % 2 else float(values[n // 2 - 1] + 0.5 * (values[n // 2] - values[n // 2 - 1]))


@njit(cache=True)
def overloaded(policy: int, wanted: float, capacity: float, past: F64) -> bool:
    """Whether the policy calls a host overloaded whose VMs want `wanted` MIPS and used `past` [30] of it, newest first."""
    n = REMEMBERED
    while n > 1 and past[n - 1] == 0.0:
        n -= 1
    if policy == LR and n >= LINE_VALUES:
        # least squares on x = 1..10, oldest first; sums of squares about the middle are 82.5
        mean = 0.0
        for i in range(LINE_VALUES):
            mean += past[i]
        mean /= LINE_VALUES
        slope = 0.0
        for i in range(LINE_VALUES):
            slope += (LINE_VALUES - i - 5.5) * (past[i] - mean)
        slope /= 82.5
        return bool((mean + slope * (LINE_VALUES + 1 - 5.5)) * SAFETY[LR] >= 1.0)
    threshold = UNKNOWN_YET
    if policy == THR:
        threshold = SAFETY[THR]
    elif policy in (IQR, MAD) and n >= SPREAD_VALUES:
        values = np.sort(past[:n])
        if policy == IQR:
            low = math.floor(0.25 * (n + 1) + 0.5) - 1
            high = math.floor(0.75 * (n + 1) + 0.5) - 1
            threshold = 1.0 - SAFETY[IQR] * (values[high] - values[low])
        else:
            threshold = 1.0 - SAFETY[MAD] * median(np.sort(np.abs(median(values) - values)))
    return bool(wanted / capacity > threshold)


@njit(cache=True)
def tally(world: World, h: int, wanted: F64, used: F64, free: F64, past: F64) -> None:
    """Sums over the host's list in list order: MIPS wanted, granted, free, and its VMs' past."""
    wanted[h], used[h], free[h] = 0.0, 0.0, world.capacity[h]
    past[h] = 0.0
    for j in range(world.count[h]):
        add(world, h, world.listed[h, j], wanted, used, free, past)


@njit(cache=True)
def add(world: World, h: int, v: int, wanted: F64, used: F64, free: F64, past: F64) -> None:
    """One more VM at the end of the list, as its host would have it."""
    need = min(world.wanted[v], world.core[h])
    wanted[h] += world.wanted[v]
    used[h] += need
    free[h] = free[h] - need if free[h] >= need else 0.0
    for i in range(world.known[0]):
        past[h, i] += world.past[v, i] * world.mips[v] / world.capacity[h]


@njit(cache=True)
def find_host(world: World, policy: int, v: int, barred: F64, wanted: F64, used: F64, free: F64, past: F64, watts: F64) -> int:
    """The host with the least rise of power that takes the VM without being overloaded; NOWHERE if there is none."""
    best, least = NOWHERE, np.inf
    ahead = np.empty(REMEMBERED)
    need = world.wanted[v]
    for h in range(len(world.capacity)):
        if barred[h] > 0 or world.core[h] < need or free[h] < need:
            continue
        rise = power(world.watts[h], (used[h] + need) / world.capacity[h]) - watts[h]
        if rise >= least:
            continue
        if used[h] != 0.0:
            ahead[:] = past[h]
            for i in range(world.known[0]):
                ahead[i] += world.past[v, i] * world.mips[v] / world.capacity[h]
            if overloaded(policy, wanted[h] + need, world.capacity[h], ahead):
                continue
        best, least = h, rise
    return best


@njit(cache=True)
def by_demand(world: World, vms: I32) -> I32:
    """Most wanted first, equal ones in the order given."""
    return vms[np.argsort(-world.wanted[vms], kind="mergesort")]


@njit(cache=True)
def optimise(world: World, policy: int) -> tuple[I32, I32]:
    """(VMs, targets) of a tick's moves, in the order in which they start. The world is as before when it returns."""
    n, v_n = len(world.capacity), len(world.mips)
    kept_list, kept_count = world.listed.copy(), world.count.copy()
    wanted, used, free = np.zeros(n), np.zeros(n), np.zeros(n)
    past, watts, barred = np.zeros((n, REMEMBERED)), np.zeros(n), np.zeros(n)
    for h in range(n):
        tally(world, h, wanted, used, free, past)
        watts[h] = power(world.watts[h], utilisation(world.load[h], world.capacity[h]))
        barred[h] = 1.0 if overloaded(policy, wanted[h], world.capacity[h], past[h]) else 0.0
    leaving = np.empty(v_n, np.int32)
    k = 0
    for h in range(n):
        if barred[h] == 0:
            continue
        while world.count[h] > 0:
            pick = world.listed[h, 0]
            for j in range(1, world.count[h]):
                if world.ram[world.listed[h, j]] < world.ram[pick]:
                    pick = world.listed[h, j]
            remove(world, h, pick)
            leaving[k] = pick
            k += 1
            tally(world, h, wanted, used, free, past)
            if not overloaded(policy, wanted[h], world.capacity[h], past[h]):
                break
    vms, targets = np.empty(2 * v_n, np.int32), np.empty(2 * v_n, np.int32)
    m = 0
    for v in by_demand(world, leaving[:k]):
        h = find_host(world, policy, v, barred, wanted, used, free, past, watts)
        if h != NOWHERE:
            append(world, h, v)
            add(world, h, v, wanted, used, free, past)
            vms[m], targets[m] = v, h
            m += 1
    m = empty_hosts(world, policy, barred, wanted, used, free, past, watts, vms, targets, m)
    world.listed[:], world.count[:] = kept_list, kept_count
    return vms[:m], targets[:m]


@njit(cache=True)
def empty_hosts(
    world: World, policy: int, barred: F64, wanted: F64, used: F64, free: F64, past: F64, watts: F64, vms: I32, targets: I32, m: int
) -> int:
    """Try to empty the least loaded host, then the next, each wholly or not at all; adds to the moves and returns their number."""
    n = len(world.capacity)
    untried = barred == 0
    for h in range(n):
        if world.load[h] == 0:
            barred[h] = 1.0
            untried[h] = False
    while True:
        source, least = NOWHERE, 1.0
        for h in range(n):
            share = utilisation(world.load[h], world.capacity[h])
            if untried[h] and world.count[h] > 0 and 0.0 < share < least:
                source, least = h, share
        if source == NOWHERE:
            return m
        untried[source] = False
        barred[source] = 1.0
        first = m
        moved = by_demand(world, world.listed[source, : world.count[source]])
        for v in moved:
            h = find_host(world, policy, v, barred, wanted, used, free, past, watts)
            if h == NOWHERE:
                break
            append(world, h, v)
            add(world, h, v, wanted, used, free, past)
            vms[m], targets[m] = v, h
            m += 1
        if m - first == len(moved):
            for i in range(first, m):
                untried[targets[i]] = False
        else:
            for i in range(first, m):
                remove(world, targets[i], vms[i])
            for i in range(first, m):
                tally(world, targets[i], wanted, used, free, past)
            m = first
