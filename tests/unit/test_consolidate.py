"""Consolidation tick by tick: hand-made hosts for each rule of it, and its promises on problems of every kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.placement.bare import bare_problem
from coordinator.placement.consolidate.planner import Consolidation, ConsolidationPolicy, RecentMoves, consolidate
from coordinator.placement.cost import broken_rules, host_loads
from coordinator.placement.problem import CURVE_POINTS, NOWHERE, SLACK, Problem, RuleKind, Rules
from shared.errors import ConfigError
from tests.contract.placement_problems import make_problem


def fleet(home: list[int], mean: list[float], *, hosts: int = 4, **changes: Any) -> Problem:
    """Hosts of 10 CPUs that cost 1 an hour while in use; one cell, a margin of 2 stddevs, no variance unless told."""
    problem = bare_problem(
        np.array(home, np.int32),
        np.array(mean)[:, None],
        np.full((hosts, 1), 10.0),
        np.ones(1, bool),
        move_cost=np.full(len(home), 0.1),
        z=np.array([2.0]),
        minutes=np.array([60.0]),
        curve=np.tile(np.linspace(0.7, 1.0, CURVE_POINTS), (hosts, 1)),
    )
    return replace(problem, **changes)


def rule(kind: RuleKind, members: list[int], limit: int = 1) -> Rules:
    return Rules(
        kind=np.array([kind], np.int32),
        limit=np.array([limit], np.int32),
        level=np.zeros(1, np.int32),
        start=np.array([0, len(members)], np.int32),
        members=np.array(members, np.int32),
        names=("rule",),
    )


def test_a_quiet_fleet_is_left_alone() -> None:
    told = consolidate(fleet([0, 0, 1, 1], [4.0, 4.0, 4.0, 4.0]))
    assert told.place.tolist() == [0, 0, 1, 1] and not len(told.moves) and not len(told.stuck)


def test_an_overloaded_host_gives_up_the_one_vm_that_suffices_and_is_cheapest() -> None:
    problem = fleet([0, 0, 0, 1], [6.0, 4.0, 3.0, 6.0], move_cost=np.array([0.1, 0.3, 0.2, 0.1]))
    told = consolidate(problem, empty=False)
    # 13 of 10: each of them suffices; the first is the cheapest, but fits nowhere awake, so it wakes a host
    assert told.repaired.tolist() == [0] and told.place[0] in (2, 3) and told.woken.tolist() == [told.place[0]]
    dearer = consolidate(replace(problem, move_cost=np.array([0.3, 0.3, 0.2, 0.1])), empty=False)
    assert dearer.repaired.tolist() == [2] and dearer.place[2] == 1 and not len(dearer.woken)


def test_a_quiet_vm_is_moved_rather_than_a_busy_one_of_the_same_size() -> None:
    problem = fleet([0, 0, 1], [6.0, 6.0, 1.0], move_cost=np.array([0.2, 0.1, 0.1]))
    assert consolidate(problem, empty=False).repaired.tolist() == [1]


def test_between_repairing_and_filling_nothing_happens() -> None:
    # 8 + 2 x 1.2 is above 10, but 8 + .7 x 2 x 1.2 is not
    variance = np.array([[1.44], [0.0], [0.0]])
    problem = fleet([0, 0, 1], [4.0, 4.0, 2.0], variance=variance)
    assert not len(consolidate(problem, ConsolidationPolicy(repair=0.7, relief=0.9), empty=False).moves)
    assert len(consolidate(problem, ConsolidationPolicy(repair=1.0, relief=1.0), empty=False).moves) == 1
    # and no host is filled beyond the margin
    newcomer = fleet([0, 0, 1, 1], [4.0, 4.0, 8.0, 3.0], variance=np.array([[1.0], [0.0], [0.0], [0.0]]))
    assert consolidate(newcomer, empty=False).place[3] not in (0, 1)


def test_a_host_is_emptied_when_the_saving_pays_for_its_moves() -> None:
    problem = fleet([0, 0, 1], [4.0, 2.0, 3.0])
    told = consolidate(problem)
    # emptying host 1 saves about .7 an hour for five hours and costs one move
    assert told.freed.tolist() == [1] and told.emptied.tolist() == [2] and told.place.tolist() == [0, 0, 0]
    assert not len(consolidate(problem, empty=False).moves)
    assert not len(consolidate(replace(problem, move_cost=np.full(3, 4.0))).moves)
    assert not len(consolidate(problem, ConsolidationPolicy(payback_hours=0.1)).moves)
    assert not len(consolidate(problem, ConsolidationPolicy(receiver_hours=4.0)).moves)
    assert not len(consolidate(replace(problem, empty_cost=np.ones(4))).moves)


def test_emptying_is_all_or_nothing() -> None:
    problem = fleet([0, 1, 1], [7.0, 2.0, 5.0])
    told = consolidate(problem)
    assert not len(told.moves) and told.place.tolist() == [0, 1, 1] and not len(told.freed)


def test_dear_capacity_goes_first_and_is_woken_last() -> None:
    curve = np.tile(np.linspace(0.7, 1.0, CURVE_POINTS), (4, 1)) * np.array([1.0, 1.0, 2.0, 1.0])[:, None]
    told = consolidate(fleet([1, 2], [3.0, 3.0], curve=curve))
    assert told.freed.tolist() == [2] and told.place.tolist() == [1, 1]
    capacity = np.array([[10.0], [10.0], [5.0], [10.0]])
    dear = np.tile(np.linspace(0.7, 1.0, CURVE_POINTS), (4, 1)) * np.array([1.0, 1.0, 0.8, 1.0])[:, None]
    woken = consolidate(fleet([0, 0], [9.0, 4.0], capacity=capacity, curve=dear), empty=False)
    assert woken.woken.tolist() == [1]  # not the one for .8 with half the size


def test_arrivals_are_sent_to_few_hosts_when_receiving_costs() -> None:
    # two hosts to relieve; the tightest fits are two, but one host has room for both
    problem = fleet([0, 0, 1, 1, 2, 3], [8.0, 3.0, 8.0, 3.5, 6.5, 2.0])
    assert set(consolidate(problem, empty=False).place[[1, 3]].tolist()) == {2, 3}
    told = consolidate(problem, ConsolidationPolicy(receiver_hours=1.0), empty=False)
    assert len({int(told.place[v]) for v in told.repaired}) <= 2


def test_a_closed_host_gives_up_all_that_may_leave() -> None:
    problem = fleet([0, 0, 0, 1], [1.0, 1.0, 1.0, 1.0], closed=np.array([True, False, False, False]), fixed=np.array([0, 0, 1, 0], bool))
    told = consolidate(problem, empty=False)
    assert sorted(told.repaired.tolist()) == [0, 1] and told.place.tolist() == [1, 1, 0, 1] and told.stuck.tolist() == [0]


def test_a_vm_leaves_a_host_that_its_kind_may_not_use() -> None:
    kinds = np.array([[0.0] * 4, [np.inf, 0.0, 0.0, 0.0]])
    problem = fleet([0, 0, 1], [1.0, 1.0, 1.0], kind=np.array([0, 1, 1], np.int32), kind_cost=kinds)
    told = consolidate(problem, empty=False)
    assert told.repaired.tolist() == [1] and told.place.tolist() == [0, 1, 1] and not len(told.stuck)
    pinned = consolidate(replace(problem, fixed=np.array([0, 1, 0], bool)), empty=False)
    assert not len(pinned.moves) and pinned.stuck.tolist() == [0]


def test_what_no_repair_can_help_is_named() -> None:
    told = consolidate(fleet([0, 0], [8.0, 8.0], hosts=1))
    assert told.stuck.tolist() == [0] and not len(told.moves)


def test_part_of_a_margin_is_given_up_before_demand_is() -> None:
    # 12 of 10; the other host has room for 3 more with .8 of its margin of 2, not with all of it
    problem = fleet([0, 0, 1], [9.0, 3.0, 5.3], variance=np.array([[0.0], [0.0], [1.0]]), hosts=2)
    assert consolidate(problem, empty=False).place.tolist() == [0, 1, 1]
    fuller = replace(problem, mean=np.array([[9.0], [3.0], [5.5]]))
    assert consolidate(fuller, empty=False).stuck.tolist() == [0]


def test_resting_vms_stay_and_nobody_goes_straight_back() -> None:
    problem = fleet([0, 0, 1], [4.0, 2.0, 3.0])
    assert not len(consolidate(problem, resting=np.array([True, True, True])).moves)
    # host 1 alone may be emptied, and its VM came from host 0
    told = consolidate(problem, resting=np.array([True, True, False]), left=np.array([NOWHERE, NOWHERE, 0], np.int32))
    assert not len(told.moves)


def test_moves_are_remembered_for_their_rest_and_then_forgotten() -> None:
    problem = fleet([0, 0, 1, NOWHERE], [4.0, 2.0, 3.0, 1.0])
    told = RecentMoves().after(problem, np.array([0, 0, 0, 2], np.int32), 1000, 3600)
    assert dict(told.moves) == {"v2": (1000, "h1")}  # who ran nowhere left nothing
    later = replace(problem, vm_ids=("v2", "new", "v0", "v1"), host_ids=("h3", "h1", "h2", "h0"))
    resting, left = told.of(later, 4599, 3600)
    assert resting.tolist() == [True, False, False, False] and left.tolist() == [1, NOWHERE, NOWHERE, NOWHERE]
    assert not told.of(later, 4600, 3600)[0].any() and not RecentMoves().of(later, 0, 3600)[0].any()
    gone = replace(later, host_ids=("h3", "h4", "h2", "h0"))
    assert told.of(gone, 4599, 3600)[1].tolist() == [NOWHERE] * 4
    assert not told.after(problem, problem.home, 4600, 3600).moves


@pytest.mark.parametrize(
    ("kind", "members", "limit", "allowed"),
    [
        (RuleKind.APART, [0, 2], 1, False),
        (RuleKind.APART, [0, 2], 2, True),
        (RuleKind.TOGETHER, [0, 1, 2], 1, True),
        (RuleKind.LICENSED, [0, 2], 2, True),
        (RuleKind.LICENSED, [2, 3], 1, False),
    ],
)
def test_rules_bind(kind: RuleKind, members: list[int], limit: int, allowed: bool) -> None:
    # host 1 (VM 2 alone) can be emptied into host 0 only; VM 3 and host 2 are fixed and full
    problem = fleet([0, 0, 1, 2], [4.0, 2.0, 3.0, 10.0], hosts=3, fixed=np.array([1, 1, 0, 1], bool), rules=rule(kind, members, limit))
    told = consolidate(problem)
    assert bool(len(told.moves)) is allowed


def test_a_set_that_is_together_is_not_taken_apart() -> None:
    problem = fleet([0, 0, 1], [6.0, 6.0, 1.0], rules=rule(RuleKind.TOGETHER, [0, 1]))
    told = consolidate(problem, empty=False)
    assert not len(told.moves) and told.stuck.tolist() == [0]


def test_allowances_are_kept() -> None:
    problem = fleet([0, 0, 0, 1, 2], [6.0, 6.0, 6.0, 1.0, 1.0])
    assert len(consolidate(problem, empty=False).moves) == 2
    assert len(consolidate(replace(problem, moves_max=1), empty=False).moves) == 1
    assert len(consolidate(replace(problem, departures_max=np.array([1, 0, 0, 0], np.int32)), empty=False).moves) == 1
    none = consolidate(replace(problem, arrivals_max=np.zeros(4, np.int32)), empty=False)
    assert not len(none.moves) and none.stuck.tolist() == [0]


def test_forbidden_kinds_and_groups_that_peak_together_bind() -> None:
    kinds = np.array([[0.0, np.inf, 0.0, 0.0], [0.0] * 4])
    told = consolidate(fleet([0, 0, 1], [6.0, 6.0, 1.0], kind=np.array([0, 0, 1], np.int32), kind_cost=kinds), empty=False)
    assert told.place[told.repaired].tolist() == [2]
    variance = np.full((2, 1), 4.0)
    alone = fleet([0, 1], [2.5, 2.5], variance=variance, hosts=2)
    together = replace(alone, group=np.zeros(2, np.int32), rho=np.ones(1))
    # 5 + 2 x root(8) = 10.7 alone; the margin of 1.5 stddevs makes 9.2 of it, and 11 if they peak together
    assert len(consolidate(replace(alone, z=np.array([1.5]))).moves) == 1
    assert not len(consolidate(replace(together, z=np.array([1.5]))).moves)


@pytest.mark.parametrize(("field", "value"), [("repair", 1.2), ("relief", 0.1), ("payback_hours", -1.0), ("receiver_hours", float("nan"))])
def test_bad_knobs_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"consolidation.{field}"):
        ConsolidationPolicy(**{field: value})


def checked(problem: Problem, told: Consolidation, relief: float) -> None:
    """What holds whatever the problem."""
    moved = np.flatnonzero(told.place != problem.home)
    assert sorted(told.moves.tolist()) == moved.tolist()
    assert not problem.fixed[moved].any() and not problem.closed[told.place[moved]].any()
    assert np.isfinite(problem.kind_cost[problem.kind[moved], told.place[moved]]).all()
    before, after = (mean + relief * (load - mean) for load, mean in (host_loads(problem, at) for at in (problem.home, told.place)))
    limit = problem.capacity * (1.0 + 2 * SLACK)
    received = np.unique(told.place[moved])
    assert (after[received] <= np.maximum(limit, before)[received]).all()
    given_up = np.setdiff1d(np.arange(len(before)), received)
    assert (after[given_up] <= before[given_up] + 1e-9).all()
    assert (broken_rules(problem, told.place) <= broken_rules(problem, problem.home)).all()
    assert not np.isin(told.freed, told.place).any()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    hosts=st.integers(2, 12),
    vms=st.integers(4, 80),
    pressure=st.floats(0.2, 1.3),
    payback=st.floats(0.0, 50.0),
)
def test_promises_hold_on_problems_of_every_kind(seed: int, hosts: int, vms: int, pressure: float, payback: float) -> None:
    problem = make_problem(seed, hosts, max(vms, 14), pressure=pressure)
    problem = replace(problem, closed=np.arange(hosts) == seed % (2 * hosts))
    policy = ConsolidationPolicy(payback_hours=payback)
    told = consolidate(problem, policy)
    checked(problem, told, policy.relief)
    again = consolidate(problem, policy)
    assert again.place.tolist() == told.place.tolist() and again.moves.tolist() == told.moves.tolist()
