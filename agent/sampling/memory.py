"""Memory of one VM: what its process holds on the host (/proc/PID/status) and what the guest's balloon driver reports.

The guest writes the balloon figures itself: they are foreign input, bounded here and judged again in derive. libvirt gives KiB and seconds.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agent.sampling.files import KernelFiles
from shared.units import KIB, NS_PER_S

_LARGEST = 2**52  # bytes: nothing real is larger, and sums stay inside int64


class Balloon(msgspec.Struct, frozen=True, kw_only=True):
    """Balloon statistics of one domain in bytes; None where the guest (no driver yet) or the hypervisor does not say."""

    actual_bytes: int | None = None
    usable_bytes: int | None = None
    unused_bytes: int | None = None
    reading_wall_ns: int | None = None
    major_faults_total: int | None = None
    swap_bytes_total: int | None = None


def parse_balloon(stats: Mapping[str, object]) -> Balloon:
    """From the `balloon.*` keys of libvirt's bulk statistics."""

    def number(key: str, unit: int = KIB) -> int | None:
        value = stats.get(f"balloon.{key}")
        return value * unit if isinstance(value, int) and 0 <= value <= _LARGEST // unit else None

    swap = (number("swap_in"), number("swap_out"))
    written = number("last-update", 1)
    return Balloon(
        actual_bytes=number("current"),
        usable_bytes=number("usable"),
        unused_bytes=number("unused"),
        reading_wall_ns=written * NS_PER_S if written else None,  # 0 = the guest has never written
        major_faults_total=number("major_fault", 1),
        swap_bytes_total=None if swap[0] is None or swap[1] is None else swap[0] + swap[1],
    )


def parse_rss(status: str) -> int | None:
    """VmRSS of a /proc/PID/status, in bytes."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "VmRSS":
            return int(value.split()[0]) * KIB
    return None


def read_rss(files: KernelFiles, pid: int) -> int | None:
    """Resident memory of a process in bytes; None when it is gone. (smaps_rollup would be truer and costs 20 times as much.)"""
    return parse_rss(files.read(files.proc / str(pid) / "status") or "")
