"""Bands: calibrated on the fleet, corrected per VM, monotone and bounded always."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.forecast.calibrate import Calibrator
from coordinator.forecast.combine import GROUPS
from coordinator.model import LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

SHAPE = (N_RESOURCES, HORIZON_STEPS)
PRIOR = (-0.3, 0.6, 0.4)


def calibrator(v: int) -> Calibrator:
    made = Calibrator(1, PRIOR)
    made.rearrange(np.full(v, -1))
    return made


def drive(made: Calibrator, draws: np.ndarray, spread: np.ndarray | None = None) -> np.ndarray:
    """Feed point forecasts 100 and actuals 100 + draws[t, v, r]; bands [t, v, r, h, q]."""
    v = draws.shape[1]
    local = np.ones((v, N_RESOURCES, GROUPS, 2, 1)) * (1.0 if spread is None else spread[:, None, None, None, None])
    bands = []
    for drawn in draws:
        made.learn(np.repeat((100.0 + drawn)[..., None], HORIZON_STEPS, axis=-1))
        bands.append(made.issue(np.full((v, *SHAPE), 100.0), np.ones((v, N_RESOURCES)), local, np.full((v, N_RESOURCES), np.nan)))
    return np.stack(bands)


def shares_below(bands: np.ndarray, draws: np.ndarray, since: int) -> np.ndarray:
    """Realised share of actuals at or below each level, for step 0: [q]."""
    actual = 100.0 + draws[since + 1 :, ..., None]
    return (actual <= bands[since:-1, :, :, 0]).mean(axis=(0, 1, 2))


def test_skewed_noise_is_calibrated_at_every_level() -> None:
    draws = np.random.default_rng(0).exponential(4.0, (300, 20, N_RESOURCES)) - 3.0
    bands = drive(calibrator(20), draws)
    np.testing.assert_allclose(shares_below(bands, draws, 120), LEVELS, atol=0.025)


def test_scale_is_learned_per_vm() -> None:
    sizes = np.repeat([0.5, 20.0], 6)
    draws = np.random.default_rng(1).normal(0, 1, (250, 12, N_RESOURCES)) * sizes[:, None]
    bands = drive(calibrator(12), draws, sizes)
    width = (bands[-1, ..., 5] - bands[-1, ..., 1]).mean(axis=(1, 2))
    np.testing.assert_allclose(width, 2.56 * sizes, rtol=0.35)
    for part in (slice(0, 6), slice(6, 12)):
        np.testing.assert_allclose(shares_below(bands[:, part], draws[:, part], 120), LEVELS, atol=0.04)


def test_a_vm_unlike_its_fleet_finds_its_own_coverage() -> None:
    draws = np.random.default_rng(2).normal(0, 1, (600, 15, N_RESOURCES))
    draws[:, 0] += 2.0  # always forecast too low
    made = calibrator(15)
    bands = drive(made, draws)
    np.testing.assert_allclose(shares_below(bands[:, :1], draws[:, :1], 400), LEVELS, atol=0.06)
    coverage, evidence = made.coverage()
    assert coverage[1:].mean() == pytest.approx(0.8, abs=0.05)
    assert evidence.min() > 36


def test_one_vm_alone_starts_from_the_prior_and_stays_sane() -> None:
    draws = np.random.default_rng(3).normal(0, 1, (200, 1, N_RESOURCES))
    bands = drive(calibrator(1), draws)
    below = shares_below(bands, draws, 50)
    assert 0.93 < below[LEVELS.index(0.975)] <= 1.0
    assert below[LEVELS.index(0.5)] == pytest.approx(0.5, abs=0.1)


def test_a_paused_bucket_keeps_origins_and_actuals_aligned() -> None:
    made = calibrator(1)
    flat = np.full((1, *SHAPE), 100.0)
    arguments = (np.ones((1, N_RESOURCES)), np.ones((1, N_RESOURCES, GROUPS, 2, 1)), np.full((1, N_RESOURCES), np.nan))
    made.issue(flat, *arguments)
    made.learn(np.full_like(flat, np.nan))
    made.pause()
    made.learn(flat + 7.0)  # step 1 of the issue two buckets ago; step 0 fell into the pause
    assert made.coverage()[1][0, 0] == pytest.approx(1 / HORIZON_STEPS)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-6, 12), st.booleans())
def test_bands_are_monotone_bounded_and_finite(seed: int, magnitude: float, holes: bool) -> None:
    rng = np.random.default_rng(seed)
    made = calibrator(2)
    capacity = np.array([[10.0**magnitude] * N_RESOURCES, [np.nan] * N_RESOURCES])
    for _ in range(14):
        actual = rng.lognormal(0, 4, (2, *SHAPE)) * 10.0**magnitude
        if holes:
            actual[rng.random(actual.shape) < 0.4] = np.nan
        made.learn(actual)
        point = rng.lognormal(0, 2, (2, *SHAPE)) * 10.0**magnitude
        local = rng.lognormal(0, 5, (2, N_RESOURCES, GROUPS, 2, 1))
        bands = made.issue(point, rng.lognormal(0, 3, (2, N_RESOURCES)), local, capacity)
        assert np.isfinite(bands).all()
        assert (np.diff(bands, axis=-1) >= 0).all()
        assert (bands >= 0).all()
        assert (bands[0] <= np.float32(10.0**magnitude)).all()
