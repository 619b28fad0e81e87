"""libvirt's bulk statistics, of all VMs but the one that holds them up.

One call asks for all, without waiting for domains that are busy. But a domain may be locked as a whole (libvirtd opens a dump file on
storage that hangs, say), and then the one call hangs at it, and every later one: a single VM would blank the host. So while a call hangs,
the next ones go from VM to VM (a millisecond each), remember at which one they are, and pass by those at which an earlier call still hangs.
The VMs passed by are quarantined, and so is one that libvirt has called busy for longer than a job should take.

Invariant: `read` may hang, as its caller expects; each hanging call holds up at most one VM, and as soon as it comes back that VM is asked
again. Every call that runs beside another has a connection of its own: a call that shares one with a call that hangs was seen to take
until the next keepalive (5 s, libvirt 9.0), and libvirtd serves no more than five calls of one connection at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import structlog

from agent.adapters.libvirt_connection import LibvirtConnection
from shared.errors import Refusal

Stats = Mapping[str, object]
BUSY_ROUNDS: Final = 3  # in a row: an operator's own command or a snapshot takes one or two
_FROM_QEMU: Final = ("block.0.rd.bytes", "balloon.last-update")
_log = structlog.get_logger(__name__)


class BulkStatistics:
    """Statistics by VM. `read` may run in several threads at once; the other methods are for any thread."""

    def __init__(self, read_all: Callable[[], Mapping[str, Stats]], read_one: Callable[[str], Stats | None]) -> None:
        """`read_one`: None = the VM is gone. Both may hang and raise HostError or Refusal."""
        self._read_all = read_all
        self._read_one = read_one
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._calls: dict[int, str | None] = {}  # calls under way -> the VM they are at, None = at all together
        self._busy: dict[str, int] = {}  # VM -> rounds in a row in which libvirt passed it by
        self._full: set[str] = set()  # VMs of which QEMU has told something
        self._vm_ids: tuple[str, ...] = ()
        self._held: frozenset[str] = frozenset()

    def follow(self, vm_ids: Iterable[str]) -> None:
        """The VMs that run now."""
        self._vm_ids = tuple(vm_ids)

    def read(self) -> Mapping[str, Stats]:
        """VM -> statistics. Without an earlier call that hangs: of all; otherwise of those at which none hangs."""
        with self._lock:
            hanging = bool(self._calls)
            number = next(self._numbers)
            self._calls[number] = None
        try:
            found = self._one_by_one(number) if hanging else self._read_all()
        finally:
            with self._lock:
                del self._calls[number]
        self._count_busy(found)
        return found

    def quarantined(self) -> dict[str, str]:
        """VM -> why it is passed by."""
        with self._lock:
            at = {vm_id for vm_id in self._calls.values() if vm_id is not None}
        here = set(self._vm_ids)
        reasons = {vm_id: "quarantined: libvirt calls it busy" for vm_id, rounds in self._busy.items() if rounds >= BUSY_ROUNDS}
        reasons |= dict.fromkeys(at & self._held, "quarantined: libvirt does not answer for it")
        return {vm_id: reason for vm_id, reason in reasons.items() if vm_id in here}

    def _one_by_one(self, number: int) -> Mapping[str, Stats]:
        with self._lock:
            held = frozenset(vm_id for call, vm_id in self._calls.items() if call != number and vm_id is not None)
            self._held = held
        found = {}
        for vm_id in self._vm_ids:
            if vm_id in held:
                continue
            with self._lock:
                self._calls[number] = vm_id
            stats = self._read_one(vm_id)
            if stats is not None:
                found[vm_id] = stats
        return found

    def _count_busy(self, found: Mapping[str, Stats]) -> None:
        """Of a busy domain libvirt tells only what it knows without QEMU. One that QEMU never told anything of (no disk, no balloon
        driver) cannot be told from a busy one, and nothing of it is missing either."""
        full = {vm_id for vm_id, stats in found.items() if any(key in stats for key in _FROM_QEMU)}
        with self._lock:
            before = self._busy
            self._full = (self._full | full) & set(self._vm_ids)
            busy = self._full & found.keys() - full
            self._busy = {vm_id: before.get(vm_id, 0) + 1 for vm_id in busy}
        for vm_id, rounds in self._busy.items():
            if rounds == BUSY_ROUNDS:
                _log.warning("VM quarantined: libvirt calls it busy", vm=vm_id)
        for vm_id, rounds in before.items():
            if rounds >= BUSY_ROUNDS and vm_id in found and vm_id not in busy:
                _log.info("VM answers again", vm=vm_id)


class Connections:
    """A connection for each call at a time: as many as calls run at once, of which one is kept for the next."""

    def __init__(self, make: Callable[[], LibvirtConnection]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._idle: LibvirtConnection | None = None
        self._closed = False

    @contextlib.contextmanager
    def one(self) -> Iterator[LibvirtConnection]:
        """A connection that nobody else uses."""
        with self._lock:
            connection, self._idle = self._idle, None
        connection = connection or self._make()
        try:
            yield connection
        finally:
            with self._lock:
                keep = self._idle is None and not self._closed
                if keep:
                    self._idle = connection
            if not keep:
                connection.close()

    def close(self) -> None:
        """Close the one that is kept; others are closed when their calls come back."""
        with self._lock:
            self._closed = True
            connection, self._idle = self._idle, None
        if connection is not None:
            connection.close()


def libvirt_statistics(connections: Connections, libvirt: Any) -> BulkStatistics:
    """Balloon and block statistics by way of `connections`; `libvirt` is the module."""
    groups = libvirt.VIR_DOMAIN_STATS_BALLOON | libvirt.VIR_DOMAIN_STATS_BLOCK
    nowait = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
    every = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | nowait

    def read_all() -> Mapping[str, Stats]:
        with connections.one() as connection:
            found = connection.call(lambda opened: opened.getAllDomainStats(groups, every))
        return {domain.UUIDString(): stats for domain, stats in found}

    def read_one(vm_id: str) -> Stats | None:
        def ask(opened: Any) -> Stats | None:
            found = opened.domainListGetStats([opened.lookupByUUIDString(vm_id)], groups, nowait)
            return dict(found[0][1]) if found else None

        with connections.one() as connection:
            try:
                return connection.call(ask)
            except Refusal:  # gone meanwhile
                return None

    return BulkStatistics(read_all, read_one)
