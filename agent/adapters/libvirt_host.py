"""Wiring of a libvirt host: kernel files, traffic shaper, hypervisor and sampler, from the agent's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from agent.adapters.kernel_files import RootedFiles
from agent.adapters.libvirt_collectors import LibvirtCollectors
from agent.adapters.libvirt_connection import LibvirtConnection
from agent.adapters.libvirt_hypervisor import CommitLimits, LibvirtHypervisor
from agent.adapters.libvirt_statistics import Connections, libvirt_statistics
from agent.adapters.netlink_shaper import NetlinkShaper
from agent.ports import RawHost
from agent.sampling.numa import read_numa
from agent.sampling.sampler import RunningDomain, Sampler
from shared.clock import Clock, SystemClock
from shared.errors import HostError
from shared.model import Domain
from shared.units import GIB

_log = structlog.get_logger(__name__)


KVM_SUMS: Final = "tidegate.kvm"  # a key of ours among libvirt's statistics


class LibvirtHost(LibvirtHypervisor):
    """A LibvirtHypervisor that owns its shaper and its collectors.

    Renewing the list of domains sweeps away what belonged to taps that are gone, and tells the collectors which VMs run.
    """

    def __init__(self, uri: str, files: RootedFiles, shaper: NetlinkShaper, limits: CommitLimits, collectors: LibvirtCollectors) -> None:
        super().__init__(uri, files, shaper, limits)
        self._owned = shaper
        self.collectors = collectors
        self._bulk_connections = Connections(lambda: LibvirtConnection(uri))
        self._bulk = libvirt_statistics(self._bulk_connections, self._libvirt)

    def domains(self) -> Sequence[Domain]:
        return self.collectors.with_reasons(super().domains())

    def bulk_stats(self) -> Mapping[str, Mapping[str, object]]:
        """libvirt's statistics, with KVM's counters (which are asked for more rarely) under KVM_SUMS where there are any."""
        found = super().bulk_stats()
        counters = {vm_id: self.collectors.kvm.newest(vm_id) for vm_id in found}
        return {vm_id: {**stats, KVM_SUMS: counters[vm_id]} if counters[vm_id] else stats for vm_id, stats in found.items()}

    def look(self, raw: RawHost) -> RawHost:
        """The round with the VMs named that libvirt's statistics pass by; guests that are short of memory are asked sooner."""
        self.collectors.look(raw)
        quarantined = self._bulk.quarantined()
        return msgspec.structs.replace(raw, failures=raw.failures | quarantined) if quarantined else raw

    def running(self) -> Sequence[RunningDomain]:
        found = super().running()
        vm_ids = [domain.vm_id for domain in found]
        self.collectors.follow(vm_ids)
        self._bulk.follow(vm_ids)
        try:
            gone = self._owned.sweep()
        except HostError as error:
            _log.warning("shaping of vanished taps could not be removed", error=str(error))
        else:
            if gone:
                _log.info("shaping of vanished taps removed", devices=gone)
        return found

    def close(self) -> None:
        self.collectors.close()
        self._bulk_connections.close()
        super().close()
        self._owned.close()

    def _statistics(self, groups: int) -> Mapping[str, Mapping[str, object]]:
        """A round's own, with balloon and block, go through BulkStatistics; others are asked for as they are."""
        of_a_round = self._libvirt.VIR_DOMAIN_STATS_BALLOON | self._libvirt.VIR_DOMAIN_STATS_BLOCK
        return self._bulk.read() if groups == of_a_round else super()._statistics(groups)


def kvm_sums(stats: Mapping[str, object]) -> dict[str, int]:
    """What `LibvirtHost.bulk_stats` put there."""
    found = stats.get(KVM_SUMS)
    return found if isinstance(found, dict) else {}


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
    perf: bool = True,
    guest_probe_s: int = 60,
    uplink: str = "",
    clock: Clock | None = None,
) -> tuple[LibvirtHost, Sampler]:
    """(Hypervisor, HostReader) of this machine; names and meanings are those of AgentConfig.

    Closing the hypervisor closes the shaper and the collectors as well. Raises ConfigError without libvirt-python, HostError when the
    network namespace cannot be entered; libvirtd itself is first asked at the first call.
    """
    files = RootedFiles(proc=Path(proc_root), sys=Path(sys_root), cgroup=Path(cgroup_root))
    shaper = NetlinkShaper(network_namespace, net_bits_per_s)
    try:
        limits = CommitLimits(
            cpu_commit_ratio=cpu_commit_ratio,
            memory_commit_ratio=memory_commit_ratio,
            memory_reserve_bytes=memory_reserve_bytes,
            net_bits_per_s=net_bits_per_s,
        )
        # guests and QEMU live in real time, whatever clock the agent is given
        collectors = LibvirtCollectors(libvirt_uri, SystemClock(), perf=perf, guest_probe_s=guest_probe_s)
        hypervisor = LibvirtHost(libvirt_uri, files, shaper, limits, collectors)
    except BaseException:
        shaper.close()
        raise
    reader = Sampler(
        files,
        hypervisor,
        clock or SystemClock(),
        shaper,
        uplink=uplink,
        perf=collectors.perf,
        guest_oom_kills=collectors.guest,
        dirty_rate=collectors.dirty,
        numa=read_numa,
        kvm=kvm_sums,
    )
    hypervisor.watch(reader.invalidate)
    return hypervisor, reader
