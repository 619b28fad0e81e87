"""The levers in one place: where each is read, when a value counts as shown, its bounds, and what it takes of the host's promise.

Invariant: `shows` is the only comparison of a wanted with a read value, so "nothing to do" and "verified" cannot disagree.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from shared.config import GuardConfig
from shared.model import Domain, HostCapacity
from shared.plan import StepKind
from shared.units import KBIT, MIB, UNLIMITED

# kind -> (field of Allocation, column of VmSample)
FIELDS: Final = {
    StepKind.VCPUS: ("vcpus", "vcpus"),
    StepKind.CPU_QUOTA: ("cpu_quota_millicores", "cpu_quota_millicores"),
    StepKind.CPU_SHARES: ("cpu_shares", "cpu_shares"),
    StepKind.MEMORY: ("memory_bytes", "memory_allocated_bytes"),
    StepKind.NET_RX: ("net_rx_bits_per_s", "net_rx_ceil_bits_per_s"),
    StepKind.NET_TX: ("net_tx_bits_per_s", "net_tx_ceil_bits_per_s"),
    StepKind.VCPUS_ONLINE: ("vcpus_online", "vcpus_online"),
    StepKind.CPU_PERIOD: ("cpu_period_us", "cpu_period_us"),
    StepKind.VIRTIO_MEM: ("virtio_mem_bytes", "virtio_mem_bytes"),
    StepKind.DIMM: ("dimm_bytes", "dimm_bytes"),
    StepKind.MEMORY_HIGH: ("memory_high_bytes", "memory_high_bytes"),
    StepKind.DISK_BYTES: ("disk_bytes_per_s", "disk_limit_bytes_per_s"),
    StepKind.DISK_OPS: ("disk_ops_per_s", "disk_ops_limit_per_s"),
    StepKind.DISK_WEIGHT: ("disk_weight", "disk_weight"),
    StepKind.NET_TX_RATE: ("net_tx_rate_bits_per_s", "net_tx_rate_bits_per_s"),
}

SHARES_MIN: Final = 2
SHARES_MAX: Final = 262_144


# cgroup v2 keeps shares as a weight of 1..10000: one weight is 26.2 shares.
_SHARES_PER_WEIGHT: Final = 27
# cpu.max is written in microseconds of a 100 ms period: 10 millicores covers period rounding of small quotas.
_QUOTA_ROUNDING_MILLICORES: Final = 10
# HTB rates are kept in bytes/s.
_NET_ROUNDING_BITS: Final = 8 * KBIT
# The balloon moves in pages and the guest keeps a few.
_MEMORY_ROUNDING_BYTES: Final = 2 * MIB


class Promise(StrEnum):
    """What a host promises to VMs in sum, each with its own commit limit. Network directions are separate (full duplex)."""

    CPU = "cpu"
    MEMORY = "memory"
    NET_RX = "net_rx"
    NET_TX = "net_tx"


PROMISE_OF: Final = {
    StepKind.VCPUS: Promise.CPU,
    StepKind.CPU_QUOTA: Promise.CPU,
    StepKind.MEMORY: Promise.MEMORY,
    StepKind.NET_RX: Promise.NET_RX,
    StepKind.NET_TX: Promise.NET_TX,
}


def shows(kind: StepKind, want: int, got: int | None) -> bool:
    """True when the value read counts as the value wanted: vcpus exact, others 1 % or the lever's own rounding."""
    if got is None:
        return False
    if want == got:
        return True
    if kind is StepKind.VCPUS or UNLIMITED in (want, got):
        return False
    allowed = want // 100
    if kind is StepKind.MEMORY:
        allowed = max(allowed, _MEMORY_ROUNDING_BYTES)
    elif kind is StepKind.CPU_QUOTA:
        allowed = max(allowed, _QUOTA_ROUNDING_MILLICORES)
    elif kind is StepKind.CPU_SHARES:
        allowed = max(allowed, _SHARES_PER_WEIGHT)
    else:
        allowed = max(allowed, _NET_ROUNDING_BITS)
    return abs(want - got) <= allowed


def grows(before: int, after: int) -> bool:
    """True when `after` gives the VM more; UNLIMITED is more than any number."""
    if before == UNLIMITED:
        return False
    return after == UNLIMITED or after > before


def incapable(kind: StepKind, domain: Domain) -> str | None:
    """Why the domain cannot take steps of this kind; None = it can."""
    capabilities = domain.capabilities
    if kind is StepKind.VCPUS:
        return capabilities.vcpu_hot_add
    if kind is StepKind.MEMORY:
        return capabilities.balloon
    if kind is StepKind.NET_RX:
        return capabilities.shape_rx
    if kind is StepKind.NET_TX:
        return capabilities.shape_tx
    others = {
        StepKind.VCPUS_ONLINE: capabilities.vcpu_offline,
        StepKind.VIRTIO_MEM: capabilities.virtio_mem,
        StepKind.DIMM: capabilities.dimm,
        StepKind.MEMORY_HIGH: capabilities.memory_high,
        StepKind.DISK_BYTES: capabilities.disk_limit,
        StepKind.DISK_OPS: capabilities.disk_limit,
        StepKind.DISK_WEIGHT: capabilities.disk_weight,
        StepKind.NET_TX_RATE: capabilities.net_rate,
        StepKind.MIGRATE: capabilities.migrate,
    }
    return others.get(kind, capabilities.cpu_quota)


def bounds(kind: StepKind, domain: Domain, config: GuardConfig) -> tuple[int, int]:
    """(floor, ceiling) of one lever: the policy's, else the guard's floor and the domain's maximum. The ceiling wins over the floor."""
    policy = domain.policy
    low: int | None
    high: int | None
    if kind is StepKind.CPU_QUOTA:
        low, high, least, most = (
            policy.cpu_floor_millicores,
            policy.cpu_ceiling_millicores,
            config.cpu_floor_millicores,
            domain.vcpus_max * 1000,
        )
    elif kind is StepKind.MEMORY:
        low, high, least, most = policy.memory_floor_bytes, policy.memory_ceiling_bytes, config.memory_floor_bytes, domain.memory_max_bytes
    elif kind is StepKind.VCPUS:
        ceiling = policy.cpu_ceiling_millicores
        low, high, least, most = None, None if ceiling is None else max(1, -(-ceiling // 1000)), 1, domain.vcpus_max
    elif kind is StepKind.CPU_SHARES:
        low, high, least, most = None, None, SHARES_MIN, SHARES_MAX
    else:
        low, high, least, most = (
            policy.net_floor_bits_per_s,
            policy.net_ceiling_bits_per_s,
            config.net_floor_bits_per_s,
            domain.net_max_bits_per_s,
        )
    # A policy may raise the guard's floor, never lower it: the floor is what keeps a guest alive.
    top = most if high is None else min(high, most)
    bottom = least if low is None else max(low, least)
    return min(bottom, top), top


def may_be_unlimited(kind: StepKind, domain: Domain) -> bool:
    """True where UNLIMITED is a value of this lever and no ceiling of the policy forbids it."""
    if kind is StepKind.CPU_QUOTA:
        return domain.policy.cpu_ceiling_millicores is None
    return kind in (StepKind.NET_RX, StepKind.NET_TX) and domain.policy.net_ceiling_bits_per_s is None


def charge(kind: StepKind, value: int | None, domain: Domain, vcpus: int) -> int:
    """What a value takes of the host's promise. Unknown = full; an unlimited quota = vcpus x 1000; an unlimited NIC = its maximum."""
    if kind is StepKind.MEMORY:
        return domain.memory_max_bytes if value is None else value
    if kind is StepKind.CPU_QUOTA:
        if value is None:
            return domain.vcpus_max * 1000
        return vcpus * 1000 if value == UNLIMITED else value
    if kind in (StepKind.NET_RX, StepKind.NET_TX):
        if value is None and incapable(kind, domain) is not None:
            return 0  # nothing of ours limits it and nothing ever will: it is no part of what we promise
        return domain.net_max_bits_per_s if value is None or value == UNLIMITED else value
    return 0


def commit_limit(promise: Promise, capacity: HostCapacity) -> int:
    """How much of a resource the host may promise in sum."""
    if promise is Promise.CPU:
        return capacity.cpu_commit_millicores
    if promise is Promise.MEMORY:
        return capacity.memory_commit_bytes
    return capacity.net_commit_bits_per_s
