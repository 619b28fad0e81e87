"""The running coordinator's newest placement as the HTTP layer sees it: implements coordinator.service.placing.PlacingView."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from coordinator.cycle import DecisionCycle
from coordinator.placement.plan import Placed
from coordinator.placement.readings import HostAhead, hosts_ahead, parts_ahead, vm_ahead
from coordinator.placement.why_not import WhyNot, why, why_not
from coordinator.service.placing import HostPlacement, MoveAdvice, PlacementView, VmPlacement, advice_of
from shared.units import NS_PER_S


class Placing(Protocol):
    """What is asked of the process around it."""

    cycle: DecisionCycle
    placed_ns: int | None


class LivePlacing:
    """Explanations are worked out in a thread: seconds for a large fleet's books must not hold up the loop."""

    def __init__(self, running: Placing) -> None:
        self._placing = running

    def moves(self) -> MoveAdvice:
        placed = self._placing.cycle.placed
        return advice_of(self._solved_s(), None if placed is None else placed.plan)

    def placement(self) -> PlacementView:
        placed = self._placing.cycle.placed
        return PlacementView(solved_s=self._solved_s(), plan=None if placed is None else placed.plan)

    def placement_hosts(self, limit: int) -> Sequence[HostAhead]:
        placed = self._placing.cycle.placed
        return () if placed is None else hosts_ahead(placed, limit=limit)

    def placement_host(self, host_id: str) -> HostPlacement | None:
        placed = self._placing.cycle.placed
        found = () if placed is None else hosts_ahead(placed, (host_id,))
        return HostPlacement(ahead=found[0], parts=parts_ahead(placed, host_id)) if placed is not None and found else None

    async def placement_vm(self, vm_id: str) -> VmPlacement | None:
        placed = self._placing.cycle.placed
        return None if placed is None else await asyncio.get_running_loop().run_in_executor(None, _vm, placed, vm_id)

    async def why_not(self, vm_id: str, host_id: str) -> WhyNot | None:
        placed = self._placing.cycle.placed
        return None if placed is None else await asyncio.get_running_loop().run_in_executor(None, why_not, placed, vm_id, host_id)

    def _solved_s(self) -> float | None:
        solved = self._placing.placed_ns
        return None if solved is None else solved / NS_PER_S


def _vm(placed: Placed, vm_id: str) -> VmPlacement | None:
    ahead, reason = vm_ahead(placed, vm_id), why(placed, vm_id)
    return None if ahead is None or reason is None else VmPlacement(ahead=ahead, why=reason)
