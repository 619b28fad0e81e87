"""Forecast workers: how soon one is ready, what it takes of memory, what it compiles, and what a shard keeps for each series.

A worker is ready when every kernel of a tick is loaded. Measured three ways: a process of its own with an empty cache of kernels, further
processes with the cache that the first one left, and actors of the Ray pool as the coordinator runs it. Times are of the process: CPU
seconds since its start (median of the runs), and elapsed ones as the parent sees them (the shortest: those count the neighbours' load too).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.report import Figure, options, publish
from coordinator.compute.memory import STATE_BYTES, ShardBudget
from coordinator.compute.ray_pool import SHARD_BYTES, RayPool
from coordinator.compute.ray_session import WORKER_ENVIRONMENT, ray
from coordinator.forecast.engine import ForecastOptions
from coordinator.model import F32, N_RESOURCES, BucketBlock, HistoryBlock
from shared.units import BUCKET_S, MIB

END_S: Final = 1_700_006_400 // BUCKET_S * BUCKET_S
DEAR: Final = ("lightgbm", "ortools", "pandas", "sklearn", "statsforecast", "torch")
WORKER: Final = f"""
import json, resource, sys
from coordinator.compute.memory import resident_bytes
from coordinator.compute.shard import Shard
from coordinator.forecast.engine import ForecastOptions
compiled = Shard(ForecastOptions(boosting=False), {SHARD_BYTES}).warm()
used = resource.getrusage(resource.RUSAGE_SELF)
dear = [name for name in {DEAR!r} if name in sys.modules]
said = dict(compiled=len(compiled), cpu=used.ru_utime + used.ru_stime, rss=resident_bytes(), most=used.ru_maxrss * 1024, dear=dear)
print(json.dumps(said))
"""


def process(cache: Path) -> Mapping[str, Any]:
    """One worker process with this folder as its cache of kernels: what it says, and how long it took ("wall")."""
    environment = {**os.environ, **WORKER_ENVIRONMENT, "NUMBA_CACHE_DIR": str(cache)}
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", WORKER], env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        wall = time.perf_counter() - began
    if child.returncode:
        raise RuntimeError(f"a worker process ended with {child.returncode}")
    return {**json.loads(line), "wall": wall}


def processes(runs: int) -> list[Figure]:
    """Worker processes without Ray: the first on an empty cache, the others after it."""
    with tempfile.TemporaryDirectory(prefix="tidegate-kernels-") as folder:
        first, *others = (process(Path(folder)) for _ in range(runs + 1))
    cpu, rss, most = (float(np.median([other[name] for other in others])) for name in ("cpu", "rss", "most"))
    compiled, dear = (max(len(o["dear"]) if name == "dear" else o[name] for o in others) for name in ("compiled", "dear"))
    return [
        Figure(name="first process on a machine: kernels compiled", value=first["compiled"], unit="kernels"),
        Figure(name="... ready after", value=first["cpu"], unit="s CPU"),
        Figure(name="any other process: kernels compiled", value=compiled, unit="kernels", bar="0", holds=compiled == 0, row=4),
        Figure(name="... ready after", value=cpu, unit="s CPU", bar="<= 1.5", holds=cpu <= 1.5, row=4),
        Figure(name="... ready after, elapsed", value=min(other["wall"] for other in others), unit="s"),
        Figure(name="... resident when ready", value=rss / MIB, unit="MiB", bar="<= 180", holds=rss <= 180 * MIB, row=4),
        Figure(name="... resident at most until then", value=most / MIB, unit="MiB"),
        Figure(name="... libraries loaded that a tick does not need", value=dear, unit="", bar="0", holds=dear == 0, row=4),
    ]


def fleet(vms: int, buckets: int) -> F32:
    """Noisy daily waves: float32[v, r, b]."""
    rng = np.random.default_rng(0)
    wave = 1.0 + 0.5 * np.sin(2 * np.pi * np.arange(buckets) / 288 + rng.uniform(0, 2 * np.pi, (vms, N_RESOURCES, 1)))
    return np.asarray(1000.0 * wave * rng.lognormal(0, 0.2, (vms, N_RESOURCES, buckets)), dtype=np.float32)


def history(vm_ids: tuple[str, ...], data: F32) -> HistoryBlock:
    ceiling = np.full(data.shape[:2], 1e9, dtype=np.float32)
    return HistoryBlock(vm_ids=vm_ids, end_s=END_S, mean=data, peak=data * 1.2, censored=np.zeros_like(data), capacity=ceiling)


def bucket(vm_ids: tuple[str, ...], values: F32, start_s: int) -> BucketBlock:
    mean = values.astype(np.float64)
    return BucketBlock.unlimited(start_s, vm_ids, mean, mean * 1.2)


async def new_actor(pool: RayPool) -> tuple[float, float]:
    """Start another actor on the Ray that runs: its CPU seconds until it is ready, Ray's part included, and those that went by."""
    began = time.perf_counter()
    fresh = pool._start()[0]
    await fresh.warm.remote()
    wall = time.perf_counter() - began
    cpu = await fresh.__ray_call__.remote(lambda _: sum(os.times()[:2]))
    ray.kill(fresh)
    return cpu, wall


async def actors(vms: int, ring: int, ticks: int) -> list[Figure]:
    """The Ray pool of two shards: an actor's start on a Ray that runs, its memory when ready and at work, a tick's cost beside Ray's."""
    run = ForecastOptions(boosting=False, ring=ring, replay=13, outlook_replay=13)
    vm_ids = tuple(f"vm-{i}" for i in range(vms))
    capacity = {vm_id: [1e9] * N_RESOURCES for vm_id in vm_ids}
    data = fleet(vms, ring + ticks)
    pool = RayPool(run, 2)
    try:
        await pool.warm()
        ready = await pool.memory()
        await pool.load(history(vm_ids, data[:, :, :ring]))
        taken = []
        for tick in range(ticks):
            began = time.perf_counter()
            await pool.forecast(bucket(vm_ids, data[:, :, ring + tick], END_S + (tick + 1) * BUCKET_S), capacity)
            taken.append(time.perf_counter() - began)
        busy = await pool.memory()
        again = [await new_actor(pool) for _ in range(3)]
    finally:
        await pool.close()
    budget = ShardBudget(ring=ring, limit_bytes=SHARD_BYTES)
    resident = max(shard.resident_bytes for shard in ready)
    cpu, wall = np.median([run[0] for run in again]), min(run[1] for run in again)
    state = sum(shard.state_bytes for shard in busy) / (vms * N_RESOURCES) - budget.ring_bytes
    enough = budget.most_vms * N_RESOURCES >= 1000  # series a call, below that calls cost more than they carry
    kept = all(shard.resident_bytes <= shard.needed_bytes for shard in busy)
    return [
        Figure(name="Ray actor: resident when ready", value=resident / MIB, unit="MiB", bar="<= 180", holds=resident <= 180 * MIB, row=4),
        Figure(name="... ready after", value=float(cpu), unit="s CPU", bar="<= 1.5", holds=bool(cpu <= 1.5), row=4),
        Figure(name="... ready after, elapsed", value=wall, unit="s"),
        Figure(name=f"shard of {vms // 2} VMs: resident at work", value=max(s.resident_bytes for s in busy) / MIB, unit="MiB"),
        Figure(name="... stated", value=max(s.needed_bytes for s in busy) / MIB, unit="MiB", bar=">= resident", holds=kept),
        Figure(
            name="... state of one series beside its ring",
            value=state,
            unit="bytes",
            bar=f"<= {STATE_BYTES}",
            holds=state <= STATE_BYTES,
        ),
        Figure(
            name=f"VMs of a shard of {SHARD_BYTES // MIB} MiB",
            value=budget.most_vms,
            unit="VMs",
            bar=">= 200",
            holds=enough,
        ),
        Figure(name=f"tick of {vms * N_RESOURCES} series in 2 shards, elapsed", value=float(np.median(taken)), unit="s"),
    ]


def main() -> None:
    arguments = options(__doc__.split(":")[0]).parse_args()
    figures = processes(2 if arguments.quick else 5)
    figures += asyncio.run(actors(*((200, 288, 3) if arguments.quick else (1000, 2322, 5))))
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
