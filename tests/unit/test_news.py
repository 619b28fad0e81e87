"""What the coordinator does reaches those who follow it live."""

from __future__ import annotations

import asyncio

import msgspec

from coordinator.fleet import Fleet
from coordinator.learning.alerts import Alert, AlertState, Change, Severity, Turn
from coordinator.news import News
from coordinator.service.streaming import Hub


def test_an_alert_that_fires_is_told_to_operators_and_to_no_client() -> None:
    hub = Hub(7, streams=4, per_caller=4)
    operator, client = hub.open("operator", {"alert"}), hub.open("client", {"alert"}, "aurora")
    alert = Alert(
        id="a1", fingerprint="f", rule="HostSilent", severity=Severity.CRITICAL, labels={"host": "kvm-01"},
        summary="kvm-01 is silent", action="look", page="/#host=kvm-01", state=AlertState.FIRING, value=90.0, started_s=100.0, seen_s=160.0,
    )  # fmt: skip
    News(hub, Fleet()).alerts((Change(turn=Turn.FIRED, alert=alert, tell=True),))

    async def first(reader: object) -> tuple[str | None, dict[str, object]]:
        async for told in reader.told(0.01):  # type: ignore[attr-defined]
            return told.topic, msgspec.json.decode(told.data) if told.topic else {}
        raise AssertionError("nothing was told")

    topic, said = asyncio.run(first(operator))
    assert (topic, said["rule"], said["state"], said["labels"]) == ("alert", "HostSilent", "firing", {"host": "kvm-01"})
    assert asyncio.run(first(client))[0] is None, "a heartbeat at most"
