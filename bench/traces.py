"""Public VM traces as demand history in our units and axes [v, r, bucket]; sets that are absent are left out and said so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from coordinator.model import F32, N_RESOURCES, HistoryBlock
from shared.units import BUCKET_S, CPU, DISK, MEMORY, NET_RX, NET_TX

AZURE_CORES = 4  # the trace gives percent only
PLANETLAB_CORES = 1


@dataclass(frozen=True, kw_only=True)
class Trace:
    """`train` VMs and `test` VMs are different ones. Arrays float32[v, r, b], NaN = no sample; first bucket starts at `start_s`."""

    name: str
    start_s: int
    mean: F32
    peak: F32
    train_mean: F32
    train_peak: F32
    resources: tuple[int, ...]
    loaded: int  # buckets of history before the first scored origin


def load(folder: Path, quick: bool) -> list[Trace]:
    """The sets that are there."""
    traces = []
    for loader in (_bitbrains, _azure, _planetlab):
        found = loader(folder, quick)
        if found is None:
            print(f"left out: {loader.__name__.strip('_')} is not in {folder}")
        else:
            traces.append(found)
    return traces


def block(mean: F32, peak: F32, end_s: int) -> HistoryBlock:
    """HistoryBlock of arrays that end with bucket `end_s`."""
    return HistoryBlock(
        vm_ids=tuple(f"vm{i}" for i in range(len(mean))),
        end_s=end_s,
        mean=mean,
        peak=peak,
        censored=np.zeros_like(mean),
        capacity=np.full(mean.shape[:2], np.nan, dtype=np.float32),
    )


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet")) if folder.is_dir() else []


def _bitbrains(folder: Path, quick: bool) -> Trace | None:
    files = _files(folder / "bitbrains_rnd")
    if not files:
        return None
    loaded, scored = (2400, 96) if quick else (2400, 576)
    start_s = 1_377_993_600 - loaded * BUCKET_S + 9 * 3600  # scored from 1 September 2013, 09:00 UTC
    count = loaded + scored
    columns = ["vm", "t", "cores", "cpu_pct", "mem_kb", "disk_read_kbps", "disk_write_kbps", "net_rx_kbps", "net_tx_kbps"]
    window = [("t", ">=", start_s), ("t", "<", start_s + count * BUCKET_S)]
    table = pq.read_table(files[0], columns=columns, filters=window).to_pandas()
    table = table[table.cores > 0]
    ids = np.sort(table.vm.unique()).astype(np.int64)
    row = np.searchsorted(ids, table.vm.to_numpy())
    at = (table.t.to_numpy() - start_s) // BUCKET_S
    data = np.full((len(ids), N_RESOURCES, count), np.nan, dtype=np.float32)
    data[row, CPU, at] = table.cpu_pct * table.cores * 10.0
    data[row, MEMORY, at] = table.mem_kb * 1024.0
    data[row, DISK, at] = (table.disk_read_kbps + table.disk_write_kbps) * 1000.0
    data[row, NET_RX, at] = table.net_rx_kbps * 8000.0
    data[row, NET_TX, at] = table.net_tx_kbps * 8000.0
    order = np.argsort((ids * 2_654_435_761) % 2**32)  # a fixed shuffle: neither half is sorted by anything
    test, train = order[: 40 if quick else 72], order[len(order) // 2 :][: 40 if quick else 100]
    return Trace(
        name="bitbrains",
        start_s=start_s,
        mean=data[test],
        peak=data[test],
        train_mean=data[train][..., :loaded],
        train_peak=data[train][..., :loaded],
        resources=(CPU, MEMORY, DISK, NET_RX, NET_TX),
        loaded=loaded,
    )


def _azure(folder: Path, quick: bool) -> Trace | None:
    path = folder / "azure2019_vms" / "cpu.parquet"
    if not path.exists():
        return None
    loaded, scored = 2400, (96 if quick else 576)
    table = pq.read_table(path).to_pandas()
    ids = np.sort(table.vm.unique()).astype(np.int64)
    count = loaded + scored
    data = np.full((2, len(ids), N_RESOURCES, count), np.nan, dtype=np.float32)
    at = table.t.to_numpy() // BUCKET_S
    inside = at < count
    row = np.searchsorted(ids, table.vm.to_numpy())
    data[0, row[inside], CPU, at[inside]] = table.cpu_avg[inside] * AZURE_CORES * 10.0
    data[1, row[inside], CPU, at[inside]] = table.cpu_max[inside] * AZURE_CORES * 10.0
    half = len(ids) // 2
    return Trace(
        name="azure",
        start_s=0,
        mean=data[0, half:],
        peak=data[1, half:],
        train_mean=data[0, :half, :, :loaded],
        train_peak=data[1, :half, :, :loaded],
        resources=(CPU,),
        loaded=loaded,
    )


def _planetlab(folder: Path, quick: bool) -> Trace | None:
    files = _files(folder / "planetlab")
    if len(files) < 4:
        return None

    def day(path: Path, vms: int) -> F32:
        table = pq.read_table(path).to_pandas().drop(columns="t")
        data = np.full((min(vms, table.shape[1]), N_RESOURCES, len(table)), np.nan, dtype=np.float32)
        data[:, CPU] = table.to_numpy().T[: len(data)] * PLANETLAB_CORES * 10.0
        return data

    test = day(files[3], 60 if quick else 300)
    train = day(files[0], 300)
    return Trace(
        name="planetlab",
        start_s=0,
        mean=test,
        peak=test,
        train_mean=train,
        train_peak=train,
        resources=(CPU,),
        loaded=144,
    )
