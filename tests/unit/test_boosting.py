"""The global quantile model: deterministic, ordered, silent where it must be, and better than the last value on a daily pattern."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.forecast.boosting import QuantileBooster, train
from coordinator.forecast.members import look
from coordinator.model import N_RESOURCES, HistoryBlock

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
    return train(history(daily(6, 3)), seed=4, rounds=25)


def test_same_history_same_bytes(model: bytes) -> None:
    assert train(history(daily(6, 3)), seed=4, rounds=25) == model
    assert train(history(daily(6, 3)), seed=5, rounds=25) != model


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
    assert train(history(daily(1, 1)[..., :40])) is None
    with pytest.raises(ValueError, match="not a trained model"):
        QuantileBooster(b"junk")
