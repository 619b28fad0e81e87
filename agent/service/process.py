"""Wiring of the agent process: timers, threads, socket and link around the pure core.

One event loop owns the core. Calls that may block (libvirt, netlink, kernel files) run in bounded pools with deadlines (`calls`, `rounds`);
what the core wants done is carried out by `performing`. The loop's death is the process's death, and so is a journal that cannot be
written: what is not written down is not done.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import structlog

from agent import events as ev
from agent.acting.journal import Journal, load_mode, load_pause
from agent.acting.reconcile import local_prefix, reconcile
from agent.core import AgentCore
from agent.link.client import LinkClient, LinkDown, LinkEvent, LinkMessage, LinkUp
from agent.link.spool import Spool
from agent.service.answers import Answers
from agent.service.beat import until_next
from agent.service.calls import CALL_DEADLINE_S, BoundedCalls, cancel
from agent.service.control import ControlServer
from agent.service.exporter import Exporter
from agent.service.gauges import Gauges
from agent.service.hosts import HostBundle, open_host
from agent.service.movers import Movers
from agent.service.pausing import PauseFile
from agent.service.performing import Performer
from agent.service.picture import Picture
from agent.service.reloading import reload
from agent.service.rounds import MIN_REAL_WAIT_S, Rounds
from shared.config import AgentConfig
from shared.control import Request
from shared.errors import ConfigError, HostError, Refusal
from shared.logging import configure
from shared.messages import Ack, Hello, SendPlan, SetMode, SetPause, SetPolicies
from shared.metrics import AGENT_METRICS, Metrics
from shared.model import Domain
from shared.notify import notify, notify_reloading
from shared.tls import client_context

INVENTORY_PERIOD_S: Final = 30
TICK_S: Final = 1.0
PROGRAM: Final = "tidegate-agent"  # its name in the journal

log = structlog.get_logger("agent")


class AgentService:
    """One agent. `run` returns after `stop()` with everything closed, or raises what a part of it died of."""

    def __init__(self, config: AgentConfig, host: HostBundle | None = None, reread: Callable[[], AgentConfig] | None = None) -> None:
        """`reread` gives the configuration anew on SIGHUP and raises ConfigError when it is not valid; None = it never changes."""
        self.clock = config.clock.open()
        self.state_dir = Path(config.state_dir)
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.host = host or open_host(config, self.clock)
        self.journal = Journal(self.state_dir / "journal")
        self.spool = Spool(self.state_dir / "spool", config.spool_max_bytes)
        self.calls = BoundedCalls()
        self.core = self._open_core(config)
        self.picture = Picture(
            config=config, clock=self.clock, core=self.core, calls=self.calls, spool=self.spool, period_s=config.sample_period_s
        )
        self.metrics = Metrics(AGENT_METRICS)
        gauges = Gauges(self.metrics, self.picture, self.host.collector_seconds)
        self._reread = reread
        self._rounds = Rounds(
            self.picture,
            self.host,
            self.metrics,
            on_sample=self.handle,
            on_strangers=lambda: self._spawn(self._read_inventory()),
        )
        self._movers = Movers(self.host.migrator, self._post, config.migration.max_outgoing)
        self._performer = Performer(
            self.picture, self.host, self.journal, self.metrics, movers=self._movers, handle=self.handle, spawn=self._spawn
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._inventory: Future[Sequence[Domain]] | None = None
        self._failure: Exception | None = None
        self._stopping = asyncio.Event()
        self._link = self._performer.link = self._open_link()
        simulation = None if self.host.ask is None else self._ask_simulation
        self._answers = Answers(self.picture, self.handle, simulation, self.host.dirty_rates)
        self._control = ControlServer(Path(config.socket_path), self._answer)
        self._exporter = Exporter(gauges.page)
        self._pause_file = PauseFile(
            lambda: Path(self.config.pause_file), lambda there: self.handle(ev.PauseOrdered(paused=there, by="file"))
        )

    @property
    def config(self) -> AgentConfig:
        """The settings in force."""
        return self.picture.config

    def _open_core(self, config: AgentConfig) -> AgentCore:
        boot_id = self.host.hypervisor.boot_id()
        mode = load_mode(self.state_dir)
        return AgentCore(
            host_id=config.host_id,
            boot_id=boot_id,
            capacity=self.host.hypervisor.capacity(),
            guard=config.guard,
            reactive=config.reactive,
            default_mode=config.default_mode,
            pinned=mode.pinned,
            ordered=mode.ordered,
            paused_by=load_pause(self.state_dir),
            frame_samples=config.frame_samples,
            next_sequence=self.spool.next_sequence,
            recovered=reconcile(self.journal.read(), local_prefix(config.host_id, boot_id)),
            migration=config.migration,
            standalone=not config.coordinator_urls,
        )

    # Lifecycle

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stopping.set()

    async def run(self) -> None:
        """Sample, decide, act and ship until stopped."""
        self._loop = asyncio.get_running_loop()
        await self._control.start()
        await self._exporter.start(self.config.exporter_address, self.config.exporter_socket)
        # The kill switch first: nothing is taken up from the journal while somebody holds it.
        self._pause_file.look()
        await self._read_inventory()
        self.handle(ev.Started())
        loops: list[Awaitable[None]] = [self._rounds.run(), self._tick_loop(), self._inventory_loop(), self._pause_file.watch()]
        if self._link is not None:
            loops.append(self._link.run())
        tasks = [asyncio.ensure_future(loop) for loop in loops]
        stop = asyncio.create_task(self._stopping.wait())
        notify(f"READY=1\nSTATUS={self.picture.summary(linked=self._link is not None)}")
        log.info("ready", host=self.config.host_id, hypervisor=self.config.hypervisor, mode=self.core.mode, vms=len(self.picture.domains))
        try:
            done, _ = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()  # a loop that ends by itself has failed
            if self._failure is not None:
                raise self._failure
            self.handle(ev.Stopping())
        finally:
            await self._close([*tasks, stop])

    async def _close(self, tasks: list[asyncio.Future[Any]]) -> None:
        notify("STOPPING=1")
        if self._link is not None:
            await self._link.close()
        await cancel([*tasks, *self._tasks])
        await self._control.stop()
        await self._exporter.stop()
        self._rounds.close()
        self.calls.close()
        self._movers.close()
        for close in (self.spool.close, self.journal.close, self.host.close):
            try:
                close()
            except (HostError, OSError) as error:
                log.warning("not closed cleanly", error=str(error))

    async def reload(self) -> None:
        """Read the configuration anew; what is not valid changes nothing."""
        if self._reread is None:
            return
        notify_reloading()
        old = self.config
        try:
            fresh = reload(old, self._reread())
            await self._export(old, fresh.config)
        except ConfigError as error:
            self.picture.settings_error = str(error)
            self.metrics.add("tidegate_agent_reloads_total", result="refused")
            log.error("configuration not taken over, the old one stays", error=str(error))
        else:
            self.picture.config, self.picture.settings_error = fresh.config, ""
            configure(fresh.config.log_level, program=PROGRAM)
            self._movers.max_outgoing = fresh.config.migration.max_outgoing
            self.handle(ev.SettingsChanged(guard=fresh.config.guard, reactive=fresh.config.reactive, migration=fresh.config.migration))
            self._pause_file.look()
            self.metrics.add("tidegate_agent_reloads_total", result="changed")
            log.info("configuration taken over", changed=list(fresh.changed), needs_restart=list(fresh.waiting))
        notify(f"READY=1\nSTATUS={self.picture.summary(linked=self._link is not None)}")

    async def _export(self, old: AgentConfig, new: AgentConfig) -> None:
        places = (new.exporter_address, new.exporter_socket)
        if places == (old.exporter_address, old.exporter_socket):
            return
        try:
            await self._exporter.start(*places)
        except ConfigError:
            await self._exporter.start(old.exporter_address, old.exporter_socket)
            raise

    # Timers

    async def _tick_loop(self) -> None:
        said = ""
        while True:
            if self.config.clock.speed:
                await asyncio.sleep(MIN_REAL_WAIT_S)
                await self.clock.sleep(TICK_S)
            else:
                await self.clock.sleep(until_next(TICK_S, time.monotonic()))
            self.handle(ev.Tick())
            self.spool.sync()
            if (summary := self.picture.summary(linked=self._link is not None)) != said:
                said = summary
                notify(f"STATUS={summary}")

    async def _inventory_loop(self) -> None:
        while True:
            await self.clock.sleep(INVENTORY_PERIOD_S)
            await self._read_inventory()

    async def _read_inventory(self) -> None:
        if self._inventory is not None and not self._inventory.done():
            return  # one thread for it, however long it hangs
        self._inventory = self.calls.begin(self.host.hypervisor.domains)
        try:
            domains = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._inventory)), CALL_DEADLINE_S)
        except (HostError, TimeoutError) as error:
            log.warning("inventory failed", error=str(error) or "no answer in time")
            return
        self.picture.domains = tuple(domains)
        self.calls.keep({domain.vm_id for domain in domains})
        self.handle(ev.InventoryRead(domains=self.picture.domains))
        self._movers.inventory(self.picture.domains)

    # Instructions

    def handle(self, event: ev.Event) -> None:
        """Give one event to the core and carry out what it says."""
        for instruction in self.core.handle(event, self.clock.wall_ns()):
            self._performer.perform(instruction)

    def _post(self, event: ev.Event) -> None:
        """An answer from a migrating thread."""
        self._loop.call_soon_threadsafe(self._posted, event)

    def _posted(self, event: ev.Event) -> None:
        try:
            self.handle(event)
        except Exception as error:  # noqa: BLE001  # asyncio would log it and go on
            self._fail(error)
            return
        if isinstance(event, ev.MigrationEnded) and event.moved:
            self._spawn(self._read_inventory())  # the VM is gone from here

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """A bug in a call, or a journal that cannot be written, is the end of the process: `run` raises it."""
        self._failure = self._failure or error
        self.stop()

    # Doors

    def _open_link(self) -> LinkClient | None:
        config = self.config
        if not config.coordinator_urls:
            return None
        context = client_context(Path(config.tls.ca), Path(config.tls.certificate), Path(config.tls.key))
        return LinkClient(config.coordinator_urls, context, self._hello, self.spool, self._linked)

    def _hello(self) -> Hello:
        return self.core.hello(self.clock.wall_ns(), self.picture.version, self.config.hypervisor)

    def _linked(self, event: LinkEvent) -> None:
        try:
            self._hear(event)
        except HostError as error:  # of our own disk: the link would take it for the network's and go on
            self._fail(error)

    def _hear(self, event: LinkEvent) -> None:
        match event:
            case LinkUp():
                welcome = event.welcome
                self.metrics.add("tidegate_agent_link_connects_total")
                self.picture.clock_offset_ms = (welcome.wall_ns - self.clock.wall_ns()) / 1e6
                # The kill switch before anything else that this connection brings.
                if welcome.paused is not None:
                    self.handle(ev.PauseOrdered(paused=welcome.paused, by="coordinator"))
                self.handle(ev.LinkUp(epoch=welcome.epoch, acked=welcome.acked))
                if welcome.mode is not None:
                    self.handle(ev.ModeOrdered(mode=welcome.mode))
            case LinkDown():
                log.warning("no coordinator", url=event.url, reason=event.reason, retry_in_s=round(event.retry_in_s, 1))
                self.handle(ev.LinkDown())
            case LinkMessage():
                message = event.message
                if isinstance(message, Ack):
                    self.handle(ev.Acked(boot_id=message.boot_id, sequence=message.sequence))
                elif isinstance(message, SendPlan):
                    self.handle(ev.PlanArrived(plan=message.plan))
                elif isinstance(message, SetMode):
                    self.handle(ev.ModeOrdered(mode=message.mode))
                elif isinstance(message, SetPolicies):
                    self.handle(ev.PoliciesOrdered(policies=message.policies))
                elif isinstance(message, SetPause):
                    self.handle(ev.PauseOrdered(paused=message.paused, by="coordinator"))

    async def _answer(self, request: Request) -> Any:
        try:
            return await self._answers.answer(request)
        except Refusal:
            raise
        except Exception as error:  # asyncio would log it and go on
            self._fail(error)
            raise HostError(f"the agent ends: {error}") from error

    async def _ask_simulation(self, command: str) -> Any:
        assert self.host.ask is not None
        return await asyncio.wrap_future(self.calls.begin(self.host.ask, command))


async def run_agent(config: AgentConfig, reread: Callable[[], AgentConfig] | None = None) -> None:
    """Run until SIGTERM or SIGINT; SIGHUP reads the configuration anew through `reread`."""
    configure(config.log_level, program=PROGRAM)
    service = AgentService(config, reread=reread)
    loop = asyncio.get_running_loop()
    handlers: dict[signal.Signals, Callable[[], object]] = {
        signal.SIGTERM: service.stop,
        signal.SIGINT: service.stop,
        signal.SIGHUP: lambda: service._spawn(service.reload()),
    }
    with contextlib.ExitStack() as stack:
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
            stack.callback(loop.remove_signal_handler, number)
        await service.run()
