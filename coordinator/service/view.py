"""What the HTTP layer needs from the running coordinator: one Protocol and the structs that it returns.

The API answers with exactly these structs, so this file is the schema of /api/v1. Units are in the names; `_s` is Unix seconds of the
coordinator's clock. Invariant: unknown is None, UNLIMITED (-1) is "nothing limits"; no method blocks: what reads a disk is async.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal, Protocol

import msgspec
from msgspec import Meta

from coordinator.model import Receipt
from coordinator.service.alerts import AlertsView
from coordinator.service.compliance import ComplianceView
from coordinator.service.explained import ForecastWhyView
from coordinator.service.forecasts import ForecastRow, ForecastView, Resource
from coordinator.service.migrations import MigrationView
from coordinator.service.operations import OperationsView
from coordinator.service.outlooks import OutlookView
from coordinator.service.placing import PlacingView
from coordinator.service.profiling import ProfilesView
from coordinator.service.reports import ReportsView
from coordinator.service.signals import SignalBatch, SignalHistory, SignalsTaken, SignalState
from coordinator.service.sizing import HostLoad, SizingView
from coordinator.service.tenancy_view import TenancyView
from coordinator.service.vm_past import VmPastView
from shared.model import Allocation, Capabilities, HostCapacity, Mode, Policy
from shared.plan import Outcome, Plan, Step
from shared.refusal import RefusalCode

PriorityName = Literal["low", "normal", "high", "critical"]
GroupKind = Literal["app", "client", "host", "fleet"]
Window = Literal["hour", "day", "total"]

# Every number a caller may send, with both bounds; refusals quote this table.
BOUNDS: Final[dict[str, tuple[int, int]]] = {
    "horizon_minutes": (5, 60),
    "hours": (1, 168),
    "days": (1, 28),
    "limit": (1, 1000),
    "vcpus": (1, 4096),
    "memory_bytes": (1, 2**53),
    "cpu_quota_millicores": (10, 4_096_000),  # below 10 the kernel's smallest quota (1 ms in 100 ms) cannot follow
}


def _bounded(name: str) -> Meta:
    low, high = BOUNDS[name]
    return Meta(ge=low, le=high)


class StageTime(msgspec.Struct, frozen=True, kw_only=True):
    """Duration of one stage of the last decision cycle, real milliseconds."""

    stage: str
    wall_ms: float


class FleetSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet in one look."""

    name: str
    version: str
    epoch: int
    cycle: int  # decision cycles completed in this epoch
    now_s: float  # the coordinator's clock
    clock_speed: float | None  # simulated seconds per real second; None = real time
    hosts_alive: int
    hosts_silent: int
    vms: int
    agents_connected: int
    last_cycle_s: float | None  # when the last cycle ended; None = none yet
    last_cycle_wall_ms: float | None  # its real duration
    stages: tuple[StageTime, ...] = ()


class Committed(msgspec.Struct, frozen=True, kw_only=True):
    """Sum of the allocations in force on a host; None = a VM's allocation is unknown or unlimited, so no sum can be given."""

    cpu_millicores: int | None = None
    memory_bytes: int | None = None
    net_bits_per_s: int | None = None


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """One host. A silent host counts as full: nothing is planned for it or moved to it; `silent_reason` says why."""

    id: str
    alive: bool
    counts_as_full: bool
    silent_reason: str | None
    mode: Mode  # in force, as the agent reported it last
    mode_pinned: bool  # pinned on the host: wins over the API
    mode_ordered: Mode | None  # what the API asked for, None = nothing
    paused: bool  # the API's kill switch, for this host or the fleet
    paused_by: tuple[str, ...]  # who holds it, as the agent reported last: owner, file, coordinator
    vms_yielded: int  # VMs left alone because somebody else changed them
    capacity: HostCapacity
    committed: Committed
    cpu_used_millicores: int | None
    memory_available_bytes: int | None
    vm_ids: tuple[str, ...]
    last_seen_s: float | None
    spool_frames: int | None  # waiting on the agent's disk for acknowledgement
    spool_dropped: int | None  # lost for ever because the spool was full
    hypervisor: str = ""
    agent_version: str = ""
    clock_offset_s: float | None = None  # host's clock less ours, positive = ahead; None = not measured by this process
    load: tuple[HostLoad, ...] = ()  # what it must carry within the hour; empty before the first decision


class ResourceState(msgspec.Struct, frozen=True, kw_only=True):
    """One resource of one VM now."""

    resource: Resource
    allocation: int | None  # in force; -1 = unlimited
    demand: float | None  # mean demand of the newest bucket, de-censored
    peak: float | None  # largest 5-second demand in that bucket
    censored: float | None  # share of its samples (0..1) in which usage ran into the limit
    model: str | None  # forecast model with the largest weight
    reason: str | None  # why there is no model of its own: cold_start, all_unknown, gap, out_of_calibration
    coverage: float | None  # realised coverage of the 80 % band of late, 0..1
    control: Mode  # in force for this resource: `reactive` on a predictive host while `reason` makes its forecast unusable


class VmView(msgspec.Struct, frozen=True, kw_only=True):
    """One VM: what it may have, has, and needs."""

    id: str
    name: str
    host_id: str
    client: str
    application: str
    priority: PriorityName
    running: bool
    mode: Mode  # in force for this VM: its host's, or less
    mode_reason: str | None  # why it is less than the host's
    vcpus_max: int
    memory_max_bytes: int
    net_max_bits_per_s: int
    allocation: Allocation
    resources: tuple[ResourceState, ...]
    capabilities: Capabilities
    policy: Policy
    violation_minutes: float | None  # since the scores began; demand above what was granted
    signals: tuple[SignalState, ...] = ()  # what its applications told of their load within a day


class VmPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of VMs in the order of their ids. `next_cursor` None = this was the last page."""

    items: tuple[VmView, ...]
    total: int
    next_cursor: str | None


class GroupOutlook(msgspec.Struct, frozen=True, kw_only=True):
    """What the sum of a group's VMs is expected to need of one resource within the next hour. The band holds 80 %."""

    resource: Resource
    known: float  # share of the members that have a forecast, 0..1: the sums are of those alone
    reason: str | None
    coverage: float | None
    mean_now: float | None  # of the bucket that is being filled
    mean_hour: float | None  # of the bucket an hour ahead, and its band
    low_hour: float | None
    high_hour: float | None
    highest: float | None  # .95 quantile of the highest bucket mean within the hour


class GroupSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One group: the VMs of an application, a client or a host, or (name "") the whole fleet."""

    kind: GroupKind
    name: str
    members: int
    resources: tuple[GroupOutlook, ...]


class GroupList(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet, then hosts, clients and applications, by name. `total` counts those that `limit` left out too."""

    issued_s: int | None  # None = no forecast was made yet, or `cycle.aggregates` is off
    total: int
    items: tuple[GroupSummary, ...]


class GroupResourceForecast(msgspec.Struct, frozen=True, kw_only=True):
    """The coming steps of the sum; `peak_quantiles` of its rows are those of the highest bucket mean from now to the step's end."""

    resource: Resource
    known: float
    reason: str | None
    coverage: float | None
    rows: tuple[ForecastRow, ...]


class GroupForecastView(msgspec.Struct, frozen=True, kw_only=True):
    """What a group will need: its own calibrated distribution, never a sum of its VMs' quantiles."""

    kind: GroupKind
    name: str
    members: int
    issued_s: int
    horizon_minutes: int
    levels: tuple[float, ...]
    resources: tuple[GroupResourceForecast, ...]


class ResourceAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """How good the forecasts of one resource were. None = nothing scored. mae and bias are in the resource's unit."""

    resource: Resource
    pairs: float  # forecasts that were scored; in a window that fades, by their age
    to_naive: float | None  # pinball loss over that of Naive (last value) on the same pairs; below 1 is better
    to_demand: float | None  # pinball loss over the mean demand
    mae: float | None  # of the median
    bias: float | None  # mean forecast less actual
    coverage_80: float | None  # share of actuals inside the central 80 % band
    coverage_95: float | None
    above: float | None  # share of actuals above the 97.5 % bound; .025 is meant


class NamedAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Of one model, client, application or part of the horizon."""

    name: str
    resources: tuple[ResourceAccuracy, ...]


class WorstForecast(msgspec.Struct, frozen=True, kw_only=True):
    """A series that is forecast badly; the ratio is drawn towards 1 while there is little evidence."""

    vm_id: str
    vm_name: str
    resource: Resource
    to_naive: float
    pairs: float


class AccuracyView(msgspec.Struct, frozen=True, kw_only=True):
    """Forecast against actual, of the last hour or day (older pairs fade out) or since the coordinator started."""

    window: Window
    fleet: tuple[ResourceAccuracy, ...]
    horizons: tuple[NamedAccuracy, ...]  # by minutes ahead, "5" to "60"
    models: tuple[NamedAccuracy, ...]  # by the model with the largest weight
    clients: tuple[NamedAccuracy, ...]  # those with most pairs, at most `limit`; "" = of no client
    applications: tuple[NamedAccuracy, ...]  # as clients
    worst: tuple[WorstForecast, ...]  # at most `limit`


class VmAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """The same of one VM by part of the horizon: "5-10", "15-30" and "35-60" minutes ahead; no `horizons` = not scored yet."""

    vm_id: str
    window: Window
    horizons: tuple[NamedAccuracy, ...]


class ResourceHistory(msgspec.Struct, frozen=True, kw_only=True):
    """Aligned series of 5-minute buckets, oldest first. `forecast_*` were issued `lead_minutes` before the bucket began."""

    resource: Resource
    start_s: tuple[int, ...]
    demand: tuple[float | None, ...]
    peak: tuple[float | None, ...]
    censored: tuple[float | None, ...]
    allocation: tuple[float | None, ...]  # None = unknown or unlimited
    forecast_mean: tuple[float | None, ...]
    forecast_q10: tuple[float | None, ...]
    forecast_q90: tuple[float | None, ...]


class HistoryView(msgspec.Struct, frozen=True, kw_only=True):
    """What one VM needed, was given, and was expected to need."""

    vm_id: str
    lead_minutes: int
    resources: tuple[ResourceHistory, ...]
    signals: tuple[SignalHistory, ...] = ()  # over the same buckets; none where none were told


class OutcomeView(msgspec.Struct, frozen=True, kw_only=True):
    """A host's true answer to one step."""

    host_id: str
    vm_name: str
    outcome: Outcome


class ModeScore(msgspec.Struct, frozen=True, kw_only=True):
    """How one control mode did over the same period. None = not known yet."""

    mode: Mode
    hosts: int
    vms: int
    violation_minutes: float | None  # VM-minutes in which demand passed the grant
    violation_depth: float | None  # mean share of demand not served while in violation, 0..1
    allocation_over_use: float | None  # mean allocation / mean demand
    steps_applied: int
    steps_refused: int
    pinball: float | None  # mean pinball loss of the forecasts, divided by the mean demand
    naive_pinball: float | None  # the same for Naive (last value)


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """Scores by mode over [since_s, until_s)."""

    since_s: float
    until_s: float
    modes: tuple[ModeScore, ...]


class AdjustRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """adjust_resources: what one VM shall get. At least one of the three; None = leave alone."""

    vcpus: Annotated[int, _bounded("vcpus")] | None = None
    memory_bytes: Annotated[int, _bounded("memory_bytes")] | None = None
    cpu_quota_millicores: Annotated[int, _bounded("cpu_quota_millicores")] | None = None
    dry_run: bool = False


class AdjustResult(msgspec.Struct, frozen=True, kw_only=True):
    """The steps that were sent to the host (dry_run: would be sent). The host's answer follows in /outcomes."""

    vm_id: str
    host_id: str
    dry_run: bool
    steps: tuple[Step, ...]
    receipt_id: str | None = None
    trail: tuple[str, ...] = ()
    operation_id: str | None = None  # of /api/v1/operations; None = dry_run


class ModeOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Order one host into a control mode."""

    mode: Mode


class PauseOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Throw (true) or release the kill switch."""

    paused: bool


class PauseView(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet's kill switch, and the hosts that are paused on top of it."""

    fleet: bool
    hosts: tuple[str, ...]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457 problem. `type` is urn:tidegate:refusal:CODE where a refusal code applies, about:blank otherwise."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: RefusalCode | None = None
    field: str | None = None
    value: str | None = None
    allowed: str | None = None
    numbers: dict[str, int | float] = {}


class FleetView(AlertsView, MigrationView, OperationsView, PlacingView, VmPastView, ComplianceView, ReportsView, Protocol):
    """The running coordinator as HTTP sees it. Sync methods answer from memory; async ones may wait for a store or an agent."""

    @property
    def profiles(self) -> ProfilesView:
        """Workload profiles."""
        ...

    @property
    def tenancy(self) -> TenancyView:
        """Clients, applications, SLAs, policies and events."""
        ...

    def fleet(self) -> FleetSummary:
        """The fleet now."""
        ...

    def hosts(self) -> Sequence[HostView]:
        """Every host ever registered, in the order of their ids."""
        ...

    def host(self, host_id: str) -> HostView | None:
        """None = unknown."""
        ...

    def vm_ids(self, host_id: str | None = None, client: str | None = None) -> Sequence[str]:
        """Ids in ascending order, filtered. Cheap: paging calls it on every request."""
        ...

    def vm(self, vm_id: str) -> VmView | None:
        """None = unknown."""
        ...

    def forecast(self, vm_id: str, horizon_minutes: int) -> ForecastView:
        """ceil(horizon_minutes / 5) steps of a known VM."""
        ...

    async def why(self, vm_id: str) -> ForecastWhyView:
        """Why the newest forecast of a known VM is what it is; without details where its worker does not answer now."""

    def outlook(self, vm_id: str) -> OutlookView:
        """Six hours ahead of a known VM."""

    def groups(self, kind: GroupKind | None, limit: int) -> GroupList:
        """Groups of one kind, or all."""
        ...

    def group_forecast(self, kind: GroupKind, name: str, horizon_minutes: int) -> GroupForecastView | None:
        """ceil(horizon_minutes / 5) steps of one group; None = no such group in the newest forecast."""
        ...

    def accuracy(self, window: Window, limit: int) -> AccuracyView:
        """How good the forecasts are."""
        ...

    def vm_accuracy(self, vm_id: str, window: Window) -> VmAccuracy:
        """How good those of a known VM are."""
        ...

    async def history(self, vm_id: str, hours: int) -> HistoryView:
        """The newest `hours` of a known VM."""
        ...

    async def plans(self, limit: int, host_id: str | None = None) -> Sequence[Plan]:
        """Newest first."""

    async def receipts(self, limit: int, vm_id: str | Sequence[str] | None = None) -> Sequence[Receipt]:
        """Newest first; of one VM, of these, or (None) of all."""

    async def receipt(self, receipt_id: str) -> Receipt | None:
        """None = unknown or already pruned."""

    async def outcomes(self, limit: int, vm_id: str | Sequence[str] | None = None) -> Sequence[OutcomeView]:
        """Newest first; of one VM, of these, or (None) of all."""

    def scores(self) -> Scores:
        """Observed so far, by mode."""

    def sizing(self, limit: int) -> SizingView:
        """What sizing sees coming."""

    async def set_mode(self, host_id: str, mode: Mode, actor: str) -> HostView:
        """Order a known host into `mode`; remembered for a silent one. Raises Refusal(LOCALLY_PINNED)."""
        ...

    async def set_pause(self, host_id: str | None, paused: bool, actor: str) -> PauseView:
        """Throw or release the kill switch of one known host, or (None) of the fleet; remembered for silent ones."""
        ...

    async def adjust(self, vm_id: str, request: AdjustRequest, actor: str) -> AdjustResult:
        """Send (dry_run: only check) steps for a known VM. Raises Refusal with the guard's code; all or nothing."""
        ...

    async def tell_signals(self, batch: SignalBatch) -> SignalsTaken:
        """Take what applications measured, all or nothing; durable when it returns. Raises Refusal."""
        ...

    def metrics_text(self) -> str:
        """Prometheus text format 0.0.4."""
        ...

    def ready(self) -> tuple[bool, str]:
        """Whether this process can decide now, and why (not)."""
        ...
