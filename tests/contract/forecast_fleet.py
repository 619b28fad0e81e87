"""A small fleet for the tests of the pools: history, buckets, ceilings, and what it takes for two forecasts to be the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from coordinator.forecast.engine import ForecastOptions
from coordinator.model import BucketBlock, ForecastBlock, HistoryBlock

OPTIONS = ForecastOptions(boosting=False, statsforecast=False, ring=288, replay=24)
FLEET = 24
END_S = 1_700_000_100 // 300 * 300
CEILING = [4000.0, 4e9, 1e10, 1e10, 1e10]
CAPACITY = {f"vm-{i}": CEILING for i in range(FLEET)}


def names(count: int) -> tuple[str, ...]:
    return tuple(f"vm-{i}" for i in range(count))


def history(count: int = FLEET, buckets: int = 96) -> HistoryBlock:
    mean = np.random.default_rng(3).lognormal(5, 0.3, (count, 5, buckets)).astype(np.float32)
    capacity = np.tile(np.array(CEILING, np.float32), (count, 1))
    return HistoryBlock(vm_ids=names(count), end_s=END_S, mean=mean, peak=mean * 1.2, censored=np.zeros_like(mean), capacity=capacity)


def bucket(start_s: int, count: int = FLEET, vm_ids: tuple[str, ...] | None = None) -> BucketBlock:
    ids = names(count) if vm_ids is None else vm_ids
    mean = np.random.default_rng(start_s).lognormal(5, 0.3, (len(ids), 5))
    return BucketBlock(
        start_s=start_s,
        vm_ids=ids,
        host_ids=("h",) * len(ids),
        mean=mean,
        peak=mean * 1.2,
        usage=mean,
        censored=np.zeros_like(mean),
        allocation=np.full_like(mean, np.nan),
        samples=np.full(len(ids), 60),
    )


def history_with(newest: BucketBlock) -> HistoryBlock:
    """`history()` one bucket later, as the store would hold it."""
    block = history()
    assert (newest.start_s, newest.vm_ids) == (block.end_s + 300, block.vm_ids)
    grown = {
        name: np.concatenate([getattr(block, name), getattr(newest, name)[..., None].astype(np.float32)], axis=2)
        for name in ("mean", "peak", "censored")
    }
    return replace(block, end_s=newest.start_s, **grown)


def assert_same(one: ForecastBlock, other: ForecastBlock) -> None:
    assert (one.vm_ids, one.issued_s, one.models) == (other.vm_ids, other.issued_s, other.models)
    for name in ("mean", "stddev", "quantiles", "peak_quantiles", "model", "reason", "coverage"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
