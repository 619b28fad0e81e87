"""The KernelFiles port: all the file reading that sampling does, so that a test can put a small tree of text in place of /proc and /sys."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


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

    def names(self, path: Path) -> list[str]:
        """Names in a directory, sorted; empty where there is none."""
        ...

    def link(self, path: Path) -> str | None:
        """Target of a symbolic link; None where there is none."""
        ...


def parse_flat(text: str) -> dict[str, int]:
    """Lines of `key value` (cpu.stat, memory.stat). Unknown keys are kept, lines of another shape are left out."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].lstrip("-").isdigit()}


def read_int(files: KernelFiles, path: Path) -> int | None:
    """A file that holds one whole number; None where it is absent or holds something else ("max")."""
    text = (files.read(path) or "").strip()
    return int(text) if text.lstrip("-").isdigit() else None
