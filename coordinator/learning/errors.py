"""Forecast against actual: pinball loss by mode, resource and model, beside a Naive forecast, and a ring of recent pairs per VM.

Pinball loss at level q of forecast f and actual y: max(q (y - f), (q - 1)(y - f)); its mean over all levels approximates the CRPS / 2
(Gneiting and Raftery, JASA 2007). Naive says the last value, with the normal quantiles of a random walk: stddev of the one-step changes
times the root of the steps ahead. Both are scored on the same pairs only. Loss and mean demand share a unit, so their ratio has none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.learning.accuracy import BucketLoss, ForecastAccuracy
from coordinator.learning.scoring import COUNT, DEMAND, NAIVE, PINBALL
from coordinator.model import F32, F64, N_RESOURCES, BucketBlock, ForecastBlock
from shared.model import Mode

RING: Final = 72  # six hours of pairs per VM: about 170 bytes a bucket and VM
CHANGE_WEIGHT: Final = 0.05  # of the newest squared change in Naive's variance: a memory of about 20 buckets


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What was said of one bucket one step ahead, and what came. Arrays [r]."""

    start_s: int
    mean: F32
    q10: F32
    q90: F32
    actual: F32


@dataclass(frozen=True, kw_only=True)
class ErrorTotals:
    """Sums over scored pairs, [r]; divide by `count`."""

    pinball: F64
    naive: F64
    demand: F64
    count: F64

    def relative(self) -> tuple[float | None, float | None]:
        """(ours, Naive): mean pinball over mean demand, averaged over the resources that had demand. None = nothing scored."""
        known = (self.count > 0) & (self.demand > 0)
        if not known.any():
            return None, None
        return float((self.pinball[known] / self.demand[known]).mean()), float((self.naive[known] / self.demand[known]).mean())


@dataclass
class ForecastErrors:
    """Give it every issued forecast and every closed bucket, in time order. `accuracy` holds the sums by VM, client, model and horizon."""

    accuracy: ForecastAccuracy = field(default_factory=ForecastAccuracy)
    newest: deque[ForecastBlock] = field(default_factory=lambda: deque(maxlen=1))  # awaits the bucket it speaks of first
    ring: deque[tuple[int, dict[str, int], tuple[F32, F32, F32, F32]]] = field(default_factory=lambda: deque(maxlen=RING))
    rows: dict[str, int] = field(default_factory=dict)
    last: F64 = field(default_factory=lambda: np.zeros((0, N_RESOURCES)))
    variance: F64 = field(default_factory=lambda: np.zeros((0, N_RESOURCES)))

    def issue(self, forecast: ForecastBlock) -> None:
        """Remember a forecast and what Naive says at this moment. A second one of the same issue time replaces the first."""
        at = np.array([self.rows.get(v, -1) for v in forecast.vm_ids], np.int64)
        self.accuracy.issue(forecast, _take(self.last, at), np.sqrt(_take(self.variance, at)))
        self.newest.append(forecast)

    def score(
        self,
        bucket: BucketBlock,
        modes: Mapping[str, Mode],
        clients: Mapping[str, str] | None = None,
        apps: Mapping[str, str] | None = None,
    ) -> BucketLoss:
        """Score every open forecast of this bucket. `modes`: host -> mode; VMs of unknown hosts are scored under OFF.

        `clients`, `apps`: vm -> client, application, for the sums by them.
        """
        place = {vm_id: i for i, vm_id in enumerate(bucket.vm_ids)}
        loss = self.accuracy.score(bucket, modes, clients, apps)
        if self.newest and self.newest[-1].issued_s == bucket.start_s:
            self._remember(self.newest.pop(), bucket, place)
        self._learn_naive(bucket, place)
        return loss

    def totals(self, mode: Mode) -> ErrorTotals:
        """Everything scored so far on hosts in this mode."""
        sums = self.accuracy.mode_sums(mode)
        return ErrorTotals(pinball=sums[:, PINBALL], naive=sums[:, NAIVE], demand=sums[:, DEMAND], count=sums[:, COUNT])

    @property
    def by_model(self) -> dict[str, F64]:
        """Leading model -> [2, r]: sum of pinball losses so far, pairs."""
        return {name: sums[:, [PINBALL, COUNT]].T.copy() for name, sums in self.accuracy.model_sums().items()}

    def pinball_ratio(self) -> F64:
        """Pinball loss over Naive's so far, all modes together, [r]; NaN = nothing scored."""
        return self.accuracy.fleet("total").to_naive

    def coverage(self) -> F64:
        """Share of actuals inside the one-step 10-90 % band so far, [r]; NaN = nothing scored."""
        one_step: F64 = self.accuracy.by_horizon("total").coverage_80[0]
        return one_step

    def pairs(self, vm_id: str) -> list[Pair]:
        """Recent one-step pairs of one VM, oldest first."""
        found = []
        for start_s, place, (mean, q10, q90, actual) in self.ring:
            row = place.get(vm_id)
            if row is not None:
                found.append(Pair(start_s=start_s, mean=mean[row], q10=q10[row], q90=q90[row], actual=actual[row]))
        return found

    def _remember(self, forecast: ForecastBlock, bucket: BucketBlock, bucket_place: dict[str, int]) -> None:
        low, high = (int(np.argmin(np.abs(np.array(forecast.levels) - q))) for q in (0.1, 0.9))
        actual = _take(bucket.mean, np.array([bucket_place.get(v, -1) for v in forecast.vm_ids], np.int64))
        said = (forecast.mean[:, :, 0], forecast.quantiles[:, :, 0, low], forecast.quantiles[:, :, 0, high], actual)
        place = {v: i for i, v in enumerate(forecast.vm_ids)}
        mean, q10, q90, came = (values.astype(np.float32) for values in said)
        self.ring.append((bucket.start_s, place, (mean, q10, q90, came)))

    def _learn_naive(self, bucket: BucketBlock, place: dict[str, int]) -> None:
        """Newest value and variance of one-step changes; a missing value keeps the last one."""
        at = np.array([self.rows.get(v, -1) for v in bucket.vm_ids], np.int64)
        before, variance = _take(self.last, at), _take(self.variance, at)
        squared = (bucket.mean - before) ** 2
        mixed = np.where(np.isnan(variance), squared, (1.0 - CHANGE_WEIGHT) * variance + CHANGE_WEIGHT * squared)
        self.variance = np.where(np.isnan(squared), variance, mixed)
        self.last = np.where(np.isnan(bucket.mean), before, bucket.mean)
        self.rows = place


def pinball(quantiles: F64, actual: F64, levels: F64) -> F64:
    """Mean loss over levels: quantiles [..., q], actual [...] -> [...]; NaN where anything is unknown."""
    miss = actual[..., None] - quantiles
    result: F64 = np.maximum(levels * miss, (levels - 1.0) * miss).mean(axis=-1)
    return result


def _take(values: F64, at: NDArray[np.int64]) -> F64:
    """Rows of `values`, NaN where `at` is -1."""
    found: F64 = np.full((len(at), N_RESOURCES), np.nan)
    known = at >= 0
    found[known] = values[at[known]]
    return found
