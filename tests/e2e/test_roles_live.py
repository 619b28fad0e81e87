"""Roles, audit, keys, operations and live updates on real processes: what doubles of the view cannot hide."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow

DOCUMENT = json.loads((Path(__file__).parents[2] / "docs/openapi.json").read_text())
READS = sorted(path for path, verbs in DOCUMENT["paths"].items() if "get" in verbs and not path.endswith("/stream"))


def config_of(ring: Any) -> str:
    return str(ring.fleet.folder / "coordinator.toml")


def token(ring: Any, program: Any, *options: str) -> dict[str, str]:
    made = program("coordinator", "token", "new", "live", *options, "--config", config_of(ring))
    assert made.returncode == 0, made.stderr
    return {"Authorization": f"Bearer {made.stdout.strip()}"}


def test_nothing_of_others_reaches_a_client(ring: Any, program: Any) -> None:
    """Every read of the document, with an own and a foreign VM, host and client; filters too."""
    vms = ring.get("vms")["items"]
    own = vms[0]["client"]
    mine = [vm for vm in vms if vm["client"] == own]
    foreign = [vm for vm in vms if vm["client"] != own]
    hosts = {vm["host_id"] for vm in mine}
    words = {vm["id"] for vm in foreign} | {vm["name"] for vm in foreign} | {vm["client"] for vm in foreign}
    words -= {vm["name"] for vm in mine}
    words |= {host["id"] for host in ring.get("hosts")} - hosts
    assert len(foreign) >= 3 and len(words) >= 4
    headers = token(ring, program, "--role", "client", "--client", own)
    leaks: dict[str, set[str]] = {}
    seen = 0
    for vm in (mine[0], foreign[0]):
        receipt = ring.until(lambda vm=vm: ring.get(f"receipts?vm={vm['id']}&limit=1"), "a receipt")[0]["id"]  # type: ignore[misc]
        values = {"vm_id": vm["id"], "host_id": vm["host_id"], "receipt_id": receipt, "operation_id": "1-1-host-0", "token_id": "x"}
        values |= {"alert_id": "x", "silence_id": "x", "id": vm["client"], "client": vm["client"], "kind": "vm", "name": vm["id"]}
        for template in READS:
            path = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template)  # noqa: B023  # used at once
            queries = ["", f"?vm={vm['id']}", f"?client={vm['client']}", f"?host={vm['host_id']}", f"?kind=client&name={vm['client']}"]
            for query in queries:
                answer = ring.http.get(path + query, headers=headers)
                assert answer.status_code < 500, answer.text
                seen += answer.status_code == 200
                named = path + query if answer.status_code >= 400 else template  # a refusal repeats what was asked
                found = {word for word in words if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", answer.text) and word not in named}
                if found:
                    leaks[path + query] = found
    assert leaks == {}
    assert seen > 20
    assert [vm["id"] for vm in ring.http.get("/api/v1/vms", headers=headers).json()["items"]] == [vm["id"] for vm in mine]


def order(ring: Any, key: str) -> httpx.Response | None:
    """An order that was sent, with this key; the host may refuse the first ones."""
    for vm in ring.get("vms")["items"]:
        quota = vm["allocation"]["cpu_quota_millicores"]
        if quota is None or quota < 500:
            continue
        for wanted in (quota + 50, quota - quota // 20):
            body = {"cpu_quota_millicores": wanted}
            headers = {"Authorization": f"Bearer {ring.token}", "Idempotency-Key": f"{key}-{vm['id'][:8]}-{wanted}"}
            answer: httpx.Response = ring.http.post(f"/api/v1/vms/{vm['id']}/resources", json=body, headers=headers)
            if answer.status_code == 202:
                return answer
    return None


def test_an_order_is_an_operation_and_its_key_survives_a_kill(ring: Any) -> None:
    sent = ring.until(lambda: order(ring, "live"), "an order that was sent")
    place = sent.headers["location"]
    done = ring.until(
        lambda: (found := ring.http.get(place).json())["state"] not in ("pending", "running") and found, "the host's answer to each step"
    )
    assert done["ordered_by"] == "tests"
    assert done["steps"][0]["state"] in ("verified", "partial", "refused", "failed", "undone")
    assert done["id"] in [each["id"] for each in ring.get(f"operations?vm={done['vm_id']}")["items"]]
    ring.fleet.kill("coordinator")
    ring.fleet.start("coordinator")
    ring.until(ring.settled, "the coordinator is back")
    request = sent.request
    again = ring.http.request(request.method, request.url.path, content=request.content, headers=request.headers)
    assert (again.status_code, again.content, again.headers["idempotent-replayed"]) == (202, sent.content, "true")
    assert ring.http.get(place).json()["state"] == done["state"]


def test_live_updates_tell_of_decisions_and_go_on(ring: Any) -> None:
    headers = {"Authorization": f"Bearer {ring.token}"}
    first = events(ring, headers, "fleet", 1)[0]
    assert set(json.loads(first["data"])) == {"cycle", "done_s", "hosts_alive", "hosts_silent", "vms"}
    later = events(ring, {**headers, "Last-Event-ID": first["id"]}, "fleet", 1)[0]
    assert int(later["id"].split("-")[1]) > int(first["id"].split("-")[1])
    assert json.loads(later["data"])["cycle"] == json.loads(first["data"])["cycle"] + 1


def events(ring: Any, headers: dict[str, str], topics: str, count: int) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    event: dict[str, str] = {}
    with httpx.stream("GET", f"{ring.fleet.url}api/v1/stream", params={"topics": topics}, headers=headers, timeout=60) as answer:
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name in ("id", "event", "data"):
                event[name] = value
            if not line and "data" in event:
                found.append(event)
                event = {}
                if len(found) == count:
                    return found
    raise AssertionError("the stream ended")


def test_the_audit_verifies_and_shows_tampering(ring: Any, program: Any, tmp_path: Path) -> None:
    assert ring.put_mode("host-0", "reactive").status_code == 200
    assert ring.http.put("/api/v1/hosts/host-0/mode", json={"mode": "off"}).status_code == 401
    whole = program("coordinator", "audit", "verify", "--config", config_of(ring))
    assert (whole.returncode, whole.stdout[:6]) == (0, "whole:"), whole.stderr
    tip = whole.stdout.split()[-1]
    state = tmp_path / "state"
    state.mkdir()
    source = ring.fleet.folder / "coordinator" / "registry.sqlite"
    with sqlite3.connect(source) as live, sqlite3.connect(state / "registry.sqlite") as copy:
        live.backup(copy)
    live.close()
    copy.close()
    settings = Path(config_of(ring)).read_text().replace(str(source.parent), str(state))
    own = tmp_path / "coordinator.toml"
    own.write_text(settings)
    held = program("coordinator", "audit", "verify", "--tip", tip, "--config", str(own))
    assert held.returncode == 0, held.stderr
    shutil.copy(state / "registry.sqlite", state / "kept")
    with sqlite3.connect(state / "registry.sqlite") as changed:
        changed.execute("UPDATE audit SET actor = 'nobody' WHERE sequence = 1")
    changed.close()
    broken = program("coordinator", "audit", "verify", "--config", str(own))
    assert (broken.returncode, "row 1 was changed" in broken.stderr) == (1, True), broken.stderr
    shutil.copy(state / "kept", state / "registry.sqlite")
    with sqlite3.connect(state / "registry.sqlite") as cut:
        cut.execute("DELETE FROM audit WHERE sequence = (SELECT max(sequence) FROM audit)")
    cut.close()
    assert program("coordinator", "audit", "verify", "--config", str(own)).returncode == 0  # the chain itself cannot show it
    shorter = program("coordinator", "audit", "verify", "--tip", tip, "--config", str(own))
    assert shorter.returncode == 1 and "cut off" in shorter.stderr


def test_a_revoked_token_stops(ring: Any, program: Any) -> None:
    made = program("coordinator", "token", "new", "brief", "--expires", "1", "--config", config_of(ring)).stdout.strip()

    def status() -> int:
        answer: httpx.Response = ring.http.get("/api/v1/fleet", headers={"Authorization": f"Bearer {made}"})
        return answer.status_code

    ring.until(lambda: status() == 200, "the new token counts", 5)
    listed = json.loads(program("coordinator", "token", "list", "--json", "--config", config_of(ring)).stdout)
    assert [grant["role"] for grant in listed if grant["name"] == "brief"] == ["operator"]
    assert made not in json.dumps(listed)
    assert program("coordinator", "token", "revoke", "brief", "--config", config_of(ring)).returncode == 0
    ring.until(lambda: status() == 401, "the revoked one does not", 15)
    assert program("coordinator", "token", "revoke", "brief", "--config", config_of(ring)).returncode == 78
