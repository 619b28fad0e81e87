"""The levers: what each takes as a value, its bounds, when it is shown, what it promises."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.acting.levers import (
    DIMM_BYTES,
    FIELDS,
    Promise,
    bounds,
    charge,
    commit_limit,
    domain_maximum,
    extent,
    grows,
    incapable,
    invalid,
    may_be_unlimited,
    shows,
    smallest_change,
    tellable,
)
from shared.config import GuardConfig
from shared.model import Allocation, Capabilities, Domain, HostCapacity, Policy, VmSample
from shared.plan import StepKind
from shared.units import GIB, MIB, UNLIMITED

K = StepKind
CONFIG = GuardConfig()
CAN = Capabilities(**dict.fromkeys(Capabilities.__struct_fields__))
DOMAIN = Domain(
    vm_id="v",
    name="v",
    vcpus_max=4,
    memory_max_bytes=8 * GIB,
    virtio_mem_max_bytes=2 * GIB,
    dimm_max_bytes=GIB,
    net_max_bits_per_s=10**9,
    capabilities=CAN,
)
MOST = 2**53


def policy(**fields: object) -> Domain:
    return msgspec.structs.replace(DOMAIN, policy=Policy(**fields))  # type: ignore[arg-type]


def test_every_lever_but_a_move_is_read_somewhere() -> None:
    assert set(StepKind) - set(FIELDS) == {K.MIGRATE}
    for field, column in FIELDS.values():
        assert field in Allocation.__struct_fields__ and column in VmSample.__struct_fields__


@pytest.mark.parametrize(
    ("kind", "capability", "growing"),
    [
        (K.VCPUS, "vcpu_hot_add", True),
        (K.VCPUS, "vcpu_unplug", False),
        (K.VCPUS_ONLINE, "vcpu_offline", True),
        (K.VCPUS_ONLINE, "vcpu_offline", False),
        (K.CPU_QUOTA, "cpu_quota", True),
        (K.CPU_SHARES, "cpu_quota", True),
        (K.CPU_PERIOD, "cpu_quota", False),
        (K.MEMORY, "balloon", False),
        (K.VIRTIO_MEM, "virtio_mem", True),
        (K.DIMM, "dimm", True),
        (K.MEMORY_HIGH, "memory_high", True),
        (K.DISK_BYTES, "disk_limit", True),
        (K.DISK_OPS, "disk_limit", True),
        (K.DISK_WEIGHT, "disk_weight", True),
        (K.NET_RX, "shape_rx", True),
        (K.NET_TX, "shape_tx", True),
        (K.NET_TX_RATE, "net_rate", True),
        (K.MIGRATE, "migrate", True),
    ],
)
def test_what_a_domain_cannot_do(kind: StepKind, capability: str, growing: bool) -> None:
    assert incapable(kind, DOMAIN, growing) is None
    domain = msgspec.structs.replace(DOMAIN, capabilities=msgspec.structs.replace(CAN, **{capability: "because"}))
    assert incapable(kind, domain, growing) == "because"
    if kind is K.VCPUS:
        assert incapable(kind, domain, not growing) is None
    assert incapable(K.VCPUS, msgspec.structs.replace(DOMAIN, capabilities=msgspec.structs.replace(CAN, vcpu_hot_add="no"))) == "no"


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (K.VCPUS, (1, 4096), (0, -1)),
        (K.VCPUS_ONLINE, (1,), (0, -1)),
        (K.CPU_QUOTA, (1, UNLIMITED), (0, -2)),
        (K.CPU_SHARES, (2, 262_144), (1, 262_145, UNLIMITED)),
        (K.CPU_PERIOD, (1_000, 1_000_000), (999, 1_000_001, UNLIMITED)),
        (K.MEMORY, (1,), (0, UNLIMITED)),
        (K.VIRTIO_MEM, (0, 1), (-1, -2)),
        (K.DIMM, (0, 128 * MIB, 256 * MIB), (1, 128 * MIB - 1, 192 * MIB, -DIMM_BYTES, UNLIMITED)),
        (K.MEMORY_HIGH, (1, UNLIMITED), (0,)),
        (K.DISK_BYTES, (1, UNLIMITED), (0, -2)),
        (K.DISK_OPS, (1, UNLIMITED), (0,)),
        (K.DISK_WEIGHT, (1, 1000), (0, 1001, UNLIMITED)),
        (K.NET_RX, (1, UNLIMITED), (0,)),
        (K.NET_TX, (1, UNLIMITED), (0,)),
        (K.NET_TX_RATE, (0, 1), (UNLIMITED, -2)),
        (K.MIGRATE, (1, UNLIMITED), (0, -2)),
    ],
)
def test_values(kind: StepKind, good: tuple[int, ...], bad: tuple[int, ...]) -> None:
    assert [invalid(kind, value) for value in good] == [None] * len(good)
    assert all("allowed" in (invalid(kind, value) or "") for value in bad)


def test_a_refused_value_is_told_what_would_be_allowed() -> None:
    assert invalid(K.CPU_PERIOD, 1) == "allowed 1000 to 1000000"
    assert invalid(K.DIMM, 1) == "allowed multiples of 134217728"
    assert invalid(K.NET_RX, 0) == "allowed -1 (unlimited) or more than 0"
    assert invalid(K.MEMORY, 0) == "allowed more than 0"
    assert invalid(K.NET_TX_RATE, -2) == "allowed 0 or more"


@pytest.mark.parametrize(
    ("kind", "domain", "expected"),
    [
        (K.CPU_QUOTA, DOMAIN, (100, 4000)),
        (K.CPU_QUOTA, policy(cpu_floor_millicores=50, cpu_ceiling_millicores=9000), (100, 4000)),
        (K.CPU_QUOTA, policy(cpu_floor_millicores=500, cpu_ceiling_millicores=1500), (500, 1500)),
        (K.CPU_QUOTA, policy(cpu_floor_millicores=2000, cpu_ceiling_millicores=1500), (1500, 1500)),
        (K.VCPUS, DOMAIN, (1, 4)),
        (K.VCPUS, policy(cpu_floor_millicores=1001, cpu_ceiling_millicores=2500), (2, 3)),
        (K.VCPUS, policy(cpu_floor_millicores=0, cpu_ceiling_millicores=0), (1, 1)),
        (K.VCPUS_ONLINE, policy(cpu_floor_millicores=2000, cpu_ceiling_millicores=3000), (2, 3)),
        (K.CPU_SHARES, DOMAIN, (2, 262_144)),
        (K.CPU_PERIOD, DOMAIN, (1_000, 1_000_000)),
        (K.DISK_WEIGHT, DOMAIN, (1, 1000)),
        (K.MEMORY, DOMAIN, (128 * MIB, 8 * GIB)),
        (K.MEMORY, policy(memory_floor_bytes=GIB, memory_ceiling_bytes=2 * GIB), (GIB, 2 * GIB)),
        (K.MEMORY_HIGH, DOMAIN, (128 * MIB, 11 * GIB)),
        (K.MEMORY_HIGH, policy(memory_floor_bytes=GIB, memory_ceiling_bytes=2 * GIB), (GIB, 11 * GIB)),
        (K.VIRTIO_MEM, policy(memory_floor_bytes=GIB), (0, 2 * GIB)),
        (K.DIMM, DOMAIN, (0, GIB)),
        (K.DISK_BYTES, DOMAIN, (MIB, MOST)),
        (K.DISK_BYTES, policy(disk_floor_bytes_per_s=2 * MIB, disk_ceiling_bytes_per_s=9 * MIB), (2 * MIB, 9 * MIB)),
        (K.DISK_OPS, policy(disk_floor_bytes_per_s=2 * MIB), (50, MOST)),
        (K.NET_RX, DOMAIN, (10**6, 10**9)),
        (K.NET_TX, policy(net_floor_bits_per_s=2 * 10**6, net_ceiling_bits_per_s=10**8), (2 * 10**6, 10**8)),
        (K.NET_TX_RATE, policy(net_floor_bits_per_s=2 * 10**6, net_ceiling_bits_per_s=10**8), (0, 10**8)),
    ],
)
def test_bounds(kind: StepKind, domain: Domain, expected: tuple[int, int]) -> None:
    assert bounds(kind, domain, CONFIG) == expected


@pytest.mark.parametrize(
    ("kind", "want", "near", "far"),
    [
        (K.VCPUS, 200, 200, 201),
        (K.VCPUS_ONLINE, 200, 200, 199),
        (K.CPU_PERIOD, 100_000, 100_000, 99_999),
        (K.DIMM, 100 * DIMM_BYTES, 100 * DIMM_BYTES, 99 * DIMM_BYTES),
        (K.CPU_QUOTA, 100, 110, 111),
        (K.CPU_QUOTA, 2000, 2020, 2021),
        (K.CPU_SHARES, 100, 127, 128),
        (K.MEMORY, 10 * MIB, 12 * MIB, 12 * MIB + 1),
        (K.VIRTIO_MEM, 0, 2 * MIB, 2 * MIB + 1),
        (K.MEMORY_HIGH, 10 * MIB, 8 * MIB, 8 * MIB - 1),
        (K.NET_RX, 100_000, 108_000, 108_001),
        (K.NET_TX, 10**8, 99 * 10**6, 99 * 10**6 - 1),
        (K.NET_TX_RATE, 0, 8_000, 8_001),
        (K.DISK_BYTES, 10_000, 10_100, 10_101),
        (K.DISK_OPS, 99, 99, 100),
        (K.DISK_WEIGHT, 100, 101, 102),
    ],
)
def test_what_counts_as_shown(kind: StepKind, want: int, near: int, far: int) -> None:
    assert shows(kind, want, near) and not shows(kind, want, far)
    assert not shows(kind, want, None) and not shows(kind, want, UNLIMITED) and shows(kind, UNLIMITED, UNLIMITED)


def test_unlimited_is_more_than_any_number() -> None:
    assert grows(10**9, UNLIMITED) and not grows(UNLIMITED, 10**9) and not grows(UNLIMITED, UNLIMITED)
    assert grows(1, 2) and not grows(2, 2) and not grows(2, 1)


def test_a_ceiling_forbids_unlimited_where_unlimited_is_a_value_at_all() -> None:
    free = {kind for kind in StepKind if may_be_unlimited(kind, DOMAIN)}
    assert free == {K.CPU_QUOTA, K.NET_RX, K.NET_TX, K.MEMORY_HIGH, K.DISK_BYTES, K.DISK_OPS, K.MIGRATE}
    capped = policy(cpu_ceiling_millicores=1, net_ceiling_bits_per_s=1, disk_ceiling_bytes_per_s=1, memory_ceiling_bytes=1)
    assert {kind for kind in StepKind if may_be_unlimited(kind, capped)} == {K.MEMORY_HIGH, K.DISK_OPS, K.MIGRATE}


@pytest.mark.parametrize(
    ("kind", "unlimited", "unknown", "never_ours"),
    [
        (K.CPU_QUOTA, 3000, 4000, 4000),
        (K.MEMORY, 8 * GIB, 8 * GIB, 8 * GIB),
        (K.VIRTIO_MEM, 2 * GIB, 2 * GIB, 0),
        (K.DIMM, GIB, GIB, 0),
        (K.NET_RX, 10**9, 10**9, 0),
        (K.NET_TX, 10**9, 10**9, 0),
        (K.NET_TX_RATE, 10**9, 10**9, 0),
        (K.VCPUS, 0, 0, 0),
        (K.MEMORY_HIGH, 0, 0, 0),
        (K.DISK_BYTES, 0, 0, 0),
        (K.CPU_SHARES, 0, 0, 0),
    ],
)
def test_what_a_value_takes_of_the_promise(kind: StepKind, unlimited: int, unknown: int, never_ours: int) -> None:
    promised = unlimited > 0
    assert charge(kind, 5, DOMAIN, 3) == (5 if promised else 0)
    assert charge(kind, UNLIMITED, DOMAIN, 3) == unlimited
    assert charge(kind, None, DOMAIN, 3) == unknown
    unable = msgspec.structs.replace(DOMAIN, capabilities=Capabilities(**dict.fromkeys(Capabilities.__struct_fields__, "no")))
    assert charge(kind, None, unable, 3) == never_ours


def test_what_unlimited_counts_for() -> None:
    assert extent(K.CPU_QUOTA, UNLIMITED, DOMAIN, 3) == 3000 and extent(K.CPU_QUOTA, 7, DOMAIN, 3) == 7
    assert extent(K.MEMORY_HIGH, UNLIMITED, DOMAIN, 3) == 11 * GIB
    assert extent(K.DISK_BYTES, UNLIMITED, DOMAIN, 3) == GIB and extent(K.DISK_OPS, UNLIMITED, DOMAIN, 3) == 100_000
    assert domain_maximum(K.VCPUS, DOMAIN) == domain_maximum(K.VCPUS_ONLINE, DOMAIN) == 4
    assert domain_maximum(K.CPU_SHARES, DOMAIN) == 262_144


def test_the_smallest_change() -> None:
    smallest = {kind: smallest_change(kind, CONFIG) for kind in StepKind}
    assert {kind: value for kind, value in smallest.items() if value} == {
        K.VCPUS: 1,
        K.VCPUS_ONLINE: 1,
        K.DIMM: DIMM_BYTES,
        K.NET_TX_RATE: 1_000_000,
    }


@given(st.sampled_from([K.MEMORY, K.VIRTIO_MEM]), st.integers(0, 2**50))
def test_a_tellable_growth_is_told_from_standing_still(kind: StepKind, current: int) -> None:
    least = tellable(kind, current)
    assert not shows(kind, current + least, current)
    assert least <= max(current // 90, 2 * MIB) + 1
    assert tellable(K.DIMM, current) == DIMM_BYTES


def test_commit_limits() -> None:
    capacity = HostCapacity(
        cpu_millicores=1, memory_bytes=2, net_bits_per_s=3, cpu_commit_millicores=4, memory_commit_bytes=5, net_commit_bits_per_s=6
    )
    assert [commit_limit(promise, capacity) for promise in Promise] == [4, 5, 6, 6, 6]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({"cpu_floor_millicores": 500}, (1, 4)), ({"cpu_floor_millicores": 2001}, (3, 4)), ({"cpu_ceiling_millicores": 2001}, (1, 3))],
)
def test_vcpus_are_bounded_in_whole_ones_rounded_up(fields: dict[str, int], expected: tuple[int, int]) -> None:
    assert bounds(K.VCPUS, policy(**fields), CONFIG) == expected


def test_a_device_that_nothing_of_ours_limits_is_judged_by_its_own_capability() -> None:
    """Not by that of the CPU quota, say."""
    without_device = msgspec.structs.replace(DOMAIN, capabilities=msgspec.structs.replace(CAN, virtio_mem="no device"))
    without_quota = msgspec.structs.replace(DOMAIN, capabilities=msgspec.structs.replace(CAN, cpu_quota="no cgroup"))
    assert charge(K.VIRTIO_MEM, None, without_device, 2) == 0
    assert charge(K.VIRTIO_MEM, None, without_quota, 2) == 2 * GIB


def test_a_tellable_growth_is_whole_bytes() -> None:
    assert tellable(K.MEMORY, 10**9) == 10_101_011
    assert tellable(K.MEMORY, GIB // 8) == 2 * MIB + 1
