"""Workload profiles on made series whose class, peaks and strengths are known, with gaps, and on real traces where they are there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.learning.profiles import ResourceProfile, resource_profile

FIRST_S = 1_795_219_200  # 2026-11-21 00:00 UTC, a Saturday
DAY = 288


def series(days: int, shape: Any, noise: float = 0.03, seed: int = 1) -> np.ndarray:
    """`shape(minute of day, day number)` with multiplicative noise, float64[days * 288]."""
    at = np.arange(days * DAY)
    made = shape(at % DAY * 5, at // DAY)
    return np.asarray(made * (1 + noise * np.random.default_rng(seed).standard_normal(len(at))))


def profile(mean: np.ndarray, peak: np.ndarray | None = None, **over: Any) -> ResourceProfile:
    return resource_profile("cpu_millicores", mean, mean if peak is None else peak, **{"first_s": FIRST_S, "capacity": 8000.0, **over})


def office(minute: Any, day: Any) -> Any:
    return np.where((minute >= 840) & (minute < 900), 3000.0, np.where((minute >= 480) & (minute < 1080), 1500.0, 400.0))


def test_a_daily_workload_says_when_and_how_high() -> None:
    found = profile(series(14, office))
    assert found.kind == "daily"
    assert found.day_strength is not None and found.day_strength > 0.95
    assert (found.peaks[0].minute_of_day, found.peaks[0].minutes) == (840, 60)
    assert found.peaks[0].height == pytest.approx(3000, rel=0.1)
    assert found.recommended == pytest.approx(1600, rel=0.1), "one hour of 24 is 4 %: beyond the 95th percentile of hours"
    assert profile(series(14, office), level=0.97).recommended == pytest.approx(3150, rel=0.1)
    assert any("14:00" in line for line in found.drivers)


def test_local_time_is_what_counts() -> None:
    found = profile(series(14, office), utc_offset_s=3600)
    assert found.peaks[0].minute_of_day == 900


def test_a_weekly_workload_names_its_busiest_day() -> None:
    def weekly(minute: Any, day: Any) -> Any:
        return np.where(day % 7 == 2, 4000.0, np.where(day % 7 < 2, 300.0, 1500.0))  # day 2 is the Monday

    found = profile(series(28, weekly))
    assert (found.kind, found.busiest_day) == ("weekly", "Monday")
    assert found.week_strength is not None and found.week_strength > 0.95


@pytest.mark.parametrize("days", [4, 7, 14, 28])
def test_noise_has_no_season(days: int) -> None:
    strengths = [profile(series(days, lambda minute, day: 1000.0 + 0 * minute, noise=0.3, seed=seed)) for seed in range(20)]
    assert np.mean([each.day_strength or 0.0 for each in strengths]) < 0.03
    assert {each.kind for each in strengths} == {"steady"}, "half hours are means of six readings: 12 %"


def test_bursts_at_any_time() -> None:
    mean = series(14, lambda minute, day: 500.0 + 0 * minute)
    at = np.random.default_rng(5).choice(len(mean), 80, replace=False)
    peak = mean.copy()
    peak[at] *= 6
    found = profile(mean, peak)
    assert found.kind == "bursty"
    assert found.burst_ratio is not None and found.burst_ratio > 5
    assert found.peaks == () and any("Bursts" in line for line in found.drivers)


def test_idle_and_steady_differ_by_capacity() -> None:
    flat = series(7, lambda minute, day: 60.0 + 0 * minute)
    assert profile(flat).kind == "idle"
    assert profile(flat, capacity=100.0).kind == "steady"
    assert profile(flat, capacity=float("nan")).kind == "steady", "what could be given is not known"


def test_predictability_is_what_the_forecast_error_leaves() -> None:
    flat = np.full(2 * DAY, 200.0)
    assert profile(flat, forecast_mae=50.0).predictability == pytest.approx(0.75)
    assert profile(flat, forecast_mae=900.0).predictability == 0.0
    assert profile(flat).predictability is None


def test_gaps_count_for_nothing() -> None:
    whole = series(14, office)
    holed = whole.copy()
    holed[np.random.default_rng(3).random(len(whole)) < 0.3] = np.nan
    holed[3 * DAY : 5 * DAY] = np.nan
    a, b = profile(whole), profile(holed)
    assert (a.kind, a.peaks[0].minute_of_day) == (b.kind, b.peaks[0].minute_of_day)
    assert b.day_strength == pytest.approx(a.day_strength, abs=0.05)
    assert b.known == pytest.approx(0.7 * 12 / 14, abs=0.02)


def test_too_little_is_unknown_not_zero() -> None:
    for mean in (np.zeros(0), np.full(100, 5.0), np.full(5 * DAY, np.nan)):
        found = profile(mean)
        assert (found.kind, found.mean, found.recommended, found.day_strength) == ("unknown", None, None, None)
    assert profile(series(2, office)).day_strength is None
    assert profile(series(10, office)).week_strength is None


def test_what_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="one length"):
        resource_profile("cpu_millicores", [1.0], [1.0, 2.0], first_s=0)
    with pytest.raises(ValueError, match="level 1"):
        resource_profile("cpu_millicores", [1.0], [1.0], first_s=0, level=1.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12 * DAY), st.floats(0, 1), st.integers(0, 287), st.integers(-50_400, 50_400))
def test_any_series_gives_figures_within_their_bounds(seed: int, length: int, missing: float, shift: int, offset: int) -> None:
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(3, 2, length)
    mean[rng.random(length) < missing] = np.nan
    found = profile(mean, mean * 1.5, first_s=FIRST_S + 300 * shift, utc_offset_s=offset // 900 * 900)
    for strength in (found.day_strength, found.week_strength, found.known, found.predictability):
        assert strength is None or 0.0 <= strength <= 1.0
    if found.recommended is not None and found.highest is not None and found.mean is not None:
        assert 0 < found.recommended <= found.highest * (1 + 1e-9)
        assert found.highest >= found.mean
    assert all(0 <= peak.minute_of_day < 1440 and peak.lift >= 1.2 for peak in found.peaks)


def test_real_traces_have_profiles() -> None:
    """VMs of Azure over a month: each gets a class, and some are daily or weekly."""
    file = Path(os.environ.get("TIDEGATE_DATA", "/nonexistent")) / "azure2019_vms" / "cpu.parquet"
    if not file.is_file():
        pytest.skip("azure2019_vms: no such data set on this machine")
    rows = pq.read_table(file).to_pydict()
    vm, at = np.array(rows["vm"]), np.array(rows["t"]) // 300
    kinds = {}
    for number in np.unique(vm):
        mine = vm == number
        mean, peak = (np.full(at.max() + 1, np.nan) for _ in range(2))
        mean[at[mine]], peak[at[mine]] = np.array(rows["cpu_avg"])[mine], np.array(rows["cpu_max"])[mine]
        found = profile(mean, peak, first_s=FIRST_S, capacity=100.0)
        kinds[int(number)] = found.kind
        assert found.mean is not None and found.recommended is not None and found.highest is not None
        assert found.mean <= found.recommended <= found.highest
    assert "unknown" not in kinds.values() and {"daily", "weekly"} & set(kinds.values()), kinds
