"""A turn of the challengers in the simulated world: what one says is heard, leads where it is right, and makes the forecast better.

One host, one VM whose CPU swings every two and a half hours: no member of the pool knows such a season, ARIMA does. The run with
challengers and the run without see the same demand.
"""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace
from plain_host import plain_capacity
from written_demand import past_of, written_vm

from bench.world import Settings, World
from coordinator.forecast.engine import ForecastOptions
from coordinator.model import LEVELS, N_RESOURCES, HistoryBlock
from shared.model import Allocation, Mode, Policy
from shared.units import BUCKET_S, CPU, GIB, HORIZON_STEPS, MBIT
from shared.workload import WorkloadFile

START_S = 1_795_262_400
PERIOD = 30  # buckets
BUCKETS, PAST = 4 * 12, 288
HOURS = 2.5
INITIAL = Allocation(vcpus=4, cpu_quota_millicores=4000, memory_bytes=GIB, net_rx_bits_per_s=50 * MBIT, net_tx_bits_per_s=50 * MBIT)


def swing(first: int, count: int) -> np.ndarray:
    return np.asarray(1500 + 1000 * np.sin(2 * np.pi * (np.arange(first, first + count)) / PERIOD))


def workload() -> WorkloadFile:
    cpu = swing(0, BUCKETS).astype(int).tolist()
    vm = written_vm("vm", cpu, GIB // 2, policy=Policy(), memory_max_bytes=2 * GIB, initial=INITIAL, seed=11)
    capacity = plain_capacity(cpu_millicores=16_000, memory_bytes=16 * GIB, net_bits_per_s=10_000 * MBIT)
    capacity = replace(capacity, memory_commit_bytes=15 * GIB)
    return WorkloadFile(host="host-0", start_s=START_S, buckets=BUCKETS, seed=5, capacity=capacity, vms=(vm,))


def history() -> HistoryBlock:
    mean = np.empty((1, N_RESOURCES, PAST), dtype=np.float32)
    mean[0] = np.array([0, GIB // 2, 2_000_000, 5 * MBIT, 5 * MBIT])[:, None]
    mean[0, CPU] = swing(-PAST, PAST)
    mean *= 1 + 0.01 * np.random.default_rng(3).standard_normal(mean.shape).astype(np.float32)
    return past_of(workload().vms, START_S - BUCKET_S, mean)


def run(every: int) -> World:
    options = ForecastOptions(boosting=False, network=False, ring=288, replay=48, challengers=("auto_arima", "auto_ets"))
    settings = Settings(
        seed=1, hours=HOURS, modes=lambda _: Mode.OBSERVE, forecast=options, history=[history()], challenge_every_cycles=every
    )
    world = World([workload()], settings).run()
    assert world.violations == []
    return world


def loss(world: World) -> float:
    """Mean pinball loss of the CPU in the second half of the run."""
    buckets, found = world.coordinator.buckets, []
    for block in world.coordinator.forecasts[len(world.coordinator.forecasts) // 2 :]:
        for step in range(HORIZON_STEPS):
            bucket = buckets.get(block.issued_s + step * BUCKET_S)
            if bucket is not None:
                miss = bucket.mean[0, CPU] - block.quantiles[0, CPU, step]
                found.append(np.maximum(np.array(LEVELS) * miss, (np.array(LEVELS) - 1) * miss).mean())
    return float(np.mean(found))


@pytest.fixture(scope="module")
def challenged() -> World:
    return run(6)


def test_a_turn_is_taken_and_its_answer_leads_where_it_is_right(challenged: World) -> None:
    assert challenged.counts["challenge"] >= 4
    leaders = [block.models[block.model[0, CPU]] for block in challenged.coordinator.forecasts]
    assert "challenger:auto_arima" in leaders[len(leaders) // 2 :]


def test_it_makes_the_forecast_better(challenged: World) -> None:
    assert loss(challenged) < 0.8 * loss(run(0))


def test_the_same_seed_gives_the_same_run(challenged: World) -> None:
    assert run(6).digest == challenged.digest
