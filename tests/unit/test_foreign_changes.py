"""Somebody else's changes: recognised within one sample, told once, yielded to; ours, however late, are not taken for theirs."""

from __future__ import annotations

import pytest
from obedient_host import T0, Host, domain, one, outcomes, submitted

from agent import events as ev
from agent.acting.ownership import LATE_NS, SETTLE_NS, Ownership
from agent.acting.reconcile import local_prefix, reconcile
from agent.core import AgentCore
from shared.config import GuardConfig
from shared.model import Allocation, Mode
from shared.plan import OutcomeState, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, MIB, NS_PER_S, UNLIMITED

Q, M, V, N = StepKind.CPU_QUOTA, StepKind.MEMORY, StepKind.VCPUS, StepKind.NET_TX
HOUR = 3600 * NS_PER_S


def foreign(out: list[ev.Instruction]) -> list[tuple[object, object, object]]:
    notes = [i.fields for i in out if isinstance(i, ev.Note) and i.event == "foreign_change"]
    return [(fields["kind"], fields["believed"], fields["found"]) for fields in notes]


def journal(host: Host) -> list[ev.JournalEntry]:
    return [i.entry for i in host.log if isinstance(i, ev.WriteJournal)]


def test_a_change_by_somebody_else_is_seen_in_the_next_sample_told_and_yielded_to() -> None:
    host = Host(mode=Mode.REACTIVE)
    host.calm()
    host.values["vm-1"][Q] = 1700
    out = host.sample()
    assert foreign(out) == [(Q, 1000, 1700)]
    assert host.core.status(host.now).vms_yielded == 1
    story = host.core.why("vm-1")
    assert story is not None and (story[-1].verdict, story[-1].code, story[-1].from_value, story[-1].to_value) == (
        "foreign",
        "yielded",
        1000,
        1700,
    )
    assert foreign(host.sample()) == []  # told once
    assert submitted(host.sample(cpu_used_millicores=1700, cpu_throttled_permille=500)) == []
    refused = one(host.plan(host.step(N, 200_000_000, reason="operator")))
    assert (refused.state, refused.code) == (OutcomeState.REFUSED, RefusalCode.YIELDED)


def test_every_later_change_renews_the_hour_and_then_the_vm_is_ours_again() -> None:
    host = Host(mode=Mode.REACTIVE)
    host.calm()
    host.values["vm-1"][Q] = 1500
    host.sample()
    host.values["vm-1"][Q] = 1400
    host.sample(advance_s=3000)
    assert submitted(host.sample(advance_s=3000, cpu_used_millicores=1400, cpu_throttled_permille=500)) == []
    assert host.core.status(host.now).vms_yielded == 1
    assert submitted(host.sample(advance_s=700, cpu_used_millicores=1400, cpu_throttled_permille=500)) != []
    assert host.core.status(host.now).vms_yielded == 0


def test_first_sight_rounding_and_the_guests_own_matters_are_no_change() -> None:
    host = Host()
    host.calm()
    host.sample(advance_s=10)
    host.values["vm-1"][M] += 12 * MIB  # the guest moves a few pages
    host.values["vm-1"][StepKind.VCPUS_ONLINE] = 1
    assert foreign(host.sample()) == []
    host.values["vm-1"][M] -= 300 * MIB
    assert foreign(host.sample()) == [(M, 2 * GIB, 2 * GIB - 288 * MIB)]


def test_our_own_steps_in_flight_and_done_are_not_foreign() -> None:
    host = Host()
    host.calm()
    host.plan(host.step(Q, 2000), host.step(V, 4, "s2"))
    assert foreign(host.sample()) == []
    host.stuck = {M}
    host.plan(host.step(M, 3 * GIB, "s3"), sequence=2)
    for value in (2.02, 2.05, 2.1):
        host.values["vm-1"][M] = int(value * GIB)
        assert foreign(host.sample(advance_s=2)) == []


def test_somebody_elses_value_on_a_lever_in_flight_ends_the_flight_without_an_undo() -> None:
    host = Host()
    host.calm()
    host.stuck = {Q}
    host.plan(host.step(Q, 1500))
    host.values["vm-1"][Q] = 700
    out = host.sample()
    assert foreign(out) == [(Q, 1000, 700)]
    assert (one(out).state, one(out).code, one(out).value) == (OutcomeState.FAILED, RefusalCode.YIELDED, 700)
    assert host.core.in_flight == 0 and submitted(host.tick(60)) == []


def test_putting_our_change_back_by_hand_is_foreign() -> None:
    host = Host()
    host.calm()
    host.plan(host.step(Q, 2000))
    host.sample(advance_s=15)
    host.values["vm-1"][Q] = 1000
    assert foreign(host.sample()) == [(Q, 2000, 1000)]


def test_a_step_never_seen_in_force_may_come_about_late() -> None:
    host = Host()
    host.calm()
    host.deaf = True
    host.plan(host.step(Q, 2000))
    out = host.tick(60)
    assert one(out).state is OutcomeState.FAILED
    host.values["vm-1"][Q] = 2000
    assert foreign(host.sample(advance_s=100)) == []
    host.values["vm-1"][Q] = 1500
    assert foreign(host.sample()) == [(Q, 2000, 1500)]


def test_a_vm_that_restarted_is_seen_for_the_first_time() -> None:
    host = Host()
    host.runs = {"vm-1": "run-1"}
    host.calm()
    host.plan(host.step(Q, 2000))
    assert host.core.vms()[0].defaults == {"cpu_quota": 1000}
    host.runs, host.values["vm-1"][Q] = {"vm-1": "run-2"}, 1200
    assert foreign(host.sample()) == []
    assert host.core.vms()[0].defaults == {} and host.core.undoable(step_id="s1")[0].code is RefusalCode.PRECONDITION_CHANGED


def test_a_guest_that_reboots_inside_its_qemu_moves_its_balloon_itself_and_keeps_the_owners_defaults() -> None:
    host = Host()
    host.runs = {"vm-1": "qemu-1"}
    host.calm()
    host.plan(host.step(Q, 2000))
    host.sample(advance_s=15)
    host.runs, host.values["vm-1"][M] = {"vm-1": "qemu-1#1"}, 8 * GIB
    out = host.sample()
    assert foreign(out) == [] and [i.event for i in out if isinstance(i, ev.Note)] == ["guest_rebooted"]
    assert [entry.run for entry in journal(host) if isinstance(entry, ev.Owned)][-1] == "qemu-1#1"  # for the next process
    for size in (7.5, 3, 2, 2):  # its driver fills the balloon again
        host.values["vm-1"][M] = int(size * GIB)
        assert foreign(host.sample()) == []
    assert host.core.status(host.now).vms_yielded == 0 and host.core.vms()[0].defaults == {"cpu_quota": 1000}
    assert submitted(host.sample(cpu_used_millicores=2000, cpu_throttled_permille=500)) != []
    host.values["vm-1"][M] = GIB  # below what was set: not the guest's
    host.sample()
    assert foreign(host.log) == [(M, 2 * GIB, GIB)]


def test_limits_that_somebody_changes_while_a_guest_reboots_are_theirs() -> None:
    host = Host()
    host.runs = {"vm-1": "qemu-1"}
    host.calm()
    host.runs, host.values["vm-1"][Q] = {"vm-1": "qemu-1#1"}, 700
    assert foreign(host.sample()) == [(Q, 1000, 700)]


def test_a_reboot_that_an_earlier_process_missed_or_counted_makes_no_stranger() -> None:
    host = Host()
    host.runs = {"vm-1": "qemu-1#3"}
    host.calm()
    again = Host(recovered=reconcile(journal(host), local_prefix("h1", "boot-123456789")))
    again.now, again.runs, again.values["vm-1"][M] = host.now + HOUR, {"vm-1": "qemu-1"}, 8 * GIB
    assert foreign(again.sample()) == []


@pytest.mark.parametrize(
    ("size", "reading", "theirs"),
    [
        (8 * GIB, {"memory_swap_bytes_per_s": 10 * MIB}, False),
        (8 * GIB, {"guest_oom_kills": 1}, False),
        (8 * GIB, {}, True),
        (7 * GIB, {"memory_swap_bytes_per_s": 10 * MIB}, True),
        (GIB, {"memory_swap_bytes_per_s": 10 * MIB}, True),
    ],
)
def test_a_balloon_that_opens_by_itself_is_known_by_the_need_before(size: int, reading: dict[str, int], theirs: bool) -> None:
    host = Host(mode=Mode.OBSERVE)
    host.calm()
    host.sample(advance_s=10)
    host.sample(**reading)
    host.values["vm-1"][M] = size
    calm = {"memory_swap_bytes_per_s": 0, "guest_oom_kills": 0}
    assert bool(foreign(host.sample(**calm))) is theirs
    host.sample(advance_s=10, **calm)
    host.values["vm-1"][M] = 2 * GIB  # the driver takes the old target again
    assert bool(foreign(host.sample())) is theirs


def test_a_balloon_that_is_filled_while_the_guest_starts_is_nobodys_change() -> None:
    host = Host()
    host.runs, host.values["vm-1"][M] = {"vm-1": "qemu-1"}, 8 * GIB
    host.sample()  # no driver has answered yet
    assert foreign(host.sample(advance_s=60)) == []
    for size in (6, 4, 2, 2, 2):
        host.values["vm-1"][M] = size * GIB
        assert foreign(host.sample(memory_reading_age_ms=1000)) == []
    assert [entry.believed[M] for entry in journal(host) if isinstance(entry, ev.Owned)][-1] == 2 * GIB
    host.sample()
    host.values["vm-1"][M] = 4 * GIB
    assert foreign(host.sample()) == [(M, 2 * GIB, 4 * GIB)]


@pytest.mark.parametrize(("stood_s", "answers", "theirs"), [(5, True, False), (10, True, True), (595, False, False), (600, False, True)])
def test_a_balloon_that_stood_still_is_full(stood_s: int, answers: bool, theirs: bool) -> None:
    ownership = known(memory=2 * GIB)
    for at_s, value in ((stood_s, 2 * GIB), (stood_s + 1, GIB)):
        changes, _ = ownership.judge("vm", {M: value}, T0 + at_s * NS_PER_S, answers=answers)
    assert bool(changes) is theirs


def test_a_step_of_ours_ends_the_first_sight_of_a_balloon() -> None:
    ownership = known(memory=2 * GIB)
    ownership.begun("vm", M, 2 * GIB, 2 * GIB - 80 * MIB)
    assert found(ownership, M, GIB)


def test_a_step_in_flight_outlives_a_reboot() -> None:
    host = Host()
    host.runs = {"vm-1": "qemu-1"}
    host.calm()
    host.stuck = {M}
    host.plan(host.step(M, 2 * GIB - 80 * MIB))
    assert host.core.in_flight == 1
    host.runs, host.values["vm-1"][M] = {"vm-1": "qemu-1#1"}, 8 * GIB
    assert foreign(host.sample(advance_s=2)) == [] and host.core.in_flight == 1
    host.values["vm-1"][M] = 2 * GIB - 80 * MIB
    assert one(host.tick()).state is OutcomeState.VERIFIED


@pytest.mark.parametrize(("run", "seen"), [("run-1", [(Q, 2000, 1300)]), ("run-2", [])])
def test_a_change_made_while_the_agent_was_down_is_recognised(run: str, seen: list[object]) -> None:
    host = Host()
    host.runs = {"vm-1": "run-1"}
    host.calm()
    host.plan(host.step(Q, 2000))
    entries = journal(host)
    again = Host(recovered=reconcile(entries, local_prefix("h1", "boot-123456789")))
    again.values["vm-1"] = {**host.values["vm-1"], Q: 1300}
    again.now, again.runs = host.now + HOUR, {"vm-1": run}
    again.tell(ev.AllocationRead(vm_id="vm-1", allocation=again.allocation("vm-1")))
    assert foreign(again.sample()) == seen
    assert again.core.vms()[0].defaults == {}  # theirs now, or another run


def test_the_yield_survives_a_restart_and_so_do_the_defaults() -> None:
    host = Host()
    host.calm()
    host.plan(host.step(N, 200_000_000))
    host.values["vm-1"][Q] = 1300
    host.sample()
    again = Host(recovered=reconcile(journal(host), local_prefix("h1", "boot-123456789")))
    again.now, again.values = host.now, host.values
    again.calm()
    assert foreign(again.log) == [] and again.core.status(again.now).vms_yielded == 1
    assert again.core.vms()[0].defaults == {"net_tx": 100_000_000}
    assert one(again.plan(again.step(N, 300_000_000, "s9"), sequence=9)).code is RefusalCode.YIELDED


def test_a_vm_that_left_is_forgotten() -> None:
    host = Host()
    host.calm()
    host.tell(ev.InventoryRead(domains=()))
    assert reconcile(journal(host), "x").owned == ()
    host.tell(ev.InventoryRead(domains=(domain(),)))
    host.values["vm-1"][Q] = 3000
    assert foreign(host.sample()) == []


def test_no_yield_when_it_is_switched_off() -> None:
    host = Host(guard=GuardConfig(foreign_yield_s=0))
    host.calm()
    host.values["vm-1"][Q] = 1300
    assert len(foreign(host.sample())) == 1
    assert one(host.plan(host.step(Q, 1500))).state is OutcomeState.VERIFIED


# the pure module by itself


def known(**values: int) -> Ownership:
    ownership = Ownership()
    ownership.meet("vm", "run", {}, T0)
    ownership.judge("vm", {StepKind(name): value for name, value in values.items()}, T0)
    return ownership


def found(ownership: Ownership, kind: StepKind, value: int, at_ns: int = T0) -> bool:
    return bool(ownership.judge("vm", {kind: value}, at_ns)[0])


def test_a_vm_that_was_not_met_is_not_judged() -> None:
    ownership = Ownership()
    assert ownership.judge("vm", {Q: 1000}, T0) == ([], False)
    ownership.begun("vm", Q, 1000, 2000)
    assert ownership.judge("vm", {Q: 7}, T0) == ([], False)


def test_right_after_a_step_an_older_reading_is_no_news_and_does_not_become_what_is_believed() -> None:
    ownership = known(cpu_quota=1000)
    ownership.begun("vm", Q, 1000, 2000)
    ownership.ended("vm", Q, 2000, sure=True, now_ns=T0)
    assert not found(ownership, Q, 1000, T0 + SETTLE_NS - 1)
    assert not found(ownership, Q, 2000, T0 + SETTLE_NS)
    assert found(ownership, Q, 1000, T0 + SETTLE_NS + 1)


@pytest.mark.parametrize(("value", "late", "theirs"), [(2000, 0, False), (1500, 0, True), (2000, 1, True), (UNLIMITED, 0, True)])
def test_a_doubtful_step_explains_its_two_values_for_an_hour(value: int, late: int, theirs: bool) -> None:
    ownership = known(cpu_quota=1000)
    ownership.begun("vm", Q, 1000, 2000)
    ownership.ended("vm", Q, 1000, sure=False, now_ns=T0)
    assert found(ownership, Q, value, T0 + LATE_NS - 1 + late) is theirs


@pytest.mark.parametrize(("value", "theirs"), [(1500 * MIB, False), (900 * MIB, True), (2100 * MIB, True)])
def test_a_gradual_lever_may_be_anywhere_on_the_way(value: int, theirs: bool) -> None:
    ownership = known(memory=2000 * MIB)
    ownership.begun("vm", M, 2000 * MIB, 1000 * MIB)
    ownership.ended("vm", M, 1800 * MIB, sure=False, now_ns=T0)
    assert found(ownership, M, value, T0 + 1) is theirs


def test_a_lever_moved_by_another_of_ours_is_not_foreign() -> None:
    ownership = known(cpu_quota=1000, vcpus=1)
    ownership.begun("vm", V, 1, 2)
    assert not found(ownership, Q, 2000)
    ownership.ended("vm", V, 2, sure=True, now_ns=T0)
    assert not found(ownership, Q, 1990, T0 + 1)
    assert found(ownership, Q, 1000, T0 + SETTLE_NS)


def test_unlimited_is_a_value_like_any_other() -> None:
    ownership = known(net_tx=UNLIMITED)
    assert not found(ownership, N, UNLIMITED)
    assert found(ownership, N, 10**8)


def test_all_of_a_vm_that_is_not_ours_goes_into_one_entry() -> None:
    ownership = known(cpu_quota=1000)
    ownership.begun("vm", Q, 1000, 2000)
    ownership.hold("vm", Q, T0 + 5)
    ownership.yield_to("vm", T0 + 7)
    assert ownership.note_oom("vm", T0) and not ownership.note_oom("vm", T0) and not ownership.note_oom("vm", None)
    entry = ownership.owned("vm", T0)
    assert entry == ev.Owned(
        vm_id="vm", at_ns=T0, run="run", believed={Q: 1000}, defaults={Q: 1000}, held={Q: T0 + 5}, yielded_until_ns=T0 + 7, oom_at_ns=T0
    )
    assert Ownership([entry]).owned("vm", T0) == entry
    later = ownership.owned("vm", T0 + 10)
    assert later.held == {} and later.yielded_until_ns == 0


def test_core_is_pure_of_unknown_vms() -> None:
    core = AgentCore(host_id="h", boot_id="b", capacity=Host().core.capacity)
    assert core.handle(ev.AllocationRead(vm_id="nobody", allocation=Allocation(vcpus=1)), T0) == []
    assert outcomes(core.handle(ev.Tick(), T0)) == []
