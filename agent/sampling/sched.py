"""vCPU threads of a QEMU process and their run delay, from /proc/PID/task/TID/{comm,schedstat}.

QEMU names the threads `CPU 0/KVM` (or `/TCG`). schedstat is `run_ns delay_ns slices`: delay is the time a thread was ready to run and
did not. It includes the time the VM's own quota held it back, so derive takes the throttled time off. Delay is counted as a thread gets to
run: of a VM that has not run at all since the last reading nothing is read.
Source: Documentation/scheduler/sched-stats.rst.
"""

from __future__ import annotations

import re

import msgspec

from agent.sampling.files import KernelFiles, Watched

_VCPU_THREAD = re.compile(r"^CPU \d+/")


class VcpuThreads(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the vCPU threads. `count` 0 = no such thread was found, and the sums are None."""

    count: int
    run_ns_total: int | None = None
    delay_ns_total: int | None = None


def parse_schedstat(text: bytes) -> tuple[int, int] | None:
    """(run ns, delay ns) of a schedstat file; None when it has another shape."""
    fields = text.split()
    return (int(fields[0]), int(fields[1])) if len(fields) >= 2 and fields[0].isdigit() and fields[1].isdigit() else None


class ThreadFiles:
    """Kept schedstat files of one process's vCPU threads."""

    def __init__(self, files: KernelFiles, pid: int) -> None:
        self._files = files
        self._tasks = files.proc / str(pid) / "task"
        self._threads: dict[str, Watched[tuple[int, int] | None] | None] = {}  # thread -> its file; None = not a vCPU
        self._vcpus: tuple[Watched[tuple[int, int] | None], ...] = ()
        self._tids: tuple[int, ...] = ()
        self._sign: object = None
        self._newest: VcpuThreads | None = None  # None = read them in any case
        self._delay: int | None = None  # of the newest look or reading

    @property
    def tids(self) -> tuple[int, ...]:
        """Thread ids of the vCPUs."""
        return self._tids

    def read(self, sign: object, *, has_run: bool = True) -> VcpuThreads:
        """The threads now. `sign`: whatever changes when a vCPU may have come or gone; the list is renewed only then. `has_run`: False when
        none has run since the last reading or look.

        Listing costs 40 times a reading, and a QEMU whose I/O threads come and go changes its list all the time: known ones are kept.
        """
        if sign != self._sign:
            self._list()
            self._sign, self._newest = sign, None
        if has_run or self._newest is None:
            self._newest = self._sum()
        self._delay = self._newest.delay_ns_total
        return self._newest

    def delay_ns(self, *, has_run: bool = True) -> int | None:
        """Run delay of the threads known so far; None when one has ended or there is none. `has_run` as for `read`."""
        if has_run or self._delay is None:
            self._delay, self._newest = self._look(), None
        return self._delay

    def _look(self) -> int | None:
        total = 0
        for file in self._vcpus:
            stat = file.read()
            if stat is None:
                return None
            total += stat[1]
        return total if self._vcpus else None

    def _sum(self) -> VcpuThreads:
        stats = [file.read() for file in self._vcpus]
        if None in stats:  # one has just ended
            self._list()
            stats = [file.read() for file in self._vcpus]
        count, run, delay = len(stats), 0, 0
        for stat in stats:
            if stat is None:
                return VcpuThreads(count=count)
            run += stat[0]
            delay += stat[1]
        return VcpuThreads(count=count, run_ns_total=run, delay_ns_total=delay) if count else VcpuThreads(count=0)

    def retry(self) -> None:
        """List anew next time, with the names of all threads: one may have been seen before QEMU had named it."""
        self._sign = self._newest = self._delay = None
        self._threads = {tid: file for tid, file in self._threads.items() if file is not None}

    def close(self) -> None:
        """Give all descriptors back."""
        for file in self._vcpus:
            file.close()

    def _list(self) -> None:
        known = self._threads
        threads: dict[str, Watched[tuple[int, int] | None] | None] = {}
        for tid in self._files.names(self._tasks):
            new = tid not in known
            file = known.pop(tid, None)
            if file is not None and file.read() is None:
                file.close()
                new = True
            if new:
                is_vcpu = _VCPU_THREAD.match(self._files.read(self._tasks / tid / "comm") or "")
                file = Watched(self._files.opened(self._tasks / tid / "schedstat"), parse_schedstat, None) if is_vcpu else None
            threads[tid] = file
        for gone in known.values():
            if gone is not None:
                gone.close()
        self._threads = threads
        self._vcpus = tuple(file for file in threads.values() if file is not None)
        self._tids = tuple(int(tid) for tid, file in threads.items() if file is not None)


def read_vcpu_threads(files: KernelFiles, pid: int) -> VcpuThreads:
    """The vCPU threads of `pid`, once. A thread that ends meanwhile is left out."""
    threads = ThreadFiles(files, pid)
    try:
        return threads.read(pid)
    finally:
        threads.close()
