"""Speed of the forecast: batched kernel against StatsForecast in the same run, and what one tick, a load and a training cost.

CPU time of one thread, median of runs: wall time on a shared machine says more about the neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist

import numpy as np
from statsforecast.models import AutoETS

from bench.report import Figure, options, publish
from bench.traces import block, load
from coordinator.forecast import kernels
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.forecast.kernels import damped, windows
from coordinator.forecast.kernels.families import FAMILIES, Family
from coordinator.model import F32, F64, LEVELS, N_RESOURCES, BucketBlock
from shared.units import BUCKET_S

END_S = 1_700_006_400 // BUCKET_S * BUCKET_S


def cpu_s(call: Callable[[], object], runs: int) -> float:
    """Median CPU seconds of a call."""
    taken = []
    for _ in range(runs):
        began = time.process_time()
        call()
        taken.append(time.process_time() - began)
    return float(np.median(taken))


def fleet(v: int, b: int, seed: int = 0) -> F32:
    """Daily waves with noise in the sizes of the five resources: float32[v, r, b]."""
    rng = np.random.default_rng(seed)
    size = np.array([800.0, 2e9, 3e6, 4e7, 2e7]) * rng.lognormal(0, 0.6, (v, N_RESOURCES))
    wave = 1.0 + 0.5 * np.sin(2 * np.pi * np.arange(b) / 288 + rng.uniform(0, 2 * np.pi, (v, N_RESOURCES, 1)))
    return (size[..., None] * wave * rng.lognormal(0, 0.2, (v, N_RESOURCES, b))).astype(np.float32)


def kernel_figures(n: int, sample: int) -> list[Figure]:
    """Refit of the damped trend to 12 steps x 7 quantiles: ours on n series, StatsForecast's point forecast on a sample of them."""
    data = fleet(n // N_RESOURCES, 288).reshape(-1, 288).astype(np.float64)
    z = np.array([NormalDist().inv_cdf(level) for level in LEVELS])
    damped.forecast_quantiles(damped.start(data[:16]), 12, z)  # compiled or read from the cache here
    ours = cpu_s(lambda: damped.forecast_quantiles(damped.start(data), 12, z), 3) / len(data)
    reference = AutoETS(season_length=1, model="AAN", damped=True)
    reference.forecast(y=data[0], h=12)
    theirs = cpu_s(lambda: [reference.forecast(y=row, h=12) for row in data[:sample]], 1) / sample
    name = "damped trend refit"
    return [
        Figure(
            row=1, name=f"{name}, series per second and core", value=1 / ours, unit="series/s", bar=">= 50000", holds=1 / ours >= 50_000
        ),
        Figure(
            row=1, name="... against StatsForecast AutoETS AAdN", value=theirs / ours, unit="x", bar=">= 500", holds=theirs / ours >= 500
        ),
        *fit_figures("waves", data[:sample]),
    ]


def fit_figures(label: str, data: F64) -> list[Figure]:
    """In-sample squared error of the damped trend over AutoETS's, on f64[n, b] without gaps."""
    own = damped.start(data)[:, damped.VARIANCE] * data.shape[1]
    reference = AutoETS(season_length=1, model="AAN", damped=True)
    theirs = [np.sum(np.square(row - reference.fit(row).model_["fitted"])) for row in data]
    ratio = own / np.array(theirs)
    middle, high = float(np.median(ratio)), float(np.quantile(ratio, 0.95))
    return [
        Figure(
            row=1, name=f"damped trend, squared error over AutoETS's: {label}", value=middle, unit="x", bar="<= 1.02", holds=middle <= 1.02
        ),
        Figure(row=1, name="... its 95th percentile", value=high, unit="x", bar="<= 1.05", holds=high <= 1.05),
    ]


def real_series(folder: Path, most: int) -> F64:
    """The last day of up to `most` series of each set, gaps filled, those that never change left out: f64[n, 288]."""
    rows = [np.zeros((0, 288))]
    for trace in load(folder, quick=True):
        series = trace.mean.reshape(-1, trace.mean.shape[-1])[:, -288:]
        if series.shape[1] == 288:
            filled, readings, _ = kernels.fill_gaps(series)
            usable = filled[(readings > 200) & (np.ptp(filled, axis=1) > 0)]
            rows.append(usable[:: max(len(usable) // most, 1)][:most])
    return np.concatenate(rows)


def append_figures(n: int) -> list[Figure]:
    """One append and one forecast of 12 steps of each family, one append and 7 quantiles of a sorted window, for n series."""
    data = fleet(400, 288).reshape(-1, 288).astype(np.float64)
    figures = []
    for name, family in FAMILIES.items():
        state = np.repeat(family.start(data), n // len(data), axis=0)
        values = iter(np.random.default_rng(1).permutation(np.tile(data[:, :9], (n // len(data), 1)), axis=0).T.copy())

        def once(family: Family = family, state: F64 = state, values: Iterator[F64] = values) -> None:
            family.append(state, next(values))
            family.forecast(state, 12)

        once()
        value = cpu_s(once, 7) * 1e3
        one = name in {"ses", "ses_optimised", "damped_trend"}
        bar = "<= 5" if one else ""
        figures.append(
            Figure(
                row=2 if one else 0,
                name=f"{name}, {n}: append + 12 steps",
                value=value,
                unit="ms CPU",
                bar=bar,
                holds=value <= 5 if one else None,
            )
        )
    levels = np.array(LEVELS)
    for width in (12, 36, 72, 288):
        window = np.repeat(windows.start(data.astype(np.float32), width), n // len(data), axis=0)
        values = iter(np.tile(data[:, :9], (n // len(data), 1)).T.copy())

        def slide(window: F64 = window, values: Iterator[F64] = values) -> None:
            windows.append(window, next(values))
            windows.quantiles(window, levels)

        slide()
        value = cpu_s(slide, 7) * 1e3
        holds = value <= 15 if width == 72 else None
        figures.append(
            Figure(
                name=f"sorted window {width}, {n}: append + 7 quantiles",
                value=value,
                unit="ms CPU",
                bar="<= 15" if width == 72 else "",
                holds=holds,
            )
        )
    return figures


def tick_figures(v: int, settings: ForecastOptions, most_ms: float, days: int = 7, taught: int = 0) -> list[Figure]:
    """One advance, one load, one training of a fleet of v VMs. `taught`: the network learns from so many of them first."""
    data = fleet(v, days * 288 + 24)
    label = f"{v} VMs x 5, {'all members' if settings.boosting else 'lean'}{', network' if taught else ''}"
    engine = ForecastEngine(settings)
    past = block(data[..., : days * 288], data[..., : days * 288] * np.float32(1.3), END_S)
    figures = []
    if settings.boosting:
        began = time.process_time()
        engine.install(engine.retrain(past))
        figures.append(Figure(name=f"{label}: training", value=time.process_time() - began, unit="s CPU", bar="<= 5", holds=None))
    if taught:
        engine.install(engine.retrain(past.select(range(taught))))
    began = time.process_time()
    engine.load(past)
    figures.append(Figure(name=f"{label}: load", value=time.process_time() - began, unit="s CPU"))
    names = past.vm_ids
    taken = []
    for i in range(24):
        mean = data[..., days * 288 + i].astype(np.float64)
        bucket = BucketBlock.unlimited(END_S + (i + 1) * BUCKET_S, names, mean, mean * 1.3)
        began = time.process_time()
        engine.advance(bucket, {})
        taken.append(time.process_time() - began)
    value = float(np.median(taken)) * 1e3
    figures.append(Figure(name=f"{label}: advance", value=value, unit="ms CPU", bar=f"<= {most_ms:g}", holds=value <= most_ms))
    return figures


def main() -> None:
    """All figures."""
    arguments = options(__doc__ or "").parse_args()
    figures = kernel_figures(2_000 if arguments.quick else 20_000, 40 if arguments.quick else 200)
    real = real_series(arguments.data, 15 if arguments.quick else 60) if arguments.data.is_dir() else np.zeros((0, 288))
    if len(real):
        figures += fit_figures(f"{len(real)} real series", real)
    else:
        print(f"no traces in {arguments.data}: the fit on real series is left out")
    figures += append_figures(40_000)
    figures += tick_figures(30, ForecastOptions(boosting=False, ring=600, replay=96), 8.0)
    figures += tick_figures(72, ForecastOptions(), 250.0)
    if not arguments.quick:
        figures += tick_figures(1000, ForecastOptions(boosting=False), 500.0)
        # row 2: 40,000 series, each with its bucket mean and its running peak
        figures += tick_figures(8000, ForecastOptions(boosting=False, replay=40, outlook_replay=6), 500.0, days=2, taught=60)
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
