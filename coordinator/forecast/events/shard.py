"""A forecast shard that knows the calendar: its engine never sees events, what is announced is added to what the engine says. Pure.

Implements coordinator.ports.ForecastShard around any other one. Without announced events the engine's input and output pass unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.events.apply import with_events
from coordinator.forecast.events.effects import EventEffects
from coordinator.forecast.events.model import Labels, Occurrences
from coordinator.forecast.events.replay import without_events
from coordinator.forecast.rows import NEW
from coordinator.model import F64, N_RESOURCES, BucketBlock, ForecastBlock, HistoryBlock
from coordinator.ports import ForecastShard

FORGET_AFTER: Final = 288  # buckets: a VM that is away for a day starts anew, as in the engine


class EventShard:
    """`announce` may come before or after `load`; what `load` is given is stripped of what has been announced by then."""

    def __init__(self, engine: ForecastShard) -> None:
        self.engine = engine
        self.effects = EventEffects()
        self._vm_ids: list[str] = []
        self._unseen: list[int] = []
        self._calendar = Occurrences.none()
        self._labels: dict[str, Labels] = {}

    def announce(self, calendar: Occurrences) -> None:
        """The calendar from now on, in place of the earlier one."""
        self.effects.announce(calendar)
        self._calendar = calendar

    def label(self, labels: Mapping[str, Labels]) -> None:
        """Client and application of VMs, in place of what was said before."""
        self._labels = dict(labels)
        self.effects.label(self._labels)

    def load(self, history: HistoryBlock) -> None:
        """Start or restart: forget what was learnt, learn it again from the history, load the engine with the history without events."""
        self.effects = EventEffects()
        self.effects.announce(self._calendar)
        self._vm_ids, self._unseen = [], []
        self._follow(history.vm_ids)
        self.engine.load(without_events(self.effects, history))

    def advance(self, bucket: BucketBlock, capacity: Mapping[str, Sequence[float]]) -> ForecastBlock:
        """See the port."""
        self._follow(bucket.vm_ids)
        rows = self._rows_of(bucket.vm_ids)
        mean, peak = (np.full((len(self._vm_ids), N_RESOURCES), np.nan) for _ in range(2))
        mean[rows], peak[rows] = bucket.mean, bucket.peak
        bare_mean, bare_peak = self.effects.strip(bucket.start_s, mean, peak)
        self.effects.learn(bucket.start_s, mean, peak)
        base = self.engine.advance(replace(bucket, mean=bare_mean[rows], peak=bare_peak[rows]), capacity)
        unknown = (np.nan,) * N_RESOURCES
        top: F64 = np.array([capacity.get(vm_id, unknown) for vm_id in bucket.vm_ids], dtype=np.float64).reshape(-1, N_RESOURCES)
        return with_events(base, self.effects.lift(base, top, rows), top)

    def _rows_of(self, vm_ids: Sequence[str]) -> NDArray[np.int64]:
        if list(vm_ids) == self._vm_ids:
            return np.arange(len(vm_ids), dtype=np.int64)
        row = {vm_id: i for i, vm_id in enumerate(self._vm_ids)}
        return np.array([row[vm_id] for vm_id in vm_ids], dtype=np.int64)

    def _follow(self, vm_ids: Sequence[str]) -> None:
        if list(vm_ids) == self._vm_ids:
            self._unseen = [0] * len(vm_ids)
            return
        here = set(vm_ids)
        self._unseen = [0 if vm_id in here else unseen + 1 for vm_id, unseen in zip(self._vm_ids, self._unseen, strict=True)]
        kept = [i for i, unseen in enumerate(self._unseen) if unseen <= FORGET_AFTER]
        known = set(self._vm_ids)
        new = [vm_id for vm_id in vm_ids if vm_id not in known]
        if new or len(kept) < len(self._vm_ids):
            self._vm_ids = [self._vm_ids[i] for i in kept] + new
            self._unseen = [self._unseen[i] for i in kept] + [0] * len(new)
            self.effects.rearrange(np.array(kept + [NEW] * len(new), dtype=np.int64), self._vm_ids)
            self.effects.label(self._labels)
