"""The registered part of the API's double fleet: the real desk, on SQLite in memory, over a fleet of the double's VMs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar
from zoneinfo import ZoneInfo

import numpy as np
from plain_host import plain_capacity
from sqlalchemy import Engine, StaticPool, create_engine

from coordinator.cycle import DecisionCycle
from coordinator.learning.default_slas import DEFAULT_SLAS, RegisteredSlas
from coordinator.live_profiles import LiveProfiles
from coordinator.model import HistoryBlock
from coordinator.placement.fleet.site import DEFAULT_SITE
from coordinator.registered_calendars import RegisteredCalendars
from coordinator.sizing.feasible import Objectives
from coordinator.sizing.policy import SizingPolicy
from coordinator.store.tables import metadata
from coordinator.store.tenancy import TenancyStore
from coordinator.tenancy_desk import TenancyDesk
from shared.config import CycleConfig
from shared.messages import Hello, Inventory
from shared.model import Domain, Mode, Policy
from shared.units import GIB, NS_PER_S, RESOURCES

_T = TypeVar("_T")


class StillClock:
    """The coordinator's clock as far as the desk reads it."""

    def __init__(self, now_s: int) -> None:
        self.now_s = now_s

    def wall_ns(self) -> int:
        return self.now_s * NS_PER_S

    def monotonic_ns(self) -> int:
        return self.now_s * NS_PER_S

    async def sleep(self, seconds: float) -> None:
        self.now_s += int(seconds)


class DeskOffice:
    """What a desk needs around it: a decision cycle with VMs (vm_id -> host, policy), a clock, a log of what was audited."""

    def __init__(self, vms: dict[str, tuple[str, Policy]], now_s: int) -> None:
        self.clock = StillClock(now_s)
        self.cycle = DecisionCycle(CycleConfig(), SizingPolicy(), 1)
        self.audited: list[tuple[str, dict[str, str | int]]] = []
        for host_id in sorted({host for host, _ in vms.values()}):
            hello = Hello(
                host_id=host_id,
                boot_id="b",
                agent_version="0.1.0",
                wall_ns=now_s * NS_PER_S,
                capacity=plain_capacity(),
                mode=Mode.PREDICTIVE,
                mode_pinned=False,
            )
            self.cycle.fleet.hello(host_id, hello, now_s * NS_PER_S)
            domains = tuple(
                Domain(vm_id=vm_id, name=vm_id, vcpus_max=4, memory_max_bytes=8 * GIB, policy=policy)
                for vm_id, (host, policy) in sorted(vms.items())
                if host == host_id
            )
            self.cycle.fleet.inventory(host_id, Inventory(domains=domains))

    async def read(self, function: Callable[..., _T], *arguments: object) -> _T:
        return function(*arguments)

    def audit(self, event: str, **fields: str | int) -> None:
        self.audited.append((event, fields))


def memory_engine() -> Engine:
    """One SQLite database in memory for all connections, with every table."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    metadata.create_all(engine)
    return engine


def open_desk(office: DeskOffice, engine: Engine | None = None) -> TenancyDesk:
    calendars = RegisteredCalendars(None, lambda: office.clock.now_s)
    slas = RegisteredSlas(DEFAULT_SLAS)
    return TenancyDesk(
        office,
        TenancyStore(engine or memory_engine()),
        DEFAULT_SITE,
        configured=Objectives(),
        slas=slas,
        calendars=calendars,
    )


class DailyPast:
    """A history in which every VM is busy from noon to one."""

    def __init__(self) -> None:
        self.loads = 0

    def load(self, vm_ids: Sequence[str], end_s: int, buckets: int) -> HistoryBlock:
        self.loads += 1
        starts = end_s - 300 * np.arange(buckets - 1, -1, -1)
        busy = np.where(starts % 86_400 // 3600 == 12, 2000.0, 500.0).astype(np.float32)
        mean = np.broadcast_to(busy, (len(vm_ids), len(RESOURCES), buckets)).copy()
        capacity = np.full(mean.shape[:2], np.nan, np.float32)
        return HistoryBlock(vm_ids=tuple(vm_ids), end_s=end_s, mean=mean, peak=mean * 1.1, censored=mean * 0, capacity=capacity)


class TenancyDouble:
    """`tenancy` of FleetView."""

    home: dict[str, str]
    now_s: int

    def _client(self, vm_id: str) -> str:
        raise NotImplementedError

    @cached_property
    def office(self) -> DeskOffice:
        """Behind `tenancy`."""
        return DeskOffice({vm_id: (host, Policy(client=self._client(vm_id))) for vm_id, host in self.home.items()}, self.now_s)

    @cached_property
    def profiles(self) -> LiveProfiles:
        return LiveProfiles(self.office.clock, self.office.cycle, DailyPast(), ZoneInfo("UTC"))

    @cached_property
    def tenancy(self) -> TenancyDesk:
        return open_desk(self.office)
