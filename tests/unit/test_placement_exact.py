"""CP-SAT's answers against every plan of tiny problems; its bound, its proofs, its limits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.placement.cost import cost_of
from coordinator.placement.exact.cpsat import GAP, solve_cpsat
from coordinator.placement.verdict import worse
from tests.contract.tiny_problems import plans, tiny


@given(seed=st.integers(0, 10_000), pressure=st.floats(0.3, 1.6), z=st.sampled_from([0.0, 1.5]))
@settings(max_examples=10, deadline=None)
def test_its_answer_is_the_best_of_all_plans(seed: int, pressure: float, z: float) -> None:
    problem = tiny(seed, pressure, z)
    costs = [cost_of(problem, place).total for place in plans(problem)]
    found = solve_cpsat(problem, seed=seed, deadline_s=5.0)
    assert found.cost == pytest.approx(cost_of(problem, found.place).total)
    assert not worse(problem, found.place, problem.home)
    assert found.bound <= min(costs) + 1e-7 * abs(min(costs))
    if found.optimal:  # a loaded machine may not get there in time; what is claimed must be true all the same
        assert found.cost <= min(costs) + GAP * abs(found.cost)


@pytest.mark.parametrize("turn", range(8))
def test_small_problems_are_proven(turn: int) -> None:
    problem = tiny(37 * turn, 0.3 + 0.15 * turn, 1.5 * (turn % 2))  # a tenth to two tenths of a second each
    found = solve_cpsat(problem, seed=turn, deadline_s=60.0)
    least = min(cost_of(problem, place).total for place in plans(problem))
    assert found.optimal
    assert found.cost == least or found.cost <= least + GAP * abs(found.cost)
