"""The global quantile model: deterministic, ordered, silent where it must be, and better than the last value on a daily pattern."""

from __future__ import annotations

import zlib

import msgspec
import numpy as np
import pytest

from coordinator.forecast.boosting import QuantileBooster, Settings, challenge, exercise, gate, train
from coordinator.forecast.covariates import Covariates, EventTimes, LocalDays
from coordinator.forecast.members import look
from coordinator.forecast.warm import compiling
from coordinator.model import N_RESOURCES, SIGNALS, HistoryBlock

SMALL = Settings(rounds=20, pairs=800)
END_S = 1_700_006_400 // 86_400 * 86_400


def daily(v: int, days: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (v, 1, 1))
    wave = 2.0 + np.sin(2 * np.pi * np.arange(days * 288) / 24 + phase)  # two hours a wave: fast enough to matter within the horizon
    scale = np.array([500.0, 1e9, 1e6, 1e7, 1e7])[:, None]
    return (scale * wave * rng.lognormal(0, 0.1, (v, N_RESOURCES, days * 288))).astype(np.float32)


def history(mean: np.ndarray) -> HistoryBlock:
    return HistoryBlock(
        vm_ids=tuple(f"vm{i}" for i in range(len(mean))),
        end_s=END_S,
        mean=mean,
        peak=mean * np.float32(1.3),
        censored=np.zeros_like(mean),
        capacity=np.full(mean.shape[:2], np.nan, dtype=np.float32),
    )


@pytest.fixture(scope="module")
def model() -> bytes:
    return train(history(daily(6, 3)), seed=4, settings=SMALL)


def test_same_history_same_bytes(model: bytes) -> None:
    assert train(history(daily(6, 3)), seed=4, settings=SMALL) == model
    assert train(history(daily(6, 3)), seed=5, settings=SMALL) != model


def test_other_vms_are_forecast_better_than_by_their_last_value(model: bytes) -> None:
    unseen = daily(4, 3, seed=9)
    now = unseen.shape[2] - 13
    series = unseen[..., : now + 1].reshape(-1, now + 1)
    actual = unseen[..., now + 1 :].reshape(-1, 12)
    said = QuantileBooster(model).forecast(series, series, look(series), END_S - 12 * 300, np.full(len(series), np.nan))
    assert said.shape == (3, len(series), 12)
    assert (np.diff(said, axis=0) >= 0).all()
    scale = series.mean(axis=1)[:, None]
    error = np.abs(said[1] - actual) / scale
    naive = np.abs(series[:, -1:] - actual) / scale
    assert error.mean() < 0.7 * naive.mean()
    assert 0.6 < ((actual >= said[0]) & (actual <= said[2])).mean() < 0.95


def test_hard_series_give_finite_answers_or_silence(model: bytes) -> None:
    series = np.full((N_RESOURCES, 60), np.nan, dtype=np.float32)
    series[1] = 0.0
    series[2] = 1e12
    series[3, -1] = 5.0
    said = QuantileBooster(model).forecast(series, series, look(series), END_S, np.full(N_RESOURCES, np.nan))
    assert np.isnan(said[:, 0]).all()
    assert np.isfinite(said[:, 1:4]).all()
    assert (said[:, 1:4] >= 0).all()


def test_too_little_history_and_broken_models_are_refused() -> None:
    assert train(history(daily(1, 1)[..., :37])) is None
    with pytest.raises(ValueError, match="not a trained model"):
        QuantileBooster(b"junk")


def test_the_peak_of_the_next_hour_is_covered_as_often_as_its_quantiles_say(model: bytes) -> None:
    unseen = daily(8, 3, seed=11)
    now = unseen.shape[2] - 13
    peaks = (unseen * np.float32(1.3)).reshape(-1, now + 13)
    booster = QuantileBooster(model)
    features = booster.describe(
        unseen.reshape(peaks.shape), peaks, np.full(len(peaks), np.nan), end=now + 1, now_s=END_S - 12 * 300, ahead=False
    )
    said = booster.peak_quantiles(features)
    actual = peaks[:, now + 1 :].max(axis=1)
    assert said.shape == (3, len(peaks))
    assert (np.diff(said, axis=0) >= 0).all()
    assert 0.2 < (actual <= said[0]).mean() < 0.8
    assert (actual <= said[2]).mean() > 0.8


def test_a_random_forest_can_be_chosen() -> None:
    forest = train(history(daily(4, 2)), settings=Settings(mode="rf", rounds=10, pairs=800))
    assert forest is not None
    series = daily(2, 2, seed=3).reshape(-1, 576)
    said = QuantileBooster(forest).forecast(series, series, look(series), END_S, np.full(len(series), np.nan))
    assert np.isfinite(said).all()
    assert ((said[1] > 0.2 * series.mean(axis=1)[:, None]) & (said[1] < 3 * series.mean(axis=1)[:, None])).all()


def test_a_worse_challenger_is_never_promoted(model: bytes) -> None:
    good = history(daily(6, 3, seed=21))
    noise = np.random.default_rng(0).permuted(good.mean, axis=2)  # a model of noise: no wave to learn
    bad = train(history(noise), settings=SMALL)
    against = gate(model, bad, good, settings=SMALL)
    assert not against.promote
    assert against.challenger_loss > against.champion_loss
    other_way = gate(bad, model, good, settings=SMALL)
    assert other_way.promote
    assert (other_way.champion_loss, other_way.challenger_loss) == (against.challenger_loss, against.champion_loss)
    assert not gate(model, model, good, settings=SMALL).promote


def test_the_first_model_must_beat_the_quantiles_of_the_last_hours(model: bytes) -> None:
    verdict = gate(None, model, history(daily(6, 3, seed=22)), settings=SMALL)
    assert verdict.promote
    assert "below" in verdict.why
    flat = history(np.random.default_rng(1).lognormal(0, 0.2, (6, N_RESOURCES, 864)).astype(np.float32) * np.float32(1e9))
    assert not gate(None, model, flat, settings=SMALL).promote


def test_the_gate_says_why_it_can_not_judge(model: bytes) -> None:
    assert "too little history" in gate(model, None, history(daily(1, 1))).why
    assert "no whole hour" in gate(None, model, history(daily(1, 1)[..., :60])).why
    empty = history(np.full((2, N_RESOURCES, 864), np.nan, dtype=np.float32))
    assert "0 series" in gate(None, model, empty).why


def test_a_challenge_answers_with_the_model_to_use() -> None:
    seen = history(daily(6, 3, seed=23))
    first, verdict = challenge(None, seen, seed=1, settings=SMALL)
    assert verdict.promote
    assert first == train(seen, 1, settings=SMALL)
    same, verdict = challenge(first, seen, seed=1, settings=SMALL)  # the same model again is not better
    assert not verdict.promote
    assert same == first
    assert challenge(b"of another version", seen, seed=1, settings=SMALL)[0] == first
    assert challenge(first, history(daily(1, 1)[..., :37]), settings=SMALL)[0] == first


def test_training_leaves_the_newest_windows_to_the_gate() -> None:
    mean = daily(4, 2)
    changed = mean.copy()
    changed[..., -72:] *= 5.0
    assert train(history(mean), settings=SMALL) == train(history(changed), settings=SMALL)
    changed[..., -73:] *= 5.0
    assert train(history(mean), settings=SMALL) != train(history(changed), settings=SMALL)


def test_after_the_exercise_no_forecast_compiles(model: bytes) -> None:
    exercise()
    series = daily(2, 2).reshape(-1, 576)
    seen = look(series)
    events = EventTimes(np.array([[END_S + 900, END_S + 1800]]), np.array([0, 1]), np.array([0, -1]))
    signals = np.ones((2, len(SIGNALS), 600), dtype=np.float32)[:, :, 300:588]  # a view, as the engine's
    days = LocalDays(holidays=(((0, 86_400),),))
    known = Covariates(days=days, events=events, signals=signals, groups=np.array([[1, 2], [1, -1]]))
    with compiling() as compiled:
        for given in (Covariates(), known):
            said = QuantileBooster(model).forecast(series, series, seen, END_S, np.full(len(series), np.nan), known=given)
            assert np.isfinite(said).all()
    assert compiled.names == []


def test_a_model_of_an_earlier_version_is_refused_by_name(model: bytes) -> None:
    parts = msgspec.msgpack.decode(zlib.decompress(model))
    earlier = zlib.compress(msgspec.msgpack.encode({**parts, "version": 1, "groups": {}}))
    with pytest.raises(ValueError, match="version 1: this code reads 2; train anew"):
        QuantileBooster(earlier)


def test_settings_name_what_is_out_of_range() -> None:
    with pytest.raises(ValueError, match="mode 'forest': allowed gbdt or rf"):
        Settings(mode="forest")
    with pytest.raises(ValueError, match="rounds 0: allowed 1 to 1000"):
        Settings(rounds=0)
