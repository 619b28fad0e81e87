"""The sampling loop: looks between rounds, a slower pace while the host starves, rounds that fail, and one that never comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from agent.ports import PerfCounts, RawHost, RawVm
from agent.service import rounds as rounds_module
from agent.service.calls import cancel
from agent.service.hosts import HostBundle
from agent.service.picture import Picture
from agent.service.rounds import MAX_PERIOD_S, Rounds, StuckError
from shared.clock import ManualClock
from shared.config import AgentConfig, SamplingConfig
from shared.errors import HostError
from shared.metrics import AGENT_METRICS, Metrics
from shared.model import Domain, HostSample
from shared.units import NS_PER_S


class Host:
    """A reader whose pressure and failures tests set."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock, self.calls = clock, list[str]()
        self.stall_us = 0  # CPU pressure so far
        self.share = 0.0  # of the time, from now on
        self.last_ns = clock.now_ns
        self.fails = False
        self.hang: threading.Event | None = None
        self.bug: Exception | None = None
        self.vm = RawVm(vm_id="new", epoch="1")

    def read(self) -> RawHost:
        self.calls.append("read")
        if self.hang is not None:
            self.hang.wait(30)
        if self.fails:
            raise HostError("proc: no such thing")
        now_ns = self.clock.now_ns
        self.stall_us += int((now_ns - self.last_ns) / 1000 * self.share)
        self.last_ns = now_ns
        return RawHost(wall_ns=now_ns, monotonic_ns=now_ns, boot_id="b1", psi_cpu_some_us_total=self.stall_us, vms=(self.vm,))

    def subsample(self) -> None:
        self.calls.append("subsample")
        if self.bug is not None:
            raise self.bug
        if self.fails:
            raise HostError("proc: no such thing")


class Loop:
    """Rounds on a clock that moves when somebody sleeps."""

    def __init__(self, **config: Any) -> None:
        self.clock = ManualClock(1_800_000_000 * NS_PER_S)
        self.host = Host(self.clock)
        settings = AgentConfig(host_id="h1", **config)
        unused: Any = None
        self.picture = Picture(
            config=settings, clock=self.clock, core=unused, calls=unused, spool=unused, period_s=float(settings.sample_period_s)
        )
        self.samples: list[HostSample] = []
        self.strangers = 0
        bundle = HostBundle(hypervisor=unused, reader=self.host)
        self.rounds = Rounds(
            self.picture,
            bundle,
            Metrics(AGENT_METRICS),
            on_sample=lambda event: self.samples.append(event.sample),
            on_strangers=self.stranger,
        )

    def stranger(self) -> None:
        self.strangers += 1

    async def until(self, holds: Callable[[], bool]) -> None:
        task = asyncio.ensure_future(self.rounds.run())
        async with asyncio.timeout(20):
            while not holds() and not task.done():  # noqa: ASYNC110  # the loop under test sets no event
                await asyncio.sleep(0.001)
        if task.done():
            task.result()
        await cancel([task])
        self.rounds.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds_module, "MIN_REAL_WAIT_S", 0.0)


def test_looks_come_between_rounds_and_rounds_at_their_period() -> None:
    loop = Loop(sampling=SamplingConfig(subsample_s=1))
    asyncio.run(loop.until(lambda: len(loop.samples) >= 3))
    assert loop.host.calls[:11] == ["read", *["subsample"] * 4, "read", *["subsample"] * 4, "read"]
    assert {sample.period_ns for sample in loop.samples} == {5 * NS_PER_S}
    assert loop.strangers >= 3, "a VM that the inventory does not know"
    silent = Loop(sampling=SamplingConfig(subsample_s=0))
    asyncio.run(silent.until(lambda: len(silent.samples) >= 3))
    assert set(silent.host.calls) == {"read"}


def test_the_pace_follows_the_host_s_pressure_and_stays_within_the_watchdog() -> None:
    loop = Loop()
    loop.host.share = 0.95
    asyncio.run(loop.until(lambda: loop.picture.period_s >= 20))
    assert loop.picture.period_s == 20, "four times what is configured"
    calm = Loop()
    calm.picture.period_s = 20.0
    asyncio.run(calm.until(lambda: calm.picture.period_s == 5))
    slow = Loop(sample_period_s=40)
    slow.host.share = 0.95
    asyncio.run(slow.until(lambda: slow.picture.rounds >= 6))
    assert slow.picture.period_s == MAX_PERIOD_S
    simulated = Loop()
    simulated.picture.config = msgspec.structs.replace(simulated.picture.config, hypervisor="simulated", workload="x")
    simulated.host.share = 0.95
    asyncio.run(simulated.until(lambda: simulated.picture.rounds >= 6))
    assert simulated.picture.period_s == 5, "a simulated host's pressure is not this process's"


def test_a_failed_round_is_said_and_does_not_pet_the_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(rounds_module, "notify", told.append)
    loop = Loop()
    loop.host.fails = True
    asyncio.run(loop.until(lambda: loop.host.calls.count("read") >= 3))
    assert loop.picture.failures == {"sampler": "proc: no such thing"} and told == [] and loop.samples == []
    loop = Loop()
    asyncio.run(loop.until(lambda: loop.picture.rounds >= 3))
    assert set(told) == {"WATCHDOG=1"} and loop.picture.failures == {}


def test_a_round_that_never_comes_back_ends_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds_module, "CALL_DEADLINE_S", 0.1)
    loop = Loop()
    loop.host.hang = threading.Event()
    with pytest.raises(StuckError, match="restart"):
        asyncio.run(loop.until(lambda: False))
    assert "sampler" in loop.picture.failures
    loop.host.hang.set()


def test_a_bug_in_a_look_ends_the_loop_and_a_failing_look_does_not() -> None:
    loop = Loop()
    loop.host.bug = ZeroDivisionError("look")
    with pytest.raises(ZeroDivisionError, match="look"):
        asyncio.run(loop.until(lambda: False))
    assert loop.host.calls == ["read", *["subsample"] * 4, "read"]
    loop = Loop()
    loop.host.bug = HostError("look")
    asyncio.run(loop.until(lambda: loop.picture.rounds >= 3))
    assert loop.picture.failures == {}


@pytest.mark.parametrize(("offset_s", "looks"), [(0.0, 4), (0.4, 4), (0.6, 3)])
def test_rounds_keep_to_the_beat_and_looks_keep_apart(offset_s: float, looks: int) -> None:
    loop = Loop()
    loop.clock.advance(offset_s)
    asyncio.run(loop.until(lambda: len(loop.samples) >= 2))
    assert loop.host.calls[: looks + 2] == ["read", *["subsample"] * looks, "read"]
    assert loop.samples[0].period_ns == int((5 - offset_s) * NS_PER_S) and loop.samples[1].period_ns == 5 * NS_PER_S


def _vm(used_ns: int, on_vcpus_ns: int | None, epoch: str = "1") -> RawVm:
    perf = None if on_vcpus_ns is None else PerfCounts(task_clock_ns_total=on_vcpus_ns)
    return RawVm(vm_id="new", epoch=epoch, cpu_used_ns_total=used_ns, perf=perf)


@pytest.mark.parametrize(
    ("listed", "before", "now", "told"),
    [
        (True, _vm(0, 0), _vm(NS_PER_S, NS_PER_S), False),
        (False, _vm(0, 0), _vm(0, 0), False),
        (False, _vm(0, 7), _vm(NS_PER_S, 7), False),  # QEMU was asked something
        (False, _vm(0, 7), _vm(NS_PER_S, 8), True),
        (False, _vm(0, None), _vm(NS_PER_S, None), True),
        (False, _vm(0, None), _vm(0, None), False),
        (False, _vm(0, 7), _vm(NS_PER_S, 7, "2"), False),  # no rate across epochs
        (None, _vm(0, 7), _vm(0, 7), True),
    ],
)
def test_who_runs_and_is_not_known_to_run_is_a_stranger(listed: bool | None, before: RawVm, now: RawVm, told: bool) -> None:
    """`listed`: as running in the inventory, as paused, or (None) not at all."""
    loop = Loop()
    if listed is not None:
        loop.picture.domains = (Domain(vm_id="new", name="new", vcpus_max=1, memory_max_bytes=1, running=listed),)
    raw = [msgspec.structs.replace(loop.host.read(), vms=(vm,), monotonic_ns=at * NS_PER_S) for at, vm in ((1, before), (6, now))]
    loop.rounds._take(raw[0])
    loop.strangers = 0
    loop.rounds._take(raw[1])
    assert bool(loop.strangers) is told
