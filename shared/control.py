"""What is spoken on the agent's UNIX socket, and the client's side of it: one JSON object per line each way."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Final

import msgspec

from shared.errors import HostError, Refusal
from shared.refusal import RefusalCode

REQUEST_TIMEOUT_S: Final = 10.0


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client asks: a command and its argument."""

    command: str
    argument: str | None = None


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What it gets: a result, or an error with its refusal code where there is one."""

    ok: bool
    result: Any = None
    error: str = ""
    code: str = ""


def ask(path: Path, command: str, argument: str | None = None, timeout_s: float = REQUEST_TIMEOUT_S) -> Any:
    """One request from a client process. Raises HostError (no agent there) or Refusal (it said no)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
            connection.sendall(msgspec.json.encode(Request(command=command, argument=argument)) + b"\n")
            line = connection.makefile("rb").readline()
        except OSError as error:
            raise HostError(f"{path}: {error.strerror or error}; is tidegate-agent running?") from error
    if not line:
        raise HostError(f"{path}: the agent closed the connection")
    reply = msgspec.json.decode(line, type=Reply)
    if reply.ok:
        return reply.result
    try:
        code = RefusalCode(reply.code)
    except ValueError:
        raise HostError(reply.error) from None
    raise Refusal(code, reply.error)
