"""What is registered over the API decides: a policy ends as a value on the host, and survives kill -9 of the coordinator."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.slow


def put(ring: Any, path: str, body: dict[str, Any], **headers: str) -> Any:
    sent = {"Authorization": f"Bearer {ring.token}", "If-None-Match": "*", **headers}
    answer = ring.http.put(f"/api/v1/{path}", json=body, headers=sent)
    assert answer.status_code == 201, answer.text
    return answer


def test_a_floor_put_over_the_api_is_in_force_on_the_host(ring: Any) -> None:
    """Host-2 is predictive. One of its VMs gets a floor above what it has; a restart in between changes nothing."""
    quotas = {vm_id: quota for (vm_id, kind), quota in ring.in_force("host-2").items() if kind == "cpu_quota"}
    vm_id = min(quotas, key=lambda each: quotas[each])
    floor = quotas[vm_id] * 3 // 2 // 10 * 10  # so far above what it needs that what is given is the floor itself
    put(ring, f"policies/vm/{vm_id}", {"cpu_floor_millicores": floor})
    try:
        assert ring.get(f"vms/{vm_id}/policy")["origins"]["cpu_floor_millicores"] == "vm"
        assert ring.get(f"vms/{vm_id}")["policy"]["cpu_floor_millicores"] == floor
        ring.fleet.kill("coordinator")
        ring.fleet.start("coordinator")
        ring.until(ring.settled, "the coordinator is back")
        assert ring.get(f"vms/{vm_id}")["policy"]["cpu_floor_millicores"] == floor
        ring.until(lambda: ring.in_force("host-2")[vm_id, "cpu_quota"] == floor, "exactly the floor is in force on the host", 150)
    finally:
        gone = ring.http.delete(f"/api/v1/policies/vm/{vm_id}", headers={"Authorization": f"Bearer {ring.token}", "If-Match": "*"})
    assert gone.status_code == 204
    assert ring.get(f"vms/{vm_id}")["policy"]["cpu_floor_millicores"] != floor


def test_a_client_in_observe_is_left_alone_by_plans_and_agents_and_an_event_is_on_the_calendar(ring: Any) -> None:
    vm_id = ring.host("host-0")["vm_ids"][0]
    put(ring, "clients/quiet", {"name": "Quiet"})
    put(ring, "policies/client/quiet", {"mode": "observe"})
    put(ring, f"policies/vm/{vm_id}", {"client": "quiet"})
    headers = {"Authorization": f"Bearer {ring.token}", "If-Match": "*"}
    try:
        found = ring.get(f"vms/{vm_id}")
        assert (found["client"], found["policy"]["excluded"], found["mode"]) == ("quiet", True, "observe")
        ring.until(lambda: vm_id in excluded(ring, "host-0"), "the agent of a reactive host leaves it alone")
        refused = ring.post(f"vms/{vm_id}/resources", {"cpu_quota_millicores": 700, "dry_run": True})
        assert (refused.status_code, refused.json()["code"]) == (409, "vm_excluded")
        told = ring.post("events/trigger", {"name": "Launch", "factor": 2, "duration_s": 7200, "client": "quiet", "reference": "e2e"})
        assert told.status_code == 201, told.text
        ring.until(lambda: ring.get("events/trigger-e2e")["next_start_s"] == told.json()["start_s"], "the forecasters' calendar has it")
    finally:
        paths = (f"policies/vm/{vm_id}", "policies/client/quiet", "events/trigger-e2e", "clients/quiet")
        codes = [ring.http.delete(f"/api/v1/{path}", headers=headers).status_code for path in paths]
    assert codes == [204] * 4
    ring.until(lambda: vm_id not in excluded(ring, "host-0"), "the agent goes by the metadata again")


def excluded(ring: Any, host_id: str) -> set[str]:
    """VMs that this host's agent leaves alone."""
    return {vm["vm_id"] for vm in ring.fleet.ask(host_id, "vms") if vm["excluded"]}


def test_a_profile_is_worked_out_from_what_is_stored(ring: Any) -> None:
    vm_id = ring.host("host-1")["vm_ids"][0]
    cpu = ring.until(lambda: _known(ring.get(f"vms/{vm_id}/profile?days=1")["resources"][0]), "a bucket is in the history")
    assert cpu["resource"] == "cpu_millicores" and 0 < cpu["known"] <= 1
    assert (cpu["kind"] == "unknown") == (cpu["mean"] is None)


def _known(profile: dict[str, Any]) -> dict[str, Any] | None:
    return profile if profile["known"] else None
