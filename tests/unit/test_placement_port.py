"""What every engine owes: a plan that breaks nothing more than home, costs what it says and no more than home, the same for a seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coordinator.placement.cost import cost_of
from coordinator.placement.exact.bounds import lower_bound
from coordinator.placement.exact.cpsat import GAP, solve_cpsat
from coordinator.placement.exact.mip import on_fewer_hosts, solve_highs
from coordinator.placement.exact.neighbourhoods import improve
from coordinator.placement.exact.prove import solve_proven
from coordinator.placement.problem import CURVE_POINTS, NOWHERE, Engine, Problem
from coordinator.placement.search.genetic import solve_genetically
from coordinator.placement.verdict import worse
from tests.contract.placement_problems import make_problem
from tests.contract.tiny_problems import plans, tiny

ENGINES: list[tuple[str, Engine]] = [
    ("cpsat", solve_cpsat),
    ("highs", solve_highs),
    ("genetic", solve_genetically),
    ("neighbourhoods", improve),
]
ALL = pytest.mark.parametrize("engine", [engine for _, engine in ENGINES], ids=[name for name, _ in ENGINES])


def packing(seed: int, hosts: int, vms: int, pressure: float) -> Problem:
    """Equal hosts, VMs without a home, nothing soft: as few hosts as possible."""
    problem = make_problem(seed, hosts=hosts, vms=vms, pressure=pressure, z=0.0, rules=False, asleep=0)
    return replace(
        problem,
        home=np.full(vms, NOWHERE, np.int32), fixed=np.zeros(vms, bool), move_cost=np.zeros(vms), kind_cost=np.zeros((2, hosts)),
        capacity=np.tile(problem.capacity.mean(axis=0), (hosts, 1)), curve=np.ones((hosts, CURVE_POINTS)), hard=np.ones(14, bool),
        empty_cost=np.zeros(hosts), wake_cost=np.zeros(hosts),
    )  # fmt: skip


@ALL
@pytest.mark.parametrize(("seed", "z"), [(1, 0.0), (2, 1.5), (3, 1.5)])
def test_a_plan_is_never_worse_than_home_and_costs_what_it_says(engine: Engine, seed: int, z: float) -> None:
    problem = make_problem(seed, hosts=6, vms=36, z=z)
    found = engine(problem, seed=seed, effort=0.2, deadline_s=3.0)
    assert found.cost == pytest.approx(cost_of(problem, found.place).total)
    assert found.cost <= cost_of(problem, problem.home).total
    assert not worse(problem, found.place, problem.home)
    assert found.bound <= found.cost
    assert (found.place[problem.fixed] == problem.home[problem.fixed]).all()


@ALL
def test_a_start_is_kept_or_bettered(engine: Engine) -> None:
    problem = packing(4, hosts=6, vms=40, pressure=0.6)
    start = solve_genetically(problem, seed=1, effort=0.3, deadline_s=60.0)
    assert engine(problem, seed=2, effort=0.1, deadline_s=2.0, start=start.place).cost <= start.cost


@ALL
def test_caps_on_moves_are_kept(engine: Engine) -> None:
    problem = replace(make_problem(5, hosts=5, vms=30, rules=False), moves_max=3, arrivals_max=np.full(5, 2, np.int32))
    found = engine(problem, seed=1, effort=0.2, deadline_s=3.0)
    moved = found.place != problem.home
    assert moved.sum() <= 3
    assert np.bincount(found.place[moved], minlength=5).max() <= 2


def test_the_genetic_engine_gives_the_same_bytes_for_the_same_seed() -> None:
    problem = make_problem(6, hosts=8, vms=60)
    one, other = (solve_genetically(problem, seed=9, effort=0.2, deadline_s=120.0) for _ in range(2))
    assert not one.cut and one.place.tobytes() == other.place.tobytes()


def test_the_genetic_engine_packs_into_as_few_hosts_as_the_bound() -> None:
    problem = packing(7, hosts=8, vms=80, pressure=0.6)
    found = solve_genetically(problem, seed=1, effort=1.0, deadline_s=60.0)
    assert found.cost == pytest.approx(lower_bound(problem, deadline_s=5.0).value, rel=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_highs_is_within_its_bound_of_the_best_plan(seed: int) -> None:
    problem = tiny(seed, 0.8, 0.0)
    least = min(cost_of(problem, place).total for place in plans(problem))
    found = solve_highs(problem, seed=0, deadline_s=20.0)
    assert found.bound <= least * (1 + 1e-7)
    assert not found.optimal or found.cost <= least * (1 + GAP)


def test_whether_hosts_can_be_emptied_is_answered_with_a_plan_or_a_proof() -> None:
    problem = packing(8, hosts=4, vms=24, pressure=0.55)
    problem = replace(problem, unplaced_cost=np.full(24, 1e3))
    needed = round(solve_cpsat(problem, seed=1, deadline_s=30.0).cost)
    place, known = on_fewer_hosts(problem, needed, deadline_s=30.0)
    assert known and place is not None and len(set(place[place != NOWHERE].tolist())) <= needed
    spread = replace(problem, home=place)  # from now on nobody may be left nowhere
    assert on_fewer_hosts(spread, needed - 1, deadline_s=30.0) == (None, True)


def test_neighbourhoods_mend_what_the_start_left() -> None:
    problem = make_problem(12, hosts=10, vms=70, pressure=0.7, z=0.0)
    found = improve(problem, seed=1, effort=0.5, deadline_s=20.0, hosts=4)
    assert found.cost < cost_of(problem, problem.home).total


@pytest.mark.parametrize("engine", [solve_cpsat, solve_highs, solve_genetically, solve_proven])
def test_a_vm_where_its_kind_may_not_be_is_moved_away(engine: Engine) -> None:
    problem = make_problem(13, hosts=4, vms=16, pressure=0.4, z=0.0, rules=False)
    kind_cost = problem.kind_cost.copy()
    kind_cost[1, 1] = np.inf
    problem = replace(problem, kind_cost=kind_cost, fixed=np.zeros(16, bool))
    assert cost_of(problem, problem.home).total == np.inf
    found = engine(problem, seed=1, effort=0.5, deadline_s=10.0)
    assert np.isfinite(found.cost) and not ((found.place == 1) & (problem.kind == 1)).any()


def test_a_vm_that_must_stay_where_it_may_not_be_is_no_proof_of_anything_less() -> None:
    problem = make_problem(13, hosts=4, vms=16, pressure=0.4, z=0.0, rules=False)
    kind_cost = problem.kind_cost.copy()
    kind_cost[:, 1] = np.inf
    problem = replace(problem, kind_cost=kind_cost, fixed=problem.home == 1)
    found = solve_cpsat(problem, seed=1, effort=0.5, deadline_s=10.0)
    assert found.cost == np.inf and np.isfinite(found.bound)


def test_other_than_one_or_two_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="workers 3: allowed 1 or 2"):
        solve_cpsat(make_problem(1), seed=0, deadline_s=1.0, workers=3)
