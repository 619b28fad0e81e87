"""A zero-shot foundation model as anchor: fracast (Apache-2.0, 85,001 parameters, weights inside its wheel; extra `neural`).

It says the deciles .1 to .9 and nothing else, so both sides are scored on those: the engine's quantiles are interpolated between LEVELS,
linearly in the normal score, which costs the engine a little and never helps it. Source: https://pypi.org/project/fracast/.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from statistics import NormalDist
from typing import Any, Final, NamedTuple

import numpy as np

from bench.forecast_protocol import I64, actuals, scales_of, series_of
from bench.traces import Trace
from coordinator.model import F32, F64, LEVELS
from shared.units import HORIZON_STEPS

DECILES: Final = tuple(round(0.1 * k, 1) for k in range(1, 10))
HISTORY: Final = 2048  # it takes the newest part of it that fits its context
LEAST: Final = 32  # readings; with fewer it refuses


class Zero(NamedTuple):
    """What the model said: deciles float32[o, v, r, 12, 9] (NaN = it was not asked) and its CPU seconds per series and origin."""

    deciles: F32
    cpu_s: float


def installed() -> bool:
    """Whether the extra is there."""
    return importlib.util.find_spec("fracast") is not None and importlib.util.find_spec("torch") is not None


def zero_shot(trace: Trace, origins: I64) -> Zero:
    """Forecast every scored series at every origin, one batch per origin, one thread."""
    importlib.import_module("torch").set_num_threads(1)
    model: Any = importlib.import_module("fracast").FracastModel.from_pretrained(weights="fp32")
    series = trace.mean[:, trace.resources].reshape(-1, trace.mean.shape[2])
    out = np.full((len(origins), len(series), HORIZON_STEPS, len(DECILES)), np.nan, dtype=np.float32)
    asked, began = 0, time.process_time()
    for j, origin in enumerate(origins):
        past = series[:, max(0, origin + 1 - HISTORY) : origin + 1]
        able = np.flatnonzero((~np.isnan(past[:, -512:])).sum(axis=1) >= LEAST)
        if len(able):
            out[j, able] = model.forecast_batch(past[able], horizon=HORIZON_STEPS)
            asked += len(able)
    taken = time.process_time() - began
    shape = (len(origins), len(trace.mean), len(trace.resources), HORIZON_STEPS, len(DECILES))
    return Zero(np.maximum(np.sort(out, axis=-1), 0.0).reshape(shape), taken / max(asked, 1))


def deciles_of(quantiles: F32) -> F32:
    """Quantiles [..., q] at LEVELS -> [..., 9] at DECILES."""
    score = NormalDist().inv_cdf
    known: F64 = np.array([score(level) for level in LEVELS])
    parts = []
    for decile in DECILES:
        right = min(int(np.searchsorted(np.array(LEVELS), decile)), len(LEVELS) - 1)
        share = np.float32((score(decile) - known[right - 1]) / (known[right] - known[right - 1]))
        parts.append(quantiles[..., right - 1] * (1 - share) + quantiles[..., right] * share)
    return np.stack(parts, axis=-1)


def compare(trace: Trace, origins: I64, quantiles: F32, zero: Zero) -> dict[str, tuple[float, float]]:
    """Mean scaled pinball over DECILES per pair, (ours, zero-shot), where both spoke and the actual is known."""
    units = scales_of(trace)[0].astype(np.float32)[None, :, :, None]
    actual = actuals(trace.mean, trace, origins)
    losses = [_pinball(said, actual) / units for said in (deciles_of(quantiles), zero.deciles)]
    found = {}
    for pair in trace.pairs:
        mine, theirs = (series_of(pair, trace, loss, 1) for loss in losses)
        both = ~np.isnan(mine) & ~np.isnan(theirs)
        if both.any():
            found[pair.name] = (float(mine[both].mean(dtype=np.float64)), float(theirs[both].mean(dtype=np.float64)))
    return found


def _pinball(deciles: F32, actual: F32) -> F32:
    error = actual[..., None] - deciles
    level = np.array(DECILES, dtype=np.float32)
    total: F32 = np.maximum(level * error, (level - 1) * error).mean(axis=-1)
    return total
