"""Two raw readings of a host → one sample of rates and gauges. Pure; the same for real and simulated hosts.

Rates divide by monotonic time, so a step of the wall clock does not touch them, and a suspend (which monotonic time leaves out, as the
counters do) neither. No rate is made across a reboot, a new epoch of a VM, a counter that went backwards, or a gap of more than one
bucket (a longer mean cannot be put into any bucket). Guest figures are foreign input: what cannot be true is unknown.
Invariant: every value is None or within 0..2**53 (limits: or UNLIMITED).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.ports import RawHost, RawVm
from shared.model import HostSample, VmSample
from shared.units import BUCKET_NS, NS_PER_MS, NS_PER_S

MAX_GAP_NS: Final = BUCKET_NS
FRESH_MS: Final = 30_000  # a guest reading older than this says nothing about now
CLOCK_SLACK_MS: Final = 2_000  # guest readings carry whole seconds and another clock read: this far in the future still counts as now
_LARGEST: Final = 2**53


def derive(previous: RawHost | None, current: RawHost, memory_max: Mapping[str, int]) -> HostSample:
    """The sample of `current`, with rates since `previous`.

    `memory_max`: VM -> bytes its domain was defined with; a balloon above it is not believed. VMs missing there are not bounded.
    With `previous` None (or another boot, or no time between) there are gauges only and `period_ns` is 0.
    """
    elapsed = 0 if previous is None or previous.boot_id != current.boot_id else current.monotonic_ns - previous.monotonic_ns
    elapsed = max(0, elapsed)
    over = elapsed if elapsed <= MAX_GAP_NS else 0
    before = {} if previous is None or not over else {vm.vm_id: vm for vm in previous.vms}
    host = previous or current
    over_statistics = _between_statistics(host, current, over)
    return HostSample(
        wall_ns=current.wall_ns,
        monotonic_ns=current.monotonic_ns,
        period_ns=elapsed,
        cpu_used_millicores=rate(host.cpu_busy_ns_total, current.cpu_busy_ns_total, 1000, over),
        memory_available_bytes=_bounded(current.memory_available_bytes),
        psi_cpu_some_permille=_stall(host.psi_cpu_some_us_total, current.psi_cpu_some_us_total, over),
        psi_memory_some_permille=_stall(host.psi_memory_some_us_total, current.psi_memory_some_us_total, over),
        psi_io_some_permille=_stall(host.psi_io_some_us_total, current.psi_io_some_us_total, over),
        cpu_steal_permille=rate(host.cpu_steal_ns_total, current.cpu_steal_ns_total, 1000, over),
        memory_overhead_bytes=_bounded(current.memory_overhead_bytes),
        net_rx_bits_per_s=rate(host.net_rx_bytes_total, current.net_rx_bytes_total, 8 * NS_PER_S, over),
        net_tx_bits_per_s=rate(host.net_tx_bytes_total, current.net_tx_bytes_total, 8 * NS_PER_S, over),
        net_dropped_per_s=rate(host.net_dropped_total, current.net_dropped_total, NS_PER_S, over),
        vms={
            vm.vm_id: _vm_sample(before.get(vm.vm_id), vm, current.wall_ns, (over, over_statistics), memory_max.get(vm.vm_id))
            for vm in current.vms
        },
    )


def rate(before: int | None, now: int | None, scale: int, elapsed_ns: int) -> int | None:
    """Growth of a counter per time, times `scale`, rounded; None where it is unknown, went backwards or no time passed.

    With counters in ns, scale 1000 gives millicores or permille of one CPU; with counters in bytes, scale 8e9 gives bits/s.
    """
    growth = _growth(before, now)
    return None if growth is None or elapsed_ns <= 0 else _bounded((growth * scale + elapsed_ns // 2) // elapsed_ns)


def ready(delay: tuple[int | None, int | None], throttled: tuple[int | None, int | None], elapsed_ns: int) -> int | None:
    """Permille of one CPU for which vCPUs were ready and did not run, less what their own quota took. Pairs are (before, now).

    2990 ms of delay in 4 s, of which 2970 ms throttled: 5. Throttling unknown (no group of its own, so no quota of ours): delay alone.
    """
    if throttled == (None, None):
        return rate(*delay, 1000, elapsed_ns)
    waited, held = _growth(*delay), _growth(*throttled)
    return None if waited is None or held is None else rate(0, max(0, waited - held), 1000, elapsed_ns)


def _between_statistics(previous: RawHost, current: RawHost, over: int) -> int:
    """Time between the two readings of balloon and disk counters, which may have been asked for a moment before the round."""
    if previous.statistics_monotonic_ns is None or current.statistics_monotonic_ns is None or not over:
        return over
    return max(0, min(MAX_GAP_NS, current.statistics_monotonic_ns - previous.statistics_monotonic_ns))


def _growth(before: int | None, now: int | None) -> int | None:
    return None if before is None or now is None or now < before else now - before


def _stall(before: int | None, now: int | None, elapsed_ns: int) -> int | None:
    permille = rate(before, now, 1_000_000, elapsed_ns)  # µs per ns
    return None if permille is None else min(1000, permille)


def _bounded(value: int | None, most: int = _LARGEST) -> int | None:
    return value if value is not None and 0 <= value <= most else None


def _vm_sample(before: RawVm | None, vm: RawVm, wall_ns: int, over: tuple[int, int], memory_max: int | None) -> VmSample:
    """`over`: time between the two readings, and between those of the counters that come with libvirt's statistics."""
    elapsed, between = over
    if before is None or before.epoch != vm.epoch:
        before, elapsed, between = vm, 0, 0
    plugged = (vm.virtio_mem_bytes or 0) + (vm.dimm_bytes or 0)  # libvirt counts them into the balloon's figure, their levers apart
    actual = _bounded(vm.memory_actual_bytes, memory_max + plugged if memory_max else _LARGEST)
    usable = None if actual is None else _bounded(vm.memory_usable_bytes, actual)
    age_ms = _reading_age_ms(vm, wall_ns)
    used = rate(before.cpu_used_ns_total, vm.cpu_used_ns_total, 1000, elapsed)
    waited = ready((before.run_delay_ns_total, vm.run_delay_ns_total), (before.throttled_ns_total, vm.throttled_ns_total), elapsed)
    return VmSample(
        cpu_used_millicores=used,
        cpu_throttled_permille=rate(before.throttled_ns_total, vm.throttled_ns_total, 1000, elapsed),
        cpu_ready_permille=waited,
        psi_cpu_some_permille=_stall(before.psi_cpu_some_us_total, vm.psi_cpu_some_us_total, elapsed),
        psi_memory_some_permille=_stall(before.psi_memory_some_us_total, vm.psi_memory_some_us_total, elapsed),
        psi_memory_full_permille=_stall(before.psi_memory_full_us_total, vm.psi_memory_full_us_total, elapsed),
        psi_io_some_permille=_stall(before.psi_io_some_us_total, vm.psi_io_some_us_total, elapsed),
        memory_used_bytes=_memory_used(before, vm, actual, usable, age_ms),
        memory_usable_bytes=usable,
        memory_rss_bytes=_bounded(vm.memory_rss_bytes),
        memory_reading_age_ms=age_ms,
        memory_major_faults_per_s=rate(before.major_faults_total, vm.major_faults_total, NS_PER_S, between),
        memory_swap_bytes_per_s=rate(before.swap_bytes_total, vm.swap_bytes_total, NS_PER_S, between),
        disk_read_bytes_per_s=rate(before.disk_read_bytes_total, vm.disk_read_bytes_total, NS_PER_S, between),
        disk_write_bytes_per_s=rate(before.disk_write_bytes_total, vm.disk_write_bytes_total, NS_PER_S, between),
        net_rx_bits_per_s=rate(before.net_rx_bytes_total, vm.net_rx_bytes_total, 8 * NS_PER_S, elapsed),
        net_tx_bits_per_s=rate(before.net_tx_bytes_total, vm.net_tx_bytes_total, 8 * NS_PER_S, elapsed),
        net_rx_dropped_per_s=rate(before.net_rx_dropped_total, vm.net_rx_dropped_total, NS_PER_S, elapsed),
        net_tx_dropped_per_s=rate(before.net_tx_dropped_total, vm.net_tx_dropped_total, NS_PER_S, elapsed),
        vcpus=vm.vcpus,
        cpu_quota_millicores=vm.cpu_quota_millicores,
        cpu_shares=vm.cpu_shares,
        memory_allocated_bytes=None if actual is None else max(0, actual - plugged),
        disk_limit_bytes_per_s=vm.disk_limit_bytes_per_s,
        net_rx_ceil_bits_per_s=vm.net_rx_ceil_bits_per_s,
        net_tx_ceil_bits_per_s=vm.net_tx_ceil_bits_per_s,
        cpu_used_peak_millicores=_peak(vm.cpu_used_peak_millicores, used),
        cpu_ready_peak_permille=_peak(vm.cpu_ready_peak_permille, waited),
        psi_io_full_permille=_stall(before.psi_io_full_us_total, vm.psi_io_full_us_total, elapsed),
        disk_read_ops_per_s=rate(before.disk_read_ops_total, vm.disk_read_ops_total, NS_PER_S, between),
        disk_write_ops_per_s=rate(before.disk_write_ops_total, vm.disk_write_ops_total, NS_PER_S, between),
        disk_latency_us=_latency_us(before, vm) if between else None,
        guest_oom_kills=_bounded(_growth(before.guest_oom_kills_total, vm.guest_oom_kills_total)) if elapsed else None,
        dirty_bytes_per_s=_bounded(vm.dirty_bytes_per_s),
        vcpus_online=vm.vcpus_online,
        cpu_period_us=vm.cpu_period_us,
        virtio_mem_bytes=vm.virtio_mem_bytes,
        dimm_bytes=vm.dimm_bytes,
        memory_high_bytes=vm.memory_high_bytes,
        disk_ops_limit_per_s=vm.disk_ops_limit_per_s,
        disk_weight=vm.disk_weight,
        net_tx_rate_bits_per_s=vm.net_tx_rate_bits_per_s,
    )


def _peak(peak: int | None, mean: int | None) -> int | None:
    """A peak is never below the mean: looks between two rounds leave out intervals too short to judge."""
    return None if peak is None else _bounded(peak if mean is None else max(peak, mean))


def _latency_us(before: RawVm, vm: RawVm) -> int | None:
    """Mean time of the disk operations that ended within the period."""
    ops = (_growth(before.disk_read_ops_total, vm.disk_read_ops_total), _growth(before.disk_write_ops_total, vm.disk_write_ops_total))
    took = (
        _growth(before.disk_read_time_ns_total, vm.disk_read_time_ns_total),
        _growth(before.disk_write_time_ns_total, vm.disk_write_time_ns_total),
    )
    if ops[0] is None or ops[1] is None or took[0] is None or took[1] is None:
        return None
    count = ops[0] + ops[1]
    return _bounded((took[0] + took[1]) // (1000 * count)) if count else None


def _reading_age_ms(vm: RawVm, wall_ns: int) -> int | None:
    if vm.memory_reading_wall_ns is None:
        return None
    age = (wall_ns - vm.memory_reading_wall_ns) // NS_PER_MS
    return None if age < -CLOCK_SLACK_MS else _bounded(max(0, age))


def _memory_used(before: RawVm, vm: RawVm, actual: int | None, usable: int | None, age_ms: int | None) -> int | None:
    """Balloon less usable, from a fresh guest reading.

    None while the balloon moves: 256 → 200 MiB with a `usable` of 150 written before the move would read as 50 MiB used instead of 106,
    and invite the next cut.
    """
    if actual is None or usable is None or age_ms is None or age_ms > FRESH_MS:
        return None
    return actual - usable if before.memory_actual_bytes in (None, vm.memory_actual_bytes) else None
