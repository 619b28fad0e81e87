"""The product's coordinator as a process of its own, with certificates for many hosts, killed and started at will."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.service_agents import AgentProcess, Load
from coordinator.demo import coordinator_settings, free_port, toml
from coordinator.pki import create_ca, issue_coordinator, issue_host
from shared.clock import ClockAnchor
from shared.units import BUCKET_S, NS_PER_S

CLOSES_AFTER_S = 60  # the first bucket ends this long after the clock starts, in its own seconds


class ServiceFleet:
    """Use as `with ServiceFleet(...) as fleet`; leaving it ends all processes and removes the folder."""

    def __init__(
        self, *, hosts: int, vms: int, speed: float, ready_s: float, ray: bool = False, agent_processes: int = 1, **settings: Any
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tidegate-bench-"))
        self.hosts, self.vms, self.speed = hosts, vms, speed
        self.host_ids = [f"host-{i:04d}" for i in range(hosts)]
        self.ports = free_port(), free_port()
        pki = self.folder / "pki"
        create_ca(pki)
        files = issue_coordinator(pki, ["localhost"], ["127.0.0.1"])
        for host_id in self.host_ids:
            issue_host(pki, host_id)
        real_ns = time.time_ns() + int(ready_s * NS_PER_S)
        start_s = real_ns // NS_PER_S // BUCKET_S * BUCKET_S + BUCKET_S - CLOSES_AFTER_S
        self.clock = ClockAnchor(simulated_start_ns=start_s * NS_PER_S, real_start_ns=real_ns, speed=speed)
        clock = {"simulated_start_ns": self.clock.simulated_start_ns, "real_start_ns": real_ns, "speed": speed}
        # a pause of a busy machine is no reason to take a host for lost, however fast the clock
        cycle = {"stale_host_s": min(3600, max(60, int(30 * speed)))}
        made = coordinator_settings(self.folder, files, *self.ports) | {"clock": clock, "cycle": cycle, "ray": ray} | settings
        (self.folder / "coordinator.toml").write_text(toml(made))
        self.url = f"http://127.0.0.1:{self.ports[1]}"
        self.process: psutil.Popen | None = None
        self.agents: list[AgentProcess] = []
        self._agent_processes = agent_processes

    def __enter__(self) -> ServiceFleet:
        return self

    def __exit__(self, *_: object) -> None:
        for agents in self.agents:
            agents.close()
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start the coordinator; its log is coordinator.log in the folder."""
        command = [
            sys.executable,
            "-c",
            "from coordinator.cli import main; main()",
            "run",
            "--config",
            str(self.folder / "coordinator.toml"),
        ]
        with (self.folder / "coordinator.log").open("ab") as log:
            self.process = psutil.Popen(command, stdin=-3, stdout=log, stderr=log, start_new_session=True)

    def start_agents(self) -> None:
        """All hosts' agents, spread over their processes."""
        for i in range(self._agent_processes):
            own = tuple(self.host_ids[i :: self._agent_processes])
            urls = (f"wss://127.0.0.1:{self.ports[0]}",)
            self.agents.append(AgentProcess(Load(pki=self.folder / "pki", urls=urls, host_ids=own, vms=self.vms, clock=self.clock)))

    def kill(self) -> None:
        """kill -9 of the coordinator and its workers."""
        if self.process is None:
            return
        try:
            family = [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        for process in family:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, 10)
        self.process = None

    def until(self, what: str, condition: Any, seconds: float) -> float:
        """Wait for a condition; the seconds it took. RuntimeError with the end of the log when it takes too long or the process ended."""
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"the coordinator ended with {self.process.returncode}:\n{self.log()}")
            if condition():
                return time.monotonic() - started
            time.sleep(0.05)
        raise RuntimeError(f"not within {seconds:g} s: {what}\n{self.log()}")

    def ready(self) -> bool:
        """/readyz says so."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def get(self, path: str) -> Any:
        """JSON of a page of the API."""
        return httpx.get(f"{self.url}{path}", timeout=120).raise_for_status().json()

    def up(self) -> int:
        """Agents connected, as they see it."""
        return sum(agents.ask("told").up for agents in self.agents)

    def log(self) -> str:
        """The end of the coordinator's log."""
        return (self.folder / "coordinator.log").read_text(errors="replace")[-3000:]

    def cpu_s(self) -> float:
        """Processor time of the coordinator and its workers."""
        assert self.process is not None
        family = [self.process, *self.process.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in family)

    def rss_bytes(self) -> int:
        """Resident memory of the coordinator's own process."""
        assert self.process is not None
        resident: int = self.process.memory_info().rss
        return resident
