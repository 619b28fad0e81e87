"""Wiring of the coordinator process: gateway, stores, workers, HTTP and timers around the pure decision cycle.

One event loop owns the cycle. Stores' writes run in order in one thread; forecasts, training and placement run in the pool.
A frame is acknowledged when the log has it on disk; the log is cut only behind buckets that history holds. A store that is away or full
is waited for, with decisions held (coordinator/outages.py). Whatever part dies takes the process with it: systemd restarts it, agents fail
static meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog

from coordinator import cycle as cy
from coordinator.agents_door import MIN_REAL_TICK_S, TICK_S, agents_door
from coordinator.alert_picture import PictureOf
from coordinator.alerting import Alerting
from coordinator.announcing import Announcer
from coordinator.calendars import open_calendars
from coordinator.challenge_turns import ChallengeTurns
from coordinator.compliance_turns import ComplianceKeeper
from coordinator.compute import PoolLost, open_pool
from coordinator.cycle import DecisionCycle
from coordinator.cycle_metrics import publish_cycle
from coordinator.demand.signals import SignalCounts, SignalReading
from coordinator.executing import Execution, StoreDocument, StoreMigration, SwitchPower
from coordinator.gateway.plausibility import admitted
from coordinator.history_keeper import HistoryKeeper
from coordinator.http_door import HttpDoor
from coordinator.learning.default_slas import RegisteredSlas
from coordinator.learning.retraining import RetrainSchedule
from coordinator.live_view import LiveView
from coordinator.model import HistoryBlock
from coordinator.moving import MoveKeeper
from coordinator.outages import Outages
from coordinator.placement.explain.plan import Placed
from coordinator.placement.fleet.site import Site
from coordinator.placement_turns import PlacementTurns
from coordinator.power import open_power
from coordinator.registered_calendars import RegisteredCalendars
from coordinator.settings import default_slas, execution_policy, forecast_options, objectives, sizing_policy
from coordinator.store.alerts import AlertStore
from coordinator.store.compliance_store import ComplianceStore
from coordinator.store.database import registry_url
from coordinator.store.history import ParquetHistory
from coordinator.store.registry import SqlRegistry
from coordinator.store.signal_log import SignalLog
from coordinator.store.tenancy import TenancyStore
from coordinator.store.wal import Wal
from coordinator.tenancy_desk import TenancyDesk
from coordinator.tracing import open_tracing
from shared.config import CoordinatorConfig
from shared.errors import ConfigError
from shared.frame import decode_agent, decode_block
from shared.messages import AgentMessage, Hello, Inventory, Outcomes, Samples, Status
from shared.metrics import COORDINATOR_METRICS, Metrics, Rising
from shared.model import HostSample
from shared.notify import notify
from shared.plan import Plan
from shared.units import BUCKET_S, NS_PER_S

PRUNE_CYCLES: Final = 12  # an hour of 10,000 VMs are 120,000 receipts, gone in a second; a day of them would hold up all that is written
STOP_STORE_S: Final = 10.0  # how long the last writes may take when the process stops
ANNOUNCE_S: Final = 60.0  # of the coordinator's clock, from one look at the calendars to the next

_T = TypeVar("_T")
log = structlog.get_logger("coordinator")


class Coordinator:
    """One coordinator. `start`, then `wait` until something fails or `stop` is called."""

    def __init__(self, config: CoordinatorConfig) -> None:
        if not config.tls:
            raise ConfigError("tls: ca, certificate and key are required; `tidegate pki` makes them")
        state = Path(config.state_dir)
        state.mkdir(parents=True, exist_ok=True)
        self.config = config
        self.clock = config.clock.open()
        self.registry = SqlRegistry(registry_url(config))
        place = config.history_url or state / "history"
        self.history = ParquetHistory(place, retention_days=config.history_retention_days, max_bytes=config.history_max_bytes)
        self.wal = Wal(state / "wal", max_bytes=config.wal_max_bytes)
        self.signal_log = SignalLog(state / "signals")
        self.metrics = Metrics(COORDINATOR_METRICS)
        self._rising = Rising(self.metrics)
        self._outages = Outages(
            self.metrics,
            hold=lambda why: self._on_event(cy.Held(why=why)),
            refuse_agents=lambda why: self.gateway.refuse(why),  # noqa: PLW0108  # it is made below
            log_trouble=lambda: self.gateway.trouble,
            on_bug=self._fail,
        )
        writes = self._outages.writes
        self.write, self.read, self.look = writes.add, writes.read, writes.look
        epoch = self.registry.next_epoch()
        self._tracing = open_tracing(config.trace_url, epoch)
        execution, asked = Execution(execution_policy(config)), objectives(config.sla)
        sizing, slas = sizing_policy(config.sizing), RegisteredSlas(default_slas(config.sla))
        self.cycle = DecisionCycle(config.cycle, sizing, epoch, self.history.newest_s(), execution, objectives=asked, slas=slas)
        self._moves = MoveKeeper(self.registry, open_power(config.power), self.write, self._on_event, self.metrics)
        self.started_ns = self.clock.wall_ns()
        self.stages: dict[str, float] = {}
        self.cycle_done_ns: int | None = None
        self.placed_ns: int | None = None
        self.options = forecast_options(config)
        self.minutes = ComplianceStore(self.registry.engine)
        self._keeper = HistoryKeeper(
            self.history,
            self.wal,
            self.signal_log,
            self.metrics,
            hold=lambda why: self.gateway.refuse(why, "history"),
            on_bug=self._fail_from_thread,
        )
        self.read_history = self._keeper.read
        self._minutes = ComplianceKeeper(
            self.cycle,
            store=self.minutes,
            past=self.history,
            clock=self.clock,
            write=self.write,
            read=self.read,
            insist=self._keeper.insist,
            metrics=self.metrics,
        )
        self._requests: asyncio.Queue[cy.RequestForecast] = asyncio.Queue()
        self._placing = PlacementTurns(config, self.metrics, self.write)
        self.cycle.pool_of = lambda host_id: self._placing.site.pool_of(host_id).name
        self._retrain_wanted = asyncio.Event()
        self._retraining = RetrainSchedule()
        self._challenges = ChallengeTurns(config, self.cycle, self.metrics)
        calendars = RegisteredCalendars(open_calendars(config), lambda: self.clock.wall_ns() // NS_PER_S)
        self.tenancy = TenancyDesk(
            self, TenancyStore(self.registry.engine), self._placing.site, configured=asked, slas=slas, calendars=calendars
        )
        self._announcer = Announcer(calendars, config.cycle.history_buckets)
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[None] | None = None
        self._loaded = False
        self.gateway = agents_door(
            config,
            self.registry,
            self.wal,
            self.clock,
            epoch=epoch,
            on_message=self._on_message,
            on_samples=self._on_samples,
            on_host=self._on_host,
            on_unsent=lambda plan: self._on_event(cy.PlanUnsent(plan=plan)),
        )
        self.alerting = Alerting(self, AlertStore(self.registry.engine), PictureOf(self, config.alerts.reversals))
        self.tenancy.order = self.gateway.order_policies
        self.view = LiveView(self)
        self._door = HttpDoor(
            config,
            self.view,
            self.registry,
            self.cycle.fleet,
            epoch=epoch,
            read=self.read,
            trouble=lambda: self._outages.why,
            metrics=self.metrics,
        )
        self.http, self._news = self._door.http, self._door.news
        self.alerting.on_change = self._news.alerts

    @property
    def site(self) -> Site:
        """Pools and prices, as placement has them."""
        return self._placing.site

    async def start(self) -> None:
        """Restore state, open both doors, start the workers. ConfigError when an address cannot be had."""
        self._failed = asyncio.get_running_loop().create_future()
        self._restore()
        await self.read(self._minutes.restore)
        try:
            await self.gateway.start()
        except OSError as error:
            raise ConfigError(f"listen_agents: {error}") from error
        await self.http.start()
        self.pool = await asyncio.get_running_loop().run_in_executor(None, open_pool, self.config, self.options)
        await self._announce()
        history = await self._load_history()
        await self.pool.load(history)
        groups = self.cycle.memberships()
        await asyncio.get_running_loop().run_in_executor(None, self.cycle.load_aggregates, history, groups)
        self._loaded = True
        self._retrain_wanted.set()
        loops = (self._tick_loop, self._forecast_loop, self._place_loop, self._retrain_loop, self._challenge_loop, self._announce_loop)
        for loop in (*loops, self._minutes.run, self.alerting.run, self.gateway.failure, self._watch_http):
            self._tasks.append(asyncio.create_task(self._guard(loop()), name=loop.__name__))
        notify("READY=1")
        log.info("ready", agents_port=self.gateway.port, http=self.http.url, epoch=self.cycle.epoch)

    async def wait(self) -> None:
        """Until a part fails; raises what it failed with."""
        assert self._failed is not None, "start() first"
        await asyncio.shield(self._failed)

    async def stop(self) -> None:
        """Close the doors, finish the writes, stop the workers."""
        notify("STOPPING=1")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._moves.close()
        await self.http.stop()
        await self.gateway.stop()
        if hasattr(self, "pool"):
            await self.pool.close()
        left = await self._outages.writes.close(STOP_STORE_S)
        if left:
            log.error("stopped with writes that no store took; what agents were promised is in the log", writes=left)
        if self._tracing is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._tracing.close)
        await asyncio.get_running_loop().run_in_executor(None, self._keeper.close)
        self.wal.close()
        self.signal_log.close()
        self.registry.close()
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(None)

    def ready(self) -> tuple[bool, str]:
        """Whether decisions can be made now."""
        if not self._loaded:
            return False, "loading history into the forecasters"
        if self._failed is not None and self._failed.done():
            return False, "a part of the coordinator has failed"
        if self._outages.why:
            return False, f"decisions are held: {self._outages.why}"
        if self._keeper.trouble:
            return False, self._keeper.trouble
        return True, "ready"

    def carry_out(self, instructions: list[cy.Instruction]) -> None:
        """Perform instructions in order; slow ones are queued."""
        for instruction in instructions:
            self._news.tell(instruction)
            match instruction:
                case cy.StoreBucket():
                    self._keeper.store_bucket(instruction)
                case cy.StoreMinutes() | cy.MergeMinutes():
                    self._minutes.perform(instruction)
                case cy.StoreSignals():
                    self._keeper.store_signals(instruction)
                case cy.RequestForecast():
                    self._requests.put_nowait(instruction)
                case cy.RequestPlacement():
                    self._placing.ask(instruction)
                case cy.StoreForecast():
                    self._keeper.store_forecast(instruction)
                case cy.SendPlan():
                    self.metrics.add("tidegate_plans_total")
                    for step in instruction.plan.steps:
                        self.metrics.add("tidegate_steps_planned_total", kind=step.kind, shadow="false")
                    self.write(self.registry.save_plan, instruction.plan, then=partial(self._send_plan, instruction.plan))
                case cy.StoreReceipts():
                    self.metrics.add("tidegate_receipts_total", len(instruction.receipts))
                    self.write(self.registry.save_receipts, instruction.receipts)
                case cy.StoreOutcomes():
                    self.alerting.picture.outcomes(instruction.host_id, instruction.outcomes, self.clock.wall_ns())
                    for outcome in instruction.outcomes:
                        kind, state, origin = outcome.step.kind, outcome.state, outcome.origin
                        self.metrics.add("tidegate_outcomes_total", kind=kind, outcome=state, origin=origin)
                        if outcome.code is not None:
                            self.metrics.add("tidegate_refusals_total", code=outcome.code)
                    self.write(self.registry.save_outcomes, instruction.host_id, instruction.outcomes)
                case cy.StoreRelocations():
                    self.write(self.registry.vm_hosts.save, instruction.relocations)
                case cy.StoreHost():
                    self._store_host(instruction)
                case StoreMigration() | StoreDocument() | SwitchPower():
                    self._moves.perform(instruction)
                case cy.RequestRetrain():
                    self._retraining.drifted(instruction.reason)
                    self.alerting.picture.drifted(instruction.reason, self.clock.wall_ns())
                    self.metrics.add("tidegate_forecast_drifts_total", reason=instruction.reason)
                    log.warning("forecasts have worsened", reason=instruction.reason, since_s=instruction.since_s, of=instruction.resources)

    async def take_signals(self, readings: tuple[SignalReading, ...]) -> SignalCounts:
        """Fold in what applications told; durable when it returns. Refusal: their log is full. HostError: the disk is, tell it again."""
        self.signal_log.append(readings)
        counts = self.cycle.tell(readings)
        await asyncio.get_running_loop().run_in_executor(None, self.signal_log.sync)
        return counts

    def _restore(self) -> None:
        hosts, domains = self.registry.hosts(), self.registry.domains()
        self.cycle.fleet.restore([(str(row["host_id"]), row["capacity"]) for row in hosts], domains)  # type: ignore[misc]
        now_ns = self.clock.wall_ns()
        self.cycle.recall(self.registry.documents(), self._moves.newest_outcomes(), now_ns)
        for _, record in self.wal.replay():
            message = decode_agent(record.frame)
            if isinstance(message, Samples):
                capacity = self.cycle.fleet.host(record.host_id).capacity
                admit = admitted(None if capacity is None else capacity.cpu_millicores, self.gateway.core.implausible)
                samples = decode_block(message.block, admit)
                self.cycle.handle(cy.SamplesArrived(host_id=record.host_id, samples=samples, again=True), now_ns)
            elif isinstance(message, Outcomes):
                self.registry.save_outcomes(record.host_id, message.outcomes)
        for reading in self.signal_log.replay():
            self.cycle.signals.tell(reading)
        self.carry_out(self.cycle.resume_migration(self._moves.restore(self.cycle.execution, now_ns), now_ns))

    async def _load_history(self, of: Sequence[str] | None = None) -> HistoryBlock:
        """Of these VMs, None = of all that are known."""
        newest_s = await self._keeper.insist(self.history.newest_s)
        buckets = self.config.cycle.history_buckets
        end_s = newest_s if newest_s is not None else self.clock.wall_ns() // NS_PER_S // BUCKET_S * BUCKET_S - BUCKET_S
        vm_ids = of or sorted(self.cycle.fleet.vms) or await self._keeper.insist(self.history.vm_ids, end_s - buckets * BUCKET_S)
        block = await self._keeper.insist(self.history.load, vm_ids, end_s, buckets)
        return self.cycle.fleet.with_capacity(block)

    def _on_samples(self, host_id: str, _message: Samples, samples: tuple[HostSample, ...]) -> None:
        self.metrics.add("tidegate_frames_received_total")
        self.carry_out(self.cycle.handle(cy.SamplesArrived(host_id=host_id, samples=samples), self.clock.wall_ns()))

    def _on_message(self, host_id: str, message: AgentMessage) -> None:
        assert isinstance(message, Hello | Inventory | Status | Outcomes), "samples go to _on_samples"
        self.alerting.picture.heard(host_id, message, self.clock.wall_ns())
        self.carry_out(self.cycle.handle(cy.AgentSaid(host_id=host_id, message=message), self.clock.wall_ns()))
        if isinstance(message, Inventory):
            self.tenancy.tell(host_id, again=True)

    def _on_host(self, host_id: str, up: bool, reason: str) -> None:
        self._news.host(host_id, up, reason)
        if not up:
            log.warning("host silent, counts as full", host=host_id, reason=reason)
            self.carry_out(self.cycle.handle(cy.HostLost(host_id=host_id, why=reason), self.clock.wall_ns()))

    def _on_event(self, event: cy.Event) -> None:
        self.carry_out(self.cycle.handle(event, self.clock.wall_ns()))

    def audit(self, event: str, **fields: str | int) -> None:
        """Log who changed what."""
        log.info("audit", action=event, **fields)

    def _send_plan(self, plan: Plan, _stored: None) -> None:
        self.gateway.send_plan(plan)

    def _store_host(self, instruction: cy.StoreHost) -> None:
        now_ns = self.clock.wall_ns()
        if instruction.hello is not None:
            hello = instruction.hello
            key = ("host", instruction.host_id)
            self.write(self.registry.save_host, instruction.host_id, hello.boot_id, hello.capacity, now_ns, key=key)
        if instruction.inventory is not None:
            key = ("domains", instruction.host_id)
            self.write(self.registry.save_domains, instruction.host_id, instruction.inventory.domains, now_ns, key=key)

    async def _tick_loop(self) -> None:
        while True:
            started = time.monotonic()
            await self.clock.sleep(TICK_S)
            await asyncio.sleep(max(0.0, MIN_REAL_TICK_S - (time.monotonic() - started)))
            self._moves.look(self.cycle.execution, list(self.cycle.fleet.hosts))
            self._on_event(cy.Tick())
            self._outages.look()
            self._keeper.look()
            self._publish()
            notify("WATCHDOG=1")

    async def _forecast_loop(self) -> None:
        while True:
            request = await self._requests.get()
            with self._stage("forecast"):
                forecast = await self._surviving(partial(self.pool.forecast, request.bucket, request.capacity))
            with self._stage("decide"):
                for instructions in self.cycle.decide(cy.ForecastReady(bucket=request.bucket, forecast=forecast), self.clock.wall_ns()):
                    self.carry_out(instructions)
                    await asyncio.sleep(0)  # frames are acknowledged and pages answered meanwhile
            self.metrics.add("tidegate_forecasts_total", forecast.mean.shape[0] * forecast.mean.shape[1])
            self.cycle_done_ns = self.clock.wall_ns()
            self._news.cycle(self.cycle.cycles, self.cycle_done_ns)
            publish_cycle(self.cycle, self.metrics)
            if self._retraining.due(self.cycle.cycles, self.cycle_done_ns):
                self._retrain_wanted.set()
            self._challenges.after_cycle()
            if self.cycle.cycles % PRUNE_CYCLES == 0:
                self.write(self.registry.prune, self.clock.wall_ns())

    async def _surviving(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """The answer of the pool; once more when its workers died and new ones were loaded."""
        try:
            return await call()
        except PoolLost as error:
            log.warning("forecast workers lost, rebuilding them from history", reason=str(error))
            history = await self._load_history()
            await self.pool.load(history.select([row for row, vm_id in enumerate(history.vm_ids) if error.lost(vm_id)]))
            self._retrain_wanted.set()  # the global model went with them
            return await call()

    async def _place_loop(self) -> None:
        await self._placing.run(self.pool, self._stage, self._on_placed)

    def _on_placed(self, placed: Placed) -> None:
        self.placed_ns = self.clock.wall_ns()
        self.carry_out(self.cycle.handle(cy.PlacementReady(placed=placed), self.placed_ns))

    async def _retrain_loop(self) -> None:
        """One training at a time; a request that comes while one runs is for data that it has not seen."""
        while True:
            await self._retrain_wanted.wait()
            self._retrain_wanted.clear()
            reason = self._retraining.begin(self.clock.wall_ns())
            history = await self._load_history()
            if history.vm_ids:
                with self._stage("train"):
                    await self._surviving(partial(self.pool.retrain, history))
                self.metrics.add("tidegate_retrains_total", reason=reason)

    async def _challenge_loop(self) -> None:
        await self._challenges.run(self.pool, self._load_history, self._stage)

    async def _announce_loop(self) -> None:
        while True:
            await self.clock.sleep(ANNOUNCE_S)
            await self._announce()

    async def _announce(self) -> None:
        """Tell the forecasters of events and of who belongs to whom, where anything of it is new."""
        now_s = self.clock.wall_ns() // NS_PER_S
        found = await asyncio.get_running_loop().run_in_executor(None, self._announcer.look, self.cycle.labels(), now_s)
        for problem in found.problems:
            log.warning("calendar not taken", problem=problem)
        if found.calendar is not None:
            await self.pool.announce(found.calendar, found.labels)

    async def _watch_http(self) -> None:
        assert self.http.task is not None
        await asyncio.shield(self.http.task)
        raise RuntimeError("the HTTP server ended by itself")

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        took = time.perf_counter() - started
        self.stages[name] = took * 1000
        if self._tracing is not None:
            self._tracing.stage(name, took, self.cycle.cycles)
        self.metrics.observe("tidegate_cycle_stage_duration_seconds", took, stage=name)

    def _publish(self) -> None:
        hosts = self.cycle.fleet.hosts.values()
        alive = sum(host.alive for host in hosts)
        self.metrics.set("tidegate_hosts", alive, state="alive")
        self.metrics.set("tidegate_hosts", len(hosts) - alive, state="stale")
        self.metrics.set("tidegate_vms", len(self.cycle.fleet.vms))
        self.metrics.set("tidegate_agents_connected", len(self.gateway.connected()))
        self._news.measure(self.metrics)
        self.metrics.set("tidegate_wal_bytes", self.wal.total_bytes)
        self.metrics.set("tidegate_signal_log_bytes", self.signal_log.total_bytes)
        counters = self.gateway.core.counters
        self._rising.follow("tidegate_frames_duplicate_total", counters["duplicates"])
        self.metrics.set("tidegate_agents_clock_offset_seconds", self.gateway.core.offsets.largest_s())
        for column, count in self.gateway.core.implausible.items():
            self._rising.follow("tidegate_readings_dropped_total", count, column=column)
        for reason in ("garbage", "impostors", "future", "behind", "gaps"):
            self._rising.follow("tidegate_frames_rejected_total", counters[reason], reason=reason)

    async def _guard(self, loop: Awaitable[None]) -> None:
        try:
            await loop
        except Exception as error:  # noqa: BLE001  # a loop's death is the process's death
            self._fail(error)

    def _fail_from_thread(self, error: BaseException) -> None:
        assert self._failed is not None, "start() first"
        self._failed.get_loop().call_soon_threadsafe(self._fail, error)

    def _fail(self, error: BaseException) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)
