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

from shared.control import REQUEST_TIMEOUT_S, Reply, Request
from shared.errors import HostError, Refusal
from shared.refusal import RefusalCode

MAX_REQUEST_BYTES = 64 * 1024  # a request is a word or two; more is a mistake

Handler = Callable[[Request], Awaitable[Any]]


class ControlServer:
    """Serves `handler` on `path`. A Refusal or HostError raised by the handler becomes the reply; anything else is a bug and is raised."""

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
        with contextlib.suppress(ConnectionError, TimeoutError):
            if reply := await self._read(reader):
                writer.write(msgspec.json.encode(reply) + b"\n")
                await asyncio.wait_for(writer.drain(), REQUEST_TIMEOUT_S)
        writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Reply | None:
        try:
            line = await asyncio.wait_for(reader.readline(), REQUEST_TIMEOUT_S)
        except ValueError:  # what asyncio makes of a line over the limit
            return Reply(ok=False, error=f"a request has at most {MAX_REQUEST_BYTES} bytes", code=RefusalCode.INVALID_VALUE)
        return await self._reply(line) if line else None

    async def _reply(self, line: bytes) -> Reply:
        try:
            request = msgspec.json.decode(line, type=Request)
            return Reply(ok=True, result=await self._handler(request))
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            return Reply(ok=False, error=str(error), code=RefusalCode.INVALID_VALUE)
        except Refusal as refusal:
            return Reply(ok=False, error=refusal.detail, code=refusal.code)
        except HostError as error:
            return Reply(ok=False, error=str(error))


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
        except OSError:
            return False
        return True
