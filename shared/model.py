"""The domain's nouns: modes, priorities, VMs and what they may do, allocations, samples.

Unknown is None, never 0. Every struct is frozen and validated where it enters the process.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

Identifier = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$")]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Permille = Annotated[int, Meta(ge=0, le=1_000_000)]  # per thousand of one CPU's wall time, summed over vCPUs: may pass 1000
Label = Annotated[str, Meta(max_length=256)]


class Mode(StrEnum):
    """Control modes, each containing the one before. OFF is the kill switch."""

    OFF = "off"
    OBSERVE = "observe"
    REACTIVE = "reactive"
    PREDICTIVE = "predictive"

    @property
    def acts(self) -> bool:
        """True where something on the host may change."""
        return self in (Mode.REACTIVE, Mode.PREDICTIVE)


class Priority(IntEnum):
    """Who is served first when a host cannot hold everybody."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner allows for one VM and whose it is, already resolved (fleet < client < domain metadata < API override).

    None = no bound of its own: floors fall back to the guard's defaults, ceilings to the domain's maximum. It travels in inventories, so
    fields of a newer peer are ignored; what an owner writes by hand is checked for misspelt names where it is read.
    """

    priority: Priority = Priority.NORMAL
    client: Label = ""
    application: Label = ""  # what the VM is part of; its VMs are summed, scheduled and learned from together
    excluded: bool = False
    cpu_floor_millicores: Count | None = None
    cpu_ceiling_millicores: Count | None = None
    memory_floor_bytes: Count | None = None
    memory_ceiling_bytes: Count | None = None
    net_floor_bits_per_s: Count | None = None
    net_ceiling_bits_per_s: Count | None = None
    disk_floor_bytes_per_s: Count | None = None
    disk_ceiling_bytes_per_s: Count | None = None
    mode: Mode | None = None  # the most that is done with it, whatever its host's mode; off and observe exclude it
    size_quantile_permille: Annotated[int, Meta(ge=500, le=990)] | None = None  # of the forecast peak to give, in place of the price's


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a domain can do. None = it can; a string = it cannot, and why."""

    balloon: Label | None = None
    vcpu_hot_add: Label | None = None
    cpu_quota: Label | None = None
    shape_rx: Label | None = None
    shape_tx: Label | None = None
    migrate: Label | None = "not probed"
    vcpu_unplug: Label | None = "not probed"  # by ACPI
    vcpu_offline: Label | None = "not probed"  # by the guest agent
    virtio_mem: Label | None = "not probed"
    dimm: Label | None = "not probed"
    memory_high: Label | None = "not probed"
    disk_limit: Label | None = "not probed"
    disk_weight: Label | None = "not probed"
    net_rate: Label | None = "not probed"
    guest_agent: Label | None = "not probed"
    perf: Label | None = "not probed"


class Domain(msgspec.Struct, frozen=True, kw_only=True):
    """One VM as its hypervisor defines it. `vm_id` is the libvirt UUID; `name` may change."""

    vm_id: Identifier
    name: Label
    running: bool = True
    vcpus_max: Annotated[int, Meta(ge=1, le=4096)]
    memory_max_bytes: Annotated[int, Meta(ge=1, le=2**53)]
    net_max_bits_per_s: Annotated[int, Meta(ge=0, le=2**53)] = 10_000_000_000
    tap: Label | None = None
    virtio_mem_max_bytes: Annotated[int, Meta(ge=0, le=2**53)] = 0
    dimm_max_bytes: Annotated[int, Meta(ge=0, le=2**53)] = 0
    policy: Policy = Policy()
    capabilities: Capabilities = Capabilities()


class Allocation(msgspec.Struct, frozen=True, kw_only=True):
    """What is in force for a VM now, read from the host. UNLIMITED (-1) = nothing limits; None = could not be read."""

    vcpus: int | None = None
    cpu_quota_millicores: int | None = None
    cpu_shares: int | None = None
    memory_bytes: int | None = None
    disk_bytes_per_s: int | None = None
    net_rx_bits_per_s: int | None = None
    net_tx_bits_per_s: int | None = None
    vcpus_online: int | None = None
    cpu_period_us: int | None = None
    virtio_mem_bytes: int | None = None
    dimm_bytes: int | None = None
    memory_high_bytes: int | None = None
    disk_ops_per_s: int | None = None
    disk_weight: int | None = None
    net_tx_rate_bits_per_s: int | None = None


class VmSample(msgspec.Struct, frozen=True, kw_only=True):
    """Rates and gauges of one VM over one sample period, and the allocation in force beside them.

    All fields are integers or None and travel as int64 columns; the field order is the column order of frame version 1:
    append only. Directions are the guest's: net_rx is what the guest receives.
    """

    cpu_used_millicores: int | None = None
    cpu_throttled_permille: int | None = None  # share of wall time in which the quota held the VM back
    cpu_ready_permille: int | None = None  # run delay per wall time, less the VM's own throttling
    psi_cpu_some_permille: int | None = None
    psi_memory_some_permille: int | None = None
    psi_memory_full_permille: int | None = None
    psi_io_some_permille: int | None = None
    memory_used_bytes: int | None = None  # guest's own need: balloon actual - usable; None without a fresh guest reading
    memory_usable_bytes: int | None = None
    memory_rss_bytes: int | None = None
    memory_reading_age_ms: int | None = None
    memory_major_faults_per_s: int | None = None
    memory_swap_bytes_per_s: int | None = None  # in + out
    disk_read_bytes_per_s: int | None = None
    disk_write_bytes_per_s: int | None = None
    net_rx_bits_per_s: int | None = None
    net_tx_bits_per_s: int | None = None
    net_rx_dropped_per_s: int | None = None  # packets dropped or over limit at our ceiling towards the guest
    net_tx_dropped_per_s: int | None = None
    vcpus: int | None = None
    cpu_quota_millicores: int | None = None
    cpu_shares: int | None = None
    memory_allocated_bytes: int | None = None
    disk_limit_bytes_per_s: int | None = None
    net_rx_ceil_bits_per_s: int | None = None
    net_tx_ceil_bits_per_s: int | None = None
    cpu_used_peak_millicores: int | None = None  # largest sub-sample within the period, where there was one
    cpu_ready_peak_permille: int | None = None
    psi_io_full_permille: int | None = None
    disk_read_ops_per_s: int | None = None
    disk_write_ops_per_s: int | None = None
    disk_latency_us: int | None = None  # mean over the operations of the period, None without any
    guest_oom_kills: int | None = None  # processes that the guest's kernel killed for want of memory within the period
    dirty_bytes_per_s: int | None = None  # newest measured dirty rate; measured on request only
    vcpus_online: int | None = None
    cpu_period_us: int | None = None
    virtio_mem_bytes: int | None = None
    dimm_bytes: int | None = None
    memory_high_bytes: int | None = None
    disk_ops_limit_per_s: int | None = None
    disk_weight: int | None = None
    net_tx_rate_bits_per_s: int | None = None

    def allocation(self) -> Allocation:
        """The allocation columns as an Allocation."""
        return Allocation(
            vcpus=self.vcpus,
            cpu_quota_millicores=self.cpu_quota_millicores,
            cpu_shares=self.cpu_shares,
            memory_bytes=self.memory_allocated_bytes,
            disk_bytes_per_s=self.disk_limit_bytes_per_s,
            net_rx_bits_per_s=self.net_rx_ceil_bits_per_s,
            net_tx_bits_per_s=self.net_tx_ceil_bits_per_s,
            vcpus_online=self.vcpus_online,
            cpu_period_us=self.cpu_period_us,
            virtio_mem_bytes=self.virtio_mem_bytes,
            dimm_bytes=self.dimm_bytes,
            memory_high_bytes=self.memory_high_bytes,
            disk_ops_per_s=self.disk_ops_limit_per_s,
            disk_weight=self.disk_weight,
            net_tx_rate_bits_per_s=self.net_tx_rate_bits_per_s,
        )


VM_COLUMNS: tuple[str, ...] = VmSample.__struct_fields__


class HostCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """What a host has and how much of it may be promised to VMs."""

    cpu_millicores: Annotated[int, Meta(ge=1, le=2**40)]
    memory_bytes: Annotated[int, Meta(ge=1, le=2**53)]
    net_bits_per_s: Annotated[int, Meta(ge=0, le=2**53)]
    cpu_commit_millicores: Annotated[int, Meta(ge=1, le=2**42)]  # sum of quotas may not pass this
    memory_commit_bytes: Annotated[int, Meta(ge=1, le=2**53)]  # sum of balloon sizes may not pass this
    net_commit_bits_per_s: Annotated[int, Meta(ge=0, le=2**53)]
    numa_memory_bytes: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**53)], ...], Meta(max_length=1024)] = ()  # of each node; () = unknown
    numa_cpus: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**20)], ...], Meta(max_length=1024)] = ()  # in the same order


class HostSample(msgspec.Struct, frozen=True, kw_only=True):
    """One sampling round on one host: host totals and every VM seen."""

    wall_ns: int
    monotonic_ns: int
    period_ns: int
    cpu_used_millicores: int | None = None
    memory_available_bytes: int | None = None
    psi_cpu_some_permille: int | None = None
    psi_memory_some_permille: int | None = None
    psi_io_some_permille: int | None = None
    cpu_steal_permille: int | None = None  # of one CPU, summed over CPUs: this host is itself a guest that waits
    memory_overhead_bytes: int | None = None  # resident in QEMU processes beyond their guests' memory
    net_rx_bits_per_s: int | None = None  # of the uplink, as the host counts
    net_tx_bits_per_s: int | None = None
    net_dropped_per_s: int | None = None
    vms: dict[str, VmSample] = {}


def effective_mode(pinned: Mode | None, ordered: Mode | None, default: Mode = Mode.OBSERVE) -> Mode:
    """The mode in force: the owner's local pin wins over the API's order, which wins over the default."""
    return pinned or ordered or default
