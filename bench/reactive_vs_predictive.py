"""Does predictive control have fewer violation minutes than reactive at no more allocation? Both modes on the same VMs, paired.

Six hosts of twelve VMs: hosts 0-2 reactive, hosts 3-5 predictive with the same series and the same noise. Everything that decides is
production code (bench.world). The truth comes from the simulated hosts: a violation minute is a VM-minute in which demand passes what is
granted by more than 1 % in any resource; allocation over use is the time integral of allocation over that of use, summed over VMs, as the
mean of CPU and memory (network beside it). Reactive is no straw man: it acts on every 5 s sample with the same levers, lead times and
guard. Its settings lie within 1 % of the fewest violations that any setting of it reached, with the fewest steps of those; leaner ones
exist at more steps, and against them the lead of prediction is smaller (docs/adr/0005): `--frontier` shows the neighbours of that point.
Figures hold where, over all seeds, the ratio of violations is below 1 at a ratio of allocations of at most 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agent.adapters.simulated_vm import TRUTH_RESOURCES
from bench.report import Figure, options, publish
from bench.world import Settings, World
from bench.world_causes import Causes
from coordinator.forecast.engine import ForecastOptions
from coordinator.settings import sizing_policy
from coordinator.workloads import HostWorkload, prepare
from shared.config import GuardConfig, ReactiveConfig, SizingConfig
from shared.model import Mode

MONDAY_S: Final = 1_699_833_600  # a Monday, 00:00 UTC
SHORT: Final = ("cpu", "memory", "net rx", "net tx")
# Neighbours of the reactive default: (window, margin), (grow at, headroom)
NEIGHBOURS: Final = tuple(
    (w, m, g, h) for w, m in ((300, 1100), (300, 1250), (600, 1250), (1800, 1250)) for g, h in ((850, 1400), (850, 1250))
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison. `data` None: generated workloads."""

    seed: int
    data: Path | None
    hours: float = 12.0
    hosts: int = 6
    vms: int = 12
    overcommit: float = 1.0
    start_s: int = MONDAY_S + 86_400 + 6 * 3600  # Tuesday, 06:00
    boosting: bool = False

    def prepare(self) -> list[HostWorkload]:
        """The hosts' workloads; host i and i + hosts / 2 are twins."""
        return prepare(
            self.data,
            hosts=self.hosts,
            vms_per_host=self.vms,
            start_s=self.start_s,
            hours_history=168,
            hours_run=int(self.hours) + 1,
            seed=self.seed,
            overcommit=self.overcommit,
        )


@dataclass(frozen=True, kw_only=True)
class Score:
    """Truth of some hosts: minutes with any violation and per resource, allocation over use per resource, verified steps."""

    any_min: float
    minutes: tuple[float, ...]
    ratios: tuple[float, ...]
    steps: int

    @property
    def allocation(self) -> float:
        """Mean of CPU and memory."""
        return (self.ratios[0] + self.ratios[1]) / 2


def score_of(world: World, hosts: range) -> Score:
    """The score of these hosts of a world that has run."""
    agents = [world.agents[i] for i in hosts]
    totals = [agent.host.truth()["total"] for agent in agents]
    cores = [agent.core for agent in agents if agent.core is not None]

    def total(name: str, resource: str) -> float:
        return float(sum(t[name][resource] for t in totals))

    return Score(
        any_min=sum(t["violation_any_s"] for t in totals) / 60,
        minutes=tuple(total("violation_s", r) / 60 for r in TRUTH_RESOURCES),
        ratios=tuple(total("allocated", r) / max(1e-9, total("used", r)) for r in TRUTH_RESOURCES),
        steps=sum(count for core in cores for (state, _), count in core.counters.items() if state in ("verified", "partial")),
    )


def compare(case: Case, works: Sequence[HostWorkload] | None = None, causes: Causes | None = None) -> tuple[Score, Score]:
    """(reactive, predictive) of one case."""
    works = works or case.prepare()
    half = (case.hosts + 1) // 2
    world = World(
        [work.file for work in works],
        Settings(
            seed=case.seed,
            hours=case.hours,
            modes=lambda i: Mode.REACTIVE if i < half else Mode.PREDICTIVE,
            history=[work.history() for work in works],
            sizing=sizing_policy(SizingConfig()),
            forecast=ForecastOptions(boosting=case.boosting),
            retrain_every_cycles=72 if case.boosting else 0,
            watch=causes,
        ),
    ).run()
    if causes is not None:
        names = [agent.host_id for agent in world.agents]
        show_causes("reactive", causes, frozenset(names[:half]))
        show_causes("predictive", causes, frozenset(names[half:]))
    return score_of(world, range(half)), score_of(world, range(half, case.hosts))


def reactive_alone(case: Case, works: Sequence[HostWorkload], config: ReactiveConfig, guard: GuardConfig) -> Score:
    """The reactive half of a case with other settings."""
    half = (case.hosts + 1) // 2
    settings = Settings(seed=case.seed, hours=case.hours, modes=lambda i: Mode.REACTIVE, reactive=config, guard=guard)
    return score_of(World([work.file for work in works[:half]], settings).run(), range(half))


def show(name: str, score: Score) -> None:
    """One line of the table."""
    minutes = "".join(f"{m:8.1f}" for m in score.minutes)
    ratios = "".join(f"{r:7.2f}" for r in score.ratios)
    print(f"{name:<34}{score.any_min:8.1f} |{minutes} |{score.allocation:7.3f} |{ratios} |{score.steps:7d}", flush=True)


def show_causes(name: str, causes: Causes, hosts: frozenset[str]) -> None:
    """What stood in the way, most minutes first."""
    for (resource, cause), minutes in sorted(causes.by_cause(hosts).items(), key=lambda item: -item[1]):
        print(f"  {name:<12}{resource:<20}{cause:<44}{minutes:8.1f}", flush=True)


def head() -> None:
    """The table's head."""
    minutes, ratios = "".join(f"{s:>8}" for s in SHORT), "".join(f"{s:>7}" for s in SHORT)
    print(f"{'violation minutes; allocation/use':<34}{'any':>8} |{minutes} |{'mean':>7} |{ratios} |{'steps':>7}")


def figures_of(name: str, pairs: Sequence[tuple[Score, Score]]) -> list[Figure]:
    """Ratios predictive over reactive: of sums over the seeds, and the worst seed."""
    before, after = sum(r.any_min for r, _ in pairs), sum(p.any_min for _, p in pairs)
    allocation = sum(p.allocation for _, p in pairs) / sum(r.allocation for r, _ in pairs)
    violations = after / max(before, 1e-9)
    found = [
        Figure(name=f"{name}: violation minutes, reactive", value=before / len(pairs), unit="min per seed"),
        Figure(name=f"{name}: violation minutes, predictive", value=after / len(pairs), unit="min per seed"),
        Figure(name=f"{name}: violations, predictive/reactive", value=violations, unit="ratio", bar="< 1", holds=violations < 1.0),
        Figure(name=f"{name}: allocation, predictive/reactive", value=allocation, unit="ratio", bar="<= 1", holds=allocation <= 1.0),
        Figure(
            name=f"{name}: the same, worst seed, violations", value=max(p.any_min / max(r.any_min, 1e-9) for r, p in pairs), unit="ratio"
        ),
        Figure(name=f"{name}: the same, worst seed, allocation", value=max(p.allocation / r.allocation for r, p in pairs), unit="ratio"),
    ]
    for i, resource in enumerate(SHORT):
        r_min, p_min = sum(r.minutes[i] for r, _ in pairs), sum(p.minutes[i] for _, p in pairs)
        allocated = sum(p.ratios[i] for _, p in pairs) / sum(r.ratios[i] for r, _ in pairs)
        found.append(Figure(name=f"{name}: {resource} violations, predictive/reactive", value=p_min / max(r_min, 1e-9), unit="ratio"))
        found.append(Figure(name=f"{name}: {resource} allocation, predictive/reactive", value=allocated, unit="ratio"))
    return found


def frontier(case: Case) -> None:
    """Reactive alone at the neighbours of its default."""
    works = case.prepare()
    for window, margin, grow_at, headroom in NEIGHBOURS:
        config = replace_reactive(window, margin, grow_at, headroom)
        show(
            f"  {window} s x{margin / 1000:g}, {grow_at / 1000:g} x{headroom / 1000:g}", reactive_alone(case, works, config, GuardConfig())
        )


def replace_reactive(window: int, margin: int, grow_at: int, headroom: int) -> ReactiveConfig:
    """Reactive settings of one point."""
    return ReactiveConfig(shrink_window_s=window, shrink_margin_permille=margin, grow_at_permille=grow_at, headroom_permille=headroom)


def arguments() -> argparse.Namespace:
    """The options of this bench."""
    parser = options(__doc__ or "")
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="default 1 2 3 4; with --quick 1")
    parser.add_argument("--hours", type=float, default=None, help="simulated hours; default 12, with --quick 3")
    parser.add_argument("--overcommit", type=float, default=1.0, help="smaller hosts: at 1.0 their summed peaks just fit")
    parser.add_argument("--only", choices=("real", "generated"), default=None, help="one kind of workload; default both")
    parser.add_argument("--boosting", action="store_true", help="with the global boosted model, retrained on the way")
    parser.add_argument("--why", action="store_true", help="also what stood in the way of unserved demand, by cause")
    parser.add_argument("--frontier", action="store_true", help="also run reactive alone at neighbouring settings")
    return parser.parse_args()


def main() -> None:
    """Real traces where there are any, and generated workloads."""
    chosen = arguments()
    seeds = chosen.seeds or ([1] if chosen.quick else [1, 2, 3, 4])
    hours = chosen.hours or (3.0 if chosen.quick else 12.0)
    sets: list[tuple[str, Path | None]] = []
    if chosen.only != "generated" and chosen.data.is_dir():
        sets.append(("real traces", chosen.data))
    elif chosen.only != "generated":
        print(f"left out: real traces, there is no {chosen.data}")
    if chosen.only != "real":
        sets.append(("generated", None))
    figures: list[Figure] = []
    for name, data in sets:
        case = Case(seed=0, data=data, hours=hours, overcommit=chosen.overcommit, boosting=chosen.boosting)
        print(f"{name}, {hours:g} h, overcommit {chosen.overcommit:g}")
        head()
        pairs = []
        for seed in seeds:
            reactive, predictive = compare(replace(case, seed=seed), causes=Causes() if chosen.why else None)
            show(f"seed {seed} reactive", reactive)
            show(f"seed {seed} predictive", predictive)
            pairs.append((reactive, predictive))
        if chosen.frontier:
            frontier(replace(case, seed=seeds[0]))
        figures += figures_of(name, pairs)
    publish(figures, chosen.json)


if __name__ == "__main__":
    main()
