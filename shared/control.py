"""What is spoken on the agent's UNIX socket, and the client's side of it: one JSON object per line each way."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from shared.errors import HostError, Refusal
from shared.refusal import RefusalCode

REQUEST_TIMEOUT_S: Final = 10.0

# Longest honest text is a path or an id of 128 characters.
Text = Annotated[str, Meta(max_length=1024)]


class Unreachable(HostError):
    """No agent answers on the socket."""


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client asks: a command, its argument, and options by name."""

    command: Text
    argument: Text | None = None
    options: Annotated[dict[Text, Text], Meta(max_length=16)] = {}


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What it gets: a result, or an error with its refusal code where there is one."""

    ok: bool
    result: Any = None
    error: str = ""
    code: str = ""


def ask(
    path: Path,
    command: str,
    argument: str | None = None,
    timeout_s: float = REQUEST_TIMEOUT_S,
    options: Mapping[str, str] | None = None,
) -> Any:
    """One request from a client process. Raises Unreachable (no agent there), Refusal (it said no) or HostError (it failed)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
            connection.sendall(msgspec.json.encode(Request(command=command, argument=argument, options=dict(options or {}))) + b"\n")
            line = connection.makefile("rb").readline()
        except OSError as error:
            raise Unreachable(f"{path}: {error.strerror or error}; is tidegate-agent running?") from error
    if not line:
        raise Unreachable(f"{path}: the agent closed the connection")
    reply = msgspec.json.decode(line, type=Reply)
    if reply.ok:
        return reply.result
    try:
        code = RefusalCode(reply.code)
    except ValueError:
        raise HostError(reply.error) from None
    raise Refusal(code, reply.error)
