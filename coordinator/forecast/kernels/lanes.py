"""Series side by side, in float32: what sorts, ranks and remembers seasons for WIDE series (or phases of a day) in step.

A sort of a few dozen values guesses wrong at every other comparison; a network of comparators (Batcher 1968, odd-even mergesort) compares
the same places whatever stands there, so WIDE series sort at once in vector registers (36 values: 40 ns a series, insertion 400).
Rows are places, columns are series. `flat` is for kernels that read series out of a longer ring: numba vectorises only what it knows to be
contiguous, and a view of a ring's newest buckets is not.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.model import F32

WIDE: Final = 32  # fewer are unrolled before they are vectorised, more leave the first-level cache: measured 150, 39, 31 ns for 16, 32, 64


def sorting_pairs(count: int) -> NDArray[np.int64]:
    """Comparators int64[k, 2] that sort `count` rows."""
    found = []
    merged = 1
    while merged < count:
        reach = merged
        while reach >= 1:
            for begin in range(reach % merged, count - reach, 2 * reach):
                for place in range(begin, begin + min(reach, count - begin - reach)):
                    if place // (2 * merged) == (place + reach) // (2 * merged):
                        found.append((place, place + reach))
            reach //= 2
        merged *= 2
    return np.array(found, dtype=np.int64).reshape(-1, 2)


PAIRS_7: Final = sorting_pairs(7)
PAIRS_12: Final = sorting_pairs(12)
PAIRS_36: Final = sorting_pairs(36)


def flat(series: F32) -> tuple[F32, int]:
    """float32[n, b], maybe a view of longer rows -> (its memory as one contiguous row, read-only; how far apart two series begin)."""
    n, b = series.shape
    if n == 0 or b == 0 or series.strides[1] != 4 or series.strides[0] < 4 * b:
        found, apart = np.ascontiguousarray(series, dtype=np.float32).reshape(-1), b
    else:
        apart = series.strides[0] // 4
        found = np.lib.stride_tricks.as_strided(series, ((n - 1) * apart + b,), (4,))
    found = found.view()
    found.flags.writeable = False  # whoever owns the ring: numba compiles once
    return found, apart


@njit(cache=True)
def sort_lanes(rows: F32, pairs: NDArray[np.int64]) -> None:
    """Order each column of float32[>= places, WIDE] in place, the smallest in row 0. No NaN; inf stands for nothing there."""
    for k in range(pairs.shape[0]):
        low, high = rows[pairs[k, 0]], rows[pairs[k, 1]]
        for j in range(WIDE):
            a, b = low[j], high[j]
            low[j] = a if a < b else b
            high[j] = b if a < b else a


@njit(cache=True)
def quantile_lanes(ordered: F32, count: int, level: float, out: F32) -> None:
    """Empirical quantile (linear interpolation, as numpy) of the first `count` rows: float32[WIDE]."""
    place = level * (count - 1)
    low = int(place)
    share = np.float32(place - low)
    below, above = ordered[low], ordered[min(low + 1, count - 1)]
    for j in range(WIDE):
        out[j] = below[j] + share * (above[j] - below[j])


@njit(cache=True)
def transpose_lanes(rows: F32, out: F32) -> None:
    """float32[WIDE, b] -> float32[b, WIDE]."""
    for t in range(rows.shape[1]):
        target = out[t]
        for j in range(WIDE):
            target[j] = rows[j, t]


@njit(cache=True)
def fill_row(row: F32) -> int:
    """The gap rule (gaps.py) on one row in place: the number of readings; all 0 where there is none."""
    known = 0
    for t in range(row.shape[0]):
        known += 1 if np.isfinite(row[t]) else 0
    if known == row.shape[0]:
        return known
    if known == 0:
        row[:] = 0.0
        return 0
    first = 0
    while not np.isfinite(row[first]):
        first += 1
    last = row[first]
    row[:first] = last
    for t in range(first, row.shape[0]):
        if np.isfinite(row[t]):
            last = row[t]
        row[t] = last
    return known


@njit(cache=True)
def fetch_seasons(row: F32, first: int, columns: int, season: int, seasons: int) -> float:
    """Ask for the memory that season_medians will read, for many series before the first of them needs it: the waits overlap.

    The sum of what was touched: nobody needs it, but without it the compiler would leave the reading out.
    """
    total = np.float32(0.0)
    for d in range(1, seasons + 1):
        begin = first - d * season
        if begin >= 0:
            total += row[begin] + row[min(begin + columns, row.shape[0]) - 1]
    return float(total)


@njit(cache=True, error_model="numpy")
def season_medians(row: F32, first: int, columns: int, season: int, reach: int, work: F32, pairs: NDArray[np.int64], out: F32) -> int:
    """Median over earlier seasons of the mean of phase - reach .. phase + reach (0 or 1), for `columns` (<= WIDE) buckets from `first`.

    As profile.season_profile, with all phases at once. work float32[seasons, WIDE]; `row` may hold NaN and ends with the newest bucket;
    a season that begins before `row` counts for nothing. out[columns] is NaN where no earlier season has a reading; returns how many have.
    """
    seasons, until = work.shape[0], row.shape[0]
    nothing = np.float32(np.inf)
    for d in range(seasons):
        target = work[d]
        begin = first - (d + 1) * season
        if begin < 0:
            target[:columns] = nothing
        elif begin < reach or begin + columns + reach > until:
            _means_of_what_is_there(row, begin, columns, reach, target)
        elif reach == 0:
            here = row[begin : begin + columns]
            for j in range(columns):
                target[j] = here[j] if abs(here[j]) < nothing else nothing
        else:
            before, here, after = row[begin - 1 :], row[begin:], row[begin + 1 :]
            unknown = 0
            for j in range(columns):
                total = before[j] + here[j] + after[j]
                target[j] = total * np.float32(1.0 / 3.0)
                unknown += 0 if abs(total) < nothing else 1
            if unknown:
                _means_of_what_is_there(row, begin, columns, reach, target)
    sort_lanes(work, pairs)
    told = 0
    for j in range(columns):
        found = seasons
        while found > 0 and not work[found - 1, j] < nothing:
            found -= 1
        out[j] = np.float32(0.5) * (work[(found - 1) // 2, j] + work[found // 2, j]) if found > 0 else np.float32(np.nan)
        told += 1 if found > 0 else 0
    return told


@njit(cache=True, error_model="numpy")
def _means_of_what_is_there(row: F32, begin: int, columns: int, reach: int, target: F32) -> None:
    """One season with gaps, or at either end of `row`: the means of what is there; inf = nothing."""
    for j in range(columns):
        total, heard = np.float32(0.0), 0
        for t in range(max(begin + j - reach, 0), min(begin + j + reach + 1, row.shape[0])):
            if np.isfinite(row[t]):
                total += row[t]
                heard += 1
        target[j] = total / np.float32(heard) if heard > 0 else np.float32(np.inf)
