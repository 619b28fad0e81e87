"""Migration plans and hosts' power as the HTTP interface shows them, and what it asks of the running coordinator for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from coordinator.executing import FailedPair
from coordinator.migration_plan import MigrationPlan


class HostPowerView(msgspec.Struct, frozen=True, kw_only=True):
    """Power of one host. `lead_s` = time to wake it, as measured of late; `stays` = why it is awake although it is empty."""

    host_id: str
    state: str
    since_s: float | None
    lead_s: float
    why: str
    stays: str | None = None


class MigrationState(msgspec.Struct, frozen=True, kw_only=True):
    """The newest migration plan, None = none yet; pairs that are not tried again for now; VMs that stay because they have moved of late."""

    execute: bool
    plan: MigrationPlan | None
    failed: tuple[FailedPair, ...]
    cooling: dict[str, float]  # vm_id -> Unix seconds until which it stays
    power: tuple[HostPowerView, ...]


class MigrationOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operator's word on a migration plan: let it run, or end it (what is under way ends by itself)."""

    action: Annotated[Literal["approve", "abort"], Meta(description="approve or abort")]


class MigrationView(Protocol):
    """Part of FleetView."""

    def migration(self) -> MigrationState:
        """The newest plan and what is remembered."""
        ...

    async def migrations(self, limit: int) -> Sequence[MigrationPlan]:
        """Plans, newest first."""
        ...

    async def order_migration(self, plan_id: str, action: Literal["approve", "abort"], actor: str) -> MigrationState:
        """Approve or abort the newest plan. Raises Refusal: another plan is the newest, or this one is not in a state for it."""
        ...
