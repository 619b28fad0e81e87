"""libvirt's events: which domain's limits or devices changed, told within milliseconds instead of found at the next look.

libvirt delivers events only through an event loop that was registered before the connection was opened; its default one is a matter of
the whole process, so it is registered once and runs in one daemon thread for good (it sleeps in poll(2) while nothing happens).
What libvirt has no event for (blkio weight, memory.high) is read from files. A connection that cannot tell (an
old libvirt, a driver without events) is reported as such, and its domains are then read anew each round.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import structlog

KEEPALIVE: Final = (5, 6)  # every 5 s, given up after 6 in a row: a libvirtd that hangs for half a minute is as good as gone
# What changes a domain's definition: limits, devices, the size of virtio-mem, start and stop, our policy in its metadata.
# A balloon's size is not among them: it comes with the bulk statistics of each round.
EVENTS: Final = (
    "LIFECYCLE",
    "TUNABLE",
    "DEVICE_ADDED",
    "DEVICE_REMOVED",
    "MEMORY_DEVICE_SIZE_CHANGE",
    "METADATA_CHANGE",
    "AGENT_LIFECYCLE",
)
REBOOT: Final = "REBOOT"
_NEEDED: Final = {"LIFECYCLE", "TUNABLE", "DEVICE_ADDED", "DEVICE_REMOVED"}  # without these a foreign change would go unseen
_log = structlog.get_logger(__name__)
_loop_lock = threading.Lock()
_loop: threading.Thread | None = None


def start_event_loop(libvirt: Any) -> None:
    """Register libvirt's default event loop and run it; must come before the connection is opened. The second call does nothing."""
    global _loop  # noqa: PLW0603  # libvirt's registration is global to the process as well
    with _loop_lock:
        if _loop is not None:
            return
        libvirt.virEventRegisterDefaultImpl()

        def run() -> None:
            while True:
                try:
                    libvirt.virEventRunDefaultImpl()
                except libvirt.libvirtError as error:
                    _log.warning("libvirt event loop", error=str(error))

        _loop = threading.Thread(target=run, name="tidegate libvirt events", daemon=True)
        _loop.start()


class EventSubscription:
    """Tells `changed(vm_id)` of each event on each connection that `subscribe` is given, and `rebooted(vm_id)` of each reset of a guest
    inside its QEMU, whoever asked for it; both are called in the event loop's thread.
    """

    def __init__(self, libvirt: Any, changed: Callable[[str], None], rebooted: Callable[[str], None] = lambda _: None) -> None:
        self._libvirt = libvirt
        self._told = dict.fromkeys(EVENTS, changed) | {REBOOT: rebooted}
        self._callbacks: list[int] = []
        self.active = False  # whether the newest connection delivers what is needed

    def subscribe(self, connection: Any) -> None:
        """Register for all events that this libvirt has; never raises: without events the domains are read anew each round."""
        self._callbacks = []
        registered = set()
        for name, told in self._told.items():
            number = getattr(self._libvirt, f"VIR_DOMAIN_EVENT_ID_{name}", None)
            if number is None:
                continue
            try:
                self._callbacks.append(connection.domainEventRegisterAny(None, number, partial(_tell, told), None))
                registered.add(name)
            except self._libvirt.libvirtError as error:
                _log.debug("libvirt event not available", event=name, error=str(error))
        self.active = registered >= _NEEDED
        try:
            connection.setKeepAlive(*KEEPALIVE)
        except self._libvirt.libvirtError as error:  # a driver inside this process has no peer to keep alive
            _log.debug("no keepalive on this connection", error=str(error))

    def unsubscribe(self, connection: Any) -> None:
        """Before a connection is closed: its callbacks hold it alive otherwise."""
        for callback in self._callbacks:
            try:
                connection.domainEventDeregisterAny(callback)
            except self._libvirt.libvirtError as error:
                _log.debug("libvirt event not deregistered", error=str(error))
        self._callbacks = []
        self.active = False


def _tell(told: Callable[[str], None], _connection: Any, domain: Any, *_details: Any) -> None:
    told(domain.UUIDString())
