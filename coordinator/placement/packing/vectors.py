"""Items of several dimensions into the fewest equal bins: packing a shard of equal hosts from nothing, and the published instances.

First packings of several kinds, the best of them kept, then one bin fewer again and again by ejection until the bound is reached or the
effort spent. The bound is the larger of the volume (each dimension's total, rounded up) and of a set of items no two of which share a bin.
Invariants: every item in exactly one bin, no bin over capacity; the same input, seed and effort give the same bytes unless `cut`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit

from coordinator.placement.chance import U64
from coordinator.placement.packing.completion import best_fit, by_bins, dynamic_bins
from coordinator.placement.packing.ejection import FULL, empty_pool, open_bins
from coordinator.placement.problem import F64, I32
from shared.errors import ConfigError

CHUNK: Final = 500  # rounds between two looks at the clock: some milliseconds
ROUNDS: Final = 30_000  # of ejection at effort 1
NODES: Final = 20_000  # of the search for one bin's fullest set
RESTART: Final = 2_000  # rounds, or 10 an item, after which a search that has not ended begins anew with another bin


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Which bin every item is in, bins numbered from 0."""

    place: I32  # [n]
    bins: int
    bound: int  # no packing needs fewer
    cut: bool  # the deadline ended the search


def pack_vectors(sizes: F64, capacity: F64, *, seed: int = 0, effort: float = 1.0, deadline_s: float = 2.0) -> Packing:
    """Pack items [n, d] into bins of capacity [d]. Raises ConfigError where an item is larger than a bin or a number is not one."""
    begun = time.perf_counter()
    size = shares(sizes, capacity)
    if not len(size):
        return Packing(place=np.zeros(0, np.int32), bins=0, bound=0, cut=False)
    bound = max(volume_bound(size), int(apart_bound(size, np.argsort(-size.max(axis=1), kind="stable").astype(np.int32))))
    place, bins = first_packing(size, bound, begun + deadline_s)
    cut = False
    state = np.array([(seed * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D) % 2**64 | 1], np.uint64)
    rounds, attempt = int(ROUNDS * effort), 0
    while bins > bound and rounds > 0 and not cut:
        found, spent, cut = one_bin_fewer(size, place, bins, attempt, state, min(rounds, max(RESTART, 10 * len(size))), begun + deadline_s)
        rounds -= max(spent, 1)
        attempt += 1  # another bin is emptied next time, from the same packing
        if found is not None:
            place, bins, attempt = found, bins - 1, 0
    return Packing(place=place, bins=bins, bound=bound, cut=cut)


def shares(sizes: F64, capacity: F64) -> F64:
    """Sizes as shares of a bin; dimensions that no item uses are left out."""
    if sizes.ndim != 2 or capacity.shape != sizes.shape[1:]:
        raise ConfigError(f"vectors: sizes {sizes.shape} and capacity {capacity.shape}: allowed [n, d] and [d]")
    if not (np.isfinite(sizes).all() and (sizes >= 0.0).all() and np.isfinite(capacity).all() and (capacity >= 0.0).all()):
        raise ConfigError("vectors: a size or capacity is negative or not a number: allowed 0 or more")
    used = sizes.max(axis=0, initial=0.0) > 0.0
    found: F64 = np.ascontiguousarray(sizes[:, used] / np.maximum(capacity[used], 1e-300))
    big = np.flatnonzero((found > FULL).any(axis=1))
    if len(big):
        raise ConfigError(f"vectors: item {big[0]} is {found[big[0]].max():g} of a bin in one dimension: allowed at most 1")
    return found


def volume_bound(size: F64) -> int:
    """Each dimension's total, rounded up."""
    return int(np.ceil(size.sum(axis=0).max(initial=0.0) - 1e-6)) if size.size else 1


@njit(cache=True, nogil=True)
def apart_bound(size: F64, order: I32) -> int:
    """Size of a set of items no two of which fit into one bin, gathered greedily in this order."""
    chosen = np.empty(len(size), np.int32)
    count = 0
    for v in order:
        alone = True
        for i in range(count):
            together = True
            for c in range(size.shape[1]):
                if size[v, c] + size[chosen[i], c] > FULL:
                    together = False
                    break
            if together:
                alone = False
                break
        if alone:
            chosen[count] = v
            count += 1
    return count


def first_packing(size: F64, bound: int, until: float) -> tuple[I32, int]:
    """The best of the constructions, the cheap ones first; stops at the bound or when the time is up."""
    total = size.sum(axis=0)
    measures = [size @ total, size.max(axis=1), size.sum(axis=1), size @ (total**2)]
    orders = [np.argsort(-measure, kind="stable").astype(np.int32) for measure in measures]
    best: tuple[I32, int] | None = None

    def better(found: tuple[I32, int]) -> bool:
        nonlocal best
        best = found if best is None or found[1] < best[1] else best
        return best[1] > bound and time.perf_counter() < until

    for order in orders[:2]:
        if not better(best_fit(size, order, total)):
            break
    else:
        for squared in (False, True):
            if not better(dynamic_bins(size, squared)):
                break
        else:
            for measure, order in zip(measures, orders, strict=True):
                if not better(by_bins(size, order, measure, NODES, 0.999)):
                    break
    assert best is not None
    return best


def one_bin_fewer(size: F64, place: I32, bins: int, attempt: int, state: U64, rounds: int, until: float) -> tuple[I32 | None, int, bool]:
    """(packing with one bin fewer or None, rounds spent, whether the time ran out). Attempt k empties the bin with the k-th least in it."""
    bulk = size @ size.sum(axis=0)
    content = np.bincount(place, weights=bulk, minlength=bins)
    gone = int(np.argsort(content, kind="stable")[attempt % bins])
    trial = place.copy()
    trial[place == gone] = -1
    trial[place == bins - 1] = gone if gone != bins - 1 else -1
    pool = np.empty(len(size), np.int32)
    out = np.flatnonzero(trial < 0)
    pool[: len(out)] = out[np.argsort(bulk[out], kind="stable")]
    waiting = len(out)
    load, member, count, slot = open_bins(size, trial, bins - 1)
    failures = np.ones(len(size), np.int64)
    spent = 0
    while waiting and spent < rounds:
        if time.perf_counter() > until:
            return None, spent, True
        waiting, used = empty_pool(
            size, bulk, load, member, count, trial, slot, pool, waiting, failures, min(CHUNK, rounds - spent), state
        )  # fmt: skip
        spent += used
    return (trial, spent, False) if not waiting else (None, spent, False)
