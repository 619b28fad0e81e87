"""The running coordinator's service objectives as the HTTP layer sees them: implements coordinator.service.compliance.ComplianceView."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from coordinator.cycle import DecisionCycle
from coordinator.learning.compliance import Kind
from coordinator.learning.compliance_hours import HOUR_S, HourBits, Owner
from coordinator.learning.compliance_series import BAD, FILLED, GOOD, UNKNOWN, minute_series
from coordinator.learning.compliance_sums import Standing, State, name_of
from coordinator.learning.objectives import METRICS
from coordinator.service.compliance import (
    BurnView,
    ComplianceDetail,
    ComplianceItem,
    CompliancePage,
    MinuteSeries,
    StandingView,
    sla_in_force,
)
from coordinator.store.compliance_store import ComplianceStore

_WORST: Final[tuple[State, ...]] = ("exhausted", "burning", "unknown", "met")


class Counting(Protocol):
    """What is asked of the process around it."""

    cycle: DecisionCycle
    minutes: ComplianceStore


class LiveCompliance:
    """Standings come from memory; minutes over time are put together in a thread."""

    def __init__(self, running: Counting) -> None:
        self._counting = running

    def compliance(self, kind: Kind, cursor: str | None, limit: int, among: Collection[str] | None = None) -> CompliancePage:
        book = self._counting.cycle.compliance
        found = book.grouped(kind)
        chosen = range(len(found.names)) if among is None else [i for i, name in enumerate(found.names) if name in among]
        first = 0 if cursor is None else bisect_right(chosen, cursor, key=lambda i: found.names[i])
        places = chosen[first : first + limit]
        return CompliancePage(
            items=tuple(_item(kind, found.names[i], found.standing(i)) for i in places),
            total=len(chosen),
            next_cursor=found.names[places[-1]] if first + limit < len(chosen) else None,
            until_s=book.end_s,
        )

    async def compliance_of(self, kind: Kind, name: str, resolution_s: int, hours: int) -> ComplianceDetail | None:
        book = self._counting.cycle.compliance
        found, until_s = book.grouped(kind), book.end_s
        place = bisect_left(found.names, name)
        if until_s is None or found.names[place : place + 1] != [name]:
            return None
        item = _item(kind, name, found.standing(place))
        slas = [sla_in_force(sla, vms) for sla, vms in book.slas_of(kind, name)]
        end_s = -(-until_s // resolution_s) * resolution_s
        from_s = end_s - hours * HOUR_S
        if resolution_s == HOUR_S:
            _, counts = book.hourly(kind, name, hours)
            bad, known, there = (counts[..., i] for i in range(3))
            # by hours nobody remembers which were filled in
            minutes = np.stack([known - bad, bad, np.maximum(there - known, 0), np.zeros_like(bad)], axis=-1)
        else:
            recent = {hour_s: hour.copy() for hour_s, hour in book.hours().items() if hour_s + HOUR_S > from_s}
            loop = asyncio.get_running_loop()
            minutes = await loop.run_in_executor(None, self._series, kind, name, recent, (from_s, end_s, resolution_s))
        asked = {standing.metric for standing in item.objectives}
        return ComplianceDetail(
            kind=kind,
            name=name,
            state=item.state,
            until_s=until_s,
            slas=tuple(slas),
            objectives=item.objectives,
            resolution_s=resolution_s,
            start_s=tuple(range(from_s, end_s, resolution_s)),
            series=tuple(_series(metric, minutes[:, m]) for m, metric in enumerate(METRICS) if metric in asked),
        )

    def _series(self, kind: Kind, name: str, recent: dict[int, HourBits], when: tuple[int, int, int]) -> NDArray[np.int64]:
        from_s, until_s, resolution_s = when

        def belongs(vm_id: str, owner: Owner) -> bool:
            return name_of(kind, vm_id, owner) == name

        stored = (recent.pop(hour.hour_s, hour) for hour in self._counting.minutes.hours(from_s // HOUR_S * HOUR_S, until_s))
        found = minute_series(stored, belongs, from_s, until_s, resolution_s)
        return found + minute_series(list(recent.values()), belongs, from_s, until_s, resolution_s)


def _item(kind: Kind, name: str, parts: Sequence[Standing]) -> ComplianceItem:
    states: list[State] = [each for each in _WORST if any(part.state == each for part in parts)]
    return ComplianceItem(
        kind=kind, name=name, state=states[0] if states else "unknown", objectives=tuple(_standing(part) for part in parts)
    )


def _standing(part: Standing) -> StandingView:
    return StandingView(
        metric=part.metric,  # type: ignore[arg-type]  # Metric lists METRICS
        state=part.state,
        good_minutes=part.good,
        bad_minutes=part.bad,
        unknown_minutes=part.unknown,
        budget_minutes=part.budget,
        remaining_minutes=part.remaining,
        compliance=part.compliance,
        at_least=part.at_least,
        promised=part.promised,
        last_day=part.day,
        last_hour=part.hour,
        burn=tuple(BurnView(window_s=each.window_s, rate=each.rate) for each in part.burn),
        alert=part.alert,
    )


def _series(metric: str, minutes: NDArray[np.int64]) -> MinuteSeries:
    good, bad, unknown, filled = (tuple(minutes[:, i].tolist()) for i in (GOOD, BAD, UNKNOWN, FILLED))
    return MinuteSeries(metric=metric, good=good, bad=bad, unknown=unknown, filled=filled)  # type: ignore[arg-type]  # as above
