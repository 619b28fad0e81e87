"""KernelFiles on the real kernel, or on any tree laid out like it: three roots, and errno sorted into "absent" and "failed".

Kept files share one bounded table of descriptors. Past its bound a kept file still reads right, by its path and ten times slower.
"""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Final

from shared.errors import HostError

# Not there, process gone, device gone, not supported by this kernel (PSI off): the reading is absent, which is no failure.
_ABSENT = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENOTDIR, errno.EOPNOTSUPP, errno.EINVAL})
_FULL = frozenset({errno.EMFILE, errno.ENFILE})

# A VM of 2 vCPUs keeps 20 to 30 files open: this serves more than 1000 of them, and one descriptor costs the kernel about 1 KiB.
MAX_KEPT: Final = 32_768
# Sockets, journal, spool, libvirt, short-lived opens. Of the process's limit the table takes half: perf events take the other.
SPARE_DESCRIPTORS: Final = 256

# One page is what the kernel's sequential files give at a time: a reading that is clearly shorter is complete. "Clearly": a file of
# records ends a page early by up to one record, and none of those read here has records of a quarter of a page.
_PAGE: Final = 4096
_SURELY_COMPLETE: Final = 3072


class RootedFiles:
    """Files below `proc`, `sys` and `cgroup`."""

    def __init__(
        self,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
        cgroup: Path = Path("/sys/fs/cgroup"),
        max_kept: int | None = None,
    ) -> None:
        """`max_kept`: descriptors for kept files at most; None = up to MAX_KEPT, as many as the process's limit allows."""
        self.proc = proc
        self.sys = sys
        self.cgroup = cgroup
        self._table = _Table(room_for_descriptors() if max_kept is None else max_kept)

    @property
    def kept(self) -> int:
        """Descriptors that kept files hold now."""
        return self._table.used

    def read(self, path: Path) -> str | None:
        try:
            return _read_at(path).decode("utf-8", "replace")
        except OSError as error:
            _raise_unless_absent(path, error)
            return None

    def opened(self, path: Path) -> Kept:
        return Kept(path, self._table)

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


class _Table:
    """How many descriptors kept files hold, and may hold."""

    __slots__ = ("most", "used")

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0


class Kept:
    """Implements KeptFile. Not for use by two threads at once."""

    __slots__ = ("_descriptor", "_gone", "_path", "_table")

    def __init__(self, path: Path, table: _Table) -> None:
        self._path = path
        self._table = table
        self._descriptor = -1
        self._gone = False

    def read(self) -> bytes | None:
        descriptor = self._descriptor
        if descriptor < 0:
            return None if self._gone else self._read_anew()
        try:
            text = os.pread(descriptor, _PAGE, 0)
            return text if len(text) < _SURELY_COMPLETE else _rest(descriptor, text)
        except OSError as error:
            self._lost(error)
            return None

    def links(self) -> int | None:
        if self._gone:
            return None
        try:
            if self._descriptor < 0 and not self._open():
                return os.stat(self._path).st_nlink  # noqa: PTH116  # counts every microsecond
            return os.fstat(self._descriptor).st_nlink or None  # 0: removed and still open
        except OSError as error:
            self._lost(error)
            return None

    def retry(self) -> None:
        self._gone = False

    def close(self) -> None:
        self._gone = False
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._table.used -= 1
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()

    def _lost(self, error: OSError) -> None:
        """Raises HostError when the file is there and cannot be read."""
        self.close()
        _raise_unless_absent(self._path, error)
        self._gone = True

    def _read_anew(self) -> bytes | None:
        try:
            if not self._open():
                return _read_at(self._path)
            return _rest(self._descriptor, b"")
        except OSError as error:
            self._lost(error)
            return None

    def _open(self) -> bool:
        """Whether there is a descriptor now; False = the table is full. Raises OSError."""
        table = self._table
        if table.used >= table.most:
            return False
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            table.most = table.used  # the process has fewer to give than was thought
            return False
        table.used += 1
        return True


def room_for_descriptors() -> int:
    """Descriptors that kept files may hold; raises the process's soft limit towards its hard one for that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * (MAX_KEPT + SPARE_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_KEPT if soft == resource.RLIM_INFINITY else max(0, min(MAX_KEPT, soft // 2 - SPARE_DESCRIPTORS))


def _rest(descriptor: int, text: bytes) -> bytes:
    """`text` and what follows it, up to the end of the file."""
    while more := os.pread(descriptor, 1 << 16, len(text)):
        text += more
    return text


def _read_at(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _rest(descriptor, b"")
    finally:
        os.close(descriptor)


def _raise_unless_absent(path: Path, error: OSError) -> None:
    if error.errno not in _ABSENT:
        raise HostError(f"{path}: {error.strerror}") from error
