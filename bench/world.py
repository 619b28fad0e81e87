"""The whole system in one seeded single-threaded world: production cores of agent, gateway and decision cycle, simulated hosts,
clock, network and disks. Used by tests/simulation (faults and invariants) and by benches (modes compared on the same demand).

What is real: every decision, every wire frame (encoded and decoded), journal and log semantics (what was not synced is lost at a
kill). What is simulated: time, sockets (ordered delivery with delay; frames may come twice; a drop kills the connection, as TCP
has it), disks (lists that survive a kill), the hypervisors. The same seed gives the same history, byte for byte: `World.digest`.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from agent import events as ev
from agent.acting.reconcile import local_prefix, reconcile
from agent.adapters.simulated_host import SimulatedHost
from agent.adapters.simulated_vm import SimulationFaults
from agent.adapters.workload import Workload
from agent.core import AgentCore
from agent.ports import RawHost
from agent.sampling.derive import derive
from coordinator import cycle as cy
from coordinator.compute.local_pool import LocalPool
from coordinator.compute.sharding import solve_sharded
from coordinator.cycle import DecisionCycle
from coordinator.forecast.engine import ForecastOptions
from coordinator.gateway import sessions as gw
from coordinator.model import BucketBlock, ForecastBlock, HistoryBlock
from coordinator.sizing.policy import SizingPolicy
from shared.config import CycleConfig, GuardConfig, ReactiveConfig
from shared.errors import HostError, Refusal
from shared.frame import decode_agent, decode_block, decode_coordinator, encode
from shared.messages import Ack, Outcomes, Samples, SendPlan, SetMode, Welcome
from shared.model import HostCapacity, Mode
from shared.plan import Outcome, StepKind
from shared.units import NS_PER_S
from shared.workload import WorkloadFile


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How bad the world is. Shares in 0..1 per frame, times in seconds."""

    delay_s: tuple[float, float] = (0.001, 0.05)
    duplicate: float = 0.0
    reset: float = 0.0  # a frame is lost and its connection with it
    partitions: int = 0  # per host over the run, each of partition_s
    partition_s: tuple[float, float] = (60.0, 1800.0)
    agent_kills: int = 0  # per host
    coordinator_kills: int = 0
    down_s: tuple[float, float] = (20.0, 900.0)
    faults: SimulationFaults = field(default_factory=SimulationFaults)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One world. `modes`: host index -> mode; `preload` gives the coordinator the hosts' history before the start."""

    seed: int
    hours: float
    modes: Callable[[int], Mode]
    sample_period_s: float = 5.0
    frame_samples: int = 3
    weather: Weather = Weather()
    cycle: CycleConfig = field(default_factory=lambda: CycleConfig(bucket_grace_s=30))
    sizing: SizingPolicy = field(default_factory=SizingPolicy)
    guard: GuardConfig = field(default_factory=GuardConfig)
    reactive: ReactiveConfig = field(default_factory=ReactiveConfig)
    forecast: ForecastOptions = field(default_factory=lambda: ForecastOptions(boosting=False, statsforecast=False))
    history: Sequence[HistoryBlock] = ()
    place: bool = False
    retrain_every_cycles: int = 0


class World:
    """Runs the agents of `files` and one coordinator. `violations` lists every broken invariant with its time."""

    def __init__(self, files: Sequence[WorkloadFile], settings: Settings) -> None:
        self.settings = settings
        self.random = random.Random(settings.seed)
        self.start_ns = files[0].start_s * NS_PER_S
        self.end_ns = self.start_ns + int(settings.hours * 3600 * NS_PER_S)
        self.now_ns = self.start_ns
        self.violations: list[str] = []
        self.counts: dict[str, int] = {}
        self._digest = hashlib.sha256()
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self.coordinator = CoordinatorNode(self)
        self.agents = [AgentNode(self, i, file) for i, file in enumerate(files)]

    def run(self) -> World:
        """To the end of the last hour; then the network heals and everything still in a spool gets its chance."""
        self.coordinator.start()
        for agent in self.agents:
            self.after(self.random.uniform(0, self.settings.sample_period_s), agent.start)
        self._plan_faults()
        while self._queue and self._queue[0][0] <= self.end_ns:
            self.now_ns, _, call = heapq.heappop(self._queue)
            call()
        return self

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Schedule; ties run in the order of scheduling."""
        self._order += 1
        heapq.heappush(self._queue, (self.now_ns + max(0, int(seconds * NS_PER_S)), self._order, call))

    def record(self, *parts: object) -> None:
        """Add to the world's history."""
        self._digest.update(repr((self.now_ns, *parts)).encode())

    @property
    def digest(self) -> str:
        """SHA-256 of everything recorded so far."""
        return self._digest.hexdigest()

    def count(self, name: str) -> None:
        """Count what happened, so that a test can see that the weather was bad."""
        self.counts[name] = self.counts.get(name, 0) + 1

    def violated(self, what: str) -> None:
        """An invariant broke."""
        self.violations.append(f"t+{(self.now_ns - self.start_ns) / NS_PER_S:.3f} s: {what}")

    def _plan_faults(self) -> None:
        weather, length = self.settings.weather, self.settings.hours * 3600
        for agent in self.agents:
            for _ in range(weather.partitions):
                self.after(self.random.uniform(0.05, 0.8) * length, agent.partition)
            for _ in range(weather.agent_kills):
                self.after(self.random.uniform(0.05, 0.85) * length, agent.kill)
        for _ in range(weather.coordinator_kills):
            self.after(self.random.uniform(0.1, 0.8) * length, self.coordinator.kill)


class Wire:
    """One connection. Frames arrive in order in each direction; a reset loses what is under way."""

    def __init__(self, world: World, agent: AgentNode, conn_id: int) -> None:
        self._world, self._agent, self.conn_id = world, agent, conn_id
        self.open = True
        self._due = [0, 0]

    def to_coordinator(self, frame: bytes) -> None:
        """Send from the agent."""
        node = self._world.coordinator
        self._send(0, frame, lambda: node.received(self.conn_id, frame))

    def to_agent(self, frame: bytes) -> None:
        """Send from the coordinator."""
        self._send(1, frame, lambda: self._agent.received(self, frame))

    def _send(self, direction: int, frame: bytes, deliver: Callable[[], None]) -> None:
        world, weather = self._world, self._world.settings.weather
        if not self.open:
            return
        if world.random.random() < weather.reset:
            world.count("reset")
            self.reset()
            return
        self._due[direction] = max(self._due[direction], world.now_ns + int(world.random.uniform(*weather.delay_s) * NS_PER_S))
        copies = 2 if direction == 0 and world.random.random() < weather.duplicate else 1
        for _ in range(copies):
            world.after((self._due[direction] - world.now_ns) / NS_PER_S, lambda: deliver() if self.open else None)
        if copies == 2:
            world.count("duplicate")

    def reset(self) -> None:
        """Break: each side notices at a time of its own."""
        if self.open:
            self.open = False
            world, node, incarnation = self._world, self._world.coordinator, self._world.coordinator.incarnation
            world.after(world.random.uniform(0, 5), lambda: self._agent.disconnected(self))
            world.after(world.random.uniform(0, 40), lambda: node.disconnected(self.conn_id, incarnation))


class AgentNode:
    """One agent process and its disk; the host outlives it."""

    def __init__(self, world: World, index: int, file: WorkloadFile) -> None:
        self.world, self.index = world, index
        self.host_id = file.host
        self.mode = world.settings.modes(index)
        self.host = SimulatedHost(Workload(file), lambda: (world.now_ns, world.now_ns - world.start_ns), world.settings.weather.faults)
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

    def _bounds(self, kind: StepKind, spec) -> tuple[int, int]:  # type: ignore[no-untyped-def]  # VmWorkload
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


class CoordinatorNode:
    """One coordinator process and its disk."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.alive = False
        self.incarnation = 0
        self.epoch = 0
        self.log: list[tuple[str, str, int, bytes]] = []  # synced
        self.durable: dict[str, set[int]] = {}
        self.buckets: dict[int, BucketBlock] = {}
        self.outcomes: dict[tuple[str, str, str], Outcome] = {}
        self.known_hosts: dict[str, HostCapacity] = {}
        self.known_domains: dict[str, tuple[str, object]] = {}
        self.forecasts: list[ForecastBlock] = []
        self._unsynced: list[tuple[str, str, int, bytes]] = []
        self._wires: dict[int, Wire] = {}
        self._next_conn = 1

    def start(self) -> None:
        """The process starts: state from its disk only."""
        settings, now_ns = self.world.settings, self.world.now_ns
        self.alive, self.epoch = True, self.epoch + 1
        self.incarnation += 1
        acked: dict[tuple[str, str], int] = {}
        for host_id, boot_id, sequence, _ in self.log:
            acked[host_id, boot_id] = max(sequence, acked.get((host_id, boot_id), -1))
        self.gateway = gw.GatewayCore(gw.GatewaySettings(epoch=self.epoch), acked=acked)
        self.cycle = DecisionCycle(settings.cycle, settings.sizing, self.epoch, max(self.buckets, default=None))
        self.cycle.fleet.restore(list(self.known_hosts.items()), self.known_domains)  # type: ignore[arg-type]
        for host_id, _, _, frame in self.log:
            message = decode_agent(frame)
            if isinstance(message, Samples):
                self.cycle.handle(cy.SamplesArrived(host_id=host_id, samples=decode_block(message.block)), now_ns)
        self.pool = LocalPool(settings.forecast)
        if settings.history:
            self.pool.load_now(_joined(settings.history))
            if settings.retrain_every_cycles:
                self.pool.retrain_now(_joined(settings.history))
        self._later(1, self._tick)

    def kill(self) -> None:
        """kill -9, and a restart some time later."""
        if not self.alive:
            return
        self.world.count("coordinator_kill")
        self.world.record("kill", "coordinator")
        self.alive = False
        self.incarnation += 1
        self._unsynced.clear()
        for wire in list(self._wires.values()):
            wire.reset()
        self._wires.clear()
        self.world.after(self.world.random.uniform(*self.world.settings.weather.down_s), self.start)

    def accept(self, agent: AgentNode) -> Wire:
        """A new connection of an agent (its certificate was checked)."""
        wire = Wire(self.world, agent, self._next_conn)
        self._next_conn += 1
        self._wires[wire.conn_id] = wire
        self._gateway(gw.Connected(wire.conn_id, agent.host_id))
        return wire

    def received(self, conn_id: int, frame: bytes) -> None:
        """A frame from an agent."""
        if self.alive and conn_id in self._wires:
            self._gateway(gw.Received(conn_id, frame))

    def disconnected(self, conn_id: int, incarnation: int) -> None:
        """The transport told us that it is gone."""
        if self.alive and incarnation == self.incarnation and self._wires.pop(conn_id, None) is not None:
            self._gateway(gw.Disconnected(conn_id))

    def _gateway(self, event: gw.Event) -> None:
        for instruction in self.gateway.handle(event, self.world.now_ns):
            match instruction:
                case gw.AppendWal():
                    if not self._unsynced:
                        self._later(0.05, self._sync)
                    self._unsynced.append((instruction.host_id, instruction.boot_id, instruction.sequence, instruction.frame))
                case gw.Deliver():
                    self._deliver(instruction)
                case gw.Reply():
                    if (wire := self._wires.get(instruction.conn_id)) is not None:
                        wire.to_agent(instruction.frame)
                case gw.Close():
                    if (wire := self._wires.pop(instruction.conn_id, None)) is not None:
                        wire.reset()
                case gw.HostDown():
                    self._cycle(cy.HostLost(host_id=instruction.host_id, why=instruction.reason))
                case gw.HostUp():
                    pass  # the cycle learns it from the Hello that follows

    def _deliver(self, instruction: gw.Deliver) -> None:
        message = instruction.message
        if isinstance(message, Samples):
            self._cycle(cy.SamplesArrived(host_id=instruction.host_id, samples=instruction.samples))
        else:
            self._cycle(cy.AgentSaid(host_id=instruction.host_id, message=message))

    def _sync(self) -> None:
        upto: dict[tuple[str, str], int] = {}
        for host_id, boot_id, sequence, frame in self._unsynced:
            self.log.append((host_id, boot_id, sequence, frame))
            self.durable.setdefault(host_id, set()).add(sequence)
            upto[host_id, boot_id] = sequence
        self._unsynced.clear()
        self._gateway(gw.Durable(upto))

    def _tick(self) -> None:
        self._gateway(gw.Tick())
        self._cycle(cy.Tick())
        self._later(10, self._tick)

    def _cycle(self, event: cy.Event) -> None:
        for instruction in self.cycle.handle(event, self.world.now_ns):
            match instruction:
                case cy.StoreBucket():
                    self._store(instruction.bucket)
                case cy.RequestForecast():
                    self._later(2.0, lambda request=instruction: self._forecast(request))
                case cy.SendPlan():
                    self.world.record("plan", instruction.plan)
                    self._gateway(gw.PlanReady(instruction.plan))
                case cy.StoreOutcomes():
                    for outcome in instruction.outcomes:
                        self.outcomes[instruction.host_id, outcome.step.id, outcome.state] = outcome
                case cy.StoreHost():
                    if instruction.hello is not None:
                        self.known_hosts[instruction.host_id] = instruction.hello.capacity
                    if instruction.inventory is not None:
                        self.known_domains.update({d.vm_id: (instruction.host_id, d) for d in instruction.inventory.domains})
                case cy.RequestPlacement():
                    if self.world.settings.place:
                        placements = solve_sharded(instruction.hosts, instruction.forecast, self.world.settings.seed, 30.0)
                        self._cycle(cy.PlacementReady(placements=placements))
                case cy.StoreForecast():
                    self.forecasts.append(instruction.forecast)
                case cy.StoreReceipts():
                    self.world.record("receipts", [receipt.id for receipt in instruction.receipts])

    def _forecast(self, request: cy.RequestForecast) -> None:
        every = self.world.settings.retrain_every_cycles
        forecast = self.pool.forecast_now(request.bucket, request.capacity)
        self.world.record("forecast", hashlib.sha256(forecast.quantiles.tobytes()).digest())
        self._cycle(cy.ForecastReady(bucket=request.bucket, forecast=forecast))
        del every

    def _store(self, bucket: BucketBlock) -> None:
        """The history's rule: of two versions of a bucket, the one that holds more samples of a VM stays."""
        self.world.record("bucket", bucket.start_s, bucket.vm_ids, bucket.samples.tolist(), bucket.mean.tobytes())
        known = self.buckets.get(bucket.start_s)
        self.buckets[bucket.start_s] = bucket if known is None else _merged(known, bucket)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        incarnation = self.incarnation
        self.world.after(seconds, lambda: call() if self.incarnation == incarnation and self.alive else None)


def _joined(blocks: Sequence[HistoryBlock]) -> HistoryBlock:
    """Histories of several hosts as one block."""
    arrays = {name: np.concatenate([getattr(b, name) for b in blocks]) for name in ("mean", "peak", "censored", "capacity")}
    return replace(blocks[0], vm_ids=tuple(vm_id for b in blocks for vm_id in b.vm_ids), **arrays)


def _merged(known: BucketBlock, newer: BucketBlock) -> BucketBlock:
    """VM by VM the version with more samples, the newer one where they are equal."""
    rows: dict[str, tuple[BucketBlock, int]] = {vm_id: (known, i) for i, vm_id in enumerate(known.vm_ids)}
    for i, vm_id in enumerate(newer.vm_ids):
        if vm_id not in rows or newer.samples[i] >= rows[vm_id][0].samples[rows[vm_id][1]]:
            rows[vm_id] = (newer, i)
    order = sorted(rows)
    picked = [rows[vm_id] for vm_id in order]
    arrays = {
        name: np.array([getattr(b, name)[i] for b, i in picked]) for name in ("mean", "peak", "usage", "censored", "allocation", "samples")
    }
    return replace(newer, vm_ids=tuple(order), host_ids=tuple(b.host_ids[i] for b, i in picked), **arrays)
