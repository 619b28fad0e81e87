"""Mean and peak of a forecast made to agree, against plain numpy."""

from __future__ import annotations

import numpy as np

from coordinator.forecast.kernels.agreement import LEVEL_WEIGHTS, agree
from coordinator.model import LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

V = 7
MIDDLE = LEVELS.index(0.5)
SHAPE = (V, N_RESOURCES, HORIZON_STEPS)


def drawn(seed: int) -> tuple[np.ndarray, ...]:
    """(point, quantiles, peaks, gap, capacity) with unbounded VMs, wide gaps and unknown series among them."""
    rng = np.random.default_rng(seed)
    point = rng.lognormal(1, 1, SHAPE)
    quantiles = np.sort(rng.lognormal(1, 1, (*SHAPE, len(LEVELS))), axis=-1).astype(np.float32)
    peaks = np.sort(rng.lognormal(1.5, 1, (*SHAPE, len(LEVELS))), axis=-1).astype(np.float32)
    gap = np.where(rng.random(SHAPE[:2]) < 0.4, rng.uniform(1, 3, SHAPE[:2]), 1.0)
    capacity = np.where(rng.random(SHAPE[:2]) < 0.5, rng.uniform(1, 9, SHAPE[:2]), np.nan)
    for part in (point, quantiles, peaks):
        part[2, 1] = np.nan
    return point, quantiles, peaks, gap, capacity


def test_the_kernel_does_what_plain_numpy_does() -> None:
    point, quantiles, peaks, gap, capacity = drawn(1)
    top = np.where(np.isnan(capacity), np.inf, capacity)[..., None, None]
    centre = np.minimum(point[..., None], top)
    widen = gap[..., None, None]
    wide = np.clip(centre + (quantiles - centre) * widen, 0.0, top)
    hour = centre + (peaks[:, :, -1:] - centre) * widen
    wide[..., MIDDLE + 1 :] = np.maximum(wide[..., [MIDDLE]], np.minimum(wide, hour)[..., MIDDLE + 1 :])
    highest = np.clip(np.maximum.accumulate(np.maximum(peaks, np.maximum.accumulate(wide, axis=2)), axis=2), 0.0, top)
    mean = (wide * LEVEL_WEIGHTS).sum(axis=-1)
    stddev = np.sqrt(((wide - mean[..., None]) ** 2 * LEVEL_WEIGHTS).sum(axis=-1))
    for made, expected in zip(agree(point, quantiles, peaks, gap, capacity), (mean, stddev, wide, highest), strict=True):
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)


def test_the_peak_is_nowhere_below_what_the_mean_may_reach() -> None:
    _, _, wide, highest = agree(*drawn(2))
    known = np.isfinite(wide).all(axis=(-1, -2))
    assert known.sum() == V * N_RESOURCES - 1
    assert (highest[known] >= wide[known]).all()
    assert (np.diff(highest[known], axis=1) >= 0).all()
    assert (np.diff(highest[known], axis=2) >= 0).all()


def test_above_the_middle_means_stay_below_what_the_hour_stays_below() -> None:
    """Levels up to the middle lift the peak, those above it are cut to it; a gap widens both."""
    flat = np.full((1, N_RESOURCES, HORIZON_STEPS), 4.0)
    wild = np.broadcast_to(np.linspace(0.0, 36.0, len(LEVELS)), (*flat.shape, len(LEVELS))).astype(np.float32)
    calm = np.broadcast_to(np.linspace(5.0, 21.0, len(LEVELS)), wild.shape).astype(np.float32)
    nothing, sure = np.full((1, N_RESOURCES), np.nan), np.ones((1, N_RESOURCES))
    _, _, wide, highest = agree(flat, wild, calm, sure, nothing)
    np.testing.assert_allclose(wide[0, 0, 3], [0.0, 4.5, 9.0, 13.5, 13.5, 15.0, 17.0, 19.0, 21.0])
    np.testing.assert_allclose(highest[0, 0, -1], [5.0, 7.0, 9.0, 13.5, 13.5, 15.0, 17.0, 19.0, 21.0])
    _, _, wide, _ = agree(flat, wild, calm, 2.0 * sure, nothing)
    assert wide[0, 0, 3, -1] == 4.0 + 2.0 * (21.0 - 4.0)


def test_the_mean_of_an_even_spread_is_its_middle() -> None:
    flat = np.full((1, N_RESOURCES, HORIZON_STEPS), 4.0)
    quantiles = np.broadcast_to(np.array(LEVELS) * 8.0, (*flat.shape, len(LEVELS))).astype(np.float32)
    nothing = np.full((1, N_RESOURCES), np.nan)
    mean, stddev, _, _ = agree(flat, quantiles, quantiles, np.ones((1, N_RESOURCES)), nothing)
    np.testing.assert_allclose(mean, 4.0, atol=0.1)
    np.testing.assert_allclose(stddev, 8.0 / np.sqrt(12.0), atol=0.15)
