"""What the command line shows of VMs and of the newest plan: small frozen copies, so that nobody outside holds the core's state. Pure."""

from __future__ import annotations

import msgspec

from agent.acting.ledger import VmRecord
from agent.acting.ownership import Ownership
from agent.acting.plans import PlanBook
from agent.events import Decision
from shared.plan import Step


class VmSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One VM as the agent's command line shows it."""

    vm_id: str
    name: str
    running: bool
    excluded: bool
    in_force: dict[str, int]
    in_flight: tuple[str, ...]
    backing_off_until_ns: dict[str, int]
    cpu_used_millicores: int | None = None
    memory_used_bytes: int | None = None
    newest: Decision | None = None
    pending: dict[str, int] = {}  # lever with a step in flight -> value asked for; nothing of a shrink counts as free until it is seen
    yielded_until_ns: int = 0  # left to somebody else who changed it
    defaults: dict[str, int] = {}  # the owner's values of the levers that we have touched


class PlanLine(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the newest plan that has not ended, and what it waits for."""

    step: Step
    flying: bool
    retry_ns: int
    deadline_ns: int
    code: str = ""
    detail: str = ""


class PlanSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The newest plan taken and its open steps, in plan order; epoch 0 = none was."""

    epoch: int
    sequence: int
    deadline_ns: int
    live: bool
    steps: tuple[PlanLine, ...]


def summary(vm_id: str, record: VmRecord, ownership: Ownership) -> VmSummary:
    """One VM now."""
    reading = record.reading
    return VmSummary(
        vm_id=vm_id,
        name=record.domain.name,
        running=record.domain.running,
        excluded=record.domain.policy.excluded,
        in_force={str(kind): value for kind, value in record.in_force.items()},
        in_flight=tuple(sorted(record.pending)),
        backing_off_until_ns={f"{kind} {'growth' if growth else 'shrink'}": ns for (kind, growth), ns in record.backoff_until.items()},
        cpu_used_millicores=None if reading is None else reading.cpu_used_millicores,
        memory_used_bytes=None if reading is None else reading.memory_used_bytes,
        newest=record.story[-1] if record.story else None,
        pending={str(kind): value for kind, (_, value) in sorted(record.pending.items())},
        yielded_until_ns=ownership.yielded_until(vm_id),
        defaults={str(kind): value for kind, value in ownership.defaults(vm_id).items()},
    )


def plan_summary(book: PlanBook, now_ns: int) -> PlanSummary:
    """The plan book now, the host's own steps under way among its lines."""
    lines = tuple(
        PlanLine(
            step=pursuit.step,
            flying=pursuit.flying,
            retry_ns=pursuit.retry_ns,
            deadline_ns=pursuit.deadline_ns,
            code=str(pursuit.code or ""),
            detail=pursuit.detail,
        )
        for pursuit in book.pursuits.values()
    )
    return PlanSummary(epoch=book.epoch, sequence=book.sequence, deadline_ns=book.deadline_ns, live=book.live(now_ns), steps=lines)
