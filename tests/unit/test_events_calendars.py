"""Calendars as operators write them: what is right becomes occurrences, what is wrong is named, and nothing expands without bound."""

from __future__ import annotations

import math
import os
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.calendars import Calendars, open_calendars
from coordinator.forecast.events import cron, ical, text
from coordinator.forecast.events.model import MAX_TEXT_BYTES, MAX_WINDOW_S, Effect, Labels, Scope, occurrences
from coordinator.forecast.events.public_holidays import holiday_spans
from shared.config import CoordinatorConfig
from shared.errors import ConfigError
from shared.units import BUCKET_S, CPU, DISK, GIB, MEMORY, NET_RX, NET_TX

UTC_ZONE = ZoneInfo("UTC")
BERLIN = ZoneInfo("Europe/Berlin")
DAY_S = 86_400


def at(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp())  # type: ignore[misc]  # year, month, day, hour, minute


def calendar(*lines: str, uid: str = "one") -> str:
    body = "\r\n".join(["BEGIN:VEVENT", f"UID:{uid}", *lines, "END:VEVENT"])
    return f"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:test\r\n{body}\r\nEND:VCALENDAR\r\n"


def starts(body: str, from_s: int, days: int, zone: ZoneInfo = UTC_ZONE) -> list[int]:
    return occurrences(ical.parse("c.ics", body, zone), from_s, from_s + days * DAY_S).start_s.tolist()


def test_a_nightly_rule_keeps_local_time_over_the_change_of_clocks() -> None:
    body = calendar("DTSTART;TZID=Europe/Berlin:20260327T020000", "DURATION:PT45M", "RRULE:FREQ=DAILY")
    nights = [at(2026, 3, 27, 1), at(2026, 3, 28, 1), at(2026, 3, 29, 1), at(2026, 3, 30), at(2026, 3, 31)]
    assert starts(body, at(2026, 3, 27), 5) == nights


def test_excluded_moved_and_cancelled_occurrences_follow_the_calendar() -> None:
    rule = calendar("DTSTART:20260301T020000Z", "DURATION:PT45M", "RRULE:FREQ=DAILY;COUNT=6", "EXDATE:20260302T020000Z")
    moved = "BEGIN:VEVENT\r\nUID:one\r\nRECURRENCE-ID:20260303T020000Z\r\nDTSTART:20260303T030000Z\r\nDURATION:PT45M\r\nEND:VEVENT\r\n"
    gone = moved.replace("0303T02", "0304T02").replace("20260303T03", "20260304T02").replace("DURATION", "STATUS:CANCELLED\r\nDURATION")
    body = rule.replace("END:VCALENDAR", moved + gone + "END:VCALENDAR")
    assert starts(body, at(2026, 2, 27), 30) == [at(2026, 3, 1, 2), at(2026, 3, 3, 3), at(2026, 3, 5, 2), at(2026, 3, 6, 2)]


def test_days_and_floating_times_are_meant_in_the_operators_zone() -> None:
    assert starts(calendar("DTSTART;VALUE=DATE:20260302"), at(2026, 3, 1), 3, BERLIN) == [at(2026, 3, 1, 23)]
    events = ical.parse("c.ics", calendar("DTSTART;VALUE=DATE:20260302"), BERLIN)
    assert occurrences(events, at(2026, 3, 1), at(2026, 3, 4)).buckets.tolist() == [288]
    assert starts(calendar("DTSTART:20260302T020000", "DURATION:PT5M"), at(2026, 3, 1), 3, BERLIN) == [at(2026, 3, 2, 1)]


def test_an_occurrence_that_has_begun_before_the_window_counts_and_lies_on_the_grid() -> None:
    events = ical.parse("c.ics", calendar("DTSTART:20260301T020700Z", "DURATION:PT20M"), UTC_ZONE)
    found = occurrences(events, at(2026, 3, 1, 2, 20), at(2026, 3, 1, 3))
    assert (found.start_s.tolist(), found.buckets.tolist()) == ([at(2026, 3, 1, 2, 5)], [5])  # 02:05 to 02:30
    assert len(occurrences(events, at(2026, 3, 1, 2, 27), at(2026, 3, 2))) == 0


def test_what_an_entry_says_of_category_scope_and_effect() -> None:
    lines = ("DTSTART:20260301T020000Z", "SUMMARY:Spring sale", "CATEGORIES:Campaign,web", "X-TIDEGATE-SCOPE:client=acme")
    event = ical.parse("c.ics", calendar(*lines, r"X-TIDEGATE-EFFECT:cpu=+1500m\, memory=+2GiB net=x2.5"), UTC_ZONE)[0]
    assert (event.id, event.name, event.category) == ("c.ics:one", "Spring sale", "campaign")
    assert event.scope == Scope(client="acme")
    assert (event.effect.added[CPU], event.effect.added[MEMORY]) == (1500.0, 2.0 * GIB)
    assert [event.effect.factor[r] for r in (NET_RX, NET_TX)] == [2.5, 2.5]
    assert math.isnan(event.effect.added[DISK])
    assert math.isnan(event.effect.factor[CPU])


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (("DTSTART:20260301T020000Z", "RRULE:FREQ=SECONDLY"), "FREQ"),
        (("DTSTART:20260301T020000Z", "RRULE:FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30"), "never meets"),
        (("DTSTART:20260301T020000Z", "RRULE:FREQ=HOURLY;BYMONTH=2;BYMONTHDAY=30"), "BYMONTH"),
        (("DTSTART:20260301T020000Z", "RRULE:FREQ=SOMETIMES"), "RRULE"),
        (("DTSTART:20260301T020000Z", f"RRULE:FREQ=HOURLY;BYMINUTE={','.join(map(str, range(30)))}"), "12 times an hour"),
        (("DTSTART:20260301T020000Z", "DTEND:20280301T020000Z"), "DTEND"),
        (("DTSTART:18000301T020000Z",), "DTSTART"),
        (("SUMMARY:no start",), "DTSTART"),
        (("DTSTART:20260301T020000Z", "CATEGORIES:rm -rf /"), "category"),
        (("DTSTART:20260301T020000Z", "X-TIDEGATE-SCOPE:tenant=acme"), "scope"),
        (("DTSTART:20260301T020000Z", "X-TIDEGATE-EFFECT:cpu=+1500watts"), "effect"),
    ],
)
def test_a_wrong_entry_is_named(lines: tuple[str, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named) as raised:
        ical.parse("sales.ics", calendar(*lines), UTC_ZONE)
    assert "sales.ics" in str(raised.value)
    assert "'one'" in str(raised.value)


@pytest.mark.parametrize("body", ["hello", "", calendar("DTSTART:20260301T020000Z")[:-20], calendar("DTSTART:20260301T020000Z", uid="")])
def test_what_is_no_whole_calendar_is_refused(body: str) -> None:
    with pytest.raises(ValueError, match=r"c\.ics"):
        ical.parse("c.ics", body, UTC_ZONE)


def test_sizes_are_limited() -> None:
    with pytest.raises(ValueError, match="bytes"):
        ical.parse("c.ics", "x" * (MAX_TEXT_BYTES + 1), UTC_ZONE)
    with pytest.raises(ValueError, match="bytes"):
        cron.parse("c.cron", "x" * (MAX_TEXT_BYTES + 1), UTC_ZONE)
    with pytest.raises(ValueError, match="until_s"):
        occurrences((), 0, MAX_WINDOW_S + 1)
    frequent = cron.parse("c.cron", "\n".join(["*/5 * * * * duration=5m"] * 3), UTC_ZONE)
    with pytest.raises(ValueError, match="occurrences"):
        occurrences(frequent, 0, 30 * DAY_S)


def test_cron_lines_fire_in_their_zone_and_last_their_duration() -> None:
    body = """
    # backups
    30 23 * * 1-5 duration=1h30m category=backup scope=vm=a,b effect=disk=+80MB/s name="Nightly backup"
    CRON_TZ=Europe/Berlin
    0 2 * * * duration=45m
    """
    first, second = cron.parse("c.cron", body, UTC_ZONE)
    assert (first.name, first.category, first.scope.vm_ids) == ("Nightly backup", "backup", {"a", "b"})
    assert first.effect.added[DISK] == 80e6
    monday = at(2026, 11, 23)
    week = occurrences([first], monday, monday + 7 * DAY_S)
    assert week.start_s.tolist() == [monday + day * DAY_S + 84_600 for day in range(5)]
    assert set(week.buckets.tolist()) == {18}
    assert occurrences([second], monday, monday + DAY_S).start_s.tolist() == [monday + 3600]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("* * * * * duration=1m", "12 times an hour"),
        ("0 2 30 2 * duration=1m", "schedule"),
        ("0 25 * * * duration=1m", "schedule"),
        ("0 2 * * duration=45m", "duration"),
        ("0 2 * * * category=backup", "duration"),
        ("0 2 * * * duration=500d", "duration"),
        ("0 2 * * * duration=45m owner=me", "owner"),
        ('0 2 * * * duration=45m name="open', "quotes"),
        ("CRON_TZ=Mars/Olympus", "time zone"),
    ],
)
def test_a_wrong_line_is_named(line: str, named: str) -> None:
    with pytest.raises(ValueError, match=named) as raised:
        cron.parse("c.cron", f"# first\n{line}", UTC_ZONE)
    assert "line 2" in str(raised.value)


@given(st.text(max_size=60))
def test_words_are_read_or_refused_never_more(word: str) -> None:
    for read in (text.effect, text.scope, text.category, text.duration_s):
        try:
            read(word)
        except ValueError as error:
            assert "allowed" in str(error)


def test_effects_are_bounded() -> None:
    for wrong in ("cpu=x2000", "cpu=+99999999999999999999", "cpu=+1 cpu=x2", "cpu=1500m"):
        with pytest.raises(ValueError, match="effect"):
            text.effect(wrong)
    with pytest.raises(ValueError, match="factor"):
        Effect(factor=(-1.0,) * 5)


def test_every_field_of_a_scope_must_agree() -> None:
    both = text.scope("client=acme; app=shop")
    assert both.covers("any", Labels(client="acme", app="shop"))
    assert not both.covers("any", Labels(client="acme", app="mail"))
    assert text.scope("all").covers("any", Labels())


def test_a_folder_is_followed_and_a_broken_file_keeps_its_last_good_events(tmp_path: Path) -> None:
    calendars = Calendars(tmp_path, UTC_ZONE)
    nightly = tmp_path / "nightly.cron"
    nightly.write_text("0 2 * * * duration=45m category=backup\n")
    (tmp_path / "readme.txt").write_text("not a calendar")
    assert calendars.refresh().changed
    assert not calendars.refresh().changed
    assert len(calendars.occurrences(at(2026, 3, 1), at(2026, 3, 3))) == 2
    nightly.write_text("0 2 * * * duration=45minutes\n")
    broken = calendars.refresh()
    assert not broken.changed
    assert "nightly.cron" in broken.problems[0]
    assert "duration '45minutes'" in broken.problems[0]
    assert [event.category for event in calendars.events] == ["backup"]
    assert calendars.refresh().problems == ()  # said once
    nightly.unlink()
    assert calendars.refresh().changed
    assert calendars.events == ()


def test_a_file_that_is_no_text_and_a_folder_that_is_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "binary.ics").write_bytes(bytes(range(256)))
    assert "binary.ics" in Calendars(tmp_path, UTC_ZONE).refresh().problems[0]
    absent = Calendars(tmp_path / "absent", UTC_ZONE)
    assert "absent" in absent.refresh().problems[0]
    assert absent.refresh().problems == ()


def test_a_change_within_the_same_second_is_seen(tmp_path: Path) -> None:
    calendars = Calendars(tmp_path, UTC_ZONE)
    path = tmp_path / "a.cron"
    path.write_text("0 2 * * * duration=45m\n")
    os.utime(path, ns=(10**18, 10**18))
    calendars.refresh()
    path.write_text("0 3 * * * duration=45m\n")
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert calendars.refresh().changed
    found = calendars.occurrences(at(2026, 3, 1), at(2026, 3, 2))
    assert np.all(found.start_s % BUCKET_S == 0)
    assert found.start_s.tolist() == [at(2026, 3, 1, 3)]


def test_settings_open_the_folder_in_the_operators_zone(tmp_path: Path) -> None:
    assert open_calendars(CoordinatorConfig()) is None
    (tmp_path / "a.cron").write_text("0 2 * * * duration=45m\n")
    calendars = open_calendars(CoordinatorConfig(events_dir=str(tmp_path), time_zone="Europe/Berlin"))
    assert calendars is not None
    calendars.refresh()
    assert calendars.occurrences(at(2026, 3, 1), at(2026, 3, 2)).start_s.tolist() == [at(2026, 3, 1, 1)]
    with pytest.raises(ConfigError, match="Mars/Olympus"):
        open_calendars(CoordinatorConfig(events_dir=str(tmp_path), time_zone="Mars/Olympus"))


def test_public_holidays_are_local_days() -> None:
    epiphany = [at(2026, 1, 5, 23), at(2026, 1, 6, 23)]
    assert epiphany in holiday_spans("DE-BY", BERLIN, [2026]).tolist()  # in Bavaria
    assert epiphany not in holiday_spans("DE", BERLIN, [2026]).tolist()
    with pytest.raises(ValueError, match="QQ"):
        holiday_spans("QQ", BERLIN, [2026])
