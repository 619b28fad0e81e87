"""derive: rates by example, and that nothing a host or guest may report gets past the bounds."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.ports import RawHost, RawVm
from agent.sampling.derive import FRESH_MS, MAX_GAP_NS, derive
from shared.frame import decode_block, encode_block
from shared.model import VmSample
from shared.units import MIB, NS_PER_MS, NS_PER_S, UNLIMITED

START = 1_795_000_000 * NS_PER_S


def host(seconds: float, *vms: RawVm, **fields: object) -> RawHost:
    at = int(seconds * NS_PER_S)
    return msgspec.structs.replace(RawHost(wall_ns=START + at, monotonic_ns=at, boot_id="boot", vms=vms), **fields)


def vm(**fields: object) -> RawVm:
    return msgspec.structs.replace(RawVm(vm_id="web", epoch="boot:1"), **fields)


def sample_of(before: RawVm, now: RawVm, seconds: float = 5.0) -> VmSample:
    return derive(host(0, before), host(seconds, now), {}).vms["web"]


@pytest.mark.parametrize(
    ("raw", "before", "now", "field", "expected"),
    [
        ("cpu_used_ns_total", 7 * NS_PER_S, 12 * NS_PER_S, "cpu_used_millicores", 1000),
        ("cpu_used_ns_total", 0, 10 * NS_PER_S, "cpu_used_millicores", 2000),
        ("throttled_ns_total", 0, 4 * NS_PER_S, "cpu_throttled_permille", 800),
        ("run_delay_ns_total", 0, NS_PER_S, "cpu_ready_permille", 200),
        ("psi_cpu_some_us_total", 0, 2_500_000, "psi_cpu_some_permille", 500),
        ("psi_io_some_us_total", 0, 5_100_000, "psi_io_some_permille", 1000),
        ("disk_read_bytes_total", 10, 5010, "disk_read_bytes_per_s", 1000),
        ("net_tx_bytes_total", 0, 1_250_000, "net_tx_bits_per_s", 2_000_000),
        ("net_rx_dropped_total", 5, 30, "net_rx_dropped_per_s", 5),
        ("swap_bytes_total", 0, 5 * MIB, "memory_swap_bytes_per_s", MIB),
        ("major_faults_total", 0, 7, "memory_major_faults_per_s", 1),
        ("cpu_used_ns_total", 5, 4, "cpu_used_millicores", None),  # the counter was reset
        ("cpu_used_ns_total", None, 4, "cpu_used_millicores", None),
        ("cpu_used_ns_total", 4, None, "cpu_used_millicores", None),
        ("psi_io_full_us_total", 0, 500_000, "psi_io_full_permille", 100),
        ("disk_read_ops_total", 0, 50, "disk_read_ops_per_s", 10),
        ("disk_write_ops_total", 5, 30, "disk_write_ops_per_s", 5),
        ("guest_oom_kills_total", 3, 5, "guest_oom_kills", 2),
        ("guest_oom_kills_total", 3, 0, "guest_oom_kills", None),  # the guest was booted anew
        ("dirty_bytes_per_s", None, 7, "dirty_bytes_per_s", 7),
        ("memory_high_bytes", None, UNLIMITED, "memory_high_bytes", UNLIMITED),
        ("cpu_period_us", 100_000, 50_000, "cpu_period_us", 50_000),
        ("swap_bytes_total", 0, 2**64 - 1, "memory_swap_bytes_per_s", None),  # no guest swaps that fast
    ],
)
def test_two_counters_make_one_rate(raw: str, before: int | None, now: int | None, field: str, expected: int | None) -> None:
    assert getattr(sample_of(vm(**{raw: before}), vm(**{raw: now})), field) == expected


def test_disk_latency_is_the_mean_over_the_operations_of_the_period() -> None:
    before = vm(disk_read_ops_total=10, disk_write_ops_total=0, disk_read_time_ns_total=0, disk_write_time_ns_total=1_000_000)
    now = vm(disk_read_ops_total=12, disk_write_ops_total=2, disk_read_time_ns_total=500_000, disk_write_time_ns_total=2_500_000)
    assert sample_of(before, now).disk_latency_us == 500
    assert sample_of(now, now).disk_latency_us is None, "no operation, no latency"
    assert sample_of(vm(disk_read_ops_total=1), vm(disk_read_ops_total=2)).disk_latency_us is None


def test_peak_is_the_looks_or_the_mean() -> None:
    before, now = vm(cpu_used_ns_total=0, run_delay_ns_total=0), vm(cpu_used_ns_total=5 * NS_PER_S, run_delay_ns_total=NS_PER_S)
    assert (sample_of(before, now).cpu_used_peak_millicores, sample_of(before, now).cpu_ready_peak_permille) == (None, None)
    seen = msgspec.structs.replace(now, cpu_used_peak_millicores=1800, cpu_ready_peak_permille=100)
    assert (sample_of(before, seen).cpu_used_peak_millicores, sample_of(before, seen).cpu_ready_peak_permille) == (1800, 200)


def test_statistics_asked_for_ahead_have_their_own_time() -> None:
    before, now = vm(disk_read_bytes_total=0, cpu_used_ns_total=0), vm(disk_read_bytes_total=4000, cpu_used_ns_total=5 * NS_PER_S)
    first = host(0, before, statistics_monotonic_ns=0)
    sample = derive(first, host(5, now, statistics_monotonic_ns=4 * NS_PER_S), {}).vms["web"]
    assert (sample.disk_read_bytes_per_s, sample.cpu_used_millicores) == (1000, 1000)
    again = derive(first, host(5, now, statistics_monotonic_ns=0), {}).vms["web"]
    assert (again.disk_read_bytes_per_s, again.cpu_used_millicores) == (None, 1000)


def test_host_totals() -> None:
    totals = {"cpu_steal_ns_total": 0, "net_rx_bytes_total": 0, "net_tx_bytes_total": 0, "net_dropped_total": 1, "psi_io_some_us_total": 0}
    now = {
        "cpu_steal_ns_total": NS_PER_S,
        "net_rx_bytes_total": 5000,
        "net_tx_bytes_total": 10_000,
        "net_dropped_total": 11,
        "psi_io_some_us_total": 500_000,
        "memory_overhead_bytes": 7,
    }
    sample = derive(host(0, **totals), host(5, **now), {})
    assert (sample.cpu_steal_permille, sample.net_rx_bits_per_s, sample.net_tx_bits_per_s, sample.net_dropped_per_s) == (
        200,
        8000,
        16_000,
        2,
    )
    assert (sample.psi_io_some_permille, sample.memory_overhead_bytes) == (100, 7)


def test_own_throttling_is_not_ready_time() -> None:
    now = vm(run_delay_ns_total=2990 * NS_PER_MS, throttled_ns_total=2970 * NS_PER_MS)
    assert sample_of(vm(run_delay_ns_total=0, throttled_ns_total=0), now, 4).cpu_ready_permille == 5
    more_throttled = vm(run_delay_ns_total=0, throttled_ns_total=NS_PER_S)
    assert sample_of(vm(run_delay_ns_total=0, throttled_ns_total=0), more_throttled).cpu_ready_permille == 0
    unknown_throttling = vm(run_delay_ns_total=0)
    assert sample_of(unknown_throttling, now, 4).cpu_ready_permille is None


def test_first_reading_gives_gauges_and_no_rate() -> None:
    sample = derive(None, host(5, vm(cpu_used_ns_total=9, vcpus=2, cpu_quota_millicores=UNLIMITED), cpu_busy_ns_total=3), {})
    assert sample.period_ns == 0
    assert sample.cpu_used_millicores is None
    assert sample.vms["web"] == VmSample(vcpus=2, cpu_quota_millicores=UNLIMITED)


def test_new_epoch_reboot_and_new_vm_give_no_rate() -> None:
    before, now = vm(cpu_used_ns_total=0), vm(cpu_used_ns_total=NS_PER_S, vcpus=1)
    assert sample_of(before, msgspec.structs.replace(now, epoch="boot:2")) == VmSample(vcpus=1)
    assert derive(host(0, before), host(5, now, boot_id="other"), {}).vms["web"] == VmSample(vcpus=1)
    assert derive(host(0), host(5, now), {}).vms["web"] == VmSample(vcpus=1)
    assert derive(host(0, before), host(5), {}).vms == {}


def test_clock_step_and_suspend_leave_rates_alone() -> None:
    before = host(0, vm(cpu_used_ns_total=0), cpu_busy_ns_total=0)
    now = host(5, vm(cpu_used_ns_total=NS_PER_S), cpu_busy_ns_total=10 * NS_PER_S)
    for jump in (-3600, 8 * 3600):
        stepped = msgspec.structs.replace(now, wall_ns=now.wall_ns + jump * NS_PER_S)
        sample = derive(before, stepped, {})
        assert (sample.period_ns, sample.cpu_used_millicores, sample.vms["web"].cpu_used_millicores) == (5 * NS_PER_S, 2000, 200)


def test_gap_longer_than_a_bucket_and_no_time_at_all_give_no_rate() -> None:
    before, now = vm(cpu_used_ns_total=0), vm(cpu_used_ns_total=NS_PER_S)
    longest = MAX_GAP_NS / NS_PER_S
    assert sample_of(before, now, longest).cpu_used_millicores == 3
    assert sample_of(before, now, longest + 1).cpu_used_millicores is None
    assert sample_of(before, now, 0).cpu_used_millicores is None
    assert derive(host(9), host(4), {}).period_ns == 0


def guest(actual: int, usable: int, age_s: float, at_s: float = 5.0) -> RawVm:
    written = START + int((at_s - age_s) * NS_PER_S)
    return vm(memory_actual_bytes=actual * MIB, memory_usable_bytes=usable * MIB, memory_reading_wall_ns=written)


@pytest.mark.parametrize(
    ("actual", "usable", "age_s", "used"),
    [
        (256, 150, 1, 106),
        (256, 150, -1, 106),  # whole seconds: a little in the future is now
        (256, 150, FRESH_MS / 1000, 106),
        (256, 150, FRESH_MS / 1000 + 1, None),
        (256, 150, -600, None),  # the clock was set back: age unknown
        (256, 300, 1, None),  # more usable than there is
    ],
)
def test_memory_used_needs_a_fresh_and_possible_reading(actual: int, usable: int, age_s: float, used: int | None) -> None:
    reading = guest(actual, usable, age_s)
    sample = sample_of(reading, reading)
    assert sample.memory_used_bytes == (None if used is None else used * MIB)
    assert sample.memory_allocated_bytes == actual * MIB


def test_memory_used_is_unknown_while_the_balloon_moves() -> None:
    assert sample_of(guest(256, 150, 2), guest(200, 150, 3)).memory_used_bytes is None
    assert sample_of(guest(200, 94, 2), guest(200, 94, 3)).memory_used_bytes == 106 * MIB


def test_balloon_above_the_domains_maximum_is_not_believed() -> None:
    sample = derive(host(0), host(5, guest(512, 100, 1)), {"web": 256 * MIB}).vms["web"]
    assert (sample.memory_allocated_bytes, sample.memory_usable_bytes, sample.memory_used_bytes) == (None, None, None)


COUNTER = st.none() | st.integers(0, 2**64 - 1)
GAUGES = (
    "epoch",
    "vm_id",
    "vcpus",
    "cpu_quota_millicores",
    "cpu_shares",
    "disk_limit_bytes_per_s",
    "net_rx_ceil_bits_per_s",
    "net_tx_ceil_bits_per_s",
    "perf",
    "kvm",
    "vcpus_online",
    "cpu_period_us",
    "virtio_mem_bytes",
    "dimm_bytes",
    "memory_high_bytes",
    "disk_ops_limit_per_s",
    "disk_weight",
    "net_tx_rate_bits_per_s",
)
READINGS = st.fixed_dictionaries({name: COUNTER for name in RawVm.__struct_fields__ if name not in GAUGES})


@given(before=READINGS, now=READINGS, seconds=st.floats(-10, 400), busy=st.tuples(COUNTER, COUNTER))
def test_whatever_is_reported_the_sample_fits_a_frame(
    before: dict[str, int | None], now: dict[str, int | None], seconds: float, busy: tuple[int | None, int | None]
) -> None:
    first = host(10, vm(**before), cpu_busy_ns_total=busy[0], memory_available_bytes=busy[0])
    sample = derive(first, host(10 + seconds, vm(**now), cpu_busy_ns_total=busy[1], memory_available_bytes=busy[1]), {})
    numbers = [value for value in msgspec.structs.astuple(sample.vms["web"]) if value is not None]
    assert all(0 <= value <= 2**53 for value in numbers)
    used = sample.vms["web"].memory_used_bytes
    assert used is None or used <= (now["memory_actual_bytes"] or 0)
    assert decode_block(encode_block([sample])) == (sample,)
