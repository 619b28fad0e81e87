"""An agent process of the simulated world, its disk (journal, spool, mode) and its host, which outlives it.

The core, the derivation of samples, the recovery from the journal and every frame are production code; the process around the core
is played here: what it had in memory is gone after a kill, what it had written is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from agent import events as ev
from agent.acting.reconcile import local_prefix, reconcile
from agent.adapters.simulated_host import SimulatedHost
from agent.adapters.workload import Workload
from agent.core import AgentCore
from agent.ports import RawHost
from agent.sampling.derive import derive
from bench.world_checks import HostChecks
from bench.world_moves import INVENTORY_S, allowed
from shared.errors import HostError, Refusal
from shared.frame import decode_coordinator, encode
from shared.messages import Ack, Goodbye, Outcomes, Samples, SendPlan, SetMode, SetPause, Welcome
from shared.model import Mode, effective_mode
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import NS_PER_S
from shared.workload import WorkloadFile

if TYPE_CHECKING:
    from bench.world import World
    from bench.world_wire import Wire

BEAT_S = 30.0  # a tick at least this often, so that a heartbeat is never missed however rare the samples
LATE_GUEST_S = 600


class AgentNode:
    """One agent process and its disk; the host outlives it."""

    def __init__(self, world: World, index: int, file: WorkloadFile) -> None:
        self.world, self.index, self.file = world, index, file
        self.host_id = file.host
        self.default_mode = world.settings.modes(index)
        self.pinned: Mode | None = None  # as commanded, before the core heard of it
        self.ordered: Mode | None = None
        self.paused_by: tuple[str, ...] = ()  # as on its disk
        self.host = SimulatedHost(
            Workload(file),
            lambda: (world.now_ns, world.now_ns - world.start_ns),
            world.weather.faults,
            step_s=world.settings.step_s,
            movable=world.settings.movable,
        )
        self.asleep = False
        self.journal: list[ev.JournalEntry] = []
        self.spool: dict[int, bytes] = {}
        self.next_sequence = 0
        self.incarnation = 0
        self.core: AgentCore | None = None
        self.wire: Wire | None = None
        self.checks = HostChecks(world, self)
        self._cut_off_ns = 0
        self._retry_s = 0.0
        self._previous: RawHost | None = None
        self._memory_max = {spec.vm_id: spec.memory_max_bytes for each in world.files for spec in each.vms}
        self._stuck: list[str] = []
        self._late: list[str] = []

    @property
    def mode(self) -> Mode:
        """What the owner and the coordinator have commanded, as far as it has reached the host."""
        return Mode.OFF if self.paused_by else effective_mode(self.pinned, self.ordered, self.default_mode)

    def start(self) -> None:
        """The process starts: state from its disk only."""
        if self.asleep or self.core is not None:
            return  # its machine fell asleep, or was woken, since this start was ordered
        settings = self.world.settings
        self.incarnation += 1
        boot_id = self.host.boot_id()
        self.core = AgentCore(
            host_id=self.host_id,
            boot_id=boot_id,
            capacity=self.host.capacity(),
            guard=settings.guard,
            reactive=settings.reactive,
            default_mode=self.default_mode,
            pinned=self.pinned,
            ordered=self.ordered,
            frame_samples=settings.frame_samples,
            next_sequence=self.next_sequence,
            recovered=reconcile(self.journal, local_prefix(self.host_id, boot_id)),
            paused_by=self.paused_by,
            migration=allowed(self.world) if settings.movable else None,
            rule=None if settings.rule is None else settings.rule(self),
        )
        self._previous = None
        self.handle(ev.InventoryRead(domains=tuple(self.host.domains())))
        self.handle(ev.Started())
        for domain in self.host.domains():
            self._read_back(domain.vm_id)
        self._later(0, self._sample)
        self._later(1, self._connect)
        if settings.sample_period_s > BEAT_S:
            self._later(BEAT_S, self._beat)
        if settings.movable:
            self._later(INVENTORY_S, self._inventories)

    def vm_ids(self) -> set[str]:
        """VMs that are on the host now."""
        return {domain.vm_id for domain in self.host.domains()}

    def read_inventory(self) -> None:
        """VMs have come or gone."""
        if self.core is not None:
            self.handle(ev.InventoryRead(domains=tuple(self.host.domains())))
            for vm_id in sorted(self.vm_ids()):
                self._read_back(vm_id)

    def fall_asleep(self) -> None:
        """The machine sleeps: no process, no network."""
        self.asleep = True
        if self.core is not None:
            self._die("agent_asleep", restart=False)

    def wake_up(self) -> None:
        """The machine runs again and starts its agent."""
        self.asleep = False
        self.start()

    def _inventories(self) -> None:
        self.read_inventory()
        self._later(INVENTORY_S, self._inventories)

    def kill(self) -> None:
        """kill -9, and a restart some time later."""
        if self.core is not None:
            self._die("agent_kill")

    def stop(self) -> None:
        """A clean stop, and a start some time later."""
        if self.core is not None:
            self.handle(ev.Stopping())
            self._die("agent_stop")

    def partition(self) -> None:
        """No network for a while."""
        self.world.count("partition")
        seconds = self.world.random.uniform(*self.world.weather.partition_s)
        self._cut_off_ns = max(self._cut_off_ns, self.world.now_ns + int(seconds * NS_PER_S))
        if self.wire is not None:
            self.wire.reset()

    def pin(self) -> None:
        """The owner pins a mode, or takes the pin away."""
        mode = self.world.random.choice([None, *Mode])
        if self.core is not None:
            self.world.count("mode_pin")
            self.handle(ev.ModePinned(mode=mode))

    def hear_old_plan(self) -> None:
        """A plan of the past comes in once more."""
        plans = self.world.coordinator.plans.get(self.host_id, [])
        if plans and self.core is not None and self.core.link_up:
            self.world.count("stale_plan")
            self.handle(ev.PlanArrived(plan=self.world.random.choice(plans)))

    def stick(self) -> None:
        """The monitor of one VM stops answering for a while."""
        self._afflict("stuck_vm", self._stuck)

    def delay_guest(self) -> None:
        """One guest reports its memory only every ten minutes for a while."""
        self._afflict("late_guest", self._late)

    def heal(self) -> None:
        """Fair weather from now on."""
        self._cut_off_ns = 0
        self._stuck.clear()
        self._late.clear()
        self.host.faults = self.world.weather.faults

    def disconnected(self, wire: Wire) -> None:
        """The transport told us that it is gone."""
        wire.open = False
        if self.wire is wire:
            self.wire = None
            self.handle(ev.LinkDown())
            self._later(max(self._retry_s, self.world.random.uniform(1, 15)), self._connect)
            self._retry_s = 0.0

    def received(self, wire: Wire, frame: bytes) -> None:
        """A frame from the coordinator."""
        if self.wire is not wire or self.core is None:
            return
        message = decode_coordinator(frame)
        match message:
            case Welcome():
                self.checks.acknowledged(message.acked)
                if message.paused is not None:
                    self.handle(ev.PauseOrdered(paused=message.paused, by="coordinator"))
                self.handle(ev.LinkUp(epoch=message.epoch, acked=message.acked))
                if message.mode is not None:
                    self.handle(ev.ModeOrdered(mode=message.mode))
                for sequence in sorted(self.spool):
                    if sequence > message.acked:
                        wire.to_coordinator(self.spool[sequence])
            case Ack():
                self.checks.acknowledged(message.sequence)
                self.handle(ev.Acked(boot_id=message.boot_id, sequence=message.sequence))
            case SendPlan():
                self.handle(ev.PlanArrived(plan=message.plan))
            case SetMode():
                self.handle(ev.ModeOrdered(mode=message.mode))
            case SetPause():
                self.handle(ev.PauseOrdered(paused=message.paused, by="coordinator"))
            case Goodbye():
                self._retry_s = message.retry_after_s

    def handle(self, event: ev.Event) -> None:
        """One event through the core, and what it wants done."""
        if self.core is None:
            return
        if isinstance(event, ev.ModePinned):
            self.pinned = event.mode
        elif isinstance(event, ev.ModeOrdered):
            self.ordered = event.mode
        for instruction in self.core.handle(event, self.world.now_ns):
            self._perform(instruction)

    def _perform(self, instruction: ev.Instruction) -> None:
        match instruction:
            case ev.WriteJournal():
                self.journal.append(instruction.entry)
                self.checks.journalled(instruction.entry)
                self.world.record(self.host_id, instruction.entry)
            case ev.SubmitStep():
                self.checks.submitted(instruction.step)
                self._later(self.world.random.uniform(0.001, 0.05), partial(self._submit, instruction))
            case ev.ReadBack():
                self._later(0.01, partial(self._read_back, instruction.vm_id))
            case ev.SpoolFrame():
                self._spool(instruction.sequence, instruction.message)
            case ev.TrimSpool():
                for sequence in [s for s in self.spool if s <= instruction.sequence]:
                    del self.spool[sequence]
            case ev.SendMessage():
                if self.wire is not None:
                    self.wire.to_coordinator(encode(instruction.message))
            case ev.PersistMode():
                self.checks.mode_persisted(instruction)
            case ev.PersistPause():
                self.paused_by = instruction.by
            case ev.StartMigration():
                if self.world.settings.movable:
                    self.world.moves.start(self, instruction)
                else:  # the answer of a host where no VM can be moved
                    ended = ev.MigrationEnded(step_id=instruction.step.id, moved=False, code=RefusalCode.NOT_CAPABLE, detail="simulated")
                    self._later(0.01, partial(self.handle, ended))
            case ev.WatchMigration():
                progress = self.world.moves.watch(self, instruction.vm_id)
                self._later(0.01, partial(self.handle, ev.MigrationProgressed(vm_id=instruction.vm_id, progress=progress)))
            case ev.AbortMigration():
                self.world.moves.abort(instruction.vm_id)
            case ev.TuneMigration() | ev.TakenUp():
                pass  # bandwidth is fixed here, and limits travel with the VM
            case ev.Note():
                self.world.record(self.host_id, instruction)
                if instruction.event == "foreign_change":
                    self.world.violated(f"{self.host_id}: nobody but the agent changes anything here, but it saw {instruction.fields}")

    def _spool(self, sequence: int, message: Samples | Outcomes) -> None:
        frame = encode(message)
        self.checks.shipped(sequence, frame)
        self.spool[sequence] = frame
        self.next_sequence = sequence + 1
        self.world.record(self.host_id, sequence, hashlib.sha256(frame).digest())
        if self.wire is not None and self.core is not None and self.core.link_up:
            self.wire.to_coordinator(frame)

    def _submit(self, instruction: ev.SubmitStep) -> None:
        step, random = instruction.step, self.world.random
        answer: ev.Event
        try:
            self.host.submit(step.vm_id, step.kind, step.value)
        except Refusal as refusal:
            answer = ev.StepRejected(step_id=step.id, code=refusal.code, detail=refusal.detail)
        except HostError as error:
            self.world.count("submit_failed")
            answer = ev.StepRejected(step_id=step.id, detail=str(error))
        else:
            answer = ev.StepAccepted(step_id=step.id)
            if random.random() < self.world.weather.lost_answers:
                self.world.count("lost_answer")
                answer = ev.StepRejected(step_id=step.id, detail="no answer in time", retriable=True)
            # a kill of the agent takes nothing back: the effect is looked at whoever lives
            self.world.after(0.05, self.checks.in_force)
            if step.kind in (StepKind.MEMORY, StepKind.VCPUS):
                self.world.after(4, self.checks.in_force)
        self._later(random.uniform(0.001, 0.01), partial(self.handle, answer))

    def _read_back(self, vm_id: str) -> None:
        try:
            allocation = self.host.allocation(vm_id)
        except HostError:
            allocation = None
        except Refusal:
            return  # it moved away meanwhile
        self.handle(ev.AllocationRead(vm_id=vm_id, allocation=allocation))

    def _sample(self) -> None:
        assert self.core is not None
        raw = self.host.read()
        sample = derive(self._previous, raw, self._memory_max)
        self._previous = raw
        self.checks.in_force(raw)
        if sample.period_ns:
            self.checks.sampled(sample)
            self.handle(ev.Sampled(sample=sample, runs={vm.vm_id: vm.epoch for vm in raw.vms}))
        self._tick()
        if self.world.settings.watch is not None:
            self.world.settings.watch(self)
        self._later(self.world.settings.sample_period_s, self._sample)

    def _beat(self) -> None:
        self._tick()
        self._later(BEAT_S, self._beat)

    def _tick(self) -> None:
        self.handle(ev.Tick())
        if self.core is not None and (self.core.in_flight or self.core.waiting):
            for delay in (1.0, 2.5):
                if delay < self.world.settings.sample_period_s:
                    self._later(delay, partial(self.handle, ev.Tick()))

    def _connect(self) -> None:
        if self.wire is not None:
            return
        if self._cut_off_ns > self.world.now_ns or not self.world.coordinator.alive:
            self._later(self.world.random.uniform(2, 30), self._connect)
            return
        assert self.core is not None
        self.wire = self.world.coordinator.accept(self)
        self.wire.to_coordinator(encode(self.core.hello(self.world.now_ns, "world", "simulated")))

    def _die(self, how: str, *, restart: bool = True) -> None:
        self.world.count(how)
        self.world.record(how, self.host_id)
        self.core = None
        if self.wire is not None:
            self.wire.reset()
            self.wire = None
        self.incarnation += 1
        self.checks.died()
        if restart:
            self.world.after(self.world.random.uniform(*self.world.settings.weather.down_s), self.start)

    def _afflict(self, what: str, names: list[str]) -> None:
        """Put a VM on a list of the host's faults, and take it off again later."""
        vm_id = self.world.random.choice(self.file.vms).vm_id
        self.world.count(what)
        names.append(vm_id)
        self._apply_faults()

        def end() -> None:
            if vm_id in names:
                names.remove(vm_id)
                self._apply_faults()

        self.world.after(self.world.random.uniform(*self.world.weather.down_s), end)

    def _apply_faults(self) -> None:
        faults = self.world.weather.faults
        self.host.faults = msgspec.structs.replace(
            faults,
            stuck_vms=(*faults.stuck_vms, *self._stuck),
            late_guests=(*faults.late_guests, *self._late),
            late_guest_s=LATE_GUEST_S if self._late else faults.late_guest_s,
        )

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        incarnation = self.incarnation
        self.world.after(seconds, lambda: call() if self.incarnation == incarnation and self.core is not None else None)
