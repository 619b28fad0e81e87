"""Where simulated demand comes from: public traces laid out as in ../shared/data, or built-in generators where there are none.

Every source gives levels on a 5-minute grid that keeps the trace's own time of day and weekday: traces are shifted by whole weeks (UTC).
Bitbrains (GWA-T-12) has all resources. Azure 2019 has CPU only: its memory, disk and network are made up from CPU and labelled synthetic;
its clock is unknown and taken to start on a Monday at midnight. Gaps are bridged by straight lines and reported in `missing`.
VMs are chosen by seed within classes of behaviour, never by name.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shared.errors import ConfigError
from shared.units import BUCKET_S, GIB, MIB

F64 = NDArray[np.float64]
DAY, WEEK = 288, 2016  # buckets
MONDAY_S: Final = 345_600  # the first Monday of Unix time
CLASS_SHARES: Final = {"daily": 0.45, "bursty": 0.30, "steady": 0.15, "idle": 0.10}
MAX_MISSING: Final = 0.08  # of a VM's samples absent or switched off
IDLE_MILLICORES: Final = 20.0
AZURE_SHARE: Final = 0.2  # of the VMs where both traces are there
GENERATORS: Final = ("office", "weekly", "bursty", "batch", "idle", "flash", "leak")


@dataclass(frozen=True, kw_only=True)
class Window:
    """Buckets to fill: the first starts at Unix second `start_s`."""

    start_s: int
    buckets: int

    @property
    def seconds(self) -> NDArray[np.int64]:
        """Start of each bucket."""
        return self.start_s + BUCKET_S * np.arange(self.buckets, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class SourceVm:
    """Demand of one VM over a window. `levels` float64[6, buckets] in the order and units of shared.workload.SERIES, without NaN."""

    name: str
    source: str
    vcpus_max: int
    memory_max_bytes: int
    levels: F64
    missing: NDArray[np.bool_]  # [buckets] true where the trace had no sample
    noise_sigma: float  # of the log of CPU within a bucket


def pick(
    data_dir: Path | None, count: int, window: Window, rng: np.random.Generator, sets: Collection[str] = ("bitbrains", "azure")
) -> list[SourceVm]:
    """`count` VMs from the traces (of these `sets`) under `data_dir`, from the generators where there is none (or too short a trace).

    Raises ConfigError for a trace that cannot be read.
    """
    azure = _read_azure(data_dir) if data_dir and "azure" in sets else []
    bitbrains = _Bitbrains(data_dir) if data_dir and "bitbrains" in sets else None
    have_bitbrains = bitbrains is not None and bool(bitbrains.classes)
    from_azure = (round(AZURE_SHARE * count) if have_bitbrains else count) if azure else 0
    picked = [trace.over(window, rng) for trace in _draw(azure, from_azure, rng)]
    if have_bitbrains and bitbrains is not None:
        picked += bitbrains.draw(count - from_azure, window, rng)
    while len(picked) < count:
        kind = GENERATORS[len(picked) % len(GENERATORS)]
        picked.append(generate(kind, window, rng, name=f"{kind}{len(picked)}"))
    return [picked[i] for i in rng.permutation(count)]


def generate(kind: str, window: Window, rng: np.random.Generator, name: str = "") -> SourceVm:
    """A synthetic VM of one of GENERATORS. Raises ConfigError for another kind."""
    if kind not in GENERATORS:
        raise ConfigError(f"workload generator {kind!r}: allowed {', '.join(GENERATORS)}")
    vcpus = int(rng.choice([2, 4, 4, 8]))
    memory = int(rng.choice([4, 8, 16])) * GIB
    share = np.clip(_shape(kind, window, rng) * np.exp(_wander(window.buckets, 0.12, rng)), 0.002, 1.0)
    levels = _from_cpu(share, vcpus, memory, rng)
    if kind == "leak":  # grows for one to three days, then somebody restarts it
        period = int(rng.integers(DAY, 3 * DAY))
        age = (window.seconds // BUCKET_S + int(rng.integers(period))) % period / period
        levels[1] = memory * (0.2 + 0.65 * age)
    return SourceVm(
        name=name or kind,
        source=f"generated:{kind}",
        vcpus_max=vcpus,
        memory_max_bytes=memory,
        levels=levels,
        missing=np.zeros(window.buckets, dtype=np.bool_),
        noise_sigma=0.4 if kind in ("bursty", "flash") else 0.25,
    )


def _shape(kind: str, window: Window, rng: np.random.Generator) -> F64:
    """CPU share float64[buckets] of a kind of workload, before noise."""
    seconds = window.seconds
    hour = (seconds % 86_400) / 3600
    weekday = (seconds // 86_400 + 3) % 7  # 0 = Monday; 1970-01-01 was a Thursday
    base, height = rng.uniform(0.03, 0.10), rng.uniform(0.35, 0.75)
    begin = rng.uniform(7.5, 9.0)
    office = _ramp(hour, begin, 0.75) * _ramp(-hour, -begin - 9, 1.0) * (1 - 0.25 * np.exp(-(((hour - begin - 4) / 0.7) ** 2)))
    if kind == "office":
        return base + height * office * np.where(weekday < 5, 1.0, 0.15)
    if kind == "weekly":
        evening = np.exp(-(((hour - 20) / 2.5) ** 2))
        return base + height * evening * np.where(weekday >= 4, 1.0, 0.4)
    if kind == "batch":
        start, length = rng.uniform(0, 4), rng.uniform(1, 3)
        return base / 2 + 0.9 * _ramp(hour, start, 0.08) * _ramp(-hour, -start - length, 0.08)
    if kind == "idle":
        return np.full(window.buckets, 0.01)
    if kind == "leak":
        return base + 0.3 * height * office
    if kind == "bursty":
        return base + height * _pulses(window.buckets, every=30, length=4, rng=rng)
    crowd = _pulses(window.buckets, every=DAY, length=18, rng=rng)  # flash
    return base + 0.2 * office + 0.7 * crowd


def _ramp(x: F64, at: float, width: float) -> F64:
    return np.asarray(1 / (1 + np.exp(-np.clip((x - at) / (width / 4), -50, 50))), dtype=np.float64)


def _pulses(buckets: int, every: int, length: int, rng: np.random.Generator) -> F64:
    """Pulses of random height that rise in two buckets and decay over `length`, one in `every` buckets on average."""
    kernel = np.concatenate([[0.5], np.exp(-np.arange(4 * length) / length)])
    hits = np.where(rng.random(buckets) < 1 / every, rng.uniform(0.4, 1.0, buckets), 0.0)
    return np.minimum(np.convolve(hits, kernel)[:buckets], 1.0)


def _wander(buckets: int, sigma: float, rng: np.random.Generator) -> F64:
    """AR(1) with coefficient 0.8 and stationary deviation `sigma`."""
    shocks = rng.normal(0.0, sigma * 0.6, buckets)
    out = np.empty(buckets)
    level = 0.0
    for i in range(buckets):
        level = 0.8 * level + shocks[i]
        out[i] = level
    return out


def _from_cpu(share: F64, vcpus: int, memory: int, rng: np.random.Generator) -> F64:
    """Levels [6, buckets] made up from CPU: memory follows an hour's smoothed load, disk and network the load itself."""
    kernel = np.exp(-np.arange(36) / 12)
    padded = np.concatenate([np.full(36, share[0]), share])
    smooth = np.convolve(padded, kernel / kernel.sum())[36 : 36 + len(share)]
    out = np.empty((6, len(share)))
    out[0] = share * vcpus * 1000
    out[1] = memory * np.clip(rng.uniform(0.15, 0.35) + rng.uniform(0.4, 0.6) * smooth, 0.05, 0.95)
    out[2] = share * rng.uniform(0.2, 2.0) * MIB
    out[3] = share * rng.uniform(0.5, 4.0) * MIB
    out[4] = share * rng.uniform(5e6, 80e6)
    out[5] = share * rng.uniform(5e6, 80e6)
    return out


@dataclass(frozen=True, kw_only=True)
class _Trace:
    """One VM of a trace on a regular grid: `levels` float64[6, n] with NaN where a sample is missing."""

    name: str
    source: str
    vcpus_max: int
    memory_max_bytes: int
    start_s: int
    levels: F64
    noise_sigma: float

    def over(self, window: Window, rng: np.random.Generator) -> SourceVm:
        """The trace at some whole number of weeks' distance where few samples are missing; repeated when it is too short."""
        absent = np.isnan(self.levels[0])
        length = len(absent)
        offset = (window.start_s - self.start_s) // BUCKET_S
        span = np.arange(window.buckets)
        fitting = range(-(-(offset + window.buckets - length) // WEEK), offset // WEEK + 1)
        spans: list[NDArray[np.int64]] = [offset - week * WEEK + span for week in fitting]
        if not spans:
            whole = length // WEEK * WEEK
            spans = [(offset + week * WEEK + span) % whole for week in range(whole // WEEK)]
        gaps = np.array([absent[s].mean() for s in spans])
        chosen = spans[int(rng.choice(np.flatnonzero(gaps <= gaps.min() + 0.01)))]
        missing = absent[chosen]
        known = np.flatnonzero(~missing)
        if not len(known):
            raise ConfigError(f"trace {self.name}: no sample in the chosen window")
        levels = np.stack([np.interp(span, known, row[chosen][known]) for row in self.levels])
        return SourceVm(
            name=self.name,
            source=self.source,
            vcpus_max=self.vcpus_max,
            memory_max_bytes=self.memory_max_bytes,
            levels=levels,
            missing=missing,
            noise_sigma=self.noise_sigma,
        )


def _draw(pool: Sequence[_Trace], count: int, rng: np.random.Generator) -> Iterator[_Trace]:
    """`count` of the pool in random order, again from the start when it runs out."""
    order = rng.permutation(len(pool)) if count else np.zeros(1, dtype=np.int64)
    for i in range(count):
        yield pool[order[i % len(order)]]


class _Bitbrains:
    """The Bitbrains VMs sorted into classes by their CPU; all columns are read only for the VMs drawn."""

    def __init__(self, data_dir: Path) -> None:
        self._files = sorted((data_dir / "bitbrains_rnd").glob("*.parquet"))
        self.classes: dict[str, list[int]] = {}
        if not self._files:
            return
        columns = _columns(self._files, ["vm", "t", "cores", "cpu_pct"])
        self._start_s = int(columns["t"].min()) // BUCKET_S * BUCKET_S
        self._length = (int(columns["t"].max()) - self._start_s) // BUCKET_S + 1
        if self._length < WEEK:
            return
        for vm, rows in _groups(columns["vm"]):
            on = columns["cores"][rows] > 0
            grid = np.full(self._length, np.nan, dtype=np.float32)
            index = (columns["t"][rows] - self._start_s) // BUCKET_S
            grid[index[on]] = (columns["cpu_pct"][rows].clip(0, 100) * columns["cores"][rows] * 10)[on]
            kind = _classify(grid)
            if kind is not None:
                self.classes.setdefault(kind, []).append(vm)

    def draw(self, count: int, window: Window, rng: np.random.Generator) -> list[SourceVm]:
        """`count` VMs, classes in the proportions of CLASS_SHARES as far as they exist."""
        kinds = sorted(self.classes)
        weights = np.array([CLASS_SHARES[kind] for kind in kinds])
        edges = np.cumsum(weights / weights.sum())
        wanted = [kinds[int(np.searchsorted(edges, (i + 0.5) / count))] for i in range(count)]
        orders = {kind: rng.permutation(self.classes[kind]) for kind in kinds}
        chosen = [(kind, int(orders[kind][wanted[:i].count(kind) % len(orders[kind])])) for i, kind in enumerate(wanted)]
        columns = _columns(self._files, None, [("vm", "in", sorted({vm for _, vm in chosen}))])
        rows_of = dict(_groups(columns["vm"]))
        return [self._trace(vm, kind, columns, rows_of[vm]).over(window, rng) for kind, vm in chosen]

    def _trace(self, vm: int, kind: str, columns: dict[str, NDArray[Any]], rows: slice) -> _Trace:
        part = {name: values[rows].astype(np.float64) for name, values in columns.items()}
        on = part["cores"] > 0
        memory_max = float(part["mem_cap_kb"][on].max()) * 1024
        levels = np.full((6, self._length), np.nan)
        index = ((part["t"][on] - self._start_s) // BUCKET_S).astype(np.int64)
        levels[0, index] = (part["cpu_pct"].clip(0, 100) * part["cores"] * 10)[on]
        # active memory leaves out what a guest needs but has not touched of late: its kernel and idle services
        levels[1, index] = np.minimum(128 * MIB + part["mem_kb"][on] * 1024 * 1.1, 0.95 * max(memory_max, 512 * MIB))
        for row, name, factor in ((2, "disk_read", 1024), (3, "disk_write", 1024), (4, "net_rx", 8192), (5, "net_tx", 8192)):
            levels[row, index] = part[f"{name}_kbps"][on] * factor
        steps = np.abs(np.diff(np.log(np.maximum(levels[0], 1.0))))
        return _Trace(
            name=f"bitbrains{vm}-{kind}",
            source="bitbrains_rnd",
            vcpus_max=int(part["cores"].max()),
            memory_max_bytes=int(max(memory_max, 512 * MIB)),
            start_s=self._start_s,
            levels=levels,
            # noise of deviation s within a bucket leaves 0.30 s in its mean (blocks of 5, 20, 60 s), 0.42 s between two means and a
            # median step of 0.28 s: the other way round, s = 3.5 x the median step
            noise_sigma=float(np.clip(3.5 * np.nanmedian(steps), 0.15, 0.6)),
        )


def _classify(cpu: NDArray[np.float32]) -> str | None:
    """Class of a CPU series in millicores (float32[n], NaN missing); None = too little data or activity."""
    if np.isnan(cpu).mean() > MAX_MISSING:
        return None
    mean, deviation = float(np.nanmean(cpu)), float(np.nanstd(cpu))
    if mean < 2.0:
        return None
    if mean < IDLE_MILLICORES:
        return "idle"
    centred = cpu - mean
    daily = float(np.nanmean(centred[DAY:] * centred[:-DAY])) / max(deviation**2, 1e-9)
    if daily > 0.3 and deviation > 0.15 * mean:
        return "daily"
    return "bursty" if deviation > 0.8 * mean else "steady"


def _read_azure(data_dir: Path) -> list[_Trace]:
    files = sorted((data_dir / "azure2019_vms").glob("*.parquet"))
    if not files:
        return []
    sizes: dict[int, tuple[int, int]] = {}
    table = data_dir / "azure2019_vms" / "vm_table_sample.csv"
    if table.exists():
        with table.open(newline="") as lines:
            for row in csv.DictReader(lines):
                sizes[int(row["vm"])] = (int(row["vm_virtual_core_count_bucket"]), int(row["vm_memory_gb_bucket"]))
    columns = _columns(files, ["vm", "t", "cpu_avg", "cpu_max"])
    length = int(columns["t"].max()) // BUCKET_S + 1
    traces = []
    for vm, rows in _groups(columns["vm"]):
        index = columns["t"][rows] // BUCKET_S
        average = columns["cpu_avg"][rows].astype(np.float64).clip(0, 100)
        if length < WEEK or len(index) < (1 - MAX_MISSING) * length:
            continue
        cores, memory_gb = sizes.get(vm, (4, 8))
        share = np.full(length, np.nan)
        share[index] = average / 100
        made_up = np.random.default_rng([2019, vm])  # fixed per VM: part of the data set, as it were
        levels = _from_cpu(np.interp(np.arange(length), index, average / 100), cores, memory_gb * GIB, made_up)
        levels[:, np.isnan(share)] = np.nan
        ratio = np.median(np.log(np.maximum(columns["cpu_max"][rows], 0.1) / np.maximum(average, 0.1)))
        traces.append(
            _Trace(
                name=f"azure{vm}",
                source="azure2019_vms (memory, disk, network synthetic)",
                vcpus_max=cores,
                memory_max_bytes=memory_gb * GIB,
                start_s=MONDAY_S,
                levels=levels,
                noise_sigma=float(np.clip(ratio / 2.2, 0.1, 0.6)),  # the largest of 60 correlated draws lies about 2.2 sigma up
            )
        )
    return traces


def _columns(files: Sequence[Path], names: list[str] | None, filters: list[tuple[str, str, list[int]]] | None = None) -> dict[str, Any]:
    """Columns as NumPy arrays, rows sorted by vm and t. Raises ConfigError naming the file."""
    tables = []
    for file in files:
        try:
            tables.append(pq.read_table(file, columns=names, filters=filters))
        except (OSError, pa.ArrowInvalid) as error:
            raise ConfigError(f"trace {file}: {error}") from error
    table = pa.concat_tables(tables)
    columns: dict[str, Any] = {name: table.column(name).to_numpy() for name in table.column_names}
    vm, t = columns["vm"].astype(np.int64), columns["t"].astype(np.int64)
    key = vm * 2**40 + t
    if (np.diff(key) < 0).any():
        order = np.argsort(key, kind="stable")
        columns = {name: values[order] for name, values in columns.items()}
    columns["t"] = columns["t"].astype(np.int64)
    return columns


def _groups(vm: NDArray[Any]) -> list[tuple[int, slice]]:
    """(vm, its rows) of a sorted column."""
    edges = np.concatenate([[0], np.flatnonzero(np.diff(vm)) + 1, [len(vm)]])
    return [(int(vm[a]), slice(int(a), int(b))) for a, b in itertools.pairwise(edges) if b > a]
