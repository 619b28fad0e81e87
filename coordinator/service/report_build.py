"""Puts a report together from what was metered and counted. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator.learning.accuracy import Accuracy
from coordinator.learning.costs import GRANTED, REACTIVE, STATIC, Taken
from coordinator.learning.objectives import METRICS
from coordinator.learning.shadow_week import WAYS, ShadowResult, Way, WaySums
from coordinator.service.reports import (
    METHODS,
    SHADOW_METHODS,
    Minutes,
    Report,
    ReportAccuracy,
    ReportFigures,
    ReportVm,
    ShadowHost,
    ShadowReport,
    WayFigures,
    amount,
    amount_or_none,
    money,
    totals_of,
)
from shared.units import RESOURCES


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One VM of the report; `host_id` None = gone."""

    vm_id: str
    name: str
    application: str
    priority: str
    host_id: str | None


def build_report(
    *,
    client: str,
    period: tuple[int, int],
    made_s: float,
    priced: bool,
    subjects: Sequence[Subject],
    taken: Taken,
    minutes: NDArray[np.int64],
    accuracy: Accuracy | None,
    notes: tuple[str, ...],
) -> Report:
    """`taken` and `minutes` int64[v, 4, 3] in the order of the subjects."""
    rows = tuple(
        ReportVm(
            vm_id=each.vm_id,
            name=each.name,
            application=each.application,
            priority=each.priority,
            host_id=each.host_id,
            figures=_figures(taken, i, minutes[i]),
        )
        for i, each in enumerate(subjects)
    )
    totals = totals_of(tuple(row.figures for row in rows))
    compliance = {metric: _share(part.good, part.good + part.bad) for metric, part in totals.objectives.items()}
    return Report(
        client=client,
        from_s=period[0],
        until_s=period[1],
        made_s=made_s,
        priced=priced,
        vms=rows,
        totals=totals,
        compliance=compliance,
        accuracy=() if accuracy is None else _accuracy(accuracy),
        methods=METHODS,
        notes=notes,
    )


def build_shadow(result: ShadowResult, period: tuple[int, int], made_s: float, notes: tuple[str, ...]) -> ShadowReport:
    """Rounds once a host, then sums."""
    hosts = tuple(
        ShadowHost(
            host_id=host.host_id,
            vms=host.vms,
            known_hours=amount(host.known_hours),
            ways={way: _way(sums) for way, sums in host.ways.items()},
        )
        for host in result.hosts
    )
    return ShadowReport(
        from_s=period[0],
        until_s=period[1],
        made_s=made_s,
        hosts=hosts,
        totals={way: _sum(way, hosts) for way in WAYS},
        hosts_needed=result.hosts_needed,
        forecast_share=result.forecast_share,
        methods=SHADOW_METHODS,
        notes=notes,
    )


def _figures(taken: Taken, i: int, minutes: NDArray[np.int64]) -> ReportFigures:
    costs = [money(float(taken.rent[i, way] + taken.energy_cost[i, way])) for way in (GRANTED, STATIC, REACTIVE)]
    cost, static, reactive = costs
    cpu, memory = taken.cpu_core_hours[i], taken.memory_gib_hours[i]
    return ReportFigures(
        known_hours=amount(float(taken.known_hours[i])),
        cpu_used_core_hours=amount(float(taken.cpu_used_core_hours[i])),
        cpu_core_hours=amount_or_none(float(cpu[GRANTED])),
        cpu_core_hours_static=amount_or_none(float(cpu[STATIC])),
        cpu_core_hours_reactive=amount_or_none(float(cpu[REACTIVE])),
        memory_used_gib_hours=amount(float(taken.memory_used_gib_hours[i])),
        memory_gib_hours=amount_or_none(float(memory[GRANTED])),
        memory_gib_hours_static=amount_or_none(float(memory[STATIC])),
        memory_gib_hours_reactive=amount_or_none(float(memory[REACTIVE])),
        energy_kwh=amount_or_none(float(taken.energy_kwh[i, GRANTED])),
        cost=cost,
        cost_static=static,
        cost_reactive=reactive,
        saved_against_static=None if cost is None or static is None else static - cost,
        saved_against_reactive=None if cost is None or reactive is None else reactive - cost,
        objectives={
            metric: Minutes(good=int(minutes[m, 0]), bad=int(minutes[m, 1]), unknown=int(minutes[m, 2]))
            for m, metric in enumerate(METRICS)
            if minutes[m].any()
        },
    )


def _accuracy(found: Accuracy) -> tuple[ReportAccuracy, ...]:
    def known(values: Any, r: int) -> float | None:
        return float(values[r]) if math.isfinite(values[r]) else None

    return tuple(
        ReportAccuracy(
            resource=resource,  # type: ignore[arg-type]  # Resource lists RESOURCES
            pairs=float(found.pairs[r]),
            to_naive=known(found.to_naive, r),
            coverage_80=known(found.coverage_80, r),
            bias=known(found.bias, r),
        )
        for r, resource in enumerate(RESOURCES)
        if found.pairs[r] > 0
    )


def _way(sums: WaySums) -> WayFigures:
    return WayFigures(
        violation_minutes=amount(sums.violation_minutes),
        steps=sums.steps,
        cpu_core_hours=amount(sums.cpu_core_hours),
        memory_gib_hours=amount(sums.memory_gib_hours),
    )


def _sum(way: Way, hosts: Sequence[ShadowHost]) -> WayFigures:
    parts = [host.ways[way] for host in hosts]
    zero = amount(0.0)
    return WayFigures(
        violation_minutes=sum((part.violation_minutes for part in parts), zero),
        steps=sum(part.steps for part in parts),
        cpu_core_hours=sum((part.cpu_core_hours for part in parts), zero),
        memory_gib_hours=sum((part.memory_gib_hours for part in parts), zero),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
