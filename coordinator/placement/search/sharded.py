"""A large problem in shards of whole hosts, solved side by side, regrouped at random and solved again.

80 hosts or more and 1,000 VMs in a shard lose next to nothing against the undivided problem and search it many times faster (measured by
bench/packing); exchange rounds let what one shard could not use meet what another has left. After POP (Narayanan et al., SOSP 2021).

A shard is a Problem of its own. VMs whose home lies in another shard have no home there (going back home needs both in one shard: the
final `take_back` on the whole looks at that); rules with members elsewhere count them in `rules.outside`; the fleet's move budget is
divided by VMs; room that a rule leaves in a fault domain that several shards share belongs to one of them a round.

Invariants: the answer depends on (problem, seed, effort, start) alone, never on which thread ended first, unless the deadline cut it; it is
never dearer than the start, and breaks no rule or hard cell more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from coordinator.placement.cost import broken_rules, cost_of
from coordinator.placement.problem import I32, NOWHERE, Bool, Engine, Problem, RuleKind, Rules, Solution
from coordinator.placement.search.anneal import anneal_engine
from coordinator.placement.search.board import open_board, open_state, place_of, true_prices
from coordinator.placement.search.greedy import greedy, weigh
from coordinator.placement.search.scan import take_back
from coordinator.placement.search.unburden import unburden

HOSTS: Final = 120  # of a shard
LEAST_HOSTS: Final = 80
OF_VMS: Final = ("fixed", "kind", "mean", "variance", "weight", "move_cost", "unplaced_cost", "group")  # fields of a problem, a row each
OF_HOSTS: Final = ("capacity", "curve", "empty_cost", "wake_cost", "closed")
SHARES: Final = (0.5, 0.3, 0.2)  # of the effort for each round


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Some hosts of a problem with what stands on them, as a problem."""

    problem: Problem
    hosts: I32  # [h of the shard] indices in the whole
    vms: I32
    start: I32  # [v of the shard] host of the shard, or NOWHERE


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which of `of` shards that are solved at the same time a sub-problem is."""

    index: int = 0
    of: int = 1
    turn: int = 0  # round: who owns the room of shared fault domains


def solve_in_shards(
    problem: Problem,
    *,
    seed: int,
    effort: float,
    deadline_s: float,
    start: I32 | None = None,
    hosts_per_shard: int = HOSTS,
    engine: Engine = anneal_engine,
    threads: int = 0,
) -> Solution:
    """Engine for fleets of any size. effort 0: the first feasible plan, greedy's. threads 0: one a core."""
    begun = time.monotonic()
    start = problem.home if start is None else start
    hosts = len(problem.host_ids)
    if hosts < 2 * min(LEAST_HOSTS, hosts_per_shard):
        return engine(problem, seed=seed, effort=effort, deadline_s=deadline_s, start=start)
    before = weigh(problem, start)
    first = greedy(problem, seed=seed, effort=0.0, deadline_s=deadline_s, start=start)
    place, after, cut = first.place, weigh(problem, first.place), False
    rounds = SHARES if effort > 0 else ()
    count = max(2, round(hosts / hosts_per_shard))
    workers = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for turn, share in enumerate(rounds):
            left = begun + deadline_s - time.monotonic()
            if left <= 0:
                cut = True
                break
            groups = group_hosts(hosts, count, seed, turn)
            until = begun + deadline_s * sum(rounds[: turn + 1])
            waves = -(-len(groups) // workers)
            each = max(0.05, (until - time.monotonic()) / waves)
            jobs = [
                pool.submit(
                    solve_part,
                    problem,
                    place,
                    group,
                    Part(index=i, of=count, turn=turn),
                    engine,
                    seed * 7919 + turn * 613 + i,
                    effort * share,
                    each,
                )
                for i, group in enumerate(groups)
            ]
            parts, cuts = zip(*(job.result() for job in jobs), strict=True)
            cut = cut or any(cuts)
            place, after = accept(problem, place, after, parts)
    place, after = taken_back(problem, place, after)
    relieved = unburden(problem, place, start)
    if relieved is not place:
        place, after = relieved, weigh(problem, relieved)
    if after >= before:
        place = start
    return Solution(
        place=place, cost=cost_of(problem, place).total, bound=-np.inf, engine="shards", cut=cut, seconds=time.monotonic() - begun
    )


def solve_part(
    problem: Problem, place: I32, hosts: I32, part: Part, engine: Engine, seed: int, effort: float, deadline_s: float
) -> tuple[tuple[Shard, I32], bool]:
    """((shard, its new place), whether it was cut)."""
    shard = subproblem(problem, hosts, place, part)
    found = engine(shard.problem, seed=seed, effort=effort, deadline_s=deadline_s, start=shard.start)
    return (shard, found.place), found.cut


def group_hosts(hosts: int, count: int, seed: int, turn: int) -> list[I32]:
    """`count` groups of hosts drawn at random, anew each round; ascending within each."""
    order = np.random.default_rng([seed & 0xFFFFFFFF, turn]).permutation(hosts)
    return [np.sort(part).astype(np.int32) for part in np.array_split(order, count)]


def homeless_of(place: I32, part: Part) -> I32:
    """VMs that stand nowhere, dealt in turn."""
    nowhere = np.flatnonzero(place == NOWHERE)
    return nowhere[part.index :: part.of].astype(np.int32)


def subproblem(problem: Problem, hosts: I32, place: I32 | None = None, part: Part | None = None) -> Shard:
    """The hosts (ascending indices) with the VMs that stand on them in `place` (default: home), and this part's homeless ones.

    Solving it changes nothing for the rest: the whole's cost changes by what the shard's does, if other parts' changes of shared fault
    domains do not meet (see `accept`).
    """
    place = problem.home if place is None else place
    part = part or Part()
    of_host = np.full(len(problem.host_ids) + 1, NOWHERE, np.int32)  # the last is NOWHERE's
    of_host[hosts] = np.arange(len(hosts), dtype=np.int32)
    inside = of_host[place] != NOWHERE
    inside[homeless_of(place, part)] = True
    vms = np.flatnonzero(inside).astype(np.int32)
    home = of_host[problem.home[vms]]
    start = of_host[place[vms]]
    away = (problem.home != NOWHERE) & (of_host[problem.home] != NOWHERE) & ~inside  # left the shard's hosts in an earlier round
    gone = np.bincount(of_host[problem.home[away]], minlength=len(hosts))
    domain, columns = local_domains(problem, hosts)
    moves_max = problem.moves_max
    if moves_max is not None:
        own = int((start != home).sum())
        spare = max(0, moves_max - int((place != problem.home).sum()))
        dealt = spare * np.cumsum(np.full(part.of, 1)) // part.of
        moves_max = own + int(dealt[part.index] - (dealt[part.index - 1] if part.index else 0))
    inner = replace(
        problem,
        vm_ids=tuple(problem.vm_ids[v] for v in vms),
        host_ids=tuple(problem.host_ids[h] for h in hosts),
        home=home,
        why_fixed=tuple(problem.why_fixed[v] for v in vms),
        **{name: getattr(problem, name)[vms] for name in OF_VMS},
        **{name: getattr(problem, name)[hosts] for name in OF_HOSTS},
        kind_cost=problem.kind_cost[:, hosts],
        domain=domain,
        rules=local_rules(problem, place, vms, inside, columns, part),
        arrivals_max=None if problem.arrivals_max is None else problem.arrivals_max[hosts],
        departures_max=None if problem.departures_max is None else np.maximum(problem.departures_max[hosts] - gone, 0).astype(np.int32),
        moves_max=moves_max,
    )
    return Shard(problem=inner, hosts=hosts, vms=vms, start=start)


def local_domains(problem: Problem, hosts: I32) -> tuple[I32, I32]:
    """(domain [level, h] numbered from 0; [level, d] the shard's number of each fault domain of the whole, -1 = it has no host there)."""
    rows = np.zeros((len(problem.domain), len(hosts)), np.int32)
    columns = np.full((len(problem.domain), int(problem.domain.max(initial=0)) + 1), -1, np.int32)
    for level, row in enumerate(problem.domain):
        found, inverse = np.unique(row[hosts], return_inverse=True)
        columns[level, found] = np.arange(len(found))
        rows[level] = inverse.ravel()
    return rows, columns


def local_rules(problem: Problem, place: I32, vms: I32, inside: Bool, columns: I32, part: Part) -> Rules:
    """The rules that have members in the shard, with the others, those the problem itself lacks too, counted where they stand.

    A fault domain without hosts of the shard matters to two kinds of rule only, by columns at the end: the fullest one to TOGETHER, how
    many there are, up to the limit, to LICENSED. Where parts are solved at the same time, all but the owner of (rule, fault domain) see
    no room in it, and all but the owner of a LICENSED rule no further fault domain.
    """
    rules = problem.rules
    owner = np.repeat(np.arange(len(rules)), np.diff(rules.start))
    mine = inside[rules.members]
    keep = np.unique(owner[mine])
    if not len(keep):
        return Rules()
    row = np.full(len(rules), -1)
    row[keep] = np.arange(len(keep))
    number = np.full(len(inside), -1, np.int32)
    number[vms] = np.arange(len(vms), dtype=np.int32)
    kind, limit = rules.kind[keep], rules.limit[keep].copy()
    standing = (row[owner] >= 0) & (place[rules.members] != NOWHERE)
    r, at = row[owner[standing]], mine[standing]
    d = problem.domain[rules.level[keep][r], place[rules.members[standing]]]
    count = np.ones(len(r), np.int32)
    if rules.outside.size:
        lacking = rules.outside[keep]
        columns = np.pad(columns, ((0, 0), (0, max(0, lacking.shape[1] - columns.shape[1]))), constant_values=-1)
        rows, at_domain = np.nonzero(lacking)
        r, d, count = (np.concatenate(each) for each in ((r, rows), (d, at_domain), (count, lacking[rows, at_domain])))
        at = np.append(at, np.zeros(len(rows), bool))
    near = columns[rules.level[keep][r], d]
    shape = (len(keep), int(columns.max(initial=0)) + 1)
    own, outside = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    np.add.at(own, (r[at], near[at]), 1)
    there = ~at & (near >= 0)
    np.add.at(outside, (r[there], near[there]), count[there])
    away = (near < 0) & (kind[r] != RuleKind.APART)
    pairs, which = np.unique(np.stack([r[away], d[away]]), axis=1, return_inverse=True)
    members = np.bincount(which.ravel(), count[away], pairs.shape[1])
    fullest, domains = np.zeros(len(keep), np.int32), np.bincount(pairs[0], minlength=len(keep)).astype(np.int32)
    np.maximum.at(fullest, pairs[0], members.astype(np.int32))
    if part.of > 1:
        known = np.full((len(columns), shape[1]), -1)  # the fault domain of the whole of each column
        lines, names = np.nonzero(columns >= 0)
        known[lines, columns[lines, names]] = names
        foreign = (keep[:, None] + known[rules.level[keep]] + part.turn) % part.of != part.index
        shared = foreign & ((kind == RuleKind.APART) & (rules.level[keep] > 0))[:, None]  # a host belongs to one part anyway
        outside = np.where(shared, np.maximum(outside, limit[:, None] - own), outside)
        full = (kind == RuleKind.LICENSED) & ((keep + part.turn) % part.of != part.index)
        limit = np.where(full, np.clip(((own + outside) > 0).sum(axis=1) + domains, 1, limit), limit).astype(np.int32)
    return Rules(
        kind=kind,
        limit=limit,
        level=rules.level[keep],
        start=np.concatenate([[0], np.cumsum(np.bincount(row[owner[mine]], minlength=len(keep)))]).astype(np.int32),
        members=number[rules.members[mine]],
        names=tuple(rules.names[i] for i in keep) if rules.names else (),
        outside=np.concatenate([outside, further_columns(kind, limit, fullest, domains)], axis=1),
    )


def further_columns(kind: I32, limit: I32, fullest: I32, domains: I32) -> I32:
    """[r, any]: members in fault domains without hosts of the shard, as far as they matter; `domains` of them, `fullest` in the fullest."""
    licensed = np.where(kind == RuleKind.LICENSED, np.minimum(domains, limit), 0)
    found: I32 = (np.arange(max(1, int(licensed.max()))) < licensed[:, None]).astype(np.int32)
    found[:, 0] += np.where(kind == RuleKind.TOGETHER, fullest, 0).astype(np.int32)
    return found


def merged(place: I32, parts: Sequence[tuple[Shard, I32]]) -> I32:
    """The whole's assignment after each shard's VMs went where the shard's answer says."""
    found = place.copy()
    for shard, inner in parts:
        found[shard.vms] = np.where(inner == NOWHERE, NOWHERE, shard.hosts[inner])
    return found


def accept(problem: Problem, place: I32, money: float, parts: Sequence[tuple[Shard, I32]]) -> tuple[I32, float]:
    """(place, money) after the parts' answers; those that meet in a rule so that it is broken more are left out, last ones first."""
    parts = list(parts)
    before = broken_rules(problem, place)
    while parts:
        found = merged(place, parts)
        worse = np.flatnonzero(broken_rules(problem, found) > before)
        if not len(worse):
            total = weigh(problem, found)
            return (found, total) if total < money else (place, money)
        members = problem.rules.members[problem.rules.start[worse[0]] : problem.rules.start[worse[0] + 1]]
        moved = members[found[members] != place[members]]
        guilty = [i for i, (shard, _) in enumerate(parts) if np.isin(moved, shard.vms).any()]
        parts.pop(guilty[-1])
    return place, money


def taken_back(problem: Problem, place: I32, money: float) -> tuple[I32, float]:
    """Moves that do not pay in the whole, taken back."""
    if not (place != problem.home).any():
        return place, money
    board = open_board(problem)
    prices = true_prices(problem, board)
    state = open_state(board, prices, place, 0)
    if not take_back(board, prices, state):
        return place, money
    found = place_of(state)
    total = weigh(problem, found)
    return (found, total) if total <= money else (place, money)
