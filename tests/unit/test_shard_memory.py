"""The memory of a forecast shard: what is stated holds for the engine as it is, and decides how many shards a fleet needs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from coordinator.compute.memory import (
    ROOM,
    SHARDS_MAX,
    STATE_BYTES,
    WORKER_BYTES,
    ShardBudget,
    array_bytes,
    resident_bytes,
    return_start_pages,
)
from coordinator.compute.shard import Shard
from coordinator.compute.sharding import split_history
from coordinator.forecast.engine import ForecastOptions
from coordinator.model import N_RESOURCES, BucketBlock, HistoryBlock
from shared.units import GIB, MIB

VMS = tuple(f"vm-{i}" for i in range(40))
END_S = 1_700_000_100 // 300 * 300
OPTIONS = ForecastOptions(boosting=False, ring=288, replay=13)


def history(vm_ids: tuple[str, ...] = VMS, buckets: int = 288) -> HistoryBlock:
    mean = np.random.default_rng(5).lognormal(5, 0.3, (len(vm_ids), N_RESOURCES, buckets)).astype(np.float32)
    capacity = np.full((len(vm_ids), N_RESOURCES), 1e9, dtype=np.float32)
    return HistoryBlock(vm_ids=vm_ids, end_s=END_S, mean=mean, peak=mean * 1.2, censored=np.zeros_like(mean), capacity=capacity)


def bucket(vm_ids: tuple[str, ...] = VMS) -> BucketBlock:
    mean = np.full((len(vm_ids), N_RESOURCES), 150.0)
    return BucketBlock.unlimited(END_S + 300, vm_ids, mean)


def test_the_engine_keeps_to_what_is_stated() -> None:
    shard = Shard(OPTIONS, 2 * GIB)
    shard.warm()
    shard.load(history())
    stated = shard.memory()
    series, ring = len(VMS) * N_RESOURCES, 8 * (OPTIONS.ring + 288)
    assert 0.3 * STATE_BYTES < stated.state_bytes / series - ring <= STATE_BYTES, "state it anew: the engine keeps more or far less"
    tracemalloc.start()
    try:
        shard.advance(bucket(), {})
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    budget = ShardBudget(ring=OPTIONS.ring, limit_bytes=2 * GIB)
    assert stated.state_bytes + most <= series * budget.series_bytes
    assert stated.vms == len(VMS) and stated.limit_bytes == 2 * GIB and stated.resident_bytes >= stated.state_bytes
    assert stated.needed_bytes == budget.needed(len(VMS)) == WORKER_BYTES + series * budget.series_bytes


def test_a_shard_holds_what_fits_and_no_more() -> None:
    budget = ShardBudget(ring=2322, limit_bytes=2 * GIB)
    assert budget.needed(budget.most_vms) <= budget.limit_bytes < budget.needed(budget.most_vms + 1)
    assert budget.most_vms * N_RESOURCES >= 1000, "a call carries at least a thousand series"
    assert ShardBudget(ring=2322, limit_bytes=100 * MIB).most_vms == 0


def test_a_fleet_gets_the_fewest_shards_that_leave_room_in_each() -> None:
    budget = ShardBudget(ring=288, limit_bytes=256 * MIB)
    fleet = tuple(f"vm-{i}" for i in range(500))
    shards = budget.shards_for(fleet, 1)
    fullest = [max(len(part.vm_ids) for part in split_history(history(fleet, buckets=1), n)) for n in (shards - 1, shards)]
    assert fullest[1] <= budget.most_vms * ROOM < fullest[0]
    assert budget.shards_for(fleet, shards + 3) >= shards + 3
    assert budget.shards_for([], 2) == 2


def test_a_fleet_that_no_number_of_shards_holds_is_told_so() -> None:
    with pytest.raises(ValueError, match=f"3 VMs: {SHARDS_MAX} shards of {181 * MIB} bytes"):
        ShardBudget(ring=20_000, limit_bytes=181 * MIB).shards_for(["a", "b", "c"], 1)


def test_arrays_are_counted_once_and_views_as_what_they_look_at() -> None:
    whole = np.zeros(1000)
    assert array_bytes([whole, whole[:10], {"again": whole}, (np.zeros(1, np.int8), "text")]) == 8001
    assert array_bytes(history()) == 3 * 4 * len(VMS) * N_RESOURCES * 288 + 4 * len(VMS) * N_RESOURCES


def test_a_worker_that_let_go_of_what_only_its_start_needed_still_forecasts() -> None:
    shard = Shard(OPTIONS, GIB)
    compiled = shard.warm()
    assert shard.warm() is compiled, "once"
    before = resident_bytes()
    return_start_pages()
    assert resident_bytes() <= before + 8 * MIB
    shard.load(history())
    assert np.isfinite(shard.advance(bucket(), {}).mean).all()
