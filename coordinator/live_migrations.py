"""The part of the live view that shows and orders migration plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeVar

from coordinator.cycle import DecisionCycle, Instruction
from coordinator.migration_plan import MigrationPlan, Status
from coordinator.planning.waves import Aborted, Approved
from coordinator.service.migrations import HostPowerView, MigrationState
from coordinator.store.registry import SqlRegistry
from shared.clock import Clock
from shared.errors import Refusal
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

_T = TypeVar("_T")


class Migrating(Protocol):
    """What it needs of the process."""

    clock: Clock
    cycle: DecisionCycle
    registry: SqlRegistry

    async def read(self, function: Callable[..., _T], *arguments: object) -> _T:
        """A store's read."""
        ...

    def carry_out(self, instructions: list[Instruction]) -> None:
        """Perform what the cycle wants."""
        ...

    def audit(self, event: str, **fields: str | int) -> None:
        """Who changed what."""
        ...


class LiveMigrations:
    """Implements coordinator.service.migrations.MigrationView."""

    def __init__(self, running: Migrating) -> None:
        self._running = running

    def migration(self) -> MigrationState:
        """As MigrationView."""
        execution, now_ns = self._running.cycle.execution, self._running.clock.wall_ns()
        known = sorted(set(execution.book.hosts) | {host for host, why in execution.switchable.items() if why is None})
        power = tuple(
            HostPowerView(
                host_id=host_id,
                state=(host := execution.book.of(host_id)).state,
                since_s=host.since_ns / NS_PER_S if host.since_ns else None,
                lead_s=execution.book.lead_s(host_id, execution.policy.power),
                why=host.why,
                stays=execution.awake_why.get(host_id),
            )
            for host_id in known
        )
        memory = execution.memory.at(now_ns)
        return MigrationState(
            execute=execution.policy.execute,
            plan=execution.plan,
            failed=memory.failed,
            cooling={vm_id: until_ns / NS_PER_S for vm_id, until_ns in memory.cooling.items()},
            power=power,
        )

    async def migrations(self, limit: int) -> Sequence[MigrationPlan]:
        """As MigrationView."""
        return await self._running.read(self._running.registry.migrations, limit)

    async def order_migration(self, plan_id: str, action: Literal["approve", "abort"], actor: str) -> MigrationState:
        """As MigrationView."""
        running, plan = self._running, self._running.cycle.execution.plan
        if plan is None or plan.id != plan_id:
            newest = "there is none" if plan is None else f"the newest is {plan.id}"
            raise Refusal(RefusalCode.PRECONDITION_CHANGED, f"migration plan {plan_id!r} is not the newest one: {newest}")
        if plan.over or (action == "approve" and plan.status is not Status.PROPOSED):
            raise Refusal(RefusalCode.NOTHING_TO_DO, f"migration plan {plan_id!r} is {plan.status}: nothing to {action}")
        event = Approved(actor=actor) if action == "approve" else Aborted(actor=actor)
        running.carry_out(running.cycle.order_migration(event, running.clock.wall_ns()))
        running.audit(f"{action}_migration", actor=actor, plan=plan_id, moves=len(plan.moves))
        return self.migration()
