"""What a move does to conflict, spread and dependency, and to the largest number of moved processes of a service.

Broken rules are counted, not forbidden: pairs of one service on a machine, locations that a service lacks, and dependencies of a service
in a neighbourhood where the other has no process. Each has a price (Books.lam), and `Books.broken` says which services break any.
"""

from __future__ import annotations

from numba import njit

from coordinator.placement.reassign.books import BROKEN, TOP, Books, Model


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
