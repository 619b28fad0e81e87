"""Which series each challenger gets: what matters most, the rest in turns, within the budget."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.forecast.challengers import Standing, remembered, select


def standing(n: int, seed: int = 0) -> Standing:
    rng = np.random.default_rng(seed)
    return Standing(priority=rng.integers(0, 3, n).astype(float), size=rng.random(n), burden=rng.random(n))


def test_what_matters_most_is_always_chosen() -> None:
    fleet = standing(100)
    important = set(np.argsort(-fleet.importance(), kind="stable")[:10].tolist())
    for turn in range(20):
        chosen = select(fleet, {"auto_arima": 0.5}, 10.0, turn=turn)["auto_arima"]
        assert len(chosen) == 20
        assert important <= set(chosen.tolist())


def test_every_series_gets_its_turn_in_a_round() -> None:
    fleet = standing(100)
    for a_round in range(3):
        seen: set[int] = set()
        for turn in range(9):  # 90 others, ten a turn
            seen |= set(select(fleet, {"a": 0.5}, 10.0, turn=a_round * 9 + turn, seed=4)["a"].tolist())
        assert seen == set(range(100))
    turns = [select(fleet, {"a": 0.5}, 10.0, turn=turn, seed=4)["a"].tolist() for turn in (0, 9, 18)]
    assert turns[0] != turns[1] != turns[2]


@given(
    n=st.integers(0, 60),
    budget=st.floats(0, 50),
    costs=st.dictionaries(st.sampled_from("abcdef"), st.floats(1e-4, 10), max_size=6),
    turn=st.integers(0, 1000),
    seed=st.integers(0, 9),
)
def test_the_budget_holds(n: int, budget: float, costs: dict[str, float], turn: int, seed: int) -> None:
    fleet = standing(n)
    found = select(fleet, costs, budget, turn=turn, seed=seed)
    assert found.keys() == costs.keys()
    assert sum(len(rows) * costs[name] for name, rows in found.items()) <= budget * (1 + 1e-9)
    for rows in found.values():
        assert len(set(rows.tolist())) == len(rows)
        assert rows.tolist() == sorted(rows.tolist())
        assert all(0 <= row < n for row in rows)
    again = select(fleet, costs, budget, turn=turn, seed=seed)
    assert all((again[name] == rows).all() for name, rows in found.items())


def test_what_a_cheap_challenger_cannot_use_goes_to_the_dearer_one() -> None:
    found = select(standing(10), {"dear": 1.0, "cheap": 0.001}, 6.0, turn=0)
    assert len(found["cheap"]) == 10
    assert len(found["dear"]) == 5  # 6 - 0.01 seconds, not 3


def test_a_challenger_without_a_cost_is_probed_with_a_few() -> None:
    found = select(standing(100), {"new": math.nan, "old": 0.1}, 4.0, turn=0)
    assert len(found["new"]) == 8
    assert len(found["old"]) == 20  # the other half of the budget
    assert len(select(standing(100), {"new": math.nan}, 0.0, turn=0)["new"]) == 0


def test_unknown_figures_count_as_the_middle() -> None:
    known = np.array([0.0, 1.0, np.nan])
    same = np.ones(3)
    order = Standing(priority=same, size=same, burden=known).importance()
    assert order[0] < order[2] < order[1]


def test_costs_follow_what_was_measured() -> None:
    assert remembered(math.nan, 10, 5.0) == 0.5
    assert remembered(0.5, 10, 15.0) == 1.0
    assert remembered(math.nan, 10, 0.0) > 0.0
    with pytest.raises(ValueError, match="series 0"):
        remembered(1.0, 0, 1.0)


def test_bad_input_is_refused() -> None:
    fleet = standing(3)
    with pytest.raises(ValueError, match="budget_s -1"):
        select(fleet, {}, -1.0, turn=0)
    with pytest.raises(ValueError, match="budget_s nan"):
        select(fleet, {}, math.nan, turn=0)
    with pytest.raises(ValueError, match="turn -1"):
        select(fleet, {}, 1.0, turn=-1)
    with pytest.raises(ValueError, match="cost of auto_ets 0"):
        select(fleet, {"auto_ets": 0.0}, 1.0, turn=0)
    with pytest.raises(ValueError, match="must be one figure for each series"):
        Standing(priority=np.zeros(2), size=np.zeros(3), burden=np.zeros(3))
