"""vCPU threads of a QEMU process and their run delay, from /proc/PID/task/TID/{comm,schedstat}.

QEMU names the threads `CPU 0/KVM` (or `/TCG`). schedstat is `run_ns delay_ns slices`: delay is the time a thread was ready to run and
did not. It includes the time the VM's own quota held it back, so derive takes the throttled time off.
Source: Documentation/scheduler/sched-stats.rst.
"""

from __future__ import annotations

import re

import msgspec

from agent.sampling.files import KernelFiles

_VCPU_THREAD = re.compile(r"^CPU \d+/")


class VcpuThreads(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the vCPU threads. `count` 0 = no such thread was found, and the sums are None."""

    count: int
    run_ns_total: int | None = None
    delay_ns_total: int | None = None


def parse_schedstat(text: str) -> tuple[int, int] | None:
    """(run ns, delay ns) of a schedstat file; None when it has another shape."""
    fields = text.split()
    return (int(fields[0]), int(fields[1])) if len(fields) >= 2 and fields[0].isdigit() and fields[1].isdigit() else None


def read_vcpu_threads(files: KernelFiles, pid: int) -> VcpuThreads:
    """The vCPU threads of `pid`. A thread that ends meanwhile is left out."""
    tasks = files.proc / str(pid) / "task"
    stats, count = [], 0
    for tid in files.names(tasks):
        if _VCPU_THREAD.match(files.read(tasks / tid / "comm") or ""):
            count += 1
            stats.append(parse_schedstat(files.read(tasks / tid / "schedstat") or ""))
    known = [stat for stat in stats if stat is not None]
    if not count or len(known) < count:
        return VcpuThreads(count=count)
    return VcpuThreads(count=count, run_ns_total=sum(run for run, _ in known), delay_ns_total=sum(delay for _, delay in known))
