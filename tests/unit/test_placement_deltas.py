"""The search's own sums against cost.py: whatever is swapped, the energy is the money."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.placement.cost import broken_rules, cost_of
from coordinator.placement.problem import NOWHERE, Problem, Rules
from coordinator.placement.search.board import open_board, open_state, place_of, rebuild, true_prices
from coordinator.placement.search.deltas import do_swap, money_of, try_swap
from tests.contract.placement_problems import make_problem


def varied(seed: int, *, z: float, groups: int, rules: bool, capped: bool) -> Problem:
    """A small crowded fleet with a closed host, homeless VMs, a kind that a host refuses and, perhaps, limits of moves."""
    problem = make_problem(seed, pressure=0.95, z=z, groups=groups, rules=rules)
    random = np.random.default_rng(seed)
    home = problem.home.copy()
    home[[3, 7]] = NOWHERE
    kind_cost = problem.kind_cost.copy()
    kind_cost[1, 4] = np.inf
    spoiled = (home == 4) & (problem.kind == 1)
    home[spoiled] = 5
    hosts = len(problem.host_ids)
    return replace(
        problem,
        home=home,
        kind_cost=kind_cost,
        closed=np.arange(hosts) == 2,
        arrivals_max=random.integers(0, 6, hosts).astype(np.int32) if capped else None,
        departures_max=random.integers(0, 8, hosts).astype(np.int32) if capped else None,
        moves_max=12 if capped else None,
    )


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize(("z", "groups", "rules"), [(0.0, 0, False), (0.0, 3, True), (1.5, 0, False), (1.5, 3, True)])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_the_energy_of_any_swaps_is_the_money(z: float, groups: int, rules: bool, capped: bool, seed: int) -> None:
    problem = varied(seed, z=z, groups=groups, rules=rules, capped=capped)
    board = open_board(problem)
    prices = true_prices(problem, board)._replace(strict=bool(seed % 2))
    state = open_state(board, prices, problem.home, seed)
    begun = cost_of(problem, problem.home)
    assert money_of(board, prices, state) == pytest.approx(begun.total, rel=1e-5)
    random = np.random.default_rng(seed)
    nothing, done = len(problem.vm_ids), 0
    for _ in range(400):
        v = int(random.choice(board.movable))
        w = int(random.choice(board.movable)) if random.random() < 0.5 else nothing
        b = int(state.place[w]) if w != nothing else int(random.integers(len(problem.host_ids)))
        if b in (len(problem.host_ids), int(state.place[v])):
            continue
        place = place_of(state)
        change = try_swap(board, prices, state, v, w, b)
        assert (place_of(state) == place).all()
        if not np.isfinite(change.delta):
            continue
        done += 1
        do_swap(board, prices, state, v, w, b, change)
        assert change.delta == pytest.approx(cost_of(problem, place_of(state)).total - cost_of(problem, place).total, rel=1e-4, abs=2e-3)
    found = place_of(state)
    assert done > 20 or capped
    assert begun.total + state.energy[0] == pytest.approx(cost_of(problem, found).total, rel=1e-4, abs=1e-2)
    assert (broken_rules(problem, found).sum() <= broken_rules(problem, problem.home).sum()) or not rules
    assert not problem.closed[found[found != problem.home]].any()
    if capped:
        moved = np.flatnonzero(found != problem.home)
        assert len(moved) <= 12
        assert (np.bincount(found[moved], minlength=6) <= problem.arrivals_max).all()
        left = moved[problem.home[moved] != NOWHERE]
        assert (np.bincount(problem.home[left], minlength=6) <= problem.departures_max).all()
    kept = [np.array(part, copy=True) for part in (state.load, state.vms, state.in_domain, state.arrivals, state.departures, state.moved)]
    hot = set(state.hot[: state.hots[0]].tolist())
    rebuild(board, prices, state)
    assert all(
        (a == b).all()
        for a, b in zip(kept, (state.load, state.vms, state.in_domain, state.arrivals, state.departures, state.moved), strict=True)
    )
    assert hot == set(state.hot[: state.hots[0]].tolist())


def test_a_host_full_to_the_last_byte_is_not_too_full() -> None:
    problem = make_problem(1, rules=False)
    mean = problem.mean.copy()
    mean[:, -1] = np.pi / 40.0
    capacity = problem.capacity.copy()
    capacity[:, -1] = np.pi
    problem = replace(problem, mean=mean, capacity=capacity, rules=Rules(), fixed=np.zeros(40, bool))
    board = open_board(problem)
    prices = true_prices(problem, board)
    state = open_state(board, prices, np.full(40, 1, np.int32), 0)
    memory = cost_of(replace(problem, hard=np.arange(14) == 13), np.full(40, 1, np.int32)).broken
    assert memory == 0.0
    assert state.load[1, 13] <= board.capacity[1, 13]


def test_a_strict_search_passes_no_hard_cell_more() -> None:
    problem = make_problem(2, rules=False)
    tight = replace(problem, capacity=np.where(problem.hard, 0.5 * problem.capacity, problem.capacity))
    board = open_board(tight)
    prices = true_prices(tight, board)
    state = open_state(board, prices, tight.home, 0)
    full = int(np.argmax(state.hard[:-1]))
    v = next(int(v) for v in board.movable if state.place[v] != full)
    assert not np.isfinite(try_swap(board, prices, state, v, len(tight.vm_ids), full).delta)
    assert np.isfinite(try_swap(board, prices._replace(strict=False), state, v, len(tight.vm_ids), full).delta)
