"""A client's report over a time, and the shadow report over a fleet's hosts, as the API gives them.

Invariant: every number of a row is a decimal that was rounded once, and the totals are the exact sums of the rows.
"""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final, Protocol

import msgspec

from coordinator.learning.shadow_week import Way
from coordinator.service.forecasts import Resource

MONEY: Final = Decimal("0.0001")
AMOUNT: Final = Decimal("0.001")
MOST_DAYS: Final = 31
MOST_SHADOW_DAYS: Final = 14


class Minutes(msgspec.Struct, frozen=True, kw_only=True):
    """Minutes of one objective."""

    good: int
    bad: int
    unknown: int


class ReportFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Of one VM, or of all. Hours are VM-hours; None = not known (no price without a host, nothing of a VM that is gone)."""

    known_hours: Decimal
    cpu_used_core_hours: Decimal
    cpu_core_hours: Decimal | None
    cpu_core_hours_static: Decimal | None
    cpu_core_hours_reactive: Decimal | None
    memory_used_gib_hours: Decimal
    memory_gib_hours: Decimal | None
    memory_gib_hours_static: Decimal | None
    memory_gib_hours_reactive: Decimal | None
    energy_kwh: Decimal | None
    cost: Decimal | None
    cost_static: Decimal | None
    cost_reactive: Decimal | None
    saved_against_static: Decimal | None
    saved_against_reactive: Decimal | None
    objectives: dict[str, Minutes]


class ReportVm(msgspec.Struct, frozen=True, kw_only=True):
    """One VM's row."""

    vm_id: str
    name: str
    application: str
    priority: str
    host_id: str | None  # None = gone
    figures: ReportFigures


class ReportAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Forecasts of the client's VMs; None = nothing scored."""

    resource: Resource
    pairs: float
    to_naive: float | None
    coverage_80: float | None
    bias: float | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One client over [from_s, until_s). `priced` False: there is no site file, and money is by built-in prices of energy alone."""

    client: str
    from_s: int
    until_s: int
    made_s: float
    priced: bool
    vms: tuple[ReportVm, ...]
    totals: ReportFigures
    compliance: dict[str, float | None]  # metric -> good / (good + bad)
    accuracy: tuple[ReportAccuracy, ...]
    methods: dict[str, str]
    notes: tuple[str, ...]


class WayFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One way of granting over one host's VMs, or all."""

    violation_minutes: Decimal
    steps: int
    cpu_core_hours: Decimal
    memory_gib_hours: Decimal


class ShadowHost(msgspec.Struct, frozen=True, kw_only=True):
    """One host."""

    host_id: str
    vms: int
    known_hours: Decimal
    ways: dict[Way, WayFigures]


class ShadowReport(msgspec.Struct, frozen=True, kw_only=True):
    """Had these hosts been predictive. `hosts_needed`: by way, None where no capacity is known."""

    from_s: int
    until_s: int
    made_s: float
    hosts: tuple[ShadowHost, ...]
    totals: dict[Way, WayFigures]
    hosts_needed: dict[Way, int | None]
    forecast_share: float | None
    methods: dict[str, str]
    notes: tuple[str, ...]


class ReportsView(Protocol):
    """What is asked of the running coordinator. Raises Refusal(RATE_LIMITED) while another report is being made."""

    async def report(self, client: str, from_s: int | None, until_s: int | None) -> Report | None:
        """One client; None = unknown. Raises InvalidValue where the time is too long for its VMs."""
        ...

    async def shadow(self, days: int) -> ShadowReport:
        """The fleet's hosts."""
        ...


METHODS: Final = {
    "known_hours": "5-minute buckets of which CPU and memory demand are known, as hours; all else of a VM is summed over these alone",
    "cpu_used_core_hours": "mean CPU used, over time",
    "memory_used_gib_hours": "mean memory used by the guest, over time",
    "cpu_core_hours": "CPU limit in force (the vCPUs where nothing limits), over time; memory_gib_hours likewise",
    "…_static": "the same had the VM had its maximum all the time",
    "…_reactive": "the same had the reactive rule alone set it: grown to 1.4 x the peak when the peak passes 85 % of the limit, "
    "lowered to 1.25 x the largest peak of half an hour, replayed over the demand that came",
    "energy_kwh": "share of the host x its idle watts + CPU used / CPU of the host x (watts at 100 % - idle watts); "
    "the share is the larger of CPU and memory granted over what the host may promise",
    "cost": "share of the host x the pool's price in that hour + energy_kwh x the pool's price of energy; "
    "prices and watts of the host that the VM is on at the time of the report; rounded half-even to 0.0001 per VM",
    "cost_static": "cost with the static size granted; use as it was",
    "cost_reactive": "cost with what the reactive rule would have granted",
    "saved_against_static": "cost_static - cost; saved_against_reactive: cost_reactive - cost; negative = it cost more",
    "objectives": "VM-minutes by service objective: bad = the minute's mean above its threshold, "
    "unknown = less than half of it seen; compliance = good / (good + bad)",
    "accuracy": "pinball loss over that of Naive, share of actuals inside the 80 % band, mean error; "
    "over the last day, not the report's time",
    "totals": "exact sums of the rows; None where no row is known",
}
SHADOW_METHODS: Final = {
    "happened": "limits in force as history holds them; want = the share of 5-second samples that ran into a limit",
    "static": "every VM its maximum; want = buckets whose peak is above even that",
    "reactive": "grown to 1.4 x the peak when it passes 85 % of the value, lowered to 1.25 x the largest peak of half an hour",
    "predictive": "at each bucket's start the 95 % quantile of the peak of the next ten minutes as it was forecast then, "
    "never below the peak of the last ten; the reactive rule where no forecast was stored, and as a guard",
    "violation_minutes": "until the guard has helped: CPU 10 s, memory 5 s and 5 s more for each balloon step of 5 % missing; "
    "CPU and memory short at once count once; a bucket whose peak is above the maximum counts whole under any rule",
    "steps": "changes of CPU or memory by more than 2 %",
    "hosts_needed": "largest over time of the sum of grants over what an average of these hosts may promise, CPU or memory, "
    "rounded up; a lower bound, placement's rules are left out",
    "totals": "exact sums of the hosts",
}


def money(value: float) -> Decimal | None:
    """Rounded half-even to MONEY; NaN = None."""
    return _rounded(value, MONEY)


def amount(value: float) -> Decimal:
    """Rounded half-even to AMOUNT; the value is known."""
    found = _rounded(value, AMOUNT)
    assert found is not None, "hours and energy of known buckets are known"
    return found


def amount_or_none(value: float) -> Decimal | None:
    """As `amount`, NaN = None."""
    return _rounded(value, AMOUNT)


def _rounded(value: float, to: Decimal) -> Decimal | None:
    return None if math.isnan(value) else Decimal(repr(float(value))).quantize(to, ROUND_HALF_EVEN)


def totals_of(rows: tuple[ReportFigures, ...]) -> ReportFigures:
    """Exact sums; None only where no row is known."""
    found: dict[str, object] = {}
    for name in ReportFigures.__struct_fields__:
        if name == "objectives":
            continue
        known = [value for row in rows if (value := getattr(row, name)) is not None]
        found[name] = sum(known, Decimal(0)) if known or name in _ALWAYS else None
    metrics = sorted({metric for row in rows for metric in row.objectives})
    summed = {metric: [row.objectives[metric] for row in rows if metric in row.objectives] for metric in metrics}
    objectives = {
        metric: Minutes(good=sum(p.good for p in parts), bad=sum(p.bad for p in parts), unknown=sum(p.unknown for p in parts))
        for metric, parts in summed.items()
    }
    return ReportFigures(**found, objectives=objectives)  # type: ignore[arg-type]  # every field but this one


_ALWAYS: Final = ("known_hours", "cpu_used_core_hours", "memory_used_gib_hours")
