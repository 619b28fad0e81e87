"""What became of VMs through the HTTP API: the hosts that each was with, and the steps of plans. Reads only."""

from __future__ import annotations

from typing import Annotated, Final

from litestar import get
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter

from coordinator.service import problems
from coordinator.service.problems import present
from coordinator.service.view import BOUNDS, Problem
from coordinator.service.vm_past import PlannedStep, VmHostStay, VmPastView
from shared.refusal import RefusalCode

_LOW, _HIGH = BOUNDS["limit"]
_ID: Final = r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$"
Id = Annotated[str, PathParameter(min_length=1, max_length=128, pattern=_ID)]
AskedId = Annotated[str | None, QueryParameter(min_length=1, max_length=128, pattern=_ID)]
Limit = Annotated[int, QueryParameter(ge=_LOW, le=_HIGH, description="At most so many")]


def _problem(description: str) -> ResponseSpec:
    return ResponseSpec(Problem, description=description, media_type=problems.PROBLEM_JSON, generate_examples=False)


_REFUSED: Final = {400: _problem("invalid_value: field, value and allowed"), 503: _problem("store_unavailable: the registry is away")}


@get("/vms/{vm_id:str}/hosts", responses=_REFUSED | {404: _problem("no such VM was ever seen")})
async def vm_hosts(state: State, vm_id: Id, limit: Limit = 100) -> list[VmHostStay]:
    """Which host the VM was with, from when to when, newest first; also of a VM that is gone."""
    found = list(await _view(state).vm_hosts(vm_id, limit))
    return present(found or None, RefusalCode.UNKNOWN_VM, "vm_id", vm_id, "a VM that was seen within the time that the registry keeps")


@get("/steps", responses=_REFUSED)
async def steps(state: State, limit: Limit = 50, vm: AskedId = None) -> list[PlannedStep]:
    """Steps of plans that were sent, newest first."""
    return list(await _view(state).steps(limit, vm))


VM_PAST_READS: Final = (vm_hosts, steps)


def _view(state: State) -> VmPastView:
    view: VmPastView = state["view"]
    return view
