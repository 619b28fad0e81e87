"""How many hosts are needed at least, by whole sets of VMs: the pattern bound, for fleets of (nearly) equal hosts.

If every set of VMs that fits one host is worth at most 1 at some prices of the VMs, then no plan stands on fewer hosts than the prices
sum to (weak duality of fractional bin packing). Prices come from column generation: a linear model over the sets known so far, and a search
for a set that is worth more than 1 at its prices. They are proven at the end by a complete search, which may leave a margin: sets worth at
most 1 + m prove the sum / (1 + m). Source: P. Gilmore and R. Gomory, Operations Research 9 (1961); the early stop is A. Farley's,
Operations Research 38 (1990). Where the linear bound divides VMs among hosts freely, this one cannot.

"Fits": load at most capacity x (1 + SLACK + o), with o the most that a plan cheaper than `best` can pass a soft cell by; load from below by
the chord of relaxation.py, which is under the root for every set that fits. Hosts are all taken as the largest in each cell.
"""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np
from ortools.linear_solver.python import model_builder_helper as native
from scipy import sparse

from coordinator.placement.cost import host_loads
from coordinator.placement.exact.pricing import dearest
from coordinator.placement.exact.relaxation import TINY, least_weight
from coordinator.placement.problem import F64, I32, NOWHERE, SLACK, Problem

VMS: Final = 400  # up to which sets are looked for: a master model of as many rows
# With 13 small VMs a host some set fills it to the brim whatever the prices, and the bound falls back to the volume (tried at pressure
# 0.92: 10.04 and falling after 110 rounds and 13 s, where the volume rounds up to 10). With few large ones it is often above.
VMS_A_HOST: Final = 8
QUICK_NODES: Final = 2_000  # of a search for one more set
SETS: Final = 12  # new sets a round
SMOOTH: Final = 0.7  # share of the steady prices in those that sets are searched at
PROOF_NODES: Final = 3_000_000  # of the search that ends it: about a second
EPSILON: Final = 1e-6


def hosts_needed(problem: Problem, best: float, others: float, place: I32 | None, *, deadline_s: float) -> int:
    """A number of hosts below which no plan that costs less than `best` stands; 0 = nothing known.

    `others`: a lower bound of what a plan costs without overload and without VMs left nowhere. `place`: a plan that starts the search.
    """
    size = shares_of(problem, best, others)
    if size is None or not len(size):
        return 0
    volume = int(np.ceil(size.sum(axis=0).max() - EPSILON))
    if len(size) > min(VMS, VMS_A_HOST * volume) or (size > 1.0).any():
        return volume
    start = problem.home if place is None else place
    first = [np.flatnonzero(start == h).astype(np.int32) for h in np.unique(start[start != NOWHERE])]
    fitting = [of for of in first if (size[of].sum(axis=0) <= 1.0).all()]
    value = fractional_bins(size, fitting, volume, until=time.perf_counter() + deadline_s)
    return max(volume, int(np.ceil(value - EPSILON)))


def shares_of(problem: Problem, best: float, others: float) -> F64 | None:
    """VMs' loads as shares of the largest host, [v, cells that can be full]; None where the bound would not hold.

    It would not where VMs may be left nowhere for less than `best`, or where a hard capacity is already passed at home.
    """
    if not np.isfinite(best):
        return None
    homeless = problem.home == NOWHERE
    if homeless.any() and problem.unplaced_cost[homeless].min() < best - others:
        return None
    load, _ = host_loads(problem, problem.home)
    if (load > problem.capacity * (1.0 + SLACK))[:, problem.hard].any():
        return None
    capacity = problem.capacity.max(axis=0)
    least = least_weight(problem, problem.mean + problem.z * np.sqrt(problem.variance)).min(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        most = np.where(problem.hard, 0.0, (best - others) / (problem.minutes * least))
    room = capacity * (1.0 + SLACK + np.where(np.isfinite(most), np.maximum(most, 0.0), np.inf))
    ratio = np.divide(problem.variance, problem.mean, out=np.where(problem.variance > 0.0, np.inf, 0.0), where=problem.mean > 0.0)
    k = np.maximum(ratio.max(axis=0, initial=0.0), 1e-300)
    used = np.isfinite(room) & (capacity > TINY) & (problem.mean.sum(axis=0) > room)
    if not used.any():
        return None
    room, k, z = room[used], k[used], problem.z[used]
    root = np.where(np.isfinite(k), 0.5 * k * (np.sqrt(z**2 + 4.0 * room / k) - z), np.inf)
    root = np.minimum(root, np.sqrt(problem.variance[:, used].sum(axis=0)))
    chord = np.divide(z, root, out=np.zeros_like(z), where=root > 0.0)
    size: F64 = np.ascontiguousarray((problem.mean[:, used] + chord * problem.variance[:, used]) / room)
    return size


def fractional_bins(size: F64, first: list[I32], at_least: int, *, until: float) -> float:
    """A proven lower bound of the (fractional) number of bins, as far as it helps to pass `at_least`; 0 where it does not.

    Prices are smoothed (A. Pessoa et al., INFORMS Journal on Computing 30, 2018): sets are searched at a mix of the master's prices and
    those of the best bound so far, which swing far less.
    """
    n = len(size)
    columns = [np.array([v], np.int32) for v in range(n)] + first
    stable = (size / np.maximum(size.sum(axis=0), 1e-12)).max(axis=1)  # worth as the linear bound sees it
    stable *= at_least / stable.sum()
    best, smooth = 0.0, SMOOTH
    while time.perf_counter() < until:
        total, prices = master(columns, n, until)
        if prices is None or total <= at_least + EPSILON:
            return 0.0  # with all sets it can only be less
        mixed = smooth * stable + (1.0 - smooth) * prices
        found, worth = disjoint_sets(size, mixed)
        bound = float(mixed.sum()) / max(worth, 1e-12)  # if the search was complete; its true value is proven at the end
        if bound > best:
            best, stable = bound, mixed / max(worth, 1e-12)
        new = [of for of in found if prices[of].sum() > 1.0 + EPSILON]
        if new:
            columns += new
            smooth = SMOOTH
            continue
        if smooth > 0.0:
            smooth = 0.0 if smooth < 0.2 else 0.5 * smooth
            continue
        return proven_sum(size, prices, total, at_least)
    return 0.0


def proven_sum(size: F64, prices: F64, total: float, at_least: int) -> float:
    """total / (1 + m), proven by a complete search; 0 where it stays open or would not pass `at_least`."""
    margin = total / (at_least + 10 * EPSILON)  # what is worth less does no harm: only dearer sets are looked for
    order, bulk, room = by_efficiency(size, prices)
    _, chosen, complete = dearest(np.ascontiguousarray(size[order]), prices[order], bulk, room, margin, PROOF_NODES, np.inf)
    return total / margin if complete and not len(chosen) else 0.0


def by_efficiency(size: F64, prices: F64) -> tuple[I32, F64, float]:
    """(items with a price, by price over weighted size; their weighted sizes; the weighted room of a bin)."""
    paid = np.flatnonzero(prices > 1e-12)
    weight = knapsack_prices(size[paid], prices[paid])
    bulk = size[paid] @ weight
    order = np.argsort(-prices[paid] / np.maximum(bulk, 1e-12), kind="stable")
    return paid[order].astype(np.int32), bulk[order], float(weight.sum()) * (1.0 + 1e-9)


def disjoint_sets(size: F64, prices: F64) -> tuple[list[I32], float]:
    """(dear sets without common VMs, the worth of the first): one search after another among the VMs left."""
    found: list[I32] = []
    first = 0.0
    order, bulk, room = by_efficiency(size, prices)
    while len(order) and len(found) < SETS:
        value, chosen, _ = dearest(np.ascontiguousarray(size[order]), prices[order], bulk, room, 0.0, QUICK_NODES, np.inf)
        if not len(chosen):
            break
        first = max(first, value)
        found.append(order[chosen].astype(np.int32))
        left = np.ones(len(order), bool)
        left[chosen] = False
        order, bulk = order[left], bulk[left]
    return found, first


def master(columns: list[I32], n: int, until: float) -> tuple[float, F64 | None]:
    """(least sum of sets that cover every VM, prices of the VMs), or (0, None) without an answer."""
    rows = np.concatenate(columns)
    at = np.repeat(np.arange(len(columns)), [len(column) for column in columns])
    matrix = sparse.csr_matrix((np.ones(len(rows)), (rows, at)), shape=(n, len(columns)))
    k = len(columns)
    answer = linear(np.zeros(k), np.full(k, np.inf), np.ones(k), np.ones(n), np.full(n, np.inf), matrix, until)
    return (0.0, None) if answer is None else (answer[0], np.maximum(answer[1], 0.0))


def knapsack_prices(size: F64, prices: F64) -> F64:
    """Dual prices of the dimensions in the linear relaxation of the dearest set."""
    n, d = size.shape
    answer = linear(
        np.zeros(n), np.ones(n), -prices, np.full(d, -np.inf), np.ones(d), sparse.csr_matrix(size.T), time.perf_counter() + 5.0
    )  # fmt: skip
    if answer is None:
        return np.ones(d)
    found: F64 = np.maximum(-answer[1], 0.0)
    return found if found.sum() > 0.0 else np.ones(d)


def linear(
    low: F64, high: F64, cost: F64, row_low: F64, row_high: F64, matrix: sparse.csr_matrix, until: float
) -> tuple[float, F64] | None:  # fmt: skip
    """(objective, duals) by GLOP; None when it did not end in time."""
    helper: Any = native.ModelBuilderHelper()
    helper.fill_model_from_sparse_data(low, high, cost, row_low, row_high, matrix)
    run = native.ModelSolverHelper("glop")
    run.set_time_limit_in_seconds(max(until - time.perf_counter(), 0.01))
    run.solve(helper)
    if run.status() != native.SolveStatus.OPTIMAL:
        return None
    return float(run.objective_value()), np.asarray(run.dual_values())
