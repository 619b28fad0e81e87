"""Small blocks of buckets, history and forecasts with values that tell where they belong."""

from __future__ import annotations

import numpy as np

from coordinator.model import LEVELS, N_RESOURCES, BucketBlock, ForecastBlock, HistoryBlock
from shared.units import HORIZON_STEPS

DAY_S = 86_400
T0 = 20_000 * DAY_S


def bucket(start_s: int, vm_ids: tuple[str, ...] = ("a", "b"), value: float = 1.0) -> BucketBlock:
    shape = (len(vm_ids), N_RESOURCES)
    mean = np.full(shape, value) + np.arange(N_RESOURCES) + 10 * np.arange(len(vm_ids))[:, None]
    return BucketBlock(
        start_s=start_s,
        vm_ids=vm_ids,
        host_ids=("h",) * len(vm_ids),
        mean=mean,
        peak=mean * 2,
        usage=mean / 2,
        censored=np.zeros(shape),
        allocation=np.full(shape, np.nan),
        samples=np.full(len(vm_ids), 60),
    )


def block(vm_ids: tuple[str, ...], end_s: int, buckets: int, seed: int = 1) -> HistoryBlock:
    rng = np.random.default_rng(seed)
    shape = (len(vm_ids), N_RESOURCES, buckets)
    mean = rng.uniform(0, 4000, shape).astype(np.float32)
    capacity = np.full(shape[:2], np.nan, np.float32)
    return HistoryBlock(vm_ids=vm_ids, end_s=end_s, mean=mean, peak=mean * 2, censored=np.zeros(shape, np.float32), capacity=capacity)


def forecast(issued_s: int, vm_ids: tuple[str, ...] = ("a", "b"), seed: int = 1) -> ForecastBlock:
    rng = np.random.default_rng(seed)
    shape = (len(vm_ids), N_RESOURCES, HORIZON_STEPS)
    return ForecastBlock(
        issued_s=issued_s,
        vm_ids=vm_ids,
        mean=rng.uniform(0, 1, shape).astype(np.float32),
        stddev=rng.uniform(0, 1, shape).astype(np.float32),
        quantiles=rng.uniform(0, 1, (*shape, len(LEVELS))).astype(np.float32),
        peak_quantiles=rng.uniform(0, 1, (*shape, len(LEVELS))).astype(np.float32),
        model=rng.integers(0, 3, shape[:2]).astype(np.int8),
        models=("naive", "ses", "gbm"),
        reason=rng.integers(0, 5, shape[:2]).astype(np.int8),
        coverage=np.full(shape[:2], np.nan, np.float32),
    )
