"""The agent's ports: what its decisions need from a host, in our own types.

Each port has one contract suite (tests/contract) run on the simulated host and on the real adapter.
All calls may block and raise HostError; the service runs them in a bounded pool with a deadline, never in the event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from shared.model import Allocation, Domain, HostCapacity, Priority
from shared.plan import StepKind

REBOOTS: Final = "#"  # in RawVm.epoch, between the QEMU process and the count of its guest's reboots


class PerfCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one VM since its events were opened; None where this kernel or CPU has no such event."""

    task_clock_ns_total: int | None = None
    context_switches_total: int | None = None
    cpu_migrations_total: int | None = None
    page_faults_total: int | None = None
    cycles_total: int | None = None
    instructions_total: int | None = None
    cache_misses_total: int | None = None


class RawVm(msgspec.Struct, frozen=True, kw_only=True):
    """Raw readings of one VM at one instant: monotonic counters (suffix _total) and gauges. None = not available.

    `epoch` changes whenever the counters may have restarted (new QEMU process, migration, guest reset): no rate across epochs. It names
    the process; REBOOTS and how often its guest was reset inside it may follow.
    """

    vm_id: str
    epoch: str
    cpu_used_ns_total: int | None = None
    throttled_ns_total: int | None = None
    run_delay_ns_total: int | None = None
    psi_cpu_some_us_total: int | None = None
    psi_memory_some_us_total: int | None = None
    psi_memory_full_us_total: int | None = None
    psi_io_some_us_total: int | None = None
    memory_actual_bytes: int | None = None  # the guest's memory as the hypervisor counts it: balloon, virtio-mem and DIMMs of ours
    memory_usable_bytes: int | None = None  # guest: available without swapping
    memory_unused_bytes: int | None = None  # guest: free
    memory_rss_bytes: int | None = None
    memory_reading_wall_ns: int | None = None  # when the guest wrote the three above
    major_faults_total: int | None = None
    swap_bytes_total: int | None = None  # in + out
    disk_read_bytes_total: int | None = None
    disk_write_bytes_total: int | None = None
    net_rx_bytes_total: int | None = None  # the guest receives (tap tx)
    net_tx_bytes_total: int | None = None  # the guest sends (tap rx)
    net_rx_dropped_total: int | None = None  # drops + overlimits of our class towards the guest
    net_tx_dropped_total: int | None = None
    vcpus: int | None = None
    cpu_quota_millicores: int | None = None  # UNLIMITED = no quota
    cpu_shares: int | None = None
    disk_limit_bytes_per_s: int | None = None
    net_rx_ceil_bits_per_s: int | None = None
    net_tx_ceil_bits_per_s: int | None = None
    periods_total: int | None = None  # CFS periods, and those in which the quota held the VM back
    throttled_periods_total: int | None = None
    cpu_used_peak_millicores: int | None = None  # largest sub-sample since the reading before
    cpu_ready_peak_permille: int | None = None
    psi_cpu_full_us_total: int | None = None
    psi_io_full_us_total: int | None = None
    memory_current_bytes: int | None = None  # charged to the VM's cgroup
    memory_anon_bytes: int | None = None
    memory_file_bytes: int | None = None
    memory_high_events_total: int | None = None  # times that memory.high was passed
    memory_refaults_total: int | None = None
    disk_read_ops_total: int | None = None
    disk_write_ops_total: int | None = None
    disk_read_time_ns_total: int | None = None
    disk_write_time_ns_total: int | None = None
    net_rx_packets_total: int | None = None
    net_tx_packets_total: int | None = None
    net_rx_tap_dropped_total: int | None = None  # dropped by the tap itself: the guest does not fetch, or the host does not
    net_tx_tap_dropped_total: int | None = None
    net_rx_overlimits_total: int | None = None  # of our classes
    net_tx_overlimits_total: int | None = None
    net_rx_backlog_bytes: int | None = None
    net_tx_backlog_bytes: int | None = None
    dirty_bytes_per_s: int | None = None  # newest measured one; measured on request only
    guest_oom_kills_total: int | None = None  # counter of the guest's kernel, by its agent
    perf: PerfCounts | None = None
    kvm: dict[str, int] = {}  # KVM's own counters by libvirt's name ("exits", "halt_wait_ns"), summed over vCPUs; empty under TCG
    vcpus_online: int | None = None
    cpu_period_us: int | None = None
    virtio_mem_bytes: int | None = None
    dimm_bytes: int | None = None
    memory_high_bytes: int | None = None
    disk_ops_limit_per_s: int | None = None
    disk_weight: int | None = None
    net_tx_rate_bits_per_s: int | None = None


class NumaNode(msgspec.Struct, frozen=True, kw_only=True):
    """One NUMA node of the host."""

    node: int
    cpus: int
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None


class RawHost(msgspec.Struct, frozen=True, kw_only=True):
    """One sampling round: host counters and one RawVm per running domain that answered."""

    wall_ns: int
    monotonic_ns: int
    boot_id: str
    statistics_monotonic_ns: int | None = None  # when balloon and disk counters were asked for; None = with the round
    cpu_busy_ns_total: int | None = None  # over all CPUs
    memory_available_bytes: int | None = None
    psi_cpu_some_us_total: int | None = None
    psi_memory_some_us_total: int | None = None
    psi_io_some_us_total: int | None = None
    cpu_steal_ns_total: int | None = None
    memory_overhead_bytes: int | None = None  # resident in QEMU processes beyond their guests' memory
    net_rx_bytes_total: int | None = None  # of the uplink
    net_tx_bytes_total: int | None = None
    net_dropped_total: int | None = None
    hugepages_total: int | None = None
    hugepages_free: int | None = None
    numa: tuple[NumaNode, ...] = ()
    vms: tuple[RawVm, ...] = ()
    failures: dict[str, str] = {}  # collector or VM -> what went wrong, for metrics and `status`


class HostReader(Protocol):
    """Sampling: one call reads everything once. Never waits on a single domain longer than its own deadline."""

    def read(self) -> RawHost:
        """Raw readings now. A VM that cannot be read is left out and named in `failures`."""
        ...

    def subsample(self) -> None:
        """Look at CPU use and run delay between two rounds; the next round carries the peaks. Cheap, never raises for a single VM."""
        ...


class Hypervisor(Protocol):
    """Inventory, allocation in force, and the levers. Setters return when the request was accepted, not when it is done."""

    def boot_id(self) -> str:
        """Identity of this boot of the host: counters and sequences start anew with it."""
        ...

    def capacity(self) -> HostCapacity:
        """What the host has; commit limits from configuration."""
        ...

    def domains(self) -> Sequence[Domain]:
        """Every domain with its limits, policy metadata and probed capabilities."""
        ...

    def allocation(self, vm_id: str) -> Allocation:
        """Read back what is in force. Raises Refusal(UNKNOWN_VM)."""
        ...

    def submit(self, vm_id: str, kind: StepKind, value: int) -> None:
        """Ask for `value` (unit by kind). Raises Refusal (no such VM, not capable) or HostError."""
        ...

    def close(self) -> None:
        """Release connections."""
        ...


class TrafficShaper(Protocol):
    """HTB on one interface: towards the guest on the tap itself, from the guest through an IFB."""

    def set_ceiling(self, tap: str, kind: StepKind, bits_per_s: int) -> None:
        """Create or change our class in place; UNLIMITED removes what we made. Raises Refusal(FOREIGN_SHAPING) or HostError."""
        ...

    def ceiling(self, tap: str, kind: StepKind) -> int:
        """Ceiling in force, read from the kernel; UNLIMITED where there is none of ours."""
        ...

    def set_rate(self, tap: str, bits_per_s: int) -> None:
        """Guarantee what the guest sends this much where the uplink is full; 0 = no guarantee. Raises Refusal or HostError."""
        ...

    def rate(self, tap: str) -> int:
        """Guarantee in force, read from the kernel; 0 where there is none."""
        ...

    def assign(self, tap: str, client: str, priority: Priority) -> None:
        """Whose tap it is and who goes first when the uplink is full; limits nothing by itself, may be repeated at no cost."""
        ...

    def dropped_total(self, tap: str, kind: StepKind) -> int | None:
        """Drops plus overlimits of our class; None where there is none."""
        ...

    def release(self, tap: str) -> None:
        """Remove everything of ours from this interface."""
        ...


class MigrationProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a migration is; None = not said yet."""

    elapsed_ms: int = 0
    memory_remaining_bytes: int | None = None
    memory_processed_bytes: int | None = None
    memory_bits_per_s: int | None = None
    dirty_pages_per_s: int | None = None
    iteration: int | None = None
    downtime_ms: int | None = None  # expected while it runs, measured when it is done


class Migrator(Protocol):
    """Live migration of one host's domains. `migrate` blocks for as long as it takes; the others answer at once."""

    def migrate(self, vm_id: str, uri: str, bits_per_s: int, limits: Allocation) -> MigrationProgress | None:
        """Move the VM to the libvirt at `uri`; returns when it runs there and is gone here. `limits` travel along for the target's agent.

        Returns the final figures where the hypervisor gives any. Raises Refusal (not capable, no such VM) or HostError: then the VM runs
        here as before.
        """
        ...

    def progress(self, vm_id: str) -> MigrationProgress | None:
        """None when no migration of this VM is under way."""
        ...

    def set_bandwidth(self, vm_id: str, bits_per_s: int) -> None:
        """Change what a running migration may use; UNLIMITED = all."""
        ...

    def abort(self, vm_id: str) -> None:
        """Give up a running migration; nothing to abort is no error."""
        ...

    def arrived(self, vm_id: str) -> Allocation | None:
        """Limits that travelled along with a VM that came here by migration and that nobody has taken up; None = none."""
        ...

    def taken_up(self, vm_id: str) -> None:
        """Its limits are applied here: forget that they travelled."""
        ...
