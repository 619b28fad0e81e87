"""Kill -9 of an agent: the host counts as full and everybody can see why; it comes back with its limits, its pin and a closed journal."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from agent.acting.journal import Journal
from agent.acting.reconcile import local_prefix, reconcile

pytestmark = pytest.mark.slow

HOST = "host-2"
# A simulated host is written down every 12 rounds: what was in force up to 60 simulated seconds before the kill may be what comes back.
SNAPSHOT_S = 0.6
SILENT_CYCLES = 2


def test_a_dead_agents_host_counts_as_full_until_it_is_back_with_its_limits_and_pin(ring: Any, tmp_path: Path) -> None:
    assert ring.agent(HOST, "mode", "predictive").returncode == 0
    ring.until(lambda: ring.host(HOST)["mode_pinned"], "the coordinator shows the pin")
    ring.until(lambda: ring.get(f"plans?host={HOST}"), "a plan for the predictive host", 60)
    recent = _values_of_a_snapshot_period(ring)
    boot_id = ring.status(HOST)["boot_id"]

    ring.fleet.kill(HOST)
    host = ring.until(lambda: (seen := ring.host(HOST))["counts_as_full"] and seen, "the host counts as full")
    assert not host["alive"] and host["silent_reason"] == "silent"
    assert ring.get("fleet")["hosts_silent"] == 1
    assert "counts as full" in ring.http.get("/static/tables.js").text
    refused = ring.post(f"vms/{host['vm_ids'][0]}/resources", {"vcpus": 1, "dry_run": True})
    assert (refused.status_code, refused.json()["code"]) == (409, "host_unknown_state")
    newest = ring.get(f"plans?host={HOST}&limit=1")
    cycle = ring.get("fleet")["cycle"]
    ring.until(lambda: ring.get("fleet")["cycle"] >= cycle + SILENT_CYCLES, "decisions without it")
    assert ring.get(f"plans?host={HOST}&limit=1") == newest, "a plan was made for a silent host"

    ring.fleet.start(HOST)
    ring.until(lambda: not ring.host(HOST)["counts_as_full"], "the host is back")
    status = ring.status(HOST)
    assert (status["mode"], status["mode_pinned"], status["boot_id"]) == ("predictive", True, boot_id)
    now = ring.in_force(HOST)
    assert now.keys() == recent.keys()
    # growth under pressure may have come since the start; nothing else
    assert not {key: (value, recent[key]) for key, value in now.items() if value not in recent[key] and value < max(recent[key])}

    prefix = local_prefix(HOST, boot_id)

    def closed() -> bool:
        copy = tmp_path / "journal"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(ring.fleet.folder / HOST / "journal", copy)
        journal = Journal(copy)
        found = reconcile(journal.entries(), prefix)
        journal.close()
        return not found.open

    ring.until(closed, "every intent in the journal has its outcome")


def _values_of_a_snapshot_period(ring: Any) -> dict[tuple[str, str], set[int]]:
    """Every value that was in force in the last moments before the kill."""
    seen: dict[tuple[str, str], set[int]] = {}
    ends = time.monotonic() + 2 * SNAPSHOT_S
    while time.monotonic() < ends:
        for key, value in ring.in_force(HOST).items():
            seen.setdefault(key, set()).add(value)
        time.sleep(0.02)
    return seen
