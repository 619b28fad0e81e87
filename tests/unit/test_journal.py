"""The journal: durable, tolerant of damage, bounded; and the persisted mode."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.acting.journal import Journal, PersistedMode, load_mode, save_mode
from agent.acting.reconcile import reconcile
from agent.events import Closed, Intent, JournalEntry, PlanAccepted, Shipped
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
