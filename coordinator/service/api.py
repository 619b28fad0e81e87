"""The HTTP application: /api/v1 over a FleetView, probes, metrics, the OpenAPI document and the status page.

Reads are open where the caller says so (loopback); writes always need a token or a certificate. Handlers hold no logic of their own: they
ask the view, narrowed to what the caller may see, and return its structs. Invariant: every error is a problem+json of problems.py, and
every response carries the security headers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from litestar import Litestar, Request, Response, Router, get, post, put
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Components, SecurityScheme
from litestar.params import FromQuery, JSONBody, PathParameter, QueryParameter

from coordinator.migration_plan import MigrationPlan
from coordinator.model import Receipt
from coordinator.service import edge, journalled, problems
from coordinator.service.access_api import ACCESS_HANDLERS
from coordinator.service.auth import TokenVerifier
from coordinator.service.document import Document, put_right
from coordinator.service.explained import ForecastWhyView
from coordinator.service.forecasts import ForecastView, Resource
from coordinator.service.migrations import MigrationOrder, MigrationState
from coordinator.service.operations_api import OPERATIONS_READS
from coordinator.service.outlooks import OutlookView
from coordinator.service.own_view import seen
from coordinator.service.pages import page_handlers
from coordinator.service.placement_api import PLACEMENT_READS
from coordinator.service.placing import MoveAdvice
from coordinator.service.problems import InvalidValue, present
from coordinator.service.safeguards import Safeguards, in_memory
from coordinator.service.signals import SignalBatch, SignalsTaken
from coordinator.service.sizing import SizingView
from coordinator.service.stream_api import STREAM_READS
from coordinator.service.view import (
    BOUNDS,
    AccuracyView,
    AdjustRequest,
    AdjustResult,
    FleetSummary,
    FleetView,
    GroupForecastView,
    GroupKind,
    GroupList,
    HistoryView,
    HostView,
    ModeOrder,
    OutcomeView,
    PauseOrder,
    PauseView,
    Problem,
    Scores,
    VmAccuracy,
    VmPage,
    VmView,
    Window,
)
from shared.errors import HostError, Refusal
from shared.plan import Plan
from shared.refusal import RefusalCode

API_VERSION: Final = "1.4.0"  # of the interface, not of the product: additive changes raise the second number


def _bounds(field: str) -> dict[str, int]:
    low, high = BOUNDS[field]
    return {"ge": low, "le": high}


_ID: Final[dict[str, Any]] = {"min_length": 1, "max_length": 128, "pattern": r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$"}  # shared.model.Identifier
PathId = Annotated[str, PathParameter(**_ID)]
QueryId = Annotated[str | None, QueryParameter(**_ID)]
Limit = Annotated[int, QueryParameter(**_bounds("limit"), description="At most so many")]
Horizon = Annotated[int, QueryParameter(**_bounds("horizon_minutes"), description="Minutes ahead, rounded up to whole 5-minute steps")]
GroupName = Annotated[str, QueryParameter(max_length=256, description="Host id, client or application; empty for the fleet")]
Hours = Annotated[int, QueryParameter(**_bounds("hours"), description="Hours back")]


def _answer(kind: type[msgspec.Struct], description: str) -> ResponseSpec:
    media_type = problems.PROBLEM_JSON if kind is Problem else "application/json"
    return ResponseSpec(kind, description=description, media_type=media_type, generate_examples=False)  # examples would be random


_REFUSED: Final = {
    400: _answer(Problem, "invalid_value: field, value and allowed"),
    404: _answer(Problem, "no such host, VM, group or receipt"),
}
_WRITE_REFUSED: Final = _REFUSED | {
    401: _answer(Problem, "unauthorized"),
    403: _answer(Problem, "forbidden: the caller's role does not allow it"),
    409: _answer(Problem, "the state of the VM or host forbids it"),
    422: _answer(Problem, "outside the VM's floor, ceiling or maximum; or an Idempotency-Key of another request"),
    429: _answer(Problem, "rate_limited"),
}
_DRY_RUN: Final = {200: _answer(AdjustResult, "dry_run: what would be sent")}
_TOKEN: Final[list[dict[str, list[str]]]] = [{"token": []}]


def create_app(
    view: FleetView,
    tokens: TokenVerifier,
    *,
    open_reads: bool = True,
    host_names: Sequence[str] = edge.LOOPBACK_NAMES,
    safeguards: Safeguards | None = None,
) -> Litestar:
    """The ASGI application. `open_reads` False: reads of data need a token as well.

    `host_names`: accepted Host headers without port; others are refused, so that a foreign site cannot reach a loopback service by
    re-binding its name (DNS rebinding). Empty = any. `safeguards` None: audit and kept answers are in memory.
    """
    guards = in_memory(tokens) if safeguards is None else safeguards
    return _application(State({"view": view, "safeguards": guards, "open_reads": open_reads, "host_names": frozenset(host_names)}))


def openapi_json() -> bytes:
    """The OpenAPI 3.1 document as committed in docs/openapi.json: keys sorted, indented. Needs no coordinator."""
    schema = put_right(_application(State()).openapi_schema.to_schema())
    return msgspec.json.format(msgspec.json.encode(schema, order="sorted"), indent=1) + b"\n"


def _application(state: State) -> Litestar:
    api = Router(path="/api/v1", route_handlers=[*_READS, *_WRITES])
    return Litestar(
        route_handlers=[api, metrics, livez, readyz, *page_handlers()],
        state=state,
        guards=[edge.check_host, edge.check_access, edge.check_query],
        middleware=[edge.body_deadline, journalled.journalled],
        before_send=[edge.add_security_headers],
        before_request=edge.keep_body,
        request_max_body_size=edge.MAX_BODY_BYTES,
        exception_handlers={
            Refusal: problems.refusal_response,
            HostError: problems.store_response,
            HTTPException: problems.http_error_response,
            Exception: problems.bug_response,
        },
        openapi_config=_openapi(),
        logging_config=None,  # the process has its own logging
        debug=False,
    )


# -- reads ------------------------------------------------------------------------------------------------------------------


@get("/fleet", sync_to_thread=False)
def fleet(state: State) -> FleetSummary:
    """The fleet in one look: counts, epoch, clock and the durations of the last decision cycle."""
    return _view(state).fleet()


@get("/hosts", sync_to_thread=False)
def hosts(state: State) -> list[HostView]:
    """Every host, its mode, capacity and what is committed of it."""
    return list(_view(state).hosts())


@get("/hosts/{host_id:str}", responses=_REFUSED, sync_to_thread=False)
def host(state: State, host_id: PathId) -> HostView:
    """One host."""
    return _known_host(state, host_id)


@get("/vms", responses=_REFUSED, sync_to_thread=False)
def vms(state: State, limit: Limit = 100, cursor: QueryId = None, host: QueryId = None, client: FromQuery[str | None] = None) -> VmPage:
    """VMs in the order of their ids; `cursor` is the last page's `next_cursor`."""
    view = _view(state)
    ids = view.vm_ids(host, client)
    rest = [vm_id for vm_id in ids if cursor is None or vm_id > cursor]
    items = tuple(found for vm_id in rest[:limit] if (found := view.vm(vm_id)) is not None)
    return VmPage(items=items, total=len(ids), next_cursor=rest[limit - 1] if len(rest) > limit else None)


@get("/vms/{vm_id:str}", responses=_REFUSED, sync_to_thread=False)
def vm(state: State, vm_id: PathId) -> VmView:
    """One VM."""
    return _known_vm(state, vm_id)


@get("/vms/{vm_id:str}/forecast", responses=_REFUSED, sync_to_thread=False)
def predict_load(state: State, vm_id: PathId, horizon_minutes: Horizon = 60) -> ForecastView:
    """What the VM will need in the coming minutes: mean, stddev and quantiles per 5-minute step and resource."""
    _known_vm(state, vm_id)
    return _view(state).forecast(vm_id, horizon_minutes)


@get("/vms/{vm_id:str}/forecast/why", responses=_REFUSED)
async def explain_forecast(state: State, vm_id: PathId, resource: FromQuery[Resource | None] = None) -> ForecastWhyView:
    """Why the newest forecast is what it is: members and their weights, network, level, events, corrections; or why there is none."""
    _known_vm(state, vm_id)
    found = await _view(state).why(vm_id)
    return msgspec.structs.replace(found, resources=tuple(part for part in found.resources if resource in (None, part.resource)))


@get("/vms/{vm_id:str}/outlook", responses=_REFUSED, sync_to_thread=False)
def outlook(state: State, vm_id: PathId) -> OutlookView:
    """What the VM will need in the next six hours: quantiles of mean and peak per half hour and resource; anew each half hour."""
    _known_vm(state, vm_id)
    return _view(state).outlook(vm_id)


@get("/vms/{vm_id:str}/history", responses=_REFUSED)
async def history(state: State, vm_id: PathId, hours: Hours = 24, resource: FromQuery[Resource | None] = None) -> HistoryView:
    """Demand, allocation and the forecasts of the past; one resource or all."""
    _known_vm(state, vm_id)
    found = await _view(state).history(vm_id, hours)
    kept = tuple(series for series in found.resources if resource in (None, series.resource))
    return HistoryView(vm_id=found.vm_id, lead_minutes=found.lead_minutes, resources=kept, signals=found.signals)


@get("/vms/{vm_id:str}/accuracy", responses=_REFUSED, sync_to_thread=False)
def vm_accuracy(state: State, vm_id: PathId, window: FromQuery[Window] = "day") -> VmAccuracy:
    """How good the VM's forecasts were: error against Naive, coverage and bias, by part of the horizon and resource."""
    _known_vm(state, vm_id)
    return _view(state).vm_accuracy(vm_id, window)


@get("/aggregates", responses=_REFUSED, sync_to_thread=False)
def aggregates(state: State, limit: Limit = 100, kind: FromQuery[GroupKind | None] = None) -> GroupList:
    """What hosts, clients, applications and the fleet will need within the hour, as sums of their VMs."""
    return _view(state).groups(kind, limit)


@get("/aggregates/forecast", responses=_REFUSED, sync_to_thread=False)
def aggregate_forecast(
    state: State, kind: FromQuery[GroupKind] = "fleet", name: GroupName = "", horizon_minutes: Horizon = 60
) -> GroupForecastView:
    """One sum in the coming minutes: mean, stddev and quantiles per 5-minute step and resource. The fleet's name is empty."""
    found = _view(state).group_forecast(kind, name, horizon_minutes)
    return present(found, RefusalCode.INVALID_VALUE, "name", name, f"a name of /api/v1/aggregates?kind={kind}")


@get("/accuracy", responses=_REFUSED, sync_to_thread=False)
def accuracy(state: State, limit: Limit = 20, window: FromQuery[Window] = "day") -> AccuracyView:
    """Forecast against actual: error against Naive, coverage and bias, by horizon, model, client and application; and the worst series."""
    return _view(state).accuracy(window, limit)


@get("/plans", responses=_REFUSED)
async def plans(state: State, limit: Limit = 50, host: QueryId = None) -> list[Plan]:
    """Plans as they were sent."""
    return list(await _view(state).plans(limit, host))


@get("/receipts", responses=_REFUSED)
async def receipts(state: State, limit: Limit = 50, vm: QueryId = None) -> list[Receipt]:
    """Why VMs got what they got."""
    return list(await _view(state).receipts(limit, vm))


@get("/receipts/{receipt_id:str}", responses=_REFUSED)
async def receipt(state: State, receipt_id: PathId) -> Receipt:
    """One decision with its inputs, trail and refused alternatives."""
    found = await _view(state).receipt(receipt_id)
    return present(found, RefusalCode.INVALID_VALUE, "receipt_id", receipt_id, "an id of /api/v1/receipts; old ones are pruned")


@get("/outcomes", responses=_REFUSED)
async def outcomes(state: State, limit: Limit = 50, vm: QueryId = None) -> list[OutcomeView]:
    """What the hosts answered to steps: applied, refused with its code, failed."""
    return list(await _view(state).outcomes(limit, vm))


@get("/scores", sync_to_thread=False)
def scores(state: State) -> Scores:
    """Violation minutes, allocation over use, steps and forecast error, by control mode."""
    return _view(state).scores()


@get("/moves", sync_to_thread=False)
def moves(state: State) -> MoveAdvice:
    """Migrations that placement advises, with their gain and cost."""
    return _view(state).moves()


@get("/migration", sync_to_thread=False)
def migration(state: State) -> MigrationState:
    """The newest migration plan with each of its moves, what failed of late, and the power of hosts that can be switched."""
    return _view(state).migration()


@get("/migrations", responses=_REFUSED)
async def migrations(state: State, limit: Limit = 10) -> list[MigrationPlan]:
    """Migration plans as they ended, or are."""
    return list(await _view(state).migrations(limit))


@get("/sizing", responses=_REFUSED, sync_to_thread=False)
def sizing(state: State, limit: Limit = 100) -> SizingView:
    """Hosts that will be short and what more would save, clients' error budgets, objectives that cannot be met, room for a failed host."""
    return _view(state).sizing(limit)


_READS: Final = [
    *(fleet, hosts, host, vms, vm, predict_load, explain_forecast, outlook, history, vm_accuracy, aggregates, aggregate_forecast, accuracy),
    *(plans, receipts, receipt, outcomes, scores, moves, sizing, migration, migrations),
    *PLACEMENT_READS,
    *OPERATIONS_READS,
    *STREAM_READS,
]

# -- writes -----------------------------------------------------------------------------------------------------------------


@put("/hosts/{host_id:str}/mode", security=_TOKEN, responses=_WRITE_REFUSED)
async def set_mode(request: Request[Any, Any, Any], state: State, host_id: PathId, data: JSONBody[ModeOrder]) -> HostView:
    """Order a host into a control mode; a pin on the host itself wins (locally_pinned)."""
    found = _known_host(state, host_id)
    request.state[journalled.BEFORE_KEY] = {"mode": found.mode, "ordered": found.mode_ordered, "pinned": found.mode_pinned}
    return await _view(state).set_mode(host_id, data.mode, request.state["actor"])


@put("/hosts/{host_id:str}/pause", security=_TOKEN, responses=_WRITE_REFUSED)
async def set_host_pause(request: Request[Any, Any, Any], state: State, host_id: PathId, data: JSONBody[PauseOrder]) -> PauseView:
    """The kill switch of one host: while it is on, its agent changes nothing, whatever its mode or pin."""
    request.state[journalled.BEFORE_KEY] = {"paused": _known_host(state, host_id).paused}
    return await _view(state).set_pause(host_id, data.paused, request.state["actor"])


@put("/fleet/pause", security=_TOKEN, responses=_WRITE_REFUSED)
async def set_fleet_pause(request: Request[Any, Any, Any], state: State, data: JSONBody[PauseOrder]) -> PauseView:
    """The kill switch of the whole fleet; hosts that are silent now get it when they come back."""
    return await _view(state).set_pause(None, data.paused, request.state["actor"])


@put("/migrations/{plan_id:str}", security=_TOKEN, responses=_WRITE_REFUSED)
async def order_migration(request: Request[Any, Any, Any], state: State, plan_id: PathId, data: JSONBody[MigrationOrder]) -> MigrationState:
    """Approve the newest migration plan, or abort it; what is under way then ends by itself."""
    return await _view(state).order_migration(plan_id, data.action, request.state["actor"])


@post("/vms/{vm_id:str}/resources", status_code=202, security=_TOKEN, responses=_WRITE_REFUSED | _DRY_RUN)
async def adjust_resources(
    request: Request[Any, Any, Any], state: State, vm_id: PathId, data: JSONBody[AdjustRequest]
) -> Response[AdjustResult]:
    """Give a VM vCPUs, memory or CPU quota now. 202: sent to the host, Location is its operation; 200: dry_run, nothing was sent."""
    _known_vm(state, vm_id)
    if data.vcpus is None and data.memory_bytes is None and data.cpu_quota_millicores is None:
        raise InvalidValue("body", "a request for nothing", "at least one of vcpus, memory_bytes, cpu_quota_millicores")
    request.state[journalled.BEFORE_KEY] = _known_vm(state, vm_id).allocation
    result = await _view(state).adjust(vm_id, data, request.state["actor"])
    headers = {} if result.operation_id is None else {"Location": f"/api/v1/operations/{result.operation_id}"}
    return Response(result, status_code=200 if data.dry_run else 202, headers=headers)


@post(
    "/signals",
    status_code=200,
    security=_TOKEN,
    responses=_WRITE_REFUSED | {429: _answer(Problem, "rate_limited: asked too often, or their log is full")},
)
async def tell_signals(state: State, data: JSONBody[SignalBatch]) -> SignalsTaken:
    """What applications measured of their own load, for the forecasts. All of it is taken or none; 200 means that it is durable."""
    return await _view(state).tell_signals(data)


_WRITES: Final = [set_mode, set_host_pause, set_fleet_pause, order_migration, adjust_resources, tell_signals, *ACCESS_HANDLERS]

# -- probes -----------------------------------------------------------------------------------------------------------------


@get("/metrics", media_type="text/plain; version=0.0.4", sync_to_thread=False)
def metrics(state: State) -> str:
    """Prometheus text format."""
    return _view(state).metrics_text()


@get("/livez", media_type="text/plain", sync_to_thread=False)
def livez() -> str:
    """200 while this process serves."""
    return "ok\n"


@get("/readyz", media_type="text/plain", sync_to_thread=False)
def readyz(state: State) -> Response[str]:
    """200 while the coordinator can decide, 503 and the reason while not."""
    ready, why = _view(state).ready()
    return Response(why + "\n", status_code=200 if ready else 503, media_type="text/plain")


def _view(state: State) -> FleetView:
    return seen(state["view"])


def _known_host(state: State, host_id: str) -> HostView:
    found = _view(state).host(host_id)
    return present(found, RefusalCode.HOST_UNKNOWN_STATE, "host_id", host_id, "an id of /api/v1/hosts")


def _known_vm(state: State, vm_id: str) -> VmView:
    found = _view(state).vm(vm_id)
    return present(found, RefusalCode.UNKNOWN_VM, "vm_id", vm_id, "an id of /api/v1/vms")


def _openapi() -> OpenAPIConfig:
    token = SecurityScheme(type="http", scheme="bearer", description="`tidegate token new` prints one")
    return OpenAPIConfig(
        title="Tidegate",
        version=API_VERSION,
        summary="Forecasts what every VM of a KVM fleet will need and reshapes the fleet before the demand arrives",
        path="/openapi.json",
        components=Components(security_schemes={"token": token}),
        render_plugins=[Document(path="/")],
        use_handler_docstrings=True,
        operation_id_creator=lambda handler, _method, _path: handler.handler_name,
    )


if __name__ == "__main__":
    sys.stdout.buffer.write(openapi_json())  # python -m coordinator.service.api > docs/openapi.json
