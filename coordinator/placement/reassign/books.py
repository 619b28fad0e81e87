"""A machine-reassignment problem and the books of one assignment, as the arrays that the kernels in kernels.py work on.

Axes: p = process, m = machine, r = resource, s = service, b = balance objective. Amounts are whole numbers (int64), so sums are exact.
`used` is what runs on a machine and what load and balance cost look at; `held` is what must fit under the capacity: for transient
resources it also counts processes that left their home machine, which hold their share there until the whole plan is carried out.

What follows from that, and makes the search small: a transient resource of a machine can only ever take `capacity - first use` from
strangers, whatever leaves it (`roof`), so many machines are closed to a process for good. `allowed` has one bit for each pair.

Invariant: the books equal what `recount` gives for `place` after every kernel call (tests/unit/test_reassign_kernels.py).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.placement.chance import U64

I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

SPARE_SLOTS: Final = 64  # a machine takes up to four times what the fullest has at first, and these
# places in Books.sums: true cost, units held beyond capacities, cost of `best`, entries of the journal, most moved processes of a service,
# moves taken, proposals made while nothing was held beyond a capacity
COST, OVER, BROKEN, BEST, WRITTEN, TOP, TAKEN, FEASIBLE, SUMS = range(9)
NOTHING: Final = 2**63 - 1  # cost of `best` as long as none is known


class Model(NamedTuple):
    """What stays the same during a search. Columns of r are sorted, the dearest resource first, so that sums can end early."""

    need: I64  # [p, r]
    service: I32  # [p]
    home: I32  # [p]
    leave_cost: I64  # [p] weighted cost of not being at home
    capacity: I64  # [m, r]
    safe: I64  # [m, r]
    transient: Bool  # [r]
    weight: I64  # [r]
    first: I64  # [b] resource
    second: I64  # [b] resource
    target: I64  # [b]
    balance_weight: I64  # [b]
    distance: I32  # [m, m] cost of a move, not yet weighted
    distance_weight: int
    service_weight: int
    location: I32  # [m]
    neighbourhood: I32  # [m]
    spread: I32  # [s] distinct locations asked for
    member_start: I64  # [s + 1] processes of s
    member: I32
    needs_start: I64  # [s + 1] services that s depends on
    needs: I32
    needed_start: I64  # [s + 1] services that depend on s
    needed: I32
    allowed: U8  # [p, bytes of m] bit m of row p: p fits there by itself, or lives there
    target_start: I64  # [p + 1] of `targets`; [1] where the pairs are too many to list
    targets: I32  # machines that a process may be on, home included
    free: I32  # processes that have somewhere to go


class Books(NamedTuple):
    """One assignment with all sums that follow from it, and the best one seen."""

    place: I32  # [p]
    used: I64  # [m, r]
    held: I64  # [m, r]
    bill: I64  # [m] load and balance cost
    over: I64  # [m] units held beyond capacities
    fine: F64  # [m] the same at the prices of the moment
    lam: F64  # [r + 2] price of one unit beyond a capacity; then of passing one at all, and of one broken rule
    row: I32  # [m, slots] processes on each machine
    crowd: I32  # [m] how many these are
    slot: I32  # [p] column of each process in its row
    at_location: I32  # [s, location] processes
    locations: I32  # [s] distinct locations
    at_neighbourhood: I32  # [s, neighbourhood] processes
    broken: I32  # [s] broken rules that a move of one of its processes could mend
    moved: I32  # [s] processes away from home
    moved_count: I32  # [n] services with n such processes
    version: I64  # [m] raised at every change of a machine
    seen: I64  # [p] version at which the two gains were taken
    gain: I64  # [p] bill saved where p is now, were it to leave
    gain_fine: F64  # [p]
    best: I32  # [p]
    journal: I32  # [p] processes that may differ from `best`
    sent: I32  # [slots] processes sent away by a push, to take back
    sums: I64  # [SUMS]
    random: U64  # [1] state of the generator


def open_books(model: Model, place: I32, seed: int) -> Books:
    """Books of an assignment [p], which is the best seen when it passes no capacity."""
    processes, machines, resources = len(model.home), len(model.capacity), len(model.weight)
    services = len(model.spread)
    most = int(np.bincount(place, minlength=machines).max(initial=0))
    books = Books(
        place=place.astype(np.int32),
        used=np.zeros((machines, resources), np.int64),
        held=np.zeros((machines, resources), np.int64),
        bill=np.zeros(machines, np.int64),
        over=np.zeros(machines, np.int64),
        fine=np.zeros(machines),
        lam=np.zeros(resources + 2),
        row=np.zeros((machines, min(processes, 4 * most + SPARE_SLOTS)), np.int32),
        crowd=np.zeros(machines, np.int32),
        slot=np.zeros(processes, np.int32),
        at_location=np.zeros((services, int(model.location.max(initial=0)) + 1), np.int32),
        locations=np.zeros(services, np.int32),
        at_neighbourhood=np.zeros((services, int(model.neighbourhood.max(initial=0)) + 1), np.int32),
        broken=np.zeros(services, np.int32),
        moved=np.zeros(services, np.int32),
        moved_count=np.zeros(int(np.diff(model.member_start).max(initial=0)) + 2, np.int32),
        version=np.zeros(machines, np.int64),
        seen=np.full(processes, -1, np.int64),
        gain=np.zeros(processes, np.int64),
        gain_fine=np.zeros(processes),
        best=place.astype(np.int32),
        journal=np.zeros(processes, np.int32),
        sent=np.zeros(min(processes, 4 * most + SPARE_SLOTS), np.int32),
        sums=np.zeros(SUMS, np.int64),
        random=np.random.SeedSequence(seed).generate_state(1, np.uint64) | np.uint64(1),
    )
    recount(model, books)
    books.sums[BEST] = books.sums[COST] if books.sums[OVER] == 0 and books.sums[BROKEN] == 0 else NOTHING
    return books


@njit(cache=True, nogil=True)
def bill_of(model: Model, books: Books, m: int) -> int:
    """Load and balance cost of one machine."""
    cost = 0
    for r in range(len(model.weight)):
        over = books.used[m, r] - model.safe[m, r]
        if over > 0:
            cost += model.weight[r] * over
    for b in range(len(model.target)):
        left = model.capacity[m, model.first[b]] - books.used[m, model.first[b]]
        short = model.target[b] * left - (model.capacity[m, model.second[b]] - books.used[m, model.second[b]])
        if short > 0:
            cost += model.balance_weight[b] * short
    return cost


@njit(cache=True, nogil=True)
def fine_of(model: Model, books: Books, m: int) -> tuple[int, float]:
    """(units, price) of what one machine holds beyond its capacities."""
    units = 0
    price = 0.0
    for r in range(len(model.weight)):
        over = books.held[m, r] - model.capacity[m, r]
        if over > 0:
            units += over
            price += books.lam[r] * over + books.lam[-2]
    return units, price


@njit(cache=True, nogil=True)
def count_broken(model: Model, books: Books) -> int:
    """Broken rules, and Books.broken of each service: pairs on one machine, locations that lack, dependencies without a neighbour."""
    total = 0
    for s in range(len(model.spread)):
        own = max(model.spread[s] - books.locations[s], 0)
        for i in range(model.member_start[s], model.member_start[s + 1]):
            for j in range(model.member_start[s], i):
                own += books.place[model.member[i]] == books.place[model.member[j]]
        for n in range(books.at_neighbourhood.shape[1]):
            if books.at_neighbourhood[s, n] > 0:
                for i in range(model.needs_start[s], model.needs_start[s + 1]):
                    if books.at_neighbourhood[model.needs[i], n] == 0:
                        own += 1
                        books.broken[model.needs[i]] += 1
        books.broken[s] += own
        total += own
    return total


@njit(cache=True, nogil=True)
def recount(model: Model, books: Books) -> None:
    """Every sum anew from `place`; `best`, its cost and the generator stay. Raises ValueError when a machine has more than its slots."""
    books.used[:] = 0
    books.held[:] = 0
    books.crowd[:] = 0
    books.at_location[:] = 0
    books.at_neighbourhood[:] = 0
    books.moved[:] = 0
    books.broken[:] = 0
    books.moved_count[:] = 0
    for p in range(len(books.place)):
        m = books.place[p]
        s = model.service[p]
        if books.crowd[m] == books.row.shape[1]:
            raise ValueError("more processes on one machine than slots")
        books.row[m, books.crowd[m]] = p
        books.slot[p] = books.crowd[m]
        books.crowd[m] += 1
        books.used[m] += model.need[p]
        books.held[m] += model.need[p]
        books.at_location[s, model.location[m]] += 1
        books.at_neighbourhood[s, model.neighbourhood[m]] += 1
        if m != model.home[p]:
            books.moved[s] += 1
            for r in range(len(model.weight)):
                if model.transient[r]:
                    books.held[model.home[p], r] += model.need[p, r]
    books.sums[TOP] = 0
    for s in range(len(model.spread)):
        books.locations[s] = np.count_nonzero(books.at_location[s])
        books.moved_count[books.moved[s]] += 1
        books.sums[TOP] = max(books.sums[TOP], books.moved[s])
    books.sums[BROKEN] = count_broken(model, books)
    books.sums[COST] = model.service_weight * books.sums[TOP]
    books.sums[OVER] = 0
    for m in range(len(model.capacity)):
        books.version[m] += 1
        books.bill[m] = bill_of(model, books, m)
        books.over[m], books.fine[m] = fine_of(model, books, m)
        books.sums[COST] += books.bill[m]
        books.sums[OVER] += books.over[m]
    for p in range(len(books.place)):
        if books.place[p] != model.home[p]:
            books.sums[COST] += model.leave_cost[p] + model.distance_weight * np.int64(model.distance[model.home[p], books.place[p]])


@njit(cache=True, nogil=True)
def set_prices(model: Model, books: Books, lam: F64) -> None:
    """New prices [r + 2], see Books.lam."""
    books.lam[:] = lam
    for m in range(len(model.capacity)):
        books.version[m] += 1
        books.fine[m] = fine_of(model, books, m)[1]


@njit(cache=True, nogil=True)
def keep_best(books: Books) -> None:
    """`best` becomes `place`: only what the journal names is copied, unless it overflowed."""
    written = books.sums[WRITTEN]
    if written > len(books.journal):
        for p in range(len(books.place)):
            books.best[p] = books.place[p]
    else:
        for i in range(written):
            p = books.journal[i]
            books.best[p] = books.place[p]
    books.sums[WRITTEN] = 0
    books.sums[BEST] = books.sums[COST]


@njit(cache=True, nogil=True)
def write(books: Books, p: int) -> None:
    """Note in the journal that p may differ from `best`."""
    if books.sums[WRITTEN] < len(books.journal):
        books.journal[books.sums[WRITTEN]] = p
    if books.sums[WRITTEN] <= len(books.journal):
        books.sums[WRITTEN] += 1


@njit(cache=True, nogil=True)
def allowed_pairs(need: I64, home: I32, roof: I64) -> tuple[U8, I64]:
    """(bits [p, bytes of m], machines allowed [p]) of where each process fits by itself, [m, r] at most; home always counts."""
    machines = len(roof)
    bits = np.zeros((len(home), (machines + 7) >> 3), np.uint8)
    found = np.zeros(len(home), np.int64)
    for p in range(len(home)):
        for m in range(machines):
            fits = True
            if m != home[p]:
                for r in range(roof.shape[1]):
                    if need[p, r] > roof[m, r]:
                        fits = False
                        break
            if fits:
                bits[p, m >> 3] |= np.uint8(1 << (m & 7))
                found[p] += 1
    return bits, found


@njit(cache=True, nogil=True)
def list_pairs(bits: U8, start: I64, machines: int) -> I32:
    """The machines of each row of bits, one after the other: row p from start[p]."""
    targets = np.zeros(start[-1], np.int32)
    for p in range(len(bits)):
        i = start[p]
        for m in range(machines):
            if bits[p, m >> 3] >> (m & 7) & 1:
                targets[i] = m
                i += 1
    return targets
