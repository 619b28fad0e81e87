"""A ring of real processes whose VMs move: a crowded host, an empty one, and one with a single VM, at a hundred times real time and more.

Demand is flat but for what a test adds, so that it is known beforehand what should happen. A sleeping host is an agent that is stopped
(SIGSTOP): silent, and there again where it was when it is woken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray
from waiting import until

from agent.adapters.simulated_migration import uri_of
from coordinator.demo import START_S, DemoOptions, Fleet
from coordinator.workloads import HostWorkload
from shared.control import ask
from shared.model import Allocation, HostCapacity, Policy
from shared.units import BUCKET_S, GIB, NS_PER_S
from shared.workload import SERIES, VmWorkload, WorkloadFile

PATIENCE_S = 2.5  # real seconds until a host counts as silent
DAY = 288
HISTORY, RUN = 3 * DAY, 144  # buckets
Levels = NDArray[np.float64]
HistoricVm = tuple[VmWorkload, Levels]  # and its levels [6, HISTORY + RUN], in the order of SERIES
T = TypeVar("T")
SWITCH = """
import os, pathlib, signal, sys
order, folder, host = sys.argv[1:]
pid = int((pathlib.Path(folder) / host / "pid").read_text())
os.kill(pid, signal.SIGSTOP if order == "sleep" else signal.SIGCONT)
"""
SITE = """
[[pools]]
name = "room"
sleep = true
wake_s = 60
"""


def flat_vm(host: str, n: int, millicores: int) -> HistoricVm:
    """A VM of 2 GiB that always wants this much CPU."""
    return _vm(host, n, np.full(HISTORY + RUN, millicores))


def daily_vm(host: str, n: int, millicores: int, busy: int, ramp: int) -> HistoricVm:
    """A VM of 2 GiB that wants `busy` for half a day from `ramp` buckets after the start, as on every day before, else `millicores`."""
    since = (np.arange(HISTORY + RUN) - HISTORY - ramp) % DAY
    return _vm(host, n, np.where(since < DAY // 2, busy, millicores))


def _vm(host: str, n: int, millicores: Levels) -> HistoricVm:
    levels = np.zeros((len(SERIES), HISTORY + RUN))
    levels[0], levels[1], levels[2:] = millicores, GIB, 100_000
    run = {name: levels[i, HISTORY - 1 :].astype("<i8").tobytes() for i, name in enumerate(SERIES)}
    spec = VmWorkload(
        vm_id=f"{host}-vm-{n}",
        name=f"{host}-vm-{n}",
        source="test",
        policy=Policy(client=f"client-{n % 3}"),
        vcpus_max=2,
        memory_max_bytes=2 * GIB,
        initial=Allocation(vcpus=2, cpu_quota_millicores=2000, memory_bytes=2 * GIB),
        seed=1000 * sum(host.encode()) + n,
        noise_permille=50,
        burst_per_1024=0,
        **run,
    )
    return spec, levels


def host_of(name: str, vms: list[HistoricVm], cores: int = 8) -> HostWorkload:
    """A host with these VMs and their day of history."""
    capacity = HostCapacity(
        cpu_millicores=1000 * cores,
        memory_bytes=32 * GIB,
        net_bits_per_s=10**10,
        cpu_commit_millicores=2000 * cores,
        memory_commit_bytes=31 * GIB,
        net_commit_bits_per_s=10**10,
    )
    file = WorkloadFile(
        host=name, start_s=START_S - BUCKET_S, buckets=RUN + 1, seed=7, capacity=capacity, vms=tuple(spec for spec, _ in vms)
    )
    past = [levels[:, :HISTORY] for _, levels in vms]
    mean = np.array([[p[0], p[1], p[2] + p[3], p[4], p[5]] for p in past], np.float32).reshape(len(vms), 5, HISTORY)
    mean *= np.random.default_rng(len(name)).normal(1.0, 0.01, mean.shape).astype(np.float32)
    return HostWorkload(host=name, file=file, history_start_s=START_S - BUCKET_S * HISTORY, mean=mean, peak=mean * np.float32(1.1))


@dataclass
class MovingRing:
    """The processes. `http` reads, `put` writes with a token that `tidegate token new` made."""

    fleet: Fleet
    placement: dict[str, Any]
    bits_per_s: int = 1_000_000_000
    token: str = ""
    real_start_ns: int = 0
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=f"{self.fleet.url}api/v1/", timeout=10)

    def configure(self, **placement: Any) -> None:
        """Settings of all processes. `placement` overrides some of the ring's."""
        fleet = self.fleet
        (fleet.folder / "site.toml").write_text(SITE)
        (fleet.folder / "switch.py").write_text(SWITCH)
        self.placement |= placement
        self.real_start_ns = time.time_ns() + 4 * NS_PER_S
        clock = {"real_start_ns": self.real_start_ns}
        for name in ("coordinator", *fleet.host_ids):
            settings = tomllib.loads((fleet.folder / f"{name}.toml").read_text())
            settings["clock"] |= clock
            if name == "coordinator":
                order = [sys.executable, str(fleet.folder / "switch.py")]
                settings |= {
                    "ray": False,
                    "log_level": "info",
                    "cycle": {"stale_host_s": int(PATIENCE_S * fleet.options.speed), "place_every_cycles": 1, "plan_deadline_s": 3600},
                }
                settings["forecast"] = {"challengers": []}
                settings["placement"] = {"execute": "execute", "site": str(fleet.folder / "site.toml"), "begin_s": 1500, "seen_s": 1500}
                settings["placement"] |= self.placement
                settings["power"] = {
                    "switch": "command",
                    "sleep_command": [*order, "sleep", str(fleet.folder), "{host}"],
                    "wake_command": [*order, "wake", str(fleet.folder), "{host}"],
                    "spare_hosts": 0,
                    "empty_s": 60,
                    "lead_s": 120,
                    "margin_s": 60,
                }
            else:
                others = [host for host in fleet.host_ids if host != name]
                targets = [f"{host}={uri_of(fleet.folder / host)}" for host in others]
                settings |= {"default_mode": "predictive", "migration": {"targets": targets, "bits_per_s_max": self.bits_per_s}}
            fleet.configure(name, settings)

    def start(self, name: str) -> None:
        """One process; its id where the power switch finds it."""
        self.fleet.start(name)
        if name != "coordinator":
            (self.fleet.folder / name / "pid").write_text(str(self.fleet.processes[name].pid))

    def until(self, condition: Callable[[], T], what: str, seconds: float = 60.0) -> T:
        """The first true result; a process that cannot answer yet is no failure until the deadline."""
        return until(condition, what, seconds, check=self.fleet.check, story=self.story)

    def get(self, path: str) -> Any:
        """JSON of one page."""
        answer = self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def put(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """An operator's order."""
        return self.http.put(path, json=body, headers={"Authorization": f"Bearer {self.token}"})

    def plan(self) -> dict[str, Any]:
        """The newest migration plan, {} = none."""
        found: dict[str, Any] = self.get("migration")["plan"] or {}
        return found

    def where(self) -> dict[str, str]:
        """VM -> host, as the agents show it."""
        hosts = [host for host in self.fleet.host_ids if self.awake(host)]
        return {vm["vm_id"]: host for host in hosts for vm in self.fleet.ask(host, "vms")}

    def awake(self, host_id: str) -> bool:
        """Whether the machine runs: asked of the operating system."""
        return self.fleet.processes[host_id].status() != "stopped"

    def power(self, host_id: str) -> str:
        """As the coordinator has it."""
        return next((str(row["state"]) for row in self.get("migration")["power"] if row["host_id"] == host_id), "unknown")

    def switched(self, host_id: str) -> list[str]:
        """What the power switch was told of a host, in order."""
        return [line["order"] for line in self.said("power") if line["host"] == host_id]

    def now_s(self) -> float:
        """The simulated time."""
        return START_S + (time.time_ns() - self.real_start_ns) / NS_PER_S * self.fleet.options.speed

    def submitted(self, host_id: str) -> list[str]:
        """Ids of migration steps that the agent has begun."""
        lines = ask(self.fleet.folder / host_id / "control.sock", "history", options={"n": "1000"})["history"]
        return [line["step_id"] for line in lines if line["kind"] == "migrate" and line["verdict"] == "submitted"]

    def said(self, event: str) -> list[dict[str, Any]]:
        """Lines of the coordinator's log."""
        lines = (self.fleet.folder / "coordinator.log").read_text().splitlines()
        return [line for text in lines if text.startswith("{") and (line := json.loads(text))["event"] == event]

    def story(self) -> str:
        """For a failure: the newest plan and the end of the coordinator's log."""
        with contextlib.suppress(httpx.HTTPError):
            return f"{json.dumps(self.get('migration'))}\n{(self.fleet.folder / 'coordinator.log').read_text()[-3000:]}"
        return (self.fleet.folder / "coordinator.log").read_text()[-3000:]


@contextlib.contextmanager
def moving_ring(hosts: list[HostWorkload], bits_per_s: int = 1_000_000_000, speed: float = 100.0, **placement: Any) -> Iterator[MovingRing]:
    """All processes up, agents connected, one decision made."""
    options = DemoOptions(hours=RUN * BUCKET_S / 3600, speed=speed, hosts=len(hosts), vms=1)
    with Fleet(options) as fleet:
        fleet.lay_out(hosts)
        ring = MovingRing(fleet, placement, bits_per_s)
        ring.configure()
        command = [sys.executable, "-c", "from coordinator.cli import main; main()", "token", "new", "tests"]
        made = subprocess.run([*command, "--config", str(fleet.folder / "coordinator.toml")], capture_output=True, text=True, check=True)
        ring.token = made.stdout.strip()
        for name in ("coordinator", *fleet.host_ids):
            ring.start(name)
        asyncio.run(fleet.until_ready())
        try:
            with ring.http:
                ring.until(lambda: sum(host["alive"] for host in ring.get("hosts")) == len(hosts), "all agents connected")
                yield ring
        finally:
            for host_id in fleet.host_ids:  # whoever sleeps cannot hear that it should end
                with contextlib.suppress(KeyError, ProcessLookupError):
                    os.kill(fleet.processes[host_id].pid, signal.SIGCONT)
