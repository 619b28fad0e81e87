"""The operator's side of a real agent process on a simulated host: kill switch, reload, undo, doctor, top, exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from waiting import until

from shared.control import ask
from shared.model import Allocation, HostCapacity
from shared.units import GIB, NS_PER_S
from shared.workload import SERIES, VmWorkload, WorkloadFile, encode_workload

pytestmark = pytest.mark.slow

START_S = 1_800_000_000
BUCKETS = 288
SPEED = 60.0
T = TypeVar("T")


def vm(name: str, *cpu_millicores: int) -> VmWorkload:
    """Wants so much CPU in the first 5-minute buckets, and as in the last one ever after."""
    cpu = [*cpu_millicores, *[cpu_millicores[-1]] * (BUCKETS - len(cpu_millicores))]
    series: dict[str, Any] = {key: struct.pack(f"<{BUCKETS}q", *[1_000_000] * BUCKETS) for key in SERIES}
    series["cpu_millicores"] = struct.pack(f"<{BUCKETS}q", *cpu)
    series["memory_bytes"] = struct.pack(f"<{BUCKETS}q", *[GIB] * BUCKETS)
    return VmWorkload(
        vm_id=f"id-{name}",
        name=name,
        source="test",
        vcpus_max=4,
        memory_max_bytes=8 * GIB,
        initial=Allocation(vcpus=4, cpu_quota_millicores=1000, memory_bytes=4 * GIB, net_rx_bits_per_s=10**9, net_tx_bits_per_s=10**9),
        seed=7,
        **series,
    )


class Agent:
    """`tidegate-agent run` as a process, 60 times as fast as real; starts in mode observe, so that tests say when something happens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config_file, self.socket, self.pause_file = folder / "agent.toml", folder / "s", folder / "PAUSE"
        capacity = HostCapacity(
            cpu_millicores=16_000,
            memory_bytes=64 * GIB,
            net_bits_per_s=10**10,
            cpu_commit_millicores=64_000,
            memory_commit_bytes=64 * GIB,
            net_commit_bits_per_s=10**10,
        )
        workload = WorkloadFile(
            host="h1", start_s=START_S, buckets=BUCKETS, seed=3, capacity=capacity, vms=(vm("hungry", 3000, 200), vm("idle", 100))
        )
        (folder / "workload").write_bytes(encode_workload(workload))
        self.settings: dict[str, object] = {
            "host_id": "h1",
            "state_dir": str(folder / "state"),
            "socket_path": str(self.socket),
            "pause_file": str(self.pause_file),
            "hypervisor": "simulated",
            "workload": str(folder / "workload"),
            "clock": {"simulated_start_ns": START_S * NS_PER_S, "real_start_ns": time.time_ns(), "speed": SPEED},
            # growth is what these tests look at: nothing shrinks back meanwhile
            "reactive": {"shrink_window_s": 600_000},
        }
        self.configure()
        self.process: subprocess.Popen[str] | None = None

    def configure(self, **changes: object) -> None:
        self.settings |= changes
        tables = {key: value for key, value in self.settings.items() if isinstance(value, dict)}
        lines = [f"{key} = {json.dumps(value)}" for key, value in self.settings.items() if key not in tables]
        for name, table in tables.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        self.config_file.write_text("\n".join(lines) + "\n")

    def start(self, **env: str) -> None:
        command = [sys.executable, "-c", "from agent.cli import main; main()", "run", "--config", str(self.config_file)]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, stderr=log, text=True, env={**os.environ, **env})
        self.until(lambda: self.status()["sampling_rounds"] >= 2, "two rounds")

    def kill(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(20)

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from agent.cli import main; main()", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, env={**os.environ, **(env or {})})

    def tell(self, *arguments: str) -> Any:
        """One command to the agent that must succeed; its JSON."""
        done = self.run(*arguments, "--socket", str(self.socket), "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = ask(self.socket, "status")
        return found

    def quota(self, name: str = "hungry") -> int:
        """CPU quota in force, as the newest sample of the host shows it."""
        return next(row for row in ask(self.socket, "vms") if row["name"] == name).get("cpu_quota_millicores") or 0

    def used(self, name: str) -> int:
        return next(row for row in ask(self.socket, "vms") if row["name"] == name).get("cpu_used_millicores") or 0

    def until(self, condition: Callable[[], T], what: str, seconds: float = 30.0) -> T:
        return until(condition, what, seconds, check=self.alive)

    def alive(self) -> None:
        assert self.process is not None
        assert self.process.poll() is None, f"the agent ended: {(self.folder / 'log').read_text()[-2000:]}"

    def submitted(self) -> int:
        return sum(line["verdict"] == "submitted" for line in ask(self.socket, "history", options={"n": "1000"})["history"])


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path)
    made.start()
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.process.kill()
            made.process.wait(20)


def test_pause_is_in_force_at_once_and_outlives_a_kill(agent: Agent) -> None:
    assert agent.tell("pause") == {"paused_by": ["owner"], "mode": "off"}
    assert agent.run("pause", "--socket", str(agent.socket)).stdout == "paused by owner\n"
    agent.tell("mode", "reactive")
    agent.end(signal.SIGKILL)
    agent.start()
    assert agent.status()["paused_by"] == ["owner"] and agent.status()["mode"] == "off"
    rounds = agent.status()["sampling_rounds"]
    agent.until(lambda: agent.status()["sampling_rounds"] >= rounds + 5, "sampling goes on while paused")
    assert agent.submitted() == 0 and agent.quota() == 1000
    assert agent.tell("resume") == {"paused_by": [], "mode": "reactive"}
    agent.until(lambda: agent.quota() > 1000, "the hungry VM grows after resume")


def test_the_pause_file_holds_within_a_second_and_from_the_start(agent: Agent) -> None:
    began = time.monotonic()
    agent.pause_file.touch()
    agent.until(lambda: agent.status()["paused_by"] == ["file"], "the file is seen", 5)
    assert time.monotonic() - began < 1.0
    agent.tell("pause")
    agent.pause_file.unlink()
    agent.until(lambda: agent.status()["paused_by"] == ["owner"], "each holds its own", 5)
    agent.tell("resume")
    agent.pause_file.touch()
    agent.until(lambda: agent.status()["paused_by"] == ["file"], "the file is seen again", 5)
    agent.tell("mode", "reactive")
    agent.end(signal.SIGKILL)
    agent.start()
    assert agent.status()["paused_by"] == ["file"] and agent.submitted() == 0
    agent.pause_file.unlink()
    agent.until(lambda: agent.quota() > 1000, "the hungry VM grows")


def test_sighup_takes_over_what_is_valid_and_keeps_what_was(agent: Agent) -> None:
    agent.config_file.write_text("sample_period_s = 500\n")
    agent.kill(signal.SIGHUP)
    said = agent.until(lambda: agent.status()["settings_error"], "the reload was refused")
    assert "sample_period_s = 500" in said and "from 1 to 60" in said
    assert agent.status()["sampling_period_s"] == 5
    metrics = agent.folder / "metrics.sock"
    other = agent.folder / "OTHER"
    agent.configure(
        sample_period_s=3, exporter_socket=str(metrics), exporter_vm_series=True, pause_file=str(other), log_level="debug", frame_samples=7
    )
    agent.kill(signal.SIGHUP)
    agent.until(lambda: agent.status()["sampling_period_s"] == 3, "another period")
    assert agent.status()["settings_error"] == ""
    line = agent.until(lambda: said_of("configuration taken over", agent), "the log says what waits")
    assert line["needs_restart"] == ["frame_samples"]
    assert set(line["changed"]) == {"sample_period_s", "exporter_socket", "exporter_vm_series", "pause_file", "log_level"}
    page = agent.until(lambda: b'vm_cpu_used_cores{vm_id="id-hungry",name="hungry"}' in scrape(metrics) and scrape(metrics), "series")
    assert b'tidegate_agent_reloads_total{result="refused"} 1.0' in page and b"tidegate_agent_cpu_seconds_total" in page
    other.touch()
    agent.until(lambda: agent.status()["paused_by"] == ["file"], "the other pause file", 5)


def said_of(event: str, agent: Agent) -> dict[str, Any] | None:
    lines = [json.loads(line) for line in (agent.folder / "log").read_text().splitlines()]
    return next((line for line in lines if line["event"] == event), None)


def scrape(path: Path) -> bytes:
    async def get() -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        page = await reader.read()
        writer.close()
        return page

    return asyncio.run(get())


def test_undo_puts_back_what_was(agent: Agent) -> None:
    nothing = agent.run("undo", "--since", "1h", "--socket", str(agent.socket))
    assert nothing.returncode == 3 and "nothing_to_undo" in nothing.stderr
    agent.tell("mode", "reactive")
    agent.until(lambda: agent.quota() > 1000 and not agent.status()["steps_in_flight"], "the hungry VM grew")
    agent.until(lambda: agent.used("hungry") < 500, "its hunger is over: nobody is cut while it needs what it has")
    dry = agent.tell("undo", "--since", "1h", "--vm", "hungry", "--dry-run")
    assert {(row["kind"], row["value"]) for row in dry["levers"]} >= {("cpu_quota", 1000)} and agent.quota() > 1000
    done = agent.run("undo", "--since", "1h", "--vm", "hungry", "--socket", str(agent.socket), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["not_undone"] == 0 and all(row["verdict"] == "verified" for row in told["outcomes"] if row["kind"] == "cpu_quota")
    agent.until(lambda: agent.quota() == 1000, "the host shows it")
    rounds = agent.status()["sampling_rounds"]
    agent.until(lambda: agent.status()["sampling_rounds"] >= rounds + 4, "four rounds later")
    assert agent.quota() == 1000, "the local rule took the undone step again"
    text = agent.run("history", "--vm", "hungry", "--socket", str(agent.socket)).stdout
    assert "operator" in text and "undo of" in text


def test_undo_of_one_step_and_of_none(agent: Agent) -> None:
    agent.tell("mode", "reactive")
    agent.until(lambda: agent.quota() > 1000 and not agent.status()["steps_in_flight"], "the hungry VM grew")
    history = agent.tell("history", "--vm", "hungry")["history"]
    step = next(line["step_id"] for line in history if line["verdict"] == "verified" and line["kind"] == "cpu_quota")
    agent.until(lambda: agent.used("hungry") < 500, "its hunger is over")
    agent.run("pause", "--socket", str(agent.socket))
    paused = agent.run("undo", step, "--socket", str(agent.socket))
    assert paused.returncode == 3 and "resume first" in paused.stderr
    agent.tell("resume")
    assert agent.run("undo", step, "--socket", str(agent.socket)).returncode == 0
    assert agent.run("undo", "no-such-step", "--socket", str(agent.socket)).returncode == 3
    assert agent.run("undo", "--since", "10x", "--socket", str(agent.socket)).returncode == 2


def test_what_it_shows(agent: Agent) -> None:
    agent.tell("mode", "reactive")
    agent.until(lambda: agent.tell("why", "hungry")["story"], "a decision")
    top = agent.run("top", "--once", "--socket", str(agent.socket))
    assert top.returncode == 0, top.stderr
    lines = top.stdout.splitlines()
    assert lines[0].startswith("tidegate-agent h1  mode reactive (pinned)  no coordinator  2 VMs")
    assert lines[2].split()[:3] == ["NAME", "DEMAND", "CPU"] and [line.split()[0] for line in lines[3:]] == ["hungry", "idle"]
    twice = agent.run("top", "--count", "2", "--interval", "0.2", "--sort", "name", "--socket", str(agent.socket)).stdout
    assert twice.count("NAME") == 2 and "\x1b" not in twice
    assert {row["name"] for row in agent.tell("top")["vms"]} == {"hungry", "idle"}
    caps = agent.tell("caps", "hungry")["capabilities"]
    assert caps["cpu_quota"] == {"able": True, "reason": ""} and all(entry["able"] or entry["reason"] for entry in caps.values())
    assert agent.run("plan", "--socket", str(agent.socket)).stdout == "no plan was taken yet\n"
    assert agent.run("history", "-n", "3", "--socket", str(agent.socket)).stdout.splitlines()[0].split()[:2] == ["vm", "time"]


def test_doctor_says_what_is_wrong_and_how_to_mend_it(agent: Agent) -> None:
    well = agent.run("doctor", "--config", str(agent.config_file), "--json")
    report = json.loads(well.stdout)
    assert (well.returncode, report["healthy"]) == (0, True), well.stdout
    assert {finding["check"] for finding in report["findings"]} == {"config", "agent", "certificates", "clock", "state", "journal", "pause"}
    agent.pause_file.touch()
    agent.config_file.write_text(agent.config_file.read_text().replace('host_id = "h1"', 'host_idd = "h1"'))
    ill = agent.run("doctor", "--config", str(agent.config_file))
    assert ill.returncode == 1 and "nearest valid one is 'host_id'" in ill.stdout and "-> " in ill.stdout
    agent.configure()
    assert "warn  pause" in agent.run("doctor", "--config", str(agent.config_file)).stdout


def test_exit_codes(agent: Agent) -> None:
    socket = ("--socket", str(agent.socket))
    assert agent.run("status", *socket).returncode == 0
    assert agent.run("mode", "turbo", *socket).returncode == 2
    assert agent.run("frobnicate").returncode == 2
    assert agent.run("why", "nobody", *socket).returncode == 3
    assert agent.run("dirty-rate", "hungry", *socket).returncode == 3  # a simulated host measures none
    assert agent.run("status", "--socket", str(agent.socket) + ".none").returncode == 4
    assert agent.run("run", "--config", str(agent.folder / "absent.toml")).returncode == 78
    second = agent.run("run", "--config", str(agent.config_file))
    assert second.returncode == 1 and "another agent is listening there" in second.stderr
    bad = agent.folder / "bad.toml"
    bad.write_text("samle_period_s = 5\n")
    wrong = agent.run("config", "check", str(bad))
    assert wrong.returncode == 78 and "sample_period_s" in wrong.stderr
    right = agent.run("config", "check", str(agent.config_file))
    assert (right.returncode, right.stdout) == (0, f"{agent.config_file}: valid\n")
    shown = agent.run("config", "show", "--config", str(agent.config_file), "--origin", "--json", env={"TIDEGATE_AGENT_FRAME_SAMPLES": "9"})
    origins = json.loads(shown.stdout)
    assert origins["frame_samples"] == {"value": 9, "origin": "environment variable TIDEGATE_AGENT_FRAME_SAMPLES"}
    assert origins["host_id"] == {"value": "h1", "origin": f"file {agent.config_file}"} and origins["log_level"]["origin"] == "default"
    assert agent.end() == 0


def test_systemd_is_told_what_is_going_on(agent: Agent) -> None:
    assert agent.end() == 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(agent.folder / "notify"))
        manager.settimeout(30)
        agent.start(NOTIFY_SOCKET=str(agent.folder / "notify"))

        def told(what: str) -> str:
            while True:
                lines = manager.recv(4096).decode()
                if what in lines:
                    return lines

        assert told("READY=1") == "READY=1\nSTATUS=mode observe, 2 VMs, 0 quarantined"
        told("WATCHDOG=1")
        agent.tell("pause")
        told("STATUS=paused by owner, 2 VMs, 0 quarantined")
        agent.kill(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in told("RELOADING=1")
        told("READY=1")
        agent.kill(signal.SIGTERM)
        told("STOPPING=1")
        assert agent.end() == 0


def test_top_on_a_terminal_takes_keys_and_leaves_the_screen_as_it_was(agent: Agent) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from agent.cli import main; main()", "top", "--interval", "0.3", "--socket", str(agent.socket)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    seen = b""

    def until(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            assert select.select([ours], [], [], 30)[0], f"{text!r} never came after {seen[-500:]!r}"
            seen += os.read(ours, 4096)

    until(b"idle")
    assert b"\x1b[?1049h" in seen
    first = seen.index(b"hungry"), seen.index(b"idle")
    assert first[0] < first[1], "the busy one first"
    os.write(ours, b"q")
    until(b"\x1b[?1049l")
    assert process.wait(30) == 0
    os.close(ours)
