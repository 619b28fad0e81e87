"""The fleet's kill switch, from the API to the hosts: at once, through restarts of either side, and each holder lets go its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow

FLEET_S = 10.0  # the bar for the whole fleet


@pytest.fixture
def pause(ring: Any) -> Iterator[Callable[..., httpx.Response]]:
    """`pause(True)` the fleet, `pause(True, "host-0")` one host; all of it is let go at the end."""

    def order(paused: bool, host_id: str | None = None) -> httpx.Response:
        place = "fleet" if host_id is None else f"hosts/{host_id}"
        answer: httpx.Response = ring.http.put(
            f"/api/v1/{place}/pause", json={"paused": paused}, headers={"Authorization": f"Bearer {ring.token}"}
        )
        assert answer.status_code == 200, answer.text
        return answer

    yield order
    ring.until(lambda: order(False), "the coordinator takes the order")
    for host_id in ring.fleet.host_ids:
        ring.until(lambda host_id=host_id: ring.agent(host_id, "resume").returncode == 0, "the agent takes the order")
        order(False, host_id)
        ring.until(lambda host_id=host_id: ring.status(host_id)["paused_by"] == [], "nobody holds it")


def test_every_host_is_paused_and_stays_so_without_a_coordinator(ring: Any, pause: Callable[..., httpx.Response]) -> None:
    began = time.monotonic()
    pause(True)
    for host_id in ring.fleet.host_ids:
        ring.until(lambda host_id=host_id: ring.status(host_id)["paused_by"] == ["coordinator"], "paused")
    assert time.monotonic() - began < FLEET_S
    ring.until(lambda: ring.host("host-0")["paused_by"] == ["coordinator"], "the API shows it")
    ring.fleet.kill("coordinator")
    ring.fleet.kill("host-0")
    ring.fleet.start("host-0")
    status = ring.until(lambda: ring.status("host-0"), "the agent is back")
    assert (status["paused_by"], status["mode"]) == (["coordinator"], "off")
    ring.fleet.start("coordinator")
    ring.until(ring.settled, "the ring is whole")
    assert ring.status("host-0")["paused_by"] == ["coordinator"], "a coordinator that restarts has not forgotten"
    pause(False)
    ring.until(lambda: ring.status("host-0")["mode"] == "reactive", "let go")


def test_owner_and_coordinator_hold_their_own(ring: Any, pause: Callable[..., httpx.Response]) -> None:
    assert ring.agent("host-1", "pause").stdout == "paused by owner\n"
    pause(True, "host-1")
    ring.until(lambda: ring.status("host-1")["paused_by"] == ["coordinator", "owner"], "both hold it")
    assert ring.status("host-0")["paused_by"] == []
    assert ring.agent("host-1", "resume").stdout == "paused by coordinator\n"
    pause(False, "host-1")
    ring.until(lambda: ring.status("host-1")["mode"] == "reactive", "let go")
