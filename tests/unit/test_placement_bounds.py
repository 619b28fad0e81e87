"""No plan costs less than the bound: against every assignment of tiny problems with all kinds of costs and rules in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.placement.cost import cost_of
from coordinator.placement.exact.bounds import assignment_bound, by_classes, class_bound, lower_bound
from coordinator.placement.exact.relaxation import envelope
from coordinator.placement.problem import CURVE_POINTS, NOWHERE
from tests.contract.placement_problems import make_problem
from tests.contract.tiny_problems import plans, tiny

FAR = 1e9  # perf_counter seconds: no deadline


@given(seed=st.integers(0, 10_000), pressure=st.floats(0.3, 1.6), z=st.sampled_from([0.0, 1.0, 3.0]))
@settings(max_examples=60, deadline=None)
def test_no_plan_costs_less_than_any_of_the_bounds(seed: int, pressure: float, z: float) -> None:
    problem = tiny(seed, pressure, z)
    least = min((cost_of(problem, place).total for place in plans(problem)), default=np.inf)
    for bound in (class_bound(problem, FAR), assignment_bound(problem, FAR), lower_bound(problem, deadline_s=10.0)):
        assert bound.value <= least + 1e-9 * max(1.0, abs(least)), bound
        assert np.isfinite(bound.value)


def test_the_bound_of_equal_hosts_is_the_whole_number_of_hosts_that_the_largest_total_needs() -> None:
    problem = make_problem(3, hosts=8, vms=100, pressure=0.72, z=0.0, rules=False, asleep=0)
    problem = replace(
        problem,
        home=np.full(100, NOWHERE, np.int32), fixed=np.zeros(100, bool), move_cost=np.zeros(100), kind_cost=np.zeros((2, 8)),
        capacity=np.tile(problem.capacity[0], (8, 1)), curve=np.ones((8, CURVE_POINTS)), empty_cost=np.zeros(8), wake_cost=np.zeros(8),
    )  # fmt: skip
    hosts = np.ceil((problem.mean.sum(axis=0) / problem.capacity[0]).max())
    assert lower_bound(problem, deadline_s=5.0).value == pytest.approx(hosts, rel=1e-4)


def test_many_vms_are_bounded_by_the_prices_of_a_sample() -> None:
    problem = make_problem(5, hosts=100, vms=3000, pressure=0.8, z=1.0, rules=False)
    bound = lower_bound(problem, deadline_s=5.0)
    assert bound.method == "classes"
    loads = (problem.mean[:, :12].sum(axis=0) / problem.capacity[:, :12].sum(axis=0)).max()
    assert 0.5 * loads * (problem.curve[:, 5]).sum() < bound.value < cost_of(problem, problem.home).total


def test_the_envelope_is_below_the_curve_and_touches_its_ends() -> None:
    curve = np.array([1.0, 1.5, 1.6, 1.6, 2.4, 2.5, 2.6, 3.0, 3.1, 3.15, 3.2])
    offset, slope = envelope(curve)
    at = np.linspace(0.0, 1.0, CURVE_POINTS)
    below = (offset[:, None] + slope[:, None] * at).max(axis=0)
    assert (below <= curve + 1e-12).all()
    assert below[[0, -1]] == pytest.approx(curve[[0, -1]])


def test_hosts_in_one_class_are_represented_by_what_none_of_them_beats() -> None:
    problem = make_problem(7, hosts=30, vms=100)
    merged, copies, constant = by_classes(problem)
    assert copies.sum() == 30 and len(copies) <= 13
    assert constant == pytest.approx(problem.empty_cost.sum())
    assert merged.capacity.max() == problem.capacity.max()


def test_a_fleet_of_nothing_costs_its_empty_hosts() -> None:
    problem = make_problem(1, hosts=3, vms=20)
    none = replace(
        problem, vm_ids=(), home=problem.home[:0], fixed=problem.fixed[:0], why_fixed=(), kind=problem.kind[:0], mean=problem.mean[:0],
        variance=problem.variance[:0], weight=problem.weight[:0], move_cost=problem.move_cost[:0], unplaced_cost=problem.unplaced_cost[:0],
        group=problem.group[:0], rules=replace(problem.rules, kind=problem.rules.kind[:0], limit=problem.rules.limit[:0],
        level=problem.rules.level[:0], start=np.zeros(1, np.int32), members=np.zeros(0, np.int32)),
    )  # fmt: skip
    assert lower_bound(none, deadline_s=1.0).value == pytest.approx(problem.empty_cost.sum())
