"""The ledger: what it counts, remembers and shows the guard. What it charges: test_ledger_promise."""

from __future__ import annotations

import msgspec
from ledger_scene import ALLOCATION, CONFIG, T0, K, S, domain, ledger

from agent.acting.budgets import HOUR_NS, MINUTE_NS
from agent.acting.guard import Guard
from agent.acting.ledger import HEARD_NS, STRIDE_NS
from agent.acting.levers import FIELDS, Promise
from shared.config import GuardConfig
from shared.model import Allocation, Policy, VmSample
from shared.plan import Step, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, MIB, UNLIMITED

# What the guard is shown


def test_a_vm_that_nobody_knows() -> None:
    book = ledger()
    view = book.view("ghost", K.MEMORY, T0)
    assert view.domain is None and view.in_force is None and view.vcpus == 0 and view.reading is None and view.reading_at_ns == 0
    assert not book.note_allocation("ghost", ALLOCATION, T0)
    book.ended("ghost", K.MEMORY, growth=True, failed=True, now_ns=T0)
    book.restore_change("ghost", K.MEMORY, 1, 2, T0)
    book.restore_oom("ghost", T0)
    book.yield_to("ghost", T0)
    book.take_back("ghost")
    book.began_with("ghost", K.MEMORY, 5)
    assert "ghost" not in book.vms and [vm_id for vm_id, _ in book] == ["a", "b"]


def test_the_view_of_one_lever() -> None:
    book = ledger()
    reading = VmSample(cpu_used_millicores=5, memory_used_bytes=GIB)
    assert [vm_id for vm_id, *_ in book.note_samples({"b": reading, "a": reading, "x": reading}, T0 + 5 * S)] == ["a", "b"]
    view = book.view("a", K.MEMORY, T0 + 6 * S)
    assert view.domain == domain("a") and view.in_force == 2 * GIB and view.vcpus == 2
    assert view.reading == reading and view.reading_at_ns == T0 + 5 * S
    assert view.memory_bytes == 2 * GIB and view.memory_sum_bytes == 3 * GIB + GIB // 2 and view.memory_peak is None
    assert view.vms == 2 and not view.busy and not view.moving and not view.turning and not view.cut_recently
    assert (view.budget_base, view.budget_ends_ns, view.oom_at_ns) == (2 * GIB, None, None)
    assert (view.yielded_until_ns, view.circuit_open_until_ns, view.growth_waits_until_ns, view.shrink_waits_until_ns) == (0, 0, 0, 0)
    assert (view.vm_steps, view.host_steps, view.cuts_at_ns, view.turned_at_ns) == (0, 0, (), ())
    assert book.view("a", K.DISK_BYTES, T0).budget_base is None  # nothing of it is promised
    assert book.view("a", K.DISK_BYTES, T0).in_force is None
    book.begun("a", K.MEMORY, 2 * GIB, 3 * GIB, T0 + 7 * S, unplanned=True)
    view = book.view("a", K.MEMORY, T0 + 8 * S)
    assert view.busy and view.moving and view.grown_at_ns == T0 + 7 * S and view.shrunk_at_ns is None
    assert view.memory_sum_bytes == 4 * GIB + GIB // 2 and view.turning
    assert view.budget_ends_ns == T0 + 7 * S + HOUR_NS
    other = book.view("a", K.CPU_QUOTA, T0 + 8 * S)
    assert other.moving and not other.busy and not other.turning and other.grown_at_ns is None and other.budget_ends_ns is None
    assert book.view("a", K.MIGRATE, T0).moving and not book.view("b", K.MIGRATE, T0).moving


def test_memory_that_another_lever_is_taking() -> None:
    book = ledger()
    book.hold("a", K.DIMM, GIB, GIB // 2)
    assert book.view("a", K.MEMORY, T0).memory_falling and book.view("a", K.VIRTIO_MEM, T0).memory_falling
    assert not book.view("a", K.DIMM, T0).memory_falling and not book.view("b", K.MEMORY, T0).memory_falling
    book.hold("a", K.DIMM, GIB // 2, GIB)
    assert not book.view("a", K.MEMORY, T0).memory_falling
    book.hold("a", K.CPU_QUOTA, 1000, 500)
    assert not book.view("a", K.MEMORY, T0).memory_falling


def test_steps_of_the_last_minute_by_vm_and_host() -> None:
    book = ledger()
    for n in range(3):
        book.begun("a", K.CPU_QUOTA, 1000, 1100, T0 + n * S)
    book.begun("b", K.NET_RX, 10**8, 2 * 10**8, T0 + 3 * S)
    late = book.view("a", K.MEMORY, T0 + 3 * S)
    assert (late.vm_steps, late.host_steps) == (3, 4)
    later = book.view("a", K.MEMORY, T0 + MINUTE_NS)
    assert (later.vm_steps, later.host_steps) == (2, 3)
    assert book.view("a", K.MEMORY, T0 + MINUTE_NS + 3 * S).host_steps == 0


def test_a_stride_of_memory_is_no_new_step() -> None:
    def steps(*begun: tuple[StepKind, int, int, int]) -> tuple[int, int]:
        book = ledger()
        for kind, before, value, at_ns in begun:
            book.begun("a", kind, before, value, T0 + at_ns)
        view = book.view("a", K.MEMORY, T0 + 30 * S)
        return view.vm_steps, view.host_steps

    near = STRIDE_NS - 1
    assert steps((K.MEMORY, 1, 2, 0), (K.MEMORY, 2, 3, near), (K.MEMORY, 3, 4, 2 * near)) == (1, 1)
    assert steps((K.MEMORY, 1, 2, 0), (K.MEMORY, 2, 3, STRIDE_NS)) == (2, 2)
    assert steps((K.MEMORY, 3, 2, 0), (K.MEMORY, 2, 1, near)) == (1, 1)
    assert steps((K.MEMORY, 3, 2, 5), (K.MEMORY, 2, 1, 5)) == (1, 1)
    assert steps((K.MEMORY, 1, 2, 0), (K.MEMORY, 2, 1, near)) == (2, 2)  # another direction
    assert steps((K.NET_RX, 1, 2, 0), (K.NET_RX, 2, 3, near)) == (2, 2)
    assert steps((K.MEMORY, 1, 2, 5), (K.MEMORY, 2, 3, 4)) == (2, 2)  # the clock was set back


def test_what_a_vm_began_with() -> None:
    book = ledger(read=False)
    book.began_with("a", K.MEMORY, 3 * GIB)
    book.note_allocation("a", ALLOCATION, T0)
    book.began_with("a", K.NET_RX, 10**9)  # after the first reading: too late
    assert book.view("a", K.MEMORY, T0).budget_base == 3 * GIB
    assert book.view("a", K.NET_RX, T0).budget_base == 10**8
    # from a sample, too; unlimited counts as what it is
    other = ledger(read=False)
    other.note_samples({"a": VmSample(cpu_quota_millicores=UNLIMITED, vcpus=3, net_rx_ceil_bits_per_s=UNLIMITED)}, T0)
    assert other.view("a", K.NET_RX, T0).budget_base == 10**9
    assert other.view("a", K.CPU_QUOTA, T0).budget_base == 3000
    assert other.view("a", K.VCPUS, T0).budget_base == 3
    other.note_samples({"a": VmSample(vcpus=1, net_rx_ceil_bits_per_s=5)}, T0 + S)
    assert other.view("a", K.VCPUS, T0 + S).budget_base == 3 and other.view("a", K.NET_RX, T0 + S).budget_base == 10**9
    other.note_allocation("a", Allocation(vcpus=4), T0 + 2 * S)
    assert other.view("a", K.VCPUS, T0 + 2 * S).budget_base == 4  # now more than it began with


def test_a_window_of_growth_without_a_plan() -> None:
    book = ledger()
    book.begun("a", K.CPU_QUOTA, 1000, 1500, T0)  # planned: opens none
    assert book.view("a", K.CPU_QUOTA, T0).budget_ends_ns is None
    book.begun("a", K.CPU_QUOTA, 1500, 1800, T0, unplanned=True)
    book.note_allocation("a", msgspec.structs.replace(ALLOCATION, cpu_quota_millicores=3000), T0 + 1)
    view = book.view("a", K.CPU_QUOTA, T0 + 1)
    assert (view.budget_base, view.budget_ends_ns) == (1500, T0 + HOUR_NS)
    assert book.view("b", K.CPU_QUOTA, T0 + 1).budget_ends_ns is None
    assert book.view("a", K.CPU_QUOTA, T0 + HOUR_NS).budget_base == 3000
    book.begun("a", K.MEMORY, 2 * GIB, GIB, T0, unplanned=True)  # a shrink is no growth
    assert book.view("a", K.MEMORY, T0).budget_ends_ns is None


def test_turns_by_lever() -> None:
    book = ledger()
    for n in range(3):
        book.begun("a", K.CPU_QUOTA, 1000, 1500, T0 + 2 * n * S)
        assert book.view("a", K.CPU_QUOTA, T0 + 2 * n * S).turning
        book.begun("a", K.CPU_QUOTA, 1500, 1000, T0 + (2 * n + 1) * S)
    view = book.view("a", K.CPU_QUOTA, T0 + 6 * S)
    assert view.turned_at_ns == (T0 + S, T0 + 3 * S, T0 + 5 * S) and not view.turning
    assert book.view("a", K.MEMORY, T0 + 6 * S).turned_at_ns == () and book.view("b", K.CPU_QUOTA, T0 + 6 * S).turned_at_ns == ()
    window = CONFIG.flap_window_s * S
    assert book.view("a", K.CPU_QUOTA, T0 + S + window).turned_at_ns == (T0 + 3 * S, T0 + 5 * S)
    book.gave_back("a", K.CPU_QUOTA, T0 + 7 * S)
    after = book.view("a", K.CPU_QUOTA, T0 + 8 * S)
    assert after.turning and after.grown_at_ns == T0 + 7 * S


def test_cuts_by_vm_and_the_hours_memory() -> None:
    book = ledger()
    book.begun("a", K.NET_RX, 10**8, 10**7, T0)
    assert book.view("a", K.MEMORY, T0 + S).cut_recently and book.view("b", K.MEMORY, T0 + S).cuts_at_ns == (T0,)
    assert book.view("a", K.MEMORY, T0 + S).memory_peak is None  # the network is no memory
    assert book.view("b", K.MEMORY, T0 + MINUTE_NS).cuts_at_ns == ()
    book.begun("b", K.MEMORY, 2 * GIB, GIB, T0 + 2 * S)
    assert book.view("b", K.MEMORY, T0 + 3 * S).memory_peak == (T0 + 2 * S, 3 * GIB + GIB // 2)
    book.begun("b", K.NET_TX, 10**8, 10**9, T0 + MINUTE_NS)
    assert book.view("a", K.MEMORY, T0 + MINUTE_NS).cuts_at_ns == (T0 + 2 * S,)
    assert book.view("a", K.MEMORY, T0 + MINUTE_NS + 2 * S).cuts_at_ns == ()  # a growth is no cut
    assert book.view("b", K.MEMORY, T0 + 2 * S + HOUR_NS).memory_peak is None
    now = T0 + 2 * HOUR_NS
    book.begun("a", K.CPU_SHARES, 1024, 2, now)
    book.begun("a", K.MIGRATE, 5, 1, now)
    assert not book.view("a", K.MEMORY, now + S).cut_recently  # weights and moves take nothing
    assert book.view("a", K.CPU_SHARES, now + S).shrunk_at_ns is None


def test_failures_back_off_by_lever_and_direction_doubling() -> None:
    book = ledger()
    waits = []
    for n in range(8):
        book.begun("a", K.MEMORY, 2 * GIB, 3 * GIB, T0 + n)
        book.ended("a", K.MEMORY, growth=True, failed=True, now_ns=T0)
        waits.append((book.view("a", K.MEMORY, T0).growth_waits_until_ns - T0) // S)
    assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600]
    view = book.view("a", K.MEMORY, T0)
    assert view.shrink_waits_until_ns == 0 and not view.busy
    assert book.view("a", K.CPU_QUOTA, T0).growth_waits_until_ns == book.view("b", K.MEMORY, T0).growth_waits_until_ns == 0
    book.ended("a", K.MEMORY, growth=False, failed=False, now_ns=T0)
    assert book.view("a", K.MEMORY, T0).growth_waits_until_ns == T0 + 3600 * S
    book.ended("a", K.MEMORY, growth=True, failed=False, now_ns=T0)
    assert book.view("a", K.MEMORY, T0).growth_waits_until_ns == 0
    book.ended("a", K.MEMORY, growth=False, failed=True, now_ns=T0)
    assert book.view("a", K.MEMORY, T0).shrink_waits_until_ns == T0 + 30 * S


def test_failures_of_the_host_open_the_circuit() -> None:
    book = ledger()
    for n in range(CONFIG.circuit_failures):
        assert book.view("b", K.MEMORY, T0).circuit_open_until_ns == 0
        book.ended("a", K.MEMORY, growth=bool(n % 2), failed=True, now_ns=T0 + n)
        book.ended("a", K.CPU_QUOTA, growth=True, failed=False, now_ns=T0 + n)
    opened = T0 + CONFIG.circuit_failures - 1 + CONFIG.circuit_open_s * S
    assert book.view("b", K.MEMORY, T0).circuit_open_until_ns == opened
    slow = ledger()
    for n in range(CONFIG.circuit_failures):
        slow.restore_failure(T0 + n * (CONFIG.circuit_window_s * S // (CONFIG.circuit_failures - 1) + 1))
    assert slow.circuit.open_until_ns == 0  # the first left the window as the last came
    slow.restore_failure(T0 + CONFIG.circuit_window_s * S + 20)
    assert slow.circuit.open_until_ns == T0 + (CONFIG.circuit_window_s + CONFIG.circuit_open_s) * S + 20


# Kills, yielding, restarts


def test_a_kill_is_remembered_and_the_newest_counts() -> None:
    book = ledger()
    book.note_samples({"a": VmSample(guest_oom_kills=0), "b": VmSample()}, T0)
    assert book.view("a", K.MEMORY, T0).oom_at_ns is None
    book.note_samples({"a": VmSample(guest_oom_kills=2)}, T0 + S)
    book.note_samples({"a": VmSample(guest_oom_kills=0)}, T0 + 2 * S)
    assert book.view("a", K.MEMORY, T0).oom_at_ns == T0 + S and book.view("b", K.MEMORY, T0).oom_at_ns is None
    book.restore_oom("a", T0)
    assert book.view("a", K.MEMORY, T0).oom_at_ns == T0 + S
    book.restore_oom("b", T0 - 5)
    assert book.view("b", K.MEMORY, T0).oom_at_ns == T0 - 5


def test_yielding_a_vm_or_a_lever() -> None:
    book = ledger()
    book.yield_to("a", T0 + 10)
    book.yield_to("a", T0 + 5)
    book.yield_to("a", T0 + 20, K.MEMORY)
    assert book.view("a", K.MEMORY, T0).yielded_until_ns == T0 + 20
    assert book.view("a", K.CPU_QUOTA, T0).yielded_until_ns == T0 + 10
    assert book.view("b", K.CPU_QUOTA, T0).yielded_until_ns == 0
    book.take_back("a")
    assert book.view("a", K.MEMORY, T0).yielded_until_ns == book.view("a", K.CPU_QUOTA, T0).yielded_until_ns == 0


def test_a_restart_forgets_nothing_that_the_guard_lives_on() -> None:
    changes = [
        (K.MEMORY, 2 * GIB, 3 * GIB, T0, True),
        (K.MEMORY, 3 * GIB, 2 * GIB, T0 + S, False),
        (K.CPU_QUOTA, 1000, 1500, T0 + 2 * S, True),
        (K.NET_RX, 10**8, 10**7, T0 + 3 * S, False),
    ]
    lived, restarted = ledger(), ledger()
    for kind, before, value, at_ns, unplanned in changes:
        lived.begun("a", kind, before, value, at_ns, unplanned=unplanned)
        lived.ended("a", kind, growth=value > before, failed=False, now_ns=at_ns)
        restarted.restore_change("a", kind, before, value, at_ns, unplanned=unplanned)
    for kind in FIELDS:
        for vm_id in ("a", "b"):
            one, two = (book.view(vm_id, kind, T0 + 2 * MINUTE_NS) for book in (lived, restarted))
            assert one == two
    assert restarted.view("a", K.MEMORY, T0 + 4 * S).vm_steps == 0 and not restarted.view("a", K.MEMORY, T0).busy
    assert restarted.vms["a"].ours == {K.MEMORY, K.CPU_QUOTA, K.NET_RX}
    assert restarted.vms["a"].situation.ours is restarted.vms["a"].ours


# Inventory and readings


def test_definitions_come_change_and_go() -> None:
    book = ledger()
    book.vms["a"].in_force[K.MEMORY] = 5
    tale = book.vms["a"].story
    assert book.define((domain("a", policy=Policy(memory_floor_bytes=GIB)), domain("b"))) == []
    assert book.vms["a"].in_force[K.MEMORY] == 5 and book.vms["a"].situation.bounds[K.MEMORY][0] == GIB
    room = book.room(Promise.MEMORY)
    assert book.define((domain("a", running=False), domain("c"))) == ["a", "b"]
    assert list(book.vms) == ["a", "c"] and book.vms["a"].in_force == {} and book.vms["a"].story is tale
    assert book.room(Promise.MEMORY) != room
    assert book.view("c", K.MEMORY, T0).vms == 1
    assert book.define((domain("a"), domain("c"))) == [] and book.view("c", K.MEMORY, T0).vms == 2
    assert book.vms["c"].situation.vcpus_max == 4 and book.vms["c"].situation.net_max_bits_per_s == 10**9


def test_other_settings_count_at_once() -> None:
    book = ledger()
    assert book.vms["a"].situation.bounds[K.MEMORY] == (128 * MIB, 8 * GIB)
    book.configure(GuardConfig(memory_floor_bytes=GIB, circuit_failures=1))
    assert book.vms["a"].situation.bounds[K.MEMORY] == (GIB, 8 * GIB) and book.vms["a"].in_force[K.MEMORY] == 2 * GIB
    book.restore_failure(T0)
    assert book.circuit.open_until_ns > T0


def test_what_was_read_back_is_newer_than_the_sample_before_it() -> None:
    book = ledger()
    book.note_allocation("a", Allocation(cpu_quota_millicores=1500), T0 + 10 * S)
    book.note_samples({"a": VmSample(cpu_quota_millicores=1000, cpu_used_millicores=7)}, T0 + 10 * S)
    view = book.view("a", K.CPU_QUOTA, T0 + 11 * S)
    assert view.in_force == 1500 and view.reading is not None and view.reading.cpu_used_millicores == 7
    book.note_samples({"a": VmSample(cpu_quota_millicores=1000)}, T0 + 10 * S + HEARD_NS)
    assert book.view("a", K.CPU_QUOTA, T0 + 12 * S).in_force == 1500, "libvirt may not have heard yet"
    book.note_samples({"a": VmSample(cpu_quota_millicores=1000)}, T0 + 10 * S + HEARD_NS + 1)
    assert book.view("a", K.CPU_QUOTA, T0 + 13 * S).in_force == 1000
    assert book.view("a", K.MEMORY, T0 + 13 * S).in_force == 2 * GIB  # None leaves the last known value


def test_the_guard_with_the_ledger_under_it() -> None:
    """The whole path for three rules that need both: flap budget, blast radius, growth budget."""
    book = ledger(*(domain(name) for name in "abcd"))
    guard = Guard(CONFIG)
    calm = VmSample(cpu_used_millicores=10, cpu_throttled_permille=0)

    def ask(vm_id: str, value: int, now_ns: int, unplanned: bool = False) -> RefusalCode | None:
        book.note_samples({vm_id: calm}, now_ns)
        step = Step(id="s", vm_id=vm_id, kind=K.CPU_QUOTA, value=value, deadline_ns=now_ns)
        view = book.view(vm_id, K.CPU_QUOTA, now_ns)
        verdict = guard.check(step, view, now_ns, unplanned=unplanned)
        if verdict.value is not None and view.in_force is not None:
            book.begun(vm_id, K.CPU_QUOTA, view.in_force, verdict.value, now_ns, unplanned=unplanned)
            book.note_allocation(vm_id, Allocation(cpu_quota_millicores=verdict.value), now_ns)
            book.ended(vm_id, K.CPU_QUOTA, growth=value > view.in_force, failed=False, now_ns=now_ns)
        return verdict.code

    assert [ask(vm_id, 900, T0) for vm_id in "abcd"] == [None, None, RefusalCode.BLAST_RADIUS, RefusalCode.BLAST_RADIUS]
    now = T0
    turned = []
    for _ in range(4):
        now += 200 * S
        assert ask("a", 1200, now) is None
        now += 200 * S
        turned.append(ask("a", 900, now))
        if turned[-1] is not None:
            book.note_allocation("a", Allocation(cpu_quota_millicores=900), now)
    assert turned == [None, None, RefusalCode.FLAP_BUDGET, RefusalCode.FLAP_BUDGET]
    assert ask("c", 4000, now, unplanned=True) is RefusalCode.GROWTH_BUDGET and book.vms["c"].in_force[K.CPU_QUOTA] == 2000
    assert ask("c", 4000, now + S, unplanned=True) is RefusalCode.GROWTH_BUDGET and book.vms["c"].in_force[K.CPU_QUOTA] == 2000
    assert ask("c", 4000, now + 2 * S) is None


def test_a_success_ends_the_row_of_failures() -> None:
    book = ledger()
    for failed in (True, True, False, True):
        book.ended("a", K.MEMORY, growth=True, failed=failed, now_ns=T0)
    assert book.view("a", K.MEMORY, T0).growth_waits_until_ns == T0 + 30 * S


def test_a_planned_growth_before_a_restart_opens_no_window() -> None:
    book = ledger()
    book.restore_change("a", K.CPU_QUOTA, 1000, 1500, T0)
    assert book.view("a", K.CPU_QUOTA, T0 + S).budget_ends_ns is None


def test_the_later_end_of_two_yields_of_one_lever_wins() -> None:
    book = ledger()
    book.yield_to("a", T0 + 20, K.MEMORY)
    book.yield_to("a", T0 + 5, K.MEMORY)
    assert book.view("a", K.MEMORY, T0).yielded_until_ns == T0 + 20


def test_a_value_that_comes_back_after_a_read_back_is_taken_in_again() -> None:
    """The same sample as before the read-back says something else now."""
    book = ledger()
    same = VmSample(cpu_quota_millicores=1000)
    book.note_samples({"a": same}, T0 + S)
    book.note_allocation("a", Allocation(cpu_quota_millicores=1500), T0 + 2 * S)
    book.note_samples({"a": same}, T0 + 2 * S)  # no newer than what was read back
    assert book.view("a", K.CPU_QUOTA, T0 + 3 * S).in_force == 1500
    book.note_samples({"a": same}, T0 + 7 * S)
    assert book.view("a", K.CPU_QUOTA, T0 + 7 * S).in_force == 1000


def test_short_of_memory_is_remembered_for_two_samples() -> None:
    book = ledger()
    record = book.vms["a"]
    assert not record.lately_short(T0)
    book.note_samples({"a": VmSample(psi_memory_some_permille=60)}, T0 + S)
    book.note_samples({"a": VmSample(psi_memory_some_permille=0)}, T0 + 6 * S)
    assert record.lately_short(T0 + S) and record.lately_short(T0 + 11 * S) and not record.lately_short(T0 + 11 * S + 1)


def test_what_was_read_back_is_newer_than_a_sample_whose_oldest_reading_came_before() -> None:
    """libvirt is asked for balloons ahead of the round: a step that was read back meanwhile is not undone by it."""
    book = ledger()
    book.note_allocation("a", msgspec.structs.replace(ALLOCATION, memory_bytes=3 * GIB), T0 + 10 * S)
    stale = VmSample(memory_allocated_bytes=2 * GIB, cpu_quota_millicores=500)
    book.note_samples({"a": stale}, T0 + 11 * S, seen_ns=T0 + 10 * S)
    assert book.vms["a"].in_force[K.MEMORY] == 3 * GIB
    assert (book.vms["a"].reading, book.vms["a"].reading_at_ns) == (stale, T0 + 11 * S), "what it says of use counts all the same"
    book.note_samples({"a": stale}, T0 + 16 * S, seen_ns=T0 + 15 * S)
    assert (book.vms["a"].in_force[K.MEMORY], book.vms["a"].in_force[K.CPU_QUOTA]) == (2 * GIB, 500)
