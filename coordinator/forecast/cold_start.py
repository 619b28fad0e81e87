"""A forecast shard that knows what VMs of a kind usually need: who is too new for a model of its own borrows its class's. Pure.

Implements coordinator.ports.ForecastShard around any other one. Classes are client, application and flavour (size), see priors.py; the size
follows from the capacity, the others from `label`. What is borrowed stays marked COLD_START and names the model "class_prior".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.challengers import ChallengerForecast
from coordinator.forecast.events.model import Labels
from coordinator.forecast.explain import reason_why
from coordinator.forecast.priors import MODEL, OWN, ClassKey, ClassPriors, flavour
from coordinator.forecast.rows import NEW
from coordinator.forecast.why import ClassWhy, ColdStartWhy, ForecastWhy, ResourceWhy
from coordinator.model import F64, LEVELS, N_RESOURCES, BucketBlock, ForecastBlock, HistoryBlock, NoForecast
from coordinator.ports import ForecastShard
from shared.units import BUCKET_S, CPU, MEMORY

REMEMBERED: Final = 576  # buckets of history that teach the classes on load: two days hold every hour twice
FORGET_AFTER: Final = 288  # buckets: a VM that is away for a day starts anew, as in the engine
# Share of probability that each level stands for: bounds half way between neighbours
LEVEL_WEIGHTS: Final = np.diff(np.array([0.0, *((a + b) / 2 for a, b in pairwise(LEVELS)), 1.0]))
_UNKNOWN: Final = (np.nan,) * N_RESOURCES
_NOBODY: Final = (np.zeros(0, dtype=np.int64), np.zeros((0, N_RESOURCES), dtype=np.bool_))


class ColdStartShard:
    """`label` may come at any time; a VM without labels is of its size's class alone."""

    def __init__(self, engine: ForecastShard) -> None:
        self.engine = engine
        self._labels: dict[str, Labels] = {}
        self._reset()

    def _reset(self) -> None:
        self._priors = ClassPriors()
        self._vm_ids: list[str] = []
        self._row: dict[str, int] = {}
        self._unseen: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._keys: list[ClassKey] = []
        self._newest_s: int | None = None
        self._lent: tuple[NDArray[np.int64], NDArray[np.bool_]] = _NOBODY  # rows that borrowed in the newest forecast, and [n, r] what

    def label(self, labels: Mapping[str, Labels]) -> None:
        """Client and application of VMs, in place of what was said before."""
        self._labels = dict(labels)

    def load(self, history: HistoryBlock) -> None:
        """See the port; the newest REMEMBERED buckets teach the classes."""
        self._reset()
        self._follow(history.vm_ids)
        capacity = history.capacity.astype(np.float64)
        self._classify(np.arange(len(history.vm_ids)), history.vm_ids, capacity)
        buckets = history.mean.shape[2]
        for b in range(max(0, buckets - REMEMBERED), buckets):
            self._newest_s = history.end_s - (buckets - 1 - b) * BUCKET_S
            self._priors.learn(history.mean[:, :, b].astype(np.float64), history.peak[:, :, b].astype(np.float64), capacity, self._newest_s)
        self.engine.load(history)

    def advance(self, bucket: BucketBlock, capacity: Mapping[str, Sequence[float]]) -> ForecastBlock:
        """See the port."""
        said = self.engine.advance(bucket, capacity)
        self._follow(bucket.vm_ids)
        rows = np.array([self._row[vm_id] for vm_id in bucket.vm_ids], dtype=np.int64)
        top: F64 = np.array([capacity.get(vm_id, _UNKNOWN) for vm_id in bucket.vm_ids], dtype=np.float64).reshape(-1, N_RESOURCES)
        self._classify(rows, bucket.vm_ids, top)
        self._learn(bucket, rows, top)
        return self._borrow(said, rows, top)

    def explain(self, vm_id: str) -> ForecastWhy | None:
        """See the port; resources that borrowed say from whom."""
        why, row = self.engine.explain(vm_id), self._row.get(vm_id)
        at = np.flatnonzero(self._lent[0] == row)
        if why is None or row is None or not len(at):
            return why
        used = self._lent[1][at[0]]
        resources = tuple(self._lent_to(row, r, part) if used[r] else part for r, part in enumerate(why.resources))
        return msgspec.structs.replace(why, resources=resources)

    def _lent_to(self, row: int, r: int, why: ResourceWhy) -> ResourceWhy:
        readings = int(self._priors.readings[row, r])
        donors = tuple(
            ClassWhy(client=client, app=app, flavour=size, vms=vms, share=share)
            for (client, app, size), vms, share in self._priors.donors(row, r)
        )
        borrowed = ColdStartWhy(readings=readings, own_level=readings / (readings + OWN), classes=donors)
        before = why.reason
        seen, since_s = (0, None) if before is None else (before.readings or 0, before.since_s)
        return msgspec.structs.replace(why, reason=reason_why(NoForecast.COLD_START, seen, 0, since_s, None), cold_start=borrowed)

    def post(self, forecasts: Sequence[ChallengerForecast]) -> None:
        """See the port."""
        self.engine.post(forecasts)

    def _borrow(self, said: ForecastBlock, rows: NDArray[np.int64], capacity: F64) -> ForecastBlock:
        models = (*said.models, MODEL)
        cold = (said.reason == NoForecast.COLD_START) | (said.reason == NoForecast.ALL_UNKNOWN)
        which = np.flatnonzero(cold.any(axis=1))
        self._lent = _NOBODY
        if not len(which):
            return replace(said, models=models)
        borrowed, highest = self._priors.prior(rows[which], capacity[which], said.issued_s)
        use = cold[which] & np.isfinite(borrowed).all(axis=(2, 3)) & np.isfinite(highest).all(axis=(2, 3))
        self._lent = (rows[which], use)
        quantiles, peaks = said.quantiles.copy(), said.peak_quantiles.copy()
        mean, stddev, model, reason = said.mean.copy(), said.stddev.copy(), said.model.copy(), said.reason.copy()
        at = which[:, None].repeat(N_RESOURCES, axis=1)[use], np.nonzero(use)[1]
        quantiles[at], peaks[at] = borrowed[use], highest[use]
        mean[at] = (borrowed[use] * LEVEL_WEIGHTS).sum(axis=-1)
        stddev[at] = np.sqrt(((borrowed[use] - mean[at][..., None]) ** 2 * LEVEL_WEIGHTS).sum(axis=-1))
        model[at], reason[at] = len(models) - 1, NoForecast.COLD_START
        return replace(said, quantiles=quantiles, peak_quantiles=peaks, mean=mean, stddev=stddev, model=model, reason=reason, models=models)

    def _learn(self, bucket: BucketBlock, rows: NDArray[np.int64], capacity: F64) -> None:
        """The same bucket again teaches nothing new; buckets that never came are unknown."""
        if self._newest_s is not None and bucket.start_s <= self._newest_s:
            return
        shape = (len(self._vm_ids), N_RESOURCES)
        unknown = np.full(shape, np.nan)
        if self._newest_s is not None:
            for start_s in range(self._newest_s + BUCKET_S, min(bucket.start_s, self._newest_s + 13 * BUCKET_S), BUCKET_S):
                self._priors.learn(unknown, unknown, unknown, start_s)
        mean, peak, top = unknown.copy(), unknown.copy(), unknown.copy()
        mean[rows], peak[rows], top[rows] = bucket.mean, bucket.peak, capacity
        mean[~np.isfinite(mean)] = np.nan
        peak[~np.isfinite(peak)] = np.nan
        self._priors.learn(mean, peak, top, bucket.start_s)
        self._newest_s = bucket.start_s

    def _classify(self, rows: NDArray[np.int64], vm_ids: Sequence[str], capacity: F64) -> None:
        changed, keys = [], []
        for row, vm_id, top in zip(rows, vm_ids, capacity, strict=True):
            label = self._labels.get(vm_id) or Labels()
            sized = np.isfinite(top[CPU]) and np.isfinite(top[MEMORY])
            key = ClassKey(label.client, label.app, flavour(round(top[CPU] / 1000.0), int(top[MEMORY])) if sized else "")
            if key != self._keys[row]:
                self._keys[row] = key
                changed.append(row)
                keys.append(key)
        if changed:
            self._priors.classify(np.array(changed, dtype=np.int64), keys)

    def _follow(self, vm_ids: Sequence[str]) -> None:
        here = set(vm_ids)
        new = [vm_id for vm_id in vm_ids if vm_id not in self._row]
        self._unseen = np.array(
            [0 if vm_id in here else n + 1 for vm_id, n in zip(self._vm_ids, self._unseen, strict=True)], dtype=np.int64
        )
        kept = np.flatnonzero(self._unseen <= FORGET_AFTER)
        if not new and len(kept) == len(self._vm_ids):
            return
        self._priors.rearrange(np.array([*kept, *([NEW] * len(new))], dtype=np.int64))
        self._vm_ids = [self._vm_ids[i] for i in kept] + new
        self._keys = [self._keys[i] for i in kept] + [ClassKey()] * len(new)
        self._unseen = np.array([*self._unseen[kept], *([0] * len(new))], dtype=np.int64)
        self._row = {vm_id: row for row, vm_id in enumerate(self._vm_ids)}
