"""The product's claim: predictive control against static limits, rules that look back, rules that look ahead to one value, and an oracle.

The real coordinator and agents on simulated hosts (bench/world.py) replay traces under each policy; every policy has a world of its own
with the same VMs, demand, levers, lead times and guard. Fleets by trace, seed and pressure: bench/league_fleet.py. Rivals:
bench/league_rivals.py. Figures and prices: bench/league_score.py. The first half hour of each run is not scored. Hosts of these worlds
have no migrator, so moves are none. `cpu_s` is the CPU time of the whole world.

    python -m bench.league --quick                 one small fleet, all policies, and the product made worse
    python -m bench.league --folder DIR            cases that DIR holds already are not run again; any number of processes may share it
    python -m bench.league --tune vpa-like         every combination of a policy's knobs on the dev seeds, by money
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from bench.league_fleet import SETS, Case, Fleet, fleet_of
from bench.league_policies import POLICIES, settings_of
from bench.league_score import Score, joined, score_of
from bench.report import Figure, options, publish
from bench.world import World
from bench.world_causes import Causes

WARM_H: Final = 0.5
ROOMS: Final = (1.0, 1.1, 1.3)
DEV_SEEDS: Final = (101, 102)
SEEDS: Final = (201, 202, 203)
RANKED: Final = ("static", "reactive", "vpa-like", "mom-like", "onedrs-like", "predictive", "oracle")
TURNS: Final = 2
WORSE: Final = ("late", "low")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One policy on one fleet."""

    case: Case
    policy: str
    data: Path
    knobs: Mapping[str, Any] = field(default_factory=dict)
    why: bool = False

    @property
    def name(self) -> str:
        """Of the file that holds its score."""
        case = self.case
        knobs = "".join(f"-{key}{value}" for key, value in sorted(self.knobs.items()))
        return f"{case.trace}-s{case.seed}-{case.hosts}x{case.vms}-{case.hours:g}h-r{case.room:g}-{self.policy}{knobs}"


@lru_cache(maxsize=2)
def _fleet(case: Case, data: Path) -> Fleet:
    return fleet_of(case, data)


def play(run: Run) -> Score:
    """Run one world to its end."""
    fleet = _fleet(run.case, run.data)
    causes = Causes() if run.why else None
    begun = time.process_time()
    settings = settings_of(run.policy, fleet, run.knobs, seed=run.case.seed, hours=run.case.hours, watch=causes)
    works = fleet.static if run.policy == "static" else fleet.works
    world = World([work.file for work in works], settings)
    for agent in world.agents:
        world.after(WARM_H * 3600, agent.host.reset_truth)
    world.run()
    score = score_of(run.policy, world, fleet, WARM_H, time.process_time() - begun)
    if causes is not None:
        print(run.name)
        for (resource, cause), minutes in sorted(causes.by_cause().items(), key=lambda item: -item[1])[:12]:
            print(f"    {resource:<20}{cause:<40}{minutes:8.1f} min")
    return score


def play_all(runs: Sequence[Run], jobs: int, folder: Path | None) -> list[Score]:
    """Scores in the order of the runs; what `folder` holds is taken from there, what is new goes there."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    missing = [run for run in runs if folder is None or not (folder / f"{run.name}.json").exists()]
    fresh: dict[str, Score] = {}
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        for run, score in zip(missing, pool.map(play, missing) if jobs > 1 else map(play, missing), strict=True):
            fresh[run.name] = score
            if folder is not None:
                part = folder / f"{run.name}.{os.getpid()}.part"
                part.write_text(
                    json.dumps({"run": {**asdict(run.case), "policy": run.policy, "knobs": dict(run.knobs)}, "score": score.data()})
                )
                part.rename(folder / f"{run.name}.json")
    return [fresh[run.name] if run.name in fresh else _read(folder, run) for run in runs]


def _read(folder: Path | None, run: Run) -> Score:
    assert folder is not None
    return Score(**json.loads((folder / f"{run.name}.json").read_text())["score"])


def head() -> str:
    """The table's head."""
    return (
        f"{'policy':<14}{'viol min':>9}{'low':>7}{'norm':>7}{'high':>7}{'crit':>7}{'depth%':>8} |{'cpu':>7}{'mem':>7}{'rx':>7}{'tx':>7} |"
        f"{'alloc':>7}{'slack':>7}{'host-h':>8}{'kWh':>7}{'money':>8} |{'steps':>7}{'turns/6h':>9}{'worst':>6}{'cpu s/VM-d':>11}"
    )


def line(score: Score) -> str:
    """One policy."""
    priority = "".join(f"{each:7.1f}" for each in score.by_priority)
    minutes = "".join(f"{each:7.1f}" for each in score.minutes)
    depth = 100 * sum(score.depth) / len(score.depth)
    return (
        f"{score.policy:<14}{score.violation_min:9.1f}{priority}{depth:8.3f} |{minutes} |{score.allocation:7.3f}{score.slack:7.3f}"
        f"{score.host_hours:8.2f}{score.kwh:7.2f}{score.money:8.3f} |{score.steps:7d}{score.turns_per_6h:9.2f}{score.worst_turns:6d}"
        f"{score.cpu_s / score.vm_days:11.2f}"
    )


def figures_of(name: str, scores: Mapping[str, Score]) -> list[Figure]:
    """Row 9's ratios where both sides ran."""
    found = []
    ours = scores["predictive"]

    def ratio(what: str, value: float, most: float | None = None) -> None:
        bar = "" if most is None else f"<= {most:g}"
        found.append(
            Figure(row=9, name=f"{name}: {what}", value=value, unit="ratio", bar=bar, holds=None if most is None else value <= most)
        )

    for rival, violations, allocation in (
        ("reactive", 1 / 3, 1.0),
        ("vpa-like", 1.0, 0.65),
        ("mom-like", None, None),
        ("onedrs-like", None, None),
    ):
        if rival in scores:
            ratio(f"violations, predictive/{rival}", ours.violation_min / max(scores[rival].violation_min, 1e-9), violations)
            ratio(f"allocation, predictive/{rival}", ours.allocation / scores[rival].allocation, allocation)
    if "oracle" in scores:
        oracle = scores["oracle"]
        ratio("regret: allocation over the oracle's", ours.allocation / oracle.allocation - 1.0)
        ratio("regret: money over the oracle's", ours.money / oracle.money - 1.0)
        found.append(Figure(row=9, name=f"{name}: regret: violations", value=ours.violation_min - oracle.violation_min, unit="VM-minutes"))
    # as docs/adr/0007 counts them: for each lever of a VM by itself
    holds = ours.worst_turns <= TURNS
    found.append(Figure(row=9, name=f"{name}: most turns of a lever in 6 h", value=ours.worst_turns, unit="turns", bar="<= 2", holds=holds))
    found.append(Figure(row=9, name=f"{name}: turns per VM in 6 h, its four levers together", value=ours.turns_per_6h, unit="turns"))
    for worse in WORSE:
        if worse in scores:
            found.append(
                Figure(
                    row=9,
                    name=f"{name}: money, {worse}/predictive",
                    value=scores[worse].money / ours.money,
                    unit="ratio",
                    bar="> 1",
                    holds=scores[worse].money > ours.money,
                )
            )
    return found


def quick_figures(scores: Mapping[str, Score]) -> list[Figure]:
    """What one small fleet can tell, judged: prediction helps, and made worse it helps less. `late` loses by little in two hours: shown."""
    ours = scores["predictive"]
    found = [
        Figure(row=9, name=f"quick: violations, predictive/{rival}", value=value, unit="ratio", bar="< 1", holds=value < 1.0)
        for rival in ("static", "reactive", "low")
        for value in (ours.violation_min / max(scores[rival].violation_min, 1e-9),)
    ]
    for rival in (*RANKED, *WORSE):
        if rival != "predictive":
            found.append(Figure(row=9, name=f"quick: money, predictive/{rival}", value=ours.money / scores[rival].money, unit="ratio"))
    value = ours.allocation / scores["reactive"].allocation
    found.append(
        Figure(row=9, name="quick: allocation, predictive/reactive", value=value, unit="ratio", bar="<= 1.02", holds=value <= 1.02)
    )
    for policy, score in scores.items():
        if score.broken:
            found.append(Figure(row=9, name=f"quick: {policy}: broken invariants", value=score.broken, unit="", bar="0", holds=False))
    return found


def tune(policy: str, cases: Sequence[Case], data: Path, jobs: int, folder: Path | None) -> None:
    """Every combination of the policy's knobs on the dev cases, cheapest first."""
    knobs = POLICIES[policy].knobs
    grid = [dict(zip(knobs, values, strict=True)) for values in itertools.product(*knobs.values())]
    runs = [Run(case=case, policy=policy, data=data, knobs=choice) for choice in grid for case in cases]
    scores = play_all(runs, jobs, folder)
    rows = [(joined(scores[i * len(cases) : (i + 1) * len(cases)]), choice) for i, choice in enumerate(grid)]
    for score, choice in sorted(rows, key=lambda row: row[0].money):
        print(f"{score.money:8.3f} {score.violation_min:9.1f} min {score.allocation:7.3f}  {choice}")


def cases_of(chosen: argparse.Namespace) -> list[Case]:
    """The fleets of the command line that there are data for."""
    seeds = chosen.seeds or (DEV_SEEDS if chosen.tune else SEEDS)
    found = []
    for trace in chosen.traces:
        if not sorted((chosen.data / SETS[trace]).glob("*.parquet")):
            print(f"left out: {trace} is not in {chosen.data}")
            continue
        for room, seed in itertools.product(chosen.rooms, seeds):
            found.append(Case(trace=trace, seed=seed, hosts=chosen.hosts, vms=chosen.vms, hours=chosen.hours, room=room))
    return found


def arguments() -> argparse.Namespace:
    """The options of this bench."""
    parser = options(__doc__ or "")
    parser.add_argument("--traces", nargs="+", choices=tuple(SETS), default=tuple(SETS))
    parser.add_argument("--rooms", type=float, nargs="+", default=ROOMS, help="host capacity over what the oracle needs")
    parser.add_argument("--seeds", type=int, nargs="+", default=None)
    parser.add_argument("--hosts", type=int, default=18)
    parser.add_argument("--vms", type=int, default=12, help="per host")
    parser.add_argument("--hours", type=float, default=168.5, help="simulated; the first half hour is not scored")
    parser.add_argument("--policies", nargs="+", choices=tuple(POLICIES), default=RANKED)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--folder", type=Path, default=None, help="keeps the score of every finished case")
    parser.add_argument("--tune", choices=tuple(POLICIES), default=None)
    parser.add_argument("--set", nargs="*", default=(), metavar="KNOB=VALUE", help="knobs of the one policy named by --policies")
    parser.add_argument("--why", action="store_true", help="what stood in the way of unserved demand")
    return parser.parse_args()


def quick(chosen: argparse.Namespace) -> None:
    """What CI has time for."""
    chosen.traces, chosen.rooms, chosen.seeds = ("google",), (1.0,), (301,)
    chosen.hosts, chosen.vms, chosen.hours, chosen.jobs = 1, 10, 2.5, 2
    chosen.policies = (*RANKED, *WORSE)


def by_policy(runs: Iterable[Run], scores: Iterable[Score]) -> dict[str, list[Score]]:
    """Scores by policy, in order."""
    found: dict[str, list[Score]] = {}
    for run, score in zip(runs, scores, strict=True):
        found.setdefault(run.policy, []).append(score)
    return found


def main() -> int:
    """Play, print, judge. 1 where the quick league's bars are broken."""
    chosen = arguments()
    if chosen.quick:
        quick(chosen)
    cases = cases_of(chosen)
    if not cases:
        publish([], chosen.json)
        return 0
    if chosen.tune:
        tune(chosen.tune, cases, chosen.data, chosen.jobs, chosen.folder)
        return 0
    knobs = {key: json.loads(value) for key, _, value in (item.partition("=") for item in chosen.set)}
    runs = [Run(case=case, policy=policy, data=chosen.data, knobs=knobs, why=chosen.why) for case in cases for policy in chosen.policies]
    scores = play_all(runs, chosen.jobs, chosen.folder)
    figures: list[Figure] = []
    for room in chosen.rooms:
        chosen_runs = [(run, score) for run, score in zip(runs, scores, strict=True) if run.case.room == room]
        table = {name: joined(found) for name, found in by_policy(*zip(*chosen_runs, strict=True)).items()}
        fleets = f"{len(cases) // len(chosen.rooms)} fleets of {chosen.hosts} x {chosen.vms} VMs, {chosen.hours:g} h"
        print(f"room {room:g}: {', '.join(chosen.traces)}; {fleets}")
        print(head())
        for score in table.values():
            print(line(score), flush=True)
        if "predictive" in table:
            figures += quick_figures(table) if chosen.quick else figures_of(f"room {room:g}", table)
    publish(figures, chosen.json)
    return int(chosen.quick and any(figure.holds is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
