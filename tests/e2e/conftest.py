"""One ring of real processes for the tests of this folder: a coordinator (no Ray) and three agents at 100 times real time.

Tests share it and run in any order: what one of them kills, pins or orders it puts right again. They wait on conditions.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from waiting import until

from coordinator import demo
from coordinator.demo import DemoOptions, Fleet, free_port
from shared.control import ask
from shared.units import NS_PER_S

SPEED = 100.0
STALE_HOST_S = 400  # four real seconds
ROOMY = 0.5  # what VMs may have at most, over what their host has
T = TypeVar("T")


@dataclass
class Ring:
    """The processes and how tests talk to them. host-0 and host-1 are reactive, host-2 is predictive."""

    fleet: Fleet
    exporter_port: int
    token: str = ""
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.fleet.url, timeout=10)

    def until(self, condition: Callable[[], T], what: str, seconds: float = 90.0, *, story: Callable[[], str] | None = None) -> T:
        """The first true result of `condition`; a process that cannot answer yet is no failure until the deadline."""
        return until(condition, what, seconds, story=story)

    def get(self, path: str) -> Any:
        answer = self.http.get(f"/api/v1/{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: dict[str, Any], token: str | None = None) -> httpx.Response:
        return self.http.post(f"/api/v1/{path}", json=body, headers={"Authorization": f"Bearer {token or self.token}"})

    def put_mode(self, host_id: str, mode: str) -> httpx.Response:
        return self.http.put(f"/api/v1/hosts/{host_id}/mode", json={"mode": mode}, headers={"Authorization": f"Bearer {self.token}"})

    def host(self, host_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"hosts/{host_id}")
        return found

    def status(self, host_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.fleet.ask(host_id, "status")
        return found

    def in_force(self, host_id: str) -> dict[tuple[str, str], int]:
        """(VM, lever) -> value, as the agent knows it."""
        return {(vm["vm_id"], kind): value for vm in self.fleet.ask(host_id, "vms") for kind, value in vm["in_force"].items()}

    def agent(self, host_id: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One command of `tidegate-agent` to a running agent."""
        return run("agent", *arguments, "--socket", str(self.socket(host_id)))

    def socket(self, host_id: str) -> Path:
        return self.fleet.folder / host_id / "control.sock"

    def settled(self) -> bool:
        """The coordinator decides, and every agent is connected, has shipped what it had and is in its own mode."""
        if self.http.get("/readyz").status_code != 200:
            return False
        hosts = {host["id"]: host for host in self.get("hosts")}
        return hosts.keys() == set(self.fleet.host_ids) and all(
            host["alive"] and not self.status(host_id)["spool_frames"] for host_id, host in hosts.items()
        )


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "shared_ring" in getattr(item, "fixturenames", ()):
            item.add_marker("ring")


def run(program: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`tidegate` ("coordinator") or `tidegate-agent` ("agent") to its end."""
    command = [sys.executable, "-c", f"from {program}.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **(env or {})})


@pytest.fixture(scope="session")
def program() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`program("agent" | "coordinator", *arguments)` runs a command line to its end."""
    return run


@contextlib.contextmanager
def generated() -> Iterator[None]:
    """No traces, whatever this machine has, and hosts with room: where there is none an order can wait for hours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEGATE_DATA", "/nonexistent")
        patch.setattr(demo, "OVERCOMMIT", ROOMY)
        yield


@pytest.fixture(scope="session")
def shared_ring() -> Iterator[Ring]:
    with started_ring() as ring:
        yield ring


@pytest.fixture(scope="module")
def own_ring() -> Iterator[Ring]:
    """A ring of one module's own, which may leave it in any state."""
    with started_ring() as ring:
        yield ring


@contextlib.contextmanager
def started_ring() -> Iterator[Ring]:
    """Three hosts with three VMs each, of at least two clients, and a decision made."""
    with generated(), Fleet(DemoOptions(hours=40, speed=SPEED, hosts=3, vms=3)) as fleet:
        fleet.prepare()
        exporter_port = free_port()
        clock = {"real_start_ns": time.time_ns() + 4 * NS_PER_S}  # 20 s in a demo, where Ray has to start
        for name in ("coordinator", *fleet.host_ids):
            settings = tomllib.loads((fleet.folder / f"{name}.toml").read_text())
            settings["clock"] |= clock
            if name == "coordinator":
                settings |= {"ray": False, "cycle": {"stale_host_s": STALE_HOST_S}}
                settings["forecast"] = {"challengers": ["auto_ets"], "challenge_every_s": 1800}
            if name == "host-0":
                settings["exporter_address"] = f"127.0.0.1:{exporter_port}"
            fleet.configure(name, settings)
        made = run("coordinator", "token", "new", "tests", "--config", str(fleet.folder / "coordinator.toml"))
        ring = Ring(fleet, exporter_port, token=made.stdout.strip())
        for name in ("coordinator", *fleet.host_ids):
            fleet.start(name)
        asyncio.run(fleet.until_ready())
        with ring.http:
            ring.until(ring.settled, "all agents connected")
            ring.until(lambda: ring.get("fleet")["cycle"] >= 1, "a decision")
            yield ring


@pytest.fixture
def ring(shared_ring: Ring) -> Iterator[Ring]:
    """The shared ring, whole again before and after the test."""
    _mend(shared_ring)
    yield shared_ring
    _mend(shared_ring)


def _mend(ring: Ring) -> None:
    for name in ("coordinator", *ring.fleet.host_ids):
        process = ring.fleet.processes.get(name)
        if process is None or process.poll() is not None:
            ring.fleet.start(name)
    for host_id in ring.fleet.host_ids:
        if ring.until(lambda host_id=host_id: ring.status(host_id), "the agent's socket")["mode_pinned"]:  # type: ignore[misc]
            ask(ring.socket(host_id), "mode", "unpin")
    ring.until(ring.settled, "the ring is whole")
