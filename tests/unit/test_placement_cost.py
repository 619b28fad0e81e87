"""The placement's objective, against sums done by hand, and the problem's checks of its arrays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coordinator.placement.bare import bare_problem
from coordinator.placement.cost import broken_rules, cost_of, host_loads, on_cost
from coordinator.placement.problem import NOWHERE, RuleKind, Rules
from coordinator.placement.verdict import worse
from shared.errors import ConfigError
from tests.contract.placement_problems import make_problem


def test_loads_equal_a_plain_sum_over_the_vms_of_each_host() -> None:
    problem = make_problem(1)
    load, _ = host_loads(problem, problem.home)
    h = int(problem.home[0])
    here = [v for v in range(len(problem.vm_ids)) if problem.home[v] == h]
    variance = problem.variance[here].sum(axis=0)
    for a in here:
        for b in here:
            if a != b and problem.group[a] == problem.group[b] >= 0:
                variance = variance + problem.rho[problem.group[a]] * np.sqrt(problem.variance[a] * problem.variance[b])
    assert load[h] == pytest.approx(problem.mean[here].sum(axis=0) + problem.z * np.sqrt(variance))


def test_vms_that_peak_together_load_a_host_more() -> None:
    problem = make_problem(2, groups=1)
    alone = replace(problem, group=np.full(len(problem.vm_ids), -1, np.int32))
    together, apart = host_loads(problem, problem.home)[0], host_loads(alone, problem.home)[0]
    assert (together >= apart).all() and (together > apart).any()


def test_a_host_is_paid_for_while_it_has_vms_and_woken_once() -> None:
    problem = make_problem(3)
    before = cost_of(problem, problem.home)
    mover = int(problem.movable[0])
    place = problem.home.copy()
    place[mover] = 0  # asleep
    after = cost_of(problem, place)
    assert after.moves == problem.move_cost[mover]
    assert after.hosts - before.hosts > problem.wake_cost[0]
    full = replace(problem, mean=problem.mean * 1000.0)
    crowded = np.unique(full.home)
    assert on_cost(full, host_loads(full, full.home)[1])[crowded] == pytest.approx(problem.curve[crowded, -1])


def test_overload_costs_its_share_of_the_capacity_times_the_weight_of_everybody_there() -> None:
    problem = make_problem(4, z=0.0, rules=False)
    crowded = np.full(len(problem.vm_ids), 1, np.int32)
    load = problem.mean.sum(axis=0)
    share = np.maximum(load / problem.capacity[1] - 1.0, 0.0)
    assert cost_of(problem, crowded).overload == pytest.approx((share[:12] * 5.0).sum() * problem.weight.sum(), rel=1e-4)
    assert cost_of(problem, crowded).broken == pytest.approx(problem.broken_price * share[12:].sum(), rel=1e-4)


def test_vms_nowhere_and_on_closed_hosts_cost_what_leaving_them_costs() -> None:
    problem = make_problem(5)
    place = problem.home.copy()
    place[0] = NOWHERE
    assert cost_of(problem, place).unplaced == pytest.approx(50.0 + 50.0 * (problem.home[1:] == NOWHERE).sum())
    closed = replace(problem, closed=np.arange(6) == 1)
    assert cost_of(closed, problem.home).unplaced == pytest.approx(50.0 * np.isin(problem.home, (NOWHERE, 1)).sum())


@pytest.mark.parametrize(
    ("kind", "limit", "places", "broken"),
    [
        (RuleKind.APART, 1, (0, 0, 0, 1), 2),
        (RuleKind.APART, 2, (0, 0, 0, 1), 1),
        (RuleKind.TOGETHER, 1, (0, 0, 2, 1), 2),
        (RuleKind.LICENSED, 2, (0, 3, 2, 1), 2),
        (RuleKind.LICENSED, 2, (0, 0, 1, 1), 0),
    ],
)
def test_a_rule_is_broken_by_as_many_as_must_change(kind: RuleKind, limit: int, places: tuple[int, ...], broken: int) -> None:
    problem = make_problem(6, rules=False)
    rules = Rules(
        kind=np.array([kind], np.int32), limit=np.array([limit], np.int32), level=np.array([0], np.int32),
        start=np.array([0, 4], np.int32), members=np.arange(4, dtype=np.int32), names=("r",),
    )  # fmt: skip
    place = np.full(len(problem.vm_ids), 5, np.int32)
    place[:4] = places
    assert broken_rules(replace(problem, rules=rules), place).tolist() == [broken]


def test_members_outside_of_the_problem_count() -> None:
    problem = make_problem(7, rules=False)
    rules = Rules(
        kind=np.array([RuleKind.APART], np.int32), limit=np.array([1], np.int32), level=np.array([1], np.int32),
        start=np.array([0, 1], np.int32), members=np.array([0], np.int32), names=("r",), outside=np.array([[1, 0, 0]], np.int32),
    )  # fmt: skip
    place = np.zeros(len(problem.vm_ids), np.int32)
    assert broken_rules(replace(problem, rules=rules), place).tolist() == [1]
    place[0] = 2
    assert broken_rules(replace(problem, rules=rules), place).tolist() == [0]


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("mean", -1.0, r"placement.mean\[2, 3\] = -1.0: allowed numbers from 0 to inf"),
        ("variance", float("nan"), r"placement.variance\[2, 3\] = nan"),
        ("capacity", float("inf"), r"placement.capacity\[2, 3\] = inf"),
    ],
)
def test_a_wrong_number_is_named_with_its_place(field: str, value: float, told: str) -> None:
    problem = make_problem(8)
    wrong = getattr(problem, field).copy()
    wrong[2, 3] = value
    with pytest.raises(ConfigError, match=told):
        replace(problem, **{field: wrong})


def test_a_wrong_shape_is_named() -> None:
    problem = make_problem(9)
    with pytest.raises(ConfigError, match=r"placement.home has shape \(3,\): allowed \(40,\)"):
        replace(problem, home=problem.home[:3])


def test_a_bare_problem_costs_nothing_and_forbids_nothing() -> None:
    home, cpu = np.array([0, 0, 1], np.int32), np.array([True, False])
    problem = bare_problem(home, np.ones((3, 2)), np.full((2, 2), 3.0), cpu)
    for place in ([0, 0, 1], [1, 1, 1], [0, 1, 0]):
        assert cost_of(problem, np.array(place, np.int32)).total == 0.0
        assert not worse(problem, np.array(place, np.int32), home)
    assert cost_of(problem, np.array([0, 0, NOWHERE], np.int32)).total == 1.0
    full = bare_problem(home, np.ones((3, 2)), np.full((2, 2), 2.0), cpu, hard=np.ones(2, bool), weight=np.zeros(3))
    assert worse(full, np.array([0, 0, 0], np.int32), home)
