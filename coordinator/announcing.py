"""What the forecasters are told beside buckets: the events of the operator's calendars, and client and application of each VM.

`look` reads files and belongs in a thread. Invariant: calendars that cannot be used are named and change nothing; the last good ones stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from coordinator.calendars import Refreshed
from coordinator.forecast.events.model import MAX_WINDOW_S, Event, Labels, Occurrences
from shared.units import BUCKET_S

AHEAD_S: Final = 86_400  # forecasts reach six hours at most
SLIDE_S: Final = 3600  # the window of occurrences moves on at least so often


class Calendars(Protocol):
    """Where events are from: a folder of files, the registry, or both."""

    @property
    def events(self) -> tuple[Event, ...]:
        """All in force."""
        ...

    def refresh(self) -> Refreshed:
        """Look again; belongs in a thread."""
        ...

    def occurrences(self, from_s: int, until_s: int) -> Occurrences:
        """What takes place in [from_s, until_s). Raises ValueError as model.occurrences does."""
        ...


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """What is new. `calendar` None = nothing to tell; `problems` in words for the log, each said once while it lasts."""

    calendar: Occurrences | None = None
    labels: Mapping[str, Labels]
    problems: tuple[str, ...] = ()


class Announcer:
    """`calendars` None: no folder is set; labels are told all the same."""

    def __init__(self, calendars: Calendars | None, history_buckets: int) -> None:
        self._calendars = calendars
        self._past_s = min(history_buckets * BUCKET_S, MAX_WINDOW_S - AHEAD_S - SLIDE_S)
        self._labels: dict[str, Labels] | None = None
        self._calendar = Occurrences.none()
        self._slid_s = 0
        self._refused = ""

    def look(self, labels: Mapping[str, Labels], now_s: int) -> Announcement:
        """Read the calendars again where they have changed. `labels`: vm_id -> client and application now."""
        refreshed = None if self._calendars is None else self._calendars.refresh()
        slid_s = now_s // SLIDE_S * SLIDE_S
        problems = () if refreshed is None else refreshed.problems
        stale = self._calendars is not None and bool(self._calendars.events) and slid_s != self._slid_s
        if refreshed is not None and (refreshed.changed or stale):
            problems += self._spread(slid_s)
        elif labels == self._labels:
            return Announcement(labels=labels, problems=problems)
        self._labels = dict(labels)
        return Announcement(calendar=self._calendar, labels=labels, problems=problems)

    def _spread(self, slid_s: int) -> tuple[str, ...]:
        """Every occurrence that history or a forecast may meet; the problem with them, if there is a new one."""
        assert self._calendars is not None, "checked by the caller"
        self._slid_s = slid_s
        try:
            self._calendar = self._calendars.occurrences(slid_s - self._past_s, slid_s + SLIDE_S + AHEAD_S)
        except ValueError as error:
            said, self._refused = self._refused, str(error)
            return () if said == self._refused else (f"events_dir: {error}; the last good calendar stays in force",)
        self._refused = ""
        return ()
