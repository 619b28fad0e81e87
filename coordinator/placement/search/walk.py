"""The annealing walk itself: random relocations and swaps at a falling temperature, 15-20 million a second and core.

Half of the proposals start on hot hosts (that pass a capacity or are to be emptied), the others anywhere: swaps among cold hosts keep the
free space moving. Deterministic for the random words in the State.
Source: Kirkpatrick, Gelatt, Vecchi, Optimization by simulated annealing, Science 220 (1983).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from coordinator.placement.problem import F64, I32
from coordinator.placement.search.board import FAST, KERNEL, LEAF, U64, Board, Prices, State, refresh
from coordinator.placement.search.deltas import EPSILON, do_swap, try_swap

CHUNK: Final = 4096  # proposals at one temperature
HOT_SHARE: Final = 0.5
SWAP_SHARE: Final = 0.5


@njit(**LEAF)
def draw(random: U64) -> np.uint64:
    """64 random bits (xorshift128+; Vigna 2017)."""
    x, y = random[0], random[1]
    random[0] = y
    x ^= x << np.uint64(23)
    random[1] = x ^ y ^ (x >> np.uint64(17)) ^ (y >> np.uint64(26))
    return random[1] + y


@njit(**LEAF)
def below(random: U64, n: int) -> int:
    """A whole number in [0, n)."""
    return int(((draw(random) >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@njit(**LEAF)
def unit(random: U64) -> float:
    """A number in [0, 1)."""
    return np.float64(draw(random) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(**FAST)
def anneal(
    board: Board, prices: Prices, state: State, targets: I32, proposals: int, warm: float, cold: float, best: I32, best_energy: F64
) -> int:
    """`proposals` tries while the temperature falls from `warm` to `cold`; how many were made: none are when no host is hot in a squeeze.

    `targets`: hosts that relocations go to. `best` [v + 1] and `best_energy` [1] hold the cheapest assignment seen at the end of a chunk.
    """
    nothing, movable = len(state.place) - 1, len(board.movable)
    if movable == 0 or len(targets) == 0:
        return 0
    chunks = max(1, proposals // CHUNK)
    temperature, cooling = warm, (cold / warm) ** (1.0 / chunks)
    for chunk in range(chunks):
        if chunk % 8 == 0:
            refresh(board, prices, state)
        if not prices.strict and state.hots[0] == 0:
            break
        for _ in range(CHUNK):
            if state.hots[0] > 0 and unit(state.random) < HOT_SHARE:
                a = state.hot[below(state.random, state.hots[0])]
                v = state.member[a, below(state.random, state.vms[a])]
                if not board.free[v]:
                    continue
            else:
                v = board.movable[below(state.random, movable)]
                a = state.place[v]
            w = nothing
            if unit(state.random) < SWAP_SHARE:
                w = board.movable[below(state.random, movable)]
                b = state.place[w]
            else:
                b = targets[below(state.random, len(targets))]
            if a == b:
                continue
            change = try_swap(board, prices, state, v, w, b)
            if change.delta <= 0.0 or (change.delta < 14.0 * temperature and unit(state.random) < np.exp(-change.delta / temperature)):
                do_swap(board, prices, state, v, w, b, change)
        temperature *= cooling
        if state.energy[0] < best_energy[0] - EPSILON:
            best_energy[0] = state.energy[0]
            for v in range(nothing):
                best[v] = state.place[v]
    return chunks * CHUNK


@njit(cache=True, nogil=True)
def uphill(board: Board, prices: Prices, state: State, targets: I32, tries: int) -> F64:
    """What `tries` random relocations would cost, those that are allowed and cost something, ascending: the scale of a temperature."""
    found = np.empty(tries)
    n = 0
    for _ in range(tries):
        v = board.movable[below(state.random, len(board.movable))]
        b = targets[below(state.random, len(targets))]
        if b != state.place[v]:
            delta = price_of(board, prices, state, v, b)
            if EPSILON < delta < np.inf:
                found[n] = delta
                n += 1
    return np.sort(found[:n])


@njit(**KERNEL)
def price_of(board: Board, prices: Prices, state: State, v: int, b: int) -> float:
    """Delta of a relocation."""
    return try_swap(board, prices, state, v, len(state.place) - 1, b).delta
