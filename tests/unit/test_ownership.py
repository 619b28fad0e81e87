"""Whose a value is, by example: what our steps explain, what a reboot moves, what is kept of a VM. In the core: test_foreign_changes."""

from __future__ import annotations

import pytest

from agent.acting.ownership import LATE_NS, MAX_VMS, SETTLE_NS, Foreign, Ownership, Sight, fold
from agent.events import Closed, Intent, Owned
from agent.ports import REBOOTS
from shared.plan import Outcome, OutcomeState, Step, StepKind
from shared.units import MIB, NS_PER_S

Q, M, V = StepKind.CPU_QUOTA, StepKind.MEMORY, StepKind.VCPUS
T0 = 1_000_000 * NS_PER_S
RUN, REBOOTED = "qemu-1", f"qemu-1{REBOOTS}1"


def known(**values: int) -> Ownership:
    """A VM whose values have stood still for two samples."""
    ownership, in_force = Ownership(), {StepKind(name): value for name, value in values.items()}
    ownership.meet("vm", RUN, {}, T0 - SETTLE_NS)
    assert ownership.judge("vm", in_force, T0 - SETTLE_NS) == ([], True)
    assert ownership.judge("vm", in_force, T0) == ([], False)
    return ownership


def found(ownership: Ownership, kind: StepKind, value: int, at_ns: int = T0) -> list[tuple[int, int]]:
    """(believed, found) of a foreign change that this reading is taken for."""
    return [(foreign.believed, foreign.found) for foreign in ownership.judge("vm", {kind: value}, at_ns)[0]]


def test_a_small_balloon_arrives_within_its_own_rounding() -> None:
    ownership = known(memory=128 * MIB)
    ownership.begun("vm", M, 128 * MIB, 64 * MIB)
    assert found(ownership, M, 63 * MIB) == []
    assert found(ownership, M, 61 * MIB) == [(128 * MIB, 61 * MIB)]


def test_an_undo_on_top_of_a_step_in_flight_leaves_the_steps_values_explained() -> None:
    ownership = known(cpu_quota=1000)
    ownership.begun("vm", Q, 1000, 3000)
    ownership.begun("vm", Q, 3000, 1500)
    assert found(ownership, Q, 1200) == found(ownership, Q, 3000) == []
    assert found(ownership, Q, 900) == [(1000, 900)]


def test_a_new_step_after_one_that_is_over_is_in_flight_for_as_long_as_it_takes() -> None:
    ownership = known(cpu_quota=1000)
    ownership.begun("vm", Q, 1000, 2000)
    ownership.ended("vm", Q, 2000, sure=True, now_ns=T0)
    ownership.begun("vm", Q, 2000, 1500)
    assert found(ownership, Q, 1500, T0 + 2 * SETTLE_NS) == []
    assert found(ownership, Q, 1000, T0 + 2 * SETTLE_NS) == [(2000, 1000)]  # the step before is over and done with


@pytest.mark.parametrize(("late_ns", "theirs"), [(-1, []), (0, [(1000, 2000)])])
def test_a_doubt_of_an_earlier_process_explains_its_values_until_its_time(late_ns: int, theirs: list[tuple[int, int]]) -> None:
    ownership = Ownership([Owned(vm_id="vm", at_ns=1, run=RUN, believed={Q: 1000})])
    ownership.meet("vm", RUN, {}, T0)
    ownership.doubt("vm", Q, (1000, 2000), T0 + 100)
    assert found(ownership, Q, 2000, T0 + 100 + late_ns) == theirs
    assert found(ownership, Q, 1500, T0 + 100) == [(2000, 1500)]  # what came about late is what is believed


def test_a_doubt_neither_widens_nor_ends_what_is_in_flight_now() -> None:
    ownership = known(cpu_quota=1000)
    ownership.begun("vm", Q, 1000, 2000)
    ownership.doubt("vm", Q, (5000,), T0)
    assert found(ownership, Q, 2000, T0 + LATE_NS) == [] and found(ownership, Q, 5000) == [(1000, 5000)]


def test_a_doubt_may_come_before_the_vm_is_seen() -> None:
    ownership = Ownership()
    ownership.doubt("vm", Q, (1000, 2000), T0 + 100)
    ownership.meet("vm", RUN, {}, T0)
    assert found(ownership, Q, 1000) == found(ownership, Q, 2000) == []
    assert found(ownership, Q, 1500) == [(2000, 1500)]


def test_what_a_sample_says_of_a_run() -> None:
    ownership = Ownership()
    assert ownership.meet("vm", "", {}, T0) is Sight.KNOWN
    assert ownership.meet("vm", RUN, {}, T0) is Sight.KNOWN  # now it has a name
    assert ownership.meet("vm", "", {}, T0) is Sight.KNOWN and ownership.owned("vm", T0).run == RUN
    assert ownership.meet("vm", REBOOTED, {}, T0) is Sight.REBOOTED and ownership.owned("vm", T0).run == REBOOTED
    assert ownership.meet("vm", REBOOTED, {}, T0) is Sight.KNOWN
    assert ownership.meet("vm", "qemu-2", {}, T0) is Sight.RESTARTED
    assert ownership.owned("vm", T0).run == "qemu-2"
    assert ownership.judge("vm", {Q: 7}, T0) == ([], True)  # first sight


def rebooted(ownership: Ownership, at_ns: int = T0, empty: int = 4000 * MIB) -> Ownership:
    assert ownership.meet("vm", REBOOTED, {M: empty, StepKind.VIRTIO_MEM: 0}, at_ns) is Sight.REBOOTED
    return ownership


def test_a_reboot_is_news_and_lets_the_balloon_move_for_an_hour() -> None:
    ownership = rebooted(known(memory=1000 * MIB, cpu_quota=1000))
    assert ownership.judge("vm", {M: 4000 * MIB}, T0 + 1) == ([], True)
    assert ownership.judge("vm", {M: 3000 * MIB}, T0 + 2) == ([], True)  # where it is now, an agent that starts anew has to know
    assert ownership.judge("vm", {M: 3000 * MIB}, T0 + 2) == ([], False)
    assert ownership.judge("vm", {M: 4100 * MIB}, T0 + 3) == ([Foreign(M, 3000 * MIB, 4100 * MIB)], False)
    late = rebooted(known(memory=1000 * MIB))
    assert found(late, M, 2000 * MIB, T0 + LATE_NS - 1) == []
    assert found(late, M, 3000 * MIB, T0 + LATE_NS) == [(2000 * MIB, 3000 * MIB)]
    assert found(rebooted(known(cpu_quota=1000)), Q, 2000) == [(1000, 2000)]  # its limits on the host stay


def test_a_reboot_under_a_step_in_flight_adds_to_what_the_step_explains() -> None:
    ownership = known(memory=2000 * MIB)
    ownership.begun("vm", M, 2000 * MIB, 1000 * MIB)
    rebooted(ownership)
    assert found(ownership, M, 3500 * MIB, T0 + 2 * LATE_NS) == []  # for as long as it is in flight
    assert found(ownership, M, 1500 * MIB, T0 + 2 * LATE_NS) == []
    assert found(ownership, M, 900 * MIB, T0 + 2 * LATE_NS) == [(1500 * MIB, 900 * MIB)]


def test_a_reboot_right_after_a_step_counts_an_hour_from_the_reboot() -> None:
    def just_ended() -> Ownership:
        ownership = known(memory=2000 * MIB)
        ownership.begun("vm", M, 2000 * MIB, 1000 * MIB)
        ownership.ended("vm", M, 1000 * MIB, sure=True, now_ns=T0)
        return rebooted(ownership, T0 + 1)

    assert found(just_ended(), M, 3500 * MIB, T0 + LATE_NS) == []
    assert found(just_ended(), M, 3500 * MIB, T0 + LATE_NS + 1) == [(1000 * MIB, 3500 * MIB)]
    ownership = just_ended()
    assert found(ownership, M, 3500 * MIB, T0 + 2) == []
    assert found(ownership, M, 5000 * MIB, T0 + 3) == [(3500 * MIB, 5000 * MIB)]  # believed follows


def test_what_the_guest_may_have_done_itself_is_believed_and_told_to_the_journal() -> None:
    ownership = known(memory=1000 * MIB)
    own = {M: 4000 * MIB}
    assert ownership.judge("vm", {M: 3000 * MIB}, T0, own)[0] == [Foreign(M, 1000 * MIB, 3000 * MIB)]
    ownership = known(memory=1000 * MIB)
    assert ownership.judge("vm", {M: 4000 * MIB}, T0, own) == ([], True)
    assert found(ownership, M, 2000 * MIB, T0 + 1) == []  # and goes back the way it came
    assert found(ownership, M, 5000 * MIB, T0 + 2) == [(2000 * MIB, 5000 * MIB)]


def test_what_a_failed_step_does_late_outlives_the_process() -> None:
    """A slow balloon: the step failed half way, its undo was refused, the guest did the rest, and an hour later another agent looks."""
    ownership = known(memory=1000 * MIB)
    ownership.begun("vm", M, 1000 * MIB, 900 * MIB)
    ownership.ended("vm", M, 950 * MIB, sure=False, now_ns=T0)
    assert ownership.judge("vm", {M: 900 * MIB}, T0 + NS_PER_S) == ([], True)
    later = T0 + 2 * LATE_NS
    heir = Ownership([ownership.owned("vm", T0 + NS_PER_S)])
    heir.meet("vm", RUN, {}, later)
    assert found(heir, M, 900 * MIB, later) == []


def test_what_another_lever_moved_outlives_the_process() -> None:
    ownership = known(memory=1000 * MIB, dimm=0)
    ownership.begun("vm", StepKind.DIMM, 0, 1024 * MIB)
    assert ownership.judge("vm", {M: 2024 * MIB}, T0) == ([], True)
    heir = Ownership([ownership.owned("vm", T0)])
    heir.meet("vm", RUN, {}, T0 + LATE_NS)
    assert found(heir, M, 2024 * MIB, T0 + 2 * LATE_NS) == []


def test_one_lever_that_is_explained_does_not_hide_the_next() -> None:
    theirs = {Q: 700}

    def changed(ownership: Ownership, first: dict[StepKind, int], own: dict[StepKind, int] | None = None) -> list[Foreign]:
        return ownership.judge("vm", first | theirs, T0, own or {})[0]

    flying = known(memory=1000 * MIB, cpu_quota=1000)
    flying.begun("vm", M, 1000 * MIB, 2000 * MIB)
    assert changed(flying, {M: 1500 * MIB}) == [Foreign(Q, 1000, 700)]
    assert changed(known(memory=1000 * MIB, cpu_quota=1000), {M: 4000 * MIB}, {M: 4000 * MIB}) == [Foreign(Q, 1000, 700)]
    assert changed(known(memory=64 * MIB, cpu_quota=1000), {M: 63 * MIB}) == [Foreign(Q, 1000, 700)]  # a balloon's rounding
    plugged = known(memory=1000 * MIB, cpu_quota=1000, dimm=0)
    plugged.begun("vm", StepKind.DIMM, 0, 1024 * MIB)
    assert changed(plugged, {M: 2024 * MIB}) == [Foreign(Q, 1000, 700)]
    plugged.ended("vm", StepKind.DIMM, 1024 * MIB, sure=True, now_ns=T0)
    assert found(plugged, M, 1000 * MIB, T0 + SETTLE_NS) == [(2024 * MIB, 1000 * MIB)]  # where the other lever moved it is believed


def test_what_the_journal_keeps_of_a_foreign_change() -> None:
    ownership = known(cpu_quota=1000, memory=1000 * MIB)
    theirs = ownership.judge("vm", {Q: 700, M: 2000 * MIB}, T0)[0]
    ownership.yield_to("vm", T0 + 5)
    entry = ownership.owned("vm", T0 + 4, theirs)
    assert (entry.foreign, entry.yielded_until_ns, entry.believed) == ((Q, M), T0 + 5, {Q: 700, M: 2000 * MIB})
    assert ownership.owned("vm", T0 + 5).yielded_until_ns == 0


def test_their_value_is_the_owners_newer_word() -> None:
    ownership = known(cpu_quota=1000, memory=1000 * MIB)
    ownership.begun("vm", Q, 1000, 2000)
    ownership.begun("vm", M, 1000 * MIB, 2000 * MIB)
    assert found(ownership, Q, 700) == [(1000, 700)]
    assert dict(ownership.defaults("vm")) == {M: 1000 * MIB}
    assert found(ownership, Q, 2000) == [(700, 2000)]  # the step explains nothing any more


def test_yields_and_holds_may_come_before_the_vm_is_seen() -> None:
    ownership = Ownership()
    assert ownership.yielded_until("vm") == 0
    ownership.yield_to("vm", T0 + 5)
    ownership.hold("other", Q, T0 + 5)
    assert ownership.yielded_until("vm") == T0 + 5 and ownership.yielded_until("other") == 0
    assert ownership.yielded(T0 + 4) == {"vm": T0 + 5} and ownership.yielded(T0 + 5) == {}
    assert ownership.owned("other", T0 + 4).held == {Q: T0 + 5} and ownership.owned("other", T0 + 5).held == {}


def test_a_vm_that_left_is_forgotten_once() -> None:
    ownership = known(cpu_quota=1000)
    assert ownership.forget("vm") and not ownership.forget("vm")
    assert ownership.owned("vm", T0) == Owned(vm_id="vm", at_ns=T0) and ownership.defaults("vm") == {}
    assert not ownership.note_oom("vm", T0)


def step(step_id: str, kind: StepKind, value: int) -> Step:
    return Step(id=step_id, vm_id="vm", kind=kind, value=value, deadline_ns=9)


def test_the_journal_of_a_vm_folds_to_what_is_believed_and_what_its_owner_had() -> None:
    owned: dict[str, Owned] = {}

    def begun(kind: StepKind, before: int, value: int, undo_of: str = "") -> None:
        fold(owned, Intent(step=step("s", kind, value), asked=value, before=before, origin="plan", at_ns=5, undo_of=undo_of))

    def ended(kind: StepKind, asked: int, value: int | None, state: OutcomeState = OutcomeState.VERIFIED) -> None:
        fold(owned, Closed(outcome=Outcome(step=step("s", kind, asked), state=state, value=value)))

    ended(Q, 2000, 2000)  # of a VM that nothing is known of
    begun(StepKind.MIGRATE, 0, 10**9)
    assert owned == {}
    begun(Q, 1000, 2000)
    begun(Q, 2000, 1500)
    begun(M, 64 * MIB, 32 * MIB, undo_of="earlier")
    ended(Q, 1500, None)
    ended(Q, 1500, 7, OutcomeState.REFUSED)
    ended(Q, 1500, 7, OutcomeState.SHADOWED)
    ended(StepKind.MIGRATE, 10**9, 10**9)
    assert owned == {"vm": Owned(vm_id="vm", at_ns=5, believed={}, defaults={Q: 1000})}
    ended(Q, 1500, 1505)  # shown: rounded, as asked
    ended(M, 64 * MIB, 63 * MIB)  # within the balloon's rounding
    ended(V, 4, 3, OutcomeState.PARTIAL)
    assert owned["vm"].believed == {Q: 1500, M: 64 * MIB, V: 3}
    whole = Owned(vm_id="vm", at_ns=8, run=RUN, believed={Q: 1}, defaults={})
    fold(owned, whole)
    begun(Q, 1, 2)
    assert owned["vm"].defaults == {Q: 1} and whole.defaults == {}  # the entry itself stays as it was
    fold(owned, Owned(vm_id="vm", at_ns=9))
    assert owned == {}


def test_of_vms_that_left_the_oldest_are_forgotten_first() -> None:
    owned: dict[str, Owned] = {}
    for n in range(MAX_VMS + 1):
        fold(owned, Owned(vm_id=f"vm-{n}", at_ns=n, believed={Q: 1}))
    assert len(owned) == MAX_VMS and "vm-0" not in owned and "vm-1" in owned


def test_folding_leaves_the_entries_of_the_journal_as_they_are() -> None:
    entry, owned = Owned(vm_id="vm", at_ns=1, believed={Q: 1000}), dict[str, Owned]()
    fold(owned, entry)
    fold(owned, Closed(outcome=Outcome(step=step("s", Q, 2000), state=OutcomeState.VERIFIED, value=2000)))
    assert owned["vm"].believed == {Q: 2000} and entry.believed == {Q: 1000}


def test_a_reboot_while_a_balloon_is_first_filled_is_news_too() -> None:
    ownership = Ownership()
    ownership.meet("vm", RUN, {}, T0)
    assert ownership.judge("vm", {M: 64 * MIB}, T0) == ([], True)
    rebooted(ownership)
    assert ownership.judge("vm", {M: 64 * MIB}, T0 + 1) == ([], True)
    assert ownership.judge("vm", {M: 63 * MIB}, T0 + 2) == ([], False)  # within its rounding: it stands still


def test_a_reading_from_before_the_first_of_several_quick_strides_is_no_change() -> None:
    ownership = known(memory=100 * MIB)
    for n in range(4):
        at_ns = T0 + n * NS_PER_S // 10
        ownership.begun("vm", M, (100 + 5 * n) * MIB, (105 + 5 * n) * MIB, now_ns=at_ns)
        ownership.ended("vm", M, (105 + 5 * n) * MIB, sure=True, now_ns=at_ns)
    assert found(ownership, M, 100 * MIB, T0 + 2 * NS_PER_S) == [], "libvirt has not heard of the balloon yet"
    assert found(ownership, M, 120 * MIB, T0 + 7 * NS_PER_S) == []
    assert found(ownership, M, 100 * MIB, T0 + 60 * NS_PER_S) == [(120 * MIB, 100 * MIB)], "long after, somebody took it"


def test_a_step_seen_at_its_last_percent_may_still_do_the_rest_and_an_operator_stands_out_beyond() -> None:
    ownership = known(memory=1000 * MIB)
    ownership.begun("vm", M, 1000 * MIB, 1050 * MIB)
    ownership.ended("vm", M, 1040 * MIB, sure=True, now_ns=T0)  # 99 % of it counts as done
    settled = T0 + 60 * NS_PER_S
    assert found(ownership, M, 1051 * MIB, settled) == [], "1.06 % above what is believed: it went on to its end"
    assert found(ownership, M, 1061 * MIB, settled) == [(1040 * MIB, 1061 * MIB)], "2.02 %: no step of ours asked for that"
