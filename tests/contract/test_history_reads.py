"""What reports read of history in bulk: measures of many VMs, and peaks as they were forecast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from report_scene import T0, bucket, forecast

from coordinator.model import N_RESOURCES
from coordinator.store.history import ParquetHistory
from shared.units import BUCKET_S, CPU, MEMORY


def test_measures_of_many_vms_over_midnight(tmp_path: Path) -> None:
    history = ParquetHistory(tmp_path)
    for n in range(-3, 3):
        history.append_buckets(bucket(("a", "b"), T0 + n * BUCKET_S, 100.0 * (n + 4)))
    found = history.measures(["b", "never"], T0 + BUCKET_S, 4, ("mean", "allocation"))
    assert set(found) == {"mean", "allocation"}
    assert found["mean"].shape == (2, N_RESOURCES, 4)
    assert found["mean"][0, CPU].tolist() == [200.0, 300.0, 400.0, 500.0]
    assert np.isnan(found["mean"][1]).all()
    assert (found["allocation"][0, CPU] == 2000.0).all()


def test_issued_peaks_are_those_of_the_bucket_that_they_were_issued_at(tmp_path: Path) -> None:
    history = ParquetHistory(tmp_path)
    for n in range(-2, 2):
        history.append_forecast(forecast(("a", "b"), T0 + n * BUCKET_S, 100.0 * (n + 3)))
    history.append_forecast(forecast(("b",), T0, 1000.0))  # the later of the same issue counts
    found = history.issued_peaks(["b", "a", "never"], T0 + 2 * BUCKET_S, 4, 1)
    np.testing.assert_allclose(found[0, CPU, :3], [260.0, 1300.0, 520.0], rtol=1e-6)
    np.testing.assert_allclose(found[1, CPU, :3], [260.0, 390.0, 520.0], rtol=1e-6)
    assert np.isnan(found[:, :, 3]).all()
    assert np.isnan(found[2]).all()
    assert not np.isnan(found[0, MEMORY, :3]).any()
