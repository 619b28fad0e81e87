"""What a move changes, exactly and in about 50 ns: a VM goes to another host, alone or in exchange for one from there.

`try_swap(v, w, b)` says what the exchange of v (on its host a) and w (on b) would cost, without changing anything; w = nothing (the last
row) makes it a relocation of v to b. `do_swap` makes it happen. Refused, with an infinite delta: closed hosts, kinds that may not be there,
moves past a limit, rules broken more than they are, and, under strict prices, hard cells passed more than they are on either host.

Invariant (tests/unit/test_placement_deltas.py): after any sequence of swaps the summed deltas equal what cost.py says that changed.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from coordinator.placement.problem import CURVE_POINTS
from coordinator.placement.search.board import FAST, FORBIDDEN, KERNEL, LEAF, OPEN_LEAF, Board, Prices, State, mark

EPSILON: Final = 1e-9  # money


class Change(NamedTuple):
    """A swap that was tried: its cost and what the two hosts' sums would be. inf = refused."""

    delta: float
    soft_a: float
    hard_a: float
    soft_b: float
    hard_b: float
    share_a: float
    share_b: float


@njit(**LEAF)
def penalties(board: Board, prices: Prices, state: State, h: int, out: int, into: int, side: int) -> tuple[float, float]:
    """(soft, hard) sums of host h without VM `out` and with `into`; state.extra[side] holds what groups change."""
    soft, hard = np.float32(0.0), np.float32(0.0)
    zero = np.int32(0)
    if not board.has_z:
        for c in range(board.mean.shape[1]):
            load = np.int32(np.int32(state.load[h, c] - board.mean[out, c]) + board.mean[into, c])
            over = np.float32(max(np.int32(load - board.capacity[h, c]), zero))
            soft += over * prices.soft[h, c]
            hard += over * prices.hard[h, c]
        return np.float64(soft), np.float64(hard)
    nothing = np.float32(0.0)
    for c in range(board.mean.shape[1]):
        load = np.int32(np.int32(state.load[h, c] - board.mean[out, c]) + board.mean[into, c])
        variance = state.variance[h, c] - board.variance[out, c] + board.variance[into, c] + state.extra[side, c]
        over = np.float32(np.int32(load - board.capacity[h, c])) + board.z[c] * np.sqrt(max(variance, nothing))
        over = max(over, nothing)
        soft += over * prices.soft[h, c]
        hard += over * prices.hard[h, c]
    return np.float64(soft), np.float64(hard)


@njit(**KERNEL)
def add_group(board: Board, state: State, h: int, v: int, skip: int, sign: float, side: int) -> None:
    """What v has in common with its group's VMs on host h, `skip` left out, added to extra[side]."""
    g = board.group[v]
    if g < 0:
        return
    twice = np.float32(sign * 2.0 * board.rho[g])
    for i in range(state.vms[h]):
        w = state.member[h, i]
        if board.group[w] == g and w != v and w != skip:
            for c in range(board.mean.shape[1]):
                state.extra[side, c] += twice * board.spread[v, c] * board.spread[w, c]


@njit(**LEAF)
def gather_groups(board: Board, state: State, v: int, w: int, a: int, b: int) -> None:
    """extra[0] for host a and extra[1] for host b of a swap."""
    nowhere = len(state.vms) - 1
    for c in range(board.mean.shape[1]):
        state.extra[0, c] = np.float32(0.0)
        state.extra[1, c] = np.float32(0.0)
    if a != nowhere:
        add_group(board, state, a, v, v, -1.0, 0)
        add_group(board, state, a, w, v, 1.0, 0)
    add_group(board, state, b, w, w, -1.0, 1)
    add_group(board, state, b, v, w, 1.0, 1)


@njit(**LEAF)
def host_money(board: Board, h: int, count: int, share: float) -> float:
    """Money of host h over the hour with `count` VMs at mean CPU `share`."""
    if count == 0:
        return board.empty[h]
    at = min(max(share, 0.0), 1.0) * (CURVE_POINTS - 1)
    below = min(int(at), CURVE_POINTS - 2)
    low, high = board.curve[h, below], board.curve[h, below + 1]
    return board.wake[h] + low + (at - below) * (high - low)


@njit(**KERNEL)
def rule_delta(board: Board, state: State, v: int, a: int, b: int) -> int:
    """By how much the rules of v are broken more when it goes from host a to b."""
    total = 0
    for i in range(board.ruled_start[v], board.ruled_start[v + 1]):
        r = board.ruled[i]
        da, db = board.domain[board.rule_level[r], a], board.domain[board.rule_level[r], b]
        if da == db:
            continue
        limit = board.rule_limit[r]
        if board.rule_kind[r] == 0:
            total -= da >= 0 and state.in_domain[r, da] > limit
            total += db >= 0 and state.in_domain[r, db] >= limit
        elif board.rule_kind[r] == 1:
            before, after = 0, 0
            for d in range(state.in_domain.shape[1]):
                n = state.in_domain[r, d]
                before = max(before, n)
                after = max(after, n - (d == da) + (d == db))
            total += (db >= 0) - (da >= 0) - (after - before)
        else:
            used = state.domains_used[r]
            new = used - (da >= 0 and state.in_domain[r, da] == 1) + (db >= 0 and state.in_domain[r, db] == 0)
            total += max(new - limit, 0) - max(used - limit, 0)
    return total


@njit(**KERNEL)
def shift_rules(board: Board, state: State, v: int, a: int, b: int) -> None:
    """Count v in b's domains instead of a's."""
    for i in range(board.ruled_start[v], board.ruled_start[v + 1]):
        r = board.ruled[i]
        da, db = board.domain[board.rule_level[r], a], board.domain[board.rule_level[r], b]
        if da >= 0:
            state.in_domain[r, da] -= 1
            state.domains_used[r] -= state.in_domain[r, da] == 0
        if db >= 0:
            state.domains_used[r] += state.in_domain[r, db] == 0
            state.in_domain[r, db] += 1


@njit(**KERNEL)
def within_caps(board: Board, state: State, v: int, a: int, b: int) -> bool:
    """Whether v may go from a to b as far as moves are counted; nothing that is past its limit may grow."""
    home = board.home[v]
    if b == home:
        return True
    if state.arrivals[b] >= board.arrivals_max[b]:
        return False
    return a != home or (state.moved[0] < board.moves_max and state.departures[a] < board.departures_max[a])


@njit(**KERNEL)
def shift_caps(board: Board, state: State, v: int, a: int, b: int) -> None:
    """Count the move of v from a to b."""
    home = board.home[v]
    if a != home:
        state.arrivals[a] -= 1
        state.departures[home] -= 1
        state.moved[0] -= 1
    if b != home:
        state.arrivals[b] += 1
        state.departures[home] += 1
        state.moved[0] += 1


@njit(**LEAF)
def own_money(board: Board, prices: Prices, v: int, a: int, b: int) -> float:
    """What v itself costs more on b than on a: its kind, its move, its place on hosts to be emptied. inf = not allowed there."""
    if board.closed[b] or board.kind_cost[board.kind[v], b] >= FORBIDDEN:
        return np.inf
    money = board.kind_cost[board.kind[v], b] - board.kind_cost[board.kind[v], a]
    money += prices.move[v] * ((b != board.home[v]) - np.float64(a != board.home[v]))
    money += board.size[v] * (prices.content[b] - prices.content[a])
    if board.closed[a]:
        money -= board.unplaced[v]
    return money


@njit(**KERNEL)
def counted(board: Board, state: State, v: int, w: int, a: int, b: int) -> tuple[bool, int]:
    """(whether limits allow it, how many rules more it breaks) of a swap; counts are as before when it returns."""
    nothing = len(state.place) - 1
    broken = 0
    allowed = True
    ruled = board.ruled_start[v + 1] > board.ruled_start[v]
    if ruled:
        broken += rule_delta(board, state, v, a, b)
    if board.has_caps:
        allowed = within_caps(board, state, v, a, b)
    if w == nothing or not allowed:
        return allowed, broken
    if board.ruled_start[w + 1] > board.ruled_start[w]:
        if ruled:
            shift_rules(board, state, v, a, b)
        broken += rule_delta(board, state, w, b, a)
        if ruled:
            shift_rules(board, state, v, b, a)
    if board.has_caps:
        shift_caps(board, state, v, a, b)
        allowed = within_caps(board, state, w, b, a)
        shift_caps(board, state, v, b, a)
    return allowed, broken


@njit(**LEAF)
def refused() -> Change:
    """A swap that may not be."""
    return Change(np.inf, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@njit(**OPEN_LEAF)
def try_swap(board: Board, prices: Prices, state: State, v: int, w: int, b: int) -> Change:
    """v leaves its host for b (a host, never nowhere); w, when it is something, stands on b and takes v's place."""
    nothing, nowhere = len(state.place) - 1, len(state.vms) - 1
    a = state.place[v]
    own = own_money(board, prices, v, a, b)
    if w != nothing:
        own += own_money(board, prices, w, b, a)
    if own == np.inf or (w == nothing and state.vms[b] >= state.member.shape[1]):
        return refused()
    if board.has_caps or board.ruled_start[v + 1] > board.ruled_start[v] or board.ruled_start[w + 1] > board.ruled_start[w]:
        allowed, broken = counted(board, state, v, w, a, b)
        if not allowed or broken > 0:
            return refused()
        own += broken * prices.rule
    if board.has_groups:
        gather_groups(board, state, v, w, a, b)
    soft_a, hard_a = 0.0, 0.0
    if a != nowhere and (w != nothing or state.soft[a] + state.hard[a] > 0.0):  # a host that passes nothing passes nothing with a VM less
        soft_a, hard_a = penalties(board, prices, state, a, v, w, 0)
    soft_b, hard_b = penalties(board, prices, state, b, w, v, 1)
    if prices.strict and (hard_a > state.hard[a] + EPSILON or hard_b > state.hard[b] + EPSILON):
        return refused()
    heavier = board.weight[v] - board.weight[w]
    delta = own + hard_a + hard_b - state.hard[a] - state.hard[b]
    delta += (state.weight[a] - heavier) * soft_a - state.weight[a] * state.soft[a]
    delta += (state.weight[b] + heavier) * soft_b - state.weight[b] * state.soft[b]
    share_a, share_b = state.share[a], state.share[b]
    if prices.power:
        for c in range(board.mean.shape[1]):
            moved = np.float64(np.int32(board.mean[v, c] - board.mean[w, c]))
            share_a -= moved * board.cpu_share[a, c]
            share_b += moved * board.cpu_share[b, c]
        alone = w == nothing
        delta += host_money(board, a, state.vms[a] - alone, share_a) - host_money(board, a, state.vms[a], state.share[a])
        delta += host_money(board, b, state.vms[b] + alone, share_b) - host_money(board, b, state.vms[b], state.share[b])
    return Change(delta, soft_a, hard_a, soft_b, hard_b, share_a, share_b)


@njit(**OPEN_LEAF)
def do_swap(board: Board, prices: Prices, state: State, v: int, w: int, b: int, change: Change) -> None:
    """Make what `try_swap` tried so."""
    nothing, nowhere = len(state.place) - 1, len(state.vms) - 1
    a = state.place[v]
    if board.has_groups:  # anew: another trial may have come between
        gather_groups(board, state, v, w, a, b)
    for c in range(board.mean.shape[1]):
        moved = np.int32(board.mean[v, c] - board.mean[w, c])
        state.load[b, c] += moved
        if a != nowhere:
            state.load[a, c] -= moved
        if board.has_z:
            spread = board.variance[v, c] - board.variance[w, c]
            state.variance[a, c] += state.extra[0, c] - spread
            state.variance[b, c] += state.extra[1, c] + spread
    heavier = board.weight[v] - board.weight[w]
    state.weight[a] -= heavier
    state.weight[b] += heavier
    shift_rules(board, state, v, a, b)
    shift_caps(board, state, v, a, b)
    i = state.slot[v]
    state.place[v] = b
    if w != nothing:
        shift_rules(board, state, w, b, a)
        shift_caps(board, state, w, b, a)
        j = state.slot[w]
        state.member[a, i] = w
        state.slot[w] = i
        state.place[w] = a
        state.member[b, j] = v
        state.slot[v] = j
    else:
        if a != nowhere:
            state.vms[a] -= 1
            last = state.member[a, state.vms[a]]
            state.member[a, i] = last
            state.slot[last] = i
        state.member[b, state.vms[b]] = v
        state.slot[v] = state.vms[b]
        state.vms[b] += 1
    state.soft[a], state.hard[a], state.share[a] = change.soft_a, change.hard_a, change.share_a
    state.soft[b], state.hard[b], state.share[b] = change.soft_b, change.hard_b, change.share_b
    if a != nowhere:
        mark(board, prices, state, a)
    mark(board, prices, state, b)
    state.energy[0] += change.delta


@njit(**FAST)
def money_of(board: Board, prices: Prices, state: State) -> float:
    """The whole energy: under true prices what cost.py counts."""
    nowhere = len(state.vms) - 1
    money = 0.0
    for h in range(nowhere):
        money += state.weight[h] * state.soft[h] + state.hard[h]
        if prices.power:
            money += host_money(board, h, state.vms[h], state.share[h])
    for v in range(len(state.place) - 1):
        h = state.place[v]
        money += board.kind_cost[board.kind[v], h] + board.size[v] * prices.content[h]
        if h != board.home[v]:
            money += prices.move[v]
        if board.closed[h]:
            money += board.unplaced[v]
    return money + prices.rule * broken_in(board, state)


@njit(**KERNEL)
def broken_in(board: Board, state: State) -> int:
    """How far all rules together are from being kept."""
    broken = 0
    for r in range(len(board.rule_kind)):
        broken += broken_rule(board, state, r)
    return broken


@njit(**KERNEL)
def broken_rule(board: Board, state: State, r: int) -> int:
    """How far rule r is from being kept."""
    total, most, past = 0, 0, 0
    for d in range(state.in_domain.shape[1]):
        n = state.in_domain[r, d]
        total += n
        most = max(most, n)
        past += max(n - board.rule_limit[r], 0)
    if board.rule_kind[r] == 0:
        return past
    if board.rule_kind[r] == 1:
        return total - most
    return max(state.domains_used[r] - board.rule_limit[r], 0)
