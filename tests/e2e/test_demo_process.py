"""`tidegate demo` and `tidegate run` with real Ray workers: they end by themselves or when told to, and leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from coordinator.demo import coordinator_settings, free_port, toml
from coordinator.pki import create_ca, issue_coordinator

pytestmark = pytest.mark.slow


class Program:
    """A process, everything that it ever started, and the folders that these were told to use."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log, self.family, self.folders = log, set[psutil.Process](), set[Path]()
        self.listening: set[tuple[str, str]] = set()
        command = [sys.executable, "-c", "from coordinator.cli import main; main()", *arguments]
        env = {**os.environ, "TIDEGATE_DATA": "/nonexistent"}
        with log.open("wb") as output:
            self.process = psutil.Popen(command, stdin=-3, stdout=output, stderr=output, env=env)

    def look(self) -> None:
        """Write down what runs now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.family.update(self.process.children(recursive=True))
        for process in self.family:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                words = process.cmdline()
                if "--config" in words:
                    self.folders.add(Path(words[words.index("--config") + 1]).parent)
                self.folders.update(Path(word.partition("=")[2]) for word in words if word.startswith("--session-dir="))
                for connection in process.net_connections("inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        self.listening.add((process.name(), connection.laddr.ip))

    def until(self, condition: Any, what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"ended while waiting for: {what}\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}\n{self.log.read_text()}"
            self.look()
            time.sleep(0.1)

    def end(self, seconds: float) -> int:
        """Its exit code."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"not ended within {seconds:g} s\n{self.log.read_text()}"
            self.look()
            time.sleep(0.1)
        return int(self.process.returncode)

    def leaves_nothing(self) -> None:
        assert self.family and self.folders, "nothing was seen"
        _, alive = psutil.wait_procs(self.family, 20)  # a worker that compiles hears of the end when it is done
        assert not [" ".join(process.cmdline())[:200] for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        assert not [folder for folder in self.folders if folder.exists()]
        assert {ip for _, ip in self.listening} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, self.listening


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    started: list[Program] = []

    def begin(*arguments: str) -> Program:
        started.append(Program(tmp_path / "log", *arguments))
        return started[-1]

    yield begin
    for program in started:  # a failed test leaves nothing behind either
        program.look()
        for process in [program.process, *program.family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).status_code == 200
    return False


def test_a_demo_ends_by_itself_with_a_scoreboard(start: Any, tmp_path: Path) -> None:
    board = tmp_path / "board.json"
    demo = start("demo", "--hours", "0.25", "--speed", "300", "--hosts", "2", "--vms", "3", "--json", str(board))
    assert demo.end(150) == 0, demo.log.read_text()
    demo.leaves_nothing()
    document = json.loads(board.read_text())
    assert (document["hosts"], document["vms_per_host"], document["speed"], document["demand"]) == (2, 3, 300, "generated")
    assert document["hours"] >= 0.25
    for mode in ("reactive", "predictive"):
        row = document["modes"][mode]
        assert row["hosts"] == 1 and row["vm_hours"] > 0
        assert row["violation_minutes"] >= 0 and row["allocation_over_use"] >= 1
        assert row["steps"] >= 0 and row["refusals"] >= 0
        assert row["forecast_pinball_vs_naive"] > 0
    assert sum(row["steps"] for row in document["modes"].values()) > 0
    names = {name for name, _ in demo.listening}
    assert any("raylet" in name for name in names), names


def test_ctrl_c_stops_a_demo_and_leaves_nothing(start: Any) -> None:
    port = free_port()
    demo = start("demo", "--hours", "1", "--speed", "60", "--hosts", "2", "--vms", "2", "--port", str(port))
    demo.until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), "the status page", 90)
    demo.until(lambda: any("agent.cli" in " ".join(_command(process)) for process in demo.family), "the agents", 30)
    demo.process.send_signal(signal.SIGINT)
    assert demo.end(60) == 130, demo.log.read_text()
    demo.leaves_nothing()
    assert "Traceback" not in demo.log.read_text()


def test_sigterm_ends_a_coordinator_cleanly_and_ray_with_it(start: Any, tmp_path: Path) -> None:
    state = tmp_path / "a-state-folder-whose-name-is-too-long-for-the-sockets-that-ray-makes-in-it"
    pki = tmp_path / "pki"
    create_ca(pki)
    port = free_port()
    config = tmp_path / "coordinator.toml"
    config.write_text(toml(coordinator_settings(state, issue_coordinator(pki, ["localhost"], ["127.0.0.1"]), 0, port)))
    coordinator = start("run", "--config", str(config))
    coordinator.until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), "ready", 90)
    link = state / "coordinator" / "ray"
    sessions = {folder for folder in coordinator.folders if folder.is_relative_to(link.resolve())}
    assert link.is_symlink() and sessions
    coordinator.process.send_signal(signal.SIGTERM)
    assert coordinator.end(60) == 0, coordinator.log.read_text()
    coordinator.leaves_nothing()
    assert not link.is_symlink()


def test_a_libvirt_demo_says_at_once_that_there_is_no_libvirt(program: Any, tmp_path: Path) -> None:
    done = program("coordinator", "demo", "--libvirt", env={"TIDEGATE_AGENT_LIBVIRT_URI": f"qemu+unix:///system?socket={tmp_path}/none"})
    assert done.returncode in (69, 78), done.stdout + done.stderr
    assert "demo failed" in done.stdout and "libvirt" in done.stdout and "Traceback" not in done.stdout + done.stderr


def _command(process: psutil.Process) -> list[str]:
    try:
        words: list[str] = process.cmdline()
    except psutil.NoSuchProcess:
        return []
    return words
