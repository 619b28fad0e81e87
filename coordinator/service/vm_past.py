"""What became of a VM as the API shows it, and what the API asks of whoever remembers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from shared.plan import Step


class VmHostStay(msgspec.Struct, frozen=True, kw_only=True):
    """One VM with one host. `until_s` None = it is there still."""

    host_id: str
    since_s: float
    until_s: float | None


class PlannedStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a plan; what the host answered is in /outcomes."""

    host_id: str
    issued_s: float
    step: Step


class VmPastView(Protocol):
    """What FleetView knows of the past of VMs, those that are gone too. Raises HostError while the registry is away."""

    async def vm_hosts(self, vm_id: str, limit: int) -> Sequence[VmHostStay]:
        """Newest first; empty = no such VM was ever seen, or that is longer ago than the registry keeps."""
        ...

    async def steps(self, limit: int, vm_id: str | None = None) -> Sequence[PlannedStep]:
        """Newest first."""
        ...
