"""Placement as the pools run it. Apart from the forecasts, whose workers need neither OR-tools nor what it imports (150 MiB)."""

from __future__ import annotations

from coordinator.placement.explain.plan import Placed
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from coordinator.placement.solve import place_fleet

__all__ = ["solve"]


def solve(request: PlacementRequest) -> Placed:
    """The plan for a fleet. Blocks for as long as the request's deadline."""
    return place_fleet(request)
