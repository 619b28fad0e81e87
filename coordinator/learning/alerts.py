"""Alerts and the states they pass through. Pure: (book, look, silences, now) -> (book, changes).

        condition holds         for `for_s`              not for `keep_s`
    (none) -------> pending -----------------> firing -----------------> resolved
               ^       | no longer holds          ^ holds again within keep_s: still firing
               +-------+ (dropped)

An alert is its rule and labels: the same condition seen again is the same alert (`fingerprint`), a new one only after it was resolved
(`id`). What cannot be judged now (a silent host's load) is left as it is: unknown is not false. A silenced or already told alert is not
told again; a resolve is told to whoever was told of the alert. Bounded: `max_active` pending or firing; what does not fit is counted in
one alert more.
Invariants: every alert that was told as firing is told as resolved once; an alert fires only after its condition was seen for `for_s`.
Source: the states and names are Prometheus's, https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import msgspec

from coordinator.learning.silences import Silence, silenced_by

RESOLVED_KEPT_S: Final = 86_400
MAX_RESOLVED: Final = 1000  # the newest are kept for the page; the registry has all of thirty days
OVERFLOW: Final = "TooManyAlerts"
KEPT_FOR_CRITICAL: Final = 10  # one in so many of the places


class Severity(StrEnum):
    """How soon somebody should look."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class AlertState(StrEnum):
    """Where an alert stands."""

    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule as it is in force. `threshold` in `unit`; None = the condition has no number."""

    name: str
    severity: Severity
    for_s: float
    keep_s: float
    meaning: str
    action: str
    threshold: float | None = None
    unit: str = ""
    labels: tuple[str, ...] = ()


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A condition that holds now. `summary` has the numbers, `advice` what to do with them where the rule's own words say less."""

    rule: str
    labels: dict[str, str]
    value: float | None  # None = cannot be read
    summary: str
    advice: str = ""


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One alert. Times in Unix seconds of the coordinator's clock; None = not yet."""

    id: str
    fingerprint: str
    rule: str
    severity: Severity
    labels: dict[str, str]
    summary: str
    action: str
    page: str  # path on the status page
    state: AlertState
    value: float | None  # when last seen
    started_s: float  # the condition was first seen
    seen_s: float  # and last
    fired_s: float | None = None
    resolved_s: float | None = None
    silenced_by: tuple[str, ...] = ()
    acknowledged_by: str | None = None
    acknowledged_s: float | None = None
    comment: str = ""
    told_s: float | None = None  # receivers were last told of it as firing

    @property
    def active(self) -> bool:
        """Pending or firing."""
        return self.state is not AlertState.RESOLVED


class Turn(StrEnum):
    """What happened to an alert."""

    PENDING = "pending"
    FIRED = "fired"
    TOLD = "told"  # a silence has ended, or the first word of it
    REMINDED = "reminded"
    RESOLVED = "resolved"
    DROPPED = "dropped"  # was pending only
    ACKNOWLEDGED = "acknowledged"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One turn. `tell`: receivers are to hear of it."""

    turn: Turn
    alert: Alert
    tell: bool = False


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the rules found. `blind(alert)`: whether the alert's condition cannot be judged now."""

    findings: Sequence[Finding]
    blind: Callable[[Alert], bool] = field(default=lambda _alert: False)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds and habits of the book."""

    max_active: int = 500
    remind_s: float = 14_400.0


@dataclass(frozen=True, kw_only=True)
class AlertBook:
    """Alerts by id: all active ones and the newest resolved ones. `beyond`: conditions that found no room at the last look."""

    alerts: Mapping[str, Alert] = field(default_factory=dict)
    beyond: int = 0
    held_against: frozenset[str] = frozenset()  # silences that were in force at the last look

    def active(self) -> dict[str, Alert]:
        """fingerprint -> alert."""
        return {alert.fingerprint: alert for alert in self.alerts.values() if alert.active}

    def firing_told(self) -> list[Alert]:
        """What receivers believe to be firing, oldest first."""
        found = [each for each in self.alerts.values() if each.state is AlertState.FIRING and each.told_s is not None]
        return sorted(found, key=lambda each: (each.fired_s or 0.0, each.id))


def fingerprint(rule: str, labels: Mapping[str, str]) -> str:
    """16 hexadecimal digits of a rule and its labels, in any order."""
    text = "\xff".join([rule, *(f"{name}\xfe{value}" for name, value in sorted(labels.items()))])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def step(
    book: AlertBook, look: Look, rules: Mapping[str, Rule], silences: Sequence[Silence], now_s: float, *, limits: Limits
) -> tuple[AlertBook, tuple[Change, ...]]:
    """One look. Rules that are not in `rules` (switched off) have no findings and their alerts are resolved at once."""
    active = book.active()
    found = {fingerprint(each.rule, each.labels): each for each in look.findings if each.rule in rules}
    found, beyond = _bounded(found, active, rules, limits.max_active)
    changes: list[Change] = []
    kept = {alert.id: alert for alert in book.alerts.values() if not alert.active}
    for key, finding in found.items():
        alert = active.get(key) or _born(key, finding, rules[finding.rule], now_s)
        changes += _held(alert, finding, rules[finding.rule], now_s, new=key not in active)
    for key, alert in active.items():
        if key not in found:
            blind = alert.rule in rules and look.blind(alert)
            changes += [Change(turn=Turn.TOLD, alert=alert)] if blind else _missed(alert, rules.get(alert.rule), now_s)
    told: list[Change] = []
    force = {each.id: each for each in silences if each.active(now_s)}
    fresh = [silence for key, silence in force.items() if key not in book.held_against]
    for turned in changes:
        # an alert's labels never change: only silences that it has not met yet can be new to it
        met = fresh if turned.alert.id in book.alerts else list(force.values())
        change = _told(_quieted(turned, force, met), now_s, limits)
        if change.turn is not Turn.DROPPED:
            kept[change.alert.id] = change.alert
        if change.tell or _noted(change, active):
            told.append(change)
    return AlertBook(alerts=_trimmed(kept, now_s), beyond=beyond, held_against=frozenset(force)), tuple(told)


def acknowledge(book: AlertBook, alert_id: str, who: str, comment: str, now_s: float) -> tuple[AlertBook, Change | None]:
    """Somebody looks after it: no more reminders. None = no such active alert."""
    alert = book.alerts.get(alert_id)
    if alert is None or not alert.active:
        return book, None
    alert = msgspec.structs.replace(alert, acknowledged_by=who, acknowledged_s=now_s, comment=comment)
    change = Change(turn=Turn.ACKNOWLEDGED, alert=alert, tell=alert.told_s is not None)
    return replace(book, alerts={**book.alerts, alert_id: alert}), change


def _bounded(
    found: dict[str, Finding], active: Mapping[str, Alert], rules: Mapping[str, Rule], most: int
) -> tuple[dict[str, Finding], int]:
    """What there is room for, and how many did not fit: known ones stay, the last places are kept for critical ones."""
    taken, plenty = len(active), most - most // KEPT_FOR_CRITICAL
    order = list(Severity)
    kept = {key: each for key, each in found.items() if key in active}
    new = [key for key in found if key not in active]
    for key in sorted(new, key=lambda key: (found[key].rule != OVERFLOW, -order.index(rules[found[key].rule].severity), key)):
        foremost = found[key].rule == OVERFLOW or rules[found[key].rule].severity is Severity.CRITICAL
        if taken < (most if foremost else plenty):
            kept[key] = found[key]
            taken += 1
    return kept, len(found) - len(kept)


def _born(key: str, finding: Finding, rule: Rule, now_s: float) -> Alert:
    return Alert(
        id=f"{key}-{int(now_s)}",
        fingerprint=key,
        rule=rule.name,
        severity=rule.severity,
        labels=finding.labels,
        summary=finding.summary,
        action=finding.advice or rule.action,
        page=page_of(finding.labels),
        state=AlertState.PENDING,
        value=finding.value,
        started_s=now_s,
        seen_s=now_s,
    )


def _held(alert: Alert, finding: Finding, rule: Rule, now_s: float, *, new: bool) -> list[Change]:
    """Its condition holds now."""
    alert = msgspec.structs.replace(
        alert, seen_s=now_s, value=finding.value, summary=finding.summary, action=finding.advice or rule.action, severity=rule.severity
    )
    if alert.state is AlertState.PENDING and now_s - alert.started_s >= rule.for_s:
        return [Change(turn=Turn.FIRED, alert=msgspec.structs.replace(alert, state=AlertState.FIRING, fired_s=now_s))]
    return [Change(turn=Turn.PENDING if new else Turn.TOLD, alert=alert)]


def _missed(alert: Alert, rule: Rule | None, now_s: float) -> list[Change]:
    """Its condition does not hold now."""
    if alert.state is AlertState.PENDING:
        return [Change(turn=Turn.DROPPED, alert=alert)]
    if rule is not None and now_s - alert.seen_s < rule.keep_s:
        return [Change(turn=Turn.TOLD, alert=alert)]
    return [Change(turn=Turn.RESOLVED, alert=msgspec.structs.replace(alert, state=AlertState.RESOLVED, resolved_s=now_s))]


def _quieted(change: Change, force: Mapping[str, Silence], met: Sequence[Silence]) -> Change:
    """The silences that cover the alert: those that did and are in force, and of those that it meets now."""
    alert = change.alert
    old = tuple(key for key in alert.silenced_by if key in force)
    quiet = tuple(sorted({*old, *silenced_by(all_labels(alert), met)})) if met else old
    if quiet == alert.silenced_by:
        return change
    return msgspec.structs.replace(change, alert=msgspec.structs.replace(alert, silenced_by=quiet))


def _told(change: Change, now_s: float, limits: Limits) -> Change:
    """What receivers know, put into the alert; and whether they are to hear of this turn."""
    alert, turn = change.alert, change.turn
    tell = turn is Turn.RESOLVED and alert.told_s is not None
    if alert.state is AlertState.FIRING and not alert.silenced_by:
        if alert.told_s is None:
            tell = True
        elif limits.remind_s > 0 and alert.acknowledged_by is None and now_s - alert.told_s >= limits.remind_s:
            turn, tell = Turn.REMINDED, True
    if tell and turn is not Turn.RESOLVED:
        alert = msgspec.structs.replace(alert, told_s=now_s)
    return Change(turn=turn, alert=alert, tell=tell)


def _noted(change: Change, active: Mapping[str, Alert]) -> bool:
    """Worth a write: a turn of its own, or another silence."""
    if change.turn is not Turn.TOLD:
        return True
    before = active.get(change.alert.fingerprint)
    return before is not None and before.silenced_by != change.alert.silenced_by


def _trimmed(alerts: dict[str, Alert], now_s: float) -> dict[str, Alert]:
    resolved = sorted(
        (each for each in alerts.values() if not each.active), key=lambda each: (each.resolved_s or 0.0, each.id), reverse=True
    )
    gone = {each.id for i, each in enumerate(resolved) if i >= MAX_RESOLVED or now_s - (each.resolved_s or 0.0) > RESOLVED_KEPT_S}
    return {key: alert for key, alert in alerts.items() if key not in gone}


def all_labels(alert: Alert) -> dict[str, str]:
    """As receivers and silences see them."""
    return {"alertname": alert.rule, "severity": alert.severity.value, **alert.labels}


def page_of(labels: Mapping[str, str]) -> str:
    """Where on the status page its subject is."""
    for label in ("vm", "host"):
        if label in labels:
            return f"/#{label}={labels[label]}"  # identifiers: nothing in them to be escaped
    return "/"
