"""Forecasts of sums: coverage and width of client and host bands on public traces, against summed per-VM quantiles in the same run.

VMs of each set form groups of 5 to 60: clients and applications at random, hosts at random with some VMs migrating every few hours, and
"alike" applications of VMs whose demand peaks at the same time of day, so that members surge together. Baselines on the same VM
forecasts: summing the members' quantiles, and independent members (normal law with the root of the summed variances). Widths are geometric
means of ratios to the summed quantiles, coverage is over all (group, origin) pairs of at least
five members with a forecast that were all heard (so NAB, one resource a series, has hardly any). Summed quantiles that cover less than
they say are narrow for nothing: beside the bar stands the width against them widened in hindsight until they hold what they say.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.report import Figure, options, publish
from bench.traces import SHORT_NAMES, Trace, block, load
from coordinator.forecast.aggregate import AggregateForecast, Aggregator, GroupKey, Membership
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.model import F64, LEVELS, BucketBlock, ForecastBlock
from shared.units import BUCKET_S, HORIZON_STEPS

STEPS = (0, 5, 11)  # 5, 30 and 60 minutes ahead
BANDS = ((0.8, LEVELS.index(0.1), LEVELS.index(0.9), 1.2816), (0.95, LEVELS.index(0.025), LEVELS.index(0.975), 1.96))
SMALLEST, LARGEST, HOST_LARGEST = 5, 60, 20
MIGRATE_EVERY = 48  # buckets: then one VM in twenty changes its host
SCORED_KINDS = ("client", "host", "app", "fleet")


class Tally(NamedTuple):
    """One line of the table: sums over scored pairs."""

    inside: list[tuple[bool, bool]]
    naive: list[tuple[bool, bool]]  # summed quantiles
    alone: list[tuple[bool, bool]]  # independent members
    width: list[tuple[float, float]]  # log of width / summed quantiles' width
    needed: list[tuple[float, float]]  # how many times as wide the summed band must be to hold the actual


def cut(order: NDArray[np.int64], largest: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Group number per VM: consecutive runs of `order`, log-uniform sizes SMALLEST..largest; a short rest joins the last group."""
    out = np.zeros(len(order), dtype=np.int64)
    at = group = 0
    while at < len(order):
        size = int(np.exp(rng.uniform(np.log(SMALLEST), np.log(largest + 1))))
        if len(order) - at - size < SMALLEST:
            size = len(order) - at
        out[order[at : at + size]] = group
        at, group = at + size, group + 1
    return out


def phase_order(trace: Trace) -> NDArray[np.int64]:
    """VMs ordered by the time of day at which their loaded history is highest (first resource of the set)."""
    past = trace.mean[:, trace.resources[0], : trace.loaded].astype(np.float64)
    day = np.exp(2j * np.pi * np.arange(past.shape[1]) / 288)
    swing = (
        np.nan_to_num(past - np.nanmean(np.where(np.isnan(past).all(axis=1, keepdims=True), 0.0, past), axis=1, keepdims=True)) * day
    ).sum(axis=1)
    return np.argsort(np.angle(swing), kind="stable")


def memberships(trace: Trace, bucket: int) -> dict[str, Membership]:
    """Who is where in this bucket; hosts change by migrations, always the same ones."""
    rng = np.random.default_rng(12)
    v = len(trace.vm_ids)
    clients, hosts = cut(rng.permutation(v), LARGEST, rng), cut(rng.permutation(v), HOST_LARGEST, rng)
    apps = cut(phase_order(trace), HOST_LARGEST, rng)
    for _ in range(bucket // MIGRATE_EVERY):
        movers = rng.permutation(v)[: max(1, v // 20)]
        hosts[movers] = hosts[rng.permutation(v)[: len(movers)]]
    return {
        vm_id: Membership(app=f"alike-{a}", client=f"c{c}", host=f"h{h}")
        for vm_id, a, c, h in zip(trace.vm_ids, apps, clients, hosts, strict=True)
    }


def closed(trace: Trace, b: int) -> BucketBlock:
    """Bucket b as the coordinator sees it."""
    values = trace.mean[..., b].astype(np.float64)
    return BucketBlock.unlimited(trace.start_s + b * BUCKET_S, trace.vm_ids, values, trace.peak[..., b].astype(np.float64))


class Scores:
    """Tallies per (resource, kind, step)."""

    def __init__(self) -> None:
        self.lines: dict[tuple[int, str, int], Tally] = defaultdict(lambda: Tally([], [], [], [], []))

    def take(self, trace: Trace, b: int, vms: ForecastBlock, sums: AggregateForecast, rows: dict[GroupKey, list[int]]) -> None:
        """Score what was issued after bucket b against the future."""
        for g, key in enumerate(sums.groups):
            members = rows[key]
            for r in trace.resources:
                spoken = [v for v in members if np.isfinite(vms.mean[v, r, 0])]
                if len(spoken) < SMALLEST:
                    continue
                for step in STEPS:
                    actual = trace.mean[spoken, r, b + 1 + step].astype(np.float64)
                    if np.isnan(actual).any():
                        continue
                    self.pair(
                        self.lines[r, key.kind, step],
                        float(actual.sum()),
                        sums.quantiles[g, r, step].astype(np.float64),
                        vms.quantiles[spoken, r, step].sum(axis=0, dtype=np.float64),
                        (
                            float(vms.mean[spoken, r, step].sum(dtype=np.float64)),
                            float(np.sqrt((vms.stddev[spoken, r, step].astype(np.float64) ** 2).sum())),
                        ),
                    )

    @staticmethod
    def pair(line: Tally, actual: float, ours: F64, summed: F64, alone: tuple[float, float]) -> None:
        """One group at one origin and step."""
        line.inside.append((ours[BANDS[0][1]] <= actual <= ours[BANDS[0][2]], ours[BANDS[1][1]] <= actual <= ours[BANDS[1][2]]))
        line.naive.append((summed[BANDS[0][1]] <= actual <= summed[BANDS[0][2]], summed[BANDS[1][1]] <= actual <= summed[BANDS[1][2]]))
        line.alone.append((abs(actual - alone[0]) <= BANDS[0][3] * alone[1], abs(actual - alone[0]) <= BANDS[1][3] * alone[1]))
        floor = 1e-6 * max(summed[-1], 1.0)
        first, second = (
            float(np.log((ours[high] - ours[low] + floor) / (summed[high] - summed[low] + floor))) for _, low, high, _ in BANDS
        )
        line.width.append((first, second))
        middle = summed[LEVELS.index(0.5)]
        near, far = (
            float(
                (actual - middle) / (summed[high] - middle + floor)
                if actual > middle
                else (middle - actual) / (middle - summed[low] + floor)
            )
            for _, low, high, _ in BANDS
        )
        line.needed.append((near, far))


def run(trace: Trace) -> tuple[Scores, float, float]:
    """Scores, and CPU seconds of an advance of the VMs' engine and of the aggregator."""
    engine, aggregator, scores = ForecastEngine(ForecastOptions(boosting=False)), Aggregator(), Scores()
    past = block(trace.mean[..., : trace.loaded], trace.peak[..., : trace.loaded], trace.start_s + (trace.loaded - 1) * BUCKET_S)
    past = replace(past, vm_ids=trace.vm_ids)
    engine.load(past)
    aggregator.load(past, memberships(trace, 0))
    spent = [0.0, 0.0]
    buckets = range(trace.loaded, trace.mean.shape[2] - HORIZON_STEPS)
    for b in buckets:
        bucket, groups = closed(trace, b), memberships(trace, b - trace.loaded)
        rows: dict[GroupKey, list[int]] = defaultdict(list)
        for v, vm_id in enumerate(trace.vm_ids):
            for key in groups[vm_id].places():
                if key is not None:
                    rows[key].append(v)
        began = time.process_time()
        vms = engine.advance(bucket, {})
        between = time.process_time()
        sums = aggregator.advance(bucket, vms, groups)
        spent[0] += between - began
        spent[1] += time.process_time() - between
        scores.take(trace, b, vms, sums, rows)
    return scores, spent[0] / len(buckets), spent[1] / len(buckets)


def figures_of(trace: Trace, scores: Scores) -> list[Figure]:
    """Coverage and width per resource, kind and horizon; the bar stands on clients and hosts."""
    figures = []
    for (r, kind, step), line in sorted(scores.lines.items()):
        inside, naive, alone, width = (np.mean(np.array(part, dtype=np.float64), axis=0) for part in line[:4])
        widened = [float(np.quantile([pair[i] for pair in line.needed], band[0])) for i, band in enumerate(BANDS)]
        barred = kind in ("client", "host")
        for i, (nominal, *_) in enumerate(BANDS):
            label = f"{trace.name} {SHORT_NAMES[r]}, {kind}, {5 * (step + 1)} min, {nominal:.0%} band"
            bar, row = (f"{nominal:.2f} ± .03", 12) if barred else ("", 0)
            holds = bool(abs(inside[i] - nominal) <= 0.03) if barred else None
            figures.append(
                Figure(name=f"{label}: coverage ({len(line.inside)} pairs)", value=float(inside[i]), unit="", bar=bar, holds=holds, row=row)
            )
            ratio = float(np.exp(width[i]))
            holds = ratio <= 0.9 if barred else None
            figures.append(
                Figure(
                    name=f"{label}: width / summed quantiles",
                    value=ratio,
                    unit="ratio",
                    bar="<= 0.9" if barred else "",
                    holds=holds,
                    row=row,
                )
            )
            honest = ratio / max(widened[i], 1e-9)
            figures.append(Figure(name=f"{label}: width / summed quantiles widened until they cover", value=honest, unit="ratio"))
            figures.append(Figure(name=f"{label}: coverage of summed quantiles", value=float(naive[i]), unit=""))
            figures.append(Figure(name=f"{label}: coverage of independent members", value=float(alone[i]), unit=""))
    return figures


def overall(name: str, scores: Scores) -> list[Figure]:
    """Clients and hosts of a set together, all resources, per horizon."""
    figures = []
    for step in STEPS:
        lines = [line for (_, kind, s), line in scores.lines.items() if s == step and kind in ("client", "host")]
        if not lines:
            continue
        inside = np.mean([pair for line in lines for pair in line.inside], axis=0)
        width = np.mean([pair for line in lines for pair in line.width], axis=0)
        needed = np.array([pair for line in lines for pair in line.needed])
        for i, (nominal, *_) in enumerate(BANDS):
            label = f"{name}, clients and hosts, {5 * (step + 1)} min, {nominal:.0%} band"
            value, ratio = float(inside[i]), float(np.exp(width[i]))
            figures.append(
                Figure(
                    name=f"{label}: coverage", value=value, unit="", bar=f"{nominal:.2f} ± .03", holds=abs(value - nominal) <= 0.03, row=12
                )
            )
            figures.append(
                Figure(name=f"{label}: width / summed quantiles", value=ratio, unit="ratio", bar="<= 0.9", holds=ratio <= 0.9, row=12)
            )
            honest = ratio / max(float(np.quantile(needed[:, i], nominal)), 1e-9)
            figures.append(Figure(name=f"{label}: width / summed quantiles widened until they cover", value=honest, unit="ratio"))
    return figures


def main() -> None:
    """Run on every set that is there and has enough VMs for two groups."""
    arguments = options(__doc__ or "").parse_args()
    figures = []
    for trace in load(arguments.data, arguments.quick):
        if len(trace.vm_ids) < 2 * SMALLEST or not trace.resources:
            print(f"left out: {trace.name} has {len(trace.vm_ids)} VMs, groups need {2 * SMALLEST}")
            continue
        scores, engine_s, own_s = run(trace)
        figures += overall(trace.name, scores) + figures_of(trace, scores)
        figures.append(Figure(name=f"{trace.name}: CPU of the aggregates / of the VMs' forecasts", value=own_s / engine_s, unit="ratio"))
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
