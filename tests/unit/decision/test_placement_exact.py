"""Placement of one shard: exact, paid for, never worse."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.model import N_RESOURCES, HostState
from coordinator.placement.descend import descend
from coordinator.placement.exact import solve_exactly
from coordinator.placement.instance import PERCENT_MINUTES, PlacementPolicy, build_instance, cost_of, keeps_promises, overload
from coordinator.placement.shards import MAX_HOSTS, solve_shard, split
from shared.model import Mode
from shared.units import CPU, GIB, MEMORY

CHEAP = PlacementPolicy(move_base=1.0, move_minute=0.0, z=0.0)


def fleet(make: Any, per_host: list[list[str]], **over: Any) -> tuple[HostState, ...]:
    return tuple(
        make.host(*(make.vm(v, host_id=f"h{h}", quota=200, memory=GIB, **over) for v in vms), host_id=f"h{h}", cpu_millicores=4000)
        for h, vms in enumerate(per_host)
    )


def block(make: Any, curves: dict[str, Any], stddev: float = 0.0) -> Any:
    mean = np.zeros((len(curves), N_RESOURCES, 12))
    for i, curve in enumerate(curves.values()):
        mean[i, CPU], mean[i, MEMORY] = curve, 0.5 * GIB
    return make.forecast(tuple(curves), mean, stddev)


def test_nothing_moves_where_nothing_is_overloaded(make: Any) -> None:
    result = solve_shard(fleet(make, [["a", "b"], []]), block(make, {"a": 1900, "b": 1900}), 1, 2.0, 5)
    assert (result.shard, result.moves, result.status) == (5, (), "no_beneficial_move")
    assert result.bound == result.objective == result.incumbent == 0


def test_an_overload_that_pays_for_a_move_is_cured(make: Any) -> None:
    hosts = fleet(make, [["a", "b", "c"], ["d"]])
    result = solve_shard(hosts, block(make, {"a": 2000, "b": 1900, "c": 1000, "d": 500}), 1, 2.0, 0)
    assert result.status == "optimal"
    assert [(m.from_host, m.to_host) for m in result.moves] == [("h0", "h1")]
    assert result.objective < result.incumbent
    assert result.bound == pytest.approx(result.objective, abs=PERCENT_MINUTES)
    assert result.moves[0].gain > result.moves[0].cost > 0


def test_a_small_or_short_overload_is_not_worth_a_move(make: Any) -> None:
    short = np.full(12, 1000.0)
    short[3] = 1150.0
    result = solve_shard(fleet(make, [["a", "b"], []]), block(make, {"a": short, "b": 3000}), 1, 2.0, 0)
    assert (result.moves, result.status) == ((), "no_beneficial_move")
    assert result.incumbent > 0


def test_peaks_at_other_times_share_a_host(make: Any) -> None:
    early, late = np.r_[np.full(6, 3500.0), np.full(6, 300.0)], np.r_[np.full(6, 300.0), np.full(6, 3500.0)]
    hosts = fleet(make, [["a", "b"], ["c", "d"]])
    result = solve_shard(hosts, block(make, {"a": early, "b": early, "c": late, "d": late}), 1, 5.0, 0, policy=CHEAP)
    assert result.status == "optimal"
    assert len(result.moves) == 2
    assert result.objective == pytest.approx(sum(m.cost for m in result.moves))


@pytest.mark.parametrize(
    "over",
    [{"cannot": {"migrate": "vfio device"}}, {"policy": {"excluded": True}}],
)
def test_what_may_not_move_stays(make: Any, over: dict[str, Any]) -> None:
    result = solve_shard(fleet(make, [["a", "b"], []], **over), block(make, {"a": 3000, "b": 3000}), 1, 1.0, 0)
    assert result.moves == ()
    assert result.incumbent > 0


def test_recently_moved_and_unforecast_vms_stay(make: Any) -> None:
    hosts, curves = fleet(make, [["a", "b"], []]), block(make, {"a": 3000, "b": 3000})
    cooling = PlacementPolicy(cooling=frozenset({"a", "b"}))
    assert build_instance(hosts, curves, cooling).pinned == ("moved recently", "moved recently")
    unknown = block(make, {"a": 3000, "b": np.nan})
    assert build_instance(hosts, unknown, CHEAP).pinned == ("", "no forecast")
    hot = replace(CHEAP, dirty_bytes_per_core_s=1e9)
    assert all("faster" in why for why in build_instance(hosts, curves, hot).pinned)


def test_nothing_goes_to_silent_or_switched_off_hosts_or_beyond_a_commit_limit(make: Any) -> None:
    curves = block(make, {"a": 3000, "b": 3000})
    hosts = fleet(make, [["a", "b"], []])
    assert solve_shard(hosts, curves, 1, 1.0, 0).moves
    assert not solve_shard((hosts[0], replace(hosts[1], alive=False)), curves, 1, 1.0, 0).moves
    assert not solve_shard((hosts[0], replace(hosts[1], mode=Mode.OFF)), curves, 1, 1.0, 0).moves
    small = make.host(host_id="h1", memory_commit_bytes=GIB // 2)
    assert not solve_shard((hosts[0], small), curves, 1, 1.0, 0).moves


def test_uncertainty_adds_at_the_host_and_not_per_vm(make: Any) -> None:
    hosts = fleet(make, [["a", "b", "c", "d"], []])
    curves = dict.fromkeys("abcd", 950.0)
    policy = replace(CHEAP, z=2.0)
    assert overload(build_instance(hosts, block(make, curves, 20.0), policy), np.zeros(4, np.int64)) == 0  # 3800 + 2 * 40 <= 4000
    noisy = build_instance(hosts, block(make, curves, 80.0), policy)
    assert overload(noisy, noisy.home) > 0


def test_the_same_seed_gives_the_same_answer(make: Any) -> None:
    hosts = fleet(make, [["a", "b", "c"], ["d", "e"], ["f"]])
    curves = block(make, {v: 900 + 400 * i for i, v in enumerate("abcdef")}, 50.0)
    first, second = (solve_shard(hosts, curves, 7, 2.0, 0, policy=CHEAP) for _ in range(2))
    assert replace(first, wall_ms=0.0) == replace(second, wall_ms=0.0)


def test_shards_are_repeatable_bounded_and_leave_out_silent_hosts(make: Any) -> None:
    hosts = [replace(h, alive=h.host_id != "h3") for h in fleet(make, [[f"v{h}"] for h in range(30)])]
    shards = split(hosts, 4, 8)
    assert shards == split(list(reversed(hosts)), 4, 8)
    assert shards != split(hosts, 5, 8)
    assert sorted(h.host_id for s in shards for h in s) == sorted(h.host_id for h in hosts if h.alive)
    assert max(map(len, shards)) <= 8
    assert split([], 1) == ()
    with pytest.raises(ValueError, match="shard size 13"):
        split(hosts, 1, MAX_HOSTS + 1)
    with pytest.raises(ValueError, match="shard of 29 hosts"):
        solve_shard(hosts, block(make, {}), 1, 1.0, 0)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=5), st.integers(0, 300))
def test_the_solver_finds_what_brute_force_finds(make: Any, drawn: list[tuple[int, int, int]], stddev: int) -> None:
    per_host: list[list[Any]] = [[], [], []]
    for i, (home, _, priority) in enumerate(drawn):
        per_host[home].append(make.vm(f"v{i}", host_id=f"h{home}", quota=200, memory=GIB, priority=priority))
    hosts = tuple(make.host(*vms, host_id=f"h{h}", cpu_millicores=4000, memory_commit_bytes=3 * GIB) for h, vms in enumerate(per_host))
    curves = block(make, {f"v{i}": 100.0 * load for i, (_, load, _) in enumerate(drawn)}, float(stddev))
    instance = build_instance(hosts, curves, replace(CHEAP, z=1.0))
    best = min(
        cost_of(instance, np.array(place, np.int64))
        for place in product(range(3), repeat=len(drawn))
        if keeps_promises(instance, np.array(place, np.int64))
    )
    solution = solve_exactly(instance, 1, 10.0)
    assert solution.optimal
    assert cost_of(instance, solution.place) == best
    result = solve_shard(hosts, curves, 1, 10.0, 0, policy=replace(CHEAP, z=1.0))
    assert result.objective <= result.incumbent
    assert result.bound <= result.objective + 1e-6


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=12))
def test_descent_keeps_promises_and_is_never_worse_than_what_is(make: Any, drawn: list[tuple[int, int, int]]) -> None:
    per_host: list[list[Any]] = [[], [], [], []]
    for i, (home, _, priority) in enumerate(drawn):
        per_host[home].append(make.vm(f"v{i}", host_id=f"h{home}", quota=200, memory=GIB, priority=priority))
    hosts = tuple(make.host(*vms, host_id=f"h{h}", cpu_millicores=4000, memory_commit_bytes=4 * GIB) for h, vms in enumerate(per_host))
    instance = build_instance(hosts, block(make, {f"v{i}": 100.0 * load for i, (_, load, _) in enumerate(drawn)}, 80.0), CHEAP)
    place = descend(instance)
    assert keeps_promises(instance, place)
    assert cost_of(instance, place) <= cost_of(instance, instance.home)
    for v, h in product(range(len(place)), range(4)):
        other = place.copy()
        other[v] = h
        assert not keeps_promises(instance, other) or cost_of(instance, other) >= cost_of(instance, place)


def test_descent_swaps_where_no_single_move_fits(make: Any) -> None:
    hosts = fleet(make, [["a", "b"], ["c", "d"]])
    hosts = tuple(make.host(*h.vms, host_id=h.host_id, cpu_millicores=4000, memory_commit_bytes=2 * GIB) for h in hosts)
    instance = build_instance(hosts, block(make, {"a": 3500, "b": 3000, "c": 400, "d": 500}), CHEAP)
    place = descend(instance)
    assert overload(instance, place) == 0
    assert sum(place != instance.home) == 2
