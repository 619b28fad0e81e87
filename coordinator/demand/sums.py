"""Sums over the samples of one bucket, and what they come to: mean, peak, usage, censored share, limit. Columnar and pure.

Every value is weighted by its sample's seconds; what is unknown weighs nothing, so it stays NaN and never becomes 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.demand.censoring import Demand
from coordinator.demand.tails import Tails
from coordinator.model import F64, N_RESOURCES
from shared.units import MEMORY

# Planes, all [row, r]: weighted sums and their weights; HELD = demand of the blind samples, BLIND its weight; the largest demand.
_MEAN, _USAGE, _CENSORED, _LIMIT, _WEIGHT, _LIMIT_WEIGHT, _HELD, _BLIND, _PEAK = range(9)
_PLANES: Final = 9
_RATES: Final = np.array([r for r in range(N_RESOURCES) if r != MEMORY])


class Totals(NamedTuple):
    """What a bucket comes to, float64[v, r] each, as in coordinator.model.BucketBlock."""

    mean: F64
    peak: F64
    usage: F64
    censored: F64
    allocation: F64


class BucketSums:
    """Accumulator of one bucket; rows are the caller's."""

    def __init__(self) -> None:
        self._planes: F64 = np.zeros((_PLANES, 0, N_RESOURCES))

    def add(self, count: int, rows: NDArray[np.int64], seconds: F64, demand: Demand) -> None:
        """Samples `demand` [m, r] of `seconds` [m] each, of rows [m] out of `count` so far."""
        if count > self._planes.shape[1]:
            empty = np.zeros((_PLANES, count - self._planes.shape[1], N_RESOURCES))
            self._planes = np.concatenate([self._planes, empty], axis=1)
        known = ~np.isnan(demand.mean)
        limited = ~np.isnan(demand.limit)
        weight = np.where(known, seconds[:, None], 0.0)
        limit_weight = np.where(limited, seconds[:, None], 0.0)
        mean = np.where(known, demand.mean, 0.0)
        for plane, values in (
            (_MEAN, mean * weight),
            (_USAGE, np.where(known, demand.usage, 0.0) * weight),
            (_CENSORED, demand.censored * weight),
            (_LIMIT, np.where(limited, demand.limit, 0.0) * limit_weight),
            (_WEIGHT, weight),
            (_LIMIT_WEIGHT, limit_weight),
            (_HELD, np.where(demand.blind, mean, 0.0) * weight),
            (_BLIND, demand.blind * weight),
        ):
            np.add.at(self._planes[plane], rows, values)
        np.maximum.at(self._planes[_PEAK], rows, np.where(known, demand.peak, 0.0))

    def of(self, rows: NDArray[np.int64]) -> BucketSums:
        """The sums of these rows, in this order."""
        out = BucketSums()
        out._planes = self._planes[:, rows]
        return out

    def join(self, row: int, others: BucketSums, covered_s: float) -> None:
        """Make row `row` the sum of all rows of `others`: one VM on several hosts, which together cover `covered_s` seconds.

        A VM runs on one host at a time, so what it used in all is spread over that time; memory is a level and is averaged.
        """
        planes = self._planes
        planes[:_PEAK, row] = others._planes[:_PEAK].sum(axis=1)
        planes[_PEAK, row] = others._planes[_PEAK].max(axis=0)
        planes[_WEIGHT, row, _RATES] = np.minimum(planes[_WEIGHT, row, _RATES], covered_s)
        planes[_BLIND, row] = np.minimum(planes[_BLIND, row], planes[_WEIGHT, row])

    def totals(self, vm_ids: Sequence[str], tails: Tails, learn: bool) -> Totals:
        """What the bucket comes to, rows being `vm_ids`; `tails` fills in what was blind and, with `learn`, takes the bucket in."""
        planes = self._planes
        weight = np.where(planes[_WEIGHT] > 0, planes[_WEIGHT], np.nan)
        limit_weight = np.where(planes[_LIMIT_WEIGHT] > 0, planes[_LIMIT_WEIGHT], np.nan)
        blind_weight = np.where(planes[_BLIND] > 0, planes[_BLIND], np.nan)
        free_weight = np.where(planes[_WEIGHT] > planes[_BLIND], planes[_WEIGHT] - planes[_BLIND], np.nan)
        mean, held = planes[_MEAN] / weight, planes[_HELD] / blind_weight
        blind = np.minimum(np.nan_to_num(planes[_BLIND] / weight), 1.0)
        excess = tails.excess(vm_ids, np.nan_to_num(held), blind, (planes[_MEAN] - planes[_HELD]) / free_weight)
        if learn and vm_ids:
            tails.learn(vm_ids, mean, blind)
        peak = np.where(planes[_WEIGHT] > 0, np.fmax(planes[_PEAK], mean), np.nan)
        return Totals(
            mean=mean + blind * excess,
            peak=np.where(blind > 0, np.fmax(peak, np.fmax(held, mean) + excess), peak),
            usage=planes[_USAGE] / weight,
            censored=np.minimum(planes[_CENSORED] / weight, 1.0),
            allocation=planes[_LIMIT] / limit_weight,
        )
