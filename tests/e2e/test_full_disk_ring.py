"""A coordinator on a disk that fills up: it stays, refuses with the reason, acknowledges nothing, and goes on once there is room."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import pytest
from outage_world import running_world
from small_disk import small_disk

from shared.units import BUCKET_S

pytestmark = [pytest.mark.server, pytest.mark.ring]


@pytest.mark.long
def test_a_full_disk_loses_nothing_and_heals(program: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    with running_world(program, lambda _: {}, lambda folder: small_disk(folder, 64 * 1024)) as world:
        began_s = world.get("fleet")["now_s"]
        world.within.fill()
        held = world.until(lambda: (answer := world.http.get("/readyz")).status_code == 503 and answer.text, "not ready")
        assert re.search("held: .*(No space left|disk is full|disk I/O)", held), held
        world.until(lambda: all(count > 60 for count in world.spooled()), "agents keep what nobody acknowledges")
        refused = world.put("hosts/host-0/mode", {"mode": "off"})
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        reading = {"vm_id": world.get("vms")["items"][0]["id"], "requests_per_s": 5.0, "time_s": world.get("fleet")["now_s"]}
        told = world.http.post("/api/v1/signals", json={"readings": 200 * [reading]}, headers={"Authorization": f"Bearer {world.token}"})
        assert (told.status_code, told.json()["code"]) == (503, "store_unavailable")
        plans = world.metric("tidegate_plans_total")
        world.until(lambda: world.get("fleet")["now_s"] > began_s + 4 * BUCKET_S, "four buckets close")
        assert world.metric("tidegate_plans_total") == plans
        epoch = world.get("fleet")["epoch"]

        world.within.free()
        world.until(world.whole, "it recovers by itself")
        ended_s = world.get("fleet")["now_s"]
        assert world.get("fleet")["epoch"] == epoch, "the same process"
        world.until(lambda: world.metric("tidegate_store_pending_writes") == 0, "everything is stored")
        assert all(host["spool_dropped"] == 0 for host in world.get("hosts"))
        assert 'reason="gaps"' not in world.http.get("/metrics").text, "no agent's frame is missing"
        world.until(lambda: world.complete(began_s, ended_s), "history has every bucket of the outage whole")
