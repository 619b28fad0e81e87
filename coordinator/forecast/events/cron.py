"""Crontab-like lines as events, for schedules that already live in cron. Pure: text in.

    CRON_TZ=Europe/Berlin
    0 2 * * *   duration=45m  category=backup  scope=client=acme  effect=disk=+80MB/s,cpu=+500m  name="Nightly backup"

Five fields as cron(5) has them (expanded by cronsim, with Debian's rules for the changes of the clocks), then words KEY=VALUE: `duration`
is required, `category` "event", `scope` all and `effect` none where they are left out. CRON_TZ holds for the lines below it.
"""

from __future__ import annotations

import shlex
from datetime import datetime, tzinfo
from itertools import islice, takewhile
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from coordinator.forecast.events import text as words
from coordinator.forecast.events.model import MAX_EVENTS, MAX_OCCURRENCES, MAX_TEXT_BYTES, Event

KEYS: Final = ("duration", "category", "scope", "effect", "name")
MAX_PER_HOUR: Final = 12
_FIELDS: Final = 5
_EPOCH: Final = 1_704_067_200  # 2024-01-01: where a line's density is probed


class _CronSchedule:
    """Firings of one expression in its zone, each lasting equally long."""

    def __init__(self, expression: str, zone: tzinfo, duration_s: int) -> None:
        self._expression = expression
        self._zone = zone
        self._duration_s = duration_s

    def between(self, from_s: int, until_s: int) -> list[tuple[int, int]]:
        """See model.Schedule. More than MAX_OCCURRENCES are cut off one above it, for the caller to refuse."""
        after = datetime.fromtimestamp(from_s - self._duration_s, self._zone)
        firings = (int(moment.timestamp()) for moment in CronSim(self._expression, after))
        inside = takewhile(lambda start: start < until_s, firings)
        return [(start, start + self._duration_s) for start in islice(inside, MAX_OCCURRENCES + 1)]


def zone_of(name: str) -> ZoneInfo:
    """A zone of the IANA database. Raises ValueError."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"time zone {name!r}: allowed names of the IANA database, such as UTC or Europe/Berlin") from error


def parse(source: str, text: str, zone: tzinfo) -> tuple[Event, ...]:
    """All lines of one file. Raises ValueError naming source, line, field, value and what is allowed."""
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise ValueError(f"{source}: {len(text.encode())} bytes: allowed {MAX_TEXT_BYTES}")
    events: list[Event] = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        try:
            if stripped.startswith("CRON_TZ="):
                zone = zone_of(stripped.removeprefix("CRON_TZ=").strip())
                continue
            events.append(_event(f"{source}:{number}", stripped, zone))
        except ValueError as error:
            raise ValueError(f"{source}: line {number}: {error}") from error
        if len(events) > MAX_EVENTS:
            raise ValueError(f"{source}: line {number}: more than {MAX_EVENTS} events; allowed {MAX_EVENTS}")
    return tuple(events)


def _event(id_: str, line: str, zone: tzinfo) -> Event:
    try:
        parts = shlex.split(line)
    except ValueError as error:
        raise ValueError(f"{line!r}: {error}; quotes must be closed") from error
    given: dict[str, str] = {}
    for word in parts[_FIELDS:]:
        key, _, value = word.partition("=")
        if key not in KEYS or key in given or not value:
            raise ValueError(f"{word!r}: allowed {', '.join(f'{name}=...' for name in KEYS)}, each once")
        given[key] = value
    if "duration" not in given:
        raise ValueError("duration: missing; required, as duration=45m")
    expression = " ".join(parts[:_FIELDS])
    duration_s = words.duration_s(given["duration"])
    return Event(
        id=id_,
        name=words.title(given.get("name", "")) or expression,
        category=words.category(given.get("category", "event")),
        scope=words.scope(given.get("scope", "all")),
        effect=words.effect(given.get("effect", "")),
        schedule=_CronSchedule(_checked(expression), zone, duration_s),
    )


def _checked(expression: str) -> str:
    try:
        probe = CronSim(expression, datetime.fromtimestamp(_EPOCH, ZoneInfo("UTC")))
        first = list(islice(probe, 1))
        hour = first[0].replace(minute=0) if first else None
        dense = hour and list(islice(takewhile(lambda m: m.replace(minute=0) == hour, CronSim(expression, first[0])), MAX_PER_HOUR + 1))
    except CronSimError as error:
        raise ValueError(f"schedule {expression!r}: {error}; allowed minute hour day-of-month month day-of-week, as cron(5)") from error
    if not first:
        raise ValueError(f"schedule {expression!r}: never fires; allowed schedules that do")
    if dense and len(dense) >= MAX_PER_HOUR:
        raise ValueError(f"schedule {expression!r}: allowed at most {MAX_PER_HOUR} times an hour")
    return expression
