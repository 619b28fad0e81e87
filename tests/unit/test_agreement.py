"""Mean and peak of a forecast made to agree, against plain numpy."""

from __future__ import annotations

import numpy as np

from coordinator.forecast.kernels.agreement import LEVEL_WEIGHTS, agree
from coordinator.model import LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

V = 7
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
    wide = np.clip(centre + (quantiles - centre) * gap[..., None, None], 0.0, top)
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


def test_the_mean_of_an_even_spread_is_its_middle() -> None:
    flat = np.full((1, N_RESOURCES, HORIZON_STEPS), 4.0)
    quantiles = np.broadcast_to(np.array(LEVELS) * 8.0, (*flat.shape, len(LEVELS))).astype(np.float32)
    nothing = np.full((1, N_RESOURCES), np.nan)
    mean, stddev, _, _ = agree(flat, quantiles, quantiles, np.ones((1, N_RESOURCES)), nothing)
    np.testing.assert_allclose(mean, 4.0, atol=0.1)
    np.testing.assert_allclose(stddev, 8.0 / np.sqrt(12.0), atol=0.15)
