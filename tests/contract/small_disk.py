"""A real disk that is soon full: a tmpfs of a few hundred kilobytes, mounted for one test."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FILLER = "filler"


class SmallDisk:
    """`fill` leaves nothing free, `free` takes that back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        with contextlib.suppress(OSError), (self.folder / FILLER).open("ab", buffering=0) as file:
            while file.write(b"\0" * 1024):
                pass

    def free(self) -> None:
        (self.folder / FILLER).unlink()


@contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[SmallDisk]:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no tmpfs of our own ({'not root' if os.getuid() else done.stderr.strip()})")
    try:
        yield SmallDisk(folder)
    finally:
        # lazily: what a failed test left open must not keep it
        subprocess.run(["umount", "-l", str(folder)], check=True)
