"""What applications tell arrives at every engine's door: through the shards of a pool, the calendar and the cold start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from forecast_fleet import CAPACITY, END_S, FLEET, OPTIONS, bucket, history, names

from coordinator.compute.local_pool import LocalPool
from coordinator.forecast.engine import ForecastEngine
from coordinator.forecast.events.model import Effect, Notice, Occurrences, Scope
from coordinator.model import SIGNALS, BucketBlock, HistoryBlock
from shared.units import BUCKET_S


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What the engines of a pool are given, by method."""
    calls: dict[str, list[Any]] = {"load": [], "advance": [], "retrain": []}
    for name, found in calls.items():
        monkeypatch.setattr(ForecastEngine, name, _spied(getattr(ForecastEngine, name), found))
    return calls


def _spied(method: Any, found: list[Any]) -> Any:
    def spy(self: Any, block: Any, *rest: Any) -> Any:
        found.append(block)
        return method(self, block, *rest)

    return spy


def told_history() -> HistoryBlock:
    past = history()
    signals = np.random.default_rng(1).uniform(0, 900, (FLEET, len(SIGNALS), past.mean.shape[2])).astype(np.float32)
    signals[:, :, ::4] = np.nan
    return replace(past, signals=signals)


def told_bucket() -> BucketBlock:
    return replace(bucket(END_S + BUCKET_S), signals=np.random.default_rng(2).uniform(0, 900, (FLEET, len(SIGNALS))))


def events(scope: Scope) -> Occurrences:
    notice = Notice(id="n", name="n", category="backup", scope=scope, effect=Effect())
    return Occurrences.of([(notice, END_S - 40 * BUCKET_S, END_S - 36 * BUCKET_S)])


@pytest.mark.parametrize("calendar", [Occurrences.none(), events(Scope())], ids=["no events", "an event"])
def test_every_shard_gets_the_signals_of_its_vms(seen: dict[str, list[Any]], calendar: Occurrences) -> None:
    pool = LocalPool(OPTIONS, shards=3)
    past, newest = told_history(), told_bucket()
    assert past.signals is not None
    assert newest.signals is not None
    pool.announce_now(calendar, {})
    pool.load_now(past)
    pool.forecast_now(newest, CAPACITY)
    pool.retrain_now(past)
    row = {vm_id: i for i, vm_id in enumerate(names(FLEET))}
    for name, whole in (("load", past.signals), ("advance", newest.signals), ("retrain", past.signals)):
        assert sorted(vm_id for block in seen[name] for vm_id in block.vm_ids) == sorted(row)
        for block in seen[name]:
            np.testing.assert_array_equal(block.signals, whole[[row[vm_id] for vm_id in block.vm_ids]])


def test_nobody_told_is_none_everywhere(seen: dict[str, list[Any]]) -> None:
    pool = LocalPool(OPTIONS, shards=2)
    pool.load_now(history())
    pool.forecast_now(bucket(END_S + BUCKET_S), CAPACITY)
    assert [block.signals for name in ("load", "advance") for block in seen[name]] == [None] * 4
