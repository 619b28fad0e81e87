"""What a forecast worker runs: the engine, with the calendar around it, and for VMs too new for a model what is usual for their kind.

Implements coordinator.ports.ForecastShard; the engine's demand holds no events and no borrowed forecasts (when events are it is told, see
covariates.py). Trainings learn from a history without events and without one-off anomalies; forecasts, scores and alerts see every bucket
as it was. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from coordinator.demand.anomalies import AnomalyFilter
from coordinator.forecast.challengers import ChallengerForecast
from coordinator.forecast.cold_start import ColdStartShard
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.forecast.events.effects import EventEffects
from coordinator.forecast.events.model import Labels, Occurrences
from coordinator.forecast.events.replay import without_events
from coordinator.forecast.events.shard import EventShard
from coordinator.forecast.why import ForecastWhy
from coordinator.model import BucketBlock, ForecastBlock, HistoryBlock


class Forecaster:
    """See the module."""

    def __init__(self, options: ForecastOptions | None = None) -> None:
        self.engine = ForecastEngine(options)
        self._cold = ColdStartShard(self.engine)
        self._events = EventShard(self._cold)
        self._calendar = Occurrences.none()
        self._labels: dict[str, Labels] = {}

    def announce(self, calendar: Occurrences) -> None:
        """The calendar from now on, in place of the earlier one; may come before or after `load`."""
        self._calendar = calendar
        self._events.announce(calendar)
        self.engine.announce(calendar)

    def label(self, labels: Mapping[str, Labels]) -> None:
        """Client and application of VMs, in place of what was said before."""
        self._labels = dict(labels)
        self._events.label(labels)
        self._cold.label(labels)
        self.engine.label(labels)

    def load(self, history: HistoryBlock) -> None:
        """See the port."""
        self._events.load(history)

    def advance(self, bucket: BucketBlock, capacity: Mapping[str, Sequence[float]]) -> ForecastBlock:
        """See the port."""
        return self._events.advance(bucket, capacity)

    def explain(self, vm_id: str) -> ForecastWhy | None:
        """See the port."""
        return self._events.explain(vm_id)

    def post(self, forecasts: Sequence[ChallengerForecast]) -> None:
        """See the port; what was said of a history that `bare` had given."""
        self._events.post(forecasts)

    def bare(self, history: HistoryBlock) -> HistoryBlock:
        """The history as the engine sees it: without what events added."""
        effects = EventEffects()
        effects.announce(self._calendar)
        effects.rearrange(np.full(len(history.vm_ids), -1, dtype=np.int64), history.vm_ids)
        effects.label(self._labels)
        return without_events(effects, history)

    def retrain(self, history: HistoryBlock, seed: int = 0) -> bytes | None:
        """As ForecastEngine.retrain, on the ordinary part of the history."""
        return self.engine.retrain(without_anomalies(self.bare(history)), seed)

    def install(self, models: bytes | None) -> None:
        """As ForecastEngine.install."""
        self.engine.install(models)


def without_anomalies(history: HistoryBlock) -> HistoryBlock:
    """The same with one-off spikes and drop-outs clipped to the edge of what is usual."""
    cleaned = []
    for values in (history.mean, history.peak):
        keep, out = AnomalyFilter(len(history.vm_ids)), np.empty_like(values)
        for b in range(values.shape[2]):
            out[:, :, b] = keep.clean(np.where(np.isfinite(values[:, :, b]), values[:, :, b], np.nan).astype(np.float64)).value
        cleaned.append(out)
    mean, peak = cleaned
    return replace(history, mean=mean, peak=np.maximum(peak, mean))
