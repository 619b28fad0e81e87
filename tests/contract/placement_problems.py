"""Placement problems made from a seed, small or large, with every kind of cell, rule and cost in them: what the engines' tests share."""

from __future__ import annotations

import numpy as np

from coordinator.placement.problem import CURVE_POINTS, I32, Problem, RuleKind, Rules

BUCKETS = 12


def make_problem(
    seed: int, hosts: int = 6, vms: int = 40, *, pressure: float = 0.7, z: float = 1.5, groups: int = 3, rules: bool = True, asleep: int = 1
) -> Problem:
    """CPU in 12 buckets (soft), memory and a promise in one cell each (hard). `pressure`: mean CPU over all hosts' CPU.

    The first `asleep` hosts are empty and must be woken; the VMs are spread over the others first-fit by memory; one in ten is fixed.
    """
    random = np.random.default_rng(seed)
    cells = BUCKETS + 2
    size = random.choice([1.0, 2.0, 4.0, 8.0], vms, p=[0.4, 0.3, 0.2, 0.1])
    phase = random.uniform(0, BUCKETS, vms)[:, None]
    wave = 1.0 + 0.6 * np.sin((np.arange(BUCKETS) + phase) / BUCKETS * 2 * np.pi)
    mean = np.zeros((vms, cells))
    mean[:, :BUCKETS] = size[:, None] * wave * random.uniform(0.2, 1.0, (vms, 1))
    cores = mean[:, :BUCKETS].sum() / BUCKETS / pressure / hosts
    mean[:, BUCKETS] = size * random.choice([2.0, 4.0], vms)
    mean[:, BUCKETS + 1] = size
    variance = np.zeros_like(mean)
    variance[:, :BUCKETS] = (0.2 * mean[:, :BUCKETS]) ** 2
    capacity = np.empty((hosts, cells))
    capacity[:, :BUCKETS] = cores * random.uniform(0.8, 1.2, (hosts, 1))
    capacity[:, BUCKETS] = 1.4 * mean[:, BUCKETS].sum() / max(1, hosts - asleep) + 16.0
    capacity[:, BUCKETS + 1] = 1.6 * size.sum() / max(1, hosts - asleep) + 8.0
    cpu = np.arange(cells) < BUCKETS
    watts = np.linspace(0.5, 1.0, CURVE_POINTS)
    return Problem(
        vm_ids=tuple(f"v{i}" for i in range(vms)),
        host_ids=tuple(f"h{i}" for i in range(hosts)),
        home=first_fit(mean, capacity, asleep),
        fixed=np.arange(vms) % 10 == 9,
        why_fixed=tuple("pinned" if i % 10 == 9 else "" for i in range(vms)),
        kind=(np.arange(vms) % 2).astype(np.int32),
        mean=mean,
        variance=variance,
        weight=random.choice([0.01, 0.03, 0.1], vms),
        move_cost=0.002 * mean[:, BUCKETS],
        unplaced_cost=np.full(vms, 50.0),
        group=np.where(np.arange(vms) % 3 == 0, np.arange(vms) % max(groups, 1), -1).astype(np.int32),
        rho=random.uniform(0.2, 0.9, max(groups, 1)),
        capacity=capacity,
        hard=~cpu,
        z=np.where(cpu, z, 0.0),
        minutes=np.where(cpu, 5.0, 60.0),
        cpu=cpu,
        curve=random.uniform(0.5, 1.0, (hosts, 1)) * watts,
        empty_cost=np.full(hosts, 0.02),
        wake_cost=np.where(np.arange(hosts) < asleep, 0.1, 0.0),
        closed=np.zeros(hosts, bool),
        kind_cost=np.where(np.arange(2)[:, None] * (np.arange(hosts) % 4 == 3) > 0, 0.05, 0.0),
        domain=np.stack([np.arange(hosts), np.arange(hosts) // 2]).astype(np.int32),
        rules=make_rules(random, vms) if rules else Rules(),
    )


def first_fit(mean: np.ndarray, capacity: np.ndarray, asleep: int) -> I32:
    """Homes by the hard cells alone (the last two), hosts in order, sleepers left empty; VMs that fit nowhere have none."""
    free = capacity[:, -2:].copy()
    home = np.full(len(mean), -1, np.int32)
    for v, need in enumerate(mean[:, -2:]):
        fits = np.flatnonzero((free >= need).all(axis=1))
        fits = fits[fits >= asleep]
        if len(fits):
            home[v] = fits[0]
            free[fits[0]] -= need
    return home


def make_rules(random: np.random.Generator, vms: int) -> Rules:
    """One rule of each kind: three VMs apart on hosts, four spread over racks, two together, five on at most two licensed hosts."""
    picked = random.permutation(vms)[:14]
    sets = [sorted(part.tolist()) for part in np.split(picked, [3, 7, 9])]
    return Rules(
        kind=np.array([RuleKind.APART, RuleKind.APART, RuleKind.TOGETHER, RuleKind.LICENSED], np.int32),
        limit=np.array([1, 2, 1, 2], np.int32),
        level=np.array([0, 1, 0, 0], np.int32),
        start=np.cumsum([0, *(len(part) for part in sets)]).astype(np.int32),
        members=np.array([v for part in sets for v in part], np.int32),
        names=("apart", "spread", "together", "licence"),
    )
