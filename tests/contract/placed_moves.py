"""A placement's answer of given moves in the fleet's own problem, for tests of what becomes of them."""

from __future__ import annotations

from coordinator.placement.explain.plan import Placed, hold, make_plan
from coordinator.placement.fleet.build import build_fleet
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from shared.errors import Refusal


def placed(request: PlacementRequest, *moves: tuple[str, str, str]) -> Placed:
    """(VM, from, to) each; ValueError for a VM that is elsewhere or a host that the problem lacks. Holds as place_fleet does."""
    try:
        fleet = build_fleet(request)
    except Refusal as refusal:
        return hold(request.forecast.issued_s, refusal.code, refusal.detail)
    problem, place = fleet.problem, fleet.problem.home.copy()
    for vm_id, source, target in moves:
        v = problem.vm_ids.index(vm_id)
        if problem.host_ids[place[v]] != source:
            raise ValueError(f"{vm_id} is on {problem.host_ids[place[v]]}, not on {source}")
        place[v] = problem.host_ids.index(target)
    plan = make_plan(fleet, place, request.site, status="feasible" if moves else "no_beneficial_move", bound=float("nan"))
    return Placed(plan=plan, fleet=fleet, place=place, solved=problem, answer=place, site=request.site)
