"""QEMU processes: which one runs a domain, and what tells it apart from a later one with the same pid.

libvirt has no call for the pid, and its pid files lie in its own mount namespace; the command line (`-uuid UUID`) is visible everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from agent.sampling.cgroup import domain_group, parse_proc_cgroup
from agent.sampling.files import KernelFiles

_PAGE = os.sysconf("SC_PAGE_SIZE")


class ProcessStat(msgspec.Struct, frozen=True, kw_only=True):
    """What sampling takes from /proc/PID/stat."""

    major_faults: int  # page faults that waited for the host's disk
    ticks: int  # CPU time of all threads, 10 ms each: the coarse fallback where the VM has no group of its own
    threads: int
    started: int  # ticks since boot: tells the process from a later one with the same pid
    rss_bytes: int  # what /proc/PID/status calls VmRSS. (smaps_rollup would be truer and costs 20 times as much.)


def parse_stat(text: bytes) -> ProcessStat | None:
    """A /proc/PID/stat; None when it has another shape. comm may itself hold spaces and brackets, so split after the last one."""
    fields = text[text.rfind(b")") + 1 :].split(None, 22)  # the first is field 3 of proc(5)
    if len(fields) < 22:
        return None
    return ProcessStat(
        major_faults=int(fields[9]),
        ticks=int(fields[11]) + int(fields[12]),
        threads=int(fields[17]),
        started=int(fields[19]),
        rss_bytes=int(fields[21]) * _PAGE,
    )


def start_time(files: KernelFiles, pid: int) -> int | None:
    """Start of the process in ticks since boot; None when it is gone."""
    stat = parse_stat((files.read(files.proc / str(pid) / "stat") or "").encode())
    return None if stat is None else stat.started


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
