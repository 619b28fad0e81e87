"""An agent of a living ring is killed: its host's alert fires, names it, and is resolved when the agent is back."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.slow

HOST = "host-1"


def stale(ring: Any, state: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ring.get(f"alerts?rule=AgentStale&host={HOST}&status={state}")["items"]
    return found


def test_a_dead_agent_is_an_alert_until_it_is_back(ring: Any) -> None:
    before = {alert["id"] for alert in stale(ring, "resolved")}
    ring.fleet.kill(HOST)
    (alert,) = ring.until(lambda: stale(ring, "firing"), "the alert fires")
    assert (alert["severity"], alert["labels"], alert["page"]) == ("critical", {"host": HOST}, f"/#host={HOST}")
    assert alert["summary"] == f"{HOST} is silent: silent"
    assert alert["fired_s"] - alert["started_s"] >= 120
    text = ring.http.get("/metrics").text
    assert 'tidegate_alerts{severity="critical",state="firing"} 0.0' not in text
    ring.fleet.start(HOST)
    ring.until(lambda: {each["id"] for each in stale(ring, "resolved")} - before == {alert["id"]}, "the alert is resolved")
    assert stale(ring, "firing") == []
