"""The agent's /metrics for Prometheus on a loopback address, a UNIX socket, or both; off unless one is configured.

Why of our own: one page, plain HTTP/1.1, in the event loop that is there anyway; prometheus-client's server costs a thread per scrape and
knows no UNIX sockets. Requests are bounded in size, time and number; a client that breaks the rules loses its connection and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from shared.errors import ConfigError
from shared.metrics import CONTENT_TYPE

MAX_HEAD_BYTES: Final = 16 * 1024  # request line and headers; Prometheus sends a few hundred bytes
REQUEST_TIMEOUT_S: Final = 10.0  # Prometheus' own default
MAX_CONNECTIONS: Final = 16  # a scraper or two, and curl; further ones are closed at once


class Exporter:
    """Serves what `render` gives. `start` may be called again with other places."""

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render
        self._servers: list[asyncio.Server] = []
        self._socket: Path | None = None
        self._open = 0

    async def start(self, address: str, socket: str) -> None:
        """Listen on "HOST:PORT" and on a socket path; empty = not there. ConfigError when one cannot be had: then neither is served."""
        await self.stop()
        try:
            if address:
                host, _, port = address.rpartition(":")
                self._servers.append(await self._listen("exporter_address", address, lambda: self._tcp(host.strip("[]"), int(port))))
            if socket:
                self._socket = Path(socket)
                self._servers.append(await self._listen("exporter_socket", socket, lambda: self._unix(socket)))
        except ConfigError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Close the listeners."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            self._socket = None

    async def _listen(self, key: str, value: str, open_: Callable[[], object]) -> asyncio.Server:
        try:
            return await open_()  # type: ignore[misc, no-any-return]  # a lambda that gives a coroutine
        except (OSError, OverflowError) as error:
            raise ConfigError(f"{key} = {value!r}: {error}") from error

    async def _tcp(self, host: str, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._serve, host, port, limit=MAX_HEAD_BYTES)

    async def _unix(self, path: str) -> asyncio.Server:
        # asyncio removes what an agent that was killed left there; a live one holds the control socket, so we are the only one.
        # Readable for the group: the folder's own mode decides who gets here.
        mask = os.umask(0o117)
        try:
            return await asyncio.start_unix_server(self._serve, path, limit=MAX_HEAD_BYTES)
        finally:
            os.umask(mask)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                if self._open <= MAX_CONNECTIONS:
                    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_TIMEOUT_S)
                    writer.write(self._respond(head))
                    await asyncio.wait_for(writer.drain(), REQUEST_TIMEOUT_S)
        finally:
            self._open -= 1
            writer.close()

    def _respond(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        target = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", b"GET or HEAD\n")
        if target != b"/metrics":
            return _response("404 Not Found", b"/metrics\n")
        body = self._render()
        whole = _response("200 OK", body, CONTENT_TYPE)
        return whole if method == b"GET" else whole[: len(whole) - len(body)]


def _response(status: str, body: bytes, kind: str = "text/plain; charset=utf-8") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
