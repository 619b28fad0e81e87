"""A large plan made better a few hosts at a time: ten or so are cut out, solved with proof, and put back.

Which hosts: in turn one that is nearly empty, one that passes a capacity, one where a rule is broken, one drawn at random, each with others
drawn at random. Sub-problems are exact: VMs of the rest stay where they are, count in the rules, and use up their share of the caps.
Invariants: the plan never gets dearer and breaks nothing more than home; the same input, seed and effort give the same bytes unless `cut`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

import numpy as np

from coordinator.placement.cost import broken_rules, cost_of, host_loads
from coordinator.placement.exact.cpsat import solve_cpsat
from coordinator.placement.problem import F64, I32, NOWHERE, SLACK, Engine, Problem, Rules, Solution
from coordinator.placement.verdict import worse

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
    home = problem.home.astype(np.int32)
    place = home if start is None or worse(problem, start, home) else start.astype(np.int32)
    cost = cost_of(problem, place).total
    cut = False
    for turn in range(int(ROUNDS * effort)):
        left = deadline_s - (time.perf_counter() - begun)
        if left <= 0.0:
            cut = True
            break
        chosen = pick_hosts(problem, place, turn, min(hosts, len(problem.host_ids)), random)
        part, vms, inner = cut_out(problem, place, chosen)
        if not len(vms):
            continue
        found = engine(part, seed=seed + turn, effort=effort, deadline_s=min(left, SECONDS), start=inner)
        cut |= found.cut
        trial = place.copy()
        trial[vms] = np.where(found.place == NOWHERE, NOWHERE, chosen[found.place])
        if not worse(problem, trial, home) and (better := cost_of(problem, trial).total) < cost:
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


def cut_out(problem: Problem, place: I32, hosts: I32) -> tuple[Problem, I32, I32]:
    """(problem of these hosts and of the VMs on them and nowhere, those VMs, where they stand in it).

    A VM whose home is on another host has no home there: wherever it stands here, its move is paid for. Costs of the whole and of the part
    change alike.
    """
    inside_host = np.full(len(problem.host_ids) + 1, NOWHERE, np.int32)
    inside_host[hosts] = np.arange(len(hosts), dtype=np.int32)
    inside = (inside_host[place] != NOWHERE) | (place == NOWHERE)
    vms = np.flatnonzero(inside).astype(np.int32)
    outer = ~inside
    moved = outer & (place != problem.home)
    gone = np.bincount(inside_host[problem.home[moved & (problem.home != NOWHERE)]] + 1, minlength=len(hosts) + 1)[1:]
    departures = problem.departures_max
    part = replace(
        problem,
        vm_ids=tuple(problem.vm_ids[v] for v in vms),
        host_ids=tuple(problem.host_ids[h] for h in hosts),
        home=inside_host[problem.home[vms]],
        why_fixed=tuple(problem.why_fixed[v] for v in vms),
        **{
            name: getattr(problem, name)[vms]
            for name in ("fixed", "kind", "mean", "variance", "weight", "move_cost", "unplaced_cost", "group")
        },
        **{name: getattr(problem, name)[hosts] for name in ("capacity", "curve", "empty_cost", "wake_cost", "closed")},
        kind_cost=problem.kind_cost[:, hosts],
        domain=problem.domain[:, hosts],
        rules=inner_rules(problem, place, inside, vms),
        arrivals_max=None if problem.arrivals_max is None else problem.arrivals_max[hosts],
        departures_max=None if departures is None else np.maximum(departures[hosts] - gone, 0).astype(np.int32),
        moves_max=None if problem.moves_max is None else max(0, problem.moves_max - int(moved.sum())),
    )
    return part, vms, inside_host[place[vms]]


def inner_rules(problem: Problem, place: I32, inside: np.ndarray, vms: I32) -> Rules:
    """Rules with members inside; the others' members are counted where they stand."""
    rules = problem.rules
    kept = [r for r in range(len(rules)) if inside[rules.members[rules.start[r] : rules.start[r + 1]]].any()]
    if not kept:
        return Rules()
    number = np.full(len(place), NOWHERE, np.int32)
    number[vms] = np.arange(len(vms), dtype=np.int32)
    outside = np.zeros((len(kept), max(int(problem.domain.max()) + 1, rules.outside.shape[1])), np.int32)
    if rules.outside.size:
        outside[:, : rules.outside.shape[1]] = rules.outside[kept]
    members = []
    for row, r in enumerate(kept):
        of = rules.members[rules.start[r] : rules.start[r + 1]]
        there = of[~inside[of]]
        np.add.at(outside[row], problem.domain[rules.level[r], place[there]], 1)
        members.append(number[of[inside[of]]])
    return Rules(
        kind=rules.kind[kept],
        limit=rules.limit[kept],
        level=rules.level[kept],
        start=np.cumsum([0, *(len(part) for part in members)]).astype(np.int32),
        members=np.concatenate(members).astype(np.int32),
        names=tuple(rules.names[r] for r in kept) if rules.names else (),
        outside=outside,
    )
