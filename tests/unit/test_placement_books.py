"""The running sums of an assignment, against the reference objective."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coordinator.placement.cost import broken_rules, cost_of, host_loads
from coordinator.placement.explain.books import Books
from tests.contract.placement_problems import make_problem


@pytest.mark.parametrize("seed", range(6))
def test_every_change_is_worth_what_the_reference_says(seed: int) -> None:
    problem = make_problem(seed, pressure=0.9)
    random = np.random.default_rng(seed)
    books = Books(problem, problem.home)
    for v in random.permutation(len(problem.vm_ids))[:25].tolist():
        now = cost_of(problem, books.place)
        found = books.change(v)
        for h in range(len(problem.host_ids)):
            place = books.place.copy()
            place[v] = h
            after = cost_of(problem, place)
            parts = [getattr(after, cause) - getattr(now, cause) for cause in ("hosts", "overload", "moves", "kinds", "unplaced", "broken")]
            assert found.money[h] == pytest.approx(parts, abs=1e-7)
            assert books.change_to(v, h) == pytest.approx(parts, abs=1e-7)
        books.put(v, int(random.integers(len(problem.host_ids))))


@pytest.mark.parametrize("seed", range(4))
def test_taking_many_back_is_worth_what_taking_each_back_alone_is(seed: int) -> None:
    problem = make_problem(seed, pressure=0.9, groups=0 if seed == 3 else 3)
    books = Books(problem, problem.home)
    for v in np.random.default_rng(seed).permutation(len(problem.vm_ids))[:20].tolist():
        books.put(v, (v * 7) % len(problem.host_ids))
    moved = np.flatnonzero((books.place != problem.home) & (problem.home >= 0))
    assert len(moved) > 5
    together = books.back_money(moved)
    for i, v in enumerate(moved.tolist()):
        assert together[i] == pytest.approx(books.change_to(v, int(problem.home[v])), abs=1e-9)


def test_nothing_is_allowed_that_breaks_more_than_the_incumbent() -> None:
    problem = make_problem(11, pressure=0.9)
    books = Books(problem, problem.home)
    before = broken_rules(problem, problem.home)
    hard = problem.hard
    full = np.maximum(problem.capacity, host_loads(problem, problem.home)[0])[:, hard]
    seen = {"hard": 0, "ruled": 0}
    for v in range(len(problem.vm_ids)):
        found = books.change(v)
        for h in range(len(problem.host_ids)):
            place = problem.home.copy()
            place[v] = h
            fits = (host_loads(problem, place)[0][:, hard] <= full * (1 + 2e-6)).all()
            assert bool(found.hard[h]) == (not fits)
            assert bool(found.ruled[h]) == bool((broken_rules(problem, place) > before).any())
            seen["hard"] += int(found.hard[h])
            seen["ruled"] += int(found.ruled[h])
    assert min(seen.values()) > 0


def test_caps_on_moves_are_kept_and_going_home_is_free_of_them() -> None:
    problem = replace(make_problem(12, rules=False), moves_max=1, arrivals_max=np.ones(6, np.int32), departures_max=np.ones(6, np.int32))
    books = Books(problem, problem.home)
    first, second = (int(v) for v in problem.movable[:2])
    target = int((problem.home[first] + 1) % 6)
    books.put(first, target)
    assert books.change(second).capped.sum() == 5
    assert not books.change(first).capped[problem.home[first]]
    assert not books.change(first).capped[(target + 1) % 6]
