"""De-censoring: uncapped traces through a capping host, limits at the 50th, 70th and 90th percentile of each VM's own demand.

Row 10 of the issue. Recovered = sum of (estimate - usage) over sum of (true demand - usage), 5-minute buckets, each VM scaled by its mean
demand so that no large VM decides. Because too much would also recover, two figures stand beside it: what the estimates exceed the truth by
(share of what was hidden), and their mean absolute error against that of usage. Hosts and their noise: bench/capping.py.
The bar is on the mean over sets and resources, each counted as 1 at most. On the kernel host nobody counts what a ceiling or a disk limit
hides, and guests refault half as fast as assumed: these lines show what the VM's past alone, or a wrong constant, makes of it.
Forecasts: the engine lives through the same stretch three times, on usage, on the estimates and on the truth, from a history whose last
part was capped as well; all three are judged by true demand. Under-estimate: mean of (truth - forecast mean); and the shortfall alone,
mean of max(truth - forecast, 0), less that of the engine that knew the truth (nobody escapes noise). Over-estimates count as 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.capping import HOSTS, bucket, cap, detail, limits_of
from bench.report import Figure, options, publish
from bench.traces import Size, Trace, load
from coordinator.demand.censoring import demand_of_columns
from coordinator.demand.sums import BucketSums
from coordinator.demand.tails import Tails
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.model import F64, N_RESOURCES, BucketBlock, HistoryBlock
from shared.units import BUCKET_S, HORIZON_STEPS, SAMPLE_PERIOD_S

LEVELS: Final = (0.5, 0.7, 0.9)
CAPPED: Final = 144  # buckets of history that are capped already, where half of the history is longer
RECOVERED, UNDER = 0.8, 0.5
LEAST_HARM: Final = 0.01  # of demand: where usage misleads by less there is nothing to halve
NAMES: Final = ("cpu", "memory", "disk", "net")
GROUP: Final = (0, 1, 2, 3, 3)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """One set on one host; rows are VMs x levels. Arrays float64[v, r, b] from the first capped bucket on; `past` before it."""

    past: F64
    truth: F64
    usage: F64
    estimate: F64
    capped: F64  # bool[v, r] as float: a limit was in force
    level: F64  # [v]
    scored: int  # newest buckets that forecasts are judged on


def replay(trace: Trace, host: str, seed: int) -> Replay:
    """Cap the end of a trace and estimate demand from what the host shows, bucket by bucket, as the coordinator does."""
    mean = np.maximum(trace.mean.astype(np.float64), 0.0)
    scored = mean.shape[2] - trace.loaded
    start = trace.loaded - min(CAPPED, trace.loaded // 2)
    limit = np.concatenate([limits_of(mean[..., start:], level) for level in LEVELS])
    mean = np.tile(mean, (len(LEVELS), 1, 1))
    past, stretch = mean[..., :start], mean[..., start:]
    capped = cap(detail(stretch, seed), limit, host)
    vm_ids = tuple(f"vm{i}" for i in range(len(mean)))
    tails = Tails()
    for b in range(max(0, start - 2016), start):
        tails.learn(vm_ids, past[..., b], np.zeros(past.shape[:2]))
    usage, estimate = np.full_like(stretch, np.nan), np.full_like(stretch, np.nan)
    for b in range(stretch.shape[2]):
        sums = BucketSums()
        rows, columns = bucket(capped.columns, b)
        sums.add(len(vm_ids), rows, np.full(len(rows), float(SAMPLE_PERIOD_S)), demand_of_columns(columns))
        totals = sums.totals(vm_ids, tails, learn=True)
        usage[..., b], estimate[..., b] = totals.usage, totals.mean
    return Replay(
        past=past,
        truth=stretch,
        usage=usage,
        estimate=estimate,
        capped=np.isfinite(limit).astype(np.float64),
        level=np.repeat(LEVELS, len(mean) // len(LEVELS)),
        scored=scored,
    )


def recovery(found: Replay) -> dict[tuple[int, float], tuple[float, float, float, float]]:
    """(hidden share of demand, recovered, too much, error against usage's) per resource group and level, where a limit was in force."""
    scale = mean_demand(found)
    out = {}
    for group in range(len(NAMES)):
        for level in LEVELS:
            chosen = (found.capped > 0) & (np.array(GROUP) == group) & (found.level == level)[:, None] & (scale > 0)
            known = np.isfinite(found.truth[chosen]) & np.isfinite(found.estimate[chosen])
            unit = scale[chosen][:, None]
            truth, usage, estimate = (np.where(known, array[chosen], 0.0) / unit for array in (found.truth, found.usage, found.estimate))
            hidden = np.maximum(truth - usage, 0.0).sum()
            if hidden > 0:
                recovered = (estimate - usage).sum() / hidden
                too_much = np.maximum(estimate - truth, 0.0).sum() / hidden
                error = np.abs(estimate - truth).sum() / np.abs(usage - truth).sum()
                out[group, level] = (float(hidden / truth.sum()), float(recovered), float(too_much), float(error))
    return out


def mean_demand(found: Replay) -> F64:
    """True mean demand float64[v, r], 0 where unknown."""
    both = np.concatenate([found.past, found.truth], axis=2)
    known = np.isfinite(both)
    mean: F64 = np.where(known, both, 0.0).sum(axis=2) / np.maximum(known.sum(axis=2), 1)
    return mean


def forecast_errors(found: Replay) -> dict[str, F64]:
    """truth - forecast mean of engines fed with usage, estimates and truth: [v, r, origin, step], NaN unknown or not capped."""
    scored = found.scored
    vms = found.truth.shape[0]
    names = tuple(f"vm{i}" for i in range(vms))
    out = {}
    for name, array in (("usage", found.usage), ("demand", found.estimate), ("truth", found.truth)):
        series = np.concatenate([found.past, array], axis=2).astype(np.float32)
        history = series[..., : series.shape[2] - scored]
        engine = ForecastEngine(ForecastOptions(boosting=False, ring=600, replay=72))
        unknown = np.full(history.shape[:2], np.nan, dtype=np.float32)
        end_s = (history.shape[2] - 1) * BUCKET_S
        engine.load(HistoryBlock(vm_ids=names, end_s=end_s, mean=history, peak=history, censored=np.zeros_like(history), capacity=unknown))
        errors = []
        for k in range(scored - HORIZON_STEPS):
            values = series[..., series.shape[2] - scored + k].astype(np.float64)
            issued = engine.advance(_block(names, end_s + (k + 1) * BUCKET_S, values), {})
            first = found.truth.shape[2] - scored + k + 1
            errors.append(found.truth[..., first : first + HORIZON_STEPS] - issued.mean)
        out[name] = np.where(found.capped[..., None, None] > 0, np.stack(errors, axis=2), np.nan)
    return out


def _block(names: tuple[str, ...], start_s: int, values: F64) -> BucketBlock:
    return BucketBlock.unlimited(start_s, names, values)


def under_estimates(found: Replay, errors: dict[str, F64]) -> tuple[dict[str, float], dict[str, float]]:
    """(net under-estimate, shortfall) by what the engine was fed with, shares of demand, each VM scaled by its mean demand."""
    scale = mean_demand(found)[..., None, None]
    net, short = {}, {}
    for name, values in errors.items():
        scaled = np.where(scale > 0, values / np.where(scale > 0, scale, 1.0), np.nan)
        net[name] = float(np.nanmean(scaled))
        short[name] = float(np.nanmean(np.maximum(scaled, 0.0)))
    return net, short


def _recovery_figures(trace: Trace, host: str, found: Replay) -> list[Figure]:
    figures = []
    for (group, level), (hidden, recovered, too_much, error) in recovery(found).items():
        name = f"{host} host, {trace.name} {NAMES[group]} at p{100 * level:.0f}"
        print(f"{name:<44} hidden {hidden:6.1%}  recovered {recovered:6.1%}  too much {too_much:6.1%}  error {error:5.2f}x usage's")
        figures.append(Figure(name=f"recovered, {name}", value=recovered, unit="of hidden"))
        figures.append(Figure(name=f"too much, {name}", value=too_much, unit="of hidden"))
        figures.append(Figure(name=f"error, {name}", value=error, unit="x usage's"))
    return figures


def _forecast_figures(trace: Trace, host: str, found: Replay) -> list[Figure]:
    if not found.capped.any() or found.scored <= HORIZON_STEPS:
        return []
    net, short = under_estimates(found, forecast_errors(found))
    beyond = {name: short[name] - short["truth"] for name in ("usage", "demand")}
    print(
        f"{host} host, {trace.name}: forecasts under-estimate by {net['usage']:.1%} on usage, {net['demand']:.1%} de-censored, "
        f"{net['truth']:.1%} on the truth; shortfall {short['usage']:.1%}, {short['demand']:.1%}, {short['truth']:.1%}"
    )
    pairs = {"under-estimate": net, "shortfall beyond the truth's": beyond}
    ratios = {what: max(of["demand"], 0.0) / of["usage"] for what, of in pairs.items() if of["usage"] >= LEAST_HARM}
    return [
        Figure(name=f"{what}, {host} host, {trace.name}", value=value, unit="x usage's", bar="<= 0.5", holds=value <= UNDER, row=10)
        for what, value in ratios.items()
    ]


def _means(figures: list[Figure]) -> list[Figure]:
    """By host and level: the mean over sets and resources, none of which counts for more than all that was hidden."""
    means = []
    for host in HOSTS:
        for level in LEVELS:
            place = f"p{100 * level:.0f}"
            found = [min(f.value, 1.0) for f in figures if f.name.startswith(f"recovered, {host}") and f.name.endswith(place)]
            if found:
                value = float(np.mean(found))
                name = f"recovered at {place} on the {host} host, {len(found)} resources of sets"
                means.append(Figure(name=name, value=value, unit="of hidden", bar=">= 0.8", holds=value >= RECOVERED, row=10))
    return means


def main() -> None:
    """Run over all sets and hosts."""
    arguments = options(__doc__ or "").parse_args()
    size = Size(vms=5, scored=30, trained=5) if arguments.quick else Size(vms=40, scored=144, trained=8)
    figures: list[Figure] = []
    for trace in load(arguments.data, arguments.quick, size):
        thin = trace.thin(size.vms)
        for seed, host in enumerate(HOSTS):
            found = replay(thin, host, seed)
            figures += _recovery_figures(trace, host, found)
            if host == HOSTS[0] or not arguments.quick:
                figures += _forecast_figures(trace, host, found)
    figures += _means(figures)
    publish(figures, arguments.json)


assert len(GROUP) == N_RESOURCES

if __name__ == "__main__":
    main()
