"""The History port: one suite on the fake and on Parquet, then what only files can get wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fakes import MemoryHistory
from history_blocks import DAY_S, T0, block, bucket, forecast
from s3_server import s3_server, s3_url

from coordinator.demand.signals import SignalBlock
from coordinator.model import LEVELS, N_RESOURCES, SIGNALS, HistoryBlock
from coordinator.ports import History
from coordinator.store.history import STORED_LEVELS, ParquetHistory
from coordinator.store.objects import Root
from shared.errors import HostError
from shared.units import BUCKET_S

__all__ = ["s3_server", "s3_url"]  # fixtures


@pytest.fixture(params=["memory", "folder", "s3"])
def history(request: pytest.FixtureRequest, tmp_path: Path) -> History:
    if request.param == "memory":
        return MemoryHistory()
    return ParquetHistory(tmp_path if request.param == "folder" else request.getfixturevalue("s3_url"))


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a history that is opened more than once is kept."""
    made: Path | str = tmp_path if request.param == "folder" else request.getfixturevalue("s3_url")
    return made


def same(left: HistoryBlock, right: HistoryBlock) -> None:
    assert (left.vm_ids, left.end_s) == (right.vm_ids, right.end_s)
    for name in ("mean", "peak", "censored", "capacity"):
        assert getattr(left, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    assert (left.signals is None) == (right.signals is None)
    if left.signals is not None and right.signals is not None:
        assert left.signals.dtype == np.float32
        np.testing.assert_array_equal(left.signals, right.signals)


class TestEveryHistory:
    def test_empty(self, history: History) -> None:
        assert history.newest_s() is None
        assert np.isnan(history.load(["a"], T0, 3).mean).all()
        assert history.forecasts("a", 0) == []

    def test_buckets_come_back_in_their_places(self, history: History) -> None:
        history.append_buckets(bucket(T0))
        history.append_buckets(bucket(T0 + 2 * BUCKET_S, ("b", "c"), 5.0))
        loaded = history.load(["c", "a", "b", "never"], T0 + 2 * BUCKET_S, 4)
        assert loaded.mean.shape == (4, N_RESOURCES, 4)
        assert loaded.mean.dtype == np.float32
        nan = np.nan
        expected = [[nan, nan, nan, 15], [nan, 1, nan, nan], [nan, 11, nan, 5], [nan] * 4]
        np.testing.assert_array_equal(loaded.mean[:, 0], expected)
        np.testing.assert_array_equal(loaded.peak, loaded.mean * 2)
        assert loaded.censored[1, 0, 1] == 0
        assert np.isnan(loaded.capacity).all()
        assert history.newest_s() == T0 + 2 * BUCKET_S

    def test_the_same_bucket_again_replaces(self, history: History) -> None:
        history.append_buckets(bucket(T0, ("a", "b"), 1.0))
        later = bucket(T0, ("a",), 7.0)
        history.append_buckets(replace(later, peak=np.full((1, N_RESOURCES), np.nan)))
        loaded = history.load(["a", "b"], T0, 1)
        assert loaded.mean[:, 0, 0].tolist() == [7, 11]
        assert np.isnan(loaded.peak[0]).all()
        assert loaded.peak[1, 0, 0] == 22

    def test_bulk_preload_over_midnight(self, history: History) -> None:
        preload = block(("a", "b", "c"), T0 + 100 * BUCKET_S, 700)
        preload.mean[1, :, :300] = preload.peak[1, :, :300] = preload.censored[1, :, :300] = np.nan
        history.append_history(preload)  # type: ignore[attr-defined]
        same(history.load(["a", "b", "c"], preload.end_s, 700), preload)
        assert history.newest_s() == preload.end_s

    def test_buckets_after_a_preload_replace_it(self, history: History) -> None:
        history.append_history(block(("a",), T0, 10))  # type: ignore[attr-defined]
        history.append_buckets(bucket(T0, ("a",), 3.0))
        assert history.load(["a"], T0, 1).mean[0, 0, 0] == 3.0

    def test_signals_come_with_their_bucket_or_alone(self, history: History) -> None:
        history.append_buckets(bucket(T0))
        assert history.load(["a", "b"], T0, 2).signals is None
        told = np.array([[np.nan, np.nan], [120.5, np.nan]])
        history.append_buckets(replace(bucket(T0 + BUCKET_S), signals=told))
        history.append_signals(SignalBlock(start_s=T0, vm_ids=("c", "a"), means=np.array([[7.0, 8.0], [np.nan, 3.0]])))
        signals = history.load(["a", "b", "c"], T0 + BUCKET_S, 3).signals
        assert signals is not None
        assert (signals.shape, signals.dtype) == ((3, len(SIGNALS), 3), np.float32)
        nan = np.nan
        np.testing.assert_array_equal(signals[0], [[nan, nan, nan], [nan, 3, nan]])
        np.testing.assert_array_equal(signals[1], [[nan, nan, 120.5], [nan, nan, nan]])
        np.testing.assert_array_equal(signals[2], [[nan, 7, nan], [nan, 8, nan]])  # no demand of it is known
        assert history.load(["b"], T0, 2).signals is None

    def test_signals_told_again_replace_and_a_bucket_without_any_takes_none_away(self, history: History) -> None:
        history.append_buckets(replace(bucket(T0), signals=np.array([[1.0, 2.0], [3.0, 4.0]])))
        history.append_signals(SignalBlock(start_s=T0, vm_ids=("b",), means=np.array([[9.0, np.nan]])))
        history.append_buckets(bucket(T0, value=50.0))
        loaded = history.load(["a", "b"], T0, 1)
        assert loaded.mean[0, 0, 0] == 50
        assert loaded.signals is not None
        np.testing.assert_array_equal(loaded.signals[:, :, 0], [[1, 2], [9, np.nan]])

    def test_signals_of_a_preload(self, history: History) -> None:
        preload = block(("a", "b"), T0 + 100 * BUCKET_S, 700)
        signals = np.random.default_rng(3).uniform(0, 90, (2, len(SIGNALS), 700)).astype(np.float32)
        signals[0, :, ::3] = signals[1, 1] = np.nan
        preload = replace(preload, signals=signals)
        history.append_history(preload)  # type: ignore[attr-defined]
        same(history.load(["a", "b"], preload.end_s, 700), preload)

    def test_forecasts_of_one_vm_oldest_first(self, history: History) -> None:
        blocks = {at: forecast(at, seed=at % 97) for at in (T0 + 600, T0, T0 + DAY_S)}
        for issued in blocks.values():
            history.append_forecast(issued)
        history.append_forecast(forecast(T0, ("other",)))
        found = history.forecasts("b", T0 + 300)
        assert [one.issued_s for one in found] == [T0 + 600, T0 + DAY_S]
        for one in found:
            original, at = blocks[one.issued_s], [LEVELS.index(level) for level in STORED_LEVELS]
            assert (one.vm_ids, one.levels) == (("b",), STORED_LEVELS)
            for name in ("mean", "stddev", "coverage", "reason"):
                np.testing.assert_array_equal(getattr(one, name), getattr(original, name)[1:])
            np.testing.assert_array_equal(one.quantiles, original.quantiles[1:][..., at])
            np.testing.assert_array_equal(one.peak_quantiles, original.peak_quantiles[1:][..., at])
            assert [one.models[m] for m in one.model[0]] == [original.models[m] for m in original.model[1]]

    def test_the_same_issue_again_replaces(self, history: History) -> None:
        history.append_forecast(forecast(T0, seed=1))
        history.append_forecast(forecast(T0, seed=2))
        (found,) = history.forecasts("a", T0)
        np.testing.assert_array_equal(found.mean, forecast(T0, seed=2).mean[:1])


def test_one_vm_for_a_chart(tmp_path: Path) -> None:
    history = ParquetHistory(tmp_path)
    history.append_history(block(("old",), T0 - DAY_S, 3))
    history.append_buckets(bucket(T0))
    history.append_buckets(replace(bucket(T0 + BUCKET_S), allocation=np.full((2, N_RESOURCES), 2000.0)))
    series = history.series("b", T0 + BUCKET_S, 3)
    assert set(series) == {"mean", "peak", "censored", "usage", "allocation"}
    np.testing.assert_array_equal(series["mean"][0], [np.nan, 11, 11])
    np.testing.assert_array_equal(series["usage"][1], [np.nan, 6, 6])
    np.testing.assert_array_equal(series["allocation"][0], [np.nan, np.nan, 2000])
    assert (history.vm_ids(), history.vm_ids(T0)) == (["a", "b", "old"], ["a", "b"])
    assert ParquetHistory(tmp_path / "empty").vm_ids() == []


def test_a_late_bucket_of_fewer_samples_still_brings_its_signals(tmp_path: Path) -> None:
    history = ParquetHistory(tmp_path)
    history.append_buckets(replace(bucket(T0), samples=np.array([60, 10]), signals=np.full((2, 2), 1.0)))
    history.append_late(replace(bucket(T0, value=5.0), samples=np.array([59, 11]), signals=np.full((2, 2), 2.0)))
    loaded = ParquetHistory(tmp_path).load(["a", "b"], T0, 1)
    assert loaded.mean[:, 0, 0].tolist() == [1, 15]
    assert loaded.signals is not None
    assert loaded.signals[:, 0, 0].tolist() == [2, 2]


def test_signals_of_a_week_read_back_from_few_files(tmp_path: Path) -> None:
    history, memory = ParquetHistory(tmp_path), MemoryHistory()
    for i in range(24 * 4):
        told = SignalBlock(start_s=T0 + i * 12 * BUCKET_S, vm_ids=("b", "a"), means=np.array([[i, np.nan], [np.nan, 2.0 * i]]))
        history.append_signals(told)
        memory.append_signals(told)
    end_s = T0 + 95 * 12 * BUCKET_S
    again = ParquetHistory(tmp_path)
    same(again.load(["a", "b"], end_s, 95 * 12 + 1), memory.load(["a", "b"], end_s, 95 * 12 + 1))
    assert len(list((tmp_path / "signals").iterdir())) <= 3 + 2 + 11
    np.testing.assert_array_equal(again.signals("b", end_s, 13), [[94, *[np.nan] * 11, 95], [np.nan] * 13])
    assert again.signals("never", end_s, 13) is None


def test_a_late_bucket_replaces_only_what_holds_fewer_samples(tmp_path: Path) -> None:
    history = ParquetHistory(tmp_path)
    history.append_buckets(replace(bucket(T0), samples=np.array([60, 10])))
    history.append_late(replace(bucket(T0, ("a", "b", "c"), 5.0), samples=np.array([59, 10, 1])))
    assert history.load(["a", "b", "c"], T0, 1).mean[:, 0, 0].tolist() == [1, 15, 25]


def test_a_week_of_buckets_reads_back_after_a_restart_from_few_objects(place: Path | str) -> None:
    history, memory = ParquetHistory(place), MemoryHistory()
    step = 12 * BUCKET_S  # an hour between buckets keeps the test short; merging counts parts, not hours
    for i in range(24 * 4):
        one = bucket(T0 + i * step, value=float(i))
        history.append_buckets(one)
        memory.append_buckets(one)
    again = ParquetHistory(place)
    end_s = T0 + 95 * step
    same(again.load(["b", "a"], end_s, 95 * 12 + 1), memory.load(["b", "a"], end_s, 95 * 12 + 1))
    assert again.newest_s() == end_s
    assert len(Root(place).table("buckets").sizes()) <= 3 + 2 + 11


def test_a_kill_between_merge_and_clean_up_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = ParquetHistory(tmp_path)
    history.append_buckets(bucket(T0, value=99.0))
    monkeypatch.setattr(Path, "unlink", _raise_killed)
    with pytest.raises(KeyboardInterrupt):
        for i in range(12):
            history.append_buckets(bucket(T0 + i * BUCKET_S, value=float(i)))
    monkeypatch.undo()
    again = ParquetHistory(tmp_path)
    assert len(list((tmp_path / "buckets").iterdir())) == 13
    assert again.newest_s() == T0 + 10 * BUCKET_S
    expected = [float(i) for i in range(11)]  # the 99 of the first write is replaced
    assert again.load(["a"], T0 + 10 * BUCKET_S, 11).mean[0, 0].tolist() == expected
    for i in range(11, 40):
        again.append_buckets(bucket(T0 + i * BUCKET_S, value=1.0))
    assert again.load(["a"], T0 + 10 * BUCKET_S, 11).mean[0, 0].tolist() == expected


def _raise_killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_scratch_files_of_a_killed_write_go(tmp_path: Path) -> None:
    ParquetHistory(tmp_path).append_buckets(bucket(T0))
    scratch = tmp_path / "buckets" / "2024-10-04.00000009.0.parquet.tmp"
    scratch.write_bytes(b"half")
    assert ParquetHistory(tmp_path).newest_s() == T0
    assert not scratch.exists()


def test_old_days_go_by_retention(place: Path | str) -> None:
    history = ParquetHistory(place, retention_days=4)
    for day in range(10):
        history.append_buckets(bucket(T0 + day * DAY_S))
    loaded = history.load(["a"], T0 + 9 * DAY_S, 9 * 288 + 1).mean[0, 0, ::288]
    assert np.isnan(loaded).tolist() == [True] * 5 + [False] * 5


def test_beyond_the_budget_forecasts_go_before_signals_before_buckets(place: Path | str) -> None:
    whole = ParquetHistory(place)
    for day in range(3):
        at = T0 + day * DAY_S
        whole.append_forecast(forecast(at))
        whole.append_buckets(replace(bucket(at), signals=np.full((2, 2), 1.0)))
    sizes = {name: sum(Root(place).table(name).sizes().values()) for name in ("buckets", "signals", "forecasts")}
    assert sum(sizes.values()) == whole.total_bytes

    def left(max_bytes: int) -> tuple[int, int, int]:
        """Days of forecasts, signals, buckets before the one that is being written."""
        history = ParquetHistory(place, max_bytes=max_bytes)
        history.append_buckets(bucket(T0 + 2 * DAY_S + BUCKET_S))
        told = history.signals("a", T0 + 2 * DAY_S, 577)
        known = history.load(["a"], T0 + 2 * DAY_S, 577).mean[0, 0]
        return (
            len(history.forecasts("a", 0)) - 1,
            0 if told is None else int((~np.isnan(told[0])).sum()) - 1,
            int((~np.isnan(known)).sum()) - 1,
        )

    one = sizes["buckets"] // 3  # bytes of one more bucket; each call stores one
    assert left(8 * sum(sizes.values())) == (2, 2, 2)
    assert left(sum(sizes.values()) + one * 19 // 10) == (1, 2, 2)
    assert left(sizes["buckets"] + 3 * one + sizes["signals"] * 9 // 10 + sizes["forecasts"] // 3) == (0, 1, 2)
    assert left(1) == (0, 0, 0)


@pytest.mark.parametrize("harm", ["cut", "flipped", "junk", "empty"])
def test_a_damaged_part_is_named_and_set_aside_and_the_rest_is_read(place: Path | str, harm: str) -> None:
    whole = ParquetHistory(place)
    for i in range(3):
        whole.append_buckets(bucket(T0 + i * BUCKET_S, value=float(i)))
    objects = Root(place).table("buckets")
    name = sorted(objects.sizes())[1]
    with objects.open(name) as source:
        good = source.read()
    harmed = bytearray(good)
    harmed[len(harmed) // 3] ^= 0xFF
    objects.put(name, pa.py_buffer({"cut": good[:-40], "flipped": bytes(harmed), "junk": b"x" * 4000, "empty": b""}[harm]))
    history = ParquetHistory(place)
    loaded = history.load(["a"], T0 + 2 * BUCKET_S, 3).mean[0, 0]
    np.testing.assert_array_equal(loaded, [0, np.nan, 2])
    assert list(history.damaged) == [name]
    assert history.damaged[name]
    assert f"{name}.damaged" in objects.sizes()
    assert name not in objects.sizes()
    for i in range(3, 15):  # merging goes on without it
        history.append_buckets(bucket(T0 + i * BUCKET_S, value=float(i)))
    again = ParquetHistory(place)
    assert again.newest_s() == T0 + 14 * BUCKET_S
    np.testing.assert_array_equal(again.load(["a"], T0 + 14 * BUCKET_S, 15).mean[0, 0], [0, np.nan, *range(2, 15)])
    assert again.damaged == {}


def test_a_disk_that_refuses_is_a_host_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = ParquetHistory(tmp_path)
    history.append_buckets(bucket(T0))

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HostError, match="no space left"):
        history.append_buckets(bucket(T0 + BUCKET_S))
    monkeypatch.undo()
    assert ParquetHistory(tmp_path).newest_s() == T0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda history: history.append_buckets(bucket(T0 + 1)), "allowed are multiples of 300"),
        (lambda history: history.load(["a"], T0 + 1, 1), "allowed are multiples of 300"),
        (lambda history: history.load(["a"], T0, 0), "buckets 0: allowed 1 to"),
        (lambda history: history.append_forecast(replace(forecast(T0), levels=(0.5,))), "are needed"),
        (lambda history: ParquetHistory(Path("/proc/nowhere")), "history folder"),
    ],
)
def test_impossible_input(tmp_path: Path, call: Callable[[ParquetHistory], None], message: str) -> None:
    with pytest.raises((ValueError, HostError), match=message):
        call(ParquetHistory(tmp_path))
