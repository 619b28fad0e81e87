"""States of alerts: hold times, flapping, silences, reminders, acknowledgement, the bound; what cannot be judged stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.learning.alerts import (
    OVERFLOW,
    AlertBook,
    AlertState,
    Change,
    Finding,
    Limits,
    Look,
    Rule,
    Severity,
    Turn,
    acknowledge,
    all_labels,
    fingerprint,
    step,
)
from coordinator.learning.silences import Matcher, Silence, problem, silenced_by


def rule(name: str, severity: Severity = Severity.WARNING, for_s: float = 60.0, keep_s: float = 120.0) -> Rule:
    return Rule(name=name, severity=severity, for_s=for_s, keep_s=keep_s, meaning="m", action="a")


RULES = {
    "Busy": rule("Busy"),
    "Bad": rule("Bad", Severity.CRITICAL, 0.0),
    "Note": rule("Note", Severity.INFO, 0.0),
    OVERFLOW: rule(OVERFLOW, for_s=0.0),
}


def finding(name: str, host: str = "a", value: float = 1.0) -> Finding:
    return Finding(rule=name, labels={"host": host}, value=value, summary=f"{host} {value}")


@dataclass
class Play:
    """A book played look by look; `told` collects what receivers hear."""

    book: AlertBook = field(default_factory=AlertBook)
    now_s: float = 1000.0
    silences: list[Silence] = field(default_factory=list)
    limits: Limits = field(default_factory=lambda: Limits(remind_s=0.0))
    told: list[tuple[Turn, str]] = field(default_factory=list)

    def look(self, *findings: Finding, after_s: float = 15.0, blind: bool = False) -> tuple[Change, ...]:
        self.now_s += after_s
        look = Look(findings=findings, blind=lambda _alert: blind)
        self.book, changes = step(self.book, look, RULES, self.silences, self.now_s, limits=self.limits)
        self.told += [(change.turn, change.alert.labels.get("host", "")) for change in changes if change.tell]
        return changes

    def states(self) -> list[AlertState]:
        return [alert.state for alert in self.book.alerts.values()]


def test_a_condition_fires_after_its_hold_time_and_resolves_after_its_keep_time() -> None:
    play = Play()
    play.look(finding("Busy"))
    assert play.states() == [AlertState.PENDING]
    play.look(finding("Busy", value=0.98), after_s=59)
    assert play.states() == [AlertState.PENDING]
    play.look(finding("Busy", value=0.99), after_s=1)
    (alert,) = play.book.alerts.values()
    assert (alert.state, alert.value, alert.summary, alert.started_s, alert.fired_s) == (AlertState.FIRING, 0.99, "a 0.99", 1015.0, 1075.0)
    play.look(after_s=119)
    assert play.states() == [AlertState.FIRING]
    play.look(after_s=1)
    assert play.states() == [AlertState.RESOLVED]
    assert play.told == [(Turn.FIRED, "a"), (Turn.RESOLVED, "a")]


def test_a_flicker_below_the_hold_time_is_told_to_nobody() -> None:
    play = Play()
    play.look(finding("Busy"))
    assert [change.turn for change in play.look()] == [Turn.DROPPED]
    assert not play.book.alerts
    assert not play.told


def test_flapping_within_the_keep_time_is_one_alert() -> None:
    play = Play()
    for _ in range(10):
        play.look(finding("Bad"))
        play.look()
    assert play.told == [(Turn.FIRED, "a")]
    assert len(play.book.alerts) == 1


def test_the_same_condition_later_is_an_alert_of_its_own() -> None:
    play = Play()
    play.look(finding("Bad"))
    play.look(after_s=500)
    play.look(finding("Bad"))
    ids = list(play.book.alerts)
    assert len(ids) == 2
    assert len({alert.fingerprint for alert in play.book.alerts.values()}) == 1
    assert [turn for turn, _ in play.told] == [Turn.FIRED, Turn.RESOLVED, Turn.FIRED]


def test_what_cannot_be_judged_stays_as_it_is() -> None:
    play = Play()
    play.look(finding("Bad"))
    for _ in range(5):
        play.look(after_s=1000, blind=True)
    assert play.states() == [AlertState.FIRING]
    play.look(after_s=1000)
    assert play.states() == [AlertState.RESOLVED]


def test_a_silence_holds_the_word_back_until_it_ends() -> None:
    play = Play()
    play.silences = [silence(until_s=1100.0)]
    play.look(finding("Bad"))
    (alert,) = play.book.alerts.values()
    assert (alert.state, alert.silenced_by, play.told) == (AlertState.FIRING, ("s",), [])
    play.look(finding("Bad"), after_s=100)
    assert [host for _, host in play.told] == ["a"]


def test_silences_come_and_go_while_it_fires() -> None:
    play = Play()
    play.look(finding("Bad"))
    first, second = silence(until_s=1e9), msgspec.structs.replace(silence(until_s=1e9), id="t")
    for force, covering in (([first], ("s",)), ([first, second], ("s", "t")), ([second], ("t",)), ([], ())):
        play.silences = force
        changes = play.look(finding("Bad"))
        (alert,) = play.book.alerts.values()
        assert alert.silenced_by == covering
        assert [change.tell for change in changes] == [False]  # written down, and nobody is told again
    assert play.look(finding("Bad")) == ()


def test_what_was_silenced_all_along_is_resolved_without_a_word() -> None:
    play = Play()
    play.silences = [silence(until_s=1e9)]
    play.look(finding("Bad"))
    play.look(after_s=500)
    assert play.states() == [AlertState.RESOLVED]
    assert play.told == []


def test_a_resolve_is_told_even_if_a_silence_began_meanwhile() -> None:
    play = Play()
    play.look(finding("Bad"))
    play.silences = [silence(until_s=1e9)]
    play.look(after_s=500)
    assert [turn for turn, _ in play.told] == [Turn.FIRED, Turn.RESOLVED]


def test_reminders_end_with_an_acknowledgement() -> None:
    play = Play(limits=Limits(remind_s=600.0))
    play.look(finding("Bad"))
    for _ in range(3):
        play.look(finding("Bad"), after_s=600)
    assert [turn for turn, _ in play.told] == [Turn.FIRED, Turn.REMINDED, Turn.REMINDED, Turn.REMINDED]
    (alert_id,) = play.book.alerts
    play.book, change = acknowledge(play.book, alert_id, "ops", "on it", play.now_s)
    assert change is not None and change.tell and change.alert.acknowledged_by == "ops"
    play.look(finding("Bad"), after_s=6000)
    assert len(play.told) == 4
    assert acknowledge(play.book, "nothing-1", "ops", "", 0.0)[1] is None


def test_the_bound_keeps_known_and_critical_ones_and_counts_the_rest() -> None:
    play = Play(limits=Limits(max_active=10, remind_s=0.0))
    play.look(*[finding("Note", f"n{i}") for i in range(20)])
    assert len(play.book.alerts) == 9  # the tenth place is kept for a critical one
    assert play.book.beyond == 11
    play.look(finding("Bad"), *[finding("Note", f"n{i}") for i in range(20)])
    assert sum(alert.rule == "Bad" for alert in play.book.alerts.values()) == 1
    assert all(alert.state is AlertState.FIRING for alert in play.book.alerts.values())


def test_a_rule_that_was_switched_off_is_resolved_at_once() -> None:
    play = Play()
    play.look(finding("Bad"))
    book, changes = step(play.book, Look(findings=()), {}, [], play.now_s + 1, limits=play.limits)
    assert [change.turn for change in changes] == [Turn.RESOLVED]
    assert not book.active()


@given(st.lists(st.tuples(st.sets(st.sampled_from("abc")), st.booleans(), st.integers(1, 400)), max_size=40))
def test_every_firing_that_was_told_is_resolved_once_and_in_order(looks: Sequence[tuple[set[str], bool, int]]) -> None:
    play = Play()
    for hosts, quiet, after_s in looks:
        play.silences = [silence(until_s=1e12)] if quiet else []
        play.look(*[finding("Bad", host) for host in sorted(hosts)], after_s=after_s)
    play.silences = []
    play.look(after_s=10_000)
    for host in "abc":
        turns = [turn for turn, of in play.told if of == host]
        assert turns[1::2] == [Turn.RESOLVED] * (len(turns) // 2)
        assert len(turns) % 2 == 0
    assert all(not alert.active for alert in play.book.alerts.values())


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=4))
def test_a_fingerprint_does_not_depend_on_the_order_of_labels(labels: dict[str, str]) -> None:
    backwards = dict(reversed(list(labels.items())))
    assert fingerprint("Rule", labels) == fingerprint("Rule", backwards) != fingerprint("Other", labels)


def silence(until_s: float, **matchers: str) -> Silence:
    wanted = matchers or {"alertname": "Bad"}
    told = tuple(Matcher(name=name, value=value) for name, value in wanted.items())
    return Silence(id="s", matchers=told, starts_s=0.0, ends_s=until_s, created_by="ops", comment="c")


@pytest.mark.parametrize(
    ("matcher", "labels", "takes"),
    [
        (Matcher(name="host", value="kvm-1"), {"host": "kvm-1"}, True),
        (Matcher(name="host", value="kvm-1"), {"host": "kvm-11"}, False),
        (Matcher(name="host", value="kvm-1", equal=False), {"host": "kvm-2"}, True),
        (Matcher(name="host", value="kvm-[12]", regex=True), {"host": "kvm-2"}, True),
        (Matcher(name="host", value="kvm-[12]", regex=True), {"host": "kvm-22"}, False),  # anchored
        (Matcher(name="client", value=""), {"host": "kvm-2"}, True),  # a label that is lacking is empty
    ],
)
def test_matchers(matcher: Matcher, labels: dict[str, str], takes: bool) -> None:
    found = msgspec.structs.replace(silence(10.0), matchers=(matcher,))
    assert silenced_by(labels, [found]) == (("s",) if takes else ())
    assert found.active(9.9) and not found.active(10.0)


@pytest.mark.parametrize(
    ("matchers", "words"),
    [
        ([Matcher(name="host", value="(", regex=True)], "not a regular expression"),
        ([Matcher(name="host", value="(a+)+b", regex=True)], "repeated group"),
        ([Matcher(name="host", value=".*", regex=True)], "empty label"),
        ([Matcher(name="host", value="x", equal=False)], "empty label"),
    ],
)
def test_matchers_that_mean_nothing_or_everything_are_refused(matchers: list[Matcher], words: str) -> None:
    assert words in (problem(matchers) or "")


def test_severity_and_name_are_labels_too() -> None:
    play = Play()
    play.look(finding("Bad"))
    (alert,) = play.book.alerts.values()
    assert all_labels(alert) == {"alertname": "Bad", "severity": "critical", "host": "a"}
