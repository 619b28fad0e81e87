"""The edge of the HTTP service: what every request must pass and every response carries, whatever the route.

Host names, callers and query parameters are checked before a handler runs; bodies are bounded in size and in time. Invariant: no
handler sees a request that failed one of these.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from litestar import Request, Response
from litestar.connection import ASGIConnection
from litestar.datastructures import MutableScopeHeaders
from litestar.handlers import BaseRouteHandler
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.service import access, journalled, problems
from coordinator.service.callers import CALLER
from coordinator.service.problems import InvalidValue
from coordinator.service.safeguards import Safeguards

MAX_BODY_BYTES: Final = 64 * 1024  # the largest honest request has under 200
BODY_DEADLINE_S: Final = 10.0  # uvicorn has no deadline of its own for receiving a request
LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Connection = ASGIConnection[Any, Any, Any, Any]


def check_host(connection: Connection, _: BaseRouteHandler) -> None:
    """Refuse a Host header that is none of our names."""
    names = connection.app.state["host_names"]
    header = connection.headers.get("host", "")
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header
    if names and name.lower() not in names:
        raise InvalidValue("Host", header, ", ".join(sorted(names)), status=421)


def check_query(connection: Connection, handler: BaseRouteHandler) -> None:
    """Refuse query parameters that the handler does not have: a misspelt one would silently mean its default."""
    # `from` and `format` are words of Python: their parameters end with an underscore
    known = {name.rstrip("_") for name in handler.parsed_fn_signature.parameters} - {"state", "request", "data"}
    for name in connection.query_params:
        if name not in known:
            allowed = ", ".join(sorted(known - connection.path_params.keys())) or "none"
            raise InvalidValue(name, "a query parameter of this name", allowed)


async def check_access(connection: Connection, _: BaseRouteHandler) -> None:
    """Who asks, whether the route is for them, and whether they ask too often. The caller's name is kept as the actor."""
    app_state, scope = connection.app.state, connection.scope
    guards: Safeguards = app_state["safeguards"]
    method: str = scope["method"]  # type: ignore[typeddict-item]  # HTTP only: there are no websockets
    caller = await guards.identify(connection, app_state["open_reads"])
    connection.state["caller"], connection.state["actor"] = caller, caller.name
    CALLER.set(caller)
    access.check(caller, method, scope["path_template"])
    guards.admit(caller, writes=method not in journalled.READS)


async def keep_body(request: Request[Any, Any, Any]) -> Response[bytes] | None:
    """Keep what a writer sent, for refusals and the audit; the answer itself where it was given before (Idempotency-Key)."""
    if request.method in journalled.READS:
        return None
    request.state[problems.BODY_KEY] = body = await request.body()
    try:
        body.decode()
    except UnicodeDecodeError as error:  # the JSON decoder itself fails on these only where they are in names
        raise InvalidValue("body", f"byte {error.start}, which is no UTF-8", "a JSON object in UTF-8") from None
    return await journalled.claim(request)


def body_deadline(app: ASGIApp) -> ASGIApp:
    """A caller that dribbles its body is cut off after BODY_DEADLINE_S seconds in all."""

    async def deadlined(scope: Scope, receive: Receive, send: Send) -> None:
        deadline = asyncio.get_running_loop().time() + BODY_DEADLINE_S
        complete = False

        async def receive_in_time() -> Any:
            nonlocal complete
            if complete:  # what follows a whole body is only the disconnect, which may take as long as it likes
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise InvalidValue("body", "its pace", f"all of it within {BODY_DEADLINE_S:.0f} seconds", status=408) from None
            complete = not message.get("more_body", False)
            return message

        await app(scope, receive_in_time, send)

    return deadlined


async def add_security_headers(message: Message, scope: Scope) -> None:
    """On every response, errors included."""
    if message["type"] == "http.response.start":
        headers = MutableScopeHeaders.from_message(message)
        for name, value in SECURITY_HEADERS.items():
            headers[name] = value
        headers.setdefault("Cache-Control", "no-store")
