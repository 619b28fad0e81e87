"""One connection to libvirt: opened at the first call, opened anew when it died, its errors turned into ours.

Why here: libvirt-python is imported only in this module and only when a connection is made, so that the agent runs without it on
simulated hosts. It is built against whatever libvirt a host has: what an older one lacks is absent as an attribute, and libvirt_events is
the one place that has to ask.
Invariant: values that callers set are absolute, so a call that met a lost connection is repeated once on a new one.
Source: libvirt.org/html/libvirt-virterror.html for the error numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

import structlog

from agent.adapters.libvirt_events import EventSubscription, start_event_loop
from shared.errors import ConfigError, HostError, Refusal
from shared.refusal import RefusalCode

LIVE: Final = 1  # VIR_DOMAIN_AFFECT_LIVE
TIMED_OUT: Final = 68  # VIR_ERR_OPERATION_TIMEOUT
_REFUSALS: Final = {
    3: RefusalCode.NOT_CAPABLE,  # VIR_ERR_NO_SUPPORT
    8: RefusalCode.INVALID_VALUE,  # VIR_ERR_INVALID_ARG
    42: RefusalCode.UNKNOWN_VM,  # VIR_ERR_NO_DOMAIN
    55: RefusalCode.VM_NOT_RUNNING,  # VIR_ERR_OPERATION_INVALID
    67: RefusalCode.NOT_CAPABLE,  # VIR_ERR_CONFIG_UNSUPPORTED
    74: RefusalCode.NOT_CAPABLE,  # VIR_ERR_ARGUMENT_UNSUPPORTED
    84: RefusalCode.NOT_CAPABLE,  # VIR_ERR_OPERATION_UNSUPPORTED
}
_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


def import_libvirt() -> Any:
    """The libvirt module. Raises ConfigError where libvirt-python is not installed."""
    try:
        import libvirt  # noqa: PLC0415  # no wheel exists: only hosts that have libvirt install it
    except ImportError as error:
        raise ConfigError(
            f"hypervisor libvirt: libvirt-python is not installed (pip install 'tidegate[agent,libvirt]'): {error}"
        ) from error
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # errors are raised; libvirt would print each one as well
    return libvirt


def translate(code: int, message: str, uri: str) -> HostError | Refusal:
    """libvirt's error number as one of ours: a stable refusal where libvirt said no for good, else HostError (try again later)."""
    refusal = RefusalCode.NOT_CAPABLE if "unsupported flags" in message else _REFUSALS.get(code)
    if refusal is None or (refusal is RefusalCode.VM_NOT_RUNNING and "not running" not in message):
        return HostError(f"{uri}: {message} (libvirt error {code})")
    return Refusal(refusal, message)


class LibvirtConnection:
    """A connection that heals itself. Calls may come from several threads; each may block for as long as libvirt does."""

    def __init__(self, uri: str, changed: Callable[[str], None] | None = None, rebooted: Callable[[str], None] = lambda _: None) -> None:
        """`changed` is told, in another thread, which domain libvirt had an event for, `rebooted` whose guest was reset inside its QEMU.

        Raises ConfigError without libvirt-python.
        """
        self.libvirt = import_libvirt()
        self.uri = uri
        self._events = None if changed is None else EventSubscription(self.libvirt, changed, rebooted)
        self._lock = threading.Lock()
        self._connection: Any = None

    @property
    def tells_changes(self) -> bool:
        """Whether `changed` hears of everything that it must; else the domains have to be read anew each round."""
        return self._events is not None and self._events.active

    def call(self, work: Callable[[Any], _T]) -> _T:
        """What `work` makes of the connection. Raises HostError, or Refusal where libvirt said no for good."""
        for attempt in (1, 2):
            connection = None
            try:
                connection = self._connected()
                return work(connection)
            except self.libvirt.libvirtError as error:
                if attempt == 1 and connection is not None and self._drop_dead(connection):
                    continue
                raise translate(error.get_error_code(), str(error), self.uri) from error
            except LookupError as error:  # libvirt-python's answer to a parameter the driver does not have
                raise Refusal(RefusalCode.NOT_CAPABLE, str(error)) from error
        raise AssertionError("unreachable: the second attempt returns or raises")

    def domain(self, connection: Any, vm_id: str) -> Any:
        """The running domain. Raises Refusal(UNKNOWN_VM, VM_NOT_RUNNING) or libvirt's own error; to be used inside `call`."""
        try:
            domain = connection.lookupByUUIDString(vm_id)
        except self.libvirt.libvirtError as error:
            if error.get_error_code() in (self.libvirt.VIR_ERR_NO_DOMAIN, self.libvirt.VIR_ERR_INVALID_ARG):
                raise Refusal(RefusalCode.UNKNOWN_VM, f"no domain {vm_id} at {self.uri}") from error
            raise
        if not domain.isActive():
            raise Refusal(RefusalCode.VM_NOT_RUNNING, f"domain {domain.name()} is not running")
        return domain

    def close(self) -> None:
        """Close it; nothing on the host changes. A later call opens it again."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            if self._events is not None:
                self._events.unsubscribe(connection)
            try:
                connection.close()
            except self.libvirt.libvirtError as error:
                _log.warning("libvirt connection did not close", error=str(error))

    def _connected(self) -> Any:
        with self._lock:
            if self._connection is None:
                if self._events is None:
                    self._connection = self.libvirt.open(self.uri)
                else:
                    start_event_loop(self.libvirt)
                    self._connection = self.libvirt.open(self.uri)
                    self._events.subscribe(self._connection)
            return self._connection

    def _drop_dead(self, connection: Any) -> bool:
        """Forget the connection if it is dead; whether it was."""
        try:
            if connection.isAlive():
                return False
        except self.libvirt.libvirtError as error:
            _log.info("libvirt connection lost", error=str(error))
        with self._lock:
            if self._connection is connection:
                self._connection = None
                if self._events is not None:
                    self._events.active = False
        return True
