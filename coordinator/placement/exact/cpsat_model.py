"""CP-SAT's model of a placement problem, built from arrays: what coordinator/placement/exact/cpsat.py solves.

Invariant: with every coefficient rounded down, the model's value at any plan is at most that plan's cost (in money: value x unit +
constant), and every plan that breaks nothing more than home is in it (up to relabelling of hosts that are alike and empty).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from coordinator.placement.cost import broken_rules
from coordinator.placement.exact.bounds import host_bound
from coordinator.placement.exact.cpsat_parts import MONEY, OVER, STEP, Model, Var, add_overload, add_power, fixed_on
from coordinator.placement.problem import I32, NOWHERE, Problem, RuleKind, allowed_hosts

I64 = NDArray[np.int64]


def weighted(variables: list[Var], at: NDArray[np.intp] | I32, coefficients: I64) -> cp_model.LinearExprT:
    """Sum of coefficients x variables[at], in one call."""
    return cp_model.LinearExpr.weighted_sum([variables[i] for i in at.tolist()], coefficients.tolist())


def build(problem: Problem, start: I32, cost: float, gap: float) -> Model:
    """The model of plans that cost less than `start` (which costs `cost`) by more than `gap` of it."""
    allowed = allowed_hosts(problem)
    free = np.flatnonzero((allowed.sum(axis=1) > 1) | (allowed.any(axis=1) & (problem.home == NOWHERE))).astype(np.int32)
    allowed[np.setdiff1d(np.arange(len(allowed)), free)] = False
    alike = alike_and_empty(problem)
    size = (problem.mean[free] / np.maximum(problem.mean.sum(axis=0), 1e-300)).max(axis=1)
    largest = free[np.argsort(-size, kind="stable")]
    for chain in alike:
        for i, v in enumerate(largest[: len(chain)]):
            allowed[v, chain[i + 1 :]] = False
    vm, host = (axis.astype(np.int32) for axis in np.nonzero(allowed))
    cp = cp_model.CpModel()
    unit = max(abs(cost), 1e-6) * MONEY
    step = problem.broken_price / OVER  # a hard capacity passed by one part: whole units, or their rounding would be what is not proven
    if step > 1e-3 * unit:
        unit = step / np.ceil(step / unit)
    model = Model(
        cp=cp, place=problem.home.astype(np.int32), free=free, vm=vm, host=host,
        x=[cp.new_bool_var("") for _ in range(len(vm))], y=[cp.new_bool_var("") for _ in problem.host_ids], unit=unit,
        constant=float(problem.empty_cost.sum()), cutoff=cost - gap * abs(cost), terms=[], weights=[],
        goal=cp.new_int_var(-(2**40), 2**40, ""),
    )  # fmt: skip
    add_places(problem, model)
    add_use(problem, model, alike)
    add_caps(problem, model)
    add_overload(problem, model, max(cost - host_bound(problem).value, 0.0))
    add_power(problem, model)
    add_rules(problem, model)
    objective = cp_model.LinearExpr.weighted_sum(model.terms, model.weights)
    most = int(np.ceil((model.cutoff - model.constant) / unit))
    # minimised in coarse steps: else thousands of answers follow one another that differ by a rounding
    cp.add(objective <= most)
    cp.add(STEP * model.goal >= objective)
    cp.minimize(model.goal)
    hint(model, start, alike, largest)
    return model


def alike_and_empty(problem: Problem) -> list[I32]:
    """Chains of hosts, ascending, that can be exchanged in any plan: same traits, nobody at home there, the same rules' outsiders."""
    hosts = len(problem.host_ids)
    traits = [
        problem.capacity, problem.curve, problem.empty_cost[:, None], problem.wake_cost[:, None], problem.closed[:, None],
        np.where(np.isfinite(problem.kind_cost), problem.kind_cost, -1.0).T, problem.domain[1:].T,
    ]  # fmt: skip
    if problem.arrivals_max is not None:
        traits.append(problem.arrivals_max[:, None])
    if problem.rules.outside.size:
        at = problem.domain[0]
        known = np.pad(problem.rules.outside, ((0, 0), (0, max(0, int(at.max()) + 1 - problem.rules.outside.shape[1]))))
        own = problem.rules.level == 0
        traits.append(known[own][:, at].T)
    _, label = np.unique(np.column_stack([trait.astype(np.float64) for trait in traits]), axis=0, return_inverse=True)
    empty = np.ones(hosts, bool)
    empty[problem.home[problem.home != NOWHERE]] = False
    # hosts that share a domain 0 with another are tied to it
    lone = np.bincount(problem.domain[0], minlength=1)[problem.domain[0]] == 1
    of = [np.flatnonzero((label.ravel() == k) & empty & lone & ~problem.closed).astype(np.int32) for k in range(int(label.max()) + 1)]
    return [chain for chain in of if len(chain) > 1]


def add_places(problem: Problem, model: Model) -> None:
    """Every free VM on one host, or nowhere where it has no home, at its cost of kind, move and closed host."""
    cp = model.cp
    starts = np.searchsorted(model.vm, model.free)
    ends = np.searchsorted(model.vm, model.free, side="right")
    kinds = problem.kind_cost[problem.kind[model.vm], model.host]
    money = np.where(np.isfinite(kinds), kinds, problem.broken_price)
    money = money + np.where(problem.home[model.vm] != model.host, problem.move_cost[model.vm], 0.0)
    money = money + np.where(problem.closed[model.host], problem.unplaced_cost[model.vm], 0.0)
    for v, a, b in zip(model.free.tolist(), starts.tolist(), ends.tolist(), strict=True):
        choice = model.x[a:b]
        if problem.home[v] == NOWHERE:
            nowhere = cp.new_bool_var("")
            model.pay(nowhere, float(problem.unplaced_cost[v]))
            choice = [*choice, nowhere]
        cp.add_exactly_one(choice)
    units = np.floor(money / model.unit).astype(np.int64)
    paid = np.flatnonzero(units)
    model.terms.extend(model.x[i] for i in paid.tolist())
    model.weights.extend(units[paid].tolist())
    stay = np.setdiff1d(np.arange(len(problem.vm_ids)), model.free)
    placed = stay[problem.home[stay] != NOWHERE]
    fixed_kinds = problem.kind_cost[problem.kind[placed], problem.home[placed]]
    model.constant += float(np.where(np.isfinite(fixed_kinds), fixed_kinds, problem.broken_price).sum())
    model.constant += float(problem.unplaced_cost[placed[problem.closed[problem.home[placed]]]].sum())
    model.constant += float(problem.unplaced_cost[stay[problem.home[stay] == NOWHERE]].sum())


def add_use(problem: Problem, model: Model, alike: list[I32]) -> None:
    """y = the host has VMs. What it costs then is coordinator/placement/exact/cpsat_parts.py's."""
    cp = model.cp
    held = np.zeros(len(model.y), bool)
    held[problem.home[fixed_on(problem, model)]] = True
    for h, y in enumerate(model.y):
        here = [model.x[i] for i in np.flatnonzero(model.host == h).tolist()]
        if held[h]:
            cp.add(y == 1)
            continue
        cp.add_bool_or([*here, ~y])
        for x in here:
            cp.add_implication(x, y)
    for chain in alike:
        for a, b in zip(chain[:-1].tolist(), chain[1:].tolist(), strict=True):
            cp.add_implication(model.y[b], model.y[a])


def add_caps(problem: Problem, model: Model) -> None:
    """At most so many moves to, from and in all."""
    home = problem.home[model.vm]
    moving = np.flatnonzero(home != model.host)
    caps: list[tuple[NDArray[np.intp], int]] = []
    for at, most in ((model.host, problem.arrivals_max), (home, problem.departures_max)):
        if most is not None:
            caps += [(moving[at[moving] == h], int(most[h])) for h in range(len(model.y))]
    if problem.moves_max is not None:
        caps.append((moving, problem.moves_max))
    for of, limit in caps:
        if len(of) > limit:
            model.cp.add(cp_model.LinearExpr.sum([model.x[i] for i in of.tolist()]) <= limit)


def add_rules(problem: Problem, model: Model) -> None:
    """How far each rule is from being kept, at most as far as at home, at its price."""
    rules, cp = problem.rules, model.cp
    now = broken_rules(problem, problem.home)
    stay = fixed_on(problem, model)
    for r in range(len(rules)):
        members = rules.members[rules.start[r] : rules.start[r + 1]]
        level = problem.domain[rules.level[r]]
        known = np.zeros(max(int(level.max()) + 1, rules.outside.shape[1]), np.int64)
        if rules.outside.size:
            known[: rules.outside.shape[1]] = rules.outside[r]
        np.add.at(known, level[problem.home[np.intersect1d(members, stay)]], 1)
        of = np.flatnonzero(np.isin(model.vm, members))
        there = [of[level[model.host[of]] == d] for d in range(len(known))]
        broken = cp.new_int_var(0, int(now[r]), "")
        if now[r]:
            model.pay(broken, problem.broken_price)
        counts = [cp_model.LinearExpr.sum([model.x[i] for i in at.tolist()]) + int(known[d]) for d, at in enumerate(there)]
        kind = RuleKind(int(rules.kind[r]))
        if kind is RuleKind.APART:
            excess = []
            for d, at in enumerate(there):
                if len(at) + known[d] > rules.limit[r]:
                    excess.append(cp.new_int_var(0, int(len(at) + known[d]), ""))
                    cp.add(excess[-1] >= counts[d] - int(rules.limit[r]))
            cp.add(cp_model.LinearExpr.sum(excess) <= broken)
        elif kind is RuleKind.TOGETHER:
            main = [cp.new_bool_var("") for _ in there]
            cp.add_exactly_one(main)
            for d, chosen in enumerate(main):
                others = cp_model.LinearExpr.sum([model.x[i] for i in np.setdiff1d(of, there[d]).tolist()])
                cp.add(others + int(known.sum() - known[d]) <= broken).only_enforce_if(chosen)
        else:
            used = [cp.new_bool_var("") for _ in there]
            for d, at in enumerate(there):
                if known[d]:
                    cp.add(used[d] == 1)
                for i in at.tolist():
                    cp.add_implication(model.x[i], used[d])
            cp.add(cp_model.LinearExpr.sum(used) - int(rules.limit[r]) <= broken)


def hint(model: Model, start: I32, alike: list[I32], largest: I32) -> None:
    """The start as hint, its hosts relabelled within each chain so that it keeps the order asked for."""
    place = start.copy()
    for chain in alike:
        first = {int(h): int(np.flatnonzero(start[largest] == h)[0]) for h in chain if (start == h).any()}
        ordered = sorted(first, key=lambda h: first[h])
        for new, old in zip(chain.tolist(), ordered, strict=False):
            place[start == old] = new
    for x, v, h in zip(model.x, model.vm.tolist(), model.host.tolist(), strict=True):
        model.cp.add_hint(x, int(place[v] == h))
    for h, y in enumerate(model.y):
        model.cp.add_hint(y, int((place == h).any()))
