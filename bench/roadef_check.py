"""Cost and faults of a machine reassignment, from scratch and plainly: shares no code with the engine that it judges.

Written from the challenge's rules (roadef2012/SPEC.md in the data folder), one paragraph of code a rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coordinator.placement.reassign.engine import I64, Reassignment


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Cost by cause, and one line for each kind of broken rule."""

    load: int
    balance: int
    process_moves: int
    service_moves: int
    machine_moves: int
    faults: tuple[str, ...]

    @property
    def cost(self) -> int:
        return self.load + self.balance + self.process_moves + self.service_moves + self.machine_moves


def judge(problem: Reassignment, place: I64) -> Verdict:
    """What an assignment [p] costs and which rules it breaks."""
    place = np.asarray(place, np.int64)
    processes, machines = len(problem.home), len(problem.capacity)
    if place.shape != (processes,) or place.min() < 0 or place.max() >= machines:
        raise ValueError(f"an assignment of shape {place.shape}: allowed {processes} machines from 0 to {machines - 1}")
    used = loads(problem, place, np.ones(processes, bool))
    left = problem.capacity - used
    moved = place != problem.home
    by_service = np.bincount(problem.service[moved], minlength=len(problem.spread))
    return Verdict(
        load=int((np.maximum(used - problem.safety, 0).sum(axis=0) * problem.load_weight).sum()),
        balance=int(sum(w * np.maximum(t * left[:, a] - left[:, b], 0).sum() for a, b, t, w in problem.balance.tolist())),
        process_moves=problem.process_move_weight * int(problem.process_move_cost[moved].sum()),
        service_moves=problem.service_move_weight * int(by_service.max()),
        machine_moves=problem.machine_move_weight * int(problem.machine_move_cost[problem.home, place].sum()),
        faults=tuple(faults(problem, place, used, moved)),
    )


def loads(problem: Reassignment, at: I64, who: np.ndarray) -> I64:
    """What the processes of a mask [p] need on the machines `at` [p]: [m, r]."""
    total = np.zeros_like(problem.capacity)
    np.add.at(total, at[who], problem.need[who])
    return total


def faults(problem: Reassignment, place: I64, used: I64, moved: np.ndarray) -> list[str]:
    """One line for each kind of rule that is broken."""
    found = []
    if (used > problem.capacity).any():
        found.append(f"capacity passed at {int((used > problem.capacity).sum())} machines and resources")

    held = used + loads(problem, problem.home, moved)
    if (held > problem.capacity)[:, problem.transient == 1].any():
        found.append("capacity passed while processes move (transient resources)")

    pairs = np.unique(problem.service * len(problem.capacity) + place)
    if len(pairs) < len(place):
        found.append(f"{len(place) - len(pairs)} processes share a machine with one of their service")

    at = np.unique(np.stack([problem.service, problem.location[place]]), axis=1)
    locations = np.bincount(at[0], minlength=len(problem.spread))
    few = (locations < problem.spread) & (locations > 0)  # a service without processes is nowhere and asks for nothing
    if few.any():
        found.append(f"{int(few.sum())} services in too few locations")

    areas: list[set[int]] = [set() for _ in problem.spread]
    for s, n in zip(problem.service.tolist(), problem.neighbourhood[place].tolist(), strict=True):
        areas[s].add(n)
    alone = [
        (s, on)
        for s in range(len(areas))
        for on in problem.depends[problem.depends_start[s] : problem.depends_start[s + 1]].tolist()
        if not areas[s] <= areas[on]
    ]
    if alone:
        found.append(f"{len(alone)} dependencies without a process in the neighbourhood, first: service {alone[0][0]} on {alone[0][1]}")
    return found
