"""Kept files: read from their start each time, gone with their process, bounded in number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.adapters import kernel_files
from agent.adapters.kernel_files import RootedFiles, room_for_descriptors
from agent.sampling.files import Watched, whole_number
from shared.errors import HostError


def test_kept_file_shows_what_is_in_it_now(tmp_path: Path) -> None:
    path, files = tmp_path / "value", RootedFiles()
    path.write_text("1\n")
    kept = files.opened(path)
    assert files.kept == 0, "opened when it is first read"
    assert kept.read() == b"1\n"
    path.write_text("22\n")
    assert (kept.read(), files.kept) == (b"22\n", 1)
    kept.close()
    assert files.kept == 0
    assert kept.read() == b"22\n", "a closed file opens anew"
    del kept
    assert files.kept == 0


def test_long_files_are_read_whole(tmp_path: Path) -> None:
    files = RootedFiles(max_kept=1)
    for size in (0, 3071, 3072, 4096, 4097, 300_000):
        path = tmp_path / str(size)
        path.write_bytes(os.urandom(size))
        kept = files.opened(path)
        assert kept.read() == kept.read() == path.read_bytes()
        kept.close()
    with Path("/proc/self/maps").open("rb") as maps:  # the kernel gives it a page at a time
        assert len(maps.read()) > 4096
    assert len(files.opened(Path("/proc/self/maps")).read() or b"") > 4096


def test_absent_file_stays_absent_until_it_is_looked_for_again(tmp_path: Path) -> None:
    path, kept = tmp_path / "later", RootedFiles().opened(tmp_path / "later")
    assert kept.read() is None
    path.write_text("x")
    assert kept.read() is None
    kept.retry()
    assert kept.read() == b"x"


def test_file_of_a_process_is_gone_with_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        files = RootedFiles()
        stat, directory = files.opened(Path(f"/proc/{child.pid}/stat")), files.opened(Path(f"/proc/{child.pid}/task"))
        assert (stat.read() or b"").startswith(str(child.pid).encode())
        assert directory.links() == 3
        child.communicate(b"\n")
    assert stat.read() is None
    assert files.kept == 1, "its descriptor went with it"
    directory.close()


def test_replaced_directory_is_seen_as_gone(tmp_path: Path) -> None:
    group = tmp_path / "group"
    (group / "vcpu0").mkdir(parents=True)
    kept = RootedFiles().opened(group)
    before = kept.links()
    (group / "vcpu1").mkdir()
    assert before is not None and kept.links() == before + 1
    (group / "vcpu0").rmdir()
    (group / "vcpu1").rmdir()
    group.rmdir()
    group.mkdir()
    assert kept.links() is None


def test_full_table_reads_by_path(tmp_path: Path) -> None:
    files = RootedFiles(max_kept=1)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    a, b = files.opened(tmp_path / "a"), files.opened(tmp_path / "b")
    assert (a.read(), b.read(), b.read(), files.kept) == (b"a", b"b", b"b", 1)
    assert b.links() == 1
    (tmp_path / "b").unlink()
    assert b.read() is None
    a.close()
    (tmp_path / "b").write_text("c")
    b.retry()
    assert (b.read(), files.kept) == (b"c", 1), "a place that became free is taken"


def test_process_without_descriptors_left_bounds_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("a")
    files, real, calls = RootedFiles(max_kept=5), os.open, []

    def scarce(path: Path, flags: int) -> int:
        calls.append(path)
        if len(calls) == 1:
            raise OSError(24, "Too many open files")
        return real(path, flags)

    monkeypatch.setattr(kernel_files.os, "open", scarce)
    kept = files.opened(tmp_path / "a")
    assert (kept.read(), kept.read(), files.kept) == (b"a", b"a", 0)


def test_unreadable_file_is_an_error(tmp_path: Path) -> None:
    kept = RootedFiles().opened(tmp_path)
    with pytest.raises(HostError, match="directory"):
        kept.read()
    with pytest.raises(HostError, match="directory"):
        kept.read()


def test_text_is_parsed_only_when_it_changed(tmp_path: Path) -> None:
    path, parsed = tmp_path / "value", []
    path.write_text("1\n")

    def parse(text: bytes) -> int | None:
        parsed.append(text)
        return whole_number(text)

    watched = Watched(RootedFiles().opened(path), parse, None)
    assert [watched.read(), watched.read()] == [1, 1]
    path.write_text("max\n")
    assert watched.read() is None
    assert parsed == [b"1\n", b"max\n"]
    watched.close()


def test_room_for_descriptors_leaves_some_for_the_rest() -> None:
    room = room_for_descriptors()
    assert 0 <= room <= kernel_files.MAX_KEPT
    assert room_for_descriptors() == room
