"""Writes through the API end as values on the hosts, or as problem+json with a stable code."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow

FULL = frozenset({"host_commit_limit", "above_domain_maximum", "above_ceiling"})


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"].startswith("application/problem+json"), answer.text
    return answer.status_code, answer.json()["code"]


def test_writes_need_a_token_and_one_made_now_counts_now(ring: Any, program: Any) -> None:
    vm_id = ring.host("host-0")["vm_ids"][0]
    path = f"/api/v1/vms/{vm_id}/resources"
    body = {"cpu_quota_millicores": 900, "dry_run": True}
    assert problem(ring.http.post(path, json=body)) == (401, "unauthorized")
    assert problem(ring.post(f"vms/{vm_id}/resources", body, "tg_wrong")) == (401, "unauthorized")
    made = program("coordinator", "token", "new", "late", "--config", str(ring.fleet.folder / "coordinator.toml"))
    assert made.returncode == 0
    ring.until(lambda: ring.post(f"vms/{vm_id}/resources", body, made.stdout.strip()).status_code != 401, "the new token counts", 5)


@pytest.mark.parametrize("host_id", ["host-1", "host-2"])
def test_an_order_changes_the_host_and_a_dry_run_does_not(ring: Any, host_id: str) -> None:
    """CPU for a VM of a reactive and of a predictive host; the rule or a plan may be quicker, then the next order counts."""
    vm_ids = itertools.cycle(ring.host(host_id)["vm_ids"])
    tried: list[str] = []

    def ordered() -> tuple[str, int] | None:
        vm_id = next(vm_ids)
        vm = ring.get(f"vms/{vm_id}")
        quota = vm["allocation"]["cpu_quota_millicores"]
        wanted = quota + 100 if quota > 0 else 1000 * vm["vcpus_max"] - 100  # -1: no quota yet
        dry = ring.post(f"vms/{vm_id}/resources", {"cpu_quota_millicores": wanted, "dry_run": True})
        if dry.status_code in (409, 422) and dry.json()["code"] in FULL:  # take some away instead
            wanted = quota - quota // 10
            dry = ring.post(f"vms/{vm_id}/resources", {"cpu_quota_millicores": wanted, "dry_run": True})
        if dry.status_code in (409, 422):
            tried.append(f"{vm_id} {quota} -> {wanted}: {dry.text}")
            return None
        assert dry.status_code == 200, dry.text
        assert [(step["kind"], step["value"], step["reason"]) for step in dry.json()["steps"]] == [("cpu_quota", wanted, "operator")]
        sent = ring.post(f"vms/{vm_id}/resources", {"cpu_quota_millicores": wanted})
        if sent.status_code in (409, 422):  # something changed since the dry run
            tried.append(f"{vm_id} {quota} -> {wanted}: {sent.text}")
            return None
        assert sent.status_code == 202, sent.text
        step_id = sent.json()["steps"][0]["id"]
        outcome = ring.until(lambda: _outcome(ring, vm_id, step_id), "the host's answer")
        assert (outcome["origin"], outcome["code"] == "mode_forbids") == ("operator", False), outcome
        tried.append(f"{vm_id} {quota} -> {wanted}: {outcome}")
        return (vm_id, wanted) if (outcome["state"], outcome["value"]) == ("verified", wanted) else None

    vm_id, wanted = ring.until(ordered, "an order that was carried out", 180, story=lambda: "\n".join(tried[-10:]))
    story = ring.fleet.ask(host_id, "why", vm_id)["story"]
    assert [entry for entry in story if (entry["origin"], entry["verdict"], entry["to_value"]) == ("operator", "verified", wanted)]


def _outcome(ring: Any, vm_id: str, step_id: str) -> dict[str, Any] | None:
    rows = ring.get(f"outcomes?vm={vm_id}&limit=50")
    return next((row["outcome"] for row in rows if row["outcome"]["step"]["id"] == step_id), None)


def test_an_order_is_refused_in_observe(ring: Any) -> None:
    vm_id = ring.host("host-1")["vm_ids"][0]
    assert ring.agent("host-1", "mode", "observe").returncode == 0
    ring.until(lambda: ring.host("host-1")["mode"] == "observe", "the coordinator knows")
    assert problem(ring.post(f"vms/{vm_id}/resources", {"cpu_quota_millicores": 900})) == (409, "mode_forbids")


def test_what_is_out_of_bounds_is_refused(ring: Any) -> None:
    vm = ring.get(f"vms/{ring.host('host-0')['vm_ids'][0]}")
    path = f"vms/{vm['id']}"
    assert problem(ring.post(f"{path}/resources", {"vcpus": vm["vcpus_max"] + 1})) == (422, "above_domain_maximum")
    assert problem(ring.post(f"{path}/resources", {"memory_bytes": vm["memory_max_bytes"] + 1})) == (422, "above_domain_maximum")
    assert problem(ring.post(f"{path}/resources", {})) == (400, "invalid_value")
    assert problem(ring.post(f"{path}/resources", {"vcpu": 1})) == (400, "invalid_value")
    for horizon in (0, 61):
        refused = ring.http.get(f"/api/v1/{path}/forecast?horizon_minutes={horizon}")
        assert problem(refused) == (400, "invalid_value") and "5" in refused.json()["detail"] and "60" in refused.json()["detail"]
    nobody = uuid.uuid4()
    assert problem(ring.http.get(f"/api/v1/vms/{nobody}")) == (404, "unknown_vm")
    assert problem(ring.http.get(f"/api/v1/vms/{nobody}/forecast?horizon_minutes=30")) == (404, "unknown_vm")
    assert problem(ring.post(f"vms/{nobody}/resources", {"vcpus": 1})) == (404, "unknown_vm")


def test_migrations_are_advice_until_somebody_says_otherwise(ring: Any) -> None:
    state = ring.get("migration")
    assert (state["execute"], state["plan"], state["failed"], state["power"]) == (False, None, [], [])
    assert ring.get("migrations") == []
    path, body = "/api/v1/migrations/m1", {"action": "approve"}
    assert problem(ring.http.put(path, json=body)) == (401, "unauthorized")
    headers = {"Authorization": f"Bearer {ring.token}"}
    assert problem(ring.http.put(path, json=body, headers=headers)) == (409, "precondition_changed")
