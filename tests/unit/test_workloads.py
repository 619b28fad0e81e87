"""Workload files, the demand they replay and its NumPy twin, and their preparation from traces and generators."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.adapters.workload import Workload
from coordinator.workload_sources import GENERATORS, Window, generate
from coordinator.workloads import HostWorkload, demand_detail, joined_history, prepare, write
from shared.errors import ConfigError
from shared.model import Allocation
from shared.units import BUCKET_S, CPU, MEMORY, NS_PER_S
from shared.workload import SERIES, burst_mean, decode_workload, encode_workload, noise_factors

START_S = 1_789_344_000  # a Monday, 00:00 UTC
WEEK_S = 7 * 86_400


def small(**changes: Any) -> list[HostWorkload]:
    return prepare(
        **{"data_dir": None, "hosts": 2, "vms_per_host": 7, "start_s": START_S, "hours_history": 24, "hours_run": 2, "seed": 5, **changes}
    )


@pytest.fixture(scope="module")
def generated() -> list[HostWorkload]:
    return small()


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny copy of the layout of both traces, with values that we know."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(1)
    t0, n = 1_372_629_600, 3 * 2016
    rows: dict[str, list[Any]] = {}
    for vm in range(1, 9):
        t = t0 + BUCKET_S * np.arange(n)
        hour = t % 86_400 / 3600
        cpu = {0: 0.3, 1: 20 + 15 * np.sin(hour / 24 * 2 * np.pi), 2: 10, 3: 5 * rng.exponential(size=n) ** 2}[vm % 4] + rng.random(n)
        keep = rng.random(n) > (0.5 if vm == 8 else 0.01)
        columns = {
            "vm": np.full(n, vm, np.int16),
            "t": t.astype(np.int32),
            "cores": np.full(n, 2, np.int8),
            "cpu_pct": cpu.astype(np.float32),
            "mem_cap_kb": np.full(n, 4 * 1024**2, np.int32),
            "mem_kb": (1e6 + 1e5 * cpu).astype(np.float32),
            **{name: (10 * cpu).astype(np.float32) for name in ("disk_read_kbps", "disk_write_kbps", "net_rx_kbps", "net_tx_kbps")},
        }
        for name, values in columns.items():
            rows.setdefault(name, []).append(values[keep])
    (root / "bitbrains_rnd").mkdir()
    pq.write_table(pa.table({name: np.concatenate(parts) for name, parts in rows.items()}), root / "bitbrains_rnd" / "any.parquet")
    (root / "azure2019_vms").mkdir()
    t = BUCKET_S * np.arange(n)
    azure = {"vm": np.zeros(n, np.int16), "t": t.astype(np.int32), "cpu_min": t * 0.0, "cpu_avg": t * 0.0 + 30, "cpu_max": t * 0.0 + 60}
    pq.write_table(pa.table(azure), root / "azure2019_vms" / "cpu.parquet")
    with (root / "azure2019_vms" / "vm_table_sample.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["vm", "vm_virtual_core_count_bucket", "vm_memory_gb_bucket"], [-1, 24, 64], [0, 8, 16]])
    return root


def test_the_twin_equals_the_agents_demand_bit_by_bit(generated: list[HostWorkload]) -> None:
    file = generated[0].file
    load = Workload(file)
    for v, vm in enumerate(file.vms):
        detail = demand_detail(msgspec.structs.replace(vm, burst_per_1024=200), file.start_s)
        load_bursty = Workload(msgspec.structs.replace(file, vms=(msgspec.structs.replace(vm, burst_per_1024=200),)))
        for slot in range(0, file.buckets * 60, 7):
            at_ns = (file.start_s + 5 * slot) * NS_PER_S
            assert load_bursty.demand(0, at_ns) == tuple(detail[:, slot // 60, slot % 60])
        assert load.demand(v, (file.start_s + 600) * NS_PER_S) == tuple(demand_detail(vm, file.start_s)[:, 2, 0])


@settings(max_examples=50, deadline=None)
@given(times=st.lists(st.integers(0, 3 * 3600 * NS_PER_S), min_size=2, max_size=20))
def test_demand_is_a_function_of_time_alone(generated: list[HostWorkload], times: list[int]) -> None:
    file = generated[0].file
    used, start_ns = Workload(file), file.start_s * NS_PER_S
    for offset in times:
        for vm in range(2):
            assert used.demand(vm, start_ns + offset) == Workload(file).demand(vm, start_ns + offset)


def test_noise_keeps_the_mean_and_bursts_are_divided_out() -> None:
    for sigma in (150, 400, 900):
        for block in range(3):
            factors = noise_factors(sigma, block)
            assert sum(factors) / len(factors) == pytest.approx(1.0, abs=1e-12)
            assert min(factors) < 1 - sigma / 2000 < 1 + sigma / 2000 < max(factors)
    flat = generate("idle", Window(start_s=START_S, buckets=288 * 20), np.random.default_rng(0))
    host = small(hours_history=1)[0]
    levels = {name: np.full(flat.levels.shape[1], 10_000, dtype="<i8").tobytes() for name in SERIES}
    vm = msgspec.structs.replace(host.file.vms[0], vcpus_max=1000, burst_per_1024=100, noise_permille=400, **levels)
    detail = demand_detail(vm, START_S)
    assert burst_mean(100) > 1.03
    assert detail[0].mean() == pytest.approx(10_000, rel=0.01)
    log = np.log(detail[0].ravel())
    lags = [float(np.corrcoef(log[:-lag], log[lag:])[0, 1]) for lag in (1, 3, 8, 24)]
    assert lags[0] > 0.4
    assert lags == sorted(lags, reverse=True)
    assert abs(lags[-1]) < 0.1
    assert np.abs(detail[1] / 10_000 - 1).max() <= 0.0026


def test_twin_hosts_demand_the_same_under_other_names(generated: list[HostWorkload]) -> None:
    first, second = generated
    assert not {vm.vm_id for vm in first.file.vms} & {vm.vm_id for vm in second.file.vms}
    assert first.file.capacity == second.file.capacity
    a, b = Workload(first.file), Workload(second.file)
    for slot in range(START_S // 5, START_S // 5 + 500, 13):
        assert a.demands(slot) == b.demands(slot)
    assert np.array_equal(first.mean, second.mean)


def test_preparation_follows_the_seed(generated: list[HostWorkload]) -> None:
    assert encode_workload(small()[0].file) == encode_workload(generated[0].file)
    assert encode_workload(small(seed=6)[0].file) != encode_workload(generated[0].file)


def test_history_meets_the_run_without_a_seam(generated: list[HostWorkload]) -> None:
    longer = small(hours_history=25, start_s=START_S + 3600)[0]
    assert longer.history().end_s == START_S + 3600 - BUCKET_S
    host = generated[0]
    block = host.history()
    assert block.end_s == START_S - BUCKET_S
    assert block.mean.shape == (7, 5, 288)
    assert (block.peak >= block.mean).all()
    # the file's lead-in bucket is the last one of history: same levels, same noise (its first half interpolates with another neighbour)
    load, slots = Workload(host.file), range(START_S // 5 - 30, START_S // 5)
    cpu = [load.demands(slot)[0].cpu_millicores for slot in slots]
    assert host.file.start_s == START_S - BUCKET_S
    assert max(cpu) <= block.peak[0, CPU, -1] * 1.0001


def test_histories_join_in_the_order_of_hosts(generated: list[HostWorkload]) -> None:
    joined = joined_history(generated)
    assert joined.vm_ids == tuple(vm.vm_id for host in generated for vm in host.file.vms)
    assert joined.mean.shape == joined.peak.shape == joined.censored.shape == (14, 5, 288)
    assert np.array_equal(joined.capacity[:7], joined.capacity[7:], equal_nan=True)
    with pytest.raises(ConfigError, match="no host"):
        joined_history([])


def test_capacity_is_short_of_the_sum_of_the_maxima_and_starts_fit(generated: list[HostWorkload]) -> None:
    for host in generated:
        capacity, vms = host.file.capacity, host.file.vms
        assert capacity.cpu_commit_millicores < sum(vm.vcpus_max * 1000 for vm in vms)
        assert capacity.memory_commit_bytes < sum(vm.memory_max_bytes for vm in vms)
        assert sum(vm.initial.cpu_quota_millicores or 0 for vm in vms) <= capacity.cpu_commit_millicores
        assert sum(vm.initial.memory_bytes or 0 for vm in vms) <= capacity.memory_commit_bytes
        for field in ("net_rx_bits_per_s", "net_tx_bits_per_s"):
            assert sum(getattr(vm.initial, field) for vm in vms) <= capacity.net_commit_bits_per_s
        for vm in vms:
            assert (vm.initial.cpu_quota_millicores or 0) >= (vm.policy.cpu_floor_millicores or 0)
            assert (vm.initial.memory_bytes or 0) >= (vm.policy.memory_floor_bytes or 0)
    assert small(overcommit=1.5)[0].file.capacity.cpu_commit_millicores < generated[0].file.capacity.cpu_commit_millicores


@pytest.mark.parametrize("kind", GENERATORS)
def test_generators_stay_within_their_vm(kind: str) -> None:
    vm = generate(kind, Window(start_s=START_S, buckets=2016), np.random.default_rng(3))
    assert np.isfinite(vm.levels).all()
    assert (vm.levels >= 0).all()
    assert vm.levels[0].max() <= vm.vcpus_max * 1000
    assert vm.levels[1].max() <= vm.memory_max_bytes


def test_office_hours_are_weekdays_and_batches_are_nightly() -> None:
    window = Window(start_s=START_S, buckets=2016)
    office = generate("office", window, np.random.default_rng(3)).levels[0].reshape(7, 24, 12).mean(axis=2)
    assert office[:5, 10:12].mean() > 3 * office[:5, 2:5].mean()
    assert office[:5, 10:12].mean() > 2 * office[5:, 10:12].mean()
    batch = generate("batch", window, np.random.default_rng(3)).levels[0].reshape(7, 24, 12).mean(axis=(0, 2))
    assert batch[:8].max() > 10 * batch[10:22].max()


def test_an_unknown_generator_is_refused() -> None:
    with pytest.raises(ConfigError, match="'tsunami'"):
        generate("tsunami", Window(start_s=START_S, buckets=3), np.random.default_rng(0))


def test_traces_keep_their_time_of_day(traces: Path) -> None:
    hosts = small(data_dir=traces, hosts=2, vms_per_host=10, hours_history=48)
    names = [vm.name.split(".")[0] for vm in hosts[0].file.vms]
    assert not any(name.startswith("bitbrains8-") for name in names)  # half of its samples are missing
    assert sum(name.startswith("azure") for name in names) == 2
    daily = next(i for i, name in enumerate(names) if name.endswith("-daily"))
    cpu = np.nan_to_num(hosts[0].mean[daily, CPU], nan=0.0)
    assert cpu.reshape(2, 24, 12).mean(axis=(0, 2)).argmax() in (5, 6, 7)  # sin peaks at 06:00 UTC
    assert cpu.max() == pytest.approx(2000 * 0.355, rel=0.3)  # and noise
    gaps = np.isnan(hosts[0].mean[daily]).mean()
    assert 0 < gaps < 0.05


def test_azure_is_labelled_where_it_is_made_up(traces: Path) -> None:
    vms = small(data_dir=traces, vms_per_host=10)[0].file.vms
    azure = next(vm for vm in vms if vm.name.startswith("azure0"))
    assert "synthetic" in azure.source
    assert (azure.vcpus_max, azure.memory_max_bytes) == (8, 16 * 1024**3)
    assert np.frombuffer(azure.cpu_millicores, dtype="<i8").mean() == pytest.approx(2400, rel=1e-6)


def test_a_window_longer_than_the_trace_repeats_whole_weeks(traces: Path) -> None:
    hosts = small(data_dir=traces, hours_history=24 * 30)
    assert hosts[0].mean.shape[2] == 30 * 288
    assert np.isfinite(hosts[0].mean).mean() > 0.95


def test_a_broken_trace_is_named(tmp_path: Path) -> None:
    (tmp_path / "bitbrains_rnd").mkdir()
    (tmp_path / "bitbrains_rnd" / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(ConfigError, match=r"x\.parquet"):
        small(data_dir=tmp_path)


def test_an_empty_data_folder_means_generated(tmp_path: Path) -> None:
    assert all(vm.source.startswith("generated:") for vm in small(data_dir=tmp_path)[0].file.vms)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hosts", 0), ("vms_per_host", 1001), ("hours_run", 0), ("start_s", START_S + 1), ("overcommit", float("nan")), ("hours_history", -1)],
)
def test_values_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        small(**{field: value})


def test_files_are_read_back_and_bad_ones_refused(generated: list[HostWorkload], tmp_path: Path) -> None:
    path = tmp_path / "host.workload"
    assert write(path, generated[0]) == path.stat().st_size
    assert Workload.load(path).file == generated[0].file
    good = generated[0].file
    bad = [
        path.read_bytes()[:-20],
        b"{}",
        encode_workload(good).replace(b"tidegate-workload", b"tidegate-workshop"),
        encode_workload(msgspec.structs.replace(good, start_s=7)),
        encode_workload(msgspec.structs.replace(good, buckets=good.buckets + 1)),
        encode_workload(msgspec.structs.replace(good, vms=good.vms[:1] * 2)),
        encode_workload(msgspec.structs.replace(good, vms=(msgspec.structs.replace(good.vms[0], initial=Allocation()),))),
    ]
    for data in bad:
        with pytest.raises(ConfigError, match="workload file"):
            decode_workload(data)
    with pytest.raises(ConfigError, match="nowhere"):
        Workload.load(tmp_path / "nowhere")


def test_memory_history_stays_below_the_maximum(generated: list[HostWorkload]) -> None:
    block = generated[0].history()
    assert (block.peak[:, MEMORY] <= block.capacity[:, MEMORY, None]).all()
    with pytest.raises(ConfigError, match="hours_history"):
        small(hours_history=0)[0].history()
