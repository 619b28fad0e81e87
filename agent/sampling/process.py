"""QEMU processes: which one runs a domain, and what tells it apart from a later one with the same pid.

libvirt has no call for the pid, and its pid files lie in its own mount namespace; the command line (`-uuid UUID`) is visible everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent.sampling.cgroup import domain_group, parse_proc_cgroup
from agent.sampling.files import KernelFiles

_START_TIME = 21 - 2  # field 22 of /proc/PID/stat; the first two, pid and (comm), are cut off before splitting
_CPU_TIMES = (13 - 2, 14 - 2)  # utime and stime, in ticks
_MAJOR_FAULTS = 11 - 2


def parse_stat(text: str) -> list[str]:
    """The fields of /proc/PID/stat from the third on; comm may itself hold spaces and brackets, so split after the last one."""
    return text.rpartition(")")[2].split()


def start_time(files: KernelFiles, pid: int) -> int | None:
    """Start of the process in ticks since boot; None when it is gone."""
    return _stat_field(files, pid, _START_TIME)


def major_faults(files: KernelFiles, pid: int) -> int | None:
    """Page faults of the QEMU process that waited for the host's disk."""
    return _stat_field(files, pid, _MAJOR_FAULTS)


def cpu_ticks(files: KernelFiles, pid: int) -> int | None:
    """CPU time of all threads in ticks (10 ms): the coarse fallback where the VM has no group of its own."""
    fields = [_stat_field(files, pid, index) for index in _CPU_TIMES]
    return None if fields[0] is None or fields[1] is None else fields[0] + fields[1]


def parse_uuid(command_line: str) -> str | None:
    """The domain of a QEMU command line (words separated by NUL)."""
    words = command_line.split("\0")
    return words[words.index("-uuid") + 1] if "-uuid" in words[:-1] else None


def find_qemu(files: KernelFiles) -> Mapping[str, int]:
    """UUID -> pid of every running QEMU.

    Anyone may start a process with a domain's UUID on its command line: where two claim one, the one in a group that libvirt made wins.
    """
    found: dict[str, int] = {}
    for name in files.names(files.proc):
        if not name.isdigit() or "qemu" not in (files.read(files.proc / name / "comm") or ""):
            continue
        uuid = parse_uuid(files.read(files.proc / name / "cmdline") or "")
        if uuid is not None and (uuid not in found or _is_libvirts(files, name)):
            found[uuid] = int(name)
    return found


def _is_libvirts(files: KernelFiles, pid: str) -> bool:
    paths = parse_proc_cgroup(files.read(files.proc / pid / "cgroup") or "")
    return any(domain_group(path) is not None for path in paths.values())


def _stat_field(files: KernelFiles, pid: int, index: int) -> int | None:
    fields = parse_stat(files.read(files.proc / str(pid) / "stat") or "")
    return int(fields[index]) if len(fields) > index else None
