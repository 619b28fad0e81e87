"""The slow loop: names, questions, awkward series, turns, and the board that makes members of forecasts."""

from __future__ import annotations

import warnings
from dataclasses import replace
from importlib import import_module
from statistics import NormalDist

import numpy as np
import pytest

from coordinator.forecast.challengers import (
    CONCEPT,
    MOST_STEPS,
    Answer,
    Challenger,
    MissingExtra,
    Question,
    find,
    registered,
    run,
    usable,
)
from coordinator.forecast.challengers import rows as challenger_rows
from coordinator.forecast.challengers.classical import CLASSICAL
from coordinator.forecast.challengers.forests import TreeEnsemble
from coordinator.forecast.challengers.foundation import at_levels
from coordinator.forecast.challengers.neural import NeuralModel
from coordinator.forecast.kernels import fill_gaps
from coordinator.model import F32, LEVELS, N_RESOURCES, HistoryBlock
from shared.units import BUCKET_S, HORIZON_STEPS

QUICK = ("auto_arima", "auto_ets", "auto_ces", "mfles", "sf_window_average", "sf_ses_optimized", "gradient_boosting", "random_forest")
END_S = 1_700_006_400 // BUCKET_S * BUCKET_S


def awkward(b: int = 600) -> tuple[F32, np.ndarray]:
    """One of each kind that breaks models, and whether anything can be said of it."""
    rng = np.random.default_rng(5)
    usual = 100 + 20 * np.sin(np.arange(b) / 20) + rng.normal(0, 3, b)
    kinds: dict[str, tuple[np.ndarray, bool]] = {
        "usual": (usual, True),
        "zero": (np.zeros(b), True),
        "constant": (np.full(b, 7.0), True),
        "spike": (np.where(np.arange(b) == b - 5, 1e9, 3.0), True),
        "infinite": (np.where(np.arange(b) == 9, np.inf, usual), True),
        "gapped": (np.where(rng.random(b) < 0.4, np.nan, usual), True),
        "unknown": (np.full(b, np.nan), False),
        "five points": (np.where(np.arange(b) < b - 5, np.nan, usual), False),
        "gone": (np.where(np.arange(b) > b - 100, np.nan, usual), False),
        "negative": (-usual, True),
        "step": (np.where(np.arange(b) < b - 20, 5.0, 5000.0), True),
        "counter reset": (np.cumsum(np.ones(b)) % 97, True),
        "tiny": (usual * 1e-12, True),
        "huge": (usual * 1e12, True),
    }
    return np.array([series for series, _ in kinds.values()], dtype=np.float32), np.array([there for _, there in kinds.values()])


def question(series: F32, steps: int = HORIZON_STEPS) -> Question:
    return Question(
        series=series, resource=np.arange(len(series)) % N_RESOURCES, start_s=END_S - (series.shape[1] - 1) * BUCKET_S, steps=steps
    )


def history(v: int = 3, b: int = 300) -> HistoryBlock:
    rng = np.random.default_rng(1)
    mean = (50 + 5 * rng.normal(size=(v, N_RESOURCES, b))).astype(np.float32)
    capacity = np.full((v, N_RESOURCES), np.nan, dtype=np.float32)
    capacity[0, 0] = 10.0
    names = tuple(f"vm{i}" for i in range(v))
    return HistoryBlock(vm_ids=names, end_s=END_S, mean=mean, peak=mean, censored=mean * 0, capacity=capacity)


def small(name: str) -> Challenger:
    """The challenger, learning from little where it learns."""
    found = find(name)
    if isinstance(found, TreeEnsemble):
        return replace(found, pairs=1000)
    return replace(found, training_steps=3) if isinstance(found, NeuralModel) else found


def checked(answer: Answer, asked: Question) -> None:
    assert answer.mean.shape == (len(asked.series), asked.steps)
    assert not np.isinf(answer.mean).any()
    assert not (answer.mean < 0).any()
    if answer.quantiles is not None:
        assert answer.quantiles.shape == (*answer.mean.shape, len(LEVELS))
        known = np.isfinite(answer.quantiles).all(axis=-1)
        assert (np.diff(answer.quantiles[known], axis=-1) >= 0).all()
        assert (answer.quantiles[known] >= 0).all()


def test_every_name_of_the_concept_is_selectable() -> None:
    for name in ("ARIMA", "exponential smoothing", "Prophet", "random forest", "gradient boosting", "LSTM", "Transformer"):
        assert find(name).name == CONCEPT[name]
    assert {find(name).name for name in registered()} == set(registered())
    with pytest.raises(ValueError, match=r"challenger 'oracle': allowed auto_arima, .*ARIMA"):
        find("oracle")
    assert set(QUICK) <= set(usable()) <= set(registered())


@pytest.mark.parametrize(("name", "extra"), [("lstm", "neural"), ("patchtst", "neural"), ("fracast", "neural"), ("prophet", "prophet")])
def test_what_is_not_installed_names_its_extra(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(challenger_rows, "find_spec", lambda module: None)
    assert f"tidegate[{extra}]" in str(find(name).available())
    with pytest.raises(MissingExtra, match=rf"challenger {name}: .* is not installed: pip install 'tidegate\[{extra}\]'"):
        run(name, history(), np.array([0]))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"series": np.zeros(3, dtype=np.float32)}, "series of shape"),
        ({"resource": np.array([0])}, "resource of shape"),
        ({"resource": np.array([0, 9])}, "resource 0 to 9: allowed 0 to 4"),
        ({"start_s": 7}, "start_s 7: must be a multiple of 300"),
        ({"steps": 0}, "steps 0: allowed 1 to 72"),
        ({"steps": 73}, "steps 73: allowed 1 to 72"),
    ],
)
def test_bad_questions_are_refused(changed: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(question(np.zeros((2, 30), dtype=np.float32)), **changed)


@pytest.mark.parametrize("name", QUICK)
def test_awkward_series_get_an_answer_or_silence(name: str) -> None:
    series, there = awkward()
    asked = question(series)
    answer = small(name).forecast(asked, 3)
    checked(answer, asked)
    assert not np.isfinite(answer.mean[~there]).any()
    assert np.isfinite(answer.mean[there]).all(axis=1).sum() >= there.sum() - len(answer.failures)
    np.testing.assert_allclose(answer.mean[1], 0.0, atol=1e-3)
    np.testing.assert_allclose(answer.mean[2], 7.0, rtol=0.01)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("shape", [(0, 300), (2, 0), (2, 1), (2, 5), (1, 30)])
def test_short_histories(name: str, shape: tuple[int, int]) -> None:
    challenger = small(name)
    asked = question(np.ones(shape, dtype=np.float32) + np.arange(shape[1], dtype=np.float32))
    checked(challenger.forecast(asked), asked)


@pytest.mark.parametrize("name", [*QUICK[1:], "mstl"])
def test_same_question_and_seed_same_answer(name: str) -> None:
    asked = question(awkward()[0][:3], 30)
    first, again = (small(name).forecast(asked, 3).mean for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_classical_models_say_what_statsforecast_says() -> None:
    models = import_module("statsforecast.models")
    warnings.simplefilter("ignore")  # pytest restores it: ARIMA tells of convergence
    rng = np.random.default_rng(2)
    series = (100 + rng.normal(0, 2, (2, 320)).cumsum(axis=1)).astype(np.float32)
    series[1, 200:220] = np.nan
    filled = fill_gaps(series)[0]
    for challenger in CLASSICAL:
        if challenger.model in {"MSTL", "MFLES"}:
            continue  # two days of history, and MSTL's trend forecaster is ours to choose
        said = challenger.forecast(question(series, 20)).mean
        for row, values in zip(said, filled, strict=True):
            theirs = getattr(models, challenger.model)(**challenger.arguments).forecast(y=values[-challenger.history :], h=20)["mean"]
            np.testing.assert_allclose(row, theirs, rtol=1e-6)


@pytest.mark.parametrize("name", ["mstl", "mfles", "sf_seasonal_naive", "gradient_boosting", "random_forest"])
def test_a_daily_wave_is_foretold(name: str) -> None:
    # all of one resource: two hundred millicores are demand, two hundred bytes of memory are nothing
    rng = np.random.default_rng(3)
    moment = np.arange(900 + MOST_STEPS)
    wave = 200 + 100 * np.sin(2 * np.pi * moment / 288)
    noisy = (wave + rng.normal(0, 2, (4, len(moment)))).astype(np.float32)
    asked = replace(question(noisy[:, :900], MOST_STEPS), resource=np.zeros(4, dtype=np.int64))
    said = find(name).forecast(asked).mean
    usual = np.abs(noisy[:, 900:] - noisy[:, 899:900]).mean()
    assert np.abs(said - wave[900:]).mean() < 0.35 * usual


def test_a_series_that_a_library_cannot_fit_is_told_and_the_others_go_on() -> None:
    def model(values: np.ndarray) -> np.ndarray:
        if values[-1] > 50:
            raise ZeroDivisionError("too high")
        return values[-1:] * np.ones(12)

    series = np.array([[1.0, 2.0] * 20, [1.0, 99.0] * 20, [1.0, 98.0] * 20], dtype=np.float32)
    mean, failures = challenger_rows.one_by_one(question(series), 100, model)
    np.testing.assert_array_equal(mean[0], 2.0)
    assert np.isnan(mean[1:]).all()
    assert failures == ("ZeroDivisionError: too high (2 series)",)


def test_a_turn_answers_for_vms_within_capacity() -> None:
    past = history()
    said = run("sf_window_average", past, np.array([0, 1, 2 * N_RESOURCES + 3]), steps=30)
    assert said.vm_ids == ("vm0", "vm0", "vm2")
    assert said.resource.tolist() == [0, 1, 3]
    assert said.issued_s == END_S + BUCKET_S
    np.testing.assert_allclose(said.mean[0], 10.0)
    np.testing.assert_allclose(said.mean[2], past.mean[2, 3, -12:].mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="rows 0 to 15: allowed 0 to 14"):
        run("auto_ets", past, np.array([0, 15]))


def test_a_library_that_fails_as_a_whole_silences_its_member(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object, **named: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("coordinator.forecast.challengers.forests.train", broken)
    said = run("random_forest", history(), np.array([0, 4]))
    assert np.isnan(said.mean).all()
    assert said.failures == ("RuntimeError: out of memory (2 series)",)


def test_deciles_become_levels() -> None:
    normal = NormalDist(10.0, 2.0)
    deciles = np.array([normal.inv_cdf(k / 10) for k in range(1, 10)])
    np.testing.assert_allclose(at_levels(deciles), [normal.inv_cdf(level) for level in LEVELS])
