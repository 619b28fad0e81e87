"""Live migration of this host's VMs as a desk that takes MIGRATE steps one by one: check → journal → start → watch → ending. Pure.

Why a desk of its own: a move is no value that can be read back. It takes minutes, ends with the VM elsewhere, and while it runs nothing
else of the VM may change. Rules, in the order checked: those of the guard (back-off after moves that failed and no lever of the VM in
flight among them), a destination that this host's owner named and that is not this host, at most `max_outgoing` moves at a time.
A running move must get nearer within `no_progress_s`. What is left to send falls towards nothing in every pass over the memory, however
much the guest dirties meanwhile, so its minimum alone proves nothing after the first pass: a pass is nearer when it began with less than
every pass before it, and within such a pass the minimum has to fall. When a move gets no nearer, or the guest dirties faster than is sent,
it first gets all bandwidth that the owner allows; then it is given up and the VM stays where it was.
Invariants: a StartMigration follows its Intent and happens once per step, whatever is restarted; every move ends in one Outcome; VERIFIED
only when the VM runs at the destination and is gone here. A move found open after a restart is judged by what is true: the VM gone from
here has moved; a job still running (libvirtd carries on peer to peer without us) is watched on; otherwise it failed.
A watermark on remaining memory alone was OpenStack Nova's progress timeout (dropped there for giving up moves that would have ended);
QEMU's counters: qapi/migration.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from agent.acting.guard import Guard, Verdict
from agent.acting.ledger import Ledger, VmRecord
from agent.acting.levers import FIELDS
from agent.events import (
    AbortMigration,
    Instruction,
    Intent,
    MigrationEnded,
    MigrationProgressed,
    Note,
    StartMigration,
    TakenUp,
    TuneMigration,
    WatchMigration,
    WriteJournal,
)
from agent.ports import MigrationProgress
from shared.config import MigrationConfig
from shared.model import Allocation
from shared.plan import Outcome, OutcomeState, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import NS_PER_S, UNLIMITED

# Often enough to see an iteration of QEMU (a few seconds each), rare enough to cost nothing beside the copying.
WATCH_NS: Final = NS_PER_S
# An abort can come before libvirt knows the job, and is lost then.
ABORT_AGAIN_NS: Final = 5 * NS_PER_S
# A minimum or a pass counts as lower when it is so by 1 %: page-sized wobble around the switch-over threshold is no progress.
FALL_PERMILLE: Final = 10
PAGE_BITS: Final = 4096 * 8
# A VM that has moved away is left alone until the inventory has lost it; if it is still here after this long it came back.
DEPARTED_NS: Final = 60 * NS_PER_S
# Endings that say nothing about the VM or the destination: no back-off.
NOT_ITS_FAULT: Final = frozenset({RefusalCode.PAUSED, RefusalCode.MODE_FORBIDS, RefusalCode.MIGRATION_BUSY})


@dataclass(slots=True, kw_only=True)
class Move:
    """One migration under way. `step` as asked; `code` why it is being given up.

    `least_bytes`: fewest left to send within this pass; `top_bytes`: left when this pass began; `lowest_top_bytes`: the same, fewest of the
    passes before; `record`: this pass began with less. `nearer_ns`: when it last got nearer, or more bandwidth.
    """

    step: Step
    origin: str
    started_ns: int
    bits_per_s: int
    nearer_ns: int
    pass_number: int | None = None
    least_bytes: int | None = None
    top_bytes: int | None = None
    lowest_top_bytes: int | None = None
    record: bool = True
    newest: MigrationProgress | None = None
    final: bool = False  # `newest` was measured at the end; before that its downtime is an expectation
    watched_ns: int = 0
    code: RefusalCode | None = None
    detail: str = ""
    aborted_ns: int = 0
    recovered: bool = False  # begun by an earlier process: no thread of ours waits for its end
    silent: int = 0  # recovered only: inventories since there was no job any more


class MigrationDesk:
    """All moves away from this host. `emit` takes instructions in order; `tell` takes (outcome, origin, now_ns) of each ending."""

    def __init__(
        self,
        host_id: str,
        config: MigrationConfig,
        ledger: Ledger,
        emit: Callable[[Instruction], None],
        tell: Callable[[Outcome, str, int], None],
    ) -> None:
        self.config = config  # may be replaced at any time; a running move keeps its bandwidth
        self._host_id = host_id
        self._ledger = ledger
        self._emit = emit
        self._tell = tell
        self._moves: dict[str, Move] = {}  # by VM
        self._departed: dict[str, int] = {}  # VM -> when it had moved; its record lives until the inventory has lost it

    def __len__(self) -> int:
        return len(self._moves)

    def __iter__(self) -> Iterator[Move]:
        return iter([self._moves[vm_id] for vm_id in sorted(self._moves)])

    def check(self, step: Step, guard: Guard, now_ns: int) -> Verdict:
        """Whether the move may begin now; `value` = bits/s it may use. `wait_ns` > 0 where asking again may help."""
        verdict = guard.check(step, self._ledger.view(step.vm_id, step.kind, now_ns), now_ns)
        if verdict.value is None:
            return verdict
        if step.target == self._host_id:
            return _no(RefusalCode.NOTHING_TO_DO, f"{step.target} is this host")
        if self.config.uri_of(step.target) is None:
            return _no(RefusalCode.TARGET_UNKNOWN, f"target {step.target!r}: not among migration.targets of {self._host_id}")
        if len(self._moves) >= self.config.max_outgoing:
            most = self.config.max_outgoing
            return _no(RefusalCode.MIGRATION_BUSY, f"{len(self._moves)} migrations under way, {most} allowed at a time", NS_PER_S)
        cap = self.config.bits_per_s_max
        return Verdict(value=cap if step.value == UNLIMITED else min(step.value, cap))

    def begin(self, step: Step, bits_per_s: int, origin: str, now_ns: int) -> None:
        """Start a move that `check` let pass, with `bits_per_s` of its verdict."""
        uri = self.config.uri_of(step.target)
        if uri is None or step.vm_id in self._moves:
            raise RuntimeError(f"move of {step.vm_id} to {step.target!r} begun without a check")
        move = Move(step=step, origin=origin, started_ns=now_ns, bits_per_s=bits_per_s, nearer_ns=now_ns, watched_ns=now_ns)
        self._moves[step.vm_id] = move
        limits = limits_of(self._ledger.vms[step.vm_id])
        self._ledger.begun(step.vm_id, StepKind.MIGRATE, 0, bits_per_s, now_ns)
        submitted = msgspec.structs.replace(step, value=bits_per_s)
        self._emit(WriteJournal(entry=Intent(step=submitted, asked=step.value, before=0, origin=origin, at_ns=now_ns)))
        self._emit(StartMigration(step=submitted, uri=uri, bits_per_s=bits_per_s, limits=limits))

    def take_up(self, intent: Intent, now_ns: int) -> None:
        """A move that the journal shows open after a restart; the ledger knows the inventory. Never starts anything."""
        step = msgspec.structs.replace(intent.step, value=intent.asked)
        move = Move(
            step=step,
            origin=intent.origin,
            started_ns=intent.at_ns,
            bits_per_s=intent.step.value,
            nearer_ns=now_ns,
            watched_ns=now_ns,
            recovered=True,
        )
        self._moves[step.vm_id] = move
        if step.vm_id not in self._ledger.vms:
            self._end(move, OutcomeState.VERIFIED, None, "found gone from here after a restart", now_ns)
            return
        self._ledger.hold(step.vm_id, StepKind.MIGRATE, 0, move.bits_per_s)
        self._emit(WatchMigration(vm_id=step.vm_id))

    def inventory(self, now_ns: int) -> None:
        """The ledger took over a new inventory."""
        for move in self:
            record = self._ledger.vms.get(move.step.vm_id)
            if record is not None and StepKind.MIGRATE not in record.pending:
                # It was paused for the switch-over, so its record began anew.
                self._ledger.hold(move.step.vm_id, StepKind.MIGRATE, 0, move.bits_per_s)
            if not move.recovered:
                continue
            if record is None:
                self._end(move, OutcomeState.VERIFIED, None, "gone from here", now_ns)
            elif move.silent:
                # The first inventory may have been read before the job ended.
                move.silent += 1
                if move.silent > 2:
                    self._emit(TakenUp(vm_id=move.step.vm_id))  # the limits that were to travel are no longer needed
                    detail = move.detail or "the agent restarted and found no migration under way; the VM is still here"
                    state = OutcomeState.FAILED if move.code is None else OutcomeState.UNDONE
                    self._end(move, state, move.code, detail, now_ns)
        for vm_id, at_ns in list(self._departed.items()):
            record = self._ledger.vms.get(vm_id)
            if record is not None and record.domain.running and 0 <= now_ns - at_ns < DEPARTED_NS:
                self._ledger.hold(vm_id, StepKind.MIGRATE, 0, 0)
                continue
            del self._departed[vm_id]
            self._ledger.ended(vm_id, StepKind.MIGRATE, growth=True, failed=False, now_ns=now_ns)

    def progressed(self, event: MigrationProgressed, now_ns: int) -> None:
        """Answer to a WatchMigration."""
        move = self._moves.get(event.vm_id)
        if move is None:
            return
        progress = event.progress
        if progress is None:
            if move.recovered and not move.silent:
                move.silent = 1
            return
        move.silent = 0
        if progress.memory_processed_bytes or move.newest is None:  # a job that has just been cancelled shows zeros
            move.newest = progress
        if _nearer(move, progress):
            move.nearer_ns = now_ns
        if move.code is None and _outrun(progress, move.bits_per_s):
            self._widen(move, "the guest dirties faster than is sent", now_ns)

    def ended(self, event: MigrationEnded, now_ns: int) -> None:
        """The migrate call returned. A step that is not (or no longer) under way is passed over."""
        move = next((move for move in self if move.step.id == event.step_id), None)
        if move is None:
            return
        move.newest, move.final = event.progress or move.newest, event.progress is not None
        if event.moved:
            self._departed[move.step.vm_id] = now_ns
            self._end(move, OutcomeState.VERIFIED, None, event.detail, now_ns)
        elif move.code is not None:
            self._end(move, OutcomeState.UNDONE, move.code, move.detail, now_ns)
        elif event.code is not None:
            self._end(move, OutcomeState.REFUSED, event.code, event.detail, now_ns)
        else:
            self._end(move, OutcomeState.FAILED, None, event.detail or "the migration failed", now_ns)

    def follow(self, may_act: bool, now_ns: int) -> None:
        """Time passed: watch, widen, or give up."""
        for move in self:
            vm_id, lasted_ns = move.step.vm_id, now_ns - move.started_ns
            if move.code is not None:
                if not 0 <= now_ns - move.aborted_ns < ABORT_AGAIN_NS:
                    move.aborted_ns = now_ns
                    self._emit(AbortMigration(vm_id=vm_id))
            elif not may_act:
                self._give_up(move, RefusalCode.MODE_FORBIDS, "the mode no longer lets anything change", now_ns)
            elif lasted_ns >= self.config.deadline_s * NS_PER_S:
                self._give_up(move, RefusalCode.STEP_EXPIRED, f"not done after {self.config.deadline_s} s", now_ns)
            elif now_ns - move.nearer_ns >= self.config.no_progress_s * NS_PER_S:
                why = f"no nearer for {self.config.no_progress_s} s"
                if not self._widen(move, why, now_ns):
                    self._give_up(move, RefusalCode.NOT_CONVERGING, f"{why} at {move.bits_per_s} bit/s", now_ns)
            if not 0 <= now_ns - move.watched_ns < WATCH_NS:
                move.watched_ns = now_ns
                self._emit(WatchMigration(vm_id=vm_id))

    def abort_all(self, code: RefusalCode, why: str, now_ns: int) -> None:
        """Give up every move (the kill switch)."""
        for move in self:
            if move.code is None:
                self._give_up(move, code, why, now_ns)

    def _widen(self, move: Move, why: str, now_ns: int) -> bool:
        """Give the move all the bandwidth it may have; False when it has that already."""
        cap = self.config.bits_per_s_max
        if move.bits_per_s >= cap:
            return False
        move.bits_per_s, move.nearer_ns = cap, now_ns
        self._emit(TuneMigration(vm_id=move.step.vm_id, bits_per_s=cap))
        fields: dict[str, str | int] = {"step": move.step.id, "vm": move.step.vm_id, "bits_per_s": cap, "why": why}
        self._emit(Note(level="info", event="migration_widened", fields=fields))
        return True

    def _give_up(self, move: Move, code: RefusalCode, why: str, now_ns: int) -> None:
        move.code, move.detail, move.aborted_ns = code, f"given up: {why}", now_ns
        self._emit(AbortMigration(vm_id=move.step.vm_id))

    def _end(self, move: Move, state: OutcomeState, code: RefusalCode | None, detail: str, now_ns: int) -> None:
        step = move.step
        del self._moves[step.vm_id]
        moved = state is OutcomeState.VERIFIED
        if step.vm_id not in self._departed:
            failed = not moved and code not in NOT_ITS_FAULT
            self._ledger.ended(step.vm_id, StepKind.MIGRATE, growth=True, failed=failed, now_ns=now_ns)
        outcome = Outcome(
            step=step,
            state=state,
            value=move.bits_per_s if moved else None,
            code=code,
            detail="; ".join(part for part in (f"to {step.target}", _figures(move, now_ns), detail) if part),
            started_ns=move.started_ns,
        )
        self._tell(outcome, move.origin, now_ns)


def limits_of(record: VmRecord) -> Allocation:
    """Limits in force of one VM, as last read; what was never read stays None."""
    return Allocation(**{name: record.in_force.get(kind) for kind, (name, _) in FIELDS.items()})


def _nearer(move: Move, progress: MigrationProgress) -> bool:
    """Take in what is left to send; whether the move got nearer."""
    left, pass_number = progress.memory_remaining_bytes, progress.iteration
    if left is None or pass_number == 0:
        return False  # QEMU counts passes from 1 and shows nothing left before the first
    if move.least_bytes is None or move.top_bytes is None or pass_number != move.pass_number:
        tops = [top for top in (move.top_bytes, move.lowest_top_bytes) if top is not None]
        move.lowest_top_bytes = min(tops, default=None)
        move.record = _lower(left, move.lowest_top_bytes)
        move.pass_number, move.top_bytes, move.least_bytes = pass_number, left, left
        return move.record
    if not _lower(left, move.least_bytes):
        return False
    move.least_bytes = left
    return move.record


def _lower(now: int, before: int | None) -> bool:
    return before is None or now * 1000 < before * (1000 - FALL_PERMILLE)


def _outrun(progress: MigrationProgress, bits_per_s: int) -> bool:
    """From the second pass on: the guest writes more memory than is sent. The first pass says nothing: all of it is still to be sent."""
    if progress.dirty_pages_per_s is None or progress.iteration is None or progress.iteration < 2:
        return False
    sent = bits_per_s if progress.memory_bits_per_s is None else min(bits_per_s, progress.memory_bits_per_s)
    return progress.dirty_pages_per_s * PAGE_BITS > sent


def _figures(move: Move, now_ns: int) -> str:
    """Elapsed time, downtime and bytes as far as they are known."""
    progress = move.newest
    elapsed_ms = progress.elapsed_ms if progress is not None and progress.elapsed_ms else (now_ns - move.started_ns) // 1_000_000
    parts = [f"elapsed {elapsed_ms} ms"]
    if progress is not None and progress.downtime_ms is not None and move.final:
        parts.append(f"downtime {progress.downtime_ms} ms")
    if progress is not None and progress.memory_processed_bytes is not None:
        parts.append(f"{progress.memory_processed_bytes} bytes sent")
    return ", ".join(parts)


def _no(code: RefusalCode, detail: str, wait_ns: int = 0) -> Verdict:
    return Verdict(value=None, code=code, detail=detail, wait_ns=wait_ns)
