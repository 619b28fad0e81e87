"""Moves of a machine reassignment with exact changes of cost, and annealing over them. All kernels release the GIL and share nothing.

Three moves. Shift: a process to another machine that could ever take it. Swap: two processes exchange machines. Ejection: a process pushes
another off its machine, which goes to a third. Capacities are not walls but prices (`lam` a unit held beyond one): big processes could
otherwise never pass each other on full machines. The prices rise and fall so that the search keeps crossing the border; only what passes
no capacity becomes `best`. Conflict, spread and dependency are walls. A move is judged against a threshold drawn first, so that most
are given up after one or two resources: what a machine pays for an arrival only grows from resource to resource.

Sources: Kirkpatrick et al. 1983 (annealing); Glover, "Tabu search", 1989 (strategic oscillation around the border of what is allowed);
Gavranovic, Buljubasic & Demirovic, "Variable neighborhood search for Google machine reassignment", ENDM 39, 2012 (the prize-winning local
search: big processes pushed in, others pushed out, only machines that could ever take a process).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit

from coordinator.placement.reassign_books import (
    BEST,
    BROKEN,
    COST,
    FEASIBLE,
    OVER,
    TAKEN,
    TOP,
    U64,
    Books,
    Model,
    bill_of,
    fine_of,
    keep_best,
    write,
)

TRIES: Final = 12  # draws of a machine for a process before the turn is given up, where pairs are too many to list


@njit(cache=True, nogil=True, _nrt=False)
def draw(state: U64) -> int:
    """The next 64 random bits, as uint64: xorshift64* (Marsaglia 2003, Vigna 2016)."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return x * np.uint64(2685821657736338717)


@njit(cache=True, nogil=True, _nrt=False)
def below(state: U64, n: int) -> int:
    """A whole number in [0, n), n < 2**31."""
    drawn: Any = np.int64(((draw(state) >> np.uint64(33)) * np.uint64(n)) >> np.uint64(31))
    return drawn


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
    """Another machine that p could ever be on; -1 = none drawn."""
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
def refresh_gain(model: Model, books: Books, p: int) -> None:
    """Take anew what its machine would save, were p to leave."""
    m = books.place[p]
    at_home = model.home[p] == m
    gain = 0
    fine = 0.0
    for r in range(len(model.weight)):
        q = model.need[p, r]
        over = books.used[m, r] - model.safe[m, r]
        if over > 0:
            gain += model.weight[r] * min(q, over)
        if not (at_home and model.transient[r]):
            over = books.held[m, r] - model.capacity[m, r]
            if over > 0:
                fine += books.lam[r] * min(q, over)
                if q >= over:
                    fine += books.lam[-1]
    for b in range(len(model.target)):
        r1, r2 = model.first[b], model.second[b]
        left, other = model.capacity[m, r1] - books.used[m, r1], model.capacity[m, r2] - books.used[m, r2]
        now = model.target[b] * left - other
        then = now + model.target[b] * model.need[p, r1] - model.need[p, r2]
        gain += model.balance_weight[b] * (max(now, 0) - max(then, 0))
    books.gain[p] = gain
    books.gain_fine[p] = fine
    books.seen[p] = books.version[m]


@njit(cache=True, nogil=True, _nrt=False)
def arrival(model: Model, books: Books, p: int, m: int, room: float) -> float:
    """Rise of bill and fine of m when p comes; stops once it passes `room`."""
    back = model.home[p] == m
    bill = 0
    fine = 0.0
    for b in range(len(model.target)):
        r1, r2 = model.first[b], model.second[b]
        left, other = model.capacity[m, r1] - books.used[m, r1], model.capacity[m, r2] - books.used[m, r2]
        now = model.target[b] * left - other
        then = now - model.target[b] * model.need[p, r1] + model.need[p, r2]
        bill += model.balance_weight[b] * (max(then, 0) - max(now, 0))
    for r in range(len(model.weight)):
        q = model.need[p, r]
        over = books.used[m, r] + q - model.safe[m, r]
        if over > 0:
            bill += model.weight[r] * min(q, over)
        if not (back and model.transient[r]):
            over = books.held[m, r] + q - model.capacity[m, r]
            if over > 0:
                fine += books.lam[r] * min(q, over)
                if over <= q:
                    fine += books.lam[-1]
        if bill + fine > room:
            break
    return bill + fine


@njit(cache=True, nogil=True, _nrt=False)
def exchange(model: Model, books: Books, p: int, q: int, m: int, room: float) -> float:
    """Bill and fine of m, in full, with q instead of p; stops once they pass `room`."""
    p_home, q_home = model.home[p] == m, model.home[q] == m
    bill = 0
    fine = 0.0
    for r in range(len(model.weight)):
        a, c = model.need[p, r], model.need[q, r]
        over = books.used[m, r] - a + c - model.safe[m, r]
        if over > 0:
            bill += model.weight[r] * over
        if model.transient[r]:
            if p_home:
                a = 0
            if q_home:
                c = 0
        over = books.held[m, r] - a + c - model.capacity[m, r]
        if over > 0:
            fine += books.lam[r] * over + books.lam[-1]
        if bill + fine > room:
            return bill + fine
    for b in range(len(model.target)):
        r1, r2 = model.first[b], model.second[b]
        left = model.capacity[m, r1] - books.used[m, r1] + model.need[p, r1] - model.need[q, r1]
        other = model.capacity[m, r2] - books.used[m, r2] + model.need[p, r2] - model.need[q, r2]
        bill += model.balance_weight[b] * max(model.target[b] * left - other, 0)
    return bill + fine


@njit(cache=True, nogil=True, _nrt=False)
def travel(model: Model, p: int, m: int) -> int:
    """Weighted process and machine move cost of p being on m."""
    home = model.home[p]
    return 0 if m == home else model.leave_cost[p] + model.distance_weight * np.int64(model.distance[home, m])


@njit(cache=True, nogil=True, _nrt=False)
def tally(model: Model, books: Books, p: int, a: int, b: int) -> None:
    """Count p as moved from a to b in its service's number of processes away from home."""
    change = (1 if b != model.home[p] else 0) - (1 if a != model.home[p] else 0)
    if change == 0:
        return
    s = model.service[p]
    now = books.moved[s]
    books.moved_count[now] -= 1
    books.moved_count[now + change] += 1
    books.moved[s] = now + change
    if now + change > books.sums[TOP] or (now == books.sums[TOP] and books.moved_count[now] == 0):
        books.sums[TOP] = now + change


@njit(cache=True, nogil=True, _nrt=False)
def recount_rules(model: Model, books: Books, p: int, a: int, b: int) -> int:
    """Take p from a to b in `place` and in all that conflict, spread and dependency look at; the change in broken rules.

    The same with a and b exchanged takes it back.
    """
    s = model.service[p]
    own = 0
    for i in range(model.member_start[s], model.member_start[s + 1]):
        q = model.member[i]
        if q != p:
            own += (books.place[q] == b) - (books.place[q] == a)
    books.place[p] = b
    old, new = model.location[a], model.location[b]
    if old != new:
        own -= max(model.spread[s] - books.locations[s], 0)
        books.at_location[s, old] -= 1
        books.locations[s] -= books.at_location[s, old] == 0
        books.locations[s] += books.at_location[s, new] == 0
        books.at_location[s, new] += 1
        own += max(model.spread[s] - books.locations[s], 0)
    books.broken[s] += own
    others = 0
    old, new = model.neighbourhood[a], model.neighbourhood[b]
    if old != new:
        books.at_neighbourhood[s, old] -= 1
        if books.at_neighbourhood[s, old] == 0:
            others -= leaning(model, books, s, old, -1)
        if books.at_neighbourhood[s, new] == 0:
            others += leaning(model, books, s, new, 1)
        books.at_neighbourhood[s, new] += 1
    return own + others


@njit(cache=True, nogil=True, _nrt=False)
def leaning(model: Model, books: Books, s: int, n: int, sign: int) -> int:
    """What service s breaks less what it mends by being in neighbourhood n, where it is counted 0 times.

    Books.broken changes by `sign` times that.
    """
    broken = 0
    for i in range(model.needs_start[s], model.needs_start[s + 1]):
        t = model.needs[i]
        if books.at_neighbourhood[t, n] == 0:
            broken += 1
            books.broken[t] += sign
            books.broken[s] += sign
    for i in range(model.needed_start[s], model.needed_start[s + 1]):
        t = model.needed[i]
        if books.at_neighbourhood[t, n] > 0:
            broken -= 1
            books.broken[t] -= sign
            books.broken[s] -= sign
    return broken


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
def service_change(model: Model, books: Books, p: int, a: int, b: int, q: int, c: int) -> int:
    """Change of the service move cost when p goes from a to b and, where q is not -1, q goes from b to c."""
    if model.service_weight == 0:
        return 0
    top = books.sums[TOP]
    tally(model, books, p, a, b)
    if q >= 0:
        tally(model, books, q, b, c)
    change = books.sums[TOP] - top
    if q >= 0:
        tally(model, books, q, c, b)
    tally(model, books, p, b, a)
    return model.service_weight * change


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
def recount_both(model: Model, books: Books, p: int, a: int, b: int, q: int, c: int) -> int:
    """recount_rules of p from a to b and, where q is not -1, of q from b to c; counted in the sum of broken rules."""
    change = recount_rules(model, books, p, a, b)
    if q >= 0:
        change += recount_rules(model, books, q, b, c)
    books.sums[BROKEN] += change
    return change


@njit(cache=True, nogil=True, _nrt=False)
def recount_back(model: Model, books: Books, p: int, a: int, b: int, q: int, c: int) -> None:
    """Undo recount_both."""
    change = recount_rules(model, books, q, c, b) if q >= 0 else 0
    books.sums[BROKEN] += change + recount_rules(model, books, p, b, a)


@njit(cache=True, nogil=True, _nrt=False)
def shift_price(model: Model, books: Books, p: int, a: int, b: int, bound: float) -> float:
    """Change of bills, fines and moves when p goes from a to b; once it is more than `bound` it may be too little."""
    fixed = travel(model, p, b) - travel(model, p, a) - books.gain[p] - books.gain_fine[p]
    return fixed + arrival(model, books, p, b, bound - fixed)


@njit(cache=True, nogil=True, _nrt=False)
def swap_price(model: Model, books: Books, p: int, a: int, q: int, b: int, bound: float) -> float:
    """Change of bills, fines and moves when p on a and q on b exchange machines; once it is more than `bound` it may be too little."""
    fixed = travel(model, p, b) - travel(model, p, a) + travel(model, q, a) - travel(model, q, b)
    fixed -= books.bill[a] + books.fine[a] + books.bill[b] + books.fine[b]
    fixed += exchange(model, books, p, q, a, bound - fixed)
    if fixed > bound:
        return fixed
    return fixed + exchange(model, books, q, p, b, bound - fixed)


@njit(cache=True, nogil=True, _nrt=False)
def ejection_price(model: Model, books: Books, p: int, a: int, q: int, b: int, c: int, bound: float) -> float:
    """Change of bills, fines and moves when p goes from a to b and q from b to c; once it is more than `bound` it may be too little."""
    fixed = travel(model, p, b) - travel(model, p, a) + travel(model, q, c) - travel(model, q, b)
    fixed -= books.gain[p] + books.gain_fine[p] + books.bill[b] + books.fine[b]
    fixed += exchange(model, books, q, p, b, bound - fixed)
    if fixed > bound:
        return fixed
    return fixed + arrival(model, books, q, c, bound - fixed)


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
def anneal(model: Model, books: Books, steps: int, hot: float, cold: float, swaps: float, ejections: float) -> None:
    """`steps` proposals while the temperature falls geometrically from `hot` to `cold`; shares of swaps and ejections among them.

    Books.best is the cheapest assignment met that breaks nothing; Books.sums counts what was taken and how often nothing was broken.
    """
    temperature = hot
    fall = (cold / hot) ** (64.0 / max(steps, 64))
    for step in range(steps):
        if step & 63 == 63:
            temperature *= fall
        books.sums[FEASIBLE] += books.sums[OVER] == 0 and books.sums[BROKEN] == 0
        p = model.free[below(books.random, len(model.free))]
        b = somewhere(model, books, p)
        if b < 0:
            continue
        kind = share(books.random)
        bound = -temperature * np.log(share(books.random))
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
        if not propose(model, books, p, b, q, c, bound):
            continue
        if books.sums[OVER] == 0 and books.sums[BROKEN] == 0 and books.sums[COST] < books.sums[BEST]:
            keep_best(books)
