"""The part of the live view that shows what became of orders to single VMs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol, TypeVar

from coordinator.service.operations import Operation, operation_id, operation_of
from coordinator.store.operations import OperationStore
from coordinator.store.registry import SqlRegistry
from shared.clock import Clock
from shared.plan import Plan
from shared.units import NS_PER_S

_T = TypeVar("_T")


class Operating(Protocol):
    """What it needs of the process."""

    clock: Clock
    registry: SqlRegistry

    async def read(self, function: Callable[..., _T], *arguments: object) -> _T:
        """A store's work, behind the writes before it."""
        ...


class LiveOperations:
    """Implements coordinator.service.operations.OperationsView."""

    def __init__(self, running: Operating) -> None:
        self._operating = running

    @cached_property
    def _operations(self) -> OperationStore:
        return OperationStore(self._operating.registry.engine)

    async def ordered(self, vm_id: str, actor: str, plan: Plan) -> str:
        """Store a plan that was just sent as an operation; its id. Behind the plan itself in the order of writes."""
        name = operation_id(plan)
        await self._operating.read(self._operations.save, name, vm_id, actor, plan)
        return name

    async def operations(self, limit: int, vm_ids: Sequence[str] | None = None) -> Sequence[Operation]:
        """As OperationsView."""
        found = await self._operating.read(self._operations.newest, limit, vm_ids)
        return [operation_of(each, self._now_s()) for each in found]

    async def operation(self, operation_id: str) -> Operation | None:
        """As OperationsView."""
        found = await self._operating.read(self._operations.newest, 1, None, operation_id)
        return operation_of(found[0], self._now_s()) if found else None

    def _now_s(self) -> float:
        return self._operating.clock.wall_ns() / NS_PER_S
