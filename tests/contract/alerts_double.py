"""Alerts of the API's double fleet: a book of three, two rules, silences that writers make. `sent` collects what they asked for."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from coordinator.learning.alert_rules import rules_of
from coordinator.learning.alerts import Alert, AlertState, fingerprint
from coordinator.learning.silences import Silence
from coordinator.service.alerts import AlertFilter, AlertPage, AlertRules, ReceiverState, SilenceRequest, SilenceView, page_of
from shared.config_alerts import AlertsConfig


def alert_of(rule: str, state: AlertState, started_s: int, **labels: str) -> Alert:
    """One alert with the words of its rule."""
    known = rules_of(AlertsConfig())[rule]
    key = fingerprint(rule, labels)
    return Alert(
        id=f"{key}-{started_s}",
        fingerprint=key,
        rule=rule,
        severity=known.severity,
        labels=labels,
        summary=f"{rule} of {', '.join(labels.values()) or 'the coordinator'}",
        action=known.action,
        page="/",
        state=state,
        value=0.97,
        started_s=float(started_s),
        seen_s=started_s + 60.0,
        fired_s=None if state is AlertState.PENDING else started_s + 30.0,
        resolved_s=started_s + 90.0 if state is AlertState.RESOLVED else None,
        told_s=None if state is AlertState.PENDING else started_s + 30.0,
    )


class AlertsDouble:
    """AlertsView over a book made up."""

    sent: list[tuple[str, object, str]]
    now_s: int
    _silences: dict[str, Silence] | None = None
    _acknowledged: dict[str, str] | None = None

    def book(self) -> list[Alert]:
        start = 1_795_300_200
        made = [
            alert_of("AgentStale", AlertState.FIRING, start, host="kvm-03"),
            alert_of("HostBusy", AlertState.PENDING, start + 60, host="kvm-01", resource="cpu_millicores"),
            alert_of("VmAtItsLimit", AlertState.RESOLVED, start - 600, vm="vm-01-03", name="db", host="kvm-01", client="aurora"),
        ]
        done = self._acknowledged or {}
        return [msgspec.structs.replace(each, acknowledged_by=done.get(each.id)) for each in made]

    def alerts(self, wanted: AlertFilter, limit: int, cursor: str | None) -> AlertPage:
        return page_of(self.book(), wanted, limit, cursor, 0)

    def alert(self, alert_id: str) -> Alert | None:
        return next((each for each in self.book() if each.id == alert_id), None)

    def alert_rules(self) -> AlertRules:
        rules = tuple(rules_of(AlertsConfig()).values())
        return AlertRules(rules=rules, evaluate_s=15, receivers=(ReceiverState(name="webhook:x#1", waiting=2, error="HTTP 503: "),))

    def silences(self) -> Sequence[SilenceView]:
        return [SilenceView(silence=each, active=each.active(self.now_s)) for each in (self._silences or {}).values()]

    async def acknowledge_alert(self, alert_id: str, comment: str, actor: str) -> Alert | None:
        found = self.alert(alert_id)
        if found is None or not found.active:
            return None
        self.sent.append(("acknowledge", alert_id, actor))
        self._acknowledged = {**(self._acknowledged or {}), alert_id: actor}
        return self.alert(alert_id)

    async def add_silence(self, request: SilenceRequest, actor: str) -> SilenceView:
        starts_s = float(self.now_s) if request.starts_s is None else request.starts_s
        known = dict(self._silences or {})
        made = Silence(
            id=f"s{len(known)}",
            matchers=request.matchers,
            starts_s=starts_s,
            ends_s=starts_s + request.duration_s,
            created_by=actor,
            comment=request.comment,
        )
        self._silences = {**known, made.id: made}
        return SilenceView(silence=made, active=made.active(self.now_s))

    async def end_silence(self, silence_id: str, actor: str) -> SilenceView | None:
        found = (self._silences or {}).get(silence_id)
        if found is None:
            return None
        self.sent.append(("end_silence", silence_id, actor))
        ended = msgspec.structs.replace(found, ends_s=float(self.now_s))
        self._silences = {**(self._silences or {}), silence_id: ended}
        return SilenceView(silence=ended, active=False)
