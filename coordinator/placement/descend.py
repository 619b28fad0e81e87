"""A quick first answer: steepest descent from what is, by single moves and, when none helps, by swaps. Pure and deterministic.

It warm-starts the exact solver, and is the answer where that finds nothing better in its time. Loads are kept per tier and host and
changed in place, so one look at all targets of one VM is a handful of array operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coordinator.placement.instance import I64, Instance, keeps_promises, loads

MAX_MOVES = 1000  # far more than any shard needs; ends the loop whatever happens


@dataclass
class Books:
    """The assignment being improved and its sums, changed together by `relocate` only."""

    place: I64  # [v]
    total: I64  # [t, h, b, d] loads
    granted: I64  # [h, g] promises


def descend(instance: Instance) -> I64:
    """An assignment [v] that costs no more than the incumbent and that no single move improves."""
    books = open_books(instance)
    for _ in range(MAX_MOVES):
        v, h, gain = best_move(instance, books)
        if gain > 0:
            relocate(instance, books, v, h)
            continue
        pair = best_swap(instance, books)
        if pair is None:
            break
        v, w = pair
        here, there = int(books.place[v]), int(books.place[w])
        relocate(instance, books, v, there)
        relocate(instance, books, w, here)
    return books.place


def open_books(instance: Instance) -> Books:
    """Books of the incumbent."""
    granted = np.zeros_like(instance.commit)
    np.add.at(granted, instance.home, instance.grant)
    return Books(place=instance.home.copy(), total=loads(instance, instance.home), granted=granted)


def relocate(instance: Instance, books: Books, v: int, h: int) -> None:
    """Move one VM in all books."""
    own = spread(instance, v)
    books.total[:, books.place[v]] -= own
    books.total[:, h] += own
    books.granted[books.place[v]] -= instance.grant[v]
    books.granted[h] += instance.grant[v]
    books.place[v] = h


def spread(instance: Instance, v: int) -> I64:
    """One VM's load by tier [t, b, d]; 0 in tiers that it is no member of."""
    found: I64 = instance.tier[:, v, None, None] * instance.load[v]
    return found


def weighed(instance: Instance, total: I64) -> I64:
    """Weighted overload [n] of loads less rooms [t, n, b, d]."""
    found: I64 = np.tensordot(np.array(instance.tier_weight), np.maximum(total, 0).sum(axis=(2, 3)), axes=1)
    return found


def best_move(instance: Instance, books: Books) -> tuple[int, int, int]:
    """(VM, host, gain) of the single move that saves most; gain 0 = none."""
    place, total, granted = books.place, books.total, books.granted
    now = weighed(instance, total - instance.room)
    best = (0, 0, 0)
    for v in instance.movable:
        own, here = spread(instance, v), int(place[v])
        left = weighed(instance, total[:, [here]] - own[:, None] - instance.room[[here]])[0]
        joined = weighed(instance, total + own[:, None] - instance.room)
        fits = (granted + instance.grant[v] <= instance.commit).all(axis=1)
        fits[here] = False
        away = np.arange(len(now)) != instance.home[v]
        paid = instance.move_cost[v] * (away.astype(np.int64) - int(here != instance.home[v]))
        gain = np.where(fits, (now[here] - left) + (now - joined) - paid, 0)
        h = int(np.argmax(gain))
        if gain[h] > best[2]:
            best = (v, h, int(gain[h]))
    return best


def best_swap(instance: Instance, books: Books) -> tuple[int, int] | None:
    """The first found pair on two hosts, one of them overloaded, whose exchange saves most for its first VM; None = no swap helps."""
    place, total = books.place, books.total
    now = weighed(instance, total - instance.room)
    movable = np.array(instance.movable, np.int64)
    for v in movable[np.argsort(-now[place[movable]], kind="stable")]:
        here = int(place[v])
        if now[here] == 0:
            return None
        others = movable[place[movable] != here]
        if not len(others):
            return None
        theirs = instance.tier[:, others, None, None] * instance.load[others]
        mine = spread(instance, int(v))[:, None]
        at = place[others]
        after_here = weighed(instance, total[:, [here]] - mine + theirs - instance.room[[here]])
        after_there = weighed(instance, total[:, at] + mine - theirs - instance.room[at])
        paid = away(instance, int(v), at) + away(instance, others, here) - away(instance, int(v), here) - away(instance, others, at)
        gain = now[here] + now[at] - after_here - after_there - paid
        for i in np.argsort(-gain, kind="stable"):
            if gain[i] <= 0:
                break
            trial = place.copy()
            trial[v], trial[others[i]] = at[i], here
            if keeps_promises(instance, trial):
                return int(v), int(others[i])
    return None


def away(instance: Instance, v: int | I64, h: int | I64) -> I64:
    """Move cost of VM(s) at host(s): 0 at home."""
    found: I64 = instance.move_cost[v] * (instance.home[v] != h)
    return found
