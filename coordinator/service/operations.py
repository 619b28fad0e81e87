"""An order to one VM as an operation: what it asked, and how far its steps are. Derived from the plan and the host's outcomes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

import msgspec

from coordinator.store.operations import OrderedPlan
from shared.plan import Outcome, OutcomeState, Plan, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

GRACE_S: Final = 120.0  # after a step's deadline: an agent that was away tells what it did when it is back
OperationState = Literal["pending", "running", "succeeded", "failed", "partly"]
StepState = Literal["pending", "verified", "partial", "refused", "failed", "undone", "shadowed", "unheard"]


class OperationStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step and the host's answer. `unheard`: its deadline is past and no answer came."""

    id: str
    kind: StepKind
    asked: int
    before: int | None
    state: StepState
    value: int | None  # in force afterwards, read back
    code: RefusalCode | None
    detail: str
    finished_s: float | None


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """`succeeded`: every step shows on the host; `failed`: none does; `partly`: some do, or in part; `running`: some are answered."""

    id: str
    state: OperationState
    vm_id: str
    host_id: str
    ordered_by: str
    created_s: float
    deadline_s: float
    steps: tuple[OperationStep, ...]


class OperationPage(msgspec.Struct, frozen=True, kw_only=True):
    """Newest first."""

    items: tuple[Operation, ...]


class OperationsView(Protocol):
    """What FleetView knows of operations."""

    async def operations(self, limit: int, vm_ids: Sequence[str] | None = None) -> Sequence[Operation]:
        """Newest first, of these VMs (None = all)."""
        ...

    async def operation(self, operation_id: str) -> Operation | None:
        """None = unknown or pruned."""
        ...


def operation_id(plan: Plan) -> str:
    """Epoch, sequence and host name a plan, and so the operation that ordered it."""
    return f"{plan.epoch}-{plan.sequence}-{plan.host_id}"


def operation_of(ordered: OrderedPlan, now_s: float) -> Operation:
    """How far it is at `now_s` of the coordinator's clock."""
    newest = {outcome.step.id: outcome for outcome in ordered.outcomes}
    steps = tuple(_step(step, newest.get(step.id), now_s) for step in ordered.plan.steps)
    return Operation(
        id=ordered.id,
        state=_state([step.state for step in steps]),
        vm_id=ordered.vm_id,
        host_id=ordered.plan.host_id,
        ordered_by=ordered.actor,
        created_s=ordered.plan.issued_ns / NS_PER_S,
        deadline_s=ordered.plan.deadline_ns / NS_PER_S,
        steps=steps,
    )


def _step(step: Step, outcome: Outcome | None, now_s: float) -> OperationStep:
    late = now_s > step.deadline_ns / NS_PER_S + GRACE_S
    state: StepState = outcome.state.value if outcome is not None else "unheard" if late else "pending"
    unheard = RefusalCode.HOST_UNKNOWN_STATE if state == "unheard" else None
    return OperationStep(
        id=step.id,
        kind=step.kind,
        asked=step.value,
        before=step.before,
        state=state,
        value=None if outcome is None else outcome.value,
        code=unheard if outcome is None else outcome.code,
        detail="" if outcome is None else outcome.detail,
        finished_s=None if outcome is None or not outcome.finished_ns else outcome.finished_ns / NS_PER_S,
    )


def _state(states: Sequence[StepState]) -> OperationState:
    waiting = states.count("pending")
    if waiting:
        return "pending" if waiting == len(states) else "running"
    done = states.count(OutcomeState.VERIFIED.value)
    if done == len(states):
        return "succeeded"
    return "partly" if done or OutcomeState.PARTIAL.value in states else "failed"
