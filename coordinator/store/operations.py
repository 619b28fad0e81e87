"""Operations on disk: which plan was ordered by whom for which VM. What became of its steps is read from the plans and outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from sqlalchemy import Engine, delete, select

from coordinator.store import tables as t
from coordinator.store.access_tables import operations
from coordinator.store.transactions import transaction
from shared.plan import Outcome, Plan

KEPT_NS: Final = 30 * 86_400 * 10**9  # as long as plans are kept


class OrderedPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan, who ordered it for which VM, and the answers of the host to it, oldest first."""

    id: str
    vm_id: str
    actor: str
    plan: Plan
    outcomes: tuple[Outcome, ...]


class OperationStore:
    """Over the registry's engine. Methods raise HostError."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def save(self, operation_id: str, vm_id: str, actor: str, plan: Plan) -> None:
        """One operation; those whose plans have been pruned go."""
        place = {"host_id": plan.host_id, "epoch": plan.epoch, "sequence": plan.sequence}
        with transaction(self._engine) as connection:
            connection.execute(delete(operations).where(operations.c.created_ns < plan.issued_ns - KEPT_NS))
            connection.execute(operations.insert().values(id=operation_id, vm_id=vm_id, actor=actor, created_ns=plan.issued_ns, **place))

    def newest(self, limit: int, vm_ids: Sequence[str] | None = None, operation_id: str | None = None) -> list[OrderedPlan]:
        """Newest first; of these VMs, or the one of this id."""
        o, p = operations.c, t.plans.c
        same = (p.host_id == o.host_id) & (p.epoch == o.epoch) & (p.sequence == o.sequence)
        query = select(operations, p.plan).join(t.plans, same).order_by(o.created_ns.desc(), o.id).limit(limit)
        if vm_ids is not None:
            query = query.where(o.vm_id.in_(vm_ids))
        if operation_id is not None:
            query = query.where(o.id == operation_id)
        with transaction(self._engine) as connection:
            rows = connection.execute(query).mappings().all()
            plans = [msgspec.json.decode(row["plan"], type=Plan) for row in rows]
            hosts = {plan.host_id for plan in plans}
            steps = {step.id for plan in plans for step in plan.steps}
            asked = select(t.outcomes.c.host_id, t.outcomes.c.outcome).order_by(t.outcomes.c.id)
            asked = asked.where(t.outcomes.c.host_id.in_(hosts), t.outcomes.c.step_id.in_(steps))
            answers: dict[tuple[str, str], list[Outcome]] = {}
            for host_id, text in connection.execute(asked) if steps else ():
                outcome = msgspec.json.decode(text, type=Outcome)
                answers.setdefault((host_id, outcome.step.id), []).append(outcome)
        return [
            OrderedPlan(
                id=row["id"],
                vm_id=row["vm_id"],
                actor=row["actor"],
                plan=plan,
                outcomes=tuple(outcome for step in plan.steps for outcome in answers.get((plan.host_id, step.id), ())),
            )
            for row, plan in zip(rows, plans, strict=True)
        ]
