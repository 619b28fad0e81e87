"""Samples to minutes: what each metric reads, what is unknown, and a VM that is on two hosts."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.demand.buckets import BucketFolder
from coordinator.demand.censoring import columns_of, demand_of_columns
from coordinator.demand.minutes import NAMES, values_of
from shared.model import HostSample, VmSample
from shared.units import BUCKET_S, NS_PER_S

T0 = 1_790_000_400 // BUCKET_S * BUCKET_S
NAN = float("nan")
BASE = {"cpu_used_millicores": 500, "cpu_throttled_permille": 0, "vcpus": 2, "cpu_quota_millicores": 2000}


def values(**fields: int | None) -> dict[str, float]:
    columns = columns_of((VmSample(**(BASE | fields)),))  # type: ignore[arg-type]
    return dict(zip(NAMES, values_of(columns, demand_of_columns(columns))[0].tolist(), strict=True))


@pytest.mark.parametrize(
    ("metric", "fields", "wanted"),
    [
        ("ready", {"cpu_ready_permille": 100}, 50.0),
        ("ready", {"cpu_ready_permille": 100, "vcpus": None}, 100.0),
        ("ready", {}, NAN),
        ("memory_pressure", {"psi_memory_some_permille": 70, "memory_swap_bytes_per_s": 10**9}, 70.0),
        ("memory_pressure", {"memory_swap_bytes_per_s": 10**9}, 1000.0),
        ("memory_pressure", {"memory_swap_bytes_per_s": 4096}, 0.0),
        ("memory_pressure", {}, NAN),
        ("unmet_demand", {"cpu_throttled_permille": 300}, 300.0),
        ("unmet_demand", {"cpu_throttled_permille": 3000}, 1000.0),
        ("unmet_demand", {"cpu_throttled_permille": None}, NAN),
        ("unmet_demand", {"cpu_throttled_permille": None, "cpu_quota_millicores": -1}, 0.0),
        ("unmet_demand", {"cpu_ready_permille": 900}, 0.0),  # that is what `ready` is for
        ("unmet_demand", {"disk_read_bytes_per_s": 10**6, "disk_limit_bytes_per_s": 10**6, "psi_io_some_permille": 500}, 500.0),
        ("network_drops", {"net_rx_dropped_per_s": 1, "net_tx_dropped_per_s": 0}, 1000.0),
        ("network_drops", {"net_tx_dropped_per_s": 0}, 0.0),
        ("network_drops", {}, NAN),
    ],
)
def test_what_a_sample_is(metric: str, fields: dict[str, int | None], wanted: float) -> None:
    assert values(**fields)[metric] == pytest.approx(wanted, nan_ok=True)


def sample(at_s: int, ready: int, period_s: int = 5) -> HostSample:
    cell = VmSample(**(BASE | {"cpu_ready_permille": ready}))  # type: ignore[arg-type]
    return HostSample(wall_ns=at_s * NS_PER_S, monotonic_ns=at_s * NS_PER_S, period_ns=period_s * NS_PER_S, vms={"a": cell})


def test_a_vm_that_moved_within_a_minute_counts_once() -> None:
    folder = BucketFolder()
    for second in range(1, 60, 5):
        folder.add("one" if second < 30 else "two", sample(T0 + second, 0 if second < 30 else 200))
    folder.close(T0)
    block = folder.minutes(T0)
    assert block is not None
    assert block.weights[0, 0, 0] == 600
    assert block.known()[0, :, 0].tolist() == [True, False, False, False, False]
    assert block.bad(np.array([[499, -1, -1, -1]], np.int32))[0, 0, 0]  # the mean is 50 permille
    assert not block.bad(np.array([[500, -1, -1, -1]], np.int32))[0, 0, 0]


def test_less_than_half_a_minute_is_unknown_and_a_hostile_flood_overflows_nothing() -> None:
    folder = BucketFolder()
    for second in range(1, 26, 5):
        folder.add("one", sample(T0 + second, 900))
    folder.close(T0)
    block = folder.minutes(T0)
    assert block is not None
    assert not block.known().any()
    for at_ns in range(6000):
        flood = sample(T0 + BUCKET_S, 2000, 300)
        folder.add("one", HostSample(wall_ns=flood.wall_ns + at_ns, monotonic_ns=1, period_ns=flood.period_ns, vms=flood.vms))
    folder.close(T0 + BUCKET_S)
    flooded = folder.minutes(T0 + BUCKET_S)
    assert flooded is not None
    assert (flooded.sums >= 0).all()
    assert flooded.bad(np.array([[500, -1, -1, -1]], np.int32))[0, 0, 0]


def test_nothing_is_told_of_a_bucket_that_nobody_reported_in() -> None:
    folder = BucketFolder()
    folder.close(T0)
    assert folder.minutes(T0) is None
