"""A plan may not pass a hard capacity that was kept before, whatever it mends by that."""

from __future__ import annotations

import numpy as np

from coordinator.placement.bare import bare_problem
from coordinator.placement.cost import broken_rules, cost_of
from coordinator.placement.problem import Problem, RuleKind, Rules
from coordinator.placement.search.unburden import unburden
from coordinator.placement.verdict import hard_over, worse


def test_a_host_that_mends_a_rule_by_being_too_full_is_relieved() -> None:
    problem = pair_apart(other_gb=8.0)
    mended = np.array([0, 0, 1], np.int32)  # the pair together at last, and host 0 a tenth too full
    assert cost_of(problem, mended).total < cost_of(problem, problem.home).total, "the search's price says so"
    assert worse(problem, mended, problem.home)
    found = unburden(problem, mended, problem.home)
    assert found.tolist() == [0, 1, 1], "back where it stood"
    assert not worse(problem, found, problem.home)


def test_where_home_is_full_by_now_the_roomiest_host_is_taken() -> None:
    problem = pair_apart(other_gb=8.0)
    mended = np.array([0, 0, 1], np.int32)
    moved = Problem(
        **{name: getattr(problem, name) for name in problem.__dataclass_fields__} | {"mean": problem.mean * [[1.0, 1.0]] + HEAVY}
    )
    assert unburden(moved, mended, moved.home).tolist() == [0, 2, 1]


def test_what_cannot_be_mended_stays_and_what_is_sound_is_left_alone() -> None:
    crowded = pair_apart(other_gb=100.0)  # it fits nowhere else: host 1 holds 100 of 100 without its former guest
    shut = Problem(**{name: getattr(crowded, name) for name in crowded.__dataclass_fields__} | {"closed": np.array([False, False, True])})
    place = np.array([0, 0, 1], np.int32)
    assert unburden(shut, place, shut.home).tolist() == place.tolist()
    assert unburden(shut, shut.home, shut.home) is shut.home


def test_over_random_fleets_no_host_is_left_worse_than_it_was_without_need() -> None:
    relieved = 0
    for seed in range(60):
        problem = random_fleet(seed)
        place = np.random.default_rng([seed, 1]).integers(0, len(problem.host_ids), len(problem.vm_ids)).astype(np.int32)
        place = np.where(problem.fixed, problem.home, place).astype(np.int32)
        before = np.maximum(hard_over(problem, place) - hard_over(problem, problem.home), 0.0).sum()
        found = unburden(problem, place, problem.home)
        after = np.maximum(hard_over(problem, found) - hard_over(problem, problem.home), 0.0).sum()
        assert after <= before + 1e-9
        assert (found[problem.fixed] == problem.home[problem.fixed]).all()
        # a relieving move leaves no rule worse than both before and at home
        worst = np.maximum(broken_rules(problem, place), broken_rules(problem, problem.home))
        assert (broken_rules(problem, found) <= worst).all()
        relieved += after < before - 1e-9
    assert relieved >= 20


HEAVY = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 45.0]])  # GB more for the third VM


def pair_apart(other_gb: float) -> Problem:
    """VMs 0 and 1 shall stand together and do not; together on host 0 they take 110 of its 100 GB. Three hosts, the third empty."""
    mean = np.array([[1.0, 55.0], [1.0, 55.0], [1.0, other_gb]])
    rule = Rules(kind=np.array([RuleKind.TOGETHER], np.int32), limit=np.ones(1, np.int32), level=np.zeros(1, np.int32),
                 start=np.array([0, 2], np.int32), members=np.array([0, 1], np.int32))  # fmt: skip
    capacity = np.tile([8.0, 100.0], (3, 1))
    return bare_problem(np.array([0, 1, 1], np.int32), mean, capacity, np.array([True, False]), rules=rule)


def random_fleet(seed: int) -> Problem:
    random = np.random.default_rng(seed)
    vms, hosts = 24, 8
    mean = np.stack([random.uniform(0.1, 1.5, vms), random.uniform(4.0, 30.0, vms)], axis=1)
    home = np.arange(vms, dtype=np.int32) % hosts
    return bare_problem(home, mean, np.tile([8.0, 90.0], (hosts, 1)), np.array([True, False]), fixed=random.random(vms) < 0.2)
