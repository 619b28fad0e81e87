"""A large plan made better a few hosts at a time: ten or so are cut out, solved with proof, and put back.

Which hosts: in turn one that is nearly empty, one that passes a capacity, one where a rule is broken, one drawn at random, each with others
drawn at random. Sub-problems are exact: VMs of the rest stay where they are, count in the rules, and use up their share of the caps.
Invariants: the plan never gets dearer and breaks nothing more than home; the same input, seed and effort give the same bytes unless `cut`.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from coordinator.placement.cost import broken_rules, cost_of, host_loads
from coordinator.placement.exact.cpsat import solve_cpsat
from coordinator.placement.problem import F64, I32, NOWHERE, SLACK, Engine, Problem, Solution
from coordinator.placement.search.sharded import merged, subproblem
from coordinator.placement.verdict import first_place, worse

HOSTS: Final = 8  # of a neighbourhood: proven optimal in a second or two
ROUNDS: Final = 12  # at effort 1
SECONDS: Final = 3.0  # for one neighbourhood


def improve(
    problem: Problem,
    *,
    seed: int,
    effort: float = 1.0,
    deadline_s: float,
    start: I32 | None = None,
    hosts: int = HOSTS,
    engine: Engine = solve_cpsat,
) -> Solution:
    """The plan `start` (default: home) after rounds of neighbourhoods of `hosts` hosts. No bound: see bounds.lower_bound."""
    begun = time.perf_counter()
    random = np.random.default_rng(seed)
    place = first_place(problem, start)
    cost = cost_of(problem, place).total
    cut = False
    for turn in range(int(ROUNDS * effort)):
        left = deadline_s - (time.perf_counter() - begun)
        if left <= 0.0:
            cut = True
            break
        chosen = pick_hosts(problem, place, turn, min(hosts, len(problem.host_ids)), random)
        shard = subproblem(problem, chosen, place)
        if not len(shard.vms):
            continue
        found = engine(shard.problem, seed=seed + turn, effort=effort, deadline_s=min(left, SECONDS), start=shard.start)
        cut |= found.cut
        trial = merged(place, [(shard, found.place)])
        if not worse(problem, trial, problem.home) and (better := cost_of(problem, trial).total) < cost:
            place, cost = trial, better
    return Solution(place=place, cost=cost, bound=-np.inf, engine="neighbourhoods", cut=cut, seconds=time.perf_counter() - begun)


def pick_hosts(problem: Problem, place: I32, turn: int, count: int, random: np.random.Generator) -> I32:
    """Hosts of one neighbourhood, ascending: the worst of this turn's kind, some that run, and now and then one that does not."""
    load, _ = host_loads(problem, place)
    used = np.bincount(place[place != NOWHERE], minlength=len(problem.host_ids)) > 0
    share = (load / np.maximum(problem.capacity, 1e-12)).max(axis=1)
    want = (np.where(used, 1.0 - share, -1.0), np.maximum(share - 1.0 - SLACK, 0.0), rule_breakers(problem, place), np.zeros(len(used)))[
        turn % 4
    ]
    noise = random.random(len(used))
    worst = np.argsort(-(want + 1e-9 * noise + 0.2 * want * noise), kind="stable")[: max(1, count // 3)]
    rest = np.setdiff1d(np.arange(len(used)), worst)
    # running hosts first, in random order; every other turn one that is empty stands among them
    order = rest[np.argsort(np.where(used[rest], 0.0, 1.0) + random.random(len(rest)) * 0.9, kind="stable")]
    if turn % 2 and (~used[rest]).any():
        order = np.concatenate([[random.choice(rest[~used[rest]])], order])
    found: I32 = np.unique(np.concatenate([worst, order[: count - len(worst)]])).astype(np.int32)
    return found


def rule_breakers(problem: Problem, place: I32) -> F64:
    """[h] members, on each host, of rules that are broken."""
    found = np.zeros(len(problem.host_ids))
    rules = problem.rules
    for r in np.flatnonzero(broken_rules(problem, place)) if len(rules) else []:
        at = place[rules.members[rules.start[r] : rules.start[r + 1]]]
        np.add.at(found, at[at != NOWHERE], 1.0)
    return found
