"""What was promised: service objectives over minutes, and which of them hold for a VM.

An objective reads "`metric` at most `threshold_permille` in `share_permille` of the minutes of `period_s`"; METRICS says how each metric is
read. A VM without an SLA of its own has the one of its priority, with its client's own error budget where the settings name one.
Pure; whoever keeps SLAs elsewhere (a registry) gives an SlaSource of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, Protocol

import msgspec
from msgspec import Meta

from coordinator.demand.minutes import METRICS
from coordinator.learning.sla import SlaThresholds
from shared.model import Identifier, Label, Priority

__all__ = ["DEFAULT_SLAS", "METRICS", "DefaultSlas", "Metric", "Objective", "Sla", "SlaSource", "sla_of_thresholds"]

Metric = Literal["cpu_ready", "memory_pressure", "unmet_demand", "net_drops"]
LONGEST_PERIOD_S: Final = 7_776_000  # 90 days, as shared.config.SlaConfig
MAX_OBJECTIVES: Final = len(METRICS)  # of one SLA


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`metric` at most `threshold_permille` in at least `share_permille` of the minutes of the last `period_s`."""

    metric: Metric
    threshold_permille: Annotated[float, Meta(ge=0, le=1000)]
    share_permille: Annotated[float, Meta(ge=0, le=999.99)]  # a promise of every minute leaves no budget to burn
    period_s: Annotated[int, Meta(ge=21_600, le=LONGEST_PERIOD_S)] = 604_800

    @property
    def budget(self) -> float:
        """Share of minutes, 0..1, that may be worse."""
        return (1000.0 - self.share_permille) / 1000.0


class Sla(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Objectives under one name; at most one of each metric (the first counts)."""

    id: Identifier
    name: Label
    objectives: Annotated[tuple[Objective, ...], Meta(max_length=MAX_OBJECTIVES)] = ()

    @property
    def budget(self) -> float:
        """The smallest error budget of its objectives, 0..1; 1 without any."""
        return min((objective.budget for objective in self.objectives), default=1.0)

    def of(self, metric: str) -> Objective | None:
        """Its objective on one metric."""
        return next((each for each in self.objectives if each.metric == metric), None)


class SlaSource(Protocol):
    """Which SLA holds for a VM. `version` changes whenever any answer may have changed."""

    @property
    def version(self) -> int:
        """Changes with the answers."""
        ...

    def sla_of(self, vm_id: str, client: str, application: str, priority: Priority) -> Sla:
        """The SLA in force for one VM."""
        ...


@dataclass(frozen=True, kw_only=True)
class DefaultSlas:
    """SLAs from settings alone. `clients`: error budgets in permille of the minutes, in place of the priority's."""

    by_priority: tuple[Sla, Sla, Sla, Sla]
    clients: Mapping[str, float] = field(default_factory=dict)
    version: int = 0

    def sla_of(self, vm_id: str, client: str, application: str, priority: Priority) -> Sla:
        """The priority's, with the client's own budget."""
        sla, budget = self.by_priority[priority], self.clients.get(client)
        if budget is None:
            return sla
        own = tuple(msgspec.structs.replace(each, share_permille=max(0.0, 1000.0 - budget)) for each in sla.objectives)
        return msgspec.structs.replace(sla, id=f"{sla.id}-client", name=f"{sla.name}, budget of {client}", objectives=own)


def sla_of_thresholds(
    name: str, *, share_permille: float, thresholds: SlaThresholds, unmet_permille: float, drops_permille: float, period_s: int = 604_800
) -> Sla:
    """Objectives on all four metrics with one share, by the thresholds that violations are counted with."""
    limits: dict[Metric, float] = {
        "cpu_ready": thresholds.ready_permille,
        "memory_pressure": thresholds.memory_stall_permille,
        "unmet_demand": unmet_permille,
        "net_drops": drops_permille,
    }
    objectives = tuple(
        Objective(metric=metric, threshold_permille=limit, share_permille=share_permille, period_s=period_s)
        for metric, limit in limits.items()
    )
    return Sla(id=f"default-{name}", name=f"default of priority {name}", objectives=objectives)


def _defaults() -> DefaultSlas:
    known = SlaThresholds()
    shares = {"low": 950.0, "normal": 990.0, "high": 995.0, "critical": 999.0}  # as shared.config_sla
    low, normal, high, critical = (
        sla_of_thresholds(name, share_permille=share, thresholds=known, unmet_permille=known.throttled_permille, drops_permille=0.0)
        for name, share in shares.items()
    )
    return DefaultSlas(by_priority=(low, normal, high, critical))


DEFAULT_SLAS: Final = _defaults()
