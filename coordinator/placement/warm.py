"""Every kernel of the placement with production's types, on four hosts: compiled, or read from the cache, before the first plan."""

from __future__ import annotations

import sys
from typing import Final

import numpy as np

from coordinator.forecast.warm import warm
from coordinator.placement.bare import bare_problem
from coordinator.placement.problem import CURVE_POINTS, Problem
from coordinator.placement.search.anneal import anneal_engine
from coordinator.placement.search.greedy import greedy
from coordinator.placement.search.sharded import taken_back

EXERCISES: Final = ("coordinator.placement.warm:exercise", "coordinator.planning.move_warmup:compile_kernels")


def exercise() -> None:
    """One small problem through all engines (coordinator/forecast/warm.py says why)."""
    problem = tiny()
    greedy(problem, seed=0, effort=0.0, deadline_s=60.0)
    found = anneal_engine(problem, seed=0, effort=0.01, deadline_s=60.0)
    taken_back(problem, found.place, found.cost)
    taken_back(problem, np.zeros(len(problem.vm_ids), np.int32), np.inf)  # the answer above may have moved nothing


def tiny() -> Problem:
    """Eight VMs of one core, two on each of four hosts with room for all of them."""
    v, h = 8, 4
    return bare_problem(
        (np.arange(v) % h).astype(np.int32),
        np.ones((v, 1)),
        np.full((h, 1), 10.0),
        np.ones(1, bool),
        move_cost=np.full(v, 1e-3),
        curve=np.tile(np.linspace(0.1, 0.2, CURVE_POINTS), (h, 1)),
    )


if __name__ == "__main__":
    sys.stdout.write(f"{len(warm(EXERCISES))} kernels of placement compiled\n")
