"""Live updates: in order, resumed where they broke off, never another client's; no reader holds anything up. Over real sockets too."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from api_client import BEARER, HASH
from fleet_double import FleetDouble

from coordinator.service import streaming
from coordinator.service.app import STOP_S, HttpService
from coordinator.service.auth import TokenVerifier, new_token
from coordinator.service.safeguards import in_memory
from coordinator.service.streaming import QUEUE, RESET, RING, TOPICS, Hub, Reader, Told
from coordinator.store.tokens import Grant
from shared.config_access import AccessConfig
from shared.errors import Refusal
from shared.refusal import RefusalCode
from shared.roles import Role


def taken(reader: Reader, count: int) -> list[Told]:
    async def run() -> list[Told]:
        found: list[Told] = []
        async with asyncio.timeout(5):
            async for told in reader.told(0.01):
                found.append(told)
                if len(found) == count:
                    break
        return found

    return asyncio.run(run())


def test_events_of_the_topics_asked_for_in_order() -> None:
    hub = Hub(7)
    reader = hub.open("me", {"plan", "host"})
    for n in range(6):
        hub.publish(TOPICS[n % len(TOPICS)], {"n": n})  # type: ignore[arg-type]
    told = taken(reader, 3)
    assert [(each.id, each.topic, json.loads(each.data)) for each in told[:2]] == [("7-2", "host", {"n": 1}), ("7-4", "plan", {"n": 3})]
    assert told[2] == Told(id=None, topic=None, data="")  # a heartbeat: nothing more happened


def test_a_client_gets_its_own_alone() -> None:
    hub = Hub(1)
    for client in ("aurora", "borealis", None, "aurora"):
        hub.publish("outcome", {"of": client}, client=client)
    live = hub.open("me", TOPICS, "aurora", "1-0")
    hub.publish("vm", {"of": "borealis"}, client="borealis")
    hub.publish("fleet", {"of": None})
    hub.publish("vm", {"of": "aurora"}, client="aurora")
    assert [each.id for each in taken(live, 3)] == ["1-1", "1-4", "1-7"]
    assert [each.topic for each in taken(hub.open("nobody", TOPICS, "", "1-0"), 1)] == [None]  # a client without a name sees nothing


@pytest.mark.parametrize(("last_id", "ids"), [("3-2", ["3-3", "3-4"]), ("3-4", [None]), (None, [None])])
def test_a_reader_goes_on_where_it_was(last_id: str | None, ids: list[str | None]) -> None:
    hub = Hub(3)
    for n in range(4):
        hub.publish("plan", {"n": n})
    assert [each.id for each in taken(hub.open("me", {"plan"}, last_id=last_id), len(ids))] == ids


@pytest.mark.parametrize("last_id", ["2-4", "3-9", "3-x", "", "3-" + "9" * 60, "3--1"])
def test_an_id_of_another_start_or_none_at_all_resets(last_id: str) -> None:
    hub = Hub(3)
    hub.publish("plan", {})
    told = taken(hub.open("me", {"plan"}, last_id=last_id), 2)
    assert (told[0].topic, told[1].id) == (RESET, "3-1")


def test_what_the_ring_has_lost_resets() -> None:
    hub = Hub(1)
    for n in range(RING + 10):
        hub.publish("plan", {"n": n})
    told = taken(hub.open("me", {"plan"}, last_id="1-5"), QUEUE + 1)
    assert told[0].topic == RESET
    assert told[-1].id == f"1-{RING + 10}"


def test_a_slow_reader_is_cut_off_and_harms_nobody() -> None:
    hub = Hub(1)
    slow = hub.open("slow", {"plan"})
    for n in range(QUEUE + 5):
        hub.publish("plan", {"n": n})
    assert (hub.readers, hub.dropped) == (0, 1)
    quick = hub.open("quick", {"plan"})
    hub.publish("plan", {"n": "new"})
    assert json.loads(taken(quick, 1)[0].data) == {"n": "new"}

    async def rest() -> int:
        return len([told async for told in slow.told()])

    assert asyncio.run(rest()) == QUEUE  # what it had, and then the end


def test_streams_are_bounded_in_all_and_for_each_caller() -> None:
    hub = Hub(1, streams=3, per_caller=2)
    readers = [hub.open("me", TOPICS) for _ in range(2)]
    with pytest.raises(Refusal) as refused:
        hub.open("me", TOPICS)
    assert refused.value.code == RefusalCode.RATE_LIMITED
    hub.open("you", TOPICS)
    with pytest.raises(Refusal):
        hub.open("third", TOPICS)
    for _ in range(2):
        hub.close(readers[0])
    hub.close_unbegun(readers[1])
    assert hub.readers == 1
    hub.open("me", TOPICS)


# -- over real sockets


class Served:
    """The service with a hub, and readers of its stream."""

    def __init__(self) -> None:
        self.fleet = FleetDouble()
        self.client_token, hashed = new_token()
        grant = Grant(id="c1", name="portal", role=Role.CLIENT, client="aurora")
        verifier = TokenVerifier({HASH: Grant(id="o1", name="ops"), hashed: grant})
        self.guards = in_memory(verifier, AccessConfig(streams_per_caller=2))
        self.service = HttpService(self.fleet, verifier, port=0, safeguards=self.guards)

    async def __aenter__(self) -> Served:
        await self.service.start()
        self.http = httpx.AsyncClient(base_url=self.service.url, timeout=5)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()
        await self.service.stop()

    async def lines(self, answer: httpx.Response) -> AsyncIterator[str]:
        async for line in answer.aiter_lines():
            yield line

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110  # what it waits for has no event
                await asyncio.sleep(0.01)


async def first_event(lines: AsyncIterator[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    async for line in lines:
        name, _, value = line.partition(": ")
        if name in ("id", "event", "data"):
            found[name] = value
        if not line and "data" in found:
            return found
    raise AssertionError("the stream ended")


def test_a_stream_over_a_socket_and_its_end() -> None:
    async def run() -> None:
        async with Served() as served:
            hub = served.guards.hub
            async with served.http.stream("GET", "/api/v1/stream?topics=outcome", headers=BEARER) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                await served.until(lambda: hub.readers == 1)
                hub.publish("outcome", {"text": "line\nbreak"}, client="borealis")
                event = await first_event(served.lines(answer))
                assert event == {"id": "1-1", "event": "outcome", "data": '{"text":"line\\nbreak"}'}
            await served.until(lambda: hub.readers == 0)  # who has gone is forgotten
            headers = {**BEARER, "Last-Event-ID": "1-0"}
            async with served.http.stream("GET", "/api/v1/stream", headers=headers) as answer:
                assert (await first_event(served.lines(answer)))["id"] == "1-1"

    asyncio.run(run())


def test_a_stop_ends_streams_at_once_and_in_order() -> None:
    async def run() -> None:
        async with Served() as served, served.http.stream("GET", "/api/v1/stream", headers=BEARER) as answer:
            await served.until(lambda: served.guards.hub.readers == 1)
            served.guards.hub.publish("outcome", {"text": "last"})
            started = time.monotonic()
            await served.service.stop()
            assert time.monotonic() - started < STOP_S / 2
            told = [line async for line in answer.aiter_lines() if line.startswith("data")]  # to its end, without an error
            assert told == ['data: {"text":"last"}']

    asyncio.run(run())


def test_a_clients_stream_over_a_socket() -> None:
    async def run() -> None:
        async with Served() as served:
            hub, headers = served.guards.hub, {"Authorization": f"Bearer {served.client_token}", "Last-Event-ID": "1-0"}
            for client in ("borealis", None, "aurora"):
                hub.publish("outcome", {"vm_id": str(client)}, client=client)
            async with served.http.stream("GET", "/api/v1/stream", headers=headers) as answer:
                assert (await first_event(served.lines(answer)))["id"] == "1-3"

    asyncio.run(run())


def test_too_many_streams_are_refused() -> None:
    async def run() -> None:
        async with Served() as served:
            url = "/api/v1/stream"
            async with served.http.stream("GET", url, headers=BEARER), served.http.stream("GET", url, headers=BEARER):
                await served.until(lambda: served.guards.hub.readers == 2)
                third = await served.http.get(url, headers=BEARER)
                assert (third.status_code, third.json()["code"]) == (429, "rate_limited")
            bad = await served.http.get(f"{url}?topics=fleet,weather")
            assert (bad.status_code, bad.json()["value"]) == (400, "weather")

    asyncio.run(run())


def test_a_reader_that_takes_nothing_loses_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "CUT_S", 0.05)

    async def run() -> None:
        async with Served() as served:
            hub = served.guards.hub
            _, writer = await asyncio.open_connection("127.0.0.1", served.service.port, limit=1024)
            writer.write(f"GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: {BEARER['Authorization']}\r\n\r\n".encode())
            await served.until(lambda: hub.readers == 1)
            while hub.readers:
                hub.publish("plan", {"much": "x" * 20_000})
                await asyncio.sleep(0)
            await served.until(lambda: not hub._callers)
            assert hub.dropped == 1
            writer.close()

    asyncio.run(run())
