"""Placement problems so small that every plan of them can be tried: what bounds and exact engines are tested against."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from coordinator.placement.problem import CURVE_POINTS, I32, NOWHERE, Problem
from coordinator.placement.verdict import worse
from tests.contract.placement_problems import make_problem


def tiny(seed: int, pressure: float, z: float) -> Problem:
    """Three hosts, six VMs (one homeless, one fixed), hosts unlike, one perhaps closed, some kinds not allowed, curves of any shape."""
    random = np.random.default_rng(seed)
    problem = make_problem(seed, hosts=3, vms=14, pressure=pressure, z=z, groups=2)
    few = 6
    curve = np.cumsum(random.uniform(-0.02, 0.2, (3, CURVE_POINTS)), axis=1) + 0.3
    kind_cost = problem.kind_cost.copy()
    kind_cost[1, int(random.integers(3))] = np.inf
    home = problem.home[:few].copy()
    home[0] = NOWHERE
    fixed = np.arange(few) == 3
    scale = problem.mean[:, :12].sum() / problem.mean[:few, :12].sum()
    return replace(
        problem,
        vm_ids=problem.vm_ids[:few], home=home, fixed=fixed, why_fixed=problem.why_fixed[:few], kind=problem.kind[:few],
        mean=problem.mean[:few] * scale, variance=problem.variance[:few] * scale**2,
        weight=problem.weight[:few], move_cost=problem.move_cost[:few],
        unplaced_cost=random.uniform(0.1, 3.0, few), group=problem.group[:few], curve=curve, kind_cost=kind_cost,
        closed=np.arange(3) == (2 if seed % 3 == 0 else 9),
        empty_cost=random.uniform(-0.1, 0.3, 3),
        rules=replace(problem.rules, start=np.array([0, 2, 4, 5, 6], np.int32), members=np.array([0, 1, 1, 2, 4, 5], np.int32)),
        moves_max=None if seed % 2 else 3,
    )  # fmt: skip


def plans(problem: Problem) -> list[I32]:
    """Every assignment that a plan may be."""
    choices = []
    for v in range(len(problem.vm_ids)):
        home = int(problem.home[v])
        allowed = [h for h in range(3) if h == home or (not problem.closed[h] and np.isfinite(problem.kind_cost[problem.kind[v], h]))]
        choices.append([home] if problem.fixed[v] else [NOWHERE, *allowed] if home == NOWHERE else allowed)
    found = [np.array(place, np.int32) for place in itertools.product(*choices)]
    return [place for place in found if not worse(problem, place, problem.home)]
