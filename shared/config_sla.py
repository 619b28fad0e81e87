"""Settings of the default service objectives: what VMs without an SLA of their own are promised, minute by minute."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Threshold = Annotated[int, Meta(ge=0, le=1000)]
Share = Annotated[float, Meta(ge=500, le=999.99)]


class ShareTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Share of minutes per priority."""

    low: Annotated[Share, Meta(description="for VMs of priority low")] = 950.0
    normal: Annotated[Share, Meta(description="for VMs of priority normal")] = 990.0
    high: Annotated[Share, Meta(description="for VMs of priority high")] = 995.0
    critical: Annotated[Share, Meta(description="for VMs of priority critical")] = 999.0


class ObjectivesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A minute is bad when its mean passes one of these; so many permille of the minutes must not be."""

    ready_permille: Annotated[Threshold, Meta(description="run delay per vCPU above which a minute is bad")] = 50
    memory_pressure_permille: Annotated[Threshold, Meta(description="memory stall (PSI some) above which a minute is bad")] = 50
    unmet_permille: Annotated[Threshold, Meta(description="share held back by a limit above which a minute is bad")] = 20
    drops_permille: Annotated[Threshold, Meta(description="share of time with drops at a ceiling above which a minute is bad")] = 0
    share_permille: Annotated[ShareTable, Meta(description="minutes that must not be bad; sla.clients' own budgets win")] = ShareTable()
