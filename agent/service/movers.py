"""Performs the core's migration instructions on the host's Migrator and answers with events. Wiring, no decisions.

How the service uses it (all methods are for the event loop's thread, none blocks):

    movers = Movers(host.migrator, post=lambda event: loop.call_soon_threadsafe(handle, event), max_outgoing=config.migration.max_outgoing)
    movers.perform(instruction)      # StartMigration, WatchMigration, TuneMigration, AbortMigration, TakenUp
    movers.inventory(domains)        # after every inventory; asks newly running VMs for limits that travelled with them → LimitsArrived
    movers.close()

`post` is called from other threads, once per answer, and never after `close`. After MigrationEnded(moved=True) the service should read
the inventory anew: the VM is gone.
Bounds: one thread per migration under way, at most `max_outgoing` (one more is answered with MIGRATION_BUSY), one that asks (progress,
arrived limits) and one that orders (bandwidth, abort, taken up), so that a question that hangs does not hold up an abort. Migrating
threads are daemons: a process that ends does not wait for them; what becomes of their VMs is the journal's to find out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import structlog

from agent.events import (
    AbortMigration,
    Event,
    LimitsArrived,
    MigrationEnded,
    MigrationProgressed,
    StartMigration,
    TakenUp,
    TuneMigration,
    WatchMigration,
)
from agent.ports import Migrator
from shared.errors import HostError, Refusal
from shared.model import Domain
from shared.refusal import RefusalCode

log = structlog.get_logger("agent")

MigrationInstruction = StartMigration | WatchMigration | TuneMigration | AbortMigration | TakenUp


class Movers:
    """The threads around one Migrator. `migrator` None: every move is answered with NOT_CAPABLE."""

    def __init__(self, migrator: Migrator | None, post: Callable[[Event], None], max_outgoing: int) -> None:
        self.max_outgoing = max_outgoing  # may be replaced at any time
        self._migrator = migrator
        self._post = post
        self._asking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="migration-watch")
        self._ordering = ThreadPoolExecutor(max_workers=1, thread_name_prefix="migration-order")
        self._lock = threading.Lock()
        self._under_way: set[str] = set()  # VMs
        self._watched: set[str] = set()  # VMs whose progress has been asked for and not been told
        self._seen: set[str] = set()  # running VMs that were asked for limits
        self._closed = False

    def __len__(self) -> int:
        """Migrations under way."""
        return len(self._under_way)

    def perform(self, instruction: MigrationInstruction) -> None:
        """Carry out one instruction; its answer, where it has one, comes by `post`."""
        migrator = self._migrator
        if isinstance(instruction, StartMigration):
            self._start(instruction)
        elif migrator is None:
            log.warning("no migrator on this host", instruction=type(instruction).__name__)
        elif isinstance(instruction, WatchMigration):
            if instruction.vm_id not in self._watched:  # the last question hangs: one at a time
                self._watched.add(instruction.vm_id)
                self._asking.submit(self._watch, migrator, instruction.vm_id)
        elif isinstance(instruction, TuneMigration):
            self._order("bandwidth", instruction.vm_id, lambda: migrator.set_bandwidth(instruction.vm_id, instruction.bits_per_s))
        elif isinstance(instruction, AbortMigration):
            self._order("abort", instruction.vm_id, lambda: migrator.abort(instruction.vm_id))
        else:
            self._order("taken_up", instruction.vm_id, lambda: migrator.taken_up(instruction.vm_id))

    def inventory(self, domains: Iterable[Domain]) -> None:
        """VMs that run here and did not before may have come by migration."""
        if self._migrator is None:
            return
        running = {domain.vm_id for domain in domains if domain.running}
        fresh, self._seen = running - self._seen, running  # first: an ask that fails at once takes its VM out again
        for vm_id in sorted(fresh):
            self._asking.submit(self._ask_for_limits, self._migrator, vm_id)

    def close(self) -> None:
        """Answer nothing more."""
        self._closed = True
        self._asking.shutdown(wait=False, cancel_futures=True)
        self._ordering.shutdown(wait=False, cancel_futures=True)

    def _start(self, instruction: StartMigration) -> None:
        step, migrator = instruction.step, self._migrator
        if migrator is None:
            self._answer(
                MigrationEnded(step_id=step.id, moved=False, code=RefusalCode.NOT_CAPABLE, detail="no VM of this host can be moved")
            )
            return
        with self._lock:
            full = len(self._under_way) >= self.max_outgoing or step.vm_id in self._under_way
            if not full:
                self._under_way.add(step.vm_id)
        if full:
            detail = f"{len(self._under_way)} migrations under way"
            self._answer(MigrationEnded(step_id=step.id, moved=False, code=RefusalCode.MIGRATION_BUSY, detail=detail))
            return
        threading.Thread(target=self._migrate, args=(migrator, instruction), name=f"migrate-{step.vm_id[:8]}", daemon=True).start()

    def _migrate(self, migrator: Migrator, instruction: StartMigration) -> None:
        step = instruction.step
        try:
            progress = migrator.migrate(step.vm_id, instruction.uri, instruction.bits_per_s, instruction.limits)
            ended = MigrationEnded(step_id=step.id, moved=True, progress=progress)
        except Refusal as refusal:
            ended = MigrationEnded(step_id=step.id, moved=False, code=refusal.code, detail=refusal.detail[:512])
        except HostError as error:
            ended = MigrationEnded(step_id=step.id, moved=False, detail=str(error)[:512])
        except BaseException as error:
            # A bug: the thread ends with its traceback, but the core must not wait for ever for a move that nobody carries out.
            self._finished(MigrationEnded(step_id=step.id, moved=False, detail=f"{type(error).__name__}: {error}"[:512]), step.vm_id)
            raise
        self._finished(ended, step.vm_id)

    def _finished(self, ended: MigrationEnded, vm_id: str) -> None:
        with self._lock:
            self._under_way.discard(vm_id)
        self._answer(ended)

    def _watch(self, migrator: Migrator, vm_id: str) -> None:
        try:
            progress = migrator.progress(vm_id)
        except (Refusal, HostError) as error:
            log.info("progress of a migration is not known", vm=vm_id, error=str(error))
        else:
            self._answer(MigrationProgressed(vm_id=vm_id, progress=progress))
        finally:
            self._watched.discard(vm_id)

    def _ask_for_limits(self, migrator: Migrator, vm_id: str) -> None:
        try:
            limits = migrator.arrived(vm_id)
        except (Refusal, HostError) as error:
            log.warning("VM could not be asked for limits that travelled with it", vm=vm_id, error=str(error))
            self._seen.discard(vm_id)  # asked again with the next inventory
            return
        if limits is not None:
            self._answer(LimitsArrived(vm_id=vm_id, limits=limits))

    def _order(self, what: str, vm_id: str, call: Callable[[], None]) -> None:
        self._ordering.submit(self._call, what, vm_id, call)

    def _call(self, what: str, vm_id: str, call: Callable[[], None]) -> None:
        try:
            call()
        except (Refusal, HostError) as error:
            log.warning("migration could not be told", vm=vm_id, order=what, error=str(error))

    def _answer(self, event: Event) -> None:
        if not self._closed:
            self._post(event)
