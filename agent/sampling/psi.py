"""Pressure stall information: /proc/pressure/* of the host and *.pressure of a cgroup v2 group.

`total` counts microseconds in which some (or all) runnable tasks waited for the resource; only totals are read, because the kernel's
averages have a smoothing of their own. Source: Documentation/accounting/psi.rst.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from agent.sampling.files import KernelFiles


class Pressure(msgspec.Struct, frozen=True, kw_only=True):
    """Stall time so far in microseconds; None where the kernel has no such line."""

    some_us_total: int | None = None
    full_us_total: int | None = None


def parse_pressure(text: str) -> Pressure:
    """A pressure file: `some avg10=0.00 avg60=0.00 avg300=0.00 total=5243`, then `full ...`."""
    totals = {}
    for line in text.splitlines():
        kind, _, fields = line.partition(" ")
        _, found, total = fields.partition("total=")
        if found and total.isdigit():
            totals[kind] = int(total)
    return Pressure(some_us_total=totals.get("some"), full_us_total=totals.get("full"))


def read_host_pressure(files: KernelFiles, resource: str) -> Pressure:
    """/proc/pressure/{cpu,memory,io}; all None where PSI is off."""
    return parse_pressure(files.read(files.proc / "pressure" / resource) or "")


def read_group_pressure(files: KernelFiles, group: Path | None, resource: str) -> Pressure:
    """{cpu,memory,io}.pressure of a cgroup v2 group; all None without one."""
    return Pressure() if group is None else parse_pressure(files.read(group / f"{resource}.pressure") or "")
