"""The guard's rules over time and over the host: each code by example, and what it says of itself."""

from __future__ import annotations

import msgspec
import pytest
from guard_scene import CAN, DOMAIN, IN_FORCE, LESS, MEMORY, MORE, NOW, TAKES, K, R, S, ago, check, policy, reading, view
from msgspec.structs import replace

from agent.acting.guard import Verdict
from shared.config import GuardConfig
from shared.model import Capabilities
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, MIB, UNLIMITED

# The host's promise


@pytest.mark.parametrize(
    ("kind", "value", "changes", "got", "need"),
    [
        (K.CPU_QUOTA, 3000, {"room": 1000}, 3000, 1000),
        (K.CPU_QUOTA, 3000, {"room": 999}, 2999, 1000),
        (K.CPU_QUOTA, 3000, {"room": 21}, 2021, 1000),
        (K.CPU_QUOTA, 3000, {"room": 20}, None, 1000),  # could not be told from 2000
        (K.CPU_QUOTA, 8000, {"room": 59, "in_force": 100}, None, 7900),  # 59 of 7900 is less than a hundredth of what was asked
        (K.CPU_QUOTA, 6000, {"room": 59, "in_force": 100}, 159, 5900),
        (K.CPU_QUOTA, UNLIMITED, {"room": 5999}, 7999, 6000),
        (K.CPU_QUOTA, UNLIMITED, {"room": 6000}, UNLIMITED, 6000),
        (K.NET_RX, UNLIMITED, {"room": 9 * 10**8}, UNLIMITED, 9 * 10**8),
        (K.NET_RX, UNLIMITED, {"room": 9 * 10**8 - 1}, 10**9 - 1, 9 * 10**8),
        (K.NET_RX, 2 * 10**8, {"room": 0}, None, 10**8),
        (K.NET_RX, 2 * 10**8, {"room": -5}, None, 10**8),
        (K.VCPUS, 8, {"room": 4000}, 8, 4000),
        (K.VCPUS, 8, {"room": 3999}, 7, 4000),
        (K.VCPUS, 8, {"room": 1000}, 5, 4000),
        (K.VCPUS, 8, {"room": 999}, None, 4000),
        (K.VIRTIO_MEM, 2 * GIB + 100 * MIB, {"room": 100 * MIB}, 2 * GIB + 100 * MIB, 100 * MIB),
        (K.VIRTIO_MEM, 2 * GIB + 100 * MIB, {"room": 60 * MIB}, 2 * GIB + 60 * MIB, 100 * MIB),
        (K.MEMORY_HIGH, UNLIMITED, {"room": None}, UNLIMITED, 0),
        (K.DISK_BYTES, UNLIMITED, {"room": None}, UNLIMITED, 0),
    ],
)
def test_growth_fits_into_the_hosts_promise(kind: StepKind, value: int, changes: dict[str, object], got: int | None, need: int) -> None:
    verdict = check(kind, value, view(kind, **changes))
    assert verdict.value == got and (verdict.value is None or type(verdict.value) is int)
    if got == value:
        assert verdict.code is None
        return
    room = max(0, changes["room"]) if isinstance(changes["room"], int) else 0
    room = room // 1000 * 1000 if kind is K.VCPUS else room
    assert verdict.code is R.HOST_COMMIT_LIMIT and verdict.numbers == {"need": need, "room": room}
    assert str(kind) in verdict.detail and str(room if got is None else got) in verdict.detail


def test_a_cut_from_unlimited_that_promises_more_needs_room() -> None:
    seen = view(K.CPU_QUOTA, in_force=UNLIMITED, vcpus=2, reading=reading(cpu_used_millicores=2500))
    assert check(K.CPU_QUOTA, 3500, replace(seen, room=1500)).value == 3500
    verdict = check(K.CPU_QUOTA, 3500, replace(seen, room=1499))
    assert (verdict.value, verdict.code, verdict.numbers) == (None, R.HOST_COMMIT_LIMIT, {"room": 1499})
    assert "1499" in verdict.detail and "3500" in verdict.detail
    assert check(K.NET_RX, 9 * 10**8, view(K.NET_RX, in_force=UNLIMITED, room=-1)).value == 9 * 10**8
    small = replace(seen, reading=reading(cpu_used_millicores=1))
    assert check(K.CPU_QUOTA, 2000, replace(small, room=-1)).value == 2000
    assert check(K.CPU_QUOTA, 2001, replace(small, room=0)).code is R.HOST_COMMIT_LIMIT
    assert check(K.CPU_QUOTA, 2001, replace(small, room=None)).value == 2001


def test_what_is_left_of_a_clip_must_be_tellable() -> None:
    near = view(in_force=400, reading=reading(cpu_used_millicores=355))  # with its tenth 390: a quota rounds by 10
    assert check(K.CPU_QUOTA, 200, near).code is R.BELOW_WORKING_SET and check(K.CPU_QUOTA, 200, near).value is None
    assert check(K.CPU_QUOTA, 200, view(in_force=400, reading=reading(cpu_used_millicores=354))).value == 389


def test_a_ceiling_forbids_unlimited_however_little_unlimited_would_be() -> None:
    capped = msgspec.structs.replace(policy(cpu_ceiling_millicores=3000), capabilities=CAN)
    verdict = check(K.CPU_QUOTA, UNLIMITED, view(domain=capped, vcpus=1))
    assert (verdict.value, verdict.code) == (3000, R.ABOVE_CEILING)
    assert verdict.numbers == {"asked": UNLIMITED, "allowed": 3000} and "at most 3000" in verdict.detail


# Rules over time


def test_flap_budget() -> None:
    turned = (ago(20_000), ago(10_000), ago(100))
    for kind in TAKES:
        tired = view(kind, turning=True, turned_at_ns=turned[1:])
        verdict = check(kind, LESS[kind], tired)
        assert (verdict.value, verdict.code, verdict.wait_ns) == (None, R.FLAP_BUDGET, (21_600 - 10_000) * S)
        assert verdict.numbers == {"turns": 2, "allowed": 2}
        assert check(kind, LESS[kind], replace(tired, turned_at_ns=turned)).wait_ns == (21_600 - 10_000) * S
        assert check(kind, LESS[kind], replace(tired, turned_at_ns=turned[:1])).value is not None
        assert check(kind, LESS[kind], replace(tired, turning=False)).value is not None  # going on downwards is no turn
        assert check(kind, MORE[kind], tired).value is not None  # growth is never refused for it
        assert check(kind, LESS[kind], tired, restoring=True).value is not None
    never = check(K.NET_RX, LESS[K.NET_RX], view(K.NET_RX, turning=True), GuardConfig(flap_reversals=0))
    assert (never.code, never.wait_ns) == (R.FLAP_BUDGET, 0)


def test_memory_lost_within_an_hour() -> None:
    def shrunk(kind: StepKind, now: int, peak: int | None, **how: bool) -> Verdict:
        seen = view(kind, in_force=now, memory_bytes=now, memory_sum_bytes=now)
        return check(kind, 0 if kind is not K.MEMORY else GIB, replace(seen, memory_peak=None if peak is None else (ago(600), peak)), **how)

    assert shrunk(K.MEMORY, 4 * GIB, None).code is R.STEP_TOO_LARGE
    assert shrunk(K.MEMORY, 4 * GIB, 7 * GIB).value == 4 * GIB - 4 * GIB * 50 // 1000
    near = shrunk(K.MEMORY, 4 * GIB, 8 * GIB - 200 * MIB)
    assert (near.value, near.code) == (4 * GIB - 100 * MIB, R.RATE_OF_CHANGE)
    gone = shrunk(K.MEMORY, 4 * GIB, 8 * GIB)
    assert (gone.value, gone.code, gone.wait_ns) == (None, R.RATE_OF_CHANGE, 3000 * S)
    assert shrunk(K.MEMORY, 4 * GIB, 9 * GIB).code is R.RATE_OF_CHANGE
    assert shrunk(K.MEMORY, 4 * GIB, 9 * GIB, restoring=True).code is R.STEP_TOO_LARGE
    assert shrunk(K.VIRTIO_MEM, 4 * GIB, 8 * GIB).code is R.RATE_OF_CHANGE
    assert shrunk(K.DIMM, 4 * GIB, 8 * GIB).code is R.RATE_OF_CHANGE
    assert "of 8589934592 bytes" in gone.detail and gone.detail.startswith("memory: 4294967296")
    third = GuardConfig(memory_cut_per_hour_permille=333, memory_shrink_max_permille=1000)
    cut = check(K.MEMORY, GIB, view(K.MEMORY, reading=reading(memory_used_bytes=MIB)), third)
    assert (cut.value, cut.code) == (4 * GIB - 4 * GIB * 333 // 1000, R.RATE_OF_CHANGE) and type(cut.value) is int
    spent = view(K.MEMORY, memory_peak=(ago(1), 4 * GIB + 4 * GIB // 2))
    assert check(K.MEMORY, GIB, spent, third).wait_ns == 3599 * S
    # of a VM with devices the sum counts
    both = view(K.MEMORY, memory_sum_bytes=6 * GIB, memory_peak=(ago(1), 12 * GIB))
    assert check(K.MEMORY, GIB, both).code is R.RATE_OF_CHANGE
    assert check(K.MEMORY, GIB, replace(both, memory_peak=(ago(1), 11 * GIB))).code is R.STEP_TOO_LARGE
    high = view(K.MEMORY_HIGH, memory_peak=(ago(1), 99 * GIB))  # takes nothing of what is promised
    assert check(K.MEMORY_HIGH, GIB, high).code is R.STEP_TOO_LARGE


def test_blast_radius() -> None:
    for kind in TAKES:
        cut = tuple(ago(s) for s in (50, 40, 30, 20, 10))
        verdict = check(kind, LESS[kind], view(kind, cuts_at_ns=cut))
        assert (verdict.value, verdict.code, verdict.wait_ns) == (None, R.BLAST_RADIUS, 10 * S)
        assert verdict.numbers == {"cut": 5, "allowed": 5}
        assert check(kind, LESS[kind], view(kind, cuts_at_ns=(ago(59), *cut))).wait_ns == 10 * S
        assert check(kind, LESS[kind], view(kind, cuts_at_ns=cut[1:])).value is not None
        assert check(kind, LESS[kind], view(kind, cuts_at_ns=cut, cut_recently=True)).value is not None
        assert check(kind, LESS[kind], view(kind, cuts_at_ns=cut), restoring=True).value is not None
        assert check(kind, MORE[kind], view(kind, cuts_at_ns=cut)).value is not None
    alone = view(K.NET_RX, vms=1)
    assert check(K.NET_RX, LESS[K.NET_RX], alone).value is not None  # at least one
    assert check(K.NET_RX, LESS[K.NET_RX], replace(alone, cuts_at_ns=(NOW,))).code is R.BLAST_RADIUS


def test_an_open_circuit_stops_shrinks_and_moves_and_no_growth() -> None:
    for kind in TAKES:
        broken = view(kind, circuit_open_until_ns=NOW + 5 * S)
        for how in ({}, {"restoring": True}):
            verdict = check(kind, LESS[kind], broken, **how)
            assert (verdict.value, verdict.code, verdict.wait_ns) == (None, R.CIRCUIT_OPEN, 5 * S)
        assert check(kind, MORE[kind], broken, unplanned=True).value is not None
        assert check(kind, LESS[kind], replace(broken, circuit_open_until_ns=NOW)).value is not None
    assert check(K.MIGRATE, UNLIMITED, view(K.MIGRATE, circuit_open_until_ns=NOW + S)).code is R.CIRCUIT_OPEN


def test_growth_without_a_plan_is_bounded() -> None:
    for kind, base in ((K.CPU_QUOTA, 1500), (K.VCPUS, 2), (K.NET_RX, 6 * 10**7), (K.NET_TX, 6 * 10**7)):
        seen = view(kind, budget_base=base, budget_ends_ns=NOW + 7 * S)
        greedy = check(kind, 4 * base, seen, unplanned=True)
        if 2 * base > IN_FORCE[kind]:
            assert (greedy.value, greedy.code) == (2 * base, R.GROWTH_BUDGET)
            assert f"began with {base}, at most {2 * base}" in greedy.detail
        else:
            assert (greedy.value, greedy.code, greedy.wait_ns) == (None, R.GROWTH_BUDGET, 7 * S)
        assert check(kind, 4 * base, seen).code is not R.GROWTH_BUDGET  # planned, or ordered
        used_up = check(kind, 4 * base, replace(seen, in_force=2 * base), unplanned=True)
        assert (used_up.value, used_up.code, used_up.wait_ns) == (None, R.GROWTH_BUDGET, 7 * S)
        assert used_up.numbers == {"in_force": 2 * base, "allowed": 2 * base}
        assert check(kind, 4 * base, replace(seen, in_force=2 * base, budget_ends_ns=None), unplanned=True).wait_ns == 0
        assert check(kind, 2 * base + 1, replace(seen, in_force=base, budget_base=None), unplanned=True).code is not R.GROWTH_BUDGET
    memory = check(K.MEMORY, 8 * GIB, view(K.MEMORY, budget_base=2 * GIB + 50 * MIB), unplanned=True)
    assert (memory.value, memory.code) == (4 * GIB + 100 * MIB, R.GROWTH_BUDGET)
    assert check(K.MEMORY, 8 * GIB, view(K.MEMORY, budget_base=4 * GIB), unplanned=True).code is R.STEP_TOO_LARGE
    assert check(K.CPU_QUOTA, UNLIMITED, view(budget_base=1500), unplanned=True).value == 3000
    assert check(K.CPU_QUOTA, UNLIMITED, view(budget_base=4000), unplanned=True).value == UNLIMITED
    third = check(K.CPU_QUOTA, 8000, view(budget_base=2001), GuardConfig(growth_budget_permille=333), unplanned=True)
    assert third.value == 2001 + 2001 * 333 // 1000 and type(third.value) is int
    assert check(K.NET_TX_RATE, 10**9, view(K.NET_TX_RATE, budget_base=10**7), unplanned=True).value == 2 * 10**7
    assert check(K.NET_TX_RATE, 10**9, view(K.NET_TX_RATE, in_force=0, budget_base=0), unplanned=True).value == 10**6
    # a budget of nothing still lets one vCPU be added: half of one is none
    assert check(K.VCPUS, 8, view(K.VCPUS, budget_base=4), GuardConfig(growth_budget_permille=0), unplanned=True).value == 5
    assert check(K.DISK_BYTES, 200 * MIB, view(K.DISK_BYTES, budget_base=1), unplanned=True).value == 200 * MIB  # nothing is promised


def test_after_an_oom_memory_shrinks_by_nobody_for_a_day() -> None:
    for kind in MEMORY:
        killed = view(kind, oom_at_ns=ago(86_399))
        for how in ({}, {"restoring": True}):
            verdict = check(kind, LESS[kind], killed, **how)
            assert (verdict.value, verdict.code, verdict.wait_ns) == (None, R.AFTER_OOM, S)
        assert check(kind, LESS[kind], replace(killed, oom_at_ns=ago(86_400))).value is not None
        assert check(kind, MORE[kind], killed).value is not None
    assert check(K.CPU_QUOTA, LESS[K.CPU_QUOTA], view(oom_at_ns=NOW)).value is not None


def test_relief_after_an_oom_does_not_wait_for_a_back_off() -> None:
    waiting = view(K.MEMORY, growth_waits_until_ns=NOW + 100 * S)
    assert check(K.MEMORY, 5 * GIB, waiting).code is R.BACKING_OFF
    assert check(K.MEMORY, 5 * GIB, replace(waiting, oom_at_ns=ago(59))).value is not None
    assert check(K.MEMORY, 5 * GIB, replace(waiting, oom_at_ns=ago(60))).code is R.BACKING_OFF
    assert check(K.MEMORY, 5 * GIB, replace(waiting, oom_at_ns=NOW + S)).code is R.BACKING_OFF  # the clock was set back
    assert check(K.NET_RX, 2 * 10**8, view(K.NET_RX, growth_waits_until_ns=NOW + S, oom_at_ns=NOW)).code is R.BACKING_OFF
    shrink = view(K.MEMORY, shrink_waits_until_ns=NOW + S, oom_at_ns=NOW)
    assert check(K.MEMORY, 3 * GIB, shrink).code is R.BACKING_OFF
    assert check(K.MEMORY, 5 * GIB, replace(waiting, oom_at_ns=NOW, busy=True)).code is R.VM_BUSY


def test_what_an_owners_undo_still_has_to_respect() -> None:
    hurried: dict[str, object] = {"shrunk_at_ns": NOW, "grown_at_ns": NOW}
    for kind in TAKES:
        assert check(kind, LESS[kind], view(kind, **hurried)).code is R.COOLDOWN
        assert check(kind, LESS[kind], view(kind, **hurried), restoring=True).value is not None
        assert check(kind, LESS[kind], view(kind, reading=None), restoring=True).code is R.READING_STALE
        assert check(kind, LESS[kind], view(kind, reading_at_ns=ago(30.1)), restoring=True).code is R.READING_STALE
        assert check(kind, LESS[kind], view(kind, reading_at_ns=ago(30)), restoring=True).value is not None
    pressed = reading(psi_memory_some_permille=50)
    assert check(K.MEMORY, 2 * GIB, view(K.MEMORY, reading=pressed), restoring=True).code is R.PRESSURE_VETO
    assert check(K.MEMORY, GIB, view(K.MEMORY, in_force=1150 * MIB), restoring=True).code is R.BELOW_WORKING_SET
    assert check(K.CPU_QUOTA, 1, view(in_force=101, reading=reading(cpu_used_millicores=1)), restoring=True).code is R.BELOW_FLOOR
    assert check(K.CPU_QUOTA, 4000, view(room=5), restoring=True).code is R.HOST_COMMIT_LIMIT


def test_cooldowns_are_of_the_later_of_shrink_and_growth() -> None:
    both = check(K.CPU_QUOTA, 1500, view(shrunk_at_ns=ago(59), grown_at_ns=ago(100)))
    assert (both.code, both.wait_ns) == (R.COOLDOWN, 20 * S) and "growth" in both.detail
    shrink = check(K.CPU_QUOTA, 1500, view(shrunk_at_ns=ago(10), grown_at_ns=ago(100)))
    assert shrink.wait_ns == 50 * S and "shrink" in shrink.detail and "50 s" in shrink.detail
    assert check(K.CPU_QUOTA, 1500, view(shrunk_at_ns=ago(60), grown_at_ns=ago(120))).value is not None


# Moves


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"domain": None}, R.UNKNOWN_VM),
        ({"domain": msgspec.structs.replace(DOMAIN, running=False)}, R.VM_NOT_RUNNING),
        ({"domain": policy(excluded=True)}, R.VM_EXCLUDED),
        ({"domain": msgspec.structs.replace(DOMAIN, capabilities=Capabilities())}, R.NOT_CAPABLE),
        ({"moving": True}, R.VM_BUSY),
        ({"busy": True}, R.VM_BUSY),
        ({"growth_waits_until_ns": NOW + S}, R.BACKING_OFF),
        ({"vm_steps": 12}, R.RATE_LIMITED),
        ({"host_steps": 240}, R.RATE_LIMITED),
        ({"reading": None}, R.READING_STALE),
        ({"reading_at_ns": ago(31)}, R.READING_STALE),
        ({"reading": reading(cpu_throttled_permille=20)}, R.PRESSURE_VETO),
        ({"reading": reading(memory_swap_bytes_per_s=MIB)}, R.PRESSURE_VETO),
        ({"room": -1}, None),
        ({"turning": True, "turned_at_ns": (NOW, NOW), "cuts_at_ns": (NOW,) * 9, "shrunk_at_ns": NOW}, None),
    ],
)
def test_a_move(changes: dict[str, object], code: RefusalCode | None) -> None:
    verdict = check(K.MIGRATE, 10**9, view(K.MIGRATE, **changes))
    assert (verdict.value, verdict.code) == (10**9 if code is None else None, code)
    assert code is None or verdict.detail
    assert code is not R.VM_BUSY or verdict.detail in ("a step for this VM is in flight", "a step for this VM and lever is in flight")
    assert verdict.wait_ns == (S if code in (R.VM_BUSY, R.BACKING_OFF, R.RATE_LIMITED) else 0)


def test_a_move_may_use_all_of_the_network_or_something_of_it() -> None:
    assert check(K.MIGRATE, UNLIMITED, view(K.MIGRATE)).value == UNLIMITED
    assert check(K.MIGRATE, 0, view(K.MIGRATE)).code is R.INVALID_VALUE


STALE = reading(memory_reading_age_ms=30_001)
LOW = msgspec.structs.replace(policy(cpu_floor_millicores=900, cpu_ceiling_millicores=1500), capabilities=CAN)


@pytest.mark.parametrize(
    ("kind", "value", "changes", "code", "detail"),
    [
        (K.NET_RX, 1, {"domain": None}, R.UNKNOWN_VM, "no VM vm-1 on this host"),
        (K.NET_RX, 1, {"domain": msgspec.structs.replace(DOMAIN, running=False)}, R.VM_NOT_RUNNING, "web is not running"),
        (K.NET_RX, 1, {"domain": policy(excluded=True)}, R.VM_EXCLUDED, "policy opts web out"),
        (K.NET_RX, 1, {"yielded_until_ns": NOW + 1}, R.YIELDED, "somebody else changed web: 0 s to go"),
        (K.NET_RX, 0, {}, R.INVALID_VALUE, "net_rx 0: allowed -1 (unlimited) or more than 0"),
        (K.VCPUS, 9, {}, R.ABOVE_DOMAIN_MAXIMUM, "vcpus 9: the domain allows 8"),
        (K.NET_RX, 1, {"in_force": None}, R.READING_STALE, "net_rx in force is not known: neither growth nor shrink can be judged"),
        (K.NET_RX, 10**8, {}, R.NOTHING_TO_DO, "net_rx is 100000000 already"),
        (K.NET_RX, 1, {"busy": True}, R.VM_BUSY, "a step for this VM and lever is in flight"),
        (K.MIGRATE, 1, {"moving": True}, R.VM_BUSY, "a step for this VM is in flight"),
        (K.NET_RX, 1, {"shrink_waits_until_ns": NOW + 1}, R.BACKING_OFF, "earlier steps failed: next try in 0 s"),
        (K.NET_RX, 1, {"vm_steps": 12}, R.RATE_LIMITED, "12 steps for this VM in the last minute"),
        (K.NET_RX, 1, {"host_steps": 240}, R.RATE_LIMITED, "240 steps on this host in the last minute"),
        (K.CPU_QUOTA, 2500, {"domain": LOW}, R.ABOVE_CEILING, "cpu_quota in force is 2000, at most 1500"),
        (K.CPU_QUOTA, 2500, {"room": 5}, R.HOST_COMMIT_LIMIT, "cpu_quota: 500 more asked, the host has room for 5"),
        (K.CPU_QUOTA, 2500, {"room": 300}, R.HOST_COMMIT_LIMIT, "cpu_quota 2500: the host has room for 2300"),
        (K.MEMORY, GIB, {"memory_falling": True}, R.VM_BUSY, "memory of this VM is being taken by another lever"),
        (K.MEMORY, GIB, {"reading": None}, R.READING_STALE, "no fresh sample of this VM"),
        (K.MEMORY, GIB, {"reading": reading(memory_used_bytes=None)}, R.READING_STALE, "no reading of use for memory"),
        (K.MEMORY, GIB, {"reading": STALE}, R.READING_STALE, "no fresh reading from the guest"),
        (K.MEMORY, GIB, {"reading": reading(guest_oom_kills=1)}, R.PRESSURE_VETO, "memory: the VM ran into its limit in the last period"),
        (K.MEMORY, GIB, {"oom_at_ns": ago(86_400) + 1}, R.AFTER_OOM, "the guest killed for want of memory, 0 s to go"),
        (K.NET_RX, 1, {"circuit_open_until_ns": NOW + 1}, R.CIRCUIT_OPEN, "too many steps failed on this host: 0 s to go"),
        (K.NET_RX, 1, {"shrunk_at_ns": ago(60) + 1}, R.COOLDOWN, "net_rx: last shrink too recent, 0 s to go"),
        (K.NET_RX, 1, {"grown_at_ns": ago(120) + 1}, R.COOLDOWN, "net_rx: last growth too recent, 0 s to go"),
        (K.NET_RX, 1, {"turning": True, "turned_at_ns": (NOW, NOW)}, R.FLAP_BUDGET, "net_rx turned 2 times of late, at most 2"),
        (K.NET_RX, 1, {"cuts_at_ns": (NOW,) * 5}, R.BLAST_RADIUS, "5 of 10 VMs were cut within the minute, at most 5"),
        (K.CPU_QUOTA, 1, {"in_force": 1000, "domain": LOW}, R.BELOW_FLOOR, "cpu_quota 1: at least 900"),
        (K.CPU_QUOTA, 1, {"in_force": 400}, R.BELOW_WORKING_SET, "cpu_quota: measured use and margin need 330"),
        (K.CPU_QUOTA, 1, {}, R.STEP_TOO_LARGE, "cpu_quota 1: one step goes to 1000 at most"),
        (K.NET_RX, 9 * 10**8, {"in_force": UNLIMITED, "room": None}, None, ""),
    ],
)
def test_every_refusal_says_what_it_is_about(
    kind: StepKind, value: int, changes: dict[str, object], code: RefusalCode | None, detail: str
) -> None:
    verdict = check(kind, value, view(kind, **changes))
    assert (verdict.code, verdict.detail) == (code, detail)
    assert verdict.value is not None or verdict.numbers is not None


def test_the_guests_reading_and_the_samples_age_count_together() -> None:
    def aged(reading_s: int, guest_ms: int) -> RefusalCode | None:
        return check(K.MEMORY, 3 * GIB, view(K.MEMORY, reading=reading(memory_reading_age_ms=guest_ms), reading_at_ns=ago(reading_s))).code

    assert aged(0, 30_000) is R.STEP_TOO_LARGE and aged(10, 20_000) is R.STEP_TOO_LARGE
    assert aged(0, 30_001) is R.READING_STALE and aged(10, 20_001) is R.READING_STALE


def test_rates_are_told_with_their_figures() -> None:
    busy = check(K.NET_RX, 1, view(K.NET_RX, vm_steps=13))
    assert (busy.wait_ns, busy.numbers) == (S, {"vm": 13})
    assert check(K.NET_RX, 1, view(K.NET_RX, host_steps=240)).wait_ns == S
    assert check(K.NET_RX, 1, view(K.NET_RX, busy=True)).wait_ns == S
    assert check(K.VCPUS, 9, view(K.VCPUS)).numbers == {"asked": 9, "allowed": 8}
    assert check(K.NET_RX, 10**8, view(K.NET_RX)).numbers == {"in_force": 10**8}
