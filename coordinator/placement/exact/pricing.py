"""The dearest set of items that fits one bin: depth first with a surrogate bound, compiled. What column generation asks again and again.

Items are tried in falling order of value over weighted size; a node's bound fills the room left, measured by that weighted size, with
the items after it that still fit one by one, the last of them in part. Weights are the dual prices of the linear relaxation, so the
root's bound is that relaxation's value. Source: the multidimensional knapsack's surrogate bounds, H. Kellerer, U. Pferschy and
D. Pisinger, Knapsack Problems (2004), 9.2.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from coordinator.placement.packing.ejection import has_room
from coordinator.placement.problem import F64, I32


@njit(cache=True, nogil=True)
def upper(i: int, size: F64, value: F64, bulk: F64, load: F64, room: float) -> float:
    """Most value of items from i on that can be added, by weighted room."""
    total = 0.0
    for j in range(i, len(value)):
        if not has_room(load, size[j]):
            continue
        if bulk[j] >= room:
            share: float = room / bulk[j] if bulk[j] > 0.0 else 1.0
            total += value[j] * share
            break
        room -= bulk[j]
        total += value[j]
    return total


@njit(cache=True, nogil=True)
def dearest(size: F64, value: F64, bulk: F64, room: float, least: float, nodes: int, stop_at: float) -> tuple[float, I32, bool]:
    """(value, items of the best set worth more than `least`, whether no better one exists).

    Items sorted by value / bulk, falling; sizes are shares of the bin. The search ends after `nodes` nodes or at a set worth `stop_at`.
    """
    n, d = size.shape
    load = np.zeros((n + 1, d))
    worth, left = np.zeros(n + 1), np.zeros(n + 1)
    left[0] = room
    chosen, best_set = np.empty(n + 1, np.int32), np.empty(n + 1, np.int32)
    depth, best_size, best, seen = 0, 0, least, 0
    i = 0
    while True:
        seen += 1
        if seen > nodes:
            return best, best_set[:best_size].copy(), False
        while i < n and not has_room(load[depth], size[i]):
            i += 1
        if i < n and worth[depth] + upper(i, size, value, bulk, load[depth], left[depth]) > best:
            chosen[depth] = i
            worth[depth + 1] = worth[depth] + value[i]
            left[depth + 1] = left[depth] - bulk[i]
            for c in range(d):
                load[depth + 1, c] = load[depth, c] + size[i, c]
            depth += 1
            i += 1
            if worth[depth] > best:
                best, best_size = worth[depth], depth
                best_set[:depth] = chosen[:depth]
                if best >= stop_at:
                    return best, best_set[:best_size].copy(), False
            continue
        if depth == 0:
            return best, best_set[:best_size].copy(), True
        depth -= 1
        i = chosen[depth] + 1
