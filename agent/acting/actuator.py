"""The step machine: SUBMITTED → OBSERVING → done, and SUBMITTED or OBSERVING → UNDOING → done. One flight per VM and lever. Pure.

Invariant: a flight ends VERIFIED only when a read-back shows its value; submitted, accepted and "no error" prove nothing.
A flight that is not seen in force within the timeout is taken back once: a shrink to its before-image; a growth to what is in force,
or the before-image where that is more, so that an undo never takes away what the guest already has. vCPUs cannot be taken back.
A submit call that failed without saying whether it took effect (timeout, lost connection) is observed like an accepted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from agent.acting.levers import FIELDS, grows, shows
from shared.model import Allocation
from shared.plan import OutcomeState, Step, StepKind
from shared.refusal import RefusalCode


class Phase(StrEnum):
    """Where a flight is."""

    SUBMITTED = "submitted"  # the submit call has not answered
    OBSERVING = "observing"  # accepted (or its fate unknown): waiting for the host to show it
    UNDOING = "undoing"  # the before-image was submitted: waiting for the host to show that


@dataclass(slots=True, kw_only=True)
class Flight:
    """One step on its way. `asked` as it was asked; `step` as submitted; `goal` the plan's step when this is one stride towards it."""

    asked: Step
    step: Step
    before: int
    origin: str
    started_ns: int
    phase: Phase = Phase.SUBMITTED
    phase_ns: int = 0
    code: RefusalCode | None = None  # why the guard clipped it
    detail: str = ""
    goal: Step | None = None
    undo: Step | None = None
    relented: bool = False  # a shrink taken back because the VM came under pressure
    recovered: bool = False  # found open in the journal after a restart: closed by what is read, never undone

    @property
    def key(self) -> tuple[str, StepKind]:
        """VM and lever."""
        return self.step.vm_id, self.step.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a flight ended."""

    flight: Flight
    state: OutcomeState
    value: int | None
    code: RefusalCode | None = None
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Counts towards the lever's back-off. A shrink that was given up for the VM's sake does not: the lever works."""
        if self.flight.relented and self.state is not OutcomeState.FAILED:
            return False
        return self.state in (OutcomeState.FAILED, OutcomeState.UNDONE) or (
            self.state is OutcomeState.PARTIAL and self.flight.undo is not None
        )


class Actuator:
    """All flights of the host."""

    def __init__(self, timeout_ns: int) -> None:
        self._timeout_ns = timeout_ns
        self._flights: dict[tuple[str, StepKind], Flight] = {}
        self._by_id: dict[str, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter([self._flights[key] for key in sorted(self._flights)])

    def begin(self, flight: Flight) -> None:
        """Take a flight whose step is being submitted. The caller's guard refuses a second one for the same VM and lever."""
        if flight.key in self._flights:
            raise RuntimeError(f"two steps in flight for {flight.key}")
        flight.phase_ns = flight.started_ns
        self._flights[flight.key] = flight
        self._by_id[flight.step.id] = flight

    def accepted(self, step_id: str, now_ns: int) -> str | None:
        """The submit call returned; the VM to read back, None when the step is no longer in flight."""
        flight = self._by_id.get(step_id)
        if flight is None:
            return None
        if flight.phase is Phase.SUBMITTED:
            flight.phase, flight.phase_ns = Phase.OBSERVING, now_ns
        return flight.step.vm_id

    def rejected(self, step_id: str, code: RefusalCode | None, detail: str, *, fate_unknown: bool, in_force: int | None) -> Ending | None:
        """The submit call failed. None when the flight goes on (its fate is not known)."""
        flight = self._by_id.get(step_id)
        if flight is None:
            return None
        if flight.phase is Phase.UNDOING and flight.undo is not None and flight.undo.id == step_id:
            if code is None and fate_unknown:
                return None
            return self._end(flight, OutcomeState.FAILED, in_force, code or flight.code, f"undo refused: {detail}")
        if flight.phase is not Phase.SUBMITTED:
            return None
        if code is not None:
            return self._end(flight, OutcomeState.REFUSED, in_force, code, detail)
        if fate_unknown:
            flight.phase, flight.detail = Phase.OBSERVING, detail
            return None
        return self._end(flight, OutcomeState.FAILED, in_force, None, detail)

    def observed(self, vm_id: str, allocation: Allocation) -> list[Ending]:
        """A read-back arrived: end the flights of this VM that it shows as done."""
        endings = []
        for flight in self.of(vm_id):
            value: int | None = getattr(allocation, FIELDS[flight.step.kind][0])
            if flight.phase is Phase.OBSERVING and shows(flight.step.kind, flight.step.value, value):
                clipped = flight.code is not None and flight.step.value != flight.asked.value
                state = OutcomeState.PARTIAL if clipped else OutcomeState.VERIFIED
                endings.append(self._end(flight, state, value, flight.code, flight.detail))
            elif flight.phase is Phase.UNDOING and flight.undo is not None and shows(flight.step.kind, flight.undo.value, value):
                endings.append(self._undone(flight, value))
        return endings

    def overdue(self, flight: Flight, now_ns: int) -> bool:
        """Past the timeout of its phase (twice that for a submit call that has not answered), or the clock was set back further."""
        allowed_ns = 2 * self._timeout_ns if flight.phase is Phase.SUBMITTED else self._timeout_ns
        return not -allowed_ns < now_ns - flight.phase_ns < allowed_ns

    def give_up(self, flight: Flight, in_force: int | None, *, may_undo: bool) -> Ending | int:
        """What to do with an overdue flight: the value to submit as its undo, or its ending."""
        what = f"{flight.step.value} not seen in force in time, {'unreadable' if in_force is None else in_force} is"
        detail = f"{what}; {flight.detail}" if flight.detail else what
        if flight.phase is Phase.UNDOING:
            return self._end(flight, OutcomeState.FAILED, in_force, flight.code, f"undo not seen in force either; {detail}")
        if flight.phase is Phase.SUBMITTED:
            # An undo could overtake the call that hangs, and be overwritten by it.
            return self._end(flight, OutcomeState.FAILED, in_force, flight.code, f"the submit call never answered; {detail}")
        if flight.step.kind is StepKind.VCPUS:
            moved = in_force is not None and grows(flight.before, in_force)
            return self._end(flight, OutcomeState.PARTIAL if moved else OutcomeState.FAILED, in_force, flight.code, detail)
        if flight.recovered or not may_undo:
            why = "found after a restart" if flight.recovered else "the mode forbids the undo"
            return self._end(flight, OutcomeState.FAILED, in_force, flight.code, f"{detail}; not undone: {why}")
        if grows(flight.before, flight.step.value) and in_force is not None and grows(flight.before, in_force):
            return in_force
        return flight.before

    def undo(self, flight: Flight, step: Step, now_ns: int) -> None:
        """The flight's undo is being submitted as `step`."""
        flight.undo, flight.phase, flight.phase_ns = step, Phase.UNDOING, now_ns
        self._by_id[step.id] = flight

    def drop(self, vm_id: str, code: RefusalCode) -> list[Ending]:
        """The VM is gone or stopped: nothing of it can be verified any more."""
        return [self._end(flight, OutcomeState.FAILED, None, code, "the VM left while the step was in flight") for flight in self.of(vm_id)]

    def shrinking(self, vm_id: str, kind: StepKind) -> Flight | None:
        """The accepted shrink in flight for this lever, where there is one that can be taken back."""
        flight = self._flights.get((vm_id, kind))
        if flight is None or flight.phase is not Phase.OBSERVING or flight.recovered or not grows(flight.step.value, flight.before):
            return None
        return flight

    def of(self, vm_id: str) -> list[Flight]:
        """Flights of one VM, sorted by lever."""
        return [flight for flight in self if flight.step.vm_id == vm_id] if self._flights else []

    def _undone(self, flight: Flight, value: int | None) -> Ending:
        moved = value is not None and not shows(flight.step.kind, flight.before, value)
        state = OutcomeState.PARTIAL if moved else OutcomeState.UNDONE
        why = "the VM came under pressure: taken back" if flight.relented else "not seen in force in time: taken back"
        return self._end(flight, state, value, flight.code, f"{flight.step.value} {why}")

    def _end(self, flight: Flight, state: OutcomeState, value: int | None, code: RefusalCode | None, detail: str) -> Ending:
        del self._flights[flight.key]
        del self._by_id[flight.step.id]
        if flight.undo is not None:
            del self._by_id[flight.undo.id]
        return Ending(flight=flight, state=state, value=value, code=code, detail=detail)
