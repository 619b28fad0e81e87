"""Demand is not usage: what each limit hides, and that nothing is invented where no limit bites."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.demand.censoring import FIELDS, demand_of
from shared.model import VmSample
from shared.units import CPU, DISK, GIB, MEMORY, MIB, NET_RX, NET_TX


def test_free_vm_is_returned_as_it_is() -> None:
    demand = demand_of(
        VmSample(cpu_used_millicores=300, vcpus=2, cpu_quota_millicores=1000, memory_used_bytes=GIB, memory_allocated_bytes=2 * GIB)
    )
    assert demand.mean[0, CPU] == 300
    assert demand.mean[0, MEMORY] == GIB
    assert not demand.censored.any()
    assert np.isnan(demand.mean[0, [DISK, NET_RX, NET_TX]]).all()


@pytest.mark.parametrize(
    ("used", "throttled", "expected"),
    [(990, 400, 1650.0), (1000, 900, 2000.0), (1000, 0, 1100.0), (400, 200, 500.0)],
)
def test_throttled_cpu_is_censored_and_inflated_within_bounds(used: int, throttled: int, expected: float) -> None:
    demand = demand_of(VmSample(cpu_used_millicores=used, cpu_throttled_permille=throttled, vcpus=4, cpu_quota_millicores=1000))
    assert demand.mean[0, CPU] == pytest.approx(expected)
    assert demand.censored[0, CPU]


def test_vcpus_bound_the_estimate_and_all_busy_adds_ten_percent() -> None:
    demand = demand_of(VmSample(cpu_used_millicores=1000, cpu_throttled_permille=800, vcpus=2, cpu_quota_millicores=1500))
    assert demand.mean[0, CPU] == 2000
    busy = demand_of(VmSample(cpu_used_millicores=2000, vcpus=2, cpu_quota_millicores=-1))
    assert busy.mean[0, CPU] == pytest.approx(2200)
    assert busy.censored[0, CPU]


def test_run_delay_is_demand() -> None:
    demand = demand_of(VmSample(cpu_used_millicores=500, cpu_ready_permille=300, vcpus=4))
    assert demand.mean[0, CPU] == 800
    assert demand.censored[0, CPU]


def test_subsample_peak_enters_peak_only() -> None:
    demand = demand_of(VmSample(cpu_used_millicores=500, cpu_used_peak_millicores=1400, vcpus=2))
    assert (demand.mean[0, CPU], demand.peak[0, CPU]) == (500, 1400)


def test_memory_pressure_inflates_more_with_more_swap() -> None:
    def memory(swap: int) -> float:
        sample = VmSample(memory_used_bytes=900 * MIB, memory_allocated_bytes=GIB, memory_swap_bytes_per_s=swap)
        return float(demand_of(sample).mean[0, MEMORY])

    assert memory(0) == 900 * MIB < memory(MIB) < memory(10 * MIB) <= memory(10**9)
    assert memory(10**12) == pytest.approx(900 * MIB + 0.25 * GIB)


@pytest.mark.parametrize(("drops", "factor"), [(0, 1.10), (7, 1.25)])
def test_network_at_its_ceiling(drops: int, factor: float) -> None:
    sample = VmSample(net_rx_bits_per_s=960_000, net_rx_ceil_bits_per_s=1_000_000, net_rx_dropped_per_s=drops)
    demand = demand_of(sample)
    assert demand.mean[0, NET_RX] == pytest.approx(1_000_000 * factor)
    assert demand.censored[0, NET_RX]


def test_drops_below_the_ceiling_raise_the_peak() -> None:
    demand = demand_of(VmSample(net_tx_bits_per_s=300_000, net_tx_ceil_bits_per_s=1_000_000, net_tx_dropped_per_s=3))
    assert demand.mean[0, NET_TX] == pytest.approx(330_000)
    assert demand.peak[0, NET_TX] == 1_000_000
    assert demand.censored[0, NET_TX]


def test_half_known_disk_counts_what_is_known() -> None:
    demand = demand_of(VmSample(disk_read_bytes_per_s=100, disk_limit_bytes_per_s=1000))
    assert demand.usage[0, DISK] == 100
    assert not demand.censored[0, DISK]


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({name: st.none() | st.integers(-1, 2**50) for name in FIELDS}))
def test_demand_is_never_below_usage_and_never_infinite(fields: dict[str, int | None]) -> None:
    demand = demand_of(
        VmSample(
            **{
                name: None
                if value is None
                else max(value, -1 if name.endswith(("quota_millicores", "limit_bytes_per_s", "ceil_bits_per_s")) else 0)
                for name, value in fields.items()
            }
        )
    )
    known = ~np.isnan(demand.usage)
    assert (np.isnan(demand.mean) == ~known).all()
    assert (demand.mean[known] >= demand.usage[known]).all()
    assert (demand.peak[known] >= demand.mean[known]).all()
    assert np.isfinite(demand.peak[known]).all()
