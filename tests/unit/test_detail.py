"""derive_detail: rates and ratios that stay on the host."""

from __future__ import annotations

import msgspec
import pytest

from agent.ports import PerfCounts, RawHost, RawVm
from agent.sampling.derive import MAX_GAP_NS
from agent.sampling.detail import VmDetail, derive_detail
from shared.units import NS_PER_S


def host(seconds: float, **fields: object) -> RawHost:
    vm = msgspec.structs.replace(RawVm(vm_id="web", epoch="boot:1"), **fields)
    return RawHost(wall_ns=0, monotonic_ns=int(seconds * NS_PER_S), boot_id="boot", vms=(vm,))


def detail(before: dict[str, object], now: dict[str, object], seconds: float = 5.0) -> VmDetail:
    return derive_detail(host(0, **before), host(seconds, **now))["web"]


@pytest.mark.parametrize(
    ("raw", "before", "now", "field", "expected"),
    [
        ("periods_total", 0, 50, "periods_per_s", 10),
        ("psi_cpu_full_us_total", 0, 2_500_000, "psi_cpu_full_permille", 500),
        ("psi_cpu_full_us_total", 0, 6_000_000, "psi_cpu_full_permille", 1000),
        ("memory_high_events_total", 3, 13, "memory_high_events_per_s", 2),
        ("memory_refaults_total", 0, 500, "memory_refaults_per_s", 100),
        ("net_rx_packets_total", 10, 510, "net_rx_packets_per_s", 100),
        ("net_tx_tap_dropped_total", 0, 5, "net_tx_tap_dropped_per_s", 1),
        ("net_tx_overlimits_total", 0, 25, "net_tx_overlimits_per_s", 5),
        ("memory_current_bytes", 1, 7, "memory_current_bytes", 7),
        ("net_rx_backlog_bytes", 1, 9, "net_rx_backlog_bytes", 9),
        ("memory_refaults_total", 5, 4, "memory_refaults_per_s", None),
        ("memory_refaults_total", None, 4, "memory_refaults_per_s", None),
    ],
)
def test_one_figure(raw: str, before: int | None, now: int, field: str, expected: int | None) -> None:
    assert getattr(detail({raw: before}, {raw: now}), field) == expected


def test_share_of_throttled_periods() -> None:
    before, now = {"periods_total": 100, "throttled_periods_total": 10}, {"periods_total": 150, "throttled_periods_total": 35}
    assert detail(before, now).throttled_periods_permille == 500
    assert detail(now, now).throttled_periods_permille is None, "the VM did not run"


def test_perf_rates_and_ratios() -> None:
    before = PerfCounts(task_clock_ns_total=0, context_switches_total=0, cycles_total=0, instructions_total=0, cache_misses_total=0)
    now = PerfCounts(
        task_clock_ns_total=NS_PER_S, context_switches_total=50, cycles_total=10_000, instructions_total=25_000, cache_misses_total=5
    )
    found = detail({"perf": before}, {"perf": now})
    assert (found.task_clock_millicores, found.context_switches_per_s, found.cycles_per_s) == (200, 10, 2000)
    assert (found.instructions_per_kilocycle, found.cycles_per_kiloinstruction, found.cache_misses_per_megainstruction) == (2500, 400, 200)
    assert (found.cpu_migrations_per_s, found.page_faults_per_s) == (None, None)
    without = detail({"perf": before}, {"perf": None})
    assert (without.task_clock_millicores, without.instructions_per_kilocycle) == (None, None)


def test_kvm_counters_become_rates_where_both_are_known() -> None:
    assert detail({"kvm": {"exits": 5, "gone": 1}}, {"kvm": {"exits": 30, "new": 7}}).kvm_per_s == {"exits": 5}


@pytest.mark.parametrize("change", [{"epoch": "boot:2"}, {"seconds": MAX_GAP_NS / NS_PER_S + 1}, {"seconds": 0}])
def test_no_rate_across_a_break(change: dict[str, object]) -> None:
    seconds = float(str(change.pop("seconds", 5)))
    found = detail({"periods_total": 0}, {"periods_total": 5, "memory_current_bytes": 3, **change}, seconds)
    assert (found.periods_per_s, found.memory_current_bytes) == (None, 3)
    assert derive_detail(None, host(5, periods_total=3))["web"].periods_per_s is None
