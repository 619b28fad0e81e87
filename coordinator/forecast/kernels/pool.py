"""The cheap pool of members.py in numba: one pass looks at the newest day, one speaks for the means, one for the peaks.

What is sorted or filtered runs WIDE series in step (lanes.py) in float32, scaled by each series' usual change, so that squares neither
overflow nor lose what matters; sums over a day are float64. Series are read out of the ring (`flat`, `apart`: lanes.flat), the newest
bucket is column b - 1. Parity with the plain kernels (fill_gaps, window_quantiles, smooth_best, run_damped, season_profile,
sliding_maxima) is tested to 1e-5.
"""

from __future__ import annotations

from typing import Final

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
    quantile_lanes,
    season_medians,
    sort_lanes,
    sorting_pairs,
    transpose_lanes,
)
from coordinator.forecast.kernels.profile import SEASON
from coordinator.model import F32, F64
from shared.units import HORIZON_STEPS

WEEK: Final = 2016
BASE: Final = 6  # the newest half hour fixes how far today lies above its profile
MOST_RATIO: Final = 20.0
_H: Final = HORIZON_STEPS
_DAYS: Final = 7
_WEEKS: Final = 3
_HOURS: Final = 12
_PAIRS_3: Final = sorting_pairs(_WEEKS)
_SHIFT_DECAY: Final = 0.97 ** np.arange(1, HORIZON_STEPS + 1)
_LEVELS: Final = np.array([0.1, 0.5, 0.9])
_WINDOWS: Final = 72  # hours, one a bucket, whose maxima are averaged


@njit(cache=True)
def look(
    flat: F32, apart: int, b: int, filled: F32, readings: F64, age: F64, hour: F64, hours3: F64, level: F64, step: F64, step_hour: F64
) -> None:
    """The newest filled.shape[1] buckets of every series, and what members.Window says of them."""
    n, width = filled.shape
    ordered = np.empty((36, WIDE), dtype=np.float32)
    found = np.empty(WIDE, dtype=np.float32)
    for first in range(0, n, WIDE):
        held = min(WIDE, n - first)
        for j in range(held):
            i = first + j
            row = filled[i]
            row[:] = flat[i * apart + b - width : i * apart + b]
            age[i] = width
            for t in range(width - 1, -1, -1):
                if np.isfinite(row[t]):
                    age[i] = width - 1 - t
                    break
            readings[i] = fill_row(row)
            level[i], step[i], step_hour[i] = _moves(row)
        for count, pairs, target in ((12, PAIRS_12, hour), (36, PAIRS_36, hours3)):
            usable = min(count, width)
            _newest(filled, first, usable, count, ordered)
            sort_lanes(ordered, pairs)
            for k in range(len(_LEVELS)):
                quantile_lanes(ordered, usable, _LEVELS[k], found)
                for j in range(held):
                    target[first + j, k] = found[j]


@njit(cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _moves(row: F32) -> tuple[float, float, float]:
    """Mean, mean absolute change, the same over the newest hour; the first bucket counts as no change."""
    width = row.shape[0]
    total, change, late = float(row[0]), 0.0, 0.0
    for t in range(1, width):
        total += float(row[t])
        change += abs(float(row[t]) - float(row[t - 1]))
    for t in range(max(width - 12, 1), width):
        late += abs(float(row[t]) - float(row[t - 1]))
    return total / width, change / width, late / min(width, 12)


@njit(cache=True)
def _newest(rows: F32, first: int, count: int, places: int, ordered: F32) -> None:
    """The newest `count` buckets of WIDE series into ordered[places, WIDE]; inf where there is nothing."""
    n, width = rows.shape
    ordered[:places] = np.inf
    for j in range(min(WIDE, n - first)):
        row = rows[first + j]
        for k in range(count):
            ordered[k, j] = row[width - count + k]


@njit(cache=True)
def _bounded(value: float) -> float:
    """At least 0; NaN stays."""
    return 0.0 if value < 0.0 else value


@njit(cache=True, error_model="numpy")
def mean_members(
    flat: F32, apart: int, b: int, filled: F32, hour: F64, hours3: F64, level: F64, step: F64, damped: F64, alphas: F32, out: F64
) -> float:
    """members.MEMBERS for every series into out[8, n, 12]. The answer means nothing (lanes.fetch_seasons)."""
    n, width = filled.shape
    rows = np.zeros((WIDE, width), dtype=np.float32)
    block = np.empty((width, WIDE), dtype=np.float32)
    smooth = np.empty(WIDE, dtype=np.float32)
    curve = np.empty((_H, WIDE), dtype=np.float32)
    gains = np.zeros((5, WIDE), dtype=np.float32)
    nothing = np.float32(np.inf)
    daily, weekly, hourly = np.full((_DAYS, WIDE), nothing), np.full((_WEEKS, WIDE), nothing), np.full((_HOURS, WIDE), nothing)
    profile = np.empty(WIDE, dtype=np.float32)
    touched = 0.0
    for first in range(0, n, WIDE):
        held = min(WIDE, n - first)
        for j in range(held):
            i = first + j
            past = flat[i * apart : i * apart + b]
            touched += fetch_seasons(past, b - BASE, BASE + _H, SEASON, _DAYS) + fetch_seasons(past, b - BASE, BASE + _H, WEEK, 1)
            _scale(filled[i], level[i], step[i], rows[j])
            gains[0, j], gains[1, j], gains[2, j] = damped[i, 0], damped[i, 1], damped[i, 2]
            gains[3, j], gains[4, j] = _line(rows[j])
        transpose_lanes(rows, block)
        _smooth(block, alphas, smooth)
        _damp(block, gains, curve)
        for j in range(held):
            i = first + j
            size = step[i] if step[i] > 0.0 else 1.0
            for h in range(_H):
                out[0, i, h] = _bounded(filled[i, width - 1])
                out[1, i, h] = _bounded(level[i] + size * smooth[j])
                out[2, i, h] = _bounded(level[i] + size * curve[h, j])
                out[3, i, h] = _bounded(hour[i, 1])
                out[4, i, h] = _bounded(hours3[i, 1])
            past = flat[i * apart : i * apart + b]
            _season(past, filled[i], SEASON, 1, daily, PAIRS_7, profile, out[5, i])
            _season(past, filled[i], WEEK, 1, weekly, _PAIRS_3, profile, out[6, i])
            _season(past, filled[i], 12, 0, hourly, PAIRS_12, profile, out[7, i])
    return touched


@njit(cache=True, error_model="numpy")
def _scale(row: F32, level: float, step: float, out: F32) -> None:
    middle, size = np.float32(level), np.float32(1.0 / step if step > 0.0 else 1.0)
    for t in range(row.shape[0]):
        out[t] = (row[t] - middle) * size


@njit(cache=True)
def _line(row: F32) -> tuple[float, float]:
    """Least-squares line through the first ten points, as damped.py: level before the first bucket, and slope."""
    m = min(10, row.shape[0])
    centre = (m - 1) / 2.0
    mean, cross = 0.0, 0.0
    for t in range(m):
        mean += row[t] / m
        cross += (t - centre) * row[t]
    slope = cross / (m * (m * m - 1) / 12.0) if m > 1 else 0.0
    return mean - slope * (centre + 1.0), slope


@njit(cache=True)
def _smooth(block: F32, alphas: F32, best: F32) -> None:
    """Exponential smoothing of each lane with the alpha of least squared one-step error: its last level."""
    count = alphas.shape[0]
    work = np.zeros((2 * count + 1, WIDE), dtype=np.float32)  # levels, squared errors, the least of them
    for k in range(count):
        work[k] = block[0]
    for t in range(1, block.shape[0]):
        source = block[t]
        for k in range(count):
            alpha, state, squares = alphas[k], work[k], work[count + k]
            for j in range(WIDE):
                error = source[j] - state[j]
                state[j] += alpha * error
                squares[j] += error * error
    least = work[2 * count]
    least[:] = np.inf
    for k in range(count):
        state, squares = work[k], work[count + k]
        for j in range(WIDE):
            if squares[j] < least[j]:
                least[j] = squares[j]
                best[j] = state[j]


@njit(cache=True)
def _damp(block: F32, gains: F32, curve: F32) -> None:
    """Damped trend with gains[0:3] = alpha, beta, phi from the states gains[3:5], which it moves: curve[12, WIDE]."""
    alpha, beta, phi, level, trend = gains[0], gains[1], gains[2], gains[3], gains[4]
    for t in range(block.shape[0]):
        source = block[t]
        for j in range(WIDE):
            carried = phi[j] * trend[j]
            predicted = level[j] + carried
            error = source[j] - predicted
            level[j] = predicted + alpha[j] * error
            trend[j] = carried + beta[j] * error
    for h in range(_H):
        target = curve[h]
        for j in range(WIDE):
            trend[j] *= phi[j]
            level[j] += trend[j]
            target[j] = level[j]


@njit(cache=True)
def _season(past: F32, filled: F32, season: int, reach: int, work: F32, pairs: NDArray[np.int64], profile: F32, out: F64) -> None:
    """The profile of earlier seasons, lifted by how far the newest half hour lies above its own profile (fading); NaN = no season."""
    b, width = past.shape[0], filled.shape[0]
    if b - BASE < season:
        out[:] = np.nan
        return
    season_medians(past, b - BASE, BASE + _H, season, reach, work, pairs, profile)
    shift, known = 0.0, 0
    for k in range(BASE):
        if not np.isnan(profile[k]):
            shift += float(filled[width - BASE + k]) - float(profile[k])
            known += 1
    shift /= max(known, 1)
    for h in range(_H):
        out[h] = _bounded(float(profile[BASE + h]) + shift * _SHIFT_DECAY[h])


@njit(cache=True, error_model="numpy")
def peak_members(flat: F32, apart: int, b: int, filled: F32, means: F32, point: F64, out: F64) -> None:
    """members.PEAK_MEMBERS for every series into out[5, n, 12]; `filled` of the peaks, `means` of the same buckets."""
    n, width = filled.shape
    ordered = np.empty((36, WIDE), dtype=np.float32)
    ratio = np.empty(WIDE, dtype=np.float32)
    work = np.full((_DAYS, WIDE), np.float32(np.inf))
    profile = np.empty(WIDE, dtype=np.float32)
    highest = np.empty(_WINDOWS + 1, dtype=np.float32)
    count = min(36, width)
    for first in range(0, n, WIDE):
        held = min(WIDE, n - first)
        ordered[:] = np.inf
        for j in range(held):
            row, below = filled[first + j], means[first + j]
            for k in range(count):
                peak, mean = float(row[width - count + k]), float(below[width - count + k])
                ordered[k, j] = (peak + 1e-9) / (min(mean, peak) + 1e-9)
        sort_lanes(ordered, PAIRS_36)
        quantile_lanes(ordered, count, 0.5, ratio)
        for j in range(held):
            i = first + j
            row, factor, top, last = filled[i], min(float(ratio[j]), MOST_RATIO), -np.inf, -np.inf
            for h in range(_H):
                top = max(top, point[i, h])
                last = max(last, float(row[width - 1 - h])) if h < width else last
                out[0, i, h] = _bounded(top * factor)
                out[2, i, h] = _bounded(last)
            out[3, i, :] = out[2, i, _H - 1]
            _usual_hour(row, highest, out[1, i])
            if b < SEASON:
                out[4, i, :] = np.nan
                continue
            season_medians(flat[i * apart : i * apart + b], b, _H, SEASON, 0, work, PAIRS_7, profile)
            top = np.nan
            for h in range(_H):
                top = top if top >= profile[h] or np.isnan(profile[h]) else float(profile[h])
                out[4, i, h] = _bounded(top)


@njit(cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _usual_hour(row: F32, highest: F32, out: F64) -> None:
    """Mean over the newest windows, one a bucket, of their maximum so far: how high it usually gets."""
    width = row.shape[0]
    begin = max(width - _WINDOWS - _H, 0)
    windows = width - _H + 1 - begin
    if windows <= 0:
        out[:] = max(float(row.max()), 0.0)
        return
    highest[:] = -np.inf
    for h in range(_H):
        later = row[begin + h : begin + h + windows]
        total = 0.0
        for k in range(windows):
            highest[k] = later[k] if later[k] > highest[k] else highest[k]
            total += float(highest[k])
        out[h] = max(total / windows, 0.0)
