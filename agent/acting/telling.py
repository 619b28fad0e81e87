"""What is told of decisions: outcomes to journal and coordinator, the log, each VM's story and the host's history; and step ids. Pure.

Invariant: every outcome that is told is journalled, shipped, counted, and part of its VM's story.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Final

import msgspec

from agent.acting.guard import Verdict
from agent.acting.ledger import Ledger, VmRecord
from agent.events import Closed, Decision, Instruction, Note, WriteJournal
from shared.plan import Outcome, OutcomeState, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

# A local rule repeats itself every 5 s while nothing changes: the same answer is reported once per 5-minute bucket, and counted always.
REPEAT_NS: Final = 300 * NS_PER_S
# Decisions kept over all VMs for `history`: half a day of a busy host, a quarter of a MB.
HISTORY_LENGTH: Final = 1000
# Outcomes that changed, or should have changed, the host; refusals and shadows are in the metrics, the story and the outcome stream.
LOGGED: Final = {
    OutcomeState.VERIFIED: "info",
    OutcomeState.PARTIAL: "info",
    OutcomeState.FAILED: "warning",
    OutcomeState.UNDONE: "warning",
}


class HistoryLine(msgspec.Struct, frozen=True, kw_only=True):
    """One decision and the VM it was about."""

    vm_id: str
    name: str
    decision: Decision


class Teller:
    """Appends to `out`, the instruction list of the event in hand."""

    def __init__(self, ledger: Ledger, prefix: str, next_local: int, ship: Callable[[Outcome], None]) -> None:
        """`prefix`, `next_local`: how ids of this host's own steps begin, and the first free number."""
        self.ledger = ledger
        self.out: list[Instruction] = []
        self.counters: Counter[tuple[str, str]] = Counter()  # (outcome state, refusal code or "")
        self.repeats: Counter[str] = Counter()  # answers to local asks that were not reported again, by code or state
        self.history: deque[HistoryLine] = deque(maxlen=HISTORY_LENGTH)
        self._ship = ship
        self._prefix = prefix
        self._local = next_local

    def next_id(self) -> str:
        """A new id for a step of the host's own."""
        number, self._local = self._local, self._local + 1
        return f"{self._prefix}{number}"

    def named(self, step: Step) -> Step:
        """The step with an id of its own."""
        return msgspec.structs.replace(step, id=self.next_id())

    def worth_telling(self, record: VmRecord, kind: StepKind, what: str, now_ns: int) -> bool:
        """The same was not told of this lever a moment ago; then it counts as told now."""
        told = record.told_at.get((kind, what))
        if told is not None and 0 <= now_ns - told < REPEAT_NS:
            return False
        record.told_at[kind, what] = now_ns
        return True

    def shadow(self, step: Step, verdict: Verdict, origin: str, current: int | None, now_ns: int) -> None:
        """The step would have been submitted."""
        detail = f"would have set {verdict.value}" + (f": {verdict.detail}" if verdict.detail else "")
        outcome = Outcome(step=step, state=OutcomeState.SHADOWED, value=current, code=verdict.code, detail=detail)
        self.tell(outcome, origin, current, now_ns)

    def tell(self, outcome: Outcome, origin: str, before: int | None, now_ns: int) -> None:
        """How a step ended."""
        started_ns = outcome.started_ns or now_ns
        outcome = msgspec.structs.replace(outcome, origin=origin, started_ns=started_ns, finished_ns=now_ns, detail=outcome.detail[:1024])
        self.counters[outcome.state, outcome.code or ""] += 1
        self.out.append(WriteJournal(entry=Closed(outcome=outcome)))
        self._ship(outcome)
        level = LOGGED.get(outcome.state)
        if level is not None:
            step = outcome.step
            fields: dict[str, str | int] = {
                "step": step.id,
                "vm": step.vm_id,
                "kind": step.kind,
                "asked": step.value,
                "state": outcome.state,
                "code": outcome.code or "",
                "origin": origin,
                "reason": step.reason,
                "detail": outcome.detail,
            }
            self.out.append(Note(level=level, event="step", fields=fields))
        self.record(outcome.step, origin, before=before, now_ns=now_ns, verdict=outcome.state, code=outcome.code, detail=outcome.detail)

    def record(
        self, step: Step, origin: str, *, before: int | None, now_ns: int, verdict: str, code: RefusalCode | None, detail: str
    ) -> None:
        """Add a decision about a step to its VM's story and the host's history."""
        decision = Decision(
            at_ns=now_ns,
            kind=step.kind,
            from_value=before,
            to_value=step.value,
            origin=origin,
            verdict=verdict,
            code=code or "",
            reason=step.reason,
            detail=detail,
            step_id=step.id,
        )
        self.add(step.vm_id, decision)

    def add(self, vm_id: str, decision: Decision) -> None:
        """Add a decision to its VM's story and the host's history."""
        record = self.ledger.vms.get(vm_id)
        if record is None:
            return
        record.story.append(decision)
        self.history.append(HistoryLine(vm_id=vm_id, name=record.domain.name, decision=decision))
