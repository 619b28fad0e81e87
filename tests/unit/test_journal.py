"""The journal: durable, tolerant of damage, bounded; and the persisted mode."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from agent.acting.journal import Journal, PersistedMode, load_mode, load_pause, save_mode, save_pause
from agent.acting.ownership import LATE_NS
from agent.acting.reconcile import reconcile
from agent.events import Closed, Intent, JournalEntry, Owned, PlanAccepted, Shipped
from shared.errors import HostError
from shared.model import Mode
from shared.plan import Outcome, OutcomeState, Step, StepKind


def intent(step_id: str, undo_of: str = "") -> Intent:
    step = Step(id=step_id, vm_id="vm-1", kind=StepKind.MEMORY, value=2**30, deadline_ns=5)
    return Intent(step=step, asked=2**30, before=2**29, origin="plan", at_ns=1, undo_of=undo_of)


def closed(step_id: str, state: OutcomeState = OutcomeState.VERIFIED) -> Closed:
    return Closed(outcome=Outcome(step=intent(step_id).step, state=state, value=2**30))


def test_entries_come_back_in_order_through_a_restart(tmp_path: Path) -> None:
    written: list[JournalEntry] = [
        PlanAccepted(epoch=1, sequence=2, at_ns=3, step_ids=("a",)),
        intent("a"),
        closed("a"),
        Shipped(sequence=9),
    ]
    first = Journal(tmp_path)
    for entry in written:
        first.write(entry)
    assert first.entries() == written
    second = Journal(tmp_path)  # the first was not closed: a killed process
    assert second.entries() == written and second.damaged_lines == 0
    first.close()
    second.close()


def test_an_intent_is_on_disk_when_write_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append((tmp_path / "journal.jsonl").read_bytes()))
    journal = Journal(tmp_path)
    journal.write(intent("a"))
    journal.write(closed("a"))
    assert len(synced) == 1 and b'"id":"a"' in synced[0]
    journal.close()


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_left_out_and_does_not_harm_the_next(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path)
    journal.write(intent("a"))
    journal.write(intent("b"))
    journal.close()
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal(tmp_path)
    again.write(intent("c"))
    ids = [entry.step.id for entry in again.entries() if isinstance(entry, Intent)]
    # A cut of one byte takes the newline alone: the next start completes the line again.
    assert ids == (["a", "b", "c"] if cut == 1 else ["a", "c"])
    assert again.damaged_lines == (0 if cut == 1 else 1)
    again.close()


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(intent("a"))
    journal.write(intent("b"))
    journal.close()
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"id":"a"', b'"id":"z"'))
    again = Journal(tmp_path)
    assert [entry.step.id for entry in again.entries() if isinstance(entry, Intent)] == ["b"] and again.damaged_lines == 1
    again.close()


def test_it_stays_bounded_and_does_not_forget_what_is_open(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_file_bytes=20_000)
    journal.write(PlanAccepted(epoch=4, sequence=7, at_ns=1, step_ids=("plan-step",)))
    journal.write(intent("open"))
    journal.write(intent("half"))
    journal.write(intent("half-undo", undo_of="half"))
    for n in range(500):
        journal.write(intent(f"s{n}"))
        journal.write(closed(f"s{n}"))
        journal.write(Shipped(sequence=n))
    journal.write(closed("last"))
    assert sum(path.stat().st_size for path in tmp_path.glob("journal*")) <= 40_000
    journal.close()
    again = Journal(tmp_path)
    found = reconcile(again.entries(), "h-b-")
    assert (found.epoch, found.sequence) == (4, 7) and "plan-step" in found.seen
    assert sorted(i.step.id for i in found.open) == ["half", "open"] and list(found.undos) == ["half"]
    assert [o.step.id for o in found.unshipped] == ["last"]
    again.close()


def test_a_failing_disk_is_a_host_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="journal"):
        Journal(tmp_path / "file" / "folder")


def test_the_mode_survives(tmp_path: Path) -> None:
    assert load_mode(tmp_path) == PersistedMode()
    save_mode(tmp_path, Mode.OFF, Mode.PREDICTIVE)
    assert load_mode(tmp_path) == PersistedMode(pinned=Mode.OFF, ordered=Mode.PREDICTIVE)
    save_mode(tmp_path, None, Mode.REACTIVE)
    assert load_mode(tmp_path) == PersistedMode(ordered=Mode.REACTIVE)


@pytest.mark.parametrize("garbage", [b"", b"{", b'{"pinned":"full_steam"}', b"\xff\xfe"])
def test_a_mode_file_in_doubt_means_off(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "mode.json").write_bytes(garbage)
    assert load_mode(tmp_path).pinned is Mode.OFF


def test_the_pause_survives_and_in_doubt_the_owner_holds_it(tmp_path: Path) -> None:
    assert load_pause(tmp_path) == ()
    save_pause(tmp_path, ("coordinator", "owner"))
    assert load_pause(tmp_path) == ("coordinator", "owner")
    save_pause(tmp_path, ())
    assert load_pause(tmp_path) == ()
    (tmp_path / "pause.json").write_bytes(b'{"by":3}')
    assert load_pause(tmp_path) == ("owner",)


def test_a_journal_of_an_earlier_release_still_reads(tmp_path: Path) -> None:
    """Written by release 2, killed in the middle of a line."""
    (tmp_path / "journal.jsonl").write_bytes((Path(__file__).parent / "journals" / "release_2.jsonl").read_bytes())
    journal = Journal(tmp_path)
    found = reconcile(journal.read(), "h1-1c9d2f7a-")
    vm_id = "5f0c7b1e-5b0f-4f0e-9d6c-0d6b7c1c2a01"
    assert len(journal.entries()) == 8 and journal.damaged_lines == 1
    assert (found.epoch, found.sequence, found.next_local) == (3, 7, 7)
    assert [i.step.id for i in found.open] == ["h1-1c9d2f7a-4", "h1-1c9d2f7a-5"] and list(found.undos) == ["h1-1c9d2f7a-5"]
    assert [o.step.id for o in found.unshipped] == ["e3-7-9"] and found.unfinished == ()
    assert [(t.step_id, t.before, t.after) for t in found.taken] == [("e3-7-1", 1000, 2000)]
    (owned,) = found.owned
    assert (owned.vm_id, owned.run, owned.yielded_until_ns) == (vm_id, "", 0)
    assert owned.defaults == {StepKind.CPU_QUOTA: 1000, StepKind.MEMORY: 2**31, StepKind.NET_TX: 10**8}
    assert owned.believed == {StepKind.CPU_QUOTA: 2000}
    journal.close()


def test_the_owners_defaults_survive_rotation(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_file_bytes=20_000)
    first = Owned(vm_id="vm-1", at_ns=1, run="run", believed={StepKind.CPU_QUOTA: 7, StepKind.MEMORY: 2**29}, foreign=(StepKind.VCPUS,))
    journal.write(first)
    for n in range(300):
        journal.write(intent(f"s{n}"))
        journal.write(closed(f"s{n}"))
    journal.write(Shipped(sequence=1))
    journal.close()
    again = Journal(tmp_path)
    (owned,) = reconcile(again.entries(), "h-b-").owned
    assert owned.defaults == {StepKind.MEMORY: 2**29} and owned.believed == {StepKind.CPU_QUOTA: 7, StepKind.MEMORY: 2**30}
    assert owned.run == "run" and owned.foreign == ()
    again.write(Owned(vm_id="vm-1", at_ns=2))
    assert reconcile(again.entries(), "h-b-").owned == ()
    again.close()


def test_steps_of_another_run_or_of_a_lever_that_somebody_else_changed_are_lost() -> None:
    def owned(run: str, *foreign: StepKind) -> Owned:
        return Owned(vm_id="vm-1", at_ns=1, run=run, believed={StepKind.MEMORY: 2**30}, foreign=foreign)

    done: list[JournalEntry] = [owned("a"), intent("s"), closed("s")]
    assert [t.lost for t in reconcile(done, "h").taken] == [False]
    assert [t.lost for t in reconcile([*done, owned("a", StepKind.VCPUS)], "h").taken] == [False]
    assert [t.lost for t in reconcile([*done, owned("a", StepKind.MEMORY)], "h").taken] == [True]
    assert [t.lost for t in reconcile([*done, owned("b")], "h").taken] == [True]
    assert reconcile([*done, owned("b")], "h").owned[0].defaults == {}


@pytest.mark.parametrize(
    ("state", "value", "doubted"),
    [
        (OutcomeState.VERIFIED, 2**30, False),
        (OutcomeState.UNDONE, 2**29, False),
        (OutcomeState.FAILED, 2**29, True),
        (OutcomeState.PARTIAL, 3 * 2**28, True),
        (OutcomeState.PARTIAL, 2**30, False),
    ],
)
def test_a_step_never_seen_in_force_stays_doubtful_over_a_restart(state: OutcomeState, value: int, doubted: bool) -> None:
    outcome = Outcome(step=intent("s").step, state=state, value=value, finished_ns=50)
    found = reconcile([intent("s"), Closed(outcome=outcome)], "h")
    assert found.doubts == ({("vm-1", StepKind.MEMORY): ((2**29, 2**30), 50 + LATE_NS)} if doubted else {})
    assert found.failures == ((50,) if state in (OutcomeState.FAILED, OutcomeState.UNDONE) else ())
    assert [t.after for t in found.taken] == ([value] if state in (OutcomeState.VERIFIED, OutcomeState.PARTIAL) else [])
    assert [i.step.id for i in found.changes] == ["s"]


def test_a_step_in_strides_that_was_cut_off_is_known() -> None:
    goal = intent("goal").step
    first = msgspec.structs.replace(intent("h-b-1"), goal=goal)
    second = msgspec.structs.replace(intent("h-b-2"), goal=goal)
    assert reconcile([first], "h-b-").unfinished == ()  # in the air: its flight ends it
    assert reconcile([first, closed("h-b-1")], "h-b-").unfinished == ((first, True),)
    assert reconcile([first, closed("h-b-1", OutcomeState.FAILED)], "h-b-").unfinished == ((first, False),)
    assert reconcile([first, closed("h-b-1"), second], "h-b-").unfinished == ()
    assert reconcile([first, closed("h-b-1"), second, closed("h-b-2", OutcomeState.FAILED)], "h-b-").unfinished == ((second, True),)
    assert reconcile([first, closed("h-b-1"), closed("goal")], "h-b-").unfinished == ()
