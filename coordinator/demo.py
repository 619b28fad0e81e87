"""`tidegate demo`: a coordinator and agents as separate OS processes on simulated hosts, on one simulated clock.

Nothing here is special to the demo but the workloads and the clock: the processes are the product's own, with certificates, sockets,
disks and Ray. Everything lives in one temporary folder; stopping ends every process and removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from coordinator.pki import CertificateFiles, create_ca, issue_coordinator, issue_host
from coordinator.store.history import ParquetHistory
from coordinator.workloads import HostWorkload, joined_history, prepare, write
from shared.control import ask
from shared.errors import HostError
from shared.model import Mode
from shared.units import BUCKET_S, NS_PER_S

START_S: Final = 1_789_344_000 // 86_400 * 86_400 + 7 * 3600  # a Monday, 07:00 UTC: the office ramp lies ahead
HISTORY_HOURS: Final = 7 * 24
SPARE_HOURS: Final = 6  # workload beyond the scored hours, for start-up and a machine that lags
READY_S: Final = 20.0  # real seconds until the simulated clock starts; start-up takes about 15
START_TIMEOUT_S: Final = 180.0
STOP_TIMEOUT_S: Final = 15.0
OVERCOMMIT: Final = 1.1  # the sum of five-minute peaks passes the limit in some buckets: ramps contend, most can be served
MIN_SHM_BYTES: Final = 1 << 30
PATIENCE_S: Final = 5.0  # real seconds
GUARD: Final = {"step_timeout_s": 120, "reading_max_age_s": 120}  # the defaults of 30 s are a quarter of a real second at 120x


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """As on the command line; `data` None = look for traces, generate where there are none."""

    hours: float = 6.0
    speed: float = 120.0
    hosts: int = 6
    vms: int = 12
    seed: int = 1
    data: Path | None = None
    json_path: Path | None = None
    port: int = 0
    linger: bool = False


class ProcessEnded(HostError):
    """A process of the demo ended by itself, with `code`."""

    def __init__(self, name: str, code: int, tail: str) -> None:
        super().__init__(f"{name} ended with exit code {code}:\n{tail}")
        self.code = code


@dataclass
class Fleet:
    """The demo's processes and files. Use as `with Fleet(options) as fleet`; leaving it stops everything."""

    options: DemoOptions
    folder: Path = field(init=False)
    url: str = field(init=False)
    host_ids: list[str] = field(default_factory=list)
    processes: dict[str, psutil.Popen] = field(default_factory=dict)

    def __enter__(self) -> Fleet:
        # a short name: Ray's sockets lie five folders below, and a socket's path has at most 107 bytes
        self.folder = Path(tempfile.mkdtemp(prefix="tidegate-", dir=_scratch()))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree((self.folder / "coordinator" / "ray").resolve(), ignore_errors=True)  # elsewhere where the name is not short
        shutil.rmtree(self.folder, ignore_errors=True)

    def prepare(self) -> str:
        """Workloads, history, certificates and configuration files; says where the traces come from."""
        options = self.options
        data = options.data or trace_folder()
        hosts = prepare(
            data,
            hosts=options.hosts,
            vms_per_host=options.vms,
            start_s=START_S,
            hours_history=HISTORY_HOURS,
            hours_run=int(options.hours) + SPARE_HOURS,
            seed=options.seed,
            overcommit=OVERCOMMIT,
        )
        self.lay_out(hosts)
        return str(data) if data else "generated workloads (no traces found)"

    def lay_out(self, hosts: Sequence[HostWorkload]) -> None:
        """The rest of `prepare`, for these workloads: the first half of the hosts becomes reactive, the others predictive."""
        options = self.options
        ParquetHistory(self.folder / "coordinator" / "history").append_history(joined_history(hosts))
        pki = self.folder / "pki"
        create_ca(pki)
        ports = free_port(), options.port or free_port()
        self.url = f"http://127.0.0.1:{ports[1]}/"
        clock = {
            "simulated_start_ns": START_S * NS_PER_S,
            "real_start_ns": time.time_ns() + int(READY_S * NS_PER_S),
            "speed": options.speed,
        }
        files = issue_coordinator(pki, ["localhost"], ["127.0.0.1"])
        # whatever a pause of a busy machine is in simulated time, it is no reason to take a host for lost
        cycle = {"stale_host_s": min(3600, max(60, int(PATIENCE_S * options.speed)))}
        # a turn of the challengers takes real seconds: not more than one in a real minute
        forecast = {"challenge_every_s": min(17_100, max(1800, int(60 * options.speed) // BUCKET_S * BUCKET_S))}
        changed = {"clock": clock, "cycle": cycle, "forecast": forecast}
        self.configure("coordinator", coordinator_settings(self.folder, files, *ports) | changed)
        for i, host in enumerate(hosts):
            home = self.folder / host.host
            home.mkdir()
            write(home / "workload", host)
            mode = Mode.REACTIVE if i < (len(hosts) + 1) // 2 else Mode.PREDICTIVE
            settings = agent_settings(home, host.host, issue_host(pki, host.host), ports[0], mode)
            settings |= {"hypervisor": "simulated", "workload": str(home / "workload"), "clock": clock, "guard": GUARD}
            self.configure(host.host, settings)
            self.host_ids.append(host.host)

    def start(self, name: str) -> None:
        """Start the coordinator or one agent; its log goes to its folder."""
        program = "coordinator.cli" if name == "coordinator" else "agent.cli"
        command = [sys.executable, "-c", f"from {program} import main; main()", "run", "--config", str(self.folder / f"{name}.toml")]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = psutil.Popen(command, stdin=-3, stdout=log, stderr=log, start_new_session=True)

    def kill(self, name: str) -> None:
        """kill -9 of one process and all its children."""
        _end(_family(self.processes.pop(name)), 0.0)

    def stop(self) -> None:
        """End every process: agents first, politely, then whatever is left."""
        agents = [self.processes[name] for name in self.host_ids if name in self.processes]
        for process in agents:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _end(agents, STOP_TIMEOUT_S)
        if "coordinator" in self.processes:
            family = _family(self.processes["coordinator"])
            with contextlib.suppress(psutil.NoSuchProcess):
                self.processes["coordinator"].terminate()
            psutil.wait_procs(family[-1:], STOP_TIMEOUT_S)
            _end(family, 0.0)
        self.processes.clear()

    def check(self) -> None:
        """Raise ProcessEnded with the end of its log when a process has ended."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise ProcessEnded(name, process.returncode, (self.folder / f"{name}.log").read_text(errors="replace")[-2000:])

    async def until_ready(self) -> None:
        """Until the coordinator can decide. Raises HostError when it dies or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            self.check()
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self.get, "readyz")
                return
            await asyncio.sleep(0.2)
        raise HostError(f"the coordinator was not ready within {START_TIMEOUT_S:g} s")

    async def until_agent(self, host_id: str) -> None:
        """Until an agent has looked at its host once. Raises HostError when it dies or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            self.check()
            with contextlib.suppress(HostError):
                if (await asyncio.to_thread(self.ask, host_id, "status"))["sampling_rounds"]:
                    return
            await asyncio.sleep(0.1)
        raise HostError(f"the agent of {host_id} did not sample within {START_TIMEOUT_S:g} s")

    def get(self, path: str) -> Any:
        """JSON of one page; OSError when it does not answer or says no."""
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:  # our own loopback address
            body = answer.read()
        return msgspec.json.decode(body) if "json" in answer.headers.get("content-type", "") else body.decode()

    def ask(self, host_id: str, command: str, argument: str | None = None) -> Any:
        """One command to an agent's local socket. Raises HostError."""
        return ask(self.folder / host_id / "control.sock", command, argument)

    def configure(self, name: str, settings: Mapping[str, Any]) -> None:
        """Write the configuration file of one process."""
        (self.folder / f"{name}.toml").write_text(toml(settings))


def coordinator_settings(folder: Path, files: CertificateFiles, agents_port: int, http_port: int) -> dict[str, Any]:
    """Configuration of the demo's coordinator, as for `tidegate run`."""
    return {
        "state_dir": str(folder / "coordinator"),
        "log_level": "warning",
        "listen_agents": {"port": agents_port},
        "listen_http": {"port": http_port},
        "tls": _tls(files),
    }


def agent_settings(home: Path, host_id: str, files: CertificateFiles, agents_port: int, mode: Mode) -> dict[str, Any]:
    """Configuration of one of the demo's agents, as for `tidegate-agent run`."""
    return {
        "host_id": host_id,
        "state_dir": str(home),
        "socket_path": str(home / "control.sock"),
        "pause_file": str(home / "PAUSE"),  # the kill switch of this machine is not the one of a simulated fleet
        "log_level": "warning",
        "coordinator_urls": [f"wss://127.0.0.1:{agents_port}"],
        "tls": _tls(files),
        "default_mode": mode,
    }


def toml(settings: Mapping[str, Any]) -> str:
    """Settings (scalars, lists, one level of tables) as TOML; JSON's spelling of a scalar or list is TOML's too."""
    tables = {key: value for key, value in settings.items() if isinstance(value, dict)}
    lines = [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in settings.items() if key not in tables]
    for name, table in tables.items():
        lines += [f"[{name}]", toml(table)]
    return "\n".join(lines) + "\n"


def trace_folder() -> Path | None:
    """$TIDEGATE_DATA or ../shared/data, where it holds traces; else None."""
    named = os.environ.get("TIDEGATE_DATA")
    folder = Path(named) if named else Path("../shared/data")
    return folder.resolve() if (folder / "bitbrains_rnd").is_dir() or (folder / "azure2019_vms").is_dir() else None


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def host_name() -> str:
    """This machine's name as a host id."""
    return platform.node() or "localhost"


def _tls(files: CertificateFiles) -> dict[str, str]:
    return {"ca": str(files.ca), "certificate": str(files.certificate), "key": str(files.key)}


def _scratch() -> str | None:
    """Memory where there is some: six agents that fsync at 120 times real time would wear a disk for nothing."""
    shm = Path("/dev/shm")
    roomy = shm.is_dir() and os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > MIN_SHM_BYTES
    return str(shm) if roomy else None


def _family(process: psutil.Process) -> list[psutil.Process]:
    """Children first, the process itself last."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [*process.children(recursive=True), process]
    return [process]


def _end(processes: list[Any], patience_s: float) -> None:
    """Wait for them to end, then kill."""
    _, alive = psutil.wait_procs(processes, patience_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, STOP_TIMEOUT_S)


assert START_S % BUCKET_S == 0
