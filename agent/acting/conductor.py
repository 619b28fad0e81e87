"""Carries out asks: guard → journal → submit → observe → outcome, for the local rule's asks and for the steps of plans. Pure.

Why one place: whoever wants something of a VM goes through `_try`, so mode, guard, journal, rates and promises bind all alike.
Invariant: every SubmitStep is preceded by its Intent in the same list of instructions; every step ends in one Outcome.
In a shadowing mode everything happens but the submit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec

from agent.acting.actuator import Actuator, Ending, Flight, Phase
from agent.acting.autonomy import Allowance
from agent.acting.guard import Guard, Verdict
from agent.acting.ledger import Ledger, VmRecord
from agent.acting.levers import grows, shows
from agent.acting.migration import MigrationDesk
from agent.acting.plans import PlanBook, Pursuit, changed_since
from agent.acting.reactive import Ask
from agent.acting.reconcile import Recovered, local_prefix
from agent.events import Closed, Decision, Instruction, Intent, Note, PlanAccepted, ReadBack, SubmitStep, Verb, WriteJournal
from shared.config import GuardConfig, MigrationConfig
from shared.model import Allocation, Domain, HostCapacity
from shared.plan import Outcome, OutcomeState, Plan, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

# A local rule repeats itself every 5 s while nothing changes: the same answer is reported once per 5-minute bucket, and counted always.
REPEAT_NS: Final = 300 * NS_PER_S
# Answers to a local rule that only mean "not yet"; reporting them as refusals would bury the refusals.
NOT_YET: Final = frozenset({RefusalCode.NOTHING_TO_DO, RefusalCode.VM_BUSY, RefusalCode.COOLDOWN, RefusalCode.BACKING_OFF})
# Outcomes that changed, or should have changed, the host; refusals and shadows are in the metrics, the story and the outcome stream.
LOGGED: Final = {
    OutcomeState.VERIFIED: "info",
    OutcomeState.PARTIAL: "info",
    OutcomeState.FAILED: "warning",
    OutcomeState.UNDONE: "warning",
}
# Clips after which the rest may follow in a later stride; the others (floors, ceilings, working set) are final.
STRIDES: Final = frozenset({RefusalCode.STEP_TOO_LARGE, RefusalCode.HOST_COMMIT_LIMIT})


class Conductor:
    """The acting half of the agent's core. Appends to `out`, the instruction list of the event in hand."""

    def __init__(
        self,
        *,
        host_id: str,
        boot_id: str,
        capacity: HostCapacity,
        config: GuardConfig,
        recovered: Recovered,
        ship: Callable[[Outcome], None],
        migration: MigrationConfig | None = None,
    ) -> None:
        self.guard = Guard(config)
        self.ledger = Ledger(config, capacity)
        self.actuator = Actuator(config.step_timeout_s * NS_PER_S)
        self._prefix = local_prefix(host_id, boot_id)
        self.book = PlanBook(host_id, self._prefix, recovered.epoch, recovered.sequence, recovered.seen)
        self.counters: Counter[tuple[str, str]] = Counter()  # (outcome state, refusal code or "")
        self.repeats: Counter[str] = Counter()  # answers to local asks that were not reported again, by code or state
        self.out: list[Instruction] = []
        self._ship = ship
        self._local = recovered.next_local
        self._recovered: Recovered | None = recovered
        self.moves = MigrationDesk(host_id, migration or MigrationConfig(), self.ledger, self._emit, self._moved)

    def _emit(self, instruction: Instruction) -> None:
        self.out.append(instruction)

    # Inventory

    def define(self, domains: tuple[Domain, ...], now_ns: int) -> None:
        """Take over the inventory. Steps of VMs that left end here; on the first one, steps open in the journal are taken up."""
        stories = {vm_id: record.domain for vm_id, record in self.ledger}
        for vm_id in self.ledger.define(domains):
            code = RefusalCode.VM_NOT_RUNNING if vm_id in self.ledger.vms else RefusalCode.UNKNOWN_VM
            for ending in self.actuator.drop(vm_id, code):
                self._land(ending, now_ns)
            for pursuit in [p for p in self.book.pursuits.values() if p.step.vm_id == vm_id and not _moving(p)]:
                self._finish(pursuit, code, f"{stories[vm_id].name} left the host", now_ns)
        if self._recovered is not None:
            recovered, self._recovered = self._recovered, None
            self._take_up(recovered, now_ns)
        self.moves.inventory(now_ns)

    def _take_up(self, recovered: Recovered, now_ns: int) -> None:
        for times, name in ((recovered.grown_at, "grown_at"), (recovered.shrunk_at, "shrunk_at")):
            for (vm_id, kind), at_ns in times.items():
                if vm_id in self.ledger.vms:
                    getattr(self.ledger.vms[vm_id], name)[kind] = at_ns
        for intent in recovered.open:
            step = intent.step
            if step.kind is StepKind.MIGRATE:
                self.moves.take_up(intent, now_ns)
                continue
            flight = Flight(
                asked=_with_value(step, intent.asked),
                step=step,
                before=intent.before,
                origin=intent.origin,
                started_ns=now_ns,
                goal=intent.goal,
                recovered=True,
            )
            if step.vm_id not in self.ledger.vms:
                gone = "found open after a restart, the VM is gone"
                ending = Ending(flight=flight, state=OutcomeState.FAILED, value=None, code=RefusalCode.UNKNOWN_VM, detail=gone)
                self._land(ending, now_ns)
                continue
            self.actuator.begin(flight)
            flight.phase = Phase.OBSERVING
            if (undo := recovered.undos.get(step.id)) is not None:
                self.actuator.undo(flight, undo.step, now_ns)
            self.ledger.hold(step.vm_id, step.kind, intent.before, step.value)
            self.out.append(ReadBack(vm_id=step.vm_id))

    # Local asks

    def local(self, vm_id: str, record: VmRecord, ask: Ask, allow: Allowance, now_ns: int) -> None:
        """Try what the local rule asks for."""
        kind = ask.kind
        if not (allow.local_growth if ask.grow else allow.local_shrink):
            return
        if kind in record.pending:
            if ask.grow and not allow.shadow:
                self._relent(vm_id, kind, now_ns)
            return
        timeout_ns = self.guard.config.step_timeout_s * NS_PER_S
        before = record.in_force.get(kind)
        step = Step(id="local", vm_id=vm_id, kind=kind, value=ask.value, before=before, reason=ask.reason, deadline_ns=now_ns + timeout_ns)
        verdict = self.guard.check(step, self.ledger.view(vm_id, kind, now_ns), now_ns)
        if verdict.value is None:
            assert verdict.code is not None
            if verdict.code in NOT_YET or not self._worth_telling(record, kind, verdict.code, now_ns):
                self.repeats[verdict.code] += 1
                return
            outcome = Outcome(step=self._named(step), state=OutcomeState.REFUSED, value=before, code=verdict.code, detail=verdict.detail)
            self._tell(outcome, allow.origin, before, now_ns)
        elif allow.shadow:
            if self._worth_telling(record, kind, OutcomeState.SHADOWED, now_ns):
                self._shadow(self._named(step), verdict, allow.origin, before, now_ns)
            else:
                self.repeats[OutcomeState.SHADOWED] += 1
        else:
            # The rule asks again on the next sample: one stride of a long shrink is all that is asked of this step.
            if verdict.code is RefusalCode.STEP_TOO_LARGE:
                step, verdict = _with_value(step, verdict.value), Verdict(value=verdict.value)
            self._submit(self._named(step), verdict, allow.origin, now_ns)

    def _relent(self, vm_id: str, kind: StepKind, now_ns: int) -> None:
        """The VM needs more of what is being taken from it: stop taking."""
        flight = self.actuator.shrinking(vm_id, kind)
        if flight is not None:
            flight.relented = True
            self.ledger.gave_back(vm_id, kind, now_ns)
            self._undo(flight, flight.before, "the VM came under pressure", now_ns)

    def _worth_telling(self, record: VmRecord, kind: StepKind, what: str, now_ns: int) -> bool:
        told = record.told_at.get((kind, what))
        if told is not None and 0 <= now_ns - told < REPEAT_NS:
            return False
        record.told_at[kind, what] = now_ns
        return True

    # Plans

    def plan(self, plan: Plan, least_epoch: int, allow: Allowance, now_ns: int) -> None:
        """Take or refuse a plan; begin what can begin."""
        older = list(self.book.pursuits.values())
        admission = self.book.admit(plan, least_epoch, now_ns)
        if admission.repeated:
            return
        fields: dict[str, str | int] = {"epoch": plan.epoch, "sequence": plan.sequence, "steps": len(plan.steps)}
        if admission.code is None:
            ids = tuple(step.id for step in plan.steps)
            self.out.append(WriteJournal(entry=PlanAccepted(epoch=plan.epoch, sequence=plan.sequence, at_ns=now_ns, step_ids=ids)))
            self.out.append(Note(level="info", event="plan_accepted", fields=fields))
            self._replace(older, now_ns)
        else:
            note = {**fields, "code": str(admission.code), "detail": admission.detail}
            self.out.append(Note(level="warning", event="plan_refused", fields=note))
        for step, code, detail in admission.refused:
            outcome = Outcome(step=step, state=OutcomeState.REFUSED, value=self._value(step.vm_id, step.kind), code=code, detail=detail)
            self._tell(outcome, _origin(step), None, now_ns)
        self.pursue(allow, now_ns)

    def _replace(self, older: list[Pursuit], now_ns: int) -> None:
        for pursuit in older:
            if pursuit.flying:
                pursuit.ends_with = RefusalCode.SEQUENCE_OLD
            else:
                self._finish(pursuit, RefusalCode.SEQUENCE_OLD, "replaced by a newer plan", now_ns)

    def forbid_plans(self, now_ns: int) -> None:
        """The mode no longer carries plans: end what has not begun; what is in flight ends with its flight."""
        for pursuit in self.book.clear(RefusalCode.MODE_FORBIDS):
            self._finish(pursuit, RefusalCode.MODE_FORBIDS, "the mode changed", now_ns)

    def pursue(self, allow: Allowance, now_ns: int) -> None:
        """Try every plan step whose time has come: shrinks first, so that they can free what growth waits for; then by priority."""
        if not self.book.pursuits:
            return
        for pursuit in self.book.expired(now_ns):
            code = pursuit.code or RefusalCode.STEP_EXPIRED
            self._finish(pursuit, code, f"deadline passed; {pursuit.detail or 'not begun'}", now_ns)
        for pursuit in sorted(self.book.due(now_ns), key=self._turn):
            self._advance(pursuit, allow, now_ns)

    def _turn(self, pursuit: Pursuit) -> tuple[bool, int, str, str]:
        step = pursuit.step
        record = self.ledger.vms.get(step.vm_id)
        if record is None:
            return False, 0, step.vm_id, step.kind
        growth = grows(record.in_force.get(step.kind, 0), step.value)
        return growth, -record.domain.policy.priority, step.vm_id, step.kind

    def _advance(self, pursuit: Pursuit, allow: Allowance, now_ns: int) -> None:
        step = pursuit.step
        current = self._value(step.vm_id, step.kind)
        growth = current is not None and grows(current, step.value)
        ordered = _origin(step) == "operator"
        if not (allow.order_growth if ordered else allow.plan_growth):
            what = "operator's orders" if ordered else "plans"
            self._finish(pursuit, RefusalCode.MODE_FORBIDS, f"the mode carries out no {what}", now_ns)
            return
        if not growth and not (allow.order_shrink if ordered else allow.plan_shrink):
            pursuit.wait(RefusalCode.PLAN_STALE, "no coordinator: shrinks are held", now_ns)
            return
        if not pursuit.begun and (changed := changed_since(step, current)) is not None:
            self._finish(pursuit, RefusalCode.PRECONDITION_CHANGED, changed, now_ns)
            return
        if pursuit.begun and current is not None and growth != pursuit.upward and not shows(step.kind, step.value, current):
            self._finish(pursuit, RefusalCode.PRECONDITION_CHANGED, f"{step.kind} is {current}: passed on the way", now_ns)
            return
        if step.kind is StepKind.MIGRATE:
            verdict = self.moves.check(step, self.guard, now_ns)
        else:
            verdict = self.guard.check(step, self.ledger.view(step.vm_id, step.kind, now_ns), now_ns)
        if verdict.value is None:
            self._hold(pursuit, verdict, current, now_ns)
        elif allow.shadow:
            del self.book.pursuits[step.id]
            self._shadow(step, verdict, _origin(step), current, now_ns)
        elif step.kind is StepKind.MIGRATE:
            self._move(pursuit, verdict.value, now_ns)
        else:
            self._stride(pursuit, verdict, current, now_ns)

    def _hold(self, pursuit: Pursuit, verdict: Verdict, current: int | None, now_ns: int) -> None:
        """The guard said no: wait when waiting can help before the deadline, otherwise end."""
        step, code = pursuit.step, verdict.code
        assert code is not None
        for_room = code is RefusalCode.HOST_COMMIT_LIMIT
        unread = current is None and code is RefusalCode.READING_STALE
        in_time = verdict.wait_ns > 0 and now_ns + verdict.wait_ns < pursuit.deadline_ns
        if for_room or unread or in_time:
            if pursuit.wait(code, verdict.detail, now_ns + verdict.wait_ns):
                self._record(step, _origin(step), before=current, now_ns=now_ns, verdict=Verb.WAITING, code=code, detail=verdict.detail)

            return
        self._finish(pursuit, code, verdict.detail, now_ns)

    def _stride(self, pursuit: Pursuit, verdict: Verdict, current: int | None, now_ns: int) -> None:
        step = pursuit.step
        pursuit.begun_ns = pursuit.begun_ns or now_ns
        pursuit.flying = True
        pursuit.upward = current is not None and grows(current, step.value)
        if verdict.code not in STRIDES or verdict.value is None:
            self._submit(step, verdict, _origin(step), now_ns)
            return
        pursuit.code, pursuit.detail = verdict.code, verdict.detail
        part = msgspec.structs.replace(step, id=self._next_id(), value=verdict.value, before=current)
        self._submit(part, Verdict(value=verdict.value), _origin(step), now_ns, goal=step)

    def _move(self, pursuit: Pursuit, bits_per_s: int, now_ns: int) -> None:
        pursuit.begun_ns, pursuit.flying = now_ns, True
        step, origin = pursuit.step, _origin(pursuit.step)
        self.moves.begin(step, bits_per_s, origin, now_ns)
        self._record(step, origin, before=None, now_ns=now_ns, verdict=Verb.SUBMITTED, code=None, detail=f"to {step.target}")

    def _moved(self, outcome: Outcome, origin: str, now_ns: int) -> None:
        """A migration ended, one way or the other."""
        self.book.pursuits.pop(outcome.step.id, None)
        self._tell(outcome, origin, None, now_ns)

    def _finish(self, pursuit: Pursuit, code: RefusalCode, detail: str, now_ns: int) -> None:
        """End a pursuit with nothing in flight: PARTIAL when strides took effect, otherwise REFUSED; VERIFIED when it turns out done."""
        step = pursuit.step
        self.book.pursuits.pop(step.id, None)
        value = self._value(step.vm_id, step.kind)
        state = OutcomeState.PARTIAL if pursuit.moved else OutcomeState.REFUSED
        if pursuit.moved and code is RefusalCode.NOTHING_TO_DO:
            outcome = Outcome(step=step, state=OutcomeState.VERIFIED, value=value, started_ns=pursuit.begun_ns)
        else:
            outcome = Outcome(step=step, state=state, value=value, code=code, detail=detail, started_ns=pursuit.begun_ns)
        self._tell(outcome, _origin(step), step.before, now_ns)

    # Flights

    def _submit(self, step: Step, verdict: Verdict, origin: str, now_ns: int, goal: Step | None = None) -> None:
        assert verdict.value is not None
        kind, value = step.kind, verdict.value
        before = self.ledger.vms[step.vm_id].in_force[kind]
        submitted = _with_value(step, value)
        flight = Flight(
            asked=step, step=submitted, before=before, origin=origin, started_ns=now_ns, code=verdict.code, detail=verdict.detail, goal=goal
        )
        self.actuator.begin(flight)
        self.ledger.begun(step.vm_id, kind, before, value, now_ns)
        intent = Intent(step=submitted, asked=step.value, before=before, origin=origin, at_ns=now_ns, goal=goal)
        self.out += (WriteJournal(entry=intent), SubmitStep(step=submitted))
        self._record(submitted, origin, before=before, now_ns=now_ns, verdict=Verb.SUBMITTED, code=verdict.code, detail=verdict.detail)

    def accepted(self, step_id: str, now_ns: int) -> None:
        """The hypervisor took a step: look at once, fast levers are done already."""
        vm_id = self.actuator.accepted(step_id, now_ns)
        if vm_id is not None:
            self.out.append(ReadBack(vm_id=vm_id))

    def rejected(self, step_id: str, code: RefusalCode | None, detail: str, retriable: bool, now_ns: int) -> None:
        """The submit call failed."""
        for flight in self.actuator:
            if step_id in (flight.step.id, flight.undo.id if flight.undo else ""):
                in_force = self._value(flight.step.vm_id, flight.step.kind)
                ending = self.actuator.rejected(step_id, code, detail[:512], fate_unknown=retriable, in_force=in_force)
                if ending is not None:
                    self._land(ending, now_ns)
                return

    def read(self, vm_id: str, allocation: Allocation, allow: Allowance, now_ns: int) -> None:
        """A read-back arrived."""
        if not self.ledger.note_allocation(vm_id, allocation, now_ns):
            return
        endings = self.actuator.observed(vm_id, allocation)
        for ending in endings:
            self._land(ending, now_ns)
        if endings:
            self.pursue(allow, now_ns)

    def follow(self, may_act: bool, now_ns: int) -> None:
        """Time passed: take back what is overdue, ask for a read-back of the rest."""
        self.moves.follow(may_act, now_ns)
        if not len(self.actuator):
            return
        to_read = set()
        for flight in self.actuator:
            if not self.actuator.overdue(flight, now_ns):
                if flight.phase is not Phase.SUBMITTED:
                    to_read.add(flight.step.vm_id)
                continue
            step = flight.step
            answer = self.actuator.give_up(flight, self._value(step.vm_id, step.kind), may_undo=may_act)
            if isinstance(answer, Ending):
                self._land(answer, now_ns)
                continue
            self._undo(flight, answer, f"{step.value} not seen in force in time", now_ns)
        self.out.extend(ReadBack(vm_id=vm_id) for vm_id in sorted(to_read))

    def _undo(self, flight: Flight, value: int, why: str, now_ns: int) -> None:
        step = flight.step
        undo = msgspec.structs.replace(step, id=self._next_id(), value=value, before=step.value, reason="undo")
        self.actuator.undo(flight, undo, now_ns)
        intent = Intent(step=undo, asked=value, before=step.value, origin=flight.origin, at_ns=now_ns, undo_of=step.id)
        self.out += (WriteJournal(entry=intent), SubmitStep(step=undo))
        self._record(undo, flight.origin, before=step.value, now_ns=now_ns, verdict=Verb.UNDO, code=None, detail=why)

    def _land(self, ending: Ending, now_ns: int) -> None:
        """A flight is over: free its lever, tell, and go on with the pursuit it served."""
        flight, state = ending.flight, ending.state
        step = flight.asked
        growth = grows(flight.before, flight.step.value)
        self.ledger.ended(step.vm_id, step.kind, growth=growth, failed=ending.failed, now_ns=now_ns)
        goal = flight.goal
        pursuit = self.book.pursuits.get((goal or step).id)
        if pursuit is not None:
            pursuit.flying = False
            if goal is None:
                del self.book.pursuits[step.id]
                if pursuit.moved and state in (OutcomeState.FAILED, OutcomeState.UNDONE, OutcomeState.REFUSED):
                    state = OutcomeState.PARTIAL
        outcome = Outcome(
            step=step,
            state=state,
            value=ending.value,
            code=ending.code,
            detail=ending.detail,
            started_ns=flight.started_ns if pursuit is None else pursuit.begun_ns,
        )
        self._tell(outcome, flight.origin, flight.before, now_ns)
        if goal is None:
            return
        if pursuit is None:
            pursuit = Pursuit(step=goal, deadline_ns=0, retry_ns=0, begun_ns=flight.started_ns, ends_with=RefusalCode.STEP_EXPIRED)
        pursuit.moved = pursuit.moved or state in (OutcomeState.VERIFIED, OutcomeState.PARTIAL)
        if pursuit.ends_with is not None:
            self._finish(pursuit, pursuit.ends_with, "the agent restarted" if flight.recovered else "stopped between two strides", now_ns)
        elif ending.failed or state in (OutcomeState.REFUSED, OutcomeState.UNDONE):
            self.book.pursuits.pop(goal.id, None)
            final = OutcomeState.PARTIAL if pursuit.moved else state
            whole = msgspec.structs.replace(outcome, step=goal, state=final, started_ns=pursuit.begun_ns)
            self._tell(whole, flight.origin, goal.before, now_ns)

    # Telling

    def _shadow(self, step: Step, verdict: Verdict, origin: str, current: int | None, now_ns: int) -> None:
        detail = f"would have set {verdict.value}" + (f": {verdict.detail}" if verdict.detail else "")
        outcome = Outcome(step=step, state=OutcomeState.SHADOWED, value=current, code=verdict.code, detail=detail)
        self._tell(outcome, origin, current, now_ns)

    def _tell(self, outcome: Outcome, origin: str, before: int | None, now_ns: int) -> None:
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
        self._record(outcome.step, origin, before=before, now_ns=now_ns, verdict=outcome.state, code=outcome.code, detail=outcome.detail)

    def _record(
        self, step: Step, origin: str, *, before: int | None, now_ns: int, verdict: str, code: RefusalCode | None, detail: str
    ) -> None:
        record = self.ledger.vms.get(step.vm_id)
        if record is None:
            return
        record.story.append(
            Decision(
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
        )

    def _value(self, vm_id: str, kind: StepKind) -> int | None:
        record = self.ledger.vms.get(vm_id)
        return None if record is None else record.in_force.get(kind)

    def _named(self, step: Step) -> Step:
        return msgspec.structs.replace(step, id=self._next_id())

    def _next_id(self) -> str:
        number, self._local = self._local, self._local + 1
        return f"{self._prefix}{number}"


def _with_value(step: Step, value: int) -> Step:
    return step if step.value == value else msgspec.structs.replace(step, value=value)


def _moving(pursuit: Pursuit) -> bool:
    """Its VM may well be gone: the desk says how it ended."""
    return pursuit.flying and pursuit.step.kind is StepKind.MIGRATE


def _origin(step: Step) -> str:
    return "operator" if step.reason == "operator" else "plan"
