"""Lays the lift of scheduled events on a forecast that knows none. Pure.

Per step the distribution moves by the lift and widens by its uncertainty (deviations from the median add in quadrature). The peak within
steps 0..s is the larger of the peak without events and that of the event's buckets alone: n such buckets peak as the first n steps do,
plus the largest lift among them. Invariant: quantiles stay monotone in level, the peak's in step too, all within [0, capacity], no peak
below the mean of its bucket.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.forecast.events.effects import Lift
from coordinator.model import F32, F64, LEVELS, ForecastBlock, Outlook

_MEDIAN: Final = LEVELS.index(0.5)
_NORMAL: Final = tuple(NormalDist().inv_cdf(level) for level in LEVELS)


def with_events(base: ForecastBlock, lift: Lift, capacity: F64) -> ForecastBlock:
    """The forecast with its events. capacity float64[v, r], NaN = unlimited. Raises ValueError where the issue times differ."""
    if lift.issued_s != base.issued_s:
        raise ValueError(f"lift issued_s {lift.issued_s}: allowed that of the forecast, {base.issued_s}")
    if lift.idle:
        return base
    touched = np.zeros(lift.mean.shape[:2], dtype=np.bool_)
    for part in (lift.mean, lift.mean_stddev, lift.peak, lift.peak_stddev):
        touched |= (part != 0.0).any(axis=-1)
    top = np.where(np.isnan(capacity), np.inf, capacity)
    quantiles, peaks = np.array(base.quantiles), np.array(base.peak_quantiles)
    _lay(np.argwhere(touched), lift.mean, lift.mean_stddev, lift.peak, lift.peak_stddev, lift.active, top, quantiles, peaks)
    return replace(
        base,
        mean=np.where(lift.mean != 0.0, np.clip(base.mean + lift.mean, 0.0, top[..., None]), base.mean).astype(np.float32),
        stddev=np.sqrt(base.stddev.astype(np.float64) ** 2 + lift.mean_stddev**2).astype(np.float32),
        quantiles=quantiles,
        peak_quantiles=peaks,
    )


def outlook_with_events(base: Outlook, lift: Lift, capacity: F64) -> Outlook:
    """The outlook with its events: `lift` has as many steps for each block as buckets lie in it. Otherwise as `with_events`.

    A block's mean moves by the mean of its buckets' lifts, its peak by the highest; where an event covers a part of it alone, it peaks as
    without the event or as with it, whichever is higher.
    """
    if lift.issued_s != base.issued_s:
        raise ValueError(f"lift issued_s {lift.issued_s}: allowed that of the outlook, {base.issued_s}")
    if lift.idle:
        return base
    touched = ((lift.mean != 0.0) | (lift.peak != 0.0)).any(axis=-1)
    top = np.where(np.isnan(capacity), np.inf, capacity)
    quantiles, peaks = np.array(base.quantiles), np.array(base.peak_quantiles)
    series = np.ascontiguousarray(np.argwhere(touched))  # one layout, also of a single series: another would be compiled in a tick
    _lay_blocks(series, lift.mean, lift.mean_stddev, lift.peak, lift.peak_stddev, lift.active, top, quantiles, peaks)
    return replace(base, quantiles=quantiles, peak_quantiles=peaks)


@njit(cache=True)
def _move(before: F32, lift: float, stddev: float, top: float, out: F64) -> None:
    """Each quantile's distance from the median grows by the lift's own, in quadrature."""
    middle = before[_MEDIAN]
    for q in range(len(out)):
        away = math.hypot(before[q] - middle, stddev * _NORMAL[q])
        moved = middle + lift + (away if _NORMAL[q] > 0.0 else -away)
        out[q] = min(max(moved, 0.0), top)


@njit(cache=True)
def _lay(
    series: NDArray[np.int64], mean: F64, mean_stddev: F64, peak: F64, peak_stddev: F64, active: NDArray[np.bool_], top: F64,
    quantiles: F32, peaks: F32,
) -> None:  # fmt: skip
    """In place, for the (v, r) of `series`; see the module's words."""
    steps, levels = quantiles.shape[2], quantiles.shape[3]
    moved = np.empty(levels)
    for i in range(len(series)):
        v, r = series[i]
        before = peaks[v, r].copy()
        covered, highest, doubt = 0, -math.inf, 0.0
        for step in range(steps):
            if mean[v, r, step] != 0.0 or mean_stddev[v, r, step] != 0.0:
                _move(quantiles[v, r, step], mean[v, r, step], mean_stddev[v, r, step], top[v, r], moved)
                quantiles[v, r, step] = moved
            if active[v, step] or peak[v, r, step] != 0.0:
                covered += 1
                if peak[v, r, step] > highest:
                    highest, doubt = peak[v, r, step], peak_stddev[v, r, step]
            if covered == 0:
                continue
            _move(before[covered - 1], highest, doubt, top[v, r], moved)
            for q in range(levels):
                # no bucket without the event: what was foretold without it is void
                found = moved[q] if covered == step + 1 else max(moved[q], before[step, q])
                found = max(found, quantiles[v, r, step, q])
                peaks[v, r, step, q] = max(found, peaks[v, r, step - 1, q]) if step else found


@njit(cache=True)
def _lay_blocks(
    series: NDArray[np.int64], mean: F64, mean_stddev: F64, peak: F64, peak_stddev: F64, active: NDArray[np.bool_], top: F64,
    quantiles: F32, peaks: F32,
) -> None:  # fmt: skip
    """In place, for the (v, r) of `series`; see outlook_with_events."""
    blocks, levels = quantiles.shape[2], quantiles.shape[3]
    width = mean.shape[2] // blocks
    moved = np.empty(levels)
    for i in range(len(series)):
        v, r = series[i]
        for block in range(blocks):
            covered, highest, doubt, total, spread = 0, -math.inf, 0.0, 0.0, 0.0
            for step in range(block * width, (block + 1) * width):
                total += mean[v, r, step] / width
                spread += mean_stddev[v, r, step] / width  # the buckets of one event err alike
                if active[v, step] or peak[v, r, step] != 0.0:
                    covered += 1
                    if peak[v, r, step] > highest:
                        highest, doubt = peak[v, r, step], peak_stddev[v, r, step]
            if total != 0.0 or spread != 0.0:
                _move(quantiles[v, r, block], total, spread, top[v, r], moved)
                quantiles[v, r, block] = moved
            if covered:
                before = peaks[v, r, block].copy()
                _move(before, highest, doubt, top[v, r], moved)
                for q in range(levels):
                    found = moved[q] if covered == width else max(moved[q], before[q])
                    peaks[v, r, block, q] = max(found, quantiles[v, r, block, q])
