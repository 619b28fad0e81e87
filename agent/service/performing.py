"""Carries out the core's instructions: journal, submits, read-backs, spool, link, what must survive a restart.

Invariants: the instructions of one event are begun in their order; an Intent is durable before its submit begins; submits of one VM run one
after another and ask for mode and kill switch in the acting thread, at the last moment. A journal, mode or pause that cannot be written
raises HostError, which is the end of the process: what is not written down is not done.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import structlog

from agent import events as ev
from agent.acting.journal import Journal, save_mode, save_pause
from agent.link.client import LinkClient
from agent.service.calls import CALL_DEADLINE_S
from agent.service.hosts import HostBundle
from agent.service.movers import Movers
from agent.service.picture import Picture
from shared import failpoint
from shared.errors import HostError, Refusal
from shared.frame import encode
from shared.messages import Status
from shared.metrics import Metrics
from shared.model import Allocation
from shared.plan import Step
from shared.refusal import RefusalCode

log = structlog.get_logger("agent")

Spawn = Callable[[Coroutine[Any, Any, None]], None]


class Performer:
    """`handle` takes the answers (events); `spawn` runs a coroutine whose failure ends the process."""

    def __init__(
        self,
        picture: Picture,
        host: HostBundle,
        journal: Journal,
        metrics: Metrics,
        *,
        movers: Movers,
        handle: Callable[[ev.Event], None],
        spawn: Spawn,
    ) -> None:
        self._picture, self._host, self._journal, self._metrics = picture, host, journal, metrics
        self._movers, self._handle, self._spawn = movers, handle, spawn
        self._state_dir = Path(picture.config.state_dir)
        self.link: LinkClient | None = None

    def perform(self, instruction: ev.Instruction) -> None:
        """One instruction. Raises HostError when our own disk fails."""
        match instruction:
            case ev.WriteJournal():
                self._journal.write(instruction.entry)
                if isinstance(instruction.entry, ev.Closed):
                    self._count(instruction.entry)
            case ev.SubmitStep():
                self._spawn(self._submit(instruction.step))
            case ev.ReadBack():
                self._spawn(self._read_back(instruction.vm_id))
            case ev.SpoolFrame():
                self._picture.spool.append(instruction.sequence, encode(instruction.message))
                if self.link is not None:
                    self.link.notify()
            case ev.TrimSpool():
                self._picture.spool.trim(instruction.sequence)
            case ev.SendMessage():
                self._send(instruction)
            case ev.PersistMode():
                save_mode(self._state_dir, instruction.pinned, instruction.ordered)
            case ev.PersistPause():
                save_pause(self._state_dir, instruction.by)
            case ev.StartMigration() | ev.WatchMigration() | ev.TuneMigration() | ev.AbortMigration() | ev.TakenUp():
                self._movers.perform(instruction)
            case ev.Note():
                getattr(log, instruction.level)(instruction.event, **instruction.fields)

    def _send(self, instruction: ev.SendMessage) -> None:
        message, spool = instruction.message, self._picture.spool
        if isinstance(message, Status):
            message = msgspec.structs.replace(message, spool_frames=spool.frames, spool_dropped=spool.dropped_frames)
        if self.link is not None:
            self.link.send(message)

    async def _submit(self, step: Step) -> None:
        try:
            await self._picture.calls.in_turn(step.vm_id, self._change, step)
        except Refusal as refusal:
            self._handle(ev.StepRejected(step_id=step.id, code=refusal.code, detail=refusal.detail))
        except TimeoutError:
            self._handle(ev.StepRejected(step_id=step.id, detail=f"no answer within {CALL_DEADLINE_S:g} s", retriable=True))
        except HostError as error:
            self._handle(ev.StepRejected(step_id=step.id, detail=str(error)))
        else:
            self._handle(ev.StepAccepted(step_id=step.id))

    def _change(self, step: Step) -> None:
        """Runs in the acting thread: what waited there while the mode changed must not reach the host any more."""
        if holders := self._picture.paused_by():
            raise Refusal(RefusalCode.PAUSED, f"paused by {', '.join(holders)} since the step was begun")
        mode = self._picture.core.mode
        if not mode.acts:
            raise Refusal(RefusalCode.MODE_FORBIDS, f"mode {mode} since the step was begun")
        failpoint.hit("submit.before")
        self._host.hypervisor.submit(step.vm_id, step.kind, step.value)
        failpoint.hit("submit.after")

    async def _read_back(self, vm_id: str) -> None:
        try:
            allocation = await self._picture.calls.of_vm(vm_id, self._look, vm_id)
        except (Refusal, HostError, TimeoutError):
            allocation = None
        self._handle(ev.AllocationRead(vm_id=vm_id, allocation=allocation))

    def _look(self, vm_id: str) -> Allocation:
        failpoint.hit("read_back.before")
        allocation = self._host.hypervisor.allocation(vm_id)
        failpoint.hit("read_back.after")
        return allocation

    def _count(self, closed: ev.Closed) -> None:
        outcome = closed.outcome
        self._metrics.add("tidegate_agent_steps_total", kind=outcome.step.kind, outcome=outcome.state, origin=outcome.origin)
        if outcome.code is not None:
            self._metrics.add("tidegate_agent_refusals_total", code=outcome.code)
