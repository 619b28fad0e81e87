"""Machine reassignment as a whole: never worse, never against a rule, the same for the same seed; bad problems are named."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reassign_problems import random_problem

from bench.roadef_check import judge
from coordinator.placement.reassign.books import allowed_pairs
from coordinator.placement.reassign.engine import Reassigned, Reassignment, model_of, reassign
from shared.errors import ConfigError


def solved(problem: Reassignment, seed: int = 1, proposals: int = 20_000, **options: int) -> Reassigned:
    return reassign(problem, seed=seed, proposals=proposals, deadline_s=600.0, **options)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), tight=st.sampled_from([0.6, 0.8, 1.0]))
def test_the_answer_keeps_every_rule_and_costs_no_more(seed: int, tight: float) -> None:
    problem = random_problem(seed, tight=tight)
    found = solved(problem)
    verdict = judge(problem, found.place)
    assert verdict.faults == ()
    assert verdict.cost == found.cost <= judge(problem, problem.home).cost


def test_small_problems_are_solved_to_the_optimum() -> None:
    for seed in range(4):
        problem = random_problem(seed, processes=6, machines=4)
        costs = [v.cost for place in product(range(4), repeat=6) if not (v := judge(problem, np.array(place))).faults]
        assert solved(problem).cost == min(costs)


def test_same_seed_and_proposals_give_the_same_answer_with_any_luck_of_threads() -> None:
    problem = random_problem(7)
    first, second = (solved(problem, threads=2) for _ in range(2))
    assert not first.cut
    assert (first.cost, first.place.tolist()) == (second.cost, second.place.tolist())


def test_a_deadline_cuts_the_search_short_and_says_so() -> None:
    problem = random_problem(7)
    solved(problem)  # compiling counts against a deadline too: done before the clock runs
    found = reassign(problem, seed=1, proposals=10**12, deadline_s=1.0)
    assert found.cut
    assert found.seconds < 6.0
    assert judge(problem, found.place).faults == ()
    assert found.cost < judge(problem, problem.home).cost


def test_no_time_at_all_gives_the_first_assignment() -> None:
    problem = random_problem(7)
    found = reassign(problem, seed=1, proposals=10**12, deadline_s=0.0)
    assert found.place.tolist() == problem.home.tolist()
    assert found.cost == judge(problem, problem.home).cost


def test_processes_that_can_go_nowhere_stay() -> None:
    problem = random_problem(7)
    problem = replace(problem, transient=np.ones_like(problem.transient), capacity=np.maximum(0, first_use(problem)))
    found = solved(problem)
    assert found.place.tolist() == problem.home.tolist()
    assert found.proposals == 0


def test_a_first_assignment_that_breaks_a_capacity_is_mended_or_kept() -> None:
    problem = random_problem(7, tight=0.6)
    use = first_use(problem)
    tight = np.where(np.arange(len(use))[:, None] == 0, use - 1, problem.capacity)
    broken = replace(problem, capacity=tight, transient=np.zeros_like(problem.transient))
    assert judge(broken, broken.home).faults
    assert not judge(broken, solved(broken).place).faults
    hopeless = replace(broken, capacity=use - 1)
    assert solved(hopeless).place.tolist() == hopeless.home.tolist()


def test_strangers_are_kept_from_what_a_transient_resource_can_never_take() -> None:
    need = np.array([[5], [4], [2]])
    bits, found = allowed_pairs(need, np.array([0, 1, 1], np.int32), np.array([[10], [3]]))
    assert bits.tolist() == [[0b01], [0b11], [0b11]]
    assert found.tolist() == [1, 2, 2]


def test_the_room_of_those_who_must_stay_is_lost_to_others() -> None:
    problem = random_problem(7)
    model = model_of(problem)
    listed = [set(model.targets[model.target_start[p] : model.target_start[p + 1]]) for p in range(len(problem.home))]
    for p, targets in enumerate(listed):
        assert problem.home[p] in targets
        assert targets == {m for m in range(len(problem.capacity)) if model.allowed[p, m >> 3] >> (m & 7) & 1}
    assert set(model.free) == {p for p, targets in enumerate(listed) if len(targets) > 1}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("need", np.full((40, 3), -1), "need[0, 0] = -1"),
        ("home", np.full(40, 8), "home[0] = 8"),
        ("service", np.zeros(39, np.int64), "service has shape (39,)"),
        ("transient", np.array([0, 2, 0]), "transient[1] = 2"),
        ("balance", np.array([[0, 3, 1, 1]]), "balance names resource 3"),
        ("balance", np.zeros((1, 3), np.int64), "balance has shape (1, 3)"),
        ("depends_start", np.arange(12), "depends_start"),
        ("load_weight", np.full(3, 2**50), "sums below"),
        ("machine_move_weight", -1, "machine_move_weight = -1"),
    ],
)
def test_bad_problems_name_the_field(field: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match="placement") as caught:
        replace(random_problem(1), **{field: value})
    assert words in str(caught.value)


def first_use(problem: Reassignment) -> np.ndarray:
    use = np.zeros_like(problem.capacity)
    np.add.at(use, problem.home, problem.need)
    return use
