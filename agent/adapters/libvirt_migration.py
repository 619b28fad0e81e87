"""The Migrator port over libvirt: peer to peer (libvirtd talks to libvirtd) or client driven (this process talks to both).

Live, never copying storage and never "unsafe": what libvirt refuses stays where it is. A persistent domain becomes persistent there and is
undefined here; a transient one stays transient. `migrate` opens connections of its own, because it blocks for minutes; what watches,
tunes and aborts uses another one and so never waits for it.
Limits travel as live metadata of the domain, `<tidegate:limits xmlns:tidegate="urn:tidegate:limits:1" .../>` with Allocation's fields, who
wrote it and when. It is an element of its own: the owner's policy beside it is not touched. It is written before the move and removed
when the move failed; the target's agent reads and removes it. What it says is another host's word, so it goes through the guard there.
Invariant: a call that may have started a migration is never repeated, not even on a connection that died.
The final figures (downtime among them) come as libvirt's event "job completed" on the source: afterwards nobody here can ask any more.
Peer to peer outlives this process; client driven ends with it, and libvirt then keeps the VM here.
Source: libvirt.org/migration.html; measured with libvirt 9.0 and QEMU 7.2.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Final

import structlog

from agent.adapters.libvirt_connection import LIVE, LibvirtConnection, translate
from agent.adapters.libvirt_events import KEEPALIVE, start_event_loop
from agent.adapters.migration_texts import LIMITS_NAMESPACE, LIMITS_PREFIX, limits_text, memory_uri, mib_per_s, parse_limits, progress_of
from agent.ports import MigrationProgress
from shared.clock import Clock, SystemClock
from shared.errors import HostError, Refusal
from shared.model import Allocation
from shared.refusal import RefusalCode
from shared.units import UNLIMITED

# Auto-converge slows the guest's vCPUs when it dirties faster than is sent. QEMU's own first step is 20 %; a busy guest should not notice
# more than it must, and the agent's watch gives up long before many steps of 10 % have added up.
CONVERGE_PERCENT: Final = 10
# The event is sent before the call returns; this only bridges the way through the event loop's thread.
FIGURES_WAIT_S: Final = 2.0
_NO_SUCH_METADATA: Final = 80  # VIR_ERR_NO_DOMAIN_METADATA
_NO_DOMAIN: Final = 42
_OPERATION_INVALID: Final = 55  # no job is active, or the domain does not run
_UNSAFE: Final = 81  # VIR_ERR_MIGRATE_UNSAFE: caches of a disk that is not shared coherently

log = structlog.get_logger(__name__)


class LibvirtMigrator:
    """Implements Migrator for the domains of one libvirtd."""

    def __init__(
        self,
        uri: str,
        host_id: str,
        *,
        peer_to_peer: bool = True,
        migrate_uri: str = "",
        auto_converge: bool = True,
        clock: Clock | None = None,
    ) -> None:
        """`migrate_uri`: where memory is sent, {host} = the host in the destination's URI. Raises ConfigError without libvirt-python."""
        self._control = LibvirtConnection(uri)
        self._libvirt = self._control.libvirt
        self._uri = uri
        self._host_id = host_id
        self._peer_to_peer = peer_to_peer
        self._migrate_uri = migrate_uri
        self._auto_converge = auto_converge
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._cancelled: dict[str, bool] = {}  # VM of a running `migrate` -> an abort came

    def close(self) -> None:
        """Close the watching connection; running migrations keep theirs."""
        self._control.close()

    # Migrator

    def migrate(self, vm_id: str, uri: str, bits_per_s: int, limits: Allocation) -> MigrationProgress | None:
        parameters = self._parameters(uri, bits_per_s)
        with self._lock:
            if vm_id in self._cancelled:
                raise Refusal(RefusalCode.VM_BUSY, f"{vm_id} is being migrated already")
            self._cancelled[vm_id] = False
        try:
            return self._migrate(vm_id, uri, parameters, limits)
        finally:
            with self._lock:
                del self._cancelled[vm_id]

    def progress(self, vm_id: str) -> MigrationProgress | None:
        def read(connection: Any) -> MigrationProgress | None:
            stats = connection.lookupByUUIDString(vm_id).jobStats(0)
            outgoing = self._libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT
            if stats.get("type", 0) == self._libvirt.VIR_DOMAIN_JOB_NONE or stats.get("operation", outgoing) != outgoing:
                return None
            return progress_of(stats)

        found: MigrationProgress | None = self._asked(read)
        return found

    def set_bandwidth(self, vm_id: str, bits_per_s: int) -> None:
        self._asked(lambda connection: connection.lookupByUUIDString(vm_id).migrateSetMaxSpeed(mib_per_s(bits_per_s), 0))

    def abort(self, vm_id: str) -> None:
        with self._lock:
            if vm_id in self._cancelled:
                self._cancelled[vm_id] = True  # it may not have got to libvirt yet

        def give_up(connection: Any) -> None:
            domain = connection.lookupByUUIDString(vm_id)
            outgoing = self._libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT
            if domain.jobStats(0).get("operation", 0) == outgoing:  # never the owner's backup or snapshot
                domain.abortJob()

        self._asked(give_up)

    def arrived(self, vm_id: str) -> Allocation | None:
        def read(connection: Any) -> str | None:
            try:
                text = connection.lookupByUUIDString(vm_id).metadata(self._libvirt.VIR_DOMAIN_METADATA_ELEMENT, LIMITS_NAMESPACE, LIVE)
            except self._libvirt.libvirtError as error:
                if error.get_error_code() in (_NO_SUCH_METADATA, _NO_DOMAIN, _OPERATION_INVALID):
                    return None
                raise
            return str(text)

        text = self._control.call(read)
        if text is None:
            return None
        try:
            sender, limits = parse_limits(text)
        except ValueError as error:
            log.warning("limits that travelled with a VM cannot be read; they are dropped", vm=vm_id, error=str(error))
            self.taken_up(vm_id)
            return None
        # Our own note is that of a move that did not happen, or is under way.
        return None if sender == self._host_id else limits

    def taken_up(self, vm_id: str) -> None:
        self._asked(lambda connection: self._write_limits(connection.lookupByUUIDString(vm_id), None))

    # One migration

    def _migrate(self, vm_id: str, uri: str, parameters: dict[str, Any], limits: Allocation) -> MigrationProgress | None:
        with self._opened(self._uri) as source, _Figures(self._libvirt, source, vm_id) as figures:
            try:
                domain = self._control.domain(source, vm_id)
                flags = self._flags(domain)
                self._write_limits(domain, limits_text(limits, self._host_id, self._clock.wall_ns()))
            except self._libvirt.libvirtError as error:
                raise self._translated(error, self._uri) from error
            moved = False
            try:
                if self._cancelled[vm_id]:
                    raise HostError("aborted before it began")
                if self._peer_to_peer:
                    self._push(source, vm_id, lambda: domain.migrateToURI3(uri, parameters, flags))
                else:
                    with self._opened(uri) as target:
                        self._push(source, vm_id, lambda: domain.migrate3(target, parameters, flags), target)
                moved = True
                return figures.wait()
            finally:
                if not moved:
                    self._forget_limits(domain)

    def _push(self, source: Any, vm_id: str, work: Any, target: Any = None) -> None:
        """Run the one call that migrates. After an error, what is true decides: here as before, or gone from here and running there."""
        try:
            work()
            return
        except self._libvirt.libvirtError as error:
            problem = self._translated(error, self._uri)
        if self._runs(source, vm_id) is not False:
            raise problem
        if target is not None and self._runs(target, vm_id):
            log.warning("migration ended with an error, but the VM runs at its destination", vm=vm_id, error=str(problem))
            return
        raise HostError(f"{problem}; the VM is gone from here, look at its destination")

    def _runs(self, connection: Any, vm_id: str) -> bool | None:
        """Whether the domain is active there; None where that cannot be told."""
        try:
            return bool(connection.lookupByUUIDString(vm_id).isActive())
        except self._libvirt.libvirtError as error:
            return False if error.get_error_code() == _NO_DOMAIN else None

    def _flags(self, domain: Any) -> int:
        libvirt = self._libvirt
        flags = int(libvirt.VIR_MIGRATE_LIVE)
        if self._peer_to_peer:
            flags |= libvirt.VIR_MIGRATE_PEER2PEER
        if self._auto_converge:
            flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
        if domain.isPersistent():
            flags |= libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        return flags

    def _parameters(self, uri: str, bits_per_s: int) -> dict[str, Any]:
        libvirt, parameters = self._libvirt, dict[str, Any]()
        if bits_per_s != UNLIMITED:
            parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = mib_per_s(bits_per_s)
        if self._auto_converge:
            parameters[libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INITIAL] = CONVERGE_PERCENT
            parameters[libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INCREMENT] = CONVERGE_PERCENT
        if self._migrate_uri:
            parameters[libvirt.VIR_MIGRATE_PARAM_URI] = memory_uri(self._migrate_uri, uri)
        return parameters

    @contextlib.contextmanager
    def _opened(self, uri: str) -> Any:
        start_event_loop(self._libvirt)  # for the final figures, and to notice a peer that is gone
        try:
            connection = self._libvirt.open(uri)
            connection.setKeepAlive(*KEEPALIVE)
        except self._libvirt.libvirtError as error:
            raise HostError(f"{uri}: {error}") from error
        try:
            yield connection
        finally:
            with contextlib.suppress(self._libvirt.libvirtError):  # nothing more is wanted of it
                connection.close()

    # Metadata and errors

    def _write_limits(self, domain: Any, text: str | None) -> None:
        try:
            domain.setMetadata(self._libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, LIMITS_PREFIX, LIMITS_NAMESPACE, LIVE)
        except self._libvirt.libvirtError as error:
            if text is not None or error.get_error_code() != _NO_SUCH_METADATA:
                raise

    def _forget_limits(self, domain: Any) -> None:
        try:
            self._write_limits(domain, None)
        except self._libvirt.libvirtError as error:
            # Harmless: `arrived` passes over what this host wrote itself, and the next move overwrites it.
            log.info("travelling limits left behind", error=str(error))

    def _asked(self, work: Any) -> Any:
        """`work` on the watching connection; None where the domain or its job is gone."""

        def checked(connection: Any) -> Any:
            try:
                return work(connection)
            except self._libvirt.libvirtError as error:
                if error.get_error_code() in (_NO_DOMAIN, _OPERATION_INVALID):
                    return None
                raise

        return self._control.call(checked)

    def _translated(self, error: Any, uri: str) -> HostError | Refusal:
        if error.get_error_code() == _UNSAFE:
            return Refusal(RefusalCode.NOT_CAPABLE, str(error))
        return translate(error.get_error_code(), str(error), uri)


class _Figures:
    """libvirt's event "job completed" for one domain on one connection, as a context manager."""

    def __init__(self, libvirt: Any, connection: Any, vm_id: str) -> None:
        self._libvirt, self._connection, self._vm_id = libvirt, connection, vm_id
        self._callback: int | None = None
        self._told = threading.Event()
        self._progress: MigrationProgress | None = None

    def __enter__(self) -> _Figures:
        try:
            event = self._libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED
            self._callback = self._connection.domainEventRegisterAny(None, event, self._completed, None)
        except self._libvirt.libvirtError as error:  # a driver without events
            log.info("a finished migration will have no figures", error=str(error))
        return self

    def __exit__(self, *_: object) -> None:
        if self._callback is not None:
            with contextlib.suppress(self._libvirt.libvirtError):  # the connection died: it is gone with it
                self._connection.domainEventDeregisterAny(self._callback)

    def wait(self) -> MigrationProgress | None:
        """The figures; None where none came in time."""
        if self._callback is not None:
            self._told.wait(FIGURES_WAIT_S)
        return self._progress

    def _completed(self, _connection: Any, domain: Any, stats: dict[str, Any], _: Any) -> None:
        """Called in the event loop's thread, for every job of every domain."""
        if domain.UUIDString() == self._vm_id:
            self._progress = progress_of(stats)
            self._told.set()
