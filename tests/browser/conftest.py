"""The HTTP service over the in-memory fleet under a real uvicorn in a thread, and Debian's chromium driven by Playwright."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from fleet_double import FleetDouble
from playwright.sync_api import Browser, sync_playwright

from coordinator.service.app import HttpService
from coordinator.service.auth import TokenVerifier, new_token

FLAGS = [
    "--no-sandbox",  # the tests run as root in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def new_fleet(hosts: int = 4) -> Any:
    """A FleetDouble."""
    return FleetDouble(hosts=hosts)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield browser
        browser.close()


class Served:
    """A running service: its fleet, its address, its token, and a way to end it."""

    def __init__(self, fleet: Any, host: str = "127.0.0.1") -> None:
        self.fleet = fleet
        self.host = host
        self.token, self._hash = new_token()
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="http")
        self._started: Future[str] = Future()
        self._thread.start()
        self.url = self._started.result(timeout=30)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=30)
            assert not self._thread.is_alive()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        service = HttpService(self.fleet, TokenVerifier({self._hash: "test"}), host=self.host, port=0)
        await service.start()
        self._started.set_result(f"http://127.0.0.1:{service.port}/")
        await self._stop.wait()
        await service.stop()


@pytest.fixture
def served() -> Iterator[Served]:
    running = Served(new_fleet())
    yield running
    running.stop()


@pytest.fixture
def served_empty() -> Iterator[Served]:
    running = Served(new_fleet(hosts=0))
    yield running
    running.stop()


@pytest.fixture
def served_widely() -> Iterator[Served]:
    running = Served(new_fleet(), host="0.0.0.0")
    yield running
    running.stop()
