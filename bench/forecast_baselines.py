"""What the engine is measured against: rules that anyone can run, all as quantile forecasts at LEVELS, cut off at 0.

Each is a Forecaster (bench/forecast_protocol.py) and sees nothing after its origin. Windows skip missing buckets; a window without any
reading falls back on the newest reading before it.
"""

# mypy: disable-error-code="untyped-decorator, no-any-return"
# (numba's njit has no types)

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numba import njit

from bench.forecast_protocol import FLOORS, I64, Forecaster, Issued
from bench.traces import Trace
from coordinator.model import F32, F64, LEVELS
from shared.units import HORIZON_STEPS

TAU: Final = np.array(LEVELS)
NORMAL: Final = np.array([NormalDist().inv_cdf(level) for level in LEVELS])
DIFFERENCES: Final = 288  # a day of changes behind the empirical naive and the random walk's sigma
ALPHAS: Final = np.array([0.03, 0.08, 0.15, 0.25, 0.4, 0.6, 0.8, 1.0])
RATIO: Final = 1.05  # of neighbouring buckets of the decaying histogram, as in the Kubernetes vertical-pod-autoscaler
CELLS: Final = 560  # 1.05^560 = 7e11 times the smallest


def empirical(window: int) -> Forecaster:
    """Quantiles of the newest `window` buckets, the same at every step (EmpQ12 = the rolling median of the hour with its band)."""

    def run(trace: Trace, origins: I64) -> Issued:
        return Issued(_flat(_window_levels(_series(trace), origins, window, TAU), trace))

    return run


def random_walk(trace: Trace, origins: I64) -> Issued:
    """Newest value, normal with the root of the step: StatsForecast's Naive with its native intervals."""
    last, sigma = _random_walk(_series(trace), origins, DIFFERENCES)
    spread = sigma[..., None, None] * np.sqrt(np.arange(1, HORIZON_STEPS + 1))[:, None] * NORMAL
    return Issued(_shaped(last[..., None, None] + spread, trace))


def naive(trace: Trace, origins: I64) -> Issued:
    """Newest value plus the empirical quantiles of its changes over as many steps within the newest day (looked up anew every hour)."""
    return Issued(_shaped(_naive(_series(trace), origins, DIFFERENCES, HORIZON_STEPS, TAU), trace))


def smoothing(trace: Trace, origins: I64) -> Issued:
    """Simple exponential smoothing, alpha from a grid by one-step errors of late, with pooled scaled signed conformal quantiles.

    The pool are the residuals of all VMs at all steps that end before the scored part.
    """
    series = _series(trace)
    level, unit = _smooth(series, ALPHAS, np.repeat(FLOORS[None, list(trace.resources)], len(trace.mean), axis=0).ravel())
    shape = np.zeros((len(trace.resources), HORIZON_STEPS, len(LEVELS)))
    by_resource = (len(trace.mean), len(trace.resources), -1)
    known, levels, units = series.reshape(by_resource), level.reshape(by_resource), unit.reshape(by_resource)
    for r in range(len(trace.resources)):
        for h in range(HORIZON_STEPS):
            end = trace.loaded
            scaled = (known[:, r, h + 1 : end] - levels[:, r, : end - h - 1]) / units[:, r, : end - h - 1]
            scaled = scaled[:, min(36, end // 4) :]
            scaled = scaled[np.isfinite(scaled)]
            if len(scaled):
                shape[r, h] = np.quantile(scaled, TAU)
    out = levels[..., origins, None, None] + units[..., origins, None, None] * shape[None, :, None]
    return Issued(np.maximum(np.moveaxis(out, 2, 0), 0.0).astype(np.float32))


def decaying_percentile(half_life: int = 288) -> Forecaster:
    """Percentiles of a decaying histogram of the bucket means (of the bucket peaks for the peak): the VPA-like rule, in buckets."""

    def run(trace: Trace, origins: I64) -> Issued:
        means = decayed(_series(trace), origins, TAU, half_life)
        peaks = decayed(_series(trace, trace.peak), origins, TAU, half_life)
        shape = (len(trace.mean), len(trace.resources), len(origins), len(LEVELS))
        return Issued(_flat(means, trace), np.moveaxis(peaks.reshape(shape), 2, 0).astype(np.float32))

    return run


def decayed(series: F64, origins: I64, levels: F64, half_life: int) -> F64:
    """Percentiles float64[n, o, q] of histograms that halve every `half_life` buckets; a cell speaks with its upper end."""
    first = np.maximum(np.nanmax(np.nan_to_num(series[:, : int(origins[0]) + 1]), axis=1) * 1e-6, 1e-6)
    return _decayed(series, origins, levels, 0.5 ** (1.0 / half_life), first, RATIO, CELLS)


def statsforecast_model(name: str, history: int = 288) -> Forecaster:
    """One of STATSFORECAST per series and origin, with native intervals. Milliseconds each: for few origins."""
    kind, arguments, _ = STATSFORECAST[name]
    return statsforecast_class(kind, arguments, history)


def statsforecast_class(kind: str, arguments: dict[str, Any], history: int = 288) -> Forecaster:
    """Any class of statsforecast.models, likewise."""

    def run(trace: Trace, origins: I64) -> Issued:
        model = getattr(importlib.import_module("statsforecast.models"), kind)
        series = _series(trace)
        out = np.full((len(series), len(origins), HORIZON_STEPS, len(LEVELS)), np.nan)
        central = [90, 95, 98, 80, 50]  # two-sided levels in percent, whose bounds are LEVELS but the median
        for i, j, past in _pasts(series, origins, history):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # fits of noise warn in many ways; what counts is the score
                said = model(**arguments).forecast(y=past, h=HORIZON_STEPS, level=central)
            for q, level in enumerate(LEVELS):
                side = round(100 * abs(2 * level - 1))
                key = "mean" if level == 0.5 else f"{'hi' if level > 0.5 else 'lo'}-{side}"
                out[i, j, :, q] = said[key]
        return Issued(_shaped(np.sort(out, axis=-1), trace))

    return run


def _pasts(series: F64, origins: I64, history: int) -> Iterator[tuple[int, int, F64]]:
    """(series, origin's position, gap-free newest `history` values) where there are five readings at least."""
    for i, row in enumerate(series):
        for j, origin in enumerate(origins):
            past = row[max(0, origin + 1 - history) : origin + 1]
            there = np.flatnonzero(~np.isnan(past))
            if len(there) >= 5:
                last = there[np.maximum(np.searchsorted(there, np.arange(there[0], len(past)), side="right") - 1, 0)]
                yield i, j, past[last]


def _series(trace: Trace, values: F32 | None = None) -> F64:
    """float64[n, b], n = VM x scored resource."""
    picked = (trace.mean if values is None else values)[:, trace.resources]
    return picked.reshape(-1, picked.shape[-1]).astype(np.float64)


def _shaped(out: F64, trace: Trace) -> F32:
    """[n, o, 12, q] -> [o, v, r, 12, q], not below 0."""
    shape = (len(trace.mean), len(trace.resources), *out.shape[1:])
    return np.maximum(np.moveaxis(out.reshape(shape), 2, 0), 0.0).astype(np.float32)


def _flat(out: F64, trace: Trace) -> F32:
    """[n, o, q] -> [o, v, r, 12, q], the same at every step."""
    return _shaped(np.broadcast_to(out[:, :, None], (*out.shape[:2], HORIZON_STEPS, out.shape[2])), trace)


@njit(cache=True)
def _quantile(ordered: Any, count: int, level: float) -> float:
    place = level * (count - 1)
    low = int(place)
    high = min(low + 1, count - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@njit(cache=True)
def _window_levels(series: Any, origins: Any, window: int, levels: Any) -> Any:
    out = np.full((len(series), len(origins), len(levels)), np.nan)
    held = np.empty(window)
    for i in range(len(series)):
        for j in range(len(origins)):
            count = 0
            for b in range(max(0, origins[j] + 1 - window), origins[j] + 1):
                if not np.isnan(series[i, b]):
                    held[count] = series[i, b]
                    count += 1
            b = origins[j] - window
            while count == 0 and b >= 0:
                if not np.isnan(series[i, b]):
                    held[0] = series[i, b]
                    count = 1
                b -= 1
            if count:
                ordered = np.sort(held[:count])
                for q in range(len(levels)):
                    out[i, j, q] = _quantile(ordered, count, levels[q])
    return out


@njit(cache=True)
def _newest(row: Any, origin: int) -> float:
    for b in range(origin, -1, -1):
        if not np.isnan(row[b]):
            return row[b]
    return np.nan


@njit(cache=True)
def _random_walk(series: Any, origins: Any, window: int) -> Any:
    last = np.full((len(series), len(origins)), np.nan)
    sigma = np.zeros((len(series), len(origins)))
    for i in range(len(series)):
        for j in range(len(origins)):
            last[i, j] = _newest(series[i], origins[j])
            total, count = 0.0, 0
            for b in range(max(1, origins[j] + 1 - window), origins[j] + 1):
                change = series[i, b] - series[i, b - 1]
                if not np.isnan(change):
                    total += change * change
                    count += 1
            if count:
                sigma[i, j] = np.sqrt(total / count)
    return last, sigma


@njit(cache=True)
def _naive(series: Any, origins: Any, window: int, steps: int, levels: Any) -> Any:
    out = np.full((len(series), len(origins), steps, len(levels)), np.nan)
    held = np.empty(window)
    for i in range(len(series)):
        change = np.zeros((steps, len(levels)))
        looked = -steps
        for j in range(len(origins)):
            if origins[j] - looked >= steps:
                looked = origins[j]
                for h in range(steps):
                    count = 0
                    for b in range(max(h + 1, looked + 1 - window), looked + 1):
                        difference = series[i, b] - series[i, b - h - 1]
                        if not np.isnan(difference):
                            held[count] = difference
                            count += 1
                    if count:
                        ordered = np.sort(held[:count])
                        for q in range(len(levels)):
                            change[h, q] = _quantile(ordered, count, levels[q])
            out[i, j] = _newest(series[i], origins[j]) + change
    return out


@njit(cache=True)
def _smooth(series: Any, alphas: Any, floors: Any) -> Any:
    """Level and usual change (both [n, b], never of later buckets) of the alpha with the least decayed one-step error so far."""
    n, buckets = series.shape
    level, unit = np.full((n, buckets), np.nan), np.full((n, buckets), np.nan)
    for i in range(n):
        states = np.full(len(alphas), np.nan)
        errors = np.zeros(len(alphas))
        change, weight, last = 0.0, 0.0, np.nan
        for b in range(buckets):
            x = series[i, b]
            if not np.isnan(x):
                for k in range(len(alphas)):
                    if np.isnan(states[k]):
                        states[k] = x
                    else:
                        error = x - states[k]
                        errors[k] = 0.99 * errors[k] + error * error
                        states[k] += alphas[k] * error
                if not np.isnan(last):
                    change = 0.97 * change + abs(x - last)
                    weight = 0.97 * weight + 1.0
                last = x
            best = np.argmin(errors)
            level[i, b] = states[best]
            unit[i, b] = max(change / max(weight, 1.0), floors[i], 0.005 * abs(states[best]))
    return level, unit


@njit(cache=True)
def _decayed(series: Any, origins: Any, levels: Any, keep: float, first: Any, ratio: float, cells: int) -> Any:
    out = np.full((len(series), len(origins), len(levels)), np.nan)
    for i in range(len(series)):
        weights = np.zeros(cells)
        total, gain, at = 0.0, 1.0, 0
        for b in range(origins[-1] + 1):
            gain /= keep  # later samples weigh more, instead of earlier ones less: one cell a bucket is touched
            x = series[i, b]
            if not np.isnan(x):
                cell = 0
                if x > first[i]:
                    cell = min(cells - 1, 1 + int(np.log(x / first[i]) / np.log(ratio)))
                weights[cell] += gain
                total += gain
            if gain > 1e100:
                weights /= gain
                total /= gain
                gain = 1.0
            if at < len(origins) and b == origins[at]:
                if total > 0.0:
                    seen, q = 0.0, 0
                    for cell in range(cells):
                        seen += weights[cell]
                        while q < len(levels) and seen >= levels[q] * total * (1.0 - 1e-12):
                            out[i, at, q] = first[i] * ratio**cell if cell > 0 else 0.0
                            q += 1
                at += 1
    return out


BASELINES: Final[dict[str, Forecaster]] = {
    "naive (random walk)": random_walk,
    "naive (empirical)": naive,
    "rolling median 1 h (EmpQ12)": empirical(12),
    "EmpQ36": empirical(36),
    "EmpQ72": empirical(72),
    "SES + pooled conformal": smoothing,
    "VPA-like percentiles": decaying_percentile(),
}

# by name: StatsForecast's class, its arguments, and whether --quick runs it too
STATSFORECAST: Final[dict[str, tuple[str, dict[str, Any], bool]]] = {
    "StatsForecast AutoETS ANN": ("AutoETS", {"model": "ANN", "season_length": 1}, True),
    "StatsForecast AutoCES": ("AutoCES", {"season_length": 1}, False),
    "StatsForecast Theta": ("Theta", {"season_length": 1}, False),
    "StatsForecast DynamicOptimizedTheta": ("DynamicOptimizedTheta", {"season_length": 1}, False),
}
