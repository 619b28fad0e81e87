"""Registered events on the forecasters' calendar: once, by a rule, and from a URL of a real HTTP server that fails now and then."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from coordinator.announcing import Announcer
from coordinator.forecast.events.model import MAX_TEXT_BYTES, Labels
from coordinator.registered_calendars import RegisteredCalendars
from coordinator.tenancy.model import EventSpec, Row

NOW_S = 1_795_262_400  # 2026-11-21 12:00 UTC, a Saturday
DAY_S = 86_400


def calendar(start: str, uid: str = "u1", more: str = "") -> str:
    entry = f"BEGIN:VEVENT\r\nUID:{uid}\r\nDTSTART:{start}\r\nDURATION:PT1H\r\n{more}END:VEVENT\r\n"
    return f"BEGIN:VCALENDAR\r\nVERSION:2.0\r\n{entry}END:VCALENDAR\r\n"


def row(id_: str, version: int = 1, **fields: object) -> Row[EventSpec]:
    spec = EventSpec(name=id_, **fields)  # type: ignore[arg-type]
    return Row(id=id_, spec=spec, version=version, created_ns=1, changed_ns=1, changed_by="ops")


class Clock:
    now_s = NOW_S

    def __call__(self) -> int:
        return self.now_s


class Site:
    """A web server whose answer tests set."""

    def __init__(self) -> None:
        self.status, self.text, self.asked = 200, calendar("20261122T020000Z"), 0
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked += 1
                self.send_response(site.status)
                if site.status == 302:
                    self.send_header("Location", "file:///etc/passwd")
                self.end_headers()
                self.wfile.write(site.text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/a.ics"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def test_rules_count_local_days_over_a_change_of_the_clocks() -> None:
    calendars = RegisteredCalendars(None, Clock())
    calendars.put({"daily": row("daily", start_s=NOW_S, duration_s=600, rrule="FREQ=DAILY", time_zone="America/New_York")})
    assert calendars.refresh().changed and not calendars.refresh().changed
    march_s = NOW_S + 113 * DAY_S  # 2027-03-14, when New York's clocks go forward
    starts = calendars.occurrences(march_s - 2 * DAY_S, march_s + 3 * DAY_S).start_s.tolist()
    assert [start % DAY_S // 3600 for start in starts] == [12, 12, 11, 11, 11, 11], "07:00 there, always"


def test_an_event_is_announced_with_its_scope_and_effect_and_goes_with_it() -> None:
    clock = Clock()
    calendars = RegisteredCalendars(None, clock)
    announcer, labels = Announcer(calendars, 288), {"vm-1": Labels(client="aurora")}
    assert announcer.look(labels, NOW_S).calendar is not None, "labels are new"
    assert announcer.look(labels, NOW_S).calendar is None
    calendars.put({"launch": row("launch", start_s=NOW_S + 600, duration_s=1800, client="aurora", effect="cpu=x3")})
    told = announcer.look(labels, NOW_S).calendar
    assert told is not None
    assert [(n.name, n.scope.client, n.effect.factor[0]) for n in told.notices] == [("launch", "aurora", 3.0)]
    assert (told.start_s.tolist(), told.buckets.tolist()) == ([NOW_S + 600], [6])
    state = calendars.state("launch")
    assert state is not None and state.next_s == (NOW_S + 600, NOW_S + 2400)
    clock.now_s += 3000
    calendars.refresh()
    over = calendars.state("launch")
    assert over is not None and over.next_s is None
    calendars.put({})
    gone = announcer.look(labels, NOW_S).calendar
    assert gone is not None and len(gone) == 0


def test_a_url_is_read_again_and_keeps_its_last_good_entries(site: Site) -> None:
    clock = Clock()
    calendars = RegisteredCalendars(None, clock)
    calendars.put({"site": row("site", url=site.url, refresh_s=600, effect="cpu=x2")})
    assert calendars.refresh() == calendars.refresh().__class__(changed=True)
    first = calendars.events
    assert ([event.effect.factor[0] for event in first], site.asked) == ([2.0], 1)
    calendars.refresh()
    assert site.asked == 1, "not due yet"
    for status, text, said in (
        (500, "x", "500"),
        (200, "nonsense", "not an iCalendar"),
        (200, "x" * (MAX_TEXT_BYTES + 1), "more than"),
        (302, "", "file"),
    ):
        site.status, site.text = status, text
        clock.now_s += 600
        looked = calendars.refresh()
        assert (looked.changed, calendars.events) == (False, first)
        assert len(looked.problems) == 1 and said in looked.problems[0], looked
    state = calendars.state("site")
    assert state is not None and state.problem is not None and state.fetched_s == NOW_S
    site.status, site.text = 200, calendar("20261123T020000Z", more="X-TIDEGATE-EFFECT:cpu=x5\r\n")
    clock.now_s += 600
    assert calendars.refresh().changed
    state = calendars.state("site")
    assert state is not None and (state.problem, state.fetched_s, state.next_s) == (None, clock.now_s, (1_795_399_200, 1_795_402_800))
    assert [event.effect.factor[0] for event in calendars.events] == [5.0], "its own"


def test_a_server_that_is_gone_is_a_problem_and_no_failure(site: Site) -> None:
    url = site.url
    site.server.shutdown()
    site.server.server_close()
    calendars = RegisteredCalendars(None, Clock())
    calendars.put({"site": row("site", url=url)})
    looked = calendars.refresh()
    assert looked.problems and url in looked.problems[0]
    site.server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # for the fixture to close
    site.thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.02})
    site.thread.start()
