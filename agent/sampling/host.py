"""Totals of the host: CPU time, memory, pressure, huge pages, identity of the boot.

libvirt's nodeinfo is not used: its memory is wrong on kernels that initialise memory lazily.
"""

from __future__ import annotations

import os

import msgspec

from agent.sampling.files import KernelFiles, Watched
from agent.sampling.psi import RESOURCES, Pressure, watch_pressure
from shared.errors import HostError
from shared.units import KIB

TICK_NS = 10_000_000  # USER_HZ is 100 on every Linux architecture that runs KVM
_IDLE = (3, 4)  # idle and iowait
_STEAL = 7


class HostMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of the host's memory; `available` is the kernel's estimate of what can be had without swapping. Huge pages are counts."""

    total_bytes: int | None = None
    available_bytes: int | None = None
    hugepages_total: int | None = None
    hugepages_free: int | None = None


class HostCpu(msgspec.Struct, frozen=True, kw_only=True):
    """CPU time over all CPUs in nanoseconds; `busy` is anything but idling, `steal` what another hypervisor took (part of busy)."""

    busy_ns_total: int | None = None
    steal_ns_total: int | None = None


def parse_meminfo(text: str) -> HostMemory:
    """/proc/meminfo: `MemTotal:  24684096 kB`, `HugePages_Total:       0`."""
    values = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        fields = rest.split()
        if fields and fields[0].isdigit():
            values[name] = int(fields[0]) * (KIB if fields[-1] == "kB" else 1)
    return HostMemory(
        total_bytes=values.get("MemTotal"),
        available_bytes=values.get("MemAvailable"),
        hugepages_total=values.get("HugePages_Total"),
        hugepages_free=values.get("HugePages_Free"),
    )


def parse_cpu(text: bytes) -> HostCpu:
    """The first line of /proc/stat: `cpu user nice system idle iowait irq softirq steal guest guest_nice`; guest is inside user."""
    fields = text[: text.find(b"\n")].split()
    if len(fields) < 5 or fields[0] != b"cpu":
        return HostCpu()
    ticks = [int(field) for field in fields[1:9]]
    busy = sum(value for i, value in enumerate(ticks) if i not in _IDLE)
    return HostCpu(busy_ns_total=busy * TICK_NS, steal_ns_total=ticks[_STEAL] * TICK_NS if len(ticks) > _STEAL else None)


class HostFiles:
    """Kept files of the host's own totals."""

    def __init__(self, files: KernelFiles) -> None:
        self._files = files
        self._boot_id = ""
        self._cpu = Watched(files.opened(files.proc / "stat"), parse_cpu, HostCpu())
        self._memory = Watched(files.opened(files.proc / "meminfo"), lambda text: parse_meminfo(text.decode()), HostMemory())
        self._pressure = {name: watch_pressure(files, files.proc / "pressure" / name) for name in RESOURCES}

    def boot_id(self) -> str:
        """Identity of this boot, which is the same for as long as this process lives. Raises HostError as read_boot_id does."""
        self._boot_id = self._boot_id or read_boot_id(self._files)
        return self._boot_id

    def cpu(self) -> HostCpu:
        """CPU time now."""
        return self._cpu.read()

    def memory(self) -> HostMemory:
        """Memory now."""
        return self._memory.read()

    def pressure(self, resource: str) -> Pressure:
        """Stall totals of "cpu", "memory" or "io" now; all None where PSI is off."""
        return self._pressure[resource].read()


def read_memory(files: KernelFiles) -> HostMemory:
    """The host's memory, once."""
    return parse_meminfo(files.read(files.proc / "meminfo") or "")


def read_boot_id(files: KernelFiles) -> str:
    """Identity of this boot. Raises HostError when the kernel does not say: nothing can be trusted across restarts then."""
    text = (files.read(files.proc / "sys" / "kernel" / "random" / "boot_id") or "").strip()
    if not text:
        raise HostError(f"{files.proc}/sys/kernel/random/boot_id: absent")
    return text


def cpu_count() -> int:
    """Logical CPUs that are online."""
    return os.cpu_count() or 1
