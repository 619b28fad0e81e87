"""What no plan can cost less than: the bound beside every plan, in the money of cost.py.

Every value is a dual value of a model that lies below the objective (relaxation.py proves that part by part), so it holds whatever the
solver did and however early it was stopped:

classes    hosts in a few classes, one representative for each that no host of the class beats (largest capacities, cheapest curve);
           prices of the capacities come from a linear model of a sample of the VMs (GLOP), mended in rounds over all of them; the bound is
           what all VMs prove at the best of these prices.
assignment the linear model host by host (GLOP), where it is small enough; with it the moves and the single hosts count.
whole      the same, split by how many hosts are used: at most n, or at least n + 1. The model's least cost is convex in that number, so the
           smaller of the two sides' bounds is valid, and both are above the linear one when its own number was not whole.
patterns   given a plan: the number of hosts that a cheaper one needs, by whole sets of VMs (patterns.py), put into the linear model.

Left out everywhere (they only add cost): TOGETHER and LICENSED rules, what groups add to the margin.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy import sparse

from coordinator.placement.exact.linear import LinearAnswer, proven, solve_linear
from coordinator.placement.exact.patterns import hosts_needed
from coordinator.placement.exact.relaxation import TINY, Relaxation, hard_passed, relax
from coordinator.placement.problem import CURVE_POINTS, F64, I32, NOWHERE, Problem, Rules

ENTRIES: Final = 160_000  # VMs x hosts x cells up to which the assignment model is solved: GLOP takes 0.1-0.5 s there
SAMPLE: Final = 400  # VMs whose linear model prices the classes
CLASSES: Final = 12  # host classes at most
PRICE_ROUNDS: Final = 12
STEADY: Final = 0.8  # share of the best prices so far in every other round's: new ones swing from one class of hosts to another
CLOSE: Final = 1e-4  # of the bound: what better prices could still add
WHOLE: Final = 1e-4  # a number of hosts nearer than this to a whole one counts as whole


@dataclass(frozen=True, kw_only=True)
class Bound:
    """No plan of the problem costs less than `value`; `method` is how that is known."""

    value: float
    method: str


def lower_bound(problem: Problem, *, deadline_s: float, best: float = np.inf, place: I32 | None = None) -> Bound:
    """The best bound that the time allows; the cheap one is always there. Raises nothing for a valid problem.

    `best`: cost of a plan that is known (`place`): dearer ones need not be considered, and the answer is at most that.
    """
    until = time.perf_counter() + deadline_s
    if not len(problem.vm_ids) or not len(problem.host_ids):
        return Bound(value=float(problem.empty_cost.sum() + problem.unplaced_cost.sum()), method="empty")
    v, (h, c) = len(problem.vm_ids), problem.capacity.shape
    found = class_bound(problem, until)
    if v * h * c <= ENTRIES and time.perf_counter() < until:
        model = relax(problem)
        found = better(found, split_by_hosts(model, "assignment", until))
        if found.value < best < np.inf:
            found = better(found, pattern_bound(problem, model, best, place, until))
    return Bound(value=min(found.value, best), method=found.method)


def pattern_bound(problem: Problem, model: Relaxation, best: float, place: I32 | None, until: float) -> Bound:
    """The linear bound of plans on as many hosts as a plan cheaper than `best` needs at least."""
    left = until - time.perf_counter()
    needed = hosts_needed(problem, best, host_bound(problem).value, place, deadline_s=0.7 * left)
    return Bound(value=side(model, needed, np.inf, until) if needed else -np.inf, method="patterns")


def better(one: Bound, other: Bound) -> Bound:
    """The higher of two bounds."""
    return other if other.value > one.value else one


def assignment_bound(problem: Problem, until: float) -> Bound:
    """Host by host, then split by the number of hosts used."""
    return split_by_hosts(relax(problem), "assignment", until)


def split_by_hosts(model: Relaxation, method: str, until: float) -> Bound:
    """The linear bound and, where the number of hosts in its answer is not whole, the smaller of the bounds on both sides of it."""
    answer = solve_linear(model, deadline_s=until - time.perf_counter())
    if answer.value is None:
        return Bound(value=-np.inf, method=method)
    best = Bound(value=answer.bound, method=method)
    hosts = float(answer.value[model.used].sum())
    below = np.floor(hosts + WHOLE)
    if hosts - below > WHOLE:
        fewer, more = (side(model, low, high, until) for low, high in ((-np.inf, below), (below + 1.0, np.inf)))
        best = better(best, Bound(value=min(fewer, more), method=f"{method}, whole hosts"))
    return best


def side(model: Relaxation, low: float, high: float, until: float) -> float:
    """Bound with at least `low` and at most `high` hosts used; inf where no plan is like that."""
    row_low, row_high = model.row_low.copy(), model.row_high.copy()
    row_low[model.used_row], row_high[model.used_row] = low, high
    found: LinearAnswer = solve_linear(
        replace(model, row_low=row_low, row_high=row_high), deadline_s=until - time.perf_counter()
    )  # fmt: skip
    return np.inf if found.infeasible else found.bound


def class_bound(problem: Problem, until: float) -> Bound:
    """The bound by classes of hosts. Costs about VMs x classes x cells a round of prices, and small linear models."""
    merged, copies, constant = by_classes(problem)
    model = relax(merged, copies=copies, broken=hard_passed(problem))
    sample, shared = sampled(model, len(problem.vm_ids))
    answer = solve_linear(sample, deadline_s=max(until - time.perf_counter(), 0.2))
    if answer.duals is None:
        return host_bound(problem)
    prices = answer.duals[len(answer.duals) - len(shared) :]
    best, steady, columns = -np.inf, prices, []
    for turn in range(PRICE_ROUNDS):
        value, chosen = priced(model, shared, prices)
        if value > best:
            best, steady = value, prices
        columns.append(chosen)
        if time.perf_counter() > until:
            break
        mixed = solve_linear(mixture(model, shared, columns), deadline_s=max(until - time.perf_counter(), 0.05))
        if mixed.duals is None or mixed.objective - best <= CLOSE * abs(best):
            break
        share = STEADY if turn % 2 else 0.0
        prices = share * steady + (1.0 - share) * mixed.duals[1:]
    return better(Bound(value=best + constant, method="classes"), host_bound(problem))


def priced(model: Relaxation, shared: I32, prices: F64) -> tuple[float, I32]:
    """(the bound that these prices of the shared rows prove, each VM's cheapest column at them)."""
    vms = len(model.row_low) - len(shared)
    duals = np.concatenate([np.zeros(vms), prices])
    reduced = (model.cost - model.rows.T @ duals)[: len(model.owner)]
    order = np.lexsort((reduced, model.owner))
    first = np.ones(len(order), bool)
    first[1:] = np.diff(model.owner[order]) > 0
    chosen = order[first].astype(np.int32)
    duals[model.owner[chosen]] = reduced[chosen]  # each VM's own row takes what its cheapest column costs
    return proven(model, duals), chosen


def mixture(model: Relaxation, shared: I32, columns: list[I32]) -> Relaxation:
    """The model with the VMs on some mixture of whole assignments: its prices are the next to try (Dantzig and Wolfe, 1960)."""
    single, count = len(model.owner), len(columns)
    rows = model.rows[shared]
    mixed = np.stack([np.asarray(rows[:, of].sum(axis=1)).ravel() for of in columns], axis=1)
    rest = rows[:, single:]
    one = sparse.csr_matrix((np.ones(count), (np.zeros(count, int), np.arange(count))), shape=(1, count + rest.shape[1]))
    return replace(
        model,
        cost=np.concatenate([[model.cost[of].sum() for of in columns], model.cost[single:]]),
        low=np.concatenate([np.zeros(count), model.low[single:]]),
        high=np.concatenate([np.full(count, np.inf), model.high[single:]]),
        whole=np.zeros(count + rest.shape[1], bool),
        rows=sparse.csr_matrix(sparse.vstack([one, sparse.hstack([sparse.csr_matrix(mixed), rest])])),
        row_low=np.concatenate([[1.0], model.row_low[shared]]),
        row_high=np.concatenate([[1.0], model.row_high[shared]]),
    )


def host_bound(problem: Problem) -> Bound:
    """What is left without any model: each host at the least it can cost, each VM at its kindest host."""
    hosts = np.minimum(problem.empty_cost, problem.curve.min(axis=1) + problem.wake_cost).sum()
    return Bound(value=float(hosts + np.minimum(problem.kind_cost, 0.0).min(axis=1)[problem.kind].sum()), method="hosts")


def sampled(model: Relaxation, vms: int) -> tuple[Relaxation, I32]:
    """The model with every k-th VM standing for k, and the rows of `model` that its last rows are (all but those of single VMs)."""
    every = max(1, vms // SAMPLE)
    single = len(model.owner)
    kept_vms = np.arange(0, vms, every)
    chosen = np.flatnonzero(model.owner % every == 0)
    columns = np.concatenate([chosen, np.arange(single, len(model.cost))])
    shared_rows: I32 = np.arange(vms, len(model.row_low)).astype(np.int32)
    factor = np.ones(len(columns))
    factor[: len(chosen)] = vms / len(kept_vms)
    shared = model.rows[shared_rows][:, columns] @ sparse.diags_array(factor)
    own = model.rows[kept_vms][:, columns]
    return replace(
        model,
        cost=model.cost[columns] * factor, low=model.low[columns], high=model.high[columns], whole=model.whole[columns],
        rows=sparse.csr_matrix(sparse.vstack([own, shared])),
        row_low=np.concatenate([model.row_low[kept_vms], model.row_low[shared_rows]]),
        row_high=np.concatenate([model.row_high[kept_vms], model.row_high[shared_rows]]),
    ), shared_rows  # fmt: skip


def by_classes(problem: Problem) -> tuple[Problem, F64, float]:
    """(problem of one representative host a class, hosts in each class, constant money): every plan costs at least as much as there."""
    label = class_labels(problem)
    count = int(label.max()) + 1
    copies = np.bincount(label, minlength=count).astype(np.float64)
    members = [np.flatnonzero(label == k) for k in range(count)]
    capacity = np.stack([problem.capacity[of].max(axis=0) for of in members])
    # a larger capacity means a smaller share, so the curve must not fall to its right
    rising = np.minimum.accumulate(problem.curve[:, ::-1], axis=1)[:, ::-1]
    alike = [bool((problem.capacity[of] == problem.capacity[of[0]]).all()) for of in members]
    curve = np.stack([(problem.curve if same else rising)[of].min(axis=0) for of, same in zip(members, alike, strict=True)])
    home = np.where(problem.home == NOWHERE, NOWHERE, label[problem.home]).astype(np.int32)
    return replace(
        problem,
        host_ids=tuple(f"class {k}" for k in range(count)),
        home=home,
        capacity=capacity,
        curve=curve,
        empty_cost=np.zeros(count),
        wake_cost=np.array([(problem.wake_cost - problem.empty_cost)[of].min() for of in members]),
        closed=problem.closed[[of[0] for of in members]],
        kind_cost=np.stack([problem.kind_cost[:, of].min(axis=1) for of in members], axis=1),
        domain=np.arange(count, dtype=np.int32)[None],
        rules=Rules(),
        arrivals_max=None,
        departures_max=None,
    ), copies, float(problem.empty_cost.sum())  # fmt: skip


def class_labels(problem: Problem) -> I32:
    """[h] class of each host: alike hosts together; where that makes more than CLASSES, hosts of like size and price."""
    traits = np.column_stack([
        problem.closed, problem.capacity, problem.curve, problem.wake_cost - problem.empty_cost,
        np.where(np.isfinite(problem.kind_cost), problem.kind_cost, -1.0).T,
    ])  # fmt: skip
    label: I32 = np.unique(traits, axis=0, return_inverse=True)[1].ravel().astype(np.int32)
    if label.max(initial=0) < CLASSES:
        return label
    # halved again and again where the hosts of a class differ most, in logarithms of capacities and costs
    on = np.abs(problem.curve[:, CURVE_POINTS // 2] + problem.wake_cost - problem.empty_cost)
    size = np.log(np.maximum(np.column_stack([problem.capacity, on]), TINY))
    parts = [np.flatnonzero(problem.closed == shut) for shut in (False, True)]
    parts = [part for part in parts if len(part)]
    while len(parts) < CLASSES:
        spread = [np.ptp(size[part], axis=0) for part in parts]
        k = int(np.argmax([wide.max() for wide in spread]))
        part = parts.pop(k)
        at = size[part, int(np.argmax(spread[k]))]
        below = at <= 0.5 * (at.min() + at.max())
        parts += [part[below], part[~below]] if below.any() and not below.all() else np.array_split(part, 2)
    for k, part in enumerate(parts):
        label[part] = k
    return label
