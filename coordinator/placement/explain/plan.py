"""From an assignment to a plan that explains itself: moves with what each is worth, hosts to wake and empty, money and energy before and
after, bound and gap. Pure.

A plan moves nothing unless it saves more than its moves cost, by the site's margin.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from coordinator.model import F64, FleetPlacement, Move, PoolEnergy
from coordinator.placement.cost import cost_of, host_loads
from coordinator.placement.explain.books import CAUSES, Books
from coordinator.placement.fleet.fleet_problem import FleetProblem
from coordinator.placement.fleet.site import DEFAULT_SITE, Site, host_traits
from coordinator.placement.problem import I32, NOWHERE, Problem
from shared.refusal import RefusalCode

REASONS: dict[str, str] = {
    "hosts": "host costs",
    "overload": "overload",
    "kinds": "risk of interruption and NUMA nodes",
    "unplaced": "a host that is to be emptied",
    "broken": "rules and hard limits",
}


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A plan with the problem and the assignment behind it; None where it never came to one.

    solved and answer are what the engine was given and what it said: solving `solved` again with the plan's seed and effort gives `answer`
    bit for bit, unless the plan was cut. `place` is what became of it: the answer, or that everything stays.
    """

    plan: FleetPlacement
    fleet: FleetProblem | None = None
    place: I32 | None = None
    solved: Problem | None = None
    answer: I32 | None = None
    site: Site = DEFAULT_SITE


def hold(issued_s: int, code: RefusalCode, detail: str, *, wall_ms: float = 0.0) -> Placed:
    """Everything stays where it is, and why."""
    return Placed(plan=FleetPlacement(issued_s=issued_s, status="hold", code=code, detail=detail, wall_ms=wall_ms))


def breakdown(fleet: FleetProblem, place: I32) -> dict[str, float]:
    """Money by cause, what passing energy budgets costs among them."""
    return asdict(cost_of(fleet.problem, place)) | {"energy_budget": float(budget_money(fleet, place).sum())}


def budget_money(fleet: FleetProblem, place: I32) -> F64:
    """Money [pool] of passing budgets: priced ones by their price, hard ones as a hard limit that is passed by its whole size."""
    kwh, budget = fleet.kwh(place), fleet.budget_kwh
    over = np.where(np.isfinite(budget), np.maximum(kwh - budget, 0.0), 0.0)
    share = over / np.where(np.isfinite(budget), np.maximum(budget, 1e-9), 1.0)
    return np.where(np.array(fleet.budget_hard), fleet.problem.broken_price * share, fleet.over_price * over)


def worth_it(before: dict[str, float], after: dict[str, float], margin: float) -> bool:
    """Whether the moves save more than they cost, by the margin."""
    gain = sum(before.values()) - (sum(after.values()) - after["moves"])
    return gain > after["moves"] * (1.0 + margin) + 1e-9


def make_plan(fleet: FleetProblem, place: I32, site: Site, *, status: str, bound: float, **told: object) -> FleetPlacement:
    """The plan of an assignment. `told`: engine, seed, effort, cut, digest of the search."""
    problem = fleet.problem
    before, after = breakdown(fleet, problem.home), breakdown(fleet, place)
    used_before, used_after = (np.bincount(p[p != NOWHERE], minlength=len(problem.host_ids)) > 0 for p in (problem.home, place))
    total = sum(after.values())
    known = np.isfinite(bound)
    bound = min(bound, total) if known else np.nan
    host_ids = np.array(problem.host_ids, object)
    empty = host_ids[used_before & ~used_after]
    asleep = problem.wake_cost > 0
    return FleetPlacement(
        issued_s=fleet.issued_s,
        status=status,
        code=RefusalCode.NO_BENEFICIAL_MOVE if status == "no_beneficial_move" else None,
        moves=list_moves(fleet, place),
        wake=tuple(host_ids[asleep & used_after & ~used_before]),
        empty=tuple(empty),
        sleep=tuple(h for h in host_ids[~used_after & ~asleep & ~problem.closed] if host_traits(site, h).sleep),
        before=before,
        after=after,
        saving=sum(before.values()) - total,
        bound=float(bound) if known else None,
        gap=float((total - bound) / total) if known and total > 0 else None,
        hosts_before=int(used_before.sum()),
        hosts_after=int(used_after.sum()),
        energy=energy_report(fleet, place),
        notes=(*fleet.notes, *budget_notes(fleet, place)),
        left_out=fleet.left_out,
        **told,  # type: ignore[arg-type]  # each has its own type
    )


def list_moves(fleet: FleetProblem, place: I32) -> tuple[Move, ...]:
    """Moves with what taking each back alone would cost (all others made), the most worthwhile first."""
    problem = fleet.problem
    moved = np.flatnonzero(place != problem.home)
    if not len(moved):
        return ()
    books = Books(problem, place)
    used = np.bincount(place[place != NOWHERE], minlength=len(problem.host_ids)) > 0
    short = shortages(problem, problem.home)
    back = np.zeros((len(moved), len(CAUSES)))
    housed = (problem.home[moved] != NOWHERE) & (place[moved] != NOWHERE)
    back[housed] = books.back_money(moved[housed])
    moves = []
    for i, v in enumerate(moved.tolist()):
        home = int(problem.home[v])
        if home == NOWHERE:
            worth, why = float(problem.unplaced_cost[v]), "it runs nowhere"
        else:
            worth = float(back[i].sum()) + float(problem.move_cost[v])
            why = move_reason(fleet, v, home, money=back[i], used=bool(used[home]), short=int(short[home]))
        source = "" if home == NOWHERE else problem.host_ids[home]
        target = "" if place[v] == NOWHERE else problem.host_ids[place[v]]
        moves.append(Move(vm_id=problem.vm_ids[v], from_host=source, to_host=target, gain=worth, cost=float(problem.move_cost[v]), why=why))
    return tuple(sorted(moves, key=lambda move: (move.cost - move.gain, move.vm_id)))


def move_reason(fleet: FleetProblem, v: int, home: int, *, money: F64, used: bool, short: int) -> str:
    """In words, what the move is for. money [cause] of taking it back."""
    problem = fleet.problem
    name = problem.host_ids[home]
    took = f"about {fleet.seconds[v]:.0f} s to migrate"
    if problem.closed[home]:
        return f"{name} is to be emptied; {took}"
    if short >= 0:
        return f"{name} would run short of {cell_name(fleet, short)}; {took}"
    if not used:
        return f"helps to empty {name}; {took}"
    worst = max((cause for cause in REASONS), key=lambda cause: money[CAUSES.index(cause)])
    return f"saves {REASONS[worst]}; {took}"


def shortages(problem: Problem, place: I32) -> I32:
    """The cell that each host runs shortest of, [h]; -1 = of none."""
    load, _ = host_loads(problem, place)
    over = load / np.maximum(problem.capacity, 1e-12) - 1.0
    worst = over.argmax(axis=1)
    found = np.where(over[np.arange(len(over)), worst] > 1e-6, worst, -1)
    return found.astype(np.int32)


def cell_name(fleet: FleetProblem, c: int) -> str:
    """A cell in words: "CPU at 14:10 UTC", "promised memory"."""
    cell = fleet.cells[c]
    name = RESOURCE_WORDS[cell.resource]
    if cell.promise:
        return f"promised {name}"
    return name if cell.bucket < 0 else f"{name} at {clock(fleet.issued_s + 300 * cell.bucket)}"


RESOURCE_WORDS = ("CPU", "memory", "disk", "network in", "network out")


def clock(time_s: int) -> str:
    """Time of day in UTC."""
    return f"{time_s // 3600 % 24:02d}:{time_s // 60 % 60:02d} UTC"


def energy_report(fleet: FleetProblem, place: I32) -> tuple[PoolEnergy, ...]:
    """Energy and money by pool, before and after."""
    problem = fleet.problem
    kwh = [fleet.kwh(p) for p in (problem.home, place)]
    money = []
    for p in (problem.home, place):
        used = np.bincount(p[p != NOWHERE], minlength=len(problem.host_ids)) > 0
        fixed = np.where(used, fleet.price, fleet.empty_price)
        money.append(np.bincount(fleet.pool, weights=fixed, minlength=len(fleet.pools)))
    per_kwh = np.zeros(len(fleet.pools))
    per_kwh[fleet.pool] = fleet.energy_price
    return tuple(
        PoolEnergy(
            pool=name,
            hosts=int((fleet.pool == i).sum()),
            kwh_before=float(kwh[0][i]),
            kwh_after=float(kwh[1][i]),
            budget_kwh=float(fleet.budget_kwh[i]) if np.isfinite(fleet.budget_kwh[i]) else None,
            hard=fleet.budget_hard[i],
            price_before=float(money[0][i] + kwh[0][i] * per_kwh[i]),
            price_after=float(money[1][i] + kwh[1][i] * per_kwh[i]),
        )
        for i, name in enumerate(fleet.pools)
    )


def budget_notes(fleet: FleetProblem, place: I32) -> tuple[str, ...]:
    """Budgets that the plan does not keep."""
    kwh = fleet.kwh(place)
    return tuple(
        f"pool {name!r} takes {kwh[i]:.2f} kWh in the hour, {kwh[i] - fleet.budget_kwh[i]:.2f} more than its budget"
        for i, name in enumerate(fleet.pools)
        if kwh[i] > fleet.budget_kwh[i] * (1.0 + 1e-9)
    )
