"""A placement problem as a mixed-integer linear model in arrays: below the true cost of every plan, exact in what is linear.

Variables: x (VM on host, for movable VMs and hosts that they may use), u (left nowhere), y (host has VMs), s and e (share of the host's
CPU, cut at 100 %, and what is above), p (money of a host with VMs), o (share of a cell's capacity that is passed), t (VMs too
many for an APART rule in a domain). Each part of cost.py is met exactly or from below, so the least value of the model, with x
fractional or whole, is a lower bound of the cost of every plan:

hosts      p is above every tangent of the lower convex envelope of the curve on [0, 1]; what passes 100 % costs nothing more,
           as in cost.py, but is paid for as overload: e <= SLACK + mean of o over the CPU cells, each at least its own share - 1.
overload   load >= mean + z * chord of the root from 0 to a variance V (the root is concave; what groups add is left out, it is never
           negative). Money = o x minutes x sum of weights on the host; that sum is at least the least weight of VMs that can fill the host
           at all (fractional knapsack over their loads alone: loads are subadditive, because a root of summed variances is at most the
           sum of the roots, also within groups, as rho <= 1).
           V is the variance at which VMs of the greatest ratio K of variance to mean fill the host: m + b = 1 with m = V / K and
           b = z root(V), in shares of the capacity. Beyond V the chord passes the root: at variance V t^2, t > 1, the mean is at least
           m t^2, and the chord's overload over the true one is at most 1 + b t (t - 1) / (m t^2 + b t - 1) <= 1 + b / m. So o is priced
           at 1 / (1 + b / m) of its price, and stays below the truth. Where all VMs together have less variance than V, V is that and
           the price is whole.
broken     hard cells as they are (load and price from below as above); APART rules exactly; TOGETHER and LICENSED are left out (>= 0).
moves, kinds, unplaced   exactly. A cost of infinity counts as `broken_price`.

`copies` hosts can stand behind one: all rows are sums over them, so the model stays below.

What every plan keeps is asked of the model too: caps on moves of VMs that have a home; hard capacities passed no more, in sum, than
at home; VMs that have a home are not left nowhere; no VM comes to a closed host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from coordinator.placement.cost import host_loads
from coordinator.placement.problem import CURVE_POINTS, F64, I32, NOWHERE, SLACK, Bool, Problem, RuleKind, allowed_hosts

Index = NDArray[np.integer[Any]]
ONE: Final = np.ones(1)
FREE: Final = np.full(1, np.inf)
TINY: Final = 1e-9  # capacity below which a cell is nothing: its loads are priced, not divided by it


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """min cost @ value + constant with row_low <= rows @ value <= row_high and low <= value <= high; `whole` columns are 0 or 1."""

    cost: F64
    low: F64
    high: F64
    whole: Bool
    rows: sparse.csr_matrix
    row_low: F64
    row_high: F64
    constant: float
    vm: I32  # [x] VM of each x column; these are columns 0 .. len(vm) - 1
    host: I32  # [x]
    owner: I32  # [x + u] VM of each x and u column
    used: I32  # [h] columns of y
    used_row: int  # row of sum(y), free as built


@dataclass
class _Rows:
    """Rows gathered as coordinate arrays."""

    row: list[Index]
    column: list[Index]
    value: list[F64]
    low: list[F64]
    high: list[F64]
    count: int = 0

    def add(self, row: Index, column: Index, value: F64, low: F64, high: F64) -> None:
        """`row` counts from 0 within this call; low and high [rows of this call]."""
        self.row.append(row + self.count)
        self.column.append(column)
        self.value.append(np.broadcast_to(value, np.shape(column)).astype(np.float64))
        self.low.append(low)
        self.high.append(high)
        self.count += len(low)


def least_weight(problem: Problem, alone: F64) -> F64:
    """[h, c] least summed weight of VMs whose loads alone [v, c] can pass the host's capacity; inf where all together cannot."""
    found = np.full(problem.capacity.shape, np.inf)
    for c in np.flatnonzero(~problem.hard):
        users = np.flatnonzero(alone[:, c] > 0.0)
        if not len(users):
            continue
        order = users[np.argsort(problem.weight[users] / alone[users, c], kind="stable")]
        load = np.concatenate([[0.0], np.cumsum(alone[order, c])])
        weight = np.concatenate([[0.0], np.cumsum(problem.weight[order])])
        limit = problem.capacity[:, c]
        found[:, c] = np.where(limit <= load[-1], np.interp(limit, load, weight), np.inf)
    return found


def envelope(curve: F64) -> tuple[F64, F64]:
    """(offset, slope) of the tangents of the lower convex envelope of one host's curve [p] over shares 0 .. 1."""
    at = np.arange(CURVE_POINTS) / (CURVE_POINTS - 1)
    kept = [0]
    for i in range(1, CURVE_POINTS):
        while len(kept) > 1 and (curve[kept[-1]] - curve[kept[-2]]) * (at[i] - at[kept[-1]]) >= (curve[i] - curve[kept[-1]]) * (
            at[kept[-1]] - at[kept[-2]]
        ):
            kept.pop()
        kept.append(i)
    slope = np.diff(curve[kept]) / np.diff(at[kept])
    offset: F64 = curve[kept[:-1]] - slope * at[kept[:-1]]
    return offset, slope


def relax(problem: Problem, *, copies: F64 | None = None, broken: float | None = None) -> Relaxation:
    """The model of a problem; its size is about VMs x hosts x cells.

    `copies` [h]: hosts behind each host (default 1). `broken`: hard capacity passed at home, in sum (default: worked out here).
    """
    h_count, c_count = problem.capacity.shape
    vm, host = (axis.astype(np.int32) for axis in np.nonzero(allowed_hosts(problem)))
    homeless = np.flatnonzero(problem.home == NOWHERE).astype(np.int32)
    x, u = len(vm), len(homeless)
    y0, s0, e0, p0, o0 = (x + u + i * h_count for i in range(5))
    t0 = o0 + h_count * c_count
    hosts = np.arange(h_count, dtype=np.int32)
    rows = _Rows([], [], [], [], [])
    every = np.ones(len(problem.vm_ids))
    rows.add(np.concatenate([vm, homeless]), np.arange(x + u), ONE, every, every)  # every VM somewhere
    used_row = use_rows(rows, host, y0, h_count, x)
    if copies is None:  # who stays at home keeps the whole host in use
        stays = np.flatnonzero(problem.home[vm] == host)
        k = np.arange(len(stays))
        rows.add(
            np.tile(k, 2),
            np.concatenate([stays, y0 + host[stays]]),
            np.repeat([1.0, -1.0], len(k)),
            np.full(len(k), -np.inf),
            np.zeros(len(k)),
        )
    chord, price, most = over_prices(problem)
    capacity_rows(problem, rows, vm, host, (y0, o0), chord)
    power_rows(problem, rows, vm, host, (y0, s0, e0, p0, o0))
    tail = apart_rows(problem, rows, vm, host, t0)
    cap_rows(problem, rows, vm, host)
    hard = np.flatnonzero(np.broadcast_to(problem.hard, price.shape).ravel())
    if len(hard):  # in shares of a capacity, as `broken` is: price / broken_price undoes what the chord was priced down by
        limit = hard_passed(problem) if broken is None else broken
        share = price.ravel()[hard] / max(problem.broken_price, TINY)
        rows.add(np.zeros(len(hard), np.int32), o0 + hard, share, -FREE, np.array([limit + SLACK * len(hard)]))
    kinds = problem.kind_cost[problem.kind[vm], host]
    away = np.where(problem.home[vm] != host, problem.move_cost[vm], 0.0)
    left = np.where(problem.closed[host], problem.unplaced_cost[vm], 0.0)
    cost = np.concatenate([
        np.where(np.isfinite(kinds), kinds, problem.broken_price) + away + left, problem.unplaced_cost[homeless],
        problem.wake_cost - problem.empty_cost, np.zeros(2 * h_count), np.ones(h_count), price.ravel(), np.full(tail, problem.broken_price),
    ])  # fmt: skip
    low, high = np.zeros(len(cost)), np.full(len(cost), np.inf)
    high[: x + u] = 1.0
    high[y0:s0] = 1.0 if copies is None else copies
    high[o0:t0] = most.ravel()
    low[p0:o0] = -np.inf
    whole = np.arange(len(cost)) < s0
    matrix = sparse.csr_matrix(
        (np.concatenate(rows.value), (np.concatenate(rows.row), np.concatenate(rows.column))), shape=(rows.count, len(cost))
    )
    return Relaxation(
        cost=cost, low=low, high=high, whole=whole, rows=matrix, row_low=np.concatenate(rows.low), row_high=np.concatenate(rows.high),
        constant=float(problem.empty_cost @ (np.ones(h_count) if copies is None else copies)), vm=vm, host=host,
        owner=np.concatenate([vm, homeless]),
        used=(y0 + hosts).astype(np.int32), used_row=used_row,
    )  # fmt: skip


def hard_passed(problem: Problem) -> float:
    """Hard capacity that is passed at home, in shares, summed over hosts and cells."""
    load, _ = host_loads(problem, problem.home)
    passed = np.maximum(load - problem.capacity * (1.0 + SLACK), 0.0) / np.maximum(problem.capacity, 1e-12)
    return float(passed[:, problem.hard].sum())


def over_prices(problem: Problem) -> tuple[F64, F64, F64]:
    """[h, c] each: chord (stddevs' share of the load per variance), money of o = 1 from below, the most that o can be (0 or inf)."""
    least = least_weight(problem, problem.mean + problem.z * np.sqrt(problem.variance))
    price = np.where(problem.hard, problem.broken_price, problem.minutes * np.where(np.isfinite(least), least, 0.0))
    reachable = problem.hard | np.isfinite(least)
    ratio = np.divide(problem.variance, problem.mean, out=np.where(problem.variance > 0.0, np.inf, 0.0), where=problem.mean > 0.0)
    k = ratio.max(axis=0, initial=0.0)
    total = problem.variance.sum(axis=0)
    k_sized = np.where(np.isfinite(k), np.maximum(k, 1e-30), 1.0)
    # m + b = capacity: root of r^2 / k + z r = capacity
    root = 0.5 * k_sized * (np.sqrt(problem.z**2 + 4.0 * problem.capacity * (1.0 + SLACK) / k_sized) - problem.z)
    short = np.isfinite(k) & (root**2 < total) & (root > 0.0)
    down = np.where(short, 1.0 + problem.z * k_sized / np.maximum(root, 1e-300), 1.0)  # b / m = z k / root
    span = np.where(short, root, np.sqrt(total))
    chord: F64 = np.divide(np.broadcast_to(problem.z, span.shape), span, out=np.zeros_like(span), where=span > 0.0)
    return chord, price / down, np.where(reachable, np.inf, 0.0)


def use_rows(rows: _Rows, host: I32, y0: int, h_count: int, x: int) -> int:
    """A host is used when it has VMs and only then; the row of the number of hosts used is free, and its index the answer."""
    hosts = np.arange(h_count)
    sizes = np.bincount(host, minlength=h_count).astype(np.float64)
    at, columns = np.concatenate([host, hosts]), np.concatenate([np.arange(x), y0 + hosts])
    zero, free = np.zeros(h_count), np.full(h_count, np.inf)
    rows.add(at, columns, np.concatenate([np.ones(x), -sizes]), -free, zero)
    rows.add(at, columns, np.concatenate([np.ones(x), -np.ones(h_count)]), zero, free)
    rows.add(np.zeros(h_count, np.int32), y0 + hosts, ONE, -FREE, FREE)
    return rows.count - 1


def capacity_rows(problem: Problem, rows: _Rows, vm: I32, host: I32, at: tuple[int, int], chord: F64) -> None:
    """mean + chord x variance <= capacity x (1 + SLACK) x y + capacity x o, in shares of the capacity."""
    y0, o0 = at
    h_count, c_count = problem.capacity.shape
    capacity = np.maximum(problem.capacity, TINY)
    cell = (host[:, None] * c_count + np.arange(c_count)).ravel()
    share = (problem.mean[vm] + chord[host] * problem.variance[vm]) / capacity[host]
    share = np.where(problem.capacity[host] > TINY, share, 0.0).ravel()
    kept = np.flatnonzero(share > 0.0)
    cells = np.arange(h_count * c_count)
    rows.add(
        np.concatenate([cell[kept], cells, cells]),
        np.concatenate([np.repeat(np.arange(len(vm)), c_count)[kept], y0 + cells // c_count, o0 + cells]),
        np.concatenate([share[kept], np.full(len(cells), -1.0 - SLACK), np.full(len(cells), -1.0)]),
        np.full(len(cells), -np.inf), np.zeros(len(cells)),
    )  # fmt: skip


def power_rows(problem: Problem, rows: _Rows, vm: I32, host: I32, at: tuple[int, int, int, int, int]) -> None:
    """share = s + e, s <= y, e <= SLACK y + mean of o over the CPU cells, p >= every tangent of the curve's envelope."""
    y0, s0, e0, p0, o0 = at
    h_count, c_count = problem.capacity.shape
    hosts = np.arange(h_count)
    cells = np.flatnonzero(problem.cpu)
    share = np.zeros(len(vm))
    if len(cells):
        share = (problem.mean[vm][:, cells] / np.maximum(problem.capacity[host][:, cells], 1e-12)).mean(axis=1)
    sized: Bool = np.asarray((problem.capacity[:, cells] > TINY).all(axis=1))
    share[~sized[host]] = 0.0
    zero, minus = np.zeros(h_count), np.full(h_count, -np.inf)
    rows.add(
        np.concatenate([host, hosts, hosts]), np.concatenate([np.arange(len(vm)), s0 + hosts, e0 + hosts]),
        np.concatenate([share, np.full(2 * h_count, -1.0)]), np.where(sized, 0.0, -np.inf), np.where(sized, 0.0, np.inf),
    )  # fmt: skip
    rows.add(np.tile(hosts, 2), np.concatenate([s0 + hosts, y0 + hosts]), np.repeat([1.0, -1.0], h_count), minus, zero)
    overs = (o0 + hosts[:, None] * c_count + cells).ravel()
    rows.add(
        np.concatenate([hosts, hosts, np.repeat(hosts, len(cells))]), np.concatenate([e0 + hosts, y0 + hosts, overs]),
        np.concatenate([np.ones(h_count), np.full(h_count, -SLACK), np.full(len(overs), -1.0 / max(1, len(cells)))]),
        minus, np.where(sized, 0.0, np.inf),
    )  # fmt: skip
    tangents = [envelope(curve) for curve in problem.curve]
    of = np.concatenate([np.full(len(slope), h) for h, (_, slope) in enumerate(tangents)])
    offset, slope = (np.concatenate([pair[i] for pair in tangents]) for i in (0, 1))
    if not len(cells):
        slope = np.zeros_like(slope)
        offset = problem.curve[of, 0]
    k = np.arange(len(of))
    rows.add(
        np.tile(k, 3), np.concatenate([p0 + of, y0 + of, s0 + of]), np.concatenate([np.ones(len(of)), -offset, -slope]),
        np.zeros(len(of)), np.full(len(of), np.inf),
    )  # fmt: skip


def apart_rows(problem: Problem, rows: _Rows, vm: I32, host: I32, t0: int) -> int:
    """Members in a domain - t <= limit - members outside; says how many columns t there are."""
    rules = problem.rules
    tail = 0
    column = np.arange(len(vm))
    for r in np.flatnonzero(rules.kind == RuleKind.APART):
        member = np.zeros(len(problem.vm_ids), bool)
        member[rules.members[rules.start[r] : rules.start[r + 1]]] = True
        level = problem.domain[rules.level[r]]
        size = max(int(level.max()) + 1, rules.outside.shape[1])
        outside = np.zeros(size)
        if rules.outside.size:
            outside[: rules.outside.shape[1]] = rules.outside[r]
        of = np.flatnonzero(member[vm])
        rows.add(
            np.concatenate([level[host[of]], np.arange(size)]), np.concatenate([column[of], t0 + tail + np.arange(size)]),
            np.concatenate([np.ones(len(of)), np.full(size, -1.0)]), np.full(size, -np.inf), rules.limit[r] - outside,
        )  # fmt: skip
        tail += size
    return tail


def cap_rows(problem: Problem, rows: _Rows, vm: I32, host: I32) -> None:
    """At most so many moves to each host, from each host, in all; first placements of VMs without a home are not moves here."""
    moving = np.flatnonzero((problem.home[vm] != host) & (problem.home[vm] != NOWHERE)).astype(np.int32)
    h_count = len(problem.host_ids)
    for at, most in ((host, problem.arrivals_max), (problem.home[vm], problem.departures_max)):
        if most is not None:
            rows.add(at[moving], moving, np.ones(1), np.full(h_count, -np.inf), most.astype(np.float64))
    if problem.moves_max is not None:
        rows.add(np.zeros(len(moving), np.int32), moving, np.ones(1), np.full(1, -np.inf), np.full(1, float(problem.moves_max)))
