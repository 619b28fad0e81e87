"""Clients, applications, SLAs, policies and events over HTTP: life, versions, references, refusals; what is stored and what is in force.

The desk, its store and the fleet behind it are the real ones; the database is SQLite in memory.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from api_client import BEARER, Client, problem
from tenancy_double import DeskOffice, memory_engine, open_desk

from coordinator.tenancy.model import ClientSpec, Kind, PolicySpec
from shared.model import Domain, Policy, Priority

OBJECTIVE = {"metric": "ready", "threshold_permille": 20, "share_permille": 995}
GOOD: dict[str, dict[str, Any]] = {
    "clients": {"name": "Aurora Ltd", "contact": "ops@aurora.example", "priority": "high"},
    "applications": {"name": "Shop", "client": "aurora", "workload_class": "web", "signals": ["requests_per_s"]},
    "slas": {"name": "Gold", "objectives": [OBJECTIVE]},
    "events": {"name": "Backup", "start_s": 1_795_262_400, "duration_s": 3600, "rrule": "FREQ=DAILY", "effect": "disk=x3"},
}


def write(client: Client, method: str, path: str, body: Any = None, **headers: str) -> Any:
    sent = {**BEARER, **{name.replace("_", "-"): value for name, value in headers.items()}}
    content = None if body is None else json.dumps(body)
    return client.request(method, f"/api/v1/{path}", content=content, headers={**sent, "Content-Type": "application/json"})


def make(at: Client, path: str, id_: str, **fields: Any) -> Any:
    made = write(at, "POST", path, {"id": id_, **GOOD[path], **fields})
    assert made.status_code == 201, made.text
    assert made.headers["location"] == f"/api/v1/{path}/{id_}"
    return made


@pytest.fixture
def aurora(client: Client) -> Client:
    """The fleet's client "aurora" is registered; its VMs name it in their metadata."""
    make(client, "clients", "aurora")
    return client


@pytest.mark.parametrize("path", list(GOOD))
def test_the_life_of_a_registered_thing(client: Client, path: str) -> None:
    if path == "applications":
        make(client, "clients", "aurora")
    made = make(client, path, "one")
    assert {name: made.json()[name] for name in GOOD[path] if name != "objectives"} == {
        n: v for n, v in GOOD[path].items() if n != "objectives"
    }
    assert (made.json()["record"]["version"], made.json()["record"]["changed_by"]) == (1, "ops")
    problem(write(client, "POST", path, {"id": "one", **GOOD[path]}), 409, "already_exists")

    read = client.get(f"/api/v1/{path}/one")
    etag = read.headers["etag"]
    assert (read.json(), etag) == (made.json(), made.headers["etag"])
    assert client.get(f"/api/v1/{path}/one", headers={"If-None-Match": etag}).status_code == 304
    assert [item["id"] for item in client.get(f"/api/v1/{path}").json()["items"]] == ["one"]

    body = GOOD[path] | {"name": "Other"}
    problem(write(client, "PUT", f"{path}/one", body), 428, "version_required")
    changed = write(client, "PUT", f"{path}/one", body, If_Match=etag)
    assert (changed.status_code, changed.json()["name"], changed.json()["record"]["version"]) == (200, "Other", 2)
    for method, content in (("PUT", body), ("PATCH", {"name": "x"}), ("DELETE", None)):
        refused = problem(write(client, method, f"{path}/one", content, If_Match=etag), 412, "version_changed")
        assert changed.headers["etag"] in refused["detail"]
    patched = write(client, "PATCH", f"{path}/one", {"name": "Third"}, If_Match=changed.headers["etag"])
    assert patched.json() == changed.json() | {"name": "Third", "record": patched.json()["record"]}

    gone = write(client, "DELETE", f"{path}/one", If_Match=patched.headers["etag"])
    assert (gone.status_code, gone.content) == (204, b"")
    problem(client.get(f"/api/v1/{path}/one"), 404, "invalid_value")
    again = write(client, "PUT", f"{path}/one", GOOD[path], If_None_Match="*")
    assert (again.status_code, again.json()["record"]["version"]) == (201, 1)


BAD = [
    ("clients", {"name": ""}, "name"),
    ("clients", {"name": "a\u0007b"}, "name"),
    ("clients", {"id": "../x"}, "id"),
    ("clients", {"id": "y" * 129}, "id"),
    ("clients", {"budget_permille": 0}, "budget_permille"),
    ("clients", {"priority": "urgent"}, "priority"),
    ("clients", {"sla": "none-such"}, "sla"),
    ("clients", {"colour": "red"}, "colour"),
    ("applications", {"client": "none-such"}, "client"),
    ("applications", {"signals": ["requests_per_s", "requests_per_s"]}, "signals"),
    ("applications", {"workload_class": "game"}, "workload_class"),
    ("slas", {"objectives": []}, "objectives"),
    ("slas", {"objectives": [OBJECTIVE, OBJECTIVE]}, "objectives"),
    ("slas", {"objectives": [OBJECTIVE | {"metric": "latency"}]}, "objectives[0].metric"),
    ("slas", {"objectives": [OBJECTIVE | {"share_permille": 1000}]}, "objectives[0].share_permille"),
    ("events", {"start_s": None}, "start_s"),
    ("events", {"duration_s": None}, "duration_s"),
    ("events", {"rrule": "FREQ=SECONDLY"}, "rrule"),
    ("events", {"rrule": "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30"}, "rrule"),
    ("events", {"effect": "cpu=lots"}, "effect"),
    ("events", {"time_zone": "Mars/Base"}, "time_zone"),
    ("events", {"vm_ids": ["nobody"]}, "vm_ids"),
    ("events", {"url": "file:///etc/passwd", "start_s": None, "duration_s": None, "rrule": None}, "url"),
    ("events", {"ical": "BEGIN:VCALENDAR", "start_s": None, "duration_s": None, "rrule": None}, "ical"),
]


@pytest.mark.parametrize(("path", "fields", "field"), BAD)
def test_what_cannot_be_registered_is_named(aurora: Client, fleet: Any, path: str, fields: dict[str, Any], field: str) -> None:
    refused = problem(write(aurora, "POST", path, {"id": "two", **GOOD[path], **fields}), 400, "invalid_value")
    assert refused["field"] == field, refused
    assert refused["allowed"] and refused["value"] is not None
    assert "two" not in fleet.tenancy.book.of(path[:-1])


def test_a_patch_is_checked_as_a_whole(aurora: Client) -> None:
    etag = aurora.get("/api/v1/clients/aurora").headers["etag"]
    for body, field in (({"priority": "urgent"}, "priority"), ({"name": None}, "name"), ({"colour": 1}, "colour")):
        assert problem(write(aurora, "PATCH", "clients/aurora", body, If_Match=etag), 400, "invalid_value")["field"] == field
    problem(write(aurora, "PATCH", "clients/aurora", [1], If_Match=etag), 400, "invalid_value")
    assert write(aurora, "PATCH", "clients/aurora", {"priority": None}, If_Match=etag).json()["priority"] is None


def test_what_is_in_use_stays_and_its_users_are_named(aurora: Client) -> None:
    make(aurora, "slas", "gold")
    make(aurora, "clients", "new", sla="gold")
    gold, own = (aurora.get(f"/api/v1/{path}").headers["etag"] for path in ("slas/gold", "clients/aurora"))
    assert "client new" in problem(write(aurora, "DELETE", "slas/gold", If_Match=gold), 409, "in_use")["detail"]
    assert "VM vm-" in problem(write(aurora, "DELETE", "clients/aurora", If_Match=own), 409, "in_use")["detail"]
    assert aurora.get("/api/v1/slas/gold").json()["clients"] == ["new"]
    assert aurora.get("/api/v1/clients/aurora").json()["vms"] > 0
    assert write(aurora, "DELETE", "clients/new", If_Match="*").status_code == 204
    assert write(aurora, "DELETE", "slas/gold", If_Match=gold).status_code == 204


def test_pages_and_filters(aurora: Client) -> None:
    make(aurora, "clients", "borealis")
    for name in ("a1", "a2", "a3"):
        make(aurora, "applications", name)
    make(aurora, "applications", "b1", client="borealis")
    first = aurora.get("/api/v1/applications?client=aurora&limit=2").json()
    assert ([item["id"] for item in first["items"]], first["total"], first["next_cursor"]) == (["a1", "a2"], 3, "a2")
    rest = aurora.get("/api/v1/applications?client=aurora&limit=2&cursor=a2").json()
    assert ([item["id"] for item in rest["items"]], rest["next_cursor"]) == (["a3"], None)
    assert problem(aurora.get("/api/v1/clients?client=x"), 400, "invalid_value")["field"] == "client"
    twice = write(aurora, "POST", "applications", {"id": "a4", **GOOD["applications"], "label": "a1"})
    assert problem(twice, 409, "invalid_value")["field"] == "label"


def test_a_policy_is_in_force_when_it_is_answered(aurora: Client, fleet: Any) -> None:
    vm_id = next(vm_id for vm_id, member in fleet.tenancy.members().items() if member.client == "aurora")
    vms = fleet.office.cycle.fleet.vms
    assert vms[vm_id].domain.policy.priority is Priority.HIGH, "the client's own"
    levels = (("fleet", 500), ("client/aurora", 600), (f"vm/{vm_id}", 700))
    for level, floor in levels:
        made = write(aurora, "PUT", f"policies/{level}", {"cpu_floor_millicores": floor}, If_None_Match="*")
        assert (made.status_code, made.headers["location"]) == (201, f"/api/v1/policies/{level}")
        assert vms[vm_id].domain.policy.cpu_floor_millicores == floor
    found = aurora.get(f"/api/v1/vms/{vm_id}/policy").json()
    assert (found["policy"]["cpu_floor_millicores"], found["domain"]["cpu_floor_millicores"]) == (700, None)
    assert found["origins"] == {"client": "domain", "priority": "client", "cpu_floor_millicores": "vm"}
    assert [item["id"] for item in aurora.get("/api/v1/policies?level=client").json()["items"]] == ["client/aurora"]
    for level, floor in ((f"vm/{vm_id}", 600), ("client/aurora", 500), ("fleet", None)):
        assert write(aurora, "DELETE", f"policies/{level}", If_Match="*").status_code == 204
        assert vms[vm_id].domain.policy.cpu_floor_millicores == floor
    assert [event for event, _ in fleet.office.audited][:2] == ["create_client", "create_policy"]


def test_a_vm_goes_to_another_client_over_the_api(aurora: Client, fleet: Any) -> None:
    make(aurora, "clients", "new", budget_permille=2.5)
    vm_id = next(iter(fleet.office.cycle.fleet.vms))
    assert write(aurora, "PUT", f"policies/vm/{vm_id}", {"client": "new", "application": "web"}, If_None_Match="*").status_code == 201
    assert fleet.tenancy.members()[vm_id] == ("new", "web")
    assert aurora.get("/api/v1/clients/new").json()["vms"] == 1
    assert fleet.office.cycle.objectives.of("new") == 0.0025
    assert problem(write(aurora, "DELETE", "clients/new", If_Match="*"), 409, "in_use")["detail"].count(vm_id) == 2


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("policies/fleet", {"cpu_floor_millicores": 9, "cpu_ceiling_millicores": 8}, 400, "cpu_floor_millicores"),
        ("policies/fleet", {"client": "aurora"}, 400, "client"),
        ("policies/fleet", {"size_quantile": 0.4}, 400, "size_quantile"),
        ("policies/fleet", {"mode": "turbo"}, 400, "mode"),
        ("policies/client/nobody", {}, 404, "client_id"),
        ("policies/vm/nobody", {}, 404, "vm_id"),
    ],
)
def test_what_no_policy_can_say(aurora: Client, path: str, body: dict[str, Any], status: int, field: str) -> None:
    assert problem(write(aurora, "PUT", path, body, If_None_Match="*"), status, "invalid_value")["field"] == field


def test_an_sla_is_the_error_budget_of_its_clients(aurora: Client, fleet: Any) -> None:
    make(aurora, "slas", "gold")
    write(aurora, "PATCH", "clients/aurora", {"sla": "gold"}, If_Match="*")
    assert fleet.office.cycle.objectives.of("aurora") == pytest.approx(0.005)
    assert fleet.office.cycle.ledger.budgets.objectives.of("aurora") == pytest.approx(0.005)
    write(aurora, "PATCH", "slas/gold", {"objectives": [OBJECTIVE | {"share_permille": 999}]}, If_Match="*")
    assert fleet.office.cycle.objectives.of("aurora") == pytest.approx(0.001)
    assert fleet.office.cycle.objectives.of("borealis") == pytest.approx(0.01), "as configured"


def test_an_outside_system_triggers_an_event(aurora: Client, fleet: Any) -> None:
    now_s = fleet.tenancy.now_s()
    told = {"name": "Launch", "factor": 2.5, "duration_s": 3600, "client": "aurora", "reference": "c-17"}
    made = write(aurora, "POST", "events/trigger", told)
    assert (made.status_code, made.headers["location"]) == (201, "/api/v1/events/trigger-c-17")
    assert (made.json()["start_s"], made.json()["effect"]) == (now_s, "cpu=x2.500000 net=x2.500000")
    again = write(aurora, "POST", "events/trigger", told | {"factor": 3})
    assert (again.json()["id"], again.json()["record"]["version"]) == (made.json()["id"], 2)
    for fields, field in (
        ({"client": None}, "client"),
        ({"factor": -1}, "factor"),
        ({"start_s": 5}, "start_s"),
        ({"resources": []}, "resources"),
    ):
        assert problem(write(aurora, "POST", "events/trigger", told | fields), 400, "invalid_value")["field"] == field


def test_pools_name_their_hosts(client: Client) -> None:
    (pool,) = client.get("/api/v1/pools").json()
    assert (pool["pool"]["name"], pool["host_ids"]) == ("default", ["kvm-01", "kvm-02", "kvm-03", "kvm-04"])


def test_writes_need_a_token(client: Client) -> None:
    for path, body in GOOD.items():
        problem(client.post(f"/api/v1/{path}", json=body), 401, "unauthorized")
    problem(client.put("/api/v1/policies/fleet", json={}), 401, "unauthorized")
    problem(client.post("/api/v1/events/trigger", json={}), 401, "unauthorized")


def test_the_desk_starts_with_what_was_stored() -> None:
    engine = memory_engine()
    vms = {"vm-1": ("kvm-01", Policy(client="aurora")), "vm-2": ("kvm-01", Policy())}
    first = open_desk(DeskOffice(vms, 0), engine)
    asyncio.run(first.create(Kind.CLIENT, "aurora", ClientSpec(name="Aurora", priority="high", budget_permille=2), "ops"))
    asyncio.run(first.create(Kind.POLICY, "fleet", PolicySpec(priority="low"), "ops"))
    office = DeskOffice({}, 0)
    later = open_desk(office, engine)
    assert later.book == first.book
    office.cycle.fleet.restore([], {"vm-1": ("kvm-01", domain("vm-1", "aurora")), "vm-2": ("kvm-01", domain("vm-2", ""))})
    assert {vm_id: vm.domain.policy.priority for vm_id, vm in office.cycle.fleet.vms.items()} == {
        "vm-1": Priority.HIGH,
        "vm-2": Priority.LOW,
    }
    assert office.cycle.objectives.of("aurora") == 0.002


def domain(vm_id: str, client: str) -> Domain:
    return Domain(vm_id=vm_id, name=vm_id, vcpus_max=4, memory_max_bytes=2**30, policy=Policy(client=client))
