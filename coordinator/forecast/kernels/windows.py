"""Rolling windows: median, mean and quantiles of the newest w values, and how high they usually get.

The window is kept sorted while it slides: the oldest value is found by bisection and the values between its place and the new value's
move by one, so a new bucket costs a short memmove and the quantiles are read off. NaN repeats the last value.
State float[n, 3 + 2 w] = values held, place of the oldest, last value, the ring, the same values in order; it has the data's type: values
are only copied, so float32 in is float32 exact. Needs w >= 1.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from coordinator.model import F64

_HEAD: Final = 3


@njit(cache=True)
def start(filled: F64, width: int) -> F64:
    """float[n, b] without gaps -> state of a window of `width`; a shorter series fills what it can."""
    n, b = filled.shape
    state = np.zeros((n, _HEAD + 2 * width), dtype=filled.dtype)
    held = min(b, width)
    for i in range(n):
        state[i, 0], state[i, 1] = held, b % width
        state[i, 2] = filled[i, b - 1] if b > 0 else np.nan
        for t in range(b - held, b):
            state[i, _HEAD + t % width] = filled[i, t]
        state[i, _HEAD + width : _HEAD + width + held] = np.sort(filled[i, b - held :])
    return state


@njit(cache=True)
def restart(state: F64, filled: F64) -> F64:
    """The state before the first bucket of `filled`: an empty window."""
    fresh = np.zeros_like(state)
    fresh[:, 2] = np.nan
    return fresh


@njit(cache=True)
def append(state: F64, value: F64) -> None:
    """One more bucket, float[n]; NaN repeats the last value (and says nothing where there is none)."""
    width = (state.shape[1] - _HEAD) // 2
    for i in range(state.shape[0]):
        if np.isfinite(value[i]):
            state[i, 2] = value[i]
        new = state[i, 2]
        if np.isnan(new):
            continue
        held, place = int(state[i, 0]), int(state[i, 1])
        ordered = state[i, _HEAD + width :]
        if held < width:
            at = held
            state[i, 0] = held + 1
        else:
            at = _place(ordered, held, state[i, _HEAD + place])
        _slide(ordered, at, min(held + 1, width), new)
        state[i, _HEAD + place] = new
        state[i, 1] = place + 1 if place + 1 < width else 0


@njit(cache=True)
def _place(ordered: F64, held: int, value: float) -> int:
    """Index of the first of the ordered values that is not below `value`."""
    low = 0
    size = held
    while size > 1:  # without a branch on the data: it would be mispredicted half of the time
        half = size // 2
        low += half if ordered[low + half - 1] < value else 0
        size -= half
    return low


@njit(cache=True)
def _slide(ordered: F64, at: int, held: int, new: float) -> None:
    """Put `new` where it belongs; index `at` is free."""
    while at + 1 < held and ordered[at + 1] < new:
        ordered[at] = ordered[at + 1]
        at += 1
    while at > 0 and ordered[at - 1] > new:
        ordered[at] = ordered[at - 1]
        at -= 1
    ordered[at] = new


@njit(cache=True)
def quantiles(state: F64, levels: F64) -> F64:
    """Empirical quantiles (linear interpolation, as numpy) at levels f64[q] in 0 .. 1: f64[n, q]; NaN where nothing is held."""
    width = (state.shape[1] - _HEAD) // 2
    n = state.shape[0]
    out = np.full((n, levels.shape[0]), np.nan)
    for i in range(n):
        held = int(state[i, 0])
        ordered = state[i, _HEAD + width :]
        if held > 0:
            for k in range(levels.shape[0]):
                position = levels[k] * (held - 1)
                low = int(position)
                below = float(ordered[low])
                out[i, k] = below + (position - low) * (ordered[min(low + 1, held - 1)] - below)
    return out


@njit(cache=True)
def forecast(state: F64, steps: int) -> F64:
    """The median at every step: f64[n, steps]."""
    middle = quantiles(state, np.array([0.5]))
    out = np.empty((state.shape[0], steps))
    for i in range(state.shape[0]):
        out[i, :] = middle[i, 0]
    return out


@njit(cache=True)
def forecast_mean(state: F64, steps: int) -> F64:
    """The mean at every step: f64[n, steps]. Summed anew each time: a running sum would gather rounding for ever."""
    out = np.full((state.shape[0], steps), np.nan)
    for i in range(state.shape[0]):
        held = int(state[i, 0])
        total = 0.0
        for k in range(_HEAD, _HEAD + held):
            total += state[i, k]
        if held > 0:
            out[i, :] = total / held
    return out


@njit(cache=True)
def window_quantiles(filled: F64, width: int, levels: F64) -> F64:
    """Empirical quantiles (linear interpolation, as numpy) of the newest `width` points: f64[n, len(levels)]."""
    n, b = filled.shape
    w = min(width, b)
    out = np.empty((n, levels.shape[0]))
    for i in range(n):
        ordered = np.sort(filled[i, b - w :])
        for k in range(levels.shape[0]):
            position = levels[k] * (w - 1)
            low = int(position)
            high = min(low + 1, w - 1)
            out[i, k] = ordered[low] + (position - low) * (ordered[high] - ordered[low])
    return out


@njit(cache=True)
def sliding_maxima(filled: F64, count: int, steps: int) -> F64:
    """Mean over the newest `count` windows of the maximum of s + 1 buckets, s < steps: f64[n, steps]. How high it usually gets."""
    n, b = filled.shape
    out = np.zeros((n, steps))
    for i in range(n):
        windows = 0
        for start in range(max(b - count - steps, 0), b - steps + 1):
            highest = -np.inf
            for s in range(steps):
                highest = max(highest, filled[i, start + s])
                out[i, s] += highest
            windows += 1
        if windows == 0:
            highest = -np.inf
            for t in range(b):
                highest = max(highest, filled[i, t])
            out[i, :] = highest
        else:
            for s in range(steps):
                out[i, s] /= windows
    return out
