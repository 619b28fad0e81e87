"""The operations' part of the HTTP API: what became of orders to single VMs. Reads only."""

from __future__ import annotations

from typing import Annotated, Final

from litestar import get
from litestar.datastructures import State
from litestar.params import PathParameter, QueryParameter

from coordinator.service.answered import refused
from coordinator.service.operations import Operation, OperationPage
from coordinator.service.own_view import seen
from coordinator.service.problems import present
from coordinator.service.view import BOUNDS
from shared.refusal import RefusalCode

_LOW, _HIGH = BOUNDS["limit"]
OperationId = Annotated[str, PathParameter(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$")]
Limit = Annotated[int, QueryParameter(ge=_LOW, le=_HIGH, description="At most so many")]
AskedVm = Annotated[str | None, QueryParameter(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$")]


@get("/operations", responses=refused(s400="invalid_value: field, value and allowed"))
async def operations(state: State, limit: Limit = 50, vm: AskedVm = None) -> OperationPage:
    """Orders to VMs, newest first, and how far their steps are."""
    return OperationPage(items=tuple(await seen(state["view"]).operations(limit, None if vm is None else (vm,))))


@get("/operations/{operation_id:str}", responses=refused(s400="invalid_value: field, value and allowed", s404="no such operation"))
async def operation(state: State, operation_id: OperationId) -> Operation:
    """One order: pending, running, succeeded, failed or partly, with the host's answer to each step."""
    found = await seen(state["view"]).operation(operation_id)
    return present(found, RefusalCode.INVALID_VALUE, "operation_id", operation_id, "an id of /api/v1/operations; old ones are pruned")


OPERATIONS_READS: Final = (operations, operation)
