"""Sizes to changes of levers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from coordinator.model import VmSize
from coordinator.planning.diff import changes_of, facts_of
from coordinator.planning.weights import NO_WEIGHTS, Weights
from coordinator.sizing.policy import SizingPolicy
from shared.plan import StepKind
from shared.units import CPU, GIB, MBIT, MEMORY, MIB, NET_RX, RESOURCES, UNLIMITED

NOW = (0, 0, 0, 0, 0)


def sized(clipped: tuple[str, ...] = (), **ranges: tuple[float, float, float]) -> VmSize:
    """cpu_millicores=(lower, target, upper), ...; others are left alone."""
    rows = np.array([ranges.get(name, (math.nan,) * 3) for name in RESOURCES])
    return VmSize(vm_id="a", host_id="h", lower=rows[:, 0], target=rows[:, 1], upper=rows[:, 2], clipped=clipped)


def changes(vm: Any, size: VmSize, *, contended: bool = False) -> list[tuple[str, int, int | None, str]]:
    weights = Weights(shares=SizingPolicy().shares[int(vm.domain.policy.priority)]) if contended else NO_WEIGHTS
    facts = facts_of(vm, size, SizingPolicy(), NOW, weights)
    return [(c.kind.value, c.value, c.before, c.reason) for c in changes_of(facts)]


def test_inside_the_range_nothing_is_done(make: Any) -> None:
    assert changes(make.vm(quota=1000), sized(cpu_millicores=(900, 1200, 1300))) == []


def test_growth_and_shrink_carry_before_image_and_reason(make: Any) -> None:
    assert changes(make.vm(quota=1000), sized(cpu_millicores=(1100, 1200, 1300))) == [("cpu_quota", 1200, 1000, "forecast_peak")]
    assert changes(make.vm(rx=100 * MBIT), sized(net_rx_bits_per_s=(1e6, 2e6, 3e6))) == [("net_rx", 2_000_000, 100 * MBIT, "shrink")]
    assert changes(make.vm(quota=1000), sized(("cpu_millicores",), cpu_millicores=(100, 500, 500))) == [
        ("cpu_quota", 500, 1000, "host_contention")
    ]


def test_vcpus_follow_a_quota_that_outgrows_them(make: Any) -> None:
    size = sized(cpu_millicores=(5500, 5600, 6000))
    assert changes(make.vm(quota=3000), size) == [("vcpus", 6, 4, "forecast_peak"), ("cpu_quota", 5600, 3000, "forecast_peak")]
    assert changes(make.vm(quota=3000, cannot={"vcpu_hot_add": "guest"}), size) == [("cpu_quota", 5600, 3000, "forecast_peak")]
    assert changes(make.vm(quota=5600), size) == [("vcpus", 6, 4, "forecast_peak")]
    assert changes(make.vm(quota=3000, policy={"cpu_ceiling_millicores": 4500}), size)[0] == ("vcpus", 5, 4, "forecast_peak")


def test_limits_that_are_unlimited_or_unknown(make: Any) -> None:
    size = sized(cpu_millicores=(800, 1000, 1100))
    assert changes(make.vm(quota=UNLIMITED), size) == [("cpu_quota", 1000, UNLIMITED, "shrink")]
    assert changes(make.vm(quota=None), size) == []


def test_a_balloon_goes_up_at_once_and_down_in_small_steps(make: Any) -> None:
    assert changes(make.vm(memory=GIB), sized(memory_bytes=(2 * GIB, 2 * GIB, 3 * GIB))) == [("memory", 2 * GIB, GIB, "forecast_peak")]
    policy = SizingPolicy(memory_stride=0.05, memory_spacing_s=60.0)
    facts = facts_of(make.vm(memory=2 * GIB), sized(memory_bytes=(GIB, 1.75 * GIB, 1.8 * GIB)), policy, NOW)
    stairs = changes_of(facts)
    values = [2 * GIB, *(c.value for c in stairs)]
    assert values[-1] == 1.75 * GIB
    assert all(0 < (a - b) / a <= 0.0501 for a, b in itertools.pairwise(values))
    assert [c.before for c in stairs] == values[:-1]
    assert [c.after_ns for c in stairs] == [60 * 10**9 * i for i in range(len(stairs))]
    assert all(c.value % (4 * MIB) == 0 for c in stairs)


def test_a_stride_smaller_than_a_granule_still_ends(make: Any) -> None:
    facts = facts_of(make.vm(memory=40 * MIB), sized(memory_bytes=(20 * MIB, 32 * MIB, 34 * MIB)), SizingPolicy(), NOW)
    assert [c.value for c in changes_of(facts)] == [36 * MIB, 32 * MIB]


@pytest.mark.parametrize(("priority", "shares"), [(0, 512), (2, 2048), (3, 4096)])
def test_shares_follow_priority_only_on_a_contended_host(make: Any, priority: int, shares: int) -> None:
    vm = make.vm(priority=priority)
    assert changes(vm, sized()) == []
    assert changes(vm, sized(), contended=True) == [("cpu_shares", shares, 1024, "host_contention")]


def test_facts_keep_unknown_as_none(make: Any) -> None:
    facts = facts_of(make.vm(memory=None), sized(), SizingPolicy(), NOW)
    assert facts.allocation[MEMORY] is None
    assert facts.target[CPU] is None
    assert facts.raw[NET_RX] == 100 * MBIT
    assert StepKind.MEMORY not in {c.kind for c in changes_of(facts)}
