"""Samples to minutes of what service objectives are about: CPU ready, memory pressure, unmet demand, dropped packets. Columnar and pure.

A minute counts by the mean of its samples, weighed by their periods, not by the worst of them: readings are differences of counters, so
their mean over a minute is the minute's own reading, whatever the sampling period is just now (agents double it on a starved host, and a
worst-of-twelve would then mean another thing). A sample belongs to the minute that holds its `wall_ns`, as it does to its bucket.
A minute of which less than half was seen is unknown: it is neither good nor bad.

Values, all in permille, of one sample:
ready        run delay per vCPU and wall time
memory_pressure  PSI memory some; where the guest has none: all of the time where it swaps more than cold pages, else nothing
unmet_demand     CPU: wall time held back by the quota; memory, disk, network: (demand - use) / demand where a limit held; the largest
network_drops    all of the time where packets of the guest were dropped at a ceiling of ours in either direction, else nothing

Sums are whole numbers (tenths of a permille x tenths of a second), so the order in which samples come changes nothing.
The names are those of coordinator/learning/objectives.py (a test holds the two together).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordinator.demand.censoring import SWAP_BYTES_PER_S, Demand
from coordinator.model import F64
from shared.units import BUCKET_S, CPU

NAMES: Final = ("ready", "memory_pressure", "unmet_demand", "network_drops")
MINUTE_S: Final = 60
MINUTES: Final = BUCKET_S // MINUTE_S  # of a bucket
TENTHS: Final = 10  # of a permille, and of a second
MOST_PERMILLE: Final = 1000.0  # a share of the time cannot pass all of it
KNOWN_TENTHS: Final = MINUTE_S * TENTHS // 2  # half a minute
FULL_TENTHS: Final = 100_000.0  # x 10,000 tenths of a permille fit an int32; only who sends hours of samples of a minute gets so far


@dataclass(frozen=True, kw_only=True)
class MinuteBlock:
    """The minutes of one closed bucket. `sums` and `weights` int32[v, 5, 4] (minute, metric); `samples` int64[v] in all of them."""

    start_s: int
    vm_ids: tuple[str, ...]
    sums: NDArray[np.int32]
    weights: NDArray[np.int32]
    samples: NDArray[np.int64]

    def known(self) -> NDArray[np.bool_]:
        """Minutes of which enough was seen, [v, 5, 4]."""
        known: NDArray[np.bool_] = self.weights >= KNOWN_TENTHS
        return known

    def bad(self, thresholds: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Known minutes whose mean is above `thresholds` (tenths of a permille, [v, 4]; negative = no objective), [v, 5, 4]."""
        limit = thresholds[:, None, :].astype(np.int64)
        bad: NDArray[np.bool_] = self.known() & (limit >= 0) & (self.sums > limit * self.weights)
        return bad


class MinuteSums:
    """Accumulator of one bucket; rows are the caller's."""

    def __init__(self) -> None:
        self._sums: NDArray[np.int32] = np.zeros((0, MINUTES, len(NAMES)), np.int32)
        self._weights: NDArray[np.int32] = np.zeros((0, MINUTES, len(NAMES)), np.int32)

    def add(self, count: int, rows: NDArray[np.int64], minutes: NDArray[np.int64], seconds: F64, values: F64) -> None:
        """Samples of rows [m] out of `count` so far, in minutes [m] of the bucket, of `seconds` [m] each; `values` [m, 4], NaN unknown."""
        if count > len(self._sums):
            empty = np.zeros((count - len(self._sums), MINUTES, len(NAMES)), np.int32)
            self._sums = np.concatenate([self._sums, empty])
            self._weights = np.concatenate([self._weights, empty])
        place = rows * MINUTES + minutes
        weight = np.clip(np.rint(seconds * TENTHS), 1, MINUTE_S * TENTHS)
        for metric in range(len(NAMES)):
            known = ~np.isnan(values[:, metric])
            # a trace is still something: what is above nothing must stay above nothing
            tenths = np.ceil(values[known, metric] * TENTHS - 1e-6)
            # whole numbers below 2**53: exact in the bincount
            value = np.bincount(place[known], weight[known] * tenths, count * MINUTES).reshape(count, MINUTES)
            seen = np.bincount(place[known], weight[known], count * MINUTES).reshape(count, MINUTES)
            self._sums[:count, :, metric], self._weights[:count, :, metric] = _bounded(
                self._sums[:count, :, metric] + value, self._weights[:count, :, metric] + seen
            )

    def block(self, start_s: int, vm_ids: tuple[str, ...], rows_of: list[list[int]], samples: NDArray[np.int64]) -> MinuteBlock:
        """The bucket's minutes, one row a VM, which is the sum of its rows (it may have been on several hosts)."""
        first = np.array([rows[0] for rows in rows_of], np.int64)
        sums, weights = self._sums[first], self._weights[first]
        for i, rows in enumerate(rows_of):
            if len(rows) > 1:
                both = (each[rows].sum(axis=0, dtype=np.float64) for each in (self._sums, self._weights))
                sums[i], weights[i] = _bounded(*both)
        return MinuteBlock(start_s=start_s, vm_ids=vm_ids, sums=sums, weights=weights, samples=samples)


def _bounded(sums: NDArray[Any], weights: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The same means with weights of at most FULL_TENTHS."""
    scale = np.minimum(1.0, FULL_TENTHS / np.fmax(weights, 1.0))
    return (sums * scale).astype(np.int32), (weights * scale).astype(np.int32)


def values_of(columns: dict[str, F64], demand: Demand) -> F64:
    """float64[m, 4] permille of each sample, NaN unknown; `columns` and `demand` as coordinator.demand.censoring gives them."""
    with np.errstate(invalid="ignore", divide="ignore"):
        values = (_ready(columns), _pressure(columns), _unmet(columns, demand), _drops(columns))
    stacked: F64 = np.clip(np.stack(values, axis=1), 0.0, MOST_PERMILLE)
    return stacked


def _ready(columns: dict[str, F64]) -> F64:
    return columns["cpu_ready_permille"] / np.fmax(columns["vcpus"], 1.0)


def _pressure(columns: dict[str, F64]) -> F64:
    swapped = columns["memory_swap_bytes_per_s"]
    by_swap = np.where(np.isnan(swapped), np.nan, np.where(swapped > SWAP_BYTES_PER_S, MOST_PERMILLE, 0.0))
    stalled = columns["psi_memory_some_permille"]
    return np.where(np.isnan(stalled), by_swap, stalled)


def _unmet(columns: dict[str, F64], demand: Demand) -> F64:
    unlimited = (columns["cpu_quota_millicores"] < 0) & ~np.isnan(columns["cpu_used_millicores"])
    held = np.where(np.isnan(columns["cpu_throttled_permille"]) & unlimited, 0.0, columns["cpu_throttled_permille"])
    missing = 1000.0 * (demand.mean - demand.usage) / np.where(demand.mean > 0, demand.mean, np.nan)
    others = np.where(demand.censored, np.nan_to_num(missing), 0.0)
    others[:, CPU] = 0.0
    # without a reading of its CPU nobody can say that a VM got what it wanted
    return np.where(np.isnan(held), np.nan, np.fmax(held, others.max(axis=1)))


def _drops(columns: dict[str, F64]) -> F64:
    dropped = np.fmax(columns["net_rx_dropped_per_s"], columns["net_tx_dropped_per_s"])
    return np.where(dropped > 0, MOST_PERMILLE, dropped)
