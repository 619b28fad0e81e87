"""Packing rules that consolidation studies use: sizes of one step into hosts of one capacity. The rivals of bench/consolidation.py.

Every packer takes sizes float64[v, d] and capacity float64[d] and gives hosts int64[v] from 0 on. A VM larger than a host gets a host of
its own. First fit and best fit take the VMs by decreasing largest share; the ant colony is that of Feller, Rilling and Morin (GRID 2011):
hosts are filled one after another, a VM is drawn by pheromone between it and those inside and by how well it fills what is free; the exact
one proves by a bound where it can, else asks CP-SAT within a limit, and says best fit's answer where that finds nothing better.
"""

# mypy: disable-error-code="untyped-decorator, no-any-return"
# (numba's njit has no types)

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from coordinator.model import F64

I64 = NDArray[np.int64]
Packer = Callable[[F64, F64], I64]

ANTS: Final = 5
ROUNDS: Final = 8
EVAPORATION: Final = 0.3
EXACT_S: Final = 0.3  # of CP-SAT, for one packing
EXACT_BINARIES: Final = 6000


def first_fit(sizes: F64, capacity: F64) -> I64:
    """First fit decreasing."""
    return _fit(shares(sizes, capacity), False)


def best_fit(sizes: F64, capacity: F64) -> I64:
    """Best fit decreasing: the fullest host that still holds it."""
    return _fit(shares(sizes, capacity), True)


def ant_colony(sizes: F64, capacity: F64) -> I64:
    """A colony of ANTS for ROUNDS, the same draw at every call."""
    share = shares(sizes, capacity)
    return _ants(share, ANTS, ROUNDS, EVAPORATION, _fit(share, True), 1)


def exact(sizes: F64, capacity: F64) -> I64:
    """The fewest hosts, proven by the bound or by CP-SAT in EXACT_S; the best that was found otherwise."""
    share = shares(sizes, capacity)
    best = min((_fit(share, False), _fit(share, True)), key=lambda place: int(place.max()))
    while True:
        hosts = int(best.max())  # one fewer
        if hosts < fewest(share) or hosts * len(share) > EXACT_BINARIES:
            return best
        fewer = _squeeze(share, hosts)
        if fewer is None:
            return best
        best = fewer


PACKERS: Final[dict[str, Packer]] = {"first fit": first_fit, "best fit": best_fit, "ant colony": ant_colony, "exact": exact}


def shares(sizes: F64, capacity: F64) -> F64:
    """Of one host; at most one whole host, so that an oversized VM stands alone."""
    return np.ascontiguousarray(np.clip(sizes / capacity, 0.0, 1.0))


def fewest(share: F64) -> int:
    """No packing needs fewer hosts: totals, and VMs of which no two fit together."""
    return max(int(np.ceil(share.sum(axis=0).max() - 1e-9)), int((share > 0.5 + 1e-9).sum(axis=0).max()), 1)


def _squeeze(share: F64, hosts: int) -> I64 | None:
    """All VMs in so many hosts, by CP-SAT; None = impossible or not found in time."""
    whole = np.ceil(share * 1_000_000).astype(np.int64).clip(max=1_000_000)
    model = cp_model.CpModel()
    x = [[model.new_bool_var("") for _ in range(hosts)] for _ in share]
    for row in x:
        model.add_exactly_one(row)
    for h in range(hosts):
        column = [row[h] for row in x]
        for d in range(share.shape[1]):
            model.add(cp_model.LinearExpr.weighted_sum(column, whole[:, d].tolist()) <= 1_000_000)
    largest = int(share.max(axis=1).argmax())
    model.add(x[largest][0] == 1)  # hosts are alike
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = EXACT_S
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    return np.array([next(h for h in range(hosts) if solver.boolean_value(row[h])) for row in x], np.int64)


@njit(cache=True)
def _fit(share: Any, tightest: bool) -> Any:
    count, dims = share.shape
    largest = np.zeros(count)
    for v in range(count):
        largest[v] = share[v].max()
    free = np.ones((count, dims))
    place = np.zeros(count, np.int64)
    used = 0
    for v in np.argsort(-largest, kind="mergesort"):
        found, least = -1, np.inf
        for h in range(used):
            left = 0.0
            for d in range(dims):
                rest = free[h, d] - share[v, d]
                if rest < -1e-9:
                    left = np.inf
                    break
                left += rest
            if left < least:
                found, least = h, left
                if not tightest:
                    break
        if found < 0:
            found = used
            used += 1
        place[v] = found
        free[found] -= share[v]
    return place


@njit(cache=True)
def _ants(share: Any, ants: int, rounds: int, evaporation: float, start: Any, seed: int) -> Any:
    np.random.seed(seed)
    count, dims = share.shape
    best = start.copy()
    fewest = best.max() + 1
    trail = np.ones((count, count))
    weight = np.empty(count)
    for _ in range(rounds):
        for _ in range(ants):
            place = np.full(count, -1, np.int64)
            placed, host = 0, 0
            inside = np.empty(count, np.int64)
            while placed < count and host < fewest:
                free = np.ones(dims)
                held = 0
                while True:
                    total = 0.0
                    for v in range(count):
                        weight[v] = 0.0
                        if place[v] >= 0:
                            continue
                        filled, fits = 0.0, True
                        for d in range(dims):
                            if share[v, d] > free[d] + 1e-9:
                                fits = False
                                break
                            filled += share[v, d] / max(free[d], 1e-9)
                        if not fits:
                            continue
                        scent = 0.0
                        for k in range(held):
                            scent += trail[v, inside[k]]
                        weight[v] = (scent / held if held else 1.0) * (1e-6 + filled / dims) ** 2
                        total += weight[v]
                    if total <= 0.0:
                        break
                    draw = np.random.random() * total
                    pick = -1
                    for v in range(count):
                        if weight[v] > 0.0:
                            pick = v
                            draw -= weight[v]
                            if draw <= 0.0:
                                break
                    place[pick] = host
                    free -= share[pick]
                    inside[held] = pick
                    held += 1
                    placed += 1
                host += 1
            if placed == count and host < fewest:
                best, fewest = place, host
        trail *= 1.0 - evaporation
        for a in range(count):
            for b in range(count):
                if best[a] == best[b]:
                    trail[a, b] += 1.0 / fewest
    return best
