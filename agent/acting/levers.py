"""The levers in one place: where each is read, when a value counts as shown, its bounds, and what it takes of the host's promise.

Invariant: `shows` is the only comparison of a wanted with a read value, so "nothing to do" and "verified" cannot disagree.

What a host commits of memory: the balloon, virtio-mem and DIMMs, each at what is in force or on its way. `memory_bytes` is what the balloon
leaves of the memory that the domain booted with: QEMU's own figure holds DIMMs and libvirt's `current` virtio-mem as well, so the adapter
takes both off, and the three together are what the guest may touch.
memory.high promises nothing: it takes pages that the balloon was charged for. A guarantee to the network is a promise of its own.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from shared.config import GuardConfig
from shared.model import Domain, HostCapacity
from shared.plan import StepKind
from shared.units import GIB, KBIT, MIB, UNLIMITED

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

# kind -> field of Capabilities, where it is not the quota's
_CAPABILITY: Final = {
    StepKind.VCPUS: "vcpu_hot_add",
    StepKind.MEMORY: "balloon",
    StepKind.NET_RX: "shape_rx",
    StepKind.NET_TX: "shape_tx",
    StepKind.VCPUS_ONLINE: "vcpu_offline",
    StepKind.VIRTIO_MEM: "virtio_mem",
    StepKind.DIMM: "dimm",
    StepKind.MEMORY_HIGH: "memory_high",
    StepKind.DISK_BYTES: "disk_limit",
    StepKind.DISK_OPS: "disk_limit",
    StepKind.DISK_WEIGHT: "disk_weight",
    StepKind.NET_TX_RATE: "net_rate",
    StepKind.MIGRATE: "migrate",
}

SHARES_MIN: Final = 2
SHARES_MAX: Final = 262_144
WEIGHT_MIN: Final = 1
WEIGHT_MAX: Final = 1000
# What the kernel takes as a CFS period (Documentation/scheduler/sched-bwc.rst).
PERIOD_MIN_US: Final = 1_000
PERIOD_MAX_US: Final = 1_000_000
# Memory is hot-plugged in sections of this size on x86.
DIMM_BYTES: Final = 128 * MIB

# How something is shared or counted out, not how much of it there is: no promise, no working set, neither growth nor cut.
WEIGHTS: Final = frozenset({StepKind.CPU_SHARES, StepKind.CPU_PERIOD, StepKind.DISK_WEIGHT})
# What the guest's memory consists of.
MEMORY_LEVERS: Final = (StepKind.MEMORY, StepKind.VIRTIO_MEM, StepKind.DIMM)
MEMORY_DEVICES: Final = frozenset({StepKind.VIRTIO_MEM, StepKind.DIMM})
# Values that are counts of vCPUs: one is the smallest change.
VCPU_COUNTS: Final = frozenset({StepKind.VCPUS, StepKind.VCPUS_ONLINE})
# Levers for which 0 is a value: nothing plugged in, nothing guaranteed.
_MAY_BE_ZERO: Final = frozenset({StepKind.VIRTIO_MEM, StepKind.DIMM, StepKind.NET_TX_RATE})
_RANGES: Final = {
    StepKind.CPU_SHARES: (SHARES_MIN, SHARES_MAX),
    StepKind.CPU_PERIOD: (PERIOD_MIN_US, PERIOD_MAX_US),
    StepKind.DISK_WEIGHT: (WEIGHT_MIN, WEIGHT_MAX),
}
_TAKES_UNLIMITED: Final = frozenset(
    {
        *(StepKind.CPU_QUOTA, StepKind.NET_RX, StepKind.NET_TX, StepKind.MEMORY_HIGH),
        *(StepKind.DISK_BYTES, StepKind.DISK_OPS, StepKind.MIGRATE),
    }
)

# cgroup v2 keeps shares as a weight of 1..10000: one weight is 26.2 shares.
_SHARES_PER_WEIGHT: Final = 27
# cpu.max is written in microseconds of a 100 ms period: 10 millicores covers period rounding of small quotas.
_QUOTA_ROUNDING_MILLICORES: Final = 10
# HTB rates are kept in bytes/s.
_NET_ROUNDING_BITS: Final = 8 * KBIT
# The balloon moves in pages and the guest keeps a few; a guest keeps a block of virtio-mem back for ever (REALHOST: 2048 KiB).
_MEMORY_ROUNDING_BYTES: Final = 2 * MIB
_ROUNDING: Final = {
    StepKind.MEMORY: _MEMORY_ROUNDING_BYTES,
    StepKind.VIRTIO_MEM: _MEMORY_ROUNDING_BYTES,
    StepKind.MEMORY_HIGH: _MEMORY_ROUNDING_BYTES,
    StepKind.CPU_QUOTA: _QUOTA_ROUNDING_MILLICORES,
    StepKind.CPU_SHARES: _SHARES_PER_WEIGHT,
    StepKind.NET_RX: _NET_ROUNDING_BITS,
    StepKind.NET_TX: _NET_ROUNDING_BITS,
    StepKind.NET_TX_RATE: _NET_ROUNDING_BITS,
}
_EXACT: Final = frozenset({*VCPU_COUNTS, StepKind.DIMM, StepKind.CPU_PERIOD})
# No domain has a maximum of its disk: what an unlimited one counts for when the size of its first cut is judged (one NVMe disk, roughly).
_DISK_FULL: Final = {StepKind.DISK_BYTES: GIB, StepKind.DISK_OPS: 100_000}
# A limit of a disk is never a promise; this only keeps the numbers sane.
_DISK_MOST: Final = 2**53


class Promise(StrEnum):
    """What a host promises to VMs in sum, each with its own commit limit. Network directions are separate (full duplex)."""

    CPU = "cpu"
    MEMORY = "memory"
    NET_RX = "net_rx"
    NET_TX = "net_tx"
    NET_TX_RATE = "net_tx_rate"


PROMISE_OF: Final = {
    StepKind.VCPUS: Promise.CPU,
    StepKind.CPU_QUOTA: Promise.CPU,
    StepKind.MEMORY: Promise.MEMORY,
    StepKind.VIRTIO_MEM: Promise.MEMORY,
    StepKind.DIMM: Promise.MEMORY,
    StepKind.NET_RX: Promise.NET_RX,
    StepKind.NET_TX: Promise.NET_TX,
    StepKind.NET_TX_RATE: Promise.NET_TX_RATE,
}


def shows(kind: StepKind, want: int, got: int | None) -> bool:
    """True when the value read counts as the value wanted: counts, DIMMs and periods exact, others 1 % or the lever's own rounding."""
    if got is None:
        return False
    if want == got:
        return True
    if kind in _EXACT or UNLIMITED in (want, got):
        return False
    return abs(want - got) <= max(want // 100, _ROUNDING.get(kind, 0))


def grows(before: int, after: int) -> bool:
    """True when `after` gives the VM more; UNLIMITED is more than any number."""
    if before == UNLIMITED:
        return False
    return after == UNLIMITED or after > before


def incapable(kind: StepKind, domain: Domain, growing: bool = True) -> str | None:
    """Why the domain cannot take steps of this kind in this direction; None = it can."""
    if kind is StepKind.VCPUS and not growing:
        return domain.capabilities.vcpu_unplug
    reason: str | None = getattr(domain.capabilities, _CAPABILITY.get(kind, "cpu_quota"))
    return reason


def invalid(kind: StepKind, value: int) -> str | None:
    """Why `value` is none of this lever's, whatever the VM; None = it is one."""
    if kind in _RANGES:
        least, most = _RANGES[kind]
        return None if least <= value <= most else f"allowed {least} to {most}"
    if kind in _TAKES_UNLIMITED and value == UNLIMITED:
        return None
    if kind is StepKind.DIMM and value % DIMM_BYTES:
        return f"allowed multiples of {DIMM_BYTES}"
    if value > 0 or (value == 0 and kind in _MAY_BE_ZERO):
        return None
    unlimited = f"{UNLIMITED} (unlimited) or " if kind in _TAKES_UNLIMITED else ""
    return f"allowed {unlimited}{'0 or more' if kind in _MAY_BE_ZERO else 'more than 0'}"


def domain_maximum(kind: StepKind, domain: Domain) -> int:
    """The most that the domain's definition allows of a lever."""
    if kind in _RANGES:
        return _RANGES[kind][1]
    match kind:
        case StepKind.CPU_QUOTA:
            return domain.vcpus_max * 1000
        case StepKind.VCPUS | StepKind.VCPUS_ONLINE:
            return domain.vcpus_max
        case StepKind.MEMORY:
            return domain.memory_max_bytes
        case StepKind.VIRTIO_MEM:
            return domain.virtio_mem_max_bytes
        case StepKind.DIMM:
            return domain.dimm_max_bytes
        case StepKind.MEMORY_HIGH:
            return domain.memory_max_bytes + domain.virtio_mem_max_bytes + domain.dimm_max_bytes
        case StepKind.DISK_BYTES | StepKind.DISK_OPS:
            return _DISK_MOST
        case _:
            return domain.net_max_bits_per_s


def bounds(kind: StepKind, domain: Domain, config: GuardConfig) -> tuple[int, int]:
    """(floor, ceiling) of one lever: the policy's, else the guard's floor and the domain's maximum. The ceiling wins over the floor.

    A device's memory may go to 0: the floor of the VM's memory in sum is the guard's business, it knows the rest of it.
    """
    policy = domain.policy
    low: int | None = None
    high: int | None = None
    least = 1
    match kind:
        case StepKind.CPU_SHARES | StepKind.CPU_PERIOD | StepKind.DISK_WEIGHT:
            return _RANGES[kind]
        case StepKind.CPU_QUOTA:
            low, high, least = policy.cpu_floor_millicores, policy.cpu_ceiling_millicores, config.cpu_floor_millicores
        case StepKind.VCPUS | StepKind.VCPUS_ONLINE:
            # Rounded up on both sides: half a vCPU of floor or ceiling is still one.
            low = None if policy.cpu_floor_millicores is None else max(1, -(-policy.cpu_floor_millicores // 1000))
            high = None if policy.cpu_ceiling_millicores is None else max(1, -(-policy.cpu_ceiling_millicores // 1000))
        case StepKind.MEMORY:
            low, high, least = policy.memory_floor_bytes, policy.memory_ceiling_bytes, config.memory_floor_bytes
        case StepKind.MEMORY_HIGH:
            low, least = policy.memory_floor_bytes, config.memory_floor_bytes
        case StepKind.VIRTIO_MEM | StepKind.DIMM:
            least = 0
        case StepKind.DISK_BYTES:
            low, high, least = policy.disk_floor_bytes_per_s, policy.disk_ceiling_bytes_per_s, config.disk_floor_bytes_per_s
        case StepKind.DISK_OPS:
            least = config.disk_floor_ops_per_s
        case StepKind.NET_TX_RATE:
            high, least = policy.net_ceiling_bits_per_s, 0
        case _:
            low, high, least = policy.net_floor_bits_per_s, policy.net_ceiling_bits_per_s, config.net_floor_bits_per_s
    most = domain_maximum(kind, domain)
    # A policy may raise the guard's floor, never lower it: the floor is what keeps a guest alive.
    top = most if high is None else min(high, most)
    bottom = least if low is None else max(low, least)
    return min(bottom, top), top


def may_be_unlimited(kind: StepKind, domain: Domain) -> bool:
    """True where UNLIMITED is a value of this lever and no ceiling of the policy forbids it."""
    policy = domain.policy
    ceiling = {
        StepKind.CPU_QUOTA: policy.cpu_ceiling_millicores,
        StepKind.NET_RX: policy.net_ceiling_bits_per_s,
        StepKind.NET_TX: policy.net_ceiling_bits_per_s,
        StepKind.DISK_BYTES: policy.disk_ceiling_bytes_per_s,
    }.get(kind)
    return kind in _TAKES_UNLIMITED and ceiling is None


def extent(kind: StepKind, value: int, domain: Domain, vcpus: int) -> int:
    """What a value counts for where sizes are compared: itself; an unlimited quota = vcpus x 1000, other unlimited ones = all there is."""
    if value != UNLIMITED:
        return value
    if kind is StepKind.CPU_QUOTA:
        return vcpus * 1000
    return _DISK_FULL.get(kind, domain_maximum(kind, domain))


def charge(kind: StepKind, value: int | None, domain: Domain, vcpus: int) -> int:
    """What a value takes of the host's promise. Unknown = full, unless nothing of ours limits it and nothing ever will."""
    if kind not in PROMISE_OF or kind is StepKind.VCPUS:
        return 0
    if value is not None:
        return extent(kind, value, domain, vcpus)
    if kind not in (StepKind.CPU_QUOTA, StepKind.MEMORY) and incapable(kind, domain) is not None:
        return 0
    return domain_maximum(kind, domain)


def smallest_change(kind: StepKind, config: GuardConfig) -> int:
    """The least that one step of a lever must be able to move, however small a share the settings allow; 0 = no such least."""
    if kind in VCPU_COUNTS:
        return 1
    if kind is StepKind.DIMM:
        return DIMM_BYTES
    # A guarantee falls to nothing at last, which no share of itself ever does.
    return config.net_floor_bits_per_s if kind is StepKind.NET_TX_RATE else 0


def tellable(kind: StepKind, current: int) -> int:
    """The least growth of memory that a read-back can tell from standing still: relief must not be refused for being small."""
    return DIMM_BYTES if kind is StepKind.DIMM else max(current // 99, _ROUNDING.get(kind, 0)) + 1


def commit_limit(promise: Promise, capacity: HostCapacity) -> int:
    """How much of a resource the host may promise in sum."""
    if promise is Promise.CPU:
        return capacity.cpu_commit_millicores
    if promise is Promise.MEMORY:
        return capacity.memory_commit_bytes
    return capacity.net_commit_bits_per_s
