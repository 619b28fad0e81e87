"""Live updates over HTTP: GET /api/v1/stream as text/event-stream, from the hub in streaming.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from litestar import Request, get
from litestar.datastructures import State
from litestar.params import QueryParameter
from litestar.response import ServerSentEvent, ServerSentEventMessage

from coordinator.service.answered import refused
from coordinator.service.problems import InvalidValue
from coordinator.service.safeguards import ABORT_KEY, Safeguards, caller_of
from coordinator.service.streaming import TOPICS, Hub, Reader
from shared.roles import Role

RETRY_MS: Final = 3000  # how long a browser waits before it comes back
MAX_ID_CHARS: Final = 64
BEGIN_S: Final = 10.0  # an answer begins in milliseconds, or its caller has gone
Topics = Annotated[str, QueryParameter(max_length=200, description=f"Of {', '.join(TOPICS)}, separated by commas; empty = all")]


@get("/stream", media_type="text/event-stream", responses=refused(s400="invalid_value: field, value and allowed", s429="rate_limited"))
async def stream(request: Request[Any, Any, Any], state: State, topics: Topics = "") -> ServerSentEvent:
    """What happens, as it happens. `Last-Event-ID` goes on where a stream broke off; an event `reset` says that some were lost."""
    guards: Safeguards = state["safeguards"]
    caller = caller_of(request.scope["state"])
    chosen = [topic for topic in topics.split(",") if topic] or TOPICS
    for topic in chosen:
        if topic not in TOPICS:
            raise InvalidValue("topics", topic, ", ".join(TOPICS))
    last_id = request.headers.get("last-event-id")
    client = (caller.client or "") if caller.role is Role.CLIENT else None
    abort = request.scope["state"].get(ABORT_KEY)
    reader = guards.hub.open(caller.how, chosen, client, None if last_id is None else last_id[:MAX_ID_CHARS], abort)
    asyncio.get_running_loop().call_later(BEGIN_S, guards.hub.close_unbegun, reader)
    return ServerSentEvent(_messages(guards.hub, reader), retry_duration=RETRY_MS, headers={"Cache-Control": "no-store"})


async def _messages(hub: Hub, reader: Reader) -> AsyncIterator[ServerSentEventMessage]:
    try:
        yield ServerSentEventMessage(data=None, comment="tidegate", retry=RETRY_MS)
        async for told in reader.told():
            if told.topic is None:
                yield ServerSentEventMessage(data=None, comment="still here")
            else:
                yield ServerSentEventMessage(data=told.data, event=told.topic, id=told.id)
    finally:
        hub.close(reader)


STREAM_READS: Final = (stream,)
