"""Every write leaves a row in the audit before its caller hears of it, refused ones too; POSTs with an Idempotency-Key leave their answer.

A middleware around the handlers of every route: it holds the (small) answer of a write back until the row is on disk. Reads pass through.
Invariant: no secret is in a row: of a body only what a caller was let in with is kept, fields that may hold secrets as digests.
"""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from typing import Any, Final
from uuid import uuid4

import msgspec
import structlog
from litestar import Request, Response
from litestar.datastructures import MutableScopeHeaders
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.service import problems
from coordinator.service.callers import Caller
from coordinator.service.problems import InvalidValue
from coordinator.service.safeguards import Safeguards, caller_of
from coordinator.store.answers import KeptAnswer
from coordinator.store.audit_chain import AuditEntry
from shared.errors import HostError

READS: Final = ("GET", "HEAD", "OPTIONS")
MAX_KEY_CHARS: Final = 128
MAX_WHAT_BYTES: Final = 2048  # of one row; a larger body is kept as its digest
SECRETS: Final = ("token", "secret", "password", "key", "credential", "authorization", "url")  # in a field's name
NOT_KEPT: Final = frozenset({401, 403, 408, 413, 429})  # nothing was carried out: the same key may try again

BEFORE_KEY: Final = "audit_before"  # handlers leave here what was in force
KEPT_KEY: Final = "kept_body"  # and here what of the answer may be kept, where that is not all of it
CLAIM_KEY: Final = "claimed_key"
REPLAY_KEY: Final = "replayed"

_log = structlog.get_logger(__name__)


def journalled(app: ASGIApp) -> ASGIApp:
    """Adds X-Request-Id to every answer, and journals writes."""

    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = uuid4().hex
        held: list[Message] = []

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                _safeguards(scope).count("tidegate_http_requests_total", method=_method(scope), status=str(message["status"]))
                MutableScopeHeaders.from_message(message)["X-Request-Id"] = state["request_id"]
            await send(message)

        async def hold(message: Message) -> None:
            held.append(message)
            if message["type"] != "http.response.body" or message.get("more_body", False):
                return
            try:
                await _journal(scope, held)
            except HostError as error:
                _log.error("write not journalled", reason=str(error), path=scope["path"])
                answer = problems.unavailable_response(Request(scope), error)
                await answer.to_asgi_response(None, Request(scope))(scope, receive, send_on)
                return
            for each in held:
                await send_on(each)

        await app(scope, receive, send_on if _method(scope) in READS else hold)

    return asked


async def claim(request: Request[Any, Any, Any]) -> Response[bytes] | None:
    """The kept answer to a POST with an Idempotency-Key, or None: carry it out. Raises Refusal. After the caller and the body are known."""
    if request.method != "POST" or (key := request.headers.get("idempotency-key")) is None:
        return None
    if not (1 <= len(key) <= MAX_KEY_CHARS and key.isascii() and key.isprintable()):
        raise InvalidValue("Idempotency-Key", key, f"1 to {MAX_KEY_CHARS} printable ASCII characters")
    state, guards = request.scope["state"], _safeguards(request.scope)
    said = f"{request.method} {request.url.path}?{request.url.query}\n".encode() + state[problems.BODY_KEY]
    actor = caller_of(state).how
    kept = await guards.run(guards.answers.claim, actor, key, hashlib.sha256(said).hexdigest(), guards.wall_ns())
    if kept is None:
        state[CLAIM_KEY] = key
        return None
    state[REPLAY_KEY] = True
    headers = {"Idempotent-Replayed": "true"} | ({"Location": kept.location} if kept.location else {})
    return Response(kept.body.encode(), status_code=kept.status, media_type=kept.media_type, headers=headers)


async def _journal(scope: Scope, held: list[Message]) -> None:
    guards, state = _safeguards(scope), scope["state"]
    start = held[0]
    status = int(start["status"])  # type: ignore[typeddict-item]  # the first message is the start
    caller = caller_of(state)
    body = b"".join(message.get("body", b"") for message in held if message["type"] == "http.response.body")
    result = _result(status, body, bool(state.get(REPLAY_KEY)))
    key: str | None = state.get(CLAIM_KEY)

    def settle() -> None:
        if key is None:
            return
        if status in NOT_KEPT or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            guards.answers.release(caller.how, key)
            return
        headers = MutableScopeHeaders.from_message(start)
        kept = state.get(KEPT_KEY, body)
        answer = KeptAnswer(status=status, location=headers.get("location"), media_type=headers.get("content-type", ""), body=kept.decode())
        guards.answers.settle(caller.how, key, answer)

    if guards.worth_a_row(caller, result):
        await guards.note(_entry(scope, caller, status, result, guards.wall_ns()), settle)
    elif key is not None:
        await guards.run(settle)


def _entry(scope: Scope, caller: Caller, status: int, result: str, now_ns: int) -> AuditEntry:
    state = scope["state"]
    what: dict[str, object] = {}
    raw = state.get(problems.BODY_KEY)
    if raw:
        what["asked"] = told(raw)
    if BEFORE_KEY in state:
        what["before"] = state[BEFORE_KEY]
    template = scope.get("path_template", "")
    address = client[0] if (client := scope["client"]) is not None else ""
    return AuditEntry(
        time_ns=now_ns,
        actor=caller.name,
        role=caller.role.value if caller.role is not None and caller.known else "",
        how=caller.how if caller.known else f"address:{address}",
        action=f"{_method(scope)} {template}",
        target=scope["path"][:1024],
        what=msgspec.json.encode(what, order="sorted").decode(),
        status=status,
        result=result,
        request_id=state["request_id"],
    )


def told(raw: bytes) -> object:
    """What of a body a row may hold: its values where it is small JSON, without secrets; else its digest."""
    digest = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    if len(raw) > MAX_WHAT_BYTES:
        return digest
    try:
        return _without_secrets(msgspec.json.decode(raw))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return digest


def _without_secrets(value: object) -> object:
    if isinstance(value, dict):
        return {name: _digest(part) if _is_secret(name) else _without_secrets(part) for name, part in value.items()}
    return [_without_secrets(part) for part in value] if isinstance(value, list) else value


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in SECRETS)


def _digest(value: object) -> str | None:
    return None if value is None else "sha256:" + hashlib.sha256(msgspec.json.encode(value)).hexdigest()[:16]


class _Code(msgspec.Struct):
    code: str | None = None


def _result(status: int, body: bytes, replayed: bool) -> str:
    if status < HTTPStatus.BAD_REQUEST:
        return "replayed" if replayed else "ok"
    try:
        return msgspec.json.decode(body, type=_Code).code or f"http_{status}"
    except msgspec.DecodeError:
        return f"http_{status}"


def _method(scope: Scope) -> str:
    return scope["method"]  # type: ignore[typeddict-item]  # HTTP only: there are no websockets


def _safeguards(scope: Scope) -> Safeguards:
    guards: Safeguards = scope["litestar_app"].state["safeguards"]
    return guards
