"""Compliance with service objectives as the API shows it, and what the API asks of whoever counts it. Minutes are VM-minutes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Protocol, get_args

import msgspec

from coordinator.learning.compliance import Kind
from coordinator.learning.compliance_sums import State
from coordinator.learning.objectives import Metric, Objective, Sla

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
MOST_HOURS: Final = {60: 24, 300: 168, 3600: 2160}  # a thousand steps or two in an answer

METHOD: Final = (
    "A minute of a VM is bad for an objective when the mean of its readings, weighed by their periods, is above the threshold; it is "
    "unknown when less than half of it was seen, and an unknown minute is never good. compliance = good / (good + bad); at_least takes "
    "every unknown minute as bad. The error budget is (1 - share) of all minutes of the period for VMs that run, of the minutes they ran "
    "for VMs that are gone. Burn rate of a window = bad / (budgeted share of the minutes seen); an alert needs both windows of a pair: "
    "1 h and 5 min at 14.4, 6 h and 30 min at 6, 3 d and 6 h at 1 (SRE workbook, chapter 5). Minutes filled in from history are 5-minute "
    "buckets taken as five equal minutes; CPU ready cannot be told from history and stays unknown there."
)


class BurnView(msgspec.Struct, frozen=True, kw_only=True):
    """How fast the budget was used up over a window: 1 lasts just for the period; None = nothing was seen."""

    window_s: int
    rate: float | None


class StandingView(msgspec.Struct, frozen=True, kw_only=True):
    """One name on one objective's metric, over the period. Shares 0..1; None = nothing was seen."""

    metric: Metric
    state: State
    good_minutes: int
    bad_minutes: int
    unknown_minutes: int
    budget_minutes: float
    remaining_minutes: float
    compliance: float | None
    at_least: float | None
    promised: float | None
    last_day: float | None
    last_hour: float | None
    burn: tuple[BurnView, ...]
    alert: float  # above 1: both windows of a pair burn too fast


class ComplianceItem(msgspec.Struct, frozen=True, kw_only=True):
    """One client, application, VM or priority; `name` empty = VMs of none."""

    kind: Kind
    name: str
    state: State  # the worst of its objectives
    objectives: tuple[StandingView, ...]


class CompliancePage(msgspec.Struct, frozen=True, kw_only=True):
    """Names in their order; `until_s`: end of the newest minute that counts, None = none yet."""

    items: tuple[ComplianceItem, ...]
    total: int
    next_cursor: str | None
    until_s: int | None
    method: str = METHOD


class SlaInForce(msgspec.Struct, frozen=True, kw_only=True):
    """An SLA and how many running VMs under the name are held to it."""

    id: str
    name: str
    objectives: tuple[Objective, ...]
    vms: int


class MinuteSeries(msgspec.Struct, frozen=True, kw_only=True):
    """VM-minutes in each step; `filled`: how many of good and bad were filled in from history at 300 s."""

    metric: Metric
    good: tuple[int, ...]
    bad: tuple[int, ...]
    unknown: tuple[int, ...]
    filled: tuple[int, ...]


class ComplianceDetail(msgspec.Struct, frozen=True, kw_only=True):
    """One name with its objectives and minutes over time."""

    kind: Kind
    name: str
    state: State
    until_s: int | None
    slas: tuple[SlaInForce, ...]
    objectives: tuple[StandingView, ...]
    resolution_s: int
    start_s: tuple[int, ...]
    series: tuple[MinuteSeries, ...]
    method: str = METHOD


class ComplianceView(Protocol):
    """What is asked of the running coordinator."""

    def compliance(self, kind: Kind, cursor: str | None, limit: int, among: Collection[str] | None = None) -> CompliancePage:
        """Names of a kind behind `cursor`, sorted; of `among` alone where it is given."""
        ...

    async def compliance_of(self, kind: Kind, name: str, resolution_s: int, hours: int) -> ComplianceDetail | None:
        """One name; None = nothing is counted under it."""
        ...


def sla_in_force(sla: Sla, vms: int) -> SlaInForce:
    """An SLA as it is shown."""
    return SlaInForce(id=sla.id, name=sla.name, objectives=sla.objectives, vms=vms)
