"""Simulated annealing on one problem, or one shard: relocations and swaps with exact deltas, in two moods.

squeeze   decides which hosts to keep and drives everything off the others: what stands there costs the saving of the emptied host, shared
          by size, and passing a capacity costs a soft price that is the same for every cell. Searching through slightly overfull hosts
          towards a fixed number of hosts is several times faster than searching among feasible plans for a smaller number (1,000 VMs in 13
          dimensions at pressure 0.92: 5.8 % over the bound after 0.2 s of one core, where summed squared loads needed 10 s).
polish    true prices, nothing broken more than it was, low temperature.

After every squeeze the greedy steps make the plan whole again; the cheapest plan seen under the true prices is the answer, never one dearer
than the start. Source: packing into a fixed number of bins by penalised overload, as in Johnson, Aragon, McGeoch, Schevon, Optimization by
simulated annealing II (graph colouring), Operations Research 39 (1991).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.placement.cost import cost_of
from coordinator.placement.problem import I32, Bool, Problem, Solution
from coordinator.placement.search.board import Board, Prices, State, open_board, open_state, place_of, quanta, rebuild, true_prices
from coordinator.placement.search.deltas import EPSILON, money_of
from coordinator.placement.search.greedy import make_whole, open_hosts, saving, weigh
from coordinator.placement.search.scan import empty_hosts, take_back
from coordinator.placement.search.walk import CHUNK, anneal, uphill

PROPOSALS: Final = 8000  # per VM at effort 1
SLICE: Final = 1 << 20  # proposals between looks at the clock: about 0.1 s
SQUEEZED: Final = 0.8  # share of the proposals that squeezes get
PRICE_OVER: Final = 0.5  # money of a capacity passed by its whole size, in savings of an emptied host
TOLL: Final = 0.05  # price of a move where moves are limited, in the saving of an emptied host per VM on it
CROWD: Final = 4.0  # what an average host's VMs count there beside what they need, in hosts
MODEST: Final = 0.9  # share of the hosts that might be empty to begin with where moves are limited: few displace few
WARM, COLD = 0.01, 0.0005  # temperatures of a squeeze, in PRICE_OVER


@dataclass
class Search:
    """One problem being solved: the cheapest assignment so far and what is left of effort and time."""

    problem: Problem
    board: Board
    prices: Prices
    seed: int
    until: float  # time.monotonic
    left: int  # proposals
    best: I32  # [v]
    money: float
    cut: bool = False
    opened: int = 0  # states so far: each has chance of its own

    def open(self, prices: Prices) -> State:
        """A state at the best assignment."""
        self.opened += 1
        return open_state(self.board, prices, self.best, self.seed * 1000 + self.opened)

    def late(self) -> bool:
        """Whether the deadline has passed; if so the answer is marked as cut."""
        self.cut = self.cut or time.monotonic() >= self.until
        return self.cut

    def offer(self, state: State, money: float) -> bool:
        """Keep the state's assignment if it is cheaper than the best."""
        if money >= self.money - EPSILON:
            return False
        self.best, self.money = place_of(state), money
        return True

    def run(self, state: State, prices: Prices, targets: I32, proposals: int, warm: float, cold: float) -> I32:
        """Anneal in slices until done, late, or nothing is hot; leaves the state at its end and returns the cheapest [v + 1] on the way."""
        cheapest, energy = state.place.copy(), state.energy.copy()
        slices = max(1, -(-proposals // SLICE))
        fall = (cold / warm) ** (1.0 / slices)
        for i in range(slices):
            if self.late():
                break
            share = max(CHUNK, proposals // slices)
            done = anneal(self.board, prices, state, targets, share, warm * fall**i, warm * fall ** (i + 1), cheapest, energy)
            self.left -= done
            if done < share // CHUNK * CHUNK or (not prices.strict and state.hots[0] == 0):
                break
        return cheapest


def anneal_engine(problem: Problem, *, seed: int, effort: float, deadline_s: float, start: I32 | None = None) -> Solution:
    """Engine: greedy steps, squeezes, polish, moves taken back. effort 0: the greedy steps only."""
    begun = time.monotonic()
    start = problem.home if start is None else start
    board = open_board(problem)
    prices = true_prices(problem, board)
    search = Search(problem, board, prices, seed, begun + deadline_s, int(effort * PROPOSALS * max(100, len(board.movable))), start, np.inf)
    state = search.open(prices)
    search.money = money_of(board, prices, state)
    incumbent = search.money
    if len(open_hosts(search.problem)) and len(board.movable):
        tidy(search, state, emptying=problem.moves_max is None or effort == 0)  # hosts that are easily emptied would take the budget
        if effort > 0:
            whole = search.left
            squeezed = squeeze(search)
            polish(search, min(search.left, int(whole * (1.0 - SQUEEZED))) if squeezed else search.left)
    return answer(problem, start, search, "anneal" if effort > 0 else "greedy", begun, changed=search.money < incumbent - EPSILON)


def answer(problem: Problem, start: I32, search: Search, engine: str, begun: float, *, changed: bool) -> Solution:
    """The search's best; the start where the true sums say that it is not better after all."""
    place = search.best if changed and weigh(problem, search.best) < weigh(problem, start) else start
    money = cost_of(problem, place).total
    return Solution(place=place, cost=money, bound=-np.inf, engine=engine, cut=search.cut, seconds=time.monotonic() - begun)


def tidy(search: Search, state: State, *, emptying: bool = True) -> bool:
    """The greedy steps under true prices; whether that gave a new best."""
    make_whole(search.problem, search.board, search.prices, state, emptying=emptying)
    return search.offer(state, money_of(search.board, search.prices, state))


def squeeze(search: Search) -> bool:
    """Drive VMs off as many hosts as might be empty, then off fewer, while effort lasts; False where no host is worth emptying."""
    reserve = int(search.left * (1.0 - SQUEEZED))
    each = max(CHUNK, (search.left - reserve) // 4)
    share, failures, tried = 1.0 if search.problem.moves_max is None else MODEST, 0, False
    while search.left > reserve and failures < 6 and not search.late():
        kept, spare = keep_hosts(search, share)
        if spare == 0:
            break
        tried = True
        prices, price = squeeze_prices(search, kept)
        state = search.open(prices)
        targets = np.flatnonzero(kept).astype(np.int32)
        search.run(state, prices, targets, min(each, search.left - reserve), WARM * price, COLD * price)
        after = open_state(search.board, search.prices, place_of(state), search.seed)
        if tidy(search, after):
            failures = 0
        else:
            failures += 1
        share = max(share / 2.0, 0.02)
    return tried


def keep_hosts(search: Search, share: float) -> tuple[Bool, int]:
    """(bool [h] to keep, how many with VMs are not): hosts of much content for their cost stay; the others' VMs must fit and may move.

    `share`: of the hosts that the largest cell would allow to empty.
    """
    board, problem = search.board, search.problem
    state = search.open(search.prices)
    hosts = len(problem.host_ids)
    on = search.best >= 0
    content = np.bincount(search.best[on], weights=board.size[:-1][on], minlength=hosts)
    np.add.at(content, search.best[on], board.size[:-1][on] ** 2)  # one large VM finds no place where ten small ones do
    at_home = (search.best == problem.home) & (search.best >= 0)
    moving = np.bincount(search.best[at_home], weights=problem.move_cost[at_home], minlength=hosts)
    leaving = np.bincount(search.best[at_home], minlength=hosts)
    stuck = np.bincount(search.best[(search.best >= 0) & problem.fixed], minlength=hosts) > 0
    worth = saving(search.board)
    used = state.vms[:-1] > 0
    may = used & ~stuck & ~problem.closed & (worth > moving)
    mean_worth = max(worth[used].mean() if used.any() else 0.0, 1e-12)
    order = np.flatnonzero(may)
    burden = content + moving / mean_worth
    if problem.moves_max is not None:  # what a host takes of the budget counts as much as where its VMs might go
        burden = burden + CROWD * leaving / max(1.0, leaving[used].mean() if used.any() else 1.0)
    order = order[np.argsort(burden[order] / worth[order], kind="stable")]
    load = state.load[:-1].sum(axis=0, dtype=np.int64)
    capacity = np.where(board.capacity[:-1] < 1 << 30, board.capacity[:-1], 0).astype(np.int64)
    room = capacity[used & ~problem.closed].sum(axis=0) - load
    fits = (np.cumsum(capacity[order], axis=0) <= room)[:, : len(problem.hard)].all(axis=1)
    if problem.moves_max is not None:
        fits &= np.cumsum(leaving[order]) <= 0.9 * (problem.moves_max - state.moved[0])
    most = int(fits.sum())
    count = min(most, max(1, round(most * share)))
    kept = used & ~problem.closed
    kept[order[:count]] = False
    return kept, count


def squeeze_prices(search: Search, kept: Bool) -> tuple[Prices, float]:
    """(prices, money of a capacity passed by its whole size) of a squeeze onto the hosts kept."""
    problem, board = search.problem, search.board
    h, c = problem.capacity.shape
    worth = saving(search.board)
    on = search.best >= 0
    content = np.bincount(search.best[on], weights=board.size[:-1][on], minlength=h)
    leaving = ~kept & (content > 0)
    price = PRICE_OVER * float(worth[leaving].mean())
    hard = np.zeros_like(search.prices.hard)
    hard[:h, :c] = price * quanta(problem) / np.maximum(problem.capacity, 1e-3 * problem.capacity.max(axis=0, initial=1e-12))
    share = np.where(leaving, worth / np.maximum(content, 1e-6), 0.0)
    move = search.prices.move
    if problem.moves_max is not None:  # a budget: VMs that only make room must be worth their share of it
        toll = TOLL * worth[leaving].mean() * leaving.sum() / max(1, int((~kept[search.best[on]]).sum()))
        move = move + toll * np.append(kept, False)[board.home]
    return Prices(
        soft=np.zeros_like(hard), hard=hard, content=np.append(share, 0.0), move=move, rule=price, power=False, strict=False
    ), price


def polish(search: Search, proposals: int) -> None:
    """Low temperature under true prices, then the greedy steps once more."""
    state = search.open(search.prices)
    scale = uphill(search.board, search.prices, state, open_hosts(search.problem), 2000)
    if len(scale):
        warm = 0.1 * scale[len(scale) // 4]
        cheapest = search.run(state, search.prices, open_hosts(search.problem), max(CHUNK, proposals), warm, 0.03 * warm)
        state.place[:] = cheapest
        rebuild(search.board, search.prices, state)
    empty_hosts(search.board, search.prices, state, open_hosts(search.problem))
    take_back(search.board, search.prices, state)
    search.offer(state, money_of(search.board, search.prices, state))
