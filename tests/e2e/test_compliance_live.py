"""Service objectives on a live ring: minutes are counted, survive a kill -9 with none lost or doubled, and reports are made."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

pytestmark = pytest.mark.slow

HOUR_S = 3600


def minutes(ring: Any, vm_id: str) -> dict[int, tuple[int, int, int]]:
    """start -> (good, bad, unknown) of CPU ready, of the last 24 hours in minutes."""
    detail = ring.get(f"compliance/vm/{vm_id}?resolution_s=60&hours=24")
    series = next(part for part in detail["series"] if part["metric"] == "ready")
    return dict(zip(detail["start_s"], zip(series["good"], series["bad"], series["unknown"], strict=True), strict=True))


def test_minutes_survive_a_kill_and_reports_agree(ring: Any) -> None:
    ring.until(lambda: (ring.get("compliance")["items"] or [{"objectives": ()}])[0]["objectives"], "minutes are counted")
    vm_id = ring.get("vms?limit=1")["items"][0]["id"]
    ring.until(lambda: sum(part[0] + part[1] for part in minutes(ring, vm_id).values()) >= 10, "two buckets of minutes")
    before = {at_s: part for at_s, part in minutes(ring, vm_id).items() if sum(part)}
    ring.fleet.kill("coordinator")
    ring.fleet.start("coordinator")
    ring.until(ring.settled, "the agents are back")
    newest_s = max(before)

    def grown() -> dict[int, tuple[int, int, int]] | None:
        found = minutes(ring, vm_id)
        return found if max(found) > newest_s + 300 else None

    after = ring.until(grown, "another bucket after the restart")
    both = before.keys() & after.keys()  # the window has moved on
    assert len(both) >= 10
    for at_s in sorted(both):
        part = before[at_s]
        # what was unknown may have come by spool since; what was known stays what it was
        assert sum(after[at_s]) == 1
        if part[2] == 0:
            assert after[at_s] == part, at_s
    client = ring.get("compliance")["items"][0]["name"] or "-"
    report = ring.get(f"reports/{client}")
    text = ring.http.get(f"/api/v1/reports/{client}?format=csv&from={report['from_s']}").status_code
    assert text == 400  # seconds are not a time of day
    table = list(csv.reader(io.StringIO(ring.http.get(f"/api/v1/reports/{client}?format=csv").text, newline="")))
    assert {row["vm_id"] for row in report["vms"]} <= {line[0] for line in table if line}
    assert ring.http.get(f"/reports/{client}").text.startswith("<!doctype html>")
    shadow = ring.get("shadow?days=1")
    assert {host["host_id"] for host in shadow["hosts"]} == set(ring.fleet.host_ids)
    assert "tidegate_sla_client_compliance_ratio{" in ring.http.get("/metrics").text
