"""Who goes short: the program's answers against another formulation of it, and what must hold of any answer."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from coordinator.sizing.shortage import Cell, relieve, unmet_at

CHANCE = np.array([0.9, 0.5, 0.1, 0.01])


def cell(sizes: list[list[float]], room: float, **over: Any) -> Cell:
    size = np.array(sizes, float)
    n = len(size)
    given_: dict[str, Any] = {
        "least": np.zeros(n),
        "floor": np.zeros(n),
        "most": size[:, -1],
        "size": size,
        "exceed": np.broadcast_to(CHANCE[-size.shape[1] :], size.shape),
        "weight": np.ones(n),
        "room": room,
    }
    return Cell(**(given_ | {k: np.asarray(v, float) if k != "firm_room" else v for k, v in over.items()}))


def piecewise(c: Cell, v: int, cuts: np.ndarray, x: float) -> float:
    """The penalty's curve of one VM as the program sees it: straight between cuts."""
    values = [unmet_at(c, np.where(np.arange(len(c.least)) == v, at, 0.0))[v] for at in cuts]
    tail = 0.5 * c.exceed[v, -1] * np.maximum(cuts[-1] - np.maximum(cuts, c.size[v, -1]), 0.0)
    return float(np.interp(x, cuts, np.array(values) + tail))


def by_epigraph(c: Cell) -> float:
    """The least penalty by another program (HiGHS): x, a penalty above every chord's line, firm parts above both of their lines."""
    n = len(c.least)
    rows, limits = [], []
    low = c.floor
    share = np.full(n, np.nan) if c.firm_share is None else c.firm_share
    for v in range(n):
        kink = [low[v] / share[v]] if share[v] > 0 else []
        cuts = np.unique(np.clip([low[v], *c.size[v], c.most[v], *kink], low[v], max(low[v], c.most[v])))
        values = [piecewise(c, v, cuts, at) * c.weight[v] for at in cuts]
        for (a, b), (f, g) in zip(pairwise(cuts), pairwise(values), strict=True):
            slope = (g - f) / (b - a)
            row = np.zeros(3 * n)
            row[v], row[n + v] = slope, -1.0  # u >= f + slope (x - a)
            rows.append(row)
            limits.append(slope * a - f)
        if len(cuts) == 1:
            row = np.zeros(3 * n)
            row[n + v] = -1.0
            rows.append(row)
            limits.append(-values[0])
        for slope, base in ((share[v], 0.0), (0.0, low[v])):
            if np.isfinite(share[v]):
                row = np.zeros(3 * n)
                row[v], row[2 * n + v] = slope, -1.0
                rows.append(row)
                limits.append(-base)
    total = np.zeros((2, 3 * n))
    total[0, :n], total[1, 2 * n :] = 1.0, np.isfinite(share)
    room = max(c.room, float(low.sum()))
    firm = max(c.firm_room, float(low[np.isfinite(share)].sum()))
    bounds = [(low[v], max(low[v], c.most[v])) for v in range(n)] + [(0, None)] * (2 * n)
    cost = np.concatenate([np.zeros(n), np.ones(n), np.zeros(n)])
    found = linprog(cost, A_ub=np.vstack([rows, total]), b_ub=[*limits, room, firm if np.isfinite(firm) else 1e12], bounds=bounds)
    assert found.status == 0, found.message
    return float(found.fun)


def test_the_greatest_weight_per_unit_is_served_first_and_its_price_is_the_last_units() -> None:
    c = cell([[100, 200, 300, 400]] * 2, 550.0, weight=[1.0, 4.0])
    (relief,) = relieve((c,))
    assert relief.grant.tolist() == pytest.approx([250.0, 300.0])  # a saves 1 x .3 here, b only 4 x .055
    assert relief.price == pytest.approx(0.3)
    assert relief.unmet.tolist() == pytest.approx(unmet_at(c, relief.grant).tolist())


def test_with_room_for_all_nothing_is_short_and_a_unit_more_saves_nothing() -> None:
    (relief,) = relieve((cell([[100, 200, 300, 400]] * 2, 900.0),))
    assert relief.grant.tolist() == [400.0, 400.0]
    assert relief.price == 0.0


def test_floors_come_before_anything_else_and_share_what_there_is_by_weight() -> None:
    c = cell([[10, 20, 30, 400]] * 2, 300.0, floor=[200.0, 200.0], weight=[1.0, 5.0])
    (relief,) = relieve((c,))
    assert relief.grant.tolist() == pytest.approx([100.0, 200.0])
    (relief,) = relieve((replace(c, least=np.array([150.0, 0.0])),))
    assert relief.grant.tolist() == pytest.approx([150.0, 150.0])
    (relief,) = relieve((replace(c, least=np.array([250.0, 0.0]), floor=np.array([250.0, 200.0]), room=100.0),))
    assert relief.grant.tolist() == [250.0, 0.0]  # what cannot be taken is kept even where it does not fit


def test_who_is_not_critical_borrows_only_what_one_step_takes_back() -> None:
    c = cell([[100, 200, 300, 400]] * 2, 800.0, firm_share=[0.5, np.nan], firm_room=150.0, floor=[50.0, 0.0])
    (relief,) = relieve((c,))
    assert relief.grant.tolist() == pytest.approx([300.0, 400.0])  # half of 300 stays when a step takes the rest back
    assert relief.firm_price > 0.0 == relief.price
    (relief,) = relieve((replace(c, firm_share=np.array([1.0, np.nan])),))
    assert relief.grant.tolist() == pytest.approx([150.0, 400.0])


def test_many_cells_are_one_program_and_do_not_meet() -> None:
    small, large = cell([[1, 2, 3, 4]] * 2, 5.0), cell([[1e9, 2e9, 3e9, 4e9]] * 3, 7e9, weight=[1e-9, 2e-9, 3e-9])
    together = relieve((small, large, small))
    for one, alone in zip(together, [relieve((c,))[0] for c in (small, large, small)], strict=True):
        assert one.penalty == pytest.approx(alone.penalty, rel=1e-9)
        assert one.price == pytest.approx(alone.price, rel=1e-9)
    assert relieve(()) == ()


numbers = st.floats(0, 1000).map(lambda x: round(x, 1))
one_st = st.tuples(
    st.lists(numbers, min_size=4, max_size=4).map(sorted), numbers, numbers, st.floats(0.01, 10), st.sampled_from([np.nan, 1.0, 0.5, 0.0])
)
vms_st = st.lists(one_st, min_size=1, max_size=6)


def drawn(vms: list[Any], room: float, firm_room: float = np.inf) -> Cell:
    size = np.array([v[0] for v in vms])
    floor = np.array([v[1] for v in vms])
    most = np.maximum(floor, np.array([v[2] for v in vms]))
    return cell(
        size.tolist(), room, floor=floor, most=most, weight=[v[3] for v in vms], firm_share=[v[4] for v in vms], firm_room=firm_room
    )


def objective(c: Cell, grant: np.ndarray) -> float:
    total = 0.0
    for v in range(len(grant)):
        kink = [] if c.firm_share is None or not c.firm_share[v] > 0 else [c.floor[v] / c.firm_share[v]]
        cuts = np.unique(np.clip([c.floor[v], *c.size[v], c.most[v], *kink], c.floor[v], max(c.floor[v], c.most[v])))
        total += c.weight[v] * piecewise(c, v, cuts, grant[v])
    return total


@settings(deadline=None, max_examples=80)
@given(vms_st, st.floats(0, 5000), st.one_of(st.just(np.inf), st.floats(0, 3000)))
def test_the_same_least_penalty_as_another_formulation(vms: list[Any], room: float, firm_room: float) -> None:
    c = drawn(vms, room, firm_room)
    assume(c.floor.sum() <= room)
    (relief,) = relieve((c,))
    best = by_epigraph(c)
    assert objective(c, relief.grant) == pytest.approx(best, rel=1e-6, abs=1e-5)


@settings(deadline=None, max_examples=80)
@given(vms_st, st.floats(0, 5000), st.one_of(st.just(np.inf), st.floats(0, 3000)))
def test_bounds_rooms_and_floors_hold(vms: list[Any], room: float, firm_room: float) -> None:
    c = drawn(vms, room, firm_room)
    (relief,) = relieve((c,))
    assert np.all(relief.grant >= c.least - 1e-9) and np.all(relief.grant <= c.most + 1e-6)
    assert relief.grant.sum() <= max(room, c.least.sum()) + 1e-5
    if c.floor.sum() <= room:
        assert np.all(relief.grant >= c.floor - 1e-6)
    assert c.firm_share is not None
    lent = np.isfinite(c.firm_share)
    firm = np.maximum(c.firm_share * relief.grant, np.minimum(c.floor, relief.grant))[lent].sum()
    assert firm <= max(firm_room, c.floor[lent].sum()) + 1e-5


@settings(deadline=None, max_examples=100)
@given(vms_st, st.floats(0, 4000), st.lists(st.booleans(), min_size=6, max_size=6), st.floats(1.0, 20.0))
def test_raising_one_clients_weights_never_raises_what_it_lacks(vms: list[Any], room: float, mine: list[bool], factor: float) -> None:
    c = drawn(vms, room, np.inf)
    assume(c.floor.sum() <= room)
    own = np.array(mine[: len(vms)])
    raised = replace(c, weight=np.where(own, c.weight * factor, c.weight))
    before, after = (relieve((each,))[0].grant for each in (c, raised))
    # its VMs' shortages by its own weights, which all rose alike
    lack = [objective(replace(c, weight=np.where(own, c.weight, 0.0)), grant) for grant in (before, after)]
    assert lack[1] <= lack[0] + 1e-6 * max(1.0, lack[0])


@settings(deadline=None, max_examples=60)
@given(vms_st, st.floats(0, 4000), st.floats(1, 200))
def test_more_room_saves_at_most_its_shadow_price(vms: list[Any], room: float, more: float) -> None:
    c = replace(drawn(vms, room), firm_share=None)
    assume(c.floor.sum() <= room)
    (now,), (then,) = relieve((c,), more), relieve((replace(c, room=room + more),))
    saved = objective(c, now.grant) - objective(c, then.grant)
    assert -1e-6 <= saved <= now.price * more + 1e-5
    assert now.saves == pytest.approx(saved, rel=1e-6, abs=1e-4)
