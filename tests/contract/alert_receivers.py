"""Real receivers of alerts for tests: Debian's alertmanager as a process, and a webhook's HTTP server that can be told to refuse."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from waiting import until

CONFIG = """
route: {receiver: hook, group_by: [alertname], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}
receivers: [{name: hook, webhook_configs: [{url: "%s", send_resolved: true}]}]
"""


def alertmanager_program() -> str:
    """Its path. Skips the test where it is lacking; in CI that is a failure."""
    found = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if found is None:
        reason = "alertmanager is not installed (Debian: prometheus-alertmanager)"
        if os.environ.get("CI"):
            pytest.fail(f"not allowed in CI: {reason}")
        pytest.skip(reason)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Alertmanager:
    """One alertmanager without a cluster, which tells `hook_url` of what it decides. It may be stopped and started again."""

    folder: Path
    hook_url: str = "http://127.0.0.1:9/"
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "alertmanager.yml"
        config.write_text(CONFIG % self.hook_url)
        arguments = [
            alertmanager_program(),
            f"--config.file={config}",
            f"--storage.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--cluster.listen-address=",
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log)
        until(self._ready, "alertmanager answers", 30)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=30)
            self.process = None

    def alerts(self) -> list[dict[str, Any]]:
        """What it holds to be firing now."""
        found: list[dict[str, Any]] = httpx.get(f"{self.url}/api/v2/alerts", timeout=10).json()
        return found

    def names(self) -> list[str]:
        return sorted(each["labels"]["alertname"] for each in self.alerts())

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False


class Hook:
    """A webhook's server. `status` is what it answers; `got` collects (headers, body) of what it took, `tries` counts all."""

    def __init__(self, secret: bytes = b"", tls: ssl.SSLContext | None = None) -> None:
        self.status, self.secret = 200, secret
        self.scheme = "http" if tls is None else "https"
        self.got: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.tries: list[bytes] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.tries.append(body)
                if hook.status == 200:
                    hook.got.append((dict(self.headers), json.loads(body)))
                self.send_response(hook.status)
                self.end_headers()
                self.wfile.write(b"no" if hook.status != 200 else b"")

            def log_message(self, *_arguments: object) -> None:
                """Not into the tests' output."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port: int = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/hook?token=secret"

    def notes(self) -> list[dict[str, Any]]:
        return [body for _, body in self.got]

    def turns(self, rule: str) -> list[str]:
        return [alert["turn"] for note in self.notes() for alert in note["alerts"] if note["rule"] == rule]

    def signed(self, at: int = -1) -> bool:
        """Whether a taken message's signature is right."""
        headers, _ = self.got[at]
        body = self.tries[at]
        wanted = hmac.new(self.secret, headers["Tidegate-Timestamp"].encode() + b"." + body, hashlib.sha256).hexdigest()
        return headers["Tidegate-Signature"] == f"sha256={wanted}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
