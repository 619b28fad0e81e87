"""The engines by the names that `placement.engine` and receipts call them. All stand behind one port (problem.Engine) and one objective.

The default is what wins in bench/placement and bench/packing; the others are for fleets that want something else of a plan: proof,
another kind of search, or few and cheap moves. Pure but for the clock of the deadline.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

import numpy as np

from coordinator.placement.consolidate.planner import consolidate
from coordinator.placement.cost import cost_of
from coordinator.placement.exact.prove import solve_proven
from coordinator.placement.problem import I32, Engine, Problem, Solution
from coordinator.placement.search.genetic import solve_genetically
from coordinator.placement.search.plain_search import search_plainly
from coordinator.placement.search.sharded import solve_in_shards
from coordinator.placement.verdict import worse
from shared.errors import ConfigError

PROVABLE_HOSTS: Final = 10  # of a shard: proven in seconds, see docs/placement-proofs.md


def genetic(problem: Problem, *, seed: int, effort: float, deadline_s: float, start: I32 | None = None) -> Solution:
    """Engine: a grouping genetic algorithm in every shard."""
    return solve_in_shards(problem, seed=seed, effort=effort, deadline_s=deadline_s, start=start, engine=solve_genetically)


def exact(problem: Problem, *, seed: int, effort: float, deadline_s: float, start: I32 | None = None) -> Solution:
    """Engine: CP-SAT with proofs, in shards of ten hosts. Seconds a shard: for fleets of some dozens of hosts."""
    return solve_in_shards(
        problem, seed=seed, effort=effort, deadline_s=deadline_s, start=start, hosts_per_shard=PROVABLE_HOSTS, engine=solve_proven
    )


def few_moves(problem: Problem, *, seed: int, effort: float, deadline_s: float, start: I32 | None = None) -> Solution:
    """Engine: repairs, and hosts emptied where that pays for its moves (docs/consolidation.md); effort 0 = repairs only.

    Without chance and without a search that a deadline could cut: `seed` and `deadline_s` change nothing. Begins at home.
    """
    del seed, deadline_s
    begun = time.monotonic()
    first = problem.home if start is None else start
    found = consolidate(problem, empty=effort > 0.0).place
    better = not worse(problem, found, problem.home) and cost_of(problem, found).total < cost_of(problem, first).total
    place = found if better else first
    cost = cost_of(problem, place).total
    return Solution(place=place, cost=cost, bound=-np.inf, engine="consolidate", seconds=time.monotonic() - begun)


ENGINES: Final[dict[str, Engine]] = {
    "shards": solve_in_shards,
    "genetic": genetic,
    "exact": exact,
    "consolidate": few_moves,
    "plain": search_plainly,
}


def engine_named(name: str) -> Engine:
    """The engine, whose solutions bear this name. Raises ConfigError for a name that none has."""
    if name not in ENGINES:
        raise ConfigError(f"placement.engine = {name!r}: allowed {', '.join(ENGINES)}")

    def named(problem: Problem, *, seed: int, effort: float, deadline_s: float, start: I32 | None = None) -> Solution:
        return replace(ENGINES[name](problem, seed=seed, effort=effort, deadline_s=deadline_s, start=start), engine=name)

    return named
