"""The step machine by example: every way a flight can go."""

from __future__ import annotations

import pytest

from agent.acting.actuator import Actuator, Ending, Flight, Phase
from shared.model import Allocation
from shared.plan import OutcomeState, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, NS_PER_S

TIMEOUT = 30 * NS_PER_S
M, Q, V = StepKind.MEMORY, StepKind.CPU_QUOTA, StepKind.VCPUS


def flight(kind: StepKind = M, before: int = 2 * GIB, value: int = 3 * GIB, step_id: str = "s", **changes: object) -> Flight:
    step = Step(id=step_id, vm_id="vm-1", kind=kind, value=value, deadline_ns=1)
    fields: dict[str, object] = {"asked": step, "step": step, "before": before, "origin": "plan", "started_ns": 0}
    return Flight(**{**fields, **changes})  # type: ignore[arg-type]


def flying(one: Flight) -> Actuator:
    actuator = Actuator(TIMEOUT)
    actuator.begin(one)
    actuator.accepted(one.step.id, 0)
    return actuator


def undo_of(one: Flight, value: int) -> Step:
    return Step(id="u", vm_id="vm-1", kind=one.step.kind, value=value, deadline_ns=1)


def test_only_a_read_back_that_shows_the_value_verifies() -> None:
    one = flight()
    actuator = Actuator(TIMEOUT)
    actuator.begin(one)
    assert actuator.observed("vm-1", Allocation(memory_bytes=3 * GIB)) == []  # the call has not returned: somebody else's value
    assert actuator.accepted("s", 5) == "vm-1" and one.phase is Phase.OBSERVING
    for read in (Allocation(), Allocation(memory_bytes=2 * GIB), Allocation(memory_bytes=int(2.9 * GIB))):
        assert actuator.observed("vm-1", read) == []
    (ending,) = actuator.observed("vm-1", Allocation(memory_bytes=3 * GIB - 4096))
    assert (ending.state, ending.value, ending.failed) == (OutcomeState.VERIFIED, 3 * GIB - 4096, False)
    assert len(actuator) == 0 and actuator.accepted("s", 5) is None


def test_one_flight_per_vm_and_lever() -> None:
    actuator = flying(flight())
    actuator.begin(flight(Q, 1000, 2000, "other"))
    with pytest.raises(RuntimeError, match="two steps in flight"):
        actuator.begin(flight(step_id="third"))
    assert [f.step.kind for f in actuator] == [Q, M] and len(actuator.of("vm-1")) == 2 and actuator.of("vm-2") == []


def test_a_clipped_step_ends_partial() -> None:
    asked = Step(id="s", vm_id="vm-1", kind=M, value=5 * GIB, deadline_ns=1)
    actuator = flying(flight(asked=asked, code=RefusalCode.ABOVE_CEILING))
    (ending,) = actuator.observed("vm-1", Allocation(memory_bytes=3 * GIB))
    assert (ending.state, ending.code, ending.failed) == (OutcomeState.PARTIAL, RefusalCode.ABOVE_CEILING, False)


@pytest.mark.parametrize(("now", "late"), [(0, False), (TIMEOUT - 1, False), (TIMEOUT, True), (-TIMEOUT, True)])
def test_overdue(now: int, late: bool) -> None:
    one = flight()
    assert flying(one).overdue(one, now) is late


@pytest.mark.parametrize(
    ("before", "value", "in_force", "undo"),
    [
        (2 * GIB, 3 * GIB, 2 * GIB, 2 * GIB),
        (2 * GIB, 3 * GIB, int(2.5 * GIB), int(2.5 * GIB)),  # a growth half done is not taken away again
        (2 * GIB, 3 * GIB, GIB, 2 * GIB),
        (2 * GIB, 3 * GIB, None, 2 * GIB),
        (3 * GIB, 2 * GIB, int(2.5 * GIB), 3 * GIB),  # a shrink half done is
    ],
)
def test_what_an_undo_aims_at(before: int, value: int, in_force: int | None, undo: int) -> None:
    one = flight(before=before, value=value)
    assert flying(one).give_up(one, in_force, may_undo=True) == undo


def test_undone_and_failed() -> None:
    one = flight(before=3 * GIB, value=2 * GIB)
    actuator = flying(one)
    actuator.undo(one, undo_of(one, 3 * GIB), TIMEOUT)
    assert not actuator.overdue(one, TIMEOUT + 1) and actuator.accepted("u", TIMEOUT + 1) == "vm-1"
    assert actuator.observed("vm-1", Allocation(memory_bytes=2 * GIB)) == []  # too late: it is being taken back
    (ending,) = actuator.observed("vm-1", Allocation(memory_bytes=3 * GIB))
    assert ending.state is OutcomeState.UNDONE and ending.failed

    one = flight(before=3 * GIB, value=2 * GIB)
    actuator = flying(one)
    actuator.undo(one, undo_of(one, 3 * GIB), TIMEOUT)
    given_up = actuator.give_up(one, 2 * GIB, may_undo=True)
    assert isinstance(given_up, Ending) and given_up.state is OutcomeState.FAILED and given_up.value == 2 * GIB and len(actuator) == 0


def test_a_rejected_undo_is_a_failure_and_one_of_unknown_fate_is_observed() -> None:
    one = flight(before=3 * GIB, value=2 * GIB)
    actuator = flying(one)
    actuator.undo(one, undo_of(one, 3 * GIB), TIMEOUT)
    assert actuator.rejected("u", None, "timeout", fate_unknown=True, in_force=None) is None
    ending = actuator.rejected("u", None, "gone", fate_unknown=False, in_force=None)
    assert ending is not None and ending.state is OutcomeState.FAILED and ending.failed


@pytest.mark.parametrize(
    ("code", "unknown", "state"),
    [(RefusalCode.NOT_CAPABLE, False, OutcomeState.REFUSED), (None, False, OutcomeState.FAILED), (None, True, None)],
)
def test_rejected(code: RefusalCode | None, unknown: bool, state: OutcomeState | None) -> None:
    one = flight()
    actuator = Actuator(TIMEOUT)
    actuator.begin(one)
    ending = actuator.rejected("s", code, "why", fate_unknown=unknown, in_force=2 * GIB)
    assert (None if ending is None else ending.state) == state
    assert one.phase is (Phase.OBSERVING if state is None else Phase.SUBMITTED)
    assert actuator.rejected("nobody's", None, "", fate_unknown=False, in_force=None) is None


@pytest.mark.parametrize(("in_force", "state"), [(2, OutcomeState.FAILED), (3, OutcomeState.PARTIAL), (None, OutcomeState.FAILED)])
def test_vcpus_are_never_taken_back(in_force: int | None, state: OutcomeState) -> None:
    one = flight(V, 2, 4)
    ending = flying(one).give_up(one, in_force, may_undo=True)
    assert isinstance(ending, Ending) and (ending.state, ending.value) == (state, in_force)


def test_no_undo_where_the_mode_forbids_it_or_after_a_restart() -> None:
    one = flight()
    ending = flying(one).give_up(one, 2 * GIB, may_undo=False)
    assert isinstance(ending, Ending) and ending.state is OutcomeState.FAILED and "mode" in ending.detail
    one = flight(recovered=True)
    ending = flying(one).give_up(one, 2 * GIB, may_undo=True)
    assert isinstance(ending, Ending) and ending.state is OutcomeState.FAILED and "restart" in ending.detail


def test_a_vm_that_left_takes_its_flights_along() -> None:
    actuator = flying(flight())
    actuator.begin(flight(Q, 1000, 2000, "other"))
    endings = actuator.drop("vm-1", RefusalCode.UNKNOWN_VM)
    assert [(e.state, e.code) for e in endings] == [(OutcomeState.FAILED, RefusalCode.UNKNOWN_VM)] * 2 and len(actuator) == 0


def test_a_submit_call_that_hangs_is_given_up_without_an_undo_that_could_overtake_it() -> None:
    one = flight()
    actuator = Actuator(TIMEOUT)
    actuator.begin(one)
    assert not actuator.overdue(one, 2 * TIMEOUT - 1) and actuator.overdue(one, 2 * TIMEOUT)
    ending = actuator.give_up(one, 2 * GIB, may_undo=True)
    assert isinstance(ending, Ending) and ending.state is OutcomeState.FAILED and "never answered" in ending.detail
