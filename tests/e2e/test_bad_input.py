"""Bad configuration, foreign certificates and garbage on the wire: each is refused by name, and nobody else is harmed."""

from __future__ import annotations

import asyncio
import ssl
import tomllib
from pathlib import Path
from typing import Any

import pytest
from plain_host import plain_capacity
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from coordinator.demo import toml
from coordinator.pki import create_ca, issue_coordinator, issue_host
from shared.frame import decode_coordinator, encode
from shared.messages import Goodbye, Hello
from shared.model import Mode
from shared.tls import client_context

pytestmark = pytest.mark.slow

CAPACITY = plain_capacity(cpu_millicores=1000, memory_bytes=2**30, net_bits_per_s=10**9)


@pytest.mark.parametrize(
    ("program_name", "settings", "named"),
    [
        ("agent", 'host_id = "h1"\ncoordinator_url = ["wss://127.0.0.1:1"]', ("coordinator_url", "coordinator_urls")),
        ("agent", 'host_id = "h1"\n[guard]\nmemory_flor_bytes = 1', ("guard.memory_flor_bytes", "memory_floor_bytes")),
        ("agent", 'host_id = "h1"\nsample_period_s = 0', ("sample_period_s", "1")),
        ("agent", 'host_id = "h1"\ncpu_commit_ratio = nan', ("cpu_commit_ratio", "nan")),
        ("agent", 'host_id = "h1"\nhypervisor = "simulated"', ("workload",)),
        ("agent", 'host_id = "h1"\nhypervisor = "simulated"\nworkload = "/nonexistent"', ("/nonexistent",)),
        ("coordinator", "ray_worker = 2", ("ray_worker", "ray_workers")),
        ("coordinator", "[cycle]\nstale_host_s = 5", ("cycle.stale_host_s", "10")),
        ("coordinator", "", ("tls", "tidegate pki")),
        ("coordinator", "not toml", ("bad.toml",)),
    ],
)
def test_a_wrong_setting_is_named_and_the_process_ends_with_78(
    tmp_path: Path, program: Any, program_name: str, settings: str, named: tuple[str, ...]
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(f'state_dir = "{tmp_path / "state"}"\n{settings}\n')
    done = program(program_name, "run", "--config", str(path))
    assert done.returncode == 78, done.stderr
    assert all(name in done.stderr for name in named), done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 3


def test_a_door_that_is_taken_is_said_so(ring: Any, program: Any, tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    create_ca(pki)
    files = issue_coordinator(pki, ["localhost"])
    settings = {
        "state_dir": str(tmp_path / "state"),
        "listen_http": {"port": int(ring.fleet.url.rsplit(":", 1)[1].rstrip("/"))},
        "listen_agents": {"port": 0},
        "ray": False,
        "tls": {"ca": str(files.ca), "certificate": str(files.certificate), "key": str(files.key)},
    }
    path = tmp_path / "taken.toml"
    path.write_text(toml(settings))
    done = program("coordinator", "run", "--config", str(path))
    assert done.returncode == 78 and "in use" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_certificate_of_another_authority_does_not_get_in(ring: Any, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    create_ca(foreign)
    files = issue_host(foreign, "host-0")
    context = client_context(ring.fleet.folder / "pki" / "ca.pem", files.certificate, files.key)
    with _unharmed(ring), pytest.raises((OSError, WebSocketException)):
        asyncio.run(_talk(ring, context, _hello("host-0")))


def test_a_host_cannot_pose_as_another(ring: Any) -> None:
    with _unharmed(ring):
        goodbye = asyncio.run(_talk(ring, _own_context(ring, "stranger"), _hello("host-0")))
        assert "certificate is for host stranger" in goodbye.reason


@pytest.mark.parametrize("frame", [b"", b"garbage" * 100, b"TG\xff\xff", "text"], ids=["empty", "garbage", "version", "text"])
def test_garbage_ends_its_own_connection_only(ring: Any, frame: bytes | str) -> None:
    with _unharmed(ring):
        goodbye = asyncio.run(_talk(ring, _own_context(ring, "babbler"), frame))
        assert goodbye.reason and goodbye.retry_after_s > 0


def test_a_frame_that_is_too_large_ends_its_own_connection_only(ring: Any) -> None:
    with _unharmed(ring), pytest.raises(ConnectionClosed, match="1009"):
        asyncio.run(_talk(ring, _own_context(ring, "babbler"), b"x" * (8 << 20)))


class _unharmed:  # noqa: N801  # reads as a condition
    """The three agents stay connected, the same epoch serves them, and strangers are no hosts."""

    def __init__(self, ring: Any) -> None:
        self.ring = ring

    def __enter__(self) -> None:
        self.epoch = self.ring.get("fleet")["epoch"]
        self.rounds = self.ring.status("host-0")["sampling_rounds"]

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            return
        ring = self.ring
        assert all(ring.status(host_id)["link_up"] for host_id in ring.fleet.host_ids)
        assert ring.get("fleet")["epoch"] == self.epoch
        assert [host["id"] for host in ring.get("hosts")] == sorted(ring.fleet.host_ids)
        assert ring.status("host-0")["sampling_rounds"] >= self.rounds


async def _talk(ring: Any, context: ssl.SSLContext, message: Hello | bytes | str) -> Goodbye:
    """Say one thing; the Goodbye that comes back."""
    settings = tomllib.loads((ring.fleet.folder / "coordinator.toml").read_text())
    async with connect(
        f"wss://127.0.0.1:{settings['listen_agents']['port']}", ssl=context, proxy=None, max_size=None, open_timeout=10
    ) as socket:
        await socket.send(encode(message) if isinstance(message, Hello) else message)
        async with asyncio.timeout(10):
            answer = decode_coordinator(await socket.recv())  # type: ignore[arg-type]
            assert isinstance(answer, Goodbye), answer
            with pytest.raises(ConnectionClosed):
                await socket.recv()
    return answer


def _own_context(ring: Any, host_id: str) -> ssl.SSLContext:
    """A certificate that the fleet's authority made for `host_id`."""
    pki = ring.fleet.folder / "pki"
    for left in pki.rglob(f"*{host_id}*"):
        left.unlink()
    files = issue_host(pki, host_id)
    return client_context(files.ca, files.certificate, files.key)


def _hello(host_id: str) -> Hello:
    return Hello(
        host_id=host_id,
        boot_id="00000000-0000-4000-8000-000000000000",
        agent_version="0",
        wall_ns=0,
        capacity=CAPACITY,
        mode=Mode.OBSERVE,
        mode_pinned=False,
        hypervisor="simulated",
    )
