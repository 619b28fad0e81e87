"""DirtyRateSource over libvirt: the measurement is QEMU's calc-dirty-rate, its result comes with the bulk statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agent.adapters.libvirt_connection import LibvirtConnection
from shared.errors import HostError
from shared.units import MIB

_MEASURED: Final = 2  # VIR_DOMAIN_DIRTYRATE_MEASURED
_MOST_MIB: Final = 2**30  # a PiB/s: nothing real is larger, and the product stays inside int64


def parse_dirty_rate(stats: Mapping[str, object]) -> int | None:
    """Bytes/s from the `dirtyrate.*` keys; None while it is measured, or where the domain was busy and its keys are missing."""
    rate = stats.get("dirtyrate.megabytes_per_second")
    if stats.get("dirtyrate.calc_status") != _MEASURED or not isinstance(rate, int) or not 0 <= rate <= _MOST_MIB:
        return None
    return rate * MIB


class LibvirtDirtyRates:
    """Implements DirtyRateSource."""

    def __init__(self, connection: LibvirtConnection) -> None:
        self._connection = connection

    def start(self, vm_id: str, seconds: int) -> None:
        def begin(connection: Any) -> None:
            domain = connection.lookupByUUIDString(vm_id)
            if not hasattr(domain, "startDirtyRateCalc"):
                raise HostError("this libvirt measures no dirty rate (it takes 7.2)")
            domain.startDirtyRateCalc(seconds, 0)

        self._connection.call(begin)

    def result(self, vm_id: str) -> int | None:
        libvirt = self._connection.libvirt
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT

        def ask(connection: Any) -> int | None:
            found = connection.domainListGetStats([connection.lookupByUUIDString(vm_id)], libvirt.VIR_DOMAIN_STATS_DIRTYRATE, flags)
            return parse_dirty_rate(found[0][1]) if found else None

        return self._connection.call(ask)
