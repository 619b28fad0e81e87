"""LSTM, Transformer, foundation model and Prophet at work; each skips where its extra is not installed."""

from __future__ import annotations

import warnings
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from coordinator.forecast.challengers import MOST_STEPS, Challenger, Question, find, run
from coordinator.forecast.challengers.neural import NeuralModel
from coordinator.model import F32, LEVELS, N_RESOURCES, HistoryBlock
from shared.units import BUCKET_S

NAMES = ("lstm", "patchtst", "fracast", "prophet")


def challenger(name: str, training_steps: int = 5) -> Challenger:
    found = find(name)
    reason = found.available()
    if reason is not None:
        pytest.skip(reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries warn at import, and once an import is all they are asked for here
        for module in {"prophet": ("prophet",), "fracast": ("fracast",)}.get(name, ("neuralforecast",)):
            import_module(module)
    return replace(found, training_steps=training_steps) if isinstance(found, NeuralModel) else found


def question(series: F32, steps: int = 12) -> Question:
    return Question(series=series, resource=np.zeros(len(series), dtype=np.int64), start_s=0, steps=steps)


@pytest.mark.parametrize("name", NAMES)
def test_awkward_series(name: str) -> None:
    asked = challenger(name)
    rng = np.random.default_rng(5)
    b = 300
    usual = 100 + rng.normal(0, 3, b)
    index = np.arange(b)
    series = np.array(
        [
            usual,
            np.zeros(b),
            np.full(b, 7.0),
            np.where(index == b - 5, 1e9, 3.0),
            np.where(rng.random(b) < 0.4, np.nan, usual),
            -usual,
            usual * 1e-12,
            usual * 1e12,
            np.where(index == 3, np.inf, usual),
            np.full(b, np.nan),
            np.where(index < b - 5, np.nan, usual),
            np.where(index > b - 100, np.nan, usual),
        ],
        dtype=np.float32,
    )
    answer = asked.forecast(question(series), 1)
    assert np.isfinite(answer.mean[:9]).all()
    assert np.isnan(answer.mean[9:]).all()
    assert (answer.mean[:9] >= 0).all()
    assert answer.failures == ()
    if answer.quantiles is not None:
        assert answer.quantiles.shape == (12, 12, len(LEVELS))
        assert np.isfinite(answer.quantiles[:9]).all()
        assert (np.diff(answer.quantiles[:9], axis=-1) >= 0).all()
    np.testing.assert_array_equal(asked.forecast(question(series), 1).mean, answer.mean)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0, 300), (2, 0), (2, 1), (1, 60)])
def test_short_histories(name: str, shape: tuple[int, int]) -> None:
    answer = challenger(name).forecast(question(np.arange(1.0, shape[1] + 1.0, dtype=np.float32) * np.ones(shape, dtype=np.float32)))
    assert answer.mean.shape == (shape[0], 12)
    assert not np.isinf(answer.mean).any()


@pytest.mark.parametrize("name", NAMES)
def test_six_hours_of_a_daily_wave(name: str) -> None:
    """Better than the last value within the hour; further out finite as far as it reaches."""
    moment = np.arange(900 + MOST_STEPS)
    rng = np.random.default_rng(3)
    wave = 200 + 100 * np.sin(2 * np.pi * moment / 288)
    noisy = (wave + rng.normal(0, 2, (4, len(moment)))).astype(np.float32)
    said = challenger(name, 100).forecast(question(noisy[:, :900], MOST_STEPS)).mean
    reach = 48 if name == "fracast" else MOST_STEPS
    assert np.isnan(said[:, reach:]).all()
    assert np.isfinite(said[:, :reach]).all()
    usual = np.abs(noisy[:, 900:912] - noisy[:, 899:900]).mean()
    assert np.abs(said[:, :12] - wave[900:912]).mean() < 0.7 * usual


@pytest.mark.parametrize("name", NAMES)
def test_a_turn(name: str) -> None:
    asked = challenger(name)
    rng = np.random.default_rng(1)
    mean = (50 + 5 * rng.normal(size=(2, N_RESOURCES, 200))).astype(np.float32)
    capacity = np.full((2, N_RESOURCES), 40.0, dtype=np.float32)
    past = HistoryBlock(vm_ids=("a", "b"), end_s=199 * BUCKET_S, mean=mean, peak=mean, censored=mean * 0, capacity=capacity)
    said = run(asked.name, past, np.array([0, 7]), steps=12)
    assert said.vm_ids == ("a", "b")
    assert said.resource.tolist() == [0, 2]
    assert said.failures == ()
    assert (said.mean <= 40.0).all()
    assert (said.mean > 20.0).all()
