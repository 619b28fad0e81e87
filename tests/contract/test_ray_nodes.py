"""The Ray pool on several nodes: shards spread over them, one node killed in the middle of a tick, and only what it held is rebuilt."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from forecast_fleet import CAPACITY, END_S, OPTIONS, assert_same, bucket, history, history_with, run_within

from coordinator.compute import FleetTooLarge, PoolLost
from coordinator.compute.local_pool import LocalPool
from coordinator.compute.memory import ShardBudget
from coordinator.compute.sharding import shard_of
from coordinator.model import HistoryBlock
from shared.units import MIB

ray_session = pytest.importorskip("coordinator.compute.ray_session")
ray_pool = pytest.importorskip("coordinator.compute.ray_pool")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.timeout(240)]

SHARDS = 4
NODE = {"num_cpus": 1, "object_store_memory": 100 * MIB, "memory": 2000 * MIB}
ray = ray_session.ray


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from ray.cluster_utils import Cluster  # noqa: PLC0415  # after ray_session has set Ray's environment

    made = Cluster(
        initialize_head=True,
        head_node_args={"include_dashboard": False, **NODE},
    )
    for _ in range(2):
        made.add_node(**NODE)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


def inside(actor: Any, question: Any) -> Any:
    return ray.get(actor.__ray_call__.remote(question))


def where(pool: Any) -> list[str]:
    return [inside(actor, lambda _: ray.get_runtime_context().get_node_id()) for actor in pool._actors]


def of_shards(block: HistoryBlock, shards: set[int]) -> HistoryBlock:
    return block.select([i for i, vm_id in enumerate(block.vm_ids) if shard_of(vm_id, SHARDS) in shards])


def test_a_node_killed_in_the_middle_of_a_tick_costs_its_own_shards_and_nothing_else(cluster: Any) -> None:
    async def run() -> None:
        pool = ray_pool.RayPool(OPTIONS, SHARDS, address=cluster.address)
        local = LocalPool(OPTIONS, SHARDS)
        first, second = bucket(END_S + 300), bucket(END_S + 600)
        for each in (pool, local):
            await each.load(history())
        assert_same(await pool.forecast(first, CAPACITY), await local.forecast(first, CAPACITY))
        nodes = where(pool)
        assert len(set(nodes)) == 3, "shards spread over the nodes"

        doomed = next(node for node in cluster.worker_nodes if node.node_id in nodes)
        shards = {i for i, node in enumerate(nodes) if node == doomed.node_id}
        survivors = [actor for i, actor in enumerate(pool._actors) if i not in shards]
        held = pool._actors[min(shards)].__ray_call__.remote(lambda _: time.sleep(600))
        tick = asyncio.create_task(pool.forecast(second, CAPACITY))
        await asyncio.get_running_loop().run_in_executor(None, ray.get, [a.memory.remote() for a in survivors])
        assert not tick.done(), "a shard of the node still works on it"
        cluster.remove_node(doomed, allow_graceful=False)
        with pytest.raises(PoolLost, match="died") as told:
            await tick
        with pytest.raises(ray.exceptions.RayActorError):
            await held
        assert [told.value.lost(vm_id) for vm_id in second.vm_ids] == [shard_of(vm_id, SHARDS) in shards for vm_id in second.vm_ids]

        stored = history_with(first)
        await pool.load(of_shards(stored, shards))
        again = await pool.forecast(second, CAPACITY)
        assert [a for i, a in enumerate(pool._actors) if i not in shards] == survivors, "who lived goes on"
        assert doomed.node_id not in where(pool)
        # what lived goes on as if nothing had been; what was lost is as a fresh start from the same history
        rebuilt = LocalPool(OPTIONS, SHARDS)
        await rebuilt.load(stored)
        went_on, fresh = await local.forecast(second, CAPACITY), await rebuilt.forecast(second, CAPACITY)
        is_lost = np.array([shard_of(vm_id, SHARDS) in shards for vm_id in second.vm_ids])
        mixed = {
            name: np.where(is_lost.reshape(-1, *[1] * (getattr(fresh, name).ndim - 1)), getattr(fresh, name), getattr(went_on, name))
            for name in ("mean", "stddev", "quantiles", "peak_quantiles", "model", "reason", "coverage")
        }
        assert_same(again, replace(went_on, **mixed))
        await asyncio.gather(local.close(), rebuilt.close(), pool.close())
        cluster.add_node(**NODE)  # for the tests to come

    run_within(230, run)


def test_workers_run_one_thread_each_and_load_nothing_that_a_tick_does_not_need(cluster: Any) -> None:
    async def run() -> None:
        pool = ray_pool.RayPool(OPTIONS, SHARDS, address=cluster.address)
        await pool.warm()

        def look(_: Any) -> tuple[dict[str, str | None], int, set[str]]:
            import sys  # noqa: PLC0415

            import numba  # noqa: PLC0415

            dear = {"lightgbm", "ortools", "pandas", "sklearn", "statsforecast", "torch"}  # Ray itself imports pyarrow where there is one
            return {name: os.environ.get(name) for name in ray_session.THREAD_SETTINGS}, numba.get_num_threads(), dear & set(sys.modules)

        for actor in pool._actors:
            assert inside(actor, look) == (dict.fromkeys(ray_session.THREAD_SETTINGS, "1"), 1, set())
        trained = ray.remote(num_cpus=0)(lambda: {name: os.environ.get(name) for name in ray_session.THREAD_SETTINGS})
        assert ray.get(trained.remote()) == dict.fromkeys(ray_session.THREAD_SETTINGS, "1")
        await pool.close()

    run_within(230, run)


def test_a_fleet_that_outgrows_its_shards_gets_more_until_the_machines_are_full(cluster: Any) -> None:
    async def run() -> None:
        budget = ShardBudget(ring=OPTIONS.ring, limit_bytes=220 * MIB)
        block, first = history(3 * budget.most_vms), bucket(END_S + 300, 3 * budget.most_vms)
        ceiling = {vm_id: [4000.0, 4e9, 1e10, 1e10, 1e10] for vm_id in block.vm_ids}
        pool = ray_pool.RayPool(OPTIONS, 2, address=cluster.address, shard_bytes=budget.limit_bytes)
        few = block.select(range(budget.most_vms // 2))
        await pool.load(few)
        assert pool.shards == 2
        with pytest.raises(PoolLost, match="outgrew") as told:
            await pool.forecast(first, ceiling)
        assert all(told.value.lost(vm_id) for vm_id in first.vm_ids) and pool.shards > 3
        await pool.load(block)
        local = LocalPool(OPTIONS, pool.shards)
        await local.load(block)
        assert_same(await pool.forecast(first, ceiling), await local.forecast(first, ceiling))
        for shard in await pool.memory():
            assert 0 < shard.vms <= budget.most_vms
            assert shard.resident_bytes <= shard.limit_bytes and shard.needed_bytes <= shard.limit_bytes
        with pytest.raises(FleetTooLarge, match="the machines have"):
            await pool.load(history(60 * budget.most_vms, buckets=1))
        await asyncio.gather(local.close(), pool.close())

    run_within(230, run)
