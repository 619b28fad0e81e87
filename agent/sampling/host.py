"""Totals of the host: CPU time from psutil, memory from /proc/meminfo, identity of the boot.

libvirt's nodeinfo is not used: its memory is wrong on kernels that initialise memory lazily.
"""

from __future__ import annotations

import msgspec
import psutil

from agent.sampling.files import KernelFiles
from shared.errors import HostError
from shared.units import KIB, NS_PER_S


class HostMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of the host's memory; `available` is the kernel's estimate of what can be had without swapping."""

    total_bytes: int | None = None
    available_bytes: int | None = None


def parse_meminfo(text: str) -> HostMemory:
    """/proc/meminfo: `MemTotal:  24684096 kB`."""
    values = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        fields = rest.split()
        if fields and fields[0].isdigit():
            values[name] = int(fields[0]) * KIB
    return HostMemory(total_bytes=values.get("MemTotal"), available_bytes=values.get("MemAvailable"))


def read_memory(files: KernelFiles) -> HostMemory:
    """The host's memory now."""
    return parse_meminfo(files.read(files.proc / "meminfo") or "")


def read_boot_id(files: KernelFiles) -> str:
    """Identity of this boot. Raises HostError when the kernel does not say: nothing can be trusted across restarts then."""
    text = (files.read(files.proc / "sys" / "kernel" / "random" / "boot_id") or "").strip()
    if not text:
        raise HostError(f"{files.proc}/sys/kernel/random/boot_id: absent")
    return text


def read_cpu_busy_ns() -> int:
    """CPU time spent on anything but idling, over all CPUs, in nanoseconds (guest time is inside user time)."""
    times = psutil.cpu_times()
    busy = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
    return int(busy * NS_PER_S)


def cpu_count() -> int:
    """Logical CPUs that are online."""
    return int(psutil.cpu_count(logical=True) or 1)
