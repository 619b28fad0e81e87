"""After a restart: what the journal says was begun and not ended, what must not be done again, what still has to be told. Pure.

Invariant: an intent without an outcome is read back and closed, never submitted again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.acting.levers import grows
from agent.events import Closed, Intent, JournalEntry, PlanAccepted, Shipped
from shared.plan import Outcome, StepKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What a journal yields. `changed` = newest growth and shrink begun (wall ns) per VM and lever, so that cooldowns survive."""

    epoch: int = 0
    sequence: int = 0
    seen: tuple[str, ...] = ()
    open: tuple[Intent, ...] = ()  # oldest first
    undos: dict[str, Intent] = field(default_factory=dict)  # step id -> the undo that was begun for it
    unshipped: tuple[Outcome, ...] = ()
    next_local: int = 1
    grown_at: dict[tuple[str, StepKind], int] = field(default_factory=dict)
    shrunk_at: dict[tuple[str, StepKind], int] = field(default_factory=dict)


def local_prefix(host_id: str, boot_id: str) -> str:
    """How ids of this host's own steps begin during this boot."""
    return f"{host_id[:96]}-{boot_id[:8]}-"


def reconcile(entries: Iterable[JournalEntry], prefix: str) -> Recovered:
    """Fold a journal, oldest entry first. `prefix`: as of `local_prefix`, to go on numbering behind the highest local id."""
    epoch = sequence = 0
    highest = 0
    seen: dict[str, None] = {}
    still_open: dict[str, Intent] = {}
    undos: dict[str, Intent] = {}
    unshipped: dict[tuple[str, str], Outcome] = {}
    grown_at: dict[tuple[str, StepKind], int] = {}
    shrunk_at: dict[tuple[str, StepKind], int] = {}
    for entry in entries:
        if isinstance(entry, PlanAccepted):
            epoch, sequence = max((epoch, sequence), (entry.epoch, entry.sequence))
            seen.update(dict.fromkeys(entry.step_ids))
        elif isinstance(entry, Shipped):
            unshipped.clear()
        elif isinstance(entry, Closed):
            step_id = entry.outcome.step.id
            highest = max(highest, _local_number(step_id, prefix))
            still_open.pop(step_id, None)
            undos.pop(step_id, None)
            unshipped[step_id, entry.outcome.state] = entry.outcome
        else:
            highest = max(highest, _local_number(entry.step.id, prefix))
            if entry.undo_of:
                undos[entry.undo_of] = entry
                continue
            still_open[entry.step.id] = entry
            seen[entry.step.id] = None
            key = (entry.step.vm_id, entry.step.kind)
            (grown_at if grows(entry.before, entry.step.value) else shrunk_at)[key] = entry.at_ns
    return Recovered(
        epoch=epoch,
        sequence=sequence,
        seen=tuple(seen),
        open=tuple(still_open.values()),
        undos={step_id: undo for step_id, undo in undos.items() if step_id in still_open},
        unshipped=tuple(unshipped.values()),
        next_local=highest + 1,
        grown_at=grown_at,
        shrunk_at=shrunk_at,
    )


def _local_number(step_id: str, prefix: str) -> int:
    tail = step_id[len(prefix) :] if step_id.startswith(prefix) else ""
    return int(tail) if tail.isascii() and tail.isdigit() else 0
