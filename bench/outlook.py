"""The six-hour outlook on public traces: pinball against simple rules, and coverage, one, three and six hours ahead.

Issued each half hour of the scored part, as in production; scored is the mean of a half-hour block, and the peak within it. Rules, each
with bands of its own: SeasonalNaive (the same half hour of the day before) and the last value, both with the quantiles of their own errors
so far at that distance (the fleet's where a series has too few), and the quantiles of the newest day's blocks. Losses are scaled as in the
other benches, by the usual change between buckets in the history with a floor (forecast_protocol.scales_of); means are over all (series,
issue) pairs of which all speak. Coverage shares ties. Sets that begin with half a day of history have nothing seasonal to find, and their
last leads no errors to learn from: no bar stands on their coverage.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.forecast_protocol import SCORED_LEVELS, pinball, scales_of, series_of, shared_rank
from bench.report import Figure, options, publish
from bench.traces import Size, Trace, load
from coordinator.forecast.history import DemandWindow
from coordinator.forecast.outlook import OutlookPlanner
from coordinator.forecast.outlook.blocks import BUCKETS, DAY_BLOCKS, closes, fold
from coordinator.model import F32, LEVELS, N_RESOURCES, HistoryBlock
from shared.units import BUCKET_S, HORIZON_STEPS

QUICK: Final = Size(vms=30, trained=0, scored=288)
FULL: Final = Size(vms=100, trained=0, scored=864)
LEADS: Final = (1, 5, 11)  # blocks that end one, three and six hours ahead
LEAD_NAMES: Final = ("1 h", "3 h", "6 h")
BANDS: Final = ((0.8, 0.1, 0.9), (0.95, 0.025, 0.975))
LEAST_ERRORS: Final = 40  # of a series' own before they stand alone
RULES: Final = ("seasonal_naive", "last_value", "day_quantiles")


class Issues(NamedTuple):
    """What was said: quantiles [o, v, r, 12, q] of both targets at blocks `origins` (the newest known); r = place in Trace.resources."""

    origins: NDArray[np.int64]
    mean: F32
    peak: F32
    cpu_s: float


def ours(trace: Trace, blocks: NDArray[np.int64]) -> Issues:
    """The planner over the trace; `blocks` = index of the bucket that closes each block."""
    v = len(trace.vm_ids)
    planner, window = OutlookPlanner(), DemandWindow(48)
    for part in (planner, window):
        part.rearrange(np.full(v, -1))
    unlimited = np.full((v, N_RESOURCES), np.nan)
    loaded = trace.loaded
    planner.load(
        HistoryBlock(
            vm_ids=trace.vm_ids,
            end_s=trace.start_s + (loaded - 1) * BUCKET_S,
            mean=trace.mean[..., :loaded],
            peak=trace.peak[..., :loaded],
            censored=trace.mean[..., :loaded] * 0,
            capacity=unlimited.astype(np.float32),
        )
    )
    planner.take(trace.vm_ids)
    for b in range(loaded - 48, loaded):
        window.append(trace.mean[..., b], trace.peak[..., b])
    resources, at, mean, peak, cpu_s = list(trace.resources), [], [], [], 0.0
    for b in range(loaded, trace.mean.shape[2]):
        window.append(trace.mean[..., b], trace.peak[..., b])
        began = time.process_time()
        planner.bucket(trace.start_s + b * BUCKET_S, window, unlimited)
        said = planner.take(trace.vm_ids)
        cpu_s += time.process_time() - began
        if said is not None:
            at.append(int(np.flatnonzero(blocks == (said.issued_s - trace.start_s) // BUCKET_S - 1)[0]))
            mean.append(said.quantiles[:, resources])
            peak.append(said.peak_quantiles[:, resources])
    return Issues(np.array(at), np.stack(mean), np.stack(peak), cpu_s / max(len(at), 1))


def rule(name: str, series: F32, origins: NDArray[np.int64]) -> F32:
    """Quantiles [o, s, leads, q] of a rule on blocks [s, b]."""
    out = np.full((len(origins), len(series), len(LEADS), len(LEVELS)), np.nan, dtype=np.float32)
    for o, origin in enumerate(origins):
        past = series[:, : origin + 1]
        for i, lead in enumerate(LEADS):
            if name == "day_quantiles":
                out[o, :, i] = _quantiles(past[:, -DAY_BLOCKS:])
                continue
            back = DAY_BLOCKS if name == "seasonal_naive" else lead + 1
            point = _shifted(past, lead + 1 - back)
            errors = past[:, back:] - past[:, :-back] if past.shape[1] > back else past[:, :0]
            errors = errors[:, -7 * DAY_BLOCKS :]
            own = _quantiles(errors)
            few = (~np.isnan(errors)).sum(axis=1) < LEAST_ERRORS
            known = errors[~np.isnan(errors)]
            if few.any() and len(known):
                own[few] = np.quantile(known, LEVELS)
            out[o, :, i] = np.maximum(point[:, None] + np.nan_to_num(own), 0.0)
    return out


def _shifted(past: F32, by: int) -> F32:
    """The value at `by` blocks from the newest (0 = the newest), the newest known before it where there is none."""
    until = past[:, : past.shape[1] + by] if by < 0 else past
    if not until.shape[1]:
        until = past
    known = ~np.isnan(until)
    last = until.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
    return np.where(known.any(axis=1), until[np.arange(len(until)), last], np.float32(np.nan))


def _quantiles(values: F32) -> F32:
    """float32[s, q] of the known values of each row; NaN where there is none."""
    out = np.full((len(values), len(LEVELS)), np.nan, dtype=np.float32)
    some = (~np.isnan(values)).any(axis=1)
    if some.any():
        out[some] = np.nanquantile(values[some], LEVELS, axis=1).T
    return out


def figures_of(trace: Trace) -> list[Figure]:
    """One set, a part for each of its pairs."""
    first = next(b for b in range(BUCKETS) if closes(trace.start_s + b * BUCKET_S))
    closing = np.arange(first, trace.mean.shape[2], BUCKETS)
    means, peaks = fold(trace.mean[..., : closing[-1] + 1], trace.peak[..., : closing[-1] + 1])
    said = ours(trace, closing)
    scales = scales_of(trace)[0]
    short = trace.loaded < 2 * DAY_BLOCKS * BUCKETS
    figures = []
    for pair in trace.pairs:
        unit = series_of(pair, trace, scales, 0).astype(np.float32)
        for what, values, mine in (("mean", means, said.mean), ("peak", peaks, said.peak)):
            series = series_of(pair, trace, values[:, list(trace.resources)], 0)
            told = series_of(pair, trace, mine, 1)
            scored = scored_of(series, said.origins, told, unit)
            figures += _lines(f"{pair.name}, {what}", scored, barred=what == "mean", short=short)
    took = said.cpu_s / (len(trace.vm_ids) * N_RESOURCES) * 1e6
    return [*figures, Figure(name=f"{trace.name}: CPU of an issue", value=took, unit="us/series")]


class Scored(NamedTuple):
    """Mean scaled loss by forecaster, and ranks of the actuals in ours, each at the three leads."""

    losses: dict[str, list[float]]
    ranks: list[tuple[F32, F32]]


def scored_of(series: F32, origins: NDArray[np.int64], mine: F32, unit: F32) -> Scored:
    """Over the pairs that all speak of. series [s, b] blocks, mine [o, s, 12, q], unit [s]."""
    padded = np.pad(series, ((0, 0), (0, HORIZON_STEPS)), constant_values=np.nan)
    said = {name: rule(name, series, origins) for name in RULES} | {"outlook": mine[:, :, list(LEADS)]}
    scored = Scored({name: [] for name in said}, [])
    for i, lead in enumerate(LEADS):
        actual = padded[:, origins + lead + 1].T  # [o, s]
        due = ~np.isnan(actual + unit) & np.logical_and.reduce([~np.isnan(each[:, :, i, 0]) for each in said.values()])
        for name, each in said.items():
            loss = (pinball(each[:, :, i], actual, SCORED_LEVELS) / unit)[due]
            scored.losses[name].append(float(loss.mean()) if len(loss) else float("nan"))
        scored.ranks.append(shared_rank(said["outlook"][:, :, i][due], actual[due]))
    return scored


def _lines(title: str, scored: Scored, *, barred: bool, short: bool) -> list[Figure]:
    figures = []
    for i, label in enumerate(LEAD_NAMES):
        name, best = f"{title}, {label}", min(scored.losses[each][i] for each in RULES)
        figures += [Figure(name=f"{name}: {each}", value=loss[i], unit="pinball") for each, loss in scored.losses.items() if barred]
        ratio = scored.losses["outlook"][i] / best
        held = ratio < 1.0 if barred else None
        figures.append(Figure(name=f"{name}: outlook / best rule", value=ratio, unit="ratio", bar="< 1" if barred else "", holds=held))
        low, high = scored.ranks[i]
        for nominal, least, most in BANDS:
            inside = _covered(low, high, least, most)
            bar, held = ("", None) if short else (f"{nominal:.2f} ± .03", abs(inside - nominal) <= 0.03)
            label_ = f"{name}: {nominal:.0%} covered ({len(low)} pairs)"
            figures.append(Figure(name=label_, value=inside, unit="", bar=bar, holds=held))
    return figures


def _covered(low: F32, high: F32, least: float, most: float) -> float:
    """Share of the ranks inside a band, ties shared."""
    width = high - low
    overlap = np.clip(np.minimum(high, most) - np.maximum(low, least), 0.0, None)
    inside = (low >= np.float32(least)) & (low <= np.float32(most))
    return float(np.where(width > 0, overlap / np.where(width > 0, width, 1.0), inside).mean())


def cost() -> list[Figure]:
    """CPU of the outlook in a tick of 40,000 series, from 10,000: mean of a half hour's six ticks, and the dearest of them."""
    v, hours = 2000, 3
    rng = np.random.default_rng(3)
    course = 100.0 * rng.lognormal(0, 1, (v, N_RESOURCES, 1)) * (1.5 + np.sin(np.arange(8 * DAY_BLOCKS * BUCKETS) * (2 * np.pi / 288)))
    past = (course * rng.uniform(0.9, 1.1, course.shape)).astype(np.float32)
    unlimited = np.full((v, N_RESOURCES), np.nan, dtype=np.float32)
    planner, window = OutlookPlanner(replay=14), DemandWindow(48)
    for part in (planner, window):
        part.rearrange(np.full(v, -1))
    names = tuple(f"vm{i}" for i in range(v))
    end_s = past.shape[2] * BUCKET_S - BUCKET_S
    planner.load(HistoryBlock(vm_ids=names, end_s=end_s, mean=past, peak=past * 2, censored=past, capacity=unlimited))
    spent = []
    for b in range(hours * 2 * BUCKETS):
        window.append(past[..., b], past[..., b] * 2)
        began = time.process_time()
        planner.bucket(end_s + (b + 1) * BUCKET_S, window, unlimited.astype(np.float64))
        spent.append((time.process_time() - began) * 4000.0)
    name = "tick of 40,000 series, from 10,000: CPU of the outlook"
    mean = float(np.mean(spent))
    most = float(np.median(np.reshape(spent, (-1, BUCKETS)).max(axis=1)))
    return [
        Figure(name=f"{name}, mean of the ticks", value=mean, unit="ms", bar="<= 50", holds=mean <= 50.0),
        Figure(name=f"{name}, dearest of six", value=most, unit="ms"),
    ]


def main() -> None:
    """Every set that is there."""
    arguments = options(__doc__ or "").parse_args()
    figures = cost()
    for trace in load(arguments.data, arguments.quick, QUICK if arguments.quick else FULL):
        figures += figures_of(trace)
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
