"""Shards for placement benches, as arrays: the flavours, hours and hosts of bench/packing_fleet.py, smaller VMs among them, on equal hosts.

CPU of a VM is cut at what the smallest host has; memory constant. Pressure = CPU over memory: 24, 20, 18 cores a host are 0.69, 0.83, 0.92.
"""

from __future__ import annotations

import numpy as np

from bench.packing_fleet import BUCKETS, FLAVOURS, HOST_GB, LARGEST_CORES, Hours, cores_of
from coordinator.placement.bare import bare_problem
from coordinator.placement.problem import CURVE_POINTS, F64, I32, NOWHERE, Problem, Rules

SHARES = np.array([0.22, 0.12, 0.18, 0.13, 0.12, 0.10, 0.05, 0.05, 0.02, 0.01])
WATTS = np.array([93.7, 97, 101, 105, 110, 116, 121, 125, 129, 133, 135])  # SPECpower of an HP ML110 G5
KWH = 0.20  # money


def make_shard(
    seed: int,
    vms: int,
    hosts: int,
    cores: float,
    hours: Hours,
    *,
    incumbent: bool = False,
    sides: bool = False,
    flat: bool = True,
    soft: bool = False,
) -> Problem:
    """VMs that run nowhere yet, or (incumbent) stand first-fit as of the hour before. `sides`: rules, kinds and pinned VMs. `flat`: host
    cost affine in load (else SPECpower's curve). `soft`: CPU may be passed, at the price of who is there."""
    random = np.random.default_rng(seed)
    chosen = random.choice(len(FLAVOURS), vms, p=SHARES)
    flavour = FLAVOURS[chosen]
    cpu_use = np.minimum(cores_of(chosen, draw_windows(random, vms, 2 * BUCKETS, hours.shares)), LARGEST_CORES)
    before, now = cpu_use[:, :BUCKETS], cpu_use[:, BUCKETS:]
    mean = np.column_stack([now, flavour[:, 1]])
    capacity = np.tile(np.append(np.full(BUCKETS, cores), HOST_GB), (hosts, 1))
    home = first_fit(np.column_stack([before, flavour[:, 1]]), capacity[0] * 0.85, hosts) if incumbent else np.full(vms, NOWHERE, np.int32)
    watts = np.linspace(WATTS[0], WATTS[-1], CURVE_POINTS) if flat else WATTS
    cpu = np.arange(BUCKETS + 1) < BUCKETS
    return bare_problem(
        home,
        mean,
        capacity,
        cpu,
        fixed=(random.random(vms) < 0.03) & (home != NOWHERE) if sides else np.zeros(vms, bool),
        kind=np.where(home % 5 == 4, 0, np.arange(vms) % 2).astype(np.int32),
        weight=0.02 * flavour[:, 0],
        move_cost=0.0005 * flavour[:, 1] if incumbent else np.zeros(vms),
        unplaced_cost=np.full(vms, 10.0),
        hard=~cpu if soft else np.ones(BUCKETS + 1, bool),
        curve=np.tile(0.30 + watts / 1000.0 * KWH, (hosts, 1)),
        empty_cost=np.full(hosts, 0.01),
        kind_cost=np.where(np.arange(2)[:, None] * (np.arange(hosts) % 5 == 4) > 0, np.inf if sides else 0.0, 0.0),
        domain=np.stack([np.arange(hosts), np.arange(hosts) // 2]).astype(np.int32),
        rules=apart_sets(random, vms) if sides else Rules(),
    )


def draw_windows(random: np.random.Generator, vms: int, length: int, series: F64) -> F64:
    """[vms, length] shares of a VM's own CPU."""
    row = random.integers(len(series), size=vms)
    start = random.integers(series.shape[1] - length, size=vms)
    drawn: F64 = series[row[:, None], start[:, None] + np.arange(length)]
    return drawn


def first_fit(load: F64, room: F64, hosts: int) -> I32:
    """Homes by what the hour before needed; the rest run nowhere."""
    left = np.tile(room, (hosts, 1))
    home = np.full(len(load), NOWHERE, np.int32)
    for v, need in enumerate(load):
        fits = np.flatnonzero((left >= need).all(axis=1))
        if len(fits):
            home[v] = fits[0]
            left[fits[0]] -= need
    return home


def apart_sets(random: np.random.Generator, vms: int) -> Rules:
    """One VM in five is in a set of three that want three hosts."""
    count = vms // 15
    members = np.sort(random.permutation(vms)[: 3 * count].reshape(count, 3), axis=1)
    return Rules(
        kind=np.zeros(count, np.int32),
        limit=np.ones(count, np.int32),
        level=np.zeros(count, np.int32),
        start=(3 * np.arange(count + 1)).astype(np.int32),
        members=members.ravel().astype(np.int32),
        names=tuple(f"apart {i}" for i in range(count)),
    )
