"""What a worker runs: a new VM borrows from its kind and says so, the engine never sees the calendar, trainings are clean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from coordinator.forecast.engine import ForecastOptions
from coordinator.forecast.events.model import Effect, Labels, Notice, Occurrences, Scope
from coordinator.forecast.forecaster import Forecaster, without_anomalies
from coordinator.model import LEVELS, N_RESOURCES, BucketBlock, HistoryBlock, NoForecast
from shared.units import BUCKET_S, CPU, MIB

T0 = 1_700_006_400 // 86_400 * 86_400
LEAN = ForecastOptions(boosting=False, network=False, ring=600, replay=24)
SCALE = np.array([1000.0, 512.0 * MIB, 1e6, 1e7, 1e7])
SMALL, LARGE = [4000.0, 4096.0 * MIB, np.nan, np.nan, np.nan], [16000.0, 65536.0 * MIB, np.nan, np.nan, np.nan]
MIDDLE = LEVELS.index(0.5)


def fleet(v: int, b: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).lognormal(0.0, 0.1, (v, N_RESOURCES, b))
    return (noise * SCALE[:, None]).astype(np.float32)


def history(mean: np.ndarray, capacity: list[float], vm_ids: tuple[str, ...] = ()) -> HistoryBlock:
    return HistoryBlock(
        vm_ids=vm_ids or tuple(f"vm{i}" for i in range(len(mean))),
        end_s=T0,
        mean=mean,
        peak=mean * np.float32(1.2),
        censored=np.zeros_like(mean),
        capacity=np.tile(np.array(capacity, dtype=np.float32), (len(mean), 1)),
    )


def bucket(i: int, mean: np.ndarray, vm_ids: tuple[str, ...]) -> BucketBlock:
    values = mean.astype(np.float64)
    return BucketBlock.unlimited(T0 + i * BUCKET_S, vm_ids, values, values * 1.2)


def test_a_new_vm_is_forecast_like_its_kind_within_ten_minutes_and_marked() -> None:
    forecaster = Forecaster(LEAN)
    forecaster.load(history(fleet(8, 300), SMALL))
    ids = (*(f"vm{i}" for i in range(8)), "new")
    capacity = dict.fromkeys(ids, SMALL)
    for i in (1, 2):
        # the newcomer starts with next to nothing; its kind uses a core
        now = fleet(9, 1, seed=i)[..., 0]
        now[8] *= 0.9
        block = forecaster.advance(bucket(i, now, ids), capacity)
    assert block.models[-1] == "class_prior"
    assert (block.reason[8] == NoForecast.COLD_START).all()
    assert (block.model[8] == len(block.models) - 1).all()
    assert (block.reason[:8] == NoForecast.OK).all()
    assert (block.model[:8] < len(block.models) - 1).all()
    assert block.quantiles[8, CPU, 0, MIDDLE] == pytest.approx(1000.0, rel=0.25)
    assert (np.diff(block.quantiles, axis=-1) >= 0).all()
    assert (block.peak_quantiles[8] >= block.quantiles[8] * 0.999).all()
    low, high = block.quantiles[8, CPU, 0, LEVELS.index(0.025)], block.quantiles[8, CPU, 0, LEVELS.index(0.975)]
    assert low < block.mean[8, CPU, 0] < high
    assert 0 < block.stddev[8, CPU, 0] < (high - low)


def test_a_vm_never_read_borrows_too_and_a_kind_of_its_own_borrows_nothing_wrong() -> None:
    forecaster = Forecaster(LEAN)
    forecaster.load(history(fleet(8, 300), SMALL))
    ids = (*(f"vm{i}" for i in range(8)), "silent")
    now = fleet(9, 1)[..., 0]
    now[8] = np.nan
    block = forecaster.advance(bucket(1, now, ids), {**dict.fromkeys(ids, SMALL), "silent": LARGE})
    assert np.isfinite(block.quantiles[8, CPU]).all(), "the whole fleet is the widest class"
    assert (block.reason[8, CPU]) == NoForecast.COLD_START


def test_the_same_bucket_again_and_a_gap_keep_step() -> None:
    forecaster = Forecaster(LEAN)
    ids = tuple(f"vm{i}" for i in range(6))
    capacity = dict.fromkeys(ids, SMALL)
    for i in (1, 2, 2, 9, 400):
        block = forecaster.advance(bucket(i, fleet(6, 1, seed=i)[..., 0], ids), capacity)
        assert np.isfinite(block.quantiles).all()
        assert block.issued_s == T0 + (i + 1) * BUCKET_S


def backup() -> Occurrences:
    """Every VM, from bucket 3 on for half an hour, a declared core and a half."""
    effect = Effect(added=(1500.0, *(math.nan,) * (N_RESOURCES - 1)))
    notice = Notice(id="nightly", name="backup", category="backup", scope=Scope(), effect=effect)
    return Occurrences.of([(notice, T0 + 3 * BUCKET_S, T0 + 9 * BUCKET_S)])


def test_an_announced_event_is_seen_coming() -> None:
    ids = tuple(f"vm{i}" for i in range(6))
    blocks = []
    for calendar in (Occurrences.none(), backup()):
        forecaster = Forecaster(LEAN)
        forecaster.announce(calendar)
        forecaster.label({vm_id: Labels(client="acme") for vm_id in ids})
        forecaster.load(history(fleet(6, 300), SMALL, ids))
        blocks.append(forecaster.advance(bucket(1, fleet(6, 1, seed=5)[..., 0], ids), dict.fromkeys(ids, SMALL)))
    without, with_it = blocks
    raised = with_it.mean[:, CPU] - without.mean[:, CPU]
    assert (np.abs(raised[:, 0]) < 50.0).all(), "before it begins nothing changes"
    assert (raised[:, 2:6] > 500.0).all()
    np.testing.assert_allclose(with_it.mean[:, 1], without.mean[:, 1])


def test_a_training_learns_no_spike_and_keeps_a_new_level() -> None:
    mean = fleet(3, 200)
    mean[0, CPU, 100] = 50_000.0
    mean[1, CPU, 120:] *= 3.0
    cleaned = without_anomalies(history(mean, SMALL))
    assert cleaned.mean[0, CPU, 100] < 5_000.0
    np.testing.assert_array_equal(cleaned.mean[1, CPU, 123:], mean[1, CPU, 123:])
    np.testing.assert_array_equal(cleaned.mean[2, CPU], mean[2, CPU])
    assert (cleaned.peak >= cleaned.mean).all()


def test_models_travel() -> None:
    trained = Forecaster(ForecastOptions(boosting=False, ring=600, replay=0, examples=8000))
    models = trained.retrain(history(fleet(12, 400), SMALL))
    assert models is not None
    other = Forecaster(ForecastOptions(boosting=False, ring=600, replay=0, examples=8000))
    other.install(models)
    other.load(history(fleet(12, 400), SMALL))
    ids = tuple(f"vm{i}" for i in range(12))
    block = other.advance(bucket(1, fleet(12, 1, seed=3)[..., 0], ids), dict.fromkeys(ids, SMALL))
    assert "network" in block.models
    assert np.isfinite(block.quantiles).all()
