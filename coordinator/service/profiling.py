"""A workload profile as the API shows it, and what the API asks of whoever works it out. Structs of /api/v1, see view.py."""

from __future__ import annotations

from typing import Protocol

import msgspec

from coordinator.learning.profiles import ResourceProfile


class WorkloadProfile(msgspec.Struct, frozen=True, kw_only=True):
    """How a VM, or the VMs of a client together, use what they have. Times of day are local, in `time_zone`."""

    of: str  # vm_id or client
    vms: int
    vms_used: int  # fewer where a client has more than are read: those first by id stand for the rest
    from_s: int
    until_s: int
    time_zone: str
    resources: tuple[ResourceProfile, ...]


class ProfilesView(Protocol):
    """Who works profiles out. They are read from disk: a client's may take seconds, and one is worked out at a time."""

    async def of_vm(self, vm_id: str, days: int) -> WorkloadProfile | None:
        """None = no such VM."""
        ...

    async def of_client(self, client: str, days: int) -> WorkloadProfile | None:
        """None = no VM belongs to it."""
        ...
