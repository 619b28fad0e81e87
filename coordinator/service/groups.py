"""From the forecasts of sums to the API's GroupList and GroupForecastView. Pure. NaN (unknown) becomes None."""

from __future__ import annotations

import math
from typing import Final

from coordinator.forecast.aggregate import AggregateForecast
from coordinator.service.forecasts import forecast_rows, known, reason_name
from coordinator.service.view import GroupForecastView, GroupKind, GroupList, GroupOutlook, GroupResourceForecast, GroupSummary
from shared.units import BUCKET_S, HORIZON_STEPS, RESOURCES

ORDER: Final = ("fleet", "host", "client", "app")


def group_list(found: AggregateForecast | None, kind: GroupKind | None, limit: int) -> GroupList:
    """Groups of one kind, or all (None), by ORDER and name; the first `limit` of them."""
    if found is None:
        return GroupList(issued_s=None, total=0, items=())
    rows = [i for i, key in enumerate(found.groups) if kind in (None, key.kind)]
    rows.sort(key=lambda i: (ORDER.index(found.groups[i].kind), found.groups[i].name))
    items = tuple(
        GroupSummary(
            kind=found.groups[i].kind,  # type: ignore[arg-type]  # GroupKind lists KINDS
            name=found.groups[i].name,
            members=int(found.members[i]),
            resources=tuple(_outlook(found, i, r) for r in range(len(RESOURCES))),
        )
        for i in rows[:limit]
    )
    return GroupList(issued_s=found.issued_s, total=len(rows), items=items)


def group_forecast(found: AggregateForecast | None, kind: GroupKind, name: str, horizon_minutes: int) -> GroupForecastView | None:
    """The first ceil(horizon_minutes / 5) steps of one group; None where there is no such group."""
    at = None if found is None else next((i for i, key in enumerate(found.groups) if key == (kind, name)), None)
    if found is None or at is None:
        return None
    steps = min(HORIZON_STEPS, math.ceil(horizon_minutes * 60 / BUCKET_S))
    return GroupForecastView(
        kind=kind,
        name=name,
        members=int(found.members[at]),
        issued_s=found.issued_s,
        horizon_minutes=horizon_minutes,
        levels=found.levels,
        resources=tuple(
            GroupResourceForecast(
                resource=RESOURCES[r],
                known=float(found.known[at, r]),
                reason=reason_name(int(found.reason[at, r])),
                coverage=known(found.coverage[at, r]),
                rows=forecast_rows(found, at, r, steps),
            )
            for r in range(len(RESOURCES))
        ),
    )


def _outlook(found: AggregateForecast, i: int, r: int) -> GroupOutlook:
    low, high, top = (found.levels.index(level) for level in (0.1, 0.9, 0.95))
    return GroupOutlook(
        resource=RESOURCES[r],
        known=float(found.known[i, r]),
        reason=reason_name(int(found.reason[i, r])),
        coverage=known(found.coverage[i, r]),
        mean_now=known(found.mean[i, r, 0]),
        mean_hour=known(found.mean[i, r, -1]),
        low_hour=known(found.quantiles[i, r, -1, low]),
        high_hour=known(found.quantiles[i, r, -1, high]),
        highest=known(found.peak_quantiles[i, r, -1, top]),
    )
