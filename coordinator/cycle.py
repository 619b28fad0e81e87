"""The decision cycle, sans-I/O: events in, instructions out; no clock, sockets, disks, Ray or randomness.

One turn of the ring: samples fill a 5-minute bucket → the bucket closes (demand) → forecast is asked for → sizes → plans with
receipts → agents act and report → errors, SLA and outcomes are learned. The driver (coordinator/main, or the simulation)
carries out the instructions and feeds the results back as events. Same events, same instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import msgspec
import numpy as np

from coordinator.cycle_events import (
    AgentSaid,
    Event,
    ForecastReady,
    Held,
    HostLost,
    Instruction,
    MergeMinutes,
    PlacementReady,
    PlanUnsent,
    RequestForecast,
    RequestPlacement,
    RequestRetrain,
    SamplesArrived,
    SendPlan,
    StoreBucket,
    StoreForecast,
    StoreHost,
    StoreMinutes,
    StoreOutcomes,
    StoreReceipts,
    StoreRelocations,
    StoreSignals,
    Tick,
)
from coordinator.demand.buckets import BucketFolder
from coordinator.demand.signals import SignalCounts, SignalFolder, SignalReading
from coordinator.executing import Execution, ExecutionPolicy, Order, SendSteps, StoreDocument, StoreMigration, SwitchPower
from coordinator.fleet import Fleet
from coordinator.forecast.aggregate import AggregateForecast, Aggregator, Membership
from coordinator.forecast.aggregate.answer import sums_of
from coordinator.forecast.events.model import Labels
from coordinator.forecast.outlook import join_outlooks
from coordinator.learning.compliance import ComplianceBook, LateMinutes
from coordinator.learning.compliance_hours import Owner
from coordinator.learning.default_slas import DEFAULT_SLAS, SlaSource
from coordinator.learning.ledger import Ledger
from coordinator.learning.trust import CalibrationWatch
from coordinator.model import BucketBlock, ForecastBlock, HistoryBlock, HostState, Outlook, VmSize
from coordinator.placement.explain.plan import Placed
from coordinator.planning.adjust import Adjustment, adjust
from coordinator.planning.lift import lifts, stands_at_budget
from coordinator.planning.plan import MAX_STEPS, plan_host
from coordinator.planning.sleep import PowerTold
from coordinator.planning.waves import Aborted, Approved
from coordinator.sizing.draft import Evidence
from coordinator.sizing.feasible import Objectives
from coordinator.sizing.foresight import NOTHING_KEPT, Foresight, look_at_fleet
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.size import MARGIN_UNKNOWN, size_host
from coordinator.sizing.weigh import Terms
from shared.config import CycleConfig
from shared.errors import Refusal
from shared.messages import Hello, Inventory, Outcomes, Status
from shared.model import Mode
from shared.plan import Outcome, Plan, StepKind
from shared.refusal import RefusalCode
from shared.units import BUCKET_S, NS_PER_S

__all__ = [
    "AgentSaid",
    "DecisionCycle",
    "Event",
    "ForecastReady",
    "Held",
    "HostLost",
    "Instruction",
    "MergeMinutes",
    "PlacementReady",
    "PlanUnsent",
    "PowerTold",
    "RequestForecast",
    "RequestPlacement",
    "RequestRetrain",
    "SamplesArrived",
    "SendPlan",
    "Sizer",
    "StoreBucket",
    "StoreDocument",
    "StoreForecast",
    "StoreHost",
    "StoreMigration",
    "StoreMinutes",
    "StoreOutcomes",
    "StoreReceipts",
    "StoreRelocations",
    "StoreSignals",
    "SwitchPower",
    "Tick",
]


PART_HOSTS: Final = 4  # decided at a time: some 25 ms

# What decides the sizes of one host, called as size_host. The product has one; bench/league puts others in its place.
Sizer = Callable[..., tuple[tuple[VmSize, ...], Evidence]]


class DecisionCycle:
    """State of the whole coordinator between events. `epoch` grows with every start of a coordinator."""

    def __init__(
        self,
        config: CycleConfig,
        sizing: SizingPolicy,
        epoch: int,
        closed_until_s: int | None = None,
        execution: Execution | None = None,
        *,
        objectives: Objectives | None = None,
        slas: SlaSource = DEFAULT_SLAS,
        sizer: Sizer = size_host,
    ) -> None:
        self.config = config
        self.epoch = epoch
        self.fleet = Fleet()
        self.objectives = objectives or Objectives()
        self.ledger = Ledger(self.objectives)
        self.compliance = ComplianceBook(slas)
        self.pool_of: Callable[[str], str] = lambda _host_id: ""  # pool of hosts that stand in for each other
        self.foresight: Foresight | None = None
        self.forecast: ForecastBlock | None = None
        self.outlook: Outlook | None = None  # the newest; the forecast brings one twice an hour
        self.aggregator = Aggregator() if config.aggregates else None
        self.aggregates: AggregateForecast | None = None
        self.bucket: BucketBlock | None = None
        self.placed: Placed | None = None
        self.execution = execution or Execution(ExecutionPolicy())
        self.signals = SignalFolder()
        self.cycles = 0
        self.held = ""  # why nothing is decided: it could not be stored; samples, outcomes and forecasts are taken in all the same
        self._sizing = sizing
        self._sizer = sizer
        self._folder = BucketFolder(closed_until_s)
        self._evidence: Evidence = {}
        self._burn_rate: dict[str, float] = {}
        self._tightness = {client: self.objectives.tightness(client) for client in self.objectives.clients}
        self._calibration = CalibrationWatch()

    @property
    def margin_z(self) -> float:
        """Deviations of a host's sum that count as its load."""
        return self._sizing.margin_z

    def set_objectives(self, objectives: Objectives) -> None:
        """Other error budgets from now on, over the same period: what clients have used up of it stays used."""
        self.objectives = self.ledger.budgets.objectives = objectives
        self._tightness = {client: objectives.tightness(client) for client in objectives.clients}

    def memberships(self) -> dict[str, Membership]:
        """The groups of every known VM."""
        return {
            vm_id: Membership(app=vm.domain.policy.application, client=vm.domain.policy.client, host=vm.host_id)
            for vm_id, vm in self.fleet.vms.items()
        }

    def labels(self) -> dict[str, Labels]:
        """Client and application of every known VM: for events, for new VMs (forecast after their kind), for the global model."""
        policies = {vm_id: vm.domain.policy for vm_id, vm in self.fleet.vms.items()}
        return {vm_id: Labels(client=policy.client, app=policy.application) for vm_id, policy in policies.items()}

    def load_aggregates(self, history: HistoryBlock, groups: Mapping[str, Membership]) -> None:
        """Give the sums their past, before the first ForecastReady. Touches nothing else, so another thread may do it (seconds)."""
        # without a reading the history's end is just a moment, and a spool may bring buckets from before it
        if self.aggregator is not None and np.isfinite(history.mean).any():
            self.aggregator.load(history, groups)

    def recall(self, documents: Mapping[str, str], outcomes: Iterable[tuple[str, Outcome]], now_ns: int) -> None:
        """After a restart, before the log is replayed: error budgets, and of (host, outcome), oldest first, lead times and turns."""
        self.ledger.budgets.restore(documents, now_ns // NS_PER_S)
        for host_id, outcome in outcomes:
            self.ledger.recall(host_id, outcome)
            self.fleet.outcome(outcome)

    def handle(self, event: Event, now_ns: int) -> list[Instruction]:
        """One event. Never raises for what a peer sent; a bug raises."""
        match event:
            case SamplesArrived():
                return self._samples(event, now_ns)
            case AgentSaid():
                return self._said(event, now_ns)
            case Tick():
                return self._tick(now_ns)
            case ForecastReady():
                return [instruction for part in self.decide(event, now_ns) for instruction in part]
            case HostLost():
                self.fleet.lost(event.host_id, event.why)
                return []
            case PlanUnsent():
                return self._execute(self.execution.unsent(event.plan, now_ns), now_ns)
            case PlacementReady():
                return self._placed(event, now_ns)
            case Held():
                self.held = event.why
                return []
            case PowerTold():
                return self._execute(self.execution.power_told(event, now_ns), now_ns)

    def tell(self, readings: Sequence[SignalReading]) -> SignalCounts:
        """What applications measured; times as `signals.span_s` allows, or of any bucket that history does not hold yet."""
        counts = [self.signals.tell(reading) for reading in readings]
        return SignalCounts(taken=sum(c.taken for c in counts), replaced=sum(c.replaced for c in counts), late=sum(c.late for c in counts))

    def adjust(self, vm_id: str, request: Adjustment, now_ns: int, dry_run: bool) -> tuple[Plan, list[Instruction]]:
        """An operator's order for one VM. Raises Refusal, also while nothing can be stored; a dry run gives the plan alone."""
        vm = self.fleet.vms.get(vm_id)
        if vm is None:
            raise Refusal(RefusalCode.UNKNOWN_VM, f"vm {vm_id!r}: not in this fleet")
        host = next(iter(self.fleet.view(self.bucket, now_ns, vm.host_id)), None)
        if host is None or not host.alive:
            raise Refusal(RefusalCode.HOST_UNKNOWN_STATE, f"host {vm.host_id!r} is silent: nothing is changed on it")
        if not host.mode.acts:
            raise Refusal(RefusalCode.MODE_FORBIDS, f"host {vm.host_id!r} is in mode {host.mode}: allowed in reactive and predictive")
        state = next(v for v in host.vms if v.domain.vm_id == vm_id)
        record = self.fleet.host(vm.host_id)
        sequence = record.plan_sequence + 1
        plan = adjust(state, host, request, epoch=self.epoch, sequence=sequence, now_ns=now_ns, deadline_s=self.config.plan_deadline_s)
        if dry_run:
            return plan, []
        self._must_store()
        return plan, [self._sent(plan)]

    def order_migration(self, event: Approved | Aborted, now_ns: int) -> list[Instruction]:
        """An operator's word on the newest migration plan. Refusal: it could not be stored now."""
        self._must_store()
        return self._execute(self.execution.order(event, now_ns), now_ns)

    def resume_migration(self, orders: Sequence[Order], now_ns: int) -> list[Instruction]:
        """What Execution.restore asked for, after a restart."""
        return self._execute(orders, now_ns)

    def _must_store(self) -> None:
        if self.held:
            raise Refusal(RefusalCode.STORE_UNAVAILABLE, f"nothing was changed: {self.held}")

    def _samples(self, event: SamplesArrived, now_ns: int) -> list[Instruction]:
        mode = self.fleet.host(event.host_id).mode
        for sample in event.samples:
            self._folder.add(event.host_id, sample)
            self.fleet.sample(event.host_id, sample, now_ns)
            self.ledger.sample(event.host_id, mode, sample, event.again)
        return []

    def _said(self, event: AgentSaid, now_ns: int) -> list[Instruction]:
        host_id, message = event.host_id, event.message
        match message:
            case Hello():
                self.fleet.hello(host_id, message, now_ns)
                return [StoreHost(host_id=host_id, hello=message)]
            case Inventory():
                self.fleet.inventory(host_id, message)
                moved = self.fleet.relocations(now_ns)
                first: list[Instruction] = [StoreRelocations(relocations=moved)] if moved else []
                return [*first, StoreHost(host_id=host_id, inventory=message)]
            case Status():
                was = self.fleet.host(host_id).mode
                self.fleet.status(host_id, message, now_ns)
                turned = message.mode is Mode.PREDICTIVE and was is not Mode.PREDICTIVE
                return self._plan_at_once(host_id, now_ns) if turned else []
            case Outcomes():
                record, orders = self.fleet.host(host_id), []
                for outcome in message.outcomes:
                    self.fleet.outcome(outcome)
                    record.open_steps.pop(outcome.step.id, None)
                    self.ledger.outcome(host_id, record.mode, outcome)
                    orders += self.execution.told(outcome, now_ns)
                orders += self._lifted(host_id, message.outcomes, now_ns)
                return [StoreOutcomes(host_id=host_id, outcomes=message.outcomes), *self._execute(orders, now_ns)]

    def _lifted(self, host_id: str, outcomes: Sequence[Outcome], now_ns: int) -> list[SendSteps]:
        """VMs of a predictive host that stand at its growth budget grow by a plan of their own, at once."""
        record = self.fleet.host(host_id)
        refused = [outcome for outcome in outcomes if stands_at_budget(outcome, now_ns)]
        if self.held or not refused or not record.alive or record.mode is not Mode.PREDICTIVE:
            return []
        deadline_ns = now_ns + self.config.plan_deadline_s * NS_PER_S
        name = f"{self.epoch}-{record.plan_sequence + 1}-lift"
        hosts = self.fleet.view(self.bucket, now_ns, host_id)
        steps = [step for host in hosts for step in lifts(host, refused, self._sizing, name=name, deadline_ns=deadline_ns)]
        return [SendSteps(host_id=host_id, steps=tuple(steps))] if steps else []

    def _tick(self, now_ns: int) -> list[Instruction]:
        instructions: list[Instruction] = []
        ripe_s = now_ns // NS_PER_S - BUCKET_S - self.config.bucket_grace_s
        for start_s in sorted(s for s in self._folder.open_starts() if s <= ripe_s):
            bucket = self._close(start_s)
            self.fleet.close_bucket(bucket)
            self.bucket = bucket
            modes = {host_id: record.mode for host_id, record in self.fleet.hosts.items()}
            clients = {vm_id: vm.domain.policy.client for vm_id, vm in self.fleet.vms.items()}
            apps = {vm_id: vm.domain.policy.application for vm_id, vm in self.fleet.vms.items()}
            wanted = self.ledger.bucket(bucket, modes, clients, apps, now_ns)
            self._calibration.bucket(bucket)
            instructions.append(StoreBucket(bucket=bucket))
            hours = self.compliance.close(start_s, self._folder.minutes(start_s), self.owners())
            instructions.append(StoreMinutes(hours=tuple(hours)))
            if (document := self.ledger.budgets.document()) is not None:
                instructions.append(StoreDocument(name=document[0], text=document[1]))
            if wanted is not None:
                instructions.append(RequestRetrain(reason=wanted.reason, since_s=wanted.since_s, resources=wanted.resources))
            known = self.fleet.capacity_of(bucket.vm_ids)
            if known:
                rows = [i for i, vm_id in enumerate(bucket.vm_ids) if vm_id in known]
                instructions.append(RequestForecast(bucket=bucket.select(rows), capacity=known))
        for start_s in sorted(self._folder.grown_starts()):
            instructions.append(StoreBucket(bucket=self._close(start_s), late=True))
            instructions += self._late_minutes(start_s)
        told = self.signals.close(ripe_s)
        if told is not None:
            instructions.append(StoreSignals(closed_s=self.signals.closed_s, blocks=told))
        return instructions if self.held else instructions + self._execute(self.execution.look(self.fleet, now_ns), now_ns)

    def owners(self) -> dict[str, Owner]:
        """Whose every running VM is."""
        running = {vm_id: vm.domain.policy for vm_id, vm in self.fleet.vms.items() if vm.domain.running}
        return {vm_id: Owner(client=p.client, application=p.application, priority=p.priority) for vm_id, p in running.items()}

    def _late_minutes(self, start_s: int) -> list[Instruction]:
        block = self._folder.minutes(start_s)
        if block is None:
            return []
        grown = self.compliance.grow(block, self.owners())
        return [MergeMinutes(late=grown) if isinstance(grown, LateMinutes) else StoreMinutes(hours=(grown,))]

    def _close(self, start_s: int) -> BucketBlock:
        bucket = self._folder.close(start_s)
        return replace(bucket, signals=self.signals.means(start_s, bucket.vm_ids))

    def decide(self, event: ForecastReady, now_ns: int) -> Iterator[list[Instruction]]:
        """The same as `handle`, in parts of PART_HOSTS hosts: between two of them the driver lets in what has come meanwhile.

        A host that fell silent, changed its mode, or a store that was lost since the cycle began is left to the next one.
        """
        told = [each for each in (self.outlook, event.forecast.outlook) if each is not None]
        self.outlook = join_outlooks(told)
        late = self.forecast is not None and event.forecast.issued_s <= self.forecast.issued_s
        forecast = event.forecast if late else self._calibration.mark(event.forecast)
        self.ledger.forecast(forecast)
        yield [StoreForecast(forecast=forecast)]
        if late:
            return
        self.forecast = forecast
        self.cycles += 1
        if self.aggregator is not None:
            capacity = self.fleet.capacity_of(event.bucket.vm_ids)
            self.aggregates = self.aggregator.advance(event.bucket, forecast, self.memberships(), capacity)
            yield []
        hosts = self.fleet.view(event.bucket, now_ns)
        yield []
        self._look_ahead(hosts, forecast)
        evidence: Evidence = {}
        for first in range(0, len(hosts), PART_HOSTS):
            yield []
            part: list[Instruction] = []
            for host in hosts[first : first + PART_HOSTS]:
                record = self.fleet.host(host.host_id)
                if not self.held and host.alive and record.alive and host.mode is record.mode and host.mode is not Mode.OFF:
                    part += self._plan(host, forecast, evidence, now_ns)
            yield part
        if self.held:
            return
        self._evidence = evidence
        due = self.cycles % self.config.place_every_cycles == 1 or self.config.place_every_cycles == 1
        if due or (self.execution.replan and not self.execution.running):
            self.execution.replan = ""
            forbidden, cooling = self.execution.forbidden(now_ns), self.execution.cooling(now_ns)
            sums = self.aggregates
            yield [
                RequestPlacement(
                    hosts=hosts,
                    forecast=forecast,
                    forbidden=forbidden,
                    cooling=cooling,
                    asleep=self.execution.asleep,
                    together=() if sums is None else (sums_of(sums, "app"), sums_of(sums, "client")),
                )
            ]

    def _placed(self, event: PlacementReady, now_ns: int) -> list[Instruction]:
        """The hook of execution: what placement answered, for the fleet as it is now."""
        self.placed = event.placed
        if self.forecast is None or self.held:
            return []
        hosts = self.fleet.view(self.bucket, now_ns)
        orders = self.execution.placed(event.placed, hosts, self.forecast, self.fleet, now_ns, self.outlook)
        return self._execute(orders, now_ns)

    def _execute(self, orders: Sequence[Order], now_ns: int) -> list[Instruction]:
        """Orders as instructions: steps go as a plan, which repeats what else is open at its host, for that would be replaced."""
        instructions: list[Instruction] = []
        for order in orders:
            if not isinstance(order, SendSteps):
                instructions.append(order)
                continue
            record = self.fleet.host(order.host_id)
            if not record.alive:
                continue  # nothing to take back that would reach it; a move is sent to hosts that are heard
            sequence, deadline_ns = record.plan_sequence + 1, now_ns + self.config.plan_deadline_s * NS_PER_S
            open_steps = [s for s in record.open_steps.values() if s.kind is not StepKind.MIGRATE and s.deadline_ns > now_ns]
            kept = [msgspec.structs.replace(s, id=f"{self.epoch}-{sequence}-{n}") for n, s in enumerate(open_steps)]
            steps = (*order.steps, *kept)[:MAX_STEPS]
            plan = Plan(host_id=order.host_id, epoch=self.epoch, sequence=sequence, issued_ns=now_ns, deadline_ns=deadline_ns, steps=steps)
            instructions.append(self._sent(plan))
        return instructions

    def _sent(self, plan: Plan) -> SendPlan:
        """Number and remember a plan that goes out."""
        record = self.fleet.host(plan.host_id)
        record.plan_sequence = plan.sequence
        record.open_steps = {step.id: step for step in plan.steps}
        return SendPlan(plan=plan)

    def _look_ahead(self, hosts: tuple[HostState, ...], forecast: ForecastBlock) -> None:
        """What the whole fleet has before it: budgets used up, hosts short, hosts that may fail."""
        clients = {vm_id: vm.domain.policy.client for vm_id, vm in self.fleet.vms.items()}
        self._burn_rate = self.ledger.budgets.burn_rates(clients)
        terms = Terms(policy=self._sizing, burn_rate=self._burn_rate, tightness=self._tightness)
        pools = {host.host_id: self.pool_of(host.host_id) for host in hosts}
        self.foresight = look_at_fleet(hosts, forecast, self.aggregates, terms, objectives=self.objectives, pools=pools)

    def _plan_at_once(self, host_id: str, now_ns: int) -> list[Instruction]:
        """A host that was just turned predictive need not wait for the next cycle: the newest forecast still holds."""
        forecast = self.forecast
        if self.held or forecast is None or now_ns // NS_PER_S >= forecast.issued_s + BUCKET_S:
            return []
        hosts = [host for host in self.fleet.view(self.bucket, now_ns, host_id) if host.alive]
        unused: Evidence = {}  # the same cycle is no further evidence
        return [instruction for host in hosts for instruction in self._plan(host, forecast, unused, now_ns)]

    def _plan(self, host: HostState, forecast: ForecastBlock, evidence: Evidence, now_ns: int) -> list[Instruction]:
        lead_s = self.ledger.lead_times_s(host.host_id)
        foresight = self.foresight
        kept_free = NOTHING_KEPT if foresight is None else foresight.kept_free(host.host_id, self._sizing.spare_hosts)
        sizes, seen = self._sizer(
            host,
            forecast,
            self._sizing,
            self._evidence,
            measured_lead_s=lead_s,
            burn_rate=self._burn_rate,
            tightness=self._tightness,
            kept_free=kept_free,
            margin=MARGIN_UNKNOWN if foresight is None else foresight.margin(host.host_id, self._sizing.margin_z),
        )
        evidence.update(seen)
        record = self.fleet.host(host.host_id)
        plan, receipts = plan_host(
            host,
            sizes,
            forecast,
            policy=self._sizing,
            measured_lead_s=lead_s,
            loads=None if foresight is None else foresight.loads,
            epoch=self.epoch,
            sequence=record.plan_sequence + 1,
            now_ns=now_ns,
            deadline_s=self.config.plan_deadline_s,
            shadow=host.mode is not Mode.PREDICTIVE,
        )
        self.ledger.sized(host, sizes)
        instructions: list[Instruction] = [StoreReceipts(receipts=receipts)] if receipts else []
        if plan is not None and host.mode is Mode.PREDICTIVE:
            instructions.append(self._sent(plan))
        return instructions
