"""The engine for a shard of up to about twelve hosts: a good answer quickly, then the proof that it is the best, or a better one.

A heuristic engine's answer is set against the lower bounds first; where they meet nothing is searched (most shards that are packed).
Only what is left goes to CP-SAT, with that answer as its start.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

import numpy as np

from coordinator.placement.cost import cost_of
from coordinator.placement.exact.cpsat import solve_cpsat
from coordinator.placement.packing.vectors import pack_vectors
from coordinator.placement.problem import I32, NOWHERE, Engine, Problem, Solution
from coordinator.placement.search.genetic import solve_genetically
from coordinator.placement.verdict import worse

HEURISTIC: Final = 0.25  # share of the time for each first answer
PACKING: Final = 10.0  # effort of packing from nothing: a second where the bound is out of reach, else far less


def solve_proven(
    problem: Problem, *, seed: int, effort: float = 1.0, deadline_s: float, start: I32 | None = None, first: Engine = solve_genetically
) -> Solution:
    """The best plan found, with its bound and whether it is proven; never worse than home or `start`. `first` gives the first answer."""
    begun = time.perf_counter()
    quick = first(problem, seed=seed, effort=0.3 * effort, deadline_s=HEURISTIC * deadline_s, start=start)
    place = quick.place
    packed = from_nothing(problem, seed, effort, HEURISTIC * deadline_s)
    if packed is not None and not worse(problem, packed, problem.home) and cost_of(problem, packed).total < quick.cost:
        place = packed
    left = deadline_s - (time.perf_counter() - begun)
    found = solve_cpsat(problem, seed=seed, effort=effort, deadline_s=max(left, 0.1), start=place)
    return replace(found, engine="proven", cut=found.cut or quick.cut, seconds=time.perf_counter() - begun)


def from_nothing(problem: Problem, seed: int, effort: float, deadline_s: float) -> I32 | None:
    """Everybody into as few hosts as hold them, where nobody runs yet and all hosts are alike; None elsewhere and where it does not go."""
    hosts = len(problem.host_ids)
    if not len(problem.vm_ids) or (problem.home != NOWHERE).any() or problem.closed.any():
        return None
    if (problem.capacity != problem.capacity[:1]).any():
        return None
    alone = problem.mean + problem.z * np.sqrt(problem.variance)  # more than they need together: what fits so fits
    if (alone > problem.capacity[0]).any():
        return None
    packing = pack_vectors(alone, problem.capacity[0], seed=seed, effort=PACKING * effort, deadline_s=deadline_s)
    return packing.place if packing.bins <= hosts else None
