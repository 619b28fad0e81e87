"""The sampling loop: rounds at their period, looks at CPU use in between, a slower pace while the host starves.

Why a thread of its own: reading may block, and only this thread waits then. A round that does not come back within its deadline ends
the process, because nothing else gets the thread back; systemd starts it anew. Looks in between are handed to the thread and not waited
for: the round queues behind them, so a look that hangs is found by the round's deadline, and one that is done need not wake the loop.
The watchdog is petted here, by a finished round, and nowhere else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import structlog

from agent import events as ev
from agent.ports import RawHost, RawVm
from agent.sampling.derive import derive
from agent.sampling.pace import next_period_s
from agent.service.beat import beat_before
from agent.service.calls import CALL_DEADLINE_S
from agent.service.hosts import HostBundle
from agent.service.picture import Picture
from shared.errors import HostError
from shared.metrics import Metrics
from shared.model import HostSample
from shared.notify import notify
from shared.units import NS_PER_S

MAX_PERIOD_S: Final = 60.0  # the longest that can be configured: three of them pass before the watchdog bites (WatchdogSec=180)
MIN_REAL_WAIT_S: Final = 0.002  # keeps a fast simulated clock from starving the loop's sockets

log = structlog.get_logger("agent")


class StuckError(HostError):
    """The sampling thread does not come back."""


class Rounds:
    """`on_sample` gets each derived round and each VM's run, `on_strangers()` is told of VMs not in the inventory."""

    def __init__(
        self,
        picture: Picture,
        host: HostBundle,
        metrics: Metrics,
        *,
        on_sample: Callable[[ev.Sampled], None],
        on_strangers: Callable[[], None],
    ) -> None:
        self._picture, self._host, self._metrics = picture, host, metrics
        self._on_sample, self._on_strangers = on_sample, on_strangers
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling")
        self._looks: list[Future[None]] = []  # of this period
        self._previous: RawHost | None = None

    async def run(self) -> None:
        """Every period; a round that took too long is followed by the next one at once, never by two. Raises StuckError."""
        clock, picture = self._picture.clock, self._picture
        due_ns = beat_before(clock.monotonic_ns())
        while True:
            started = time.monotonic()
            try:
                raw = await self._call(self._read)
            except StuckError as error:
                picture.failures = {"sampler": str(error)}
                raise
            except HostError as error:
                picture.failures = {"sampler": str(error)}
                log.warning("sampling failed", error=str(error))
            else:
                self._take(raw)
                notify("WATCHDOG=1")
            self._end_looks()
            picture.round_seconds = time.monotonic() - started
            self._metrics.observe("tidegate_agent_sample_duration_seconds", picture.round_seconds)
            picture.period_s = self._pace(picture.round_seconds)
            due_ns = max(due_ns + int(picture.period_s * NS_PER_S), beat_before(clock.monotonic_ns()))
            if picture.config.clock.speed:
                await asyncio.sleep(MIN_REAL_WAIT_S)
            await self._wait(due_ns)

    def close(self) -> None:
        """Read nothing more; what hangs is left hanging."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _read(self) -> RawHost:
        raw = self._host.reader.read()
        self._host.after_round(self._picture.rounds)
        return raw

    def _take(self, raw: RawHost) -> None:
        picture = self._picture
        picture.rounds += 1
        picture.failures = raw.failures
        sample = derive(self._previous, raw, {domain.vm_id: domain.memory_max_bytes for domain in picture.domains})
        picture.raw = (self._previous, raw)
        self._metrics.add("tidegate_agent_samples_total")
        self._metrics.set("tidegate_agent_vms", len(raw.vms))
        if self._has_strangers(raw, sample):
            self._on_strangers()
        self._previous = raw
        if sample.period_ns:
            picture.sample = sample
            asked_ns = raw.statistics_monotonic_ns
            seen_ns = raw.wall_ns if asked_ns is None else raw.wall_ns - max(0, raw.monotonic_ns - asked_ns)
            self._on_sample(ev.Sampled(sample=sample, runs={vm.vm_id: vm.epoch for vm in raw.vms}, seen_ns=seen_ns))

    def _has_strangers(self, raw: RawHost, sample: HostSample) -> bool:
        """Whether there is a VM that the inventory does not have, or has as not running although it runs: one that came by migration."""
        running = {domain.vm_id: domain.running for domain in self._picture.domains}
        doubtful = [vm for vm in raw.vms if not running.get(vm.vm_id)]
        if any(vm.vm_id not in running for vm in doubtful):
            return True
        before = {vm.vm_id: vm for vm in self._previous.vms} if doubtful and self._previous is not None else {}
        return any(_has_run(before.get(vm.vm_id), vm, sample.vms[vm.vm_id].cpu_used_millicores) for vm in doubtful)

    def _pace(self, round_seconds: float) -> float:
        picture, config = self._picture, self._picture.config
        if config.hypervisor == "simulated":
            return float(config.sample_period_s)  # a simulated host's pressure is none of this process's
        pressure = None if picture.sample is None else picture.sample.psi_cpu_some_permille
        configured = float(config.sample_period_s)
        period = next_period_s(picture.period_s, configured, pressure, round_seconds, config.sampling.starved_permille)
        return min(period, max(configured, MAX_PERIOD_S))

    async def _wait(self, due_ns: int) -> None:
        """Until the next round, with looks at CPU use and run delay in between, counted back from it."""
        clock, config = self._picture.clock, self._picture.config
        every_ns = config.sampling.subsample_s * NS_PER_S
        # A simulated clock may run a thousand times as fast: its peaks come with its readings.
        while every_ns and not config.clock.speed:
            left_ns = due_ns - clock.monotonic_ns()
            looks = (left_ns - every_ns // 2) // every_ns  # after a late one the next would come at once: half of `every` is the least
            if looks < 1:
                break
            await clock.sleep((left_ns - looks * every_ns) / NS_PER_S)
            self._looks.append(self._thread.submit(self._host.reader.subsample))
        await clock.sleep((due_ns - clock.monotonic_ns()) / NS_PER_S)

    def _end_looks(self) -> None:
        """What became of the looks: the round that came behind them is done. Raises what is no HostError."""
        looks, self._looks = self._looks, []
        for look in looks:
            error = look.exception()
            if isinstance(error, HostError):
                log.debug("no look between two rounds", error=str(error))
            elif error is not None:
                raise error

    async def _call(self, function: Callable[[], Any]) -> Any:
        try:
            return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self._thread, function), CALL_DEADLINE_S)
        except TimeoutError:
            log.error("sampling is stuck", after_s=CALL_DEADLINE_S)
            raise StuckError("sampling is stuck: a restart is the only way to get the thread back") from None


def _has_run(before: RawVm | None, vm: RawVm, used_millicores: int | None) -> bool:
    """Whether the guest used CPU. QEMU itself does for a guest that is paused, whenever somebody asks it: perf counts the vCPUs alone."""
    if before is None or before.epoch != vm.epoch or before.perf is None or vm.perf is None:
        return bool(used_millicores)
    clocks = (before.perf.task_clock_ns_total, vm.perf.task_clock_ns_total)
    return bool(used_millicores) if None in clocks else clocks[0] != clocks[1]
