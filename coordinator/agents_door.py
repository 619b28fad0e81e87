"""Wiring of the agents' door: the gateway with its state of before, its certificates, limits and pace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from coordinator.gateway.admission import Admission, AdmissionLimits
from coordinator.gateway.server import GatewayServer
from coordinator.gateway.sessions import GatewayCore, GatewaySettings
from coordinator.store.registry import SqlRegistry
from coordinator.store.wal import Wal
from shared.clock import Clock
from shared.config import CoordinatorConfig
from shared.tls import server_context

TICK_S: Final = 1.0  # of the coordinator's clock
MIN_REAL_TICK_S: Final = 0.05


def agents_door(
    config: CoordinatorConfig,
    registry: SqlRegistry,
    wal: Wal,
    clock: Clock,
    *,
    epoch: int,
    on_message: Callable[..., Any],
    on_samples: Callable[..., Any],
    on_host: Callable[..., Any],
    on_unsent: Callable[..., Any],
) -> GatewayServer:
    """A gateway that has not started. `config.tls` is set."""
    tls = config.tls
    assert tls is not None
    return GatewayServer(
        GatewayCore(
            GatewaySettings(
                epoch=epoch,
                stale_host_s=config.cycle.stale_host_s,
                max_skew_s=config.max_clock_skew_s * max(1.0, config.clock.speed),  # what a message takes is real time
            ),
            acked=wal.high_water(),
            modes=registry.modes(),
            paused=registry.pauses(),
        ),
        wal,
        on_message,
        clock,
        ssl_context=server_context(Path(tls.ca), Path(tls.certificate), Path(tls.key)),
        host=config.listen_agents.host,
        port=config.listen_agents.port,
        admission=Admission(AdmissionLimits(max_agents=config.max_agents)),
        on_samples=on_samples,
        on_host=on_host,
        on_unsent=on_unsent,
        tick_s=max(MIN_REAL_TICK_S, TICK_S / (config.clock.speed or 1.0)),
    )
