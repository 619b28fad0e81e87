"""Steps on their way to the host: journalled intent, submit, read-back, undo; and what was found in the air after a restart. Pure.

Invariant: every SubmitStep is preceded by its Intent in the same list of instructions; each flight lands exactly once.
What lands is entered in the ledger (rates, promises, back-off), in the ownership (whose value it is) and in the memory of steps that
took effect; whoever asked for the step goes on from there (`landed`).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent.acting.actuator import Actuator, Ending, Flight, Phase
from agent.acting.guard import Verdict
from agent.acting.ledger import Ledger
from agent.acting.levers import grows, shows
from agent.acting.ownership import Ownership
from agent.acting.reconcile import Recovered
from agent.acting.telling import Teller
from agent.acting.undoing import StepMemory, Taken
from agent.events import Intent, ReadBack, SubmitStep, Verb, WriteJournal
from shared.config import GuardConfig
from shared.model import Allocation
from shared.plan import OutcomeState, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import NS_PER_S


class Flights:
    """All flights of the host. `landed(ending, now_ns)` is called for each that is over."""

    def __init__(self, ledger: Ledger, ownership: Ownership, memory: StepMemory, teller: Teller, config: GuardConfig) -> None:
        self.actuator = Actuator(config.step_timeout_s * NS_PER_S, config.unplug_timeout_s * NS_PER_S)
        self.landed: Callable[[Ending, int], None] = lambda _ending, _now_ns: None
        self._ledger = ledger
        self._ownership = ownership
        self._memory = memory
        self._teller = teller

    def configure(self, config: GuardConfig) -> None:
        """New timeouts, for what is in the air as well."""
        self.actuator.timeout_ns, self.actuator.unplug_timeout_ns = config.step_timeout_s * NS_PER_S, config.unplug_timeout_s * NS_PER_S

    def submit(self, step: Step, verdict: Verdict, origin: str, now_ns: int, *, goal: Step | None = None, unplanned: bool = False) -> None:
        """Send a step that the guard let pass, with the guard's value."""
        assert verdict.value is not None
        kind, value = step.kind, verdict.value
        before = self._ledger.vms[step.vm_id].in_force[kind]
        submitted = with_value(step, value)
        flight = Flight(
            asked=step, step=submitted, before=before, origin=origin, started_ns=now_ns, code=verdict.code, detail=verdict.detail, goal=goal
        )
        self.actuator.begin(flight)
        self._ledger.begun(step.vm_id, kind, before, value, now_ns, unplanned=unplanned)
        self._ownership.begun(step.vm_id, kind, before, value, now_ns=now_ns)
        intent = Intent(step=submitted, asked=step.value, before=before, origin=origin, at_ns=now_ns, goal=goal)
        self._teller.out += (WriteJournal(entry=intent), SubmitStep(step=submitted))
        self._teller.record(
            submitted, origin, before=before, now_ns=now_ns, verdict=Verb.SUBMITTED, code=verdict.code, detail=verdict.detail
        )

    def accepted(self, step_id: str, now_ns: int) -> None:
        """The hypervisor took a step: look at once, fast levers are done already."""
        vm_id = self.actuator.accepted(step_id, now_ns)
        if vm_id is not None:
            self._teller.out.append(ReadBack(vm_id=vm_id))

    def rejected(self, step_id: str, code: RefusalCode | None, detail: str, retriable: bool, now_ns: int) -> None:
        """The submit call failed."""
        for flight in self.actuator:
            if step_id in (flight.step.id, flight.undo.id if flight.undo else ""):
                in_force = self._value(flight.step.vm_id, flight.step.kind)
                ending = self.actuator.rejected(step_id, code, detail[:512], fate_unknown=retriable, in_force=in_force)
                if ending is not None:
                    self._land(ending, now_ns)
                return

    def read(self, vm_id: str, allocation: Allocation, now_ns: int) -> list[Ending]:
        """A read-back arrived; what landed by it."""
        endings = self.actuator.observed(vm_id, allocation, now_ns)
        for ending in endings:
            self._land(ending, now_ns)
        return endings

    def follow(self, may_act: bool, now_ns: int) -> None:
        """Time passed: take back what is overdue, close what a restart found, ask for a read-back of the rest."""
        if not len(self.actuator):
            return
        to_read = set()
        for flight in self.actuator:
            step = flight.step
            in_force = self._value(step.vm_id, step.kind)
            if flight.recovered and not self.actuator.overdue(flight, now_ns):
                answer = self.actuator.resolve(flight, in_force, now_ns, may_undo=may_act)
            elif self.actuator.overdue(flight, now_ns):
                answer = self.actuator.give_up(flight, in_force, may_undo=may_act)
            else:
                answer = None
            if answer is None:
                if flight.phase is not Phase.SUBMITTED:
                    to_read.add(step.vm_id)
            elif isinstance(answer, Ending):
                self._land(answer, now_ns)
            else:
                found = f"found {in_force} after a restart, {flight.before} was and {step.value} was to be"
                self.undo(flight, answer, found if flight.recovered else f"{step.value} not seen in force in time", now_ns)
        self._teller.out.extend(ReadBack(vm_id=vm_id) for vm_id in sorted(to_read))

    def resume(self, now_ns: int) -> None:
        """Nothing was followed for a while: every flight gets its time anew, and is looked at."""
        self.actuator.renew(now_ns)
        self._teller.out.extend(ReadBack(vm_id=vm_id) for vm_id in sorted({flight.step.vm_id for flight in self.actuator}))

    def relent(self, vm_id: str, kind: StepKind, now_ns: int) -> None:
        """The VM needs more of what is being taken from it: stop taking."""
        flight = self.actuator.shrinking(vm_id, kind)
        if flight is not None:
            flight.relented = True
            self._ledger.gave_back(vm_id, kind, now_ns)
            self.undo(flight, flight.before, "the VM came under pressure", now_ns)

    def undo(self, flight: Flight, value: int, why: str, now_ns: int) -> None:
        """Submit what takes the flight back."""
        step = flight.step
        undo = msgspec.structs.replace(step, id=self._teller.next_id(), value=value, before=step.value, reason="undo")
        self.actuator.undo(flight, undo, now_ns)
        self._ownership.begun(step.vm_id, step.kind, flight.before, step.value, value, now_ns=now_ns)
        intent = Intent(step=undo, asked=value, before=step.value, origin=flight.origin, at_ns=now_ns, undo_of=step.id)
        self._teller.out += (WriteJournal(entry=intent), SubmitStep(step=undo))
        self._teller.record(undo, flight.origin, before=step.value, now_ns=now_ns, verdict=Verb.UNDO, code=None, detail=why)

    def cede(self, vm_id: str, kind: StepKind, found: int, now_ns: int) -> None:
        """Somebody else set this lever while a step of ours was in flight: it is theirs."""
        ending = self.actuator.cede(vm_id, kind, found)
        if ending is not None:
            self._land(ending, now_ns)

    def drop(self, vm_id: str, code: RefusalCode, now_ns: int) -> None:
        """The VM is gone or stopped."""
        for ending in self.actuator.drop(vm_id, code):
            self._land(ending, now_ns)

    def take_up(self, recovered: Recovered, now_ns: int) -> None:
        """Go on with what an earlier process left in the air."""
        for intent in recovered.open:
            step = intent.step
            if step.kind is StepKind.MIGRATE:
                continue  # the migration desk's
            flight = Flight(
                asked=with_value(step, intent.asked),
                step=step,
                before=intent.before,
                origin=intent.origin,
                started_ns=now_ns,
                goal=intent.goal,
                recovered=True,
            )
            if step.vm_id not in self._ledger.vms:
                gone = "found open after a restart, the VM is gone"
                ending = Ending(flight=flight, state=OutcomeState.FAILED, value=None, code=RefusalCode.UNKNOWN_VM, detail=gone)
                self._land(ending, now_ns)
                continue
            self.actuator.begin(flight)
            flight.phase = Phase.OBSERVING
            self._ownership.begun(step.vm_id, step.kind, intent.before, step.value)
            if (undo := recovered.undos.get(step.id)) is not None:
                self.actuator.undo(flight, undo.step, now_ns)
                self._ownership.begun(step.vm_id, step.kind, intent.before, undo.step.value)
            self._ledger.hold(step.vm_id, step.kind, intent.before, step.value)
            self._teller.out.append(ReadBack(vm_id=step.vm_id))

    def _land(self, ending: Ending, now_ns: int) -> None:
        flight = ending.flight
        step = flight.step
        self._ledger.ended(step.vm_id, step.kind, growth=grows(flight.before, step.value), failed=ending.failed, now_ns=now_ns)
        shown = ending.value is not None and shows(step.kind, step.value, ending.value)
        sure = shown or ending.state in (OutcomeState.UNDONE, OutcomeState.REFUSED)
        # What was asked for is believed, not the reading that was near enough to show it: a balloon still does its last percent.
        left = step.value if shown else ending.value
        if flight.undo is not None and left is not None and shows(step.kind, flight.undo.value, left):
            left = flight.undo.value
        self._ownership.ended(step.vm_id, step.kind, left, sure=sure, now_ns=now_ns)
        took = ending.state in (OutcomeState.VERIFIED, OutcomeState.PARTIAL)
        if took and ending.value is not None and not shows(step.kind, flight.before, ending.value):
            taken = Taken(
                step_id=flight.asked.id,
                goal_id=flight.goal.id if flight.goal else "",
                vm_id=step.vm_id,
                kind=step.kind,
                before=flight.before,
                after=ending.value,
                at_ns=flight.started_ns,
                origin=flight.origin,
            )
            self._memory.take(taken)
        self.landed(ending, now_ns)

    def _value(self, vm_id: str, kind: StepKind) -> int | None:
        record = self._ledger.vms.get(vm_id)
        return None if record is None else record.in_force.get(kind)


def with_value(step: Step, value: int) -> Step:
    """The same step with another value."""
    return step if step.value == value else msgspec.structs.replace(step, value=value)
