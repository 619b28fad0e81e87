"""A plain search behind the Engine port: VMs that cost something to their cheapest host, then hosts emptied whole, then moves taken back
that are not worth it. Every step is exact by Books; no randomness, so the seed changes nothing.

It is the reference that faster engines are measured against, and what answers where none of them is there.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from coordinator.placement.cost import broken_rules, cost_of
from coordinator.placement.explain.books import Books
from coordinator.placement.problem import I32, NOWHERE, Problem, Solution

WORTH: Final = 1e-9  # money: less is float noise
PASSES: Final = 4


def search_plainly(problem: Problem, *, seed: int, effort: float, deadline_s: float, start: I32 | None = None) -> Solution:
    """As the port Engine says. effort scales the number of passes; 0 = mend only."""
    begun = time.monotonic()
    search = Search(problem, problem.home if start is None else start, begun + deadline_s)
    for _ in range(max(1, round(PASSES * effort))):
        changed = search.mend()
        if effort > 0:
            changed |= search.empty()
        if not changed or search.late:
            break
    search.take_back()
    place = search.books.place
    cost = cost_of(problem, place).total
    if cost > cost_of(problem, problem.home).total:
        place, cost = problem.home, cost_of(problem, problem.home).total
    return Solution(place=place, cost=cost, bound=-np.inf, engine="plain", optimal=False, cut=search.late, seconds=time.monotonic() - begun)


class Search:
    """Books and the clock."""

    def __init__(self, problem: Problem, start: I32, until: float) -> None:
        self.problem = problem
        self.books = Books(problem, start)
        self._until = until
        self.late = False

    def mend(self) -> bool:
        """Every VM that stands where something is short, broken or closed to its cheapest host, the dearest first."""
        problem, books = self.problem, self.books
        hot = (books.money[:, 1:] > WORTH).any(axis=1) | problem.closed
        broken = np.flatnonzero(broken_rules(problem, books.place) > 0)
        ruled = np.zeros(len(problem.vm_ids), bool)
        for r in broken:
            ruled[problem.rules.members[problem.rules.start[r] : problem.rules.start[r + 1]]] = True
        place = books.place
        dear = problem.kind_cost[problem.kind, np.maximum(place, 0)] > WORTH
        of = np.flatnonzero(~problem.fixed & ((place == NOWHERE) | hot[place] | dear | ruled))
        changed = False
        for v in of[np.argsort(problem.move_cost[of], kind="stable")]:
            if self._timed_out():
                break
            changed |= self._best(int(v))
        return changed

    def empty(self) -> bool:
        """Hosts, the least loaded first, whose VMs all fit elsewhere for less than the host saves."""
        books, changed = self.books, False
        load = (books.mean / np.maximum(self.problem.capacity, 1e-12)).max(axis=1)
        for h in np.argsort(load, kind="stable").tolist():
            if self._timed_out():
                break
            vms = np.flatnonzero(books.place == h)
            if not len(vms) or self.problem.fixed[vms].any():
                continue
            changed |= self._try_to_empty(h, vms)
        return changed

    def take_back(self) -> None:
        """Home again whoever's move is not worth its cost by now."""
        for v in np.flatnonzero(self.books.place != self.problem.home).tolist():
            home = int(self.problem.home[v])
            if home == NOWHERE or self._timed_out():
                continue
            found = self.books.change(v)
            if found.allowed[home] and found.total[home] <= WORTH:
                self.books.put(v, home)

    def _best(self, v: int) -> bool:
        found = self.books.change(v)
        total = np.where(found.allowed, found.total, np.inf)
        h = int(np.argmin(total))
        if not total[h] < -WORTH:
            return False
        self.books.put(v, h)
        return True

    def _try_to_empty(self, host: int, vms: np.ndarray) -> bool:
        problem, books = self.problem, self.books
        spent = -(books.money[host].sum() - problem.empty_cost[host])  # saved in the end, counted once
        moved: list[int] = []
        size = (problem.mean[vms] / np.maximum(problem.capacity[host], 1e-12)).max(axis=1)
        for v in vms[np.argsort(-size, kind="stable")].tolist():
            found = books.change(v)
            ok = found.allowed & (books.count > 0)
            ok[host] = False
            # what the VM's going changes at its own host is in every entry: leave it out, the whole host is counted above
            arriving = found.total - float(books.gone(v).sum())
            total = np.where(ok, arriving, np.inf)
            h = int(np.argmin(total))
            if not np.isfinite(total[h]) or spent + total[h] >= -WORTH:
                break
            spent += float(total[h])
            books.put(v, h)
            moved.append(v)
        if len(moved) == len(vms) and spent < -WORTH:
            return True
        for v in moved:
            books.put(v, host)
        return False

    def _timed_out(self) -> bool:
        self.late = self.late or time.monotonic() > self._until
        return self.late
