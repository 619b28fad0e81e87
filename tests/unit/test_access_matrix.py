"""Every role on every route, with an own and a foreign VM: complete because it walks the application's routes, not a list of them.

A route that this file cannot ask (a new path parameter, a new body) fails here until it can.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from callers_double import FOREIGN, OWN, Callers, callers
from routes_asked import BODIES, FOREIGN_VM, OWN_VM, ROUTES, STREAM, path_of

from coordinator.service.access import RULES, Sight
from shared.roles import Role, at_least


@pytest.fixture(scope="module")
def asked() -> Iterator[Callers]:
    with callers() as found:
        yield found


def test_every_route_has_a_rule_and_every_rule_a_route() -> None:
    assert set(ROUTES) == set(RULES)
    assert len(ROUTES) > 40


def ids_of(asked: Callers, vm: str) -> dict[str, str]:
    """What an operator finds of this VM: its receipt and its operation."""
    receipt = asked.ask("operator", "GET", f"/api/v1/receipts?vm={vm}&limit=1").json()[0]["id"]
    made = asked.ask("operator", "POST", f"/api/v1/vms/{vm}/resources", json={"vcpus": 2})
    return {"receipt_id": receipt, "operation_id": made.json()["operation_id"], "token_id": "nobody"}


def allowed(caller: str | None, method: str, template: str) -> bool:
    rule = RULES[method, template]
    if rule.least is None:
        return True
    if caller is None:
        return False
    return rule.client is not Sight.HIDDEN if caller == "client" else at_least(Role(caller), rule.least)


@pytest.mark.parametrize("caller", [None, "viewer", "client", "operator", "admin"])
@pytest.mark.parametrize(("method", "template"), [route for route in ROUTES if route[1] != STREAM])
def test_who_may_and_who_may_not(asked: Callers, caller: str | None, method: str, template: str) -> None:
    path = path_of(template, OWN_VM, ids_of(asked, OWN_VM))
    response = asked.ask(caller, method, path, json=BODIES.get((method, template)))
    assert response.status_code < 500, response.text
    if allowed(caller, method, template):
        assert response.status_code not in (401, 403), response.text
        return
    assert response.status_code == (401 if caller is None else 403)
    assert response.json()["code"] == ("unauthorized" if caller is None else "forbidden")


@pytest.mark.parametrize("caller", [None, "viewer", "client", "operator"])
def test_a_stream_opens_for_whom_it_may(asked: Callers, caller: str | None) -> None:
    response = asked.ask(caller, "GET", f"{STREAM}?topics=nothing")  # refused for its topic, behind the door
    assert response.status_code == (401 if caller is None else 400)


@pytest.mark.parametrize("vm", [OWN_VM, FOREIGN_VM])
@pytest.mark.parametrize(("method", "template"), [route for route in ROUTES if route[1] != STREAM])
def test_nothing_of_others_reaches_a_client(asked: Callers, method: str, template: str, vm: str) -> None:
    response = asked.ask("client", method, path_of(template, vm, ids_of(asked, vm)), json=BODIES.get((method, template)))
    assert secrets_in(asked, response.text, but=vm) == set()


LISTS = sorted({template for method, template in ROUTES if method == "GET" and "{" not in template and template != STREAM})


@pytest.mark.parametrize("query", ["client={foreign}", "host=kvm-02", "vm={vm}", "kind=client", "kind=host", "name={foreign}&kind=client"])
@pytest.mark.parametrize("template", LISTS)
def test_no_filter_opens_what_is_closed(asked: Callers, template: str, query: str) -> None:
    """Filters that name others find nothing; those that a route does not have are refused."""
    response = asked.ask("client", "GET", f"{template}?{query.format(foreign=FOREIGN, vm=FOREIGN_VM)}")
    assert response.status_code < 500
    but = (FOREIGN_VM, FOREIGN) if response.status_code >= 400 else ()  # a refusal repeats what was asked
    assert secrets_in(asked, response.text, but=but) == set()


def test_a_foreign_vm_is_as_unknown_as_none(asked: Callers) -> None:
    for method, template in ROUTES:
        if "{vm_id}" in template and RULES[method, template].client is Sight.OWN:
            answers = [asked.ask("client", method, path_of(template, vm, {})) for vm in (FOREIGN_VM, "vm-99-99")]
            said = [
                (answer.status_code, answer.text.replace(vm, "VM")) for answer, vm in zip(answers, (FOREIGN_VM, "vm-99-99"), strict=True)
            ]
            assert said[0] == said[1], template
            assert answers[0].status_code == 404


def test_a_client_sees_its_own_whole(asked: Callers) -> None:
    page = asked.ask("client", "GET", "/api/v1/vms?limit=1000").json()
    everything = asked.ask("viewer", "GET", "/api/v1/vms?limit=1000").json()["items"]
    assert page["items"] == [vm for vm in everything if vm["client"] == OWN]
    assert page["total"] == len(page["items"]) == 8
    sums = asked.ask("client", "GET", "/api/v1/aggregates").json()
    assert [(group["kind"], group["name"], group["members"]) for group in sums["items"]] == [("client", OWN, 8)]
    for path in ("receipts", "outcomes"):
        assert asked.ask("client", "GET", f"/api/v1/{path}?limit=20").json(), path


def test_a_client_sees_its_own_objectives_alerts_and_reports(asked: Callers) -> None:
    mine = set(asked.fleet.vm_ids(None, OWN))
    of_clients = asked.ask("client", "GET", "/api/v1/compliance").json()
    assert [item["name"] for item in of_clients["items"]] == [OWN]
    everyone = asked.ask("viewer", "GET", "/api/v1/compliance?kind=vm&limit=1000").json()["items"]
    pages = [asked.ask("client", "GET", "/api/v1/compliance?kind=vm&limit=5").json()]
    pages.append(asked.ask("client", "GET", f"/api/v1/compliance?kind=vm&limit=5&cursor={pages[0]['next_cursor']}").json())
    assert [item for page in pages for item in page["items"]] == [item for item in everyone if item["name"] in mine]
    assert [(page["total"], page["next_cursor"] is None) for page in pages] == [(8, False), (8, True)]
    for kind in ("application", "priority"):
        assert asked.ask("client", "GET", f"/api/v1/compliance?kind={kind}").json()["total"] == 0
    alerts = asked.ask("client", "GET", "/api/v1/alerts").json()["items"]
    assert [alert["rule"] for alert in alerts] == ["VmAtItsLimit"]
    ids = {alert["rule"]: alert["id"] for alert in asked.ask("viewer", "GET", "/api/v1/alerts").json()["items"]}
    for path, status in (
        (f"compliance/client/{OWN}", 200),
        (f"compliance/client/{FOREIGN}", 404),
        (f"compliance/vm/{OWN_VM}", 200),
        (f"compliance/vm/{FOREIGN_VM}", 404),
        (f"alerts/{ids['VmAtItsLimit']}", 200),
        (f"alerts/{ids['HostBusy']}", 404),
        (f"reports/{FOREIGN}", 404),
    ):
        assert asked.ask("client", "GET", f"/api/v1/{path}").status_code == status, path
    assert asked.ask("viewer", "GET", f"/api/v1/compliance/client/{FOREIGN}").status_code == 200
    report = asked.ask("viewer", "GET", f"/api/v1/reports/{OWN}")
    own = asked.ask("client", "GET", f"/api/v1/reports/{OWN}")
    assert (own.status_code, own.json().keys()) == (report.status_code, report.json().keys())


def test_a_client_tells_signals_of_its_own_alone(asked: Callers) -> None:
    now = asked.fleet.now_s

    def told(**of: str) -> int:
        reading = {"time_s": now, "requests_per_s": 5.0, **of}
        return asked.ask("client", "POST", "/api/v1/signals", json={"readings": [reading]}).status_code

    assert told(vm_id=OWN_VM) == told(client=OWN) == 200
    assert told(vm_id=FOREIGN_VM) == told(client=FOREIGN) == 404
    assert told(application="shop") == 400


def secrets_in(asked: Callers, text: str, but: str | tuple[str, ...] = ()) -> set[str]:
    """Ids and names of others' VMs, other clients, and hosts on which the client has no VM. `but`: what the request itself named."""
    fleet = asked.fleet
    mine = set(fleet.vm_ids(None, OWN))
    hosts = {fleet.home[vm] for vm in mine}
    foreign = set(fleet.home) - mine
    names = {fleet._name(vm) for vm in foreign} - {fleet._name(vm) for vm in mine}
    words = foreign | names | (set(fleet.modes) - hosts) | {fleet._client(vm) for vm in foreign}
    words -= {but} if isinstance(but, str) else set(but)
    asked_for = but if isinstance(but, str) else ""
    said = text.replace(asked_for, "") if asked_for else text
    return {word for word in words if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", said)}


def test_the_search_for_leaks_finds_them(asked: Callers) -> None:
    everything = json.dumps([asked.ask("viewer", "GET", f"/api/v1/{path}").json() for path in ("vms?limit=1000", "hosts")])
    found = secrets_in(asked, everything)
    assert FOREIGN in found and FOREIGN_VM in found and len(found) > 16
