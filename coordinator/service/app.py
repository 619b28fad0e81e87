"""Runs the HTTP application inside the coordinator's own event loop, with uvicorn, on loopback unless told otherwise; with TLS where it
has a certificate, and then who shows a client certificate is known by its common name.

The coordinator keeps its signal handling; uvicorn gets none. Bounds: MAX_CONNECTIONS at a time, HEAD_DEADLINE_S until the first
request's headers are complete, KEEP_ALIVE_S between requests; the body's are in edge.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from typing import Final

import uvicorn
from litestar import Litestar
from uvicorn.protocols.http.h11_impl import H11Protocol

from coordinator.service.api import create_app
from coordinator.service.auth import TokenVerifier
from coordinator.service.edge import LOOPBACK_NAMES
from coordinator.service.safeguards import ABORT_KEY, PEER_KEY, Safeguards, in_memory
from coordinator.service.view import FleetView
from shared.config_access import AccessConfig
from shared.errors import ConfigError
from shared.tls import https_context, peer_name

MAX_CONNECTIONS: Final = 256  # a status page needs 6, a scraper 1; more is somebody else's mistake
HEAD_DEADLINE_S: Final = 10.0
KEEP_ALIVE_S: Final = 15
STOP_S: Final = 3  # how long open requests may take when the process stops
START_S: Final = 30.0


class HttpService:
    """The HTTP door of one coordinator. `start` binds and serves, `stop` ends; `task` ends early only by a fault."""

    def __init__(
        self,
        view: FleetView,
        tokens: TokenVerifier,
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        config: AccessConfig = AccessConfig(),  # noqa: B008  # frozen
        safeguards: Safeguards | None = None,
    ) -> None:
        self.host = host
        self.port = port  # 0 = any free one; the real one after `start`
        self.task: asyncio.Task[None] | None = None
        self._view = view
        self._tokens = tokens
        self._config = config
        self._safeguards = in_memory(tokens) if safeguards is None else safeguards
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """Where the status page is."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._config.certificate else 'http'}://{shown}:{self.port}/"

    async def start(self) -> None:
        """Returns once requests are answered. ConfigError: the address cannot be bound, or a certificate is none."""
        context = https_context(self._config) if self._config.certificate else None
        listener = _listen(self.host, self.port)
        self.port = listener.getsockname()[1]
        loopback = is_loopback(self.host)
        app = create_app(
            self._view,
            self._tokens,
            open_reads=loopback and self._config.open_reads,
            host_names=LOOPBACK_NAMES if loopback else (),
            safeguards=self._safeguards,
        )
        server = self._server = _Server(_config(app, context))
        self.task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
        ready = asyncio.create_task(server.ready.wait())
        await asyncio.wait({self.task, ready}, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            self.task.cancel()
            raise RuntimeError("the HTTP server did not start")

    async def stop(self) -> None:
        """End the streams, finish open requests (at most STOP_S seconds) and close the listener. Idempotent."""
        if self._server is not None and self.task is not None:
            self._safeguards.hub.end()
            self._server.should_exit = True
            await self.task
            self._server = None


def is_loopback(host: str) -> bool:
    """True where only this machine can reach `host`. A name other than localhost counts as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the process's own handlers stay in force

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


class _Protocol(H11Protocol):
    """uvicorn's own has no deadline for receiving a request: idle or dribbling connections would use up MAX_CONNECTIONS."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn declares it
        super().connection_made(transport)
        peer = peer_name(transport.get_extra_info("ssl_object"))
        self.app_state = {**self.app_state, PEER_KEY: peer, ABORT_KEY: transport.abort}
        self.loop.call_later(HEAD_DEADLINE_S, self._close_headless)

    def _close_headless(self) -> None:
        if getattr(self, "cycle", None) is None and not self.transport.is_closing():  # typed as never None, and is until a request begins
            self.transport.close()


def _config(app: Litestar, context: ssl.SSLContext | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        ssl_context_factory=None if context is None else (lambda _config, _default: context),
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
        h11_max_incomplete_event_size=16 * 1024,  # bytes of request line and headers
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(f"http: cannot listen on {host} port {port}: {error}") from error
    listener.setblocking(False)
    return listener
