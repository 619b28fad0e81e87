"""What runs inside a Ray worker: the forecast shard, an actor's body, and the training task. Imports nothing that a tick does not need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from zlib import crc32

from coordinator.compute.memory import ShardBudget, ShardMemory, return_start_pages
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.forecast.warm import warm
from coordinator.model import BucketBlock, ForecastBlock, HistoryBlock


class Shard:
    """One engine and the VMs it holds."""

    def __init__(self, options: ForecastOptions, limit_bytes: int) -> None:
        self._engine = ForecastEngine(options)
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
        self._engine.load(history)
        self._vms = len(history.vm_ids)
        return self._vms

    def advance(self, bucket: BucketBlock, capacity: Mapping[str, Sequence[float]]) -> ForecastBlock:
        """As ForecastEngine.advance."""
        self._vms = len(bucket.vm_ids)
        return self._engine.advance(bucket, capacity)

    def install(self, model: bytes | None) -> None:
        """As ForecastEngine.install."""
        self._engine.install(model)
        if model is not None:
            self.installed = f"{crc32(model):08x}"

    def memory(self) -> ShardMemory:
        """What this shard has of memory, measured now."""
        return self._budget.measured(self._engine, self._vms)


def train(options: ForecastOptions, history: HistoryBlock, champion: bytes | None) -> bytes | None:
    """The global model of a history; None = too little of it, or no better than the champion in use. Pure: runs anywhere."""
    engine = ForecastEngine(options)
    engine.install(champion)
    return engine.retrain(history)
