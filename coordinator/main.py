"""Wiring of the coordinator process: gateway, stores, workers, HTTP and timers around the pure decision cycle.

One event loop owns the cycle. Disk writes run in order in one thread; forecasts, training and placement run in the pool.
A frame is acknowledged when the log has it on disk; the log is cut only behind buckets that history holds. Whatever part dies
takes the process with it: systemd restarts it, agents fail static meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog

from coordinator import cycle as cy
from coordinator.announcing import Announcer
from coordinator.calendars import open_calendars
from coordinator.challenge_turns import ChallengeTurns
from coordinator.compute import PoolLost, open_pool
from coordinator.cycle import DecisionCycle
from coordinator.cycle_metrics import publish_cycle
from coordinator.demand.signals import SignalCounts, SignalReading
from coordinator.executing import Execution, StoreDocument, StoreMigration, SwitchPower
from coordinator.gateway.admission import Admission, AdmissionLimits
from coordinator.gateway.server import GatewayServer
from coordinator.gateway.sessions import GatewayCore, GatewaySettings
from coordinator.learning.retraining import RetrainSchedule
from coordinator.live_view import LiveView
from coordinator.model import HistoryBlock
from coordinator.moving import MoveKeeper
from coordinator.news import News
from coordinator.placement.explain.plan import Placed
from coordinator.placement_turns import PlacementTurns
from coordinator.power import open_power
from coordinator.service.app import HttpService
from coordinator.service.auth import TokenVerifier
from coordinator.service.safeguards import Safeguards
from coordinator.service.streaming import Hub
from coordinator.settings import execution_policy, forecast_options, objectives, sizing_policy
from coordinator.store.history import ParquetHistory
from coordinator.store.registry import SqlRegistry
from coordinator.store.signal_log import SignalLog
from coordinator.store.tokens import TokenStore
from coordinator.store.wal import Wal
from shared.config import CoordinatorConfig
from shared.errors import ConfigError, HostError
from shared.frame import decode_agent, decode_block
from shared.messages import AgentMessage, Hello, Inventory, Outcomes, Samples, Status
from shared.metrics import COORDINATOR_METRICS, Metrics, Rising
from shared.model import HostSample
from shared.notify import notify
from shared.plan import Plan
from shared.tls import server_context
from shared.units import BUCKET_S, NS_PER_S

TICK_S: Final = 1.0  # of the coordinator's clock
MIN_REAL_TICK_S: Final = 0.05
PRUNE_CYCLES: Final = 288
LOG_BUCKETS: Final = 36  # closed buckets that the log reaches back over: three hours
LEAST_LOG_BUCKETS: Final = 3
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
        self.registry = SqlRegistry(f"sqlite:///{state / 'registry.sqlite'}")
        self.history = ParquetHistory(state / "history", max_bytes=config.history_max_bytes)
        self.wal = Wal(state / "wal", max_bytes=config.wal_max_bytes)
        self.signal_log = SignalLog(state / "signals")
        self.metrics = Metrics(COORDINATOR_METRICS)
        self._rising = Rising(self.metrics)
        epoch = self.registry.next_epoch()
        execution, asked = Execution(execution_policy(config)), objectives(config.sla)
        self.cycle = DecisionCycle(config.cycle, sizing_policy(config.sizing), epoch, self.history.newest_s(), execution, objectives=asked)
        self._moves = MoveKeeper(self.registry, open_power(config.power), self.write, self._on_event, self.metrics)
        self.started_ns = self.clock.wall_ns()
        self.stages: dict[str, float] = {}
        self.cycle_done_ns: int | None = None
        self.placed_ns: int | None = None
        self.options = forecast_options(config)
        self._disk = ThreadPoolExecutor(1, "store")
        self._requests: asyncio.Queue[cy.RequestForecast] = asyncio.Queue()
        self._placing = PlacementTurns(config, self.metrics, self.write)
        self.cycle.pool_of = lambda host_id: self._placing.site.pool_of(host_id).name
        self._retrain_wanted = asyncio.Event()
        self._retraining = RetrainSchedule()
        self._challenges = ChallengeTurns(config, self.cycle, self.metrics)
        self._announcer = Announcer(open_calendars(config), config.cycle.history_buckets)
        self._wal_marks: deque[int] = deque(maxlen=LOG_BUCKETS)
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[None] | None = None
        self._loaded = False
        tls = config.tls
        self.gateway = GatewayServer(
            GatewayCore(
                GatewaySettings(epoch=epoch, stale_host_s=config.cycle.stale_host_s),
                acked=self.wal.high_water(),
                modes=self.registry.modes(),
                paused=self.registry.pauses(),
            ),
            self.wal,
            self._on_message,
            self.clock,
            ssl_context=server_context(Path(tls.ca), Path(tls.certificate), Path(tls.key)),
            host=config.listen_agents.host,
            port=config.listen_agents.port,
            admission=Admission(AdmissionLimits(max_agents=config.max_agents)),
            on_samples=self._on_samples,
            on_host=self._on_host,
            on_unsent=lambda plan: self._on_event(cy.PlanUnsent(plan=plan)),
            tick_s=max(MIN_REAL_TICK_S, TICK_S / (config.clock.speed or 1.0)),
        )
        self.view = LiveView(self)
        self.hub = Hub(epoch, streams=config.access.streams, per_caller=config.access.streams_per_caller)
        self._news = News(self.hub, self.cycle.fleet)
        tokens = TokenStore(self.registry.engine).grants
        verifier = TokenVerifier(tokens(), refresh=tokens)
        self.http = HttpService(
            self.view,
            verifier,
            host=config.listen_http.host,
            port=config.listen_http.port,
            config=config.access,
            safeguards=Safeguards(verifier, self.registry.engine, self.read, self.hub, config.access, metrics=self.metrics),
        )

    async def start(self) -> None:
        """Restore state, open both doors, start the workers. ConfigError when an address cannot be had."""
        self._failed = asyncio.get_running_loop().create_future()
        self._restore()
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
        for loop in (*loops, self.gateway.failure, self._watch_http):
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
        self._disk.shutdown(wait=True)
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
        return True, "ready"

    def carry_out(self, instructions: list[cy.Instruction]) -> None:
        """Perform instructions in order; slow ones are queued."""
        for instruction in instructions:
            self._news.tell(instruction)
            match instruction:
                case cy.StoreBucket():
                    self._store_bucket(instruction)
                case cy.StoreSignals():
                    self._store_signals(instruction)
                case cy.RequestForecast():
                    self._requests.put_nowait(instruction)
                case cy.RequestPlacement():
                    self._placing.ask(instruction)
                case cy.StoreForecast():
                    self.write(self.history.append_forecast, instruction.forecast)
                case cy.SendPlan():
                    self.metrics.add("tidegate_plans_total")
                    for step in instruction.plan.steps:
                        self.metrics.add("tidegate_steps_planned_total", kind=step.kind, shadow="false")
                    self.write(self.registry.save_plan, instruction.plan, then=partial(self._send_plan, instruction.plan))
                case cy.StoreReceipts():
                    self.metrics.add("tidegate_receipts_total", len(instruction.receipts))
                    self.write(self.registry.save_receipts, instruction.receipts)
                case cy.StoreOutcomes():
                    for outcome in instruction.outcomes:
                        kind, state, origin = outcome.step.kind, outcome.state, outcome.origin
                        self.metrics.add("tidegate_outcomes_total", kind=kind, outcome=state, origin=origin)
                        if outcome.code is not None:
                            self.metrics.add("tidegate_refusals_total", code=outcome.code)
                    self.write(self.registry.save_outcomes, instruction.host_id, instruction.outcomes)
                case cy.StoreHost():
                    self._store_host(instruction)
                case StoreMigration() | StoreDocument() | SwitchPower():
                    self._moves.perform(instruction)
                case cy.RequestRetrain():
                    self._retraining.drifted(instruction.reason)
                    self.metrics.add("tidegate_forecast_drifts_total", reason=instruction.reason)
                    log.warning("forecasts have worsened", reason=instruction.reason, since_s=instruction.since_s, of=instruction.resources)

    def write(self, function: Callable[..., _T], *arguments: object, then: Callable[[_T], None] | None = None) -> None:
        """Run a store's write in order behind the others; `then` gets its result in the event loop. A failure ends the process."""
        loop = asyncio.get_running_loop()

        def done(future: asyncio.Future[_T]) -> None:
            if future.cancelled():
                return
            error = future.exception()
            if error is not None:
                self._fail(error)
            elif then is not None:
                then(future.result())

        loop.run_in_executor(self._disk, function, *arguments).add_done_callback(done)

    async def read(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Run a store's read behind the writes before it."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *arguments)

    async def take_signals(self, readings: tuple[SignalReading, ...]) -> SignalCounts:
        """Fold in what applications told; durable when it returns. Refusal: their log is full."""
        self.signal_log.append(readings)
        counts = self.cycle.tell(readings)
        try:
            await asyncio.get_running_loop().run_in_executor(None, self.signal_log.sync)
        except HostError as error:
            self._fail(error)
            raise
        return counts

    def _restore(self) -> None:
        hosts, domains = self.registry.hosts(), self.registry.domains()
        self.cycle.fleet.policies.update(self.registry.policies())
        self.cycle.fleet.restore([(str(row["host_id"]), row["capacity"]) for row in hosts], domains)  # type: ignore[misc]
        now_ns = self.clock.wall_ns()
        self.cycle.recall(self.registry.documents(), self._moves.newest_outcomes(), now_ns)
        for _, record in self.wal.replay():
            message = decode_agent(record.frame)
            if isinstance(message, Samples):
                self.cycle.handle(cy.SamplesArrived(host_id=record.host_id, samples=decode_block(message.block), again=True), now_ns)
            elif isinstance(message, Outcomes):
                self.registry.save_outcomes(record.host_id, message.outcomes)
        for reading in self.signal_log.replay():
            self.cycle.signals.tell(reading)
        self.carry_out(self.cycle.resume_migration(self._moves.restore(self.cycle.execution, now_ns), now_ns))

    async def _load_history(self, of: Sequence[str] | None = None) -> HistoryBlock:
        """Of these VMs, None = of all that are known."""
        newest_s = await self.read(self.history.newest_s)
        buckets = self.config.cycle.history_buckets
        end_s = newest_s if newest_s is not None else self.clock.wall_ns() // NS_PER_S // BUCKET_S * BUCKET_S - BUCKET_S
        vm_ids = of or sorted(self.cycle.fleet.vms) or await self.read(self.history.vm_ids, end_s - buckets * BUCKET_S)
        block = await self.read(self.history.load, vm_ids, end_s, buckets)
        return self.cycle.fleet.with_capacity(block)

    def _on_samples(self, host_id: str, _message: Samples, samples: tuple[HostSample, ...]) -> None:
        self.metrics.add("tidegate_frames_received_total")
        self.carry_out(self.cycle.handle(cy.SamplesArrived(host_id=host_id, samples=samples), self.clock.wall_ns()))

    def _on_message(self, host_id: str, message: AgentMessage) -> None:
        assert isinstance(message, Hello | Inventory | Status | Outcomes), "samples go to _on_samples"
        self.carry_out(self.cycle.handle(cy.AgentSaid(host_id=host_id, message=message), self.clock.wall_ns()))

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

    def _store_bucket(self, instruction: cy.StoreBucket) -> None:
        mark = self.wal.next_token
        if not instruction.late:
            self.metrics.add("tidegate_buckets_closed_total")
            self.metrics.set("tidegate_newest_bucket_timestamp_seconds", instruction.bucket.start_s)
            self._wal_marks.append(mark)
        cut = self._log_cut()

        def store() -> None:
            (self.history.append_late if instruction.late else self.history.append_buckets)(instruction.bucket)
            self.wal.trim(cut)

        self.write(store)

    def _store_signals(self, instruction: cy.StoreSignals) -> None:
        place = self.signal_log.close_bucket(instruction.closed_s)

        def store() -> None:
            for block in instruction.blocks:
                self.history.append_signals(block)
            self.signal_log.settled(place)

        self.write(store)

    def _log_cut(self) -> int:
        """Token up to which the log may go. A long log lets late samples find the rest of their bucket after a restart; a full one must
        be cut, and then three buckets behind: a frame logged before a bucket closed reaches into the next one at most.
        """
        marks = self._wal_marks
        if len(marks) == LOG_BUCKETS:
            return marks[0]
        crowded = self.wal.total_bytes > self.config.wal_max_bytes // 2
        return marks[-LEAST_LOG_BUCKETS] if crowded and len(marks) >= LEAST_LOG_BUCKETS else 0

    def _store_host(self, instruction: cy.StoreHost) -> None:
        now_ns = self.clock.wall_ns()
        if instruction.hello is not None:
            hello = instruction.hello
            self.write(self.registry.save_host, instruction.host_id, hello.boot_id, hello.capacity, now_ns)
        if instruction.inventory is not None:
            self.write(self.registry.save_domains, instruction.host_id, instruction.inventory.domains, now_ns)

    async def _tick_loop(self) -> None:
        while True:
            started = time.monotonic()
            await self.clock.sleep(TICK_S)
            await asyncio.sleep(max(0.0, MIN_REAL_TICK_S - (time.monotonic() - started)))
            self._moves.look(self.cycle.execution, list(self.cycle.fleet.hosts))
            self._on_event(cy.Tick())
            self._publish()
            notify("WATCHDOG=1")

    async def _forecast_loop(self) -> None:
        while True:
            request = await self._requests.get()
            with self._stage("forecast"):
                forecast = await self._surviving(partial(self.pool.forecast, request.bucket, request.capacity))
            with self._stage("decide"):
                event = cy.ForecastReady(bucket=request.bucket, forecast=forecast)
                instructions = self.cycle.handle(event, self.clock.wall_ns())
            self.carry_out(instructions)
            self.metrics.add("tidegate_forecasts_total", forecast.mean.shape[0] * forecast.mean.shape[1])
            self.cycle_done_ns = self.clock.wall_ns()
            self._news.cycle(self.cycle.cycles, self.cycle_done_ns)
            publish_cycle(self.cycle, self.metrics, self.history.total_bytes)
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
        for reason in ("garbage", "impostors", "future", "gaps"):
            self._rising.follow("tidegate_frames_rejected_total", counters[reason], reason=reason)

    async def _guard(self, loop: Awaitable[None]) -> None:
        try:
            await loop
        except Exception as error:  # noqa: BLE001  # a loop's death is the process's death
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)


async def run_coordinator(config: CoordinatorConfig, started: Callable[[Coordinator], None] | None = None) -> None:
    """Run until SIGTERM or SIGINT, or until a part fails (raises)."""
    coordinator = Coordinator(config)
    stop = asyncio.Event()
    _stop_on_signal(stop)
    try:
        await coordinator.start()
        _stop_on_signal(stop)  # again: Ray's workers put a handler of their own in place, which aborts
        if started is not None:
            started(coordinator)
        failure = asyncio.create_task(coordinator.wait())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({failure, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if failure.done():
            failure.result()
        failure.cancel()
    finally:
        await coordinator.stop()


def _stop_on_signal(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
