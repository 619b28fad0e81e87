"""What steps took effect, and what an owner's undo of them means. Pure.

Every step that took effect is remembered with its before-image: the newest REMEMBERED of the host, which the journal outlives (see
agent.acting.journal). An undo of one step aims at its before-image, of a plan's step that went in strides at the first one's; an undo
since a time aims at the oldest before-image of each lever since then. Newest first, and whatever takes from VMs before what gives to
them, so that a full host has room. Steps of a lever that somebody else changed afterwards, or of an earlier run of the VM, are no longer
ours to take back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from agent.acting.levers import grows, shows
from agent.events import UndoOrdered
from shared.plan import StepKind
from shared.refusal import RefusalCode

# A day of 100 VMs with 1.7 steps per VM and hour; 150 bytes each.
REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A step that took effect. `goal_id`: the plan's step that this was a stride of. `lost`: no longer ours to take back."""

    step_id: str
    goal_id: str = ""
    vm_id: str
    kind: StepKind
    before: int
    after: int
    at_ns: int
    origin: str
    lost: bool = False


class Undoable(msgspec.Struct, frozen=True, kw_only=True):
    """One lever that an undo would set: from `in_force` to `value`, taking back the steps of these ids. `code`: why it would not."""

    vm_id: str
    kind: StepKind
    in_force: int | None
    value: int
    at_ns: int  # of the newest of its steps
    step_ids: tuple[str, ...]
    code: RefusalCode | None = None
    detail: str = ""


class StepMemory:
    """The newest steps that took effect, oldest first."""

    def __init__(self, taken: Iterable[Taken] = ()) -> None:
        self._steps: OrderedDict[str, Taken] = OrderedDict()
        for step in taken:
            self.take(step)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Taken]:
        return iter(self._steps.values())

    def take(self, step: Taken) -> None:
        """Remember; the oldest is forgotten when there are too many. The same step a second time changes nothing."""
        if self._steps.setdefault(step.step_id, step) is step and len(self._steps) > REMEMBERED:
            self._steps.popitem(last=False)

    def lose(self, vm_id: str, kind: StepKind | None = None) -> None:
        """Somebody else has changed the lever since (None: the VM is another run): its steps cannot be taken back any more."""
        for step_id, step in self._steps.items():
            if step.vm_id == vm_id and kind in (None, step.kind):
                self._steps[step_id] = replace(step, lost=True)

    def undoable(self, order: UndoOrdered, in_force: Mapping[tuple[str, StepKind], int]) -> list[Undoable]:
        """What the order means now, in the order of execution; empty = there is nothing of that kind to take back."""
        chosen: dict[tuple[str, StepKind], list[Taken]] = {}
        for step in self._steps.values():
            if _meant(order, step):
                chosen.setdefault((step.vm_id, step.kind), []).append(step)
        found = [self._undo_of(steps, in_force.get(key)) for key, steps in chosen.items()]
        return sorted(found, key=lambda undo: (undo.in_force is not None and grows(undo.in_force, undo.value), -undo.at_ns, undo.vm_id))

    def _undo_of(self, steps: list[Taken], in_force: int | None) -> Undoable:
        first, newest = steps[0], steps[-1]
        code: RefusalCode | None = None
        detail = ""
        if first.lost:
            code, detail = RefusalCode.PRECONDITION_CHANGED, f"{first.kind} was changed by somebody else, or the VM restarted, since"
        elif in_force is None:
            code, detail = RefusalCode.READING_STALE, f"{first.kind} in force is not known"
        elif shows(first.kind, first.before, in_force):
            code, detail = RefusalCode.NOTHING_TO_DO, f"{first.kind} is {in_force} already"
        return Undoable(
            vm_id=first.vm_id,
            kind=first.kind,
            in_force=in_force,
            value=first.before,
            at_ns=newest.at_ns,
            step_ids=tuple(dict.fromkeys(step.goal_id or step.step_id for step in steps)),
            code=code,
            detail=detail,
        )


def _meant(order: UndoOrdered, step: Taken) -> bool:
    if order.vm_id and step.vm_id != order.vm_id:
        return False
    if order.step_id:
        return order.step_id in (step.step_id, step.goal_id)
    return order.since_ns is not None and step.at_ns >= order.since_ns and not step.lost
