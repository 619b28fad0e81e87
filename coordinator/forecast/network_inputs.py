"""What the network sees of a series: the last day and its seasons, in the series' own scale. Pure; numba, WIDE examples in step.

Everything is (x - anchor) / unit: anchor = median of the newest hour, unit = usual change from bucket to bucket plus a floor. So one
network serves idle and busy VMs of every resource, and a fleet it has never seen. The same kernel makes the examples of a training and
the inputs of a tick, from the ring alone; only what earlier days say, a tick may have carried over (seasons.py). About 1.9 microseconds
an example.
Gap rule: a missing bucket repeats the last known value within the day; without any reading everything is 0.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.forecast.kernels.lanes import (
    PAIRS_7,
    PAIRS_12,
    PAIRS_36,
    WIDE,
    fetch_seasons,
    fill_row,
    flat,
    quantile_lanes,
    season_medians,
    sort_lanes,
    transpose_lanes,
)
from coordinator.forecast.seasons import BASE, Profile
from coordinator.model import F32, F64, LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

DAY: Final = 288
WEEK: Final = 2016
TARGETS: Final = 2  # bucket mean, running peak
_H: Final = HORIZON_STEPS
_LEVELS: Final = np.array(LEVELS)
_SHAPE: Final = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
_WINDOWS: Final = ((12, 1), (36, 1), (36, 2), (36, 8))  # values, every so many buckets: hour, three hours, six, the whole day
_ALPHAS: Final = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.75], dtype=np.float32)
_REMEMBERED: Final = 144  # buckets that smoothing runs over: the slowest has forgotten all but a two-thousandth of what came before
_LEFT: Final = (1.0 - _ALPHAS.astype(np.float64))[:, None] ** np.arange(_REMEMBERED)[::-1]  # of a bucket's weight, as others came
_WEIGHTS: Final = np.where(np.arange(_REMEMBERED) > 0, _ALPHAS[:, None] * _LEFT, _LEFT)
_SHARES: Final = np.where(_WEIGHTS > 1e-30, _WEIGHTS, 0.0).astype(np.float32)  # the processor is slow on numbers below those
_HOURS: Final = 35  # overlapping hours of the day whose maxima are ranked, eight buckets apart
_DAYS: Final = 7
_NOT_KNOWN: Final = np.zeros((0, 0), dtype=np.float32)
_OF_SHAPE: Final = 12 + 3 + 20 + 4  # newest values, older means, window quantiles, extremes: for both targets
_OF_SEASONS: Final = 12 + 12 + 12 + 2  # daily profile, yesterday, a week ago, whether there are any
_OF_RUNNING: Final = 5  # how high an hour gets
_OF_PEAK_DAYS: Final = 12
_OF_CONTEXT: Final = len(_ALPHAS) + 5 + 6 + 4 + N_RESOURCES
_AT_SEASONS: Final = _OF_SHAPE
_AT_PEAK: Final = _AT_SEASONS + _OF_SEASONS
_AT_RUNNING: Final = _AT_PEAK + _OF_SHAPE
_AT_PEAK_DAYS: Final = _AT_RUNNING + _OF_RUNNING
_AT_CONTEXT: Final = _AT_PEAK_DAYS + _OF_PEAK_DAYS
INPUTS: Final = _AT_CONTEXT + _OF_CONTEXT
SIGHT: Final = 2  # counts what the inputs mean: a model of another meaning is refused
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


def see(
    means: F32,
    peaks: F32,
    rows: NDArray[np.int64],
    newest: NDArray[np.int64],
    newest_s: NDArray[np.int64],
    *,
    daily: Profile | None = None,
) -> Sight:
    """Examples of series `rows` as of bucket column `newest`, which starts at `newest_s` (all [m]).

    means, peaks float32[n, b] with NaN; series in [v, r] order, so that row % N_RESOURCES is the resource. `daily`: what earlier days
    say of all series as of that same bucket (seasons.Profiles), where it is known already.
    """
    m = len(rows)
    sight = Sight(
        np.empty((m, INPUTS), dtype=np.float32),
        np.empty((m, TARGETS)),
        np.empty((m, TARGETS)),
        np.empty((m, TARGETS, len(LEVELS))),
        np.empty((m, TARGETS)),
    )
    if m:
        buckets = int(newest[0]) + 1
        # on the first buckets of another day of history the profile, which begins earlier, does not go back as far
        short = min(buckets // DAY, _DAYS) > (buckets - BASE) // DAY
        known, turn = (_NOT_KNOWN, 0) if daily is None or short else (daily.rows, daily.turn + len(daily.rows) - _H)
        _see(*flat(means), *flat(peaks), rows, newest, newest_s, known, turn, *sight)
    return sight


@njit(cache=True)
def _load(values: F32, start: int, newest: int, out: F32) -> None:
    """The day up to `newest` of the series that begins at `start`; NaN before its first bucket."""
    first = newest - DAY + 1
    if first >= 0:
        source = values[start + first : start + newest + 1]
        for k in range(DAY):
            out[k] = source[k]
    else:
        out[:-first] = np.nan
        out[-first:] = values[start : start + newest + 1]


@njit(cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _unit_of(row: F32, resource: int) -> tuple[float, float]:
    """Usual change of a filled day with its floor, and the day's mean."""
    total, change = float(row[0]), 0.0
    for k in range(1, DAY):
        total += float(row[k])
        change += abs(float(row[k]) - float(row[k - 1]))
    level = total / DAY
    return change / (DAY - 1) + max(_FLOORS[resource], _LEVEL_FLOOR * abs(level)), level


@njit(cache=True)
def _window_lanes(block: F32, count: int, every: int, ordered: F32) -> None:
    """The newest value and those `every` buckets before it, ordered."""
    for k in range(count):
        source, target = block[DAY - 1 - k * every], ordered[k]
        for j in range(WIDE):
            target[j] = source[j]
    sort_lanes(ordered, PAIRS_12 if count == 12 else PAIRS_36)


@njit(cache=True, error_model="numpy")
def _shape_lanes(block: F32, seen: F32, at: int, base: F32, ordered: F32) -> None:
    """Newest values, means before them, window quantiles, extremes. `base` = mean of the 1 h and 3 h quantiles, float32[q, WIDE]."""
    for k in range(12):
        seen[at + k] = block[DAY - 1 - k]
    for part, low, high in ((12, 12, 18), (13, 18, 24), (14, 24, 36)):
        target = seen[at + part]
        target[:] = 0.0
        for k in range(low, high):
            source = block[DAY - 1 - k]
            for j in range(WIDE):
                target[j] += source[j]
        target /= np.float32(high - low)
    _extremes(block, seen[at + 37], seen[at + 38])
    outer = np.empty(WIDE, dtype=np.float32)
    base[:] = 0.0
    for w, (count, every) in enumerate(_WINDOWS):
        _window_lanes(block, count, every, ordered)
        for k in range(len(_SHAPE)):
            quantile_lanes(ordered, count, _SHAPE[k], seen[at + 15 + w * len(_SHAPE) + k])
        if every == 1:
            for q in range(len(_LEVELS)):
                quantile_lanes(ordered, count, _LEVELS[q], outer)
                target = base[q]
                for j in range(WIDE):
                    target[j] += np.float32(0.5) * outer[j]
        if count == 36 and every == 1:
            seen[at + 35] = ordered[35]
            seen[at + 36] = ordered[0]


@njit(cache=True)
def _extremes(block: F32, highest: F32, lowest: F32) -> None:
    """Of each lane."""
    highest[:] = block[0]
    lowest[:] = block[0]
    lanes = block.reshape(-1)
    for t in range(0, DAY, 4):  # four buckets between loading and storing what was found
        rows = lanes[t * WIDE : (t + 4) * WIDE]
        for j in range(WIDE):
            a, b, c, d = rows[j], rows[WIDE + j], rows[2 * WIDE + j], rows[3 * WIDE + j]
            one, other = a if a > b else b, c if c > d else d
            one = one if one > other else other
            highest[j] = one if one > highest[j] else highest[j]
            one, other = a if a < b else b, c if c < d else d
            one = one if one < other else other
            lowest[j] = one if one < lowest[j] else lowest[j]


@njit(cache=True)
def _running_lanes(block: F32, seen: F32, ordered: F32) -> None:
    """How high the hours of the day got."""
    lanes, thirds = block.reshape(-1), np.empty((2 * _HOURS + 1) * WIDE, dtype=np.float32)  # of hours, which begin two thirds apart
    for k in range(2 * _HOURS + 1):
        rows, target = lanes[(DAY - 4 * (k + 1)) * WIDE : (DAY - 4 * k) * WIDE], thirds[k * WIDE : (k + 1) * WIDE]
        for j in range(WIDE):
            a, b, c, d = rows[j], rows[WIDE + j], rows[2 * WIDE + j], rows[3 * WIDE + j]
            one, other = a if a > b else b, c if c > d else d
            target[j] = one if one > other else other
    for k in range(_HOURS):
        top, rows = ordered[k], thirds[2 * k * WIDE : (2 * k + 3) * WIDE]
        for j in range(WIDE):
            a, b, c = rows[j], rows[WIDE + j], rows[2 * WIDE + j]
            one = a if a > b else b
            top[j] = one if one > c else c
    ordered[_HOURS] = np.inf
    sort_lanes(ordered, PAIRS_36)
    for k, share in enumerate((0.25, 0.5, 0.75, 0.9, 1.0)):
        seen[_AT_RUNNING + k] = ordered[int(share * (_HOURS - 1))]


@njit(cache=True, fastmath={"contract"})
def _smooth_lanes(block: F32, seen: F32) -> None:
    """Smoothed levels, one row an alpha: weighted sums of the newest buckets, as the recursion comes to."""
    seen[_AT_CONTEXT : _AT_CONTEXT + len(_ALPHAS)] = 0.0
    lanes = block.reshape(-1)
    for t in range(0, _REMEMBERED, 6):  # six buckets between loading and storing a sum; one slice of them: see lanes.py on flat
        rows = lanes[(DAY - _REMEMBERED + t) * WIDE : (DAY - _REMEMBERED + t + 6) * WIDE]
        for k in range(len(_ALPHAS)):
            level, p, q, r = seen[_AT_CONTEXT + k], _SHARES[k, t], _SHARES[k, t + 1], _SHARES[k, t + 2]
            u, v, w = _SHARES[k, t + 3], _SHARES[k, t + 4], _SHARES[k, t + 5]
            for j in range(WIDE):
                level[j] = (
                    level[j]
                    + p * rows[j]
                    + q * rows[WIDE + j]
                    + r * rows[2 * WIDE + j]
                    + u * rows[3 * WIDE + j]
                    + v * rows[4 * WIDE + j]
                    + w * rows[5 * WIDE + j]
                )


@njit(cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _restless(day: F32, mean: float, row: F32) -> None:
    """Restlessness, memory, share of standstill of a scaled day with mean `mean`, into row[6:10] of the context."""
    hour, three, product, square, still = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(1e-12), 0
    middle = np.float32(mean)
    for t in range(DAY - 12, DAY):
        hour += abs(day[t] - day[t - 1])
    for t in range(DAY - 36, DAY):
        three += abs(day[t] - day[t - 1])
    for t in range(1, DAY):
        here, before = day[t] - middle, day[t - 1] - middle
        product += here * before
        square += here * here
        still += 1 if day[t] == day[t - 1] else 0
    at = _AT_CONTEXT + len(_ALPHAS)
    row[at] = np.log(hour / 12 + 0.05)
    row[at + 1] = np.log(three / 36 + 0.05)
    row[at + 2] = product / square
    row[at + 3] = still / DAY


@njit(cache=True)
def _moment(newest_s: int, out: F64) -> None:
    """Time of day in two waves, weekend: float64[5]."""
    angle = 2.0 * np.pi * ((newest_s // 300 + 1) % DAY) / DAY
    out[0], out[1], out[2], out[3] = np.sin(angle), np.cos(angle), np.sin(2.0 * angle), np.cos(2.0 * angle)
    weekday = (newest_s // 86_400) % 7  # 1 January 1970 was a Thursday: Saturday = 2, Sunday = 3
    out[4] = 1.0 if weekday in (2, 3) else 0.0


@njit(cache=True)
def _profile_of(past: F32, daily: F32, turn: int, row: int, work: F32, found: F32) -> int:  # noqa: PLR0917
    """Median profile of earlier days in found[12], NaN = none; how many there are."""
    if daily.shape[0] == 0:
        return int(season_medians(past, past.shape[0], _H, DAY, 1, work, PAIRS_7, found))
    told = 0
    for h in range(_H):
        found[h] = daily[(turn + h) % daily.shape[0], row]
        told += 0 if np.isnan(found[h]) else 1
    return told


@njit(cache=True)
def _seasons_of(past: F32, anchor: float, scale: float, row: F32, told: int, found: F32) -> None:  # noqa: PLR0917
    """Median profile of earlier days, yesterday, a week ago; 0 = nothing different from now where there is none."""
    next_one = past.shape[0]
    at = _AT_SEASONS
    row[at : at + _OF_SEASONS] = 0.0
    middle, size = np.float32(anchor), np.float32(scale)
    for h in range(_H):
        if np.isfinite(found[h]):
            row[at + h] = (found[h] - middle) * size
    weekly = 0
    for offset, back in ((12, DAY), (24, WEEK)):
        for h in range(_H):
            t = next_one + h - back
            if t >= 0 and np.isfinite(past[t]):
                row[at + offset + h] = (past[t] - middle) * size
                weekly += 1 if back == WEEK else 0
    row[at + 36] = 1.0 if told else 0.0
    row[at + 37] = 1.0 if weekly else 0.0


@njit(cache=True, error_model="numpy")
def _peak_days_of(past: F32, anchor: float, scale: float, row: F32) -> None:
    """The peaks of the hour to come, mean of three earlier days."""
    for h in range(_H):
        top, told = np.float32(0.0), 0
        for d in range(1, 4):
            t = past.shape[0] + h - DAY * d
            if t >= 0 and np.isfinite(past[t]):
                top += past[t]
                told += 1
        row[_AT_PEAK_DAYS + h] = (top / np.float32(told) - np.float32(anchor)) * np.float32(scale) if told else np.float32(0.0)


@njit(cache=True)
def _put(seen: F32, lane: int, row: F32, first: int, last: int) -> None:
    for k in range(first, last):
        row[k] = seen[k, lane]


@njit(cache=True, error_model="numpy")
def _see(  # noqa: PLR0917  (numba: no keyword-only)
    means: F32,
    apart: int,
    peaks: F32,
    peaks_apart: int,
    rows: NDArray[np.int64],
    newest: NDArray[np.int64],
    newest_s: NDArray[np.int64],
    daily: F32,
    turn: int,
    inputs: F32,
    anchors: F64,
    units: F64,
    bases: F64,
    spreads: F64,
) -> float:
    """Fills what a Sight holds. The answer means nothing (lanes.fetch_seasons)."""
    days = np.empty((TARGETS, WIDE, DAY), dtype=np.float32)
    block = np.empty((DAY, WIDE), dtype=np.float32)
    seen = np.empty((INPUTS, WIDE), dtype=np.float32)
    base = np.empty((len(_LEVELS), WIDE), dtype=np.float32)
    ordered = np.empty((36, WIDE), dtype=np.float32)
    work = np.full((_DAYS, WIDE), np.float32(np.inf))
    found = np.empty(WIDE, dtype=np.float32)
    moment, told_s, touched = np.empty(5), -1, 0.0
    count = len(rows)
    for first in range(0, count, WIDE):
        held = min(WIDE, count - first)
        for j in range(held):
            i = first + j
            start, peaks_start = rows[i] * apart, rows[i] * peaks_apart
            touched += fetch_seasons(means[start : start + newest[i] + 1], newest[i] + 1, _H, DAY, _DAYS if daily.shape[0] == 0 else 1)
            touched += fetch_seasons(peaks[peaks_start : peaks_start + newest[i] + 1], newest[i] + 1, _H, DAY, 3)
            _take_up(means, start, peaks, peaks_start, newest[i], days, j, inputs[i])
        for target in range(TARGETS):
            lanes = days[target]
            lanes[held:] = 0.0
            _scale(lanes, held, rows, first, target, anchors, units, inputs, ordered)
            transpose_lanes(lanes, block)
            _shape_lanes(block, seen, _AT_PEAK if target else 0, base, ordered)
            if target:
                _running_lanes(block, seen, ordered)
            else:
                _smooth_lanes(block, seen)
            for j in range(held):
                i = first + j
                for q in range(len(_LEVELS)):
                    bases[i, target, q] = anchors[i, target] + units[i, target] * base[q, j]
                spreads[i, target] = spread_of(bases[i, target], units[i, target])
        for j in range(held):
            i = first + j
            row = inputs[i]
            _put(seen, j, row, 0, _AT_SEASONS)
            _put(seen, j, row, _AT_PEAK, _AT_PEAK_DAYS)
            _put(seen, j, row, _AT_CONTEXT, _AT_CONTEXT + len(_ALPHAS))
            anchor, unit = anchors[i, 0], units[i, 0]
            start = rows[i] * apart
            past = means[start : start + newest[i] + 1]
            told = _profile_of(past, daily, turn, rows[i], work, found)
            _seasons_of(past, anchor, 1.0 / unit, row, told, found)
            start = rows[i] * peaks_apart
            _peak_days_of(peaks[start : start + newest[i] + 1], anchors[i, 1], 1.0 / units[i, 1], row)
            if newest_s[i] != told_s:
                told_s = newest_s[i]
                _moment(told_s, moment)
            _tell_context(row, anchors[i], units[i], spreads[i, 0], moment, rows[i] % N_RESOURCES)
    return touched


@njit(cache=True, error_model="numpy")
def _tell_context(row: F32, anchor: F64, unit: F64, spread: float, moment: F64, resource: int) -> None:  # noqa: PLR0917
    """Level, time, resource, and how peaks stand to means."""
    at = _AT_CONTEXT + len(_ALPHAS) + 5
    row[at] = np.log1p(abs(anchor[0]) / unit[0])
    row[at + 1 : at + 6] = moment
    row[at + 6 : at + 6 + N_RESOURCES] = 0.0
    row[at + 6 + resource] = 1.0
    at += 6 + N_RESOURCES
    row[at] = (anchor[1] - anchor[0]) / unit[0]
    row[at + 1] = np.log(unit[1] / unit[0])
    row[at + 3] = np.log1p(spread / unit[0])


@njit(cache=True)
def _take_up(means: F32, start: int, peaks: F32, peaks_start: int, newest: int, days: F32, lane: int, row: F32) -> None:  # noqa: PLR0917
    """Both days of one example, filled; where peaks are silent the means speak. Row's share of readings."""
    day, peak_day = days[0, lane], days[1, lane]
    _load(means, start, newest, day)
    _load(peaks, peaks_start, newest, peak_day)
    for k in range(DAY):
        peak_day[k] = peak_day[k] if np.isfinite(peak_day[k]) else day[k]
    fill_row(peak_day)
    row[INPUTS - 2] = fill_row(day) / DAY


@njit(cache=True, error_model="numpy")
def _scale(  # noqa: PLR0917
    lanes: F32, held: int, rows: NDArray[np.int64], first: int, target: int, anchors: F64, units: F64, inputs: F32, ordered: F32
) -> None:
    """Filled days [WIDE, 288] into units from their anchor, in place; what the context says of the day's course."""
    for k in range(12):
        for j in range(WIDE):
            ordered[k, j] = lanes[j, DAY - 12 + k]
    sort_lanes(ordered, PAIRS_12)
    for j in range(held):
        i = first + j
        day = lanes[j]
        anchor = 0.5 * (float(ordered[5, j]) + float(ordered[6, j]))
        unit, level = _unit_of(day, rows[i] % N_RESOURCES)
        anchors[i, target], units[i, target] = anchor, unit
        middle, size = np.float32(anchor), np.float32(1.0 / unit)
        for k in range(DAY):
            day[k] = (day[k] - middle) * size
        if target == 0:
            _restless(day, (level - anchor) / unit, inputs[i])
            inputs[i, _AT_CONTEXT + len(_ALPHAS) + 4] = np.log1p(abs(level) / unit)


@njit(cache=True)
def spread_of(base: F64, unit: float) -> float:
    """From the .025 to the .975 quantile, plus one usual change: what the network's answer is measured in."""
    return float(base[7] - base[0] + unit)


assert LEVELS[7] == 0.975
assert LEVELS[0] == 0.025
assert len(_ALPHAS) + 11 + N_RESOURCES + 4 == _OF_CONTEXT
