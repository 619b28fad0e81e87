"""Whole sets of VMs prove more hosts than shares of them; the search for the dearest set against all sets."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.placement.cost import cost_of
from coordinator.placement.exact.bounds import host_bound, lower_bound
from coordinator.placement.exact.patterns import hosts_needed
from coordinator.placement.exact.pricing import dearest
from coordinator.placement.packing.vectors import pack_vectors
from coordinator.placement.problem import CURVE_POINTS, NOWHERE, Problem
from tests.contract.placement_problems import make_problem


def large_vms(seed: int, vms: int, hosts: int) -> Problem:
    """VMs of 26-45 % of a host in two hard cells: three seldom share one, though volumes say they might."""
    problem = make_problem(seed, hosts=hosts, vms=vms, z=0.0, rules=False, asleep=0)
    random = np.random.default_rng(seed)
    mean = np.zeros((vms, 14))
    mean[:, :2] = random.uniform(0.26, 0.45, (vms, 2))
    return replace(
        problem,
        home=np.full(vms, NOWHERE, np.int32), fixed=np.zeros(vms, bool), move_cost=np.zeros(vms), kind_cost=np.zeros((2, hosts)),
        mean=mean, variance=np.zeros((vms, 14)), capacity=np.ones((hosts, 14)), curve=np.ones((hosts, CURVE_POINTS)),
        hard=np.ones(14, bool),
        empty_cost=np.zeros(hosts), wake_cost=np.zeros(hosts),
    )  # fmt: skip


@given(seed=st.integers(0, 10_000), n=st.integers(1, 9), d=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_dearest_set_is_the_best_of_all_that_fit(seed: int, n: int, d: int) -> None:
    random = np.random.default_rng(seed)
    size, value = random.uniform(0.1, 0.9, (n, d)), random.uniform(0.0, 1.0, n)
    order = np.argsort(-value / size.sum(axis=1), kind="stable")
    size, value = np.ascontiguousarray(size[order]), value[order]
    best = max(
        value[list(of)].sum()
        for k in range(n + 1)
        for of in itertools.combinations(range(n), k)
        if (size[list(of)].sum(axis=0) <= 1.0).all()
    )
    found, chosen, complete = dearest(size, value, size.sum(axis=1), float(d), 0.0, 10**6, np.inf)
    assert complete
    assert found == pytest.approx(best) == value[chosen].sum()
    assert (size[chosen].sum(axis=0) <= 1.0 + 1e-9).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sets_prove_more_hosts_than_volumes(seed: int) -> None:
    problem = large_vms(seed, vms=24, hosts=16)
    place = pack_vectors(problem.mean, problem.capacity[0], seed=seed, deadline_s=30.0).place
    plain = lower_bound(problem, deadline_s=20.0)
    sets = lower_bound(problem, deadline_s=60.0, best=cost_of(problem, place).total, place=place)
    assert plain.value < sets.value - 0.5
    assert sets.method == "patterns"


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_what_sets_prove_is_not_more_than_the_fewest_hosts_there_are(seed: int) -> None:
    problem = large_vms(seed, vms=8, hosts=6)
    fits = [(problem.mean[[v for v in range(8) if of >> v & 1]].sum(axis=0) <= 1.0).all() for of in range(256)]
    fewest = [0] + [8] * 255
    for of in range(1, 256):
        part = of
        while part:
            if fits[part]:
                fewest[of] = min(fewest[of], fewest[of ^ part] + 1)
            part = (part - 1) & of
    assert hosts_needed(problem, 7.0, 0.0, None, deadline_s=20.0) <= fewest[255]


def test_a_bound_is_never_above_the_plan_that_it_was_given() -> None:
    problem = large_vms(3, vms=20, hosts=14)
    dear = np.arange(20, dtype=np.int32) % 14
    cost = cost_of(problem, dear).total
    assert lower_bound(problem, deadline_s=10.0, best=cost, place=dear).value <= cost
    needed = hosts_needed(problem, cost, host_bound(problem).value, dear, deadline_s=10.0)
    assert 20 / 3 <= needed <= 14


def test_nothing_is_claimed_where_vms_may_stay_nowhere_cheaply_or_capacity_is_passed_already() -> None:
    problem = large_vms(4, vms=20, hosts=14)
    cheap = replace(problem, unplaced_cost=np.full(20, 0.1))
    assert hosts_needed(cheap, 10.0, 0.0, None, deadline_s=5.0) == 0
    crowded = replace(problem, home=np.zeros(20, np.int32))
    assert hosts_needed(crowded, 10.0, 0.0, None, deadline_s=5.0) == 0
