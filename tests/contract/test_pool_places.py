"""The Pool port's placement: the same plan in this process and on Ray; a solver that hangs or dies is a plan that holds, in time."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from forecast_blocks import forecast_block
from forecast_fleet import OPTIONS, run_within

from coordinator.compute import local_pool as local_pool_module
from coordinator.compute.local_pool import LocalPool
from coordinator.model import N_RESOURCES, HostState, VmState
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from shared.model import Allocation, Capabilities, Domain, HostCapacity, Mode
from shared.refusal import RefusalCode
from shared.units import CPU, GIB, MEMORY

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.timeout(180)]

ray_pool_module = pytest.importorskip("coordinator.compute.ray_pool")


def question(vms: int = 6) -> PlacementRequest:
    """Six VMs of two cores each on one host of eight, and an empty one beside it."""
    ids = tuple(f"v{i}" for i in range(vms))
    mean = np.zeros((vms, N_RESOURCES, 12), np.float32)
    mean[:, CPU], mean[:, MEMORY] = 2000.0, GIB
    forecast = forecast_block(ids, 1_700_000_100, mean)
    capacity = HostCapacity(
        cpu_millicores=8000, memory_bytes=64 * GIB, net_bits_per_s=10**10, cpu_commit_millicores=64_000, memory_commit_bytes=60 * GIB,
        net_commit_bits_per_s=10**10,
    )  # fmt: skip
    unknown = np.full(N_RESOURCES, np.nan)
    states = tuple(
        VmState(
            domain=Domain(vm_id=v, name=v, vcpus_max=4, memory_max_bytes=4 * GIB, capabilities=Capabilities(migrate=None)),
            host_id="h0", allocation=Allocation(vcpus=4, memory_bytes=2 * GIB), demand_now=unknown, peak_now=unknown, censored_now=unknown,
            working_set_bytes=1.0 * GIB,
        )
        for v in ids
    )  # fmt: skip
    hosts = tuple(
        HostState(host_id=f"h{h}", capacity=capacity, mode=Mode.PREDICTIVE, alive=True, vms=states if h == 0 else ()) for h in range(2)
    )
    return PlacementRequest(hosts=hosts, forecast=forecast, deadline_s=5.0)


@pytest.fixture(scope="module")
def ray_pool() -> Iterator[Any]:
    pool = ray_pool_module.RayPool(OPTIONS, 1)
    yield pool
    asyncio.run(pool.close())


def test_both_pools_place_alike(ray_pool: Any) -> None:
    async def run() -> None:
        local = LocalPool(OPTIONS)
        plans = [replace((await pool.place(question())).plan, wall_ms=0.0) for pool in (local, ray_pool)]
        assert plans[0] == plans[1]
        assert len(plans[0].moves) >= 2
        await local.close()

    run_within(120, run)


def test_a_task_that_dies_or_hangs_is_a_plan_that_holds(ray_pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray  # noqa: PLC0415  # after ray_pool has set its environment

    def die(*_: Any) -> None:
        os.kill(os.getpid(), 9)

    def hang(*_: Any) -> None:
        time.sleep(600)

    async def run() -> None:
        monkeypatch.setattr(ray_pool_module, "PLACE_GRACE_S", 8.0)
        for body in (die, hang):
            monkeypatch.setattr(ray_pool, "_solve", ray.remote(num_cpus=0, max_retries=0)(body))
            begun = time.monotonic()
            plan = (await ray_pool.place(replace(question(), deadline_s=1.0))).plan
            assert (plan.status, plan.code, plan.moves) == ("hold", RefusalCode.SOLVER_LOST, ())
            assert time.monotonic() - begun < 30.0

    run_within(120, run)


def test_a_thread_that_hangs_holds_and_does_not_hold_up_the_forecasts(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()

    async def run() -> None:
        local = LocalPool(OPTIONS)
        monkeypatch.setattr(local_pool_module, "PLACE_GRACE_S", 0.1)
        monkeypatch.setattr(local_pool_module, "solve", lambda _: let_go.wait(60))
        first = (await local.place(replace(question(), deadline_s=0.1))).plan
        assert (first.status, first.code) == ("hold", RefusalCode.SOLVER_LOST)
        second = (await local.place(question())).plan
        assert "has not ended yet" in second.detail
        assert await local.memory()
        await local.close()
        let_go.set()

    run_within(60, run)
