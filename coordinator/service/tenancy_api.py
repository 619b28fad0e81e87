"""Clients, applications, SLAs and events over HTTP: the same six operations for each, and the webhook of outside systems.

Handlers are made by `_handlers` from one mould. Policies: policies_api.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, delete, get, patch, post, put
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromQuery, JSONBody, PathParameter, QueryParameter

from coordinator.service import problems
from coordinator.service import tenancy_view as tv
from coordinator.service.problems import InvalidValue, present
from coordinator.service.tenancy_view import Record, TenancyView
from coordinator.service.versions import creates, expected, unchanged
from coordinator.service.view import BOUNDS, Problem
from coordinator.tenancy.model import ApplicationSpec, ClientSpec, EventSpec, Kind, Row, SlaSpec, Spec, TriggerSpec
from coordinator.tenancy.scheduling import triggered
from shared.refusal import RefusalCode
from shared.units import NS_PER_S

AnyRequest = Request[Any, Any, Any]
_ID: Final[dict[str, Any]] = {"min_length": 1, "max_length": 128, "pattern": r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$"}
PathId = Annotated[str, PathParameter(**_ID)]
Cursor = Annotated[str | None, QueryParameter(max_length=160, description="the last page's next_cursor")]
Limit = Annotated[int, QueryParameter(ge=BOUNDS["limit"][0], le=BOUNDS["limit"][1], description="At most so many")]
TOKEN: Final[list[dict[str, list[str]]]] = [{"token": []}]


def _refused(text: str) -> ResponseSpec:
    return ResponseSpec(Problem, description=text, media_type=problems.PROBLEM_JSON, generate_examples=False)


READ_REFUSED: Final = {400: _refused("invalid_value: field, value and allowed"), 404: _refused("nothing of this id")}
WRITE_REFUSED: Final = READ_REFUSED | {
    401: _refused("unauthorized"),
    409: _refused("already_exists, in_use, or as many as there may be"),
    412: _refused("version_changed: If-Match names another version than the newest"),
    428: _refused("version_required: If-Match is missing"),
}


def tenancy(state: State) -> TenancyView:
    """Who keeps what is registered."""
    found: TenancyView = state["view"].tenancy
    return found


def record_of(row: Row[Spec]) -> Record:
    """The part of a view that every kind has."""
    return Record(version=row.version, created_s=row.created_ns / NS_PER_S, changed_s=row.changed_ns / NS_PER_S, changed_by=row.changed_by)


def found_row(state: State, kind: Kind, id_: str, field: str = "id") -> Row[Spec]:
    """The row of this id. Raises NotFound."""
    found = tenancy(state).book.of(kind).get(id_)
    return present(found, RefusalCode.INVALID_VALUE, field, id_, f"an id of /api/v1/{PATHS[kind]}")


def answer(view: msgspec.Struct, row: Row[Spec], status: int = 200, location: str | None = None) -> Response[Any]:
    """A view with its ETag."""
    headers = {"ETag": row.etag} | ({} if location is None else {"Location": location})
    return Response(view, status_code=status, headers=headers)


def patched(row: Row[Spec], body: object) -> Spec:
    """A JSON merge patch (RFC 7396) on a spec. Raises InvalidValue."""
    if not isinstance(body, dict):
        raise InvalidValue("body", body, "a JSON object with the fields to change")
    merged = _merged(msgspec.to_builtins(row.spec), body)
    try:
        return msgspec.convert(merged, type(row.spec))
    except msgspec.ValidationError as error:
        told = problems.of_validation(str(error), merged)
        raise told or InvalidValue("body", str(error), "a JSON object with fields of the schema in /openapi.json") from None


def _merged(before: dict[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**before, **{name: value for name, value in body.items() if value is not None}}
    return {name: value for name, value in merged.items() if not (name in body and body[name] is None)}


def page_of(rows: list[Row[Spec]], limit: int, cursor: str | None) -> tuple[list[Row[Spec]], str | None]:
    """One page of rows by id, and where the next one begins."""
    rest = sorted((row for row in rows if cursor is None or row.id > cursor), key=lambda row: row.id)
    return rest[:limit], rest[limit - 1].id if len(rest) > limit else None


# -- views ------------------------------------------------------------------------------------------------------------------


def _client(state: State, rows: list[Row[Spec]]) -> list[msgspec.Struct]:
    vms: dict[str, int] = {}
    for member in tenancy(state).members().values():
        vms[member.client] = vms.get(member.client, 0) + 1
    return [tv.ClientView(id=row.id, record=record_of(row), vms=vms.get(row.id, 0), **_fields(row.spec)) for row in rows]


def _application(state: State, rows: list[Row[Spec]]) -> list[msgspec.Struct]:
    vms: dict[tuple[str, str], int] = {}
    for member in tenancy(state).members().values():
        vms[member] = vms.get(member, 0) + 1
    views: list[msgspec.Struct] = []
    for row in rows:
        assert isinstance(row.spec, ApplicationSpec), "of its kind"
        here = (row.spec.client, row.spec.label or row.id)
        views.append(tv.ApplicationView(id=row.id, record=record_of(row), vms=vms.get(here, 0), **_fields(row.spec)))
    return views


def _sla(state: State, rows: list[Row[Spec]]) -> list[msgspec.Struct]:
    clients: dict[str, list[str]] = {}
    for client in tenancy(state).book.clients.values():
        clients.setdefault(client.spec.sla or "", []).append(client.id)
    return [
        tv.SlaView(id=row.id, record=record_of(row), clients=tuple(sorted(clients.get(row.id, ()))), **_fields(row.spec)) for row in rows
    ]


def _event(state: State, rows: list[Row[Spec]]) -> list[msgspec.Struct]:
    keeper = tenancy(state)
    return [
        tv.EventView(id=row.id, record=record_of(row), **msgspec.structs.asdict(keeper.event_state(row.id)), **_fields(row.spec))
        for row in rows
    ]


def _fields(spec: Spec) -> dict[str, Any]:
    return msgspec.structs.asdict(spec)


PATHS: Final = {Kind.CLIENT: "clients", Kind.APPLICATION: "applications", Kind.SLA: "slas", Kind.EVENT: "events", Kind.POLICY: "policies"}
_NOUNS: Final = {kind: "SLA" if kind is Kind.SLA else str(kind) for kind in PATHS}
_SHOWN: Final[dict[Kind, Callable[[State, list[Row[Spec]]], list[msgspec.Struct]]]] = {
    Kind.CLIENT: _client,
    Kind.APPLICATION: _application,
    Kind.SLA: _sla,
    Kind.EVENT: _event,
}


# -- handlers ---------------------------------------------------------------------------------------------------------------


def _handlers(
    kind: Kind, spec: type[Spec], new: type[Spec], view: type[msgspec.Struct], page: type[msgspec.Struct]
) -> list[HTTPRouteHandler]:
    """GET all and one, POST, PUT, PATCH and DELETE of one kind."""
    return [*_reads(kind, view, page), *_writes(kind, spec, new, view), *_ends(kind, view)]


def _reads(kind: Kind, view: type[msgspec.Struct], page: type[msgspec.Struct]) -> list[HTTPRouteHandler]:
    path, show, noun = f"/{PATHS[kind]}", _SHOWN[kind], _NOUNS[kind]

    def listed(state: State, limit: Limit = 100, cursor: Cursor = None, client: FromQuery[str | None] = None) -> Any:
        rows = list(tenancy(state).book.of(kind).values())
        kept = [row for row in rows if client is None or getattr(row.spec, "client", None) == client]
        items, following = page_of(kept, limit, cursor)
        return page(items=tuple(show(state, items)), total=len(kept), next_cursor=following)

    def listed_all(state: State, limit: Limit = 100, cursor: Cursor = None) -> Any:
        return listed(state, limit, cursor)

    def one(request: AnyRequest, state: State, id: PathId) -> Any:
        row = found_row(state, kind, id)
        return Response(b"", status_code=304, headers={"ETag": row.etag}) if unchanged(request, row) else _shown(kind, state, row)

    listing = listed if kind in (Kind.APPLICATION, Kind.EVENT) else listed_all
    every = f"Every {noun}, by id; `cursor` is the last page's `next_cursor`."
    single = f"One {noun}; its ETag names the version. 304 where If-None-Match has it."
    return [
        get(path, responses=READ_REFUSED, sync_to_thread=False)(_made(listing, f"list_{path[1:]}", every, **{"return": page})),
        get(f"{path}/{{id:str}}", responses=READ_REFUSED, sync_to_thread=False)(_made(one, f"get_{kind}", single, **{"return": view})),
    ]


def _writes(kind: Kind, spec: type[Spec], new: type[Spec], view: type[msgspec.Struct]) -> list[HTTPRouteHandler]:
    path, noun = f"/{PATHS[kind]}", _NOUNS[kind]

    async def create(request: AnyRequest, state: State, data: Any) -> Any:
        asked = msgspec.convert({name: value for name, value in _fields(data).items() if name != "id"}, spec)
        row = await tenancy(state).create(kind, data.id, asked, request.state["actor"])
        return _shown(kind, state, row, 201, f"/api/v1{path}/{row.id}")

    async def replace(request: AnyRequest, state: State, id: PathId, data: Any) -> Any:
        if creates(request):
            row = await tenancy(state).create(kind, id, data, request.state["actor"])
            return _shown(kind, state, row, 201, f"/api/v1{path}/{row.id}")
        before = expected(request, found_row(state, kind, id))
        return _shown(kind, state, await tenancy(state).replace(kind, before, data, request.state["actor"]))

    created = {201: ResponseSpec(view, description="created", generate_examples=False)}
    put_text = f"Replace one {noun}: If-Match names the version that is meant; If-None-Match: * creates it."
    fresh: Any = JSONBody[new]  # type: ignore[misc, valid-type]  # made at run time
    whole: Any = JSONBody[spec]  # type: ignore[misc, valid-type]
    return [
        post(path, status_code=201, security=TOKEN, responses=WRITE_REFUSED)(
            _made(create, f"create_{kind}", f"Register one {noun}.", data=fresh, **{"return": view})
        ),
        put(f"{path}/{{id:str}}", security=TOKEN, responses=WRITE_REFUSED | created)(
            _made(replace, f"replace_{kind}", put_text, data=whole, **{"return": view})
        ),
    ]


def _ends(kind: Kind, view: type[msgspec.Struct]) -> list[HTTPRouteHandler]:
    path, noun = f"/{PATHS[kind]}/{{id:str}}", _NOUNS[kind]

    async def change(request: AnyRequest, state: State, id: PathId, data: JSONBody[dict[str, Any]]) -> Any:
        before = expected(request, found_row(state, kind, id))
        return _shown(kind, state, await tenancy(state).replace(kind, before, patched(before, data), request.state["actor"]))

    async def remove(request: AnyRequest, state: State, id: PathId) -> None:
        await tenancy(state).remove(kind, expected(request, found_row(state, kind, id)), request.state["actor"])

    patch_text = f"Change fields of one {noun} (JSON merge patch: null takes a field back). If-Match as in PUT."
    delete_text = f"Remove one {noun} that nothing names any more. If-Match as in PUT."
    return [
        patch(path, security=TOKEN, responses=WRITE_REFUSED)(_made(change, f"change_{kind}", patch_text, **{"return": view})),
        delete(path, security=TOKEN, responses=WRITE_REFUSED)(_made(remove, f"remove_{kind}", delete_text)),
    ]


def _shown(kind: Kind, state: State, row: Row[Spec], status: int = 200, location: str | None = None) -> Response[Any]:
    return answer(_SHOWN[kind](state, [row])[0], row, status, location)


def _made(function: Any, name: str, text: str, **annotations: Any) -> Any:
    """A handler under its own name, with its own text and types: the document is made of these."""
    function.__name__ = name
    function.__doc__ = text
    function.__annotations__ = {**function.__annotations__, **annotations}
    return function


@post("/events/trigger", status_code=201, security=TOKEN, responses=WRITE_REFUSED)
async def trigger_event(request: AnyRequest, state: State, data: JSONBody[TriggerSpec]) -> Response[tv.EventView]:
    """What an outside system says is about to happen, e.g. a campaign: a one-off event from `start_s` (now) with its expected factor."""
    keeper, actor = tenancy(state), request.state["actor"]
    spec = triggered(data, keeper.now_s())
    if spec.start_s is not None and spec.start_s + data.duration_s <= keeper.now_s():
        raise InvalidValue("start_s", spec.start_s, f"a time whose duration is not over at {keeper.now_s()}")
    told = data.reference or hashlib.sha256(msgspec.json.encode(spec)).hexdigest()[:16]
    id_ = f"trigger-{told}"
    before = keeper.book.events.get(id_)
    row = await (keeper.create(Kind.EVENT, id_, spec, actor) if before is None else keeper.replace(Kind.EVENT, before, spec, actor))
    return answer(_event(state, [row])[0], row, 201, f"/api/v1/events/{id_}")


TENANCY: Final[list[HTTPRouteHandler]] = [
    *_handlers(Kind.CLIENT, ClientSpec, tv.NewClient, tv.ClientView, tv.ClientPage),
    *_handlers(Kind.APPLICATION, ApplicationSpec, tv.NewApplication, tv.ApplicationView, tv.ApplicationPage),
    *_handlers(Kind.SLA, SlaSpec, tv.NewSla, tv.SlaView, tv.SlaPage),
    *_handlers(Kind.EVENT, EventSpec, tv.NewEvent, tv.EventView, tv.EventPage),
    trigger_event,
]
