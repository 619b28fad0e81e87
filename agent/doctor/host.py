"""Checks of the machine: kernel, pressure, control groups, libvirt, perf."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.adapters.kernel_files import RootedFiles
from agent.doctor.finding import Finding, fail, ok, warn
from agent.sampling.cgroup import read_mounts
from shared.config import AgentConfig
from shared.errors import ConfigError, HostError, Refusal

KERNEL_LEAST: Final = (5, 10)  # the oldest that has been thought about: cgroup v2 complete, PSI, perf per cgroup
LIBVIRT_LEAST: Final = (9, 0)  # what the adapters are tested with
# what each controller is for
CONTROLLERS: Final = {"cpu": "CPU quota and shares", "memory": "the VM's charged memory", "io": "disk weight"}
V1_NAMES: Final = {"io": "blkio"}


def kernel(config: AgentConfig) -> Iterator[Finding]:
    """Its release, and counters of run delay."""
    release = platform.release()
    found = re.match(r"(\d+)\.(\d+)", release)
    if platform.system() != "Linux" or not found:
        yield fail("kernel", f"{platform.system()} {release}", "the agent runs on Linux")
        return
    least = ".".join(map(str, KERNEL_LEAST))
    if tuple(map(int, found.groups())) < KERNEL_LEAST:
        yield warn("kernel", f"Linux {release}, older than {least}", "readings may be missing; a newer kernel has them all")
    else:
        yield ok("kernel", f"Linux {release}")
    if (Path(config.proc_root) / "self" / "schedstat").exists():
        yield ok("kernel", "run delay (schedstat) is counted: CPU ready can be told")
    else:
        yield warn("kernel", f"{config.proc_root}/self/schedstat is missing: no CPU ready", "a kernel with CONFIG_SCHED_INFO")
    if os.geteuid() != 0:
        yield warn("kernel", "not run as root: some checks see less than the agent will", "sudo tidegate-agent doctor")


def pressure(config: AgentConfig) -> Iterator[Finding]:
    """Pressure stall information."""
    text = RootedFiles(proc=Path(config.proc_root)).read(Path(config.proc_root) / "pressure" / "cpu")
    if text:
        yield ok("psi", "pressure is reported")
    else:
        yield warn("psi", "no pressure (PSI): vetoes and growth under pressure fall back to throttling and run delay", "boot with psi=1")


def cgroups(config: AgentConfig) -> Iterator[Finding]:
    """Layout and controllers."""
    root = Path(config.cgroup_root)
    files = RootedFiles(proc=Path(config.proc_root), cgroup=root)
    mounts = read_mounts(files)
    unified = [mount for mount in mounts if "" in mount.controllers]
    v1 = sorted({name for mount in mounts for name in mount.controllers if name and "=" not in name})
    if not mounts:
        yield fail("cgroup", f"nothing is mounted below {root}", "mount the cgroup2 file system, or set cgroup_root")
        return
    v2: set[str] = set()
    for mount in unified:
        v2 |= set((files.read(Path(mount.mount_point) / "cgroup.controllers") or "").split())
    layout = "v2 (unified)" if unified and not v1 else "hybrid (v1 and v2)" if unified else "v1"
    yield ok("cgroup", f"layout {layout}; v1: {', '.join(v1) or 'none'}; v2: {', '.join(sorted(v2)) or 'none'}")
    for name, purpose in CONTROLLERS.items():
        if name not in v2 and V1_NAMES.get(name, name) not in v1:
            mend = f"enable it: cgroup_no_v1 and cgroup_disable must not name {name} on the kernel command line"
            yield warn("cgroup", f"controller {name} is missing: no {purpose}", mend)


def libvirt(config: AgentConfig) -> Iterator[Finding]:
    """The binding, the daemon and its version, its domains."""
    from agent.adapters.libvirt_connection import LibvirtConnection, import_libvirt  # noqa: PLC0415  # may not be installed

    try:
        module = import_libvirt()
    except ConfigError as error:
        yield fail("libvirt", str(error), "apt install python3-libvirt, or pip install 'tidegate[agent,libvirt]'")
        return
    yield ok("libvirt", f"libvirt-python, on libvirt's library {_version(module.getVersion())}")
    connection = LibvirtConnection(config.libvirt_uri)
    try:
        library, domains = connection.call(lambda opened: (opened.getLibVersion(), len(opened.listAllDomains())))
    except (HostError, Refusal) as error:
        yield fail("libvirt", str(error), f"start libvirtd or virtqemud, and check that {config.libvirt_uri} is its address")
        return
    finally:
        connection.close()
    if (library // 1_000_000, library // 1000 % 1000) < LIBVIRT_LEAST:
        least = ".".join(map(str, LIBVIRT_LEAST))
        yield warn(
            "libvirt", f"{config.libvirt_uri}: libvirt {_version(library)}, older than {least}", "upgrade: some levers may be refused"
        )
    else:
        yield ok("libvirt", f"{config.libvirt_uri}: libvirt {_version(library)}, {domains} domain{'s' if domains != 1 else ''}")


def perf(config: AgentConfig) -> Iterator[Finding]:
    """Whether events can be opened on a thread, software and hardware."""
    if not config.sampling.perf:
        yield ok("perf", "switched off (sampling.perf = false)")
        return
    from agent.adapters.perf_events import KernelPerfEvents  # noqa: PLC0415  # ctypes, for this check only
    from agent.sampling.perf import HARDWARE, SOFTWARE, PerfTarget  # noqa: PLC0415

    kernel_events = KernelPerfEvents()
    for what, events, without in (
        ("software", SOFTWARE, "no context switches, migrations and faults per VM"),
        ("hardware", HARDWARE, "no instructions per cycle and cache misses (common in virtual machines)"),
    ):
        try:
            group = kernel_events.open(PerfTarget(tid=0), events)
        except HostError as error:
            mend = "run as root or with CAP_PERFMON; or set sampling.perf = false" if what == "software" else ""
            yield warn("perf", f"{what} events: {error}: {without}", mend)
        else:
            group.close()
            yield ok("perf", f"{what} events can be counted")


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
