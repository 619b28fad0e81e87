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
    PAIRS_12,
    PAIRS_36,
    WIDE,
    fill_row,
    quantile_lanes,
    sort_lanes,
    transpose_lanes,
)
from coordinator.model import F32, F64
from shared.units import HORIZON_STEPS

BASE: Final = 6  # as seasons.BASE
MOST_RATIO: Final = 20.0
_H: Final = HORIZON_STEPS
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
    filled: F32,
    hour: F64,
    hours3: F64,
    level: F64,
    step: F64,
    damped: F64,
    alphas: F32,
    daily: F32,
    weekly: F32,
    hourly: F32,
    turns: NDArray[np.int64],
    out: F32,
) -> None:
    """members.MEMBERS for every series into out[8, n, 12]; profiles float32[18, n] and the rows of their first columns: seasons.Profile."""
    n, width = filled.shape
    rows = np.zeros((WIDE, width), dtype=np.float32)
    block = np.empty((width, WIDE), dtype=np.float32)
    smooth = np.empty(WIDE, dtype=np.float32)
    curve = np.empty((_H, WIDE), dtype=np.float32)
    gains = np.zeros((5, WIDE), dtype=np.float32)
    shift, known = np.empty(WIDE), np.empty(WIDE, dtype=np.int64)
    for first in range(0, n, WIDE):
        held = min(WIDE, n - first)
        for j in range(held):
            i = first + j
            _scale(filled[i], level[i], step[i], rows[j])
            gains[0, j], gains[1, j], gains[2, j] = damped[i, 0], damped[i, 1], damped[i, 2]
            gains[3, j], gains[4, j] = _line(rows[j])
        transpose_lanes(rows, block)
        _smooth(block, alphas, smooth)
        _damp(block, gains, curve)
        for j in range(held):
            i = first + j
            size = step[i] if step[i] > 0.0 else 1.0
            last, smoothed = _bounded(filled[i, width - 1]), _bounded(level[i] + size * smooth[j])
            middle, middle3 = _bounded(hour[i, 1]), _bounded(hours3[i, 1])
            for h in range(_H):
                out[0, i, h] = last
                out[1, i, h] = smoothed
                out[2, i, h] = _bounded(level[i] + size * curve[h, j])
                out[3, i, h] = middle
                out[4, i, h] = middle3
        _season(daily, turns[0], filled, first, held, shift, known, out[5])
        _season(weekly, turns[1], filled, first, held, shift, known, out[6])
        _season(hourly, turns[2], filled, first, held, shift, known, out[7])


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


@njit(cache=True, fastmath={"contract"})
def _smooth(block: F32, alphas: F32, best: F32) -> None:
    """Exponential smoothing of each lane with the alpha of least squared one-step error: its last level."""
    count, width = alphas.shape[0], block.shape[0]
    work = np.zeros((2 * count + 1, WIDE), dtype=np.float32)  # levels, squared errors, the least of them
    for k in range(count):
        work[k] = block[0]
    whole = 1 + (width - 1) // 6 * 6
    for t in range(1, whole, 6):  # six buckets between loading and storing the states, of which there are more than registers
        a, b, c, d, e, f = block[t], block[t + 1], block[t + 2], block[t + 3], block[t + 4], block[t + 5]
        for k in range(count):
            alpha, state, squares = alphas[k], work[k], work[count + k]
            for j in range(WIDE):
                level, total = state[j], squares[j]
                error = a[j] - level
                level += alpha * error
                total += error * error
                error = b[j] - level
                level += alpha * error
                total += error * error
                error = c[j] - level
                level += alpha * error
                total += error * error
                error = d[j] - level
                level += alpha * error
                total += error * error
                error = e[j] - level
                level += alpha * error
                total += error * error
                error = f[j] - level
                level += alpha * error
                total += error * error
                state[j], squares[j] = level, total
    for t in range(whole, width):
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


@njit(cache=True, error_model="numpy")
def _season(profile: F32, turn: int, filled: F32, first: int, held: int, shift: F64, known: NDArray[np.int64], out: F32) -> None:
    """The profile of earlier seasons, lifted by how far the newest half hour lies above its own profile (fading); NaN = no season."""
    columns, width = profile.shape[0], filled.shape[1]
    shift[:] = 0.0
    known[:] = 0
    for c in range(BASE):
        row = profile[(turn + c) % columns]
        for j in range(held):
            usual = row[first + j]
            if not np.isnan(usual):
                shift[j] += float(filled[first + j, width - BASE + c]) - float(usual)
                known[j] += 1
    for j in range(held):
        shift[j] /= max(known[j], 1)
    for h in range(_H):
        row, fade = profile[(turn + BASE + h) % columns], _SHIFT_DECAY[h]
        for j in range(held):
            out[first + j, h] = _bounded(float(row[first + j]) + shift[j] * fade)


@njit(cache=True, error_model="numpy")
def peak_members(filled: F32, means: F32, point: F64, daily: F32, turn: int, out: F32) -> None:
    """members.PEAK_MEMBERS for every series into out[5, n, 12]; `filled` of the peaks, `means` of the same buckets; daily as above."""
    n, width = filled.shape
    ordered = np.empty((36, WIDE), dtype=np.float32)
    ratio = np.empty(WIDE, dtype=np.float32)
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
            top = np.nan
            for h in range(_H):
                usual = float(daily[(turn + h) % _H, i])
                top = top if top >= usual or np.isnan(usual) else usual
                out[4, i, h] = _bounded(top)


@njit(cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _usual_hour(row: F32, highest: F32, out: F32) -> None:
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
