"""The running coordinator's newest placement as the HTTP layer sees it: implements coordinator.service.placing.PlacingView."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from coordinator.cycle import DecisionCycle
from coordinator.placement.explain.plan import Placed
from coordinator.placement.explain.readings import HostAhead, hosts_ahead, parts_ahead, vm_ahead
from coordinator.placement.explain.why_not import WhyNot, why, why_not
from coordinator.service.placing import HostPlacement, MoveAdvice, PlacementView, VmPlacement, advice_of
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

_T = TypeVar("_T")


class Placing(Protocol):
    """What is asked of the process around it."""

    cycle: DecisionCycle
    placed_ns: int | None


class LivePlacing:
    """Readings and explanations are worked out in a thread: a large fleet's take tenths of a second, which must not hold up the loop."""

    def __init__(self, running: Placing) -> None:
        self._placing = running

    def moves(self) -> MoveAdvice:
        placed = self._placing.cycle.placed
        return advice_of(self._solved_s(), None if placed is None else placed.plan, self._code())

    def placement(self) -> PlacementView:
        placed = self._placing.cycle.placed
        return PlacementView(solved_s=self._solved_s(), plan=None if placed is None else placed.plan, code=self._code())

    async def placement_hosts(self, limit: int) -> Sequence[HostAhead]:
        return await self._ask(hosts_ahead, None, limit) or ()

    async def placement_host(self, host_id: str) -> HostPlacement | None:
        return await self._ask(_host, host_id)

    async def placement_vm(self, vm_id: str) -> VmPlacement | None:
        return await self._ask(_vm, vm_id)

    async def why_not(self, vm_id: str, host_id: str) -> WhyNot | None:
        return await self._ask(why_not, vm_id, host_id)

    async def _ask(self, question: Callable[..., _T], *details: object) -> _T | None:
        """The newest plan's answer; None where there is no plan."""
        placed = self._placing.cycle.placed
        return None if placed is None else await asyncio.get_running_loop().run_in_executor(None, question, placed, *details)

    def _code(self) -> RefusalCode | None:
        return None if self._placing.cycle.execution.policy.execute else RefusalCode.ADVICE_ONLY

    def _solved_s(self) -> float | None:
        solved = self._placing.placed_ns
        return None if solved is None else solved / NS_PER_S


def _host(placed: Placed, host_id: str) -> HostPlacement | None:
    found = hosts_ahead(placed, (host_id,))
    return HostPlacement(ahead=found[0], parts=parts_ahead(placed, host_id)) if found else None


def _vm(placed: Placed, vm_id: str) -> VmPlacement | None:
    ahead, reason = vm_ahead(placed, vm_id), why(placed, vm_id)
    return None if ahead is None or reason is None else VmPlacement(ahead=ahead, why=reason)
