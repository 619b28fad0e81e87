"""The definitions of a host's domains, kept as long as libvirt has no event for them.

Reading and parsing a definition costs us about 2 ms of CPU (measured), so those of the running domains are kept: read anew when libvirt
tells of a change, when we changed something ourselves, and every ten minutes in case an event was lost. Of the limits that we move, libvirt
has no event for the blkio weight alone: sampling reads that from the VM's group (agent/sampling/block.py). Where the connection tells no
changes, every call reads everything.
Invariant: a change that is told while a definition is being read makes that reading void.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import structlog

from agent.adapters.libvirt_connection import LIVE, LibvirtConnection
from agent.adapters.libvirt_xml import DomainDefinition, parse_definition

REREAD_S: Final = 600.0
_RUNNING: Final = (1, 2)  # VIR_DOMAIN_RUNNING, VIR_DOMAIN_BLOCKED
_NO_BLKIO: Final = (3, 42, 55, 67, 84)  # not supported, gone, "blkio cgroup isn't mounted", configuration or operation unsupported
_log = structlog.get_logger(__name__)


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """An active domain as it was read last, and why libvirt offers it no quota or weight (None = it does)."""

    definition: DomainDefinition
    running: bool = True  # not paused
    disk_weight: int | None = None
    quota_obstacle: str | None = None
    weight_obstacle: str | None = None


class Inventory:
    """Definitions of all domains, and who wants to hear of changes. `changed` may come from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, Known] = {}
        self._changed: set[str] = set()  # told of since their last reading began
        self._reboots: dict[str, int] = {}
        self._reread_at = 0.0
        self._watchers: list[Callable[[], None]] = []

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed`, in any thread, whenever a domain's limits or devices may have changed."""
        self._watchers.append(changed)

    def changed(self, vm_id: str) -> None:
        """This domain is not what was read."""
        with self._lock:
            self._known.pop(vm_id, None)
            self._changed.add(vm_id)
        self.tell()

    def rebooted(self, vm_id: str) -> None:
        """Its guest begins anew in the same QEMU: the definition stays what it was."""
        with self._lock:
            self._reboots[vm_id] = self._reboots.get(vm_id, 0) + 1
        self.tell()

    def reboots(self, vm_id: str) -> int:
        """How often the guest of this active domain was reset as far as we were told."""
        return self._reboots.get(vm_id, 0)

    def tell(self) -> None:
        """Tell the watchers."""
        for watcher in self._watchers:
            watcher()

    def active(self, source: LibvirtConnection, connection: Any) -> list[Known]:
        """Every active domain; to be used inside `source.call`."""
        libvirt = source.libvirt
        domains = {domain.UUIDString(): domain for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)}
        now = time.monotonic()
        with self._lock:
            if not source.tells_changes or now - self._reread_at > REREAD_S:
                self._known.clear()
                self._reread_at = now
            self._known = {vm_id: known for vm_id, known in self._known.items() if vm_id in domains}
            kept = dict(self._known)
            self._reboots = {vm_id: reboots for vm_id, reboots in self._reboots.items() if vm_id in domains}
            self._changed -= domains.keys() - kept.keys()
        missing = [domain for vm_id, domain in domains.items() if vm_id not in kept]
        fresh = [_known(libvirt, domain, definition, running) for definition, domain, running in self.read(libvirt, missing)]
        for known in fresh:
            vm_id = known.definition.vm_id
            kept[vm_id] = known
            with self._lock:
                # right after its start libvirtd finds no cgroups yet: that no is not kept
                if vm_id not in self._changed and known.quota_obstacle is None:
                    self._known[vm_id] = known
        return [kept[vm_id] for vm_id in domains if vm_id in kept]

    @staticmethod
    def read(libvirt: Any, domains: Sequence[Any]) -> list[tuple[DomainDefinition, Any, bool]]:
        """Definition, libvirt's object, and whether it runs; a domain that vanishes meanwhile is left out."""
        found = []
        for domain in domains:
            try:
                definition = parse_definition(domain.XMLDesc(0))
                found.append((definition, domain, domain.info()[0] in _RUNNING))
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
                continue
            except ValueError as error:  # one odd domain must not hide the others
                _log.warning("domain definition cannot be read, VM left out", error=str(error))
                continue
            if definition.policy_error is not None:
                _log.warning("policy cannot be read, VM excluded", vm=definition.vm_id, error=definition.policy_error)
        return found


def _known(libvirt: Any, domain: Any, definition: DomainDefinition, running: bool) -> Known:
    weight = read_weight(libvirt, domain)
    return Known(
        definition=definition,
        running=running,
        disk_weight=weight,
        quota_obstacle=_obstacle(libvirt, domain.schedulerParameters, "vcpu_quota", "CPU quota"),
        weight_obstacle=None if weight is not None else _obstacle(libvirt, lambda: domain.blkioParameters(LIVE), "weight", "blkio weight"),
    )


def _obstacle(libvirt: Any, read: Callable[[], Mapping[str, object]], key: str, name: str) -> str | None:
    """Why the domain has no such parameter (no such controller, session mode, another driver); None when it has."""
    try:
        return None if key in read() else f"libvirt offers no {name} for this domain"
    except libvirt.libvirtError as error:
        return f"libvirt offers no {name}: {error}"


def read_weight(libvirt: Any, domain: Any) -> int | None:
    """The blkio weight in force; None where the host or the driver has none."""
    try:
        weight = domain.blkioParameters(LIVE).get("weight")
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _NO_BLKIO:
            raise
        return None
    return None if weight is None else int(weight)
