"""What the running coordinator's process is to those who answer questions about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from coordinator.alerting import Alerting
from coordinator.cycle import DecisionCycle, Instruction
from coordinator.demand.signals import SignalCounts, SignalReading
from coordinator.gateway.server import GatewayServer
from coordinator.placement.fleet.site import Site
from coordinator.ports import Pool
from coordinator.service.tenancy_view import TenancyView
from coordinator.store.compliance_store import ComplianceStore
from coordinator.store.history import ParquetHistory
from coordinator.store.registry import SqlRegistry
from shared.clock import Clock
from shared.config import CoordinatorConfig
from shared.metrics import Metrics

_T = TypeVar("_T")


class Running(Protocol):
    """What the view needs of the process around it. Times in ns of the coordinator's clock, `stages` in real milliseconds."""

    config: CoordinatorConfig
    clock: Clock
    cycle: DecisionCycle
    gateway: GatewayServer
    registry: SqlRegistry
    history: ParquetHistory
    metrics: Metrics
    minutes: ComplianceStore
    stages: dict[str, float]
    started_ns: int
    cycle_done_ns: int | None
    placed_ns: int | None

    @property
    def alerting(self) -> Alerting:
        """Its alerts."""
        ...

    @property
    def site(self) -> Site:
        """Pools and prices."""
        ...

    @property
    def tenancy(self) -> TenancyView:
        """What is registered."""
        ...

    @property
    def pool(self) -> Pool:
        """Where forecasts are made."""
        ...

    async def read(self, function: Callable[..., _T], *arguments: object) -> _T:
        """A store's read, behind the writes before it. HostError while the store is away."""
        ...

    async def look(self, function: Callable[..., _T], *arguments: object) -> _T:
        """A read that need not know of writes under way. HostError while the store is away."""
        ...

    @property
    def write(self) -> Callable[..., None]:
        """A store's write, in order behind the others and tried again until it is durable."""
        ...

    async def read_history(self, function: Callable[..., _T], *arguments: object) -> _T:
        """A read of history, behind the writes before it. HostError when its store does not answer."""
        ...

    def carry_out(self, instructions: list[Instruction]) -> None:
        """Perform what the cycle wants."""
        ...

    async def take_signals(self, readings: tuple[SignalReading, ...]) -> SignalCounts:
        """Durable when it returns."""
        ...

    def audit(self, event: str, **fields: str | int) -> None:
        """Who changed what."""
        ...

    def ready(self) -> tuple[bool, str]:
        """Whether decisions can be made now, and why (not)."""
        ...
