"""CP-SAT's model as its parts write to it, and the parts that are not linear: margins under a root, overload shared by weight, power
curves of any shape.

See coordinator/placement/exact/cpsat.py for scales and rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from coordinator.placement.cost import host_loads
from coordinator.placement.exact.relaxation import TINY, envelope, least_weight
from coordinator.placement.problem import CURVE_POINTS, F64, I32, NOWHERE, SLACK, Problem

I64 = NDArray[np.int64]
Var: TypeAlias = cp_model.IntVar
STEP: Final = 3000  # money units; with MONEY 3e-5 of the start's cost, so a proof is within cpsat.py's GAP
MONEY: Final = 1e-8  # of the incumbent's cost: one unit of the objective
OVER: Final = 10**6  # units of o in a capacity
FINE: Final = 1000  # load units in one of o
ROOT: Final = 200_000  # units of the largest stddev of a host
RHO: Final = 10**6
MINUTE: Final = 100
WEIGHT: Final = 1e6  # units of all weights together


@dataclass
class Model:
    """The model with what leads back from its answer to a plan."""

    cp: cp_model.CpModel
    place: I32  # [v] of VMs that are not free
    free: I32  # VMs with a choice
    vm: I32  # [x]
    host: I32  # [x]
    x: list[Var]
    y: list[Var]  # [h]
    unit: float  # money of 1
    constant: float  # money
    cutoff: float  # money: answers are better than this
    terms: list[Var]
    weights: list[int]
    goal: Var  # of STEP units, rounded up

    def money(self, goal: float) -> float:
        """What an objective of `goal` steps proves: the cost is above that many steps less one."""
        return (goal - 1.0) * STEP * self.unit + self.constant

    def pay(self, variable: Var, money: float) -> None:
        """Add a term to the objective, rounded down."""
        coefficient = int(np.floor(money / self.unit * (1.0 + 1e-12)))  # a whole number of units stays one
        if coefficient:
            self.terms.append(variable)
            self.weights.append(coefficient)


class Soft(NamedTuple):
    """What passes one soft cell of a host: its variable, the most of it, and the least money of passing the whole capacity."""

    cell: int
    over: cp_model.IntVar
    most: int
    price: float


def add_overload(problem: Problem, model: Model, dearest: float) -> None:
    """Capacity rows of every host and cell that can be full, and the money of passing the soft ones; `dearest` = the most it may be."""
    base = fixed_loads(problem, model)
    least = least_weight(problem, problem.mean + problem.z * np.sqrt(problem.variance))
    passed = np.maximum(host_loads(problem, problem.home)[0] - problem.capacity * (1.0 + SLACK), 0.0) / np.maximum(problem.capacity, TINY)
    passed = np.where(problem.hard, passed, 0.0).sum(axis=1)
    for h in range(len(model.y)):
        at = np.flatnonzero(model.host == h)
        limit_hard = int(np.ceil(passed[h] * OVER))
        tight: list[cp_model.IntVar] = []
        soft: list[Soft] = []
        for c in range(problem.capacity.shape[1]):
            capacity = problem.capacity[h, c]
            if capacity <= TINY:
                close_off(problem, model, at, h, c)
                continue
            most = most_load(problem, model, at, base, h, c) / capacity - 1.0
            if most <= SLACK:
                continue
            if problem.hard[c]:
                over = model.cp.new_int_var(0, limit_hard, "") if limit_hard else None
                if over is not None:
                    tight.append(over)
                    model.pay(over, problem.broken_price / OVER)
            else:
                price = problem.minutes[c] * least[h, c] if np.isfinite(least[h, c]) else 0.0
                limit = int(np.ceil(min(most, dearest / price if price > 0.0 else most) * OVER)) + 1
                over = model.cp.new_int_var(0, limit, "")
                soft.append(Soft(c, over, limit, price))
            capacity_row(problem, model, at, base, h, c, over)
        if len(tight) > 1:
            model.cp.add(cp_model.LinearExpr.sum(tight) <= limit_hard)
        if soft:
            share_overload(problem, model, at, h, soft)


def fixed_on(problem: Problem, model: Model) -> I32:
    """VMs without a choice that have a home."""
    stay = np.setdiff1d(np.arange(len(problem.vm_ids)), model.free)
    held: I32 = stay[problem.home[stay] != NOWHERE].astype(np.int32)
    return held


def fixed_loads(problem: Problem, model: Model) -> tuple[F64, F64]:
    """(mean, variance) [h, c] of VMs without a choice; what groups add comes with the groups."""
    stay = fixed_on(problem, model)
    mean, variance = np.zeros_like(problem.capacity), np.zeros_like(problem.capacity)
    np.add.at(mean, problem.home[stay], problem.mean[stay])
    np.add.at(variance, problem.home[stay], problem.variance[stay])
    return mean, variance


def close_off(problem: Problem, model: Model, at: NDArray[np.intp], h: int, c: int) -> None:
    """A hard capacity of nothing takes nobody who needs any of it, unless it does at home."""
    if problem.hard[c]:
        for i in at.tolist():
            if problem.mean[model.vm[i], c] > 0.0 and problem.home[model.vm[i]] != h:
                model.cp.add(model.x[i] == 0)


def most_load(problem: Problem, model: Model, at: NDArray[np.intp], base: tuple[F64, F64], h: int, c: int) -> float:
    """Load of the host if everybody who may came: each with its margin by itself, which is at least what they have together."""
    of = model.vm[at]
    alone = problem.mean[of, c] + problem.z[c] * np.sqrt(problem.variance[of, c])
    here = np.flatnonzero((problem.home == h) & np.isin(np.arange(len(problem.home)), model.free, invert=True))
    return float(alone.sum() + base[0][h, c] + problem.z[c] * np.sqrt(problem.variance[here, c]).sum())


def capacity_row(
    problem: Problem, model: Model, at: NDArray[np.intp], base: tuple[F64, F64], h: int, c: int, over: cp_model.IntVar | None
) -> None:  # fmt: skip
    """mean + z root(variance) - o <= capacity."""
    capacity, parts = problem.capacity[h, c], OVER * FINE
    of = model.vm[at]
    variables = [model.x[i] for i in at.tolist()]
    sizes = np.floor(problem.mean[of, c] / capacity * parts).astype(np.int64).tolist()
    room = int(np.ceil(parts * (1.0 + SLACK))) - int(np.floor(base[0][h, c] / capacity * parts))
    if over is not None:
        variables.append(over)
        sizes.append(-FINE)
    if problem.z[c] > 0.0:
        spread = margin(problem, model, at, base[1], h, c)
        if spread is not None:
            root, step = spread
            variables.append(root)
            sizes.append(step)
            room += step  # the root is rounded up
    model.cp.add(cp_model.LinearExpr.weighted_sum(variables, sizes) <= room)


def margin(problem: Problem, model: Model, at: NDArray[np.intp], fixed: F64, h: int, c: int) -> tuple[cp_model.IntVar, int] | None:
    """(r, load units of one of it) with r * r >= variance on the host, or None where nothing varies."""
    cp, of = model.cp, model.vm[at]
    here = np.flatnonzero((problem.home == h) & np.isin(np.arange(len(problem.home)), model.free, invert=True))
    deviation = np.sqrt(problem.variance[:, c])
    largest = float(deviation[of].sum() + deviation[here].sum())
    if largest <= 0.0:
        return None
    per_step = problem.capacity[h, c] / (problem.z[c] * OVER * FINE)  # stddev that one load unit of margin stands for
    step = max(1, int(np.ceil(largest / ROOT / per_step)))
    unit = step * per_step
    highest = int(np.ceil(largest / unit)) + 1
    root = cp.new_int_var(0, highest, "")
    square = cp.new_int_var(0, highest**2, "")
    cp.add_multiplication_equality(square, [root, root])
    scaled = problem.variance[:, c] / unit**2
    own = np.ones(len(problem.vm_ids))
    squares: list[cp_model.IntVar] = []
    prices: list[int] = []
    for g in range(len(problem.rho)):
        member = problem.group == g
        inside, held = np.flatnonzero(member[of]), here[member[here]]
        if len(inside) + len(held) < 2 or problem.rho[g] <= 0.0 or not len(inside):
            if len(held) > 1:  # all fixed: their sum is known
                fixed = fixed.copy()
                fixed[h, c] += problem.rho[g] * (deviation[held].sum() ** 2 - problem.variance[held, c].sum())
            continue
        own[member] = 1.0 - problem.rho[g]
        fixed = fixed.copy()
        fixed[h, c] -= problem.rho[g] * problem.variance[held, c].sum()
        sum_high = int(np.ceil((deviation[of[inside]].sum() + deviation[held].sum()) / unit)) + 1
        total, product = cp.new_int_var(0, sum_high, ""), cp.new_int_var(0, sum_high**2, "")
        stddevs = np.floor(deviation[of[inside]] / unit).astype(np.int64)
        cp.add(
            total
            == cp_model.LinearExpr.weighted_sum([model.x[i] for i in at[inside].tolist()], stddevs.tolist())
            + int(np.floor(deviation[held].sum() / unit))
        )
        cp.add_multiplication_equality(product, [total, total])
        squares.append(product)
        prices.append(int(np.floor(problem.rho[g] * RHO)))
    grain = RHO if squares else 1
    sizes = np.floor(scaled[of] * own[of] * grain).astype(np.int64)
    left = cp_model.LinearExpr.weighted_sum([*(model.x[i] for i in at.tolist()), *squares, square], [*sizes.tolist(), *prices, -grain])
    cp.add(left <= -int(np.floor(max(fixed[h, c], 0.0) / unit**2 * grain)))
    return root, step


def share_overload(problem: Problem, model: Model, at: NDArray[np.intp], h: int, soft: list[Soft]) -> None:
    """Money = (sum of minutes x o) x (sum of weights), a product; from below also by the least weight that fills the host."""
    cp, of = model.cp, model.vm[at]
    stay = np.setdiff1d(np.flatnonzero(problem.home == h), model.free)
    total = float(problem.weight[of].sum() + problem.weight[stay].sum())
    if total <= 0.0:
        return
    per_product = OVER * MINUTE * model.unit  # objective units in one (o x minute) at weight 1
    products = max(1, int(np.ceil(per_product * WEIGHT / total)))  # (o x minute x weight) units in one objective unit
    scale = products / per_product
    weights = np.floor(problem.weight[of] * scale).astype(np.int64)
    held = int(np.floor(problem.weight[stay].sum() * scale))
    minutes = [int(np.floor(problem.minutes[c] * MINUTE)) for c, _, _, _ in soft]
    overs = [over for _, over, _, _ in soft]
    longest = sum(minute * each.most for minute, each in zip(minutes, soft, strict=True))
    heaviest = int(weights.sum()) + held
    depth, weight = cp.new_int_var(0, longest, ""), cp.new_int_var(0, heaviest, "")
    cp.add(depth >= cp_model.LinearExpr.weighted_sum(overs, minutes))
    cp.add(weight >= cp_model.LinearExpr.weighted_sum([model.x[i] for i in at.tolist()], weights.tolist()) + held)
    product = cp.new_int_var(0, longest * heaviest, "")
    cp.add_multiplication_equality(product, [depth, weight])
    money = cp.new_int_var(0, longest * heaviest // products + 1, "")
    cp.add(products * money >= product - (products - 1))
    steps = [int(np.floor(price * (1.0 - 1e-5) / (OVER * model.unit))) for _, _, _, price in soft]
    cp.add(money + len(soft) >= cp_model.LinearExpr.weighted_sum(overs, steps))
    model.terms.append(money)
    model.weights.append(1)


def add_power(problem: Problem, model: Model) -> None:
    """Money of every host: empty, or its curve at its mean CPU; a curve that is not convex by one 0-1 variable a piece."""
    cells = np.flatnonzero(problem.cpu)
    mean = fixed_loads(problem, model)[0]
    for h, y in enumerate(model.y):
        curve = problem.curve[h] if len(cells) else np.full(CURVE_POINTS, problem.curve[h, 0])
        at = np.flatnonzero(model.host == h)
        on = float(curve[0] + problem.wake_cost[h] - problem.empty_cost[h])
        rise = curve - curve[0]
        model.pay(y, on)
        units = np.floor(rise / model.unit).astype(np.int64)
        if not units.any():
            continue
        if (problem.capacity[h, cells] <= TINY).any():
            model.constant += min(0.0, float(rise.min()))
            continue
        share = (problem.mean[model.vm[at]][:, cells] / problem.capacity[h, cells]).mean(axis=1)
        base = float((mean[h, cells] / problem.capacity[h, cells]).mean())
        follow(model, at, share, base, rise, y)


def follow(model: Model, at: NDArray[np.intp], share: F64, base: float, rise: F64, y: cp_model.IntVar) -> None:
    """A variable above the curve's rise at the host's share of CPU, cut at 100 %, while y."""
    cp = model.cp
    parts = OVER
    sizes = np.floor(share * parts).astype(np.int64)
    held = int(np.floor(base * parts))
    most = int(sizes.sum()) + held
    total = cp_model.LinearExpr.weighted_sum([model.x[i] for i in at.tolist()], sizes.tolist()) + held
    used = cp.new_int_var(0, parts, "")
    if most <= parts:
        cp.add(used == total)
    else:
        above, full = cp.new_int_var(0, most, ""), cp.new_bool_var("")
        cp.add(used + above == total)
        cp.add(above == 0).only_enforce_if(~full)
        cp.add(used == parts).only_enforce_if(full)
    low, high = int(np.floor(rise.min() / model.unit)), int(np.ceil(rise.max() / model.unit))
    money = cp.new_int_var(min(low, 0), max(high, 0), "")
    cp.add(money == 0).only_enforce_if(~y)
    slopes = np.diff(rise) * (CURVE_POINTS - 1)
    offset, slope = envelope(rise)
    rounding = abs(slopes).max() * len(share) / parts / model.unit + 1.0  # floors of shares, on a curve that may fall

    def above_line(offset: float, slope: float) -> cp_model.BoundedLinearExpression:
        # money >= offset + slope x used / parts, in 1 / parts of a unit
        return parts * money >= int(np.floor(slope / model.unit)) * used + int(np.floor((offset / model.unit - rounding) * parts))

    for a, b in zip(offset.tolist(), slope.tolist(), strict=True):
        cp.add(above_line(a, b)).only_enforce_if(y)
    convex = np.abs((offset[:, None] + slope[:, None] * np.arange(CURVE_POINTS) / (CURVE_POINTS - 1)).max(axis=0) - rise).max()
    if convex > 1000 * model.unit:  # below a hundred-thousandth of the cost the envelope will do
        pieces = [cp.new_bool_var("") for _ in range(CURVE_POINTS - 1)]
        cp.add(cp_model.LinearExpr.sum(pieces) == y)
        for k, piece in enumerate(pieces):
            low_end, high_end = k * parts // (CURVE_POINTS - 1), (k + 1) * parts // (CURVE_POINTS - 1)
            cp.add_linear_constraint(used, low_end, high_end).only_enforce_if(piece)
            cp.add(above_line(float(rise[k] - slopes[k] * k / (CURVE_POINTS - 1)), float(slopes[k]))).only_enforce_if(piece)
    model.terms.append(money)
    model.weights.append(1)
