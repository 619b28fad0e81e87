"""Fleets for placement benches, as arrays: cloud-like flavours whose CPU follows windows of real PlanetLab VMs, on equal hosts.

CPU of a VM = vCPUs x min(1, 0.12 + 1.7 x a random window of 12 samples); memory constant; hosts of 176 GB. Pressure = CPU over memory:
24, 20, 18 cores a host are 0.69, 0.83, 0.92. Without the traces the windows are waves with noise, and the bench says so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from coordinator.placement.problem import CURVE_POINTS, F64, I32, NOWHERE, Problem, Rules

BUCKETS = 12
FLAVOURS = np.array([(1, 2), (1, 4), (2, 4), (2, 8), (4, 8), (4, 16), (8, 16), (8, 32), (16, 64), (32, 128)], float)  # vCPUs, GB
SHARES = np.array([0.22, 0.12, 0.18, 0.13, 0.12, 0.10, 0.05, 0.05, 0.02, 0.01])
MEMORY_GB = 176.0
LARGEST = 17.0  # cores: what a VM asks for beyond is cut, so that every VM fits a host
WATTS = np.array([93.7, 97, 101, 105, 110, 116, 121, 125, 129, 133, 135])  # SPECpower of an HP ML110 G5
KWH = 0.20  # money


def windows_of(folder: Path) -> F64 | None:
    """All PlanetLab series, shares of the VM's own CPU [series, samples]; None where the traces are absent."""
    files = sorted((folder / "planetlab").glob("*.parquet"))
    if not files:
        return None
    days = [pq.read_table(file).drop_columns(["t"]) for file in files]
    return np.concatenate([np.stack([column.to_numpy() for column in day.columns]) for day in days]).astype(np.float64) / 100.0


def make_shard(
    seed: int,
    vms: int,
    hosts: int,
    cores: float,
    series: F64 | None,
    *,
    incumbent: bool = False,
    sides: bool = False,
    flat: bool = True,
    soft: bool = False,
) -> Problem:
    """VMs that run nowhere yet, or (incumbent) stand first-fit as of the hour before. `sides`: rules, kinds and pinned VMs. `flat`: host
    cost affine in load (else SPECpower's curve). `soft`: CPU may be passed, at the price of who is there."""
    random = np.random.default_rng(seed)
    flavour = FLAVOURS[random.choice(len(FLAVOURS), vms, p=SHARES)]
    window = draw_windows(random, vms, 2 * BUCKETS, series)
    cpu_use = np.minimum(flavour[:, :1] * np.minimum(1.0, 0.12 + 1.7 * window), LARGEST)
    before, now = cpu_use[:, :BUCKETS], cpu_use[:, BUCKETS:]
    mean = np.column_stack([now, flavour[:, 1]])
    capacity = np.tile(np.append(np.full(BUCKETS, cores), MEMORY_GB), (hosts, 1))
    home = first_fit(np.column_stack([before, flavour[:, 1]]), capacity[0] * 0.85, hosts) if incumbent else np.full(vms, NOWHERE, np.int32)
    watts = np.linspace(WATTS[0], WATTS[-1], CURVE_POINTS) if flat else WATTS
    cpu = np.arange(BUCKETS + 1) < BUCKETS
    return Problem(
        vm_ids=tuple(f"v{i}" for i in range(vms)),
        host_ids=tuple(f"h{i}" for i in range(hosts)),
        home=home,
        fixed=(random.random(vms) < 0.03) & (home != NOWHERE) if sides else np.zeros(vms, bool),
        why_fixed=("",) * vms,
        kind=np.where(home % 5 == 4, 0, np.arange(vms) % 2).astype(np.int32),
        mean=mean,
        variance=np.zeros_like(mean),
        weight=0.02 * flavour[:, 0],
        move_cost=0.0005 * flavour[:, 1] if incumbent else np.zeros(vms),
        unplaced_cost=np.full(vms, 10.0),
        group=np.full(vms, -1, np.int32),
        rho=np.zeros(0),
        capacity=capacity,
        hard=~cpu if soft else np.ones(BUCKETS + 1, bool),
        z=np.zeros(BUCKETS + 1),
        minutes=np.where(cpu, 5.0, 60.0),
        cpu=cpu,
        curve=np.tile(0.30 + watts / 1000.0 * KWH, (hosts, 1)),
        empty_cost=np.full(hosts, 0.01),
        wake_cost=np.zeros(hosts),
        closed=np.zeros(hosts, bool),
        kind_cost=np.where(np.arange(2)[:, None] * (np.arange(hosts) % 5 == 4) > 0, np.inf if sides else 0.0, 0.0),
        domain=np.stack([np.arange(hosts), np.arange(hosts) // 2]).astype(np.int32),
        rules=apart_sets(random, vms) if sides else Rules(),
    )


def draw_windows(random: np.random.Generator, vms: int, length: int, series: F64 | None) -> F64:
    """[vms, length] shares of a VM's own CPU."""
    if series is None:
        phase = random.uniform(0, 2 * np.pi, (vms, 1))
        wave = 0.15 + 0.1 * np.sin(np.arange(length) / BUCKETS * 2 * np.pi + phase)
        return np.clip(wave * random.lognormal(0.0, 0.6, (vms, length)), 0.0, 1.0)
    row = random.integers(len(series), size=vms)
    start = random.integers(series.shape[1] - length, size=vms)
    return series[row[:, None], start[:, None] + np.arange(length)]


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
