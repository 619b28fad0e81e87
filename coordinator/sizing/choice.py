"""Which lever serves a resource of a VM: by lead time, by how surely it can be taken back, and by what the domain can do. Pure.

| resource | first | then | never by a plan, and why |
| --- | --- | --- | --- |
| CPU | quota: a second, both ways at will; vCPUs are added, and brought online, where the quota outgrows them | without a quota: vCPUs \
online through the guest's agent; without that hot-add and, where the guest lets go of them, unplug | the period: it changes no size |
| memory | balloon: both ways | virtio-mem, where the owner's ceiling lies above the memory that the domain boots with, some is plugged, \
or there is no balloon; it is plugged last and unplugged first | DIMMs: a guest may never let go of one; memory.high: it frees no \
promise and reclaims into the host's swap, so it is only lifted before a growth |
| disk | bytes/s, and operations/s along with a growth, where the owner set a floor or ceiling or a limit is in force | | an unlimited \
disk of which nobody asked anything: demand under a new limit is no longer seen, and a disk has no commit limit that would gain by it |
| net | ceilings both ways; a guarantee from the guest (HTB rate) where the uplink is about to be full | | |

Weights (CPU shares, disk weight, guarantees) follow priority while the host is contended; they take from nobody while there is enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from coordinator.model import VmState
from coordinator.sizing.policy import SizingPolicy
from shared.model import Allocation, Domain
from shared.plan import StepKind
from shared.units import CPU, MEMORY, UNLIMITED

NO_DISK = "disk is limited only where its owner set a floor or ceiling, or where a limit is in force"
STRIDE = 0.05  # the hosts' guard.memory_grow_max_permille
NO_UNPLUG = "vCPUs of this domain are only added"


def cpu_lever(domain: Domain) -> StepKind | None:
    """What sets the size of the CPU; None = nothing does."""
    can = domain.capabilities
    for kind, why_not in (
        (StepKind.CPU_QUOTA, can.cpu_quota),
        (StepKind.VCPUS_ONLINE, can.vcpu_offline),
        (StepKind.VCPUS, can.vcpu_hot_add),
    ):
        if why_not is None:
            return kind
    return None


def by_count(domain: Domain) -> bool:
    """The CPU is sized in whole vCPUs."""
    return cpu_lever(domain) in (StepKind.VCPUS, StepKind.VCPUS_ONLINE)


def only_grows(vm: VmState, r: int) -> str | None:
    """Why this resource can be given but not taken back; None = it can."""
    domain = vm.domain
    if r == CPU and cpu_lever(domain) is StepKind.VCPUS and domain.capabilities.vcpu_unplug is not None:
        return NO_UNPLUG
    return None


def virtio_most(domain: Domain, now: Allocation) -> int:
    """Bytes that may be plugged in as virtio-mem."""
    if domain.capabilities.virtio_mem is not None:
        return 0
    asked = domain.policy.memory_ceiling_bytes
    if domain.capabilities.balloon is None and not now.virtio_mem_bytes and (asked is None or asked <= domain.memory_max_bytes):
        return 0
    return domain.virtio_mem_max_bytes


def memory_most(domain: Domain) -> int:
    """Bytes that the VM could be given by its definition, its owner's ceiling aside."""
    return domain.memory_max_bytes + virtio_most(domain, Allocation())


def memory_lever(domain: Domain, now: Allocation) -> StepKind | None:
    """What sets the size of the memory first; None = nothing does."""
    if domain.capabilities.balloon is None:
        return StepKind.MEMORY
    return StepKind.VIRTIO_MEM if virtio_most(domain, now) > 0 else None


def devices(now: Allocation) -> int:
    """Memory in force beyond the balloon."""
    return (now.virtio_mem_bytes or 0) + (now.dimm_bytes or 0)


def immovable(domain: Domain, now: Allocation) -> int:
    """Memory in force that no lever of plans takes back."""
    can = domain.capabilities
    balloon = (now.memory_bytes or 0) if can.balloon is not None else 0
    return balloon + (now.dimm_bytes or 0) + ((now.virtio_mem_bytes or 0) if can.virtio_mem is not None else 0)


def disk_asked(vm: VmState) -> bool:
    """The owner set a bound for the disk, or some limit is in force already."""
    policy, limit = vm.domain.policy, vm.allocation.disk_bytes_per_s
    asked = policy.disk_floor_bytes_per_s is not None or policy.disk_ceiling_bytes_per_s is not None
    return asked or (limit is not None and limit != UNLIMITED)


def granule_of(vm: VmState, r: int, policy: SizingPolicy) -> float:
    """Sizes are whole multiples of this."""
    return 1000.0 if r == CPU and by_count(vm.domain) else policy.granule[r]


def lever_of(vm: VmState, r: int, kinds: Mapping[int, StepKind]) -> StepKind:
    """The lever whose lead time a growth of this resource waits for."""
    if r == CPU:
        return cpu_lever(vm.domain) or kinds[r]
    return (memory_lever(vm.domain, vm.allocation) or kinds[r]) if r == MEMORY else kinds[r]


def counted(domain: Domain, now: Allocation) -> int:
    """vCPUs in force where the CPU is sized by their count: those online where the guest can be asked, else those plugged in."""
    plugged = domain.vcpus_max if now.vcpus is None else now.vcpus
    if cpu_lever(domain) is StepKind.VCPUS or now.vcpus_online is None:
        return plugged
    return min(plugged, now.vcpus_online)


def strides(kind: StepKind, before: int | None, value: int, stride: float = STRIDE) -> int:
    """Steps in which the host carries out a change: memory moves by a share at a time, the next stride when the last is seen in force."""
    if kind is not StepKind.MEMORY or before is None or before <= 0 or value <= before:
        return 1
    return max(1, math.ceil(math.log(value / before) / math.log1p(stride) - 1e-9))


def whole_vcpus(millicores: float) -> int:
    """vCPUs that hold so much."""
    return max(1, math.ceil(millicores / 1000.0 - 1e-9))
