"""Wiring of a libvirt host: kernel files, traffic shaper, hypervisor and sampler, from the agent's settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import structlog

from agent.adapters.kernel_files import RootedFiles
from agent.adapters.libvirt_hypervisor import CommitLimits, LibvirtHypervisor
from agent.adapters.pyroute2_shaper import Pyroute2Shaper
from agent.sampling.sampler import RunningDomain, Sampler
from shared.clock import Clock, SystemClock
from shared.errors import HostError
from shared.units import GIB

_log = structlog.get_logger(__name__)


class LibvirtHost(LibvirtHypervisor):
    """A LibvirtHypervisor that owns its shaper: renewing the list of domains sweeps away what belonged to taps that are gone."""

    def __init__(self, uri: str, files: RootedFiles, shaper: Pyroute2Shaper, limits: CommitLimits) -> None:
        super().__init__(uri, files, shaper, limits)
        self._owned = shaper

    def running(self) -> Sequence[RunningDomain]:
        found = super().running()
        try:
            gone = self._owned.sweep()
        except HostError as error:
            _log.warning("shaping of vanished taps could not be removed", error=str(error))
        else:
            if gone:
                _log.info("shaping of vanished taps removed", devices=gone)
        return found

    def close(self) -> None:
        super().close()
        self._owned.close()


def open_libvirt_host(
    *,
    libvirt_uri: str = "qemu:///system",
    network_namespace: str = "",
    proc_root: str = "/proc",
    sys_root: str = "/sys",
    cgroup_root: str = "/sys/fs/cgroup",
    cpu_commit_ratio: float = 4.0,
    memory_commit_ratio: float = 1.0,
    memory_reserve_bytes: int = GIB,
    net_bits_per_s: int = 10_000_000_000,
    clock: Clock | None = None,
) -> tuple[LibvirtHypervisor, Sampler]:
    """(Hypervisor, HostReader) of this machine; names and meanings are those of AgentConfig.

    Closing the hypervisor closes the shaper as well. Raises ConfigError without libvirt-python, HostError when the network namespace cannot
    be entered; libvirtd itself is first asked at the first call.
    """
    files = RootedFiles(proc=Path(proc_root), sys=Path(sys_root), cgroup=Path(cgroup_root))
    shaper = Pyroute2Shaper(network_namespace, net_bits_per_s)
    try:
        limits = CommitLimits(
            cpu_commit_ratio=cpu_commit_ratio,
            memory_commit_ratio=memory_commit_ratio,
            memory_reserve_bytes=memory_reserve_bytes,
            net_bits_per_s=net_bits_per_s,
        )
        hypervisor = LibvirtHost(libvirt_uri, files, shaper, limits)
    except BaseException:
        shaper.close()
        raise
    reader = Sampler(files, hypervisor, clock or SystemClock(), shaper)
    hypervisor.watch(reader.invalidate)
    return hypervisor, reader
