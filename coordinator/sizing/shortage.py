"""Who goes short when a host cannot hold what its VMs want: a linear program, solved exactly (OR-Tools GLOP).

A cell is one resource of one host at one time. In a cell every VM has a demand of which quantiles are known; what it gets, x, costs
`weight * E[(demand - x)+]`: money a minute, by priority. Between two quantiles that is linear with the mean of the two chances of a higher
demand as its slope, so it is convex and piecewise linear, and the program is

    minimise  sum over cells and VMs of weight * (expected unmet demand)     subject to
    least <= x <= most,   sum of x <= room,   sum of what may not be called back at once <= firm_room   (the pool of critical VMs)

with one variable per VM and segment between two breakpoints. Floors come first: a cell whose floors alone pass its room shares the room
out among the floors, by weight, and nothing above a floor is given. The dual of `sum of x <= room` is the shadow price of the resource:
what one unit more would save a minute, now.
Built from arrays; all cells of a host are one program (block diagonal). 0.2 ms for 12 VMs, 0.6 ms for 50, one cell.
Invariants: least <= x <= most; nothing above a floor before every floor; rooms are kept unless `least` alone passes them; raising one
client's weights never raises that client's expected unmet demand (whatever the solver does with ties: add the two optimality conditions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ortools.linear_solver.python import model_builder_helper as solver
from scipy.sparse import csr_matrix

from coordinator.model import F64

Bool = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Wants of v VMs on one resource at one time. Units of the resource; weight in money a minute per unit missing."""

    least: F64  # [v] cannot be taken now
    floor: F64  # [v] least <= floor <= most: what everybody gets before anybody gets more
    most: F64  # [v] what there is to give
    size: F64  # [v, k] demand quantiles, rising along k
    exceed: F64  # [v, k] chance of a higher demand, falling along k
    weight: F64  # [v] > 0
    room: float  # for all of them
    firm_share: F64 | None = None  # [v] share of a size that cannot be called back in one step (at least the floor); NaN = not in the sum
    firm_room: float = np.inf  # for the firm parts in sum


@dataclass(frozen=True, kw_only=True)
class Relief:
    """The answer for one cell."""

    grant: F64  # [v]
    unmet: F64  # [v] expected units short
    penalty: float  # money a minute
    price: float  # money a minute that one unit more of room would save
    firm_price: float  # the same of the room for what is firm
    saves: float = 0.0  # money a minute that `more` room would save


def relieve(cells: Sequence[Cell], more: float = 0.0) -> tuple[Relief, ...]:
    """The cheapest shortage in every cell, and what `more` room in each would save. All cells know the same number of quantiles.

    Raises ValueError when the program is not solved, which its form rules out.
    """
    if not cells:
        return ()
    shrunk = [floors_first(cell) for cell in cells]
    joined = join(shrunk)
    place = np.repeat(np.arange(len(cells)), [len(cell.least) for cell in cells])  # cell of every VM
    part = segments(joined)
    used, duals = solve(shrunk, part, place[part.owner])
    grant = np.clip(joined.least + np.bincount(part.owner, used, len(place)), joined.least, joined.most)
    unmet = unmet_at(join(cells), grant)
    answers = []
    for i, cell in enumerate(cells):
        mine, own = place == i, place[part.owner] == i
        answers.append(
            Relief(
                grant=grant[mine],
                unmet=unmet[mine],
                penalty=float(unmet[mine] @ cell.weight),
                price=max(0.0, -float(duals[2 * i])),
                firm_price=max(0.0, -float(duals[2 * i + 1])),
                saves=saved((part.length - used)[own], part.slope[own], more) if more > 0.0 else 0.0,
            )
        )
    return tuple(answers)


def join(cells: Sequence[Cell]) -> Cell:
    """All VMs of all cells in one; its rooms mean nothing."""

    def column(name: str) -> F64:
        return np.concatenate([getattr(cell, name) for cell in cells])

    shares = [np.full(len(cell.least), np.nan) if cell.firm_share is None else cell.firm_share for cell in cells]
    return Cell(
        least=column("least"),
        floor=column("floor"),
        most=column("most"),
        size=column("size"),
        exceed=column("exceed"),
        weight=column("weight"),
        room=np.inf,
        firm_share=np.concatenate(shares),
    )


def saved(left: F64, slope: F64, more: float) -> float:
    """Money a minute by the segments that are worth most: exact where only one room binds."""
    order = np.argsort(-slope, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(left[order])[:-1]])
    return float(np.clip(more - before, 0.0, left[order]) @ slope[order])


def unmet_at(cell: Cell, grant: F64) -> F64:
    """Expected demand above `grant` [v], for each VM of the cell."""
    size = np.concatenate([np.zeros((len(grant), 1)), cell.size], axis=1)
    chance = np.concatenate([np.ones((len(grant), 1)), cell.exceed], axis=1)
    low = np.maximum(size[:, :-1], np.minimum(grant[:, None], size[:, 1:]))
    length, whole = size[:, 1:] - low, size[:, 1:] - size[:, :-1]
    # the chance at the cut, linear within its segment
    at = chance[:, 1:] + (chance[:, :-1] - chance[:, 1:]) * np.divide(length, whole, out=np.zeros_like(length), where=whole > 0.0)
    result: F64 = (0.5 * (at + chance[:, 1:]) * length).sum(axis=1)
    return result


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Pieces of the penalty's curves between `least` and `most`, flat: one variable of the program each."""

    owner: NDArray[np.intp]  # VM
    length: F64
    slope: F64  # money a minute that one unit saves
    firm: F64  # share of a unit that counts as firm


def floors_first(cell: Cell) -> Cell:
    """The cell from its floors up; or, where these alone pass the room, from what cannot be taken up to the floors."""
    if float(cell.floor.sum()) <= cell.room:
        return replace(cell, least=cell.floor)
    # below a floor every unit counts alike, whatever the demand
    return replace(cell, most=cell.floor, size=np.broadcast_to(cell.floor[:, None], cell.size.shape), exceed=np.ones(cell.size.shape))


def segments(cell: Cell) -> Segments:
    """Cut every VM's curve at its quantiles, its own bounds and, for those who may borrow from the pool, where borrowing begins."""
    n = len(cell.least)
    share = np.full(n, np.nan) if cell.firm_share is None else cell.firm_share
    kink = np.divide(cell.least, share, out=np.full(n, np.inf), where=share > 0.0)  # a size of which one step takes down to the floor
    top = np.maximum(cell.most, cell.size[:, -1])[:, None]
    cuts = np.sort(np.concatenate([np.minimum(cell.size, top), np.minimum(kink, cell.most)[:, None], top], axis=1), axis=1)
    cuts = np.clip(np.concatenate([cell.least[:, None], cuts], axis=1), cell.least[:, None], np.maximum(cell.least, cell.most)[:, None])
    low, high = cuts[:, :-1], cuts[:, 1:]
    middle = 0.5 * (low + high)
    slope = chance_at(cell.size, cell.exceed, middle) * cell.weight[:, None]
    firm = np.where(middle > kink[:, None], share[:, None], 0.0)
    firm = np.where(np.isnan(share)[:, None], 0.0, firm)
    owner, at = np.nonzero(high - low > 0.0)
    return Segments(owner=owner, length=(high - low)[owner, at], slope=slope[owner, at], firm=firm[owner, at])


def chance_at(size: F64, exceed: F64, wanted: F64) -> F64:
    """The chance of a demand above `wanted` [v, c]; certain at nothing, and beyond the last quantile half of what it is there."""
    size = np.concatenate([np.zeros((len(size), 1)), size], axis=1)
    exceed = np.concatenate([np.ones((len(exceed), 1)), exceed], axis=1)
    right = np.minimum((wanted[:, :, None] >= size[:, None, :]).sum(axis=2), size.shape[1] - 1)
    low, high = np.take_along_axis(size, right - 1, axis=1), np.take_along_axis(size, right, axis=1)
    before, after = np.take_along_axis(exceed, right - 1, axis=1), np.take_along_axis(exceed, right, axis=1)
    part = np.divide(wanted - low, high - low, out=np.zeros_like(wanted), where=high > low)
    return np.where(wanted > size[:, -1:], 0.5 * exceed[:, -1:], before + (after - before) * part)


def solve(cells: Sequence[Cell], part: Segments, place: NDArray[np.intp]) -> tuple[F64, F64]:
    """(length used of every segment, duals of room and firm room of every cell) in the cells' own units. `place`: cell of every segment."""
    total = len(part.owner)
    if total == 0:
        return np.zeros(0), np.zeros(2 * len(cells))
    # every cell in units of its own scale, so that bytes and millicores do not meet in one tolerance
    scale = np.array([max(1.0, float(np.abs(cell.most).max(initial=1.0))) for cell in cells])
    unit = scale[place]
    money = max(1e-12, float((part.slope * unit).max()))
    slope, length = part.slope * unit / money, part.length / unit
    firm = part.firm
    rooms = np.empty(2 * len(cells))
    for i, cell in enumerate(cells):
        rooms[2 * i] = max(0.0, cell.room - float(cell.least.sum())) / scale[i]
        rooms[2 * i + 1] = max(0.0, cell.firm_room - firm_at_least(cell)) / scale[i]
    column = np.arange(total)
    row = 2 * place
    borrowed = np.flatnonzero(firm)
    matrix = csr_matrix(
        (
            np.concatenate([np.ones(total), firm[borrowed]]),
            (np.concatenate([row, row[borrowed] + 1]), np.concatenate([column, column[borrowed]])),
        ),
        shape=(2 * len(cells), total),
    )
    model = solver.ModelBuilderHelper()
    nothing: Any = np.zeros(total)  # the stub of the call knows no array's shape
    below: Any = np.full(len(rooms), -np.inf)
    above: Any = rooms
    model.fill_model_from_sparse_data(nothing, length, -slope, below, above, matrix)
    engine = solver.ModelSolverHelper("GLOP")
    engine.solve(model)
    if engine.status() != solver.SolveStatus.OPTIMAL:
        raise ValueError(f"shortage of {len(cells)} cells, {total} segments: GLOP says {engine.status().name}")
    used = np.asarray(engine.variable_values()) * unit
    duals = np.asarray(engine.dual_values()) * money / np.repeat(scale, 2)
    return used, duals


def firm_at_least(cell: Cell) -> float:
    """What is firm of the least that everybody gets."""
    return 0.0 if cell.firm_share is None else float(cell.least[np.isfinite(cell.firm_share)].sum())
