"""Anomalies: what is flagged, what is let through, and that a change of level is followed by the third bucket."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from coordinator.demand.anomalies import PERSISTENCE, WARM, AnomalyFilter, Cleaned
from coordinator.model import F64, N_RESOURCES
from shared.units import CPU, NET_RX


def run(values: F64, r: int = CPU, rows: AnomalyFilter | None = None) -> Cleaned:
    """One series through one resource: arrays [b]."""
    found = rows or AnomalyFilter(1)
    parts = []
    for value in values:
        row = np.full((1, N_RESOURCES), np.nan)
        row[0, r] = value
        parts.append([plane[0, r] for plane in found.clean(row)])
    value, anomalous, shifted = (np.array(column) for column in zip(*parts, strict=True))
    return Cleaned(value, anomalous, shifted)


def noisy(seed: int, buckets: int, level: float = 1000.0) -> F64:
    return level * np.random.default_rng(seed).normal(1.0, 0.05, buckets)


def test_ordinary_noise_is_left_alone() -> None:
    values = noisy(1, 2000)
    found = run(values)
    assert not found.anomalous.any()
    np.testing.assert_array_equal(found.value, values)


@pytest.mark.parametrize("spike", [3000.0, 0.0])
def test_a_spike_or_drop_out_is_flagged_and_cut_to_the_edge_of_what_is_usual(spike: float) -> None:
    values = noisy(2, 300)
    values[200] = spike
    found = run(values)
    assert np.flatnonzero(found.anomalous).tolist() == [200]
    low, high = sorted((1000.0, spike))
    assert low < found.value[200] < high
    assert abs(found.value[200] - 1000.0) < 600


@pytest.mark.parametrize("level", [2500.0, 200.0])
def test_a_new_level_is_let_through_at_the_third_bucket_and_so_is_the_way_back(level: float) -> None:
    values = np.concatenate([noisy(3, 300), noisy(4, 60, level), noisy(5, 60)])
    found = run(values)
    assert np.flatnonzero(found.anomalous).tolist() == [300, 301]
    assert np.flatnonzero(found.shifted).tolist() == [302]


def test_what_recurs_daily_is_flagged_once() -> None:
    values = noisy(6, 5 * 288)
    values[100::288] = 4000.0
    found = run(values)
    assert np.flatnonzero(found.anomalous).tolist() == [100]


def test_the_first_hour_flags_nothing_and_an_odd_first_reading_fades() -> None:
    values = np.concatenate([[90_000.0], noisy(7, 60)])
    found = run(values)
    assert not found.anomalous.any()
    early = noisy(8, WARM)
    early[5] = 50_000.0
    assert not run(early).anomalous.any()


def test_gaps_stay_unknown_and_end_no_run() -> None:
    values = np.concatenate([noisy(9, 100), [3000.0, np.nan, 3010.0, 2990.0, 3000.0]])
    found = run(values)
    assert np.flatnonzero(found.anomalous).tolist() == [100, 102]
    assert np.isnan(found.value[101])
    assert found.shifted[103]


def test_rows_follow_the_fleet() -> None:
    values = noisy(10, 100)
    values[-1] = 5000.0
    one = AnomalyFilter(1)
    run(values[:-1], rows=one)
    one.rearrange(np.array([-1, 0, -1]))
    bucket = np.full((3, N_RESOURCES), np.nan)
    bucket[:, CPU] = values[-1]
    assert one.clean(bucket).anomalous[:, CPU].tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"values \(2, 5\): the filter holds \(3, 5\)"):
        one.clean(bucket[:2])


def longest_run(flags: NDArray[np.bool_]) -> int:
    longest = current = 0
    for flag in flags:
        current = current + 1 if flag else 0
        longest = max(longest, current)
    return longest


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, st.integers(1, 80), elements=st.one_of(st.just(float("nan")), st.floats(-1e15, 1e15))))
def test_any_series_keeps_the_promises(values: F64) -> None:
    found = run(values, NET_RX)
    known = np.isfinite(values)
    assert np.isfinite(found.value[known]).all()
    assert not (found.anomalous & ~known).any()
    np.testing.assert_array_equal(found.value[~found.anomalous], values[~found.anomalous])
    assert longest_run(found.anomalous[known]) < PERSISTENCE


def aws_series() -> list[tuple[str, F64, NDArray[np.bool_]]]:
    path = Path(os.environ.get("TIDEGATE_DATA", "../shared/data")) / "nab" / "nab.parquet"
    if not path.exists():
        pytest.skip(f"{path} is absent: no labelled anomalies to test on")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(path, columns=["file", "value", "in_window"]).to_pandas()
    files = [name for name in table.file.unique() if str(name).startswith("realAWSCloudwatch")]
    return [
        (str(name), table.value[table.file == name].to_numpy(float), table.in_window[table.file == name].to_numpy(bool)) for name in files
    ]


def test_labelled_windows_of_real_metrics_hold_the_flags() -> None:
    """In NAB's AWS metrics flags are rare, never longer than two buckets, and several times denser inside the labelled windows."""
    series = aws_series()
    shape = (len(series), max(len(values) for _, values, _ in series))
    readings, inside = np.full(shape, np.nan), np.zeros(shape, dtype=np.bool_)
    for i, (_, values, window) in enumerate(series):
        readings[i, : len(values)] = 1000.0 * values / max(float(np.median(values)), 1e-9)
        inside[i, : len(values)] = window
    flags = np.zeros(shape, dtype=np.bool_)
    found = AnomalyFilter(len(series))
    row = np.full((len(series), N_RESOURCES), np.nan)
    for b in range(shape[1]):
        row[:, CPU] = readings[:, b]
        flags[:, b] = found.clean(row).anomalous[:, CPU]
    within, without = flags[inside].mean(), flags[np.isfinite(readings) & ~inside].mean()
    assert without < 0.003
    assert within > 3 * without
    assert max(longest_run(of) for of in flags) < PERSISTENCE
