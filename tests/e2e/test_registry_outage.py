"""A real PostgreSQL dies and comes back under a running ring: all is refused with its reason meanwhile, and nothing is lost."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from outage_world import World, running_world
from postgres_server import Postgres

from coordinator.demo import Fleet
from shared.units import BUCKET_S

pytestmark = [pytest.mark.server, pytest.mark.ring]
DATABASE = "test_1"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    made = Postgres()
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def world(server: Postgres, program: Callable[..., subprocess.CompletedProcess[str]]) -> Iterator[World]:
    def changed(fleet: Fleet) -> dict[str, Any]:
        secret = fleet.folder / "password"
        secret.write_text(server.password + "\n")
        assert server.new_database() == server.url(DATABASE)
        return {"registry_url": server.url(DATABASE, password=False), "registry_password_file": str(secret)}

    with running_world(program, changed) as made:
        yield made


def test_the_database_dies_and_comes_back(world: World, server: Postgres) -> None:
    vm = world.get("vms")["items"][0]
    stay = world.get(f"vms/{vm['id']}/hosts")
    assert [(each["host_id"], each["until_s"]) for each in stay] == [(vm["host_id"], None)]
    world.put("hosts/host-1/mode", {"mode": "predictive"}).raise_for_status()
    before = server.execute("SELECT count(*) FROM plans", DATABASE)[0][0]
    began_s = world.get("fleet")["now_s"]

    server.stop(signal.SIGQUIT)
    held = world.until(lambda: (answer := world.http.get("/readyz")).status_code == 503 and answer.text, "not ready")
    assert "decisions are held: registry postgresql+psycopg://tidegate:***@127.0.0.1" in held
    assert server.password not in held
    body, headers = {"cpu_quota_millicores": 700}, {"Authorization": f"Bearer {world.token}"}
    order = world.http.post(f"/api/v1/vms/{vm['id']}/resources", json=body, headers=headers)
    assert (order.status_code, order.json()["code"]) == (503, "store_unavailable")
    plans = world.metric("tidegate_plans_total")
    world.until(lambda: all(count > 60 for count in world.spooled()), "agents keep what nobody acknowledges")
    refused = world.put("hosts/host-0/mode", {"mode": "off"})
    assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    assert world.get("hosts/host-0")["mode_ordered"] is None
    assert world.http.get("/api/v1/receipts").status_code == 503
    stopped = world.put("hosts/host-0/pause", {"paused": True})
    assert (stopped.status_code, stopped.json()["code"]) == (503, "store_unavailable")
    assert world.get("hosts/host-0")["paused"], "a stop is a stop"
    command = world.tidegate("token", "new", "somebody")
    assert command.returncode == 69
    assert server.password not in command.stderr + world.log()
    assert world.metric("tidegate_store_held") == 1
    assert world.metric("tidegate_store_unreachable_seconds") > 0
    world.until(lambda: world.get("fleet")["now_s"] > began_s + 4 * BUCKET_S, "buckets close")
    assert world.metric("tidegate_plans_total") == plans, "nothing was decided that could not be stored"
    assert world.metric("tidegate_store_pending_writes") > 0

    server.start()
    world.until(world.whole, "it recovers by itself")
    ended_s = world.get("fleet")["now_s"]
    world.until(lambda: world.metric("tidegate_store_pending_writes") == 0, "everything is stored")
    assert server.execute("SELECT paused FROM pauses WHERE host_id = 'host-0'", DATABASE) == [(1,)]
    world.put("hosts/host-0/pause", {"paused": False}).raise_for_status()
    world.until(lambda: server.execute("SELECT count(*) FROM plans", DATABASE)[0][0] > before, "decisions again")
    assert world.metric("tidegate_store_held") == 0
    assert all(host["spool_dropped"] == 0 for host in world.get("hosts"))
    assert 'reason="gaps"' not in world.http.get("/metrics").text, "no agent's frame is missing"
    world.until(lambda: world.complete(began_s, ended_s), "history has every bucket of the outage whole")


@pytest.mark.long
def test_a_coordinator_that_is_killed_while_the_database_is_away_waits_for_it_and_loses_nothing(world: World, server: Postgres) -> None:
    world.until(world.whole, "whole before")
    epoch, began_s = world.get("fleet")["epoch"], world.get("fleet")["now_s"]
    server.stop()
    world.until(lambda: world.http.get("/readyz").status_code == 503, "decisions are held")
    world.until(
        lambda: world.metric("tidegate_store_pending_writes") > 0 and world.get("fleet")["now_s"] > began_s + BUCKET_S, "writes wait"
    )
    world.fleet.kill("coordinator")
    world.fleet.start("coordinator")
    world.until(lambda: "waiting for the stores" in world.log(), "it says what it waits for")
    assert world.tidegate("registry", "check").returncode == 69
    server.start()
    world.until(world.whole, "ready")
    assert world.get("fleet")["epoch"] == epoch + 1
    ended_s = world.get("fleet")["now_s"]
    world.until(lambda: world.complete(began_s, ended_s), "history has every bucket, also those that were never stored before the kill")
    assert all(host["spool_dropped"] == 0 for host in world.get("hosts"))
    done = world.tidegate("registry", "check")
    assert (done.returncode, done.stdout.startswith("up to date")) == (0, True), done.stderr


@pytest.mark.long
def test_a_database_that_hangs_is_seen_and_waited_for(world: World, server: Postgres) -> None:
    world.until(world.whole, "whole before")
    epoch, began_s = world.get("fleet")["epoch"], world.get("fleet")["now_s"]
    server.freeze()
    try:
        held = world.until(lambda: (answer := world.http.get("/readyz")).status_code == 503 and answer.text, "not ready")
        assert "held: a store has not answered" in held
        world.until(lambda: all(count > 60 for count in world.spooled()), "agents keep what nobody acknowledges")
        assert world.get("fleet")["epoch"] == epoch, "what is in memory is still told"
    finally:
        server.thaw()
    world.until(world.whole, "it recovers by itself")
    ended_s = world.get("fleet")["now_s"]
    assert world.get("fleet")["epoch"] == epoch
    world.until(lambda: world.complete(began_s, ended_s), "history has every bucket")
