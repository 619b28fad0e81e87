"""Public VM traces as demand history in our units and axes [v, r, bucket]; sets that are absent are left out and said so.

Reads any folder laid out like the project's traces: every Parquet file in a set's folder counts, whatever its name. What is tested was
never trained on: VMs are split in halves by a hash of their id (a set of fewer than SMALL VMs is split by time: training sees only what
lies before the first scored origin); of PlanetLab's days, which share no VMs for sure, the newest is tested and the others train.
Google's jobs are cut into their separate days, because days of one job need not follow each other. NAB's AWS metrics are one VM each with
one resource. A missing sample is NaN. Percentages become units of a machine of a plausible size: no figure depends on it, all are scaled.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coordinator.model import F32, N_RESOURCES, HistoryBlock
from shared.units import BUCKET_S, CPU, DISK, GIB, HORIZON_STEPS, MEMORY, NET_RX, NET_TX

DAY: Final = 288
SMALL: Final = 20  # halves of fewer VMs would say more about the draw than about the forecast
LOADED: Final = 2400  # buckets of history before the first scored origin, where the trace is long enough: a week and a day
WHERE: Final = 0.85  # share of the trace's span at which the scored part ends: not its edge, where VMs come and go
SHORT_NAMES: Final = ("cpu", "memory", "disk", "net rx", "net tx")
CORES: Final = {"azure": 4, "google": 4, "alibaba": 96, "planetlab": 1, "nab": 1}  # where the trace gives percent only
MEMORY_BYTES: Final = {"google": 16 * GIB, "alibaba": 256 * GIB}
LINK_BITS_PER_S: Final = 1e10  # Alibaba's network is a share of an unnamed link


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What gets one line in a table: a resource of a set. NAB's few series are one line, whatever they measure."""

    name: str
    resources: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One set. `mean`, `peak` float32[v, r, b] of the tested VMs, `train_*` of others (or of the past); NaN = no sample.

    Bucket 0 starts at `start_s`; buckets before `loaded` are history, the others are scored.
    """

    name: str
    start_s: int
    vm_ids: tuple[str, ...]
    mean: F32
    peak: F32
    train_mean: F32
    train_peak: F32
    loaded: int
    pairs: tuple[Pair, ...]

    @property
    def resources(self) -> tuple[int, ...]:
        """Resources that any pair speaks of."""
        return tuple(sorted({r for pair in self.pairs for r in pair.resources}))

    def training(self) -> HistoryBlock:
        """What `ForecastEngine.retrain` may see."""
        return block(self.train_mean, self.train_peak, self.start_s + (self.train_mean.shape[2] - 1) * BUCKET_S)

    def thin(self, vms: int) -> Trace:
        """The first `vms` tested VMs (their order is a hash's)."""
        return replace(self, vm_ids=self.vm_ids[:vms], mean=self.mean[:vms], peak=self.peak[:vms])


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of each set: at most `vms` tested (twice that of Google's job-days, three times of PlanetLab), `trained` trained on (of each
    other PlanetLab day; three times that of job-days), `scored` buckets (PlanetLab and Google: what is left of the day)."""

    vms: int
    trained: int
    scored: int


FULL: Final = Size(vms=100, trained=100, scored=432)
QUICK_SETS: Final = ("planetlab", "bitbrains")
QUICK: Final = Size(vms=16, trained=40, scored=72)


@lru_cache(maxsize=4)
def load(folder: Path, quick: bool, size: Size | None = None) -> tuple[Trace, ...]:
    """The sets that are there; kept in memory for the next caller of this process."""
    how = size or (QUICK if quick else FULL)
    traces = []
    for name, (place, loader) in LOADERS.items():
        found = loader(folder / place, how)
        if found is None:
            print(f"left out: {name} is not in {folder}")
            continue
        told = [pair for pair in found.pairs if _told(found, pair)]
        for pair in found.pairs:
            if pair not in told:
                print(f"left out: {pair.name} has no sample to score, or none before")
        if told:
            traces.append(replace(found, pairs=tuple(told)))
    return tuple(traces)


def chosen_sets(names: str, quick: bool = False) -> set[str]:
    """The sets named with commas; where none is all, or, `quick`, a day and a month of them. Raises ValueError on a name that is none."""
    chosen = set(names.split(",")) if names else set(QUICK_SETS if quick else LOADERS)
    for name in sorted(chosen - set(LOADERS)):
        raise ValueError(f"set {name!r}: allowed {', '.join(LOADERS)}")
    return chosen


def _told(trace: Trace, pair: Pair) -> bool:
    """Whether some series has readings in its history and after it."""
    known = ~np.isnan(trace.mean[:, list(pair.resources)])
    return bool((known[..., : trace.loaded].sum(axis=-1).clip(max=2) * known[..., trace.loaded + 1 :].any(axis=-1) > 1).any())


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


def shuffled(ids: Iterable[Any]) -> list[Any]:
    """Ids in the order of their hash: neither half is sorted by anything, and an id keeps its place among whatever others there are."""
    return sorted(ids, key=lambda name: (zlib.crc32(str(name).encode()), str(name)))


def planetlab(folder: Path, size: Size, tested: int = -1) -> Trace | None:
    """Day `tested` (in the order of the dates) is tested after its first twelve hours, the others train; of a lone day half of its VMs."""
    days = [_table([path]) for path in _files(folder)]
    if not days:
        return None
    test = days.pop(tested)
    names = _names(test)
    if not days:
        names, others = names[: len(names) // 2], names[len(names) // 2 :]
        days = [test[others]]
    names = names[: 3 * size.vms]
    parts = [_day(day, _names(day)[: size.trained]) for day in days]
    length = min(part.shape[2] for part in parts)
    train = np.concatenate([part[..., :length] for part in parts])
    mean = _day(test, names)
    return Trace(
        name="planetlab",
        start_s=0,
        vm_ids=tuple(names),
        mean=mean,
        peak=mean,
        train_mean=train,
        train_peak=train,
        loaded=DAY // 2,
        pairs=(Pair(name="planetlab cpu", resources=(CPU,)),),
    )


def _names(table: Any) -> list[str]:
    return shuffled(name for name in table.columns if name != "t")


def _day(table: Any, names: list[str]) -> F32:
    data = np.full((len(names), N_RESOURCES, len(table)), np.nan, dtype=np.float32)
    data[:, CPU] = table[names].to_numpy().T * CORES["planetlab"] * 10.0
    return data


def _bitbrains(folder: Path, size: Size) -> Trace | None:
    files = _files(folder)
    if not files:
        return None
    stamps = [pq.read_table(path, columns=["t"]).column("t").to_numpy() for path in files]
    first, last = min(int(part.min()) for part in stamps), max(int(part.max()) for part in stamps)
    window = _span(first, last, size.scored)
    columns = ["vm", "t", "cores", "cpu_pct", "mem_kb", "disk_read_kbps", "disk_write_kbps", "net_rx_kbps", "net_tx_kbps"]
    table = _table(files, columns, [("t", ">=", window.start_s), ("t", "<", window.start_s + window.buckets * BUCKET_S)])
    table = table[table.cores > 0]  # no cores: the VM was off, so there is no demand to know
    return _long(
        "bitbrains",
        size,
        window,
        table.vm.to_numpy(),
        table.t.to_numpy(),
        {
            CPU: table.cpu_pct * table.cores * 10.0,
            MEMORY: table.mem_kb * 1024.0,
            DISK: (table.disk_read_kbps + table.disk_write_kbps) * 1000.0,
            NET_RX: table.net_rx_kbps * 8000.0,
            NET_TX: table.net_tx_kbps * 8000.0,
        },
    )


def _azure(folder: Path, size: Size) -> Trace | None:
    files = _files(folder)
    if not files:
        return None
    table = _table(files, ["vm", "t", "cpu_avg", "cpu_max"])
    unit = CORES["azure"] * 10.0
    window = _span(int(table.t.min()), int(table.t.max()), size.scored)
    return _long("azure", size, window, table.vm.to_numpy(), table.t.to_numpy(), {CPU: table.cpu_avg * unit}, {CPU: table.cpu_max * unit})


def _alibaba(folder: Path, size: Size) -> Trace | None:
    files = _files(folder)
    if not files:
        return None
    table = _table(files, ["machine", "t", "cpu_pct", "mem_pct", "net_in", "net_out"])
    table["t"] = table.t // BUCKET_S * BUCKET_S
    bins = table.groupby(["machine", "t"], observed=True)
    mean, peak = bins.mean().reset_index(), bins.max().reset_index()
    window = _span(int(mean.t.min()), int(mean.t.max()), size.scored)

    def units(of: Any) -> dict[int, Any]:
        return {
            CPU: of.cpu_pct * CORES["alibaba"] * 10.0,
            MEMORY: of.mem_pct / 100.0 * MEMORY_BYTES["alibaba"],
            NET_RX: of.net_in / 100.0 * LINK_BITS_PER_S,
            NET_TX: of.net_out / 100.0 * LINK_BITS_PER_S,
        }

    return _long("alibaba", size, window, mean.machine.to_numpy(), mean.t.to_numpy(), units(mean), units(peak))


def _google(folder: Path, size: Size) -> Trace | None:
    files = _files(folder)
    if not files:
        return None
    table = _table(files)
    jobs = shuffled(table.job.unique())
    halves = jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]

    def cut(which: list[Any], most: int) -> tuple[tuple[str, ...], F32]:
        part = table[table.job.isin(which)]
        keys = part.job.astype(str) + "/" + part.day.astype(str)
        names = shuffled(keys.unique())[:most]
        row = keys.map({name: i for i, name in enumerate(names)})
        part, row = part[row.notna()], row[row.notna()].to_numpy(np.int64)
        data = np.full((len(names), N_RESOURCES, DAY), np.nan, dtype=np.float32)
        data[row, CPU, part.step] = part.cpu_pct * CORES["google"] * 10.0
        data[row, MEMORY, part.step] = part.mem_pct / 100.0 * MEMORY_BYTES["google"]
        return tuple(names), data

    names, mean = cut(halves[0], 2 * size.vms)
    _, train = cut(halves[1], 3 * size.trained)
    return Trace(
        name="google",
        start_s=0,
        vm_ids=names,
        mean=mean,
        peak=mean,
        train_mean=train,
        train_peak=train,
        loaded=DAY // 2,
        pairs=tuple(Pair(name=f"google {SHORT_NAMES[r]}", resources=(r,)) for r in (CPU, MEMORY)),
    )


def _nab(folder: Path, size: Size) -> Trace | None:
    """Series lie years apart: whole days are cut out between them, so that all end on the same day and the time of day stays true."""
    files = _files(folder)
    if not files:
        return None
    table = _table(files, ["file", "timestamp", "value"])
    table = table[table.file.astype(str).str.startswith("realAWSCloudwatch/")]
    if table.empty:
        return None
    second = table.timestamp.astype("datetime64[s]").astype(np.int64)
    last_day = (second // 86_400).groupby(table.file.astype(str)).transform("max")
    second = (second - (last_day - last_day.max()) * 86_400) // BUCKET_S * BUCKET_S
    # 16 days and a bit at most; the last day is not whole
    end_s = int(last_day.max()) * 86_400
    first_s = max(int(second.min()), end_s - (LOADED + DAY + size.scored) * BUCKET_S) // 86_400 * 86_400
    buckets = (end_s - first_s) // BUCKET_S
    window = _Span(first_s, buckets, buckets - size.scored)
    name = table.file.astype(str).str.lower()
    disk, net = name.str.contains("disk"), name.str.contains("network")
    values = {
        CPU: (table.value * 10.0).where(~disk & ~net),  # percent, or a count (requests, instances): no resource of ours, the unit is free
        DISK: (table.value / BUCKET_S).where(disk),
        NET_RX: (table.value * 8.0 / BUCKET_S).where(net),
    }
    found = _long("nab", size, window, name.to_numpy(), second.to_numpy(), values)
    return None if found is None else replace(found, pairs=(Pair(name="nab aws", resources=(CPU, DISK, NET_RX)),))


LOADERS: Final[dict[str, tuple[str, Callable[[Path, Size], Trace | None]]]] = {
    "bitbrains": ("bitbrains_rnd", _bitbrains),
    "azure": ("azure2019_vms", _azure),
    "google": ("google2011_jobs", _google),
    "alibaba": ("alibaba2018_machines", _alibaba),
    "planetlab": ("planetlab", planetlab),
    "nab": ("nab", _nab),
}


@dataclass(frozen=True)
class _Span:
    """The part of a long trace that is used."""

    start_s: int
    buckets: int
    loaded: int


def _span(first_s: int, last_s: int, scored: int) -> _Span:
    """LOADED buckets of history and `scored` ones, ending at WHERE of the span; what fits when the trace is shorter."""
    first = first_s // BUCKET_S
    there = last_s // BUCKET_S + 1 - first
    buckets = min(there, LOADED + scored + HORIZON_STEPS)
    start = max(0, int(there * WHERE) - buckets)
    return _Span((first + start) * BUCKET_S, buckets, max(buckets // 2, buckets - scored - HORIZON_STEPS))


def _long(
    name: str,
    size: Size,
    window: _Span,
    ids: NDArray[Any],
    second: NDArray[Any],
    mean: dict[int, Any],
    peak: dict[int, Any] | None = None,
) -> Trace | None:
    """Rows (id, time, value per resource) -> Trace; of several rows of one bucket the newest counts; VMs not in the window are left out."""
    at = (second.astype(np.int64) - window.start_s) // BUCKET_S
    inside = (at >= 0) & (at < window.buckets)
    if not inside.any():
        return None
    names = shuffled(np.unique(ids[inside]))
    place = {vm: i for i, vm in enumerate(names)}
    row = np.array([place[vm] for vm in ids[inside]])
    data = np.full((2, len(names), N_RESOURCES, window.buckets), np.nan, dtype=np.float32)
    for side, values in enumerate((mean, peak or mean)):
        for r, column in values.items():
            data[side, row, r, at[inside]] = column.to_numpy()[inside]
    if len(names) < SMALL:
        test, train = slice(None), slice(None)
    else:
        half = len(names) // 2
        test, train = slice(0, min(half, size.vms)), slice(half, half + size.trained)
    return Trace(
        name=name,
        start_s=window.start_s,
        vm_ids=tuple(str(vm) for vm in names[test]),
        mean=data[0, test],
        peak=data[1, test],
        train_mean=data[0, train][..., : window.loaded],
        train_peak=data[1, train][..., : window.loaded],
        loaded=window.loaded,
        pairs=tuple(Pair(name=f"{name} {SHORT_NAMES[r]}", resources=(r,)) for r in sorted(mean)),
    )


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet")) if folder.is_dir() else []


def _table(paths: list[Path], columns: list[str] | None = None, rows: list[tuple[str, str, int]] | None = None) -> Any:
    """One frame of all files: more months or more VMs of a set are more files."""
    parts = [pq.read_table(path, columns=columns, filters=rows) for path in paths]
    return (parts[0] if len(parts) == 1 else pa.concat_tables(parts, promote_options="permissive")).to_pandas()
