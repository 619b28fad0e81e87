"""The simulated host's levers: how long each takes, what goes wrong on purpose, and which values a domain can take at all.

Lead times are those seen on a real host where there was one (vCPU online 1-2 s, DIMM 3 s, guest agent 0.3 s), else plausible.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from shared.errors import Refusal
from shared.model import Capabilities, Domain, Label
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, MIB, NS_PER_MS, UNLIMITED
from shared.workload import VmWorkload

Milliseconds = Annotated[int, Meta(ge=0, le=3_600_000)]
Rate = Annotated[int, Meta(ge=1, le=2**50)]
Permille = Annotated[int, Meta(ge=0, le=1000)]

DIMM_BYTES: Final = 128 * MIB  # a section of memory on x86
BLOCK_BYTES: Final = 2 * MIB  # of virtio-mem
_MOST: Final = 2**53
_COUNTED: Final = (StepKind.VCPUS, StepKind.VCPUS_ONLINE, StepKind.MEMORY, StepKind.VIRTIO_MEM, StepKind.DIMM)


class SimulationFaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Lead times of the levers and what goes wrong. Names in `stuck_vms`, `late_guests` and `keeping_guests` are vm_ids or VM names."""

    cpu_latency_ms: Milliseconds = 5  # and everything else that the kernel does at once: disk limits, memory.high
    net_latency_ms: Milliseconds = 5
    vcpu_online_ms: Milliseconds = 2000
    vcpu_unplug_ms: Milliseconds = 5000  # the guest takes its time, or never does it: `keeping_guests`
    guest_agent_ms: Milliseconds = 300
    dimm_ms: Milliseconds = 3000
    memory_inflate_bytes_per_s: Rate = 64 * MIB  # taking from the guest
    memory_deflate_bytes_per_s: Rate = GIB  # giving back
    submit_failure_permille: Permille = 0  # submit raises HostError
    submit_lost_permille: Permille = 0  # submit is accepted and nothing ever happens
    stuck_vms: tuple[Label, ...] = ()  # the monitor does not answer: no reading, no step
    late_guests: tuple[Label, ...] = ()  # memory statistics only every `late_guest_s`
    late_guest_s: Annotated[int, Meta(ge=1, le=86_400)] = 60
    keeping_guests: tuple[Label, ...] = ()  # never let go of a vCPU or a DIMM

    def latency_ns(self, kind: StepKind, lowering: bool = False) -> int:
        """Time from submit to effect (for memory: to its first move)."""
        if kind is StepKind.VCPUS:
            return (self.vcpu_unplug_ms if lowering else self.vcpu_online_ms) * NS_PER_MS
        if kind in (StepKind.NET_RX, StepKind.NET_TX, StepKind.NET_TX_RATE):
            return self.net_latency_ms * NS_PER_MS
        if kind is StepKind.VCPUS_ONLINE:
            return self.guest_agent_ms * NS_PER_MS
        if kind is StepKind.DIMM:
            return self.dimm_ms * NS_PER_MS
        return self.cpu_latency_ms * NS_PER_MS


def simulated_domain(spec: VmWorkload, index: int, *, movable: bool = False) -> Domain:
    """The domain as a hypervisor would list it: it can do all (migrate only if `movable`), and get as much again by each memory device."""
    dimm_max = spec.memory_max_bytes // DIMM_BYTES * DIMM_BYTES
    able = Capabilities(
        migrate=None if movable else "simulated",
        vcpu_unplug=None,
        vcpu_offline=None,
        virtio_mem=None,
        dimm=None if dimm_max else f"the domain is smaller than a DIMM of {DIMM_BYTES} bytes",
        memory_high=None,
        disk_limit=None,
        disk_weight=None,
        net_rate=None,
        guest_agent=None,
        perf="simulated",
    )
    return Domain(
        vm_id=spec.vm_id,
        name=spec.name,
        vcpus_max=spec.vcpus_max,
        memory_max_bytes=spec.memory_max_bytes,
        net_max_bits_per_s=spec.net_max_bits_per_s,
        tap=f"sim{index}",
        virtio_mem_max_bytes=max(BLOCK_BYTES, spec.memory_max_bytes // BLOCK_BYTES * BLOCK_BYTES),
        dimm_max_bytes=dimm_max,
        policy=spec.policy,
        capabilities=able,
    )


def check_value(domain: Domain, kind: StepKind, value: int, vcpus: int) -> None:
    """Refuse what the domain cannot take; `vcpus` = plugged in now. Raises Refusal(NOT_CAPABLE, ABOVE_DOMAIN_MAXIMUM, INVALID_VALUE)."""
    if kind is StepKind.MIGRATE:
        why = domain.capabilities.migrate or "a move is no value that can be set"
        raise Refusal(RefusalCode.NOT_CAPABLE, f"migration of {domain.name}: {why}")
    if kind is StepKind.DIMM and domain.capabilities.dimm is not None:
        raise Refusal(RefusalCode.NOT_CAPABLE, f"dimm {value} of {domain.name}: {domain.capabilities.dimm}")
    lowest, highest, unlimited = {
        StepKind.VCPUS: (1, domain.vcpus_max, False),
        StepKind.VCPUS_ONLINE: (1, vcpus, False),
        StepKind.CPU_QUOTA: (10, 2**40, True),  # the kernel's least quota is 1 ms in 100 ms
        StepKind.CPU_SHARES: (2, 262_144, False),
        StepKind.CPU_PERIOD: (1_000, 1_000_000, False),
        StepKind.MEMORY: (1, domain.memory_max_bytes, False),
        StepKind.VIRTIO_MEM: (0, domain.virtio_mem_max_bytes, False),
        StepKind.DIMM: (0, domain.dimm_max_bytes, False),
        StepKind.NET_TX_RATE: (0, _MOST, False),
        StepKind.DISK_WEIGHT: (1, 1000, False),
    }.get(kind, (1, _MOST, True))
    whole = kind is not StepKind.DIMM or value % DIMM_BYTES == 0
    if (unlimited and value == UNLIMITED) or (lowest <= value <= highest and whole):
        return
    numbers = {"value": value, "lowest": lowest, "highest": highest}
    if value > highest and kind in _COUNTED:
        raise Refusal(RefusalCode.ABOVE_DOMAIN_MAXIMUM, f"{kind} {value} of {domain.name}: at most {highest}", numbers)
    also = f" or {UNLIMITED}" if unlimited else "" if whole else f", multiples of {DIMM_BYTES}"
    raise Refusal(RefusalCode.INVALID_VALUE, f"{kind} {value} of {domain.name}: allowed {lowest} to {highest}{also}", numbers)
