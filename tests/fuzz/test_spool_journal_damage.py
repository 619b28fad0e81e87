"""Whatever happens to the files, spool and journal open again, give back only what was written, and go on."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.acting.journal import Journal
from agent.acting.reconcile import reconcile
from agent.events import Intent, JournalEntry, Owned
from agent.link.spool import Spool
from shared.plan import Step, StepKind
from shared.units import MIB

# Where (as a share of the file), and what: cut there, overwrite, or insert.
DAMAGES = st.lists(
    st.tuples(st.integers(0, 3), st.floats(0, 1), st.sampled_from(["cut", "overwrite", "insert"]), st.binary(min_size=1, max_size=40)),
    min_size=1,
    max_size=4,
)


def damage(files: list[Path], damages: list[tuple[int, float, str, bytes]]) -> None:
    for which, share, how, junk in damages:
        path = files[which % len(files)]
        data = path.read_bytes()
        at = int(share * len(data))
        if how == "cut":
            data = data[:at]
        elif how == "overwrite":
            data = data[:at] + junk + data[at + len(junk) :]
        else:
            data = data[:at] + junk + data[at:]
        path.write_bytes(data)


@pytest.fixture(autouse=True)
def _no_disk_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DAMAGES, st.integers(1, 30))
def test_spool(damages: list[tuple[int, float, str, bytes]], count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spool = Spool(folder, MIB)
        for n in range(count):
            spool.append(n, b"%d" % n * 5000)
        spool.trim(count // 4 - 1)
        spool.close()
        damage(sorted(folder.glob("*.spool")), damages)
        again = Spool(folder, MIB)
        kept = list(again.pending())
        assert all(frame == b"%d" % n * 5000 for n, frame in kept)
        assert [n for n, _ in kept] == sorted({n for n, _ in kept})
        number = again.next_sequence
        again.append(number, b"after")
        again.close()
        assert list(Spool(folder, MIB).pending())[-1] == (number, b"after")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DAMAGES, st.integers(1, 30))
def test_journal(damages: list[tuple[int, float, str, bytes]], count: int) -> None:
    written: list[JournalEntry] = [
        Intent(step=Step(id=f"s{n}", vm_id="vm", kind=StepKind.MEMORY, value=n, deadline_ns=n), asked=n, before=0, origin="plan", at_ns=n)
        for n in range(count)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        journal = Journal(folder, max_file_bytes=4096)
        for entry in written:
            journal.write(entry)
        journal.close()
        damage(sorted(folder.glob("journal*.jsonl")), damages)
        again = Journal(folder, max_file_bytes=4096)
        assert all(entry in written or isinstance(entry, Owned) for entry in again.entries())
        again.write(written[0])
        assert again.entries()[-1] == written[0]
        reconcile(again.entries(), "h-b-")
        again.close()
