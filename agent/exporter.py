"""The agent's /metrics for Prometheus: one plain HTTP page, off unless an address is configured."""

from __future__ import annotations

import threading
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server

from shared.errors import ConfigError
from shared.metrics import Metrics


class Exporter:
    """Serves `metrics` on "HOST:PORT"; an empty address serves nothing."""

    def __init__(self, address: str, metrics: Metrics) -> None:
        self._address, self._metrics = address, metrics
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """ConfigError when the address cannot be had."""
        if not self._address:
            return
        host, _, port = self._address.rpartition(":")
        try:
            self._server, self._thread = start_http_server(int(port), addr=host, registry=self._metrics.registry)
        except OSError as error:
            raise ConfigError(f"exporter_address = {self._address!r}: {error}") from error

    async def stop(self) -> None:
        """Close the listener."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
