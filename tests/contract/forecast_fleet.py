"""A small fleet for the tests of the pools: history, buckets, ceilings, what it takes for two forecasts to be the same, a time limit."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path

import numpy as np

from coordinator.forecast.engine import ForecastOptions
from coordinator.model import BucketBlock, ForecastBlock, HistoryBlock

OPTIONS = ForecastOptions(boosting=False, ring=288, replay=24, challengers=("sf_window_average", "auto_ets", "prophet"))
FLEET = 24
END_S = 1_700_000_100 // 300 * 300
CEILING = [4000.0, 4e9, 1e10, 1e10, 1e10]
CAPACITY = {f"vm-{i}": CEILING for i in range(FLEET)}


def names(count: int) -> tuple[str, ...]:
    return tuple(f"vm-{i}" for i in range(count))


def history(count: int = FLEET, buckets: int = 96) -> HistoryBlock:
    mean = np.random.default_rng(3).lognormal(5, 0.3, (count, 5, buckets)).astype(np.float32)
    capacity = np.tile(np.array(CEILING, np.float32), (count, 1))
    return HistoryBlock(vm_ids=names(count), end_s=END_S, mean=mean, peak=mean * 1.2, censored=np.zeros_like(mean), capacity=capacity)


def bucket(start_s: int, count: int = FLEET, vm_ids: tuple[str, ...] | None = None) -> BucketBlock:
    ids = names(count) if vm_ids is None else vm_ids
    mean = np.random.default_rng(start_s).lognormal(5, 0.3, (len(ids), 5))
    return BucketBlock.unlimited(start_s, ids, mean, mean * 1.2)


def history_with(newest: BucketBlock) -> HistoryBlock:
    """`history()` one bucket later, as the store would hold it."""
    block = history()
    assert (newest.start_s, newest.vm_ids) == (block.end_s + 300, block.vm_ids)
    grown = {
        name: np.concatenate([getattr(block, name), getattr(newest, name)[..., None].astype(np.float32)], axis=2)
        for name in ("mean", "peak", "censored")
    }
    return replace(block, end_s=newest.start_s, **grown)


def assert_same(one: ForecastBlock, other: ForecastBlock) -> None:
    assert (one.vm_ids, one.issued_s, one.models) == (other.vm_ids, other.issued_s, other.models)
    for name in ("mean", "stddev", "quantiles", "peak_quantiles", "model", "reason", "coverage"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def run_within(seconds: float, scene: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run it; where it takes longer, fail with what Ray's processes were doing and what its logs said last."""

    async def limited() -> None:
        await asyncio.wait_for(scene(), seconds)

    try:
        asyncio.run(limited())
    except TimeoutError:
        raise AssertionError(f"not done in {seconds:g} s\n{_ray_report()}") from None


def _ray_report() -> str:
    import ray  # noqa: PLC0415  # whose environment ray_session has set

    columns = "pid,ppid,stat,etimes,cputimes,wchan:20,args"
    processes = subprocess.run(["ps", "-eo", columns], capture_output=True, text=True, check=True).stdout.splitlines()
    told = [line[:160] for line in processes if "ray" in line]
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    for log in sorted(logs.glob("*")):
        if log.is_file() and log.stat().st_size:
            told += [f"-- {log.name}", *(line[:200] for line in log.read_text(errors="replace").splitlines()[-3:])]
    return "\n".join(told)
