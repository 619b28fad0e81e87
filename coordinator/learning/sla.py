"""Observed violation time: samples in which a VM got less than it wanted, by VM, host, mode and cause.

A sample violates when the VM was throttled by its quota, waited for a CPU, stalled on memory or swapped, or lost packets at a ceiling,
beyond the thresholds below; unknown readings never violate. Time counts once per sample however many causes there are. Depth is the
largest share of the wanted resource that was held back. Cheap: a handful of comparisons per VM and sample.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from shared.model import HostSample, Mode, VmSample
from shared.units import KIB, NS_PER_S, UNLIMITED

CAUSES: Final = ("throttled", "ready", "memory", "net")
MINUTE_NS: Final = 60 * NS_PER_S


@dataclass(frozen=True, kw_only=True)
class SlaThresholds:
    """Beyond these a sample is a violation."""

    throttled_permille: int = 20  # of wall time held back by the quota: above CFS's accounting noise
    ready_permille: int = 50  # run delay per vCPU: 5 % hurts, 10 % is broken (practitioners' rule)
    memory_stall_permille: int = 50  # PSI memory some
    swap_bytes_per_s: int = 64 * KIB  # below this a guest merely reads back cold pages
    dropped_per_s: int = 0


@dataclass(slots=True)
class SlaSums:
    """Running sums; times in ns, allocation and use in unit x ns."""

    observed_ns: int = 0
    violated_ns: int = 0
    depth_ns: float = 0.0
    by_cause_ns: dict[str, int] = field(default_factory=dict)
    cpu_allocated: int = 0
    cpu_used: int = 0
    memory_allocated: int = 0
    memory_used: int = 0

    @property
    def violation_minutes(self) -> float:
        return self.violated_ns / MINUTE_NS

    @property
    def depth(self) -> float | None:
        """Mean depth while in violation, 0..1; None = no violation."""
        return self.depth_ns / self.violated_ns if self.violated_ns else None

    def allocation_over_use(self) -> float | None:
        """Mean of the CPU and memory ratios; None = nothing known."""
        pairs = ((self.cpu_allocated, self.cpu_used), (self.memory_allocated, self.memory_used))
        ratios = [allocated / used for allocated, used in pairs if used > 0]
        return sum(ratios) / len(ratios) if ratios else None


@dataclass
class SlaTracker:
    """Folds samples into sums by VM, host and mode (the mode in force when the sample arrived)."""

    thresholds: SlaThresholds = SlaThresholds()
    by_vm: dict[str, SlaSums] = field(default_factory=dict)
    by_host: dict[str, SlaSums] = field(default_factory=dict)
    by_mode: dict[Mode, SlaSums] = field(default_factory=dict)

    def observe(self, host_id: str, mode: Mode, sample: HostSample) -> None:
        """Take one host sample; give each only once."""
        host = self.by_host.setdefault(host_id, SlaSums())
        fleet = self.by_mode.setdefault(mode, SlaSums())
        period_ns = sample.period_ns
        for vm_id, vm in sample.vms.items():
            own = self.by_vm.get(vm_id)
            if own is None:
                own = self.by_vm[vm_id] = SlaSums()
            causes = violations(vm, self.thresholds)
            for sums in (own, host, fleet):
                sums.observed_ns += period_ns
                if causes:
                    count(sums, causes, period_ns)
            add_allocation(fleet, vm, period_ns)

    def forget(self, vm_ids: frozenset[str]) -> None:
        """Drop the sums of VMs that are gone; host and mode keep theirs."""
        for vm_id in vm_ids:
            self.by_vm.pop(vm_id, None)


def violations(vm: VmSample, thresholds: SlaThresholds) -> dict[str, float]:
    """Cause -> depth 0..1 of one sample; empty = none."""
    found: dict[str, float] = {}
    throttled, ready = vm.cpu_throttled_permille, vm.cpu_ready_permille
    if throttled is not None and throttled > thresholds.throttled_permille:
        found["throttled"] = min(1.0, throttled / 1000)
    if ready is not None and ready > thresholds.ready_permille * (vm.vcpus or 1):
        found["ready"] = min(1.0, ready / (1000 * (vm.vcpus or 1)))
    stalled, swapped = vm.psi_memory_some_permille, vm.memory_swap_bytes_per_s
    if stalled is not None and stalled > thresholds.memory_stall_permille:
        found["memory"] = min(1.0, stalled / 1000)
    elif swapped is not None and swapped > thresholds.swap_bytes_per_s:
        found["memory"] = min(1.0, swapped / vm.memory_allocated_bytes) if vm.memory_allocated_bytes else 0.0
    rx, tx = vm.net_rx_dropped_per_s, vm.net_tx_dropped_per_s
    if (rx is not None and rx > thresholds.dropped_per_s) or (tx is not None and tx > thresholds.dropped_per_s):
        found["net"] = 0.0  # packets, not bits: how much was wanted is not known
    return found


def count(sums: SlaSums, causes: dict[str, float], period_ns: int) -> None:
    """Add one violating sample."""
    sums.violated_ns += period_ns
    sums.depth_ns += max(causes.values()) * period_ns
    for cause in causes:
        sums.by_cause_ns[cause] = sums.by_cause_ns.get(cause, 0) + period_ns


def add_allocation(sums: SlaSums, vm: VmSample, period_ns: int) -> None:
    """Add what was granted and used, each pair only where both are known. No quota counts as the vCPUs."""
    quota = vm.cpu_quota_millicores
    if quota == UNLIMITED:
        quota = None if vm.vcpus is None else 1000 * vm.vcpus
    if quota is not None and vm.cpu_used_millicores is not None:
        sums.cpu_allocated += quota * period_ns
        sums.cpu_used += vm.cpu_used_millicores * period_ns
    if vm.memory_allocated_bytes is not None and vm.memory_used_bytes is not None:
        sums.memory_allocated += vm.memory_allocated_bytes * period_ns
        sums.memory_used += vm.memory_used_bytes * period_ns
