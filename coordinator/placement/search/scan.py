"""Steps that look at every host for a VM: a seat for the homeless, relief for the overloaded, a host emptied whole, moves taken back.

All are greedy, exact (deltas.py) and without chance; each changes a State in place and only for the better under the prices given. A scan
of 1,000 hosts for one VM takes about 20 microseconds.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from coordinator.placement.problem import F64, I32
from coordinator.placement.search.board import KERNEL, Board, Prices, State, rebuild
from coordinator.placement.search.deltas import EPSILON, broken_rule, do_swap, try_swap

BLOCK: Final = 256  # hosts looked at for a homeless VM first: a whole fleet of 5,000 only when none of them will do
PASSES: Final = 8


@njit(**KERNEL)
def take(board: Board, prices: Prices, state: State, v: int, w: int, b: int, limit: float) -> bool:
    """Do a swap that costs less than `limit`; whether it was done."""
    change = try_swap(board, prices, state, v, w, b)
    if change.delta < limit:
        do_swap(board, prices, state, v, w, b, change)
        return True
    return False


@njit(**KERNEL)
def best_host(board: Board, prices: Prices, state: State, v: int, hosts: I32, tie: F64) -> tuple[int, float]:
    """(host, delta) of the cheapest relocation of v to one of `hosts`, (-1, inf) when all refuse; `tie` [h] is added to compare by."""
    nothing = len(state.place) - 1
    best, best_delta, best_score = -1, np.inf, np.inf
    for b in hosts:
        if b == state.place[v]:
            continue
        delta = try_swap(board, prices, state, v, nothing, b).delta
        if delta + tie[b] < best_score:
            best, best_delta, best_score = b, delta, delta + tie[b]
    return best, best_delta


@njit(**KERNEL)
def fill_of(board: Board, state: State, h: int) -> float:
    """How full a host is: the mean over its limited cells."""
    total, cells = 0.0, 0
    for c in range(board.mean.shape[1]):
        if 0 < board.capacity[h, c] < 1 << 30:
            total += state.load[h, c] / board.capacity[h, c]
            cells += 1
    return total / max(1, cells)


@njit(cache=True, nogil=True)
def seat(board: Board, prices: Prices, state: State, order: I32, hosts: I32, prefer_full: float) -> None:
    """VMs of `order` that stand nowhere or on a closed host, to where they cost least; among equals the fullest host.

    `prefer_full`: money that a full host is preferred by. In fleets of many hosts the VMs of one block of hosts go by turns.
    """
    nothing = len(state.place) - 1
    tie = np.zeros(len(state.vms))
    for h in hosts:
        tie[h] = -prefer_full * fill_of(board, state, h)
    blocks = max(1, len(hosts) // BLOCK)
    for i in range(len(order)):
        v = order[i]
        if not board.closed[state.place[v]] or not board.free[v]:
            continue
        k = i % blocks
        part = hosts[len(hosts) * k // blocks : len(hosts) * (k + 1) // blocks]
        best, delta = best_host(board, prices, state, v, part, tie)
        if blocks > 1 and (best < 0 or delta >= 0.0 or state.vms[best] == 0):
            best, delta = best_host(board, prices, state, v, hosts, tie)
        if best >= 0 and delta < -EPSILON:
            take(board, prices, state, v, nothing, best, np.inf)
            tie[best] = -prefer_full * fill_of(board, state, best)


@njit(cache=True, nogil=True)
def cure(board: Board, prices: Prices, state: State, hosts: I32) -> None:
    """Relieve hosts that pass a capacity or are closed, worst first: by the best relocation while one pays, then by the best swap."""
    nothing = len(state.place) - 1
    tie = np.zeros(len(state.vms))
    for _ in range(PASSES):
        hot = state.hot[: state.hots[0]].copy()
        burden = np.empty(len(hot))
        for i in range(len(hot)):
            burden[i] = -(state.weight[hot[i]] * state.soft[hot[i]] + state.hard[hot[i]])
        changed = False
        for i in np.argsort(burden):
            h = hot[i]
            while state.hot_at[h] >= 0:
                best_v, best_b, best = -1, -1, -EPSILON
                for j in range(state.vms[h]):
                    v = state.member[h, j]
                    if board.free[v]:
                        b, delta = best_host(board, prices, state, v, hosts, tie)
                        if delta < best:
                            best_v, best_b, best = v, b, delta
                if best_v >= 0:
                    changed = take(board, prices, state, best_v, nothing, best_b, np.inf)
                    continue
                best_v, best_w = best_swap(board, prices, state, h)
                if best_v < 0:
                    break
                changed = take(board, prices, state, best_v, best_w, state.place[best_w], np.inf)
        if not changed:
            break


@njit(**KERNEL)
def best_swap(board: Board, prices: Prices, state: State, h: int) -> tuple[int, int]:
    """(v on host h, w elsewhere) whose exchange saves most; (-1, -1) when none saves anything."""
    best_v, best_w, best = -1, -1, -EPSILON
    for i in range(state.vms[h]):
        v = state.member[h, i]
        if not board.free[v]:
            continue
        for w in board.movable:
            if state.place[w] != h:
                delta = try_swap(board, prices, state, v, w, state.place[w]).delta
                if delta < best:
                    best_v, best_w, best = v, w, delta
    return best_v, best_w


@njit(cache=True, nogil=True)
def mend(board: Board, prices: Prices, state: State, hosts: I32) -> int:
    """Move or exchange VMs of broken rules, each to where that saves most; how many went."""
    nothing = len(state.place) - 1
    tie = np.zeros(len(state.vms))
    went = 0
    for v in board.movable:
        broken = 0
        for i in range(board.ruled_start[v], board.ruled_start[v + 1]):
            broken += broken_rule(board, state, board.ruled[i])
        if broken == 0:
            continue
        b, best = best_host(board, prices, state, v, hosts, tie)
        with_w = nothing
        if best > -prices.rule / 2.0:  # the rule stays broken: look for an exchange
            for w in board.movable:
                if state.place[w] != state.place[v]:
                    delta = try_swap(board, prices, state, v, w, state.place[w]).delta
                    if delta < best:
                        with_w, b, best = w, state.place[w], delta
        if best < -EPSILON:
            went += take(board, prices, state, v, with_w, b, np.inf)
    return went


@njit(cache=True, nogil=True)
def empty_hosts(board: Board, prices: Prices, state: State, hosts: I32) -> int:
    """Try to empty each host whole, those with the fewest VMs first, and keep what pays; how many were emptied."""
    nothing = len(state.place) - 1
    emptied = 0
    order = np.argsort(state.vms[hosts])
    for i in order:
        h = hosts[i]
        if state.vms[h] == 0 or board.empty[h] >= board.wake[h] + board.curve[h, 0] or not all_free(board, state, h):
            continue
        before = state.place.copy()
        energy, money = state.energy[0], 0.0
        worth = board.wake[h] + board.curve[h].max() - board.empty[h]
        while state.vms[h] > 0 and money < worth:
            v = state.member[h, state.vms[h] - 1]
            b, delta = best_used(board, prices, state, v, hosts)
            if b < 0:
                money = np.inf
                break
            money += delta
            take(board, prices, state, v, nothing, b, np.inf)
        if state.vms[h] == 0 and money < -EPSILON:
            emptied += 1
        elif (state.place != before).any():
            state.place[:] = before
            rebuild(board, prices, state)
            state.energy[0] = energy
    return emptied


@njit(**KERNEL)
def best_used(board: Board, prices: Prices, state: State, v: int, hosts: I32) -> tuple[int, float]:
    """best_host among hosts that have VMs."""
    nothing = len(state.place) - 1
    best, best_delta = -1, np.inf
    for b in hosts:
        if b != state.place[v] and state.vms[b] > 0:
            delta = try_swap(board, prices, state, v, nothing, b).delta
            if delta < best_delta:
                best, best_delta = b, delta
    return best, best_delta


@njit(**KERNEL)
def all_free(board: Board, state: State, h: int) -> bool:
    """Whether every VM of host h may move."""
    for i in range(state.vms[h]):
        if not board.free[state.member[h, i]]:
            return False
    return True


@njit(cache=True, nogil=True)
def take_back(board: Board, prices: Prices, state: State) -> int:
    """Send VMs home whose move does not pay, alone or in exchange for one that stands there; how many went."""
    nothing, nowhere = len(state.place) - 1, len(state.vms) - 1
    went = 0
    for _ in range(PASSES):
        before = went
        for v in board.movable:
            home = board.home[v]
            if state.place[v] == home or home == nowhere or board.closed[home]:
                continue
            done = take(board, prices, state, v, nothing, home, EPSILON)
            for i in range(state.vms[home]):
                w = state.member[home, i]
                if not done and board.free[w] and w != v:
                    done = take(board, prices, state, v, w, home, -EPSILON)
            went += done
        if went == before:
            break
    return went
