"""What the aggregator answers: the forecast of every group, and the part of it that sizing asks for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.aggregate.groups import KINDS, GroupKey
from coordinator.model import F32, I8, LEVELS


@dataclass(frozen=True, kw_only=True)
class AggregateForecast:
    """Forecasts of group sums issued at `issued_s`; step k (from 0) is the bucket that starts at issued_s + 300 * k. NaN = unknown.

    mean, stddev float32[g, r, 12]; quantiles float32[g, r, 12, q] of the bucket mean of the sum; peak_quantiles float32[g, r, 12, q] of
    the largest bucket mean of the sum within steps 0..s. Quantiles are monotone, not negative, and at most the members' capacities.
    """

    issued_s: int
    groups: tuple[GroupKey, ...]
    members: NDArray[np.int64]  # [g]
    known: F32  # [g, r] share of the members that have a forecast; the sums are of those alone
    mean: F32
    stddev: F32
    quantiles: F32
    peak_quantiles: F32
    reason: I8  # [g, r] NoForecast
    coverage: F32  # [g, r] realised coverage of the central 80 % band of late; NaN = not known yet
    levels: tuple[float, ...] = LEVELS


@dataclass(frozen=True, kw_only=True)
class GroupSums:
    """Mean and stddev float32[g, r, 12] of the groups of one kind, by name."""

    names: tuple[str, ...]
    mean: F32
    stddev: F32


def sums_of(forecast: AggregateForecast, kind: str) -> GroupSums:
    """What sizing asks of hosts (or clients): mean and deviation of the sum per step, correlation of the members included."""
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: allowed are {', '.join(KINDS)}")
    rows = [i for i, key in enumerate(forecast.groups) if key.kind == kind]
    return GroupSums(names=tuple(forecast.groups[i].name for i in rows), mean=forecast.mean[rows], stddev=forecast.stddev[rows])
