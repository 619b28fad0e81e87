"""Reads the operator's calendars from a folder: iCalendar (*.ics) and crontab-like (*.cron) files, again whenever one changes.

Invariant: a broken file is named, once per change of it, and its last good events stay in force; a file taken away takes its events along.
What is read is parsed by coordinator.forecast.events, which does no I/O. Bounded: MAX_FILES files of MAX_TEXT_BYTES.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

from coordinator.forecast.events import cron, ical
from coordinator.forecast.events.model import MAX_TEXT_BYTES, Event, Occurrences, occurrences
from shared.config import CoordinatorConfig
from shared.errors import ConfigError

MAX_FILES: Final = 256
PARSERS: Final = {".ics": ical.parse, ".cron": cron.parse}
_Stamp = tuple[int, int, int]  # inode, time of change, size


@dataclass(frozen=True, kw_only=True)
class Refreshed:
    """What a look at the folder brought."""

    changed: bool  # the events in force are not those of the look before
    problems: tuple[str, ...] = ()  # new ones: file, field, value, what is allowed


def open_calendars(config: CoordinatorConfig) -> Calendars | None:
    """The calendars of `events_dir`, not yet read; None where it is not set. Raises ConfigError for a time zone that is none."""
    return Calendars(Path(config.events_dir), zone_of(config)) if config.events_dir else None


def zone_of(config: CoordinatorConfig) -> ZoneInfo:
    """The operator's time zone. Raises ConfigError where there is no such zone."""
    try:
        return cron.zone_of(config.time_zone)
    except ValueError as error:
        raise ConfigError(f"time_zone: {error}") from error


class Calendars:
    """The calendars of one folder. `refresh` does I/O and belongs in a thread; the rest does none."""

    def __init__(self, folder: Path, zone: tzinfo) -> None:
        self._folder = folder
        self._zone = zone
        self._stamps: dict[str, _Stamp] = {}
        self._events: dict[str, tuple[Event, ...]] = {}
        self._said: set[str] = set()

    @property
    def events(self) -> tuple[Event, ...]:
        """All events in force, by file name."""
        return tuple(event for name in sorted(self._events) for event in self._events[name])

    def occurrences(self, from_s: int, until_s: int) -> Occurrences:
        """What takes place in [from_s, until_s). Raises ValueError as model.occurrences does."""
        return occurrences(self.events, from_s, until_s)

    def refresh(self) -> Refreshed:
        """Look again: parse what is new or changed, drop what is gone."""
        before = dict(self._events)
        problems: list[str] = []
        try:
            found = sorted(path for path in self._folder.iterdir() if path.suffix in PARSERS and not path.name.startswith("."))
        except OSError as error:
            return Refreshed(
                changed=False, problems=self._new([f"events_dir {self._folder}: {error.strerror}; a readable folder is needed"])
            )
        if len(found) > MAX_FILES:
            problems.append(f"events_dir {self._folder}: {len(found)} calendars; allowed {MAX_FILES}, the others are not read")
        kept = found[:MAX_FILES]
        for name in self._events.keys() - {path.name for path in kept}:
            del self._events[name]
            self._stamps.pop(name, None)
        problems += [problem for path in kept if (problem := self._read(path)) is not None]
        return Refreshed(changed=self._events != before, problems=self._new(problems))

    def _read(self, path: Path) -> str | None:
        """Take one file in; the problem with it, None where there is none or it has not changed."""
        try:
            status = path.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._stamps.get(path.name) == stamp:
                return None
            self._stamps[path.name] = stamp
            if status.st_size > MAX_TEXT_BYTES:
                raise ValueError(f"{path.name}: {status.st_size} bytes: allowed {MAX_TEXT_BYTES}")
            events = PARSERS[path.suffix](path.name, path.read_text(encoding="utf-8"), self._zone)
        except OSError as error:
            self._stamps.pop(path.name, None)
            return f"{path.name}: {error.strerror}; the last good version stays in force"
        except ValueError as error:  # UnicodeDecodeError is one
            return f"{error} ({path.name}); the last good version stays in force"
        self._events[path.name] = events
        return None

    def _new(self, problems: list[str]) -> tuple[str, ...]:
        """Those that were not said at the look before (an unreadable folder is unreadable every minute)."""
        fresh = tuple(problem for problem in problems if problem not in self._said)
        self._said = set(problems)
        return fresh
