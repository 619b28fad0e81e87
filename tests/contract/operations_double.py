"""The operations of the in-memory fleet: real plans and the real derivation, kept in a list."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.service.operations import Operation, operation_id, operation_of
from coordinator.store.operations import OrderedPlan
from shared.plan import Outcome, Plan, Step


class OperationsDouble:
    """OperationsView. `answer` is what a host would say."""

    now_s: int

    def __init__(self) -> None:
        self.ordered_plans: list[OrderedPlan] = []

    def ordered(self, host_id: str, vm_id: str, steps: tuple[Step, ...], actor: str) -> str:
        now_ns = self.now_s * 10**9
        sequence = len(self.ordered_plans) + 1
        plan = Plan(host_id=host_id, epoch=3, sequence=sequence, issued_ns=now_ns, deadline_ns=now_ns + 600 * 10**9, steps=steps)
        self.ordered_plans.append(OrderedPlan(id=operation_id(plan), vm_id=vm_id, actor=actor, plan=plan, outcomes=()))
        return operation_id(plan)

    def answer(self, outcome: Outcome) -> None:
        last = self.ordered_plans.pop()
        self.ordered_plans.append(
            OrderedPlan(id=last.id, vm_id=last.vm_id, actor=last.actor, plan=last.plan, outcomes=(*last.outcomes, outcome))
        )

    async def operations(self, limit: int, vm_ids: Sequence[str] | None = None) -> Sequence[Operation]:
        found = [each for each in reversed(self.ordered_plans) if vm_ids is None or each.vm_id in vm_ids]
        return [operation_of(each, self.now_s) for each in found[:limit]]

    async def operation(self, operation_id: str) -> Operation | None:
        return next((operation_of(each, self.now_s) for each in self.ordered_plans if each.id == operation_id), None)
