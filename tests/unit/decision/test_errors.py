"""Forecast errors against actuals and Naive."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.learning.errors import RING, ForecastErrors, pinball
from coordinator.model import LEVELS, N_RESOURCES, BucketBlock
from shared.model import Mode
from shared.units import CPU, MEMORY

MODES = {"p": Mode.PREDICTIVE, "r": Mode.REACTIVE}


def bucket(start_s: int, values: dict[str, float], host: str = "p") -> BucketBlock:
    mean = np.full((len(values), N_RESOURCES), np.nan)
    mean[:, CPU] = list(values.values())
    return BucketBlock(
        start_s=start_s,
        vm_ids=tuple(values),
        host_ids=(host,) * len(values),
        mean=mean,
        peak=mean,
        usage=mean,
        censored=np.zeros_like(mean),
        allocation=mean,
        samples=np.ones(len(values), np.int64),
    )


def test_pinball_by_hand() -> None:
    loss = pinball(np.array([[8.0, 12.0]]), np.array([10.0]), np.array([0.1, 0.9]))
    assert loss == pytest.approx([(0.1 * 2 + 0.1 * 2) / 2])
    assert np.isnan(pinball(np.array([[8.0, np.nan]]), np.array([10.0]), np.array([0.1, 0.9])))


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_no_forecast_beats_the_actual_itself(forecast: float, actual: float) -> None:
    levels = np.array(LEVELS)
    assert pinball(np.full((1, 9), forecast), np.array([actual]), levels)[0] >= 0
    assert pinball(np.full((1, 9), actual), np.array([actual]), levels)[0] == 0


def test_a_forecast_that_knows_the_ramp_beats_naive(make: Any) -> None:
    errors, t0 = ForecastErrors(), make.issued_s
    for i, value in enumerate((100, 120, 100, 120)):
        errors.score(bucket(t0 - 300 * (4 - i), {"a": value}), MODES)
    truth = 200.0 + 100.0 * np.arange(12)
    mean = np.zeros((1, N_RESOURCES, 12))
    mean[0, CPU] = truth
    errors.issue(make.forecast(("a",), mean, 1.0))
    for step in range(12):
        errors.score(bucket(t0 + 300 * step, {"a": truth[step]}), MODES)
    ours, naive = errors.totals(Mode.PREDICTIVE).relative()
    assert ours is not None
    assert naive is not None
    assert ours < 0.1 * naive
    assert errors.totals(Mode.PREDICTIVE).count[CPU] == 12
    assert errors.totals(Mode.REACTIVE).relative() == (None, None)
    assert errors.by_model["ses"][1, CPU] == 12
    assert errors.coverage()[CPU] == 1.0
    assert np.isnan(errors.coverage()[MEMORY])


def test_pairs_are_kept_per_vm_one_step_ahead_and_bounded(make: Any) -> None:
    errors, t0 = ForecastErrors(), make.issued_s
    errors.score(bucket(t0 - 600, {"a": 1, "b": 5}), MODES)
    errors.score(bucket(t0 - 300, {"a": 2, "b": 5}), MODES)
    errors.issue(make.forecast(("a", "b"), make.need(cpu=700), 10.0))
    errors.score(bucket(t0, {"b": 650, "new": 9}), MODES)
    (pair,) = errors.pairs("b")
    assert (pair.start_s, pair.mean[CPU], pair.actual[CPU]) == (t0, 700, 650)
    assert pair.q10[CPU] < 700 < pair.q90[CPU]
    assert np.isnan(errors.pairs("a")[0].actual[CPU])
    assert errors.pairs("new") == []
    assert errors.ring.maxlen == RING


def test_a_forecast_issued_twice_counts_once(make: Any) -> None:
    errors, t0 = ForecastErrors(), make.issued_s
    for i in range(3):
        errors.score(bucket(t0 - 900 + 300 * i, {"a": 100 + i}), MODES)
    block = make.forecast(("a",), make.need(cpu=100), 5.0)
    errors.issue(block)
    errors.issue(block)
    errors.score(bucket(t0, {"a": 101}), MODES)
    assert errors.totals(Mode.PREDICTIVE).count[CPU] == 1
