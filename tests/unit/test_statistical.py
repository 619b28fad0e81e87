"""StatsForecast members: what they say is StatsForecast's own answer; what they cannot say is NaN."""

from __future__ import annotations

import numpy as np
from statsforecast.models import AutoETS, SeasonalNaive, SimpleExponentialSmoothingOptimized, WindowAverage

from coordinator.forecast.kernels import fill_gaps
from coordinator.forecast.statistical import FIT_EVERY, STATISTICAL, StatisticalPool
from coordinator.model import N_RESOURCES


def pool(v: int) -> StatisticalPool:
    made = StatisticalPool()
    made.rearrange(np.full(v, -1))
    return made


def data(b: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    series = (50 + rng.normal(0, 2, (N_RESOURCES, b)).cumsum(axis=1)).clip(0).astype(np.float32)
    return series, fill_gaps(series[:, -288:])[0]


def test_members_say_what_statsforecast_says() -> None:
    series, filled = data(300)
    members = pool(1)
    for tick in range(FIT_EVERY):
        said = members.forecast(series, filled, tick)
    models = (
        SeasonalNaive(season_length=288),
        WindowAverage(window_size=12),
        SimpleExponentialSmoothingOptimized(),
        AutoETS(season_length=1, model="ANN"),
    )
    for k, model in enumerate(models):
        for i, row in enumerate(filled):
            tolerance = 0.02 if STATISTICAL[k] == "sf_ets_ann" else 1e-9  # our filter starts at the first point, ETS fits its start
            np.testing.assert_allclose(said[k, i], model.forecast(y=row, h=12)["mean"], rtol=tolerance)


def test_short_and_constant_series_and_new_rows() -> None:
    members = pool(1)
    series, filled = data(6)
    assert np.isnan(members.forecast(series, filled, 0)).all()
    flat = np.full((N_RESOURCES, 40), 7.0)
    for tick in range(FIT_EVERY):
        said = members.forecast(flat.astype(np.float32), flat, tick)
    assert np.isnan(said[0]).all()  # no day of history
    np.testing.assert_allclose(said[1:], 7.0)
    members.rearrange(np.array([0, -1]))
    two = np.concatenate([flat, flat])
    said = members.forecast(two.astype(np.float32), two, 100)
    assert not np.isnan(said[3, 0]).any()
