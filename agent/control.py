"""The agent's local door: a UNIX socket, one JSON object per line each way. Works with no coordinator.

The socket is the owner's: mode 0600, so whoever may open it may steer the agent. Requests are bounded in size and time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from shared.errors import HostError, Refusal
from shared.refusal import RefusalCode

MAX_REQUEST_BYTES = 64 * 1024  # a request is a word or two; more is a mistake
REQUEST_TIMEOUT_S = 10.0


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


Handler = Callable[[Request], Awaitable[Any]]


class ControlServer:
    """Serves `handler` on `path`. A Refusal raised by the handler becomes the reply; anything else is a bug and is raised."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Bind the socket. HostError when another live agent holds it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            if _answers(self._path):
                raise HostError(f"{self._path}: another agent is listening there")
            self._path.unlink()
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=MAX_REQUEST_BYTES)
        finally:
            os.umask(mask)

    async def stop(self) -> None:
        """Close and remove the socket."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # a client that goes away, dawdles or talks too much loses its connection and nothing else
        with contextlib.suppress(ConnectionError, TimeoutError, asyncio.LimitOverrunError, ValueError):
            line = await asyncio.wait_for(reader.readline(), REQUEST_TIMEOUT_S)
            if line:
                writer.write(msgspec.json.encode(await self._reply(line)) + b"\n")
                await asyncio.wait_for(writer.drain(), REQUEST_TIMEOUT_S)
        writer.close()

    async def _reply(self, line: bytes) -> Reply:
        try:
            request = msgspec.json.decode(line, type=Request)
            return Reply(ok=True, result=await self._handler(request))
        except msgspec.DecodeError as error:
            return Reply(ok=False, error=str(error), code=RefusalCode.INVALID_VALUE)
        except Refusal as refusal:
            return Reply(ok=False, error=refusal.detail, code=refusal.code)


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


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
        except OSError:
            return False
        return True
