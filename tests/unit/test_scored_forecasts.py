"""Stored forecasts come back with what came of them, step by step, for every issue time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from forecast_blocks import forecast_block

from coordinator.model import LEVELS, N_RESOURCES, BucketBlock, ForecastBlock
from coordinator.store.history import STORED_LEVELS, ParquetHistory
from shared.units import BUCKET_S, CPU, HORIZON_STEPS

T0 = 1_700_006_400 // 86_400 * 86_400 - 4 * BUCKET_S  # over midnight: two days of parts


def bucket(t: int, value: float, samples: int = 60) -> BucketBlock:
    mean = np.full((2, N_RESOURCES), value)
    arrays = {"mean": mean, "peak": mean * 2, "usage": mean, "censored": mean * 0, "allocation": mean}
    return BucketBlock(start_s=T0 + t * BUCKET_S, vm_ids=("a", "b"), host_ids=("h", "h"), samples=np.full(2, samples), **arrays)


def forecast(t: int) -> ForecastBlock:
    ahead = np.broadcast_to(t + np.arange(HORIZON_STEPS), (2, N_RESOURCES, HORIZON_STEPS)).astype(np.float32)
    quantiles = np.repeat(ahead[..., None], len(LEVELS), axis=-1)
    unknown = np.full((2, N_RESOURCES), np.nan, np.float32)
    return forecast_block(("a", "b"), T0 + t * BUCKET_S, ahead, peak_quantiles=quantiles * 2, models=("naive",), coverage=unknown)


def test_every_issue_meets_its_actuals(tmp_path: Path) -> None:
    history = ParquetHistory(tmp_path)
    assert history.scored("a", 0) == []
    for t in range(20):
        if t != 10:
            history.append_buckets(bucket(t, float(t)))
        if t in {2, 5, 6}:
            history.append_forecast(forecast(t))
    history.append_late(bucket(3, 99.0, samples=61))  # a bucket that grew
    found = history.scored("a", T0 + 2 * BUCKET_S)
    assert [(one.forecast.issued_s - T0) // BUCKET_S for one in found] == [2, 5, 6]
    assert all(one.forecast.levels == STORED_LEVELS for one in found)
    assert found[0].actual[CPU].tolist()[:8] == [2, 99, 4, 5, 6, 7, 8, 9]
    assert np.isnan(found[0].actual[CPU, 8])
    np.testing.assert_array_equal(found[1].actual[CPU, :5], found[1].forecast.mean[0, CPU, :5])
    assert found[0].actual_peak[CPU].tolist()[:8] == [4, 198, 198, 198, 198, 198, 198, 198]
    assert np.isnan(found[0].actual_peak[CPU, 8:]).all()
    assert [one.forecast.issued_s for one in history.scored("b", T0 + 6 * BUCKET_S)] == [T0 + 6 * BUCKET_S]


def test_steps_that_lie_ahead_are_unknown(tmp_path: Path) -> None:
    history = ParquetHistory(tmp_path)
    history.append_buckets(bucket(0, 5.0))
    history.append_forecast(forecast(0))
    (one,) = history.scored("a", T0)
    assert one.actual[CPU, 0] == 5.0
    assert np.isnan(one.actual[:, 1:]).all()
