"""What is known of a VM on its host and not shipped: for /metrics and `top`. Pure; the same rules for rates as in derive.

The coordinator decides on VmSample alone. These figures explain a sample to somebody who looks at the host, and would double the traffic.
"""

from __future__ import annotations

import msgspec

from agent.ports import PerfCounts, RawHost, RawVm
from agent.sampling.derive import MAX_GAP_NS, rate
from shared.units import NS_PER_S

_NO_COUNTS = PerfCounts()


class VmDetail(msgspec.Struct, frozen=True, kw_only=True):
    """One VM over one sample period; None = not available. Directions are the guest's."""

    periods_per_s: int | None = None  # CFS periods in which the VM ran, over its groups
    throttled_periods_permille: int | None = None  # of those periods
    psi_cpu_full_permille: int | None = None
    memory_current_bytes: int | None = None
    memory_anon_bytes: int | None = None
    memory_file_bytes: int | None = None
    memory_unused_bytes: int | None = None
    memory_high_events_per_s: int | None = None
    memory_refaults_per_s: int | None = None
    net_rx_packets_per_s: int | None = None
    net_tx_packets_per_s: int | None = None
    net_rx_tap_dropped_per_s: int | None = None
    net_tx_tap_dropped_per_s: int | None = None
    net_rx_overlimits_per_s: int | None = None
    net_tx_overlimits_per_s: int | None = None
    net_rx_backlog_bytes: int | None = None
    net_tx_backlog_bytes: int | None = None
    task_clock_millicores: int | None = None  # of the vCPU threads
    context_switches_per_s: int | None = None
    cpu_migrations_per_s: int | None = None
    page_faults_per_s: int | None = None
    cycles_per_s: int | None = None
    instructions_per_s: int | None = None
    cache_misses_per_s: int | None = None
    instructions_per_kilocycle: int | None = None  # IPC times 1000
    cycles_per_kiloinstruction: int | None = None  # CPI times 1000
    cache_misses_per_megainstruction: int | None = None
    kvm_per_s: dict[str, int] = {}  # KVM's own counters; times (_ns) in ns per second


def derive_detail(previous: RawHost | None, current: RawHost) -> dict[str, VmDetail]:
    """VM -> its detail, rates since `previous`. Gauges only with another boot, a new epoch of the VM, or a gap of more than a bucket."""
    elapsed = 0 if previous is None or previous.boot_id != current.boot_id else current.monotonic_ns - previous.monotonic_ns
    if not 0 < elapsed <= MAX_GAP_NS:
        elapsed = 0
    before = {} if previous is None or not elapsed else {vm.vm_id: vm for vm in previous.vms}
    return {vm.vm_id: _detail(before.get(vm.vm_id), vm, elapsed) for vm in current.vms}


def _detail(before: RawVm | None, vm: RawVm, elapsed: int) -> VmDetail:
    if before is None or before.epoch != vm.epoch:
        before, elapsed = vm, 0

    def per_s(was: int | None, now: int | None) -> int | None:
        return rate(was, now, NS_PER_S, elapsed)

    old, new = before.perf or _NO_COUNTS, vm.perf or _NO_COUNTS
    cycles = (old.cycles_total, new.cycles_total)
    instructions = (old.instructions_total, new.instructions_total)
    cache_misses = (old.cache_misses_total, new.cache_misses_total)
    periods = (before.periods_total, vm.periods_total)
    stall = rate(before.psi_cpu_full_us_total, vm.psi_cpu_full_us_total, 1_000_000, elapsed)  # µs per ns
    return VmDetail(
        periods_per_s=per_s(*periods),
        throttled_periods_permille=_ratio((before.throttled_periods_total, vm.throttled_periods_total), periods, 1000),
        psi_cpu_full_permille=None if stall is None else min(1000, stall),
        memory_current_bytes=vm.memory_current_bytes,
        memory_anon_bytes=vm.memory_anon_bytes,
        memory_file_bytes=vm.memory_file_bytes,
        memory_unused_bytes=vm.memory_unused_bytes,
        memory_high_events_per_s=per_s(before.memory_high_events_total, vm.memory_high_events_total),
        memory_refaults_per_s=per_s(before.memory_refaults_total, vm.memory_refaults_total),
        net_rx_packets_per_s=per_s(before.net_rx_packets_total, vm.net_rx_packets_total),
        net_tx_packets_per_s=per_s(before.net_tx_packets_total, vm.net_tx_packets_total),
        net_rx_tap_dropped_per_s=per_s(before.net_rx_tap_dropped_total, vm.net_rx_tap_dropped_total),
        net_tx_tap_dropped_per_s=per_s(before.net_tx_tap_dropped_total, vm.net_tx_tap_dropped_total),
        net_rx_overlimits_per_s=per_s(before.net_rx_overlimits_total, vm.net_rx_overlimits_total),
        net_tx_overlimits_per_s=per_s(before.net_tx_overlimits_total, vm.net_tx_overlimits_total),
        net_rx_backlog_bytes=vm.net_rx_backlog_bytes,
        net_tx_backlog_bytes=vm.net_tx_backlog_bytes,
        task_clock_millicores=rate(old.task_clock_ns_total, new.task_clock_ns_total, 1000, elapsed),
        context_switches_per_s=per_s(old.context_switches_total, new.context_switches_total),
        cpu_migrations_per_s=per_s(old.cpu_migrations_total, new.cpu_migrations_total),
        page_faults_per_s=per_s(old.page_faults_total, new.page_faults_total),
        cycles_per_s=per_s(*cycles),
        instructions_per_s=per_s(*instructions),
        cache_misses_per_s=per_s(*cache_misses),
        instructions_per_kilocycle=_ratio(instructions, cycles, 1000),
        cycles_per_kiloinstruction=_ratio(cycles, instructions, 1000),
        cache_misses_per_megainstruction=_ratio(cache_misses, instructions, 1_000_000),
        kvm_per_s={name: value for name in vm.kvm if (value := per_s(before.kvm.get(name), vm.kvm[name])) is not None},
    )


def _ratio(part: tuple[int | None, int | None], whole: tuple[int | None, int | None], scale: int) -> int | None:
    """Growth of one counter per growth of another, times `scale`; None where either is unknown or the other stood still."""
    if part[0] is None or part[1] is None or whole[0] is None or whole[1] is None or part[1] < part[0] or whole[1] <= whole[0]:
        return None
    return (part[1] - part[0]) * scale // (whole[1] - whole[0])
