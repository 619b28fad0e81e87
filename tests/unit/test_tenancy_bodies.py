"""No body is a bug: whatever is sent to register something is registered or refused with field, value and what is allowed."""

from __future__ import annotations

import json
from typing import Any

from api_client import BEARER, Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.service.problems import PROBLEM_JSON
from coordinator.tenancy.model import SPECS, Kind, TriggerSpec

PATHS = {Kind.CLIENT: "clients", Kind.APPLICATION: "applications", Kind.SLA: "slas", Kind.EVENT: "events"}
FIELDS = {path: ("id", *SPECS[kind].__struct_fields__) for kind, path in PATHS.items()} | {
    "events/trigger": TriggerSpec.__struct_fields__,
    "policies/fleet": SPECS[Kind.POLICY].__struct_fields__,
}
WORDS = st.sampled_from(
    (
        *("", "a", "aurora", "high", "ready", "cpu=x2", "cpu=+1e9", "FREQ=DAILY", "FREQ=YEARLY;BYMONTH=13", "FREQ=DAILY;UNTIL=x"),
        *("UTC", "Etc/GMT+14", "BEGIN:VCALENDAR\r\nEND:VCALENDAR", "http://x/\u00e9", "../.."),
        "BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nUID:1\r\nEND:VEVENT\r\nEND:VCALENDAR",
    )
)
NUMBERS = st.integers(-(2**70), 2**70) | st.integers(0, 4_000_000_000) | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=8) | WORDS
NAMES = st.sampled_from(["metric", "threshold_permille", "share_permille", "period_s", "x"])
OBJECTIVES = st.lists(st.dictionaries(NAMES, SCALARS), max_size=2)


def body_of(path: str) -> Any:
    start = {"id": "h", "name": "n", "start_s": 5, "duration_s": 600, "client": "aurora", "factor": 2}
    good = {name: value for name, value in start.items() if name in FIELDS[path]}
    values = SCALARS | st.lists(SCALARS, max_size=2) | OBJECTIVES
    changes = st.dictionaries(st.sampled_from([*FIELDS[path], "x"]), values, max_size=4)
    return changes.map(lambda changed: json.dumps(good | changed)) | st.text(max_size=40)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(FIELDS)).flatmap(lambda path: st.tuples(st.just(path), body_of(path))))
def test_any_body(client: Client, asked: tuple[str, str]) -> None:
    path, body = asked
    headers = {**BEARER, "Content-Type": "application/json", "If-None-Match": "*"}
    method = "PUT" if path.startswith("policies") else "POST"
    found = client.request(method, f"/api/v1/{path}", content=body.encode("utf-8", "surrogatepass"), headers=headers)
    assert found.status_code < 500, (found.status_code, found.text, body)
    if found.status_code != 201:
        assert found.headers["content-type"].startswith(PROBLEM_JSON)
        assert found.json()["code"] in ("invalid_value", "already_exists"), found.text
        return
    made = found.headers["location"]
    assert client.get(made).status_code == 200
    assert client.delete(made, headers={**BEARER, "If-Match": "*"}).status_code == 204


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FIELDS["policies/fleet"]), SCALARS, max_size=3) | SCALARS | st.lists(SCALARS, max_size=2))
def test_any_patch(client: Client, body: Any) -> None:
    client.put("/api/v1/policies/fleet", json={"priority": "low"}, headers={**BEARER, "If-None-Match": "*"})
    found = client.patch("/api/v1/policies/fleet", content=json.dumps(body), headers={**BEARER, "If-Match": "*"})
    assert found.status_code in (200, 400), (found.text, body)
