"""The part of the live view that shows what became of a VM: the hosts it was with, the steps that plans held for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from coordinator.service.vm_past import PlannedStep, VmHostStay
from coordinator.store.registry import SqlRegistry
from shared.units import NS_PER_S

_T = TypeVar("_T")


class Remembering(Protocol):
    """What it needs of the process."""

    registry: SqlRegistry

    async def look(self, function: Callable[..., _T], *arguments: object) -> _T:
        """A store's read, past its writes."""
        ...


class LiveVmPast:
    """Implements coordinator.service.vm_past.VmPastView."""

    def __init__(self, running: Remembering) -> None:
        self._remembering = running

    async def vm_hosts(self, vm_id: str, limit: int) -> Sequence[VmHostStay]:
        """As VmPastView."""
        of = self._remembering
        return [
            VmHostStay(
                host_id=stay.host_id, since_s=stay.since_ns / NS_PER_S, until_s=None if stay.until_ns is None else stay.until_ns / NS_PER_S
            )
            for stay in await of.look(of.registry.vm_hosts.of, vm_id, limit)
        ]

    async def steps(self, limit: int, vm_id: str | None = None) -> Sequence[PlannedStep]:
        """As VmPastView."""
        of = self._remembering
        rows = await of.look(of.registry.steps, limit, vm_id)
        return [PlannedStep(host_id=host_id, issued_s=issued_ns / NS_PER_S, step=step) for host_id, issued_ns, step in rows]
