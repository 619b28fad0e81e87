"""What bench/agent_cost measures on: many paused domains under a libvirtd of their own, and what a process costs by its /proc files.

Paused TCG domains have everything that the agent and the exporters read (QEMU, vCPU threads, groups, tap, disk, balloon) and use no CPU,
so hundreds fit beside the measurement. No guest system is needed.
"""

from __future__ import annotations

import importlib
import os
import pwd
import shutil
import sys
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
TICKS: Final = os.sysconf("SC_CLK_TCK")

DOMAIN = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory><vcpu>2</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/><tcg><tb-cache unit='MiB'>1</tb-cache></tcg></features>
<cpu mode='custom' match='exact'><model fallback='allow'>qemu64</model></cpu>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
<interface type='ethernet'><target dev='{tap}' managed='yes'/><model type='virtio'/></interface>
<memballoon model='virtio'><stats period='5'/></memballoon></devices></domain>"""


def reason_to_skip() -> str | None:
    """Why no domains can be started here; None when they can."""
    if os.geteuid() != 0:
        return "needs root"
    for program in ("qemu-system-x86_64", "/usr/sbin/libvirtd", "ip", "nsenter", "unshare"):
        if shutil.which(program) is None:
            return f"{program} is missing (tests/realhost/install_packages.sh installs what is needed)"
    try:
        pwd.getpwnam("libvirt-qemu")
        import libvirt  # noqa: F401, PLC0415  # only its presence is asked
    except KeyError:
        return "user libvirt-qemu is missing (tests/realhost/install_packages.sh makes it)"
    except ImportError:
        return "libvirt-python is not installed (pip install tidegate[libvirt])"
    return None


class PausedDomains:
    """A private libvirtd with `count` paused domains of 2 vCPUs, one tap, one disk. Ask `reason_to_skip` first."""

    def __init__(self, count: int) -> None:
        sys.path.insert(0, str(ROOT / "tests/realhost"))
        real_host = importlib.import_module("real_host")  # the tests' own machinery, which is no package
        real_host.CACHE.mkdir(parents=True, exist_ok=True)
        self.host: Any = real_host.RealHost()
        try:
            for i in range(count):
                disk = self.host.directory / f"v{i}.img"
                with disk.open("wb") as image:
                    image.truncate(1 << 20)
                xml = DOMAIN.format(name=f"v{i}", disk=disk, tap=f"tap-v{i}")
                self.host.connection.createXML(xml, self.host.libvirt.VIR_DOMAIN_START_PAUSED)
        except BaseException:
            self.host.close()
            raise

    @property
    def daemon_pid(self) -> int:
        """Of libvirtd."""
        return int((self.host.directory / "run/libvirtd.pid").read_text())

    def __enter__(self) -> PausedDomains:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.host.close()


class ProcessCost:
    """CPU time and sizes of one process."""

    def __init__(self, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")

    def cpu_seconds(self) -> float:
        """User and system time of all its threads so far; exact to 10 ms."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_mib(self) -> float:
        """Resident memory, libraries that others share included."""
        return self._status("VmRSS") / 1024

    def threads(self) -> int:
        """Its threads now."""
        return self._status("Threads")

    def descriptors(self) -> int:
        """Its open descriptors now."""
        return len(list((self._proc / "fd").iterdir()))

    def _status(self, key: str) -> int:
        for line in (self._proc / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return int(value.split()[0])
        raise ValueError(f"{self._proc}/status: no {key}")


def scrape(address: str) -> dict[str, float]:
    """One page of /metrics: series -> value."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
        text = page.read().decode()
    series = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            series[name] = float(value)
    return series
