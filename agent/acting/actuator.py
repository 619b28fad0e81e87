"""The step machine: SUBMITTED → OBSERVING → done, and SUBMITTED or OBSERVING → UNDOING → done. One flight per VM and lever. Pure.

Invariant: a flight ends VERIFIED only when a read-back shows its value; submitted, accepted and "no error" prove nothing.
A flight that is not seen in force within the timeout is taken back once: a shrink to its before-image; a growth to what is in force,
or the before-image where that is more, so that an undo never takes away what the guest already has.
The guest lets go of a vCPU or DIMM when it likes: such a request is pending for `unplug_timeout`, cannot be taken back, and ends PARTIAL or
FAILED; so does virtio-mem, of which the guest may keep a block for ever, and a vCPU that was added.
A submit call that failed without saying whether it took effect (timeout, lost connection) is observed like an accepted one.
A flight found open after a restart is looked at for RESOLVE_NS: it shows its value (VERIFIED), its before-image (FAILED, never submitted
again), or neither; then it is driven to whichever of the two gives the guest more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from agent.acting.levers import FIELDS, grows, shows
from shared.model import Allocation
from shared.plan import OutcomeState, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

# A call that reached libvirtd before the kill is carried out within a moment; two sampling cycles are the bar for being done with it.
RESOLVE_NS: Final = 3 * NS_PER_S
# No step of these can be taken back: the hypervisor has no such request, or the guest's half is final.
_FINAL: Final = frozenset({StepKind.VCPUS, StepKind.VIRTIO_MEM})


def asynchronous(kind: StepKind, *, growing: bool) -> bool:
    """The guest decides whether and when, minutes later perhaps."""
    return not growing and kind in (StepKind.VCPUS, StepKind.DIMM)


def irrevocable(kind: StepKind, *, growing: bool) -> bool:
    """Once submitted there is no undo that means anything."""
    return kind in _FINAL or asynchronous(kind, growing=growing)


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
    recovered: bool = False  # found open in the journal after a restart and not yet resolved
    seen_ns: int | None = None  # first read-back of a recovered one

    @property
    def key(self) -> tuple[str, StepKind]:
        """VM and lever."""
        return self.step.vm_id, self.step.kind

    @property
    def growing(self) -> bool:
        """The step gives the VM more."""
        return grows(self.before, self.step.value)


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
        """Counts towards the lever's back-off. What was given up for the VM's or its owner's sake does not: the lever works."""
        if self.code is RefusalCode.YIELDED or (self.flight.relented and self.state is not OutcomeState.FAILED):
            return False
        return self.state in (OutcomeState.FAILED, OutcomeState.UNDONE) or (
            self.state is OutcomeState.PARTIAL and self.flight.undo is not None
        )


class Actuator:
    """All flights of the host."""

    def __init__(self, timeout_ns: int, unplug_timeout_ns: int | None = None) -> None:
        """Both may be replaced at any time. `unplug_timeout_ns` is for what the guest must let go of; None = the same."""
        self.timeout_ns = timeout_ns
        self.unplug_timeout_ns = unplug_timeout_ns or timeout_ns
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

    def observed(self, vm_id: str, allocation: Allocation, now_ns: int = 0) -> list[Ending]:
        """A read-back arrived: end the flights of this VM that it shows as done."""
        endings = []
        for flight in self.of(vm_id):
            if flight.step.kind not in FIELDS:
                continue  # a move is not read back
            value: int | None = getattr(allocation, FIELDS[flight.step.kind][0])
            if value is not None and flight.seen_ns is None:
                flight.seen_ns = now_ns
            if flight.phase is Phase.OBSERVING and shows(flight.step.kind, flight.step.value, value):
                clipped = flight.code is not None and flight.step.value != flight.asked.value
                state = OutcomeState.PARTIAL if clipped else OutcomeState.VERIFIED
                endings.append(self._end(flight, state, value, flight.code, flight.detail))
            elif flight.phase is Phase.UNDOING and flight.undo is not None and shows(flight.step.kind, flight.undo.value, value):
                endings.append(self._undone(flight, value))
        return endings

    def overdue(self, flight: Flight, now_ns: int) -> bool:
        """Past the timeout of its phase (twice that for a submit call that has not answered), or the clock was set back further."""
        unplug = flight.phase is Phase.OBSERVING and asynchronous(flight.step.kind, growing=flight.growing)
        allowed_ns = self.unplug_timeout_ns if unplug else self.timeout_ns
        if flight.phase is Phase.SUBMITTED:
            allowed_ns *= 2
        return not -allowed_ns < now_ns - flight.phase_ns < allowed_ns

    def renew(self, now_ns: int) -> None:
        """Every phase begins anew: nobody looked for a while."""
        for flight in self:
            flight.phase_ns = now_ns

    def give_up(self, flight: Flight, in_force: int | None, *, may_undo: bool) -> Ending | int:
        """What to do with an overdue flight: the value to submit as its undo, or its ending."""
        what = f"{flight.step.value} not seen in force in time, {'unreadable' if in_force is None else in_force} is"
        detail = f"{what}; {flight.detail}" if flight.detail else what
        if flight.phase is Phase.UNDOING:
            return self._end(flight, OutcomeState.FAILED, in_force, flight.code, f"undo not seen in force either; {detail}")
        if flight.phase is Phase.SUBMITTED:
            # An undo could overtake the call that hangs, and be overwritten by it.
            return self._end(flight, OutcomeState.FAILED, in_force, flight.code, f"the submit call never answered; {detail}")
        if irrevocable(flight.step.kind, growing=flight.growing):
            return self._end(flight, self._reached(flight, in_force), in_force, flight.code, detail)
        if flight.recovered or not may_undo:
            why = "it could not be read after a restart" if flight.recovered else "the mode forbids it"
            return self._end(flight, OutcomeState.FAILED, in_force, flight.code, f"{detail}; not undone: {why}")
        if flight.growing and in_force is not None and grows(flight.before, in_force):
            return in_force
        return flight.before

    def resolve(self, flight: Flight, in_force: int | None, now_ns: int, *, may_undo: bool) -> Ending | int | None:
        """What to do with a recovered flight that no read-back has ended: the value to drive it to, its ending, or None: look again."""
        if flight.seen_ns is None or 0 <= now_ns - flight.seen_ns < RESOLVE_NS:
            return None
        kind, step = flight.step.kind, flight.step
        if flight.phase is Phase.OBSERVING:
            # A balloon that has hardly moved may be about to: a shrink is called back rather than taken for one that never was.
            slow = not flight.growing and (kind is StepKind.MEMORY or asynchronous(kind, growing=False))
            if in_force is not None and shows(kind, flight.before, in_force) and not slow:
                return self._end(flight, OutcomeState.FAILED, in_force, flight.code, f"{step.value} was not in force after a restart")
            if irrevocable(kind, growing=flight.growing):
                return None  # the guest may still be at it: the timeout ends it
        if not may_undo:
            detail = f"{in_force} in force after a restart, {step.value} was to be; the mode forbids to go on"
            return self._end(flight, OutcomeState.FAILED, in_force, flight.code, detail)
        if flight.phase is Phase.UNDOING and flight.undo is not None:
            return flight.undo.value
        return step.value if flight.growing else flight.before

    def _reached(self, flight: Flight, in_force: int | None) -> OutcomeState:
        """PARTIAL when the lever moved the way it should."""
        if in_force is None or shows(flight.step.kind, flight.before, in_force):
            return OutcomeState.FAILED
        return OutcomeState.PARTIAL if grows(flight.before, in_force) is flight.growing else OutcomeState.FAILED

    def undo(self, flight: Flight, step: Step, now_ns: int) -> None:
        """The flight's undo is being submitted as `step`; an earlier one was lost with the process that submitted it."""
        if flight.undo is not None:
            del self._by_id[flight.undo.id]
        flight.recovered = flight.recovered and flight.seen_ns is None
        flight.undo, flight.phase, flight.phase_ns = step, Phase.UNDOING, now_ns
        self._by_id[step.id] = flight

    def cede(self, vm_id: str, kind: StepKind, found: int) -> Ending | None:
        """Somebody else set the lever: the flight ends there, with no undo. None when there is none."""
        flight = self._flights.get((vm_id, kind))
        if flight is None:
            return None
        detail = f"somebody else set {found} while this was in flight"
        return self._end(flight, OutcomeState.FAILED, found, RefusalCode.YIELDED, detail)

    def drop(self, vm_id: str, code: RefusalCode) -> list[Ending]:
        """The VM is gone or stopped: nothing of it can be verified any more."""
        return [self._end(flight, OutcomeState.FAILED, None, code, "the VM left while the step was in flight") for flight in self.of(vm_id)]

    def shrinking(self, vm_id: str, kind: StepKind) -> Flight | None:
        """The accepted shrink in flight for this lever, where there is one that can be taken back."""
        flight = self._flights.get((vm_id, kind))
        if flight is None or flight.phase is not Phase.OBSERVING or flight.recovered or not grows(flight.step.value, flight.before):
            return None
        if irrevocable(kind, growing=False):
            return None
        return flight

    def of(self, vm_id: str) -> list[Flight]:
        """Flights of one VM, sorted by lever."""
        return [flight for flight in self if flight.step.vm_id == vm_id] if self._flights else []

    def _undone(self, flight: Flight, value: int | None) -> Ending:
        kind = flight.step.kind
        moved = value is not None and not shows(kind, flight.before, value)
        state = OutcomeState.PARTIAL if moved else OutcomeState.UNDONE
        if moved and shows(kind, flight.step.value, value):
            return self._end(flight, OutcomeState.VERIFIED, value, flight.code, "found half way after a restart: driven on")
        why = "the VM came under pressure: taken back" if flight.relented else "not seen in force in time: taken back"
        return self._end(flight, state, value, flight.code, f"{flight.step.value} {why}")

    def _end(self, flight: Flight, state: OutcomeState, value: int | None, code: RefusalCode | None, detail: str) -> Ending:
        del self._flights[flight.key]
        del self._by_id[flight.step.id]
        if flight.undo is not None:
            del self._by_id[flight.undo.id]
        return Ending(flight=flight, state=state, value=value, code=code, detail=detail)
