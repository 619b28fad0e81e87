"""Registered events as a source of the forecasters' calendar, beside the operator's files; fetches the calendars at URLs.

`refresh` does I/O and belongs in a thread; `put` may be called from another one. Invariant: an event whose calendar cannot be had or read
is named, and its last good entries stay in force. Bounded: FETCHES_PER_LOOK fetches of MAX_TEXT_BYTES within FETCH_S each; no other scheme
than http and https, also after a redirect.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from http.client import HTTPException
from typing import Final

from coordinator.calendars import Calendars, Refreshed
from coordinator.forecast.events.model import MAX_TEXT_BYTES, Event, Occurrences, occurrences
from coordinator.tenancy.model import EventSpec, Row
from coordinator.tenancy.scheduling import events_of
from shared.errors import Refusal

FETCH_S: Final = 5.0
FETCHES_PER_LOOK: Final = 8  # 40 s at worst, and a look comes every minute
AHEAD_S: Final = 390 * 86_400  # how far the next occurrence is looked for: what comes once a year is met


@dataclass(frozen=True, kw_only=True)
class Known:
    """One registered event as it stands."""

    row: Row[EventSpec]
    events: tuple[Event, ...] = ()
    next_s: tuple[int, int] | None = None  # [start, end) of the occurrence that comes next or is under way
    fetched_s: int | None = None
    tried_s: int | None = None
    problem: str | None = None


class RegisteredCalendars:
    """The registered events, and (where a folder is set) the files'. `now_s` gives the coordinator's clock."""

    def __init__(self, files: Calendars | None, now_s: Callable[[], int]) -> None:
        self._files, self._now_s = files, now_s
        self._rows: Mapping[str, Row[EventSpec]] = {}
        self._known: dict[str, Known] = {}
        self._fetch = _opener()

    def put(self, rows: Mapping[str, Row[EventSpec]]) -> None:
        """What is registered now; in force from the next `refresh` on."""
        self._rows = dict(rows)

    def state(self, id_: str) -> Known | None:
        """One event as of the last `refresh`; None = it was not looked at yet."""
        return self._known.get(id_)

    @property
    def events(self) -> tuple[Event, ...]:
        """All events in force."""
        own = (event for _, known in sorted(self._known.items()) for event in known.events)
        return (*(() if self._files is None else self._files.events), *own)

    def occurrences(self, from_s: int, until_s: int) -> Occurrences:
        """What takes place in [from_s, until_s). Raises ValueError as model.occurrences does."""
        return occurrences(self.events, from_s, until_s)

    def refresh(self) -> Refreshed:
        """Look again: at the files, at what was registered since, at URLs that are due."""
        looked = Refreshed(changed=False) if self._files is None else self._files.refresh()
        rows, now_s, fetches = self._rows, self._now_s(), FETCHES_PER_LOOK
        before = {id_: known.events for id_, known in self._known.items()}
        problems: list[str] = []
        found: dict[str, Known] = {}
        for id_, row in sorted(rows.items()):
            known = self._known.get(id_)
            if known is None or known.row.etag != row.etag:
                known = self._read(row, known)
            due = row.spec.url is not None and (known.tried_s is None or now_s >= known.tried_s + row.spec.refresh_s)
            if due and fetches:
                fetches -= 1
                known = self._fetched(known, now_s)
            problems += [f"event {id_}: {known.problem}"] if known.problem and due else []
            found[id_] = _ahead(known, now_s)
        self._known = found
        after = {id_: known.events for id_, known in found.items()}
        return Refreshed(changed=looked.changed or after != before, problems=(*looked.problems, *problems))

    def _read(self, row: Row[EventSpec], before: Known | None) -> Known:
        if row.spec.url is not None:  # another address keeps the old entries until the new ones are there
            return Known(row=row, events=() if before is None else before.events)
        try:
            return Known(row=row, events=events_of(row.id, row.spec))
        except (Refusal, ValueError) as error:  # checked when it was registered: by a stricter version now, or a database that was edited
            return Known(row=row, events=() if before is None else before.events, problem=str(error))

    def _fetched(self, known: Known, now_s: int) -> Known:
        url = known.row.spec.url
        assert url is not None, "asked of events with a URL only"
        try:
            with self._fetch.open(url, timeout=FETCH_S) as reply:
                raw = reply.read(MAX_TEXT_BYTES + 1)
            if len(raw) > MAX_TEXT_BYTES:
                raise ValueError(f"more than {MAX_TEXT_BYTES} bytes")
            events = events_of(known.row.id, known.row.spec, raw.decode())
        except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError, UnicodeDecodeError a ValueError
            return replace(known, tried_s=now_s, problem=f"{url}: {error}; what was last read stays in force"[:1000])
        return replace(known, events=events, tried_s=now_s, fetched_s=now_s, next_s=None, problem=None)


def _ahead(known: Known, now_s: int) -> Known:
    """With the occurrence that comes next, looked for where the one known is over."""
    if known.next_s is not None and known.next_s[1] > now_s:
        return known
    spans = [span for event in known.events for span in event.schedule.between(now_s, now_s + AHEAD_S)[:1]]
    return replace(known, next_s=min(spans, default=None))


def _opener() -> urllib.request.OpenerDirector:
    """Without the handlers for files, FTP and data that the library's own has."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
    ):
        opener.add_handler(handler())
    return opener
