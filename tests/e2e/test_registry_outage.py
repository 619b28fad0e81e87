"""A real PostgreSQL dies and comes back under a running ring: all is refused with its reason meanwhile, and nothing is lost."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from postgres_server import Postgres
from waiting import until

from coordinator.demo import DemoOptions, Fleet
from coordinator.store.history import ParquetHistory
from shared.units import BUCKET_S, NS_PER_S

pytestmark = [pytest.mark.server, pytest.mark.ring]
SPEED = 100.0


class World:
    """A coordinator on PostgreSQL (no Ray), two agents, and the database as a process that can be stopped."""

    def __init__(self, fleet: Fleet, server: Postgres, program: Callable[..., subprocess.CompletedProcess[str]]) -> None:
        self.fleet, self.server, self.program = fleet, server, program
        self.database = server.new_database().rpartition("/")[2]
        self.http = httpx.Client(base_url=fleet.url, timeout=20)
        self.config = fleet.folder / "coordinator.toml"
        secret = fleet.folder / "password"
        secret.write_text(server.password + "\n")
        clock = {"real_start_ns": time.time_ns() + 5 * NS_PER_S}
        for name in ("coordinator", *fleet.host_ids):
            settings = tomllib.loads((fleet.folder / f"{name}.toml").read_text())
            settings["clock"] |= clock
            if name == "coordinator":
                settings |= {"ray": False, "cycle": {"stale_host_s": 400}, "forecast": {"challengers": []}}
                settings |= {"registry_url": server.url(self.database, password=False), "registry_password_file": str(secret)}
            fleet.configure(name, settings)
        self.token = self.tidegate("token", "new", "tests").stdout.strip()
        for name in ("coordinator", *fleet.host_ids):
            fleet.start(name)

    def tidegate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.program("coordinator", *arguments, "--config", str(self.config))

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        return until(condition, what, 90, check=self.fleet.check, story=self.log)

    def log(self) -> str:
        return (self.fleet.folder / "coordinator.log").read_text()[-3000:]

    def get(self, path: str) -> Any:
        answer = self.http.get(f"/api/v1/{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def put(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self.http.put(f"/api/v1/{path}", json=body, headers={"Authorization": f"Bearer {self.token}"})

    def metric(self, name: str) -> float:
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", self.http.get("/metrics").text, re.MULTILINE)
        return sum(map(float, found))

    def spooled(self) -> list[int]:
        return [int(self.fleet.ask(host_id, "status")["spool_frames"]) for host_id in self.fleet.host_ids]

    def whole(self) -> bool:
        """It decides, and no agent holds anything back."""
        return self.http.get("/readyz").status_code == 200 and not any(self.spooled()) and all(host["alive"] for host in self.get("hosts"))


@pytest.fixture(scope="module")
def world(program: Callable[..., subprocess.CompletedProcess[str]]) -> Iterator[World]:
    server = Postgres()
    try:
        server.start()
        with pytest.MonkeyPatch.context() as patch, Fleet(DemoOptions(hours=40, speed=SPEED, hosts=2, vms=3)) as fleet:
            patch.setenv("TIDEGATE_DATA", "/nonexistent")
            fleet.prepare()
            made = World(fleet, server, program)
            with made.http:
                asyncio.run(fleet.until_ready())
                made.until(made.whole, "all agents connected")
                made.until(lambda: made.get("fleet")["cycle"] >= 2 and made.get("plans"), "decisions")
                yield made
    finally:
        server.remove()


def test_the_database_dies_and_comes_back(world: World) -> None:
    vm = world.get("vms")["items"][0]
    stay = world.get(f"vms/{vm['id']}/hosts")
    assert [(each["host_id"], each["until_s"]) for each in stay] == [(vm["host_id"], None)]
    world.put("hosts/host-1/mode", {"mode": "predictive"}).raise_for_status()
    before = world.server.execute("SELECT count(*) FROM plans", world.database)[0][0]
    began_s = world.get("fleet")["now_s"]

    world.server.stop(signal.SIGQUIT)
    held = world.until(lambda: (answer := world.http.get("/readyz")).status_code == 503 and answer.text, "not ready")
    assert "decisions are held: registry postgresql+psycopg://tidegate:***@127.0.0.1" in held
    assert world.server.password not in held
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
    assert world.server.password not in command.stderr + world.log()
    assert world.metric("tidegate_store_held") == 1
    assert world.metric("tidegate_store_unreachable_seconds") > 0
    world.until(lambda: world.get("fleet")["now_s"] > began_s + 4 * BUCKET_S, "buckets close")
    assert world.metric("tidegate_plans_total") == plans, "nothing was decided that could not be stored"
    assert world.metric("tidegate_store_pending_writes") > 0

    world.server.start()
    world.until(world.whole, "it recovers by itself")
    ended_s = world.get("fleet")["now_s"]
    world.until(lambda: world.metric("tidegate_store_pending_writes") == 0, "everything is stored")
    assert world.server.execute("SELECT paused FROM pauses WHERE host_id = 'host-0'", world.database) == [(1,)]
    world.put("hosts/host-0/pause", {"paused": False}).raise_for_status()
    world.until(lambda: world.server.execute("SELECT count(*) FROM plans", world.database)[0][0] > before, "decisions again")
    assert world.metric("tidegate_store_held") == 0
    assert all(host["spool_dropped"] == 0 for host in world.get("hosts"))
    assert 'reason="gaps"' not in world.http.get("/metrics").text, "no agent's frame is missing"
    world.until(lambda: complete(world, began_s, ended_s), "history has every bucket of the outage whole")


def complete(world: World, began_s: float, ended_s: float) -> bool:
    """Each VM's demand is known for each bucket in which the database was away."""
    first, last = (int(at // BUCKET_S * BUCKET_S) for at in (began_s, ended_s))
    vm_ids = [vm["id"] for vm in world.get("vms")["items"]]
    history = ParquetHistory(Path(world.fleet.folder) / "coordinator" / "history")
    means = history.load(vm_ids, last, (last - first) // BUCKET_S + 1).mean[:, 0]
    return bool(means.shape[1] >= 4 and np.isfinite(means).all())


def test_a_coordinator_that_starts_while_the_database_is_away_waits_for_it(world: World) -> None:
    world.until(world.whole, "whole before")
    epoch = world.get("fleet")["epoch"]
    world.server.stop()
    world.fleet.kill("coordinator")
    world.fleet.start("coordinator")
    world.until(lambda: "waiting for the stores" in world.log(), "it says what it waits for")
    world.server.start()
    world.until(world.whole, "ready")
    assert world.get("fleet")["epoch"] == epoch + 1
    done = world.tidegate("registry", "check")
    assert (done.returncode, done.stdout.startswith("up to date")) == (0, True), done.stderr
