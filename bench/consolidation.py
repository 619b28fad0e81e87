"""Forecast, then pack: does our pair of forecaster and packer need fewer hosts than any other pair at the same share of overloaded hosts?

The protocol is that of CloudCons (Zhang et al., KDD 2026, arXiv 2606.13513): at rolling origins every VM is forecast; for each step ahead a
quantile of every forecast is packed into hosts of one capacity; the truth then says how many host-steps were over capacity, by how much,
how full hosts were and how uneven. Sweeping the quantile gives each pair (forecaster, packer) a front of hosts against violations.

Rivals pack per-VM quantiles, as the study does. Ours packs means and variances: a host must hold sum(mean) + z root(sum(variance)), so what
VMs need at different times is not added up; z is swept in place of the quantile. Beside it, for who wants to know where the gain comes
from: our forecasts under the rivals' packers, and the rivals' forecasts (their mean and spread read off their quantiles) under ours.

Hosts: one capacity per set and resource, a HOSTS-th of the mean demand of the history, but no smaller than the largest VM. Azure's few
VMs are cut into pieces of a week that start whole days apart, so that there is a fleet to pack. A set's row at 1 % and 5 %: hosts on the
pair's front at that share of host-steps over capacity, linear between its points; a pair that never gets so low has none.

    python -m bench.consolidation [--quick] [--data DIR] [--json FILE] [--without AutoARIMA]
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench import forecast_foundation as foundation
from bench.consolidation_packers import PACKERS
from bench.forecast_accuracy import factory
from bench.forecast_baselines import BASELINES, statsforecast_class
from bench.forecast_protocol import Forecaster, Issued, actuals, issue, shard_forecaster
from bench.report import Figure, options, publish
from bench.traces import DAY, Size, Trace, load
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.model import F32, F64, LEVELS
from coordinator.placement.packing.pooled import pack_pooled
from shared.units import CPU, HORIZON_STEPS, MEMORY

SETS: Final = ("bitbrains", "azure", "google")
ORIGINS: Final = 25
HOSTS: Final = 16  # that the mean demand would fill to the brim
PIECE: Final = 7 * DAY
APART: Final = 2 * DAY
PACKED: Final = (0.5, 0.75, 0.9, 0.95, 0.975, 0.99)  # levels
MARGINS: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)  # z
TARGETS: Final = (0.01, 0.05)
OURS: Final = "tidegate"
STEPS: Final = (0, 5, 11)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One pair at one quantile or z, over all packings."""

    knob: float
    hosts: float  # mean
    violated: float  # share of host-steps over capacity
    severity: float  # mean share of the capacity by which those were over
    utilisation: float
    peak_to_average: float  # fullest host over the mean host, mean over packings


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """One set with its origins and the hosts that it is packed into."""

    trace: Trace
    origins: NDArray[np.int64]
    truth: F32  # [o, v, r, 12], NaN = no reading: counts as nothing
    capacity: F64  # [r]


def fleet_of(trace: Trace, origins: int) -> Fleet:
    """Origins evenly over the scored part; capacities from the history."""
    resources = [trace.resources.index(r) for r in (CPU, MEMORY) if r in trace.resources]
    kept = replace(trace, pairs=tuple(p for p in trace.pairs if p.resources[0] in (CPU, MEMORY)))
    last = trace.mean.shape[2] - HORIZON_STEPS - 1
    at = np.unique(np.linspace(trace.loaded, last, origins).astype(np.int64))
    past = trace.mean[:, [trace.resources[r] for r in resources], : trace.loaded]
    total = np.nanmean(np.nansum(past, axis=0), axis=1)
    most = np.nanmax(np.nanquantile(past, 0.999, axis=2), axis=0)
    return Fleet(trace=kept, origins=at, truth=actuals(trace.mean, kept, at), capacity=np.maximum(total / HOSTS, most).astype(np.float64))


def pieces(trace: Trace) -> Trace:
    """A trace of few VMs as one of many: pieces of a week, whole days apart; training keeps to what lies before every scored bucket."""
    length = PIECE + DAY
    starts = range(0, trace.mean.shape[2] - length + 1, APART)
    cut = {name: np.concatenate([getattr(trace, name)[..., s : s + length] for s in starts]) for name in ("mean", "peak")}
    ids = tuple(f"{vm}/{s // DAY}" for s in starts for vm in trace.vm_ids)
    early = {f"train_{name}": getattr(trace, name)[..., :PIECE] for name in ("mean", "peak")}
    return replace(trace, vm_ids=ids, loaded=PIECE, **cut, **early)


def moments(quantiles: F32) -> tuple[F64, F64]:
    """Mean and variance [...] of what quantiles [..., q] at LEVELS describe: linear between them, flat halves beyond the outer ones."""
    edges = np.array([0.0, *LEVELS, 1.0])
    values = np.concatenate([quantiles[..., :1], quantiles, quantiles[..., -1:]], axis=-1).astype(np.float64)
    width, low, high = np.diff(edges), values[..., :-1], values[..., 1:]
    mean = ((low + high) / 2.0 * width).sum(axis=-1)
    square = ((low**2 + low * high + high**2) / 3.0 * width).sum(axis=-1)
    return mean, np.maximum(square - mean**2, 0.0)


def filled(issued: Issued, fleet: Fleet) -> F32:
    """Quantiles [o, v, r, 12, q] with every gap filled by 0: a VM that no forecaster knows is packed as nothing by everybody."""
    return np.nan_to_num(issued.quantiles[..., : len(fleet.capacity), :, :])


def score_packings(fleet: Fleet, places: list[tuple[int, int, NDArray[np.int64]]], knob: float) -> Point:
    """(origin's position, step, hosts [v]) against the truth."""
    hosts, over, depth, use, uneven = 0, 0, 0.0, 0.0, 0.0
    for o, h, place in places:
        load = np.zeros((int(place.max()) + 1, len(fleet.capacity)))
        np.add.at(load, place, np.nan_to_num(fleet.truth[o, :, :, h]).astype(np.float64))
        share = load / fleet.capacity
        worst = share.max(axis=1)
        hosts += len(worst)
        over += int((worst > 1.0 + 1e-9).sum())
        depth += float(np.maximum(worst - 1.0, 0.0).sum())
        use += float(share.mean(axis=1).sum())
        uneven += float(worst.max() / max(worst.mean(), 1e-9))
    count = len(places)
    return Point(
        knob=knob,
        hosts=hosts / count,
        violated=over / hosts,
        severity=depth / max(over, 1),
        utilisation=use / hosts,
        peak_to_average=uneven / count,
    )


def by_quantile(fleet: Fleet, quantiles: F32, packer: str, steps: tuple[int, ...]) -> list[Point]:
    """The front of a pair that packs per-VM quantiles."""
    points = []
    for level in PACKED:
        sizes = quantiles[..., LEVELS.index(level)].astype(np.float64)
        places = [(o, h, PACKERS[packer](sizes[o, :, :, h], fleet.capacity)) for o in range(len(fleet.origins)) for h in steps]
        points.append(score_packings(fleet, places, level))
    return points


def by_margin(fleet: Fleet, quantiles: F32, steps: tuple[int, ...]) -> list[Point]:
    """The front of our packer, which pools what VMs need beyond their means."""
    mean, variance = moments(quantiles)
    points = []
    for z in MARGINS:
        places = [
            (o, h, pack_pooled(mean[o, :, :, h], variance[o, :, :, h], fleet.capacity, z=z, seed=0))
            for o in range(len(fleet.origins))
            for h in steps
        ]
        points.append(score_packings(fleet, places, z))
    return points


def hosts_at(points: list[Point], target: float) -> float:
    """Hosts on a front at a share of violations; NaN where it never gets so low; its leanest point where it never gets so high."""
    front = sorted(points, key=lambda p: (p.violated, p.hosts))
    violated = np.array([p.violated for p in front])
    hosts = np.minimum.accumulate(np.array([p.hosts for p in front]))
    if target < violated[0]:
        return float("nan")
    return float(np.interp(target, violated, hosts))


def violated_at(points: list[Point], hosts: float) -> float:
    """The least share of violations that a front has at no more than so many hosts; NaN = it always needs more."""
    front = sorted(points, key=lambda p: (p.hosts, p.violated))
    have = np.array([p.hosts for p in front])
    if hosts < have[0]:
        return float("nan")
    return float(np.interp(hosts, have, np.minimum.accumulate(np.array([p.violated for p in front]))))


def forecasters(trace: Trace, quick: bool, left_out: frozenset[str]) -> dict[str, Forecaster]:
    """Everybody's, ours first."""
    settings = ForecastOptions(boosting=True, examples=8000) if quick else ForecastOptions(boosting=True)
    model = ForecastEngine(settings).retrain(trace.training())
    found: dict[str, Forecaster] = {OURS: shard_forecaster(factory(settings, model)), "Naive": BASELINES["naive (random walk)"]}
    for name in ("AutoETS",) if quick else ("AutoETS", "AutoTheta", "AutoARIMA"):
        found[name] = statsforecast_class(name, {"season_length": 1})
    if foundation.installed() and not quick:
        found["zero-shot (fracast)"] = zero_shot
    return {name: each for name, each in found.items() if name not in left_out}


def zero_shot(trace: Trace, origins: NDArray[np.int64]) -> Issued:
    """The foundation model's deciles at LEVELS: linear in the normal score, and so beyond its outer ones."""
    deciles = foundation.zero_shot(trace, origins).deciles
    score = NormalDist().inv_cdf
    known, wanted = np.array([score(d) for d in foundation.DECILES]), np.array([score(level) for level in LEVELS])
    at = np.clip(np.searchsorted(known, wanted) - 1, 0, len(known) - 2)
    weight = (wanted - known[at]) / (known[at + 1] - known[at])
    quantiles = deciles[..., at] * (1.0 - weight) + deciles[..., at + 1] * weight
    return Issued(np.maximum(np.maximum.accumulate(quantiles, axis=-1), 0.0).astype(np.float32))


def study(fleet: Fleet, quick: bool, left_out: frozenset[str]) -> list[Figure]:
    """All pairs on one fleet: the table, and what ours needs against the best rival."""
    trace, steps = fleet.trace, STEPS
    rivals: dict[str, list[Point]] = {}
    others: dict[str, list[Point]] = {}
    ours: list[Point] = []
    for name, forecaster in forecasters(trace, quick, left_out).items():
        issued, cpu_s = issue(trace, forecaster, fleet.origins)
        quantiles = filled(issued, fleet)
        began = time.process_time()
        pooled = by_margin(fleet, quantiles, steps)
        print(f"{trace.name} {name}: forecasts {cpu_s:.1f} s CPU, our packings {time.process_time() - began:.1f} s CPU")
        if name == OURS:
            ours = pooled
        else:
            others[f"{name} + ours"] = pooled
        for packer in PACKERS:
            (others if name == OURS else rivals)[f"{name} + {packer}"] = by_quantile(fleet, quantiles, packer, steps)
    print(table(trace.name, ours, rivals, others))
    return [figure for target in TARGETS for figure in judged(trace.name, target, ours, rivals)]


def judged(name: str, target: float, ours: list[Point], rivals: dict[str, list[Point]]) -> list[Figure]:
    """Ours against the best rival pair at one share of violations: at least 10 % fewer hosts, or at most half of its violations."""
    found = {pair: hosts_at(points, target) for pair, points in rivals.items()}
    able = {pair: hosts for pair, hosts in found.items() if np.isfinite(hosts)}
    mine = hosts_at(ours, target)
    if not able:
        return [
            Figure(name=f"{name}, {target:.0%} violated: hosts (no rival gets there)", value=mine, unit="hosts", holds=np.isfinite(mine))
        ]
    best = min(able, key=lambda pair: able[pair])
    ratio, broken = mine / able[best], violated_at(ours, able[best]) / target
    holds = bool(ratio <= 0.9 or broken <= 0.5)
    label = f"{name}, {target:.0%} violated: hosts / best rival pair ({best}, {able[best]:.2f} hosts)"
    return [
        Figure(name=label, value=ratio, unit="ratio", bar="<= 0.9, or the next row <= 0.5", holds=holds, row=12),
        Figure(name=f"{name}: violations / its {target:.0%} at as many hosts", value=broken, unit="ratio", row=12),
    ]


def table(name: str, ours: list[Point], rivals: dict[str, list[Point]], others: dict[str, list[Point]]) -> str:
    """All fronts, ours first, then the rivals, then the mixed pairs."""
    lines = [f"\n{name}: {'pair':<36} {'knob':>6} {'hosts':>7} {'violated':>9} {'severity':>9} {'used':>6} {'peak/mean':>9}"]
    for pair, points in {f"{OURS} + ours": ours, **rivals, **others}.items():
        for p in points:
            told = f"{p.knob:>6g} {p.hosts:>7.2f} {p.violated:>9.4f} {p.severity:>9.4f} {p.utilisation:>6.3f} {p.peak_to_average:>9.3f}"
            lines.append(f"  {pair:<42} {told}")
    return "\n".join(lines)


def fleets(folder: Path, quick: bool) -> list[Fleet]:
    """The sets that are there."""
    size = Size(vms=40, trained=40, scored=DAY) if quick else Size(vms=125, trained=100, scored=DAY)
    wide = replace(size, scored=14 * DAY)
    found = []
    for trace in load(folder, quick, size):
        if trace.name == "azure":
            long = next(t for t in load(folder, quick, wide) if t.name == "azure")
            found.append(fleet_of(pieces(long), 3 if quick else ORIGINS))
        elif trace.name in SETS:
            found.append(fleet_of(trace, 2 if quick else ORIGINS))
        if quick and found:
            break
    return found


def main() -> None:
    """Run on every set that is there."""
    parser = options(__doc__ or "")
    parser.add_argument("--without", default="", help="forecasters left out, with commas: AutoARIMA takes most of an hour")
    arguments = parser.parse_args()
    left_out = frozenset(arguments.without.split(",")) - {OURS}
    figures = [figure for fleet in fleets(arguments.data, arguments.quick) for figure in study(fleet, arguments.quick, left_out)]
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
