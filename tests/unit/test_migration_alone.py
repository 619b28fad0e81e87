"""The desk of migrations by itself: what it journals, emits and tells, figure by figure. How the core uses it: test_migration_desk."""

from __future__ import annotations

import pytest
from plain_host import plain_capacity

from agent import events as ev
from agent.acting.guard import Guard, Verdict
from agent.acting.ledger import Ledger
from agent.acting.migration import ABORT_AGAIN_NS, DEPARTED_NS, MigrationDesk, limits_of
from agent.ports import MigrationProgress
from shared.config import GuardConfig, MigrationConfig
from shared.model import Allocation, Capabilities, Domain, VmSample
from shared.plan import Outcome, OutcomeState, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, MBIT, MIB, NS_PER_S, UNLIMITED

S = NS_PER_S
T0 = 1_000_000 * S
MOST = 800 * MBIT
CONFIG = MigrationConfig(targets=("h2=qemu:///2", "h1=qemu:///1"), bits_per_s_max=MOST, no_progress_s=60, deadline_s=600, max_outgoing=1)
PAGES_OF_100_MBIT = 100 * MBIT // (4096 * 8)


class Desk:
    """A desk over a ledger of two VMs, and all that it emitted and told."""

    def __init__(self, *vm_ids: str) -> None:
        config = GuardConfig()
        self.guard = Guard(config)
        self.ledger = Ledger(config, plain_capacity())
        self.out: list[ev.Instruction] = []
        self.told: list[tuple[Outcome, str, int]] = []
        self.here(*(vm_ids or ("vm-1", "vm-2")))
        self.desk = MigrationDesk("h1", CONFIG, self.ledger, self.out.append, lambda *told: self.told.append(told))

    def here(self, *vm_ids: str) -> None:
        def domain(vm_id: str) -> Domain:
            can = Capabilities(migrate=None)
            return Domain(vm_id=vm_id, name=vm_id, vcpus_max=4, memory_max_bytes=8 * GIB, capabilities=can)

        self.ledger.define(tuple(map(domain, vm_ids)))

    def check(self, asked: Step, at_ns: int) -> Verdict:
        """With a sample of that moment."""
        reading = VmSample(vcpus=2, memory_allocated_bytes=2 * GIB, memory_used_bytes=GIB // 2, memory_reading_age_ms=1000)
        self.ledger.note_samples({asked.vm_id: reading}, at_ns)
        return self.desk.check(asked, self.guard, at_ns)

    def begun(self, bits_per_s: int = 100 * MBIT) -> Desk:
        self.desk.begin(step(), bits_per_s, "operator", T0)
        self.out.clear()
        return self

    def progress(self, at_ns: int = T0, **figures: int) -> None:
        self.desk.progressed(ev.MigrationProgressed(vm_id="vm-1", progress=MigrationProgress(**figures)), at_ns)

    def end(self, at_ns: int = T0 + 1, **how: object) -> Outcome:
        self.desk.ended(ev.MigrationEnded(step_id="move", **{"moved": False, **how}), at_ns)  # type: ignore[arg-type]
        return self.outcome()

    def outcome(self) -> Outcome:
        ((outcome, origin, _),) = self.told
        assert origin == "operator"
        return outcome


def step(step_id: str = "move", vm_id: str = "vm-1", target: str = "h2", value: int = UNLIMITED) -> Step:
    return Step(id=step_id, vm_id=vm_id, kind=StepKind.MIGRATE, target=target, value=value, deadline_ns=T0 + 3600 * S)


def recovered(*vm_ids: str) -> Desk:
    """With a move found open in the journal, asked without a limit and begun with 100 Mbit/s."""
    desk = Desk(*vm_ids)
    begun = step(value=100 * MBIT)
    desk.desk.take_up(ev.Intent(step=begun, asked=UNLIMITED, before=0, origin="operator", at_ns=T0 - 2 * S), T0)
    return desk


def test_what_is_journalled_and_started() -> None:
    desk = Desk()
    desk.ledger.note_allocation("vm-1", Allocation(vcpus=2), T0)
    desk.desk.begin(step(), 100 * MBIT, "operator", T0)
    submitted = step(value=100 * MBIT)
    assert desk.out == [
        ev.WriteJournal(entry=ev.Intent(step=submitted, asked=UNLIMITED, before=0, origin="operator", at_ns=T0)),
        ev.StartMigration(step=submitted, uri="qemu:///2", bits_per_s=100 * MBIT, limits=Allocation(vcpus=2)),
    ]
    assert limits_of(desk.ledger.vms["vm-2"]) == Allocation()
    assert len(desk.desk) == 1 and [move.step for move in desk.desk] == [step()]
    assert desk.ledger.vms["vm-1"].pending == {StepKind.MIGRATE: (0, 100 * MBIT)}


def test_a_move_that_was_not_checked_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="move of vm-1 to 'h9' begun without a check"):
        Desk().desk.begin(step(target="h9"), MBIT, "plan", T0)
    with pytest.raises(RuntimeError, match="begun without a check"):
        Desk().begun().desk.begin(step("again"), MBIT, "plan", T0)


@pytest.mark.parametrize(
    ("asked", "code", "detail", "wait_s"),
    [
        (step(target="h1"), RefusalCode.NOTHING_TO_DO, "h1 is this host", 0),
        (step(target="h9"), RefusalCode.TARGET_UNKNOWN, "target 'h9': not among migration.targets of h1", 0),
        (step(vm_id="vm-2"), RefusalCode.MIGRATION_BUSY, "1 migrations under way, 1 allowed at a time", 1),
    ],
)
def test_what_is_said_of_a_refusal(asked: Step, code: RefusalCode, detail: str, wait_s: int) -> None:
    desk = Desk().begun()
    if asked.vm_id == "vm-1":
        desk.end(moved=False, code=RefusalCode.PAUSED)
    verdict = desk.check(asked, T0 + 2)
    assert (verdict.value, verdict.code, verdict.detail, verdict.wait_ns) == (None, code, detail, wait_s * S)


def test_after_a_failure_the_wait_is_told_and_ends() -> None:
    desk = Desk().begun()
    desk.end(T0, detail="no route")
    wait_s = GuardConfig().backoff_initial_s
    verdict = desk.check(step("again"), T0)
    assert (verdict.code, verdict.wait_ns) == (RefusalCode.BACKING_OFF, wait_s * S) and f"next try in {wait_s} s" in verdict.detail
    assert desk.check(step("again"), T0 + wait_s * S).value == MOST


def test_what_the_outcome_of_a_move_says() -> None:
    final = MigrationProgress(elapsed_ms=2900, downtime_ms=33, memory_processed_bytes=71)
    outcome = Desk().begun().end(moved=True, progress=final, detail="limits went along")
    assert outcome.detail == "to h2; elapsed 2900 ms, downtime 33 ms, 71 bytes sent; limits went along"
    assert (outcome.value, outcome.step, outcome.started_ns) == (100 * MBIT, step(), T0)


def test_figures_that_nobody_gave_are_left_out_and_the_time_is_measured_here() -> None:
    outcome = Desk().begun().end(T0 + 2_345_678_901)
    assert outcome.detail == "to h2; elapsed 2345 ms; the migration failed" and outcome.value is None
    assert Desk().begun().end(detail="no route").detail == "to h2; elapsed 0 ms; no route"


def test_a_downtime_that_was_only_expected_is_not_told() -> None:
    desk = Desk().begun()
    desk.progress(elapsed_ms=100, downtime_ms=300, memory_processed_bytes=5)
    assert desk.end(moved=True).detail == "to h2; elapsed 100 ms, 5 bytes sent"
    desk = Desk().begun()
    assert desk.end(moved=True, progress=MigrationProgress(elapsed_ms=100)).detail == "to h2; elapsed 100 ms"


def test_a_job_that_was_just_cancelled_does_not_wipe_out_what_it_had_sent() -> None:
    desk = Desk().begun()
    desk.progress(elapsed_ms=100, memory_processed_bytes=5)
    desk.progress(elapsed_ms=200, memory_processed_bytes=9)
    desk.progress(elapsed_ms=0, memory_processed_bytes=0)
    assert desk.end().detail.startswith("to h2; elapsed 200 ms, 9 bytes sent;")
    desk = Desk().begun()
    desk.progress(elapsed_ms=50)  # the first says at least that there is a job
    assert desk.end().detail.startswith("to h2; elapsed 50 ms;")


@pytest.mark.parametrize(
    ("dirty", "sent", "iteration", "widened"),
    [
        (PAGES_OF_100_MBIT + 1, None, 2, True),
        (PAGES_OF_100_MBIT - 1, None, 2, False),
        (PAGES_OF_100_MBIT // 2, 40 * MBIT, 2, True),  # what really goes out, not what may
        (PAGES_OF_100_MBIT // 2, 60 * MBIT, 2, False),
        (PAGES_OF_100_MBIT + 1, 900 * MBIT, 2, True),
        (PAGES_OF_100_MBIT + 1, None, 1, False),  # all is still to be sent
        (PAGES_OF_100_MBIT + 1, None, None, False),
        (None, None, 2, False),
    ],
)
def test_when_the_guest_outruns_the_move(dirty: int | None, sent: int | None, iteration: int | None, widened: bool) -> None:
    desk = Desk().begun()
    figures = {"dirty_pages_per_s": dirty, "memory_bits_per_s": sent, "iteration": iteration}
    desk.progress(T0 + 9, **{name: value for name, value in figures.items() if value is not None})
    fields: dict[str, str | int] = {"step": "move", "vm": "vm-1", "bits_per_s": MOST, "why": "the guest dirties faster than is sent"}
    tuned = [ev.TuneMigration(vm_id="vm-1", bits_per_s=MOST), ev.Note(level="info", event="migration_widened", fields=fields)]
    assert desk.out == (tuned if widened else [])
    assert [move.nearer_ns for move in desk.desk] == [T0 + 9 if widened else T0]  # and time to use it


def test_as_fast_as_it_is_sent_is_not_outrun() -> None:
    desk = Desk().begun(3000 * 4096 * 8)
    desk.progress(dirty_pages_per_s=3000, iteration=2)
    assert desk.out == []


def left(desk: Desk, at_s: int, pass_number: int, mib: float) -> int:
    """When the move got nearer last, seconds after its beginning."""
    desk.progress(T0 + at_s * S, memory_remaining_bytes=int(mib * MIB), iteration=pass_number)
    (move,) = desk.desk
    return (move.nearer_ns - T0) // S


def test_within_a_pass_its_minimum_has_to_fall_by_a_percent() -> None:
    desk = Desk().begun()
    assert left(desk, 1, 0, 0) == 0  # QEMU before its first pass
    assert left(desk, 2, 1, 1000) == 2
    assert left(desk, 3, 1, 995) == 2
    assert left(desk, 4, 1, 990) == 2  # one percent exactly
    assert left(desk, 5, 1, 989.999) == 5
    assert left(desk, 6, 1, 985) == 5  # from the newest minimum
    assert left(desk, 7, 1, 1000) == 5
    assert left(desk, 8, 1, 979) == 8


def test_a_pass_is_nearer_when_it_begins_with_less_than_every_pass_before() -> None:
    desk = Desk().begun()
    for at_s, number, mib, nearer_s in (
        *((1, 1, 1000, 1), (2, 1, 10, 2)),
        *((3, 2, 500, 3), (4, 2, 400, 4)),
        *((5, 3, 600, 4), (6, 3, 5, 4)),  # more than the second: nothing within it counts
        *((7, 4, 499, 4), (8, 5, 490, 8)),
        *((9, 5, 480, 9), (10, 6, 488, 9)),
    ):
        assert left(desk, at_s, number, mib) == nearer_s, (number, mib)


def test_a_pass_found_under_way_is_a_first_one() -> None:
    desk = recovered()
    assert left(desk, 4, 7, 100) == 4 and left(desk, 5, 7, 90) == 5


def test_widened_for_want_of_progress_once_then_given_up() -> None:
    desk = Desk().begun()
    desk.desk.follow(True, T0 + 60 * S - 1)
    assert [i for i in desk.out if not isinstance(i, ev.WatchMigration)] == []
    desk.desk.follow(True, T0 + 60 * S)
    (note,) = [i for i in desk.out if isinstance(i, ev.Note)]
    assert note.fields["why"] == "no nearer for 60 s"
    desk.desk.follow(True, T0 + 120 * S - 1)
    assert ev.AbortMigration(vm_id="vm-1") not in desk.out
    desk.desk.follow(True, T0 + 120 * S)
    assert ev.AbortMigration(vm_id="vm-1") in desk.out
    assert desk.end(T0 + 121 * S).detail == f"to h2; elapsed 121000 ms; given up: no nearer for 60 s at {MOST} bit/s"


@pytest.mark.parametrize(
    ("may_act", "at_s", "code", "why"),
    [
        (False, 1, RefusalCode.MODE_FORBIDS, "the mode no longer lets anything change"),
        (True, 600, RefusalCode.STEP_EXPIRED, "not done after 600 s"),
    ],
)
def test_what_is_said_of_giving_up(may_act: bool, at_s: int, code: RefusalCode, why: str) -> None:
    desk = Desk().begun()
    for _ in range(2):  # of one moment: once is enough
        desk.desk.follow(may_act, T0 + at_s * S)
    assert desk.out == [ev.AbortMigration(vm_id="vm-1"), ev.WatchMigration(vm_id="vm-1")]
    outcome = desk.end(T0 + at_s * S)
    assert (outcome.state, outcome.code, outcome.value) == (OutcomeState.UNDONE, code, None)
    assert outcome.detail == f"to h2; elapsed {at_s * 1000} ms; given up: {why}"


def test_the_kill_switch_gives_up_once_and_repeats_itself_later() -> None:
    desk = Desk().begun()
    abort = ev.AbortMigration(vm_id="vm-1")
    desk.desk.abort_all(RefusalCode.PAUSED, "paused by the owner", T0 + S)
    desk.desk.abort_all(RefusalCode.MODE_FORBIDS, "another", T0 + S)
    assert desk.out == [abort]
    desk.desk.follow(False, T0 + S + ABORT_AGAIN_NS - 1)
    assert desk.out.count(abort) == 1
    desk.desk.follow(False, T0 + S + ABORT_AGAIN_NS)
    assert desk.out.count(abort) == 2
    outcome = desk.end(T0 + 7 * S)
    assert (outcome.code, outcome.detail) == (RefusalCode.PAUSED, "to h2; elapsed 7000 ms; given up: paused by the owner")


def test_it_is_watched_a_second_after_it_began_and_then_each_second() -> None:
    for desk in (Desk().begun(), recovered()):
        desk.out.clear()
        for at_ns, watched in ((T0 + S - 1, 0), (T0 + S, 1), (T0 + 2 * S - 1, 1), (T0 + 2 * S, 2)):
            desk.desk.follow(True, at_ns)
            assert desk.out == [ev.WatchMigration(vm_id="vm-1")] * watched


def test_a_move_found_open_is_watched_and_holds_its_vm() -> None:
    desk = recovered()
    assert desk.out == [ev.WatchMigration(vm_id="vm-1")]
    assert desk.ledger.vms["vm-1"].pending == {StepKind.MIGRATE: (0, 100 * MBIT)}
    outcome = desk.end(T0 + S, moved=True)
    assert (outcome.step, outcome.value, outcome.detail) == (step(), 100 * MBIT, "to h2; elapsed 3000 ms")


def test_a_move_found_open_whose_vm_is_gone_has_moved() -> None:
    gone = recovered("vm-2")
    assert gone.out == [] and gone.outcome().state is OutcomeState.VERIFIED
    assert gone.outcome().detail == "to h2; elapsed 2000 ms; found gone from here after a restart"
    later = recovered()
    later.here("vm-2")
    later.desk.inventory(T0 + S)
    assert (later.outcome().state, later.outcome().detail) == (OutcomeState.VERIFIED, "to h2; elapsed 3000 ms; gone from here")


def test_no_job_any_more_is_believed_with_the_second_inventory() -> None:
    desk = recovered()
    silence = ev.MigrationProgressed(vm_id="vm-1", progress=None)
    desk.desk.progressed(silence, T0)
    desk.desk.inventory(T0)
    desk.desk.progressed(silence, T0)  # tells nothing new: the count goes on
    desk.progress(memory_remaining_bytes=MIB)  # it was there after all
    desk.desk.inventory(T0)
    desk.desk.inventory(T0)
    assert desk.told == []
    for _ in range(2):
        desk.desk.progressed(silence, T0)
        desk.desk.inventory(T0)
    outcome = desk.outcome()
    assert (outcome.state, desk.out[-1]) == (OutcomeState.FAILED, ev.TakenUp(vm_id="vm-1"))
    assert outcome.detail.endswith("; the agent restarted and found no migration under way; the VM is still here")


def test_silence_about_a_move_of_this_process_says_nothing() -> None:
    desk = Desk().begun()
    desk.desk.progressed(ev.MigrationProgressed(vm_id="vm-1", progress=None), T0)
    desk.desk.inventory(T0)
    desk.desk.inventory(T0)
    assert desk.told == [] and [move.silent for move in desk.desk] == [0]


def test_a_vm_that_moved_is_left_alone_until_the_inventory_has_lost_it_or_a_minute_is_over() -> None:
    desk = Desk().begun()
    desk.end(T0, moved=True)
    for at_ns, held in ((T0, True), (T0 + DEPARTED_NS - 1, True), (T0 + DEPARTED_NS, False)):
        desk.desk.inventory(at_ns)
        assert bool(desk.ledger.vms["vm-1"].pending) is held
    assert desk.check(step("back"), T0 + DEPARTED_NS).value == MOST


def test_a_vm_paused_for_the_switch_over_is_held_on_and_so_is_one_that_left() -> None:
    desk = Desk().begun()
    for vm_ids in (("vm-2",), ("vm-1", "vm-2")):  # its record begins anew
        desk.here(*vm_ids)
        desk.desk.inventory(T0)
    assert desk.ledger.vms["vm-1"].pending == {StepKind.MIGRATE: (0, 100 * MBIT)} and desk.told == []
    desk.end(T0, moved=True)
    for vm_ids in (("vm-2",), ("vm-1", "vm-2")):
        desk.here(*vm_ids)
    desk.desk.inventory(T0 + 1)  # of one event: it had not left for good
    assert desk.ledger.vms["vm-1"].pending == {StepKind.MIGRATE: (0, 0)}


def test_each_move_and_each_vm_that_left_is_looked_at() -> None:
    desk = Desk("vm-1", "vm-2", "vm-3")
    desk.desk.begin(step("mine", "vm-1"), MBIT, "operator", T0)
    for vm_id in ("vm-2", "vm-3"):
        desk.desk.take_up(ev.Intent(step=step(vm_id, vm_id), asked=MBIT, before=0, origin="operator", at_ns=T0), T0)
    desk.here("vm-1")
    desk.desk.inventory(T0 + S)
    assert [(outcome.step.id, outcome.state) for outcome, *_ in desk.told] == [
        ("vm-2", OutcomeState.VERIFIED),
        ("vm-3", OutcomeState.VERIFIED),
    ]
    both = Desk()
    for vm_id in ("vm-1", "vm-2"):
        both.desk.begin(step(vm_id, vm_id), MBIT, "operator", T0)
        both.desk.ended(ev.MigrationEnded(step_id=vm_id, moved=True), T0 + S * (vm_id == "vm-1"))
    both.desk.inventory(T0 + DEPARTED_NS)  # the first for a second yet, the other is back
    assert bool(both.ledger.vms["vm-1"].pending) and not both.ledger.vms["vm-2"].pending


def test_a_move_that_went_well_ends_the_row_of_failures() -> None:
    desk = Desk()
    for n, moved in enumerate((False, True, False)):
        desk.desk.begin(step(f"move-{n}"), MBIT, "operator", T0)
        desk.desk.ended(ev.MigrationEnded(step_id=f"move-{n}", moved=moved), T0)
        desk.desk.inventory(T0 + DEPARTED_NS)
    assert desk.ledger.vms["vm-1"].backoff_until == {(StepKind.MIGRATE, True): T0 + GuardConfig().backoff_initial_s * S}
