"""What is in force, what can be changed, and how long a change takes: the levers behind each resource (chosen in choice.py).

CPU is sized as a quota in millicores, memory as balloon and virtio-mem in sum, the network as two HTB ceilings, a disk as bytes/s where
its owner asked for that. Limits in force that are UNLIMITED count as the most the domain can take.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Final

from coordinator.model import HostState, VmState
from coordinator.sizing.choice import (
    NO_DISK,
    by_count,
    counted,
    cpu_lever,
    devices,
    disk_asked,
    granule_of,
    memory_lever,
    virtio_most,
)
from coordinator.sizing.policy import SizingPolicy
from shared.plan import StepKind
from shared.units import CPU, DISK, GIB, MBIT, MEMORY, MIB, NET_RX, NET_TX, UNLIMITED

NAN: Final = math.nan
SIZED: Final = (CPU, MEMORY, NET_RX, NET_TX)  # always, and of these a host promises so much and no more
WITH_DISK: Final = (CPU, MEMORY, DISK, NET_RX, NET_TX)  # a disk is sized where somebody asked for it
KIND: Final[Mapping[int, StepKind]] = {
    CPU: StepKind.CPU_QUOTA,
    MEMORY: StepKind.MEMORY,
    DISK: StepKind.DISK_BYTES,
    NET_RX: StepKind.NET_RX,
    NET_TX: StepKind.NET_TX,
}
# Levers of which one step takes back a worthwhile share at once; a balloon gives a twentieth a minute.
FAST: Final = frozenset({CPU, NET_RX, NET_TX})
# An amount of each resource that people think in, for shadow prices.
GRAIN: Final = (1000.0, float(GIB), 10.0 * MIB, 100.0 * MBIT, 100.0 * MBIT)
GRAIN_NAME: Final = ("1 vCPU", "1 GiB", "10 MiB/s", "100 Mbit/s", "100 Mbit/s")
# No disk has a maximum of its own: what an unlimited one counts for, as on the host (agent/acting/levers.py).
DISK_FULL: Final = float(GIB)
SHORT: Final = ("cpu", "memory", "disk", "net_rx", "net_tx")  # names in trails and receipts


def in_force(vm: VmState) -> tuple[float, ...]:
    """Limits now, [r], as the host's promises count them: no quota counts as the vCPUs. NaN = could not be read, or not ours to limit."""
    now = vm.allocation
    top = float(vm.domain.net_max_bits_per_s)
    plugged = vm.domain.vcpus_max if now.vcpus is None else now.vcpus
    return (
        1000.0 * counted(vm.domain, now) if by_count(vm.domain) else limit(now.cpu_quota_millicores, 1000.0 * plugged),
        NAN if now.memory_bytes is None else float(now.memory_bytes + devices(now)),
        limit(now.disk_bytes_per_s, DISK_FULL) if disk_asked(vm) else NAN,
        limit(now.net_rx_bits_per_s, top),
        limit(now.net_tx_bits_per_s, top),
    )


def promised(vm: VmState, r: int) -> float:
    """What this VM takes of the host's promise. Unknown counts as the most it could have, or 0 where nothing of ours can limit it."""
    held = in_force(vm)[r]
    if not math.isnan(held):
        return held
    return 0.0 if r in (NET_RX, NET_TX) and incapable(vm)[r] is not None else ceilings(vm)[r]


def held_by_others(host: HostState, taken: Collection[str], r: int) -> float:
    """What running VMs of the host hold that are not among `taken`."""
    return sum(promised(vm, r) for vm in host.vms if vm.domain.running and vm.domain.vm_id not in taken)


def limit(value: int | None, top: float) -> float:
    """A limit in force as a number: unknown is NaN, UNLIMITED is `top`."""
    if value is None:
        return NAN
    return top if value == UNLIMITED else float(value)


def ceilings(vm: VmState) -> tuple[float, ...]:
    """The most each resource may get, [r]: policy ceiling, domain maximum, and today's vCPUs where none can be added."""
    domain, policy, now = vm.domain, vm.domain.policy, vm.allocation
    vcpus = domain.vcpus_max
    if domain.capabilities.vcpu_hot_add is not None and now.vcpus is not None:
        vcpus = now.vcpus
    most = domain.memory_max_bytes if domain.capabilities.balloon is None or now.memory_bytes is None else now.memory_bytes
    plugged = max(virtio_most(domain, now), now.virtio_mem_bytes or 0) + (now.dimm_bytes or 0)
    cpu = lowest(policy.cpu_ceiling_millicores, 1000 * vcpus)
    net = lowest(policy.net_ceiling_bits_per_s, domain.net_max_bits_per_s)
    return (
        max(1000.0, round_down(cpu, 1000.0)) if by_count(domain) else cpu,
        lowest(policy.memory_ceiling_bytes, most + plugged),
        DISK_FULL if policy.disk_ceiling_bytes_per_s is None else float(policy.disk_ceiling_bytes_per_s),
        net,
        net,
    )


def lowest(own: int | None, top: int) -> float:
    """The tighter of the owner's ceiling and the domain's maximum."""
    return float(top if own is None else min(own, top))


def floors(vm: VmState, policy: SizingPolicy) -> tuple[float, ...]:
    """The least each resource may get, [r]: the owner's floor or the default, for memory also the working set; never above the ceiling."""
    own = vm.domain.policy
    wanted = [
        policy.floor[CPU] if own.cpu_floor_millicores is None else float(own.cpu_floor_millicores),
        policy.floor[MEMORY] if own.memory_floor_bytes is None else float(own.memory_floor_bytes),
        policy.floor[DISK] if own.disk_floor_bytes_per_s is None else float(own.disk_floor_bytes_per_s),
        *(policy.floor[r] if own.net_floor_bits_per_s is None else float(own.net_floor_bits_per_s) for r in (NET_RX, NET_TX)),
    ]
    if not math.isnan(vm.working_set_bytes):
        wanted[MEMORY] = max(wanted[MEMORY], vm.working_set_bytes * (1.0 + policy.working_set_margin))
    return tuple(
        min(round_up(value, granule_of(vm, r, policy)), top) for r, (value, top) in enumerate(zip(wanted, ceilings(vm), strict=True))
    )


def incapable(vm: VmState) -> tuple[str | None, ...]:
    """Why a resource of this VM cannot be changed, [r]; None = it can."""
    can = vm.domain.capabilities
    cpu = None if cpu_lever(vm.domain) is not None else can.cpu_quota
    memory = None if memory_lever(vm.domain, vm.allocation) is not None else can.balloon
    return (cpu, memory, can.disk_limit or (None if disk_asked(vm) else NO_DISK), can.shape_rx, can.shape_tx)


def lead_time_s(kind: StepKind, policy: SizingPolicy, measured: Mapping[StepKind, float] | None) -> float:
    """How long before a lever's effect shows: measured where it is, else the table's."""
    seen = (measured or {}).get(kind, NAN)
    return seen if math.isfinite(seen) and seen >= 0.0 else policy.lead_s.get(kind, 0.0)


def commit_limits(host: HostState) -> tuple[float, ...]:
    """What may be promised on this host, [r]; the network limit holds for each direction by itself (links are full duplex)."""
    capacity = host.capacity
    net = float(capacity.net_commit_bits_per_s)
    return (float(capacity.cpu_commit_millicores), float(capacity.memory_commit_bytes), NAN, net, net)


def physical_limits(host: HostState) -> tuple[float, ...]:
    """What the hardware has for VMs, [r]: CPUs less the host's own use, memory as far as it may be promised, disks not known."""
    capacity = host.capacity
    net = float(capacity.net_bits_per_s)
    return (max(0.0, capacity.cpu_millicores - host.cpu_overhead_millicores), float(capacity.memory_commit_bytes), NAN, net, net)


def round_up(value: float, granule: float) -> float:
    """Smallest multiple of `granule` that is >= value; NaN stays NaN. 1e-9 forgives float noise."""
    return math.ceil(value / granule - 1e-9) * granule if math.isfinite(value) else value


def round_down(value: float, granule: float) -> float:
    """Largest multiple of `granule` that is <= value; NaN stays NaN."""
    return math.floor(value / granule + 1e-9) * granule if math.isfinite(value) else value
