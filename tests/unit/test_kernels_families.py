"""What every family of kernels keeps: O(1) appends that say what a filter over the whole series says, the gap rule, and finite answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from statsforecast import models

from coordinator.forecast.kernels import damped, fill_gaps, intermittent, naive, profile, theta, windows
from coordinator.forecast.kernels.families import FAMILIES, Family

INTERMITTENT = {"croston", "croston_sba", "tsb"}
EVERY = pytest.mark.parametrize("name", FAMILIES)


def series(n: int, b: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drift = rng.normal(0, 0.3, (n, b)).cumsum(axis=1)
    wave = rng.uniform(0, 5, (n, 1)) * np.sin(2 * np.pi * np.arange(b) / 12)
    return np.abs(20 + drift + wave + rng.normal(0, rng.uniform(0.1, 4, (n, 1)), (n, b)))


def follow(family: Family, state: np.ndarray, values: np.ndarray) -> np.ndarray:
    for t in range(values.shape[1]):
        family.append(state, values[:, t])
    return state


@EVERY
def test_appending_all_buckets_is_filtering_the_series(name: str) -> None:
    family = FAMILIES[name]
    data = series(5, 400)
    fitted = family.start(data)
    again = follow(family, family.restart(fitted, data), data)
    if name in {"theta", "theta_optimised", "damped_trend", "holt_winters"}:  # the first states differ: forgotten after 400 buckets
        np.testing.assert_allclose(family.forecast(again, 12), family.forecast(fitted, 12), rtol=2e-3)
    elif name == "seasonal_profile":  # `start` takes means of the phases, `append` smooths them
        np.testing.assert_array_equal(again[:, [0, 2]], fitted[:, [0, 2]])
    else:
        np.testing.assert_allclose(again, fitted, rtol=1e-9)


@EVERY
def test_a_missing_bucket_repeats_the_last_value(name: str) -> None:
    family = FAMILIES[name]
    data = series(4, 60)
    gapped, told = family.start(data), family.start(data)
    before = gapped.copy()
    for _ in range(3):
        family.append(gapped, np.full(4, np.nan))
        family.append(told, data[:, -1])
    if name in INTERMITTENT:
        np.testing.assert_array_equal(gapped, before)
    elif name == "seasonal_profile":  # the level follows the gap rule, the profile learns nothing
        np.testing.assert_array_equal(gapped[:, 3:], before[:, 3:])
        assert np.all(gapped[:, 1] != before[:, 1])
    else:
        np.testing.assert_array_equal(gapped, told)


@EVERY
def test_series_do_not_leak_into_each_other(name: str) -> None:
    family = FAMILIES[name]
    data = series(70, 90)  # more than one block of LANES
    state = family.start(data)
    family.append(state, data[:, 0])
    for i in (0, 15, 63, 64, 69):
        alone = family.start(data[i : i + 1])
        family.append(alone, data[i : i + 1, 0])
        np.testing.assert_array_equal(alone[0], state[i])


@EVERY
@settings(max_examples=25, deadline=None)
@given(
    data=hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 3), st.integers(1, 40)),
        elements=st.one_of(st.floats(-1e9, 1e9), st.sampled_from([0.0, 1.0, np.nan, np.inf])),
    )
)
def test_finite_whatever_comes(name: str, data: np.ndarray) -> None:
    family = FAMILIES[name]
    state = family.start(data if name in INTERMITTENT else fill_gaps(data)[0])
    assert np.isfinite(family.forecast(state, 12)).all()
    follow(family, state, data)
    assert np.isfinite(family.forecast(state, 12)).all()


@EVERY
def test_an_empty_history_is_followed_from_the_first_bucket(name: str) -> None:
    family = FAMILIES[name]
    state = family.start(np.empty((2, 0)))
    assert len(state) == 2
    state = follow(family, family.restart(family.start(series(2, 5)), series(2, 5)), series(2, 5))
    assert np.isfinite(family.forecast(state, 3)).all()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 12, 36, 72])
def test_sorted_windows_against_numpy(width: int, kind: type) -> None:
    levels = np.array([0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975, 1.0])
    data = np.round(series(6, 200), 1).astype(kind)  # rounded: equal values must be taken out one at a time
    state = windows.start(data[:, :5], width)
    for t in range(5, 200):
        windows.append(state, data[:, t])
        newest = data[:, max(0, t + 1 - width) : t + 1].astype(np.float64)
        np.testing.assert_allclose(windows.quantiles(state, levels), np.quantile(newest, levels, axis=1).T, rtol=1e-12)
        np.testing.assert_allclose(windows.forecast_mean(state, 2), np.tile(newest.mean(axis=1)[:, None], 2), rtol=1e-6)
    np.testing.assert_array_equal(windows.start(data, width)[:, 3 + width :], state[:, 3 + width :])
    assert state.dtype == kind


def test_profile_learns_the_day_and_lifts_it() -> None:
    day = np.tile(10 + np.sin(2 * np.pi * np.arange(48) / 48), 4)[None]
    state = profile.start(day.astype(np.float32), 48)
    np.testing.assert_allclose(profile.forecast(state, 48)[0], day[0, :48], atol=1e-5)
    for t in range(12):
        profile.append(state, day[:, t] + 2.0)
    lifted = profile.forecast(state, 3)[0] - day[0, 12:15]
    np.testing.assert_allclose(lifted, 2.0 * (1 - 0.7**12) * 0.97 ** np.arange(1, 4), rtol=1e-4)


def test_seasonal_naive_speaks_before_its_first_season_is_over() -> None:
    state = naive.start_seasonal(np.array([[1.0, 2.0, 3.0]]), 5)
    np.testing.assert_array_equal(naive.forecast_seasonal(state, 4), [[3.0, 3.0, 1.0, 2.0]])


def test_theta_follows_statsforecasts_filter_bucket_by_bucket() -> None:
    data = series(3, 150, seed=4)
    state = theta.start(data)
    for row, line in zip(data, theta.forecast(state, 12), strict=True):
        fitted = models.Theta(season_length=1).fit(row.copy())
        assert np.max(np.abs(fitted.predict(12)["mean"] - line)) <= 0.02 * row.std()


def test_damped_trend_with_solved_first_states_fits_as_well_as_statsforecast() -> None:
    data = series(24, 200)
    own = damped.start(data)[:, damped.VARIANCE] * 200
    ratios = []
    for row, sse in zip(data, own, strict=True):
        fitted = models.AutoETS(season_length=1, model="AAN", damped=True).fit(row.copy()).model_["fitted"]
        ratios.append(sse / np.sum((row - fitted) ** 2))
    assert np.median(ratios) <= 1.002
    assert np.quantile(ratios, 0.95) <= 1.02
    assert np.all(own <= damped.fit_damped(data)[1] * (1 + 1e-5))


def test_quantiles_of_the_damped_trend_are_normal_around_the_forecast() -> None:
    state = damped.start(series(2, 100))
    z = np.array([-1.96, 0.0, 1.96])
    said = damped.forecast_quantiles(state, 12, z)
    np.testing.assert_allclose(said[..., 1], damped.forecast(state, 12))
    np.testing.assert_allclose(said[:, 0, 2] - said[:, 0, 1], 1.96 * np.sqrt(state[:, damped.VARIANCE]))
    assert np.all(np.diff(said[..., 2] - said[..., 1], axis=1) >= 0)


def test_a_demand_that_stays_away_is_forgotten_by_tsb_only() -> None:
    rare = np.tile([0.0, 0.0, 0.0, 8.0], 25)[None]
    croston, tsb = intermittent.start_croston(rare, 1.0), intermittent.start_tsb(rare, 0.1, 0.1)
    np.testing.assert_allclose(intermittent.forecast_croston(croston, 1), 2.0)
    for _ in range(60):
        intermittent.append_croston(croston, np.zeros(1))
        intermittent.append_tsb(tsb, np.zeros(1))
    np.testing.assert_allclose(intermittent.forecast_croston(croston, 1), 2.0)
    assert intermittent.forecast_tsb(tsb, 1)[0, 0] < 0.01
