"""The HTTP service over the in-memory fleet under a real uvicorn in a thread, and Debian's chromium driven by Playwright."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from fleet_double import FleetDouble
from playwright.sync_api import Browser, Page, sync_playwright

from coordinator.service.app import HttpService
from coordinator.service.auth import TokenVerifier, new_token
from coordinator.service.safeguards import in_memory
from coordinator.service.streaming import Topic
from coordinator.store.tokens import Grant, id_of
from shared.roles import Role

FLAGS = [
    "--no-sandbox",  # the tests run as root in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


WIDE = {"width": 1500, "height": 1150}


def new_fleet(hosts: int = 4) -> Any:
    """A FleetDouble."""
    return FleetDouble(hosts=hosts)


class Watched:
    """A page and what it complained about, requests to anywhere else included."""

    def __init__(self, browser: Browser, home: str, **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": WIDE, **context})
        self.page: Page = self.context.new_page()
        self.home = home
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        self.page.on(
            "request", lambda request: request.url.startswith((home, "data:")) or self.complaints.append(f"foreign: {request.url}")
        )

    def see(self, view: str) -> Page:
        """Go to a view and wait until it has had a turn."""
        self.page.goto(f"{self.home}#/{view}")
        self.page.wait_for_function("() => document.querySelector('#link.live') && document.body.dataset.turned")
        return self.page

    def log_in(self, token: str) -> None:
        """By the form in the page."""
        self.page.locator("#login").click()
        self.page.get_by_label("A token, kept in this tab alone").fill(token)
        self.page.locator("#token-form button").click()

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(f"{kind}: {text}")


@pytest.fixture
def watch(browser: Browser) -> Iterator[Any]:
    """Opens pages: `watch(url)` at the fleet; `.see("vm/ID")` goes on."""
    opened: list[Watched] = []

    def open_page(url: str, **context: Any) -> Watched:
        opened.append(Watched(browser, url, **context))
        opened[-1].page.goto(url)
        return opened[-1]

    yield open_page
    for watched in opened:
        watched.context.close()


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
    """A running service: its fleet, its address, a token of each role (`token`: an operator's), and a way to end it."""

    def __init__(self, fleet: Any, host: str = "127.0.0.1") -> None:
        self.fleet = fleet
        self.host = host
        made = {role: new_token() for role in Role}
        self.tokens = {role: plain for role, (plain, _) in made.items()}
        self.token = self.tokens[Role.OPERATOR]
        self._verifier = TokenVerifier(
            {
                hashed: Grant(id=id_of(hashed), name=f"a-{role}", role=role, client="aurora" if role is Role.CLIENT else None)
                for role, (_, hashed) in made.items()
            }
        )
        self.guards = in_memory(self._verifier)
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="http")
        self._started: Future[str] = Future()
        self._thread.start()
        self.url = self._started.result(timeout=30)

    def tell(self, topic: Topic, what: dict[str, Any]) -> None:
        """To everyone who reads the stream."""
        self._loop.call_soon_threadsafe(lambda: self.guards.hub.publish(topic, what))

    def end_streams(self) -> None:
        """As when the coordinator stops."""
        self._loop.call_soon_threadsafe(self.guards.hub.end)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=30)
            assert not self._thread.is_alive()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        service = HttpService(self.fleet, self._verifier, host=self.host, port=0, safeguards=self.guards)
        await service.start()
        self._started.set_result(f"http://127.0.0.1:{service.port}/")
        await self._stop.wait()
        await service.stop()


@pytest.fixture(scope="session")
def serve() -> Callable[[Any], Served]:
    """Serves a fleet of the caller's, who stops it."""
    return Served


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
