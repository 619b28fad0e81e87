"""A forecast as the engine hands it out, from what a test means to say with it."""

from __future__ import annotations

from typing import Any

import numpy as np

from coordinator.model import LEVELS, N_RESOURCES, ForecastBlock
from shared.units import HORIZON_STEPS


def forecast_block(vm_ids: tuple[str, ...], issued_s: int, mean: Any, **more: Any) -> ForecastBlock:
    """mean: broadcast to [v, r, 12]. Without `more` it is sure of it: no deviation, every quantile the mean; calibrated, by one model."""
    shape = (len(vm_ids), N_RESOURCES, HORIZON_STEPS)
    means = np.broadcast_to(mean, shape).astype(np.float32)
    quantiles = more.pop("quantiles", np.repeat(means[..., None], len(LEVELS), axis=-1))
    fields = {
        "stddev": np.zeros(shape, np.float32),
        "peak_quantiles": quantiles,
        "model": np.zeros(shape[:2], np.int8),
        "models": ("test",),
        "reason": np.zeros(shape[:2], np.int8),
        "coverage": np.full(shape[:2], 0.8, np.float32),
    }
    return ForecastBlock(issued_s=issued_s, vm_ids=vm_ids, mean=means, quantiles=quantiles, **(fields | more))
