"""A grouping genetic algorithm: parents exchange whole hosts, not single genes, and what falls out is repaired by best fit.

Source: E. Falkenauer, "A hybrid grouping genetic algorithm for bin packing", Journal of Heuristics 2 (1996). A host's set of VMs is the
gene because a good set stays good wherever the others are. Fitness is cost.py's objective; an assignment that breaks more than home does
is no member of the population. Deterministic for a seed and effort; the clock can only cut it short.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from coordinator.placement.cost import cost_of
from coordinator.placement.problem import F64, I32, NOWHERE, Bool, Problem, Solution
from coordinator.placement.search.crossing import Ground, cross, emptied, ground_of, place_all
from coordinator.placement.verdict import first_place, worse

MEMBERS: Final = 24
CHILDREN: Final = 1500  # at effort 1
MUTANTS: Final = 0.4  # share of children that have one parent, some of whose hosts are emptied


def solve_genetically(problem: Problem, *, seed: int, effort: float = 1.0, deadline_s: float, start: I32 | None = None) -> Solution:
    """The best plan found from `start` (default: home); never worse than home. No bound."""
    begun = time.perf_counter()
    random = np.random.default_rng(seed)
    state = np.array([int(random.integers(1, 2**62))], np.uint64)
    first = first_place(problem, start)
    ground = ground_of(problem)
    size = (problem.mean / np.maximum(problem.capacity.mean(axis=0), 1e-12)).max(axis=1, initial=0.0)
    movable = ~problem.fixed
    members, costs = found_population(problem, ground, first, movable, size, state, begun + deadline_s)
    cut = False
    for _ in range(int(CHILDREN * effort)):
        if time.perf_counter() - begun >= deadline_s:
            cut = True
            break
        a, b = (int(min(random.integers(len(members), size=2), key=lambda i: costs[i])) for _ in range(2))
        if a == b or random.random() < MUTANTS:
            child = emptied(ground, members[a], movable, size, 1 + int(random.integers(3)), state)
        else:
            child = cross(ground, members[a], members[b], movable, size, bool(random.random() < 0.5), state)
        join(problem, members, costs, within_moves(problem, child, random))
    best = int(np.argmin(costs))
    return Solution(
        place=members[best], cost=costs[best], bound=-np.inf, engine="genetic", cut=cut, seconds=time.perf_counter() - begun
    )  # fmt: skip


def found_population(
    problem: Problem, ground: Ground, first: I32, movable: Bool, size: F64, state: np.ndarray, until: float
) -> tuple[list[I32], list[float]]:  # fmt: skip
    """The start, everybody placed anew, and the start with more and more hosts emptied."""
    members, costs = [first], [cost_of(problem, first).total]
    fresh = first.copy()
    loose = np.flatnonzero(movable)
    place_all(ground, fresh, loose[np.argsort(-size[loose], kind="stable")].astype(np.int32))
    join(problem, members, costs, fresh)
    hosts = len(problem.host_ids)
    for i in range(2 * MEMBERS):
        if len(members) >= MEMBERS or time.perf_counter() >= until or not hosts:
            break
        join(problem, members, costs, emptied(ground, members[i % len(members)], movable, size, 1 + i * hosts // (4 * MEMBERS), state))
    return members, costs


def within_moves(problem: Problem, child: I32, random: np.random.Generator) -> I32:
    """Moves past the cap taken back, drawn at random among those that can be."""
    moved = np.flatnonzero((child != problem.home) & (problem.home != NOWHERE))
    if problem.moves_max is not None and len(moved) > problem.moves_max:
        back = random.permutation(moved)[: len(moved) - problem.moves_max]
        child[back] = problem.home[back]
    return child


def join(problem: Problem, members: list[I32], costs: list[float], child: I32) -> None:
    """Into the population when it may be a plan, is unlike the others in cost, and there is room or it is better than the worst."""
    if worse(problem, child, problem.home):
        return
    cost = cost_of(problem, child).total
    if any(abs(cost - known) <= 1e-12 * max(1.0, abs(cost)) for known in costs):
        return
    if len(members) < MEMBERS:
        members.append(child)
        costs.append(cost)
        return
    last = int(np.argmax(costs))
    if cost < costs[last]:
        members[last], costs[last] = child, cost
