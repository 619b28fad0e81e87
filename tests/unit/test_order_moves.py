"""The order of moves: every state on the way holds (independent replay), cycles park, moves lie in valleys, what cannot is named."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from move_replay import Replay, replay
from placement_problems import make_problem

from coordinator.placement.bare import bare_problem
from coordinator.placement.cost import broken_rules, host_loads
from coordinator.placement.problem import Problem, RuleKind, Rules
from coordinator.planning.move_warmup import compile_kernels
from coordinator.planning.order_moves import MoveOrder, MovePolicy, Readiness, order_moves, soft_steps

CPU_STEPS = 12


def plain(home: list[int], memory: list[float], room: list[float], **changes: object) -> Problem:
    """VMs with memory (hard) and, where `cpu` [v, 12] is given, CPU per step (soft, of 1.0 a host)."""
    v, h = len(home), len(room)
    cpu = np.array(changes.pop("cpu", np.zeros((v, CPU_STEPS))), float)
    problem = bare_problem(
        np.array(home, np.int32),
        np.hstack([cpu, np.array(memory, float)[:, None]]),
        np.hstack([np.ones((h, CPU_STEPS)), np.array(room, float)[:, None]]),
        np.arange(CPU_STEPS + 1) < CPU_STEPS,
        domain=np.stack([np.arange(h), np.arange(h) // 2]).astype(np.int32),
    )
    return replace(problem, **changes)  # type: ignore[arg-type]


def ordered(problem: Problem, goal: list[int], seconds: float = 30.0, **policy: object) -> MoveOrder:
    ready = Readiness.now(problem, np.full(len(problem.vm_ids), seconds))
    return order_moves(problem, np.array(goal, np.int32), ready, MovePolicy(**policy))  # type: ignore[arg-type]


def told(order: MoveOrder) -> list[tuple[int, int, int, int]]:
    return [(move.stage, move.vm, move.source, move.target) for move in order.moves]


def rules(*each: tuple[RuleKind, int, int, list[int]]) -> Rules:
    return Rules(
        kind=np.array([kind for kind, _, _, _ in each], np.int32),
        limit=np.array([limit for _, limit, _, _ in each], np.int32),
        level=np.array([level for _, _, level, _ in each], np.int32),
        start=np.cumsum([0, *(len(members) for _, _, _, members in each)]).astype(np.int32),
        members=np.array([v for _, _, _, members in each for v in members], np.int32),
    )


def possible_goal(problem: Problem, seed: int) -> np.ndarray:
    """A goal as an engine would give it: random moves, each kept only where hard cells and rules are broken no more than at home."""
    random = np.random.default_rng(seed)
    goal = problem.home.copy()
    load, _ = host_loads(problem, problem.home)
    most = np.maximum(problem.capacity, load)
    broken = broken_rules(problem, problem.home)
    for v in random.permutation(len(goal)):
        if problem.fixed[v] or goal[v] < 0 or random.random() < 0.3:
            continue
        trial = goal.copy()
        if random.random() < 0.5:  # a swap: cycles come of these
            w = int(random.integers(len(goal)))
            if problem.fixed[w] or goal[w] < 0:
                continue
            trial[v], trial[w] = goal[w], goal[v]
        else:
            trial[v] = random.integers(len(problem.host_ids))
        load, _ = host_loads(problem, trial)
        if (load[:, problem.hard] <= most[:, problem.hard]).all() and (broken_rules(problem, trial) <= broken).all():
            goal = trial
    return goal


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), hosts=st.integers(3, 10), tight=st.booleans(), margin=st.booleans())
def test_every_state_on_the_way_holds(seed: int, hosts: int, tight: bool, margin: bool) -> None:
    problem = make_problem(seed, hosts=hosts, vms=hosts * 6, asleep=0 if tight else 1)
    capacity, variance, z = problem.capacity.copy(), problem.variance.copy(), problem.z.copy()
    if tight:  # little room left on any host: cycles have to be cut
        load, _ = host_loads(problem, problem.home)
        capacity[:, problem.hard] = load[:, problem.hard] * 1.05 + 8.0
    if margin:  # hard cells with a margin of their own, in which groups add
        variance[:, problem.hard] = (0.1 * problem.mean[:, problem.hard]) ** 2
        z = np.where(problem.hard, 1.0, z)
    problem = replace(problem, capacity=capacity, variance=variance, z=z)
    goal = possible_goal(problem, seed)
    order = order_moves(problem, goal, Readiness.now(problem, np.full(len(goal), 20.0)), MovePolicy(calm=5.0, block=50))
    for shuffle in range(3):
        replay(problem, order, goal, shuffle)
    assert all(order.dropped.values())
    again = order_moves(problem, goal, Readiness.now(problem, np.full(len(goal), 20.0)), MovePolicy(calm=5.0, block=50))
    assert again == order


def test_the_replay_sees_what_is_wrong() -> None:
    """Two VMs swap between two full hosts in one stage: both hosts would hold both."""
    problem = plain([0, 1], [6, 6], [10, 10])
    good = ordered(plain([0, 1], [2, 2], [10, 10]), [1, 0])
    with pytest.raises(AssertionError, match="hold more than they may"):
        replay(problem, good, np.array([1, 0]), 0)
    tied = plain([0, 0], [1, 1], [10, 10], rules=rules((RuleKind.APART, 1, 0, [0, 1])))
    assert Replay(tied).broken() == [1]


def test_room_is_made_before_it_is_used() -> None:
    problem = plain([0, 1, 1], [6, 4, 5], [10, 10, 10])
    assert told(ordered(problem, [1, 2, 2])) == [(0, 1, 1, 2), (0, 2, 1, 2), (1, 0, 0, 1)]


def test_a_swap_between_full_hosts_parks_the_smaller() -> None:
    order = ordered(plain([0, 1], [8, 6], [10, 10, 10]), [1, 0])
    assert told(order) == [(0, 1, 1, 2), (1, 0, 0, 1), (2, 1, 2, 0)]
    assert [move.parking for move in order.moves] == [True, False, False]
    assert order.moves[1].after == (0,)
    assert order.moves[2].after == (0, 1)


def test_a_swap_with_no_third_host_is_dropped_and_named() -> None:
    order = ordered(plain([0, 1], [8, 6], [10, 10]), [1, 0])
    assert order.moves == ()
    assert order.dropped == {0: "h1 has no room for it on the way", 1: "h0 has no room for it on the way"}


def test_hosts_under_maintenance_and_asleep_park_nobody() -> None:
    closed = plain([0, 1], [8, 6], [10, 10, 10], closed=np.array([False, False, True]))
    assert not ordered(closed, [1, 0]).moves
    problem = plain([0, 1], [8, 6], [10, 10, 10])
    ready = replace(Readiness.now(problem, np.full(2, 30.0)), awake_s=np.array([0.0, 0.0, 400.0]))
    assert not order_moves(problem, np.array([1, 0], np.int32), ready).moves


def test_anti_affinity_holds_while_both_are_on_the_way() -> None:
    """v0 leaves h1 before v1 may come."""
    apart = rules((RuleKind.APART, 1, 0, [0, 1]))
    order = ordered(plain([1, 0], [1, 1], [10, 10, 10], rules=apart), [2, 1])
    assert told(order) == [(0, 0, 1, 2), (1, 1, 0, 1)]
    assert order.moves[1].after == (0,)


def test_a_group_that_stays_together_moves_in_one_stage() -> None:
    together = rules((RuleKind.TOGETHER, 1, 0, [0, 1, 2]))
    problem = plain([0, 0, 0], [3, 3, 3], [10, 10], rules=together)
    order = ordered(problem, [1, 1, 1])
    assert {(move.stage, move.block) for move in order.moves} == {(0, 0)}
    replay(problem, order, np.array([1, 1, 1]), 1)
    assert set(ordered(problem, [1, 1, 1], block=2).dropped.values()) == {"3 VMs would have to move as one, 2 may"}


def test_no_licence_is_passed_on_the_way() -> None:
    """Two licences, both in use: the VM on h0 goes to h1 first, then on."""
    licensed = rules((RuleKind.LICENSED, 2, 0, [0, 1]))
    order = ordered(plain([0, 1], [1, 1], [10, 10, 10], rules=licensed), [2, 1])
    assert order.dropped == {0: "a rule would be broken on the way"}


def test_slots_of_hosts_and_fleet() -> None:
    problem = plain([0, 0, 0, 0], [1] * 4, [10] * 5)
    begins = [move.begin_s for move in ordered(problem, [1, 2, 3, 4], per_source=2).moves]
    assert begins == [0.0, 0.0, 30.0, 30.0]
    begins = [move.begin_s for move in ordered(problem, [1, 2, 3, 4], per_source=9, fleet=3).moves]
    assert begins == [0.0, 0.0, 0.0, 30.0]
    begins = [move.begin_s for move in ordered(problem, [1, 1, 1, 1], per_source=9, per_target=1).moves]
    assert begins == [0.0, 30.0, 60.0, 90.0]


def ramp(at: int, before: float = 0.2, after: float = 1.3) -> list[float]:
    return [before if s < at else after for s in range(CPU_STEPS)]


def test_a_move_begins_at_once_in_a_calm_hour_and_ends_before_the_ramp() -> None:
    problem = plain([0], [1], [10, 10], cpu=[ramp(6)], capacity=np.array([[1.0] * 12 + [10], [2.0] * 12 + [10]]))
    (move,) = ordered(problem, [1], seconds=100, margin_s=60).moves
    assert (move.begin_s, move.latest_s) == (0.0, 6 * 300 - 60 - 100)


def test_a_move_waits_for_the_valley() -> None:
    busy_first = [0.95, 0.95, 0.3, 0.3, *[0.95] * 3, *[1.2] * 5]
    problem = plain([0], [1], [10, 10], cpu=[busy_first], capacity=np.array([[1.0] * 12 + [10], [2.0] * 12 + [10]]))
    (move,) = ordered(problem, [1], seconds=100).moves
    assert move.begin_s == 600.0


def test_a_ramp_that_comes_too_soon_drops_the_move() -> None:
    problem = plain([0], [1], [10, 10], cpu=[ramp(1)], capacity=np.array([[1.0] * 12 + [10], [2.0] * 12 + [10]]))
    order = ordered(problem, [1], seconds=280, margin_s=60)
    assert order.dropped == {0: "the ramp on h0 comes before it could be done"}
    assert ordered(problem, [1], seconds=200, margin_s=60).moves


def test_an_overload_that_is_there_is_relieved_at_once() -> None:
    problem = plain([0, 0], [1, 1], [10, 10], cpu=[[0.7] * 12, [0.6] * 12])
    (move,) = ordered(problem, [0, 1]).moves
    assert (move.begin_s, move.latest_s) == (0.0, np.inf)


def test_a_full_source_may_be_relieved_by_a_less_full_target() -> None:
    problem = plain([0, 0, 1], [1, 1, 1], [10, 10], cpu=[[1.0] * 12, [0.6] * 12, [0.7] * 12])
    assert told(ordered(problem, [0, 1, 1])) == [(0, 1, 0, 1)]
    problem = plain([0, 0, 1], [1, 1, 1], [10, 10], cpu=[[0.6] * 12, [0.6] * 12, [0.7] * 12])
    assert not ordered(problem, [0, 1, 1]).moves


def test_a_target_without_a_quiet_time_gets_nobody() -> None:
    problem = plain([0, 1], [1, 1], [10, 10], cpu=[[0.5] * 12, [0.7] * 12])
    assert ordered(problem, [1, 1]).dropped == {0: "h1 has no quiet time for it within the hour"}


def test_a_sleeping_target_is_waited_for() -> None:
    problem = plain([0, 0], [1, 1], [10, 10, 10])
    ready = replace(Readiness.now(problem, np.full(2, 30.0)), awake_s=np.array([0.0, 420.0, np.inf]))
    order = order_moves(problem, np.array([1, 2], np.int32), ready)
    assert [(move.vm, move.begin_s) for move in order.moves] == [(0, 420.0)]
    assert order.awake_by_s == {1: 420.0}
    assert order.dropped == {1: "h2 cannot be woken"}


def test_room_that_a_shrink_will_give_back_is_not_used_before() -> None:
    problem = plain([0, 1], [4, 4], [10, 10])
    held = np.zeros_like(problem.capacity)
    held[1, CPU_STEPS] = 4.0
    ready = replace(Readiness.now(problem, np.full(2, 30.0)), held=held, held_until_s=np.array([0.0, 90.0]))
    (move,) = order_moves(problem, np.array([1, 1], np.int32), ready).moves
    assert move.begin_s == 90.0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fixed": np.array([True]), "why_fixed": ("pinned by its owner",)}, "pinned by its owner"),
        ({"closed": np.array([False, True])}, "h1 takes no VMs"),
        ({"kind_cost": np.array([[0.0, np.inf]])}, "h1 is not allowed for it"),
    ],
)
def test_what_cannot_move_is_named(changes: dict[str, object], why: str) -> None:
    assert ordered(plain([0], [1], [10, 10], **changes), [1]).dropped == {0: why}
    assert ordered(plain([-1], [1], [10, 10]), [1]).dropped == {0: "it runs nowhere: there is nothing to migrate"}
    assert ordered(plain([0], [1], [10, 10]), [1], seconds=float("inf")).dropped == {0: "its migration would not end"}


def test_nothing_to_do() -> None:
    assert ordered(plain([0, 1], [1, 1], [10, 10]), [0, 1]) == MoveOrder()
    assert ordered(plain([0, 1], [1, 1], [10, 10]), [-1, -1]) == MoveOrder()


def test_soft_cells_by_step() -> None:
    problem = plain([0], [1], [10])
    cells, start = soft_steps(problem)
    assert cells.tolist() == list(range(12))
    assert start.tolist() == list(range(13))
    step = np.arange(13, 0, -1, dtype=np.int32)
    step[:2] = [0, -1]  # the second one stands for the whole hour
    cells, start = soft_steps(replace(problem, step=step))
    assert [cells[start[s] : start[s + 1]].tolist() for s in range(3)] == [[0, 1], [1], [11, 1]]
    assert len(start) == 12 + 1
    assert not problem.hard[cells].any()
    flat = replace(problem, step=np.where(problem.hard, 0, -1).astype(np.int32), hard=np.arange(13) > 0)
    cells, start = soft_steps(flat)
    assert (cells.tolist(), np.diff(start).tolist()) == ([0] * 12, [1] * 12)


def test_ten_thousand_vms_and_two_thousand_moves() -> None:
    """What does not fit is named, nothing is lost; bench/order_moves.py has the time that it takes."""
    problem = make_problem(1, hosts=1000, vms=10_000, rules=False, asleep=20)
    random = np.random.default_rng(1)
    goal = problem.home.copy()
    movers = random.permutation(np.flatnonzero(~problem.fixed & (problem.home >= 0)))[:2000]
    goal[movers] = random.integers(20, 1000, len(movers))
    order = order_moves(problem, goal, Readiness.now(problem, np.full(len(goal), 20.0)), MovePolicy(fleet=200))
    moved = {move.vm for move in order.moves}
    assert moved | set(order.dropped) == set(np.flatnonzero(goal != problem.home).tolist())
    assert len(moved) > 1000


def test_one_call_compiles_every_kernel() -> None:
    assert told(compile_kernels()) == [(0, 1, 1, 2), (1, 0, 0, 1), (2, 1, 2, 0)]


def test_a_kernel_has_one_signature_whatever_the_layout_of_a_problem() -> None:
    """In a process of its own: what other tests call the kernels with says nothing of the product."""
    called = ("settle", "urgency", "fill_stage", "leave", "put", "member", "take_slots", "find_parking", "frees")
    code = (
        "from coordinator.planning import move_kernel, move_warmup\n"
        "move_warmup.compile_kernels()\n"
        f"print(*(len(getattr(move_kernel, name).signatures) for name in {called!r}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1"] * len(called)
