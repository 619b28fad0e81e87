"""How many hosts the next hour needs: real forecasts pooled on the host against sizing every VM by its own past, on PlanetLab days.

At each full hour every VM of the day is packed from nothing onto hosts of 2 x 2660 MIPS (the experiment's larger host, CPU only), and the
hour that came is laid over it: a violated host-interval is a host and five minutes in which its VMs wanted more than it has. Baseline is
the usual rule, each VM at the highest of its last two hours; beside it the last hour's 90th percentile, and perfect foresight both by each
VM's own peak and bucket by bucket. All are packed by the same best fit.

Ours: the product's forecast engine, fed the day bucket by bucket and trained on nothing else, says a mean and a stddev of every VM and
bucket; a host is full at `sum(mean) + z * root(sum(variance))`. The variance is mixed from the engine's and the VM's own over the day so
far, which fades slowly: the engine's follows the last hours and misses rare bursts. VMs that vary most for their size are packed first and
so together, where their variances hide each other best. z and the mix were settled on 3, 9 and 25 March; the other days were reported on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from bench import cloudsim_hosts as hosts
from bench.cloudsim import days
from bench.report import Figure, finish, options
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.model import N_RESOURCES, BucketBlock, HistoryBlock
from coordinator.placement.bare import bare_problem
from coordinator.placement.problem import CURVE_POINTS, F64, I32, NOWHERE, Problem
from shared.units import BUCKET_S, CPU, HORIZON_STEPS

HOST_MIPS: Final = hosts.CORES * hosts.CORE_MIPS[1]
LOADED: Final = 36  # buckets of the day that the engine starts with
FIRST: Final = 72  # first hour packed: 06:00
Z: Final = 2.5
OWN_SHARE: Final = 0.7  # of the VM's own variance in the mix
FADE: Final = 0.015  # of its weight a bucket
SAVED: Final = 0.35
VIOLATED: Final = 0.01

Packer = Callable[[Problem], I32]


@dataclass(frozen=True)
class Packed:
    """One rule at one hour."""

    hosts: int
    violated: int  # host-intervals of hosts x 12

    @property
    def share(self) -> float:
        return self.violated / (self.hosts * HORIZON_STEPS)


def problem_of(mean: F64, variance: F64, z: float) -> Problem:
    """VMs [v, c] that run nowhere yet, and as many equal hosts as there are VMs."""
    v, c = mean.shape
    return bare_problem(
        np.full(v, NOWHERE, np.int32),
        mean,
        np.full((v, c), HOST_MIPS),
        np.ones(c, np.bool_),
        variance=variance,
        unplaced_cost=np.full(v, 1e6),
        hard=np.ones(c, np.bool_),
        z=np.full(c, z),
        minutes=np.full(c, 60.0 / c),
        curve=np.tile(np.array(hosts.WATTS[1])[:CURVE_POINTS] / 1000.0, (v, 1)),
    )


def best_fit(problem: Problem) -> I32:
    """Each VM on the fullest host that takes it: those first that vary most for their size, or the largest if none varies. A Packer."""
    varied = (problem.variance / np.maximum(problem.mean, 1.0)).max(axis=1)
    key = varied if problem.variance.any() else problem.mean.max(axis=1)
    order = np.argsort(-key, kind="stable")
    return _best_fit(problem.mean, problem.variance, problem.z, problem.capacity, order)


@njit(cache=True)
def _best_fit(mean: F64, variance: F64, z: F64, capacity: F64, order: NDArray[np.int64]) -> I32:
    v_n, c_n = mean.shape
    sums, spread, used = np.zeros((v_n, c_n)), np.zeros((v_n, c_n)), 0
    place = np.empty(v_n, np.int32)
    for v in order:
        best, least = used, np.inf
        for h in range(used):
            free = np.inf
            for c in range(c_n):
                free = min(free, capacity[h, c] - sums[h, c] - mean[v, c] - z[c] * np.sqrt(spread[h, c] + variance[v, c]))
                if free < 0.0:
                    break
            if 0.0 <= free < least:
                best, least = h, free
        place[v] = best
        used = max(used, best + 1)
        sums[best] += mean[v]
        spread[best] += variance[v]
    return place


def measured(place: I32, actual: F64) -> Packed:
    """What the hour that came [v, 12] does to an assignment."""
    loads = np.zeros((int(place.max()) + 1, actual.shape[1]))
    np.add.at(loads, place, actual)
    used = np.unique(place)
    return Packed(len(used), int((loads[used] > HOST_MIPS).sum()))


def forecasts(wanted: F64, mips: F64, until: int) -> Iterator[tuple[int, F64, F64]]:
    """(bucket, mean [v, 12], stddev [v, 12]) at every full hour from FIRST to before `until`: the hour that starts with the bucket."""
    v = len(wanted)
    names = tuple(f"vm{i}" for i in range(v))
    demand = np.full((v, N_RESOURCES, wanted.shape[1]), np.nan, np.float32)
    demand[:, CPU] = wanted
    capacity = np.full((v, N_RESOURCES), np.nan, np.float32)
    capacity[:, CPU] = mips
    engine = ForecastEngine(ForecastOptions(boosting=False, network=False, outlook=False))
    past = demand[..., :LOADED]
    engine.load(
        HistoryBlock(vm_ids=names, end_s=(LOADED - 1) * BUCKET_S, mean=past, peak=past, censored=np.zeros_like(past), capacity=capacity)
    )
    for b in range(LOADED, until - 1):
        said = engine.advance(BucketBlock.unlimited(b * BUCKET_S, names, demand[..., b].astype(np.float64)), {})
        if (b + 1) % HORIZON_STEPS == 0 and b + 1 >= FIRST:
            yield b + 1, said.mean[:, CPU].astype(np.float64), said.stddev[:, CPU].astype(np.float64)


def own_variance(past: F64) -> F64:
    """Of each VM about its own mean, both with fading weights, [v]."""
    weight = (1.0 - FADE) ** np.arange(past.shape[1])[::-1]
    weight /= weight.sum()
    mean = past @ weight
    return np.asarray((past - mean[:, None]) ** 2 @ weight)


def run(samples: NDArray[np.int64], until: int, pack: Packer = best_fit) -> tuple[dict[str, list[Packed]], float]:
    """Every rule at every hour of a day [v, 288]; and CPU seconds of the engine's whole day."""
    kind = np.minimum(np.arange(len(samples)) // -(-len(samples) // 4), 3)
    mips = np.array(hosts.VM_MIPS)[kind]
    wanted = samples / 100.0 * mips[:, None]
    results: dict[str, list[Packed]] = {}
    spent, began = 0.0, time.process_time()
    for b, mean, stddev in forecasts(wanted, mips, until):
        spent += time.process_time() - began
        past, actual = wanted[:, :b], wanted[:, b : b + HORIZON_STEPS]
        variance = (1.0 - OWN_SHARE) * stddev**2 + OWN_SHARE * own_variance(past)[:, None]
        rules = {
            "ours": problem_of(mean, variance, Z),
            "past 2 h peak": problem_of(*fixed(past[:, -24:].max(axis=1)), 0.0),
            "past 1 h 90th percentile": problem_of(*fixed(np.quantile(past[:, -12:], 0.9, axis=1)), 0.0),
            "foresight, own peak": problem_of(*fixed(actual.max(axis=1)), 0.0),
            "foresight, by bucket": problem_of(actual, np.zeros_like(actual), 0.0),
        }
        for name, problem in rules.items():
            results.setdefault(name, []).append(measured(pack(problem), actual))
        began = time.process_time()
    return results, spent


def fixed(size: F64) -> tuple[F64, F64]:
    """(mean, variance) [v, 1] of VMs taken at one size."""
    return size[:, None], np.zeros((len(size), 1))


def figures_of(results: dict[str, list[list[Packed]]], spent: float) -> list[Figure]:
    """Over all days [rule][day][hour]: share of hosts saved, host-intervals violated."""
    rows = []
    base = results["past 2 h peak"]
    hours = sum(map(len, base))
    for name, of_days in results.items():
        saved = [1.0 - p.hosts / q.hosts for mine, theirs in zip(of_days, base, strict=True) for p, q in zip(mine, theirs, strict=True)]
        violated = [sum(p.violated for p in day) / sum(p.hosts * HORIZON_STEPS for p in day) for day in of_days]
        whole = sum(p.violated for day in of_days for p in day) / sum(p.hosts * HORIZON_STEPS for day in of_days for p in day)
        mean, ours = float(np.mean(saved)), name == "ours"
        label = f"{name}, {len(of_days)} days, {hours} hours"
        rows += [
            Figure(row=8, name=f"{label}: hosts", value=float(np.mean([p.hosts for day in of_days for p in day])), unit="hosts"),
            Figure(
                row=8,
                name=f"{label}: fewer than past 2 h peak",
                value=mean,
                unit="share",
                bar=f">= {SAVED:g}" if ours else "",
                holds=mean >= SAVED if ours else None,
            ),
            Figure(
                row=8,
                name=f"{label}: violated host-intervals",
                value=whole,
                unit="share",
                bar=f"<= {VIOLATED:g}" if ours else "",
                holds=whole <= VIOLATED if ours else None,
            ),
            Figure(row=8, name=f"{label}: violated, worst day", value=max(violated), unit="share"),
        ]
    return [*rows, Figure(row=8, name="forecasts of a day", value=spent, unit="s CPU")]


def main() -> None:
    """Every day in the folder, 06:00 to 22:00; --quick: the day with the fewest VMs until noon."""
    arguments = options(__doc__ or "").parse_args()
    found = days(arguments.data / "planetlab")
    if not found:
        print(f"left out: planetlab is not in {arguments.data}")
    if arguments.quick and found:
        smallest = min(found, key=lambda day: (len(found[day]), day))
        found = {smallest: found[smallest]}
    results: dict[str, list[list[Packed]]] = {}
    spent = []
    for day, samples in found.items():
        told, seconds = run(samples, 144 + HORIZON_STEPS if arguments.quick else hosts.SAMPLES - HORIZON_STEPS + 1)
        spent.append(seconds)
        for name, packed in told.items():
            results.setdefault(name, []).append(packed)
        ours, peak = told["ours"], told["past 2 h peak"]
        fewer = np.mean([1 - p.hosts / q.hosts for p, q in zip(ours, peak, strict=True)])
        print(f"{day}: {fewer:.1%} fewer hosts, {np.mean([p.share for p in ours]):.2%} violated, in {len(ours)} hours")
    figures = figures_of(results, float(np.mean(spent))) if found else []
    finish(figures, arguments.json, strict=arguments.quick)


if __name__ == "__main__":
    main()
