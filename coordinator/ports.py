"""The coordinator's ports: Pool (where heavy work runs), History (buckets, forecasts), Registry (all else that lasts), PowerSwitch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from coordinator.demand.signals import SignalBlock
from coordinator.forecast.challengers import ChallengerForecast, Report, Turn
from coordinator.forecast.events.model import Labels, Occurrences
from coordinator.forecast.why import ForecastWhy
from coordinator.migration_plan import MigrationPlan
from coordinator.model import BucketBlock, ForecastBlock, HistoryBlock, Receipt
from coordinator.placement.explain.plan import Placed
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from shared.model import Domain, HostCapacity, Mode, Policy
from shared.plan import Outcome, Plan


class ForecastShard(Protocol):
    """A forecaster that keeps state for its VMs; the state can be rebuilt from history at any moment."""

    def load(self, history: HistoryBlock) -> None:
        """Start or restart from history (warm: replays recent origins for the rolling validation)."""
        ...

    def advance(self, bucket: BucketBlock, capacity: Mapping[str, Sequence[float]]) -> ForecastBlock:
        """Append one closed bucket (VMs may appear or vanish) and forecast all VMs of the bucket. capacity: vm_id -> [r]."""
        ...

    def explain(self, vm_id: str) -> ForecastWhy | None:
        """Why the newest forecast of this VM is what it is; None where the newest bucket held no such VM."""

    def post(self, forecasts: Sequence[ChallengerForecast]) -> None:
        """What challengers of the slow loop said of some series: one more member for these from the next bucket on."""
        ...


class Pool(Protocol):
    """Where forecasts and solves run: Ray actors and tasks, or this process. Same results for the same input."""

    async def load(self, history: HistoryBlock) -> None:
        """Shard the VMs and load every shard."""
        ...

    async def forecast(self, bucket: BucketBlock, capacity: Mapping[str, Sequence[float]]) -> ForecastBlock:
        """Forecast all VMs of the bucket, shards in parallel, joined in the order of `bucket.vm_ids`."""
        ...

    async def explain(self, vm_id: str) -> ForecastWhy | None:
        """As ForecastShard.explain, within moments; NotNow (coordinator.compute) where the VM's worker is busy or dead."""
        ...

    async def announce(self, calendar: Occurrences, labels: Mapping[str, Labels]) -> None:
        """Scheduled events, and client and application of VMs, in place of those before."""
        ...

    async def challenge(self, history: HistoryBlock, turn: Turn) -> tuple[Report, ...]:
        """Ask challengers about series of the history, away from the forecasts, and post what they say to the shards."""
        ...

    async def place(self, request: PlacementRequest) -> Placed:
        """Solve placement for the whole fleet. A solver that hangs or dies is a plan that holds, moments past the deadline."""
        ...

    async def close(self) -> None:
        """Stop workers."""
        ...


class History(Protocol):
    """5-minute buckets and issued forecasts, columnar, durable once a write returns."""

    def append_buckets(self, block: BucketBlock) -> None:
        """Store one closed bucket; storing the same (vm, bucket) again replaces it."""
        ...

    def append_signals(self, block: SignalBlock) -> None:
        """Store what applications told of one bucket, with or without demand of the same VMs; the same (vm, bucket) again replaces."""
        ...

    def append_forecast(self, block: ForecastBlock) -> None:
        """Store an issued forecast for later scoring."""
        ...

    def load(self, vm_ids: Sequence[str], end_s: int, buckets: int) -> HistoryBlock:
        """Arrays [v, r, buckets] ending with bucket `end_s`; capacity NaN (filled by the caller); signals None where none were told."""
        ...

    def newest_s(self) -> int | None:
        """Start of the newest stored bucket; None when empty."""
        ...

    def forecasts(self, vm_id: str, since_s: int) -> list[ForecastBlock]:
        """Issued forecasts that hold `vm_id` alone, oldest first."""
        ...


class Registry(Protocol):
    """Hosts, VMs, policies, plans, receipts, outcomes, tokens, settings. Survives restarts."""

    def next_epoch(self) -> int:
        """A number larger than every one given before; one per coordinator start."""
        ...

    def save_host(self, host_id: str, boot_id: str, capacity: HostCapacity, seen_ns: int) -> None: ...
    def save_domains(self, host_id: str, domains: Sequence[Domain], seen_ns: int) -> None: ...
    def hosts(self) -> list[dict[str, object]]: ...
    def domains(self) -> dict[str, tuple[str, Domain]]:
        """vm_id -> (host_id, domain), the newest sighting of each."""
        ...

    def save_acked(self, host_id: str, boot_id: str, sequence: int) -> None: ...
    def acked(self, host_id: str, boot_id: str) -> int:
        """Highest durable sequence, -1 = none."""
        ...

    def save_mode(self, host_id: str, mode: Mode) -> None: ...
    def modes(self) -> dict[str, Mode]: ...
    def save_pause(self, host_id: str | None, paused: bool) -> None:
        """The kill switch of one host, or (None) of the fleet."""
        ...

    def pauses(self) -> set[str | None]: ...
    def save_policy(self, vm_id: str, policy: Policy) -> None: ...
    def policies(self) -> dict[str, Policy]: ...
    def save_plan(self, plan: Plan) -> None: ...
    def plans(self, limit: int, host_id: str | None = None) -> list[Plan]: ...
    def save_receipts(self, receipts: Sequence[Receipt]) -> None: ...
    def receipts(self, limit: int, vm_id: str | Sequence[str] | None = None) -> list[Receipt]: ...
    def save_outcomes(self, host_id: str, outcomes: Sequence[Outcome]) -> None:
        """Idempotent by (host, step id, state)."""
        ...

    def outcomes(self, limit: int, vm_id: str | Sequence[str] | None = None) -> list[tuple[str, Outcome]]: ...
    def save_migration(self, plan: MigrationPlan) -> None:
        """The state of a migration plan, in place of its older ones."""
        ...

    def migrations(self, limit: int) -> list[MigrationPlan]: ...
    def save_document(self, name: str, text: str) -> None:
        """A small document, in place of the one of that name."""
        ...

    def documents(self) -> dict[str, str]: ...
    def save_token(self, token_hash: str, name: str, created_ns: int) -> None: ...
    def token_names(self) -> dict[str, str]:
        """hash -> name."""
        ...

    def close(self) -> None: ...


class PowerSwitch(Protocol):
    """Hosts' power. An order that returned was accepted, not done: only the host's own voice, or silence, shows that."""

    def cannot(self, host_id: str) -> str | None:
        """Why this host can not be both put to sleep and woken; None = it can."""

    async def sleep(self, host_id: str) -> None:
        """Put a host to sleep. Raises HostError, never with a secret in it; bounded in time."""
        ...

    async def wake(self, host_id: str) -> None:
        """Wake a host; one that is awake stays so. Raises HostError as `sleep`."""
        ...
