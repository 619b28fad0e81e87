"""Engines that can be chosen, and parts of the default one: never worse than the start, nothing broken more, same seed, same answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coordinator.forecast.warm import compiling
from coordinator.placement import engines
from coordinator.placement.cost import broken_rules, cost_of, host_loads
from coordinator.placement.problem import NOWHERE, SLACK, Engine, Problem, RuleKind, Rules
from coordinator.placement.search import sharded
from coordinator.placement.search.anneal import anneal_engine
from coordinator.placement.search.greedy import greedy
from coordinator.placement.search.sharded import Part, accept, merged, solve_in_shards, subproblem
from coordinator.placement.warm import exercise
from tests.contract.placement_problems import make_problem

ENGINES: dict[str, Engine] = {
    "greedy": greedy,
    "anneal": anneal_engine,
    **{k: v for k, v in engines.ENGINES.items() if k != "exact"},
}  # that one: test_placement_port


def hard_over(problem: Problem, place: np.ndarray) -> np.ndarray:
    """[h, c] what is over in hard cells, with room for rounding."""
    load, _ = host_loads(problem, place)
    return np.maximum(load - problem.capacity * (1 + 2 * SLACK), 0.0)[:, problem.hard]


def check(problem: Problem, place: np.ndarray, cost: float) -> None:
    """What every engine promises."""
    assert cost == pytest.approx(cost_of(problem, place).total)
    assert cost <= cost_of(problem, problem.home).total
    assert (place[problem.fixed] == problem.home[problem.fixed]).all()
    assert (broken_rules(problem, place) <= broken_rules(problem, problem.home)).all()
    assert (hard_over(problem, place) <= hard_over(problem, problem.home) + 1e-9).all()
    moved = np.flatnonzero(place != problem.home)
    assert not problem.closed[place[moved]].any()
    assert np.isfinite(problem.kind_cost[problem.kind[moved], place[moved]]).all()
    hosts = len(problem.host_ids)
    if problem.moves_max is not None:
        assert len(moved) <= problem.moves_max
    if problem.arrivals_max is not None:
        assert (np.bincount(place[moved], minlength=hosts) <= problem.arrivals_max).all()
    if problem.departures_max is not None:
        left = problem.home[moved]
        assert (np.bincount(left[left != NOWHERE], minlength=hosts) <= problem.departures_max).all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("engine", ENGINES)
def test_never_worse_and_nothing_broken_more(engine: str, seed: int) -> None:
    problem = make_problem(seed, pressure=0.5 + 0.1 * seed)
    home = problem.home.copy()
    home[5 + seed] = NOWHERE
    problem = replace(problem, home=home, closed=np.arange(6) == 3)
    if seed % 2:
        problem = replace(problem, moves_max=9, arrivals_max=np.full(6, 4, np.int32), departures_max=np.full(6, 5, np.int32))
    found = ENGINES[engine](problem, seed=seed, effort=0.2, deadline_s=60.0)
    check(problem, found.place, found.cost)
    again = ENGINES[engine](problem, seed=seed, effort=0.2, deadline_s=60.0)
    assert not found.cut and (again.place == found.place).all()


def test_overload_is_cured_a_closed_host_left_and_the_homeless_seated() -> None:
    problem = make_problem(11, hosts=8, vms=60, pressure=0.5, rules=False)
    home = problem.home.copy()
    home[:20] = 3
    home[[21, 22]] = NOWHERE
    closed = np.arange(8) == 4
    problem = replace(problem, home=home, closed=closed, fixed=np.zeros(60, bool), moves_max=None)
    found = greedy(problem, seed=0, effort=0.0, deadline_s=60.0)
    cost = cost_of(problem, found.place)
    assert cost.unplaced == 0.0
    assert cost.overload + cost.broken < 0.02 * (cost_of(problem, home).overload + cost_of(problem, home).broken)
    assert not np.isin(found.place, np.flatnonzero(closed)).any()


def test_hosts_are_emptied_when_that_pays_and_only_then() -> None:
    problem = make_problem(3, hosts=8, vms=40, pressure=0.3, rules=False, asleep=0)
    random = np.random.default_rng(0)
    home = random.integers(0, 8, 40).astype(np.int32)
    problem = replace(problem, home=home, fixed=np.zeros(40, bool))
    found = anneal_engine(problem, seed=1, effort=1.0, deadline_s=60.0)
    assert len(np.unique(found.place)) <= 5 < len(np.unique(home))
    dear = replace(problem, move_cost=np.full(40, 100.0))
    held = anneal_engine(dear, seed=1, effort=1.0, deadline_s=60.0)
    assert (held.place != home).sum() <= 4  # only what cures overload


def test_of_several_vms_that_may_not_be_where_they_are_those_that_can_go_do() -> None:
    problem = make_problem(0, rules=False)
    kind_cost = np.tile(np.where(np.arange(6) == 1, np.inf, 0.0), (2, 1))
    home = problem.home.copy()
    home[[9, 10, 11]] = 1
    problem = replace(problem, home=home, kind_cost=kind_cost)
    found = anneal_engine(problem, seed=1, effort=0.1, deadline_s=60.0)
    assert found.place[9] == 1  # fixed there: the plan costs inf before and after
    assert (found.place[[10, 11]] != 1).all() and np.isinf(found.cost)


def test_a_deadline_cuts_and_says_so() -> None:
    problem = make_problem(4, hosts=20, vms=200)
    found = anneal_engine(problem, seed=1, effort=1000.0, deadline_s=0.3)
    assert found.cut and found.seconds < 30.0
    check(problem, found.place, found.cost)


@pytest.mark.parametrize("case", ["all in maintenance", "nothing may move", "no VMs"])
def test_nothing_to_do_is_a_plan(case: str) -> None:
    problem = make_problem(5, rules=False)
    if case == "all in maintenance":
        problem = replace(problem, closed=np.ones(6, bool))
    elif case == "nothing may move":
        problem = replace(problem, fixed=np.ones(40, bool))
    else:
        problem = replace(
            problem, vm_ids=(), home=problem.home[:0], fixed=problem.fixed[:0], why_fixed=(), kind=problem.kind[:0], mean=problem.mean[:0],
            variance=problem.variance[:0], weight=problem.weight[:0], move_cost=problem.move_cost[:0],
            unplaced_cost=problem.unplaced_cost[:0], group=problem.group[:0],
        )  # fmt: skip
    found = anneal_engine(problem, seed=1, effort=0.1, deadline_s=10.0)
    assert (found.place == problem.home).all()


def test_ten_times_too_much_load_and_a_vm_larger_than_any_host_leave_a_plan() -> None:
    problem = make_problem(6)
    mean = 10.0 * problem.mean
    mean[0] = 1e6 * problem.capacity.max()
    problem = replace(problem, mean=mean)
    found = anneal_engine(problem, seed=1, effort=0.1, deadline_s=10.0)
    check(problem, found.place, found.cost)


def crowd(seed: int) -> Problem:
    """24 hosts in racks of two, 160 VMs, 30 rules of all kinds, move limits."""
    problem = make_problem(seed, hosts=24, vms=160, pressure=0.75, asleep=2)
    random = np.random.default_rng(seed)
    sets = [np.sort(random.choice(160, int(random.integers(2, 6)), replace=False)) for _ in range(30)]
    rules = Rules(
        kind=random.choice([RuleKind.APART, RuleKind.APART, RuleKind.TOGETHER, RuleKind.LICENSED], 30).astype(np.int32),
        limit=random.integers(1, 3, 30).astype(np.int32),
        level=random.integers(0, 2, 30).astype(np.int32),
        start=np.cumsum([0, *map(len, sets)]).astype(np.int32),
        members=np.concatenate(sets).astype(np.int32),
    )
    return replace(problem, rules=rules, moves_max=60, arrivals_max=np.full(24, 9, np.int32), departures_max=np.full(24, 9, np.int32))


@pytest.mark.parametrize("seed", range(4))
def test_shards_keep_what_the_whole_promises(seed: int) -> None:
    problem = crowd(seed)
    found = solve_in_shards(problem, seed=seed, effort=0.1, deadline_s=60.0, hosts_per_shard=6)
    check(problem, found.place, found.cost)
    assert found.cost < cost_of(problem, problem.home).total
    one_thread = solve_in_shards(problem, seed=seed, effort=0.1, deadline_s=60.0, hosts_per_shard=6, threads=1)
    assert (one_thread.place == found.place).all()


def test_after_the_exercise_no_problem_needs_a_compilation() -> None:
    exercise()
    problem = crowd(1)
    problem = replace(problem, kind_cost=np.asfortranarray(problem.kind_cost), mean=np.asfortranarray(problem.mean), arrivals_max=None)
    for array in (problem.mean, problem.home, problem.rules.members, problem.capacity):
        array.flags.writeable = False  # as Ray hands them over
    with compiling() as seen:
        solve_in_shards(problem, seed=1, effort=0.05, deadline_s=60.0, hosts_per_shard=6)
        solve_in_shards(replace(problem, moves_max=None), seed=1, effort=0.0, deadline_s=60.0, hosts_per_shard=6)
        anneal_engine(make_problem(0, rules=False, groups=0, z=0.0), seed=1, effort=0.05, deadline_s=60.0)
    assert seen.names == []


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_part_changes_the_whole_by_what_it_says(seed: int, nested: bool) -> None:
    problem = replace(crowd(seed), moves_max=None)
    random = np.random.default_rng(seed)
    place = problem.home.copy()
    wander = random.choice(problem.movable, 20, replace=False)
    place[wander] = random.integers(2, 24, 20)  # as after an earlier round: some homes lie outside of the part
    if nested:  # a part of a part, whose rules have members outside already
        outer = subproblem(problem, np.sort(random.choice(24, 14, replace=False)).astype(np.int32), place)
        problem, place = outer.problem, outer.start
        assert problem.rules.outside.any()
    hosts = np.sort(random.choice(len(problem.host_ids), 8, replace=False)).astype(np.int32)
    shard = subproblem(problem, hosts, place)
    assert (shard.problem.home[shard.start == shard.problem.home] != NOWHERE).all()
    free = np.flatnonzero(~shard.problem.fixed)
    for _ in range(20):
        inner = shard.start.copy()
        moved = random.choice(free, 8, replace=False)
        inner[moved] = random.integers(0, 8, 8)
        whole = merged(place, [(shard, inner)])
        change = cost_of(shard.problem, inner).total - cost_of(shard.problem, shard.start).total
        assert np.isfinite(change)
        assert change == pytest.approx(cost_of(problem, whole).total - cost_of(problem, place).total, rel=1e-6, abs=1e-6)


def test_parts_that_meet_in_a_rule_do_not_break_it_together() -> None:
    problem = make_problem(0, hosts=4, vms=20, rules=False, asleep=0)
    rules = Rules(
        kind=np.array([RuleKind.APART], np.int32), limit=np.array([1], np.int32), level=np.array([1], np.int32),
        start=np.array([0, 2], np.int32), members=np.array([0, 1], np.int32),
    )  # fmt: skip
    home = np.array([0, 2] + [1, 3] * 9, np.int32)
    problem = replace(problem, rules=rules, home=home, domain=np.array([[0, 1, 2, 3], [0, 1, 2, 1]], np.int32))
    parts = [subproblem(problem, np.array(hosts, np.int32), home, Part(index=i, of=2)) for i, hosts in enumerate([(0, 1), (2, 3)])]
    room = [int(part.problem.rules.outside[0, part.problem.domain[1, 1]]) for part in parts]
    assert sorted(room) == [0, 1]  # rack 1 belongs to one of them
    both = [(parts[0], np.where(parts[0].vms == 0, 1, parts[0].start)), (parts[1], np.where(parts[1].vms == 1, 1, parts[1].start))]
    place, _ = accept(problem, home, np.inf, both)
    assert broken_rules(problem, place).sum() == 0
    assert (place[0], place[1]) == (1, 2)  # the later part was left out


def test_the_budget_of_moves_is_divided_and_never_passed() -> None:
    problem = replace(crowd(2), rules=Rules(), moves_max=7)
    parts = [subproblem(problem, np.arange(i, 24, 4).astype(np.int32), problem.home, Part(index=i, of=4)) for i in range(4)]
    assert sum(part.problem.moves_max or 0 for part in parts) == 7
    assert (
        sharded.solve_in_shards(problem, seed=1, effort=0.05, deadline_s=60.0, hosts_per_shard=6).cost
        <= cost_of(problem, problem.home).total
    )
