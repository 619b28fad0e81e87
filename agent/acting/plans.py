"""Plans on the host: which are taken, and the steps still to be pursued. Pure.

A plan is taken when it names this host, is not stale, and its (epoch, sequence) is newer than the newest taken; the same plan delivered
again is silent. A newer plan replaces what an older one has not begun. A step is pursued until its deadline: it may need several strides
(a large shrink), or wait (for capacity that another VM's shrink frees, for a cooldown that ends in time, for its own not_before).
Invariant: every step of a plan that was read ends in one outcome, none is begun twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from agent.acting.levers import grows, shows
from shared.plan import Plan, Step
from shared.refusal import RefusalCode
from shared.units import NS_PER_S, UNLIMITED

# Ids remembered against a second delivery inside a newer plan: two of the largest plans.
SEEN_IDS: Final = 8192
# The value in force may differ by this much from the plan's before-image without being a change.
DRIFT_PERMILLE: Final = 20


@dataclass(slots=True, kw_only=True)
class Pursuit:
    """A step on its way to its value. `moved`: a stride took effect; `flying`: one is in flight; `code`, `detail`: why it waits.

    `origin`: who wants it when it is the host's own ("operator": an undo, "migration", "autonomy": the decay): plans do not replace it.
    """

    step: Step
    deadline_ns: int
    retry_ns: int
    begun_ns: int = 0
    moved: bool = False
    flying: bool = False
    upward: bool = False  # direction of the first stride
    ends_with: RefusalCode | None = None  # set when it must end as soon as its flight has
    code: RefusalCode | None = None
    detail: str = ""
    origin: str = ""
    restoring: bool = False  # an owner's undo, or limits that travelled: not held up by what keeps changes rare

    @property
    def author(self) -> str:
        """Whom the outcome names."""
        return self.origin or ("operator" if self.step.reason == "operator" else "plan")

    @property
    def begun(self) -> bool:
        """A stride was submitted."""
        return self.begun_ns > 0

    def wait(self, code: RefusalCode, detail: str, retry_ns: int) -> bool:
        """Hold until `retry_ns`; True when the reason is a new one."""
        new = code is not self.code
        self.code, self.detail, self.retry_ns = code, detail, retry_ns
        return new


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What became of a plan. `code` None = taken; `refused` = steps to answer with their code."""

    code: RefusalCode | None = None
    detail: str = ""
    repeated: bool = False
    refused: tuple[tuple[Step, RefusalCode, str], ...] = ()


class PlanBook:
    """The newest plan taken and its open pursuits."""

    def __init__(self, host_id: str, reserved: str, epoch: int = 0, sequence: int = 0, seen: tuple[str, ...] = ()) -> None:
        """`reserved`: how ids of the host's own steps begin; no step of a plan may."""
        self.host_id = host_id
        self._reserved = reserved
        self.epoch = epoch
        self.sequence = sequence
        self.deadline_ns = 0
        self.pursuits: dict[str, Pursuit] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._remember(seen)

    def live(self, now_ns: int) -> bool:
        """A plan was taken and its deadline has not passed."""
        return now_ns < self.deadline_ns

    def admit(self, plan: Plan, least_epoch: int, now_ns: int) -> Admission:
        """Take or refuse a plan; when taken, its fresh steps are in `pursuits` beside what was there."""
        newest = (self.epoch, self.sequence)
        if plan.host_id != self.host_id:
            return _refuse(plan, RefusalCode.WRONG_HOST, f"plan for {plan.host_id}, this is {self.host_id}")
        if (plan.epoch, plan.sequence) == newest:
            return Admission(repeated=True)
        if plan.epoch < max(self.epoch, least_epoch):
            return self._late(plan, RefusalCode.EPOCH_OLD, f"epoch {plan.epoch}, {max(self.epoch, least_epoch)} is in force")
        if (plan.epoch, plan.sequence) < newest:
            return self._late(plan, RefusalCode.SEQUENCE_OLD, f"sequence {plan.sequence}, {self.sequence} was taken")
        if plan.deadline_ns <= now_ns:
            return _refuse(plan, RefusalCode.PLAN_STALE, f"deadline passed {(now_ns - plan.deadline_ns) // NS_PER_S} s ago")
        self.epoch, self.sequence, self.deadline_ns = plan.epoch, plan.sequence, plan.deadline_ns
        refused = []
        for step in plan.steps:
            deadline = min(step.deadline_ns, plan.deadline_ns)
            if step.id.startswith(self._reserved):
                refused.append((step, RefusalCode.INVALID_VALUE, f"id {step.id}: {self._reserved}... belongs to the host's own steps"))
                continue
            if step.id in self._seen or step.id in self.pursuits:
                refused.append((step, RefusalCode.STEP_DUPLICATE, "a step with this id was taken before"))
                continue
            self._remember((step.id,))
            if deadline <= now_ns:
                refused.append((step, RefusalCode.STEP_EXPIRED, f"deadline passed {(now_ns - deadline) // NS_PER_S} s ago"))
                continue
            self.pursuits[step.id] = Pursuit(step=step, deadline_ns=deadline, retry_ns=step.not_before_ns)
        return Admission(refused=tuple(refused))

    def clear(self, code: RefusalCode) -> list[Pursuit]:
        """Stop everything: returns the pursuits that end now; those in flight end with their flight."""
        ended = [pursuit for pursuit in self.pursuits.values() if not pursuit.flying]
        for pursuit in self.pursuits.values():
            pursuit.ends_with = code
        self.pursuits = {step_id: pursuit for step_id, pursuit in self.pursuits.items() if pursuit.flying}
        return ended

    def due(self, now_ns: int) -> Iterator[Pursuit]:
        """Pursuits that may be tried now, in plan order: one per VM and lever, the first open one."""
        taken = set()
        for pursuit in self.pursuits.values():
            key = (pursuit.step.vm_id, pursuit.step.kind)
            if key in taken:
                continue
            taken.add(key)
            if not pursuit.flying and pursuit.retry_ns <= now_ns < pursuit.deadline_ns:
                yield pursuit

    def expired(self, now_ns: int) -> list[Pursuit]:
        """Pursuits whose deadline passed with nothing in flight."""
        return [pursuit for pursuit in self.pursuits.values() if not pursuit.flying and now_ns >= pursuit.deadline_ns]

    def _late(self, plan: Plan, code: RefusalCode, detail: str) -> Admission:
        # Steps that were taken before have had, or will have, their outcome: only strangers get one now.
        refused = tuple((step, code, detail) for step in plan.steps if step.id not in self._seen)
        return Admission(code=code, detail=detail, refused=refused)

    def _remember(self, ids: tuple[str, ...]) -> None:
        for step_id in ids:
            self._seen[step_id] = None
        while len(self._seen) > SEEN_IDS:
            self._seen.popitem(last=False)


def _refuse(plan: Plan, code: RefusalCode, detail: str) -> Admission:
    return Admission(code=code, detail=detail, refused=tuple((step, code, detail) for step in plan.steps))


def changed_since(step: Step, in_force: int | None) -> str | None:
    """Why the step no longer fits what is in force; None = it does.

    A growth that is still one, from wherever the VM is now, stays right: the demand it was made for has not gone. A shrink decided from
    another value is not repeated on this one, and a growth never turns into a shrink because somebody gave more meanwhile.
    """
    before = step.before
    if before is None or in_force is None or shows(step.kind, step.value, in_force):
        return None
    if before == in_force or (UNLIMITED not in (before, in_force) and abs(in_force - before) * 1000 <= DRIFT_PERMILLE * before):
        return None
    if grows(before, step.value) and grows(in_force, step.value):
        return None
    return f"{step.kind} was {before} when this was planned and is {in_force} now"
