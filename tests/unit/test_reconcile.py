"""Folding a journal by example: whose ids are counted, what is remembered and for how long, what an owner's entry lets go of."""

from __future__ import annotations

import pytest

from agent.acting.ownership import LATE_NS
from agent.acting.reconcile import MAX_FAILURES, Recovered, local_prefix, memory_sums, reconcile
from agent.acting.undoing import REMEMBERED, Taken
from agent.events import Closed, Intent, JournalEntry, Owned, PlanAccepted, Shipped
from shared.plan import Outcome, OutcomeState, Step, StepKind
from shared.units import MIB

Q, M, V = StepKind.CPU_QUOTA, StepKind.MEMORY, StepKind.VCPUS
VERIFIED, PARTIAL, FAILED, UNDONE = OutcomeState.VERIFIED, OutcomeState.PARTIAL, OutcomeState.FAILED, OutcomeState.UNDONE


def step(step_id: str, kind: StepKind = Q, value: int = 2000, vm_id: str = "vm-1") -> Step:
    return Step(id=step_id, vm_id=vm_id, kind=kind, value=value, deadline_ns=9)


def intent(what: Step, before: int = 1000, at_ns: int = 5, **more: object) -> Intent:
    fields: dict[str, object] = {"step": what, "asked": what.value, "before": before, "origin": "plan", "at_ns": at_ns}
    return Intent(**{**fields, **more})  # type: ignore[arg-type]


def closed(what: Step, state: OutcomeState = VERIFIED, value: int | None = 2000, at_ns: int = 8, origin: str = "plan") -> Closed:
    return Closed(outcome=Outcome(step=what, state=state, value=value, finished_ns=at_ns, origin=origin))


def fold(*entries: JournalEntry) -> Recovered:
    return reconcile(entries, "h-b-")


def test_an_empty_journal_is_a_fresh_start() -> None:
    assert fold() == Recovered(epoch=0, sequence=0, next_local=1)


def test_ids_of_this_boot_begin_with_host_and_boot_cut_to_a_bounded_length() -> None:
    assert local_prefix("host", "1c9d2f7a-aaaa-bbbb") == "host-1c9d2f7a-"
    assert local_prefix("h" * 200, "b" * 200) == f"{'h' * 96}-{'b' * 8}-"


@pytest.mark.parametrize(
    ("step_id", "following"),
    [
        ("h-b-7", 8),
        ("e1-2-7", 1),  # a plan's
        ("7", 1),
        ("12345678", 1),  # its tail would be a number, were it ours
        ("h-b-", 1),
        ("h-b-x", 1),
        ("h-b-٣", 1),  # a digit elsewhere, not in our ids
    ],
)
def test_numbering_goes_on_behind_the_highest_id_of_our_own(step_id: str, following: int) -> None:
    assert fold(intent(step(step_id))).next_local == following
    assert fold(closed(step(step_id))).next_local == following


def test_the_newest_plan_counts_whatever_the_order_and_its_steps_are_seen() -> None:
    def accepted(epoch: int, sequence: int, *ids: str) -> PlanAccepted:
        return PlanAccepted(epoch=epoch, sequence=sequence, at_ns=1, step_ids=ids)

    found = fold(accepted(2, 1, "a"), accepted(1, 9, "b"), intent(step("c")))
    assert (found.epoch, found.sequence, found.seen) == (2, 1, ("a", "b", "c"))
    assert fold(accepted(0, 0)).sequence == 0


def test_an_undo_found_open_is_handed_on_with_the_step_it_takes_back() -> None:
    first, back = intent(step("s")), intent(step("u", value=1000), before=2000, undo_of="s")
    found = fold(first, back)
    assert found.open == (first,) and found.undos == {"s": back}
    assert fold(first, back, closed(step("s"), UNDONE, 1000)).undos == {}


def test_a_step_that_took_effect_is_remembered_whole() -> None:
    goal = step("goal", M, 900 * MIB)
    stride = step("h-b-1", M, 300 * MIB)
    found = fold(intent(stride, 200 * MIB, goal=goal), closed(stride, PARTIAL, 290 * MIB, origin="operator"))
    assert found.taken == (
        Taken(step_id="h-b-1", goal_id="goal", vm_id="vm-1", kind=M, before=200 * MIB, after=290 * MIB, at_ns=5, origin="operator"),
    )
    assert fold(intent(step("s")), closed(step("s"))).taken[0].goal_id == ""


@pytest.mark.parametrize(
    ("state", "value"),
    [
        (VERIFIED, None),  # not known what is there now
        (FAILED, 1500),  # not seen where it should be: doubted, not ours to take back
        (UNDONE, 1500),
        (PARTIAL, 1000),  # it never moved
    ],
)
def test_what_took_no_effect_that_is_known_cannot_be_taken_back(state: OutcomeState, value: int | None) -> None:
    assert fold(intent(step("s")), closed(step("s"), state, value)).taken == ()


def test_a_small_balloon_that_kept_within_its_rounding_has_not_moved_and_has_arrived() -> None:
    shrink = step("s", M, 32 * MIB)
    assert fold(intent(shrink, 64 * MIB), closed(shrink, PARTIAL, 63 * MIB)).taken == ()
    assert fold(intent(shrink, 64 * MIB), closed(shrink, PARTIAL, 33 * MIB)).doubts == {}


def test_moves_are_neither_changes_nor_taken_back() -> None:
    move = step("m", StepKind.MIGRATE, 10**9)
    found = fold(intent(move, 0), closed(move, VERIFIED, 10**9))
    assert (found.changes, found.taken, found.doubts) == ((), (), {})
    assert [o.step.id for o in found.unshipped] == ["m"]


def test_what_was_shipped_is_not_told_again() -> None:
    found = fold(closed(step("a")), Shipped(sequence=1), closed(step("b"), FAILED, None, at_ns=44))
    assert [o.step.id for o in found.unshipped] == ["b"] and found.failures == (44,)


def test_the_newest_steps_and_failures_are_kept_within_their_bounds() -> None:
    entries: list[JournalEntry] = []
    for n in range(REMEMBERED + 1):
        entries += [intent(step(f"s{n}")), closed(step(f"s{n}"))]
    found = fold(*entries)
    for ids in ([t.step_id for t in found.taken], [i.step.id for i in found.changes]):
        assert (len(ids), ids[0], ids[-1]) == (REMEMBERED, "s1", f"s{REMEMBERED}")
    failures = fold(*(closed(step("s"), FAILED, None, at_ns=n) for n in range(MAX_FAILURES + 1))).failures
    assert (len(failures), failures[0], failures[-1]) == (MAX_FAILURES, 1, MAX_FAILURES)


def owned(vm_id: str, run: str, *foreign: StepKind, **believed: int) -> Owned:
    return Owned(vm_id=vm_id, at_ns=1, run=run, believed={StepKind(k): v for k, v in (believed or {"vcpus": 2}).items()}, foreign=foreign)


DOUBT = {("vm-1", Q): ((1000, 2000), 8 + LATE_NS)}


@pytest.mark.parametrize(
    ("entry", "doubts"),
    [
        (owned("vm-1", "a"), DOUBT),
        (owned("vm-1", "a", M), DOUBT),
        (owned("vm-1", "a", Q), {}),
        (owned("vm-1", "b"), {}),  # another run: its levers begin anew
        (owned("vm-2", "a", Q), DOUBT),
        (Owned(vm_id="vm-1", at_ns=1), {}),  # forgotten
        (Owned(vm_id="vm-2", at_ns=1), DOUBT),
    ],
)
def test_a_doubt_ends_when_the_lever_or_the_run_is_somebody_elses(entry: Owned, doubts: dict[object, object]) -> None:
    assert fold(owned("vm-1", "a"), intent(step("s")), closed(step("s"), FAILED, 1000), entry).doubts == doubts


def test_a_doubt_ends_when_a_later_step_is_seen_in_force() -> None:
    failed = (intent(step("s")), closed(step("s"), FAILED, 1000))
    assert fold(*failed).doubts == DOUBT
    assert fold(*failed, intent(step("t", value=1500)), closed(step("t", value=1500), VERIFIED, 1500)).doubts == {}
    other = step("o", V, 4)
    assert fold(*failed, intent(other, 2), closed(other, VERIFIED, 4)).doubts == DOUBT


def test_memory_before_each_change_is_told_backwards_from_what_is_believed() -> None:
    owned = Owned(vm_id="vm-1", at_ns=1, believed={M: 8000 * MIB, StepKind.VIRTIO_MEM: 0, Q: 1000}, defaults={})
    entries: list[JournalEntry] = [owned]
    for step_id, kind, before, value in (
        ("a", StepKind.VIRTIO_MEM, 0, 900 * MIB),
        ("b", M, 8000 * MIB, 7000 * MIB),
        ("c", Q, 1000, 2000),
        ("d", StepKind.VIRTIO_MEM, 900 * MIB, 300 * MIB),
        ("e", M, 7000 * MIB, 6000 * MIB),
    ):
        what = step(step_id, kind, value)
        entries += [intent(what, before=before), closed(what, value=value)]
    assert memory_sums(fold(*entries)) == [8000 * MIB, 8900 * MIB, 0, 7900 * MIB, 7300 * MIB]
    assert memory_sums(Recovered(changes=(intent(step("x", M, 1), before=5),))) == [5]  # nothing is known of the rest
    assert memory_sums(fold()) == []


def test_a_step_whose_last_stride_is_in_the_air_is_open_and_not_unfinished() -> None:
    whole = step("1-1-0", V, 1)
    first = step("h-b-1", V, 2)
    strides: list[JournalEntry] = [intent(first, before=3, goal=whole), closed(first, value=2)]
    assert [newest.step.id for newest, _ in fold(*strides).unfinished] == ["h-b-1"]
    last = intent(whole, before=2)
    flying = fold(*strides, last)
    assert flying.unfinished == () and flying.open == (last,)
    ended = fold(*strides, last, closed(whole, FAILED, value=2))
    assert ended.unfinished == () and ended.open == ()
