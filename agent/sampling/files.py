"""The KernelFiles port: all the file reading that sampling does, so that a test can put a small tree of text in place of /proc and /sys.

What is read in every round is *kept*: opened once, then read from its start again and again. A kernel file costs 0.4 to 1 µs that way,
10 to 20 µs when it is opened by its path each time. An open file of /proc/PID or of a cgroup stays bound to that process or group: once
it is gone, reading says so, even when another one has taken its number or its name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

_T = TypeVar("_T")


class KeptFile(Protocol):
    """One file (or directory) that stays open as far as the table of descriptors allows."""

    def read(self) -> bytes | None:
        """The whole content now; None when the file, its process or its group is gone. Raises HostError when reading fails."""
        ...

    def links(self) -> int | None:
        """Number of links now: of a cgroup's directory its subgroups plus two; None when it was removed."""
        ...

    def retry(self) -> None:
        """Look by its path again for a file that was found gone; until then it stays gone, which costs nothing."""
        ...

    def close(self) -> None:
        """Give the descriptor back. A closed file may be read again: it opens anew."""
        ...


class KernelFiles(Protocol):
    """Text files of the kernel below injectable roots. Absent, vanished or unsupported is None or empty, never an error."""

    @property
    def proc(self) -> Path:
        """Root of procfs."""
        ...

    @property
    def sys(self) -> Path:
        """Root of sysfs."""
        ...

    @property
    def cgroup(self) -> Path:
        """What stands for /sys/fs/cgroup."""
        ...

    def read(self, path: Path) -> str | None:
        """The whole file; None where it does not exist or its process is gone. Raises HostError when reading is forbidden or fails."""
        ...

    def opened(self, path: Path) -> KeptFile:
        """A kept file; whether it exists shows when it is read."""
        ...

    def names(self, path: Path) -> list[str]:
        """Names in a directory, sorted; empty where there is none."""
        ...

    def link(self, path: Path) -> str | None:
        """Target of a symbolic link; None where there is none."""
        ...


class Watched(Generic[_T]):
    """A kept file with its parser: text that has not changed since the last reading is not parsed again."""

    __slots__ = ("_absent", "_file", "_parse", "_text", "_value")

    def __init__(self, file: KeptFile, parse: Callable[[bytes], _T], absent: _T) -> None:
        self._file = file
        self._parse = parse
        self._absent = self._value = absent
        self._text: bytes | None = None

    def read(self) -> _T:
        """The parsed content now; `absent` when the file is gone."""
        text = self._file.read()
        if text is None:
            return self._absent
        if text != self._text:
            self._value = self._parse(text)
            self._text = text
        return self._value

    def retry(self) -> None:
        """See KeptFile."""
        self._file.retry()

    def close(self) -> None:
        """Give the descriptor back."""
        self._file.close()


def field(text: bytes, key: bytes) -> int | None:
    """The number behind `key` at the start of a line of `key value` (cpu.stat, memory.stat); None without such a line."""
    if text.startswith(key + b" "):
        start = len(key) + 1
    else:
        found = text.find(b"\n" + key + b" ")
        if found < 0:
            return None
        start = found + len(key) + 2
    end = text.find(b"\n", start)
    value = text[start:] if end < 0 else text[start:end]
    return int(value) if value.isdigit() else None


def whole_number(text: bytes) -> int | None:
    """A file that holds one whole number; None where it holds something else ("max")."""
    try:
        return int(text)
    except ValueError:
        return None


def parse_flat(text: str) -> dict[str, int]:
    """Lines of `key value` (cpu.stat, memory.stat). Unknown keys are kept, lines of another shape are left out."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].lstrip("-").isdigit()}


def read_int(files: KernelFiles, path: Path) -> int | None:
    """A file that holds one whole number; None where it is absent or holds something else ("max")."""
    text = (files.read(path) or "").strip()
    return int(text) if text.lstrip("-").isdigit() else None
