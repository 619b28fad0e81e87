"""The agent's ports: what its decisions need from a host, in our own types.

Each port has one contract suite (tests/contract) run on the simulated host and on the real adapter.
All calls may block and raise HostError; the service runs them in a bounded pool with a deadline, never in the event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from shared.model import Allocation, Domain, HostCapacity
from shared.plan import StepKind


class RawVm(msgspec.Struct, frozen=True, kw_only=True):
    """Raw readings of one VM at one instant: monotonic counters (suffix _total) and gauges. None = not available.

    `epoch` changes whenever the counters may have restarted (new QEMU process, migration): no rate across epochs.
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
    memory_actual_bytes: int | None = None  # balloon size as the hypervisor sees it
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


class RawHost(msgspec.Struct, frozen=True, kw_only=True):
    """One sampling round: host counters and one RawVm per running domain that answered."""

    wall_ns: int
    monotonic_ns: int
    boot_id: str
    cpu_busy_ns_total: int | None = None  # over all CPUs
    memory_available_bytes: int | None = None
    psi_cpu_some_us_total: int | None = None
    psi_memory_some_us_total: int | None = None
    vms: tuple[RawVm, ...] = ()
    failures: dict[str, str] = {}  # collector or VM -> what went wrong, for metrics and `status`


class HostReader(Protocol):
    """Sampling: one call reads everything once. Never waits on a single domain longer than its own deadline."""

    def read(self) -> RawHost:
        """Raw readings now. A VM that cannot be read is left out and named in `failures`."""
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

    def dropped_total(self, tap: str, kind: StepKind) -> int | None:
        """Drops plus overlimits of our class; None where there is none."""
        ...

    def release(self, tap: str) -> None:
        """Remove everything of ours from this interface."""
        ...
