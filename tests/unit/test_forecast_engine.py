"""The forecast shard: robust on any data, deterministic, quick to start, and it sees tomorrow's surge in yesterday's."""

from __future__ import annotations

import zlib

import msgspec
import numpy as np
import pytest
from hard_series import hard_series

from coordinator.forecast.engine import ForecastEngine, ForecastOptions, Models
from coordinator.learning.errors import ForecastErrors
from coordinator.model import LEVELS, N_RESOURCES, BucketBlock, ForecastBlock, HistoryBlock, NoForecast
from shared.model import Mode
from shared.units import BUCKET_S, CPU, HORIZON_STEPS

T0 = 1_700_006_400 // 86_400 * 86_400  # midnight
LEAN = ForecastOptions(boosting=False, ring=1200, replay=24)
ALL_LEVELS = slice(None)


def history(mean: np.ndarray, end_s: int = T0, peak_factor: float = 1.2) -> HistoryBlock:
    v = mean.shape[0]
    values = mean.astype(np.float32)
    return HistoryBlock(
        vm_ids=tuple(f"vm{i}" for i in range(v)),
        end_s=end_s,
        mean=values,
        peak=values * np.float32(peak_factor),
        censored=np.zeros_like(values),
        capacity=np.full((v, N_RESOURCES), np.nan, dtype=np.float32),
    )


def bucket(start_s: int, mean: np.ndarray, vm_ids: tuple[str, ...] | None = None, peak_factor: float = 1.2) -> BucketBlock:
    names = vm_ids or tuple(f"vm{i}" for i in range(len(mean)))
    values = mean.astype(np.float64)
    return BucketBlock.unlimited(start_s, names, values, values * peak_factor)


def noise(v: int, b: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(6.0, 0.3, (v, N_RESOURCES, b)) * 1e4


def assert_sound(block: ForecastBlock, capacity: float = np.inf) -> None:
    known = block.reason != NoForecast.ALL_UNKNOWN
    for quantiles in (block.quantiles, block.peak_quantiles):
        assert quantiles.shape == (*block.reason.shape, HORIZON_STEPS, len(LEVELS))
        assert np.isfinite(quantiles[known]).all()
        assert np.isnan(quantiles[~known]).all()
        assert (np.diff(quantiles[known], axis=-1) >= 0).all()
        assert (quantiles[known] >= 0).all()
        assert (quantiles[known] <= np.float32(capacity)).all()
    assert (np.diff(block.peak_quantiles[known], axis=1) >= 0).all()
    assert np.isfinite(block.mean[known]).all()
    assert np.isfinite(block.stddev[known]).all()


@pytest.mark.parametrize("loaded", [0, 1, 2, 5, 40])
def test_no_series_is_too_hard(loaded: int) -> None:
    data = hard_series(loaded + 30)
    engine = ForecastEngine(LEAN)
    engine.load(history(data[..., :loaded], T0))
    capacity = {f"vm{i}": [1e13] * N_RESOURCES for i in range(8)}
    for i in range(30):
        assert_sound(engine.advance(bucket(T0 + (i + 1) * BUCKET_S, data[..., loaded + i]), capacity), 1e13)


def test_the_whole_pool_on_hard_series_and_a_model_installed_on_the_way() -> None:
    data = hard_series(94)[:8]
    engine = ForecastEngine(ForecastOptions(ring=300, replay=4))
    engine.load(history(data[..., :80], T0))
    for i in range(14):
        if i == 1:
            engine.install(ForecastEngine(ForecastOptions(examples=4000)).retrain(history(data[..., :80], T0)))
        block = engine.advance(bucket(T0 + (i + 1) * BUCKET_S, data[..., 80 + i]), {})
        assert_sound(block)
    assert block.models[-2:] == ("boosting", "network")
    with pytest.raises(ValueError, match="not trained models"):
        engine.install(b"")


def test_all_unknown_cold_start_and_gap_have_their_reasons() -> None:
    engine = ForecastEngine(LEAN)
    mean = noise(1, 1)[..., 0]
    mean[0, 1] = np.nan
    block = engine.advance(bucket(T0, mean), {})
    assert block.reason[0, 1] == NoForecast.ALL_UNKNOWN
    assert block.reason[0, 0] == NoForecast.COLD_START
    assert block.mean[0, 0] == pytest.approx(mean[0, 0], rel=0.3)
    assert block.quantiles[0, 0, 0, -1] > 1.5 * mean[0, 0]  # wide
    assert_sound(block)
    for i in range(1, 30):
        block = engine.advance(bucket(T0 + i * BUCKET_S, noise(1, 1, i)[..., 0]), {})
    assert (block.reason == NoForecast.OK).all()
    for i in range(30, 36):
        block = engine.advance(bucket(T0 + i * BUCKET_S, np.full((1, N_RESOURCES), np.nan)), {})
    assert (block.reason == NoForecast.GAP).all()
    assert_sound(block)


def test_step_0_is_the_bucket_that_begins_when_the_newest_one_ends() -> None:
    """Who schedules by a forecast, or scores it, counts from `issued_s`: a bucket too early is five minutes too early."""
    engine = ForecastEngine(LEAN)
    engine.load(history(noise(1, 60), T0))
    first = engine.advance(bucket(T0 + BUCKET_S, noise(1, 1)[..., 0]), {})
    assert first.issued_s == T0 + 2 * BUCKET_S
    errors = ForecastErrors()
    errors.issue(first)
    errors.score(bucket(first.issued_s, noise(1, 1)[..., 0]), {"h": Mode.PREDICTIVE})
    (pair,) = errors.pairs("vm0")
    assert pair.start_s == first.issued_s
    assert pair.mean[0] == first.mean[0, 0, 0]


def test_same_calls_same_bytes() -> None:
    data = noise(6, 400)

    def run() -> bytes:
        engine = ForecastEngine(LEAN)
        engine.load(history(data[..., :380]))
        blocks = [engine.advance(bucket(T0 + (i + 1) * BUCKET_S, data[..., 380 + i]), {}) for i in range(20)]
        return b"".join(block.quantiles.tobytes() + block.peak_quantiles.tobytes() + block.mean.tobytes() for block in blocks)

    assert run() == run()


def test_vms_appear_vanish_and_come_in_any_order() -> None:
    data = noise(3, 100)
    engine = ForecastEngine(LEAN)
    engine.load(history(data[:2, :, :80]))
    first = engine.advance(bucket(T0 + BUCKET_S, data[[2, 0], :, 80], ("new", "vm0")), {})
    assert first.vm_ids == ("new", "vm0")
    assert (first.reason[0] == NoForecast.COLD_START).all()
    assert (first.reason[1] == NoForecast.OK).all()
    for i in range(300):
        block = engine.advance(bucket(T0 + (i + 2) * BUCKET_S, data[:1, :, i % 100], ("vm0",)), {})
    assert_sound(block)
    back = engine.advance(bucket(T0 + 302 * BUCKET_S, data[:2, :, 5], ("vm0", "vm1")), {})
    assert (back.reason[1] == NoForecast.COLD_START).all()  # forgotten after a day


def test_missing_buckets_keep_seasons_in_phase_and_old_ones_are_refused() -> None:
    data = noise(2, 100)
    engine = ForecastEngine(LEAN)
    engine.load(history(data[..., :80]))
    assert_sound(engine.advance(bucket(T0 + 9 * BUCKET_S, data[..., 81]), {}))
    with pytest.raises(ValueError, match="older ones are closed"):
        engine.advance(bucket(T0 + 8 * BUCKET_S, data[..., 82]), {})
    with pytest.raises(ValueError, match="multiple of 300"):
        engine.advance(bucket(T0 + 9 * BUCKET_S + 7, data[..., 82]), {})


def test_a_second_part_of_the_same_bucket_adds_to_it() -> None:
    data = noise(2, 60)
    whole, parts = ForecastEngine(LEAN), ForecastEngine(LEAN)
    for engine in (whole, parts):
        engine.load(history(data[..., :50]))
    expected = whole.advance(bucket(T0 + BUCKET_S, data[..., 50]), {})
    parts.advance(bucket(T0 + BUCKET_S, data[:1, :, 50]), {})
    got = parts.advance(bucket(T0 + BUCKET_S, data[1:, :, 50], ("vm1",)), {})
    np.testing.assert_allclose(got.mean[0], expected.mean[1], rtol=0.2)


def test_a_daily_surge_is_seen_before_it_comes() -> None:
    days, surge = 5, slice(100, 124)  # 08:20 to 10:20 each day
    rng = np.random.default_rng(3)
    flat = rng.normal(500.0, 25.0, (4, N_RESOURCES, days * 288)).clip(1) * 1e4
    surging = flat.copy()
    for day in range(days):
        surging[0, :, day * 288 + surge.start : day * 288 + surge.stop] *= 4.0
    now = (days - 1) * 288 + surge.start - 3  # a quarter of an hour ahead of it
    options = ForecastOptions(boosting=False, ring=1500, replay=300)

    def issue(data: np.ndarray) -> ForecastBlock:
        engine = ForecastEngine(options)
        engine.load(history(data[..., :now], T0))
        return engine.advance(bucket(T0 + BUCKET_S, data[..., now]), {})

    quiet, warned = issue(flat), issue(surging)
    assert warned.quantiles[0, CPU, 8, LEVELS.index(0.5)] > 3.0 * quiet.quantiles[0, CPU, 8, LEVELS.index(0.5)]
    assert warned.mean[0, CPU, 0] < 1.5 * quiet.mean[0, CPU, 0]
    assert warned.peak_quantiles[0, CPU, -1, LEVELS.index(0.9)] > 4.0 * 500e4
    assert warned.models[warned.model[0, CPU]] == "daily"
    np.testing.assert_allclose(warned.mean[2:], quiet.mean[2:], rtol=0.1)


def test_bands_cover_what_they_promise() -> None:
    data = noise(12, 552, 5)
    engine = ForecastEngine(LEAN)
    engine.load(history(data[..., :400]))
    inside, above = [], []
    for i in range(400, 540):
        block = engine.advance(bucket(T0 + (i - 399) * BUCKET_S, data[..., i]), {})
        ahead = data[..., i + 1 : i + 13]
        inside.append((ahead >= block.quantiles[..., LEVELS.index(0.1)]) & (ahead <= block.quantiles[..., LEVELS.index(0.9)]))
        above.append(ahead.max(axis=-1) * 1.2 > block.peak_quantiles[..., -1, LEVELS.index(0.975)])
    assert np.mean(inside) == pytest.approx(0.8, abs=0.04)
    assert np.mean(above) < 0.045
    assert np.nanmean(block.coverage) == pytest.approx(0.8, abs=0.06)


def test_out_of_calibration_after_the_world_changed_and_back() -> None:
    engine = ForecastEngine(LEAN)
    calm = 1e6 + np.random.default_rng(7).normal(0, 100, (1, N_RESOURCES, 300))
    engine.load(history(calm))
    # growth without end that nothing in the history announces, far outside every band
    reasons = []
    level = 1e6
    for i in range(1, 200):
        level *= 1.0 + 0.01 * i if i < 70 else 1.0
        block = engine.advance(bucket(T0 + i * BUCKET_S, np.full((1, N_RESOURCES), level)), {})
        reasons.append(int(block.reason[0, CPU]))
    assert NoForecast.OUT_OF_CALIBRATION in reasons
    assert reasons[-1] == NoForecast.OK


def test_options_are_bounded() -> None:
    with pytest.raises(ValueError, match="ring 3: allowed 48"):
        ForecastOptions(ring=3)


def test_a_network_that_does_worse_is_not_taken() -> None:
    options = ForecastOptions(boosting=False, ring=600, replay=24, examples=8000)
    past = history(noise(12, 500), T0)
    good = ForecastEngine(options).retrain(past)
    assert good is not None
    weights = msgspec.msgpack.decode(zlib.decompress(msgspec.msgpack.decode(good, type=Models).network or b""))
    values = np.frombuffer(weights["data"], dtype="<f4").copy()
    values[-100:] += 5.0  # the last biases: five spreads too high
    bad = msgspec.msgpack.encode(Models(None, zlib.compress(msgspec.msgpack.encode({**weights, "data": values.tobytes()}))))
    now = noise(12, 36, seed=2)

    def leaders(*models: bytes) -> set[str]:
        engine = ForecastEngine(options)
        engine.load(past)
        for each in models:
            engine.install(each)
        for k in range(36):  # nobody leads before it was heard for a while
            block = engine.advance(bucket(T0 + (k + 1) * BUCKET_S, now[..., k]), {})
        return {block.models[k] for k in block.model.ravel()}

    assert "network" in leaders(good)
    assert "network" not in leaders(bad), "worse than the quantiles of the last hours"
    assert leaders(good, bad) == leaders(good), "worse than the one in use"
