"""A real PostgreSQL of the tests' own: a cluster in a temporary folder, on a free loopback port, with a password, gone with the session."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import psycopg
import pytest

USER = "tidegate"
START_S = 60.0


def binaries() -> Path | None:
    """Debian keeps initdb and postgres out of the way; newest version first."""
    on_path = shutil.which("postgres")
    found = [path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True)]
    return found[0] if found else Path(on_path).parent if on_path else None


class Postgres:
    """One server. `stop` and `start` are an outage; the data stays."""

    def __init__(self) -> None:
        folder = binaries()
        if folder is None:
            pytest.skip("no PostgreSQL server: apt-get install postgresql")
        self._bin = folder
        self._folder = Path(tempfile.mkdtemp(prefix="tidegate-pg-", dir="/tmp"))
        self._user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
        if self._user is not None:
            os.chown(self._folder, pwd.getpwnam(self._user).pw_uid, -1)
        self.password = secrets.token_urlsafe(12)
        secret = self._folder / "secret"
        secret.write_text(self.password)
        secret.chmod(0o644)
        self._process: subprocess.Popen[bytes] | None = None
        data = self._folder / "data"
        self._run("initdb", "-D", str(data), "-U", USER, "-A", "scram-sha-256", "--pwfile", str(secret), "-E", "UTF8", "--no-sync")
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        self._databases = 0

    def url(self, database: str, *, password: bool = True) -> str:
        secret = f":{self.password}" if password else ""
        return f"postgresql://{USER}{secret}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """URL of an empty database."""
        self._databases += 1
        name = f"test_{self._databases}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Returns once it answers."""
        command = ["-D", str(self._folder / "data"), "-p", str(self.port), "-k", str(self._folder), "-h", "127.0.0.1", "-F"]
        log = (self._folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen([str(self._bin / "postgres"), *command], stdout=log, stderr=log, user=self._user, cwd="/")
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
            with contextlib.suppress(psycopg.OperationalError):
                self.execute("SELECT 1")
                return
            time.sleep(0.05)
        raise AssertionError(f"PostgreSQL did not answer within {START_S:g} s")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: connections are cut, what was committed is there; SIGQUIT: as if it had crashed."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def freeze(self) -> None:
        """Neither takes nor refuses anything from now on, as a server whose disk hangs."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run([str(self._bin / program), *arguments], capture_output=True, text=True, check=False, user=self._user, cwd="/")
        assert done.returncode == 0, done.stderr

    def _signal_all(self, how: signal.Signals) -> None:
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        for process in [server, *server.children(recursive=True)]:
            process.send_signal(how)
