"""The Pool port on Ray: one actor per forecast shard, tasks for training and for placement.

Ray runs on loopback with token authentication and no dashboard: an open Ray port is remote code execution. It holds no state
that can't be rebuilt: when an actor dies, all are replaced and PoolLost is raised; the caller loads them again from history.
Its session folder (sockets, logs) is ours and goes when the pool closes; what a killed process left goes at the next start.
Docs: docs.ray.io "Actors", "Token authentication".
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

# Ray reads these once, when it is imported: token authentication on, no reports home; and 127.0.0.1 stays what it is, which Ray
# elsewhere than on Linux does by itself, and on Linux turns into the machine's address on the network.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayActorError

from coordinator.compute import PoolLost
from coordinator.compute.sharding import join_forecasts, split_bucket, split_history
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.model import BucketBlock, ForecastBlock, HistoryBlock, HostState, Placement
from coordinator.placement.shards import solve_shard, split

OBJECT_STORE_BYTES = 128 * 1024 * 1024  # a fleet bucket is a few MB; the store's default takes 30 % of memory
SOCKET_PATH_BYTES: Final = 107  # of sockaddr_un, see unix(7)
SESSION_PATH: Final = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # the longest path that Ray makes below its folder
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

    def install(self, model: bytes | None) -> None:
        self._engine.install(model)


def _train(options: ForecastOptions, history: HistoryBlock) -> bytes | None:
    return ForecastEngine(options).retrain(history)


class RayPool:
    """Starts a local Ray (or joins the cluster of `address`) and one actor per shard. Ray's sockets and logs go to `state`/ray.

    Every method but `close` raises PoolLost when an actor has died: all are new then, and empty.
    """

    def __init__(self, options: ForecastOptions, shards: int, state: Path | None = None, address: str | None = None) -> None:
        """`state` None: a temporary folder."""
        self._temporary = None if state else tempfile.TemporaryDirectory(prefix="tidegate-")
        self._session = SessionFolder(state or Path(self._temporary.name if self._temporary else ""))
        if not ray.is_initialized():
            local: dict[str, Any] = (
                {}
                if address
                else {
                    "num_cpus": shards + 1,
                    "object_store_memory": OBJECT_STORE_BYTES,
                    "_node_ip_address": "127.0.0.1",
                    "_temp_dir": str(self._session.make()),
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
        self._shards = shards
        self._actor = ray.remote(num_cpus=1, max_restarts=0)(_Shard)
        self._actors: list[Any] = []
        self._start_actors()
        self._train = ray.remote(num_cpus=0)(_train)
        self._solve = ray.remote(num_cpus=0)(solve_shard)

    async def load(self, history: HistoryBlock) -> None:
        pairs = zip(self._actors, split_history(history, self._shards), strict=True)
        await self._all(actor.load.remote(part) for actor, part in pairs if part.vm_ids)

    async def forecast(self, bucket: BucketBlock, capacity: Mapping[str, Sequence[float]]) -> ForecastBlock:
        pairs = zip(self._actors, split_bucket(bucket, self._shards), strict=True)
        blocks = await self._all(
            actor.advance.remote(part, {vm_id: capacity[vm_id] for vm_id in part.vm_ids}) for actor, part in pairs if part.vm_ids
        )
        return join_forecasts(blocks, bucket.vm_ids)

    async def retrain(self, history: HistoryBlock) -> None:
        model = await self._train.remote(self._options, history)
        await self._all(actor.install.remote(model) for actor in self._actors)

    async def place(self, hosts: Sequence[HostState], forecast: ForecastBlock, seed: int, deadline_s: float) -> tuple[Placement, ...]:
        shards = split(hosts, seed)
        return tuple(await asyncio.gather(*(self._solve.remote(part, forecast, seed, deadline_s, i) for i, part in enumerate(shards))))

    def _start_actors(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        self._actors = [self._actor.remote(self._options) for _ in range(self._shards)]

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._shut_down)

    def _shut_down(self) -> None:
        ray.shutdown()
        self._session.remove()
        if self._temporary is not None:
            self._temporary.cleanup()

    async def _all(self, calls: Iterable[Awaitable[Any]]) -> list[Any]:
        """Every actor's answer."""
        asked = self._actors
        try:
            return await asyncio.gather(*calls)
        except RayActorError as error:
            if asked is self._actors:  # a second call may learn of the same death
                self._start_actors()
            raise PoolLost(f"a forecast actor died: {str(error).splitlines()[0]}") from error


class SessionFolder:
    """`state`/ray, or what this is a link to where the sockets that Ray makes below it would have too long a path."""

    def __init__(self, state: Path) -> None:
        self._path = state / "ray"

    def make(self) -> Path:
        """An empty folder; what a killed process left of an earlier one is gone."""
        self.remove()
        if len(os.fsencode(self._path)) + len(SESSION_PATH) <= SOCKET_PATH_BYTES:
            self._path.mkdir(parents=True)
            return self._path
        elsewhere = Path(tempfile.mkdtemp(prefix="tidegate-ray-"))
        self._path.symlink_to(elsewhere)
        return elsewhere

    def remove(self) -> None:
        """Remove it with all its content, where there is one."""
        shutil.rmtree(self._path.resolve(), ignore_errors=True)
        if self._path.is_symlink():
            self._path.unlink()
