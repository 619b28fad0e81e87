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
    ("used", "throttled", "psi", "expected"),
    [
        (990, 400, 400, 1650.0),  # a share of the group as a whole
        (990, 400, None, 1650.0),
        (1000, 0, None, 1100.0),
        (800, 200, 200, 800 + (200 * 62.5) ** 0.5),  # below its quota: between one vCPU's part and a share of the whole
        (1000, 740, 740, 1000 / 0.26),
        (1000, 3000, 996, 4000.0),  # four vCPUs, each held for three quarters of the time
        (1000, 800, 590, 1250.0),  # each for a fifth of it
        (650, 400, 360, 650 + 250 * 0.4 / 0.8),  # two of four, each for a fifth of it
        (1000, 900, None, 1000 / 0.775),  # no share of the whole: at that quota it cannot pass .75
    ],
)
def test_throttled_cpu_is_what_it_used_over_the_time_that_it_was_let_run(
    used: int, throttled: int, psi: int | None, expected: float
) -> None:
    demand = demand_of(
        VmSample(cpu_used_millicores=used, cpu_throttled_permille=throttled, psi_cpu_some_permille=psi, vcpus=4, cpu_quota_millicores=1000)
    )
    assert demand.mean[0, CPU] == pytest.approx(expected)
    assert demand.censored[0, CPU]
    assert not demand.blind[0, CPU]


def test_vcpus_bound_the_estimate_and_an_unknown_number_of_them_does_more_so() -> None:
    bounded = VmSample(cpu_used_millicores=1500, cpu_throttled_permille=600, psi_cpu_some_permille=600, vcpus=2, cpu_quota_millicores=1500)
    assert demand_of(bounded).mean[0, CPU] == 2000
    unknown = VmSample(cpu_used_millicores=1500, cpu_throttled_permille=900, psi_cpu_some_permille=900, cpu_quota_millicores=1500)
    assert demand_of(unknown).mean[0, CPU] == 3000


def test_all_online_vcpus_busy_hides_what_more_would_take() -> None:
    busy = demand_of(VmSample(cpu_used_millicores=1980, vcpus=4, vcpus_online=2, cpu_quota_millicores=-1))
    assert busy.mean[0, CPU] == pytest.approx(2000)
    assert busy.censored[0, CPU]
    assert busy.blind[0, CPU]


def test_run_delay_is_demand() -> None:
    demand = demand_of(VmSample(cpu_used_millicores=500, cpu_ready_permille=300, vcpus=4))
    assert demand.mean[0, CPU] == 800
    assert demand.censored[0, CPU]


def test_subsample_peak_enters_peak_only() -> None:
    demand = demand_of(VmSample(cpu_used_millicores=500, cpu_used_peak_millicores=1400, vcpus=2))
    assert (demand.mean[0, CPU], demand.peak[0, CPU]) == (500, 1400)


def test_memory_pressure_inflates_more_with_more_swap() -> None:
    def memory(swap: int, used: int = 900 * MIB) -> float:
        sample = VmSample(memory_used_bytes=used, memory_allocated_bytes=GIB, memory_swap_bytes_per_s=swap)
        return float(demand_of(sample).mean[0, MEMORY])

    assert memory(0) == 900 * MIB < memory(MIB) < memory(10 * MIB) <= memory(10**9)
    assert memory(10**12) == pytest.approx(900 * MIB + 0.25 * GIB)
    assert memory(10**12, GIB) == pytest.approx(1.5 * GIB)


def test_a_full_guest_lacks_what_it_refaults_and_is_blind_where_nobody_counts() -> None:
    short = VmSample(
        memory_used_bytes=GIB,
        memory_allocated_bytes=GIB,
        memory_swap_bytes_per_s=10 * MIB,
        memory_major_faults_per_s=160,
        psi_memory_some_permille=667,
    )
    demand = demand_of(short)
    assert demand.mean[0, MEMORY] == pytest.approx(GIB + 200 * MIB, rel=0.01)
    assert not demand.blind[0, MEMORY]
    unwatched = demand_of(VmSample(memory_used_bytes=GIB, memory_allocated_bytes=GIB))
    assert unwatched.mean[0, MEMORY] == GIB
    assert unwatched.blind[0, MEMORY]
    quiet = demand_of(VmSample(memory_used_bytes=GIB, memory_allocated_bytes=GIB, memory_swap_bytes_per_s=0))
    assert quiet.mean[0, MEMORY] == GIB
    assert quiet.censored[0, MEMORY]
    assert not quiet.blind[0, MEMORY]


def test_first_reads_of_files_are_no_shortage() -> None:
    demand = demand_of(VmSample(memory_used_bytes=GIB // 2, memory_allocated_bytes=GIB, memory_major_faults_per_s=5000))
    assert demand.mean[0, MEMORY] == pytest.approx(GIB * 0.55)


def test_memory_plugged_beside_the_balloon_is_room() -> None:
    demand = demand_of(VmSample(memory_used_bytes=GIB, memory_allocated_bytes=GIB, virtio_mem_bytes=GIB))
    assert not demand.censored[0, MEMORY]
    assert demand.limit[0, MEMORY] == 2 * GIB


@pytest.mark.parametrize(("drops", "expected", "blind"), [(0, 1.0, True), (2, 1.0, True), (50, 1.6, False), (10**6, 20.0, False)])
def test_network_at_its_ceiling(drops: int, expected: float, blind: bool) -> None:
    sample = VmSample(net_rx_bits_per_s=960_000, net_rx_ceil_bits_per_s=1_000_000, net_rx_dropped_per_s=drops)
    demand = demand_of(sample)
    assert demand.mean[0, NET_RX] == pytest.approx(1_000_000 * expected)
    assert demand.censored[0, NET_RX]
    assert demand.blind[0, NET_RX] == blind


def test_drops_below_the_ceiling_raise_the_peak() -> None:
    demand = demand_of(VmSample(net_tx_bits_per_s=300_000, net_tx_ceil_bits_per_s=1_000_000, net_tx_dropped_per_s=2))
    assert demand.mean[0, NET_TX] == pytest.approx(330_000)
    assert demand.peak[0, NET_TX] == 1_000_000
    assert demand.censored[0, NET_TX]


@pytest.mark.parametrize(("stall", "expected", "blind"), [(500, 2000.0, False), (990, 20_000.0, False), (None, 1000.0, True)])
def test_disk_at_its_limit_is_judged_by_its_stall(stall: int | None, expected: float, blind: bool) -> None:
    sample = VmSample(disk_read_bytes_per_s=600, disk_write_bytes_per_s=400, disk_limit_bytes_per_s=1000, psi_io_some_permille=stall)
    demand = demand_of(sample)
    assert demand.mean[0, DISK] == pytest.approx(expected)
    assert demand.blind[0, DISK] == blind


def test_a_limit_of_disk_operations_censors_too() -> None:
    sample = VmSample(disk_read_bytes_per_s=100, disk_read_ops_per_s=99, disk_write_ops_per_s=1, disk_ops_limit_per_s=100)
    assert demand_of(sample).blind[0, DISK]


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
                else max(value, -1 if name.endswith(("quota_millicores", "limit_bytes_per_s", "limit_per_s", "ceil_bits_per_s")) else 0)
                for name, value in fields.items()
            }
        )
    )
    known = ~np.isnan(demand.usage)
    assert (np.isnan(demand.mean) == ~known).all()
    assert (demand.mean[known] >= demand.usage[known]).all()
    assert (demand.peak[known] >= demand.mean[known]).all()
    assert np.isfinite(demand.peak[known]).all()
    assert (demand.censored | ~demand.blind).all()
