"""The coordinator process of the simulated world and its disk (log of frames, buckets, registry).

Gateway core, decision cycle and forecaster are production code. What was not synced is lost at a kill; the rest is read again at the
start. The log is cut some closed buckets behind (Settings.log_buckets).
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bench.world_checks import check_coordinator
from bench.world_history import extended, joined, merged
from bench.world_wire import Wire
from coordinator import cycle as cy
from coordinator.compute.local_pool import LocalPool
from coordinator.cycle import DecisionCycle
from coordinator.executing import Execution, StoreDocument, StoreMigration, SwitchPower
from coordinator.forecast.challengers import MOST_STEPS, Turn
from coordinator.forecast.events.model import Occurrences
from coordinator.gateway import sessions as gw
from coordinator.migration_plan import MigrationPlan
from coordinator.model import N_RESOURCES, BucketBlock, ForecastBlock, HistoryBlock, Receipt
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from coordinator.placement.solve import place_fleet
from coordinator.planning.adjust import Adjustment
from coordinator.planning.sleep import PowerOrder, PowerTold
from shared.errors import Refusal
from shared.frame import decode_agent, decode_block
from shared.messages import Samples
from shared.model import Domain, HostCapacity, Mode
from shared.plan import Outcome, Plan, Step, StepKind
from shared.units import BUCKET_S, GIB, HORIZON_STEPS, NS_PER_S

if TYPE_CHECKING:
    from bench.world import World
    from bench.world_agent import AgentNode

TICK_S = 10.0
FORECAST_TAKES_S = 2.0
SYNC_TAKES_S = (0.01, 1.0)


class CoordinatorNode:
    """One coordinator process and its disk."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.alive = False
        self.incarnation = 0
        self.epoch = 0
        self.log: list[tuple[int, str, bytes]] = []  # synced and not yet cut off: token, host, frame
        self.ever: dict[tuple[str, int], bytes] = {}  # everything ever synced, by host and sequence
        self.high_water: dict[tuple[str, str], int] = {}
        self.buckets: dict[int, BucketBlock] = {}
        self.outcomes: dict[tuple[str, str, str], Outcome] = {}
        self.known_hosts: dict[str, HostCapacity] = {}
        self.known_domains: dict[str, tuple[str, Domain]] = {}
        self.modes: dict[str, Mode] = {}
        self.forecasts: list[ForecastBlock] = []
        self.receipts: list[Receipt] = []
        self.plans: dict[str, list[Plan]] = {}
        self.migrations: dict[str, MigrationPlan] = {}
        self.documents: dict[str, str] = {}
        self._broken_wakes = world.weather.broken_wakes
        self.heard_ns: dict[str, int] = {}  # since this start
        self._token = 0
        self._unsynced: list[tuple[str, str, int, bytes]] = []
        self._wires: dict[int, Wire] = {}
        self._host_of: dict[int, str] = {}
        self._next_conn = 1

    def start(self) -> None:
        """The process starts: state from its disk only."""
        settings, now_ns = self.world.settings, self.world.now_ns
        self.alive, self.epoch = True, self.epoch + 1
        self.incarnation += 1
        self.heard_ns.clear()
        self._marks: deque[int] = deque(maxlen=settings.log_buckets)
        gateway = gw.GatewaySettings(epoch=self.epoch, stale_host_s=settings.cycle.stale_host_s)
        self.gateway = gw.GatewayCore(gateway, acked=self.high_water, modes=self.modes)
        switchable = {agent.host_id: None for agent in self.world.agents} if settings.switchable else {}
        execution = Execution(settings.execution, switchable)
        newest = max(self.buckets, default=None)
        self.cycle = DecisionCycle(
            settings.cycle, settings.sizing, self.epoch, newest, execution, objectives=settings.objectives, sizer=settings.sizer
        )
        self.cycle.fleet.restore(list(self.known_hosts.items()), self.known_domains)
        newest = max(self.migrations.values(), key=lambda plan: plan.created_ns, default=None)
        outcomes = list(self.outcomes.values())
        self.cycle.recall(self.documents, [(host_id, outcome) for (host_id, _, _), outcome in self.outcomes.items()], now_ns)
        self._carry_out(self.cycle.resume_migration(execution.restore(newest, self.documents, outcomes, now_ns), now_ns))
        for _, host_id, frame in self.log:
            message = decode_agent(frame)
            if isinstance(message, Samples):
                self.cycle.handle(cy.SamplesArrived(host_id=host_id, samples=decode_block(message.block), again=True), now_ns)
        self.pool = LocalPool(settings.forecast)
        self.pool.announce_now(Occurrences.none(), self.cycle.labels())
        history = self._remembered()
        if history is not None:
            self.pool.load_now(history)
            self.cycle.load_aggregates(history, self.cycle.memberships())
            if settings.retrain_every_cycles:
                self.pool.retrain_now(history)
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
        self._host_of[wire.conn_id] = agent.host_id
        self._gateway(gw.Connected(wire.conn_id, agent.host_id))
        return wire

    def received(self, conn_id: int, frame: bytes) -> None:
        """A frame from an agent."""
        if self.alive and conn_id in self._wires:
            self.heard_ns[self._host_of[conn_id]] = self.world.now_ns
            self._gateway(gw.Received(conn_id, frame))

    def recently_heard(self, host_id: str) -> bool:
        """Whether a frame of the host came in, since this start, within the time after which a host is silent (and a tick or two)."""
        limit_s = self.world.settings.cycle.stale_host_s + 2 * TICK_S
        return self.world.now_ns - self.heard_ns.get(host_id, -(10**18)) <= limit_s * NS_PER_S

    def disconnected(self, conn_id: int, incarnation: int) -> None:
        """The transport told us that it is gone."""
        if self.alive and incarnation == self.incarnation and self._wires.pop(conn_id, None) is not None:
            self._gateway(gw.Disconnected(conn_id))

    def fill_log(self) -> None:
        """The log's disk has no room for a while."""
        if self.alive:
            self.world.count("full_log")
            self._gateway(gw.StoreFull(True))
            self._later(self.world.random.uniform(*self.world.settings.weather.down_s), lambda: self._gateway(gw.StoreFull(False)))

    def heal(self) -> None:
        """Fair weather from now on."""
        if self.alive:
            self._gateway(gw.StoreFull(False))

    def order_mode(self) -> None:
        """The API sets some host's mode."""
        if self.alive:
            self.world.count("mode_order")
            host_id, mode = self.world.random.choice(self.world.agents).host_id, self.world.random.choice(list(Mode))
            self.modes[host_id] = mode
            self._gateway(gw.ModeOrdered(host_id, mode))

    def adjust(self) -> None:
        """An operator orders something, sensible or not, for some VM."""
        random = self.world.random
        spec = random.choice(random.choice(self.world.agents).file.vms)
        memory, quota = spec.initial.memory_bytes or GIB, spec.initial.cpu_quota_millicores or 1000
        orders = (
            Adjustment(vcpus=random.choice([1, 2, spec.vcpus_max, spec.vcpus_max + 1])),
            Adjustment(memory_bytes=random.choice([spec.memory_max_bytes + GIB, int(memory * random.uniform(0.8, 1.2))])),
            Adjustment(cpu_quota_millicores=random.choice([-1, int(quota * random.uniform(0.5, 1.5))])),
        )
        request = random.choice(orders)
        if not self.alive:
            return
        try:
            _, instructions = self.cycle.adjust(spec.vm_id, request, self.world.now_ns, dry_run=False)
        except Refusal as refusal:
            self.world.count("adjust_refused")
            self.world.record("adjust", spec.vm_id, request, refusal.code)
        else:
            self.world.count("adjust")
            self._carry_out(instructions)

    def go_mad(self) -> None:
        """Send some host a plan of absurd values, numbered like a sane one."""
        random = self.world.random
        host = random.choice(self.world.agents)
        if not self.alive or not self.recently_heard(host.host_id):
            return
        self.world.count("mad_plan")
        record = self.cycle.fleet.host(host.host_id)
        record.plan_sequence += 1
        deadline_ns = self.world.now_ns + 600 * NS_PER_S
        steps = tuple(
            Step(
                id=f"mad-{self.epoch}-{record.plan_sequence}-{i}-{kind}",
                vm_id=spec.vm_id,
                kind=kind,
                value=random.choice([-1, 1, 2**40, random.randint(1, 10**10)]),
                deadline_ns=deadline_ns,
            )
            for i, spec in enumerate(host.file.vms)
            for kind in StepKind
        )
        plan = Plan(
            host_id=host.host_id,
            epoch=self.epoch,
            sequence=record.plan_sequence,
            issued_ns=self.world.now_ns,
            deadline_ns=deadline_ns,
            steps=steps,
        )
        self._send_plan(plan)

    def _gateway(self, event: gw.Event) -> None:
        for instruction in self.gateway.handle(event, self.world.now_ns):
            match instruction:
                case gw.AppendWal():
                    if not self._unsynced:
                        self._later(self.world.random.uniform(*SYNC_TAKES_S), self._sync)
                    self._unsynced.append((instruction.host_id, instruction.boot_id, instruction.sequence, instruction.frame))
                case gw.Deliver():
                    self._deliver(instruction)
                case gw.Reply():
                    if (wire := self._wires.get(instruction.conn_id)) is not None:
                        wire.to_agent(instruction.frame)
                case gw.Close():
                    if (wire := self._wires.pop(instruction.conn_id, None)) is not None:
                        wire.close()
                case gw.HostDown():
                    self._cycle(cy.HostLost(host_id=instruction.host_id, why=instruction.reason))
                case gw.HostUp():
                    pass  # the cycle learns it from the Hello or the Status that follows
                case gw.PlanUnsent():
                    self._cycle(cy.PlanUnsent(plan=instruction.plan))

    def _deliver(self, instruction: gw.Deliver) -> None:
        message = instruction.message
        if isinstance(message, Samples):
            self._cycle(cy.SamplesArrived(host_id=instruction.host_id, samples=instruction.samples))
        else:
            self._cycle(cy.AgentSaid(host_id=instruction.host_id, message=message))

    def _sync(self) -> None:
        upto: dict[tuple[str, str], int] = {}
        for host_id, boot_id, sequence, frame in self._unsynced:
            if (host_id, sequence) in self.ever:
                self.world.violated(f"{host_id}: frame {sequence} logged twice")
            self.ever[host_id, sequence] = frame
            self.log.append((self._token, host_id, frame))
            self._token += 1
            upto[host_id, boot_id] = self.high_water[host_id, boot_id] = sequence
        self._unsynced.clear()
        self._gateway(gw.Durable(upto))

    def _tick(self) -> None:
        self._gateway(gw.Tick())
        self._cycle(cy.Tick())
        check_coordinator(self)
        self._later(TICK_S, self._tick)

    def _cycle(self, event: cy.Event) -> None:
        self._carry_out(self.cycle.handle(event, self.world.now_ns))

    def _carry_out(self, instructions: Sequence[cy.Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case cy.StoreBucket():
                    self._store(instruction)
                case cy.RequestForecast():
                    self._later(FORECAST_TAKES_S, partial(self._forecast, instruction))
                case cy.SendPlan():
                    self._send_plan(instruction.plan)
                case cy.StoreOutcomes():
                    for outcome in instruction.outcomes:
                        self.outcomes[instruction.host_id, outcome.step.id, outcome.state] = outcome
                case cy.StoreHost():
                    if instruction.hello is not None:
                        self.known_hosts[instruction.host_id] = instruction.hello.capacity
                    if instruction.inventory is not None:
                        self.known_domains.update({d.vm_id: (instruction.host_id, d) for d in instruction.inventory.domains})
                case StoreMigration():
                    self.migrations[instruction.plan.id] = instruction.plan
                    self.world.record("migration_plan", instruction.plan)
                case StoreDocument():
                    self.documents[instruction.name] = instruction.text
                case SwitchPower():
                    self._switch(instruction.order)
                case cy.RequestPlacement():
                    asked = PlacementRequest(
                        hosts=instruction.hosts,
                        forecast=instruction.forecast,
                        together=instruction.together,
                        asleep=instruction.asleep,
                        forbidden=instruction.forbidden,
                        cooling=instruction.cooling,
                        seed=self.world.settings.seed,
                        deadline_s=30.0,
                    )
                    if self.world.settings.placer is not None:
                        self._cycle(cy.PlacementReady(placed=self.world.settings.placer(asked)))
                    elif self.world.settings.place:
                        self._cycle(cy.PlacementReady(placed=place_fleet(asked)))
                case cy.RequestRetrain():
                    self.world.count("drift")
                    if self.world.settings.retrain_every_cycles and (known := self._remembered()) is not None:
                        self.pool.retrain_now(known)
                case cy.StoreForecast():
                    self.forecasts.append(instruction.forecast)
                case cy.StoreReceipts():
                    self.receipts += instruction.receipts
                    self.world.record("receipts", [(r.id, r.shadow, r.steps, r.refused) for r in instruction.receipts])

    def _switch(self, order: PowerOrder) -> None:
        node = next(agent for agent in self.world.agents if agent.host_id == order.host_id)
        self.world.count("power_wake" if order.wake else "power_sleep")
        self.world.record("power", order.host_id, order.wake)
        if order.wake and self._broken_wakes:
            self._broken_wakes -= 1
        else:
            self.world.moves.switch(node, wake=order.wake)
        self._later(1.0, lambda: self._cycle(PowerTold(host_id=order.host_id, wake=order.wake)))

    def _send_plan(self, plan: Plan) -> None:
        if not self.recently_heard(plan.host_id):
            self.world.violated(f"{plan.host_id}: plan {plan.epoch}.{plan.sequence} for a silent host")
        self.world.record("plan", plan)
        self.world.count("plan")
        self.plans.setdefault(plan.host_id, []).append(plan)
        self._gateway(gw.PlanReady(plan))

    def _forecast(self, request: cy.RequestForecast) -> None:
        forecast = self.pool.forecast_now(request.bucket, request.capacity)
        if (foresee := self.world.settings.foresee) is not None:
            forecast = foresee(forecast)
        self.world.record("forecast", hashlib.sha256(forecast.quantiles.tobytes()).digest())
        self._cycle(cy.ForecastReady(bucket=request.bucket, forecast=forecast))
        every = self.world.settings.challenge_every_cycles
        if every and self.cycle.cycles % every == 1 % every:
            self._challenge(every)

    def _challenge(self, every: int) -> None:
        """A turn of the challengers about every series; no clock of this machine cuts it short, or two runs would differ."""
        known = self._remembered()
        if known is None:
            return
        chosen = {name: np.arange(len(known.vm_ids) * N_RESOURCES) for name in self.world.settings.forecast.challengers}
        reports = self.pool.challenge_now(known, Turn(chosen=chosen, steps=min(MOST_STEPS, every + HORIZON_STEPS), budget_s=float("inf")))
        self.world.count("challenge")
        self.world.record("challenge", [(report.name, report.answered) for report in reports])

    def _store(self, instruction: cy.StoreBucket) -> None:
        """The history's rule: of two versions of a bucket, the one that holds more samples of a VM stays."""
        bucket = instruction.bucket
        self.world.record("bucket", bucket.start_s, bucket.vm_ids, bucket.samples.tolist(), bucket.mean.tobytes())
        known = self.buckets.get(bucket.start_s)
        self.buckets[bucket.start_s] = bucket if known is None else merged(known, bucket)
        if instruction.late:
            self.world.count("late_bucket")
        else:
            self._marks.append(self._token)
        if len(self._marks) == self._marks.maxlen:
            self.log = [entry for entry in self.log if entry[0] >= self._marks[0]]

    def _remembered(self) -> HistoryBlock | None:
        """What was known before the start and the buckets stored since, as the history gives them; None = nothing yet."""
        known = self.world.settings.history
        if not known and not self.buckets:
            return None
        newest = max(self.buckets, default=0)
        if known:
            base = joined(known)
        else:
            vm_ids = tuple(sorted(self.known_domains))
            nothing = np.full((len(vm_ids), 5, 0), np.nan, dtype=np.float32)
            base = HistoryBlock(
                vm_ids=vm_ids, end_s=min(self.buckets) - BUCKET_S, mean=nothing, peak=nothing, censored=nothing, capacity=nothing[:, :, 0:0]
            )
            base = self.cycle.fleet.with_capacity(base)
        starts = range(base.end_s + BUCKET_S, newest + BUCKET_S, BUCKET_S)
        return base if not starts else extended(base, [self.buckets.get(start_s) for start_s in starts])

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        incarnation = self.incarnation
        self.world.after(seconds, lambda: call() if self.incarnation == incarnation and self.alive else None)
