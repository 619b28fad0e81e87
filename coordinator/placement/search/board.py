"""The placement problem as the search holds it: fixed-point sizes, one row a host and a VM, and the sums that a move changes.

Loads are whole multiples of a quantum per cell (2^-26 of the largest capacity), so that adding and taking away millions of times leaves
exactly what is there, a host that is full to the last byte fits, and one AVX register holds sixteen cells. Variances are float32 and
rebuilt now and then. VMs without a host stand on a last, unlimited row; an empty VM is the last row, so that a relocation is a swap with
nothing. Rows of cells are padded to sixteens with cells of no size.

Invariant: State is what `rebuild` makes of its place, but for float32 noise in variances and shares.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.placement.problem import F64, I32, NOWHERE, SLACK, Bool, Problem

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

LANES: Final = 16  # int32 cells in the widest register
QUANTA: Final = 2.0**26  # of the largest capacity: 31 bits leave room for loads 32 times of it
LARGEST: Final = 2.0**28  # quanta of one VM: four times the largest capacity is as good as any larger size
FORBIDDEN: Final = 1e12  # money of a kind on a host that it may not use, where the incumbent has it there
UNLIMITED: Final = 1 << 40

# Arrays read out of a tuple count references each time, atomically: 1 us a swap. Kernels that allocate nothing go without.
FAST: Final = {"cache": True, "nogil": True, "_nrt": False, "fastmath": {"reassoc", "nsz", "contract"}}
KERNEL: Final = FAST | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # called by kernels only
LEAF: Final = KERNEL | {"forceinline": True}
OPEN_LEAF: Final = FAST | {"forceinline": True}


class Board(NamedTuple):
    """What a search never changes. v + 1 and h + 1 rows: the last are nothing and nowhere."""

    size: F32  # [v + 1] largest share of a typical host
    mean: I32  # [v + 1, c] quanta
    variance: F32  # [v + 1, c] quanta squared
    spread: F32  # [v + 1, c] quanta
    weight: F64  # [v + 1]
    home: I32  # [v + 1] nowhere = h
    movable: I32
    free: Bool  # [v + 1] may move
    kind: I32  # [v + 1]
    group: I32  # [v + 1]
    rho: F64
    unplaced: F64  # [v + 1]
    capacity: I32  # [h + 1, c] quanta, with half of SLACK
    z: F32  # [c]
    cpu_share: F32  # [h + 1, c] share of the host's CPU over the hour that a quantum is
    curve: F64  # [h + 1, p]
    empty: F64  # [h + 1]
    wake: F64  # [h + 1]
    closed: Bool  # [h + 1] nowhere too
    kind_cost: F64  # [k, h + 1]
    domain: I32  # [level, h + 1] nowhere = -1
    rule_kind: I32
    rule_limit: I32
    rule_level: I32
    ruled_start: I32  # [v + 2] rules of VM v: ruled[ruled_start[v] : ruled_start[v + 1]]
    ruled: I32
    outside: I32  # [r, d]
    arrivals_max: I64  # [h + 1]
    departures_max: I64  # [h + 1]
    moves_max: int
    has_z: bool
    has_groups: bool
    has_caps: bool


class Prices(NamedTuple):
    """What the search pays for. `true_prices` are those of cost.py; a squeeze has its own."""

    soft: F32  # [h + 1, c] money per quantum over and unit of weight on the host
    hard: F32  # [h + 1, c] money per quantum over
    content: F64  # [h + 1] money per unit of size on a host that is to be emptied
    move: F64  # [v + 1]
    rule: float
    power: bool  # hosts cost what their curve says
    strict: bool  # no host may pass a hard cell more than it does


class State(NamedTuple):
    """An assignment and its sums; changed in place."""

    place: I32  # [v + 1] nowhere = h
    load: I32  # [h + 1, c]
    variance: F32  # [h + 1, c] with what groups add
    weight: F64  # [h + 1]
    soft: F64  # [h + 1] sum of prices.soft times what is over
    hard: F64  # [h + 1]
    share: F64  # [h + 1] mean CPU over the hour
    vms: I32  # [h + 1] how many are there
    member: I32  # [h, room]
    slot: I32  # [v + 1] where in `member`
    in_domain: I32  # [r, d]
    domains_used: I32  # [r]
    arrivals: I64  # [h + 1]
    departures: I64  # [h + 1]
    moved: I64  # [1]
    hot: I32  # [h] hosts that pass a capacity or are to be emptied, in no order
    hot_at: I32  # [h + 1] where in `hot`, -1 = cold
    hots: I64  # [1]
    extra: F32  # [2, c] scratch: what groups add to each side of a swap
    energy: F64  # [1] money since the state was opened
    random: U64  # [2]


def open_board(problem: Problem) -> Board:
    """The problem in fixed point. Every array is a C-ordered copy: kernels are compiled for no other layout."""
    v, h, c = len(problem.vm_ids), len(problem.host_ids), len(problem.hard)
    wide = max(LANES, -(-c // LANES) * LANES)
    quantum = quanta(problem)
    mean = np.zeros((v + 1, wide), np.int32)
    mean[:v, :c] = np.minimum(np.rint(problem.mean / quantum), LARGEST)
    variance = np.zeros((v + 1, wide), np.float32)
    used_z = problem.z > 0
    variance[:v, :c] = np.where(used_z, problem.variance / quantum**2, 0.0)
    capacity = np.full((h + 1, wide), 1 << 30, np.int32)
    capacity[:h, :c] = np.floor(problem.capacity * (1.0 + SLACK / 2) / quantum)
    share = np.zeros((h + 1, wide), np.float32)
    share[:h, :c] = np.where(problem.cpu, quantum / np.maximum(problem.capacity, 1e-12), 0.0) / max(1, int(problem.cpu.sum()))
    typical = np.maximum(np.median(problem.capacity, axis=0), 1e-12) if h else np.ones(c)
    size = np.zeros(v + 1, np.float32)
    if c:
        size[:v] = np.minimum((problem.mean / typical).max(axis=1, initial=0.0), 4.0)
    ruled_start, ruled = rules_by_vm(problem)
    kind_cost = np.concatenate([problem.kind_cost, np.zeros((len(problem.kind_cost), 1))], axis=1)
    caps = [problem.arrivals_max, problem.departures_max, problem.moves_max]
    return Board(
        size=size,
        mean=mean,
        variance=variance,
        spread=np.sqrt(variance),
        weight=np.append(problem.weight, 0.0),
        home=np.append(np.where(problem.home == NOWHERE, h, problem.home), h).astype(np.int32),
        movable=problem.movable,
        free=np.append(~problem.fixed, False),
        kind=np.append(problem.kind, 0).astype(np.int32),
        group=np.append(np.where(used_z.any(), problem.group, -1), -1).astype(np.int32),
        rho=problem.rho.astype(np.float64),
        unplaced=np.append(problem.unplaced_cost, 0.0),
        capacity=capacity,
        z=np.append(problem.z, np.zeros(wide - c)).astype(np.float32),
        cpu_share=share,
        curve=np.ascontiguousarray(np.concatenate([problem.curve, np.zeros((1, problem.curve.shape[1]))])),
        empty=np.append(problem.empty_cost, 0.0),
        wake=np.append(problem.wake_cost, 0.0),
        closed=np.append(problem.closed, True),
        kind_cost=np.ascontiguousarray(np.minimum(kind_cost, FORBIDDEN)),
        domain=np.ascontiguousarray(np.concatenate([problem.domain, np.full((len(problem.domain), 1), -1)], axis=1), np.int32),
        rule_kind=problem.rules.kind.astype(np.int32),
        rule_limit=problem.rules.limit.astype(np.int32),
        rule_level=problem.rules.level.astype(np.int32),
        ruled_start=ruled_start,
        ruled=ruled,
        outside=outside_counts(problem),
        arrivals_max=limits(problem.arrivals_max, h),
        departures_max=limits(problem.departures_max, h),
        moves_max=UNLIMITED if problem.moves_max is None else int(problem.moves_max),
        has_z=bool(used_z.any() and variance.any()),
        has_groups=bool(used_z.any() and (problem.group >= 0).any()),
        has_caps=any(cap is not None for cap in caps),
    )


def quanta(problem: Problem) -> F64:
    """The unit of each cell, [c]: no incumbent passes half of what an int32 holds."""
    top = problem.capacity.max(axis=0, initial=0.0)
    on = np.flatnonzero(problem.home != NOWHERE)
    load = np.zeros_like(problem.capacity)
    np.add.at(load, problem.home[on], problem.mean[on])
    top = np.maximum(top, load.max(axis=0, initial=0.0) / 16.0)
    unit: F64 = np.where(top > 0, top, np.maximum(problem.mean.max(axis=0, initial=0.0), 1.0)) / QUANTA
    return unit


def limits(caps: I32 | None, hosts: int) -> I64:
    """Per-host limits with the last row unlimited."""
    found = np.full(hosts + 1, UNLIMITED, np.int64)
    if caps is not None:
        found[:hosts] = caps
    return found


def rules_by_vm(problem: Problem) -> tuple[I32, I32]:
    """(start [v + 2], rules): the rules turned round."""
    rules, v = problem.rules, len(problem.vm_ids)
    owner = np.repeat(np.arange(len(rules)), np.diff(rules.start))
    order = np.lexsort((owner, rules.members))
    start = np.searchsorted(rules.members[order], np.arange(v + 2))
    return start.astype(np.int32), owner[order].astype(np.int32)


def outside_counts(problem: Problem) -> I32:
    """[r, d] counts that no move of this problem changes, as wide as its domains are many."""
    rules = problem.rules
    wide = max(int(problem.domain.max(initial=0)) + 1, rules.outside.shape[1])
    found = np.zeros((len(rules), wide), np.int32)
    if rules.outside.size:
        found[:, : rules.outside.shape[1]] = rules.outside
    return found


def true_prices(problem: Problem, board: Board) -> Prices:
    """Prices under which the search's energy is cost.py's money."""
    h, c = problem.capacity.shape
    per_quantum = quanta(problem) / np.maximum(problem.capacity, 1e-12)
    soft = np.zeros(board.capacity.shape, np.float32)
    hard = np.zeros_like(soft)
    soft[:h, :c] = np.where(problem.hard, 0.0, per_quantum * problem.minutes)
    hard[:h, :c] = np.where(problem.hard, per_quantum * problem.broken_price, 0.0)
    return Prices(
        soft=soft, hard=hard, content=np.zeros(h + 1), move=np.append(problem.move_cost, 0.0), rule=float(problem.broken_price),
        power=True, strict=True,
    )  # fmt: skip


def open_state(board: Board, prices: Prices, place: I32, seed: int) -> State:
    """The sums of an assignment `place` [v], NOWHERE as in Problem."""
    v, (hosts, wide) = len(board.size) - 1, board.capacity.shape
    h = hosts - 1
    at = np.append(np.where(place == NOWHERE, h, place), h).astype(np.int32)
    counts = np.bincount(at[:v], minlength=hosts)
    room = int(counts[:h].max(initial=0)) + 4 * (v // max(1, h)) + 64
    halves = np.random.SeedSequence([seed & 0xFFFFFFFF, 0x7469]).generate_state(2, np.uint64)
    state = State(
        place=at,
        load=np.zeros((hosts, wide), np.int32),
        variance=np.zeros((hosts, wide), np.float32),
        weight=np.zeros(hosts),
        soft=np.zeros(hosts),
        hard=np.zeros(hosts),
        share=np.zeros(hosts),
        vms=np.zeros(hosts, np.int32),
        member=np.zeros((h, room), np.int32),
        slot=np.zeros(v + 1, np.int32),
        in_domain=board.outside.copy(),
        domains_used=np.zeros(len(board.rule_kind), np.int32),
        arrivals=np.zeros(hosts, np.int64),
        departures=np.zeros(hosts, np.int64),
        moved=np.zeros(1, np.int64),
        hot=np.zeros(max(1, h), np.int32),
        hot_at=np.full(hosts, -1, np.int32),
        hots=np.zeros(1, np.int64),
        extra=np.zeros((2, wide), np.float32),
        energy=np.zeros(1),
        random=halves | np.uint64(1),
    )
    rebuild(board, prices, state)
    return state


def place_of(state: State) -> I32:
    """The assignment [v] as Problem has it."""
    place = state.place[:-1].copy()
    place[place == len(state.vms) - 1] = NOWHERE
    return place


@njit(cache=True, nogil=True)
def rebuild(board: Board, prices: Prices, state: State) -> None:
    """All sums anew from `state.place`."""
    h_all = len(board.capacity)
    nowhere = h_all - 1
    state.vms[:] = 0
    state.weight[:] = 0.0
    state.load[:] = 0
    state.arrivals[:] = 0
    state.departures[:] = 0
    state.moved[0] = 0
    state.in_domain[:] = board.outside
    for v in range(len(state.place) - 1):
        h, home = state.place[v], board.home[v]
        if h != home:
            state.moved[0] += 1
            state.arrivals[h] += 1
            state.departures[home] += 1
        if h == nowhere:
            continue
        state.member[h, state.vms[h]] = v
        state.slot[v] = state.vms[h]
        state.vms[h] += 1
        state.weight[h] += board.weight[v]
        for c in range(board.mean.shape[1]):
            state.load[h, c] += board.mean[v, c]
        for i in range(board.ruled_start[v], board.ruled_start[v + 1]):
            r = board.ruled[i]
            state.in_domain[r, board.domain[board.rule_level[r], h]] += 1
    for r in range(len(board.rule_kind)):
        state.domains_used[r] = (state.in_domain[r] > 0).sum()
    refresh(board, prices, state)


@njit(**FAST)
def refresh(board: Board, prices: Prices, state: State) -> None:
    """Variances, shares, penalties and the list of hot hosts anew: float32 sums drift, and prices may have changed."""
    nowhere = len(board.capacity) - 1
    state.hots[0] = 0
    for h in range(nowhere):
        state.share[h] = 0.0
        for c in range(board.mean.shape[1]):
            state.share[h] += np.float64(state.load[h, c]) * board.cpu_share[h, c]
        if board.has_z:
            sum_variances(board, state, h)
        soft, hard = 0.0, 0.0
        for c in range(board.mean.shape[1]):
            over = np.float64(state.load[h, c]) - board.capacity[h, c]
            if board.has_z:
                over += board.z[c] * np.sqrt(max(state.variance[h, c], np.float32(0.0)))
            if over > 0.0:
                soft += over * prices.soft[h, c]
                hard += over * prices.hard[h, c]
        state.soft[h] = soft
        state.hard[h] = hard
        state.hot_at[h] = -1
        mark(board, prices, state, h)


@njit(**KERNEL)
def sum_variances(board: Board, state: State, h: int) -> None:
    """A host's variances from its members; pairs of one group add twice rho times their stddevs' product."""
    for c in range(board.mean.shape[1]):
        state.variance[h, c] = 0.0
    for i in range(state.vms[h]):
        v = state.member[h, i]
        for c in range(board.mean.shape[1]):
            state.variance[h, c] += board.variance[v, c]
        if board.group[v] < 0:
            continue
        twice = np.float32(2.0 * board.rho[board.group[v]])
        for j in range(i):
            w = state.member[h, j]
            if board.group[w] == board.group[v]:
                for c in range(board.mean.shape[1]):
                    state.variance[h, c] += twice * board.spread[v, c] * board.spread[w, c]


@njit(**LEAF)
def mark(board: Board, prices: Prices, state: State, h: int) -> None:
    """Keep the list of hot hosts right after host h has changed."""
    hot = state.vms[h] > 0 and (state.soft[h] + state.hard[h] > 0.0 or prices.content[h] > 0.0 or board.closed[h])
    at = state.hot_at[h]
    if hot and at < 0:
        state.hot_at[h] = state.hots[0]
        state.hot[state.hots[0]] = h
        state.hots[0] += 1
    elif not hot and at >= 0:
        state.hots[0] -= 1
        last = state.hot[state.hots[0]]
        state.hot[at] = last
        state.hot_at[last] = at
        state.hot_at[h] = -1
