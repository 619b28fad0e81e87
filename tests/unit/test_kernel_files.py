"""Kept files: read from their start each time, gone with their process, bounded in number."""

from __future__ import annotations

import os
import resource
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


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "room"),
    [
        (1024, 524_288, 66_048, kernel_files.MAX_KEPT),  # systemd's default
        (1024, 4096, 4096, 1792),
        (256, 256, None, 0),
        (100_000, 100_000, None, kernel_files.MAX_KEPT),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None, kernel_files.MAX_KEPT),
        (1024, resource.RLIM_INFINITY, 66_048, kernel_files.MAX_KEPT),
    ],
)
def test_table_takes_half_of_what_the_process_may_open(
    soft: int, hard: int, raised: int | None, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, asked = [soft, hard], []

    def raise_to(_: int, wanted: tuple[int, int]) -> None:
        asked.append(wanted)
        limits[:] = wanted

    monkeypatch.setattr(kernel_files.resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(kernel_files.resource, "setrlimit", raise_to)
    assert room_for_descriptors() == room
    assert [limit for limit, _ in asked if limit != soft] == ([] if raised is None else [raised])
    assert all(kept == hard for _, kept in asked)
