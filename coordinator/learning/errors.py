"""Forecast against actual: pinball loss by mode, resource and model, beside a Naive forecast, and a ring of recent pairs per VM.

Pinball loss at level q of forecast f and actual y: max(q (y - f), (q - 1)(y - f)); its mean over all levels approximates the CRPS / 2
(Gneiting and Raftery, JASA 2007). Naive says the last value, with the normal quantiles of a random walk: stddev of the one-step changes
times the root of the steps ahead. Both are scored on the same pairs only. Loss and mean demand share a unit, so their ratio has none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F32, F64, I8, N_RESOURCES, BucketBlock, ForecastBlock
from shared.model import Mode
from shared.units import BUCKET_S, HORIZON_STEPS

MODES: Final = tuple(Mode)
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


@dataclass(frozen=True, kw_only=True)
class _Issued:
    forecast: ForecastBlock
    last: F64
    spread: F64


@dataclass
class ForecastErrors:
    """Give it every issued forecast and every closed bucket, in time order."""

    issued: deque[_Issued] = field(default_factory=lambda: deque(maxlen=HORIZON_STEPS))
    ring: deque[tuple[int, dict[str, int], tuple[F32, F32, F32, F32]]] = field(default_factory=lambda: deque(maxlen=RING))
    by_mode: F64 = field(default_factory=lambda: np.zeros((4, len(MODES), N_RESOURCES)))  # pinball, naive, demand, count
    by_model: dict[str, F64] = field(default_factory=dict)  # model -> [2, r]: pinball, count
    inside: F64 = field(default_factory=lambda: np.zeros((2, N_RESOURCES)))  # one step ahead: inside the 80 % band, scored
    rows: dict[str, int] = field(default_factory=dict)
    last: F64 = field(default_factory=lambda: np.zeros((0, N_RESOURCES)))
    variance: F64 = field(default_factory=lambda: np.zeros((0, N_RESOURCES)))

    def issue(self, forecast: ForecastBlock) -> None:
        """Remember a forecast and what Naive says at this moment. A second one of the same issue time replaces the first."""
        if self.issued and self.issued[-1].forecast.issued_s == forecast.issued_s:
            self.issued.pop()
        at = np.array([self.rows.get(v, -1) for v in forecast.vm_ids], np.int64)
        last, spread = _take(self.last, at), np.sqrt(_take(self.variance, at))
        self.issued.append(_Issued(forecast=forecast, last=last, spread=spread))

    def score(self, bucket: BucketBlock, modes: Mapping[str, Mode]) -> None:
        """Score every open forecast of this bucket. `modes`: host -> mode; VMs of unknown hosts are scored under OFF."""
        place = {vm_id: i for i, vm_id in enumerate(bucket.vm_ids)}
        mode_of = np.array([MODES.index(modes.get(h, Mode.OFF)) for h in bucket.host_ids], np.int64)
        for issued in self.issued:
            step, rest = divmod(bucket.start_s - issued.forecast.issued_s, BUCKET_S)
            if rest == 0 and 0 <= step < HORIZON_STEPS:
                self._score_one(issued, step, bucket, place, mode_of)
        self._learn_naive(bucket, place)

    def totals(self, mode: Mode) -> ErrorTotals:
        """Everything scored so far on hosts in this mode."""
        pinball, naive, demand, count = self.by_mode[:, MODES.index(mode)]
        return ErrorTotals(pinball=pinball.copy(), naive=naive.copy(), demand=demand.copy(), count=count.copy())

    def pinball_ratio(self) -> F64:
        """Pinball loss over Naive's so far, all modes together, [r]; NaN = nothing scored."""
        with np.errstate(invalid="ignore", divide="ignore"):
            result: F64 = self.by_mode[0].sum(axis=0) / self.by_mode[1].sum(axis=0)
        return result

    def coverage(self) -> F64:
        """Share of actuals inside the one-step 10-90 % band so far, [r]; NaN = nothing scored."""
        with np.errstate(invalid="ignore"):
            result: F64 = self.inside[0] / self.inside[1]
        return result

    def pairs(self, vm_id: str) -> list[Pair]:
        """Recent one-step pairs of one VM, oldest first."""
        found = []
        for start_s, place, (mean, q10, q90, actual) in self.ring:
            row = place.get(vm_id)
            if row is not None:
                found.append(Pair(start_s=start_s, mean=mean[row], q10=q10[row], q90=q90[row], actual=actual[row]))
        return found

    def _score_one(self, issued: _Issued, step: int, bucket: BucketBlock, place: dict[str, int], mode_of: NDArray[np.int64]) -> None:
        forecast = issued.forecast
        at = np.array([place.get(v, -1) for v in forecast.vm_ids], np.int64)
        actual = _take(bucket.mean, at)
        levels = np.array(forecast.levels)
        ours = pinball(forecast.quantiles[:, :, step, :].astype(np.float64), actual, levels)
        z = np.array([NormalDist().inv_cdf(q) for q in forecast.levels])
        walk = issued.last[..., None] + z * (issued.spread * np.sqrt(step + 1.0))[..., None]
        naive = pinball(np.maximum(walk, 0.0), actual, levels)
        scored = np.isfinite(ours) & np.isfinite(naive)
        modes = np.where(at >= 0, mode_of[at], 0) if len(mode_of) else at
        for m in np.unique(modes):
            pick = scored & (modes == m)[:, None]
            self.by_mode[:, m] += [np.where(pick, a, 0.0).sum(axis=0) for a in (ours, naive, actual, np.ones_like(ours))]
        self._by_model(forecast.model, forecast.models, np.where(scored, ours, 0.0), scored)
        if step == 0:
            self._remember(issued, bucket.start_s, actual)

    def _by_model(self, model: I8, models: tuple[str, ...], loss: F64, scored: NDArray[np.bool_]) -> None:
        for index in np.unique(model):
            name = models[index] if 0 <= index < len(models) else "none"
            pick = scored & (model == index)
            sums = self.by_model.setdefault(name, np.zeros((2, N_RESOURCES)))
            sums += [np.where(pick, loss, 0.0).sum(axis=0), pick.sum(axis=0)]

    def _remember(self, issued: _Issued, start_s: int, actual: F64) -> None:
        forecast = issued.forecast
        low, high = (int(np.argmin(np.abs(np.array(forecast.levels) - q))) for q in (0.1, 0.9))
        q10, q90 = forecast.quantiles[:, :, 0, low], forecast.quantiles[:, :, 0, high]
        known = np.isfinite(actual) & np.isfinite(q10) & np.isfinite(q90)
        self.inside += [((actual >= q10) & (actual <= q90) & known).sum(axis=0), known.sum(axis=0)]
        place = {v: i for i, v in enumerate(forecast.vm_ids)}
        self.ring.append((start_s, place, (forecast.mean[:, :, 0].copy(), q10.copy(), q90.copy(), actual.astype(np.float32))))

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
