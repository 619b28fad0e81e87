"""What can be registered, as data: the bodies that /api/v1 takes and the registry stores.

Unknown or not set is None and means "as the level above says". Every number has both bounds here, and ALLOWED says them in words for
refusals. Invariant: a spec that exists is valid by itself; `checks.py` says what it must agree with.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from coordinator.learning.objectives import MAX_OBJECTIVES, METRICS, Objective
from coordinator.model import SIGNALS
from shared.model import Identifier, Mode

PriorityName = Literal["low", "normal", "high", "critical"]
WorkloadClass = Literal["web", "database", "cache", "queue", "batch", "desktop", "build", "other"]
SignalName = Literal["requests_per_s", "queue_length"]
Trigger = Literal["cpu", "memory", "disk", "net"]

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Text = Annotated[str, Meta(max_length=1024)]
Limit = Annotated[int, Meta(ge=0, le=2**53)]

MAX_CALENDAR_CHARS: Final = 48 * 1024  # a request's body holds 64 KiB, and JSON doubles some characters
MAX_URL_CHARS: Final = 2048
MAX_EVENT_VMS: Final = 500  # named one by one; more are a client or an application
MAX_DURATION_S: Final = 366 * 86_400
MAX_TIME_S: Final = 7_258_118_400  # year 2200
LEAST_REFRESH_S: Final = 300

# How many of a kind there may be: they are kept in memory, and a list answers from there.
BOUNDS: Final = {"client": 10_000, "application": 20_000, "sla": 1_000, "policy": 60_000, "event": 2_000}


class Kind(StrEnum):
    """What is registered."""

    CLIENT = "client"
    APPLICATION = "application"
    SLA = "sla"
    POLICY = "policy"
    EVENT = "event"


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a caller says of one thing."""


class ClientSpec(Spec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somebody whose VMs run here. VMs belong to it whose policy names its id as their client."""

    name: Name
    contact: Text = ""
    priority: PriorityName | None = None  # of its VMs whose own policy says nothing
    sla: Identifier | None = None
    budget_permille: Annotated[float, Meta(ge=0.01, le=1000)] | None = None  # error budget in place of its SLA's

    def __post_init__(self) -> None:
        _printable("name", self.name)


class ApplicationSpec(Spec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of what a client runs. VMs belong to it whose policy names its client and `label` as their application."""

    client: Identifier
    name: Name
    label: Name | None = None  # None = its id
    workload_class: WorkloadClass = "other"
    signals: Annotated[tuple[SignalName, ...], Meta(max_length=len(SIGNALS))] = ()  # that it means to tell

    def __post_init__(self) -> None:
        _printable("name", self.name)
        if len(set(self.signals)) != len(self.signals):
            raise ValueError("signals: each once")


class SlaSpec(Spec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Objectives under a name."""

    name: Name
    objectives: Annotated[tuple[Objective, ...], Meta(min_length=1, max_length=MAX_OBJECTIVES)]

    def __post_init__(self) -> None:
        _printable("name", self.name)
        if len({each.metric for each in self.objectives}) != len(self.objectives):
            raise ValueError("objectives: each metric once")


class PolicySpec(Spec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules of one level: the fleet, a client or a VM. None = as the level above says. `client` and `application`: of a VM only."""

    client: Identifier | None = None
    application: Name | None = None
    priority: PriorityName | None = None
    mode: Mode | None = None  # the most that is done with these VMs, whatever their host's mode
    excluded: bool | None = None
    size_quantile: Annotated[float, Meta(ge=0.5, le=0.99)] | None = None
    cpu_floor_millicores: Limit | None = None
    cpu_ceiling_millicores: Limit | None = None
    memory_floor_bytes: Limit | None = None
    memory_ceiling_bytes: Limit | None = None
    net_floor_bits_per_s: Limit | None = None
    net_ceiling_bits_per_s: Limit | None = None
    disk_floor_bytes_per_s: Limit | None = None
    disk_ceiling_bytes_per_s: Limit | None = None

    def __post_init__(self) -> None:
        for floor, ceiling in BANDS:
            low, high = getattr(self, floor), getattr(self, ceiling)
            if low is not None and high is not None and low > high:
                raise ValueError(f"{floor}: {low} is above {ceiling} {high}; allowed: at most {high}")


BANDS: Final = tuple(
    (f"{what}_floor_{unit}", f"{what}_ceiling_{unit}")
    for what, unit in (("cpu", "millicores"), ("memory", "bytes"), ("net", "bits_per_s"), ("disk", "bytes_per_s"))
)


class EventSpec(Spec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that is known to come: once (`start_s`), by a rule (`start_s` and `rrule`), or as a calendar (`ical`, or the one at `url`).

    Without client, application and VMs it touches the whole fleet. `effect` as in calendars: "cpu=x3 memory=+2GiB". Of a calendar, scope
    and effect hold for entries that have none of their own.
    """

    name: Name
    category: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$")] = "event"
    client: Identifier | None = None
    application: Name | None = None
    vm_ids: Annotated[tuple[Identifier, ...], Meta(max_length=MAX_EVENT_VMS)] = ()
    effect: Text = ""
    start_s: Annotated[int, Meta(ge=0, le=MAX_TIME_S)] | None = None
    duration_s: Annotated[int, Meta(ge=1, le=MAX_DURATION_S)] | None = None
    rrule: Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"^[A-Za-z0-9=;,:+-]+$")] | None = None
    time_zone: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_+/-]+$")] = "UTC"  # of the rule
    ical: Annotated[str, Meta(min_length=1, max_length=MAX_CALENDAR_CHARS)] | None = None
    url: Annotated[str, Meta(min_length=8, max_length=MAX_URL_CHARS, pattern=r"^https?://[!-~]+$")] | None = None
    refresh_s: Annotated[int, Meta(ge=LEAST_REFRESH_S, le=604_800)] = 3600  # how often `url` is fetched

    def __post_init__(self) -> None:
        _printable("name", self.name)
        given = [name for name in ("start_s", "ical", "url") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"start_s: {len(given)} of start_s, ical and url are given; allowed: exactly one")
        if (self.start_s is None) != (self.duration_s is None):
            raise ValueError("duration_s: allowed with start_s, and needed there")
        if self.rrule is not None and self.start_s is None:
            raise ValueError("rrule: allowed with start_s")


class TriggerSpec(Spec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an outside system says is about to happen, such as the launch of a campaign."""

    name: Name
    factor: Annotated[float, Meta(ge=0, le=1000)]  # of the demand that would be there without it
    duration_s: Annotated[int, Meta(ge=60, le=30 * 86_400)]
    start_s: Annotated[int, Meta(ge=0, le=MAX_TIME_S)] | None = None  # None = now
    client: Identifier | None = None
    application: Name | None = None
    vm_ids: Annotated[tuple[Identifier, ...], Meta(max_length=MAX_EVENT_VMS)] = ()
    resources: Annotated[tuple[Trigger, ...], Meta(min_length=1, max_length=4)] = ("cpu", "net")
    reference: Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z0-9._:@-]*$")] = ""  # the caller's own id: told twice it is one event

    def __post_init__(self) -> None:
        _printable("name", self.name)
        if not (self.client or self.application or self.vm_ids):
            raise ValueError("client: one of client, application and vm_ids is needed")


SPECS: Final[dict[Kind, type[Spec]]] = {
    Kind.CLIENT: ClientSpec,
    Kind.APPLICATION: ApplicationSpec,
    Kind.SLA: SlaSpec,
    Kind.POLICY: PolicySpec,
    Kind.EVENT: EventSpec,
}
FLEET_POLICY: Final = "fleet"  # ids of policies: this, client/ID and vm/ID

S_co = TypeVar("S_co", bound=Spec, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Row(Generic[S_co]):
    """One registered thing. `version` grows by one with every change; times are Unix ns."""

    id: str
    spec: S_co
    version: int
    created_ns: int
    changed_ns: int
    changed_by: str

    @property
    def etag(self) -> str:
        """The same for the same state only, also where an id is used again."""
        return f'"{self.version}-{self.created_ns:x}"'


# What each field takes, in words, for refusals.
ALLOWED: Final[dict[str, str]] = {
    "name": "1 to 256 printable characters",
    "client": "the id of a client of /api/v1/clients",
    "mode": ", ".join(Mode),
    "contact": "at most 1024 characters",
    "priority": "low, normal, high, critical, or null",
    "sla": "the id of an SLA of /api/v1/slas, or null",
    "budget_permille": "a number from 0.01 to 1000, or null",
    "label": "1 to 256 characters",
    "workload_class": "web, database, cache, queue, batch, desktop, build, other",
    "signals": ", ".join(SIGNALS) + ", each once",
    "objectives": f"1 to {MAX_OBJECTIVES} objectives, each metric once",
    "metric": ", ".join(METRICS),
    "threshold_permille": "an integer from 0 to 1000",
    "share_permille": "a number from 500 to 999.99",
    "period_s": "an integer from 3600 to 7776000",
    "excluded": "true, false, or null",
    "size_quantile": "a number from 0.5 to 0.99, or null",
    **{field: "an integer from 0 to 9007199254740992, or null, floor <= ceiling" for band in BANDS for field in band},
    "category": "1 to 64 lower-case letters, digits or . _ -",
    "application": "1 to 256 characters, or null",
    "vm_ids": f"at most {MAX_EVENT_VMS} ids of VMs",
    "effect": "words such as cpu=+1500m memory=+2GiB disk=x3 net=x2",
    "start_s": "Unix seconds; exactly one of start_s, ical and url",
    "duration_s": f"an integer of seconds from 1 to {MAX_DURATION_S}, with start_s",
    "rrule": "a rule of RFC 5545 such as FREQ=WEEKLY;BYDAY=MO, with start_s",
    "time_zone": "a name of the IANA database, such as UTC or Europe/Berlin",
    "ical": f"an iCalendar of at most {MAX_CALENDAR_CHARS} characters",
    "url": "the http or https address of an iCalendar",
    "refresh_s": f"an integer from {LEAST_REFRESH_S} to 604800",
    "factor": "a number from 0 to 1000",
    "resources": "cpu, memory, disk, net",
    "reference": "at most 64 letters, digits or . _ : @ -",
}


def _printable(field: str, text: str) -> None:
    if not text.strip() or not text.isprintable():
        raise ValueError(f"{field}: {text!r}; allowed: 1 to 256 printable characters")
