"""The HTTP API over an in-memory fleet: answers, refusals with field, value and range, tokens, bounds, and the committed document.

What applications tell of themselves: test_api_signals.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from api_client import BEARER, HASH, JSON, TOKEN, VM, Client, problem
from fleet_double import FleetDouble
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar.testing import TestClient

from coordinator.service import edge
from coordinator.service.api import create_app, openapi_json
from coordinator.service.auth import TokenVerifier
from coordinator.service.problems import PROBLEM_JSON, allowed_text
from coordinator.service.view import BOUNDS
from shared.errors import HostError
from shared.model import Mode
from shared.units import GIB, RESOURCES

ROOT = Path(__file__).parents[2]
WRITES = [
    ("PUT", "/api/v1/hosts/kvm-01/mode", {"mode": "off"}),
    ("PUT", "/api/v1/hosts/kvm-01/pause", {"paused": True}),
    ("PUT", "/api/v1/fleet/pause", {"paused": True}),
    ("PUT", "/api/v1/migrations/m1", {"action": "approve"}),
    ("POST", f"{VM}/resources", {"vcpus": 2}),
    ("POST", "/api/v1/signals", {"readings": []}),
]
GOOD_NAMES, BAD_NAMES = ("127.0.0.1:8080", "LOCALHOST", "[::1]:80"), ("evil.example", "127.0.0.1.evil.example:80", "")


# -- reads


def test_fleet(client: Client, fleet: Any) -> None:
    found = client.get("/api/v1/fleet").json()
    assert (found["hosts_alive"], found["hosts_silent"], found["vms"], found["clock_speed"]) == (3, 1, 24, 300.0)
    fleet.tick()
    assert client.get("/api/v1/fleet").json()["cycle"] == found["cycle"] + 1


def test_a_silent_host_counts_as_full_and_says_why(client: Client) -> None:
    hosts = {host["id"]: host for host in client.get("/api/v1/hosts").json()}
    assert list(hosts) == ["kvm-01", "kvm-02", "kvm-03", "kvm-04"]
    assert hosts["kvm-03"]["counts_as_full"] and "42 s" in hosts["kvm-03"]["silent_reason"]
    assert not hosts["kvm-01"]["counts_as_full"]
    assert hosts["kvm-03"]["spool_frames"] is None  # not known is not zero
    assert client.get("/api/v1/hosts/kvm-03").json() == hosts["kvm-03"]


def test_an_unknown_host(client: Client) -> None:
    found = problem(client.get("/api/v1/hosts/kvm-99"), 404, "host_unknown_state")
    assert (found["field"], found["value"]) == ("host_id", "kvm-99")


@pytest.mark.parametrize("limit", [1, 5, 24, 1000])
def test_paging_gives_every_vm_once_in_order(client: Client, limit: int) -> None:
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = client.get("/api/v1/vms", params={"limit": limit, **cursor}).json()
        assert len(page["items"]) <= limit
        assert page["total"] == 24
        seen += [vm["id"] for vm in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == sorted(set(seen))
    assert len(seen) == 24


def test_a_cursor_survives_the_loss_of_its_vm(client: Client, fleet: Any) -> None:
    cursor = client.get("/api/v1/vms?limit=3").json()["next_cursor"]
    del fleet.home[cursor]
    after = client.get("/api/v1/vms", params={"limit": 1, "cursor": cursor}).json()["items"][0]["id"]
    assert after == min(vm_id for vm_id in fleet.home if vm_id > cursor)


def test_vms_are_filtered_by_host_and_client(client: Client) -> None:
    page = client.get("/api/v1/vms?host=kvm-02&client=aurora").json()
    assert page["total"] == 2
    assert {(vm["host_id"], vm["client"]) for vm in page["items"]} == {("kvm-02", "aurora")}
    assert client.get("/api/v1/vms?host=kvm-99").json() == {"items": [], "total": 0, "next_cursor": None}


def test_a_vm_shows_allocation_demand_and_why_there_is_no_model(client: Client) -> None:
    vm = client.get("/api/v1/vms/vm-01-05").json()
    assert [state["resource"] for state in vm["resources"]] == list(RESOURCES)
    assert {state["reason"] for state in vm["resources"]} == {"cold_start"}
    assert vm["resources"][1]["demand"] is None
    assert vm["resources"][2]["allocation"] == -1  # UNLIMITED is told apart from unknown
    drifting = client.get("/api/v1/vms/vm-02-04").json()
    assert (drifting["mode"], drifting["mode_reason"][:18]) == ("reactive", "out_of_calibration")
    assert {state["control"] for state in drifting["resources"]} == {"reactive"}


@pytest.mark.parametrize(("minutes", "steps"), [(5, 1), (6, 2), (30, 6), (60, 12)])
def test_predict_load(client: Client, minutes: int, steps: int) -> None:
    found = client.get(f"{VM}/forecast?horizon_minutes={minutes}").json()
    assert [series["resource"] for series in found["resources"]] == list(RESOURCES)
    for series in found["resources"]:
        assert len(series["rows"]) == steps
        assert [row["start_s"] for row in series["rows"]] == [found["issued_s"] + 300 * i for i in range(steps)]
        assert all(len(row["quantiles"]) == len(row["peak_quantiles"]) == len(found["levels"]) for row in series["rows"])


def test_why_this_forecast(client: Client) -> None:
    whole = client.get(f"{VM}/forecast/why").json()
    assert [part["resource"] for part in whole["resources"]] == list(RESOURCES)
    one = client.get(f"{VM}/forecast/why?resource=memory_bytes").json()
    assert one["resources"] == [whole["resources"][1]]
    part = one["resources"][0]["details"]["targets"][0]["parts"][0]
    assert sum(member["weight"] for member in part["members"]) == pytest.approx(1.0)
    assert (whole["not_now"], part["minutes"]) == (None, "5-10")
    away = client.get("/api/v1/vms/vm-04-00/forecast/why?resource=cpu_millicores").json()
    assert "busy" in away["not_now"]
    assert away["resources"][0]["details"] is None and away["resources"][0]["issued"]


def test_sums_of_each_kind_and_what_one_will_need(client: Client) -> None:
    found = client.get("/api/v1/aggregates").json()
    assert [(group["kind"], group["name"]) for group in found["items"]] == [
        *[("fleet", ""), ("host", "kvm-01"), ("host", "kvm-02"), ("host", "kvm-03"), ("host", "kvm-04")],
        *[("client", "aurora"), ("client", "borealis"), ("client", "cirrus")],
    ]
    hosts = client.get("/api/v1/aggregates?kind=host&limit=2").json()
    assert (hosts["total"], [group["name"] for group in hosts["items"]]) == (4, ["kvm-01", "kvm-02"])
    cpu = hosts["items"][0]["resources"][0]
    assert cpu["low_hour"] < cpu["mean_hour"] < cpu["high_hour"]
    ahead = client.get("/api/v1/aggregates/forecast?kind=client&name=aurora&horizon_minutes=30").json()
    assert (ahead["kind"], ahead["name"], ahead["members"]) == ("client", "aurora", 8)
    assert [len(series["rows"]) for series in ahead["resources"]] == [6] * 5
    assert client.get("/api/v1/aggregates/forecast").json()["members"] == 24
    for path in ("kind=host&name=kvm-99", "kind=client", "kind=app&name=shop"):
        assert problem(client.get(f"/api/v1/aggregates/forecast?{path}"), 404, "invalid_value")["field"] == "name"


def test_accuracy_of_the_fleet_and_of_a_vm(client: Client) -> None:
    found = client.get("/api/v1/accuracy?limit=3&window=hour").json()
    assert (found["window"], len(found["worst"]), len(found["clients"]), len(found["horizons"])) == ("hour", 3, 3, 12)
    assert [score["resource"] for score in found["fleet"]] == list(RESOURCES)
    assert found["models"][5 - 1]["resources"][0]["coverage_95"] == 0.94
    mine = client.get(f"{VM}/accuracy").json()
    assert (mine["window"], [part["name"] for part in mine["horizons"]]) == ("day", ["5-10", "15-30", "35-60"])


def test_history_of_one_resource_and_of_all(client: Client) -> None:
    found = client.get(f"{VM}/history?hours=2&resource=memory_bytes").json()
    (series,) = found["resources"]
    assert (series["resource"], len(series["start_s"]), found["lead_minutes"]) == ("memory_bytes", 24, 60)
    assert len(series["demand"]) == len(series["allocation"]) == len(series["forecast_q90"]) == 24
    assert len(client.get(f"{VM}/history?hours=1").json()["resources"]) == 5


@pytest.mark.parametrize("path", ["plans", "receipts", "outcomes"])
def test_lists_obey_their_limit(client: Client, path: str) -> None:
    assert len(client.get(f"/api/v1/{path}?limit=7").json()) == 7


def test_lists_are_filtered(client: Client) -> None:
    assert {plan["host_id"] for plan in client.get("/api/v1/plans?host=kvm-02").json()} == {"kvm-02"}
    assert {receipt["vm_id"] for receipt in client.get("/api/v1/receipts?vm=vm-01-01").json()} == {"vm-01-01"}
    assert {entry["outcome"]["step"]["vm_id"] for entry in client.get("/api/v1/outcomes?vm=vm-01-01").json()} == {"vm-01-01"}


def test_a_receipt_says_why(client: Client) -> None:
    receipt = client.get("/api/v1/receipts?limit=1").json()[0]
    assert client.get(f"/api/v1/receipts/{receipt['id']}").json() == receipt
    assert receipt["trail"] and receipt["inputs"]
    problem(client.get("/api/v1/receipts/nothing"), 404, "invalid_value")


def test_scores_and_moves(client: Client) -> None:
    scores = {score["mode"]: score for score in client.get("/api/v1/scores").json()["modes"]}
    assert scores["predictive"]["violation_minutes"] < scores["reactive"]["violation_minutes"]
    assert client.get("/api/v1/moves").json()["code"] == "advice_only"


def test_the_past_of_a_vm_is_there_when_the_vm_is_gone(client: Client) -> None:
    stays = client.get(f"{VM}/hosts").json()
    assert [(stay["host_id"], stay["until_s"] is None) for stay in stays] == [("kvm-01", True), ("kvm-99", False)]
    assert stays[0]["since_s"] == stays[1]["until_s"]
    assert len(client.get(f"{VM}/hosts?limit=1").json()) == 1
    problem(client.get("/api/v1/vms/nobody/hosts"), 404, "unknown_vm")
    problem(client.get(f"{VM}/hosts?limit=0"), 400, "invalid_value")
    steps = client.get("/api/v1/steps?limit=3&vm=vm-01-00").json()
    assert [step["step"]["vm_id"] for step in steps] == ["vm-01-00"]
    assert len(client.get("/api/v1/steps?limit=3").json()) == 3


def test_a_store_that_is_away_is_a_503_with_its_reason(client: Client, fleet: Any) -> None:
    fleet.broken = HostError("registry postgresql://tidegate:***@db/tidegate: connection refused")
    answer = client.get("/api/v1/fleet")
    problem(answer, 503, "store_unavailable")
    assert "connection refused" in answer.json()["detail"]
    assert answer.headers["Retry-After"] == "5"


def test_the_placement_reads_three_ways_and_says_why_not(client: Client) -> None:
    plan = client.get("/api/v1/placement").json()["plan"]
    assert plan["moves"][0]["to_host"] == "kvm-04" and plan["energy"][0]["kwh_after"] < plan["energy"][0]["kwh_before"]
    hosts = client.get("/api/v1/placement/hosts?limit=2").json()
    assert [host["host_id"] for host in hosts] == ["kvm-01", "kvm-02"]
    assert len(hosts[0]["after"]) == len(RESOURCES) and len(hosts[0]["after"][0]["mean"]) == 12
    assert client.get("/api/v1/placement/hosts/kvm-01").json()["parts"][0]["kind"] == "client"
    assert client.get("/api/v1/placement/vms/vm-01-00").json()["why"]["others"]
    told = client.get("/api/v1/placement/why-not?vm=vm-01-00&host=kvm-02").json()
    assert told["bindings"][0]["change"].startswith("2.10 GiB more")
    problem(client.get("/api/v1/placement/hosts/kvm-99"), 404, "host_unknown_state")
    problem(client.get("/api/v1/placement/vms/nobody"), 404, "unknown_vm")
    problem(client.get("/api/v1/placement/why-not?vm=nobody&host=kvm-02"), 404, "unknown_vm")
    problem(client.get("/api/v1/placement/why-not?vm=vm-01-00"), 400, "invalid_value")
    problem(client.get("/api/v1/placement/hosts?limit=0"), 400, "invalid_value")


def test_an_empty_fleet_answers_everything() -> None:
    with TestClient(create_app(FleetDouble(hosts=0), TokenVerifier({})), base_url="http://127.0.0.1") as client:
        for path in (
            "fleet",
            "hosts",
            "vms",
            "aggregates",
            "accuracy",
            "plans",
            "receipts",
            "outcomes",
            "scores",
            "moves",
            "placement",
            "sizing",
        ):
            assert client.get(f"/api/v1/{path}").status_code == 200, path


# -- refusals: field, value, what is allowed


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (f"{VM}/forecast?horizon_minutes=0", "horizon_minutes", "0"),
        (f"{VM}/forecast?horizon_minutes=61", "horizon_minutes", "61"),
        (f"{VM}/forecast?horizon_minutes=4", "horizon_minutes", "4"),
        (f"{VM}/forecast?horizon_minutes=nan", "horizon_minutes", "nan"),
        (f"{VM}/forecast/why?resource=gpu", "resource", "gpu"),
        (f"{VM}/history?hours=0", "hours", "0"),
        (f"{VM}/history?hours=169", "hours", "169"),
        (f"{VM}/history?resource=gpu", "resource", "gpu"),
        ("/api/v1/vms?limit=0", "limit", "0"),
        ("/api/v1/vms?limit=1001", "limit", "1001"),
        ("/api/v1/vms?cursor=$", "cursor", "$"),
        ("/api/v1/vms/$/forecast", "vm_id", "$"),
        (f"{VM}/accuracy?window=year", "window", "year"),
        ("/api/v1/accuracy?limit=0", "limit", "0"),
        ("/api/v1/aggregates?kind=rack", "kind", "rack"),
        ("/api/v1/aggregates/forecast?name=" + "x" * 257, "name", "x" * 63 + "…"),
        ("/api/v1/vms/" + "x" * 129, "vm_id", "x" * 63 + "…"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(client: Client, path: str, field: str, value: str) -> None:
    found = problem(client.get(path), 400, "invalid_value")
    assert (found["field"], found["value"], found["allowed"]) == (field, value, allowed_text(field))
    assert field in found["detail"] and value in found["detail"] and found["allowed"] in found["detail"]


def test_a_misspelt_query_parameter_is_refused_not_ignored(client: Client) -> None:
    found = problem(client.get(f"{VM}/forecast?horizon_minute=30"), 400, "invalid_value")
    assert (found["field"], found["allowed"]) == ("horizon_minute", "horizon_minutes")


def test_outlook_has_twelve_half_hours_of_each_resource(client: Client) -> None:
    found = client.get(f"{VM}/outlook").json()
    assert found["issued_s"] % 1800 == 0
    assert [each["resource"] for each in found["resources"]] == list(RESOURCES)
    for each in found["resources"]:
        assert [block["start_s"] for block in each["blocks"]] == [found["issued_s"] + 1800 * k for k in range(12)]
        assert all(len(block["quantiles"]) == len(block["peak_quantiles"]) == len(found["levels"]) for block in each["blocks"])


@pytest.mark.parametrize("path", ["", "/forecast", "/forecast/why", "/outlook", "/history", "/accuracy"])
def test_an_unknown_vm(client: Client, path: str) -> None:
    found = problem(client.get(f"/api/v1/vms/nobody{path}"), 404, "unknown_vm")
    assert (found["field"], found["value"]) == ("vm_id", "nobody")


def test_unknown_paths_and_methods_are_problems_too(client: Client) -> None:
    for response, status in ((client.get("/api/v1/nothing"), 404), (client.delete("/api/v1/vms"), 405)):
        assert response.status_code == status
        assert response.headers["content-type"].startswith(PROBLEM_JSON)
        assert response.json()["type"] == "about:blank"


def test_a_bug_shows_nothing_of_the_inside(fleet: Any) -> None:
    fleet.broken = ZeroDivisionError("secret of the house")
    with TestClient(create_app(fleet, TokenVerifier({})), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        response = client.get("/api/v1/fleet")
    assert response.status_code == 500
    assert response.headers["content-type"].startswith(PROBLEM_JSON)
    assert "secret" not in response.text and "ZeroDivision" not in response.text


# -- writes


@pytest.mark.parametrize("header", [None, "Bearer nonsense", f"Basic {TOKEN}", f"Bearer {HASH}"], ids=["none", "nonsense", "basic", "hash"])
@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_writes_need_a_token(client: Client, fleet: Any, method: str, path: str, body: dict[str, Any], header: str | None) -> None:
    response = client.request(method, path, json=body, headers={"Authorization": header} if header else {})
    problem(response, 401, "unauthorized")
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert fleet.sent == []


def test_the_token_is_checked_before_the_body_is_read(client: Client) -> None:
    problem(client.post(f"{VM}/resources", content=b"{"), 401, "unauthorized")


def test_adjust_resources_reaches_the_fleet_with_its_actor(client: Client, fleet: Any) -> None:
    response = client.post(f"{VM}/resources", json={"vcpus": 4, "memory_bytes": 2 * GIB, "cpu_quota_millicores": 3500}, headers=BEARER)
    assert response.status_code == 202
    assert {step["kind"]: step["value"] for step in response.json()["steps"]} == {"vcpus": 4, "memory": 2 * GIB, "cpu_quota": 3500}
    ((vm_id, request, actor),) = fleet.sent
    assert (vm_id, request.memory_bytes, request.dry_run, actor) == ("vm-01-00", 2 * GIB, False, "ops")


def test_a_dry_run_changes_nothing(client: Client, fleet: Any) -> None:
    response = client.post(f"{VM}/resources", json={"vcpus": 4, "dry_run": True}, headers=BEARER)
    assert (response.status_code, response.json()["dry_run"], fleet.sent) == (200, True, [])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"vcpus": 0}', "vcpus"),
        ('{"vcpus": 4097}', "vcpus"),
        ('{"vcpus": "four"}', "vcpus"),
        ('{"vcpus": 2.5}', "vcpus"),
        ('{"vcpus": 1e400}', "body"),
        ('{"vcpus": NaN}', "body"),
        ('{"memory_bytes": -1}', "memory_bytes"),
        ('{"memory_bytes": 9007199254740993}', "memory_bytes"),
        ('{"cpu_quota_millicores": 9}', "cpu_quota_millicores"),
        ('{"dry_run": "yes", "vcpus": 1}', "dry_run"),
        ('{"vcpu": 4}', "vcpu"),
        ("{}", "body"),
        ('{"dry_run": true}', "body"),
        ("[1]", "body"),
        ("{", "body"),
        ("", "body"),
        ("[" * 60_000, "body"),
        ('{"vcpus": ' + "[" * 60_000, "body"),
    ],
)
def test_a_bad_body_is_refused_and_changes_nothing(client: Client, fleet: Any, body: str, field: str) -> None:
    found = problem(client.post(f"{VM}/resources", content=body, headers=BEARER), 400, "invalid_value")
    assert found["field"] == field
    assert found["allowed"]
    if field in BOUNDS:
        low, high = BOUNDS[field]
        assert f"from {low} to {high}" in found["detail"]
    assert fleet.sent == []


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])  # the client keeps no state of a refused write
@given(body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_the_body_the_answer_is_a_result_or_a_refusal(client: Client, body: bytes) -> None:
    response = client.post(f"{VM}/resources", content=body, headers=BEARER)
    assert response.status_code in (200, 202, 400, 422), response.text
    if response.status_code >= 400:
        assert response.json()["type"].startswith("urn:tidegate:refusal:")


def test_vcpus_above_the_domains_maximum(client: Client, fleet: Any) -> None:
    found = problem(client.post(f"{VM}/resources", json={"vcpus": 9}, headers=BEARER), 422, "above_domain_maximum")
    assert found["numbers"] == {"vcpus": 9, "maximum": 8}
    assert fleet.sent == []


def test_a_body_above_64_kib_is_refused(client: Client, fleet: Any) -> None:
    body = json.dumps({"vcpus": 2, "x": "y" * edge.MAX_BODY_BYTES})
    problem(client.post(f"{VM}/resources", content=body, headers=BEARER), 413, "invalid_value")
    assert fleet.sent == []


def test_modes(client: Client, fleet: Any) -> None:
    response = client.put("/api/v1/hosts/kvm-01/mode", json={"mode": "observe"}, headers=BEARER)
    assert (response.status_code, response.json()["mode"]) == (200, "observe")
    assert fleet.sent == [("kvm-01", Mode.OBSERVE, "ops")]
    problem(client.put("/api/v1/hosts/kvm-02/mode", json={"mode": "off"}, headers=BEARER), 409, "locally_pinned")
    found = problem(client.put("/api/v1/hosts/kvm-01/mode", json={"mode": "turbo"}, headers=BEARER), 400, "invalid_value")
    assert (found["value"], found["allowed"]) == ("turbo", "off, observe, reactive, predictive")
    problem(client.put("/api/v1/hosts/kvm-99/mode", json={"mode": "off"}, headers=BEARER), 404, "host_unknown_state")


def test_kill_switch(client: Client, fleet: Any) -> None:
    response = client.put("/api/v1/hosts/kvm-01/pause", json={"paused": True}, headers=BEARER)
    assert (response.status_code, response.json()) == (200, {"fleet": False, "hosts": ["kvm-01"]})
    assert client.get("/api/v1/hosts/kvm-01").json()["paused"] is True
    response = client.put("/api/v1/fleet/pause", json={"paused": True}, headers=BEARER)
    assert response.json() == {"fleet": True, "hosts": ["kvm-01"]}
    assert client.get("/api/v1/hosts/kvm-02").json()["paused"] is True
    client.put("/api/v1/fleet/pause", json={"paused": False}, headers=BEARER)
    assert client.get("/api/v1/hosts/kvm-02").json()["paused"] is False
    problem(client.put("/api/v1/fleet/pause", json={"paused": "maybe"}, headers=BEARER), 400, "invalid_value")
    problem(client.put("/api/v1/hosts/kvm-99/pause", json={"paused": True}, headers=BEARER), 404, "host_unknown_state")


# -- the edge


def test_every_response_carries_the_security_headers(client: Client) -> None:
    for path in ("/", "/livez", "/api/v1/fleet", "/api/v1/nothing", "/api/v1/vms?limit=0", "/static/app.js"):
        headers = client.get(path).headers
        assert {name: headers[name] for name in edge.SECURITY_HEADERS} == edge.SECURITY_HEADERS, path
    assert client.get("/api/v1/fleet").headers["cache-control"] == "no-store"
    assert "http" not in edge.SECURITY_HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize(("name", "status"), [*((name, 200) for name in GOOD_NAMES), *((name, 421) for name in BAD_NAMES)])
def test_foreign_host_names_are_refused(client: Client, name: str, status: int) -> None:
    assert client.get("/api/v1/fleet", headers={"Host": name}).status_code == status


def test_reads_need_a_token_where_they_are_not_open(fleet: Any) -> None:
    closed = create_app(fleet, TokenVerifier({HASH: "ops"}), open_reads=False, host_names=())
    with TestClient(closed, base_url="http://fleet.example") as client:
        for path in ("/api/v1/fleet", "/api/v1/vms", "/metrics", "/openapi.json"):
            problem(client.get(path), 401, "unauthorized")
            assert client.get(path, headers=BEARER).status_code == 200
        for path in ("/", "/livez", "/readyz", "/static/app.js"):
            assert client.get(path).status_code == 200, path


# -- probes, metrics, documents


def test_probes(client: Client, fleet: Any) -> None:
    assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
    fleet.is_ready = (False, "no cycle finished yet")
    response = client.get("/readyz")
    assert (response.status_code, response.text) == (503, "no cycle finished yet\n")
    assert client.get("/livez").status_code == 200


def test_metrics(client: Client) -> None:
    response = client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "tidegate_cycles_total 412" in response.text


def test_the_committed_document_is_the_one_served(client: Client) -> None:
    served = client.get("/openapi.json").json()
    committed = (ROOT / "docs/openapi.json").read_bytes()
    assert committed == openapi_json(), "run: python -m coordinator.service.api > docs/openapi.json"
    assert json.loads(committed) == served
    assert served["openapi"].startswith("3.1")


def test_every_path_and_bound_is_documented() -> None:
    text = (ROOT / "docs/api.md").read_text()
    for path, operations in json.loads(openapi_json())["paths"].items():
        for method in operations:
            assert f"`{method.upper()} {path}" in text, f"{method.upper()} {path} is not in docs/api.md"
    for field, (low, high) in BOUNDS.items():
        assert f"| `{field}` | {low} | {high} |" in text, f"{field} with its bounds is not in docs/api.md"


def test_operations_have_the_names_of_the_product() -> None:
    paths = json.loads(openapi_json())["paths"]
    assert paths["/api/v1/vms/{vm_id}/forecast"]["get"]["operationId"] == "predict_load"
    assert paths["/api/v1/vms/{vm_id}/resources"]["post"]["operationId"] == "adjust_resources"
    names = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(names) == len(set(names))
