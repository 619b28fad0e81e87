"""What is registered, as the API shows it, and what the API asks of whoever keeps it. Structs of /api/v1, see view.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from coordinator.placement.fleet.site import Pool
from coordinator.tenancy.book import Book
from coordinator.tenancy.checks import Member
from coordinator.tenancy.merging import Level
from coordinator.tenancy.model import ApplicationSpec, ClientSpec, EventSpec, Kind, PolicySpec, Row, SlaSpec, Spec
from shared.model import Identifier, Policy


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of every registered thing. Its ETag is made of `version`; a change needs it in If-Match."""

    version: int
    created_s: float
    changed_s: float
    changed_by: str


class ClientView(ClientSpec, frozen=True, kw_only=True):
    """A client and how many VMs it has now."""

    id: str
    record: Record
    vms: int


class ApplicationView(ApplicationSpec, frozen=True, kw_only=True):
    """An application and how many VMs it has now."""

    id: str
    record: Record
    vms: int


class SlaView(SlaSpec, frozen=True, kw_only=True):
    """An SLA and the clients that have it."""

    id: str
    record: Record
    clients: tuple[str, ...]


class PolicyView(PolicySpec, frozen=True, kw_only=True):
    """The policy of one level: `fleet`, `client/ID` or `vm/ID`."""

    id: str
    record: Record


class EventView(EventSpec, frozen=True, kw_only=True):
    """An event, when it comes next, and what is wrong with the calendar at its URL."""

    id: str
    record: Record
    next_start_s: int | None  # None = never again, or not known yet
    fetched_s: float | None  # when the calendar at `url` was last read
    problem: str | None


class ClientPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page, by id. `next_cursor` None = the last one."""

    items: tuple[ClientView, ...]
    total: int
    next_cursor: str | None


class ApplicationPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page, by id. `next_cursor` None = the last one."""

    items: tuple[ApplicationView, ...]
    total: int
    next_cursor: str | None


class SlaPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page, by id. `next_cursor` None = the last one."""

    items: tuple[SlaView, ...]
    total: int
    next_cursor: str | None


class PolicyPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page, by id. `next_cursor` None = the last one."""

    items: tuple[PolicyView, ...]
    total: int
    next_cursor: str | None


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page, by id. `next_cursor` None = the last one."""

    items: tuple[EventView, ...]
    total: int
    next_cursor: str | None


class NewClient(ClientSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A client under an id of the caller's."""

    id: Identifier


class NewApplication(ApplicationSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An application under an id of the caller's."""

    id: Identifier


class NewSla(SlaSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An SLA under an id of the caller's."""

    id: Identifier


class NewEvent(EventSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An event under an id of the caller's."""

    id: Identifier


class EffectivePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What is in force for a VM, what its domain says itself, and which level each field is from; others are built in."""

    vm_id: str
    policy: Policy
    domain: Policy
    origins: Mapping[str, Level]


class PoolView(msgspec.Struct, frozen=True, kw_only=True):
    """A pool of the site file with its prices and power, and the hosts that are in it now."""

    pool: Pool
    host_ids: tuple[str, ...]


class EventState(msgspec.Struct, frozen=True, kw_only=True):
    """What the calendar makes of an event."""

    next_start_s: int | None
    fetched_s: float | None
    problem: str | None


class TenancyView(Protocol):
    """Who keeps what is registered. Reads answer from memory; writes are durable, and in force, when they return."""

    @property
    def book(self) -> Book:
        """All of it."""
        ...

    def members(self) -> Mapping[str, Member]:
        """Whose each VM is now, by its policy in force."""
        ...

    def event_state(self, id_: str) -> EventState:
        """Of a registered event."""
        ...

    def effective(self, vm_id: str) -> EffectivePolicy | None:
        """None = no such VM."""
        ...

    def pools(self) -> tuple[PoolView, ...]:
        """Of the site file, or the built-in one."""
        ...

    def now_s(self) -> int:
        """Of the coordinator's clock."""
        ...

    async def create(self, kind: Kind, id_: str, spec: Spec, actor: str) -> Row[Spec]:
        """Raises Refusal: ALREADY_EXISTS, INVALID_VALUE."""
        ...

    async def replace(self, kind: Kind, before: Row[Spec], spec: Spec, actor: str) -> Row[Spec]:
        """Raises Refusal: VERSION_CHANGED, INVALID_VALUE."""
        ...

    async def remove(self, kind: Kind, before: Row[Spec], actor: str) -> None:
        """Raises Refusal: VERSION_CHANGED, IN_USE with the users."""
        ...
