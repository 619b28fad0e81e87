"""Pressure stall information: /proc/pressure/* of the host and *.pressure of a cgroup v2 group.

`total` counts microseconds in which some (or all) runnable tasks waited for the resource; only totals are read, because the kernel's
averages have a smoothing of their own. Source: Documentation/accounting/psi.rst.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from agent.sampling.files import KernelFiles, Watched

RESOURCES = ("cpu", "memory", "io")


class Pressure(msgspec.Struct, frozen=True, kw_only=True):
    """Stall time so far in microseconds; None where the kernel has no such line."""

    some_us_total: int | None = None
    full_us_total: int | None = None


def parse_pressure(text: bytes) -> Pressure:
    """A pressure file: `some avg10=0.00 avg60=0.00 avg300=0.00 total=5243`, then `full ...` (for the CPU since Linux 5.13)."""
    totals: dict[bytes, int] = {}
    for line in text.splitlines():
        before, found, total = line.partition(b"total=")
        if found and total.isdigit():
            totals[before[:4]] = int(total)
    return Pressure(some_us_total=totals.get(b"some"), full_us_total=totals.get(b"full"))


def watch_pressure(files: KernelFiles, path: Path) -> Watched[Pressure]:
    """A kept pressure file; all None where PSI is off."""
    return Watched(files.opened(path), parse_pressure, Pressure())
