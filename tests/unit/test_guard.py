"""The guard: every refusal and clip by example, and its invariant by property."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.acting.guard import Guard, Verdict, View
from agent.acting.levers import bounds, charge, grows, shows
from agent.acting.pressure import dropping, held_back, short_of_memory
from shared.config import GuardConfig
from shared.model import Capabilities, Domain, Policy, VmSample
from shared.plan import Step, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, MIB, NS_PER_S, UNLIMITED

NOW = 1_000_000 * NS_PER_S
CONFIG = GuardConfig(shrink_after_grow_s=600)
GUARD = Guard(CONFIG)
DOMAIN = Domain(vm_id="vm-1", name="web", vcpus_max=4, memory_max_bytes=8 * GIB, net_max_bits_per_s=10**9)
CALM = VmSample(
    cpu_used_millicores=300,
    cpu_throttled_permille=0,
    memory_used_bytes=GIB,
    memory_reading_age_ms=0,
    psi_memory_some_permille=0,
    net_rx_bits_per_s=1_000_000,
    net_tx_bits_per_s=1_000_000,
)
Q, M, V, RX, SHARES = StepKind.CPU_QUOTA, StepKind.MEMORY, StepKind.VCPUS, StepKind.NET_RX, StepKind.CPU_SHARES


def view(in_force: int | None, **changes: object) -> View:
    fields: dict[str, object] = {"domain": DOMAIN, "in_force": in_force, "vcpus": 2, "reading": CALM, "reading_at_ns": NOW, "room": 10**15}
    return View(**{**fields, **changes})  # type: ignore[arg-type]


def check(kind: StepKind, value: int, seen: View, guard: Guard = GUARD) -> Verdict:
    return guard.check(Step(id="s", vm_id="vm-1", kind=kind, value=value, deadline_ns=NOW), seen, NOW)


def policy(**fields: object) -> Domain:
    return msgspec.structs.replace(DOMAIN, policy=Policy(**fields))  # type: ignore[arg-type]


def ago(seconds: int) -> int:
    return NOW - seconds * NS_PER_S


@pytest.mark.parametrize(
    ("kind", "value", "seen", "code"),
    [
        (Q, 2000, view(1000, domain=None), RefusalCode.UNKNOWN_VM),
        (Q, 2000, view(1000, domain=msgspec.structs.replace(DOMAIN, running=False)), RefusalCode.VM_NOT_RUNNING),
        (Q, 2000, view(1000, domain=policy(excluded=True)), RefusalCode.VM_EXCLUDED),
        (M, 2 * GIB, view(GIB, domain=msgspec.structs.replace(DOMAIN, capabilities=Capabilities(balloon="vfio"))), RefusalCode.NOT_CAPABLE),
        (Q, 0, view(1000), RefusalCode.INVALID_VALUE),
        (M, UNLIMITED, view(GIB), RefusalCode.INVALID_VALUE),
        (V, 0, view(2), RefusalCode.INVALID_VALUE),
        (SHARES, 1, view(1024), RefusalCode.INVALID_VALUE),
        (SHARES, 262_145, view(1024), RefusalCode.INVALID_VALUE),
        (V, 5, view(2), RefusalCode.ABOVE_DOMAIN_MAXIMUM),
        (M, 9 * GIB, view(GIB), RefusalCode.ABOVE_DOMAIN_MAXIMUM),
        (Q, 2000, view(None), RefusalCode.READING_STALE),
        (M, GIB + MIB, view(GIB), RefusalCode.NOTHING_TO_DO),
        (Q, 2000, view(1000, busy=True), RefusalCode.VM_BUSY),
        (Q, 2000, view(1000, growth_waits_until_ns=NOW + 1), RefusalCode.BACKING_OFF),
        (Q, 800, view(1000, shrink_waits_until_ns=NOW + 1), RefusalCode.BACKING_OFF),
        (Q, 2000, view(1000, vm_steps=12), RefusalCode.RATE_LIMITED),
        (Q, 2000, view(1000, host_steps=240), RefusalCode.RATE_LIMITED),
        (Q, 2000, view(1500, domain=policy(cpu_ceiling_millicores=1500)), RefusalCode.ABOVE_CEILING),
        (Q, 2000, view(1000, room=5), RefusalCode.HOST_COMMIT_LIMIT),
        (Q, 2000, view(1000, room=-500), RefusalCode.HOST_COMMIT_LIMIT),
        (V, 4, view(2, room=999), RefusalCode.HOST_COMMIT_LIMIT),
        (V, 1, view(2), RefusalCode.NOT_CAPABLE),
        (Q, 800, view(1000, reading=None), RefusalCode.READING_STALE),
        (Q, 800, view(1000, reading_at_ns=ago(31)), RefusalCode.READING_STALE),
        (Q, 800, view(1000, reading=VmSample()), RefusalCode.READING_STALE),
        (M, 7 * GIB, view(8 * GIB, reading=VmSample(memory_used_bytes=GIB)), RefusalCode.READING_STALE),
        (M, 7 * GIB, view(8 * GIB, reading=VmSample(memory_used_bytes=GIB, memory_reading_age_ms=31_000)), RefusalCode.READING_STALE),
        (Q, 800, view(1000, reading=msgspec.structs.replace(CALM, cpu_throttled_permille=20)), RefusalCode.PRESSURE_VETO),
        (M, 7 * GIB, view(8 * GIB, reading=msgspec.structs.replace(CALM, psi_memory_some_permille=50)), RefusalCode.PRESSURE_VETO),
        (M, 7 * GIB, view(8 * GIB, reading=msgspec.structs.replace(CALM, memory_swap_bytes_per_s=MIB)), RefusalCode.PRESSURE_VETO),
        (RX, 5 * 10**7, view(10**8, reading=msgspec.structs.replace(CALM, net_rx_dropped_per_s=1)), RefusalCode.PRESSURE_VETO),
        (Q, 800, view(1000, shrunk_at_ns=ago(59)), RefusalCode.COOLDOWN),
        (Q, 800, view(1000, grown_at_ns=ago(599)), RefusalCode.COOLDOWN),
        (M, 100 * MIB, view(128 * MIB), RefusalCode.BELOW_WORKING_SET),
        (Q, 50, view(100, reading=msgspec.structs.replace(CALM, cpu_used_millicores=1)), RefusalCode.BELOW_FLOOR),
    ],
)
def test_refusals(kind: StepKind, value: int, seen: View, code: RefusalCode) -> None:
    verdict = check(kind, value, seen)
    assert (verdict.value, verdict.code) == (None, code)
    assert verdict.detail


@pytest.mark.parametrize(
    ("kind", "value", "seen", "got", "code"),
    [
        (Q, 2000, view(1000), 2000, None),
        (Q, 2000, view(1000, shrink_waits_until_ns=NOW + 1), 2000, None),
        (Q, UNLIMITED, view(1000), UNLIMITED, None),
        (Q, UNLIMITED, view(1000, domain=policy(cpu_ceiling_millicores=1500)), 1500, RefusalCode.ABOVE_CEILING),
        (Q, 9000, view(1000), 4000, RefusalCode.ABOVE_DOMAIN_MAXIMUM),
        (Q, 3000, view(1000, domain=policy(cpu_ceiling_millicores=1500)), 1500, RefusalCode.ABOVE_CEILING),
        (V, 4, view(2, domain=policy(cpu_ceiling_millicores=2500)), 3, RefusalCode.ABOVE_CEILING),
        (Q, 2000, view(1000, room=10), None, RefusalCode.HOST_COMMIT_LIMIT),  # 10 millicores is no more than the quota's rounding
        (Q, 2000, view(1000, room=300), 1300, RefusalCode.HOST_COMMIT_LIMIT),
        (V, 4, view(2, room=1999), 3, RefusalCode.HOST_COMMIT_LIMIT),
        (V, 4, view(2, room=None), 4, None),
        (Q, 800, view(1000, shrunk_at_ns=ago(60), grown_at_ns=ago(600)), 800, None),
        (Q, 400, view(1000), 500, RefusalCode.STEP_TOO_LARGE),
        (Q, 800, view(UNLIMITED), 1000, RefusalCode.STEP_TOO_LARGE),  # unlimited on two vCPUs counts as 2000
        (Q, 300, view(400), 330, RefusalCode.BELOW_WORKING_SET),
        (M, 4 * GIB, view(8 * GIB), 8 * GIB - 8 * GIB * 50 // 1000, RefusalCode.STEP_TOO_LARGE),
        (M, GIB, view(1140 * MIB), (GIB + GIB * 100 // 1000), RefusalCode.BELOW_WORKING_SET),
        (M, 3 * GIB, view(3300 * MIB, domain=policy(memory_floor_bytes=3200 * MIB)), 3200 * MIB, RefusalCode.BELOW_FLOOR),
        (SHARES, 512, view(1024, reading=None), 512, None),
    ],
)
def test_passes_and_clips(kind: StepKind, value: int, seen: View, got: int | None, code: RefusalCode | None) -> None:
    verdict = check(kind, value, seen)
    assert (verdict.value, verdict.code) == (got, code)
    assert verdict.clipped == (got is not None and code is not None)


def test_from_unlimited_to_more_than_unlimited_counts_for_needs_room() -> None:
    assert check(Q, 3500, view(UNLIMITED, room=1500)).value == 3500
    assert check(Q, 3500, view(UNLIMITED, room=1499)).code is RefusalCode.HOST_COMMIT_LIMIT


def test_a_policy_raises_the_guards_floor_and_never_lowers_it() -> None:
    assert bounds(M, policy(memory_floor_bytes=MIB), CONFIG)[0] == 128 * MIB
    assert bounds(M, policy(memory_floor_bytes=GIB), CONFIG)[0] == GIB
    assert bounds(Q, policy(cpu_floor_millicores=9000, cpu_ceiling_millicores=500), CONFIG) == (500, 500)


def test_waits_say_how_long() -> None:
    assert check(Q, 800, view(1000, shrunk_at_ns=ago(20))).wait_ns == 40 * NS_PER_S
    assert check(Q, 2000, view(1000, growth_waits_until_ns=NOW + 7)).wait_ns == 7


def test_pressure_needs_a_reading() -> None:
    unknown = VmSample()
    assert not held_back(unknown) and not short_of_memory(unknown) and not dropping(unknown, RX)


@given(
    st.sampled_from([Q, M, RX]),
    st.integers(1, 9 * GIB),
    st.integers(1, 9 * GIB),
    st.integers(-(10**9), 9 * GIB),
    st.integers(0, 8 * GIB),
)
def test_what_passes_is_within_bounds_and_room(kind: StepKind, value: int, current: int, room: int, use: int) -> None:
    reading = msgspec.structs.replace(CALM, cpu_used_millicores=use, memory_used_bytes=use, net_rx_bits_per_s=use)
    verdict = check(kind, value, view(current, room=room, reading=reading))
    if verdict.value is None:
        return
    low, high = bounds(kind, DOMAIN, CONFIG)
    assert min(low, current) <= verdict.value <= max(high, current)
    assert not shows(kind, verdict.value, current)
    if grows(current, verdict.value):
        assert charge(kind, verdict.value, DOMAIN, 2) - charge(kind, current, DOMAIN, 2) <= max(0, room)
        assert verdict.value <= value
    else:
        share = CONFIG.memory_shrink_max_permille if kind is M else CONFIG.cpu_shrink_max_permille
        assert verdict.value >= max(value, use, current - current * share // 1000)


@given(st.sampled_from(StepKind), st.integers(1, 2**40), st.integers(0, 2**40))
def test_shown_is_near(kind: StepKind, want: int, got: int) -> None:
    assert shows(kind, want, want) and not shows(kind, want, None) and not shows(kind, UNLIMITED, got)
    if shows(kind, want, got):
        assert abs(want - got) <= max(want // 100, 2 * MIB)


def test_a_kill_in_this_very_sample_is_relieved_in_spite_of_earlier_failures() -> None:
    waiting = {"growth_waits_until_ns": NOW + 10 * NS_PER_S, "memory_bytes": 2 * GIB, "memory_sum_bytes": 2 * GIB}
    grown = 2 * GIB + 64 * MIB
    assert check(M, grown, view(2 * GIB, **waiting)).code is RefusalCode.BACKING_OFF
    assert check(M, grown, view(2 * GIB, oom_at_ns=NOW, **waiting)).value == grown
    assert check(M, grown, view(2 * GIB, oom_at_ns=NOW + 1, **waiting)).code is RefusalCode.BACKING_OFF  # of a clock set back


def test_a_growth_clipped_to_what_counts_as_nothing_is_refused() -> None:
    """64 MiB: one MiB more is within the balloon's rounding, though above one percent."""
    small = {"memory_bytes": 64 * MIB, "memory_sum_bytes": 64 * MIB}
    capped = check(M, 128 * MIB, view(64 * MIB, domain=policy(memory_ceiling_bytes=65 * MIB), **small))
    assert (capped.value, capped.code) == (None, RefusalCode.ABOVE_CEILING)
    full = check(M, 128 * MIB, view(64 * MIB, room=MIB, **small))
    assert (full.value, full.code) == (None, RefusalCode.HOST_COMMIT_LIMIT)
    fits = check(M, 128 * MIB, view(64 * MIB, room=3 * MIB, **small))
    assert (fits.value, fits.code) == (67 * MIB, RefusalCode.HOST_COMMIT_LIMIT)


@pytest.mark.parametrize(("room", "value"), [(100_000, 1_100_000), (99_999, None)])
def test_less_room_than_a_hundredth_of_what_was_asked_is_none(room: int, value: int | None) -> None:
    assert check(RX, 11_000_000, view(1_000_000, room=room)).value == value


@pytest.mark.parametrize(("use", "least"), [(1819, 2), (1820, 3)])
def test_vcpus_cover_use_and_margin_rounded_up(use: int, least: int) -> None:
    """With the margin of a tenth: 2000 and 2002 millicores."""
    guard = Guard(GuardConfig(working_set_margin_permille=100, cpu_shrink_max_permille=900))
    domain = msgspec.structs.replace(DOMAIN, capabilities=Capabilities(vcpu_unplug=None))
    seen = view(4, domain=domain, vcpus=4, reading=msgspec.structs.replace(CALM, cpu_used_millicores=use))
    assert check(V, 1, seen, guard).value == least
