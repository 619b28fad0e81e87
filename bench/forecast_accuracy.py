"""Accuracy of the forecast shard on public traces, VMs held out from training: pinball against Naive and every single member, coverage.

Every single member gets the same calibrator as the engine (the engine is run with that member alone), so the comparison is about the
point forecast and its combination, and Naive is no straw man. Pinball is the mean over LEVELS, scaled per series by its mean absolute
change in the history (plus the engine's floor).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bench.report import Figure, options, publish
from bench.traces import Trace, block, load
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.forecast.features import FLOORS, LEVEL_FLOOR
from coordinator.model import F64, LEVELS, BucketBlock
from shared.units import BUCKET_S, HORIZON_STEPS, RESOURCES

TAU = np.array(LEVELS)


def run(trace: Trace, engine: ForecastEngine) -> dict[str, F64]:
    """Load, then advance bucket by bucket: quantiles and peak quantiles [t, v, r, 12, q] and the actuals [t, v, r, 12] they meet."""
    count = trace.mean.shape[2]
    at = trace.start_s + (trace.loaded - 1) * BUCKET_S
    engine.load(block(trace.mean[..., : trace.loaded], trace.peak[..., : trace.loaded], at))
    names = tuple(f"vm{i}" for i in range(len(trace.mean)))
    found: dict[str, list[F64]] = {"quantiles": [], "peaks": [], "actual": [], "highest": []}
    for b in range(trace.loaded, count - HORIZON_STEPS):
        values, peaks = trace.mean[..., b].astype(np.float64), trace.peak[..., b].astype(np.float64)
        issued = engine.advance(
            BucketBlock(
                start_s=trace.start_s + b * BUCKET_S,
                vm_ids=names,
                host_ids=names,
                mean=values,
                peak=peaks,
                usage=values,
                censored=values * 0,
                allocation=values * np.nan,
                samples=np.full(len(names), 60),
            ),
            {},
        )
        found["quantiles"].append(issued.quantiles)
        found["peaks"].append(issued.peak_quantiles)
        found["actual"].append(trace.mean[..., b + 1 : b + 1 + HORIZON_STEPS])
        found["highest"].append(np.maximum.accumulate(trace.peak[..., b + 1 : b + 1 + HORIZON_STEPS], axis=-1))
    return {name: np.stack(parts) for name, parts in found.items()}


def pinball(quantiles: F64, actual: F64) -> F64:
    """Mean over levels: [t, v, r, 12]."""
    error = actual[..., None] - quantiles
    return np.maximum(TAU * error, (TAU - 1.0) * error).mean(axis=-1)


def scale_of(trace: Trace) -> F64:
    """[v, r]."""
    past = trace.mean[..., : trace.loaded].astype(np.float64)
    with np.errstate(invalid="ignore"):
        change = np.abs(np.diff(past, axis=-1))
    known = ~np.isnan(change)
    step = np.where(known, change, 0.0).sum(axis=-1) / np.maximum(known.sum(axis=-1), 1)
    level = np.nan_to_num(past).sum(axis=-1) / np.maximum((~np.isnan(past)).sum(axis=-1), 1)
    return step + np.maximum(FLOORS, LEVEL_FLOOR * level)


def score(trace: Trace, found: dict[str, F64]) -> dict[int, float]:
    """Mean scaled pinball per resource."""
    losses = pinball(found["quantiles"], found["actual"]) / scale_of(trace)[None, :, :, None]
    return {r: float(np.nanmean(losses[:, :, r])) for r in trace.resources}


def share(hit: F64, known: F64) -> float:
    """Of the known ones."""
    return float(hit[known].mean())


def figures_of(trace: Trace, found: dict[str, F64], singles: dict[str, dict[int, float]]) -> list[Figure]:
    """All figures of one set."""
    figures = []
    mine = score(trace, found)
    for r in trace.resources:
        label = f"{trace.name} {RESOURCES[r].split('_')[0] if r < 3 else RESOURCES[r][:6]}"
        best = min(singles, key=lambda name: singles[name][r])
        against = mine[r] / singles[best][r]
        naive = mine[r] / singles["naive"][r]
        actual, quantiles = found["actual"][:, :, r], found["quantiles"][:, :, r]
        highest, peaks = found["highest"][:, :, r], found["peaks"][:, :, r]
        known, peak_known = ~np.isnan(actual), ~np.isnan(highest[..., -1])
        figures.append(Figure(name=f"{label}: scaled pinball", value=mine[r], unit=""))
        figures.append(Figure(name=f"{label}: / best single ({best})", value=against, unit="ratio", bar="<= 1.02", holds=against <= 1.02))
        figures.append(Figure(name=f"{label}: / naive", value=naive, unit="ratio", bar="< 1", holds=naive < 1.0))
        for low, high, nominal in ((0.1, 0.9, 0.8), (0.025, 0.975, 0.95)):
            inside = (actual >= quantiles[..., LEVELS.index(low)]) & (actual <= quantiles[..., LEVELS.index(high)])
            value = share(inside, known)
            figures.append(
                Figure(name=f"{label}: coverage of {nominal}", value=value, unit="", bar="not below -.02", holds=value >= nominal - 0.02)
            )
        for level, most in ((0.95, 0.065), (0.975, 0.035)):
            broken = share(highest[..., -1] > peaks[..., -1, LEVELS.index(level)] * (1 + 1e-6), peak_known)
            figures.append(
                Figure(name=f"{label}: hourly peak above its {level}", value=broken, unit="", bar=f"<= {most}", holds=broken <= most)
            )
    return figures


def main() -> None:
    """Run on every set that is there."""
    parser = options(__doc__ or "")
    parser.add_argument("--lean", action="store_true", help="without boosting and StatsForecast, as the simulation runs")
    parser.add_argument("--no-singles", action="store_true", help="compare with naive only")
    arguments = parser.parse_args()
    settings = ForecastOptions(boosting=not arguments.lean, statsforecast=not arguments.lean)
    figures = []
    for trace in load(arguments.data, arguments.quick):
        engine = ForecastEngine(settings)
        model = b""
        if settings.boosting:
            end_s = trace.start_s + (trace.train_mean.shape[2] - 1) * BUCKET_S
            model = engine.retrain(block(trace.train_mean, trace.train_peak, end_s))
            engine.install(model)
        found = run(trace, engine)
        singles = {}
        for name in ("naive",) if arguments.no_singles else engine.members:
            alone = ForecastEngine(replace(settings, only=name))
            if model:
                alone.install(model)
            singles[name] = score(trace, run(trace, alone))
        figures += figures_of(trace, found, singles)
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
