"""First packings of vectors: item by item (best fit) and bin by bin (the fullest set for each bin), compiled.

Source of the two families: "Classification and evaluation of the algorithms for vector bin packing", Computers & Operations Research 2024;
the fullest set is searched for as in J. Gupta and J. Ho, "A new heuristic algorithm for the one-dimensional bin-packing problem" (minimum
bin slack, 1999), here with weighted dimensions and a limit on the nodes of each bin's search.

Sizes are shares of a bin, f64[n, d]; `worth` f64[d] weighs the dimensions. Invariant: no bin passes its capacity.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from coordinator.placement.packing.ejection import has_room
from coordinator.placement.problem import F64, I32


@njit(cache=True, nogil=True)
def best_fit(size: F64, order: I32, worth: F64) -> tuple[I32, int]:
    """(place, bins): items in this order, each into the open bin with room whose remaining room matches it best (dot product)."""
    n, d = size.shape
    load = np.zeros((n, d))
    place = np.full(n, -1, np.int32)
    bins = 0
    for v in order:
        best, target = -1.0, -1
        for b in range(bins):
            if has_room(load[b], size[v]):
                # shape of the room against the shape of the item; a fuller bin wins among equals
                dot, room = 0.0, 1e-12
                for c in range(d):
                    free = 1.0 - load[b, c]
                    dot += worth[c] * free * size[v, c]
                    room += worth[c] * free * free
                score = dot / room
                if score > best:
                    best, target = score, b
        if target < 0:
            target = bins
            bins += 1
        place[v] = target
        for c in range(d):
            load[target, c] += size[v, c]
    return place, bins


@njit(cache=True, nogil=True)
def by_bins(size: F64, order: I32, bulk: F64, nodes: int, share: float) -> tuple[I32, int]:
    """(place, bins): bin by bin, the first item left in `order`, then the set of others that fills the bin with most bulk.

    Each bin's search looks at `nodes` partial sets at most, and stops when a set fills `share` of what the room left could hold.
    """
    n, d = size.shape
    place = np.full(n, -1, np.int32)
    left = order.copy()
    waiting = n
    bins = 0
    chosen, best_set = np.empty(n, np.int32), np.empty(n, np.int32)
    load = np.empty((n + 1, d))
    while waiting > 0:
        seed = left[0]
        load[0] = size[seed]
        place[seed] = bins
        best_size = fullest(size, bulk, left, waiting, nodes, share, load, chosen, best_set)
        for i in range(best_size):
            place[best_set[i]] = bins
        kept = 0
        for i in range(waiting):
            if place[left[i]] < 0:
                left[kept] = left[i]
                kept += 1
        waiting = kept
        bins += 1
    return place, bins


@njit(cache=True, nogil=True)
def fullest(size: F64, bulk: F64, left: I32, waiting: int, nodes: int, share: float, load: F64, chosen: I32, best_set: I32) -> int:
    """Depth first over the items left[1:waiting], biggest first; writes the best set found and says how many items it has."""
    d = size.shape[1]
    at = np.empty(waiting + 1, np.int32)
    gained = np.zeros(waiting + 1)
    depth, best, best_size, seen = 0, 0.0, 0, 0
    at[0] = 1
    while depth >= 0 and seen < nodes:
        i = at[depth]
        while i < waiting and not has_room(load[depth], size[left[i]]):
            i += 1
            seen += 1
        if i >= waiting:
            depth -= 1
            continue
        seen += 1
        at[depth] = i + 1
        v = left[i]
        chosen[depth] = v
        gained[depth + 1] = gained[depth] + bulk[v]
        for c in range(d):
            load[depth + 1, c] = load[depth, c] + size[v, c]
        depth += 1
        at[depth] = i + 1
        if gained[depth] > best:
            best, best_size = gained[depth], depth
            best_set[:depth] = chosen[:depth]
            if room_left(load[depth]) <= 1.0 - share:
                break
    return best_size


@njit(cache=True, nogil=True)
def room_left(load: F64) -> float:
    """Mean share of the bin that is free."""
    total = 0.0
    for c in range(len(load)):
        total += 1.0 - load[c]
    return total / len(load)


@njit(cache=True, nogil=True)
def dynamic_bins(size: F64, squared: bool) -> tuple[I32, int]:
    """(place, bins): bin by bin, each time the item that matches the room left best; dimensions weigh what is still to be packed of them.

    `squared` False: largest dot product of item and room; True: least weighted squared distance between them.
    """
    n, d = size.shape
    place = np.full(n, -1, np.int32)
    left = np.arange(n).astype(np.int32)
    waiting, bins = n, 0
    load = np.zeros(d)
    while waiting > 0:
        worth = np.zeros(d)
        for i in range(waiting):
            for c in range(d):
                worth[c] += size[left[i], c]
        load[:] = 0.0
        while True:
            best, found = -1e300, -1
            for i in range(waiting):
                v = left[i]
                if not has_room(load, size[v]):
                    continue
                score = 0.0
                for c in range(d):
                    free = 1.0 - load[c]
                    score += -worth[c] * (free - size[v, c]) ** 2 if squared else worth[c] * free * size[v, c]
                if score > best:
                    best, found = score, i
            if found < 0:
                break
            v = left[found]
            place[v] = bins
            for c in range(d):
                load[c] += size[v, c]
            waiting -= 1
            left[found] = left[waiting]
        bins += 1
    return place, bins
