"""Minutes on disk and filled in from history: the keeper with a real registry, history and cycle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from report_scene import BUCKETS, T0, scene

from coordinator.compliance_turns import ComplianceKeeper
from coordinator.cycle import MergeMinutes, StoreMinutes
from coordinator.demand.minutes import MINUTES, NAMES, MinuteBlock
from coordinator.learning.compliance import ComplianceBook, LateMinutes
from coordinator.learning.compliance_hours import HOUR_S, N_METRICS, HourBits, Owner
from coordinator.learning.compliance_series import minutes_by_vm
from coordinator.learning.default_slas import DEFAULT_SLAS, DefaultSlas, RegisteredSlas
from coordinator.learning.objectives import METRICS, Objective, Sla
from shared.metrics import COORDINATOR_METRICS, Metrics
from shared.model import Priority
from shared.units import BUCKET_S

END = T0 + BUCKETS * BUCKET_S


class Slas:
    """Answers that change."""

    def __init__(self) -> None:
        self.now, self.version = DEFAULT_SLAS, 1

    def sla_of(self, *of: Any) -> Any:
        return self.now.sla_of(*of)


class Keeping:
    """A keeper whose writes run at once, in order."""

    def __init__(self, folder: Path) -> None:
        _, self.running = scene(folder)
        self.book: ComplianceBook = self.running.cycle.compliance
        self.book.slas = self.slas = Slas()
        self.metrics = Metrics(COORDINATOR_METRICS)
        self.keeper = ComplianceKeeper(
            self.running.cycle,
            store=self.running.minutes,
            past=self.running.history,
            clock=self.running.clock,
            write=self.write,
            read=self.read,
            insist=self.read,
            metrics=self.metrics,
        )

    def write(self, function: Callable[..., Any], *arguments: object, then: Callable[[Any], None] | None = None) -> None:
        result = function(*arguments)
        if then is not None:
            then(result)

    async def read(self, function: Callable[..., Any], *arguments: object) -> Any:
        return function(*arguments)

    def fill(self) -> None:
        asyncio.run(self.keeper._fill_past())

    def stored(self) -> np.ndarray:
        hours = self.running.minutes.hours()
        return minutes_by_vm(hours, ["vm-a"], T0, END)[0]


def block(vm_ids: tuple[str, ...], start_s: int, permille: float, samples: int = 60) -> MinuteBlock:
    weights = np.full((len(vm_ids), MINUTES, N_METRICS), 600, np.int32)
    sums = (weights * permille * 10).astype(np.int32)
    return MinuteBlock(start_s=start_s, vm_ids=vm_ids, sums=sums, weights=weights, samples=np.full(len(vm_ids), samples))


def test_the_past_is_filled_in_once_and_again_for_other_thresholds(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path)
    keeping.fill()
    good, bad, unknown = keeping.stored().T
    at = {metric: i for i, metric in enumerate(METRICS)}
    assert (good[at["ready"]], bad[at["ready"]], unknown[at["ready"]]) == (0, 0, 120)
    assert good[at["memory_pressure"]] == good[at["network_drops"]] == 120
    held = sum(1.2 * (400.0 + 50.0 * b) > 1800 for b in range(BUCKETS))
    assert bad[at["unmet_demand"]] == 5 * held > 0  # a tenth less was used than was wanted, where the limit was met
    assert keeping.book.standings("vm")["vm-a"][at["unmet_demand"]].bad == 5 * held

    read: list[int] = []
    past = keeping.running.history.measures
    keeping.running.history.measures = lambda *arguments: read.append(1) or past(*arguments)  # type: ignore[func-returns-value]
    keeping.fill()
    assert read == []  # every hour was tried
    wide = [
        msgspec.structs.replace(each, objectives=tuple(msgspec.structs.replace(o, threshold_permille=500) for o in each.objectives))
        for each in DEFAULT_SLAS.by_priority
    ]
    keeping.slas.now, keeping.slas.version = DefaultSlas(by_priority=tuple(wide)), 2  # type: ignore[arg-type]
    keeping.fill()
    assert read
    good, bad, _ = keeping.stored().T
    assert bad[at["unmet_demand"]] == 0
    assert good[at["unmet_demand"]] == 120
    assert keeping.book.standings("vm")["vm-a"][at["unmet_demand"]].good == 120
    assert keeping.book.standings("vm")["vm-a"][at["ready"]].good == 5 * (BUCKETS - held)  # 500 is more than what history tells of


def test_late_minutes_of_an_old_hour_are_merged_on_disk(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path)
    book, running = keeping.book, keeping.running
    owners = running.cycle.owners()
    for n in range(9):
        hours = book.close(T0 + (2 + n) * HOUR_S, None, owners)
        keeping.keeper.perform(StoreMinutes(hours=tuple(hours)))
    late = book.grow(block(("vm-a",), T0, 900.0), owners)
    assert isinstance(late, LateMinutes)
    before = book.standings("vm")["vm-a"][0]
    keeping.keeper.perform(MergeMinutes(late=late))
    after = book.standings("vm")["vm-a"][0]
    assert (after.bad, after.unknown) == (before.bad + 5, before.unknown - 5)
    fewer = replace(late, block=block(("vm-a",), T0, 0.0, samples=3))
    keeping.keeper.perform(MergeMinutes(late=fewer))
    assert book.standings("vm")["vm-a"][0] == after


def test_a_restart_goes_on_from_the_documents(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path)
    owners = keeping.running.cycle.owners()
    hours = keeping.book.close(END, block(tuple(sorted(owners)), END, 60.0), owners)
    keeping.keeper.perform(StoreMinutes(hours=tuple(hours)))
    again = ComplianceBook()
    again.restore(keeping.running.minutes.hours())
    assert again.end_s == keeping.book.end_s == END + BUCKET_S
    for kind in ("vm", "client", "priority"):
        was, now = keeping.book.standings(kind), again.standings(kind)  # type: ignore[arg-type]
        # nobody runs until the fleet says so, and only who runs has a budget for what is to come
        assert {name: [(p.good, p.bad, p.unknown, p.burn) for p in parts] for name, parts in was.items()} == {
            name: [(p.good, p.bad, p.unknown, p.burn) for p in parts] for name, parts in now.items()
        }


def test_old_hours_are_dropped(tmp_path: Path) -> None:
    _, running = scene(tmp_path)
    store = running.minutes
    store.save(HourBits(hour_s=T0 - 100 * HOUR_S))
    store.save(HourBits(hour_s=T0 + 5 * HOUR_S), T0)
    assert [hour.hour_s for hour in store.hours()] == [T0, T0 + HOUR_S, T0 + 5 * HOUR_S]
    assert store.load(T0 - 100 * HOUR_S) is None


def test_metrics_tell_clients_and_priorities(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path)
    owners = keeping.running.cycle.owners()
    hours = keeping.book.close(END, block(tuple(sorted(owners)), END, 60.0), owners)
    keeping.keeper.perform(StoreMinutes(hours=tuple(hours)))
    text = keeping.metrics.render().decode()
    assert 'tidegate_sla_client_compliance_ratio{client="acme",objective="ready"} 0.0' in text
    assert 'tidegate_sla_priority_burn_ratio{objective="ready",priority="high"}' in text
    assert 'tidegate_sla_vm_seconds{state="bad"} 3600.0' in text  # 3 VMs, 4 objectives, 5 minutes


def test_vms_that_left_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.learning.compliance.SPARE_VMS", 2)
    book = ComplianceBook()
    for n in range(6):
        vm_id = f"vm-{n}"
        book.close(T0 + n * HOUR_S, block((vm_id,), T0 + n * HOUR_S, 0.0), {vm_id: Owner(client="acme")})
    assert list(book.standings("vm")) == ["vm-2", "vm-3", "vm-4", "vm-5"]
    assert book.forgotten == 2
    assert book.standings("client")["acme"][0].good == 20


def test_the_names_of_the_metrics_are_those_of_objectives() -> None:
    assert METRICS == NAMES


def test_metrics_of_a_client_that_is_gone_become_nan(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path)
    keeping.keeper.publish()
    keeping.running.cycle.compliance = keeping.keeper._book = ComplianceBook()
    keeping.keeper.publish()
    assert 'tidegate_sla_client_burn_ratio{client="acme",objective="ready"} NaN' in keeping.metrics.render().decode()


def test_a_registered_sla_goes_before_the_default() -> None:
    slas = RegisteredSlas(DEFAULT_SLAS)
    own = Sla(id="gold", name="gold", objectives=(Objective(metric="ready", threshold_permille=20, share_permille=995),))
    before = slas.version
    slas.promise({"acme": own})
    assert slas.version != before
    assert slas.sla_of("a", "acme", "", Priority.LOW) is own
    assert slas.sla_of("b", "zeta", "", Priority.LOW) is DEFAULT_SLAS.by_priority[0]
    version = slas.version
    slas.promise({"acme": own})
    assert slas.version == version
