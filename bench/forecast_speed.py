"""Speed of the forecast: batched kernel against StatsForecast in the same run, and what one tick, a load and a training cost.

CPU time of one thread, median of runs: wall time on a shared machine says more about the neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from statsforecast.models import AutoETS

from bench.report import Figure, options, publish
from bench.traces import block
from coordinator.forecast import kernels
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.model import F32, N_RESOURCES, BucketBlock
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
    """Refit of the damped trend: ours on n series, StatsForecast's on a sample of them."""
    data = fleet(n // N_RESOURCES, 288).reshape(-1, 288).astype(np.float64)
    kernels.fit_damped(data[:16])  # compiled or read from the cache here

    def refit() -> None:
        params, _ = kernels.fit_damped(data)
        kernels.run_damped(data, params, 12)

    ours = cpu_s(refit, 3) / len(data)
    reference = AutoETS(season_length=1, model="AAN", damped=True)
    reference.forecast(y=data[0], h=12)
    theirs = cpu_s(lambda: [reference.forecast(y=row, h=12) for row in data[:sample]], 1) / sample
    return [
        Figure(
            name="damped trend refit, series per second and core",
            value=1.0 / ours,
            unit="series/s",
            bar=">= 50000",
            holds=1.0 / ours >= 50_000,
        ),
        Figure(name="... against StatsForecast AutoETS AAdN", value=theirs / ours, unit="x", bar=">= 500", holds=theirs / ours >= 500),
    ]


def tick_figures(v: int, settings: ForecastOptions, most_ms: float) -> list[Figure]:
    """One advance, one load, one training of a fleet of v VMs."""
    days = 7
    data = fleet(v, days * 288 + 24)
    label = f"{v} VMs x 5, {'all members' if settings.boosting else 'lean'}"
    engine = ForecastEngine(settings)
    past = block(data[..., : days * 288], data[..., : days * 288] * np.float32(1.3), END_S)
    figures = []
    if settings.boosting:
        began = time.process_time()
        engine.install(engine.retrain(past))
        figures.append(Figure(name=f"{label}: training", value=time.process_time() - began, unit="s CPU", bar="<= 5", holds=None))
    began = time.process_time()
    engine.load(past)
    figures.append(Figure(name=f"{label}: load", value=time.process_time() - began, unit="s CPU"))
    names = past.vm_ids
    taken = []
    for i in range(24):
        mean = data[..., days * 288 + i].astype(np.float64)
        bucket = BucketBlock(
            start_s=END_S + (i + 1) * BUCKET_S,
            vm_ids=names,
            host_ids=names,
            mean=mean,
            peak=mean * 1.3,
            usage=mean,
            censored=mean * 0,
            allocation=mean * np.nan,
            samples=np.full(v, 60),
        )
        began = time.process_time()
        engine.advance(bucket, {})
        taken.append(time.process_time() - began)
    value = float(np.median(taken)) * 1e3
    figures.append(Figure(name=f"{label}: advance", value=value, unit="ms CPU", bar=f"<= {most_ms:g}", holds=value <= most_ms))
    return figures


def main() -> None:
    """All figures."""
    arguments = options(__doc__ or "").parse_args()
    figures = kernel_figures(2_000 if arguments.quick else 20_000, 20 if arguments.quick else 100)
    figures += tick_figures(30, ForecastOptions(boosting=False, statsforecast=False, ring=600, replay=96), 8.0)
    figures += tick_figures(72, ForecastOptions(), 250.0)
    if not arguments.quick:
        figures += tick_figures(1000, ForecastOptions(boosting=False, statsforecast=False), 500.0)
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
