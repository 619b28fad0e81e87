"""Wiring of the agent process: timers, threads, socket and link around the pure core.

One event loop owns the core. Calls that may block (libvirt, netlink, kernel files) run in two bounded pools with deadlines; a VM
whose call does not come back is left alone until it does. Submits for one VM run one after another, so that none overtakes its undo,
and ask for the mode at the last moment. The loop's death is the process's death, and so is a journal that cannot be written: what is
not written down is not done. The watchdog is petted by a finished sampling round only.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from agent import events as ev
from agent.acting.journal import Journal, load_mode, save_mode
from agent.acting.reconcile import local_prefix, reconcile
from agent.control import ControlServer
from agent.core import AgentCore
from agent.exporter import Exporter
from agent.hosts import HostBundle, open_host
from agent.link.client import LinkClient, LinkDown, LinkEvent, LinkMessage, LinkUp
from agent.link.spool import Spool
from agent.ports import RawHost
from agent.sampling.derive import derive
from shared.config import AgentConfig
from shared.control import Request
from shared.errors import HostError, Refusal
from shared.frame import encode
from shared.logging import configure
from shared.messages import Ack, Hello, SendPlan, SetMode, Status
from shared.metrics import AGENT_METRICS, Metrics, Rising
from shared.model import Domain, HostSample, Mode
from shared.notify import notify
from shared.plan import Step
from shared.refusal import RefusalCode
from shared.tls import client_context
from shared.units import NS_PER_S

ACTING_THREADS: Final = 4  # levers are short calls; more would only queue inside libvirt
CALL_DEADLINE_S: Final = 20.0  # real seconds until a blocking call counts as stuck
INVENTORY_PERIOD_S: Final = 30
TICK_S: Final = 1.0
MIN_REAL_WAIT_S: Final = 0.002  # keeps a fast simulated clock from starving the loop's sockets

log = structlog.get_logger("agent")


class AgentService:
    """One agent. `run` returns after `stop()` with everything closed, or raises what a part of it died of."""

    def __init__(self, config: AgentConfig, host: HostBundle | None = None) -> None:
        self.config = config
        self.clock = config.clock.open()
        self.state_dir = Path(config.state_dir)
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.host = host or open_host(config, self.clock)
        boot_id = self.host.hypervisor.boot_id()
        self.journal = Journal(self.state_dir / "journal")
        self.spool = Spool(self.state_dir / "spool", config.spool_max_bytes)
        self.metrics = Metrics(AGENT_METRICS)
        self._rising = Rising(self.metrics)
        mode = load_mode(self.state_dir)
        self.core = AgentCore(
            host_id=config.host_id,
            boot_id=boot_id,
            capacity=self.host.hypervisor.capacity(),
            guard=config.guard,
            reactive=config.reactive,
            default_mode=config.default_mode,
            pinned=mode.pinned,
            ordered=mode.ordered,
            frame_samples=config.frame_samples,
            next_sequence=self.spool.next_sequence,
            recovered=reconcile(self.journal.entries(), local_prefix(config.host_id, boot_id)),
        )
        self._sampling = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling")
        self._acting = ThreadPoolExecutor(max_workers=ACTING_THREADS, thread_name_prefix="acting")
        self._calls: set[asyncio.Task[None]] = set()
        self._stuck: set[str] = set()
        self._turns: dict[str, asyncio.Lock] = {}  # by VM: whose submit it is
        self._inventory: Future[Sequence[Domain]] | None = None
        self._failure: Exception | None = None
        self._previous: RawHost | None = None
        self._domains: tuple[Domain, ...] = ()
        self._sample: HostSample | None = None
        self._rounds = 0
        self._failures: dict[str, str] = {}
        self._stopping = asyncio.Event()
        self._link = self._open_link()
        self._control = ControlServer(Path(config.socket_path), self._answer)
        self._exporter = Exporter(config.exporter_address, self.metrics)

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stopping.set()

    async def run(self) -> None:
        """Sample, decide, act and ship until stopped."""
        await self._control.start()
        await self._exporter.start()
        await self._read_inventory()
        self._handle(ev.Started())
        loops: list[Awaitable[None]] = [self._sample_loop(), self._tick_loop(), self._inventory_loop()]
        if self._link is not None:
            loops.append(self._link.run())
        tasks = [asyncio.ensure_future(loop) for loop in loops]
        stop = asyncio.create_task(self._stopping.wait())
        notify("READY=1")
        log.info("ready", host=self.config.host_id, hypervisor=self.config.hypervisor, mode=self.core.mode, vms=len(self._domains))
        try:
            done, _ = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()  # a loop that ends by itself has failed
            if self._failure is not None:
                raise self._failure
            self._handle(ev.Stopping())
        finally:
            await self._close([*tasks, stop])

    async def _close(self, tasks: list[asyncio.Future[Any]]) -> None:
        notify("STOPPING=1")
        if self._link is not None:
            await self._link.close()
        for task in [*tasks, *self._calls]:
            task.cancel()
        await asyncio.gather(*tasks, *self._calls, return_exceptions=True)
        await self._control.stop()
        await self._exporter.stop()
        self._sampling.shutdown(wait=False, cancel_futures=True)
        self._acting.shutdown(wait=False, cancel_futures=True)
        for close in (self.spool.close, self.journal.close, self.host.close):
            try:
                close()
            except (HostError, OSError) as error:
                log.warning("not closed cleanly", error=str(error))

    async def _sample_loop(self) -> None:
        """Every period; a round that took too long is followed by the next one at once, never by two."""
        loop, period_s = asyncio.get_running_loop(), self.config.sample_period_s
        due_ns = self.clock.monotonic_ns()
        while True:
            started = loop.time()
            try:
                raw = await asyncio.wait_for(loop.run_in_executor(self._sampling, self._read_round), CALL_DEADLINE_S)
            except TimeoutError:
                self._failures = {"sampler": f"no answer within {CALL_DEADLINE_S:g} s"}
                log.error("sampling is stuck", after_s=CALL_DEADLINE_S)
                raise HostError("sampling is stuck: a restart is the only way to get the thread back") from None
            except HostError as error:
                self._failures = {"sampler": str(error)}
                log.warning("sampling failed", error=str(error))
            else:
                self._take(raw)
                notify("WATCHDOG=1")
            self.metrics.observe("tidegate_agent_sample_duration_seconds", loop.time() - started)
            due_ns = max(due_ns + period_s * NS_PER_S, self.clock.monotonic_ns())
            await asyncio.sleep(MIN_REAL_WAIT_S)
            await self.clock.sleep((due_ns - self.clock.monotonic_ns()) / NS_PER_S)

    def _read_round(self) -> RawHost:
        raw = self.host.reader.read()
        self.host.after_round(self._rounds)
        return raw

    def _take(self, raw: RawHost) -> None:
        self._rounds += 1
        self._failures = raw.failures
        sample = derive(self._previous, raw, {domain.vm_id: domain.memory_max_bytes for domain in self._domains})
        self._previous = raw
        self.metrics.add("tidegate_agent_samples_total")
        self.metrics.set("tidegate_agent_vms", len(raw.vms))
        if {vm.vm_id for vm in raw.vms} - {domain.vm_id for domain in self._domains}:
            self._call(self._read_inventory())
        if sample.period_ns:
            self._sample = sample
            self._handle(ev.Sampled(sample=sample))

    async def _tick_loop(self) -> None:
        while True:
            await asyncio.sleep(MIN_REAL_WAIT_S)
            await self.clock.sleep(TICK_S)
            self._handle(ev.Tick())
            self.spool.sync()
            self._publish()

    async def _inventory_loop(self) -> None:
        while True:
            await self.clock.sleep(INVENTORY_PERIOD_S)
            await self._read_inventory()

    async def _read_inventory(self) -> None:
        if self._inventory is not None and not self._inventory.done():
            return  # one thread for it, however long it hangs
        self._inventory = self._acting.submit(self.host.hypervisor.domains)
        try:
            domains = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._inventory)), CALL_DEADLINE_S)
        except (HostError, TimeoutError) as error:
            log.warning("inventory failed", error=str(error) or "no answer in time")
            return
        self._domains = tuple(domains)
        here = {domain.vm_id for domain in domains}
        self._turns = {vm_id: turn for vm_id, turn in self._turns.items() if vm_id in here or turn.locked()}
        self._handle(ev.InventoryRead(domains=self._domains))

    def _handle(self, event: ev.Event) -> None:
        for instruction in self.core.handle(event, self.clock.wall_ns()):
            self._perform(instruction)

    def _perform(self, instruction: ev.Instruction) -> None:
        match instruction:
            case ev.WriteJournal():
                self.journal.write(instruction.entry)
                if isinstance(instruction.entry, ev.Closed):
                    self._count(instruction.entry)
            case ev.SubmitStep():
                self._call(self._submit(instruction))
            case ev.ReadBack():
                self._call(self._read_back(instruction.vm_id))
            case ev.SpoolFrame():
                self.spool.append(instruction.sequence, encode(instruction.message))
                if self._link is not None:
                    self._link.notify()
            case ev.TrimSpool():
                self.spool.trim(instruction.sequence)
            case ev.SendMessage():
                message = instruction.message
                if isinstance(message, Status):
                    message = msgspec.structs.replace(message, spool_frames=self.spool.frames, spool_dropped=self.spool.dropped_frames)
                if self._link is not None:
                    self._link.send(message)
            case ev.PersistMode():
                save_mode(self.state_dir, instruction.pinned, instruction.ordered)
            case ev.Note():
                getattr(log, instruction.level)(instruction.event, **instruction.fields)

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._calls.add(task)
        task.add_done_callback(self._called)

    def _called(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """A bug in a call, or a journal that cannot be written, is the end of the process: `run` raises it."""
        self._failure = self._failure or error
        self.stop()

    async def _submit(self, instruction: ev.SubmitStep) -> None:
        step = instruction.step
        try:
            async with self._turns.setdefault(step.vm_id, asyncio.Lock()):
                await self._blocking(step.vm_id, self._change, step)
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
        if not self.core.mode.acts:
            raise Refusal(RefusalCode.MODE_FORBIDS, f"mode {self.core.mode} since the step was begun")
        self.host.hypervisor.submit(step.vm_id, step.kind, step.value)

    async def _read_back(self, vm_id: str) -> None:
        try:
            allocation = await self._blocking(vm_id, self.host.hypervisor.allocation, vm_id)
        except (Refusal, HostError, TimeoutError):
            allocation = None
        self._handle(ev.AllocationRead(vm_id=vm_id, allocation=allocation))

    async def _blocking(self, vm_id: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """One call for one VM in the acting pool. A VM whose earlier call is still stuck is refused at once: threads are few."""
        if vm_id in self._stuck:
            raise Refusal(RefusalCode.QUARANTINED)
        call = self._acting.submit(function, *arguments)
        future = asyncio.wrap_future(call)
        try:
            return await asyncio.wait_for(asyncio.shield(future), CALL_DEADLINE_S)
        except TimeoutError:
            if call.cancel():
                raise HostError("not begun: the calls of other VMs do not come back") from None
            self._stuck.add(vm_id)
            log.warning("VM quarantined: its hypervisor call does not come back", vm=vm_id)
            future.add_done_callback(lambda late: self._release(vm_id, late))
            raise

    def _release(self, vm_id: str, late: asyncio.Future[Any]) -> None:
        self._stuck.discard(vm_id)
        error = None if late.cancelled() else late.exception()
        log.info("VM's hypervisor call came back", vm=vm_id, error="" if error is None else str(error))

    def _open_link(self) -> LinkClient | None:
        config = self.config
        if not config.coordinator_urls:
            return None
        context = client_context(Path(config.tls.ca), Path(config.tls.certificate), Path(config.tls.key))
        return LinkClient(config.coordinator_urls, context, self._hello, self.spool, self._linked)

    def _hello(self) -> Hello:
        return self.core.hello(self.clock.wall_ns(), version("tidegate"), self.config.hypervisor)

    def _linked(self, event: LinkEvent) -> None:
        try:
            self._hear(event)
        except HostError as error:  # of our own disk: the link would take it for the network's and go on
            self._fail(error)

    def _hear(self, event: LinkEvent) -> None:
        match event:
            case LinkUp():
                self.metrics.add("tidegate_agent_link_connects_total")
                self._handle(ev.LinkUp(epoch=event.welcome.epoch, acked=event.welcome.acked))
                if event.welcome.mode is not None:
                    self._handle(ev.ModeOrdered(mode=event.welcome.mode))
            case LinkDown():
                log.warning("no coordinator", url=event.url, reason=event.reason, retry_in_s=round(event.retry_in_s, 1))
                self._handle(ev.LinkDown())
            case LinkMessage():
                message = event.message
                if isinstance(message, Ack):
                    self._handle(ev.Acked(boot_id=message.boot_id, sequence=message.sequence))
                elif isinstance(message, SendPlan):
                    self._handle(ev.PlanArrived(plan=message.plan))
                elif isinstance(message, SetMode):
                    self._handle(ev.ModeOrdered(mode=message.mode))

    async def _answer(self, request: Request) -> Any:
        try:
            return await self._reply(request)
        except Refusal:
            raise
        except Exception as error:  # asyncio would log it and go on
            self._fail(error)
            raise HostError(f"the agent ends: {error}") from error

    async def _reply(self, request: Request) -> Any:
        match request.command:
            case "status":
                return self._status()
            case "mode":
                return self._mode(request.argument)
            case "vms":
                return self._vms()
            case "why":
                return self._why(request.argument or "")
            case "simulation" if self.host.ask is not None:
                return await asyncio.get_running_loop().run_in_executor(self._acting, self.host.ask, request.argument or "")
        raise Refusal(RefusalCode.INVALID_VALUE, f"command {request.command!r}: allowed status, mode, vms, why")

    def _status(self) -> dict[str, Any]:
        core = self.core
        return {
            "host_id": core.host_id,
            "boot_id": core.boot_id,
            "version": version("tidegate"),
            "hypervisor": self.config.hypervisor,
            "mode": core.mode,
            "mode_pinned": core.mode_pinned,
            "clock_s": self.clock.wall_ns() / NS_PER_S,
            "link_up": core.link_up,
            "vms": len(self._domains),
            "vms_quarantined": sorted(self._stuck),
            "sampling_rounds": self._rounds,
            "sampling_failures": self._failures,
            "spool_frames": self.spool.frames,
            "spool_bytes": self.spool.bytes_used,
            "spool_dropped_frames": self.spool.dropped_frames,
            "steps_in_flight": core.in_flight,
            "plan_steps_waiting": core.waiting,
            "outcomes": {f"{state}:{code}" if code else str(state): n for (state, code), n in sorted(core.counters.items())},
        }

    def _mode(self, argument: str | None) -> dict[str, Any]:
        if argument is not None:
            try:
                pin = None if argument == "unpin" else Mode(argument)
            except ValueError:
                allowed = ", ".join([*Mode, "unpin"])
                raise Refusal(RefusalCode.INVALID_VALUE, f"mode {argument!r}: allowed {allowed}") from None
            self._handle(ev.ModePinned(mode=pin))
        core = self.core
        return {"mode": core.mode, "pinned": core.pinned, "ordered": core.ordered, "default": core.default_mode}

    def _vms(self) -> list[dict[str, Any]]:
        rows = []
        for summary in self.core.vms():
            sample = self._sample.vms.get(summary.vm_id) if self._sample else None
            domain = next((d for d in self._domains if d.vm_id == summary.vm_id), None)
            row: dict[str, Any] = msgspec.to_builtins(summary)
            row |= msgspec.to_builtins(sample) if sample else {}
            row["capabilities"] = msgspec.to_builtins(domain.capabilities) if domain else {}
            rows.append(row)
        return rows

    def _why(self, vm: str) -> dict[str, Any]:
        vm_id = next((d.vm_id for d in self._domains if vm in (d.vm_id, d.name)), vm)
        story = self.core.why(vm_id)
        if story is None:
            raise Refusal(RefusalCode.UNKNOWN_VM, f"VM {vm!r}: not on this host; `tidegate-agent vms` lists them")
        return {"vm_id": vm_id, "mode": self.core.mode, "story": msgspec.to_builtins(story)}

    def _count(self, closed: ev.Closed) -> None:
        outcome = closed.outcome
        self.metrics.add("tidegate_agent_steps_total", kind=outcome.step.kind, outcome=outcome.state, origin=outcome.origin)
        if outcome.code is not None:
            self.metrics.add("tidegate_agent_refusals_total", code=outcome.code)

    def _publish(self) -> None:
        self._rising.follow("tidegate_agent_spool_dropped_frames_total", self.spool.dropped_frames)
        for collector, seconds in self.host.collector_seconds().items():
            self.metrics.set("tidegate_agent_collector_duration_seconds", seconds, collector=collector)
            self.metrics.set("tidegate_agent_collector_success", float(collector not in self._failures), collector=collector)
        self.metrics.set("tidegate_agent_spool_bytes", self.spool.bytes_used)
        self.metrics.set("tidegate_agent_spool_frames", self.spool.frames)
        self.metrics.set("tidegate_agent_link_up", float(self.core.link_up))
        self.metrics.set("tidegate_agent_vms_quarantined", len(self._stuck))
        self.metrics.choose("tidegate_agent_mode", "mode", self.core.mode, Mode)


async def run_agent(config: AgentConfig) -> None:
    """Run until SIGTERM or SIGINT."""
    configure(config.log_level)
    service = AgentService(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [loop.remove_signal_handler(n) for n in (signal.SIGTERM, signal.SIGINT)])
        await service.run()
