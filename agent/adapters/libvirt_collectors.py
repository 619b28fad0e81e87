"""The collectors of a libvirt host that go beyond files, as one object: perf events, guests' OOM kills, dirty rates, KVM's own counters.

All but perf ask libvirt for what a busy guest or QEMU may be slow to give, each on a thread of its own and all through a connection of
their own: libvirtd serves five calls of one connection at a time, and the sampler's and the levers' must never wait behind these three.
What is missing is missing with a reason, which the domains' capabilities show.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import structlog

from agent.adapters.guest_agent import LibvirtGuestAgent
from agent.adapters.libvirt_connection import LibvirtConnection
from agent.adapters.libvirt_dirty import LibvirtDirtyRates
from agent.adapters.perf_events import KernelPerfEvents
from agent.ports import RawHost, RawVm
from agent.sampling.dirty import DirtyRates
from agent.sampling.guest import GuestProbe, short_of_memory
from agent.sampling.kvm import parse_kvm
from agent.sampling.perf import PerfReader
from shared.clock import Clock
from shared.errors import HostError, Refusal
from shared.model import Domain

KVM_EVERY_S: Final = 60.0  # 4 ms of each QEMU: a minute is fine enough for counters that nothing acts upon
KVM_NONE_S: Final = 3600.0  # a host whose domains have none (TCG, an older libvirt) is asked again after an hour
_log = structlog.get_logger(__name__)


class KvmCounters:
    """Newest counters of every VM, asked for once in a while on a thread of its own."""

    def __init__(self, connection: LibvirtConnection) -> None:
        self._connection = connection
        self._newest: Mapping[str, dict[str, int]] = {}
        self._closed = threading.Event()
        self._bug: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="tidegate kvm counters", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def newest(self, vm_id: str) -> dict[str, int]:
        """Counter -> sum over vCPUs; empty where there are none. Raises what the worker died of."""
        if self._bug is not None:
            raise self._bug
        return self._newest.get(vm_id, {})

    def read(self) -> Mapping[str, dict[str, int]]:
        """Ask now, without waiting for a busy domain. Raises HostError or Refusal."""
        libvirt = self._connection.libvirt
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT

        def ask(connection: Any) -> Mapping[str, dict[str, int]]:
            found = connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_VCPU, flags)
            parsed = {domain.UUIDString(): parse_kvm(stats) for domain, stats in found}
            return {vm_id: counters for vm_id, counters in parsed.items() if counters}

        return self._connection.call(ask)

    def close(self, seconds: float = 1.0) -> None:
        """End; a call that hangs is not waited for longer than `seconds`."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _run(self) -> None:
        pause_s = 0.0
        try:
            while not self._closed.wait(pause_s):
                try:
                    self._newest = self.read()
                    pause_s = KVM_EVERY_S if self._newest else KVM_NONE_S
                except (HostError, Refusal) as error:
                    _log.info("KVM counters could not be read", error=str(error))
                    self._newest, pause_s = {}, KVM_EVERY_S
        except Exception as error:  # noqa: BLE001  # raised by the next `newest`: a worker must not die unseen
            self._bug = error


class LibvirtCollectors:
    """Collectors as AgentConfig.sampling wants them. None = switched off."""

    def __init__(self, uri: str, clock: Clock, *, perf: bool = True, guest_probe_s: int = 60) -> None:
        """Starts the threads; libvirtd is first asked by them. Raises ConfigError without libvirt-python."""
        self._connection = LibvirtConnection(uri)
        self.perf = PerfReader(KernelPerfEvents()) if perf else None
        self.dirty = DirtyRates(LibvirtDirtyRates(self._connection), clock)
        self.guest = GuestProbe(LibvirtGuestAgent(self._connection), clock, guest_probe_s) if guest_probe_s else None
        self.kvm = KvmCounters(self._connection)
        self._before: Mapping[str, RawVm] = {}
        if self.guest is not None:
            self.guest.start()
        self.kvm.start()

    def follow(self, vm_ids: Iterable[str]) -> None:
        """The VMs that run now."""
        if self.guest is not None:
            self.guest.follow(vm_ids)

    def look(self, raw: RawHost) -> None:
        """A round was read: guests that are short of memory are asked sooner."""
        now = {vm.vm_id: vm for vm in raw.vms}
        if self.guest is not None:
            for vm_id, vm in now.items():
                if short_of_memory(self._before.get(vm_id), vm):
                    self.guest.hurry(vm_id)
        self._before = now

    def with_reasons(self, domains: Sequence[Domain]) -> tuple[Domain, ...]:
        """The domains, their capabilities `perf` and `guest_agent` as the collectors have found them."""
        return tuple(self._with_reasons(domain) for domain in domains)

    def close(self) -> None:
        """End the threads, close descriptors and the connection. A call that hangs ends with the process."""
        if self.guest is not None:
            self.guest.close()
        self.dirty.close()
        self.kvm.close()
        if self.perf is not None:
            self.perf.close()
        self._connection.close()

    def _with_reasons(self, domain: Domain) -> Domain:
        if not domain.running:
            return domain
        can = domain.capabilities
        perf = "switched off (sampling.perf)" if self.perf is None else self.perf.obstacle(domain.vm_id)
        agent = can.guest_agent  # libvirt's own view first: no channel, nobody at it
        if agent is None and self.guest is not None:
            agent = self.guest.obstacle(domain.vm_id)
        can = msgspec.structs.replace(can, perf=None if perf is None else perf[:256], guest_agent=agent)
        return msgspec.structs.replace(domain, capabilities=can)
