"""What an outage of a store does to the rest of the process: held at once, agents sent away after a while, both undone by themselves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from coordinator import outages
from coordinator.outages import Outages, opened
from shared.errors import ConfigError, HostError
from shared.metrics import COORDINATOR_METRICS, Metrics


class Process:
    """What the coordinator does with it."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.refused: list[str] = []
        self.bugs: list[BaseException] = []
        self.log_trouble = ""
        self.metrics = Metrics(COORDINATOR_METRICS)
        self.outages = Outages(
            self.metrics,
            hold=self.held.append,
            refuse_agents=self.refused.append,
            log_trouble=lambda: self.log_trouble,
            on_bug=self.bugs.append,
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.outages.look()
                await asyncio.sleep(0.005)

    def metric(self, name: str) -> float:
        return next(float(line.split()[1]) for line in self.metrics.render().decode().splitlines() if line.startswith(name + " "))


def run(test: Callable[[Process], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "AGENTS_AFTER_S", 0.1)
    monkeypatch.setattr(outages, "STUCK_S", 0.2)

    async def whole() -> None:
        process = Process()
        await test(process)
        assert await process.outages.writes.close(10) == 0
        assert process.bugs == []

    asyncio.run(whole())


def test_an_outage_holds_at_once_and_sends_agents_away_when_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(process: Process) -> None:
        away = True

        def write() -> None:
            if away:
                raise HostError("the database is away")

        process.outages.look()
        assert (process.outages.why, process.held, process.refused) == ("", [], [])
        process.outages.writes.add(write)
        began_s = time.monotonic()
        await process.until(lambda: bool(process.held))
        await process.until(lambda: bool(process.refused))
        assert time.monotonic() - began_s >= 0.1
        assert (process.held, process.refused) == (["the database is away"], ["the coordinator cannot store: the database is away"])
        assert process.metric("tidegate_store_held") == process.metric("tidegate_store_pending_writes") == 1
        assert process.metric("tidegate_store_unreachable_seconds") >= 0.1
        assert process.metric("tidegate_store_write_failures_total") >= 1
        away = False
        await process.until(lambda: len(process.refused) == 2)
        assert (process.held[-1], process.refused[-1], process.outages.why) == ("", "", "")
        assert process.metric("tidegate_store_held") == process.metric("tidegate_store_unreachable_seconds") == 0

    run(test, monkeypatch)


def test_a_store_that_does_not_answer_counts_as_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(process: Process) -> None:
        gate = threading.Event()
        process.outages.writes.add(gate.wait)
        await process.until(lambda: bool(process.refused))
        assert process.held == ["a store has not answered for a while"]
        gate.set()
        await process.until(lambda: len(process.refused) == 2)
        assert process.held[-1] == ""

    run(test, monkeypatch)


def test_a_log_that_cannot_be_written_holds_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(process: Process) -> None:
        process.log_trouble = "No space left on device"
        process.outages.look()
        process.log_trouble = ""
        process.outages.look()
        assert process.held == ["No space left on device", ""]
        assert process.refused == [], "the gateway itself refuses then"

    run(test, monkeypatch)


def test_a_start_waits_for_an_outage_and_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "START_RETRY_S", 0.01)
    tries = []

    def make() -> str:
        tries.append(1)
        if len(tries) < 4:
            raise HostError("not yet")
        return "made"

    def wrong() -> str:
        raise ConfigError("registry_url: no")

    async def test() -> None:
        stop = asyncio.Event()
        assert await opened(make, stop) == "made"
        assert len(tries) == 4
        with pytest.raises(ConfigError):
            await opened(wrong, stop)
        stop.set()
        assert await opened(make, stop) is None

    asyncio.run(test())
