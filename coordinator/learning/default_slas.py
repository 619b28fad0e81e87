"""Which SLA holds for a VM: its client's own where there is one, else that of its priority from the settings.

Clients whom the settings give an error budget of their own have their priority's objectives with that budget. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from coordinator.learning.objectives import Metric, Objective, Sla
from coordinator.learning.sla import SlaThresholds
from shared.model import Priority

WEEK_S: Final = 604_800


class SlaSource(Protocol):
    """Which SLA holds for a VM."""

    @property
    def version(self) -> int:
        """Changes whenever any answer may have changed."""
        ...

    def sla_of(self, vm_id: str, client: str, application: str, priority: Priority) -> Sla:
        """The SLA in force for one VM."""
        ...


@dataclass(frozen=True, kw_only=True)
class DefaultSlas:
    """From settings alone. `clients`: error budgets in permille of the minutes, in place of the priority's."""

    by_priority: tuple[Sla, Sla, Sla, Sla]
    clients: Mapping[str, float] = field(default_factory=dict)
    version: int = 0

    def sla_of(self, vm_id: str, client: str, application: str, priority: Priority) -> Sla:
        """The priority's, with the client's own budget."""
        sla, budget = self.by_priority[priority], self.clients.get(client)
        if budget is None:
            return sla
        return _budgeted(sla, client, budget)


class RegisteredSlas:
    """What clients were promised by name goes before the defaults."""

    def __init__(self, defaults: SlaSource) -> None:
        self._defaults = defaults
        self._own: dict[str, Sla] = {}
        self._budgets: dict[str, float] = {}
        self._changes = 0

    @property
    def version(self) -> int:
        """Changes with every promise that is another."""
        return self._changes + self._defaults.version

    def promise(self, by_client: Mapping[str, Sla], budgets: Mapping[str, float] | None = None) -> None:
        """The SLAs of clients that have one, and error budgets of their own in permille of the minutes, in place of those before.

        The past is judged by them as well, see compliance_turns.
        """
        budgets = budgets or {}
        if (self._own, self._budgets) != (by_client, budgets):
            self._own, self._budgets, self._changes = dict(by_client), dict(budgets), self._changes + 1

    def sla_of(self, vm_id: str, client: str, application: str, priority: Priority) -> Sla:
        """The client's own, or the default; with the client's own budget."""
        sla, budget = self._own.get(client), self._budgets.get(client)
        sla = self._defaults.sla_of(vm_id, client, application, priority) if sla is None else sla
        return sla if budget is None else _budgeted(sla, client, budget)


def objective_on(sla: Sla, metric: str) -> Objective | None:
    """The objective that minutes are counted for: of several on one metric the first."""
    return next((each for each in sla.objectives if each.metric == metric), None)


def sla_of_thresholds(
    name: str, *, share_permille: float, thresholds: SlaThresholds, unmet_permille: int, drops_permille: int, period_s: int = WEEK_S
) -> Sla:
    """Objectives on all four metrics with one share, by the thresholds that violations are counted with."""
    limits: dict[Metric, int] = {
        "ready": thresholds.ready_permille,
        "memory_pressure": thresholds.memory_stall_permille,
        "unmet_demand": unmet_permille,
        "network_drops": drops_permille,
    }
    objectives = tuple(
        Objective(metric=metric, threshold_permille=limit, share_permille=share_permille, period_s=period_s)
        for metric, limit in limits.items()
    )
    return Sla(id=f"default-{name}", name=f"default of priority {name}", objectives=objectives)


def _budgeted(sla: Sla, client: str, permille: float) -> Sla:
    own = tuple(msgspec.structs.replace(each, share_permille=max(0.0, 1000.0 - permille)) for each in sla.objectives)
    return Sla(id=f"{sla.id}-client", name=f"{sla.name}, budget of {client}", objectives=own)


def _defaults() -> DefaultSlas:
    known = SlaThresholds()
    shares = {"low": 950.0, "normal": 990.0, "high": 995.0, "critical": 999.0}  # as shared.config_sla
    low, normal, high, critical = (
        sla_of_thresholds(name, share_permille=share, thresholds=known, unmet_permille=known.throttled_permille, drops_permille=0)
        for name, share in shares.items()
    )
    return DefaultSlas(by_priority=(low, normal, high, critical))


DEFAULT_SLAS: Final = _defaults()
