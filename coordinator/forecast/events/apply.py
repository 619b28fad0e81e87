"""Lays the lift of scheduled events on a forecast that knows none. Pure.

Per step the distribution moves by the lift and widens by its uncertainty (deviations from the median add in quadrature). The peak within
steps 0..s is the larger of the peak without events and that of the event's buckets alone: n such buckets peak as the first n steps do,
plus the largest lift among them. Invariant: quantiles stay monotone in level, the peak's in step too, all within [0, capacity], no peak
below the mean of its bucket.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np

from coordinator.forecast.events.effects import Lift
from coordinator.model import F64, LEVELS, ForecastBlock

_MEDIAN = LEVELS.index(0.5)
_NORMAL: F64 = np.array([NormalDist().inv_cdf(level) for level in LEVELS])


def with_events(base: ForecastBlock, lift: Lift, capacity: F64) -> ForecastBlock:
    """The forecast with its events. capacity float64[v, r], NaN = unlimited. Raises ValueError where the issue times differ."""
    if lift.issued_s != base.issued_s:
        raise ValueError(f"lift issued_s {lift.issued_s}: allowed that of the forecast, {base.issued_s}")
    if lift.idle:
        return base
    top = np.where(np.isnan(capacity), np.inf, capacity)[..., None, None]
    quantiles = _moved(base.quantiles.astype(np.float64), lift.mean, lift.mean_stddev)
    quantiles = np.clip(quantiles, 0.0, top)
    peaks = np.clip(_peaks(base.peak_quantiles.astype(np.float64), lift), 0.0, top)
    peaks = np.maximum.accumulate(np.maximum(peaks, quantiles), axis=2)
    touched = ((lift.mean != 0.0) | (lift.mean_stddev != 0.0))[..., None]
    any_step = np.logical_or.accumulate(touched | ((lift.peak != 0.0) | (lift.peak_stddev != 0.0))[..., None], axis=2)
    mean = np.clip(base.mean + lift.mean, 0.0, top[..., 0])
    return replace(
        base,
        mean=mean.astype(np.float32),
        stddev=np.sqrt(base.stddev.astype(np.float64) ** 2 + lift.mean_stddev**2).astype(np.float32),
        quantiles=np.where(touched, quantiles, base.quantiles).astype(np.float32),
        peak_quantiles=np.where(any_step, peaks, base.peak_quantiles).astype(np.float32),
    )


def _moved(quantiles: F64, lift: F64, stddev: F64) -> F64:
    """Each quantile's distance from the median grows by the lift's own, in quadrature."""
    middle = quantiles[..., _MEDIAN : _MEDIAN + 1]
    away = np.hypot(quantiles - middle, stddev[..., None] * _NORMAL) * np.sign(_NORMAL)
    return np.asarray(middle + lift[..., None] + away)


def _peaks(peaks: F64, lift: Lift) -> F64:
    """Cumulative peak quantiles with events; see the module's words."""
    under = lift.active[:, None, :] | (lift.peak != 0.0)
    covered = np.cumsum(under, axis=2)
    steps = peaks.shape[2]
    out = np.empty_like(peaks)
    highest = np.full(lift.peak.shape[:2], -np.inf)
    doubt = np.zeros(lift.peak.shape[:2])
    for step in range(steps):
        higher = under[..., step] & (lift.peak[..., step] > highest)
        highest = np.where(higher, lift.peak[..., step], highest)
        doubt = np.where(higher, lift.peak_stddev[..., step], doubt)
        alone = np.take_along_axis(peaks, np.maximum(covered[..., step] - 1, 0)[..., None, None], axis=2)[..., 0, :]
        during = _moved(alone, np.where(np.isfinite(highest), highest, 0.0), doubt)
        whole = (covered[..., step] == step + 1)[..., None]  # no bucket without the event: what was foretold without it is void
        some = (covered[..., step] > 0)[..., None]
        out[..., step, :] = np.where(whole, during, np.where(some, np.maximum(peaks[..., step, :], during), peaks[..., step, :]))
    return np.maximum.accumulate(out, axis=2)
