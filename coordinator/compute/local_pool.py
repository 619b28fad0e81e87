"""The Pool port inside this process: one forecaster, one worker thread. For tests, the simulation and hosts too small for Ray.

Same results as the Ray pool for the same shards and input.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

from coordinator.compute import EXPLAIN_S, PLACE_GRACE_S, NotNow
from coordinator.compute.memory import ShardBudget, ShardMemory, machine_bytes
from coordinator.compute.shard import Told, challenge
from coordinator.compute.sharding import join_forecasts, shard_of, split_bucket, split_history, split_posts
from coordinator.compute.solving import solve
from coordinator.forecast.challengers import ChallengerForecast, Report, Turn
from coordinator.forecast.engine import ForecastOptions
from coordinator.forecast.events.model import Labels, Occurrences
from coordinator.forecast.forecaster import Forecaster
from coordinator.forecast.why import ForecastWhy
from coordinator.model import BucketBlock, ForecastBlock, HistoryBlock
from coordinator.placement.explain.plan import Placed, hold
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from shared.refusal import RefusalCode

_T = TypeVar("_T")


class LocalPool:
    """`shards` forecasters run one after another in one thread, so that the event loop stays free."""

    def __init__(self, options: ForecastOptions, shards: int = 1) -> None:
        self._forecasters = [Forecaster(options) for _ in range(shards)]
        self._budget = ShardBudget(ring=options.ring, limit_bytes=machine_bytes())
        self._vms = [0] * shards
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forecast")
        self._trainer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="train")
        self._placer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="place")
        self._placing: asyncio.Future[Placed] | None = None
        self._told: Told | None = None
        self._closing = Event()

    async def load(self, history: HistoryBlock) -> None:
        await self._run(self.load_now, history)

    async def forecast(self, bucket: BucketBlock, capacity: Mapping[str, Sequence[float]]) -> ForecastBlock:
        return await self._run(self.forecast_now, bucket, capacity)

    async def explain(self, vm_id: str) -> ForecastWhy | None:
        """See the port."""
        try:
            return await asyncio.wait_for(self._run(self.explain_now, vm_id), EXPLAIN_S)
        except TimeoutError:
            raise NotNow(f"the forecaster is busy: no answer in {EXPLAIN_S:g} s") from None

    async def announce(self, calendar: Occurrences, labels: Mapping[str, Labels]) -> None:
        """The calendar and the VMs' labels from now on; told before `load`, history is read with them."""
        await self._run(self.announce_now, calendar, labels)

    async def retrain(self, history: HistoryBlock) -> None:
        """Train beside the forecasts, which do not wait for it; install between two of them."""
        model = await asyncio.get_running_loop().run_in_executor(self._trainer, self._forecasters[0].retrain, history)
        await self._run(self._install, model)

    async def challenge(self, history: HistoryBlock, turn: Turn) -> tuple[Report, ...]:
        """As RayPool.challenge, in the thread of the trainings; closing the pool cuts it short."""
        said, reports = await asyncio.get_running_loop().run_in_executor(
            self._trainer, challenge, history, turn, self._told, self._closing.is_set
        )
        await self._run(self._post, said)
        return reports

    async def place(self, request: PlacementRequest) -> Placed:
        """In a thread of its own. A solver that hangs keeps it: nothing more is placed until it ends, and all stays where it is."""
        issued_s = request.forecast.issued_s
        if self._placing is not None and not self._placing.done():
            return hold(issued_s, RefusalCode.SOLVER_LOST, "the placement before this one has not ended yet")
        self._placing = asyncio.get_running_loop().run_in_executor(self._placer, solve, request)
        seconds = request.deadline_s + PLACE_GRACE_S
        try:
            return await asyncio.wait_for(asyncio.shield(self._placing), seconds)
        except TimeoutError:
            return hold(issued_s, RefusalCode.SOLVER_LOST, f"no answer in {seconds:g} s", wall_ms=1000.0 * seconds)

    async def memory(self) -> list[ShardMemory]:
        """As RayPool.memory; `resident_bytes` is this whole process, and the limit what the machine has."""
        return await self._run(self.memory_now)

    async def close(self) -> None:
        self._closing.set()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._trainer.shutdown(wait=True, cancel_futures=True)
        self._placer.shutdown(wait=self._placing is None or self._placing.done(), cancel_futures=True)

    def load_now(self, history: HistoryBlock) -> None:
        """The blocking form of `load`."""
        for i, part in enumerate(split_history(history, len(self._forecasters))):
            if part.vm_ids:
                self._forecasters[i].load(part)
                self._vms[i] = len(part.vm_ids)

    def forecast_now(self, bucket: BucketBlock, capacity: Mapping[str, Sequence[float]]) -> ForecastBlock:
        """The blocking form of `forecast`."""
        parts = split_bucket(bucket, len(self._forecasters))
        self._vms = [len(part.vm_ids) for part in parts]
        blocks = [forecaster.advance(part, capacity) for forecaster, part in zip(self._forecasters, parts, strict=True) if part.vm_ids]
        return join_forecasts(blocks, bucket.vm_ids)

    def explain_now(self, vm_id: str) -> ForecastWhy | None:
        """The blocking form of `explain`."""
        return self._forecasters[shard_of(vm_id, len(self._forecasters))].explain(vm_id)

    def announce_now(self, calendar: Occurrences, labels: Mapping[str, Labels]) -> None:
        """The blocking form of `announce`."""
        self._told = (calendar, dict(labels))
        for forecaster in self._forecasters:
            forecaster.announce(calendar)
            forecaster.label(labels)

    def retrain_now(self, history: HistoryBlock) -> None:
        """The blocking form of `retrain`: one global model from all VMs, installed in every one."""
        self._install(self._forecasters[0].retrain(history))

    def challenge_now(self, history: HistoryBlock, turn: Turn) -> tuple[Report, ...]:
        """The blocking form of `challenge`."""
        said, reports = challenge(history, turn, self._told)
        self._post(said)
        return reports

    def _post(self, said: Sequence[ChallengerForecast]) -> None:
        for forecaster, part in zip(self._forecasters, split_posts(said, len(self._forecasters)), strict=True):
            forecaster.post(part)

    def _install(self, model: bytes | None) -> None:
        for forecaster in self._forecasters:
            forecaster.install(model)

    def memory_now(self) -> list[ShardMemory]:
        """The blocking form of `memory`."""
        return [self._budget.measured(forecaster, vms) for forecaster, vms in zip(self._forecasters, self._vms, strict=True)]

    async def _run(self, function: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
