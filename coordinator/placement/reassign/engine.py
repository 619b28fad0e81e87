"""Machine reassignment: better places for processes that already run somewhere, all moved at once, every move paid for.

The problem is that of the ROADEF/EURO challenge 2012 (Google): capacities of several resources with a safety level above which load
costs, balance between pairs of resources, and costs of moving a process, a service and between two machines; bench/roadef.py measures us on
its instances. It is the fleet's placement problem (coordinator/placement/problem.py) with other words and whole numbers: a machine is a
host, a process a VM, conflict is a rule APART with limit 1 on level 0, spread is APART or LICENSED on the level of locations read from the
other side (at least so many domains), dependency is TOGETHER on the level of neighbourhoods, load cost is overload of a soft cell. What
the fleet's problem lacks is the transient resource: a moved process holds its share on the machine that it left until all moves are done.

Invariants: the answer breaks no rule that the first assignment keeps and never costs more; the same problem, seed and number of proposals
give the same answer unless the deadline cut the search.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import count
from typing import Final, NamedTuple

import numpy as np

from coordinator.placement.problem import check_range
from coordinator.placement.reassign.books import (
    BEST,
    COST,
    F64,
    I32,
    I64,
    NOTHING,
    WRITTEN,
    Books,
    Model,
    allowed_pairs,
    list_pairs,
    open_books,
    recount,
    set_prices,
)  # fmt: skip
from coordinator.placement.reassign.kernels import anneal
from shared.errors import ConfigError

AMOUNT_MOST: Final = 2**50
SUM_MOST: Final = 2.0**62  # of int64's 2**63, for what a machine may hold too much on the way
LISTED_MOST: Final = 30_000_000  # pairs of process and machine kept one by one (120 MB); beyond that machines are drawn and looked up
CHUNK: Final = 5_000  # proposals at one temperature and between two looks at the clock, 1-2 ms; as many as processes where these are more
PASSES: Final = 2  # looks for processes that can only be at home: the room that these take is lost to all others


@dataclass(frozen=True, kw_only=True)
class Reassignment:
    """A problem; all arrays int64. Raises ConfigError naming the field, the place and the value when an array is wrong."""

    need: I64  # [p, r]
    service: I64  # [p]
    home: I64  # [p] machine now
    process_move_cost: I64  # [p]
    capacity: I64  # [m, r]
    safety: I64  # [m, r] load above it costs
    machine_move_cost: I64  # [m, m]
    neighbourhood: I64  # [m]
    location: I64  # [m]
    transient: I64  # [r] 0 or 1
    load_weight: I64  # [r]
    balance: I64  # [b, 4] resource, resource, target, weight
    spread: I64  # [s] least number of locations
    depends_start: I64  # [s + 1]
    depends: I64  # services that s depends on: depends[depends_start[s]:depends_start[s + 1]]
    process_move_weight: int
    service_move_weight: int
    machine_move_weight: int

    def __post_init__(self) -> None:
        p, m, r, s = len(self.home), len(self.capacity), len(self.transient), len(self.spread)
        shapes = {
            "need": (p, r), "service": (p,), "process_move_cost": (p,), "capacity": (m, r), "safety": (m, r), "machine_move_cost": (m, m),
            "neighbourhood": (m,), "location": (m,), "load_weight": (r,), "balance": (len(self.balance), 4), "depends_start": (s + 1,),
        }  # fmt: skip
        ranges = {
            "service": (0, s - 1),
            "home": (0, m - 1),
            "transient": (0, 1),
            "depends": (0, s - 1),
            "machine_move_cost": (0, 2**31 - 1),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ConfigError(f"placement.{name} has shape {getattr(self, name).shape}: allowed {shape}")
        for field in fields(self):
            if field.type != "int":
                low, high = ranges.get(field.name, (0, AMOUNT_MOST))
                check_range(field.name, getattr(self, field.name), low, high)
            elif not 0 <= getattr(self, field.name) <= AMOUNT_MOST:
                raise ConfigError(f"placement.{field.name} = {getattr(self, field.name)}: allowed 0 to {AMOUNT_MOST}")
        if self.balance.size and not self.balance[:, :2].max() < r:
            raise ConfigError(f"placement.balance names resource {self.balance[:, :2].max()}: allowed 0 to {r - 1}")
        if (np.diff(self.depends_start) < 0).any() or self.depends_start[0] != 0 or self.depends_start[-1] != len(self.depends):
            raise ConfigError(f"placement.depends_start does not divide the {len(self.depends)} entries of depends")
        if self.worst() >= SUM_MOST:
            raise ConfigError(f"placement: amounts times weights reach {self.worst():.3g}: allowed sums below {SUM_MOST:.3g}")

    def worst(self) -> float:
        """More than any assignment costs."""
        load = float(self.load_weight.astype(float) @ self.need.sum(axis=0, dtype=float))
        room = self.capacity.sum(axis=0, dtype=float) + self.need.sum(axis=0, dtype=float)
        balance = 0.0
        for first, second, target, weight in self.balance.tolist():
            balance += float(weight) * (float(target) * room[first] + room[second])
        moves: float = self.process_move_weight * self.process_move_cost.sum(dtype=float) + self.service_move_weight * float(len(self.home))
        return load + balance + moves + float(self.machine_move_weight) * float(self.machine_move_cost.max(initial=0)) * len(self.home)


@dataclass(frozen=True, kw_only=True)
class Reassigned:
    """What the search found."""

    place: I64  # [p]
    cost: int
    proposals: int  # moves looked at, all threads together
    cut: bool  # the deadline ended the search before its effort was spent: another run may differ
    seconds: float


class Knot(NamedTuple):
    """Temperature and prices at one time of a fall; between knots they change geometrically.

    All are in units of what an average process costs where every unit of it costs (see `scales`).
    """

    at: float  # share of the fall
    temperature: float
    excess: float  # price of holding an average process's need of one resource beyond a capacity
    passing: float  # price of passing a capacity at all: without it, the last few units would stay
    broken: float  # price of a broken rule


Course = tuple[Knot, ...]
# Capacities that cost next to nothing let big processes find machines where there is no room for them yet: 15 M proposals on instances of
# 1,000 processes and 100 machines with transient resources end 5 % of the first cost lower than with capacities dear from the beginning.
# How fast the prices should then rise depends on the instance, so searches side by side take different courses.
PATIENT: Final[Course] = (Knot(0.0, 0.1, 0.1, 1e-3, 0.3), Knot(1.0, 2e-3, 100.0, 3.0, 10.0))
EAGER: Final[Course] = (
    Knot(0.0, 0.1, 0.1, 1e-3, 0.3),
    Knot(0.3, 0.04, 5.0, 0.03, 0.9),
    Knot(0.8, 0.01, 20.0, 0.3, 5.0),
    Knot(1.0, 2e-3, 100.0, 3.0, 10.0),
)
LAST: Final[Course] = (Knot(0.0, 5e-3, 10.0, 0.3, 3.0), Knot(1.0, 1e-7, 100.0, 3.0, 10.0))
# Four times the effort in one fall ended no lower (a2_2: 807 M against 804 M); as much again from the best, with capacities made cheap
# once more, did (798 M). So falls have a length, and what effort is left goes into more of them, from mild to strong.
AGAIN: Final[tuple[Course, ...]] = tuple(
    (Knot(0.0, hot, cheap, 0.03 * cheap, min(cheap, 1.0)), Knot(1.0, 5e-4, 100.0, 3.0, 10.0))
    for hot, cheap in ((0.01, 2.0), (0.03, 0.5), (0.02, 1.0), (0.05, 0.25))
)
FALL: Final = 10_000  # proposals of one fall, for each process
FIRST_SHARE: Final = 0.6  # most of the effort that the first fall, twice as long, may take
LAST_FROM: Final = 0.9  # the rest of the effort mends small things, such as moves that earn nothing
SWAPS: Final = 0.3
EJECTIONS: Final = 0.4


def reassign(problem: Reassignment, *, seed: int, proposals: int, deadline_s: float, threads: int = 1) -> Reassigned:
    """The best assignment that `threads` searches found, which meet after each fall: `proposals` moves each, or until the deadline."""
    begun = time.monotonic()
    model = model_of(problem)
    searches = [open_books(model, model.home, seed + i) for i in range(threads)]
    first = int(searches[0].sums[COST])
    made, done, cut = 0, 0, False
    with ThreadPoolExecutor(threads) as pool:
        for turn in count():
            at = made / max(proposals, 1)
            spent = (time.monotonic() - begun) / max(deadline_s, 1e-9)
            if spent > at and (made or spent >= 1.0):
                at, cut = spent, True
            if at >= 1.0 or not len(model.free):
                break
            steps, share = next_fall(turn, at, proposals, FALL * len(model.home))
            jobs = [pool.submit(walk, model, books, course_of(turn, at, i), steps, share * deadline_s) for i, books in enumerate(searches)]
            results = [job.result() for job in jobs]
            cut |= any(late for _, late in results)
            made += max(number for number, _ in results)
            done += sum(number for number, _ in results)
            if not any(number for number, _ in results):
                break  # no time for a single proposal
            best = min(searches, key=lambda books: int(books.sums[BEST]))
            for books in searches:
                adopt(model, books, best)
    found = searches[0]
    better = found.sums[BEST] < first
    return Reassigned(
        place=found.best.astype(np.int64) if better else problem.home.copy(),
        cost=int(found.sums[BEST]) if better else first,
        proposals=done,
        cut=cut,
        seconds=time.monotonic() - begun,
    )


def next_fall(turn: int, at: float, proposals: int, usual: int) -> tuple[int, float]:
    """(proposals, most of the whole time) of the fall that begins after a share `at` of the effort."""
    if at >= LAST_FROM:
        return int((1.0 - at) * proposals) + 1, 1.0 - at  # rounded up: a rest of one would have no time
    left = LAST_FROM - at
    if turn == 0:
        return max(min(int(FIRST_SHARE * proposals), 2 * usual), 1), FIRST_SHARE
    rest = max(int(left * proposals), 1)
    return rest if rest < 1.5 * usual else usual, left


def course_of(turn: int, at: float, search: int) -> Course:
    """What a search does in a fall: first from far above, then mild and strong in turn, each search another, at last the small things."""
    if at >= LAST_FROM:
        return LAST
    return (PATIENT, EAGER)[search % 2] if turn == 0 else AGAIN[(turn + search) % len(AGAIN)]


def walk(model: Model, books: Books, course: Course, proposals: int, seconds: float) -> tuple[int, bool]:
    """(proposals made, whether time ran ahead of them): one fall of one search.

    Temperature and prices follow the share of the proposals made, or of the time where that is further on, so that a search that is short
    of time cools down all the same.
    """
    begun = time.monotonic()
    dear, scale = scales(model)
    made, late = 0, False
    chunk = max(CHUNK, len(model.home))
    while made < proposals:
        spent = (time.monotonic() - begun) / max(seconds, 1e-9)
        at = made / proposals
        if spent > at and (made or spent >= 1.0):
            at, late = spent, True
        if at >= 1.0:
            break
        temperature, excess, passing, broken = between(course, at)
        set_prices(model, books, np.append(scale * excess, [dear * passing, dear * broken]))
        steps = min(chunk, proposals - made)
        anneal(model, books, steps, dear * temperature, SWAPS, EJECTIONS)
        made += steps
    return made, late


def between(course: Course, at: float) -> tuple[float, ...]:
    """(temperature, excess, passing, broken) at a share of the fall."""
    times = [knot.at for knot in course]
    return tuple(float(np.exp(np.interp(at, times, np.log([knot[k] for knot in course])))) for k in range(1, len(Knot._fields)))


def scales(model: Model) -> tuple[float, F64]:
    """(what an average process costs where every unit of it costs, prices [r] that make its need of any one resource as dear)."""
    need = np.maximum(model.need.mean(axis=0), 1e-9)
    dear = max(float((need * model.weight).sum()), 1.0)
    return dear, dear / need


def adopt(model: Model, books: Books, other: Books) -> None:
    """Go on from the best of another search, where that has one."""
    if other.sums[BEST] == NOTHING:
        return
    books.place[:] = other.best
    recount(model, books)
    books.best[:] = other.best
    books.sums[BEST] = other.sums[BEST]
    books.sums[WRITTEN] = 0


def model_of(problem: Reassignment) -> Model:
    """The arrays of the kernels, with what follows from them: who could ever be where."""
    first_use = sums(problem, np.ones(len(problem.home), bool))
    transient = problem.transient.astype(bool)
    roof = np.where(transient, problem.capacity - first_use, problem.capacity)
    home = problem.home.astype(np.int32)
    need = np.ascontiguousarray(problem.need)
    for _ in range(PASSES):
        allowed, found = allowed_pairs(need, home, roof)
        roof = np.where(transient, roof, problem.capacity - sums(problem, found == 1))
    start = np.concatenate([[0], np.cumsum(found)]) if found.sum() <= LISTED_MOST else np.zeros(1, np.int64)
    dearest = np.argsort(-problem.load_weight * need.mean(axis=0), kind="stable")
    column = np.argsort(dearest)
    services = len(problem.spread)
    whose = np.repeat(np.arange(services), np.diff(problem.depends_start))
    others = whose != problem.depends  # a service that depends on itself always finds itself
    whose, needs = whose[others], problem.depends[others]
    return Model(
        need=np.ascontiguousarray(need[:, dearest]),
        service=problem.service.astype(np.int32),
        home=home,
        leave_cost=problem.process_move_weight * problem.process_move_cost,
        capacity=np.ascontiguousarray(problem.capacity[:, dearest]),
        safe=np.ascontiguousarray(problem.safety[:, dearest]),
        transient=transient[dearest],
        weight=problem.load_weight[dearest],
        first=column[problem.balance[:, 0]],
        second=column[problem.balance[:, 1]],
        target=problem.balance[:, 2].copy(),
        balance_weight=problem.balance[:, 3].copy(),
        distance=problem.machine_move_cost.astype(np.int32),
        distance_weight=problem.machine_move_weight,
        service_weight=problem.service_move_weight,
        location=ranked(problem.location),
        neighbourhood=ranked(problem.neighbourhood),
        spread=np.where(np.bincount(problem.service, minlength=services) > 0, problem.spread, 0).astype(np.int32),
        member_start=starts(problem.service, services),
        member=np.argsort(problem.service, kind="stable").astype(np.int32),
        needs_start=starts(whose, services),
        needs=needs.astype(np.int32),
        needed_start=starts(needs, services),
        needed=whose[np.argsort(needs, kind="stable")].astype(np.int32),
        allowed=allowed,
        target_start=start,
        targets=list_pairs(allowed, start, len(roof)) if len(start) > 1 else np.zeros(0, np.int32),
        free=np.flatnonzero(found > 1).astype(np.int32),
    )


def sums(problem: Reassignment, who: np.ndarray) -> I64:
    """What the processes of a mask [p] need at home: [m, r]."""
    total = np.zeros_like(problem.capacity)
    np.add.at(total, problem.home[who], problem.need[who])
    return total


def ranked(labels: I64) -> I32:
    """Labels as 0, 1, 2, .. in order: tables over them stay small whatever numbers the labels are."""
    return np.unique(labels, return_inverse=True)[1].astype(np.int32)


def starts(owner: I64, owners: int) -> I64:
    """[owners + 1] where each owner's entries begin once sorted by owner."""
    return np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=owners))])
