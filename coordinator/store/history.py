"""History port on Parquet, in a folder or an object store: demand buckets, applications' signals and issued forecasts (parts.py).

Buckets: one row per (bucket, VM), a float32 column per resource and measure (`mean_cpu_millicores`, ...). Signals: one row per (bucket,
VM) that was told of, apart from demand, so that neither waits for the other. Forecasts: one row per (issue, VM, resource) with lists over
the 12 steps; of the quantiles only STORED_LEVELS are kept, which is what scoring and the pages read. Unknown is NaN, absent columns are
null. Invariants: a write that returned is durable; the same (VM, bucket) or (VM, issue) written again replaces the older row whole; beyond
`max_bytes` the oldest days go, forecasts before signals before buckets. One thread writes, any may read.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from coordinator.demand.signals import SignalBlock
from coordinator.model import F32, LEVELS, N_RESOURCES, SIGNALS, BucketBlock, ForecastBlock, HistoryBlock
from coordinator.store.objects import Root
from coordinator.store.parts import PartTable, day_of, days
from shared.errors import HostError
from shared.units import BUCKET_S, GIB, HORIZON_STEPS, RESOURCES

STORED_LEVELS: Final = (0.1, 0.5, 0.9, 0.95)
MAX_LOAD_BUCKETS: Final = 366 * 288
_LAST_DAY: Final = "9999"
_LOADED: Final = ("mean", "peak", "censored")
_MEASURES: Final = (*_LOADED, "usage", "allocation")
_KEYS: Final = ["start_s", "vm_id"]
_FORECAST_KEYS: Final = ["issued_s", "vm_id", "resource"]
_STEPS: Final = pa.list_(pa.float32(), HORIZON_STEPS)
_STEP_COLUMNS: Final = ("mean", "stddev", *(f"{kind}_q{round(level * 1000)}" for kind in ("bucket", "peak") for level in STORED_LEVELS))


@dataclass(frozen=True, kw_only=True)
class ScoredForecast:
    """One issue of one VM beside what came: float32[r, 12], NaN = not (yet) known. `actual_peak` = largest demand within steps 0..s."""

    forecast: ForecastBlock  # of this VM alone; levels are STORED_LEVELS
    actual: F32
    actual_peak: F32


class ParquetHistory:
    """See the module. `place`: a local folder or the URL of an object store (objects.py). `retention_days` and `max_bytes` bound each table
    (forecasts keep a quarter of both, signals a quarter of the bytes), `max_bytes` all of them together too.

    Raises ConfigError for a URL that names no store, HostError when disk or store refuse.
    """

    def __init__(self, place: Path | str, *, retention_days: int = 42, max_bytes: int = 8 * GIB) -> None:
        self._lock = threading.Lock()  # one writer at a time: a preload and the cycle's thread
        self._max_bytes = max_bytes
        root = Root(place)
        self.where = root.where
        try:
            objects = {name: root.table(name) for name in ("buckets", "signals", "forecasts")}
        except OSError as error:
            raise HostError(f"history folder {place}: {error}") from error
        self._buckets = PartTable(
            objects["buckets"],
            lambda table: _last_of_each(table, _KEYS, ["vm_id", "start_s"]),
            row_group_rows=1 << 20,
            retention_days=retention_days,
            max_bytes=max_bytes,
            dictionary=["vm_id", "host_id"],
        )
        self._signals = PartTable(
            objects["signals"],
            lambda table: _last_of_each(table, _KEYS, ["vm_id", "start_s"]),
            row_group_rows=1 << 20,
            retention_days=retention_days,
            max_bytes=max_bytes // 4,
            dictionary=["vm_id"],
        )
        self._forecasts = PartTable(
            objects["forecasts"],
            lambda table: _last_of_each(table, _FORECAST_KEYS, ["vm_id", "issued_s", "resource"]),
            row_group_rows=4096,  # sorted by VM: one VM's day is 1,440 rows, so reading it touches a row group or two
            retention_days=max(1, retention_days // 4),
            max_bytes=max_bytes // 4,
            dictionary=["vm_id", "model"],
        )

    def append_buckets(self, block: BucketBlock) -> None:
        """Store one closed bucket; the same (VM, bucket) again replaces it. Raises HostError when the disk refuses."""
        _check_start(block.start_s)
        if not block.vm_ids:
            return
        arrays: dict[str, Any] = {
            "start_s": pa.array(np.full(len(block.vm_ids), block.start_s, np.int64)),
            "vm_id": pa.array(block.vm_ids, pa.string()),
            "host_id": pa.array(block.host_ids, pa.string()),
            "samples": pa.array(block.samples.astype(np.int32)),
        }
        for measure in _MEASURES:
            values = getattr(block, measure)
            arrays |= {_column(measure, r): pa.array(values[:, r].astype(np.float32)) for r in range(N_RESOURCES)}
        self._add(self._buckets, day_of(block.start_s), pa.table(arrays))
        if block.signals is not None:
            self.append_signals(SignalBlock(start_s=block.start_s, vm_ids=block.vm_ids, means=block.signals))

    def append_signals(self, block: SignalBlock) -> None:
        """Store what applications told of one bucket; a VM's row replaces an older one whole. VMs of unknown means are left out."""
        _check_start(block.start_s)
        told = np.flatnonzero(~np.isnan(block.means).all(axis=1))
        if not len(told):
            return
        arrays = {
            "start_s": pa.array(np.full(len(told), block.start_s, np.int64)),
            "vm_id": pa.array([block.vm_ids[i] for i in told], pa.string()),
            **{name: pa.array(block.means[told, k].astype(np.float32)) for k, name in enumerate(SIGNALS)},
        }
        self._add(self._signals, day_of(block.start_s), pa.table(arrays))

    def append_late(self, block: BucketBlock) -> None:
        """Store a bucket that grew, or was rebuilt from part of its samples: VM by VM the version with more samples stays."""
        _check_start(block.start_s)
        day, wanted = day_of(block.start_s), pc.field("start_s") == block.start_s
        stored: dict[str, int] = {}
        for rows in self._buckets.scan(day, day, ["vm_id", "samples"], wanted):
            stored |= dict(zip(rows.column("vm_id").to_pylist(), rows.column("samples").to_pylist(), strict=True))
        fuller = [i for i, vm_id in enumerate(block.vm_ids) if (stored.get(vm_id) or 0) <= block.samples[i]]
        if block.signals is not None:  # these are whole, however many samples came with them
            self.append_signals(SignalBlock(start_s=block.start_s, vm_ids=block.vm_ids, means=block.signals))
        self.append_buckets(replace(block.select(fuller), signals=None))

    def append_history(self, block: HistoryBlock) -> None:
        """Store many buckets at once (a preload). Buckets with no value at all are left out; host and samples are unknown."""
        _check_start(block.end_s)
        n_buckets = block.mean.shape[2]
        first_s = block.end_s - (n_buckets - 1) * BUCKET_S
        names = pa.array(block.vm_ids, pa.string())
        known: NDArray[np.bool_] = np.any(~np.isnan(block.mean) | ~np.isnan(block.peak), axis=1)
        for day, start_s, stop_s in days(first_s, block.end_s + BUCKET_S):
            low, high = (start_s - first_s) // BUCKET_S, (stop_s - first_s) // BUCKET_S
            vm, bucket = np.nonzero(known[:, low:high])
            if not len(vm):
                continue
            arrays: dict[str, Any] = {
                "start_s": pa.array(start_s + bucket.astype(np.int64) * BUCKET_S),
                "vm_id": names.take(pa.array(vm)),
                "host_id": pa.nulls(len(vm), pa.string()),
                "samples": pa.nulls(len(vm), pa.int32()),
            }
            for measure in _LOADED:
                values = getattr(block, measure)
                arrays |= {_column(measure, r): pa.array(values[vm, r, low + bucket].astype(np.float32)) for r in range(N_RESOURCES)}
            for measure in ("usage", "allocation"):
                arrays |= {_column(measure, r): pa.nulls(len(vm), pa.float32()) for r in range(N_RESOURCES)}
            self._add(self._buckets, day, pa.table(arrays), bulk=True)
        if block.signals is not None:
            self._append_told(block.signals, names, first_s)

    def load(self, vm_ids: Sequence[str], end_s: int, buckets: int) -> HistoryBlock:
        """float32[v, r, buckets] ending with bucket `end_s`; NaN where nothing is stored; capacity NaN; signals None = none were told."""
        arrays = self._arrays(vm_ids, end_s, buckets, _LOADED)
        capacity = np.full((len(vm_ids), N_RESOURCES), np.nan, np.float32)
        signals = self._told(vm_ids, end_s, buckets)
        return HistoryBlock(vm_ids=tuple(vm_ids), end_s=end_s, capacity=capacity, signals=signals, **arrays)

    def series(self, vm_id: str, end_s: int, buckets: int) -> dict[str, F32]:
        """One VM for a chart: mean, peak, censored, usage, allocation as float32[r, buckets], NaN unknown."""
        arrays = self._arrays([vm_id], end_s, buckets, _MEASURES, pc.field("vm_id") == vm_id)
        return {measure: array[0] for measure, array in arrays.items()}

    def measures(self, vm_ids: Sequence[str], end_s: int, buckets: int, names: Sequence[str]) -> dict[str, F32]:
        """Many VMs over a short time: float32[v, r, buckets] of each of mean, peak, censored, usage, allocation that is named."""
        wanted = (pc.field("start_s") > end_s - buckets * BUCKET_S) & (pc.field("start_s") <= end_s)
        return self._arrays(vm_ids, end_s, buckets, names, wanted)

    def signals(self, vm_id: str, end_s: int, buckets: int) -> F32 | None:
        """What applications told of one VM, float32[signal, buckets] ending with bucket `end_s`; None = nothing."""
        told = self._told([vm_id], end_s, buckets, pc.field("vm_id") == vm_id)
        return None if told is None else told[0]

    def vm_ids(self, since_s: int = 0) -> list[str]:
        """VMs with a bucket at or after `since_s`, sorted."""
        tables = self._buckets.scan(day_of(max(0, since_s)), _LAST_DAY, ["vm_id"], pc.field("start_s") >= since_s)
        return sorted({vm_id for table in tables for vm_id in pc.unique(table.column("vm_id")).to_pylist()})

    def newest_s(self) -> int | None:
        """Start of the newest stored bucket; None when empty."""
        return self._buckets.newest("start_s")

    def append_forecast(self, block: ForecastBlock) -> None:
        """Store an issued forecast: mean, stddev and the STORED_LEVELS of both kinds of quantiles."""
        missing = [level for level in STORED_LEVELS if level not in block.levels]
        if missing:
            raise ValueError(f"forecast levels {block.levels}: {missing} are needed")
        if not block.vm_ids:
            return
        rows = len(block.vm_ids) * N_RESOURCES
        values = [block.mean, block.stddev]
        at = [block.levels.index(level) for level in STORED_LEVELS]
        values += [kind[..., i] for kind in (block.quantiles, block.peak_quantiles) for i in at]
        arrays: dict[str, Any] = {
            "issued_s": pa.array(np.full(rows, block.issued_s, np.int64)),
            "vm_id": pa.array(block.vm_ids, pa.string()).take(pa.array(np.repeat(np.arange(len(block.vm_ids)), N_RESOURCES))),
            "resource": pa.array(np.tile(np.arange(N_RESOURCES, dtype=np.int8), len(block.vm_ids))),
            "model": pa.array(block.models, pa.string()).take(pa.array(block.model.ravel().astype(np.int32))),
            "reason": pa.array(block.reason.ravel().astype(np.int8)),
            "coverage": pa.array(block.coverage.ravel().astype(np.float32)),
        }
        for name, value in zip(_STEP_COLUMNS, values, strict=True):
            flat = pa.array(np.ascontiguousarray(value, np.float32).ravel())
            arrays[name] = pa.FixedSizeListArray.from_arrays(flat, HORIZON_STEPS)
        self._add(self._forecasts, day_of(block.issued_s), pa.table(arrays))

    def forecasts(self, vm_id: str, since_s: int) -> list[ForecastBlock]:
        """Issued forecasts of one VM from `since_s` on, oldest first; `levels` of these blocks are STORED_LEVELS."""
        columns = [*_FORECAST_KEYS, "model", "reason", "coverage", *_STEP_COLUMNS]
        wanted = (pc.field("vm_id") == vm_id) & (pc.field("issued_s") >= since_s)
        issues: dict[int, ForecastBlock] = {}
        for table in self._forecasts.scan(day_of(max(0, since_s)), _LAST_DAY, columns, wanted):
            issued = _numpy(table, "issued_s")
            for at in np.unique(issued):
                # a replaced issue comes again from a later part, and the later one counts
                issues[int(at)] = _forecast_of(table.filter(pa.array(issued == at)), vm_id, int(at))
        return [issues[at] for at in sorted(issues)]

    def issued_peaks(self, vm_ids: Sequence[str], end_s: int, buckets: int, step: int) -> F32:
        """float32[v, r, buckets] ending with bucket `end_s`: the 95 % quantile of the peak within steps 0..step, as it was forecast at each
        bucket's start; NaN where no forecast is stored.
        """
        first_s, name = end_s - (buckets - 1) * BUCKET_S, "peak_q950"
        found = np.full((len(vm_ids), N_RESOURCES, buckets), np.nan, np.float32)
        index = {vm_id: i for i, vm_id in enumerate(vm_ids)}
        wanted = (pc.field("issued_s") >= first_s) & (pc.field("issued_s") <= end_s)
        for table in self._forecasts.scan(day_of(max(0, first_s)), day_of(end_s), [*_FORECAST_KEYS, name], wanted):
            for batch in table.to_batches():
                names = batch.column("vm_id")
                place = np.array([index.get(each, -1) for each in names.dictionary.to_pylist()], np.int64)
                vm = place[names.indices.to_numpy(zero_copy_only=False)] if batch.num_rows else np.zeros(0, np.int64)
                keep = vm >= 0
                bucket = (batch.column("issued_s").to_numpy() - first_s) // BUCKET_S
                values = batch.column(name).flatten().to_numpy(zero_copy_only=False).reshape(-1, HORIZON_STEPS)[:, step]
                found[vm[keep], batch.column("resource").to_numpy()[keep], bucket[keep]] = values[keep]
        return found

    def scored(self, vm_id: str, since_s: int) -> list[ScoredForecast]:
        """Every stored forecast of one VM from `since_s` on, oldest first, with what came of each step (late samples included)."""
        issued = self.forecasts(vm_id, since_s)
        if not issued:
            return []
        first_s, last_s = issued[0].issued_s, issued[-1].issued_s + (HORIZON_STEPS - 1) * BUCKET_S
        came = self._arrays([vm_id], last_s, (last_s - first_s) // BUCKET_S + 1, ("mean", "peak"), pc.field("vm_id") == vm_id)
        found = []
        for forecast in issued:
            at = (forecast.issued_s - first_s) // BUCKET_S
            mean, peak = (came[name][0, :, at : at + HORIZON_STEPS] for name in ("mean", "peak"))
            # the largest so far is unknown from the first missing bucket on
            found.append(ScoredForecast(forecast=forecast, actual=mean.copy(), actual_peak=np.maximum.accumulate(peak, axis=1)))
        return found

    @property
    def total_bytes(self) -> int:
        """Bytes on disk, all tables."""
        return self._buckets.total_bytes + self._signals.total_bytes + self._forecasts.total_bytes

    @property
    def days_dropped(self) -> int:
        """Days given up to retention or the disk budget since the start."""
        return self._buckets.days_dropped + self._signals.days_dropped + self._forecasts.days_dropped

    @property
    def damaged(self) -> dict[str, str]:
        """Parts that could not be read and were set aside since the start: name -> what was wrong."""
        return self._buckets.damaged | self._signals.damaged | self._forecasts.damaged

    @property
    def trouble(self) -> str:
        """Why old parts could not be merged or dropped the last time; "" = nothing is due."""
        return self._buckets.trouble or self._signals.trouble or self._forecasts.trouble

    def _add(self, table: PartTable, day: str, rows: Any, *, bulk: bool = False) -> None:
        """One append, and the common budget after it. What cannot be dropped now is dropped after a later append."""
        with self._lock:
            table.append(day, rows, bulk=bulk)
            over = self.total_bytes - self._max_bytes
            for other in (self._forecasts, self._signals, self._buckets):
                while over > 0 and (freed := other.drop_oldest()):
                    over -= freed

    def _append_told(self, signals: F32, names: Any, first_s: int) -> None:
        """The signals [v, signal, b] of a preload."""
        known: NDArray[np.bool_] = np.any(~np.isnan(signals), axis=1)
        for day, start_s, stop_s in days(first_s, first_s + signals.shape[2] * BUCKET_S):
            low, high = (start_s - first_s) // BUCKET_S, (stop_s - first_s) // BUCKET_S
            vm, bucket = np.nonzero(known[:, low:high])
            if not len(vm):
                continue
            arrays = {"start_s": pa.array(start_s + bucket.astype(np.int64) * BUCKET_S), "vm_id": names.take(pa.array(vm))}
            arrays |= {name: pa.array(signals[vm, k, low + bucket].astype(np.float32)) for k, name in enumerate(SIGNALS)}
            self._add(self._signals, day, pa.table(arrays), bulk=True)

    def _arrays(self, vm_ids: Sequence[str], end_s: int, buckets: int, measures: Sequence[str], filters: Any = None) -> dict[str, F32]:
        """float32[v, r, buckets] of each measure."""
        _check_start(end_s)
        if not 1 <= buckets <= MAX_LOAD_BUCKETS:
            raise ValueError(f"buckets {buckets}: allowed 1 to {MAX_LOAD_BUCKETS}")
        first_s = end_s - (buckets - 1) * BUCKET_S
        index = {vm_id: i for i, vm_id in enumerate(vm_ids)}
        arrays = {measure: np.full((len(vm_ids), N_RESOURCES, buckets), np.nan, np.float32) for measure in measures}
        columns = [*_KEYS, *(_column(measure, r) for measure in measures for r in range(N_RESOURCES))]
        for table in self._buckets.scan(day_of(max(0, first_s)), day_of(end_s), columns, filters):
            for batch in table.to_batches():
                _scatter(batch, index, first_s, arrays)
        return arrays

    def _told(self, vm_ids: Sequence[str], end_s: int, buckets: int, filters: Any = None) -> F32 | None:
        """float32[v, signal, buckets], made when the first row of these VMs is met."""
        first_s = end_s - (buckets - 1) * BUCKET_S
        index = {vm_id: i for i, vm_id in enumerate(vm_ids)}
        told: F32 | None = None
        for table in self._signals.scan(day_of(max(0, first_s)), day_of(end_s), [*_KEYS, *SIGNALS], filters):
            for batch in table.to_batches():
                vm, bucket, keep = _places(batch, index, first_s, buckets)
                if not keep.any():
                    continue
                if told is None:
                    told = np.full((len(vm_ids), len(SIGNALS), buckets), np.nan, np.float32)
                for k, name in enumerate(SIGNALS):
                    told[vm[keep], k, bucket[keep]] = batch.column(name).to_numpy(zero_copy_only=False)[keep]
        return told


def _scatter(batch: Any, index: dict[str, int], first_s: int, arrays: dict[str, F32]) -> None:
    """Put a batch's rows in their places; rows of other VMs or times are left out."""
    vm, bucket, keep = _places(batch, index, first_s, next(iter(arrays.values())).shape[2])
    everything = bool(keep.all())
    vm, bucket = (vm, bucket) if everything else (vm[keep], bucket[keep])
    for measure, array in arrays.items():
        for r in range(N_RESOURCES):
            values = batch.column(_column(measure, r)).to_numpy(zero_copy_only=False)
            array[vm, r, bucket] = values if everything else values[keep]


def _places(
    batch: Any, index: dict[str, int], first_s: int, buckets: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Of each row: its VM's place, its bucket's, and whether both are wanted."""
    names = batch.column("vm_id")
    place = np.array([index.get(name, -1) for name in names.dictionary.to_pylist()], np.int64)
    vm = place[names.indices.to_numpy(zero_copy_only=False)]
    bucket = (batch.column("start_s").to_numpy() - first_s) // BUCKET_S
    return vm, bucket, (vm >= 0) & (bucket >= 0) & (bucket < buckets)


def _forecast_of(rows: Any, vm_id: str, issued_s: int) -> ForecastBlock:
    order = _numpy(rows, "resource").astype(np.int64)
    names = rows.column("model").to_pylist()
    models = tuple(sorted(set(names)))

    def steps(name: str) -> F32:
        out = np.full((1, N_RESOURCES, HORIZON_STEPS), np.nan, np.float32)
        flat = rows.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        out[0, order] = flat.reshape(-1, HORIZON_STEPS)
        return out

    def scalars(values: NDArray[Any], missing: float) -> NDArray[Any]:
        out = np.full((1, N_RESOURCES), missing, values.dtype)
        out[0, order] = values
        return out

    levels = [f"q{round(level * 1000)}" for level in STORED_LEVELS]
    return ForecastBlock(
        issued_s=issued_s,
        vm_ids=(vm_id,),
        mean=steps("mean"),
        stddev=steps("stddev"),
        quantiles=np.stack([steps(f"bucket_{level}") for level in levels], axis=-1),
        peak_quantiles=np.stack([steps(f"peak_{level}") for level in levels], axis=-1),
        model=scalars(np.array([models.index(name) for name in names], np.int8), 0),
        models=models,
        reason=scalars(_numpy(rows, "reason").astype(np.int8), 0),
        coverage=scalars(_numpy(rows, "coverage").astype(np.float32), np.nan),
        levels=STORED_LEVELS,
    )


def _last_of_each(table: Any, keys: list[str], order: list[str]) -> Any:
    """Rows sorted by `order`; of rows with equal keys the last one stays."""
    numbered = table.append_column("_row", pa.array(np.arange(table.num_rows)))
    kept = numbered.group_by(keys).aggregate([("_row", "max")])
    kept = kept.sort_by([(key, "ascending") for key in order])
    return table.take(kept.column("_row_max"))


def _numpy(table: Any, name: str) -> NDArray[Any]:
    array: NDArray[Any] = table.column(name).to_numpy()
    return array


def _column(measure: str, resource: int) -> str:
    return f"{measure}_{RESOURCES[resource]}"


def _check_start(start_s: int) -> None:
    if start_s % BUCKET_S or not 0 <= start_s < 2**33:
        raise ValueError(f"bucket start {start_s}: allowed are multiples of {BUCKET_S} from 0 to 2**33 s")


assert set(STORED_LEVELS) <= set(LEVELS)
