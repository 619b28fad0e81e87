"""Policies over HTTP: one each of the fleet, of clients and of VMs; what is in force for a VM and why; pools and their prices."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from litestar import Request, Response, delete, get, patch, put
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromQuery, JSONBody

from coordinator.service.problems import present
from coordinator.service.tenancy_api import (
    READ_REFUSED,
    TOKEN,
    WRITE_REFUSED,
    Cursor,
    Limit,
    PathId,
    answer,
    found_row,
    page_of,
    patched,
    record_of,
    tenancy,
)
from coordinator.service.tenancy_view import EffectivePolicy, PolicyPage, PolicyView, PoolView
from coordinator.service.versions import creates, expected, unchanged
from coordinator.tenancy.model import FLEET_POLICY, Kind, PolicySpec, Row, Spec
from shared.refusal import RefusalCode

AnyRequest = Request[Any, Any, Any]
PolicyLevel = Literal["fleet", "client", "vm"]
_CREATED: Final = {201: ResponseSpec(PolicyView, description="created", generate_examples=False)}


@get("/policies", responses=READ_REFUSED, sync_to_thread=False)
def list_policies(state: State, limit: Limit = 100, cursor: Cursor = None, level: FromQuery[PolicyLevel | None] = None) -> PolicyPage:
    """Every policy, by id: `client/ID`, `fleet`, `vm/ID`."""
    rows = [row for row in tenancy(state).book.of(Kind.POLICY).values() if level is None or row.id.partition("/")[0] == level]
    items, following = page_of(rows, limit, cursor)
    return PolicyPage(items=tuple(_view(row) for row in items), total=len(rows), next_cursor=following)


@get("/policies/fleet", responses=READ_REFUSED, sync_to_thread=False)
def get_fleet_policy(request: AnyRequest, state: State) -> Response[PolicyView]:
    """What holds for every VM."""
    return _get(request, state, FLEET_POLICY)


@put("/policies/fleet", security=TOKEN, responses=WRITE_REFUSED | _CREATED)
async def put_fleet_policy(request: AnyRequest, state: State, data: JSONBody[PolicySpec]) -> Response[PolicyView]:
    """Replace it (If-Match), or set it for the first time (If-None-Match: *). In force at once."""
    return await _put(request, state, FLEET_POLICY, data)


@patch("/policies/fleet", security=TOKEN, responses=WRITE_REFUSED)
async def change_fleet_policy(request: AnyRequest, state: State, data: JSONBody[dict[str, Any]]) -> Response[PolicyView]:
    """Change fields of it; null takes one back."""
    return await _patch(request, state, FLEET_POLICY, data)


@delete("/policies/fleet", security=TOKEN, responses=WRITE_REFUSED)
async def remove_fleet_policy(request: AnyRequest, state: State) -> None:
    """Take it back."""
    await _delete(request, state, FLEET_POLICY)


@get("/policies/client/{id:str}", responses=READ_REFUSED, sync_to_thread=False)
def get_client_policy(request: AnyRequest, state: State, id: PathId) -> Response[PolicyView]:
    """What holds for a client's VMs."""
    return _get(request, state, f"client/{id}")


@put("/policies/client/{id:str}", security=TOKEN, responses=WRITE_REFUSED | _CREATED)
async def put_client_policy(request: AnyRequest, state: State, id: PathId, data: JSONBody[PolicySpec]) -> Response[PolicyView]:
    """Replace it (If-Match), or set it for the first time (If-None-Match: *). In force at once."""
    return await _put(request, state, f"client/{id}", data)


@patch("/policies/client/{id:str}", security=TOKEN, responses=WRITE_REFUSED)
async def change_client_policy(request: AnyRequest, state: State, id: PathId, data: JSONBody[dict[str, Any]]) -> Response[PolicyView]:
    """Change fields of it; null takes one back."""
    return await _patch(request, state, f"client/{id}", data)


@delete("/policies/client/{id:str}", security=TOKEN, responses=WRITE_REFUSED)
async def remove_client_policy(request: AnyRequest, state: State, id: PathId) -> None:
    """Take it back."""
    await _delete(request, state, f"client/{id}")


@get("/policies/vm/{id:str}", responses=READ_REFUSED, sync_to_thread=False)
def get_vm_policy(request: AnyRequest, state: State, id: PathId) -> Response[PolicyView]:
    """What holds for one VM, over its domain's own metadata."""
    return _get(request, state, f"vm/{id}")


@put("/policies/vm/{id:str}", security=TOKEN, responses=WRITE_REFUSED | _CREATED)
async def put_vm_policy(request: AnyRequest, state: State, id: PathId, data: JSONBody[PolicySpec]) -> Response[PolicyView]:
    """Replace it (If-Match), or set it for the first time (If-None-Match: *). In force at once."""
    return await _put(request, state, f"vm/{id}", data)


@patch("/policies/vm/{id:str}", security=TOKEN, responses=WRITE_REFUSED)
async def change_vm_policy(request: AnyRequest, state: State, id: PathId, data: JSONBody[dict[str, Any]]) -> Response[PolicyView]:
    """Change fields of it; null takes one back."""
    return await _patch(request, state, f"vm/{id}", data)


@delete("/policies/vm/{id:str}", security=TOKEN, responses=WRITE_REFUSED)
async def remove_vm_policy(request: AnyRequest, state: State, id: PathId) -> None:
    """Take it back."""
    await _delete(request, state, f"vm/{id}")


@get("/vms/{vm_id:str}/policy", responses=READ_REFUSED, sync_to_thread=False)
def effective_policy(state: State, vm_id: PathId) -> EffectivePolicy:
    """What is in force for a VM, merged of all levels, and which level each field is from."""
    return present(tenancy(state).effective(vm_id), RefusalCode.UNKNOWN_VM, "vm_id", vm_id, "an id of /api/v1/vms")


@get("/pools", sync_to_thread=False)
def pools(state: State) -> list[PoolView]:
    """Pools of hosts with their prices and power, as the site file says."""
    return list(tenancy(state).pools())


def _get(request: AnyRequest, state: State, id_: str) -> Response[Any]:
    row = found_row(state, Kind.POLICY, id_)
    return Response(b"", status_code=304, headers={"ETag": row.etag}) if unchanged(request, row) else answer(_view(row), row)


async def _put(request: AnyRequest, state: State, id_: str, spec: PolicySpec) -> Response[Any]:
    if creates(request):
        row = await tenancy(state).create(Kind.POLICY, id_, spec, request.state["actor"])
        return answer(_view(row), row, 201, f"/api/v1/policies/{id_}")
    row = await tenancy(state).replace(Kind.POLICY, expected(request, found_row(state, Kind.POLICY, id_)), spec, request.state["actor"])
    return answer(_view(row), row)


async def _patch(request: AnyRequest, state: State, id_: str, body: dict[str, Any]) -> Response[Any]:
    before = expected(request, found_row(state, Kind.POLICY, id_))
    row = await tenancy(state).replace(Kind.POLICY, before, patched(before, body), request.state["actor"])
    return answer(_view(row), row)


async def _delete(request: AnyRequest, state: State, id_: str) -> None:
    await tenancy(state).remove(Kind.POLICY, expected(request, found_row(state, Kind.POLICY, id_)), request.state["actor"])


def _view(row: Row[Spec]) -> PolicyView:
    return PolicyView(id=row.id, record=record_of(row), **msgspec.structs.asdict(row.spec))


POLICIES: Final = [
    list_policies,
    *(get_fleet_policy, put_fleet_policy, change_fleet_policy, remove_fleet_policy),
    *(get_client_policy, put_client_policy, change_client_policy, remove_client_policy),
    *(get_vm_policy, put_vm_policy, change_vm_policy, remove_vm_policy),
    *(effective_policy, pools),
]
