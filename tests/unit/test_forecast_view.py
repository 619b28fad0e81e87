"""Forecast arrays as the API shows them: the right VM, resource and step, NaN as None, and why there is no model."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.model import LEVELS, ForecastBlock, NoForecast
from coordinator.service.forecasts import forecast_view, known, no_forecast_view, reason_name
from shared.units import CPU, MEMORY, NET_TX, RESOURCES

VMS = ("a", "b", "c")
SHAPE = (3, 5, 12)


@pytest.fixture
def block() -> ForecastBlock:
    """Every number is 1000 x VM + 100 x resource + step, so that a mixed-up axis shows."""
    v, r, s = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in SHAPE), indexing="ij")
    mean = 1000 * v + 100 * r + s
    quantiles = mean[..., None] + np.asarray(LEVELS, np.float32)
    reason = np.zeros(SHAPE[:2], np.int8)
    reason[1, MEMORY] = NoForecast.GAP
    reason[1, NET_TX] = NoForecast.OUT_OF_CALIBRATION
    coverage = np.full(SHAPE[:2], 0.8, np.float32)
    coverage[1, CPU] = np.nan
    mean[1, MEMORY, 3] = np.nan
    return ForecastBlock(
        issued_s=600_000,
        vm_ids=VMS,
        mean=mean,
        stddev=mean / 10,
        quantiles=quantiles,
        peak_quantiles=quantiles * 2,
        model=np.full(SHAPE[:2], 1, np.int8),
        models=("naive", "ets"),
        reason=reason,
        coverage=coverage,
    )


def test_rows_are_those_of_the_vm_resource_and_step(block: ForecastBlock) -> None:
    view = forecast_view(block, "b", 60)
    assert [series.resource for series in view.resources] == list(RESOURCES)
    row = view.resources[NET_TX].rows[7]
    assert (row.mean, row.start_s) == (1407.0, 600_000 + 7 * 300)
    assert row.stddev == pytest.approx(140.7)
    assert row.quantiles[LEVELS.index(0.9)] == pytest.approx(1407.9)
    assert row.peak_quantiles[LEVELS.index(0.9)] == pytest.approx(2815.8)


@pytest.mark.parametrize(("minutes", "steps"), [(5, 1), (6, 2), (55, 11), (60, 12)])
def test_the_horizon_is_rounded_up_to_whole_steps(block: ForecastBlock, minutes: int, steps: int) -> None:
    assert {len(series.rows) for series in forecast_view(block, "a", minutes).resources} == {steps}


def test_unknown_is_none(block: ForecastBlock) -> None:
    view = forecast_view(block, "b", 60)
    assert view.resources[MEMORY].rows[3].mean is None
    assert view.resources[CPU].coverage is None
    assert [known(value) for value in (float("nan"), float("inf"), 0.0)] == [None, None, 0.0]


def test_a_series_without_a_model_says_why(block: ForecastBlock) -> None:
    view = forecast_view(block, "b", 5)
    assert (view.resources[CPU].model, view.resources[CPU].reason) == ("ets", None)
    assert (view.resources[MEMORY].model, view.resources[MEMORY].reason) == (None, "gap")
    assert (view.resources[NET_TX].model, view.resources[NET_TX].reason) == ("ets", "out_of_calibration")


def test_a_vm_without_forecast(block: ForecastBlock) -> None:
    with pytest.raises(ValueError, match="tuple"):
        forecast_view(block, "z", 5)
    view = no_forecast_view("z", 5, LEVELS)
    assert view.issued_s is None
    assert [(series.rows, series.reason) for series in view.resources] == [((), "cold_start")] * 5


def test_every_reason_has_a_name() -> None:
    assert [reason_name(reason) for reason in NoForecast] == [None, "cold_start", "all_unknown", "gap", "out_of_calibration"]
