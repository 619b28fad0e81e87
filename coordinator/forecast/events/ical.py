"""iCalendar (RFC 5545) as events: RRULE, RDATE, EXDATE, moved and cancelled occurrences, time zones, all-day entries. Pure: text in.

Recurrence is expanded by recurring-ical-events. Properties read besides the standard ones:
    CATEGORIES              the first is the event's category; without one it is "event"
    X-TIDEGATE-SCOPE        whom it touches (events/text.py), all without it
    X-TIDEGATE-EFFECT       what it is expected to do
Times without a zone, and days, are meant in the zone given. Invariant: a calendar that was accepted expands in bounded time: no rule
repeats more often than once a bucket, every rule meets within ten years of its start, and sizes are limited (events/model.py).
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any, Final

import recurring_ical_events
from dateutil.rrule import rrulestr
from icalendar import Calendar, Component
from icalendar import Event as Entry

from coordinator.forecast.events import text as words
from coordinator.forecast.events.model import MAX_DURATION_S, MAX_EVENTS, MAX_TEXT_BYTES, Event

_FREQUENCIES: Final = ("HOURLY", "DAILY", "WEEKLY", "MONTHLY", "YEARLY")
_NOT_HOURLY: Final = ("BYMONTH", "BYMONTHDAY", "BYYEARDAY", "BYWEEKNO", "BYSETPOS")  # a search hour by hour for a day that may never come
_YEARS: Final = (1970, 2200)  # of a start; a rule is followed from its start on
_PROBE: Final = timedelta(days=3653)
MAX_PER_HOUR: Final = 12  # one a bucket
_SLACK_S: Final = 2 * 86_400  # a zone is at most 14 hours off; the exact filter follows


class _ICalSchedule:
    """The occurrences of one UID: its master and the entries that override single occurrences."""

    def __init__(self, calendar: Calendar, zone: tzinfo, longest_s: int) -> None:
        self._calendar = calendar
        self._zone = zone
        self._longest_s = longest_s

    def between(self, from_s: int, until_s: int) -> list[tuple[int, int]]:
        """See model.Schedule."""
        begin = datetime.fromtimestamp(from_s - self._longest_s - _SLACK_S, UTC)
        end = datetime.fromtimestamp(until_s + _SLACK_S, UTC)
        found = []
        for entry in recurring_ical_events.of(self._calendar).between(begin, end):
            if str(entry.get("STATUS", "")).upper() == "CANCELLED":
                continue
            start, stop = _span(entry, self._zone)
            if start < until_s and stop > from_s:
                found.append((start, stop))
        return sorted(found)


def parse(source: str, text: str, zone: tzinfo) -> tuple[Event, ...]:
    """All events of one calendar. `source` names it in ids and errors. Raises ValueError naming entry, field, value and what is allowed."""
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise ValueError(f"{source}: {len(text.encode())} bytes: allowed {MAX_TEXT_BYTES}")
    try:
        calendars = Calendar.from_ical(text, multiple=True)
    except (ValueError, KeyError, IndexError, TypeError) as error:  # the parser lets its own slips through with the content's
        raise ValueError(f"{source}: not an iCalendar file: {error}") from error
    if not calendars or text.upper().count("BEGIN:VCALENDAR") != len(calendars):
        raise ValueError(f"{source}: {len(calendars)} complete VCALENDAR found; allowed files whose calendars all end (cut off?)")
    groups: dict[str, tuple[Calendar, list[Entry]]] = {}
    for calendar in calendars:
        for entry in calendar.events:
            uid = str(entry.get("UID", ""))
            if not uid:
                raise ValueError(f"{source}: UID of event {str(entry.get('SUMMARY', ''))!r}: missing; required")
            groups.setdefault(uid, (calendar, []))[1].append(entry)
    if len(groups) > MAX_EVENTS:
        raise ValueError(f"{source}: {len(groups)} events: allowed {MAX_EVENTS}")
    events = []
    for uid, (calendar, entries) in groups.items():
        try:
            found = _event(source, uid, calendar, entries, zone)
        except ValueError as error:
            raise ValueError(f"{source}: event {uid!r}: {error}") from error
        if found is not None:
            events.append(found)
    return tuple(events)


def _event(source: str, uid: str, calendar: Calendar, entries: list[Entry], zone: tzinfo) -> Event | None:
    master = next((entry for entry in entries if "RECURRENCE-ID" not in entry), entries[0])
    if str(master.get("STATUS", "")).upper() == "CANCELLED":
        return None
    spans = [_span(entry, zone) for entry in entries]
    longest = max(stop - start for start, stop in spans)
    for entry in entries:
        _check_rules(entry)
    alone = Calendar()
    for name in ("VERSION", "PRODID", "X-WR-TIMEZONE"):
        if name in calendar:
            alone[name] = calendar[name]
    for part in (*calendar.walk("VTIMEZONE"), *entries):
        alone.add_component(part)
    categories = _listed(master.get("CATEGORIES"))
    first = next((str(name) for group in categories for name in getattr(group, "cats", [group])), "event")
    return Event(
        id=f"{source}:{words.title(uid)}",
        name=words.title(str(master.get("SUMMARY", ""))) or words.title(uid),
        category=words.category(first),
        scope=words.scope(_plain(master, "X-TIDEGATE-SCOPE")),
        effect=words.effect(_plain(master, "X-TIDEGATE-EFFECT")),
        schedule=_ICalSchedule(alone, zone, longest),
    )


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _plain(entry: Component, name: str) -> str:
    """A property of ours; some calendars escape what others leave as it is."""
    return str(entry.get(name, "")).replace("\\,", ",").replace("\\;", ";")


def _moment(value: date | datetime, zone: tzinfo) -> datetime:
    if not isinstance(value, datetime):
        return datetime.combine(value, time(), zone)
    return value if value.tzinfo is not None else value.replace(tzinfo=zone)


def _span(entry: Entry, zone: tzinfo) -> tuple[int, int]:
    """[start, end) of one occurrence in Unix seconds; an entry without length takes one second, and so one bucket."""
    if "DTSTART" not in entry:
        raise ValueError("DTSTART: missing; required")
    start, stop = _moment(entry.start, zone), _moment(entry.end, zone)
    if not _YEARS[0] <= start.year < _YEARS[1]:
        raise ValueError(f"DTSTART {start.isoformat()}: allowed years {_YEARS[0]} to {_YEARS[1] - 1}")
    length = int((stop - start).total_seconds() if stop.tzinfo is not start.tzinfo else stop.timestamp() - start.timestamp())
    if not 0 <= length <= MAX_DURATION_S:
        raise ValueError(
            f"DTEND or DURATION {stop.isoformat()}: allowed 0 to {MAX_DURATION_S // 86_400} days after DTSTART {start.isoformat()}"
        )
    begin = int(start.timestamp())
    return begin, begin + max(length, 1)


def _check_rules(entry: Entry) -> None:
    """Refuse rules that repeat too often to mean anything here, or that never meet (each look would search to the year 9999)."""
    for rule in _listed(entry.get("RRULE")):
        shown = rule.to_ical().decode()
        frequency = str(next(iter(_listed(rule.get("FREQ"))), "")).upper()
        if frequency not in _FREQUENCIES:
            raise ValueError(f"RRULE {shown!r}: FREQ allowed {', '.join(_FREQUENCIES)}")
        if frequency == "HOURLY" and (found := [part for part in _NOT_HOURLY if part in rule]):
            raise ValueError(f"RRULE {shown!r}: {found[0]} allowed with FREQ=DAILY or rarer (BYHOUR lists the hours)")
        if len(_listed(rule.get("BYMINUTE"))) > MAX_PER_HOUR or len(_listed(rule.get("BYSECOND"))) > 1:
            raise ValueError(f"RRULE {shown!r}: allowed at most {MAX_PER_HOUR} times an hour")
        value = entry.start
        start = datetime.combine(value, time()) if not isinstance(value, datetime) else value.replace(tzinfo=None)
        start = start.replace(
            year=start.year + 400 * ((9999 - _PROBE.days // 365 - start.year) // 400)
        )  # the calendar repeats; the search ends soon
        kept = [part for part in shown.split(";") if not part.upper().startswith(("UNTIL=", "COUNT="))]
        probe = ";".join([*kept, f"UNTIL={(start + _PROBE).strftime('%Y%m%dT%H%M%S')}"])
        try:
            met = next(iter(rrulestr(probe, dtstart=start)), None)
        except (ValueError, TypeError) as error:
            raise ValueError(f"RRULE {shown!r}: {error}; allowed what RFC 5545 allows") from error
        if met is None:
            raise ValueError(f"RRULE {shown!r}: never meets; allowed rules that do within ten years of DTSTART")
