"""Accuracy and calibration of the forecast engine on public traces, on VMs (PlanetLab: on a day) held out from training.

Every set is run densely: history is loaded, then each bucket arrives, is an origin, and is scored twelve steps ahead (definitions, scale
floors and trimming: bench/forecast_protocol.py). Beside the engine, on the same origins: every single member of its pool alone under the
same calibrator, and the rules of bench/forecast_baselines.py. What costs milliseconds a series runs on a few origins, and the engine is
scored again on those: StatsForecast's models, and the zero-shot foundation model fracast (extra `neural`; nine deciles, the engine's
interpolated to them). PlanetLab's row follows FORECAST.md: 300 VMs x 6 origins x 12 steps, scale from the day so far.

    python -m bench.forecast_accuracy [--quick] [--data DIR] [--json FILE] [--lean] [--members all|none|a,b] [--sets a,b]

Beside the JSON go FILE_fans.svg and FILE_coverage.svg.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from bench import forecast_foundation as foundation
from bench.forecast_bars import PairResult, at_most, best, calibration, no_regret, selection, table
from bench.forecast_baselines import BASELINES, STATSFORECAST, statsforecast_model
from bench.forecast_plots import CoveragePanel, Fan, FanPanel, coverage_charts, fan_charts
from bench.forecast_protocol import I64, Issued, Score, bucket_of, dense, evaluate, issue, scales_of, score, series_of, shard_forecaster
from bench.report import Figure, options, publish
from bench.traces import FULL, Trace, block, chosen_sets, load, planetlab
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.forecast.network import MAX_EXAMPLES
from coordinator.model import N_RESOURCES
from coordinator.ports import ForecastShard
from shared.units import BUCKET_S, HORIZON_STEPS

QUICK_MEMBERS: Final = 5  # the first of the pool, its cheapest
FOUNDATION_SERIES: Final = 40  # VMs per set: 30 ms a series and origin
FOUNDATION_ORIGINS: Final = 6
PLANETLAB_ORIGINS: Final = 6
OURS: Final = "tidegate"


@dataclass(frozen=True, kw_only=True)
class Study:
    """One set, run."""

    trace: Trace
    origins: I64
    issued: Issued
    results: tuple[PairResult, ...]


def factory(settings: ForecastOptions, model: bytes | None) -> Callable[[], ForecastShard]:
    """Makes engines with these options and this trained model."""

    def make() -> ForecastShard:
        engine = ForecastEngine(settings)
        if model is not None:
            engine.install(model)
        return engine

    return make


def study(trace: Trace, settings: ForecastOptions, model: bytes | None, members: tuple[str, ...]) -> Study:
    """Engine, members and rules, densely."""
    origins = dense(trace)
    issued, cpu_s = issue(trace, shard_forecaster(factory(settings, model)), origins)
    ours = score(trace, origins, issued, cpu_s)
    single = {}
    for name in members:
        alone = narrow(settings, name)
        single[name] = evaluate(trace, shard_forecaster(factory(alone, model)), origins)
    rules = {name: evaluate(trace, rule, origins) for name, rule in BASELINES.items()}
    results = tuple(
        PairResult(
            pair=pair.name,
            ours=ours[pair.name],
            members={name: scores[pair.name] for name, scores in single.items()},
            baselines={name: scores[pair.name] for name, scores in rules.items()},
        )
        for pair in trace.pairs
    )
    return Study(trace=trace, origins=origins, issued=issued, results=results)


def narrow(settings: ForecastOptions, name: str) -> ForecastOptions:
    """The leanest options whose pool has this member, listening to it alone."""
    for boosting in (False, True):
        lean = replace(settings, boosting=boosting and settings.boosting)
        if name in ForecastEngine(lean).members:
            return replace(lean, only=name)
    raise ValueError(f"member {name!r}: allowed {', '.join(ForecastEngine(settings).members)}")


def slow_loop(run: Study, quick: bool) -> list[Figure]:
    """StatsForecast's AutoETS and the zero-shot model at a few origins, the engine scored again on the same."""
    trace, count = run.trace, len(run.origins)
    which = np.unique(np.linspace(0, count - 1, 3 if quick else 10).astype(np.int64))
    origins = run.origins[which]
    again = score(trace, origins, run.issued.at(which))
    figures = []
    name = "StatsForecast AutoETS ANN"
    other = evaluate(trace, statsforecast_model(name), origins)
    for pair, mine in again.items():
        said = other[pair]
        print(f"{pair}, {len(origins)} origins: pinball {mine.pinball:.4f}, {name} {said.pinball:.4f}; CPU {said.cpu_s:.1f} s")
        figures.append(Figure(name=f"{pair}: pinball / {name}, few origins", value=mine.pinball / said.pinball, unit="ratio"))
    return figures


def against_foundation(runs: list[Study], settings: ForecastOptions, model: bytes | None) -> list[Figure]:
    """Row 14."""
    if not foundation.installed():
        print("fracast: not installed (extra neural); row 14 not measured")
        return []
    figures, mine, theirs, cost = [], [], [], []
    for run in runs:
        trace = run.trace.thin(FOUNDATION_SERIES)
        which = np.unique(np.linspace(0, len(run.origins) - 1, FOUNDATION_ORIGINS).astype(np.int64))
        zero = foundation.zero_shot(trace, run.origins[which])
        cost.append(zero.cpu_s)
        said = run.issued.quantiles[which][:, :FOUNDATION_SERIES]
        for pair, (ours, other) in foundation.compare(trace, run.origins[which], said, zero).items():
            print(f"{pair}: deciles' pinball {ours:.4f}, fracast {other:.4f}")
            mine.append(ours)
            theirs.append(other)
            figures.append(Figure(name=f"{pair}: deciles' pinball / fracast", value=ours / other, unit="ratio", row=14))
    ratios = np.array(mine) / np.array(theirs)
    figures.append(at_most("mean over pairs: deciles' pinball / fracast", float(ratios.mean()), 0.95, 14))
    figures.append(at_most("worst pair: deciles' pinball / fracast", float(ratios.max()), 1.02, 14))
    ours_s = cost_per_series(runs[0].trace, settings, model)
    figures.append(at_most("CPU per series / fracast", ours_s / float(np.mean(cost)), 0.001, 14))
    return figures


def cost_per_series(trace: Trace, settings: ForecastOptions, model: bytes | None, vms: int = 1000, ticks: int = 6) -> float:
    """CPU seconds per series of one tick (append, score, forecast) of a fleet made of the trace's VMs over and over."""
    rows = np.arange(vms) % len(trace.mean)
    fleet = replace(trace, vm_ids=tuple(str(i) for i in range(vms)), mean=trace.mean[rows], peak=trace.peak[rows])
    shard = factory(settings, model)()
    shard.load(block(fleet.mean[..., : fleet.loaded], fleet.peak[..., : fleet.loaded], fleet.start_s + (fleet.loaded - 1) * BUCKET_S))
    taken = []
    for b in range(fleet.loaded, fleet.loaded + ticks):
        arrived = bucket_of(fleet, b)
        began = time.process_time()
        shard.advance(arrived, {})
        taken.append(time.process_time() - began)
    return float(np.median(taken) / (vms * N_RESOURCES))


def planetlab_table(folder: Path, quick: bool, settings: ForecastOptions) -> list[Figure]:
    """Row 5: FORECAST.md's protocol on an unseen day; in the full run also on the day its tables name (the fourth)."""
    size = replace(FULL, vms=16, trained=60) if quick else FULL
    figures: list[Figure] = []
    days = len(list((folder / "planetlab").glob("*.parquet")))
    for tested in (-1,) if quick or days < 5 else (-1, 3):
        trace = planetlab(folder / "planetlab", size, tested)
        if trace is None:
            break
        last = trace.mean.shape[2] - HORIZON_STEPS - 1
        origins = np.linspace(trace.loaded + HORIZON_STEPS - 1, last, PLANETLAB_ORIGINS).astype(np.int64)
        model = ForecastEngine(settings).retrain(trace.training()) if settings.boosting else None
        wanted = {name: rule for name, rule in BASELINES.items() if name not in STATSFORECAST}
        wanted |= {name: statsforecast_model(name) for name, (_, _, fast) in STATSFORECAST.items() if fast or not quick}
        wanted[OURS] = shard_forecaster(factory(settings, model))
        scores = {}
        for name, rule in wanted.items():
            issued, cpu_s = issue(trace, rule, origins)
            scores[name] = score(trace, origins, issued, cpu_s, at_origin=288)[trace.pairs[0].name]
        mine = scores.pop(OURS)
        day = "newest day" if tested < 0 else "fourth day"
        label = f"PlanetLab {day}, {len(trace.mean)} VMs x {len(origins)} origins"
        print(table(PairResult(pair=label, ours=mine, members={}, baselines=scores)))
        figures += planetlab_figures(day, mine, scores)
    return figures


def planetlab_figures(day: str, mine: Score, scores: dict[str, Score]) -> list[Figure]:
    """Against the best StatsForecast model in hindsight, and Naive (its native random walk, which is StatsForecast's)."""
    fitted = {name: found for name, found in scores.items() if name in STATSFORECAST}
    by_pinball, by_mase = best(fitted), best(fitted, "mase")
    naive = scores["naive (random walk)"]
    return [
        at_most(f"PlanetLab {day}: pinball / best StatsForecast ({by_pinball[14:]})", mine.pinball / fitted[by_pinball].pinball, 0.935, 5),
        at_most(f"PlanetLab {day}: MASE / best StatsForecast ({by_mase[14:]})", mine.mase / fitted[by_mase].mase, 0.94, 5),
        at_most(f"PlanetLab {day}: MASE / Naive", mine.mase / naive.mase, 0.72, 5),
        at_most(f"PlanetLab {day}: pinball / Naive", mine.pinball / naive.pinball, 0.59, 5),
        Figure(name=f"PlanetLab {day}: pinball / EmpQ36", value=mine.pinball / scores["EmpQ36"].pinball, unit="ratio"),
    ]


def draw(runs: list[Study], path: Path) -> None:
    """Fan charts of the series in the middle of each pair (by volatility) and coverage by horizon, beside the JSON."""
    fans, coverages = [], []
    for run in runs:
        trace = run.trace
        volatilities = scales_of(trace)[1]
        for pair, result in zip(trace.pairs, run.results, strict=True):
            volatility = series_of(pair, trace, volatilities, 0)
            able = np.flatnonzero(result.ours.points > 0)
            chosen = int(able[np.argsort(volatility[able])[len(able) // 2]])
            values = series_of(pair, trace, trace.mean[:, list(trace.resources)], 0)[chosen]
            said = series_of(pair, trace, run.issued.quantiles, 1)[:, chosen]
            count = len(run.origins)
            picked = sorted({max(0, count // 2 - 18), count // 2, min(count - 1, count // 2 + 18)})
            first = max(0, int(run.origins[picked[0]]) - 36)
            end = int(run.origins[picked[-1]]) + HORIZON_STEPS + 1
            fans.append(
                FanPanel(
                    title=pair.name,
                    first=first,
                    values=values[first:end],
                    fans=tuple(Fan(origin=int(run.origins[i]), quantiles=said[i]) for i in picked),
                )
            )
            inner, outer = result.ours.coverage
            coverages.append(CoveragePanel(title=pair.name, curves=(("80 %", 0.8, inner), ("95 %", 0.95, outer))))
    fan_charts(fans, path.with_name(f"{path.stem}_fans.svg"))
    coverage_charts(coverages, path.with_name(f"{path.stem}_coverage.svg"))


def arguments_of() -> argparse.Namespace:
    """The command line."""
    parser = options(__doc__ or "")
    parser.add_argument("--lean", action="store_true", help="without boosting, as the simulation runs")
    parser.add_argument(
        "--members", default="", help="members run alone: all, none, or names with commas (default: all; --quick: the cheap ones)"
    )
    parser.add_argument("--sets", default="", help="only these sets, with commas")
    return parser.parse_args()


def main() -> None:
    """Run on every set that is there."""
    arguments = arguments_of()
    settings = ForecastOptions(
        boosting=not arguments.lean,
        examples=8000 if arguments.quick else MAX_EXAMPLES,
    )
    pool = ForecastEngine(settings).members
    named = {"": pool[:QUICK_MEMBERS] if arguments.quick else pool, "all": pool, "none": ()}
    wanted = named.get(arguments.members, tuple(arguments.members.split(",")))
    sets = chosen_sets(arguments.sets, arguments.quick)
    figures = planetlab_table(arguments.data, arguments.quick, settings) if "planetlab" in sets else []
    runs, model = [], None
    for trace in load(arguments.data, arguments.quick):
        if trace.name not in sets:
            continue
        model = ForecastEngine(settings).retrain(trace.training()) if settings.boosting else None
        runs.append(study(trace, settings, model, wanted))
        for result in runs[-1].results:
            print(table(result))
        figures += slow_loop(runs[-1], arguments.quick)
    results = [result for run in runs for result in run.results]
    figures += no_regret(results) + selection(results) + calibration(results)
    figures += against_foundation(runs, settings, model)
    if arguments.json is not None and runs:
        draw(runs, arguments.json)
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
