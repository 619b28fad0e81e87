"""The API's part about alerts: filters, paging, acknowledgement, silences, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from api_client import BEARER, JSON, Client, problem
from hypothesis import HealthCheck, given, settings

from coordinator.learning.alerts import AlertState
from coordinator.service.alerts import AlertFilter, page_of

ALERTS = "/api/v1/alerts"
SILENCE = {"matchers": [{"name": "host", "value": "kvm-0[12]", "regex": True}], "duration_s": 3600, "comment": "rack moves"}


def rules(http: Client, **params: str) -> list[str]:
    page = http.get(ALERTS, params=params).json()
    return [item["rule"] for item in page["items"]]


def test_alerts_are_filtered_and_newest_first(client: Client) -> None:
    assert rules(client) == ["HostBusy", "AgentStale", "VmAtItsLimit"]
    assert rules(client, status="firing") == ["AgentStale"]
    assert rules(client, severity="warning") == ["HostBusy", "VmAtItsLimit"]
    assert rules(client, rule="HostBusy") == ["HostBusy"]
    assert rules(client, host="kvm-01", status="pending") == ["HostBusy"]
    assert rules(client, vm="vm-01-03") == rules(client, client="aurora") == ["VmAtItsLimit"]


def test_paging_gives_each_once_even_when_the_cursors_alert_is_gone(client: Client, fleet: Any) -> None:
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = client.get(ALERTS, params={"limit": "1", **cursor}).json()
        seen += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert len(seen) == len(set(seen)) == 3
    book = [alert for alert in fleet.book() if alert.id != seen[0]]
    assert [alert.id for alert in page_of(book, AlertFilter(), 10, seen[0], 0).items] == seen[1:]


def test_one_alert_says_since_when_why_and_what_to_do(client: Client) -> None:
    (firing,) = client.get(ALERTS, params={"status": "firing"}).json()["items"]
    found = client.get(f"{ALERTS}/{firing['id']}").json()
    assert found == firing
    assert {"summary", "action", "value", "started_s", "fired_s", "page", "labels", "severity"} <= found.keys()
    problem(client.get(f"{ALERTS}/nothing-1"), 404, "invalid_value")


@pytest.mark.parametrize(
    ("param", "value", "words"), [("status", "burning", "pending, firing, resolved"), ("severity", "x", "info, warning")]
)
def test_a_misspelt_filter_is_refused_with_what_is_allowed(client: Client, param: str, value: str, words: str) -> None:
    found = problem(client.get(ALERTS, params={param: value}), 400, "invalid_value")
    assert (found["field"], found["value"]) == (param, value)
    assert words in found["allowed"]


def test_rules_in_force_come_with_thresholds_and_receivers(client: Client) -> None:
    found = client.get(f"{ALERTS}/rules").json()
    by_name = {rule["name"]: rule for rule in found["rules"]}
    assert by_name["HostBusy"]["threshold"] == 0.95
    assert by_name["AgentStale"]["threshold"] is None
    assert found["receivers"] == [{"name": "webhook:x#1", "waiting": 2, "error": "HTTP 503: "}]


def test_an_acknowledgement_names_who_and_needs_an_active_alert(client: Client, fleet: Any) -> None:
    alerts = {alert.state: alert for alert in fleet.book()}
    path = f"{ALERTS}/{alerts[AlertState.FIRING].id}/acknowledgement"
    assert client.post(path, json={}).status_code == 401
    assert client.post(path, json={"comment": "on it"}, headers=BEARER).json()["acknowledged_by"] == "ops"
    gone = f"{ALERTS}/{alerts[AlertState.RESOLVED].id}/acknowledgement"
    problem(client.post(gone, json={}, headers=BEARER), 404, "invalid_value")


def test_a_silence_is_made_shown_and_ended(client: Client) -> None:
    assert client.post("/api/v1/silences", json=SILENCE).status_code == 401
    made = client.post("/api/v1/silences", json=SILENCE, headers=BEARER)
    assert made.status_code == 201
    silence = made.json()["silence"]
    assert (silence["created_by"], silence["ends_s"] - silence["starts_s"]) == ("ops", 3600)
    assert client.get("/api/v1/silences").json() == [made.json()]
    ended = client.delete(f"/api/v1/silences/{silence['id']}", headers=BEARER).json()
    assert not ended["active"]
    problem(client.delete("/api/v1/silences/nothing", headers=BEARER), 404, "invalid_value")


@pytest.mark.parametrize(
    "change",
    [
        {"matchers": []},
        {"matchers": [{"name": "host", "value": "(", "regex": True}]},
        {"matchers": [{"name": "host", "value": ".*", "regex": True}]},
        {"matchers": [{"name": "no name", "value": "x"}]},
        {"matchers": [{"name": "host", "value": "x", "more": 1}]},
        {"duration_s": 1},
        {"duration_s": 10**9},
        {"comment": ""},
        {"starts_s": -1},
        {"extra": 1},
    ],
)
def test_a_silence_that_means_nothing_or_all_is_refused(client: Client, change: dict[str, Any]) -> None:
    problem(client.post("/api/v1/silences", json=SILENCE | change, headers=BEARER), 400, "invalid_value")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(body=JSON)
def test_whatever_comes_as_a_silence_is_taken_or_refused_with_a_problem(client: Client, body: Any) -> None:
    answer = client.post("/api/v1/silences", json=None if body is None else _plain(body), headers=BEARER)
    assert answer.status_code == 201 or problem(answer, 400, "invalid_value")


def _plain(body: Any) -> Any:
    """Without NaN and infinities, which are no JSON."""
    if isinstance(body, float):
        return 0.5
    if isinstance(body, dict):
        return {name: _plain(value) for name, value in body.items()}
    return [_plain(each) for each in body] if isinstance(body, list) else body
