"""Level shifts: told within three buckets, hardly ever on noise, and worth restarting windows for on real traces."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from coordinator.forecast.regimes import ENDLESS, RegimeDetector
from coordinator.forecast.rows import NEW
from coordinator.model import N_RESOURCES

DATA = Path(os.environ.get("TIDEGATE_DATA", Path(__file__).parents[3] / "shared" / "data"))
DAY = 288


class Told(NamedTuple):
    """Arrays [n, b], hold [n, b, 3]."""

    shifted: Any
    age: Any
    hold: Any


def watch(series: np.ndarray, floor: float | np.ndarray = 1e-3) -> Told:
    """Run n series, a multiple of the resources, through a detector."""
    n, b = series.shape
    v = n // N_RESOURCES
    detector = RegimeDetector()
    detector.rearrange(np.full(v, NEW))
    floors = np.broadcast_to(floor, n).reshape(v, N_RESOURCES)
    found = [detector.update(series[:, t].reshape(v, N_RESOURCES), floors) for t in range(b)]
    shapes = {"shifted": (n,), "age": (n,), "hold": (n, 3)}
    return Told(*(np.stack([np.asarray(getattr(f, name)).reshape(shape) for f in found], axis=1) for name, shape in shapes.items()))


@pytest.mark.parametrize("factor", [1.5, 2.0, 3.0, 5.0, 0.5, 0.2])
def test_a_step_is_told_with_its_third_reading_and_its_start_is_right(factor: float) -> None:
    rng = np.random.default_rng(3)
    series = 100.0 * (1.0 + 0.08 * rng.standard_normal((200, 260)))
    series[:, 200:] *= factor
    told = watch(series)
    within = told.shifted[:, 200:203].any(axis=1)
    assert within.mean() >= 0.95
    assert (told.age[within, 202] == 3).mean() >= 0.9
    assert told.shifted[within, 203:].any(axis=1).mean() <= 0.05  # told once


@pytest.mark.parametrize("kind", ["normal", "lognormal", "exponential", "heavy", "autocorrelated"])
def test_stationary_noise_is_left_alone(kind: str) -> None:
    rng = np.random.default_rng(4)
    shape = (200, 3 * DAY)
    match kind:
        case "normal":
            series = 100 + 10 * rng.standard_normal(shape)
        case "lognormal":
            series = 100 * rng.lognormal(0, 1.0, shape)
        case "exponential":
            series = rng.exponential(10, shape)
        case "heavy":
            series = 100 + 5 * rng.standard_t(2.5, shape)
        case _:
            series = 100 + 5 * autocorrelated(rng.standard_normal(shape), 0.9)
    alarms = watch(series).shifted.sum(axis=1) / 3
    assert alarms.mean() <= 0.3
    assert (alarms <= 1.0).mean() >= 0.97


def autocorrelated(noise: np.ndarray, memory: float) -> np.ndarray:
    out = noise.copy()
    for t in range(1, out.shape[1]):
        out[:, t] += memory * out[:, t - 1]
    return out


def test_an_excursion_leaves_the_regime_as_it_was_and_a_habit_of_them_is_learned() -> None:
    rng = np.random.default_rng(5)
    once = 100 + 5 * rng.standard_normal((50, 300))
    once[:, 200:208] += 200
    told = watch(once)
    assert told.shifted[:, 202].all()
    assert (told.age[:, 202] == 3).mean() > 0.9
    assert told.hold[:, 202].max() < 1.0  # a young level may not last
    assert (told.age[:, 215:] > ENDLESS).all()  # the start was never seen, and is not where the excursion ended
    square = 100 + 200.0 * (np.arange(6 * DAY) // 6 % 2) + 5 * rng.standard_normal((50, 6 * DAY))
    assert watch(square).shifted[:, -2 * DAY :].sum() <= 10


def test_hold_falls_where_levels_do_not_last() -> None:
    rng = np.random.default_rng(6)
    b = 3 * DAY
    steady, fickle = 100 + 5 * rng.standard_normal((2, 100, b))
    for row in range(100):
        for start in rng.choice(np.arange(50, b - 50, 60), size=6, replace=False):
            fickle[row, start : start + 5] += 300
        steady[row, rng.integers(50, b - 50) :] += 300
    held = [told.hold[told.age <= 12].mean(axis=0) for told in (watch(steady), watch(fickle))]
    assert (held[1] < held[0] - 0.1).all()
    assert held[1][2] < held[1][0]  # the further ahead, the less
    assert held[0].min() > 0.85


def test_gaps_constants_and_one_spike_are_no_shifts() -> None:
    series = np.full((10, 100), 50.0)
    series[0, 40] = 1e12  # one spike
    series[1, 30:60] = np.nan
    series[2] = np.nan
    series[3, ::2] = np.nan
    series[4, 60:] = 80.0  # a clean step through a gap
    series[4, 61] = np.nan
    told = watch(series, floor=0.5)
    assert not told.shifted[:4].any()
    assert not told.shifted[5:].any()
    assert told.shifted[4].nonzero()[0].tolist() == [63]
    assert told.age[4, 63] == 4  # the gap counts: it is an age in buckets


def test_the_fleet_can_change_and_shapes_are_checked() -> None:
    detector = RegimeDetector()
    detector.rearrange(np.full(2, NEW))
    values = np.array([[10.0] * N_RESOURCES, [20.0] * N_RESOURCES])
    floor = np.ones_like(values)
    for _ in range(3):
        detector.update(values, floor)
    detector.rearrange(np.array([1, NEW]))
    found = detector.update(np.array([[20.0] * N_RESOURCES, [np.nan] * N_RESOURCES]), floor)
    assert found.level[0].tolist() == [20.0] * N_RESOURCES
    assert np.isnan(found.level[1]).all()
    assert (found.hold == 1.0).all()
    with pytest.raises(ValueError, match=r"values \(1, 5\).*must be \(2, 5\)"):
        detector.update(values[:1], floor[:1])
    with pytest.raises(ValueError, match=r"threshold 1\.0: allowed 3 to 100"):
        RegimeDetector(threshold=1.0)
    with pytest.raises(ValueError, match=r"confirm 0: allowed 1 to 12"):
        RegimeDetector(confirm=0)


def test_restarted_windows_do_better_after_shifts_of_real_machines() -> None:
    file = DATA / "bitbrains_rnd" / "bitbrains_rnd.parquet"
    if not file.exists():
        pytest.skip(f"{file} is absent: set TIDEGATE_DATA")
    table = pq.read_table(file, columns=["vm", "t", "cores", "cpu_pct"], filters=[("t", ">=", 1_373_500_800), ("t", "<", 1_373_932_800)])
    on = table["cores"].to_numpy() > 0
    vm, t, used = (table[name].to_numpy()[on] for name in ("vm", "t", "cpu_pct"))
    ids = np.unique(vm)[::5]
    ids = ids[: len(ids) // N_RESOURCES * N_RESOURCES]
    keep = np.isin(vm, ids)
    series = np.full((len(ids), 5 * DAY), np.nan)
    series[np.searchsorted(ids, vm[keep]), (t[keep] - 1_373_500_800) // 300] = used[keep]
    told = watch(series, floor=np.maximum(0.1, 0.005 * np.nanmean(series, axis=1)))
    assert told.shifted.sum() / len(ids) / 5 <= 1.0  # a day, real shifts among them
    loss = np.zeros(2)
    for row, at in zip(*np.nonzero(told.age <= 36), strict=True):
        if 36 <= at < series.shape[1] - 1 and np.isfinite(series[row, [at, at + 1]]).all():
            window = series[row, at - 35 : at + 1]
            newest = window[-told.age[row, at] :]
            whole, hold = np.nanmedian(window), told.hold[row, at, 0]
            fresh = np.nanmedian(newest)
            loss += np.abs(np.array([whole, hold * fresh + (1 - hold) * whole]) - series[row, at + 1]) / (0.1 + whole)
    assert loss[1] < 0.85 * loss[0]
