"""Kernels as StatsForecast models: parity with the models they stand for, the interface inside StatsForecast, and awkward series."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from statsforecast import StatsForecast
from statsforecast import models as theirs
from statsforecast.utils import ConformalIntervals

from coordinator.forecast import reference as ours

RNG = np.random.default_rng(7)
WANDERING = np.abs(20 + RNG.normal(0, 0.3, (6, 200)).cumsum(axis=1) + RNG.normal(0, RNG.uniform(0.1, 4, (6, 1)), (6, 200)))
SEASONAL = WANDERING + 5 * np.sin(2 * np.pi * np.arange(200) / 12)
RARE = np.where(RNG.random((6, 200)) < 0.15, RNG.lognormal(2, 1, (6, 200)), 0.0)
DATA = {"wandering": WANDERING, "seasonal": SEASONAL, "rare": RARE}
AWKWARD = {
    "constant": np.full(100, 7.0),
    "zero": np.zeros(100),
    "spike": np.where(np.arange(100) == 60, 1e9, 0.0),
    "one": np.array([3.0]),
    "two": np.array([3.0, 5.0]),
    "three": np.array([3.0, 5.0, 4.0]),
    "five": np.array([3.0, 5.0, 4.0, 9.0, 1.0]),
    "gapped": np.where(np.arange(100) % 3 == 0, np.nan, 10.0 + np.arange(100) % 5),
    "unknown": np.full(30, np.nan),
    "step": np.where(np.arange(100) < 50, 1.0, 1e6),
    "negative": -np.abs(RNG.normal(5, 3, 100)),
    "large": 1e12 + RNG.normal(0, 1, 100),
    "infinite": np.array([1.0, np.inf, 2.0, -np.inf, 3.0] * 5),
}
ALL = (
    ours.Naive,
    lambda: ours.SeasonalNaive(12),
    lambda: ours.ExponentialSmoothing(0.3),
    ours.ExponentialSmoothingOptimised,
    ours.DampedTrend,
    ours.Theta,
    ours.OptimisedTheta,
    lambda: ours.Autoregressive(6),
    lambda: ours.HoltWinters(12),
    lambda: ours.SeasonalProfile(48),
    lambda: ours.WindowMedian(36),
    lambda: ours.WindowAverage(12),
    ours.CrostonClassic,
    ours.CrostonSBA,
    lambda: ours.TSB(0.1, 0.1),
)


@pytest.mark.parametrize(
    ("own", "other", "data"),
    [
        (ours.Naive(), theirs.Naive(), "wandering"),
        (ours.SeasonalNaive(12), theirs.SeasonalNaive(12), "seasonal"),
        (ours.ExponentialSmoothing(0.3), theirs.SimpleExponentialSmoothing(0.3), "wandering"),
        (ours.WindowAverage(12), theirs.WindowAverage(12), "wandering"),
        (ours.CrostonClassic(), theirs.CrostonClassic(), "rare"),
        (ours.CrostonSBA(), theirs.CrostonSBA(), "rare"),
        (ours.TSB(0.1, 0.3), theirs.TSB(0.1, 0.3), "rare"),
    ],
    ids=repr,
)
def test_same_estimator_same_forecast(own: ours.KernelModel, other: object, data: str) -> None:
    for row in DATA[data]:
        np.testing.assert_allclose(own.forecast(row, 24)["mean"], other.forecast(y=row.copy(), h=24)["mean"], rtol=1e-9)


@pytest.mark.parametrize(
    ("own", "other", "data", "most_sse", "most_apart"),
    [
        # most_sse: ours over theirs, in sample; most_apart: largest distance of the two forecasts of a middling series, in its deviations
        (ours.ExponentialSmoothingOptimised(), theirs.SimpleExponentialSmoothingOptimized(), "wandering", 1.001, 0.01),
        (ours.DampedTrend(), theirs.AutoETS(season_length=1, model="AAN", damped=True), "wandering", 1.06, 0.3),
        (ours.Theta(), theirs.Theta(season_length=1), "wandering", 1.01, 0.01),
        (ours.OptimisedTheta(), theirs.OptimizedTheta(season_length=1), "wandering", 1.01, 0.1),
        (ours.Autoregressive(6), theirs.AutoRegressive(6), "wandering", 1.02, 0.1),
        (ours.HoltWinters(12), theirs.HoltWinters(12, "A"), "seasonal", 1.10, 0.4),
    ],
    ids=repr,
)
def test_other_search_same_model(own: ours.KernelModel, other: object, data: str, most_sse: float, most_apart: float) -> None:
    apart = []
    for row in DATA[data][:3]:
        mine = own.forecast(row, 12, fitted=True)
        others = other.forecast(y=row.copy(), h=12, fitted=True)
        errors = [np.nansum(np.square(row - answer["fitted"])[12:]) for answer in (mine, others)]
        assert errors[0] <= most_sse * errors[1]
        apart.append(np.max(np.abs(mine["mean"] - others["mean"])) / row.std())
    assert np.median(apart) <= most_apart


@pytest.mark.parametrize("name", ["constant", "zero", "spike", "one", "two", "three", "five", "step", "large"])
@pytest.mark.parametrize(
    ("own", "other"),
    [
        (ours.Naive(), theirs.Naive()),
        (ours.ExponentialSmoothing(0.3), theirs.SimpleExponentialSmoothing(0.3)),
        (ours.WindowAverage(1), theirs.WindowAverage(1)),
        (ours.CrostonClassic(), theirs.CrostonClassic()),
        (ours.CrostonSBA(), theirs.CrostonSBA()),
        (ours.TSB(0.1, 0.3), theirs.TSB(0.1, 0.3)),
    ],
    ids=repr,
)
def test_same_estimator_on_awkward_series(own: ours.KernelModel, other: object, name: str) -> None:
    row = AWKWARD[name]
    np.testing.assert_allclose(own.forecast(row, 3)["mean"], other.forecast(y=row.copy(), h=3)["mean"], rtol=1e-9)


@pytest.mark.parametrize("name", ["constant", "zero", "step", "large", "spike"])
@pytest.mark.parametrize(
    ("own", "other"),
    [
        (ours.ExponentialSmoothingOptimised(), theirs.SimpleExponentialSmoothingOptimized()),
        (ours.Theta(), theirs.Theta(season_length=1)),
        (ours.DampedTrend(), theirs.AutoETS(season_length=1, model="AAN", damped=True)),
    ],
    ids=repr,
)
def test_other_search_on_awkward_series(own: ours.KernelModel, other: object, name: str) -> None:
    row = AWKWARD[name]
    mine, others = (model.forecast(row.copy(), 12, fitted=True) for model in (own, other))
    errors = [np.nansum(np.square(row - answer["fitted"])[12:]) for answer in (mine, others)]
    assert errors[0] <= 1.05 * errors[1] + 1e-9 * np.sum(np.square(row - row.mean())) + 1e-9 * row[0] ** 2


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("make", ALL, ids=lambda make: repr(make()))
def test_awkward_series(make: object, name: str) -> None:
    series = AWKWARD[name]
    model = make()
    answers = [model.forecast(series, 12, level=[80, 95], fitted=True), model.fit(series).forward(series[-3:], 12, level=[80])]
    for answer in answers:
        for key, values in answer.items():
            assert key.startswith("fitted") or np.isfinite(values).all(), (key, values)
    assert not np.isinf(answers[0]["fitted"]).any()
    known = series[np.isfinite(series)]
    if name in {"constant", "zero"}:
        np.testing.assert_allclose(answers[0]["mean"], known[0] * (0.95 if repr(model) == "CrostonSBA" else 1.0), atol=1e-9)


def test_inside_statsforecast_beside_its_own_models() -> None:
    frame = pd.DataFrame(
        {
            "unique_id": np.repeat(["a", "b"], 120),
            "ds": np.tile(pd.date_range("2026-01-01", periods=120, freq="5min"), 2),
            "y": SEASONAL[:2, :120].reshape(-1),
        }
    )
    models = [make() for make in ALL]
    both = StatsForecast(models=[*models, theirs.Naive(alias="TheirNaive"), theirs.SeasonalNaive(12, alias="TheirSeasonal")], freq="5min")
    table = both.forecast(df=frame, h=6, level=[80], fitted=True)
    for column in ("", "-lo-80", "-hi-80"):
        np.testing.assert_allclose(table["Naive" + column], table["TheirNaive" + column], rtol=1e-9)
    np.testing.assert_allclose(table["SeasonalNaive"], table["TheirSeasonal"], rtol=1e-9)
    widths = [(table[f"{name}-hi-80"] - table[f"{name}-lo-80"]).to_numpy() for name in ("SeasonalNaive", "TheirSeasonal")]
    # ours speaks in the first season too (it repeats the newest value), so its errors there count
    np.testing.assert_allclose(widths[0], widths[1], rtol=0.02)
    assert len(both.forecast_fitted_values()) == 240
    np.testing.assert_allclose(
        table["DampedTrend"], StatsForecast(models=[ours.DampedTrend()], freq="5min").fit(frame).predict(6)["DampedTrend"]
    )
    for refit in (True, False, 2):
        crossed = StatsForecast(models=models, freq="5min").cross_validation(
            df=frame, h=6, n_windows=3, step_size=6, refit=refit, level=[80]
        )
        values = crossed[[column for column in crossed if column not in {"unique_id", "ds", "cutoff"}]].to_numpy()
        assert len(crossed) == 36
        assert np.isfinite(values).all()


def test_forward_keeps_the_parameters_and_takes_the_new_series() -> None:
    model = ours.ExponentialSmoothingOptimised().fit(WANDERING[0])
    alpha = model.model_.state[0, 1]
    again = ours.ExponentialSmoothing(alpha).forecast(WANDERING[1], 3)["mean"]
    np.testing.assert_allclose(model.forward(WANDERING[1], 3)["mean"], again)
    np.testing.assert_allclose(model.predict(3)["mean"], ours.ExponentialSmoothing(alpha).forecast(WANDERING[0], 3)["mean"])


@pytest.mark.parametrize("method", ["conformal_distribution", "conformal_error"])
def test_conformal_intervals_as_statsforecast_makes_them(method: str) -> None:
    asked = ConformalIntervals(n_windows=5, h=4, method=method)
    mine = ours.Naive(prediction_intervals=asked).forecast(WANDERING[0], 4, level=[95, 80])
    other = theirs.Naive(prediction_intervals=asked).forecast(y=WANDERING[0].copy(), h=4, level=[80, 95])
    assert list(mine) == list(other)
    for key in other:
        np.testing.assert_allclose(mine[key], other[key], rtol=1e-12)
    kept = ours.Naive(prediction_intervals=asked).fit(WANDERING[0]).predict(4, level=[80])
    np.testing.assert_allclose(kept["hi-80"], mine["hi-80"])


def test_spread_of_the_damped_trend_as_etss() -> None:
    row = WANDERING[2]
    mine = ours.DampedTrend().fit(row)
    alpha, beta, phi = mine.model_.state[0, 2:5]
    weights = np.concatenate([[1.0], alpha + beta * np.cumsum(phi ** np.arange(1, 12))])
    answer = mine.predict(12, level=[95])
    expected = 1.959964 * mine.model_.sigma * np.sqrt(np.cumsum(np.square(weights)))
    np.testing.assert_allclose(answer["hi-95"] - answer["mean"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ours.Naive().predict(3), "call fit before"),
        (lambda: ours.Naive().forecast(np.zeros(0), 3), "at least 1 value"),
        (lambda: ours.Naive().forecast(np.zeros((2, 2)), 3), r"shape \(2, 2\)"),
        (lambda: ours.Naive().forecast(np.zeros(3), 0), "h 0: allowed 1"),
        (lambda: ours.Naive().forecast(np.zeros(3), 1, level=[100]), "level 100: allowed"),
        (lambda: ours.WindowAverage(0), "window_size 0: allowed"),
        (lambda: ours.ExponentialSmoothing(1.5), "alpha 1.5: allowed"),
        (lambda: ours.Naive(prediction_intervals=ConformalIntervals(2, 4)).forecast(np.zeros(5), 4, level=[80]), "at least 9"),
    ],
)
def test_bad_input_says_what_is_allowed(call: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
