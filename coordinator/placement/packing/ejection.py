"""Packing with one bin fewer, by ejection: the compiled search under coordinator/placement/packing/vectors.py.

A bin is emptied into a pool. The item on top of the pool goes into a bin that has room, else into the one bin where the items that must
leave for it (one or two) were hardest to place least often; they go to the pool. Between such steps random relocations and swaps that keep
every bin within its capacity stir the bins. An empty pool is a packing with one bin fewer.
Source: Y. Nagata and O. Braeysy, "A powerful route minimization heuristic for the vehicle routing problem with time windows", Operations
Research Letters 37 (2009); the counters of failures are theirs.

Sizes are shares of a bin, f64[n, d]. Invariant of every kernel here: no bin passes its capacity by more than SLACK; the same state and the
same random state give the same bytes.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.placement.chance import U64, below
from coordinator.placement.problem import F64, I32

FULL: Final = 1.0 + 1e-9  # of a bin: sums of shares that are whole in the input round to just above 1
STIR: Final = 40  # random tries between two ejections


@njit(cache=True, nogil=True)
def has_room(load: F64, size: F64) -> bool:
    """True when the item fits into a bin of this load."""
    for c in range(len(size)):  # numba: an early exit, no generator
        if load[c] + size[c] > FULL:
            return False
    return True


@njit(cache=True, nogil=True)
def can_trade(load: F64, leaves: F64, comes: F64) -> bool:
    """True when the item fits after another has left."""
    for c in range(len(leaves)):
        if load[c] - leaves[c] + comes[c] > FULL:
            return False
    return True


@njit(cache=True, nogil=True)
def can_trade_two(load: F64, one: F64, other: F64, comes: F64) -> bool:
    """True when the item fits after two others have left."""
    for c in range(len(comes)):
        if load[c] - one[c] - other[c] + comes[c] > FULL:
            return False
    return True


@njit(cache=True, nogil=True)
def put(v: int, b: int, size: F64, load: F64, member: I32, count: I32, place: I32, slot: I32) -> None:
    """Item v into bin b."""
    member[b, count[b]] = v
    slot[v] = count[b]
    count[b] += 1
    place[v] = b
    for c in range(size.shape[1]):
        load[b, c] += size[v, c]


@njit(cache=True, nogil=True)
def take(v: int, size: F64, load: F64, member: I32, count: I32, place: I32, slot: I32) -> None:
    """Item v out of its bin. An empty bin's load is exactly 0 again, so that rounding does not pile up."""
    b = place[v]
    last = count[b] - 1
    moved = member[b, last]
    member[b, slot[v]] = moved
    slot[moved] = slot[v]
    count[b] = last
    place[v] = -1
    for c in range(size.shape[1]):
        load[b, c] = load[b, c] - size[v, c] if last > 0 else 0.0


@njit(cache=True, nogil=True)
def open_bins(size: F64, place: I32, bins: int) -> tuple[F64, I32, I32, I32]:
    """(load, member, count, slot) of a packing; items with place -1 are in no bin."""
    n, d = size.shape
    load = np.zeros((bins, d))
    member = np.empty((bins, n), np.int32)
    count = np.zeros(bins, np.int32)
    slot = np.zeros(n, np.int32)
    for v in range(n):
        if place[v] >= 0:
            put(v, place[v], size, load, member, count, place, slot)
    return load, member, count, slot


@njit(cache=True, nogil=True)
def stir(tries: int, size: F64, load: F64, member: I32, count: I32, place: I32, slot: I32, state: U64) -> None:
    """Random relocations, and swaps where there is no room, that keep every bin within its capacity."""
    bins, n = len(count), len(place)
    for _ in range(tries):
        v = below(state, n)
        b = below(state, bins)
        a = place[v]
        if a < 0 or a == b:
            continue
        if has_room(load[b], size[v]):
            if count[b] > 0:
                take(v, size, load, member, count, place, slot)
                put(v, b, size, load, member, count, place, slot)
            continue
        w = member[b, below(state, count[b])]
        if can_trade(load[b], size[w], size[v]) and can_trade(load[a], size[v], size[w]):
            take(v, size, load, member, count, place, slot)
            take(w, size, load, member, count, place, slot)
            put(v, b, size, load, member, count, place, slot)
            put(w, a, size, load, member, count, place, slot)


@njit(cache=True, nogil=True)
def cheapest_ejection(
    v: int, size: F64, bulk: F64, load: F64, member: I32, count: I32, failures: NDArray[np.int64], state: U64
) -> tuple[int, int, int]:  # fmt: skip
    """(bin, item, item or -1): who leaves for v so that the fewest failures, then the least bulk, go to the pool; bin -1 = nobody can."""
    bins = len(count)
    best, best_bulk = np.int64(2**62), 1e300
    found, first, second = -1, -1, -1
    start = below(state, bins)
    for step in range(bins):
        b = start + step
        if b >= bins:
            b -= bins
        for i in range(count[b]):
            x = member[b, i]
            if failures[x] > best:
                continue
            if can_trade(load[b], size[x], size[v]):
                if failures[x] < best or bulk[x] < best_bulk:
                    best, best_bulk, found, first, second = failures[x], bulk[x], b, x, -1
                continue  # a second one need not leave
            for j in range(i):
                y = member[b, j]
                both = failures[x] + failures[y]
                if both > best or (both == best and bulk[x] + bulk[y] >= best_bulk):
                    continue
                if can_trade_two(load[b], size[x], size[y], size[v]):
                    best, best_bulk, found, first, second = both, bulk[x] + bulk[y], b, x, y
    return found, first, second


@njit(cache=True, nogil=True)
def empty_pool(
    size: F64, bulk: F64, load: F64, member: I32, count: I32, place: I32, slot: I32, pool: I32, waiting: int,
    failures: NDArray[np.int64], rounds: int, state: U64,
) -> tuple[int, int]:  # fmt: skip
    """(items still waiting in the pool, rounds used). Everything is changed in place; the search can be continued with another call."""
    bins = len(count)
    used = 0
    while waiting > 0 and used < rounds:
        used += 1
        v = pool[waiting - 1]
        start = below(state, bins)
        target = -1
        for step in range(bins):
            b = (start + step) % bins
            if has_room(load[b], size[v]):
                target = b
                break
        if target >= 0:
            waiting -= 1
            put(v, target, size, load, member, count, place, slot)
            continue
        failures[v] += 1
        b, x, y = cheapest_ejection(v, size, bulk, load, member, count, failures, state)
        if b >= 0:
            waiting -= 1
            take(x, size, load, member, count, place, slot)
            pool[waiting] = x
            waiting += 1
            if y >= 0:
                take(y, size, load, member, count, place, slot)
                pool[waiting] = y
                waiting += 1
            put(v, b, size, load, member, count, place, slot)
        else:  # nobody can make room: let another item try first
            k = below(state, waiting)
            pool[waiting - 1], pool[k] = pool[k], pool[waiting - 1]
        stir(STIR, size, load, member, count, place, slot, state)
    return waiting, used
