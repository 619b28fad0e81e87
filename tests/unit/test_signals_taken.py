"""The running coordinator and what applications tell: shown, counted, durable before it is answered for, and loud when it cannot be."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plain_host import plain_capacity

from coordinator import cycle as cy
from coordinator.cycle import DecisionCycle
from coordinator.demand.signals import LATE_S, SignalReading
from coordinator.forecast.events.model import Labels
from coordinator.history_keeper import HistoryKeeper
from coordinator.live_view import LiveView
from coordinator.main import Coordinator
from coordinator.service.problems import InvalidValue
from coordinator.service.signals import SignalBatch, SignalReport
from coordinator.sizing.policy import SizingPolicy
from coordinator.store.history import ParquetHistory
from coordinator.store.signal_log import SignalLog
from coordinator.store.wal import Wal
from shared.config import CycleConfig
from shared.errors import HostError
from shared.messages import Hello, Inventory
from shared.metrics import COORDINATOR_METRICS, Metrics
from shared.model import Domain, HostSample, Mode, Policy, VmSample
from shared.units import BUCKET_S, GIB, NS_PER_S

T0 = 1_700_000_100 // BUCKET_S * BUCKET_S
IDS = ("vm-1", "vm-2", "vm-3")


class Running:
    """What LiveView and the storing methods of Coordinator need of one, on a real log and history; `now_s` is the clock."""

    def __init__(self, folder: Path) -> None:
        self.now_s = T0 + 100.0
        self.clock = SimpleNamespace(wall_ns=lambda: int(self.now_s * NS_PER_S))
        self.cycle = DecisionCycle(CycleConfig(), SizingPolicy(), epoch=1)
        self.signal_log = SignalLog(folder / "signals")
        self.history = ParquetHistory(folder / "history")
        self.metrics = Metrics(COORDINATOR_METRICS)
        self.failure: BaseException | None = None
        self.wal = Wal(folder / "wal")
        held = [""]
        self.keeper = HistoryKeeper(self.history, self.wal, self.signal_log, self.metrics, hold=held.append, on_bug=self._fail)
        self.read_history = self.keeper.read
        capacity = plain_capacity(cpu_millicores=16_000, memory_bytes=64 * GIB, net_bits_per_s=10**10)
        hello = Hello(host_id="h", boot_id="b", agent_version="0", wall_ns=0, capacity=capacity, mode=Mode.OBSERVE, mode_pinned=False)
        clients = dict(zip(IDS, ("acme", "acme", "beta"), strict=True))
        domains = tuple(
            Domain(vm_id=vm_id, name=vm_id, vcpus_max=4, memory_max_bytes=8 * GIB, policy=Policy(client=client))
            for vm_id, client in clients.items()
        )
        self.cycle.handle(cy.AgentSaid(host_id="h", message=hello), 0)
        self.cycle.handle(cy.AgentSaid(host_id="h", message=Inventory(domains=domains)), 0)
        self.view = LiveView(self)  # type: ignore[arg-type]

    async def take_signals(self, readings: tuple[SignalReading, ...]) -> Any:
        return await Coordinator.take_signals(self, readings)  # type: ignore[arg-type]

    def _fail(self, error: BaseException) -> None:
        self.failure = error

    def tick(self, now_s: float) -> None:
        self.now_s = now_s
        for instruction in self.cycle.handle(cy.Tick(), int(now_s * NS_PER_S)):
            match instruction:
                case cy.StoreBucket():
                    self.keeper.store_bucket(instruction)
                case cy.StoreSignals():
                    self.keeper.store_signals(instruction)
        assert self.keeper.settle(10.0)

    def sample(self, at_s: int) -> None:
        vms = {"vm-1": VmSample(cpu_used_millicores=400)}
        host = HostSample(wall_ns=at_s * NS_PER_S, monotonic_ns=at_s * NS_PER_S, period_ns=5 * NS_PER_S, vms=vms)
        self.cycle.handle(cy.SamplesArrived(host_id="h", samples=(host,)), at_s * NS_PER_S)

    def tell(self, *reports: SignalReport) -> Any:
        return asyncio.run(self.view.tell_signals(SignalBatch(readings=reports)))


@pytest.fixture
def running(tmp_path: Path) -> Any:
    made = Running(tmp_path)
    yield made
    made.keeper.close()
    made.signal_log.close()
    made.wal.close()


def counted(running: Running) -> dict[str, float]:
    lines = [line for line in running.view.metrics_text().splitlines() if line.startswith("tidegate_signals_total{")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in lines}


def test_a_client_is_told_of_and_shown(running: Running) -> None:
    taken = running.tell(
        SignalReport(time_s=T0 + 20, client="acme", requests_per_s=40),
        SignalReport(time_s=T0 + 60, client="acme", requests_per_s=60, queue_length=0),
        SignalReport(time_s=T0 + 65, vm_id="vm-1", requests_per_s=80),
    )
    assert (taken.vms, taken.taken, taken.replaced, taken.late) == (2, 4, 1, 0)
    assert counted(running) == {"taken": 4, "replaced": 1, "late": 0}
    shown = running.view.vm("vm-1")
    assert shown is not None
    assert [(one.signal, one.value, one.time_s, one.bucket_mean) for one in shown.signals] == [
        ("requests_per_s", 80, T0 + 65, None),
        ("queue_length", 0, T0 + 65, None),
    ]
    untold = running.view.vm("vm-3")
    assert untold is not None
    assert untold.signals == ()


def test_the_bucket_and_the_history_have_the_mean(running: Running) -> None:
    running.tell(
        SignalReport(time_s=T0 + 20, client="acme", requests_per_s=40), SignalReport(time_s=T0 + 60, vm_id="vm-1", requests_per_s=80)
    )
    running.sample(T0 + 30)
    running.tick(T0 + BUCKET_S + 60)
    shown = running.view.vm("vm-1")
    assert shown is not None
    assert [one.bucket_mean for one in shown.signals] == [60, None]
    past = asyncio.run(_history(running, "vm-1"))
    assert [(one.signal, one.mean[-1]) for one in past.signals] == [("requests_per_s", 60), ("queue_length", None)]
    assert len(past.signals[0].mean) == len(past.resources[0].start_s)
    assert [one.mean[-1] for one in asyncio.run(_history(running, "vm-2")).signals] == [40, None]  # no sample came of it
    assert asyncio.run(_history(running, "vm-3")).signals == ()


async def _history(running: Running, vm_id: str) -> Any:
    return await running.view.history(vm_id, 1)


def test_an_answer_means_that_a_successor_knows(running: Running, tmp_path: Path) -> None:
    running.tell(SignalReport(time_s=T0 + 20, vm_id="vm-1", queue_length=3))
    again = SignalLog(tmp_path / "signals")
    assert list(again.replay()) == [SignalReading(T0 + 20, ("vm-1",), (None, 3.0))]
    again.close()


def test_a_refusal_is_counted_and_takes_nothing(running: Running) -> None:
    good = SignalReport(time_s=T0 + 20, vm_id="vm-1", queue_length=3)
    with pytest.raises(InvalidValue):
        running.tell(good, SignalReport(time_s=running.now_s - LATE_S - 2, vm_id="vm-1", queue_length=3))
    assert counted(running) == {"refused": 2}
    assert running.cycle.signals.newest("vm-1") is None


def test_a_log_that_cannot_be_written_is_an_error_and_the_same_can_be_told_again(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise HostError("no space left on device")

    monkeypatch.setattr(running.signal_log, "sync", broken)
    with pytest.raises(HostError, match="no space"):
        running.tell(SignalReport(time_s=T0 + 20, vm_id="vm-1", queue_length=3))
    assert running.failure is None
    monkeypatch.undo()
    again = running.tell(SignalReport(time_s=T0 + 20, vm_id="vm-1", queue_length=3))
    assert again.taken + again.replaced == 1


def test_an_application_is_told_of_where_vms_are_labelled_with_one(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {vm_id: replace(label, app="shop") if vm_id != "vm-2" else label for vm_id, label in running.cycle.labels().items()}
    assert labels["vm-1"] == Labels(client="acme", app="shop")
    monkeypatch.setattr(running.cycle, "labels", lambda: labels)
    assert running.tell(SignalReport(time_s=T0 + 20, application="shop", queue_length=3)).vms == 2
    assert running.cycle.signals.newest("vm-3") == (T0 + 20, (None, 3.0))
