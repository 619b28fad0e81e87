"""The running coordinator's alerts as the HTTP layer sees them: implements coordinator.service.alerts.AlertsView."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import uuid4

from coordinator.alerting import Alerting
from coordinator.learning.alerts import Alert
from coordinator.learning.silences import Silence
from coordinator.service.alerts import AlertFilter, AlertPage, AlertRules, ReceiverState, SilenceRequest, SilenceView, page_of
from shared.clock import Clock
from shared.config import CoordinatorConfig
from shared.units import NS_PER_S


class Alerted(Protocol):
    """What is asked of the process around it."""

    config: CoordinatorConfig
    clock: Clock

    @property
    def alerting(self) -> Alerting:
        """The alerts."""
        ...

    def audit(self, event: str, **fields: str | int) -> None:
        """Who changed what."""
        ...


class LiveAlerts:
    """Answers from the book, which is in memory."""

    def __init__(self, running: Alerted) -> None:
        self._alerted = running

    def alerts(self, wanted: AlertFilter, limit: int, cursor: str | None) -> AlertPage:
        book = self._alerted.alerting.book
        return page_of(list(book.alerts.values()), wanted, limit, cursor, book.beyond)

    def alert(self, alert_id: str) -> Alert | None:
        return self._alerted.alerting.book.alerts.get(alert_id)

    def alert_rules(self) -> AlertRules:
        alerting = self._alerted.alerting
        errors = alerting.errors()
        receivers = [ReceiverState(name=name, waiting=waiting, error=errors.get(name)) for name, waiting in alerting.waiting().items()]
        return AlertRules(
            rules=tuple(alerting.rules.values()), evaluate_s=self._alerted.config.alerts.evaluate_s, receivers=tuple(receivers)
        )

    def silences(self) -> Sequence[SilenceView]:
        return [self._shown(each) for _, each in sorted(self._alerted.alerting.silences.items())]

    async def acknowledge_alert(self, alert_id: str, comment: str, actor: str) -> Alert | None:
        found = await self._alerted.alerting.acknowledge(alert_id, actor, comment)
        if found is not None:
            self._alerted.audit("acknowledge_alert", actor=actor, alert=alert_id, rule=found.rule)
        return found

    async def add_silence(self, request: SilenceRequest, actor: str) -> SilenceView:
        starts_s = self._now_s() if request.starts_s is None else request.starts_s
        silence = Silence(
            id=uuid4().hex,
            matchers=request.matchers,
            starts_s=starts_s,
            ends_s=starts_s + request.duration_s,
            created_by=actor,
            comment=request.comment,
        )
        await self._alerted.alerting.silence(silence)
        self._alerted.audit("add_silence", actor=actor, silence=silence.id, seconds=request.duration_s)
        return self._shown(silence)

    async def end_silence(self, silence_id: str, actor: str) -> SilenceView | None:
        found = await self._alerted.alerting.end_silence(silence_id)
        if found is None:
            return None
        self._alerted.audit("end_silence", actor=actor, silence=silence_id)
        return self._shown(found)

    def _shown(self, silence: Silence) -> SilenceView:
        return SilenceView(silence=silence, active=silence.active(self._now_s()))

    def _now_s(self) -> float:
        return self._alerted.clock.wall_ns() / NS_PER_S
