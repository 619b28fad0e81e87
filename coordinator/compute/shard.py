"""What runs inside a Ray worker: the forecast shard, an actor's body, and the training task. Imports nothing that a tick does not need."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from zlib import crc32

from coordinator.compute.memory import ShardBudget, ShardMemory, return_start_pages
from coordinator.forecast.challengers import ChallengerForecast, Report, Turn, take_turn
from coordinator.forecast.engine import ForecastOptions
from coordinator.forecast.events.model import Labels, Occurrences
from coordinator.forecast.forecaster import Forecaster
from coordinator.forecast.warm import warm
from coordinator.forecast.why import ForecastWhy
from coordinator.model import BucketBlock, ForecastBlock, HistoryBlock

Told = tuple[Occurrences, Mapping[str, Labels]]  # the calendar, and the client and application of VMs


class Shard:
    """One forecaster and the VMs it holds."""

    def __init__(self, options: ForecastOptions, limit_bytes: int) -> None:
        self._forecaster = Forecaster(options)
        self._budget = ShardBudget(ring=options.ring, limit_bytes=limit_bytes)
        self._vms = 0
        self._compiled: tuple[str, ...] | None = None
        self.installed: str | None = None  # CRC-32 of the global model in use

    def warm(self) -> tuple[str, ...]:
        """Have every kernel ready, once, so that the first tick is as fast as any; names of those that the cache did not have."""
        if self._compiled is None:
            self._compiled = warm()
            return_start_pages()
        return self._compiled

    def load(self, history: HistoryBlock) -> int:
        """Forget all, then start from this history. Returns the number of VMs."""
        self._forecaster.load(history)
        self._vms = len(history.vm_ids)
        return self._vms

    def advance(self, bucket: BucketBlock, capacity: Mapping[str, Sequence[float]]) -> ForecastBlock:
        """As Forecaster.advance."""
        self._vms = len(bucket.vm_ids)
        return self._forecaster.advance(bucket, capacity)

    def explain(self, vm_id: str) -> ForecastWhy | None:
        """As Forecaster.explain."""
        return self._forecaster.explain(vm_id)

    def post(self, forecasts: Sequence[ChallengerForecast]) -> None:
        """As Forecaster.post."""
        self._forecaster.post(forecasts)

    def announce(self, told: Told) -> None:
        """The calendar and the labels from now on."""
        _announce(self._forecaster, told)

    def install(self, model: bytes | None) -> None:
        """As Forecaster.install."""
        self._forecaster.install(model)
        if model is not None:
            self.installed = f"{crc32(model):08x}"

    def memory(self) -> ShardMemory:
        """What this shard has of memory, measured now."""
        return self._budget.measured(self._forecaster, self._vms)


def train(options: ForecastOptions, history: HistoryBlock, champion: bytes | None, told: Told | None = None) -> bytes | None:
    """The global models of a history; None = too little of it, or no better than the champion in use. Pure: runs anywhere."""
    forecaster = Forecaster(options)
    forecaster.install(champion)
    if told is not None:
        _announce(forecaster, told)
    return forecaster.retrain(history)


def challenge(
    history: HistoryBlock, turn: Turn, told: Told | None = None, stop: Callable[[], bool] = lambda: False
) -> tuple[tuple[ChallengerForecast, ...], tuple[Report, ...]]:
    """One turn of the challengers, on the history without what events added."""
    forecaster = Forecaster(ForecastOptions(boosting=False, network=False))
    if told is not None:
        _announce(forecaster, told)
    return take_turn(forecaster.bare(history), turn, _cpu_s, stop)


def _cpu_s() -> float:
    """Processor time of this thread and of processes that were started and have ended (Prophet's)."""
    taken = os.times()
    return time.thread_time() + taken.children_user + taken.children_system


def _announce(forecaster: Forecaster, told: Told) -> None:
    calendar, labels = told
    forecaster.announce(calendar)
    forecaster.label(labels)
