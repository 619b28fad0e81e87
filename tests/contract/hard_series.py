"""Demand that breaks forecasters: constant, zero, spike, gaps, one point, step, counter resets, huge, and never known; one VM each."""

from __future__ import annotations

import numpy as np

from coordinator.model import N_RESOURCES


def hard_series(b: int) -> np.ndarray:
    """float64[9, r, b], the same for all resources."""
    rng = np.random.default_rng(2)
    rows = np.full((9, b), 100.0)
    rows[1] = 0.0
    rows[2, b // 2] = 1e9
    rows[3, rng.random(b) < 0.6] = np.nan
    rows[4, :-1] = np.nan
    rows[5, b // 2 :] = 5000.0
    rows[6] = np.arange(b) % 50 * 1000.0
    rows[7] = rng.lognormal(0, 4, b) * 1e12
    rows[8] = np.nan
    return np.repeat(rows[:, None], N_RESOURCES, axis=1)
