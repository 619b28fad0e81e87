"""No history and no bucket makes the engine raise, answer a non-finite value, cross its quantiles or leave [0, capacity]."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.model import LEVELS, N_RESOURCES, BucketBlock, ForecastBlock, HistoryBlock, NoForecast
from shared.units import BUCKET_S, HORIZON_STEPS

END_S = 1_700_006_400 // 86_400 * 86_400
LEAN = ForecastOptions(boosting=False, ring=200, replay=14)
BUCKETS = 150
LIVE = 14  # more than a horizon, so that every step is scored live
CAPACITY = 5_000.0


def shapes() -> dict[str, np.ndarray]:
    """One hard series per name, BUCKETS + LIVE long."""
    rng = np.random.default_rng(11)
    length = BUCKETS + LIVE
    t = np.arange(length)
    calm = rng.lognormal(5.0, 0.2, length)
    made = {
        "constant": np.full(length, 800.0),
        "zero": np.zeros(length),
        "spike in history": np.where(t == BUCKETS - 40, 1e9, calm),
        "spike live": np.where(t == BUCKETS + 3, 1e12, calm),
        "spikes from zero": np.where(rng.random(length) < 0.02, 4000.0, 0.0),
        "step up": np.where(t < BUCKETS - 10, 10.0, 4000.0),
        "step down live": np.where(t < BUCKETS + 5, 4000.0, 10.0),
        "counter reset": (t % 50) * 1e5,
        "counter that wraps below zero": np.where(t % 60 == 0, -4e9, calm),
        "negative": -calm,
        "negative and positive": rng.normal(0.0, 1e3, length),
        "beyond capacity": calm * 1e3,
        "tiny": calm * 1e-30,
        "huge": calm * 1e15,
        "heavy tail": rng.lognormal(0.0, 4.0, length) * 1e3,
        "denormal and huge": np.where(t % 2 == 0, 1e-38, 1e18),
        "every other missing": np.where(t % 2 == 0, np.nan, calm),
        "long gap": np.where((t > BUCKETS - 80) & (t < BUCKETS - 2), np.nan, calm),
        "gone": np.where(t > BUCKETS - 60, np.nan, calm),
        "never": np.full(length, np.nan),
        "comes back live": np.where((t > 100) & (t < BUCKETS + 6), np.nan, calm),
        "born live": np.where(t < BUCKETS + 4, np.nan, calm),
        "infinite live": np.where((t >= BUCKETS) & (t % 3 == 0), np.inf, calm),
    }
    for points in range(1, 6):
        made[f"{points} points"] = np.where((t >= BUCKETS - points) & (t < BUCKETS), calm, np.nan)
    return made


SHAPES = shapes()


def block_of(mean: np.ndarray, peak: np.ndarray, capacity: float) -> HistoryBlock:
    v = len(mean)
    return HistoryBlock(
        vm_ids=tuple(f"vm{i}" for i in range(v)),
        end_s=END_S,
        mean=mean.astype(np.float32),
        peak=peak.astype(np.float32),
        censored=np.zeros_like(mean, dtype=np.float32),
        capacity=np.full((v, N_RESOURCES), capacity, dtype=np.float32),
    )


def bucket_of(start_s: int, mean: np.ndarray, peak: np.ndarray) -> BucketBlock:
    names = tuple(f"vm{i}" for i in range(len(mean)))
    return BucketBlock.unlimited(start_s, names, mean.astype(np.float64), peak.astype(np.float64))


def run(series: np.ndarray, capacity: float, peak_factor: float = 1.3) -> list[ForecastBlock]:
    """series [v, b], every resource alike: history first, the last LIVE buckets one by one."""
    values = np.repeat(series[:, None], N_RESOURCES, axis=1)
    engine = ForecastEngine(LEAN)
    before = values.shape[2] - LIVE
    engine.load(block_of(values[..., :before], values[..., :before] * peak_factor, capacity))
    return [
        engine.advance(bucket_of(END_S + (k + 1) * BUCKET_S, values[..., before + k], values[..., before + k] * peak_factor), {})
        for k in range(LIVE)
    ]


def assert_sound(issued: ForecastBlock, capacity: float) -> None:
    known = issued.reason != NoForecast.ALL_UNKNOWN
    top = np.inf if np.isnan(capacity) else np.float32(capacity)
    for quantiles in (issued.quantiles, issued.peak_quantiles):
        assert quantiles.shape == (*known.shape, HORIZON_STEPS, len(LEVELS))
        assert np.isfinite(quantiles[known]).all()
        assert np.isnan(quantiles[~known]).all()
        assert (np.diff(quantiles[known], axis=-1) >= 0).all()
        assert quantiles[known].min(initial=0.0) >= 0
        assert quantiles[known].max(initial=0.0) <= top
    assert (np.diff(issued.peak_quantiles[known], axis=1) >= 0).all()
    for moment in (issued.mean[known], issued.stddev[known]):
        assert np.isfinite(moment).all()
        assert moment.min(initial=0.0) >= 0
    assert issued.mean[known].max(initial=0.0) <= top * (1 + 1e-6)


@pytest.mark.parametrize("capacity", [CAPACITY, float("nan")], ids=["capped", "uncapped"])
def test_all_hard_series_side_by_side(capacity: float) -> None:
    issued = run(np.stack(list(SHAPES.values())), capacity)
    for block in issued:
        assert_sound(block, capacity)
    never = list(SHAPES).index("never")
    assert (issued[-1].reason[never] == NoForecast.ALL_UNKNOWN).all()
    born = list(SHAPES).index("born live")
    assert (issued[3].reason[born] == NoForecast.ALL_UNKNOWN).all()
    assert (issued[-1].reason[born] == NoForecast.COLD_START).all()


@pytest.mark.parametrize("name", SHAPES)
def test_each_hard_series_alone(name: str) -> None:
    """Alone there is no fleet to lean on: pools and priors have nothing but this."""
    for block in run(SHAPES[name][None], CAPACITY):
        assert_sound(block, CAPACITY)


@pytest.mark.parametrize("name", ["spike live", "huge", "heavy tail", "negative", "infinite live"])
def test_a_hard_neighbour_does_not_spoil_a_calm_one(name: str) -> None:
    calm = np.tile([100.0, 102.0, 101.0, 99.0], (12, (BUCKETS + LIVE) // 4 + 1))[:, : BUCKETS + LIVE]
    issued = run(np.vstack([calm, SHAPES[name]]), float("nan"))[-1]
    upper = issued.quantiles[:12, 0, :, LEVELS.index(0.975)]
    assert upper.max() < 200, "a calm VM's upper bound follows its neighbour"


def test_a_constant_is_forecast_as_itself() -> None:
    issued = run(np.full((3, BUCKETS + LIVE), 1e9), float("nan"))[-1]  # far above what counts as a change in any resource
    median = issued.quantiles[..., LEVELS.index(0.5)]
    np.testing.assert_allclose(median, 1e9, rtol=0.02)


values = st.one_of(st.just(np.nan), st.floats(-1e6, 1e9), st.sampled_from([0.0, 1e-30, np.inf, -np.inf, 2.0**63, -1.0, 800.0]))


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    st.lists(st.lists(values, min_size=LIVE + 1, max_size=LIVE + 40), min_size=1, max_size=4),
    st.sampled_from([CAPACITY, float("nan"), 0.0]),
)
def test_whatever_comes(rows: list[list[float]], capacity: float) -> None:
    length = max(len(row) for row in rows)
    series = np.array([[np.nan] * (length - len(row)) + row for row in rows])
    history = series[:, :-LIVE]
    history[np.isinf(history)] = np.nan  # the store keeps no infinite value; a bucket may bring one
    for block in run(series, capacity):
        assert_sound(block, capacity)
