"""The simulated data centre of CloudSim's PlanetLab experiment: hosts, VMs, one update of everything, and what is counted on the way.

Written from the rules of the experiment as CloudSim 3.0.3 runs them (A. Beloglazov and R. Buyya, Concurrency and Computation 24(13), 2012),
not from its code's text; sums are taken in the order in which CloudSim takes them, because "granted < wanted" is decided on the last bit.
MIPS are its unit of CPU. A VM stands on the list of its host; while it moves, on the target's list as well, where it is "arriving".
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Bool = NDArray[np.bool_]

HOSTS: Final = 800
SAMPLES: Final = 288
STEP_S: Final = 300.0
FIRST_TICK_S: Final = 0.1
TICKS: Final = 287
REMEMBERED: Final = 30  # ticks of its own past that a VM hands to CloudSim's policies
HOST_RAM_MB: Final = 4096
MB_PER_S: Final = 62.5  # of a move: half of the host's link
CORES: Final = 2
CORE_MIPS: Final = (1860.0, 2660.0)  # HP ML110 G4 (even ids), G5 (odd ids)
WATTS: Final = (
    (86.0, 89.4, 92.6, 96.0, 99.5, 102.0, 106.0, 108.0, 112.0, 114.0, 117.0),
    (93.7, 97.0, 101.0, 105.0, 110.0, 116.0, 121.0, 125.0, 129.0, 133.0, 135.0),
)  # SPECpower, at 0, 10, .. 100 % load
VM_MIPS: Final = (2500.0, 2000.0, 1000.0, 500.0)
VM_RAM_MB: Final = (870, 1740, 1740, 613)
NOWHERE: Final = -1
NEVER: Final = -1.0

# places in World.sums
ENERGY_J: Final = 0
ACTIVE_S: Final = 1  # host time
VIOLATED_S: Final = 2  # host time in which less was granted than wanted, arriving VMs included
OVERLOADED_S: Final = 3  # host time in which the VMs that run there want more than the host has
WANTED: Final = 4  # MIPS x s of the VMs
GRANTED: Final = 5
LOST_MOVING: Final = 6  # MIPS x s not granted to VMs that were leaving
MOVES: Final = 7
NOW_S: Final = 8
SHUTDOWNS: Final = 9
SUMS: Final = 10


class World(NamedTuple):
    """v = VM, h = host. Changed in place."""

    use: F64  # [v, 289] share of the VM's own MIPS at 0, 300, .. s
    mips: F64  # [v]
    ram: I32  # [v] MB
    capacity: F64  # [h] MIPS
    core: F64  # [h] MIPS of one core
    watts: F64  # [h, 11]
    listed: I32  # [h, v] VMs of each host in list order
    count: I32  # [h]
    host_of: I32  # [v] NOWHERE = not placed, or removed
    moving: Bool  # [v]
    wanted: F64  # [v] MIPS now
    granted: F64  # [v] MIPS now, on its host
    load: F64  # [h] MIPS granted at the last update
    before: F64  # [h] the same at the update before
    past: F64  # [v, 30] use at ticks, newest first
    known: I32  # [1] how many of them
    host_entry: F64  # [h, 6] time, granted, wanted, active, overloaded of the newest entry; active of the one before
    vm_entry: F64  # [v, 4] time, granted, wanted, leaving
    sums: F64


def new_world(samples: NDArray[np.integer]) -> World:
    """An empty data centre for traces [v, 288] in percent, in the order of the VMs' ids. Raises ValueError naming what is wrong."""
    if samples.ndim != 2 or samples.shape[1] != SAMPLES:
        raise ValueError(f"samples {samples.shape}: allowed (VMs, {SAMPLES})")
    if not len(samples) or samples.min() < 0 or samples.max() > 100:
        raise ValueError("samples: allowed at least one VM and values from 0 to 100")
    n = len(samples)
    kind = np.minimum(np.arange(n) // -(-n // 4), 3)
    odd = np.arange(HOSTS) % 2
    return World(
        use=np.column_stack([samples, samples[:, -1]]) / 100.0,
        mips=np.array(VM_MIPS)[kind],
        ram=np.array(VM_RAM_MB, np.int32)[kind],
        capacity=CORES * np.array(CORE_MIPS)[odd],
        core=np.array(CORE_MIPS)[odd],
        watts=np.array(WATTS)[odd],
        listed=np.zeros((HOSTS, n), np.int32),
        count=np.zeros(HOSTS, np.int32),
        host_of=np.full(n, NOWHERE, np.int32),
        moving=np.zeros(n, np.bool_),
        wanted=np.zeros(n),
        granted=np.zeros(n),
        load=np.zeros(HOSTS),
        before=np.zeros(HOSTS),
        past=np.zeros((n, REMEMBERED)),
        known=np.zeros(1, np.int32),
        host_entry=np.tile([NEVER, 0.0, 0.0, 0.0, 0.0, 1.0], (HOSTS, 1)),
        vm_entry=np.full((n, 4), NEVER),
        sums=np.zeros(SUMS),
    )


@njit(cache=True)
def utilisation(load: float, capacity: float) -> float:
    """Load as a share; a rounding above 1 counts as 1."""
    share = load / capacity
    return 1.0 if 1.0 < share < 1.01 else share


@njit(cache=True)
def power(watts: F64, share: float) -> float:
    """Watts at a share of the load, linear between tenths."""
    low, high = math.floor(share * 10.0), math.ceil(share * 10.0)
    if low == high:
        return float(watts[min(low, 10)])
    slope = (watts[high] - watts[low]) / 10.0
    return float(watts[low] + slope * (share - low / 10.0) * 100.0)


@njit(cache=True)
def append(world: World, h: int, v: int) -> None:
    """To the end of the host's list."""
    world.listed[h, world.count[h]] = v
    world.count[h] += 1


@njit(cache=True)
def remove(world: World, h: int, v: int) -> None:
    """Off the host's list; the others keep their order."""
    row, n = world.listed[h], world.count[h]
    for j in range(n):
        if row[j] == v:
            for i in range(j, n - 1):
                row[i] = row[i + 1]
            world.count[h] = n - 1
            return


@njit(cache=True)
def want(world: World, t: float) -> None:
    """What every VM wants at time t: its samples with straight lines between them."""
    low, high = math.floor(t / STEP_S), math.ceil(t / STEP_S)
    for v in range(len(world.mips)):
        use = world.use[v, low]
        if high > low:
            use += (world.use[v, high] - use) / STEP_S * (t - low * STEP_S)
        world.wanted[v] = use * world.mips[v]


@njit(cache=True)
def update_host(world: World, h: int, t: float) -> None:
    """Share the host's MIPS among its VMs and write the history entries of time t, in place of earlier ones of the same time."""
    n, core, capacity = world.count[h], world.core[h], world.capacity[h]
    world.before[h] = world.load[h]
    free, total, scaled = capacity, 0.0, False
    for j in range(n):
        v = world.listed[h, j]
        need = min(world.wanted[v], core)
        if world.host_of[v] != h:
            need *= 0.1
        total += need
        if free >= need:
            free -= need
        else:
            scaled, free = True, 0.0
    scale = capacity / total if scaled else 1.0
    load, wanted, resident = 0.0, 0.0, 0.0
    for j in range(n):
        v = world.listed[h, j]
        arriving = world.host_of[v] != h
        got = min(world.wanted[v], core)
        if arriving:
            got *= 0.1
        got *= scale
        if world.moving[v] and not arriving:
            got *= 0.9
        if scaled:
            got = math.floor(got)
        wanted += world.wanted[v]
        if not arriving:
            resident += world.wanted[v]
            world.granted[v] = got
            vm_entry(world, v, t, got)
            if world.moving[v]:
                got /= 0.9
        load += got
    world.load[h] = load
    host_entry(world, h, t, wanted, resident > capacity)


@njit(cache=True)
def vm_entry(world: World, v: int, t: float, granted: float) -> None:
    """Count the interval that ends now, by the state at its beginning."""
    entry = world.vm_entry[v]
    if entry[0] != NEVER and entry[0] < t:
        span = t - entry[0]
        world.sums[GRANTED] += entry[1] * span
        world.sums[WANTED] += entry[2] * span
        if entry[1] < entry[2] and entry[3] > 0:
            world.sums[LOST_MOVING] += (entry[2] - entry[1]) * span
    entry[0], entry[1], entry[2] = t, granted, world.wanted[v]
    entry[3] = 1.0 if world.moving[v] else 0.0


@njit(cache=True)
def host_entry(world: World, h: int, t: float, wanted: float, overloaded: bool) -> None:
    """As vm_entry."""
    entry = world.host_entry[h]
    if entry[0] != NEVER and entry[0] < t:
        if entry[3] > 0:
            span = t - entry[0]
            world.sums[ACTIVE_S] += span
            if entry[1] < entry[2]:
                world.sums[VIOLATED_S] += span
            if entry[4] > 0:
                world.sums[OVERLOADED_S] += span
        elif entry[5] > 0:
            world.sums[SHUTDOWNS] += 1
        entry[5] = entry[3]
    entry[0], entry[1], entry[2] = t, world.load[h], wanted
    entry[3] = 1.0 if world.load[h] > 0 else 0.0
    entry[4] = 1.0 if overloaded else 0.0


@njit(cache=True)
def update_all(world: World, t: float, always_on: bool) -> None:
    """Every host at time t, the energy since the last update, then remove VMs that want nothing at all.

    `always_on`: every host draws full power, as in the experiment's baseline without power management.
    """
    elapsed = t - world.sums[NOW_S]
    want(world, t)
    for h in range(len(world.capacity)):
        update_host(world, h, t)
        if always_on:
            world.sums[ENERGY_J] += world.watts[h, 10] * elapsed
            continue
        share = utilisation(world.before[h], world.capacity[h])
        if share > 0.0:
            first = power(world.watts[h], share)
            last = power(world.watts[h], utilisation(world.load[h], world.capacity[h]))
            world.sums[ENERGY_J] += (first + (last - first) / 2.0) * elapsed
    world.sums[NOW_S] = t
    for h in range(len(world.capacity)):
        kept = 0
        for j in range(world.count[h]):
            v = world.listed[h, j]
            if world.wanted[v] == 0.0 and not world.moving[v]:
                world.host_of[v] = NOWHERE
            else:
                world.listed[h, kept] = v
                kept += 1
        world.count[h] = kept


@njit(cache=True)
def tick(world: World, t: float, always_on: bool) -> None:
    """What happens at a decision tick before anybody decides."""
    update_all(world, t, always_on)
    for v in range(len(world.mips)):
        for i in range(REMEMBERED - 1, 0, -1):
            world.past[v, i] = world.past[v, i - 1]
        world.past[v, 0] = world.wanted[v] / world.mips[v]
    world.known[0] = min(world.known[0] + 1, REMEMBERED)


@njit(cache=True)
def carry_out(world: World, t: float, vms: I32, targets: I32, always_on: bool) -> None:
    """Start the moves at time t and end them RAM by RAM size; a VM that is named twice counts twice and ends where it was sent last."""
    for i in range(len(vms)):
        v, h = vms[i], targets[i]
        world.moving[v] = True
        append(world, h, v)
        update_host(world, h, t)
        update_host(world, world.host_of[v], t)
    world.sums[MOVES] += len(vms)
    for ram in np.unique(world.ram[vms]):
        end = t + ram / MB_PER_S
        update_all(world, end, always_on)
        for i in range(len(vms)):
            v, h = vms[i], targets[i]
            if world.ram[v] == ram:
                remove(world, world.host_of[v], v)
                remove(world, h, v)
                append(world, h, v)
                world.host_of[v] = h
                world.moving[v] = False
        update_all(world, end, always_on)
