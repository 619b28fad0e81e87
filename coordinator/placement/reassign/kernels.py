"""Moves of a machine reassignment, and annealing over them. All kernels release the GIL and share nothing.

Four moves. Shift: a process to another machine that could ever take it. Swap: two processes exchange machines. Ejection: a process pushes
another off its machine, which goes to a third. Push: a process that costs its machine much is forced onto another, from which all goes
that is then cheaper elsewhere. Capacities are not walls but have prices, for every unit held beyond one and for passing it at all: big
processes could otherwise never pass each other on full machines. The prices rise as the temperature falls; only what passes no capacity
and breaks no rule becomes `best`. A move is judged against a threshold drawn first, so that most are given up after one or two resources.

The kernels are compiled without numba's reference counts (`_nrt=False`): counting every array of two tuples of some thirty at every call
took nine tenths of the time (1,090 ns a shift instead of 104). In exchange they may not allocate.

Sources: Kirkpatrick et al. 1983 (annealing); Glover 1989 (strategic oscillation around the border of what is allowed); Gavranovic,
Buljubasic & Demirovic, "Variable neighborhood search for Google machine reassignment", ENDM 39, 2012, the prize-winning search (big
processes pushed in while others are pushed out; only machines that could ever take a process).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from coordinator.placement.chance import U64, below, draw
from coordinator.placement.reassign.books import (
    BEST,
    BROKEN,
    COST,
    FEASIBLE,
    OVER,
    TAKEN,
    Books,
    Model,
    bill_of,
    fine_of,
    keep_best,
    write,
)
from coordinator.placement.reassign.prices import ejection_price, refresh_gain, shift_price, swap_price, travel
from coordinator.placement.reassign.rules import recount_back, recount_both, service_change, tally

HOMEWARD: Final = 0.1  # of a moved process's draws: home costs no move, and holds its share of transient resources already
PUSHES: Final = 0.0002  # share of proposals; ten times as many did worse
LOOKS: Final = 8  # processes, and machines for each, that a push looks at
TRIES: Final = 12  # draws of a machine for a process before the turn is given up, where pairs are too many to list


@njit(cache=True, nogil=True, _nrt=False)
def share(state: U64) -> float:
    """A number in (0, 1]."""
    return (np.int64(draw(state) >> np.uint64(11)) + 1) * 1.1102230246251565e-16


@njit(cache=True, nogil=True, _nrt=False)
def may(model: Model, p: int, m: int) -> bool:
    """Whether p could ever be on m."""
    return (model.allowed[p, m >> 3] >> (m & 7)) & 1 == 1


@njit(cache=True, nogil=True, _nrt=False)
def somewhere(model: Model, books: Books, p: int) -> int:
    """Another machine that p could ever be on, home more often than others; -1 = none drawn."""
    if books.place[p] != model.home[p] and share(books.random) <= HOMEWARD:
        return model.home[p]
    if len(model.target_start) > 1:
        start = model.target_start[p]
        m = model.targets[start + below(books.random, model.target_start[p + 1] - start)]
        return m if m != books.place[p] else -1
    for _ in range(TRIES):
        m = below(books.random, len(model.capacity))
        if m != books.place[p] and may(model, p, m):
            return m
    return -1


@njit(cache=True, nogil=True, _nrt=False)
def relocate(model: Model, books: Books, p: int, a: int, b: int) -> None:
    """Carry p from a to b in loads and rows, and note it in the journal."""
    for r in range(len(model.weight)):
        q = model.need[p, r]
        books.used[a, r] -= q
        books.used[b, r] += q
        if not (model.transient[r] and model.home[p] == a):
            books.held[a, r] -= q
        if not (model.transient[r] and model.home[p] == b):
            books.held[b, r] += q
    last = books.row[a, books.crowd[a] - 1]
    books.row[a, books.slot[p]] = last
    books.slot[last] = books.slot[p]
    books.crowd[a] -= 1
    books.row[b, books.crowd[b]] = p
    books.slot[p] = books.crowd[b]
    books.crowd[b] += 1
    write(books, p)


@njit(cache=True, nogil=True, _nrt=False)
def settle(model: Model, books: Books, m: int) -> None:
    """Bill, fine and version of a machine whose load has changed."""
    books.bill[m] = bill_of(model, books, m)
    books.sums[OVER] -= books.over[m]
    books.over[m], books.fine[m] = fine_of(model, books, m)
    books.sums[OVER] += books.over[m]
    books.version[m] += 1


@njit(cache=True, nogil=True, _nrt=False)
def carry(model: Model, books: Books, p: int, a: int, b: int, q: int, c: int) -> None:
    """Take p from a to b and, where q is not -1, q from b to c, in every book that recount_rules has not changed already."""
    change = travel(model, p, b) - travel(model, p, a) + service_change(model, books, p, a, b, q, c) - books.bill[a] - books.bill[b]
    tally(model, books, p, a, b)
    if q >= 0:
        change += travel(model, q, c) - travel(model, q, b)
        tally(model, books, q, b, c)
        relocate(model, books, q, b, c)
        if c != a:
            change -= books.bill[c]
            settle(model, books, c)
            change += books.bill[c]
    relocate(model, books, p, a, b)
    settle(model, books, a)
    settle(model, books, b)
    books.sums[COST] += change + books.bill[a] + books.bill[b]
    books.sums[TAKEN] += 1


@njit(cache=True, nogil=True, _nrt=False)
def propose(model: Model, books: Books, p: int, b: int, q: int, c: int, bound: float) -> bool:
    """Take p to b and, where q is not -1, q from b to c (p's machine: a swap; a third: an ejection) if that costs at most `bound`.

    Rules are looked at last, because that takes longest, but first where a service breaks one now: mending earns.
    """
    a = books.place[p]
    if q < 0 or c != a:
        if books.crowd[b if q < 0 else c] == books.row.shape[1]:
            return False
        if books.seen[p] != books.version[a]:
            refresh_gain(model, books, p)
    early = books.broken[model.service[p]] > 0 or (q >= 0 and books.broken[model.service[q]] > 0)
    price = 0.0
    if early:
        price = books.lam[-1] * recount_both(model, books, p, a, b, q, c)
    if q < 0:
        price += shift_price(model, books, p, a, b, bound - price)
    elif c == a:
        price += swap_price(model, books, p, a, q, b, bound - price)
    else:
        price += ejection_price(model, books, p, a, q, b, c, bound - price)
    if price <= bound:
        price += service_change(model, books, p, a, b, q, c)
        if price <= bound and not early:
            early = True
            price += books.lam[-1] * recount_both(model, books, p, a, b, q, c)
        if price <= bound:
            carry(model, books, p, a, b, q, c)
            return True
    if early:
        recount_back(model, books, p, a, b, q, c)
    return False


@njit(cache=True, nogil=True, _nrt=False)
def note_best(books: Books) -> None:
    """Keep `place` if it breaks nothing and is the cheapest so far."""
    if books.sums[OVER] == 0 and books.sums[BROKEN] == 0 and books.sums[COST] < books.sums[BEST]:
        keep_best(books)


@njit(cache=True, nogil=True, _nrt=False)
def force(model: Model, books: Books, p: int, b: int) -> None:
    """Take p to b, whatever it costs."""
    a = books.place[p]
    recount_both(model, books, p, a, b, -1, 0)
    carry(model, books, p, a, b, -1, 0)


@njit(cache=True, nogil=True, _nrt=False)
def worth(model: Model, books: Books) -> float:
    """All costs, fines and prices of broken rules."""
    total = books.sums[COST] + books.lam[-1] * books.sums[BROKEN]
    for m in range(len(model.capacity)):
        total += books.fine[m]
    return total


@njit(cache=True, nogil=True, _nrt=False)
def dearest(model: Model, books: Books) -> int:
    """Of some processes drawn, the one without which its machine would save most."""
    chosen = model.free[below(books.random, len(model.free))]
    most = -1.0
    for _ in range(LOOKS):
        p = model.free[below(books.random, len(model.free))]
        if books.seen[p] != books.version[books.place[p]]:
            refresh_gain(model, books, p)
        if books.gain[p] + books.gain_fine[p] > most:
            chosen, most = p, books.gain[p] + books.gain_fine[p]
    return chosen


@njit(cache=True, nogil=True, _nrt=False)
def push(model: Model, books: Books, p: int, b: int, bound: float) -> bool:
    """Force p onto b, send away from there whatever then costs less elsewhere, and take all back if that costs more than `bound`."""
    if books.crowd[b] == books.row.shape[1]:
        return False
    before = worth(model, books)
    a = books.place[p]
    force(model, books, p, b)
    sent = 0
    for i in range(books.crowd[b] - 1, -1, -1):  # downwards: the one that takes a leaver's slot has been looked at
        q = books.row[b, i]
        if q == p:
            continue
        refresh_gain(model, books, q)
        goal = -1
        least = 0.0
        for _ in range(LOOKS):
            c = somewhere(model, books, q)
            if c >= 0 and books.crowd[c] < books.row.shape[1]:
                price = shift_price(model, books, q, b, c, least)
                if price < least:
                    goal, least = c, price
        if goal < 0:
            continue
        if least + books.lam[-1] * recount_both(model, books, q, b, goal, -1, 0) < 0.0:
            carry(model, books, q, b, goal, -1, 0)
            books.sent[sent] = q
            sent += 1
        else:
            recount_back(model, books, q, b, goal, -1, 0)
    if worth(model, books) - before <= bound:
        return True
    for i in range(sent - 1, -1, -1):
        force(model, books, books.sent[i], b)
    force(model, books, p, a)
    return False


@njit(cache=True, nogil=True, _nrt=False)
def anneal(model: Model, books: Books, steps: int, temperature: float, swaps: float, ejections: float) -> None:
    """`steps` proposals at one temperature; the two shares of swaps and ejections among them, the rest are shifts.

    Books.best is the cheapest assignment met that breaks nothing; Books.sums counts what was taken and how often nothing was broken.
    """
    for _ in range(steps):
        books.sums[FEASIBLE] += books.sums[OVER] == 0 and books.sums[BROKEN] == 0
        p = model.free[below(books.random, len(model.free))]
        b = somewhere(model, books, p)
        if b < 0:
            continue
        kind = share(books.random)
        bound = -temperature * np.log(share(books.random))
        if kind > 1.0 - PUSHES:
            p = dearest(model, books)
            b = somewhere(model, books, p)
            if b >= 0 and push(model, books, p, b, bound):
                note_best(books)
            continue
        q = -1
        c = 0
        if kind <= swaps + ejections and books.crowd[b] > 0:
            q = books.row[b, below(books.random, books.crowd[b])]
            c = books.place[p]
            if kind > swaps:
                c = somewhere(model, books, q)
                if c < 0:
                    continue
            elif not may(model, q, c):
                continue
        if propose(model, books, p, b, q, c, bound):
            note_best(books)
