"""Carries steps to their values in as many strides as it takes: steps of plans, undos, limits that travelled, the decay. Pure.

Order: what takes from VMs before what gives to them, so that a full host has room; then by priority. A stride that is verified is
followed by the next at once, as far as the guard lets it. Invariant: every step that is pursued ends in one outcome.
"""

from __future__ import annotations

from typing import Final

import msgspec

from agent.acting.actuator import Ending
from agent.acting.autonomy import Allowance
from agent.acting.flights import Flights
from agent.acting.guard import Guard, Verdict, View
from agent.acting.ledger import Ledger
from agent.acting.levers import grows, shows
from agent.acting.migration import MigrationDesk
from agent.acting.plans import PlanBook, Pursuit, changed_since
from agent.acting.telling import Teller
from agent.events import Note, PlanAccepted, Verb, WriteJournal
from shared.plan import Outcome, OutcomeState, Plan, Step, StepKind
from shared.refusal import RefusalCode

# Clips after which the rest may follow in a later stride; the others (floors, ceilings, working set) are final.
STRIDES: Final = frozenset({RefusalCode.STEP_TOO_LARGE, RefusalCode.HOST_COMMIT_LIMIT})
# Refusals of the host's own steps that the next sample may lift.
PASSING: Final = frozenset({RefusalCode.READING_STALE, RefusalCode.PRESSURE_VETO, RefusalCode.RATE_LIMITED})


class Pursuits:
    """The steps under way, in the plan book."""

    def __init__(  # noqa: PLR0917  # the parts of the conductor, wired once
        self,
        guard: Guard,
        ledger: Ledger,
        flights: Flights,
        moves: MigrationDesk,
        book: PlanBook,
        teller: Teller,
    ) -> None:
        self.guard = guard
        self.book = book
        self.paused = ""  # who holds the kill switch
        self._moves = moves
        self._ledger = ledger
        self._flights = flights
        self._teller = teller

    def plan(self, plan: Plan, least_epoch: int, now_ns: int) -> bool:
        """Take or refuse a plan; False when it was heard before."""
        older = list(self.book.pursuits.values())
        admission = self.book.admit(plan, least_epoch, now_ns)
        if admission.repeated:
            return False
        fields: dict[str, str | int] = {"epoch": plan.epoch, "sequence": plan.sequence, "steps": len(plan.steps)}
        if admission.code is None:
            ids = tuple(step.id for step in plan.steps)
            self._teller.out.append(WriteJournal(entry=PlanAccepted(epoch=plan.epoch, sequence=plan.sequence, at_ns=now_ns, step_ids=ids)))
            self._teller.out.append(Note(level="info", event="plan_accepted", fields=fields))
            for pursuit in older:
                if not pursuit.origin:
                    self._stop(pursuit, RefusalCode.SEQUENCE_OLD, "replaced by a newer plan", now_ns)
        else:
            note = {**fields, "code": str(admission.code), "detail": admission.detail}
            self._teller.out.append(Note(level="warning", event="plan_refused", fields=note))
        for step, code, detail in admission.refused:
            outcome = Outcome(step=step, state=OutcomeState.REFUSED, value=self._value(step), code=code, detail=detail)
            self._teller.tell(outcome, Pursuit(step=step, deadline_ns=0, retry_ns=0).author, None, now_ns)
        return True

    def restore(self, vm_id: str, kind: StepKind, value: int, *, origin: str, reason: str, deadline_ns: int, now_ns: int) -> Step:
        """Begin to bring one lever to a value for the owner's sake; whatever else was pursued on it ends."""
        for pursuit in list(self.book.pursuits.values()):
            if (pursuit.step.vm_id, pursuit.step.kind) == (vm_id, kind):
                self._stop(pursuit, RefusalCode.YIELDED, f"the lever goes back: {reason}", now_ns)
        record = self._ledger.vms.get(vm_id)
        before = None if record is None else record.in_force.get(kind)
        step = Step(id=self._teller.next_id(), vm_id=vm_id, kind=kind, value=value, before=before, reason=reason, deadline_ns=deadline_ns)
        restoring = origin != "autonomy"  # nobody waits for the decay: it keeps to every limit
        self.book.pursuits[step.id] = Pursuit(step=step, deadline_ns=deadline_ns, retry_ns=0, origin=origin, restoring=restoring)
        return step

    def forbid(self, code: RefusalCode, detail: str, now_ns: int) -> None:
        """End what has not begun; what is in flight ends with its flight."""
        for pursuit in self.book.clear(code):
            self._finish(pursuit, code, detail, now_ns)

    def drop(self, vm_id: str, code: RefusalCode, detail: str, now_ns: int) -> None:
        """The VM is gone or stopped. How a move of it ended, the desk says."""
        for pursuit in list(self.book.pursuits.values()):
            if pursuit.step.vm_id == vm_id and not (pursuit.flying and pursuit.step.kind is StepKind.MIGRATE):
                self._finish(pursuit, code, detail, now_ns)

    def of(self, origin: str, vm_id: str = "") -> list[Pursuit]:
        """Pursuits of one origin, of one VM where it is named."""
        return [p for p in self.book.pursuits.values() if p.origin == origin and vm_id in ("", p.step.vm_id)]

    def pursue(self, allow: Allowance, now_ns: int) -> None:
        """Try every step whose time has come."""
        if not self.book.pursuits:
            return
        for pursuit in self.book.expired(now_ns):
            code = pursuit.code or RefusalCode.STEP_EXPIRED
            self._finish(pursuit, code, f"deadline passed; {pursuit.detail or 'not begun'}", now_ns)
        for pursuit in sorted(self.book.due(now_ns), key=self._turn):
            self._advance(pursuit, allow, now_ns)

    def _turn(self, pursuit: Pursuit) -> tuple[bool, int, str, str]:
        step = pursuit.step
        record = self._ledger.vms.get(step.vm_id)
        if record is None:
            return False, 0, step.vm_id, step.kind
        growth = grows(record.in_force.get(step.kind, 0), step.value)
        return growth, -record.domain.policy.priority, step.vm_id, step.kind

    def _advance(self, pursuit: Pursuit, allow: Allowance, now_ns: int) -> None:
        step = pursuit.step
        current = self._value(step)
        # A move takes nothing from anybody, but nobody sends a VM away without a coordinator.
        growth = current is not None and grows(current, step.value)
        if (barred := self._barred(pursuit, growth, allow, now_ns)) is not None:
            code, detail, waits = barred
            if waits:
                pursuit.wait(code, detail, now_ns)
            else:
                self._finish(pursuit, code, detail, now_ns)
            return
        if step.kind is StepKind.MIGRATE:
            self._move(pursuit, allow, now_ns)
            return
        if not pursuit.begun and not pursuit.origin and (changed := changed_since(step, current)) is not None:
            self._finish(pursuit, RefusalCode.PRECONDITION_CHANGED, changed, now_ns)
            return
        if pursuit.begun and current is not None and growth != pursuit.upward and not shows(step.kind, step.value, current):
            self._finish(pursuit, RefusalCode.PRECONDITION_CHANGED, f"{step.kind} is {current}: passed on the way", now_ns)
            return
        verdict = self.guard.check(step, self._view(pursuit, now_ns), now_ns, restoring=pursuit.restoring)
        if verdict.value is None:
            self._hold(pursuit, verdict, current, now_ns)
        elif allow.shadow:
            del self.book.pursuits[step.id]
            self._teller.shadow(step, verdict, pursuit.author, current, now_ns)
        else:
            self._stride(pursuit, verdict, current, now_ns)

    def _move(self, pursuit: Pursuit, allow: Allowance, now_ns: int) -> None:
        """A live migration: the desk's, from its check to its ending."""
        step = pursuit.step
        verdict = self._moves.check(step, self.guard, now_ns)
        if verdict.value is None:
            self._hold(pursuit, verdict, None, now_ns)
        elif allow.shadow:
            del self.book.pursuits[step.id]
            self._teller.shadow(step, verdict, pursuit.author, None, now_ns)
        else:
            pursuit.begun_ns, pursuit.flying = now_ns, True
            self._moves.begin(step, verdict.value, pursuit.author, now_ns)
            self._teller.record(
                step, pursuit.author, before=None, now_ns=now_ns, verdict=Verb.SUBMITTED, code=None, detail=f"to {step.target}"
            )

    def _barred(self, pursuit: Pursuit, growth: bool, allow: Allowance, now_ns: int) -> tuple[RefusalCode, str, bool] | None:
        """Why mode, link or owner do not let this step be tried now: code, detail, and whether it may wait."""
        step = pursuit.step
        if self.paused:
            return RefusalCode.PAUSED, f"paused by {self.paused}", False
        if pursuit.origin == "autonomy":
            return None if allow.decay else (RefusalCode.PRECONDITION_CHANGED, "a coordinator is back", False)
        if pursuit.origin:
            return None if allow.order_growth else (RefusalCode.MODE_FORBIDS, "the mode changes nothing", False)
        ordered = step.reason == "operator"
        if not (allow.order_growth if ordered else allow.plan_growth):
            return RefusalCode.MODE_FORBIDS, f"the mode carries out no {'orders of an operator' if ordered else 'plans'}", False
        if not growth and not (allow.order_shrink if ordered else allow.plan_shrink):
            return RefusalCode.PLAN_STALE, "no coordinator: shrinks are held", True
        return None

    def _view(self, pursuit: Pursuit, now_ns: int) -> View:
        view = self._ledger.view(pursuit.step.vm_id, pursuit.step.kind, now_ns)
        if not pursuit.restoring:
            return view
        # A batch of undos is bounded by the steps that it takes back, and by its minute; and a VM that is left to its owner is the owner's.
        return msgspec.structs.replace(view, vm_steps=0, host_steps=0, yielded_until_ns=0)

    def _hold(self, pursuit: Pursuit, verdict: Verdict, current: int | None, now_ns: int) -> None:
        """The guard said no: wait when waiting can help before the deadline, otherwise end."""
        step, code = pursuit.step, verdict.code
        assert code is not None
        for_room = code is RefusalCode.HOST_COMMIT_LIMIT
        unread = current is None and code is RefusalCode.READING_STALE and step.kind is not StepKind.MIGRATE
        passing = pursuit.origin != "" and code in PASSING
        in_time = verdict.wait_ns > 0 and now_ns + verdict.wait_ns < pursuit.deadline_ns
        if for_room or unread or passing or in_time:
            if pursuit.wait(code, verdict.detail, now_ns + verdict.wait_ns):
                self._teller.record(
                    step, pursuit.author, before=current, now_ns=now_ns, verdict=Verb.WAITING, code=code, detail=verdict.detail
                )
            return
        self._finish(pursuit, code, verdict.detail, now_ns)

    def _stride(self, pursuit: Pursuit, verdict: Verdict, current: int | None, now_ns: int) -> None:
        step = pursuit.step
        pursuit.begun_ns = pursuit.begun_ns or now_ns
        pursuit.flying = True
        pursuit.upward = current is not None and grows(current, step.value)
        if step.kind is StepKind.VCPUS and current is not None and verdict.value is not None and current - verdict.value > 1:
            # The guest lets go of each when it likes: of a single one there is no half way.
            verdict = Verdict(value=current - 1, code=RefusalCode.STEP_TOO_LARGE, detail="vCPUs are removed one at a time")
        if verdict.code not in STRIDES or verdict.value is None:
            self._flights.submit(step, verdict, pursuit.author, now_ns)
            return
        pursuit.code, pursuit.detail = verdict.code, verdict.detail
        part = msgspec.structs.replace(step, id=self._teller.next_id(), value=verdict.value, before=current)
        self._flights.submit(part, Verdict(value=verdict.value), pursuit.author, now_ns, goal=step)

    def _stop(self, pursuit: Pursuit, code: RefusalCode, detail: str, now_ns: int) -> None:
        if pursuit.flying:
            pursuit.ends_with = code
        else:
            self._finish(pursuit, code, detail, now_ns)

    def _finish(self, pursuit: Pursuit, code: RefusalCode, detail: str, now_ns: int) -> None:
        """End a pursuit with nothing in flight: PARTIAL when strides took effect, otherwise REFUSED; VERIFIED when it turns out done."""
        step = pursuit.step
        self.book.pursuits.pop(step.id, None)
        value = self._value(step)
        state = OutcomeState.PARTIAL if pursuit.moved else OutcomeState.REFUSED
        if pursuit.moved and code is RefusalCode.NOTHING_TO_DO:
            outcome = Outcome(step=step, state=OutcomeState.VERIFIED, value=value, started_ns=pursuit.begun_ns)
        else:
            outcome = Outcome(step=step, state=state, value=value, code=code, detail=detail, started_ns=pursuit.begun_ns)
        self._teller.tell(outcome, pursuit.author, step.before, now_ns)

    def abandon(self, step: Step, origin: str, *, moved: bool, now_ns: int) -> None:
        """A step in strides that an earlier process did not finish, with nothing of it in flight."""
        pursuit = Pursuit(step=step, deadline_ns=0, retry_ns=0, moved=moved, origin="" if origin == "plan" else origin)
        self._finish(pursuit, RefusalCode.STEP_EXPIRED, "the agent restarted", now_ns)

    def land(self, ending: Ending, now_ns: int) -> None:
        """A flight is over: tell, and go on with the pursuit it served."""
        flight, state = ending.flight, ending.state
        step, goal = flight.asked, flight.goal
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
        self._teller.tell(outcome, flight.origin, flight.before, now_ns)
        if goal is None:
            return
        lost = pursuit is None
        if pursuit is None:
            pursuit = Pursuit(
                step=goal,
                deadline_ns=0,
                retry_ns=0,
                begun_ns=flight.started_ns,
                ends_with=RefusalCode.STEP_EXPIRED,
                origin="" if flight.origin == "plan" else flight.origin,
            )
        pursuit.moved = pursuit.moved or state in (OutcomeState.VERIFIED, OutcomeState.PARTIAL)
        if pursuit.ends_with is not None:
            why = "the agent restarted" if lost else "stopped between two strides"
            self._finish(pursuit, pursuit.ends_with, why, now_ns)
        elif ending.failed or state in (OutcomeState.REFUSED, OutcomeState.UNDONE, OutcomeState.FAILED):
            self.book.pursuits.pop(goal.id, None)
            final = OutcomeState.PARTIAL if pursuit.moved else state
            whole = msgspec.structs.replace(outcome, step=goal, state=final, started_ns=pursuit.begun_ns)
            self._teller.tell(whole, flight.origin, goal.before, now_ns)

    def _value(self, step: Step) -> int | None:
        record = self._ledger.vms.get(step.vm_id)
        return None if record is None else record.in_force.get(step.kind)
