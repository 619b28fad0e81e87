"""After a restart: what the journal says was begun and not ended, what must not be done again, what still has to be told. Pure.

Invariant: an intent without an outcome is read back and closed, never submitted again; what is found between before and after is driven to
the end that takes nothing from the guest (agent.acting.actuator), as an undo.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from agent.acting.levers import MEMORY_LEVERS, shows
from agent.acting.ownership import LATE_NS, fold
from agent.acting.undoing import REMEMBERED, Taken
from agent.events import Closed, Intent, JournalEntry, Owned, PlanAccepted, Shipped
from shared.plan import Outcome, OutcomeState, StepKind

# The most failures that the circuit breaker may be set to count (guard.circuit_failures).
MAX_FAILURES: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What a journal yields. `changes`: the newest steps begun, oldest first, so that cooldowns, turns and budgets survive.

    `unfinished`: (newest stride, whether one took effect) of plan steps in strides that have none in the air and no outcome.
    `failures`: when steps failed of late. `doubts`: values that steps never seen in force may still bring, until a wall time.
    """

    epoch: int = 0
    sequence: int = 0
    seen: tuple[str, ...] = ()
    open: tuple[Intent, ...] = ()  # oldest first
    undos: dict[str, Intent] = field(default_factory=dict)  # step id -> the undo that was begun for it
    unshipped: tuple[Outcome, ...] = ()
    next_local: int = 1
    unfinished: tuple[tuple[Intent, bool], ...] = ()
    changes: tuple[Intent, ...] = ()
    failures: tuple[int, ...] = ()
    owned: tuple[Owned, ...] = ()
    taken: tuple[Taken, ...] = ()  # oldest first
    doubts: dict[tuple[str, StepKind], tuple[tuple[int, int], int]] = field(default_factory=dict)


def local_prefix(host_id: str, boot_id: str) -> str:
    """How ids of this host's own steps begin during this boot."""
    return f"{host_id[:96]}-{boot_id[:8]}-"


def reconcile(entries: Iterable[JournalEntry], prefix: str) -> Recovered:
    """Fold a journal, oldest entry first. `prefix`: as of `local_prefix`, to go on numbering behind the highest local id."""
    folding = _Folding(prefix)
    for entry in entries:
        folding.add(entry)
    return folding.result()


def memory_sums(recovered: Recovered) -> list[int]:
    """For each of `changes`: the VM's memory in sum right before it, 0 for other levers; of a lever that nothing is known of, nothing.

    Told backwards from what is believed now: before a change, its lever had the `before` of its intent and the others what they have after
    it. A restart that forgot the devices would measure the hour's cuts against the balloon alone, and cut too much.
    """
    held = {entry.vm_id: {kind: entry.believed.get(kind, 0) for kind in MEMORY_LEVERS} for entry in recovered.owned}
    sums = []
    for intent in reversed(recovered.changes):
        vm = held.setdefault(intent.step.vm_id, dict.fromkeys(MEMORY_LEVERS, 0))
        if intent.step.kind in vm:
            vm[intent.step.kind] = intent.before
            sums.append(sum(vm.values()))
        else:
            sums.append(0)
    return sums[::-1]


class _Folding:
    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._newest = (0, 0)
        self._highest = 0
        self._seen: dict[str, None] = {}
        self._open: dict[str, Intent] = {}
        self._undos: dict[str, Intent] = {}
        self._goals: dict[str, tuple[Intent, bool]] = {}
        self._unshipped: dict[tuple[str, str], Outcome] = {}
        self._changes: deque[Intent] = deque(maxlen=REMEMBERED)
        self._failures: deque[int] = deque(maxlen=MAX_FAILURES)
        self._owned: dict[str, Owned] = {}
        self._taken: OrderedDict[str, Taken] = OrderedDict()
        self._doubts: dict[tuple[str, StepKind], tuple[tuple[int, int], int]] = {}

    def add(self, entry: JournalEntry) -> None:
        if isinstance(entry, PlanAccepted):
            self._newest = max(self._newest, (entry.epoch, entry.sequence))
            self._seen.update(dict.fromkeys(entry.step_ids))
        elif isinstance(entry, Shipped):
            self._unshipped.clear()
        elif isinstance(entry, Closed):
            self._close(entry.outcome)
        elif isinstance(entry, Owned):
            self._own(entry)
        else:
            self._intend(entry)
        fold(self._owned, entry)

    def _intend(self, intent: Intent) -> None:
        self._highest = max(self._highest, _local_number(intent.step.id, self._prefix))
        if intent.undo_of:
            self._undos[intent.undo_of] = intent
            return
        self._open[intent.step.id] = intent
        self._seen[intent.step.id] = None
        if intent.goal is not None:
            self._goals[intent.goal.id] = intent, self._goals.get(intent.goal.id, (intent, False))[1]
        if intent.step.kind is not StepKind.MIGRATE:
            self._changes.append(intent)

    def _close(self, outcome: Outcome) -> None:
        step, state = outcome.step, outcome.state
        self._highest = max(self._highest, _local_number(step.id, self._prefix))
        intent = self._open.pop(step.id, None)
        self._undos.pop(step.id, None)
        self._goals.pop(step.id, None)
        self._unshipped[step.id, state] = outcome
        if state in (OutcomeState.FAILED, OutcomeState.UNDONE):
            self._failures.append(outcome.finished_ns)
        if intent is None or step.kind is StepKind.MIGRATE:
            return
        key = (step.vm_id, step.kind)
        value = outcome.value
        if state is OutcomeState.UNDONE or (value is not None and shows(step.kind, intent.step.value, value)):
            self._doubts.pop(key, None)
        elif state in (OutcomeState.FAILED, OutcomeState.PARTIAL):
            self._doubts[key] = (intent.before, intent.step.value), outcome.finished_ns + LATE_NS
        took = state in (OutcomeState.VERIFIED, OutcomeState.PARTIAL)
        if took and intent.goal is not None and intent.goal.id in self._goals:
            self._goals[intent.goal.id] = intent, True
        if took and value is not None and not shows(step.kind, intent.before, value):
            self._taken[step.id] = Taken(
                step_id=step.id,
                goal_id=intent.goal.id if intent.goal else "",
                vm_id=step.vm_id,
                kind=step.kind,
                before=intent.before,
                after=value,
                at_ns=intent.at_ns,
                origin=outcome.origin,
            )
            while len(self._taken) > REMEMBERED:
                self._taken.popitem(last=False)

    def _own(self, owned: Owned) -> None:
        known = self._owned.get(owned.vm_id)
        another = not owned.believed or (known is not None and known.run and known.run != owned.run)
        for step_id, step in self._taken.items():
            if step.vm_id == owned.vm_id and (another or step.kind in owned.foreign):
                self._taken[step_id] = replace(step, lost=True)
        for vm_id, kind in list(self._doubts):
            if vm_id == owned.vm_id and (another or kind in owned.foreign):
                del self._doubts[vm_id, kind]

    def result(self) -> Recovered:
        # The last stride of a step carries the step's own id and no goal: in the air, it is the step that is.
        flying = {(intent.goal or intent.step).id for intent in self._open.values()}
        return Recovered(
            epoch=self._newest[0],
            sequence=self._newest[1],
            seen=tuple(self._seen),
            open=tuple(self._open.values()),
            undos={step_id: undo for step_id, undo in self._undos.items() if step_id in self._open},
            unshipped=tuple(self._unshipped.values()),
            next_local=self._highest + 1,
            unfinished=tuple(goal for goal_id, goal in self._goals.items() if goal_id not in flying),
            changes=tuple(self._changes),
            failures=tuple(self._failures),
            owned=tuple(self._owned.values()),
            taken=tuple(self._taken.values()),
            doubts=self._doubts,
        )


def _local_number(step_id: str, prefix: str) -> int:
    tail = step_id[len(prefix) :] if step_id.startswith(prefix) else ""
    return int(tail) if tail.isascii() and tail.isdigit() else 0
