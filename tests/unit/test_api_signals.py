"""What applications tell of their own load through the HTTP API: taken whole or refused whole, with the reading's place and field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api_client import BEARER, JSON, SCALARS, Client, problem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.demand.signals import SignalReading


def signal(fleet: Any, **fields: object) -> dict[str, object]:
    return {"vm_id": "vm-01-00", "time_s": fleet.now_s, "requests_per_s": 12} | fields


def test_signals_reach_the_fleet(client: Client, fleet: Any) -> None:
    readings = [
        signal(fleet),
        {"client": "aurora", "time_s": fleet.now_s - 900, "queue_length": 0},
        {"application": "shop", "time_s": fleet.now_s + 59.5, "requests_per_s": 1.5, "queue_length": 2.5},
    ]
    response = client.post("/api/v1/signals", json={"readings": readings}, headers=BEARER)
    assert response.status_code == 200, response.text
    ((_, told, _),) = fleet.sent
    assert told[0] == SignalReading(float(fleet.now_s), ("vm-01-00",), (12.0, None))
    assert [len(reading.vm_ids) for reading in told] == [1, 8, 6]
    assert (told[1].values, told[2].values) == ((None, 0.0), (1.5, 2.5))
    assert response.json() == {"vms": 12, "taken": 15, "replaced": 0, "late": 0}


@pytest.mark.parametrize(
    ("wrong", "status", "field", "value", "allowed"),
    [
        ({"requests_per_s": -0.5}, 400, "readings[1].requests_per_s", "-0.5", "a number from 0 to 1000000000"),
        ({"queue_length": 1e9 + 1}, 400, "readings[1].queue_length", "1000000001.0", "a number from 0 to 1000000000"),
        ({"requests_per_s": "many"}, 400, "readings[1].requests_per_s", "many", "a number from 0"),
        ({"time_s": None}, 400, "readings[1].time_s", "null", "Unix seconds"),
        ({"time_s": 1}, 400, "readings[1].time_s", "1.0", "by the coordinator's clock"),
        ({"vm_id": "../etc"}, 400, "readings[1].vm_id", "../etc", "an identifier"),
        ({"vm_id": "vm-99"}, 404, "readings[1].vm_id", "vm-99", "an id of /api/v1/vms"),
        ({"client": "aurora"}, 400, "readings[1]", "vm_id, client", "one of vm_id, client, application"),
        ({"vm_id": None, "application": "x"}, 404, "readings[1].application", "x", "the application of a VM"),
        ({"requests_per_s": None}, 400, "readings[1]", "a reading of nothing", "requests_per_s, queue_length"),
        ({"rps": 5}, 400, "rps", "a field of this name", "/openapi.json"),
    ],
)
def test_one_wrong_reading_refuses_all(
    client: Client, fleet: Any, wrong: dict[str, object], status: int, field: str, value: str, allowed: str
) -> None:
    readings = [signal(fleet), signal(fleet, **wrong)]
    response = client.post("/api/v1/signals", json={"readings": readings}, headers=BEARER)
    found = problem(response, status, "unknown_vm" if status == 404 else "invalid_value")
    assert (found["field"], found["value"]) == (field, value)
    assert allowed in found["allowed"]
    assert fleet.sent == []


def test_no_and_too_many_readings(client: Client, fleet: Any) -> None:
    small = {"vm_id": "vm-01-00", "time_s": fleet.now_s, "queue_length": 1}
    assert client.post("/api/v1/signals", json={"readings": [small] * 500}, headers=BEARER).status_code == 200
    fleet.sent.clear()
    for readings in ([], [small] * 501):
        found = problem(client.post("/api/v1/signals", json={"readings": readings}, headers=BEARER), 400, "invalid_value")
        assert (found["field"], found["allowed"]) == ("readings", "1 to 500 readings")
    assert fleet.sent == []


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wrong=st.dictionaries(st.sampled_from(["time_s", "vm_id", "client", "requests_per_s", "x"]), SCALARS, max_size=4) | JSON)
def test_whatever_the_readings_the_answer_is_a_result_or_a_refusal(client: Client, fleet: Any, wrong: Any) -> None:
    body = json.dumps({"readings": [signal(fleet), wrong]}).encode()
    response = client.post("/api/v1/signals", content=body, headers=BEARER)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code >= 400:
        assert response.json()["type"].startswith("urn:tidegate:refusal:")
