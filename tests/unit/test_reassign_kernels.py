"""The books of a search: after any moves they are what a count from scratch gives, and the costs are the checker's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reassign_problems import random_problem

from bench.roadef_check import judge
from coordinator.placement.reassign.books import BEST, BROKEN, COST, OVER, TAKEN, TOP, Books, open_books, set_prices
from coordinator.placement.reassign.engine import model_of
from coordinator.placement.reassign.kernels import anneal
from coordinator.placement.reassign.prices import ejection_price, refresh_gain, shift_price, swap_price

LOOSE, STIFF = 0.001, 1e9  # prices of what is held too much: nothing stops, nothing passes


def walked(seed: int, price: float, steps: int = 2000, swaps: float = 0.4, ejections: float = 0.3) -> tuple[Books, Books]:
    """Books after a warm walk, and fresh ones of the same place."""
    model = model_of(random_problem(seed))
    books = open_books(model, model.home, seed)
    set_prices(model, books, np.full(len(model.weight) + 2, price))
    anneal(model, books, steps, 200.0, swaps, ejections)
    fresh = open_books(model, books.place, seed)
    set_prices(model, fresh, books.lam)
    return books, fresh


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), price=st.sampled_from([LOOSE, 1.0, STIFF]))
def test_books_are_what_a_count_from_scratch_gives(seed: int, price: float) -> None:
    books, fresh = walked(seed, price)
    assert books.sums[TAKEN] > 0
    for name in ("used", "held", "bill", "over", "crowd", "at_location", "locations", "at_neighbourhood", "broken", "moved", "moved_count"):
        assert (getattr(books, name) == getattr(fresh, name)).all(), name
    assert books.sums[[COST, OVER, BROKEN, TOP]].tolist() == fresh.sums[[COST, OVER, BROKEN, TOP]].tolist()
    assert books.fine == pytest.approx(fresh.fine)
    for m in range(len(books.crowd)):
        assert set(books.row[m, : books.crowd[m]]) == set(np.flatnonzero(books.place == m))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), price=st.sampled_from([LOOSE, 1.0, STIFF]))
def test_costs_and_faults_are_the_checkers(seed: int, price: float) -> None:
    books, _ = walked(seed, price)
    problem = random_problem(seed)
    verdict = judge(problem, books.place)
    assert verdict.cost == books.sums[COST]
    assert bool(verdict.faults) == bool(books.sums[OVER] or books.sums[BROKEN])
    best = judge(problem, books.best)
    assert (best.cost, best.faults) == (books.sums[BEST], ())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["shift", "swap", "ejection"]))
def test_the_price_of_a_move_is_the_difference_of_two_counts_from_scratch(seed: int, kind: str) -> None:
    model = model_of(random_problem(seed % 50))
    walk = open_books(model, model.home, seed)
    prices = np.append(np.random.default_rng(seed).uniform(0, 50, len(model.weight)), [77.0, 333.0])
    set_prices(model, walk, np.full_like(prices, LOOSE))
    anneal(model, walk, 200, 500.0, 0.4, 0.3)
    set_prices(model, walk, prices)
    random = np.random.default_rng(seed)
    p, q = random.choice(len(model.home), 2, replace=False).tolist()
    a, b = int(walk.place[p]), int(walk.place[q])
    c = int(random.choice([m for m in range(len(model.capacity)) if m not in (a, b)]))
    if kind != "shift" and a == b:
        return
    place = walk.place.copy()
    refresh_gain(model, walk, p)
    if kind == "shift":
        place[p] = c
        price = shift_price(model, walk, p, a, c, np.inf)
    elif kind == "swap":
        place[p], place[q] = b, a
        price = swap_price(model, walk, p, a, q, b, np.inf)
    else:
        place[p], place[q] = b, c
        price = ejection_price(model, walk, p, a, q, b, c, np.inf)
    after = open_books(model, place, seed)
    set_prices(model, after, prices)
    before = walk.sums[COST] - model.service_weight * walk.sums[TOP] + walk.fine.sum()
    assert price == pytest.approx(after.sums[COST] - model.service_weight * after.sums[TOP] + after.fine.sum() - before, abs=1e-3)


@pytest.mark.parametrize(("swaps", "ejections"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_each_kind_of_move_is_taken_and_counted_rightly(swaps: float, ejections: float) -> None:
    for seed in range(5):
        books, fresh = walked(seed, 1.0, swaps=swaps, ejections=ejections)
        assert books.sums[TAKEN] > 0
        assert books.sums[COST] == fresh.sums[COST]
        assert (books.held == fresh.held).all()


def test_walls_are_walls_when_the_price_is_high() -> None:
    books, _ = walked(3, STIFF)
    assert books.sums[OVER] == books.sums[BROKEN] == 0


def test_a_low_price_lets_the_search_pass_capacities_and_rules() -> None:
    ends = [walked(seed, LOOSE)[0].sums for seed in range(8)]
    assert any(sums[OVER] > 0 for sums in ends)
    assert any(sums[BROKEN] > 0 for sums in ends)


def test_the_same_seed_walks_the_same_way_and_another_does_not() -> None:
    places = [walked(seed, 1.0)[0].place.tolist() for seed in (5, 5)]
    assert places[0] == places[1]
    model = model_of(random_problem(5))
    other = open_books(model, model.home, 6)
    set_prices(model, other, np.full(len(model.weight) + 2, 1.0))
    anneal(model, other, 2000, 200.0, 0.4, 0.3)
    assert other.place.tolist() != places[0]
