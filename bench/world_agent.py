"""An agent process of the simulated world, its disk (journal, spool) and its host, which outlives it.

The core, the derivation of samples, the recovery from the journal and every frame are production code; the process around the core
is played here: what it had in memory is gone after a kill, what it had written is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent import events as ev
from agent.acting.reconcile import local_prefix, reconcile
from agent.adapters.simulated_host import SimulatedHost
from agent.adapters.workload import Workload
from agent.core import AgentCore
from agent.ports import RawHost
from agent.sampling.derive import derive
from shared.errors import HostError, Refusal
from shared.frame import decode_block, decode_coordinator, encode
from shared.messages import Ack, Outcomes, Samples, SendPlan, SetMode, Welcome
from shared.model import Mode
from shared.plan import StepKind
from shared.units import NS_PER_S
from shared.workload import VmWorkload, WorkloadFile

if TYPE_CHECKING:
    from bench.world import World
    from bench.world_wire import Wire


class AgentNode:
    """One agent process and its disk; the host outlives it."""

    def __init__(self, world: World, index: int, file: WorkloadFile) -> None:
        self.world, self.index = world, index
        self.host_id = file.host
        self.mode = world.settings.modes(index)
        self.host = SimulatedHost(
            Workload(file),
            lambda: (world.now_ns, world.now_ns - world.start_ns),
            world.settings.weather.faults,
            step_s=world.settings.step_s,
        )
        self.journal: list[ev.JournalEntry] = []
        self.spool: dict[int, bytes] = {}
        self.next_sequence = 0
        self.acked = -1
        self.shipped: dict[int, tuple[int, ...]] = {}  # sequence -> wall_ns of its samples
        self.submitted: set[str] = set()
        self.cut_off_ns = 0
        self.incarnation = 0
        self.core: AgentCore | None = None
        self.wire: Wire | None = None
        self._previous: RawHost | None = None
        self._limits = {spec.vm_id: spec for spec in file.vms}
        self._memory_max = {spec.vm_id: spec.memory_max_bytes for spec in file.vms}
        self._in_force: dict[str, tuple[int | None, ...]] = {}

    def start(self) -> None:
        """The process starts: state from its disk only."""
        settings = self.world.settings
        self.incarnation += 1
        boot_id = self.host.boot_id()
        self.core = AgentCore(
            host_id=self.host_id,
            boot_id=boot_id,
            capacity=self.host.capacity(),
            guard=settings.guard,
            reactive=settings.reactive,
            default_mode=self.mode,
            frame_samples=settings.frame_samples,
            next_sequence=self.next_sequence,
            recovered=reconcile(self.journal, local_prefix(self.host_id, boot_id)),
        )
        self._previous = None
        self.handle(ev.Started())
        self.handle(ev.InventoryRead(domains=tuple(self.host.domains())))
        for domain in self.host.domains():
            self._read_back(domain.vm_id)
        self._later(0, self._sample)
        self._later(1, self._connect)

    def kill(self) -> None:
        """kill -9, and a restart some time later."""
        if self.core is not None:
            self.world.count("agent_kill")
            self.world.record("kill", self.host_id)
            self.core = None
            if self.wire is not None:
                self.wire.reset()
                self.wire = None
            self.incarnation += 1
            self.world.after(self.world.random.uniform(*self.world.settings.weather.down_s), self.start)

    def partition(self) -> None:
        """No network for a while."""
        self.world.count("partition")
        self.cut_off_ns = max(
            self.cut_off_ns, self.world.now_ns + int(self.world.random.uniform(*self.world.settings.weather.partition_s) * NS_PER_S)
        )
        if self.wire is not None:
            self.wire.reset()

    def disconnected(self, wire: Wire) -> None:
        """The transport told us that it is gone."""
        if self.wire is wire:
            self.wire = None
            self.handle(ev.LinkDown())
            self._later(self.world.random.uniform(1, 15), self._connect)

    def received(self, wire: Wire, frame: bytes) -> None:
        """A frame from the coordinator."""
        if self.wire is not wire or self.core is None:
            return
        message = decode_coordinator(frame)
        match message:
            case Welcome():
                self._believed(message.acked)
                self.handle(ev.LinkUp(epoch=message.epoch, acked=message.acked))
                if message.mode is not None:
                    self.handle(ev.ModeOrdered(mode=message.mode))
                for sequence in sorted(self.spool):
                    if sequence > message.acked:
                        wire.to_coordinator(self.spool[sequence])
            case Ack():
                self._believed(message.sequence)
                self.handle(ev.Acked(boot_id=message.boot_id, sequence=message.sequence))
            case SendPlan():
                self.handle(ev.PlanArrived(plan=message.plan))
            case SetMode():
                self.handle(ev.ModeOrdered(mode=message.mode))

    def handle(self, event: ev.Event) -> None:
        """One event through the core, and what it wants done."""
        if self.core is None:
            return
        for instruction in self.core.handle(event, self.world.now_ns):
            self._perform(instruction)

    def _perform(self, instruction: ev.Instruction) -> None:
        match instruction:
            case ev.WriteJournal():
                self.journal.append(instruction.entry)
                self.world.record(self.host_id, instruction.entry)
            case ev.SubmitStep():
                self._check_submit(instruction)
                self._later(self.world.random.uniform(0.001, 0.05), lambda: self._submit(instruction))
            case ev.ReadBack():
                self._later(0.01, lambda: self._read_back(instruction.vm_id))
            case ev.SpoolFrame():
                self._spool(instruction.sequence, instruction.message)
            case ev.TrimSpool():
                for sequence in [s for s in self.spool if s <= instruction.sequence]:
                    del self.spool[sequence]
            case ev.SendMessage():
                if self.wire is not None:
                    self.wire.to_coordinator(encode(instruction.message))
            case ev.PersistMode() | ev.Note():
                self.world.record(self.host_id, instruction)

    def _spool(self, sequence: int, message: Samples | Outcomes) -> None:
        frame = encode(message)
        self.spool[sequence] = frame
        self.next_sequence = sequence + 1
        self.shipped[sequence] = tuple(s.wall_ns for s in decode_block(message.block)) if isinstance(message, Samples) else ()
        self.world.record(self.host_id, sequence, hashlib.sha256(frame).digest())
        if self.wire is not None and self.core is not None and self.core.link_up:
            self.wire.to_coordinator(frame)

    def _submit(self, instruction: ev.SubmitStep) -> None:
        step = instruction.step
        try:
            self.host.submit(step.vm_id, step.kind, step.value)
        except Refusal as refusal:
            self.handle(ev.StepRejected(step_id=step.id, code=refusal.code, detail=refusal.detail))
        except HostError as error:
            self.handle(ev.StepRejected(step_id=step.id, detail=str(error)))
        else:
            self.handle(ev.StepAccepted(step_id=step.id))

    def _read_back(self, vm_id: str) -> None:
        try:
            allocation = self.host.allocation(vm_id)
        except HostError:
            allocation = None
        self.handle(ev.AllocationRead(vm_id=vm_id, allocation=allocation))

    def _sample(self) -> None:
        assert self.core is not None
        raw = self.host.read()
        sample = derive(self._previous, raw, self._memory_max)
        self._previous = raw
        self._check_host(raw)
        if sample.period_ns:
            self.handle(ev.Sampled(sample=sample))
        self.handle(ev.Tick())
        if self.core.in_flight or self.core.waiting:
            for delay in (1.0, 2.5):
                if delay < self.world.settings.sample_period_s:
                    self._later(delay, lambda: self.handle(ev.Tick()))
        self._later(self.world.settings.sample_period_s, self._sample)

    def _connect(self) -> None:
        if self.wire is not None:
            return
        if self.cut_off_ns > self.world.now_ns or not self.world.coordinator.alive:
            self._later(self.world.random.uniform(2, 30), self._connect)
            return
        assert self.core is not None
        self.wire = self.world.coordinator.accept(self)
        self.wire.to_coordinator(encode(self.core.hello(self.world.now_ns, "world", "simulated")))

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        incarnation = self.incarnation
        self.world.after(seconds, lambda: call() if self.incarnation == incarnation and self.core is not None else None)

    def _believed(self, acked: int) -> None:
        """An acknowledgement is a promise: what it covers must be on the coordinator's disk."""
        durable = self.world.coordinator.durable.get(self.host_id, set())
        for sequence in range(self.acked + 1, acked + 1):
            if sequence in self.shipped and sequence not in durable:
                self.world.violated(f"{self.host_id}: sequence {sequence} acknowledged and not durable")
        self.acked = max(self.acked, acked)

    def _check_submit(self, instruction: ev.SubmitStep) -> None:
        step, spec = instruction.step, self._limits[instruction.step.vm_id]
        assert self.core is not None
        if step.id in self.submitted:
            self.world.violated(f"{self.host_id}: step {step.id} submitted twice")
        self.submitted.add(step.id)
        if not self.mode.acts:
            self.world.violated(f"{self.host_id}: mode {self.mode} submitted {step.id}")
        low, high = self._bounds(step.kind, spec)
        if not (low <= step.value <= high) and step.value != -1:
            self.world.violated(f"{self.host_id}: {step.kind} = {step.value} of {spec.name}, allowed {low} to {high}")
        before = self.core.in_force(step.vm_id).get(step.kind)
        alone = not self.core.link_up and self.mode is Mode.PREDICTIVE
        undo = any(isinstance(e, ev.Intent) and e.step.id == step.id and e.undo_of for e in self.journal[-3:])
        if alone and not undo and before is not None and 0 <= step.value < before:
            self.world.violated(f"{self.host_id}: without a coordinator {step.kind} of {spec.name} shrinks from {before} to {step.value}")

    def _bounds(self, kind: StepKind, spec: VmWorkload) -> tuple[int, int]:
        guard, policy = self.world.settings.guard, spec.policy
        match kind:
            case StepKind.MEMORY:
                return max(guard.memory_floor_bytes, policy.memory_floor_bytes or 0), policy.memory_ceiling_bytes or spec.memory_max_bytes
            case StepKind.CPU_QUOTA:
                floor = max(guard.cpu_floor_millicores, policy.cpu_floor_millicores or 0)
                return floor, policy.cpu_ceiling_millicores or spec.vcpus_max * 1000
            case StepKind.VCPUS:
                return 1, spec.vcpus_max
            case StepKind.CPU_SHARES:
                return 2, 262_144
            case _:
                floor = max(guard.net_floor_bits_per_s, policy.net_floor_bits_per_s or 0)
                return floor, policy.net_ceiling_bits_per_s or spec.net_max_bits_per_s

    def _check_host(self, raw: RawHost) -> None:
        """What is in force on the host: commit limits hold, and a host in observe never changes."""
        capacity, memory, cpu = self.host.capacity(), 0, 0
        for vm in raw.vms:
            memory += vm.memory_actual_bytes or 0
            quota = vm.cpu_quota_millicores
            cpu += (vm.vcpus or 0) * 1000 if quota in (None, -1) else min(quota or 0, (vm.vcpus or 0) * 1000)
            values = (vm.vcpus, quota, vm.memory_actual_bytes, vm.net_rx_ceil_bits_per_s, vm.net_tx_ceil_bits_per_s)
            if not self.mode.acts and self._in_force.setdefault(vm.vm_id, values) != values:
                self.world.violated(f"{self.host_id}: mode {self.mode} changed {vm.vm_id}: {self._in_force[vm.vm_id]} to {values}")
        # the balloon stops within a page of its target, hence a MiB a VM
        if memory > capacity.memory_commit_bytes + len(raw.vms) * 2**20:
            self.world.violated(f"{self.host_id}: memory {memory} over the commit limit {capacity.memory_commit_bytes}")
        if cpu > capacity.cpu_commit_millicores:
            self.world.violated(f"{self.host_id}: quotas {cpu} over the commit limit {capacity.cpu_commit_millicores}")
