"""Trace loaders: any number of files, absent sets, gaps, splits that do not leak, units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.traces import DAY, SMALL, Size, Trace, load, shuffled
from shared.units import BUCKET_S, CPU, DISK, MEMORY, NET_RX

SIZE = Size(vms=30, trained=30, scored=24)
AUGUST = 1_375_315_200  # 1 August 2013, 00:00 UTC


def bitbrains(vms: range, first_s: int, buckets: int) -> pd.DataFrame:
    ids, at = np.meshgrid(np.array(vms), np.arange(buckets), indexing="ij")
    count = ids.size
    values = np.arange(count, dtype=np.float64) % 97
    return pd.DataFrame(
        {
            "vm": ids.ravel(),
            "t": first_s + at.ravel() * BUCKET_S,
            "cores": 2,
            "cpu_pct": values,
            "mem_kb": values,
            "disk_read_kbps": values,
            "disk_write_kbps": 1.0,
            "net_rx_kbps": values,
            "net_tx_kbps": 0.0,
        }
    )


def write(frame: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path, index=False)


def only(folder: Path, name: str) -> Trace:
    return next(trace for trace in load(folder, quick=False, size=SIZE) if trace.name == name)


def test_absent_sets_are_left_out_and_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load(tmp_path / "empty", quick=True) == ()
    said = capsys.readouterr().out
    assert all(f"left out: {name}" in said for name in ("bitbrains", "azure", "google", "alibaba", "planetlab", "nab"))


def test_loaded_once_per_process(tmp_path: Path) -> None:
    write(bitbrains(range(40), AUGUST, 100), tmp_path / "bitbrains_rnd" / "a.parquet")
    assert load(tmp_path, quick=False, size=SIZE) is load(tmp_path, quick=False, size=SIZE)


def test_more_files_of_a_set_are_more_of_it(tmp_path: Path) -> None:
    write(bitbrains(range(40), AUGUST, 200), tmp_path / "bitbrains_rnd" / "late_name.parquet")
    write(bitbrains(range(40, 60), AUGUST, 200), tmp_path / "bitbrains_rnd" / "a_name.parquet")
    trace = only(tmp_path, "bitbrains")
    assert len(trace.mean) + len(trace.train_mean) == 60
    assert trace.mean.shape[2] == 200


def test_split_is_by_id_not_by_file_and_leaks_nothing(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole" / "bitbrains_rnd", tmp_path / "parts" / "bitbrains_rnd"
    write(bitbrains(range(60), AUGUST, 150), whole / "x.parquet")
    write(bitbrains(range(60), AUGUST, 150).query("vm < 7"), parts / "2.parquet")
    write(bitbrains(range(60), AUGUST, 150).query("vm >= 7"), parts / "1.parquet")
    one, two = only(whole.parent, "bitbrains"), only(parts.parent, "bitbrains")
    assert one.vm_ids == two.vm_ids
    np.testing.assert_array_equal(one.mean, two.mean)
    tested = {row.tobytes() for row in one.mean[:, CPU, : one.loaded]}
    assert not tested & {row.tobytes() for row in one.train_mean[:, CPU]}


def test_a_small_set_trains_on_the_past_alone(tmp_path: Path) -> None:
    write(bitbrains(range(SMALL - 1), AUGUST, 200), tmp_path / "bitbrains_rnd" / "x.parquet")
    trace = only(tmp_path, "bitbrains")
    assert len(trace.mean) == SMALL - 1
    assert trace.train_mean.shape[2] == trace.loaded < trace.mean.shape[2]


def test_gaps_are_unknown_and_a_vm_that_is_off_too(tmp_path: Path) -> None:
    frame = bitbrains(range(1), AUGUST, 100)
    frame.loc[frame.t == AUGUST + 5 * BUCKET_S, "cores"] = 0
    frame = frame[frame.t != AUGUST + 7 * BUCKET_S]
    write(frame, tmp_path / "bitbrains_rnd" / "x.parquet")
    trace = only(tmp_path, "bitbrains")
    first = (trace.start_s - AUGUST) // BUCKET_S
    assert np.flatnonzero(np.isnan(trace.mean[0, CPU])).tolist() == [5 - first, 7 - first]


def test_units(tmp_path: Path) -> None:
    frame = bitbrains(range(1), AUGUST, 100).assign(cpu_pct=50.0, mem_kb=3.0, disk_read_kbps=2.0, net_rx_kbps=5.0)
    write(frame, tmp_path / "bitbrains_rnd" / "x.parquet")
    values = only(tmp_path, "bitbrains").mean[0, :, 0]
    assert values[CPU] == 1000  # half of two cores
    assert values[MEMORY] == 3 * 1024
    assert values[DISK] == 3000  # read and write
    assert values[NET_RX] == 40_000


def test_planetlab_trains_on_other_days(tmp_path: Path) -> None:
    for day, value in (("0303", 1), ("0306", 2), ("0322", 3)):
        frame = pd.DataFrame({"t": np.arange(DAY)} | {f"vm{i}": np.full(DAY, value) for i in range(8)})
        write(frame, tmp_path / "planetlab" / f"planetlab_2011{day}.parquet")
    trace = only(tmp_path, "planetlab")
    assert np.unique(trace.mean[:, CPU]).tolist() == [30]
    assert np.unique(trace.train_mean[:, CPU]).tolist() == [10, 20]
    assert np.isnan(trace.mean[:, MEMORY]).all()


def test_a_lone_planetlab_day_is_split_by_vm(tmp_path: Path) -> None:
    frame = pd.DataFrame({"t": np.arange(DAY)} | {f"vm{i}": np.full(DAY, i) for i in range(30)})
    write(frame, tmp_path / "planetlab" / "planetlab_20110401.parquet")
    trace = only(tmp_path, "planetlab")
    assert len(trace.mean) == len(trace.train_mean) == 15
    assert not set(np.unique(trace.mean[:, CPU])) & set(np.unique(trace.train_mean[:, CPU]))


def test_a_resource_without_readings_is_left_out_and_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = bitbrains(range(30), AUGUST, 100)
    frame["net_tx_kbps"] = np.nan
    write(frame, tmp_path / "bitbrains_rnd" / "x.parquet")
    assert [pair.name for pair in only(tmp_path, "bitbrains").pairs] == [
        f"bitbrains {name}" for name in ("cpu", "memory", "disk", "net rx")
    ]
    assert "left out: bitbrains net tx" in capsys.readouterr().out


def test_google_days_are_apart_and_jobs_do_not_leak(tmp_path: Path) -> None:
    rows = [(job, day, step, job % 90, 5.0) for job in range(40) for day in (1, 4) for step in range(DAY)]
    write(pd.DataFrame(rows, columns=["job", "day", "step", "cpu_pct", "mem_pct"]), tmp_path / "google2011_jobs" / "x.parquet")
    trace = only(tmp_path, "google")
    assert trace.mean.shape[2] == DAY
    assert len(trace.mean) == 40  # twenty jobs, two days each
    tested = {int(name.split("/")[0]) for name in trace.vm_ids}
    trained = {round(float(value) / 40) for value in trace.train_mean[:, CPU, 0]}
    assert len(trained) == 20
    assert not tested & trained


def test_alibaba_samples_become_bucket_means_and_peaks(tmp_path: Path) -> None:
    t = np.arange(0, 200 * BUCKET_S, 60)
    frame = pd.DataFrame(
        {"machine": "m_1", "t": t, "cpu_pct": np.where(t % BUCKET_S == 0, 60.0, 10.0), "mem_pct": 50.0, "net_in": 1.0, "net_out": 1.0}
    )
    write(frame, tmp_path / "alibaba2018_machines" / "x.parquet")
    trace = only(tmp_path, "alibaba")
    np.testing.assert_allclose(trace.mean[0, CPU], 20.0 * 960)
    np.testing.assert_allclose(trace.peak[0, CPU], 60.0 * 960)


def test_nab_takes_aws_only_and_ends_all_series_on_one_day(tmp_path: Path) -> None:
    def series(name: str, first: str, days: int) -> pd.DataFrame:
        stamps = pd.date_range(first, periods=days * DAY, freq="5min")
        return pd.DataFrame({"file": name, "timestamp": stamps.astype("datetime64[ms]"), "value": 3.0})

    frames = [
        series("realAWSCloudwatch/ec2_cpu_a.csv", "2014-02-14 06:00", 5),
        series("realAWSCloudwatch/ec2_network_in_b.csv", "2013-10-09 12:00", 5),
        series("realTraffic/speed.csv", "2014-02-14", 5),
    ]
    write(pd.concat(frames), tmp_path / "nab" / "nab.parquet")
    trace = only(tmp_path, "nab")
    assert len(trace.mean) == 2
    assert [pair.name for pair in trace.pairs] == ["nab aws"]
    known = ~np.isnan(trace.mean)
    assert known.any(axis=2).sum() == 2  # one resource each
    assert known[:, :, -1].sum() == 2  # both reach the end
    assert trace.start_s % 86_400 == 0
    network = known[:, NET_RX].any(axis=1)
    assert np.argmax(known[network][0, NET_RX]) % DAY == DAY // 2  # noon stays noon


def test_order_of_an_id_does_not_depend_on_the_others() -> None:
    many = shuffled(range(100))
    assert shuffled([7, 3, 50]) == [vm for vm in many if vm in (7, 3, 50)]
