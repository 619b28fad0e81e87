"""A real coordinator, a real alertmanager and a webhook, each killed in between: every turn of an alert arrives, once, and in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from alert_receivers import Alertmanager, Hook, free_port
from waiting import until

from coordinator.demo import toml
from coordinator.pki import create_ca, issue_coordinator
from coordinator.service.auth import new_token
from coordinator.store.registry import SqlRegistry

RULE = "CertificateExpiring"


class Coordinator:
    """One coordinator of its own, without agents, whose certificate lasts as many days as it is told."""

    def __init__(self, folder: Path, alerts: dict[str, Any]) -> None:
        self.folder, self.port = folder, free_port()
        (folder / "pki").mkdir(parents=True)
        create_ca(folder / "pki")
        self.settings = {
            "state_dir": str(folder / "state"),
            "ray": False,
            "listen_agents": {"port": free_port()},
            "listen_http": {"port": self.port},
            "alerts": {"evaluate_s": 5, "keep_s": 0, "disabled": ["DiskFilling"], **alerts},
        }
        (folder / "state").mkdir()
        registry = SqlRegistry(f"sqlite:///{folder / 'state' / 'registry.sqlite'}")
        token, hashed = new_token()
        registry.save_token(hashed, "ops", 0)
        registry.close()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=10, headers={"Authorization": f"Bearer {token}"})
        self.process: subprocess.Popen[bytes] | None = None

    def certify(self, days: int) -> None:
        for path in (self.folder / "pki").glob("coordinator*"):
            path.unlink()
        files = issue_coordinator(self.folder / "pki", ["localhost"], ["127.0.0.1"], valid_days=days)
        tls = {"ca": str(files.ca), "certificate": str(files.certificate), "key": str(files.key)}
        (self.folder / "coordinator.toml").write_text(toml({**self.settings, "tls": tls}))

    @contextmanager
    def running(self) -> Iterator[None]:
        command = [
            sys.executable,
            "-c",
            "from coordinator.cli import main; main()",
            "run",
            "--config",
            str(self.folder / "coordinator.toml"),
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            until(self._answers, "the coordinator answers", 60)
            yield
        finally:
            self.kill()

    def kill(self) -> None:
        """As a crash does: nothing is written or told any more."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=30)

    def tool(self, *arguments: str) -> str:
        """`tidegate alert` against it; what it printed."""
        command = [sys.executable, "-c", "from coordinator.cli import main; main()", "alert", *arguments]
        env = {**os.environ, "TIDEGATE_URL": str(self.http.base_url), "TIDEGATE_TOKEN": self.http.headers["authorization"].split()[1]}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def states(self) -> list[str]:
        page = self.http.get("/api/v1/alerts", params={"rule": RULE}).json()
        return [alert["state"] for alert in page["items"]]

    def _answers(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook()
    yield server
    server.close()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Coordinator]]:
    """Makes the test's coordinator."""
    coordinators: list[Coordinator] = []

    def make(alerts: dict[str, Any]) -> Coordinator:
        coordinators.append(Coordinator(tmp_path / "tidegate", alerts))
        return coordinators[-1]

    yield make
    for each in coordinators:
        each.http.close()


def test_nothing_is_lost_while_anybody_is_away(tmp_path: Path, hook: Hook, made: Callable[[dict[str, Any]], Coordinator]) -> None:
    manager = Alertmanager(tmp_path / "am", hook_url="http://127.0.0.1:9/")
    coordinator = made({"alertmanagers": [manager.url], "webhooks": [hook.url], "resend_s": 5})
    hook.status = 503
    coordinator.certify(10)
    with coordinator.running():  # fires while nobody can be told, and is killed
        until(lambda: coordinator.states() == ["firing"], "the alert fires", 30)
        until(lambda: hook.tries, "the webhook is asked", 30)
        told = coordinator.http.get("/api/v1/alerts/rules").json()["receivers"]
        assert [each["name"].split(":")[0] for each in told] == ["alertmanager", "webhook"]
    assert hook.got == []
    manager.start()
    try:
        hook.status = 200
        with coordinator.running():  # a new process tells what the old one could not
            until(lambda: hook.turns(RULE) == ["fired"], "the webhook is told", 60)
            until(lambda: manager.names() == [RULE], "the alertmanager is told", 60)
            assert coordinator.states() == ["firing"]  # the same alert, no new one
            (alert,) = coordinator.http.get("/api/v1/alerts", params={"rule": RULE}).json()["items"]
            answer = coordinator.http.post(f"/api/v1/alerts/{alert['id']}/acknowledgement", json={"comment": "renewing"})
            assert answer.json()["acknowledged_by"] == "ops"
            until(lambda: hook.turns(RULE) == ["fired", "acknowledged"], "the webhook is told who looks after it", 30)
        manager.stop()
        hook.status = 503
        coordinator.certify(300)
        with coordinator.running():  # resolved while nobody can be told, and is killed
            until(lambda: coordinator.states() == ["resolved"], "the alert is resolved", 30)
            until(lambda: len(hook.tries) > 3, "the webhook is asked again", 30)
        manager.start()
        hook.status = 200
        with coordinator.running():
            until(lambda: hook.turns(RULE) == ["fired", "acknowledged", "resolved"], "the webhook is told of the end", 60)
            waiting = lambda: sum(each["waiting"] for each in coordinator.http.get("/api/v1/alerts/rules").json()["receivers"])  # noqa: E731
            until(lambda: waiting() == 0, "nothing waits any more", 60)
            assert manager.names() == []
            metrics = coordinator.http.get("/metrics").text
            assert 'tidegate_alerts{severity="warning",state="firing"} 0.0' in metrics
    finally:
        manager.stop()
    ids = [note["id"] for note in hook.notes()]
    assert len(ids) == len(set(ids)) == 3


def test_a_silence_outlives_the_process_and_its_end_is_heard(hook: Hook, made: Callable[[dict[str, Any]], Coordinator]) -> None:
    coordinator = made({"webhooks": [hook.url]})
    coordinator.certify(200)
    with coordinator.running():
        made_known = coordinator.tool(
            "silence", f"alertname={RULE}", "severity!=critical", "--for", "1h", "--comment", "renewal is planned"
        )
        silence_id = made_known.split()[0]
        assert "renewal is planned" in coordinator.tool("silences")
    coordinator.certify(10)
    with coordinator.running():
        until(lambda: coordinator.states() == ["firing"], "the alert fires", 30)
        (alert,) = coordinator.http.get("/api/v1/alerts", params={"rule": RULE}).json()["items"]
        assert alert["silenced_by"] == [silence_id]
        assert "(silenced)" in coordinator.tool("list", "--state", "firing")
        assert hook.tries == []
        coordinator.tool("unsilence", silence_id)
        until(lambda: hook.turns(RULE), "the webhook is told after all", 30)
        assert "acknowledged by ops" in coordinator.tool("ack", alert["id"], "--comment", "on it")
        assert '"comment": "on it"' in coordinator.tool("show", alert["id"])
        assert f"{RULE} " in coordinator.tool("rules") and "0 waiting" in coordinator.tool("rules")
