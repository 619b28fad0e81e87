"""What an undo means, by example: which steps, to which value, in which order, and what is said of each lever."""

from __future__ import annotations

import pytest

from agent.acting.undoing import StepMemory, Taken, Undoable
from agent.events import UndoOrdered
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import MIB

Q, M = StepKind.CPU_QUOTA, StepKind.MEMORY


def taken(
    step_id: str, vm_id: str = "vm-1", kind: StepKind = Q, before: int = 1000, after: int = 2000, at_ns: int = 5, **more: object
) -> Taken:
    fields: dict[str, object] = {"step_id": step_id, "vm_id": vm_id, "kind": kind, "before": before, "after": after, "at_ns": at_ns}
    return Taken(**{**fields, "origin": "plan", **more})  # type: ignore[arg-type]


def since(at_ns: int, vm_id: str = "") -> UndoOrdered:
    return UndoOrdered(since_ns=at_ns, vm_id=vm_id)


def test_one_lever_is_taken_back_to_its_oldest_before_image_and_told_whole() -> None:
    memory = StepMemory([taken("a", at_ns=5), taken("b", before=2000, after=3000, at_ns=9)])
    assert memory.undoable(since(0), {("vm-1", Q): 3000}) == [
        Undoable(vm_id="vm-1", kind=Q, in_force=3000, value=1000, at_ns=9, step_ids=("a", "b"), code=None, detail="")
    ]


@pytest.mark.parametrize(
    ("kind", "before", "in_force", "lost", "code", "detail"),
    [
        (Q, 1000, None, False, RefusalCode.READING_STALE, "cpu_quota in force is not known"),
        (Q, 1000, 1000, False, RefusalCode.NOTHING_TO_DO, "cpu_quota is 1000 already"),
        (M, 64 * MIB, 63 * MIB, False, RefusalCode.NOTHING_TO_DO, f"memory is {63 * MIB} already"),  # the balloon's rounding
        (M, 64 * MIB, 61 * MIB, False, None, ""),
        (
            *(Q, 1000, 1000, True, RefusalCode.PRECONDITION_CHANGED),
            "cpu_quota was changed by somebody else, or the VM restarted, since",
        ),
    ],
)
def test_what_is_said_of_a_lever(kind: StepKind, before: int, in_force: int | None, lost: bool, code: object, detail: str) -> None:
    memory = StepMemory([taken("s", kind=kind, before=before, lost=lost)])
    values = {} if in_force is None else {("vm-1", kind): in_force}
    (undo,) = memory.undoable(UndoOrdered(step_id="s"), values)
    assert (undo.in_force, undo.value, undo.code, undo.detail) == (in_force, before, code, detail)


def test_what_takes_comes_before_what_gives_and_the_newest_first() -> None:
    """grown: their undos take. cut: their undos give. Not known counts as taking: it asks nothing of the host."""
    steps = [
        taken("cut-old", "vm-1", before=3000, at_ns=1),
        taken("grown-old", "vm-2", before=1000, at_ns=2),
        taken("unknown", "vm-3", before=1000, at_ns=3),
        taken("grown-new", "vm-4", before=1000, at_ns=4),
        taken("cut-new", "vm-5", before=3000, at_ns=5),
        taken("cut-too", "vm-0", before=3000, at_ns=5),
    ]
    in_force = {(step.vm_id, Q): 2000 for step in steps if step.vm_id != "vm-3"}
    ids = [undo.step_ids[0] for undo in StepMemory(steps).undoable(since(0), in_force)]
    assert ids == ["grown-new", "unknown", "grown-old", "cut-too", "cut-new", "cut-old"]


def test_strides_are_taken_back_as_the_step_that_they_were_of() -> None:
    strides = [taken("h-1", goal_id="goal"), taken("h-2", before=2000, goal_id="goal", at_ns=6)]
    for ordered, ids, value in (("goal", ("goal",), 1000), ("h-2", ("goal",), 2000)):
        (undo,) = StepMemory(strides).undoable(UndoOrdered(step_id=ordered), {("vm-1", Q): 3000})
        assert (undo.step_ids, undo.value) == (ids, value)


@pytest.mark.parametrize(
    ("order", "ids"),
    [
        (since(5), ["b", "c"]),  # that moment is in
        (since(6), ["c"]),
        (since(5, "vm-1"), ["b"]),
        (UndoOrdered(vm_id="vm-1"), []),  # neither a step nor a time
        (UndoOrdered(step_id="b", vm_id="vm-2"), []),
        (UndoOrdered(step_id="x"), ["x"]),  # by name one learns why it is not ours any more
    ],
)
def test_which_steps_an_order_means(order: UndoOrdered, ids: list[str]) -> None:
    memory = StepMemory([taken("b"), taken("c", "vm-2", at_ns=7), taken("x", "vm-3", at_ns=9, lost=True)])
    assert sorted(undo.step_ids[0] for undo in memory.undoable(order, {})) == ids


def test_somebody_elses_change_loses_the_lever_and_another_run_the_vm() -> None:
    memory = StepMemory([taken("q"), taken("m", kind=M), taken("o", "vm-2")])
    memory.lose("vm-1", M)
    assert [step.step_id for step in memory if step.lost] == ["m"]
    memory.lose("vm-1")
    assert [step.step_id for step in memory if step.lost] == ["q", "m"]
