"""KernelFiles on the real kernel, or on any tree laid out like it: three roots, and errno sorted into "absent" and "failed"."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from shared.errors import HostError

# Not there, process gone, device gone, not supported by this kernel (PSI off): the reading is absent, which is no failure.
_ABSENT = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENOTDIR, errno.EOPNOTSUPP, errno.EINVAL})


class RootedFiles:
    """Files below `proc`, `sys` and `cgroup`."""

    def __init__(self, proc: Path = Path("/proc"), sys: Path = Path("/sys"), cgroup: Path = Path("/sys/fs/cgroup")) -> None:
        self.proc = proc
        self.sys = sys
        self.cgroup = cgroup

    def read(self, path: Path) -> str | None:
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            _raise_unless_absent(path, error)
            return None

    def names(self, path: Path) -> list[str]:
        try:
            return sorted(os.listdir(path))  # noqa: PTH208  # names only: iterdir would build a Path for each of thousands of processes
        except OSError as error:
            _raise_unless_absent(path, error)
            return []

    def link(self, path: Path) -> str | None:
        try:
            return os.readlink(path)  # noqa: PTH115  # the target is a name like net:[402...], not a path
        except OSError as error:
            _raise_unless_absent(path, error)
            return None


def _raise_unless_absent(path: Path, error: OSError) -> None:
    if error.errno not in _ABSENT:
        raise HostError(f"{path}: {error.strerror}") from error
