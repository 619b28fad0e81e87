"""Registered events as events of the forecast's calendar. Pure: what a URL held is given as text.

Every kind of event becomes an iCalendar and is read by the one parser that checks them (forecast/events/ical.py): what the API takes is
what a calendar file may hold, no more and no less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, TypeVar

from coordinator.forecast.events import cron, ical
from coordinator.forecast.events import text as words
from coordinator.forecast.events.model import Effect, Event, Scope
from coordinator.tenancy.checks import Unfit
from coordinator.tenancy.model import EventSpec, TriggerSpec

SOURCE: Final = "api"
T = TypeVar("T")
_EVERYBODY: Final = Scope()


def events_of(id_: str, spec: EventSpec, fetched: str | None = None) -> tuple[Event, ...]:
    """What the calendar gets; () for a URL that was not fetched yet. Raises Unfit, or ValueError for a fetched text that is no good."""
    scope = Scope(vm_ids=frozenset(spec.vm_ids), client=spec.client or "", app=spec.application or "")
    effect = _checked("effect", spec.effect, lambda: words.effect(spec.effect))
    zone = _checked("time_zone", spec.time_zone, lambda: cron.zone_of(spec.time_zone))
    source = f"{SOURCE}:{id_}"
    if spec.url is not None:
        found = () if fetched is None else ical.parse(source, fetched, zone)
    elif spec.ical is not None:
        text = spec.ical
        found = _checked("ical", text[:32], lambda: ical.parse(source, text, zone))
    else:
        field = "start_s" if spec.rrule is None else "rrule"
        found = _checked(field, spec.rrule or spec.start_s, lambda: ical.parse(source, _written(id_, spec), zone))
    return tuple(
        replace(
            event,
            scope=scope if event.scope == _EVERYBODY else event.scope,
            effect=effect if _declares_nothing(event.effect) else event.effect,
        )
        for event in found
    )


def ended_s(spec: EventSpec) -> int | None:
    """When a one-off event is over; None = it comes again, or a calendar says."""
    return None if spec.start_s is None or spec.duration_s is None or spec.rrule is not None else spec.start_s + spec.duration_s


def triggered(trigger: TriggerSpec, now_s: int) -> EventSpec:
    """The one-off event that an outside system's word means."""
    return EventSpec(
        name=trigger.name,
        category="trigger",
        client=trigger.client,
        application=trigger.application,
        vm_ids=trigger.vm_ids,
        effect=" ".join(f"{resource}=x{trigger.factor:.6f}" for resource in dict.fromkeys(trigger.resources)),
        start_s=now_s if trigger.start_s is None else trigger.start_s,
        duration_s=trigger.duration_s,
    )


def _written(id_: str, spec: EventSpec) -> str:
    """A one-off or recurring event as an iCalendar. Its start is local time of its zone, as rules count local days."""
    assert spec.start_s is not None and spec.duration_s is not None, "checked by EventSpec"
    start = datetime.fromtimestamp(spec.start_s, UTC)
    begins = f"DTSTART:{start:%Y%m%dT%H%M%SZ}"
    if spec.rrule is not None:
        begins = f"DTSTART:{start.astimezone(cron.zone_of(spec.time_zone)):%Y%m%dT%H%M%S}"  # without a zone: meant in the one given
    rule = [] if spec.rrule is None else [f"RRULE:{spec.rrule}"]
    entry = ["BEGIN:VEVENT", f"UID:{id_}", f"SUMMARY:{_escaped(spec.name)}", f"CATEGORIES:{spec.category}", begins]
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//tidegate//api//", *entry, f"DURATION:PT{spec.duration_s}S", *rule]
    return "\r\n".join([*lines, "END:VEVENT", "END:VCALENDAR", ""])


def _escaped(text: str) -> str:
    for character in "\\;,":
        text = text.replace(character, "\\" + character)
    return text


def _declares_nothing(effect: Effect) -> bool:
    return all(math.isnan(value) for value in (*effect.added, *effect.factor))


def _checked(field: str, value: object, read: Callable[[], T]) -> T:
    try:
        return read()
    except ValueError as error:
        raise Unfit(field, value, str(error)) from error
