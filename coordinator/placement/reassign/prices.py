"""What a move costs, exactly: the change of bills (load and balance), of fines for what is held beyond capacities, and of process and
machine moves. Sums that can only grow stop as soon as they pass what the move may cost, the dearest resource first.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from coordinator.placement.reassign.books import Books, Model


@njit(cache=True, nogil=True, _nrt=False)
def travel(model: Model, p: int, m: int) -> int:
    """Weighted process and machine move cost of p being on m."""
    home = model.home[p]
    return 0 if m == home else model.leave_cost[p] + model.distance_weight * np.int64(model.distance[home, m])


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
                    fine += books.lam[-2]
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
                    fine += books.lam[-2]
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
            fine += books.lam[r] * over + books.lam[-2]
        if bill + fine > room:
            return bill + fine
    for b in range(len(model.target)):
        r1, r2 = model.first[b], model.second[b]
        left = model.capacity[m, r1] - books.used[m, r1] + model.need[p, r1] - model.need[q, r1]
        other = model.capacity[m, r2] - books.used[m, r2] + model.need[p, r2] - model.need[q, r2]
        bill += model.balance_weight[b] * max(model.target[b] * left - other, 0)
    return bill + fine


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
