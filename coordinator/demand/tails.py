"""What lies above a limit that hides it: demand of blind buckets, from the bucket's own free samples or the VM's own history. Pure.

Part of a bucket blind: its free samples and the share of blind time fix a lognormal (Tobit by moments), whose mean above the limit is
taken. All of it blind: the Kaplan-Meier estimate of the VM's bucket means gives E[demand | demand > limit]; blind buckets enter it as
"at least this", so being capped for days does not make a VM forget what it was. Histograms of 4 bins an octave with weights that halve
every week, 96 bins x 2 x float32 x 5 resources = 3.8 KB a VM, 38 MB for 10,000.
Invariants: what is added lies within 3 % and 300 % of the limit (memory 25 %: a guest that lacks more would stall or swap, and is not
blind), and is 10 % where the history is silent; the same buckets give the same bytes.
Sources: Tobin, Econometrica 26 (1958); Kaplan and Meier, JASA 53 (1958).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F64, N_RESOURCES
from shared.units import MEMORY

LEAST: Final = 0.03  # a VM at its limit asks for a little more in any case
SILENT: Final = 0.10
MOST: Final = np.full(N_RESOURCES, 3.0)
MOST[MEMORY] = 0.25
EVIDENCE: Final = 3.0  # buckets seen above the limit, weights of today
HALF_LIFE: Final = 2016.0  # buckets: one week
FREE_SHARE: Final = 0.05  # of a bucket's time held at a limit: less, and its mean is a free reading
WHOLE_SHARE: Final = 0.9  # more, and the free samples are too few to speak
_SIGMAS: Final = tuple(0.05 * k for k in range(1, 31))  # of the log of demand within a bucket
_SHARES: Final = 100
_OCTAVE: Final = 4  # bins
_BINS: Final = 96
_LOWEST: Final = np.array([1.0, 2.0**20, 2.0**10, 2.0**10, 2.0**10])  # lowest value told apart, in each resource's unit
_RENEW: Final = 2.0**40  # weights grow instead of all bins shrinking; beyond this everything is scaled back
_STEP: Final = 1.0 / _OCTAVE
_FORGET: Final = 4032  # buckets without the VM


class Tails:
    """Demand histograms of every VM and what they say of demand above a limit."""

    def __init__(self) -> None:
        self._row: dict[str, int] = {}
        self._vm_ids: list[str] = []
        self._seen: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._free: NDArray[np.float32] = np.zeros((0, N_RESOURCES, _BINS), dtype=np.float32)
        self._held: NDArray[np.float32] = np.zeros((0, N_RESOURCES, _BINS), dtype=np.float32)
        self._weight = 1.0
        self._bucket = 0

    def learn(self, vm_ids: Sequence[str], mean: F64, blind: F64, buckets: int = 1) -> None:
        """One closed bucket: demand (at least) and blind share, float64[v, r] each; NaN = unknown. Call it once a bucket, oldest first.

        `buckets`: how many it stands for. 5 ms for 10,000 VMs.
        """
        rows = self._follow(vm_ids)
        self._bucket += buckets
        self._seen[rows] = self._bucket
        self._weight *= 2.0 ** (buckets / HALF_LIFE)
        if self._weight > _RENEW:
            self._free /= np.float32(self._weight)
            self._held /= np.float32(self._weight)
            self._weight = 1.0
        known = np.isfinite(mean)
        at = np.argwhere(known)
        bins = _bin(mean)[known]
        free = ~(blind[known] >= FREE_SHARE)
        for plane, chosen in ((self._free, free), (self._held, ~free)):
            np.add.at(plane, (rows[at[chosen, 0]], at[chosen, 1], bins[chosen]), np.float32(self._weight * buckets))
        self._forget()

    def excess(self, vm_ids: Sequence[str], limit: F64, blind: F64, free_mean: F64) -> F64:
        """Demand above `limit` in the blind part of a bucket, float64[v, r], within the bounds of the module; 0 where nothing is blind.

        `limit`: level at which the VM was held; `blind`: share of time 0..1; `free_mean`: mean of the other samples (NaN = none).
        """
        out = np.zeros_like(limit)
        v, r = np.nonzero((blind > 0) & (limit > 0))
        if not len(v):
            return out
        at, share = limit[v, r], blind[v, r]
        partly = (share < WHOLE_SHARE) & (free_mean[v, r] > 0)
        above = np.where(partly, _above_in_bucket(at, share, free_mean[v, r]), np.nan)
        rows = np.array([self._row.get(vm_id, -1) for vm_id in vm_ids], dtype=np.int64)[v]
        whole = ~partly & (rows >= 0)
        if whole.any():
            above[whole] = self._above_in_history(rows[whole], r[whole], at[whole])
        added = np.where(np.isnan(above), SILENT * at, above - at)
        out[v, r] = np.clip(added, LEAST * at, MOST[r] * at)
        return out

    def _above_in_history(self, rows: NDArray[np.int64], r: NDArray[np.int64], limit: F64) -> F64:
        """E[demand | demand > limit] float64[m] by Kaplan-Meier; NaN where too little was seen above."""
        free, held = self._free[rows, r].astype(np.float64), self._held[rows, r].astype(np.float64)
        index = np.arange(_BINS)
        place = np.clip(np.log2(limit / _LOWEST[r]) * _OCTAVE, 0.0, _BINS - 1.0)[:, None]
        part = np.clip(index + 1.0 - place, 0.0, 1.0)  # of each bin above the limit
        free = free * part
        held = np.where(index > place, held, 0.0)  # held at the very limit: nothing known above it
        middles = _LOWEST[r][:, None] * 2.0 ** ((index + 1.0 - part / 2.0) * _STEP)
        both = free + held
        at_risk = np.cumsum(both[:, ::-1], axis=1)[:, ::-1]
        survival = np.cumprod(1.0 - np.where(at_risk > 0, free / np.maximum(at_risk, 1e-30), 0.0), axis=1)
        mass = np.concatenate([np.ones((len(rows), 1)), survival[:, :-1]], axis=1) - survival
        top = np.max(np.where(both > 0, middles, 0.0), axis=1)  # what is left beyond the largest reading is counted there
        above = (mass * middles).sum(axis=1) + survival[:, -1] * np.maximum(top, limit)
        seen = free.sum(axis=1) / self._weight
        return np.where(seen >= EVIDENCE, above, np.nan)

    def _follow(self, vm_ids: Sequence[str]) -> NDArray[np.int64]:
        new = [vm_id for vm_id in vm_ids if vm_id not in self._row]
        if new:
            for vm_id in new:
                self._row[vm_id] = len(self._vm_ids)
                self._vm_ids.append(vm_id)
            empty = np.zeros((len(new), N_RESOURCES, _BINS), dtype=np.float32)
            self._seen = np.concatenate([self._seen, np.zeros(len(new), dtype=np.int64)])
            self._free, self._held = np.concatenate([self._free, empty]), np.concatenate([self._held, empty])
        return np.array([self._row[vm_id] for vm_id in vm_ids], dtype=np.int64)

    def _forget(self) -> None:
        if self._bucket % 288 or not (stale := self._seen < self._bucket - _FORGET).any():
            return
        kept = np.flatnonzero(~stale)
        self._vm_ids = [self._vm_ids[row] for row in kept]
        self._row = {vm_id: row for row, vm_id in enumerate(self._vm_ids)}
        self._seen, self._free, self._held = self._seen[kept], self._free[kept], self._held[kept]


def _bin(values: F64) -> NDArray[np.int64]:
    """Bin of each value, int64[v, r]; unknown and low values fall into the first."""
    return _bin_of(values, np.arange(N_RESOURCES))


def _bin_of(values: F64, r: NDArray[np.int64]) -> NDArray[np.int64]:
    ratio = np.where(np.isfinite(values), values, 0.0) / _LOWEST[r]
    bins: NDArray[np.int64] = np.clip(np.floor(np.log2(np.maximum(ratio, 1.0)) * _OCTAVE), 0, _BINS - 1).astype(np.int64)
    return bins


def _above_in_bucket(limit: F64, share: F64, free_mean: F64) -> F64:
    """E[demand | demand > limit] float64[m] of the lognormal with P(> limit) = share and mean below the limit = free_mean."""
    below, above = _lognormals()
    row = np.clip((share * _SHARES).astype(np.int64), 0, _SHARES - 1)
    best = np.argmin(np.abs(below[row] - (free_mean / limit)[:, None]), axis=1)
    found: F64 = limit * above[row, best]
    return found


@cache
def _lognormals() -> tuple[F64, F64]:
    """Mean below and above the limit, in limits, float64[share, sigma], of truncated lognormals; z = quantile(1 - share) is the limit."""
    normal = NormalDist()
    below, above = np.empty((_SHARES, len(_SIGMAS))), np.empty((_SHARES, len(_SIGMAS)))
    for i in range(_SHARES):
        share = (i + 0.5) / _SHARES
        z = normal.inv_cdf(1.0 - share)
        for j, sigma in enumerate(_SIGMAS):
            factor = math.exp(sigma * sigma / 2.0 - sigma * z)
            below[i, j] = factor * normal.cdf(z - sigma) / (1.0 - share)
            above[i, j] = factor * normal.cdf(sigma - z) / share
    return below, above
