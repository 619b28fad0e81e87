"""The first feasible plan: a seat for every VM without one, broken rules mended, full and closed hosts relieved, with few moves.

0.2 s of CPU for 10,000 VMs on 1,000 hosts, some of them overloaded; what annealing starts from, and the answer when there is no time
for more. Every step is exact and takes only what pays (scan.py), so the plan is never dearer than its start and breaks nothing more.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

import numpy as np

from coordinator.placement.cost import cost_of
from coordinator.placement.problem import F64, I32, Problem, Solution
from coordinator.placement.search.board import FORBIDDEN, Board, Prices, State, open_board, open_state, place_of, true_prices
from coordinator.placement.search.scan import cure, empty_hosts, mend, seat, take_back

SMALL: Final = 256  # hosts up to which emptying whole hosts is a matter of milliseconds
PREFERENCE: Final = 0.01  # of what an emptied host saves: a full host is preferred to an empty one by this


def greedy(problem: Problem, *, seed: int, effort: float, deadline_s: float, start: I32 | None = None) -> Solution:
    """Engine; without chance and too quick to need a deadline, which it ignores. effort 0: no hosts are emptied."""
    begun = time.monotonic()
    start = problem.home if start is None else start
    board = open_board(problem)
    prices = true_prices(problem, board)
    state = open_state(board, prices, start, seed)
    make_whole(problem, board, prices, state, emptying=effort > 0)
    place = place_of(state)
    if weigh(problem, place) >= weigh(problem, start):
        place = start
    return Solution(place=place, cost=cost_of(problem, place).total, bound=-np.inf, engine="greedy", seconds=time.monotonic() - begun)


def weigh(problem: Problem, place: I32) -> float:
    """cost.py's money for comparing plans: a VM where its kind may not be counts FORBIDDEN, so that one of them fewer is cheaper."""
    cost = cost_of(problem, place)
    if np.isfinite(cost.kinds):
        return cost.total
    on = np.flatnonzero(place >= 0)
    kinds = float(np.minimum(problem.kind_cost[problem.kind[on], place[on]], FORBIDDEN).sum())
    return replace(cost, kinds=kinds).total


def make_whole(problem: Problem, board: Board, prices: Prices, state: State, *, emptying: bool = True) -> None:
    """All steps on a state, in place; moves that do not pay are taken back and hosts emptied where that is asked and the problem small."""
    hosts = open_hosts(problem)
    if not len(hosts) or not len(board.movable):
        return
    seat(board, prices, state, by_bulk(board), hosts, PREFERENCE * saving(board).max(initial=1e-6))
    mend(board, prices, state, hosts)
    cure(board, prices, state, hosts)
    if emptying and len(hosts) <= SMALL:
        empty_hosts(board, prices, state, hosts)
        take_back(board, prices, state)


def open_hosts(problem: Problem) -> I32:
    """Hosts that a VM may go to."""
    return np.flatnonzero(~problem.closed).astype(np.int32)


def by_bulk(board: Board) -> I32:
    """VMs by decreasing sum of their shares of the largest host."""
    largest = np.maximum(board.capacity[:-1].max(axis=0, initial=1), 1)
    return np.argsort(-(board.mean[:-1] / largest).sum(axis=1), kind="stable").astype(np.int32)


def saving(board: Board) -> F64:
    """[h] money that a host saves when it is emptied, its dynamic power aside (that goes with the VMs)."""
    found: F64 = np.maximum(board.curve[:-1, 0] + board.wake[:-1] - board.empty[:-1], 0.0)
    return found
