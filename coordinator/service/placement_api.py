"""The placement's part of the HTTP API: the newest plan, read per host and per VM, and why a VM is not elsewhere. Reads only."""

from __future__ import annotations

from typing import Annotated, Final

from litestar import get
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter

from coordinator.placement.explain.readings import HostAhead
from coordinator.placement.explain.why_not import WhyNot
from coordinator.service import problems
from coordinator.service.own_view import seen
from coordinator.service.placing import HostPlacement, PlacementView, PlacingView, VmPlacement
from coordinator.service.problems import present
from coordinator.service.view import BOUNDS, Problem
from shared.refusal import RefusalCode

_LOW, _HIGH = BOUNDS["limit"]
Id = Annotated[str, PathParameter(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$")]
AskedId = Annotated[str, QueryParameter(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$")]
Limit = Annotated[int, QueryParameter(ge=_LOW, le=_HIGH, description="At most so many")]
_MISSING: Final = {
    400: ResponseSpec(
        Problem, description="invalid_value: field, value and allowed", media_type=problems.PROBLEM_JSON, generate_examples=False
    ),
    404: ResponseSpec(
        Problem, description="the newest plan knows no such VM or host", media_type=problems.PROBLEM_JSON, generate_examples=False
    ),
}


@get("/placement", sync_to_thread=False)
def placement(state: State) -> PlacementView:
    """The newest placement: moves, hosts to wake and empty, money and energy before and after, bound and gap, or why all is held."""
    return _view(state).placement()


@get("/placement/hosts", responses=_MISSING)
async def placement_hosts(state: State, limit: Limit = 100) -> list[HostAhead]:
    """Hosts as they are and as the plan leaves them, over 12 buckets; those that change first."""
    return list(await _view(state).placement_hosts(limit))


@get("/placement/hosts/{host_id:str}", responses=_MISSING)
async def placement_host(state: State, host_id: Id) -> HostPlacement:
    """One host in the plan, and what each client and application takes of it."""
    found = await _view(state).placement_host(host_id)
    return present(found, RefusalCode.HOST_UNKNOWN_STATE, "host_id", host_id, "a host of the newest plan, /api/v1/placement/hosts")


@get("/placement/vms/{vm_id:str}", responses=_MISSING)
async def placement_vm(state: State, vm_id: Id) -> VmPlacement:
    """One VM in the plan: where it goes and why, and its next best hosts."""
    found = await _view(state).placement_vm(vm_id)
    return present(found, RefusalCode.UNKNOWN_VM, "vm_id", vm_id, "a VM of the newest plan")


@get("/placement/why-not", responses=_MISSING)
async def why_not(state: State, vm: AskedId, host: AskedId) -> WhyNot:
    """Why the plan does not have this VM on this host: what binds, and the smallest change that would flip it."""
    found = await _view(state).why_not(vm, host)
    return present(found, RefusalCode.UNKNOWN_VM, "vm, host", f"{vm}, {host}", "a VM and a host of the newest plan")


PLACEMENT_READS: Final = (placement, placement_hosts, placement_host, placement_vm, why_not)


def _view(state: State) -> PlacingView:
    return seen(state["view"])
