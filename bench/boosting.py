"""The global LightGBM: what a forecast of 40,000 series costs, whether it is Booster.predict's, what training costs, and what it is worth.

Speed: features of the peak of the next hour and its three quantiles, walked by us and by LightGBM in the same run, CPU time of one thread.
Accuracy: trained on other VMs or days (see traces.py), asked at origins that training never saw; mean scaled pinball of .1, .5, .9 over
twelve steps (scale: mean absolute change of the series, floored) and of .5, .9, .95 of the hour's peak. Beside it: empirical quantiles of
three hours, rolling median and simple exponential smoothing with pooled scaled conformal bands from the training VMs, and for the peak
quantiles of sliding hourly maxima.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import lightgbm
import numpy as np
from numpy.typing import NDArray

from bench.report import Figure, options, publish
from bench.traces import Pair, Trace, load
from coordinator.forecast import kernels
from coordinator.forecast.boosting import PEAK_QUANTILES, QUANTILES, QuantileBooster, Settings, gate, train
from coordinator.forecast.boosting.profiles import CELLS, Profiles
from coordinator.forecast.boosting.training import PAIRS
from coordinator.forecast.boosting.trees import parse
from coordinator.forecast.covariates import NONE_KNOWN, Covariates, EventTimes, LocalDays
from coordinator.forecast.features import FLOORS, LEVEL_FLOOR, STATIC, describe
from coordinator.forecast.members import ALPHAS, look
from coordinator.model import F32, F64, N_RESOURCES, SIGNALS
from shared.units import BUCKET_S, HORIZON_STEPS

SERIES = 40_000
BUCKETS = 2322
ROUNDS = 80
NOW_S = 1_700_000_100
TRAINED = ("gradient boosting", "random forest")


def cpu_of(work: Callable[[], object], repeats: int = 3) -> float:
    """Least CPU seconds of `repeats` calls after one that compiles."""
    work()
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def made_up(series: int) -> F32:
    """Noisy daily waves with gaps: float32[series, BUCKETS]; every row another order of values, as in a fleet."""
    rng = np.random.default_rng(7)
    wave = 2.0 + np.sin(2 * np.pi * np.arange(BUCKETS) / 288)
    data = rng.standard_normal((series, BUCKETS), dtype=np.float32)
    data *= np.float32(0.3)
    np.exp(data, out=data)
    data *= (500.0 * wave).astype(np.float32)
    data.flat[rng.integers(0, data.size, size=data.size // 100)] = np.nan
    return data


def everything_known(v: int) -> tuple[Covariates, Profiles]:
    """Covariates of a fleet in which everything is told: nightly events, two countries, a hundred clients, both signals of every VM."""
    rng = np.random.default_rng(3)
    nights = NOW_S // 86_400 * 86_400 + 86_400 * np.arange(-1, 3)
    events = EventTimes(np.stack([nights, nights + 3600], axis=1), np.array([0, len(nights)]), np.zeros(v, dtype=np.int64))
    year = ((NOW_S // 86_400 * 86_400, NOW_S // 86_400 * 86_400 + 86_400),)
    groups = rng.integers(0, 100, size=(v, 2))
    signals = rng.lognormal(3.0, 0.5, (v, len(SIGNALS), 288)).astype(np.float32)
    usual = Profiles(numbers=np.arange(100), values=rng.normal(size=(100, CELLS)).astype(np.float32))
    return Covariates(days=LocalDays(holidays=(year, year)), events=events, signals=signals, groups=groups), usual


def speed(series: int) -> list[Figure]:
    """Bar 3: features and prediction of the peak of the next hour."""
    data = made_up(series)
    capacity, ends = np.full(series, np.nan), np.full(series, BUCKETS, dtype=np.int64)
    which, seconds = np.arange(series), np.full(series, NOW_S, dtype=np.int64)
    everything, usual = everything_known(series // N_RESOURCES)

    def features(ahead: bool, known: Covariates = NONE_KNOWN) -> F32:
        groups = usual.of(known, which, seconds)
        return describe(data, data, capacity, which=which, ends=ends, now_s=seconds, known=known, groups=groups, ahead=ahead).series

    rows = features(ahead=False)
    target = np.nan_to_num(rows[:, STATIC.index("top_hour")]) + np.random.default_rng(0).gumbel(size=series)
    given = {"objective": "quantile", "num_leaves": 31, "num_threads": 1, "verbosity": -1}
    sample = lightgbm.Dataset(rows[: series // 4], label=target[: series // 4])
    boosters = [lightgbm.train({**given, "alpha": level}, sample, num_boost_round=ROUNDS) for level in PEAK_QUANTILES]
    forest = parse([booster.model_to_string() for booster in boosters])
    ours, theirs = forest.predict(rows)[:, :, 0], np.stack([booster.predict(rows, num_threads=1) for booster in boosters])
    described, walked = cpu_of(lambda: features(ahead=False)), cpu_of(lambda: forest.predict(rows))
    with_steps = cpu_of(lambda: features(ahead=True))
    told = cpu_of(lambda: features(ahead=False, known=everything))
    predicted = cpu_of(lambda: [booster.predict(rows, num_threads=1) for booster in boosters], 1)
    scale = SERIES / series
    total = (described + walked) * scale
    name = f"{SERIES} series, {len(boosters)} quantiles x {ROUNDS} trees"
    return [
        Figure(row=3, name=f"{name}: peak features + predict", value=total, unit="s CPU", bar="<= 0.5", holds=total <= 0.5),
        Figure(
            row=3,
            name=f"{name}: the same with every covariate",
            value=(told + walked) * scale,
            unit="s CPU",
            bar="<= 0.5",
            holds=(told + walked) * scale <= 0.5,
        ),
        Figure(
            row=3,
            name="values whose bits differ from Booster.predict",
            value=int((ours != theirs).sum()),
            unit="",
            bar="0",
            holds=bool((ours == theirs).all()),
        ),
        Figure(row=3, name=f"{SERIES} series: peak features", value=described * scale, unit="s CPU"),
        Figure(row=3, name=f"{SERIES} series: peak predict", value=walked * scale, unit="s CPU"),
        Figure(row=3, name="Booster.predict / our walk", value=predicted / walked, unit="x"),
        Figure(name=f"{SERIES} series: features of all twelve steps too", value=with_steps * scale, unit="s CPU"),
    ]


class Case(NamedTuple):
    """Origins of the test VMs of one set, of the resources that the set has."""

    rows: NDArray[np.int64]
    ends: list[int]
    scale: F64  # [n]
    actual: F64  # [n, o, 12]
    peak: F64  # [n, o]


def case_of(trace: Trace, origins: int) -> Case:
    """What is asked of every method."""
    b = trace.mean.shape[2]
    rows = np.array([vm * N_RESOURCES + resource for vm in range(len(trace.mean)) for resource in trace.resources])
    means, peaks = trace.mean.reshape(-1, b)[rows].astype(float), trace.peak.reshape(-1, b)[rows].astype(float)
    rows, means, peaks = (kept[np.isfinite(means[:, : trace.loaded]).sum(axis=1) > 48] for kept in (rows, means, peaks))
    filled = kernels.fill_gaps(means[:, : trace.loaded])[0]
    scale = np.maximum(
        np.abs(np.diff(filled, axis=1)).mean(axis=1), np.maximum(FLOORS[rows % N_RESOURCES], LEVEL_FLOOR * filled.mean(axis=1))
    )
    ends = np.linspace(trace.loaded, b - HORIZON_STEPS, origins).astype(int).tolist()
    actual = np.stack([means[:, end : end + HORIZON_STEPS] for end in ends], axis=1)
    coming = np.stack([peaks[:, end : end + HORIZON_STEPS] for end in ends], axis=1)
    peak = np.where(
        np.isfinite(coming).sum(axis=2) > HORIZON_STEPS // 2, np.where(np.isfinite(coming), coming, -np.inf).max(axis=2), np.nan
    )
    return Case(rows, ends, scale, actual, peak)


def simple_points(series: F32) -> tuple[dict[str, F64], F64]:
    """Point forecasts [n] and the usual change [n] that scales their conformal bands."""
    seen = look(series)
    points = {"SES": kernels.smooth_best(seen.filled, ALPHAS)[0], "rolling median": seen.hours3[:, 1]}
    return points, seen.step + LEVEL_FLOOR * seen.level + 1e-9


def simple_methods(trace: Trace, case: Case) -> dict[str, F64]:
    """Quantiles [3, n, o, 12] of what is to be beaten."""
    levels = np.array(QUANTILES)
    b = trace.train_mean.shape[2]
    train_rows = np.array([vm * N_RESOURCES + resource for vm in range(len(trace.train_mean)) for resource in trace.resources])
    series = trace.train_mean.reshape(-1, b)[train_rows]
    errors: dict[str, list[F64]] = {}
    for end in np.linspace(min(96, b // 3), b - HORIZON_STEPS, 6).astype(int):
        points, unit = simple_points(series[:, :end])
        for name, point in points.items():
            errors.setdefault(name, []).append((series[:, end : end + HORIZON_STEPS] - point[:, None]) / unit[:, None])
    test = trace.mean.reshape(-1, trace.mean.shape[2])[case.rows]
    said: dict[str, list[F64]] = {"empirical quantiles": [], **{name: [] for name in errors}}
    for end in case.ends:
        window = kernels.window_quantiles(look(test[:, :end]).filled, 36, levels)
        said["empirical quantiles"].append(np.repeat(window.T[:, :, None], HORIZON_STEPS, axis=2))
        points, unit = simple_points(test[:, :end])
        for name, point in points.items():
            out = np.empty((len(levels), len(test), HORIZON_STEPS))
            for resource in trace.resources:
                pooled = np.stack(errors[name])[:, train_rows % N_RESOURCES == resource].reshape(-1, HORIZON_STEPS)
                here = case.rows % N_RESOURCES == resource
                band = np.nanquantile(pooled, levels, axis=0)
                out[:, here] = point[here][None, :, None] + band[:, None] * unit[here][None, :, None]
            said[name].append(np.maximum(out, 0.0))
    return {name: np.stack(parts, axis=2) for name, parts in said.items()}


def windowed_peaks(trace: Trace, case: Case) -> F64:
    """PEAK_QUANTILES [3, n, o] of sliding hourly maxima of the last twelve hours."""
    peaks = trace.peak.reshape(-1, trace.peak.shape[2])[case.rows]
    said = []
    for end in case.ends:
        filled = kernels.fill_gaps(peaks[:, max(end - 156, 0) : end])[0]
        maxima = np.lib.stride_tricks.sliding_window_view(filled, HORIZON_STEPS, axis=1).max(axis=2)
        said.append(np.quantile(maxima, PEAK_QUANTILES, axis=1))
    return np.stack(said, axis=2)


def pinball(actual: F64, said: F64, levels: tuple[float, ...], scale: F64) -> F64:
    """Scaled pinball of every forecast, NaN where nothing came; said [q, ...], actual [...]."""
    error = (actual - said) / scale
    level = np.array(levels).reshape(-1, *([1] * actual.ndim))
    loss: F64 = np.maximum(level * error, (level - 1.0) * error)
    return loss


def answers(model: bytes, trace: Trace, case: Case) -> tuple[F64, F64]:
    """Quantiles of means [3, n, o, 12] and of the hour's peak [3, n, o]."""
    booster = QuantileBooster(model)
    b = trace.mean.shape[2]
    means, peaks = trace.mean.reshape(-1, b), trace.peak.reshape(-1, b)
    said, said_peaks = [], []
    for end in case.ends:
        found = booster.describe(means, peaks, np.full(len(means), np.nan), end=end, now_s=trace.start_s + (end - 1) * BUCKET_S)
        said.append(booster.bucket_quantiles(found)[:, case.rows])
        said_peaks.append(booster.peak_quantiles(found)[:, case.rows])
    return np.stack(said, axis=2), np.stack(said_peaks, axis=2)


def accuracy(trace: Trace, origins: int, pairs: int) -> list[Figure]:
    """One set: gradient boosting and the random forest against the simple methods, per resource."""
    case = case_of(trace, origins)
    figures: list[Figure] = []
    methods, peak_methods = simple_methods(trace, case), {"hourly maxima of 12 h": windowed_peaks(trace, case)}
    for name, settings in (("gradient boosting", Settings(pairs=pairs)), ("random forest", Settings(pairs=pairs, mode="rf"))):
        began = time.process_time()
        model = train(trace.training(), settings=settings)
        taken = time.process_time() - began
        if model is None:
            print(f"left out: {trace.name} has too little history to train on")
            return []
        figures.append(Figure(name=f"{trace.name}: training, {name}", value=taken, unit="s CPU", bar="<= 10", holds=taken <= 10.0))
        print(f"{trace.name}, {name}: gate without a champion: {gate(None, model, trace.training(), settings=settings).why}")
        methods[name], peak_methods[name] = answers(model, trace, case)
    return figures + [figure for pair in trace.pairs for figure in compared(pair, case, methods, peak_methods)]


def compared(pair: Pair, case: Case, methods: dict[str, F64], peak_methods: dict[str, F64]) -> list[Figure]:
    """Losses of every method on one pair, and gradient boosting over the best of those that are not trained."""
    here = np.isin(case.rows % N_RESOURCES, pair.resources)
    if not here.any():
        return []
    scale = case.scale[here]
    losses = {k: float(np.nanmean(pinball(case.actual[here], v[:, here], QUANTILES, scale[:, None, None]))) for k, v in methods.items()}
    tops = {k: float(np.nanmean(pinball(case.peak[here], v[:, here], PEAK_QUANTILES, scale[:, None]))) for k, v in peak_methods.items()}
    figures = []
    for kind, found in (("means", losses), ("peak of the hour", tops)):
        figures += [Figure(name=f"{pair.name}: {kind}, {name}", value=value, unit="pinball") for name, value in found.items()]
        best = min((name for name in found if name not in TRAINED), key=lambda name: found[name])
        figures.append(Figure(name=f"{pair.name}: {kind}, gradient boosting / {best}", value=found[TRAINED[0]] / found[best], unit="x"))
    return figures


def main() -> None:
    """All figures."""
    arguments = options(__doc__ or "").parse_args()
    figures = speed(6_000 if arguments.quick else SERIES)
    for trace in load(arguments.data, arguments.quick):
        figures += accuracy(trace, 8 if arguments.quick else 24, 5000 if arguments.quick else PAIRS)
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
