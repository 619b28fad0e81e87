"""What VMs of a client or an application usually do at an hour of the day: categories as numbers that trees can split. Pure.

A cell is one group, resource and hour (UTC, of the middle of the coming hour); its value the mean target of its pairs, that is, by how many
units load then rises or falls. Cells with few pairs lean on the group's mean for the resource, that on all VMs' mean of the hour:
    value = all[r, h] + lean(group[r] - all) + lean(cell[r, h] - group[r]),    lean(x) = x n / (n + EVIDENCE)
So a VM of yesterday rises in the morning with its siblings. While training, a pair's value comes from other VMs alone (folds), else the
trees would trust it as if each VM had seen its own future. Source: Micci-Barreca, "A preprocessing scheme for high-cardinality
categorical attributes", SIGKDD Explorations 2001.
Invariant: finite; a group that was never seen is NaN; the order of VMs and groups makes no difference to the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.covariates import GROUPS, NOBODY, Covariates
from coordinator.model import F32, F64, N_RESOURCES
from shared.units import BUCKET_S, HORIZON_STEPS

I64 = NDArray[np.int64]

HOURS: Final = 24
CELLS: Final = N_RESOURCES * HOURS
EVIDENCE: Final = 40.0  # pairs after which half of a value is its own
FOLDS: Final = 4
MOST_GROUPS: Final = 4096  # 2 MB; those with most pairs


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """Groups by number, ascending int64[g], and their values float32[g, CELLS] by resource and hour."""

    numbers: I64
    values: F32

    @classmethod
    def none(cls) -> Profiles:
        """No group was seen."""
        return cls(numbers=np.zeros(0, dtype=np.int64), values=np.zeros((0, CELLS), dtype=np.float32))

    def of(self, known: Covariates, which: I64, now_s: I64) -> F32 | None:
        """What client and application of the pairs usually do, float32[m, 2]; NaN = none, or never seen; None = no labels at all.

        which int64[m] series, now_s int64[m] start of their newest bucket.
        """
        if known.groups is None:
            return None
        out = np.full((len(which), len(GROUPS)), np.nan, dtype=np.float32)
        if not len(self.numbers):
            return out
        cells, vms = _cell(which, now_s), which // N_RESOURCES
        for column in range(len(GROUPS)):
            wanted = known.groups[vms, column]
            at = np.minimum(np.searchsorted(self.numbers, wanted), len(self.numbers) - 1)
            seen = (self.numbers[at] == wanted) & (wanted != NOBODY)
            out[seen, column] = self.values[at[seen], cells[seen]]
        return out


class Learnt(NamedTuple):
    """Profiles of all VMs, and for each fold of VMs those of the others."""

    every: Profiles
    others: tuple[Profiles, ...]

    def apart(self, known: Covariates, which: I64, now_s: I64) -> F32 | None:
        """As Profiles.of, but each pair's value comes from VMs that are not its own."""
        if known.groups is None:
            return None
        fold = _folds(known.groups)[which // N_RESOURCES]
        out = np.full((len(which), len(GROUPS)), np.nan, dtype=np.float32)
        for k, profiles in enumerate(self.others):
            found = profiles.of(known, which[fold == k], now_s[fold == k])
            if found is not None:
                out[fold == k] = found
        return out


def learn(known: Covariates, which: I64, now_s: I64, target: F64) -> Learnt:
    """From pairs of series int64[m] and starts of their newest buckets, target float64[m], NaN = not known."""
    if known.groups is None:
        return Learnt(Profiles.none(), ())
    groups, fold = known.groups, _folds(known.groups)[which // N_RESOURCES]
    others = tuple(_profiles(groups, which, now_s, np.where(fold == k, np.nan, target)) for k in range(FOLDS))
    return Learnt(_profiles(groups, which, now_s, target), others)


def packed(profiles: Profiles) -> Mapping[str, bytes]:
    """Little-endian bytes, for msgpack."""
    return {"numbers": profiles.numbers.astype("<i8").tobytes(), "values": profiles.values.astype("<f4").tobytes()}


def restored(given: Mapping[str, bytes]) -> Profiles:
    """Inverse of `packed`. Raises ValueError for what it never gives."""
    if given.keys() != {"numbers", "values"}:
        raise ValueError(f"profiles of {', '.join(sorted(given))}: allowed numbers and values")
    numbers = np.frombuffer(given["numbers"], dtype="<i8").astype(np.int64)
    values = np.frombuffer(given["values"], dtype="<f4").astype(np.float32)
    if len(numbers) > MOST_GROUPS or len(values) != len(numbers) * CELLS or (np.diff(numbers) <= 0).any() or not np.isfinite(values).all():
        raise ValueError(f"profiles of {len(numbers)} groups and {len(values)} values do not fit each other")
    return Profiles(numbers=numbers, values=values.reshape(-1, CELLS))


def _folds(groups: I64) -> I64:
    """Fold of each VM, int64[v]: the VMs of a group are dealt out in turn, so that each has siblings in the others."""
    fold = np.empty(len(groups), dtype=np.int64)
    fold[np.lexsort((groups[:, 1], groups[:, 0]))] = np.arange(len(groups)) % FOLDS
    return fold


def _cell(which: I64, now_s: I64) -> I64:
    hour = (now_s + HORIZON_STEPS // 2 * BUCKET_S) % 86_400 // 3600
    cell: I64 = which % N_RESOURCES * HOURS + hour
    return cell


def _profiles(groups: I64, which: I64, now_s: I64, target: F64) -> Profiles:
    good = np.isfinite(target)
    which, now_s, target = which[good], now_s[good], target[good]
    cell = _cell(which, now_s)
    every = _mean(cell, target, CELLS, EVIDENCE, np.zeros(CELLS))
    of_vm = groups[which // N_RESOURCES]
    wanted = of_vm.T.reshape(-1)  # each pair counts for its client and for its application
    has = wanted != NOBODY
    numbers, place, count = np.unique(wanted[has], return_inverse=True, return_counts=True)
    if not len(numbers):
        return Profiles.none()
    both_cell, away = np.tile(cell, len(GROUPS))[has], np.tile(target - every[cell], len(GROUPS))[has]
    g = len(numbers)
    usual = _mean(place * N_RESOURCES + both_cell // HOURS, away, g * N_RESOURCES, EVIDENCE, np.zeros(g * N_RESOURCES))
    values = every + _mean(place * CELLS + both_cell, away, g * CELLS, EVIDENCE, usual.repeat(HOURS)).reshape(g, CELLS)
    kept = np.sort(np.argsort(-count, kind="stable")[:MOST_GROUPS])
    return Profiles(numbers=numbers[kept], values=values[kept].astype(np.float32))


def _mean(place: I64, values: F64, size: int, evidence: float, prior: F64) -> F64:
    """Mean of the values at each of `size` places, drawn to `prior`."""
    total, count = np.bincount(place, weights=values, minlength=size), np.bincount(place, minlength=size)
    mean: F64 = (total + evidence * prior) / (count + evidence)
    return mean
