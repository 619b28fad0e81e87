"""Observed violation time."""

from __future__ import annotations

import pytest

from coordinator.learning.sla import SlaThresholds, SlaTracker, violations
from shared.model import HostSample, Mode, VmSample
from shared.units import GIB, MIB, NS_PER_S


def sample(**vms: VmSample) -> HostSample:
    return HostSample(wall_ns=1, monotonic_ns=1, period_ns=5 * NS_PER_S, vms=vms)


@pytest.mark.parametrize(
    ("reading", "causes"),
    [
        ({"cpu_throttled_permille": 20}, {}),
        ({"cpu_throttled_permille": 300}, {"throttled": 0.3}),
        ({"cpu_ready_permille": 90, "vcpus": 2}, {}),
        ({"cpu_ready_permille": 400, "vcpus": 2}, {"ready": 0.2}),
        ({"psi_memory_some_permille": 50}, {}),
        ({"psi_memory_some_permille": 100}, {"memory": 0.1}),
        ({"memory_swap_bytes_per_s": 1024}, {}),
        ({"memory_swap_bytes_per_s": 256 * MIB, "memory_allocated_bytes": GIB}, {"memory": 0.25}),
        ({"net_tx_dropped_per_s": 3}, {"net": 0.0}),
        ({}, {}),
    ],
)
def test_thresholds(reading: dict[str, int], causes: dict[str, float]) -> None:
    assert violations(VmSample(**reading), SlaThresholds()) == causes


def test_time_counts_once_per_sample_whatever_the_causes() -> None:
    tracker = SlaTracker()
    bad = VmSample(cpu_throttled_permille=400, net_rx_dropped_per_s=9)
    for _ in range(12):
        tracker.observe("h", Mode.REACTIVE, sample(a=bad, b=VmSample()))
    sums = tracker.by_mode[Mode.REACTIVE]
    assert sums.violation_minutes == 1.0
    assert sums.observed_ns == 2 * 60 * NS_PER_S
    assert sums.by_cause_ns == {"throttled": 60 * NS_PER_S, "net": 60 * NS_PER_S}
    assert sums.depth == pytest.approx(0.4)
    assert tracker.by_vm["b"].depth is None
    assert tracker.by_host["h"].violation_minutes == 1.0
    tracker.forget(frozenset({"a"}))
    assert set(tracker.by_vm) == {"b"}


def test_modes_are_kept_apart() -> None:
    tracker = SlaTracker()
    tracker.observe("h", Mode.OBSERVE, sample(a=VmSample(cpu_throttled_permille=500)))
    tracker.observe("h", Mode.PREDICTIVE, sample(a=VmSample()))
    assert tracker.by_mode[Mode.OBSERVE].violated_ns == 5 * NS_PER_S
    assert tracker.by_mode[Mode.PREDICTIVE].violated_ns == 0


def test_allocation_over_use_counts_only_what_is_known() -> None:
    tracker = SlaTracker()
    known = VmSample(cpu_quota_millicores=2000, cpu_used_millicores=500, memory_allocated_bytes=4 * GIB, memory_used_bytes=2 * GIB)
    unlimited = VmSample(cpu_quota_millicores=-1, vcpus=4, cpu_used_millicores=1000)
    tracker.observe("h", Mode.PREDICTIVE, sample(a=known, b=unlimited, c=VmSample(cpu_used_millicores=9999)))
    sums = tracker.by_mode[Mode.PREDICTIVE]
    assert sums.allocation_over_use() == pytest.approx((6000 / 1500 + 2) / 2)
    assert SlaTracker().by_mode.get(Mode.OFF) is None
