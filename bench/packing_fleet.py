"""Fleets of section 3 of the placement guide: ten flavours, CPU curves of random PlanetLab hours, memory constant; identical hosts.

Pressure = what the fullest CPU bucket asks of all hosts' CPU over what memory asks of all hosts' memory: hosts get the cores that give it.
Where the data has no PlanetLab days, hours are waves drawn from the seed, and it is said so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coordinator.placement.bare import bare_problem
from coordinator.placement.problem import CURVE_POINTS, F64, I32, NOWHERE, Problem, RuleKind, Rules

FLAVOURS = np.array([(1, 2), (1, 4), (2, 4), (2, 8), (4, 8), (4, 16), (8, 16), (8, 32), (16, 64), (32, 128)], float)  # vCPU, GB
SHARES = (0.17, 0.08, 0.19, 0.13, 0.14, 0.10, 0.08, 0.05, 0.04, 0.02)  # mean 4.2 vCPU, 13.2 GB
HOST_GB = 176.0
LARGEST_CORES = 17.0  # an hour in which a VM asks for more than the smallest host has is drawn again
BUCKETS = 12
RACK = 20  # hosts
IDLE, FULL, ASLEEP = 0.05, 0.10, 0.003  # money an hour: 200 W, 400 W and 12 W at 0.25 a kWh


@dataclass(frozen=True)
class Hours:
    """CPU shares [series, bucket] to cut hours from."""

    shares: F64
    told: str


def read_hours(folder: Path) -> Hours:
    """PlanetLab's days, or waves."""
    days = [pq.read_table(path).to_pandas() for path in sorted((folder / "planetlab").glob("*.parquet"))]
    if days:
        length = min(len(day) for day in days)
        shares = np.concatenate([day.drop(columns="t").to_numpy(np.float64).T[:, :length] / 100.0 for day in days])
        return Hours(shares, "PlanetLab hours")
    random = np.random.default_rng(2011)
    phase, level = random.uniform(0, 2 * np.pi, (2000, 1)), random.gamma(1.0, 0.11, (2000, 1))
    wave = level * (1.0 + 0.5 * np.sin(phase + np.arange(288) / 288 * 4 * np.pi)) + random.normal(0, 0.02, (2000, 288))
    return Hours(np.clip(wave, 0.0, 0.99), "generated waves (no PlanetLab in this data)")


@dataclass(frozen=True)
class Sizes:
    """A fleet's demand of two hours that follow each other."""

    gigabytes: F64  # [v]
    cores: F64  # [v, 24]

    @property
    def hosts_by_memory(self) -> float:
        return float(self.gigabytes.sum() / HOST_GB)

    def host_cores(self, pressure: float) -> float:
        """Cores of a host that give this pressure in the first hour."""
        return float(self.cores[:, :BUCKETS].sum(axis=0).max() / (pressure * self.hosts_by_memory))


def draw_sizes(vms: int, hours: Hours, seed: int) -> Sizes:
    """VMs of random flavours, each with a random stretch of two hours of a random series."""
    random = np.random.default_rng(seed)
    flavour = random.choice(len(FLAVOURS), vms, p=SHARES)
    cores = np.full((vms, 2 * BUCKETS), np.inf)
    again = np.arange(vms)
    while len(again):
        series = random.integers(0, len(hours.shares), len(again))
        begin = random.integers(0, hours.shares.shape[1] - 2 * BUCKETS, len(again))
        busy = hours.shares[series[:, None], begin[:, None] + np.arange(2 * BUCKETS)]
        cores[again] = cores_of(flavour[again], busy)
        again = np.flatnonzero(cores.max(axis=1) > LARGEST_CORES)
    return Sizes(FLAVOURS[flavour, 1], cores)


def cores_of(flavour: NDArray[np.int64], busy: F64) -> F64:
    """CPU [v, bucket] of VMs of these flavours [v] whose series say `busy` [v, bucket]: clouds are busier than PlanetLab's machines."""
    cores: F64 = FLAVOURS[flavour, :1] * np.minimum(1.0, 0.12 + 1.7 * busy)
    return cores


def make_fleet(sizes: Sizes, hosts: int, pressure: float, home: I32, *, constrained: bool, seed: int, first: int = 0) -> Problem:
    """The fleet as a problem: every capacity hard, moves cheap, so that its cost counts hosts; `home` [v], `first`: bucket."""
    vms = len(sizes.gigabytes)
    mean = np.concatenate([sizes.cores[:, first : first + BUCKETS], sizes.gigabytes[:, None]], axis=1)
    capacity = np.tile(np.append(np.full(BUCKETS, sizes.host_cores(pressure)), HOST_GB), (hosts, 1))
    cpu = np.arange(BUCKETS + 1) < BUCKETS
    random = np.random.default_rng([seed, 77])
    fixed = (random.random(vms) < 0.01) & (home != NOWHERE) & constrained
    return bare_problem(
        home,
        mean,
        capacity,
        cpu,
        fixed=fixed,
        why_fixed=tuple("pinned" if pinned else "" for pinned in fixed),
        kind=pool_kinds(home, hosts, random) if constrained else np.zeros(vms, np.int32),
        weight=np.full(vms, 0.01),
        move_cost=1e-6 * sizes.gigabytes,
        unplaced_cost=np.full(vms, 10.0),
        hard=np.ones(BUCKETS + 1, bool),
        curve=np.tile(np.linspace(IDLE, FULL, CURVE_POINTS), (hosts, 1)),
        empty_cost=np.full(hosts, ASLEEP),
        kind_cost=pools(hosts) if constrained else np.zeros((1, hosts)),
        domain=np.stack([np.arange(hosts), np.arange(hosts) // RACK]).astype(np.int32),
        rules=draw_rules(home, hosts, random) if constrained else Rules(),
        arrivals_max=np.full(hosts, 24, np.int32) if constrained else None,
        departures_max=np.full(hosts, 24, np.int32) if constrained else None,
    )


def pools(hosts: int) -> F64:
    """[kind, h]: three hosts of four are in pool A. Kind 0 may be anywhere, 1 only in A, 2 only in B."""
    in_b = np.arange(hosts) % 4 == 3
    return np.stack([np.zeros(hosts), np.where(in_b, np.inf, 0.0), np.where(in_b, 0.0, np.inf)])


def pool_kinds(home: I32, hosts: int, random: np.random.Generator) -> I32:
    """A third of the VMs are bound to the pool they are in."""
    bound = random.random(len(home)) < 0.33
    kind: I32 = np.where(bound & (home != NOWHERE), np.where(home % 4 == 3, 2, 1), 0).astype(np.int32)
    return kind


def draw_rules(home: I32, hosts: int, random: np.random.Generator) -> Rules:
    """A quarter of the VMs in rules that the incumbent may break: apart on hosts (most), spread over racks, together, licensed."""
    order = random.permutation(len(home))[: len(home) // 4]
    kinds, limits, levels, sets = [], [], [], []
    at = 0
    while at < len(order):
        draw = random.random()
        size = int(random.integers(2, 7))
        kind, limit, level = RuleKind.APART, 1, 0
        if draw > 0.98:
            kind, limit, size = RuleKind.LICENSED, 2, 4
        elif draw > 0.96:
            kind, size = RuleKind.TOGETHER, 2
        elif draw > 0.7:
            size = int(random.integers(4, 11))
            limit, level = 2, 1
        sets.append(np.sort(order[at : at + size]))
        kinds.append(kind)
        limits.append(limit)
        levels.append(level)
        at += size
    return Rules(
        kind=np.array(kinds, np.int32), limit=np.array(limits, np.int32), level=np.array(levels, np.int32),
        start=np.cumsum([0, *(len(part) for part in sets)]).astype(np.int32), members=np.concatenate(sets).astype(np.int32),
        names=tuple(f"rule {i}" for i in range(len(sets))),
    )  # fmt: skip


def spread_homes(sizes: Sizes, hosts: int, seed: int) -> I32:
    """A fleet that nobody has packed: VMs in random order, each to the host with the most memory free of four drawn at random."""
    random = np.random.default_rng([seed, 5])
    free = np.full(hosts, HOST_GB)
    home = np.empty(len(sizes.gigabytes), np.int32)
    for v in np.argsort(-sizes.gigabytes, kind="stable"):  # large ones first, or they would not fit
        drawn = random.integers(0, hosts, 4)
        home[v] = drawn[np.argmax(free[drawn])]
        free[home[v]] -= sizes.gigabytes[v]
    return home


def first_fit_homes(sizes: Sizes, pressure: float, headroom: float, hosts: int) -> I32:
    """First fit on the first hour with `headroom` of every capacity left free; needs at most `hosts`."""
    need = np.concatenate([sizes.cores[:, :BUCKETS] / sizes.host_cores(pressure), sizes.gigabytes[:, None] / HOST_GB], axis=1)
    free = np.full((hosts, need.shape[1]), 1.0 - headroom)
    home: NDArray[np.int32] = np.full(len(need), NOWHERE, np.int32)
    for v, size in enumerate(need):
        alone = np.maximum(1.0, size / (1.0 - headroom)).max() > 1.0  # larger than a host less its headroom: alone on one
        fits = (free >= (1.0 - headroom - 1e-9 if alone else size)).all(axis=1)
        home[v] = int(np.argmax(fits))
        free[home[v]] -= size
    return home
