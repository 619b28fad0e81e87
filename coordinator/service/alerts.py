"""Alerts, rules and silences as the API shows them, and what the API asks of whoever has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from coordinator.learning.alerts import Alert, AlertState, Rule, Severity
from coordinator.learning.silences import MAX_SILENCE_S, Matcher, Silence

StateName = Literal["pending", "firing", "resolved"]
SeverityName = Literal["info", "warning", "critical"]


class AlertFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which alerts are asked for; None = any."""

    state: StateName | None = None
    severity: SeverityName | None = None
    rule: str | None = None
    host: str | None = None
    vm: str | None = None
    client: str | None = None

    def takes(self, alert: Alert) -> bool:
        """Whether it is asked for."""
        labels = alert.labels
        return (
            (self.state is None or alert.state is AlertState(self.state))
            and (self.severity is None or alert.severity is Severity(self.severity))
            and self.rule in (None, alert.rule)
            and self.host in (None, labels.get("host"))
            and self.vm in (None, labels.get("vm"))
            and self.client in (None, labels.get("client"))
        )


class AlertPage(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts, the newest first. `hidden`: conditions that hold and found no room among alerts.max_active."""

    items: tuple[Alert, ...]
    total: int
    next_cursor: str | None
    hidden: int


class ReceiverState(msgspec.Struct, frozen=True, kw_only=True):
    """One receiver: messages that wait for it, and why it did not take the last one (None = it did, or none was sent)."""

    name: str
    waiting: int
    error: str | None


class AlertRules(msgspec.Struct, frozen=True, kw_only=True):
    """Rules in force with their thresholds, and who is told."""

    rules: tuple[Rule, ...]
    evaluate_s: int
    receivers: tuple[ReceiverState, ...]


class AlertNote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of an acknowledgement."""

    comment: Annotated[str, Meta(max_length=1024)] = ""


class SilenceRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of a new silence: which alerts, for how long, and why. All matchers must hold."""

    matchers: Annotated[tuple[Matcher, ...], Meta(min_length=1, max_length=16)]
    duration_s: Annotated[int, Meta(ge=60, le=MAX_SILENCE_S)]
    comment: Annotated[str, Meta(min_length=1, max_length=1024)]
    starts_s: Annotated[float, Meta(ge=0, le=2**40)] | None = None  # None = now


class SilenceView(msgspec.Struct, frozen=True, kw_only=True):
    """One silence; `active` = in force now."""

    silence: Silence
    active: bool


class AlertsView(Protocol):
    """What FleetView knows of alerts. Sync methods answer from memory; async ones are durable when they return."""

    def alerts(self, wanted: AlertFilter, limit: int, cursor: str | None) -> AlertPage:
        """Active alerts and those resolved of late."""
        ...

    def alert(self, alert_id: str) -> Alert | None:
        """None = unknown, or resolved long ago."""
        ...

    def alert_rules(self) -> AlertRules:
        """What is judged, and who is told."""
        ...

    def silences(self) -> Sequence[SilenceView]:
        """Those in force, to come, and ended within a week."""
        ...

    async def acknowledge_alert(self, alert_id: str, comment: str, actor: str) -> Alert | None:
        """None = no such active alert."""
        ...

    async def add_silence(self, request: SilenceRequest, actor: str) -> SilenceView:
        """Raises Refusal where there are too many."""
        ...

    async def end_silence(self, silence_id: str, actor: str) -> SilenceView | None:
        """None = unknown."""
        ...


def page_of(alerts: Sequence[Alert], wanted: AlertFilter, limit: int, cursor: str | None, hidden: int) -> AlertPage:
    """Newest first, by the moment at which the condition was first seen. An alert's id says where it stands, even after it has gone."""
    found = sorted((each for each in alerts if wanted.takes(each)), key=lambda each: place_of(each.id))
    rest = found if cursor is None else [each for each in found if place_of(each.id) > place_of(cursor)]
    more = rest[limit - 1].id if len(rest) > limit else None
    return AlertPage(items=tuple(rest[:limit]), total=len(found), next_cursor=more, hidden=hidden)


def place_of(alert_id: str) -> tuple[int, str]:
    """Where an alert stands among all, newest first: ids are FINGERPRINT-STARTED."""
    fingerprint, _, started = alert_id.rpartition("-")
    return -int(started) if started.isascii() and started.isdigit() else 0, fingerprint
