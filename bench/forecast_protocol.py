"""How forecasts are scored: origins, scales, pinball, MASE and coverage; the same for ours, for single members and for every baseline.

`evaluate(trace, forecaster)` is the dense protocol: every scored bucket is an origin, twelve steps each. A forecaster may look at all
buckets up to and including its origin, at nothing later. Definitions, all of them for a (set, resource) pair:

- scale of a series = mean absolute change between neighbouring known buckets of its history, at least half a percent of its mean level and
  at least FLOORS (half a CPU point of one core on PlanetLab). Without a floor an idle VM's first packet would weigh like a fleet. A series
  without a reading in its history has no scale and is not scored.
- pinball = mean over SCORED_LEVELS (.025 .1 .25 .5 .75 .9 .975), over scale, over all known (origin, series, step); trimmed = without the
  largest 1 % of the forecaster's own errors. MASE = |actual - median| over scale, likewise.
- coverage shares ties: where the actual equals several quantiles (an idle disk: 0 = every level), its rank is spread over the levels it
  ties with, as a randomised probability integral transform does in expectation. `closed_coverage` (as in FORECAST.md), `plain_above` and
  all per-VM figures do not share.
- volatility terciles: series by mean absolute change over mean level (plus floor) in the history.

Pure but for the CPU clock. Axes: o origin, s series (VM x resource of the pair), h step, q level.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.traces import Pair, Trace, block
from coordinator.model import F32, F64, LEVELS, BucketBlock
from coordinator.ports import ForecastShard
from shared.units import BUCKET_S, GIB, HORIZON_STEPS

I64 = NDArray[np.int64]

SCORED_LEVELS: Final = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
FLOORS: Final = np.array([5.0, GIB / 1024, 1024.0, 8000.0, 8000.0])  # 5 millicores, 1 MiB, 1 KiB/s, 8 kbit/s
LEVEL_FLOOR: Final = 0.005
TRIMMED: Final = 0.99
MIDDLE: Final = LEVELS.index(0.5)
BANDS: Final = ((0.1, 0.9), (0.025, 0.975))
UPPER: Final = LEVELS.index(0.975)
LEAST_POINTS: Final = 100  # a VM with fewer scored points has no coverage of its own


class Issued(NamedTuple):
    """Forecasts of the tested VMs at some origins. r = position in `trace.resources`."""

    quantiles: F32  # [o, v, r, 12, q]
    peaks: F32 | None = None  # [o, v, r, q] of the largest bucket peak of the next hour; None = makes none

    def at(self, which: I64) -> Issued:
        """Only these positions of the origins."""
        return Issued(self.quantiles[which], None if self.peaks is None else self.peaks[which])


Forecaster = Callable[[Trace, I64], Issued]  # (trace, origins) -> Issued; origin = index of the newest known bucket


@dataclass(frozen=True, kw_only=True)
class Score:
    """Figures of one forecaster on one pair. Arrays `by_series` are [s] with NaN for series that are not scored."""

    pinball: float
    pinball_trimmed: float
    mase: float
    mase_trimmed: float
    mase_by_step: F64  # [h]
    by_series: F64  # scaled pinball
    points: I64  # scored (origin, step) per series
    coverage: F64  # [band, h], BANDS, ties shared
    closed_coverage: F64  # the same, a tie with a bound is inside: higher than nominal wherever the data repeats values (whole percents, 0)
    above: float  # share above the upper 97.5 % bound, ties shared
    plain_above: float
    above_by_tercile: F64  # [3] plain, calm to volatile
    poorly_covered: float  # share of VMs with less than 90 % of their actuals under the 97.5 % bound
    silent: float  # share of known actuals without a forecast
    cpu_s: float  # of the whole trace, all pairs


def dense(trace: Trace, stride: int = 1) -> I64:
    """Every bucket (or one in `stride`) with a whole horizon behind it, from the first after the history on."""
    return np.arange(trace.loaded, trace.mean.shape[2] - HORIZON_STEPS, stride)


def evaluate(trace: Trace, forecaster: Forecaster, origins: I64 | None = None) -> dict[str, Score]:
    """Score of every pair of the trace, by name."""
    at = dense(trace) if origins is None else origins
    issued, cpu_s = issue(trace, forecaster, at)
    return score(trace, at, issued, cpu_s)


def issue(trace: Trace, forecaster: Forecaster, origins: I64) -> tuple[Issued, float]:
    """Run it: what it said and the CPU seconds it took."""
    if len(origins) and not (trace.loaded <= origins.min() and origins.max() < trace.mean.shape[2] - 1):
        raise ValueError(f"origins {origins.min()} to {origins.max()}: allowed {trace.loaded} to {trace.mean.shape[2] - 2}")
    began = time.process_time()
    issued = forecaster(trace, origins)
    return issued, time.process_time() - began


def score(trace: Trace, origins: I64, issued: Issued, cpu_s: float = 0.0, at_origin: int | None = None) -> dict[str, Score]:
    """What was said against what came. `at_origin`: take the scale from so many buckets before each origin, as FORECAST.md's tables do."""
    scales, volatilities = scales_of(trace)
    units = scales[None] if at_origin is None else np.stack([scales_of(trace, int(o) + 1, at_origin)[0] for o in origins])
    found = actuals(trace.mean, trace, origins)
    return {pair.name: _score(pair, trace, issued.quantiles, found, units, volatilities, cpu_s) for pair in trace.pairs}


def actuals(values: F32, trace: Trace, origins: I64) -> F32:
    """float32[o, v, r, 12]: the buckets after each origin; NaN beyond the trace."""
    padded = np.pad(values[:, trace.resources, :], ((0, 0), (0, 0), (0, HORIZON_STEPS)), constant_values=np.nan)
    index = origins[:, None] + 1 + np.arange(HORIZON_STEPS)
    return np.ascontiguousarray(np.moveaxis(padded[:, :, index], 2, 0))


def scales_of(trace: Trace, until: int | None = None, window: int | None = None) -> tuple[F64, F64]:
    """Scale and volatility float64[v, r] of the history before bucket `until` (the scored part), of its newest `window` buckets."""
    end = trace.loaded if until is None else until
    past = trace.mean[:, trace.resources, 0 if window is None else max(0, end - window) : end].astype(np.float64)
    change = np.abs(np.diff(past, axis=-1))
    known = ~np.isnan(change)
    there = (~np.isnan(past)).sum(axis=-1)
    step = np.where(known, change, 0.0).sum(axis=-1) / np.maximum(known.sum(axis=-1), 1)
    level = np.nan_to_num(past).sum(axis=-1) / np.maximum(there, 1)
    floors = FLOORS[list(trace.resources)]
    scale = np.maximum(step, np.maximum(floors, LEVEL_FLOOR * level))
    return np.where(there > 1, scale, np.nan), step / (level + floors)


def pinball(quantiles: F32, actual: F32, levels: Sequence[float] = SCORED_LEVELS) -> F32:
    """Mean over `levels` (members of LEVELS) of the quantile loss of quantiles [..., q] at actual [...]."""
    total = np.zeros(actual.shape, dtype=np.float32)
    for level in levels:
        error = actual - quantiles[..., LEVELS.index(level)]
        total += np.maximum(np.float32(level) * error, np.float32(level - 1.0) * error)
    return total / np.float32(len(levels))


def series_of(pair: Pair, trace: Trace, values: NDArray[Any], axis: int) -> NDArray[Any]:
    """The pair's resources of an array with axes [.., v, r, ..] (v at `axis`) as one axis of series."""
    picked = np.take(values, [trace.resources.index(r) for r in pair.resources], axis=axis + 1)
    return picked.reshape(*picked.shape[:axis], -1, *picked.shape[axis + 2 :])


def shared_rank(quantiles: F32, actual: F32) -> tuple[F32, F32]:
    """Lowest and highest level that the actual stands for: equal where it ties with no quantile, apart where it ties with some."""
    tolerance = (1e-6 * np.abs(actual) + 1e-9)[..., None]
    difference = actual[..., None] - quantiles
    below = (difference > tolerance).sum(axis=-1)  # quantiles strictly below
    not_above = (difference >= -tolerance).sum(axis=-1)
    edges = np.array([0.0, *LEVELS, 1.0], dtype=np.float32)
    middles = np.array([(a + b) / 2 for a, b in pairwise(edges)], dtype=np.float32)
    # the probability of the tied value begins somewhere between the last level below it and the first that ties (0 when none is below)
    low = np.where((not_above > below) & (below == 0), 0.0, middles[below])
    high = np.where((not_above > below) & (not_above == len(LEVELS)), 1.0, middles[not_above])
    return low.astype(np.float32), high.astype(np.float32)


def _within(low: F32, high: F32, least: float, most: float) -> F32:
    """Share of the rank interval [low, high] that lies between two levels."""
    width = high - low
    overlap = np.clip(np.minimum(high, most) - np.maximum(low, least), 0.0, None)
    inside = (low >= np.float32(least)) & (low <= np.float32(most))
    return np.where(width > 0, overlap / np.where(width > 0, width, 1.0), inside).astype(np.float32)


def _score(pair: Pair, trace: Trace, all_quantiles: F32, all_actual: F32, units: F64, volatilities: F64, cpu_s: float) -> Score:
    quantiles, actual = series_of(pair, trace, all_quantiles, 1), series_of(pair, trace, all_actual, 1)
    unit = series_of(pair, trace, units, 1).astype(np.float32)[..., None]
    due = ~np.isnan(actual) & ~np.isnan(unit)
    known = due & ~np.isnan(quantiles[..., 0])
    if not known.any():
        raise ValueError(f"{pair.name}: nothing to score in {trace.mean.shape[2] - trace.loaded} buckets of {trace.mean.shape[0]} VMs")
    losses = np.where(known, pinball(quantiles, actual) / unit, np.nan)
    errors = np.where(known, np.abs(actual - quantiles[..., MIDDLE]) / unit, np.nan)
    points = known.sum(axis=(0, 2))
    said, came = quantiles[known], actual[known]
    low, high = shared_rank(said, came)
    step = np.broadcast_to(np.arange(HORIZON_STEPS), known.shape)[known]
    count = np.maximum(np.bincount(step, minlength=HORIZON_STEPS), 1)
    coverage = [np.bincount(step, _within(low, high, *band), minlength=HORIZON_STEPS) / count for band in BANDS]
    above = np.where(known, actual > quantiles[..., UPPER] * np.float32(1 + 1e-6), False)
    by_series = above.sum(axis=(0, 2)) / np.maximum(points, 1)
    enough = points >= LEAST_POINTS
    volatility = np.where(points > 0, series_of(pair, trace, volatilities, 0), np.nan)
    terciles = [part for part in np.array_split(np.argsort(volatility)[: int((points > 0).sum())], 3) if len(part)]
    return Score(
        pinball=float(np.nanmean(losses, dtype=np.float64)),
        pinball_trimmed=_trimmed(losses[known]),
        mase=float(np.nanmean(errors, dtype=np.float64)),
        mase_trimmed=_trimmed(errors[known]),
        mase_by_step=np.bincount(step, errors[known], minlength=HORIZON_STEPS) / count,
        by_series=np.where(points > 0, np.nansum(losses, axis=(0, 2), dtype=np.float64) / np.maximum(points, 1), np.nan),
        points=points,
        coverage=np.stack(coverage),
        closed_coverage=np.stack(
            [np.bincount(step, _closed(quantiles[known], actual[known], *band), HORIZON_STEPS) / count for band in BANDS]
        ),
        above=float(_within(low, high, 0.975 + 1e-6, 1.0).mean()),
        plain_above=float(above[known].mean()),
        above_by_tercile=np.array([above[:, part].sum() / max(1, points[part].sum()) for part in terciles]),
        poorly_covered=float((by_series[enough] > 0.1).mean()) if enough.any() else float("nan"),
        silent=float(1.0 - known.sum() / due.sum()),
        cpu_s=cpu_s,
    )


def _closed(quantiles: F32, actual: F32, least: float, most: float) -> NDArray[np.bool_]:
    low, high = quantiles[:, LEVELS.index(least)], quantiles[:, LEVELS.index(most)]
    inside: NDArray[np.bool_] = (actual >= low * np.float32(1 - 1e-6)) & (actual <= high * np.float32(1 + 1e-6))
    return inside


def _trimmed(values: F32) -> float:
    most = np.quantile(values, TRIMMED)
    return float(values[values <= most].mean(dtype=np.float64))


def shard_forecaster(make: Callable[[], ForecastShard]) -> Forecaster:
    """A forecast shard as a Forecaster: loaded with the history, advanced bucket by bucket, heard at the origins."""

    def run(trace: Trace, origins: I64) -> Issued:
        shard = make()
        shard.load(block(trace.mean[..., : trace.loaded], trace.peak[..., : trace.loaded], trace.start_s + (trace.loaded - 1) * BUCKET_S))
        heard = set(origins.tolist())
        resources = list(trace.resources)
        quantiles, peaks = [], []
        for b in range(trace.loaded, int(origins.max()) + 1):
            said = shard.advance(bucket_of(trace, b), {})
            if b in heard:
                quantiles.append(said.quantiles[:, resources])
                peaks.append(said.peak_quantiles[:, resources, -1])
        return Issued(np.stack(quantiles), np.stack(peaks))

    return run


def bucket_of(trace: Trace, b: int) -> BucketBlock:
    """Bucket `b` of the trace as it would arrive: uncensored, unlimited."""
    names = tuple(f"vm{i}" for i in range(len(trace.mean)))
    values, peaks = trace.mean[..., b].astype(np.float64), trace.peak[..., b].astype(np.float64)
    return BucketBlock.unlimited(trace.start_s + b * BUCKET_S, names, values, peaks)
