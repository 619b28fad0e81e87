"""The spool by example and against a model: what was appended and not trimmed comes back, through restarts, whole and in order."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.link.spool import Spool
from shared.errors import HostError
from shared.units import MIB

OPENED: list[Spool] = []


def spool(folder: Path, max_bytes: int = MIB) -> Spool:
    """A spool as a new process opens it: those before it are dead, without a clean end."""
    kill()
    OPENED.append(Spool(folder, max_bytes))
    return OPENED[-1]


def kill() -> None:
    """Close the files and nothing else, which is what the kernel does for a killed process."""
    while OPENED:
        file = OPENED.pop()._file
        if file is not None:
            file.close()


@pytest.fixture(autouse=True)
def _no_disk_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    yield
    kill()


def test_frames_come_back_in_order_after_a_restart_without_close(tmp_path: Path) -> None:
    first = spool(tmp_path)
    for n in range(5):
        first.append(n, b"frame %d" % n)
    second = spool(tmp_path)
    assert list(second.pending()) == [(n, b"frame %d" % n) for n in range(5)]
    assert list(second.pending(after_sequence=2)) == [(3, b"frame 3"), (4, b"frame 4")]
    assert second.next_sequence == 5 and second.frames == 5


def test_trimmed_frames_stay_away_and_the_numbering_goes_on(tmp_path: Path) -> None:
    one = spool(tmp_path)
    for n in range(3):
        one.append(n, b"x")
    one.trim(1)
    assert [n for n, _ in one.pending()] == [2] and one.frames == 1
    one.trim(2)
    assert list(one.pending()) == [] and one.bytes_used == 0 and not list(tmp_path.glob("*.spool"))
    again = spool(tmp_path)
    assert again.next_sequence == 3
    again.append(3, b"y")
    assert list(again.pending()) == [(3, b"y")]


def test_a_full_spool_drops_the_oldest_and_counts_them(tmp_path: Path) -> None:
    small = spool(tmp_path, MIB)
    frame = bytes(100_000)
    for n in range(30):
        small.append(n, frame)
        assert small.bytes_used <= MIB
    kept = [n for n, _ in small.pending()]
    assert kept == list(range(30 - len(kept), 30)) and 8 <= len(kept) <= 10
    assert small.dropped_frames == 30 - len(kept) and small.frames == len(kept)


def test_misuse_and_a_failing_disk_are_told_apart(tmp_path: Path) -> None:
    one = spool(tmp_path)
    one.append(5, b"x")
    with pytest.raises(ValueError, match="sequence 5: 6 or more"):
        one.append(5, b"x")
    with pytest.raises(ValueError, match="does not fit"):
        one.append(6, bytes(2 * MIB))
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="spool"):
        spool(tmp_path / "file" / "folder")


def test_a_torn_tail_ends_its_segment_and_its_numbers_are_not_used_again(tmp_path: Path) -> None:
    one = spool(tmp_path)
    for n in range(3):
        one.append(n, b"frame")
    (path,) = tmp_path.glob("*.spool")
    path.write_bytes(path.read_bytes()[:-2])
    again = spool(tmp_path)
    assert [n for n, _ in again.pending()] == [0, 1]
    assert again.damaged_segments == 1 and again.next_sequence >= 3
    again.append(again.next_sequence, b"new")
    assert [frame for _, frame in spool(tmp_path).pending()] == [b"frame", b"frame", b"new"]


def test_pending_survives_a_trim_in_between(tmp_path: Path) -> None:
    one = spool(tmp_path)
    for n in range(20):
        one.append(n, bytes(40_000))
    reading = one.pending()
    assert next(reading)[0] == 0
    one.trim(15)
    assert [n for n, _ in reading] == [16, 17, 18, 19]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 60_000)),
        st.tuples(st.just("trim"), st.integers(-1, 40)),
        st.tuples(st.just("restart"), st.booleans()),
        st.tuples(st.just("sync"), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTIONS)
def test_like_a_dictionary(actions: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one, model, number = spool(Path(folder)), {}, 0
        for what, n in actions:
            if what == "append":
                one.append(number, bytes([number % 251]) * n)
                model[number] = bytes([number % 251]) * n
                number += 1
            elif what == "trim":
                one.trim(min(n, number - 1))
                model = {k: v for k, v in model.items() if k > n}
            elif what == "sync":
                one.sync()
            else:
                if n:
                    one.close()
                one = spool(Path(folder))
                assert one.next_sequence == number
            kept = dict(one.pending())
            # A frame that was trimmed may come back after a death without close, never the other way round.
            dropped = min(kept, default=0)
            assert {k: v for k, v in model.items() if k >= dropped}.items() <= kept.items()
            assert list(kept) == sorted(kept)
        kill()
