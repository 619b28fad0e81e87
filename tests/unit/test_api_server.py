"""The server under the HTTP API: starts, answers, stops, gives slow and silent callers up, and knows loopback."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fleet_double import FleetDouble
from litestar import Litestar

from coordinator.service import app, edge, problems
from coordinator.service.api import create_app
from coordinator.service.app import HttpService, is_loopback
from coordinator.service.auth import TokenVerifier, new_token
from shared.errors import ConfigError
from shared.refusal import RefusalCode

TOKEN, HASH = new_token()
VM = "/api/v1/vms/vm-01-00"
LOOPBACK, REACHABLE = ("127.0.0.1", "127.9.9.9", "::1", "localhost"), ("0.0.0.0", "10.0.0.1", "kvm.example")


@pytest.fixture
def fleet() -> Any:
    return FleetDouble()


async def dribble(application: Litestar) -> list[Any]:
    """Send half a body and then nothing more."""
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": b'{"vcp', "more_body": True}]

    async def receive() -> Any:
        if parts:
            return parts.pop()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": f"{VM}/resources",
        "raw_path": f"{VM}/resources".encode(),
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {TOKEN}".encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "root_path": "",
    }
    await application(scope, receive, send)  # type: ignore[arg-type]  # a scope by hand
    return sent


def test_a_dribbled_body_is_cut_off(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "BODY_DEADLINE_S", 0.05)
    sent = asyncio.run(dribble(create_app(fleet, TokenVerifier({HASH: "ops"}))))
    assert sent[0]["status"] == 408
    assert fleet.sent == []


def test_the_service_starts_answers_and_stops(fleet: Any) -> None:
    async def run() -> None:
        service = HttpService(fleet, TokenVerifier({}), port=0)
        await service.start()
        assert service.url == f"http://127.0.0.1:{service.port}/"
        async with httpx.AsyncClient(base_url=service.url) as client:
            assert (await client.get("/livez")).status_code == 200
            taken = HttpService(fleet, TokenVerifier({}), port=service.port)
            with pytest.raises(ConfigError, match=rf"127\.0\.0\.1 port {service.port}"):
                await taken.start()
        await service.stop()
        await service.stop()
        async with httpx.AsyncClient(base_url=service.url) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get("/livez")

    asyncio.run(run())


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nHost: loc"])
def test_a_connection_without_a_request_is_closed(fleet: Any, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(app, "HEAD_DEADLINE_S", 0.05)

    async def run() -> bytes:
        service = HttpService(fleet, TokenVerifier({}), port=0)
        await service.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(sent)
        async with asyncio.timeout(5):  # uvicorn alone would wait for ever
            answer = await reader.read()
        writer.close()
        await service.stop()
        return answer

    assert asyncio.run(run()) == b""


@pytest.mark.parametrize(("host", "loopback"), [*((host, True) for host in LOOPBACK), *((host, False) for host in REACHABLE)])
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_every_status_of_a_refusal_is_an_error() -> None:
    codes = set(RefusalCode)
    assert problems.STATUS.keys() <= codes
    ours = {code for code, status in problems.STATUS.items() if status >= 500}
    assert ours == {RefusalCode.STORE_UNAVAILABLE}, "everything else is the caller's to change"
    assert all(status >= 400 for status in problems.STATUS.values())
