"""What a client was promised: named objectives over the minutes of its VMs. Data only; compliance is worked out from them elsewhere.

An objective holds for a minute of a VM when its metric does not pass the threshold, and is kept over a period when `share_permille` or more
of the observed VM minutes hold: "ready < 2 % for 99.5 % of minutes" is ready, 20, 995. What is left to 1000 is the error budget. Metrics:

| metric | permille of |
| --- | --- |
| ready | a vCPU's time that it waited for a CPU, mean over its vCPUs |
| memory_pressure | time in which tasks of the guest waited for memory (PSI some) |
| unmet_demand | the demand that was not granted, of the resource that lacked most |
| network_drops | the minute's samples in which packets of the guest were dropped at a ceiling of ours |
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta

from shared.model import Identifier

Metric = Literal["ready", "memory_pressure", "unmet_demand", "network_drops"]
METRICS: Final[tuple[Metric, ...]] = get_args(Metric)
MAX_OBJECTIVES: Final = 8  # of one SLA: each metric with a loose and a tight threshold
LEAST_PERIOD_S: Final = 3600
MOST_PERIOD_S: Final = 7_776_000  # 90 days: as long as history is kept at most
LEAST_BUDGET_PERMILLE: Final = 0.01  # 26 seconds of a month


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One promise. `share_permille` of minutes in which `metric` stays at or below `threshold_permille`, over `period_s`."""

    metric: Metric
    threshold_permille: Annotated[int, Meta(ge=0, le=1000)]
    share_permille: Annotated[float, Meta(ge=500, le=1000 - LEAST_BUDGET_PERMILLE)]
    period_s: Annotated[int, Meta(ge=LEAST_PERIOD_S, le=MOST_PERIOD_S)] = 2_592_000

    @property
    def budget(self) -> float:
        """Share of minutes, 0..1, that may be worse."""
        return (1000.0 - self.share_permille) / 1000.0


class Sla(msgspec.Struct, frozen=True, kw_only=True):
    """Objectives under a name; a client has one SLA."""

    id: Identifier
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    objectives: Annotated[tuple[Objective, ...], Meta(min_length=1, max_length=MAX_OBJECTIVES)]

    @property
    def budget(self) -> float:
        """The smallest error budget of its objectives, 0..1."""
        return min(objective.budget for objective in self.objectives)
