"""Vector bin packing: our packing of equal bins against the best of the published heuristics and against known optima.

Data: every Parquet file in DIR/vbp (one row an instance: set, n, d, capacity, weights, opt or -1, best_heuristic). Baseline:
`best_heuristic`, the fewest bins that any heuristic of "Classification and evaluation of the algorithms for vector bin packing" (Computers
& Operations Research, 2024) needs on that instance. Every packing is checked item by item on the published weights. Some published
triplets have weights of -1 or -2: they are packed as 0, which is harder. Times are of one core; the load average says how many others
wanted it.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.report import Figure, finish, options
from coordinator.placement.packing.vectors import pack_vectors
from coordinator.placement.problem import F64, I32

BARS = {"Panigrahy": 0.01, "New": 0.03, "Triplet": 0.08}  # mean gap to known optima
SECONDS = 2.0  # an instance
QUICK = 12  # every so manieth instance, of each set and class alike


def load_instances(folder: Path, *, quick: bool) -> list[dict[str, object]]:
    """Rows of all files; quick: a sample that has every class and size in it."""
    files = sorted((folder / "vbp").glob("*.parquet"))
    if not files:
        return []
    rows: list[dict[str, object]] = pa.concat_tables([pq.read_table(file) for file in files]).to_pylist()
    return rows[3::QUICK] if quick else rows


def is_packing(weights: F64, capacity: F64, place: I32, bins: int) -> bool:
    """Every item in one of the bins, no bin over capacity: sums of our own."""
    total = np.zeros((bins, len(capacity)))
    for item, b in enumerate(place.tolist()):
        if not 0 <= b < bins:
            return False
        total[b] += weights[item]
    return len(place) == len(weights) and bool((total <= capacity).all())


def figures_of(name: str, rows: list[dict[str, object]]) -> list[Figure]:
    """One set of instances."""
    bins, wall, cpu = np.zeros(len(rows), np.int64), np.zeros(len(rows)), np.zeros(len(rows))
    sound, cut = True, 0
    for i, row in enumerate(rows):
        capacity = np.array(row["capacity"], np.float64)
        weights = np.array(row["weights"], np.float64).reshape(-1, len(capacity))
        begun, used = time.perf_counter(), time.process_time()
        found = pack_vectors(np.maximum(weights, 0.0), capacity, seed=1, deadline_s=SECONDS)
        wall[i], cpu[i] = time.perf_counter() - begun, time.process_time() - used
        bins[i], cut = found.bins, cut + found.cut
        sound &= is_packing(weights, capacity, found.place, found.bins)
    best = np.array([row["best_heuristic"] for row in rows], np.int64)
    optimum = np.array([row["opt"] for row in rows], np.int64)
    known = optimum > 0
    gap = float(((bins - optimum) / np.maximum(optimum, 1))[known].mean()) if known.any() else float("nan")
    theirs = float(((best - optimum) / np.maximum(optimum, 1))[known].mean()) if known.any() else float("nan")
    bar = BARS.get(name)
    return [
        Figure(
            name=f"{name}: bins of {len(rows)} instances",
            value=float(bins.sum()),
            unit="bins",
            bar=f"<= {best.sum()}",
            holds=bool(bins.sum() <= best.sum()) and sound,
            row=6,
        ),
        Figure(name=f"{name}: instances worse than the best heuristic", value=float((bins > best).sum()), unit="instances"),
        Figure(
            name=f"{name}: gap to the {known.sum()} known optima",
            value=100.0 * gap,
            unit="%",
            bar=f"<= {100 * bar:g}" if bar else "",
            holds=bool(gap <= bar) if bar and known.any() else None,
            row=6,
        ),
        Figure(name=f"{name}: gap of the best heuristic", value=100.0 * theirs, unit="%"),
        Figure(
            name=f"{name}: slowest instance, CPU",
            value=float(cpu.max()),
            unit="s",
            bar=f"<= {SECONDS:g}",
            holds=bool(cpu.max() <= SECONDS * 1.1),
        ),
        Figure(name=f"{name}: slowest instance, wall", value=float(wall.max()), unit="s"),
        Figure(name=f"{name}: mean CPU time", value=float(cpu.mean()), unit="s"),
        Figure(name=f"{name}: cut by the clock", value=float(cut), unit="instances"),
    ]


def main() -> None:
    """Run all sets found."""
    chosen = options(__doc__ or "").parse_args()
    rows = load_instances(chosen.data, quick=chosen.quick)
    if not rows:
        print(f"no instances in {chosen.data / 'vbp'}: nothing measured")
    pack_vectors(np.random.default_rng(0).uniform(0.05, 0.5, (40, 3)), np.ones(3), effort=0.01)  # compiled before the clock runs
    figures: list[Figure] = []
    for name in sorted({str(row["set"]) for row in rows}):
        figures += figures_of(name, [row for row in rows if row["set"] == name])
    finish(figures, chosen.json)


if __name__ == "__main__":
    main()
