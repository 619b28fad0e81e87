"""The Pool port on Ray: one actor per forecast shard, tasks for training and for placement.

Ray runs on loopback with token authentication and no dashboard: an open Ray port is remote code execution. It holds no state
that can't be rebuilt: a dead actor is replaced and loaded again from history by the caller's next `load`.
Docs: docs.ray.io "Actors", "Token authentication".
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

# Ray reads these once, when it is imported: token authentication on, no reports home.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from coordinator.compute.sharding import join_forecasts, split_bucket, split_history
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.model import BucketBlock, ForecastBlock, HistoryBlock, HostState, Placement
from coordinator.placement.shards import solve_shard, split

OBJECT_STORE_BYTES = 128 * 1024 * 1024  # a fleet bucket is a few MB; the store's default takes 30 % of memory
# one thread a worker: the shards are the parallelism, and nested pools on few cores only fight
WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}


class _Shard:
    """Body of a forecast actor."""

    def __init__(self, options: ForecastOptions) -> None:
        self._engine = ForecastEngine(options)

    def load(self, history: HistoryBlock) -> int:
        self._engine.load(history)
        return len(history.vm_ids)

    def advance(self, bucket: BucketBlock, capacity: Mapping[str, Sequence[float]]) -> ForecastBlock:
        return self._engine.advance(bucket, capacity)

    def install(self, model: bytes) -> None:
        self._engine.install(model)


def _train(options: ForecastOptions, history: HistoryBlock) -> bytes:
    return ForecastEngine(options).retrain(history)


class RayPool:
    """Starts a local Ray (or joins the cluster of `address`) and one actor per shard."""

    def __init__(self, options: ForecastOptions, shards: int, address: str | None = None) -> None:
        if not ray.is_initialized():
            local: dict[str, Any] = (
                {}
                if address
                else {
                    "num_cpus": shards + 1,
                    "object_store_memory": OBJECT_STORE_BYTES,
                    "_node_ip_address": "127.0.0.1",
                }
            )
            ray.init(
                address=address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": WORKER_ENVIRONMENT},
                **local,
            )
        self._options = options
        actor = ray.remote(num_cpus=1, max_restarts=0)(_Shard)
        self._actors = [actor.remote(options) for _ in range(shards)]
        self._train = ray.remote(num_cpus=0)(_train)
        self._solve = ray.remote(num_cpus=0)(solve_shard)

    async def load(self, history: HistoryBlock) -> None:
        parts = split_history(history, len(self._actors))
        await asyncio.gather(*(actor.load.remote(part) for actor, part in zip(self._actors, parts, strict=True)))

    async def forecast(self, bucket: BucketBlock, capacity: Mapping[str, Sequence[float]]) -> ForecastBlock:
        pairs = zip(self._actors, split_bucket(bucket, len(self._actors)), strict=True)
        blocks = await asyncio.gather(
            *(actor.advance.remote(part, {vm_id: capacity[vm_id] for vm_id in part.vm_ids}) for actor, part in pairs if part.vm_ids)
        )
        return join_forecasts(blocks, bucket.vm_ids)

    async def retrain(self, history: HistoryBlock) -> None:
        model = await self._train.remote(self._options, history)
        await asyncio.gather(*(actor.install.remote(model) for actor in self._actors))

    async def place(self, hosts: Sequence[HostState], forecast: ForecastBlock, seed: int, deadline_s: float) -> tuple[Placement, ...]:
        shards = split(hosts, seed)
        return tuple(await asyncio.gather(*(self._solve.remote(part, forecast, seed, deadline_s, i) for i, part in enumerate(shards))))

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, ray.shutdown)
