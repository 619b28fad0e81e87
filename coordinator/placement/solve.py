"""The public door of placement: a question about the whole fleet in, a checked plan out. Pure but for the clock of its deadline.

Build the problem, let the engine search, hold energy budgets by raising the price of energy where they are passed, keep the answer only if
it saves more than its moves cost, have the independent checker look at it. Whatever is wrong with the inputs becomes a plan that holds
everything where it is and says why: a placement that cannot be made is no reason for the coordinator to stop.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from coordinator.model import F64, FleetPlacement
from coordinator.placement.check import Inputs, check_plan
from coordinator.placement.cost import cost_of
from coordinator.placement.engines import engine_named
from coordinator.placement.exact.bounds import lower_bound
from coordinator.placement.explain.plan import Placed, breakdown, budget_money, hold, make_plan, worth_it
from coordinator.placement.explain.receipts import digest_of
from coordinator.placement.fleet.build import build_fleet
from coordinator.placement.fleet.fleet_problem import FleetProblem, PlacementRequest
from coordinator.placement.problem import I32, Engine, Problem, Solution
from shared.errors import ConfigError, Refusal
from shared.refusal import RefusalCode

BOUND_S: Final = 2.0  # of the deadline that a bound may take where the engine brought none
BUDGET_ROUNDS: Final = 4  # raises of the price of energy before a hard budget is given up on
LEAST_PRICE: Final = 0.1  # money a kWh that a hard budget's price begins at where energy is free


@dataclass(frozen=True, kw_only=True)
class Search:
    """The best found, its problem as it was priced then, and whether any round was cut."""

    solution: Solution
    problem: Problem
    bound: float  # no assignment costs less, energy at its own price; -inf = not known
    cut: bool


def place_fleet(request: PlacementRequest, engine: Engine | None = None) -> Placed:
    """The plan for a fleet. Never raises for what the inputs say, nor for what an engine does. `engine`: in place of the one asked for."""
    begun = time.monotonic()
    issued_s = request.forecast.issued_s
    try:
        chosen = engine or engine_named(request.engine)
        fleet = build_fleet(request)
    except Refusal as refusal:
        return hold(issued_s, refusal.code, refusal.detail, wall_ms=1000.0 * (time.monotonic() - begun))
    except ConfigError as error:
        return hold(issued_s, RefusalCode.INVALID_VALUE, str(error), wall_ms=1000.0 * (time.monotonic() - begun))
    try:
        found = search(fleet, request, chosen, begun + request.deadline_s)
    except Exception as error:  # noqa: BLE001  # whatever a solver dies of, the fleet stays as it is and the coordinator goes on
        return hold(issued_s, RefusalCode.SOLVER_LOST, f"{type(error).__name__}: {error}", wall_ms=1000.0 * (time.monotonic() - begun))
    plan, place = judge(fleet, request, found)
    plan = replace(plan, wall_ms=1000.0 * (time.monotonic() - begun))
    return Placed(plan=plan, fleet=fleet, place=place, solved=found.problem, answer=found.solution.place, site=request.site)


def replay(problem: Problem, plan: FleetPlacement, answer: I32) -> str:
    """Solve a receipt again: "" = bit for bit the same answer, else what differs. Raises ConfigError for an engine that is none."""
    if digest_of(problem) != plan.digest:
        return f"the stored problem has digest {digest_of(problem)[:12]}, the plan {plan.digest[:12]}"
    again = engine_named(plan.engine)(problem, seed=plan.seed, effort=plan.effort, deadline_s=float("inf"))
    differ = int((again.place != answer).sum())
    if not differ:
        return ""
    return f"{differ} of {len(answer)} VMs elsewhere" + (": the plan's search was cut by its deadline" if plan.cut else "")


def search(fleet: FleetProblem, request: PlacementRequest, engine: Engine, until: float) -> Search:
    """The engine's answer, within energy budgets as far as dearer energy brings it there."""
    extra = np.zeros(len(fleet.pools))
    tried: list[tuple[float, Search]] = []
    per_kwh = np.zeros(len(fleet.pools))
    per_kwh[fleet.pool] = fleet.energy_price
    for turn in range(BUDGET_ROUNDS):
        problem = fleet.priced(extra)
        left = max(0.05, (until - time.monotonic()) * (0.7 if turn == 0 and np.isfinite(fleet.budget_kwh).any() else 1.0))
        solution = engine(problem, seed=request.seed, effort=request.effort, deadline_s=left)
        money = cost_of(fleet.problem, solution.place).total + float(budget_money(fleet, solution.place).sum())
        tried.append((money, Search(solution=solution, problem=problem, bound=solution.bound, cut=solution.cut)))
        raised = dearer(fleet, solution.place, extra, per_kwh)
        if (raised == extra).all() or time.monotonic() > until:
            break
        extra = raised
    _, best = min(tried, key=lambda each: each[0])
    # a bound of a problem with dearer energy bounds that one alone; what passing budgets costs comes on top of any
    bound = best.solution.bound if (best.problem.curve == fleet.problem.curve).all() else -np.inf
    if not np.isfinite(bound):
        bound = bound_of(fleet.problem, min(BOUND_S, max(0.0, until - time.monotonic())))
    return Search(solution=best.solution, problem=best.problem, bound=bound, cut=any(each.cut for _, each in tried))


def bound_of(problem: Problem, seconds: float) -> float:
    """What no assignment costs less than; -inf where that cannot be told, which is no reason to lose a plan."""
    try:
        return lower_bound(problem, deadline_s=seconds).value
    except Exception:  # noqa: BLE001  # as of an engine: whatever a linear solver dies of
        return -np.inf


def dearer(fleet: FleetProblem, place: I32, extra: F64, per_kwh: F64) -> F64:
    """The next price on top of each kWh [pool]: of priced budgets their own, of hard ones four times more each time."""
    over = fleet.kwh(place) > fleet.budget_kwh * (1.0 + 1e-9)
    hard = np.array(fleet.budget_hard)
    priced = np.where(over & ~hard, np.maximum(extra, fleet.over_price), extra)
    base = np.maximum(per_kwh, LEAST_PRICE)
    return np.asarray(np.where(over & hard, 3.0 * (base + extra) + extra, priced))


def judge(fleet: FleetProblem, request: PlacementRequest, found: Search) -> tuple[FleetPlacement, I32]:
    """(the plan, the assignment it stands for): the engine's answer, or that everything stays."""
    home, site, solution = fleet.problem.home, request.site, found.solution
    told = {"engine": solution.engine, "seed": request.seed, "effort": request.effort, "cut": found.cut, "digest": digest_of(found.problem)}
    bound = found.bound
    before, after = breakdown(fleet, home), breakdown(fleet, solution.place)
    if (solution.place == home).all() or not worth_it(before, after, site.moving.margin):
        return make_plan(fleet, home, site, status="no_beneficial_move", bound=bound, **told), home
    plan = make_plan(fleet, solution.place, site, status="optimal" if solution.optimal else "feasible", bound=bound, **told)
    given = Inputs(
        hosts=request.hosts, forecast=request.forecast, site=site, together=request.together, asleep=request.asleep,
        forbidden=request.forbidden, cooling=request.cooling, z=request.z,
    )  # fmt: skip
    faults = check_plan(given, plan.moves, before, after)
    if not faults:
        return plan, solution.place
    stay = make_plan(fleet, home, site, status="hold", bound=bound, **told)
    detail = f"{len(faults)} faults in {len(plan.moves)} moves: {'; '.join(faults[:5])}"
    return replace(stay, code=RefusalCode.PLAN_REFUSED, detail=detail), home
