"""The Pool port: in this process and on real Ray workers, the same results; a killed actor is rebuilt from history, it alone."""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from forecast_fleet import CAPACITY, END_S, OPTIONS, assert_same, bucket, history, run_within

from coordinator.compute import NotNow, PoolLost
from coordinator.compute import local_pool as local_pool_module
from coordinator.compute.local_pool import LocalPool
from coordinator.compute.sharding import shard_of
from coordinator.forecast.challengers import Turn, find
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.forecast.events.model import Effect, Labels, Notice, Occurrences, Scope

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.timeout(180)]

SHARDS = 2
ray_pool_module = pytest.importorskip("coordinator.compute.ray_pool")


@pytest.fixture(scope="module")
def ray_pool() -> Iterator[Any]:
    pool = ray_pool_module.RayPool(OPTIONS, SHARDS)  # no state folder: kernels come from the cache beside their sources
    yield pool
    asyncio.run(pool.close())


def test_ray_gives_what_this_process_gives_and_survives_the_death_of_an_actor(ray_pool: Any) -> None:
    import ray  # noqa: PLC0415  # after ray_pool has set its environment

    async def run() -> None:
        local = LocalPool(OPTIONS, SHARDS)
        for pool in (local, ray_pool):
            await pool.load(history())
        first = await local.forecast(bucket(END_S + 300), CAPACITY)
        assert_same(first, await ray_pool.forecast(bucket(END_S + 300), CAPACITY))

        ray.kill(ray_pool._actors[0])
        other = ray_pool._actors[1]
        with pytest.raises(PoolLost, match="1 of 2 forecast workers died") as told:
            await ray_pool.forecast(bucket(END_S + 600), CAPACITY)
        assert all(told.value.lost(vm_id) == (shard_of(vm_id, SHARDS) == 0) for vm_id in CAPACITY)
        assert ray_pool._actors[1] is other
        await ray_pool.load(history())
        assert_same(first, await ray_pool.forecast(bucket(END_S + 300), CAPACITY))
        await local.close()

    run_within(170, run)


def test_both_pools_explain_alike_and_a_dead_or_busy_worker_says_not_now(ray_pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray  # noqa: PLC0415  # after ray_pool has set its environment

    async def run() -> None:
        local = LocalPool(OPTIONS, SHARDS)
        told = []
        for pool in (local, ray_pool):
            await pool.load(history())
            issued = await pool.forecast(bucket(END_S + 300), CAPACITY)
            told.append([await pool.explain(vm_id) for vm_id in (*CAPACITY, "nobody")])
        assert told[0] == told[1]
        assert all(why is not None and why.issued_s == issued.issued_s for why in told[0][:-1])
        assert told[0][-1] is None

        ray.kill(ray_pool._actors[0])
        lost, kept = (next(vm_id for vm_id in CAPACITY if shard_of(vm_id, SHARDS) == shard) for shard in (0, 1))
        with pytest.raises(NotNow, match="gone; it is replaced with the next forecast"):
            await ray_pool.explain(lost)
        assert await ray_pool.explain(kept) in told[0]
        await ray_pool.load(history())
        await ray_pool.forecast(bucket(END_S + 300), CAPACITY)
        assert await ray_pool.explain(lost) in told[0]

        monkeypatch.setattr(ray_pool_module, "EXPLAIN_S", 0.2)
        monkeypatch.setattr(local_pool_module, "EXPLAIN_S", 0.2)
        busy = ray_pool._actors[shard_of(kept, SHARDS)].__ray_call__.remote(lambda _: time.sleep(1.5))
        with pytest.raises(NotNow, match="busy"):
            await ray_pool.explain(kept)
        await busy
        sleeping = asyncio.get_running_loop().run_in_executor(local._thread, time.sleep, 1.0)
        with pytest.raises(NotNow, match="busy"):
            await local.explain(kept)
        await sleeping
        await local.close()

    run_within(170, run)


def test_a_worker_that_dies_while_it_loads_is_replaced_and_loaded(ray_pool: Any) -> None:
    import ray  # noqa: PLC0415  # after ray_pool has set its environment

    async def run() -> None:
        local = LocalPool(OPTIONS, SHARDS)
        ray.kill(ray_pool._actors[1])
        for pool in (local, ray_pool):
            await pool.load(history())
        assert_same(await local.forecast(bucket(END_S + 300), CAPACITY), await ray_pool.forecast(bucket(END_S + 300), CAPACITY))
        await local.close()

    run_within(170, run)


def test_a_worker_whose_start_hangs_is_replaced(ray_pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray  # noqa: PLC0415  # after ray_pool has set its environment

    class Stuck:
        def __init__(self) -> None:
            time.sleep(600)

    async def run() -> None:
        local = LocalPool(OPTIONS, SHARDS)
        ray.kill(ray_pool._actors[1])
        stuck = ray_pool._actors[1] = ray.remote(num_cpus=0)(Stuck).remote()
        monkeypatch.setattr(ray_pool_module, "START_S", 20.0)
        for pool in (local, ray_pool):
            await pool.load(history())
        assert ray_pool._actors[1] is not stuck
        assert_same(await local.forecast(bucket(END_S + 300), CAPACITY), await ray_pool.forecast(bucket(END_S + 300), CAPACITY))
        await local.close()

    run_within(170, run)


def test_shards_without_vms_and_vms_that_come_and_go(ray_pool: Any) -> None:
    async def run() -> None:
        block = history()
        await ray_pool.load(block)
        some = (block.vm_ids[3], "vm-new", block.vm_ids[0])
        forecast = await ray_pool.forecast(bucket(END_S + 900, vm_ids=some), dict.fromkeys(some, CAPACITY["vm-0"]))
        assert forecast.vm_ids == some
        assert np.isfinite(forecast.mean[[0, 2]]).all()

    run_within(170, run)


def test_both_pools_tell_what_their_shards_take(ray_pool: Any) -> None:
    async def run() -> None:
        local = LocalPool(OPTIONS, SHARDS)
        told = []
        for pool in (local, ray_pool):
            await pool.load(history())
            await pool.forecast(bucket(END_S + 300), CAPACITY)
            told.append(await pool.memory())
        assert [(s.vms, s.state_bytes, s.needed_bytes) for s in told[0]] == [(s.vms, s.state_bytes, s.needed_bytes) for s in told[1]]
        assert sum(s.vms for s in told[0]) == len(CAPACITY)
        assert all(0 < s.state_bytes < s.resident_bytes < s.limit_bytes for s in (*told[0], *told[1]))
        await local.close()

    run_within(170, run)


def test_workers_are_not_niced_they_have_a_deadline(ray_pool: Any) -> None:
    import ray  # noqa: PLC0415  # after ray_pool has set its environment

    mine = os.getpriority(os.PRIO_PROCESS, 0)
    asked = [actor.__ray_call__.remote(lambda _: os.getpriority(os.PRIO_PROCESS, 0)) for actor in ray_pool._actors]
    assert ray.get(asked) == [mine] * SHARDS


def test_challengers_answer_away_from_the_forecasts_and_shards_hear_of_it(ray_pool: Any) -> None:
    import ray  # noqa: PLC0415  # after ray_pool has set its environment

    asked = np.arange(0, 5 * len(CAPACITY), 3)
    turn = Turn(chosen={"sf_window_average": asked, "auto_ets": asked[:20], "prophet": asked[:3]}, steps=20, budget_s=60.0)

    async def run() -> None:
        silent, local = LocalPool(OPTIONS, SHARDS), LocalPool(OPTIONS, SHARDS)
        for pool in (silent, local, ray_pool):
            await pool.load(history())
        told = [await pool.challenge(history(), turn) for pool in (local, ray_pool)]
        for reports in told:
            by_name = {report.name: report for report in reports}
            assert (by_name["sf_window_average"].answered, by_name["auto_ets"].answered) == (len(asked), 20)
            if find("prophet").available() is not None:
                assert "tidegate[prophet]" in by_name["prophet"].failures[0]
        for ahead in range(1, 13):
            plain, one, other = [await pool.forecast(bucket(END_S + 300 * ahead), CAPACITY) for pool in (silent, local, ray_pool)]
            assert_same(one, other)
        assert not np.array_equal(plain.quantiles, one.quantiles), "what they said is heard"
        for actor in ray_pool._actors:
            assert not ray.get(actor.__ray_call__.remote(lambda _: "statsforecast" in __import__("sys").modules))

        # a shard that died meanwhile is no reason to fail: it is found out and loaded by the next forecast
        ray.kill(ray_pool._actors[0])
        assert await ray_pool.challenge(history(), turn)
        with pytest.raises(PoolLost, match="1 of 2 forecast workers died"):
            await ray_pool.forecast(bucket(END_S + 300 * 13), CAPACITY)
        await ray_pool.load(history())
        await asyncio.gather(silent.close(), local.close())

    run_within(170, run)


def test_a_turn_whose_process_dies_or_hangs_is_a_failure_of_its_challengers(ray_pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray  # noqa: PLC0415  # after ray_pool has set its environment

    turn = Turn(chosen={"auto_ets": np.arange(4)}, steps=20, budget_s=60.0)

    def die(*_: Any) -> None:
        os.kill(os.getpid(), 9)

    def hang(*_: Any) -> None:
        time.sleep(600)

    async def run() -> None:
        await ray_pool.load(history())
        monkeypatch.setattr(ray_pool_module, "TURN_S", 15.0)
        for body in (die, hang):
            monkeypatch.setattr(ray_pool, "_challenge", ray.remote(num_cpus=0, max_calls=1, max_retries=0)(body))
            (report,) = await ray_pool.challenge(history(), turn)
            assert (report.name, report.asked, report.answered) == ("auto_ets", 4, 0)
            assert report.failures[0].startswith("the turn's process was lost: ")
        assert (await ray_pool.forecast(bucket(END_S + 300), CAPACITY)).vm_ids == tuple(CAPACITY)

    run_within(170, run)


def test_a_bug_in_a_worker_is_no_lost_worker(ray_pool: Any) -> None:
    async def run() -> None:
        await ray_pool.load(history())
        kept = list(ray_pool._actors)
        with pytest.raises(ValueError, match="older ones are closed"):
            await ray_pool.forecast(bucket(END_S - 300), CAPACITY)
        assert ray_pool._actors == kept

    run_within(170, run)


def test_workers_are_told_of_events_and_so_is_who_replaces_one(ray_pool: Any) -> None:
    import ray  # noqa: PLC0415  # after ray_pool has set its environment

    notice = Notice(id="c/1", name="sale", category="campaign", scope=Scope(client="aurora"), effect=Effect(factor=(3.0,) * 5))
    calendar = Occurrences.of([(notice, END_S + 900, END_S + 2400)])
    labels = {vm_id: Labels(client="aurora") for vm_id in CAPACITY}

    async def run() -> None:
        plain, local = LocalPool(OPTIONS, SHARDS), LocalPool(OPTIONS, SHARDS)
        for pool in (local, ray_pool):
            await pool.announce(calendar, labels)
        ray.kill(ray_pool._actors[0])
        for pool in (plain, local, ray_pool):
            await pool.load(history())
        without, lifted = [await pool.forecast(bucket(END_S + 300), CAPACITY) for pool in (plain, local)]
        assert_same(lifted, await ray_pool.forecast(bucket(END_S + 300), CAPACITY))
        inside = (lifted.mean / without.mean)[:, 0, 1:6]
        assert (inside > 1.5).all(), "every VM of the client, on every shard"
        await ray_pool.announce(Occurrences.none(), {})
        for pool in (plain, local):
            await pool.close()

    run_within(170, run)


def test_training_runs_apart_and_its_model_outlives_the_actors(ray_pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray  # noqa: PLC0415  # after ray_pool has set its environment

    trained = ForecastEngine(ForecastOptions(ring=288)).retrain(history(buckets=200))
    assert trained is not None
    asked_with = []

    def train(_options: Any, _history: Any, champion: bytes | None) -> bytes | None:
        return trained if champion is None else None

    class Task:
        """The task, and what it was given."""

        def remote(self, options: Any, block: Any, champion: Any, _told: Any) -> Any:
            asked_with.append(champion if champion is None else ray.get(champion))
            return ray.remote(num_cpus=0)(train).remote(options, block, champion)

    def installed() -> list[str | None]:
        return ray.get([actor.__ray_call__.remote(lambda shard: shard.installed) for actor in ray_pool._actors])  # type: ignore[no-any-return]

    async def run() -> None:
        await ray_pool.retrain(history(buckets=13))  # too little of it: no model
        assert installed() == [None] * SHARDS
        monkeypatch.setattr(ray_pool, "_train", Task())
        await ray_pool.retrain(history())
        name = f"{zlib.crc32(trained):08x}"
        assert installed() == [name] * SHARDS
        await ray_pool.retrain(history())  # no better than the champion: that stays
        assert installed() == [name] * SHARDS and asked_with == [None, trained]
        ray.kill(ray_pool._actors[0])
        await ray_pool.load(history())
        assert installed() == [name] * SHARDS, "a new worker starts with it"
        ray_pool._model = None  # tests come in any order, and the others compare with a pool that was never trained
        for actor in ray_pool._actors:
            ray.kill(actor)
        await ray_pool.load(history())
        assert installed() == [None] * SHARDS

    run_within(170, run)
