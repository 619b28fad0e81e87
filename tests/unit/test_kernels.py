"""Batched kernels: parity with StatsForecast, the gap rule, and no input that breaks them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from statsforecast.models import AutoETS

from coordinator.forecast import kernels


def series(n: int, b: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drift = rng.normal(0, 0.3, (n, b)).cumsum(axis=1)
    return np.abs(20 + drift + rng.normal(0, rng.uniform(0.1, 4, (n, 1)), (n, b)))


def test_damped_trend_fits_as_well_as_statsforecast() -> None:
    data = series(24, 200)
    _, sse = kernels.fit_damped(data)
    ratios = []
    for row, own in zip(data, sse, strict=True):
        fitted = AutoETS(season_length=1, model="AAN", damped=True).fit(row.copy()).model_["fitted"]
        ratios.append(own / np.sum((row - fitted) ** 2))
    assert np.median(ratios) <= 1.02
    assert np.max(ratios) <= 1.15


def test_damped_trend_recursion_against_plain_python() -> None:
    data = series(3, 50)
    params = np.array([[0.3, 0.1, 0.9], [0.8, 0.01, 0.98], [0.05, 0.04, 0.8]])
    curves = kernels.run_damped(data, params, 4)
    for row, (alpha, beta, phi), curve in zip(data, params, curves, strict=True):
        slope, intercept = np.polyfit(np.arange(10), row[:10], 1)
        level, trend = intercept - slope, slope
        for value in row:
            error = value - level - phi * trend
            level, trend = level + phi * trend + alpha * error, phi * trend + beta * error
        expected = [level + trend * sum(phi**i for i in range(1, h + 1)) for h in range(1, 5)]
        np.testing.assert_allclose(curve, expected, rtol=1e-9)


def test_lanes_do_not_leak_into_each_other() -> None:
    data = series(70, 90)  # more than one block of LANES
    params, sse = kernels.fit_damped(data)
    for i in (0, 15, 63, 64, 69):
        alone, alone_sse = kernels.fit_damped(data[i : i + 1])
        np.testing.assert_array_equal(alone[0], params[i])
        assert alone_sse[0] == sse[i]


def test_gap_rule() -> None:
    data = np.array([[np.nan, 3.0, np.nan, 5.0, np.nan], [np.nan] * 5, [1.0, 2.0, 3.0, 4.0, np.inf]])
    filled, readings, age = kernels.fill_gaps(data)
    np.testing.assert_array_equal(filled, [[3, 3, 3, 5, 5], [0, 0, 0, 0, 0], [1, 2, 3, 4, 4]])
    np.testing.assert_array_equal(readings, [2, 0, 4])
    np.testing.assert_array_equal(age, [1, 5, 1])


def test_window_quantiles_are_numpys() -> None:
    data = series(5, 60)
    levels = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(kernels.window_quantiles(data, 36, levels), np.quantile(data[:, -36:], levels, axis=1).T)


def test_smoothing_prefers_the_right_alpha() -> None:
    rng = np.random.default_rng(1)
    noise, walk = rng.normal(50, 5, 288), rng.normal(0, 1, 288).cumsum() + 100
    level, alpha = kernels.smooth_best(np.stack([noise, walk]), np.array([0.05, 0.3, 1.0]))
    assert list(alpha) == [0.05, 1.0]
    assert level[1] == walk[-1]
    assert level[0] == pytest.approx(50, abs=3)


def test_season_profile_is_the_median_of_earlier_seasons_and_skips_gaps() -> None:
    day = np.arange(10.0)
    data = np.concatenate([day, day + 1, day + 100, [0.0, 1.0]])[None]
    data[0, 14] = np.nan
    profile = kernels.season_profile(data, 1, 3, 10, 3, 0)
    # newest bucket is phase 1; phases 1, 2, 3, 4 of three earlier days (phase 4 of the second day is missing)
    np.testing.assert_allclose(profile[0], [2.0, 3.0, 4.0, (4.0 + 104.0) / 2])
    assert np.isnan(kernels.season_profile(data[:, :5], 0, 3, 10, 2, 1)).all()


def test_sliding_maxima_by_hand() -> None:
    data = np.array([[1.0, 3.0, 2.0, 5.0]])
    np.testing.assert_allclose(kernels.sliding_maxima(data, 2, 2), [[(1 + 3 + 2) / 3, (3 + 3 + 5) / 3]])
    np.testing.assert_allclose(kernels.sliding_maxima(data[:, :1], 2, 3), [[1.0, 1.0, 1.0]])


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20),
        elements=st.one_of(st.just(np.nan), st.floats(0, 1e15)),
    )
)
def test_nothing_breaks_the_kernels(data: np.ndarray) -> None:
    filled, _, _ = kernels.fill_gaps(data)
    params, sse = kernels.fit_damped(filled)
    for out in (
        filled,
        params,
        sse,
        kernels.run_damped(filled, params, 12),
        kernels.smooth_best(filled, np.array([0.1, 0.9]))[0],
        kernels.window_quantiles(filled, 12, np.array([0.0, 0.5, 1.0])),
        kernels.sliding_maxima(filled, 5, 12),
    ):
        assert np.isfinite(out).all()
    assert ((params[:, 0] > 0) & (params[:, 1] <= params[:, 0]) & (params[:, 2] <= kernels.PHI_MAX)).all()
