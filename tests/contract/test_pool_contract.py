"""The Pool port: in this process and on real Ray workers, the same results; a killed actor is rebuilt from history."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from coordinator.compute import PoolLost
from coordinator.compute.local_pool import LocalPool
from coordinator.forecast.engine import ForecastOptions
from coordinator.model import BucketBlock, HistoryBlock

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.timeout(180)]

OPTIONS = ForecastOptions(boosting=False, statsforecast=False, ring=288, replay=24)
VMS = tuple(f"vm-{i}" for i in range(5))
END_S = 1_700_000_100 // 300 * 300
CAPACITY = {vm_id: [4000.0, 4e9, 1e10, 1e10, 1e10] for vm_id in VMS}


def history() -> HistoryBlock:
    rng = np.random.default_rng(3)
    mean = rng.lognormal(5, 0.3, (len(VMS), 5, 96)).astype(np.float32)
    capacity = np.array([CAPACITY[vm_id] for vm_id in VMS], np.float32)
    return HistoryBlock(vm_ids=VMS, end_s=END_S, mean=mean, peak=mean * 1.2, censored=np.zeros_like(mean), capacity=capacity)


def bucket(start_s: int, vm_ids: tuple[str, ...] = VMS) -> BucketBlock:
    mean = np.full((len(vm_ids), 5), 150.0)
    return BucketBlock(
        start_s=start_s,
        vm_ids=vm_ids,
        host_ids=("h",) * len(vm_ids),
        mean=mean,
        peak=mean * 1.2,
        usage=mean,
        censored=np.zeros_like(mean),
        allocation=np.full_like(mean, np.nan),
        samples=np.full(len(vm_ids), 60),
    )


@pytest.fixture(scope="module")
def ray_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    ray_module = pytest.importorskip("coordinator.compute.ray_pool")
    pool = ray_module.RayPool(OPTIONS, 2, tmp_path_factory.mktemp("ray"))
    yield pool
    asyncio.run(pool.close())


def test_ray_gives_what_this_process_gives_and_survives_the_death_of_an_actor(ray_pool) -> None:  # type: ignore[no-untyped-def]
    import ray  # noqa: PLC0415  # after ray_pool has set its environment

    async def run() -> None:
        local = LocalPool(OPTIONS, 2)
        for pool in (local, ray_pool):
            await pool.load(history())
        first = [await pool.forecast(bucket(END_S + 300), CAPACITY) for pool in (local, ray_pool)]
        assert first[0].vm_ids == first[1].vm_ids == VMS
        for name in ("mean", "stddev", "quantiles", "peak_quantiles"):
            np.testing.assert_array_equal(getattr(first[0], name), getattr(first[1], name))

        ray.kill(ray_pool._actors[0])
        with pytest.raises(PoolLost, match="died"):
            await ray_pool.forecast(bucket(END_S + 600), CAPACITY)
        await ray_pool.load(history())
        again = await ray_pool.forecast(bucket(END_S + 300), CAPACITY)
        np.testing.assert_array_equal(again.quantiles, first[0].quantiles)
        await local.close()

    asyncio.run(run())


def test_shards_without_vms_and_vms_that_come_and_go(ray_pool) -> None:  # type: ignore[no-untyped-def]
    async def run() -> None:
        block = history()
        await ray_pool.load(block.select([0]))
        forecast = await ray_pool.forecast(bucket(END_S + 900, (VMS[3], VMS[0])), CAPACITY)
        assert forecast.vm_ids == (VMS[3], VMS[0])
        assert np.isfinite(forecast.mean[1]).all()

    asyncio.run(run())
