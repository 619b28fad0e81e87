"""A placement's answer that is nothing but its moves, for tests of what becomes of them."""

from __future__ import annotations

from coordinator.model import FleetPlacement, Move
from coordinator.placement.plan import Placed


def placed(*moves: tuple[str, str, str], issued_s: int = 0) -> Placed:
    """(VM, from, to) each, worth more than it costs."""
    found = tuple(Move(vm_id=v, from_host=a, to_host=b, gain=1.0, cost=0.1, why="test") for v, a, b in moves)
    return Placed(plan=FleetPlacement(issued_s=issued_s, status="feasible" if found else "no_beneficial_move", moves=found))
