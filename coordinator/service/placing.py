"""The newest placement as the API shows it, and what the API asks of whoever has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from coordinator.model import FleetPlacement, Placement
from coordinator.placement.explain.readings import HostAhead, PartAhead, VmAhead
from coordinator.placement.explain.why_not import Why, WhyNot
from shared.refusal import RefusalCode


class MoveAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """The newest placement's moves. `code` None: they are carried out, see /migration."""

    solved_s: float | None
    placements: tuple[Placement, ...]
    code: RefusalCode | None = RefusalCode.ADVICE_ONLY


class PlacementView(msgspec.Struct, frozen=True, kw_only=True):
    """The newest placement of the whole fleet. `code` None: its moves are carried out, see /migration."""

    solved_s: float | None  # None = none was made yet
    plan: FleetPlacement | None
    code: RefusalCode | None = RefusalCode.ADVICE_ONLY


class VmPlacement(msgspec.Struct, frozen=True, kw_only=True):
    """One VM in the plan: where it is, where it goes, what it takes there, and why; the next best hosts beside it."""

    ahead: VmAhead
    why: Why


class HostPlacement(msgspec.Struct, frozen=True, kw_only=True):
    """One host in the plan, and what each client and application takes of it once all moves are made."""

    ahead: HostAhead
    parts: tuple[PartAhead, ...]


class PlacingView(Protocol):
    """What FleetView knows of placement. Answers from memory; None = no plan yet, or it knows no such VM or host."""

    def moves(self) -> MoveAdvice:
        """What placement advises."""
        ...

    def placement(self) -> PlacementView:
        """The newest plan."""
        ...

    async def placement_hosts(self, limit: int) -> Sequence[HostAhead]:
        """Hosts of the plan, those that change first."""
        ...

    async def placement_host(self, host_id: str) -> HostPlacement | None:
        """One host of the plan."""
        ...

    async def placement_vm(self, vm_id: str) -> VmPlacement | None:
        """One VM of the plan."""
        ...

    async def why_not(self, vm_id: str, host_id: str) -> WhyNot | None:
        """What stands against a VM on a host."""
        ...


def advice_of(solved_s: float | None, plan: FleetPlacement | None, code: RefusalCode | None = RefusalCode.ADVICE_ONLY) -> MoveAdvice:
    """A plan in the older form, as one shard."""
    if plan is None:
        return MoveAdvice(solved_s=solved_s, placements=(), code=code)
    whole = Placement(
        shard=0,
        moves=plan.moves,
        objective=sum(plan.after.values()),
        incumbent=sum(plan.before.values()),
        bound=0.0 if plan.bound is None else plan.bound,
        status=plan.status,
        wall_ms=plan.wall_ms,
    )
    return MoveAdvice(solved_s=solved_s, placements=(whole,), code=code)
