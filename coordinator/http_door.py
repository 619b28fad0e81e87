"""Wiring of the coordinator's HTTP side: who may come in, what is journalled, what is streamed, and the server itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coordinator.fleet import Fleet
from coordinator.news import News
from coordinator.service.app import HttpService
from coordinator.service.auth import TokenVerifier
from coordinator.service.safeguards import Safeguards
from coordinator.service.streaming import Hub
from coordinator.service.view import FleetView
from coordinator.store.registry import SqlRegistry
from coordinator.store.tokens import KnownGrants, TokenStore
from shared.config import CoordinatorConfig
from shared.metrics import Metrics


class HttpDoor:
    """`http` is started and stopped by the process; `hub` takes what live updates tell, `news` tells what the fleet does."""

    def __init__(
        self,
        config: CoordinatorConfig,
        view: FleetView,
        registry: SqlRegistry,
        fleet: Fleet,
        *,
        epoch: int,
        read: Callable[..., Any],
        trouble: Callable[[], str],
        metrics: Metrics,
    ) -> None:
        self.hub = Hub(epoch, streams=config.access.streams, per_caller=config.access.streams_per_caller)
        self.news = News(self.hub, fleet)
        grants = KnownGrants(TokenStore(registry.engine), trouble)
        verifier = TokenVerifier(grants(), refresh=grants)
        self.http = HttpService(
            view,
            verifier,
            host=config.listen_http.host,
            port=config.listen_http.port,
            config=config.access,
            safeguards=Safeguards(verifier, registry.engine, read, self.hub, config.access, metrics=metrics),
        )
