"""What the decision cycle hears (events) and what it asks for (instructions). Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.demand.signals import SignalBlock
from coordinator.executing import StoreDocument, StoreMigration, SwitchPower
from coordinator.fleet import Relocation
from coordinator.forecast.aggregate.answer import GroupSums
from coordinator.learning.compliance import LateMinutes
from coordinator.learning.compliance_hours import HourBits
from coordinator.model import BucketBlock, ForecastBlock, HostState, Receipt
from coordinator.placement.explain.plan import Placed
from coordinator.planning.sleep import PowerTold
from shared.messages import Hello, Inventory, Outcomes, Status
from shared.model import HostSample
from shared.plan import Outcome, Plan


@dataclass(frozen=True, kw_only=True)
class AgentSaid:
    """A message of a host that is not samples."""

    host_id: str
    message: Hello | Inventory | Status | Outcomes


@dataclass(frozen=True, kw_only=True)
class SamplesArrived:
    """Samples of one host, oldest first, each seen once; `again`: read from the log after a restart."""

    host_id: str
    samples: tuple[HostSample, ...]
    again: bool = False


@dataclass(frozen=True, kw_only=True)
class HostLost:
    """The gateway has not heard from a host for too long."""

    host_id: str
    why: str


@dataclass(frozen=True, kw_only=True)
class PlanUnsent:
    """A plan never reached its host, and never will."""

    plan: Plan


@dataclass(frozen=True, kw_only=True)
class ForecastReady:
    """The answer to RequestForecast."""

    bucket: BucketBlock
    forecast: ForecastBlock


@dataclass(frozen=True, kw_only=True)
class PlacementReady:
    """The answer to RequestPlacement."""

    placed: Placed


@dataclass(frozen=True, kw_only=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """What would be decided cannot be stored now, and `why`; "" = it can again."""

    why: str


Event = AgentSaid | SamplesArrived | HostLost | PlanUnsent | ForecastReady | PlacementReady | PowerTold | Tick | Held


@dataclass(frozen=True, kw_only=True)
class StoreBucket:
    """Make a closed bucket durable; `late` = a bucket stored before has grown."""

    bucket: BucketBlock
    late: bool = False


@dataclass(frozen=True, kw_only=True)
class StoreSignals:
    """Buckets up to `closed_s` have ended: make durable what applications told of them and no StoreBucket before this holds."""

    closed_s: int
    blocks: tuple[SignalBlock, ...]


@dataclass(frozen=True, kw_only=True)
class RequestForecast:
    """Forecast every VM of this bucket; capacity: vm_id -> [r]."""

    bucket: BucketBlock
    capacity: Mapping[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class RequestPlacement:
    """Solve placement for these hosts."""

    hosts: tuple[HostState, ...]
    forecast: ForecastBlock
    forbidden: frozenset[tuple[str, str]] = frozenset()  # (VM, host) that failed of late; ("", host) = no VM may go there
    cooling: frozenset[str] = frozenset()  # VMs that have moved of late
    asleep: frozenset[str] = frozenset()  # silent hosts that sleep and can be woken
    together: tuple[GroupSums, ...] = ()  # forecasts of the sums of applications, then of clients; () = not known


@dataclass(frozen=True, kw_only=True)
class StoreForecast:
    """Keep an issued forecast."""

    forecast: ForecastBlock


@dataclass(frozen=True, kw_only=True)
class SendPlan:
    """Store a plan, then send it to its host."""

    plan: Plan


@dataclass(frozen=True, kw_only=True)
class StoreReceipts:
    """Keep receipts."""

    receipts: tuple[Receipt, ...]


@dataclass(frozen=True, kw_only=True)
class StoreHost:
    """Keep what a host said of itself; `inventory` None = unchanged."""

    host_id: str
    hello: Hello | None = None
    inventory: Inventory | None = None


@dataclass(frozen=True, kw_only=True)
class StoreRelocations:
    """Keep which host VMs are with from now on; before what else tells of it, so that a kill between the two is told again."""

    relocations: tuple[Relocation, ...]


@dataclass(frozen=True, kw_only=True)
class StoreOutcomes:
    """Keep outcomes."""

    host_id: str
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, kw_only=True)
class RequestRetrain:
    """The forecasts of these resources have worsened since `since_s`: train the global model anew. `reason` as in RetrainWanted."""

    reason: str
    since_s: int
    resources: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StoreMinutes:
    """Keep these hours of service-objective minutes in place of what is stored of them."""

    hours: tuple[HourBits, ...]


@dataclass(frozen=True, kw_only=True)
class MergeMinutes:
    """Merge late minutes into a stored hour, then give it to ComplianceBook.counted."""

    late: LateMinutes


Instruction = (
    StoreBucket
    | StoreSignals
    | RequestForecast
    | RequestPlacement
    | StoreForecast
    | SendPlan
    | StoreReceipts
    | StoreHost
    | StoreRelocations
    | StoreOutcomes
    | RequestRetrain
    | StoreMigration
    | StoreDocument
    | SwitchPower
    | StoreMinutes
    | MergeMinutes
)
