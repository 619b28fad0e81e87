"""A forecast shard that knows the calendar: its engine never sees events, what is announced is added to what the engine says. Pure.

Implements coordinator.ports.ForecastShard around any other one. Without announced events the engine's input and output pass unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.challengers import ChallengerForecast
from coordinator.forecast.events.apply import outlook_with_events, with_events
from coordinator.forecast.events.effects import EventEffects, Lift
from coordinator.forecast.events.model import Labels, Occurrences
from coordinator.forecast.events.replay import without_events
from coordinator.forecast.explain import all_known
from coordinator.forecast.outlook import BLOCK_S
from coordinator.forecast.rows import NEW
from coordinator.forecast.why import EventWhy, ForecastWhy
from coordinator.model import F64, LEVELS, N_RESOURCES, BucketBlock, ForecastBlock, HistoryBlock, Outlook
from coordinator.ports import ForecastShard
from shared.units import BUCKET_S

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
        self._lifted: tuple[tuple[str, ...], Lift] | None = None  # the newest forecast's VMs and lift; None = no event adds anything
        self._told_since = False  # the calendar or the labels are newer than that forecast

    def announce(self, calendar: Occurrences) -> None:
        """The calendar from now on, in place of the earlier one."""
        self.effects.announce(calendar)
        self._calendar = calendar
        self._told_since = True

    def label(self, labels: Mapping[str, Labels]) -> None:
        """Client and application of VMs, in place of what was said before."""
        self._labels = dict(labels)
        self.effects.label(self._labels)
        self._told_since = True

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
        lift = self.effects.lift(base, top, rows)
        said = with_events(base, lift, top)
        self._lifted, self._told_since = None if said is base else (bucket.vm_ids, lift), False
        return said if base.outlook is None else replace(said, outlook=self._ahead(base.outlook, top, rows))

    def explain(self, vm_id: str) -> ForecastWhy | None:
        """See the port; the events one by one only until the calendar or the labels are told anew."""
        why = self.engine.explain(vm_id)
        if why is None or self._lifted is None or vm_id not in self._lifted[0] or why.issued_s != self._lifted[1].issued_s:
            return why
        added = self._lifted[1].mean[self._lifted[0].index(vm_id)]
        shares = [] if self._told_since else self.effects.shares(self._vm_ids.index(vm_id))
        resources = []
        for r, part in enumerate(why.resources):
            events = tuple(
                EventWhy(
                    name=notice.name,
                    category=notice.category,
                    start_s=start_s,
                    end_s=end_s,
                    mean_added=all_known(lift[r]),
                    peak_added=all_known(lift[N_RESOURCES + r]),
                )
                for notice, start_s, end_s, lift in shares
                if lift[[r, N_RESOURCES + r]].any()
            )
            resources.append(msgspec.structs.replace(part, events=events, events_added=all_known(added[r]) if added[r].any() else ()))
        return msgspec.structs.replace(why, resources=tuple(resources))

    def post(self, forecasts: Sequence[ChallengerForecast]) -> None:
        """See the port; they too speak of load without events."""
        self.engine.post(forecasts)

    def _ahead(self, base: Outlook, capacity: F64, rows: NDArray[np.int64]) -> Outlook:
        """The outlook with what the calendar announces for its blocks."""
        blocks = base.quantiles.shape[2]
        if not len(self._calendar.near(base.issued_s - BLOCK_S, base.issued_s + blocks * BLOCK_S)):
            return base
        middle = LEVELS.index(0.5)
        medians = np.concatenate([base.quantiles[..., middle], base.peak_quantiles[..., middle]], axis=1)
        level = np.repeat(medians.astype(np.float64), BLOCK_S // BUCKET_S, axis=2)
        return outlook_with_events(base, self.effects.ahead(base.issued_s, level, rows), capacity)

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
