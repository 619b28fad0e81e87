"""The driver of alerts over a real registry, cycle and webhook: a registry that refuses, a new process, the world's time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from alert_receivers import Hook
from sqlalchemy import text

from coordinator.alert_picture import PictureOf
from coordinator.alerting import Alerting, real_time
from coordinator.cycle import DecisionCycle
from coordinator.learning.alerts import AlertState
from coordinator.settings import sizing_policy
from coordinator.store.alerts import AlertStore
from coordinator.store.registry import SqlRegistry
from coordinator.store.wal import Wal
from shared.clock import SystemClock
from shared.config import AlertsConfig, ClockConfig, CoordinatorConfig
from shared.metrics import COORDINATOR_METRICS, Metrics
from shared.units import NS_PER_S

ALWAYS = AlertsConfig(disk_free_permille=900, keep_s=0)  # hardly any disk is 90 % free: one alert from the first look on


class Process:
    """What alerting needs of the process: real parts, and no agents."""

    def __init__(self, folder: Path, alerts: AlertsConfig) -> None:
        self.config = CoordinatorConfig(state_dir=str(folder), alerts=alerts)
        self.clock = SystemClock()
        self.metrics = Metrics(COORDINATOR_METRICS)
        self.registry = SqlRegistry(f"sqlite:///{folder / 'registry.sqlite'}")
        self.cycle = DecisionCycle(self.config.cycle, sizing_policy(self.config.sizing), 1)
        self.gateway = SimpleNamespace(connected=dict)
        self.wal = Wal(folder / "wal", max_bytes=self.config.wal_max_bytes)
        self.started_ns = self.clock.wall_ns()
        self.cycle_done_ns: int | None = None
        picture: Any = PictureOf(self, 3)  # type: ignore[arg-type]  # of the gateway only `connected` is asked
        self.alerting = Alerting(self, AlertStore(self.registry.engine), picture)

    async def read(self, function: Callable[..., Any], *arguments: object) -> Any:
        return await asyncio.to_thread(function, *arguments)

    def sql(self, statement: str) -> None:
        with self.registry.engine.begin() as connection:
            connection.execute(text(statement))

    def firing(self) -> list[str]:
        return sorted(alert.rule for alert in self.alerting.book.alerts.values() if alert.state is AlertState.FIRING)

    async def close(self) -> None:
        await self.alerting._client.aclose()
        self.wal.close()
        self.registry.close()


@asynccontextmanager
async def process(folder: Path, alerts: AlertsConfig) -> AsyncIterator[Process]:
    made = Process(folder, alerts)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook()
    yield server
    server.close()


def config(hook: Hook, **more: Any) -> AlertsConfig:
    return AlertsConfig(disk_free_permille=900, keep_s=0, webhooks=(hook.url,), **more)


def test_a_registry_that_refuses_delays_the_word_and_loses_nothing(tmp_path: Path, hook: Hook) -> None:
    async def play() -> None:
        async with process(tmp_path, config(hook)) as of:
            of.sql("ALTER TABLE alert_outbox RENAME TO away")
            await of.alerting.look()
            assert "DiskFilling" in of.firing()
            await of.alerting.look()  # now it is known that the first was not written
            assert "RegistryFailing" in of.firing()
            of.sql("ALTER TABLE away RENAME TO alert_outbox")
            await of.alerting.look()
            await of.alerting.look()
            assert "RegistryFailing" not in of.firing()
            await of.alerting.deliveries[0].turn()

    asyncio.run(play())
    assert hook.turns("DiskFilling") == ["fired"]
    assert hook.turns("RegistryFailing") == ["fired", "resolved"]
    rules = [note["rule"] for note in hook.notes()]
    assert rules.index("DiskFilling") < rules.index("RegistryFailing")


def test_a_new_process_goes_on_with_the_alerts_of_the_old_one(tmp_path: Path, hook: Hook) -> None:
    async def play() -> None:
        async with process(tmp_path, config(hook)) as of:
            await of.alerting.look()
            (alert_id,) = [each.id for each in of.alerting.book.alerts.values() if each.rule == "DiskFilling"]
            acknowledged = await of.alerting.acknowledge(alert_id, "ops", "ordered a disk")
            assert acknowledged is not None
        async with process(tmp_path, config(hook)) as of:
            await of.alerting.look()
            (alert,) = [each for each in of.alerting.book.alerts.values() if each.rule == "DiskFilling"]
            assert (alert.id, alert.acknowledged_by, alert.comment) == (alert_id, "ops", "ordered a disk")
            await of.alerting.deliveries[0].turn()

    asyncio.run(play())
    assert hook.turns("DiskFilling") == ["fired", "acknowledged"]


def test_without_receivers_nothing_is_kept_for_them(tmp_path: Path) -> None:
    async def play() -> None:
        async with process(tmp_path, ALWAYS) as of:
            await of.alerting.look()
            assert "DiskFilling" in of.firing()
            assert AlertStore(of.registry.engine).backlog() == {}
            assert 'tidegate_alerts{severity="critical",state="firing"}' in of.metrics.render().decode()

    asyncio.run(play())


def test_receivers_hear_of_the_worlds_time(tmp_path: Path) -> None:
    clock = ClockConfig(simulated_start_ns=1000 * NS_PER_S, real_start_ns=5000 * NS_PER_S, speed=300.0)
    assert real_time(clock)(1000.0 + 600.0) == 5002.0
    assert real_time(ClockConfig())(7.0) == 7.0
