"""What the network sees of a series: the last day and its seasons, in the series' own scale. Pure; numba, one pass per example.

Everything is (x - anchor) / unit: anchor = median of the newest hour, unit = usual change from bucket to bucket plus a floor. So one
network serves idle and busy VMs of every resource, and a fleet it has never seen. The same kernel makes the examples of a training and
the inputs of a tick, from the ring alone: nothing to keep up to date, nothing to get out of step. About 6 microseconds an example.
Gap rule: a missing bucket repeats the last known value within the day; without any reading everything is 0.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.model import F32, F64, LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

DAY: Final = 288
WEEK: Final = 2016
TARGETS: Final = 2  # bucket mean, running peak
_H: Final = HORIZON_STEPS
_LEVELS: Final = np.array(LEVELS)
_SHAPE: Final = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
_SPANS: Final = np.array([12, 36, 72, 288])
_THIN: Final = 4  # of the whole day one bucket in four is sorted: its quantiles are nearly the same at a fifth of the cost
_ALPHAS: Final = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.75])
_DAYS: Final = 7
_OF_SHAPE: Final = 12 + 3 + 20 + 4  # newest values, older means, window quantiles, extremes: for both targets
_OF_SEASONS: Final = 12 + 12 + 12 + 2  # daily profile, yesterday, a week ago, whether there are any
_OF_RUNNING: Final = 5  # how high an hour gets
_OF_PEAK_DAYS: Final = 12
_OF_CONTEXT: Final = len(_ALPHAS) + 5 + 6 + 4 + N_RESOURCES
INPUTS: Final = 2 * _OF_SHAPE + _OF_SEASONS + _OF_RUNNING + _OF_PEAK_DAYS + _OF_CONTEXT
_FLOORS: Final = np.array([2.0, 1024.0**2, 1024.0, 8000.0, 8000.0])  # as features.FLOORS: the smallest change worth telling apart
_LEVEL_FLOOR: Final = 0.005


class Sight(NamedTuple):
    """Examples m. `inputs` f32[m, INPUTS]; per target (mean, peak) `anchor`, `unit` f64[m, 2]; `base` f64[m, 2, q]: empirical quantiles
    of the newest hours, the starting point of the network's answer, in the data's unit; `spread` f64[m, 2] >= unit: how far they lie apart.
    """

    inputs: F32
    anchor: F64
    unit: F64
    base: F64
    spread: F64


def see(means: F32, peaks: F32, rows: NDArray[np.int64], newest: NDArray[np.int64], newest_s: NDArray[np.int64]) -> Sight:
    """Examples of series `rows` as of bucket column `newest`, which starts at `newest_s` (all [m]).

    means, peaks float32[n, b] with NaN; series in [v, r] order, so that row % N_RESOURCES is the resource.
    """
    m = len(rows)
    sight = Sight(
        np.zeros((m, INPUTS), dtype=np.float32),
        np.zeros((m, TARGETS)),
        np.zeros((m, TARGETS)),
        np.zeros((m, TARGETS, len(LEVELS))),
        np.zeros((m, TARGETS)),
    )
    if m:
        _see(means, peaks, rows, newest, newest_s, *sight)
    return sight


@njit(cache=True)
def _sorted(window: F64, out: F64) -> F64:
    """Insertion sort into `out`: for a few dozen values faster than a call, and much so where neighbours are alike."""
    count = len(window)
    for i in range(count):
        value = window[i]
        place = i
        while place > 0 and out[place - 1] > value:
            out[place] = out[place - 1]
            place -= 1
        out[place] = value
    return out[:count]


@njit(cache=True)
def _quantiles_into(ordered: F64, levels: F64, out: F64) -> None:
    last = len(ordered) - 1
    for k in range(len(levels)):
        place = levels[k] * last
        low = int(place)
        high = min(low + 1, last)
        out[k] = ordered[low] + (place - low) * (ordered[high] - ordered[low])


@njit(cache=True)
def _load_day(series: F32, fallback: F32, row: int, newest: int, out: F64) -> int:
    """The day up to `newest`, filled; returns how many readings it holds. Where `series` is silent `fallback` speaks."""
    known = 0
    last = np.nan
    for k in range(DAY):
        t = newest - DAY + 1 + k
        if t >= 0:
            value = float(series[row, t])
            if not np.isfinite(value):
                value = float(fallback[row, t])
            if np.isfinite(value):
                if known == 0:
                    out[:k] = value
                last = value
                known += 1
        if known:
            out[k] = last
    if known == 0:
        out[:] = 0.0
    return known


@njit(cache=True)
def _shape_of(day: F64, anchor: float, unit: float, row: F32, at: int, base: F64) -> int:  # noqa: PLR0917
    """Newest values, means before them, window quantiles, extremes; returns the next place. `base` = mean of the 1 h and 3 h quantiles."""
    for k in range(12):
        row[at + k] = (day[DAY - 1 - k] - anchor) / unit
    at += 12
    for low, high in ((12, 18), (18, 24), (24, 36)):
        total = 0.0
        for k in range(low, high):
            total += day[DAY - 1 - k]
        row[at] = (total / (high - low) - anchor) / unit
        at += 1
    found = np.empty(len(_SHAPE))
    outer = np.empty(len(_LEVELS))
    sorting = np.empty(DAY // _THIN)
    base[:] = 0.0
    for span in _SPANS:
        window = day[DAY - span :] if span < DAY else day[_THIN - 1 :: _THIN].copy()
        ordered = _sorted(window, sorting)
        _quantiles_into(ordered, _SHAPE, found)
        for k in range(len(_SHAPE)):
            row[at + k] = (found[k] - anchor) / unit
        at += len(_SHAPE)
        if span <= 36:
            _quantiles_into(ordered, _LEVELS, outer)
            base += 0.5 * outer
    row[at] = (day[DAY - 36 :].max() - anchor) / unit
    row[at + 1] = (day[DAY - 36 :].min() - anchor) / unit
    row[at + 2] = (day.max() - anchor) / unit
    row[at + 3] = (day.min() - anchor) / unit
    return at + 4


@njit(cache=True)
def _seasons_of(means: F32, series: int, newest: int, anchor: float, unit: float, row: F32, at: int) -> int:  # noqa: PLR0917
    """Median profile of earlier days, yesterday, a week ago; 0 = nothing different from now where there is none."""
    values = np.empty(_DAYS)
    has_day, has_week = 0.0, 0.0
    for h in range(1, _H + 1):
        found = 0
        for d in range(1, _DAYS + 1):
            centre = newest + h - DAY * d
            if centre < 0:
                break
            total, weight = 0.0, 0
            for t in range(max(centre - 1, 0), min(centre + 2, newest + 1)):
                if np.isfinite(means[series, t]):
                    total += means[series, t]
                    weight += 1
            if weight > 0:
                place = found  # insertion keeps the few values ordered
                while place > 0 and values[place - 1] > total / weight:
                    values[place] = values[place - 1]
                    place -= 1
                values[place] = total / weight
                found += 1
        if found > 0:
            row[at + h - 1] = (0.5 * (values[(found - 1) // 2] + values[found // 2]) - anchor) / unit
            has_day = 1.0
        for offset, back in ((12, DAY), (24, WEEK)):
            t = newest + h - back
            if t >= 0 and np.isfinite(means[series, t]):
                row[at + offset + h - 1] = (means[series, t] - anchor) / unit
                if back == WEEK:
                    has_week = 1.0
    row[at + 36] = has_day
    row[at + 37] = has_week
    return at + 38


@njit(cache=True)
def _running_of(day: F64, peaks: F32, series: int, newest: int, anchor: float, unit: float, row: F32, at: int) -> int:  # noqa: PLR0917
    """How high the hours of the day got, and the peaks of the hour to come on earlier days."""
    highest = np.empty((DAY - _H) // 3 + 1)
    for k in range(len(highest)):
        first = DAY - _H - 3 * k
        top = day[first]
        for t in range(first + 1, first + _H):
            top = max(top, day[t])
        highest[k] = top
    highest.sort()
    last = len(highest) - 1
    for k, share in enumerate((0.25, 0.5, 0.75, 0.9, 1.0)):
        row[at + k] = (highest[int(share * last)] - anchor) / unit
    at += 5
    for h in range(1, _H + 1):
        top, found = 0.0, 0
        for d in range(1, 4):
            t = newest + h - DAY * d
            if t >= 0 and np.isfinite(peaks[series, t]):
                top += peaks[series, t]
                found += 1
        if found > 0:
            row[at + h - 1] = (top / found - anchor) / unit
    return at + _H


@njit(cache=True)
def _context_of(day: F64, anchor: float, unit: float, mean: float, newest_s: int, resource: int, row: F32, at: int) -> int:  # noqa: PLR0917
    """Smoothed levels, restlessness, memory, time of day and week, resource."""
    levels = np.full(len(_ALPHAS), day[0])
    for t in range(DAY):
        for k in range(len(_ALPHAS)):  # side by side: one recursion waits for itself
            levels[k] += _ALPHAS[k] * (day[t] - levels[k])
    for k in range(len(_ALPHAS)):
        row[at + k] = (levels[k] - anchor) / unit
    at += len(_ALPHAS)
    hour, three = 0.0, 0.0
    product, square, still = 0.0, 1e-12, 0.0
    for t in range(1, DAY):
        step = abs(day[t] - day[t - 1])
        if t >= DAY - 12:
            hour += step
        if t >= DAY - 36:
            three += step
        product += (day[t] - mean) * (day[t - 1] - mean)
        square += (day[t] - mean) ** 2
        still += 1.0 if step == 0.0 else 0.0
    row[at] = np.log((hour / 12 + 0.05 * unit) / unit)
    row[at + 1] = np.log((three / 36 + 0.05 * unit) / unit)
    row[at + 2] = product / square
    row[at + 3] = still / DAY
    row[at + 4] = np.log1p(abs(mean) / unit)
    angle = 2.0 * np.pi * ((newest_s // 300 + 1) % DAY) / DAY
    row[at + 5] = np.log1p(abs(anchor) / unit)
    row[at + 6] = np.sin(angle)
    row[at + 7] = np.cos(angle)
    row[at + 8] = np.sin(2.0 * angle)
    row[at + 9] = np.cos(2.0 * angle)
    weekday = (newest_s // 86_400) % 7  # 1 January 1970 was a Thursday: Saturday = 2, Sunday = 3
    row[at + 10] = 1.0 if weekday in (2, 3) else 0.0
    at += 11
    return at + resource  # the caller sets the resource's own place


@njit(cache=True)
def _see(  # noqa: PLR0917  (numba: no keyword-only)
    means: F32,
    peaks: F32,
    rows: NDArray[np.int64],
    newest: NDArray[np.int64],
    newest_s: NDArray[np.int64],
    inputs: F32,
    anchors: F64,
    units: F64,
    bases: F64,
    spreads: F64,
) -> None:
    day = np.empty(DAY)
    peak_day = np.empty(DAY)
    sorting = np.empty(12)
    for i in range(len(rows)):
        series, t = rows[i], newest[i]
        resource = series % N_RESOURCES
        known = _load_day(means, means, series, t, day)
        _load_day(peaks, means, series, t, peak_day)
        row = inputs[i]
        mean = day.mean()
        for target in range(TARGETS):
            values = day if target == 0 else peak_day
            level, change = values.mean(), 0.0
            for k in range(1, DAY):
                change += abs(values[k] - values[k - 1])
            units[i, target] = change / (DAY - 1) + max(_FLOORS[resource], _LEVEL_FLOOR * abs(level))
            ordered = _sorted(values[DAY - 12 :], sorting)
            anchors[i, target] = 0.5 * (ordered[5] + ordered[6])
        anchor, unit = anchors[i, 0], units[i, 0]
        at = _shape_of(day, anchor, unit, row, 0, bases[i, 0])
        at = _seasons_of(means, series, t, anchor, unit, row, at)
        at = _shape_of(peak_day, anchors[i, 1], units[i, 1], row, at, bases[i, 1])
        at = _running_of(peak_day, peaks, series, t, anchors[i, 1], units[i, 1], row, at)
        own = _context_of(day, anchor, unit, mean, newest_s[i], resource, row, at)
        row[own] = 1.0
        at += len(_ALPHAS) + 11 + N_RESOURCES
        row[at] = (anchors[i, 1] - anchor) / unit
        row[at + 1] = np.log(units[i, 1] / unit)
        row[at + 2] = known / DAY
        row[at + 3] = np.log1p(spread_of(bases[i, 0], unit) / unit)
        spreads[i, 0] = spread_of(bases[i, 0], unit)
        spreads[i, 1] = spread_of(bases[i, 1], units[i, 1])


@njit(cache=True)
def spread_of(base: F64, unit: float) -> float:
    """From the .025 to the .975 quantile, plus one usual change: what the network's answer is measured in."""
    return float(base[7] - base[0] + unit)


assert LEVELS[7] == 0.975
assert LEVELS[0] == 0.025
assert len(_ALPHAS) + 11 + N_RESOURCES + 4 == _OF_CONTEXT
