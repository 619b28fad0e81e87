"""Agent's link and coordinator's gateway over real sockets, certificates and an fsynced log: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import signal
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from plain_host import plain_capacity
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from agent.link.client import LinkClient, LinkDown, LinkEvent, LinkMessage, LinkUp
from coordinator.gateway.admission import Admission, AdmissionLimits
from coordinator.gateway.server import MAX_FRAME_BYTES, GatewayServer
from coordinator.gateway.sessions import GatewayCore, GatewaySettings
from coordinator.pki import create_ca, issue_coordinator, issue_host
from coordinator.store.wal import Wal
from shared.clock import SystemClock
from shared.frame import decode_coordinator, encode, encode_block
from shared.messages import Ack, AgentMessage, Goodbye, Hello, Inventory, Samples, SendPlan, SetMode, Status, Welcome
from shared.model import Domain, HostSample, Mode, VmSample
from shared.plan import Plan
from shared.tls import client_context, server_context

CAPACITY = plain_capacity()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    create_ca(folder)
    issue_coordinator(folder, ["localhost"], ["127.0.0.1"])
    for host_id in ("h1", "h2"):
        issue_host(folder, host_id)
    return folder


def host_tls(pki: Path, host_id: str = "h1") -> ssl.SSLContext:
    return client_context(pki / "ca.pem", pki / f"host-{host_id}.pem", pki / f"host-{host_id}.key")


def hello(host_id: str = "h1", boot_id: str = "b1") -> Hello:
    wall_ns = SystemClock().wall_ns()
    return Hello(
        host_id=host_id, boot_id=boot_id, agent_version="1", wall_ns=wall_ns, capacity=CAPACITY, mode=Mode.OBSERVE, mode_pinned=False
    )


def samples(sequence: int, boot_id: str = "b1") -> bytes:
    vms = {"vm1": VmSample(cpu_used_millicores=sequence)}
    block = encode_block([HostSample(wall_ns=SystemClock().wall_ns(), monotonic_ns=sequence, period_ns=5, vms=vms)])
    return encode(Samples(boot_id=boot_id, sequence=sequence, block=block))


class ListSpool:
    """A spool in memory that its owner trims on Ack, as the agent does."""

    def __init__(self, frames: int) -> None:
        self.frames = {sequence: samples(sequence) for sequence in range(frames)}

    def pending(self, after_sequence: int) -> Iterator[tuple[int, bytes]]:
        return iter([(sequence, frame) for sequence, frame in sorted(self.frames.items()) if sequence > after_sequence])

    def trim(self, acked: int) -> None:
        self.frames = {sequence: frame for sequence, frame in self.frames.items() if sequence > acked}


class Agent:
    """A link with its spool, and everything it was told."""

    def __init__(
        self, pki: Path, urls: list[str], frames: int = 0, *, tls: ssl.SSLContext | None = None, says: Hello | None = None
    ) -> None:
        self.spool = ListSpool(frames)
        self.events: list[LinkEvent] = []
        self.link = LinkClient(
            urls, tls or host_tls(pki), lambda: says or hello(), self.spool, self._on_event, window=8, first_backoff_s=0.01
        )

    def _on_event(self, event: LinkEvent) -> None:
        self.events.append(event)
        if isinstance(event, LinkUp):
            self.spool.trim(event.welcome.acked)
        if isinstance(event, LinkMessage) and isinstance(event.message, Ack):
            self.spool.trim(event.message.sequence)

    def reasons(self) -> str:
        return " | ".join(event.reason for event in self.events if isinstance(event, LinkDown))

    def heard(self, kind: type) -> list[object]:
        return [event.message for event in self.events if isinstance(event, LinkMessage) and isinstance(event.message, kind)]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Agent]:
        task = asyncio.create_task(self.link.run())
        try:
            yield self
        finally:
            await self.link.close()
            await task


class Gateway:
    """A gateway over a log folder, and everything it delivered."""

    def __init__(self, pki: Path, log: Path | Wal, *, port: int = 0, limits: AdmissionLimits | None = None, tick_s: float = 1.0) -> None:
        self.wal = log if isinstance(log, Wal) else Wal(log)
        self.delivered: list[tuple[str, AgentMessage]] = []
        self.hosts: list[tuple[str, bool, str]] = []
        self.core = GatewayCore(GatewaySettings(epoch=1, stale_host_s=0.05), acked=self.wal.high_water())
        self.server = GatewayServer(
            self.core,
            self.wal,
            lambda host_id, message: self.delivered.append((host_id, message)),
            SystemClock(),
            ssl_context=server_context(pki / "ca.pem", pki / "coordinator.pem", pki / "coordinator.key"),
            port=port,
            admission=Admission(limits or AdmissionLimits()),
            on_host=lambda *report: self.hosts.append(report),
            commit_interval_s=0.005,
            tick_s=tick_s,
        )

    @property
    def url(self) -> str:
        return f"wss://localhost:{self.server.port}"

    def sequences(self, host_id: str = "h1") -> list[int]:
        return [message.sequence for host, message in self.delivered if host == host_id and isinstance(message, Samples)]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Gateway]:
        await self.server.start()
        try:
            yield self
        finally:
            await self.server.stop()
            self.wal.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  conditions span two event sources; this asks both
            await asyncio.sleep(0.002)


def run(test: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def test_frames_flow_both_ways(pki: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with Gateway(pki, tmp_path).running() as gateway, Agent(pki, [gateway.url], 20).running() as agent:
            await until(lambda: not agent.spool.frames)
            assert gateway.sequences() == list(range(20))
            agent.spool.frames[20] = samples(20)
            agent.link.notify()
            domain = Domain(vm_id="vm1", name="web", vcpus_max=4, memory_max_bytes=2**30)
            assert agent.link.send(Inventory(domains=(domain,)))
            await until(lambda: ("h1", Inventory(domains=(domain,))) in gateway.delivered and not agent.spool.frames)
            plan = Plan(host_id="h1", epoch=1, sequence=1, issued_ns=0, deadline_ns=2**62, steps=())
            gateway.server.send_plan(plan)
            gateway.server.order_mode("h1", Mode.PREDICTIVE)
            await until(lambda: agent.heard(SetMode) == [SetMode(mode=Mode.PREDICTIVE)])
            assert agent.heard(SendPlan) == [SendPlan(plan=plan)]
            assert list(gateway.server.connected()) == ["h1"]
            assert gateway.hosts == [("h1", True, "")]
        assert gateway.core.counters["duplicates"] == 0
        assert agent.link.send(Inventory(domains=())) is False

    run(test())


def test_the_window_bounds_what_is_under_way(pki: Path, tmp_path: Path) -> None:
    async def test() -> None:
        gateway = Gateway(pki, tmp_path)
        gateway.server._commit_interval_s = 3600  # nothing becomes durable, so nothing is acknowledged
        async with gateway.running(), Agent(pki, [gateway.url], 100).running() as agent:
            await until(lambda: len(gateway.sequences()) == 8)
            agent.link.send(Status(wall_ns=0, mode=Mode.OFF, mode_pinned=False))
            await until(lambda: isinstance(gateway.delivered[-1][1], Status))
            assert gateway.sequences() == list(range(8))
            assert agent.heard(Ack) == []

    run(test())


def test_a_host_of_another_ca_is_refused(pki: Path, tmp_path: Path) -> None:
    create_ca(tmp_path / "other")
    issue_host(tmp_path / "other", "h1")
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    other.load_verify_locations(pki / "ca.pem")
    other.load_cert_chain(tmp_path / "other" / "host-h1.pem", tmp_path / "other" / "host-h1.key")

    async def test() -> None:
        async with Gateway(pki, tmp_path / "wal").running() as gateway:
            async with Agent(pki, [gateway.url], 1, tls=other).running() as agent:
                await until(lambda: len(agent.events) >= 2)
                assert not any(isinstance(event, LinkUp) for event in agent.events)
            assert gateway.delivered == []

    run(test())


def test_a_coordinator_of_another_ca_is_refused(pki: Path, tmp_path: Path) -> None:
    create_ca(tmp_path / "other")
    issue_host(tmp_path / "other", "h1")

    async def test() -> None:
        async with (
            Gateway(pki, tmp_path / "wal").running() as gateway,
            Agent(pki, [gateway.url], 1, tls=host_tls(tmp_path / "other")).running() as agent,
        ):
            await until(lambda: "certificate verify failed" in agent.reasons())
            assert gateway.delivered == []

    run(test())


def test_a_host_cannot_speak_for_another(pki: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with Gateway(pki, tmp_path).running() as gateway, Agent(pki, [gateway.url], 1, says=hello("h2")).running() as agent:
            await until(lambda: "certificate is for host h1, hello is from h2" in agent.reasons())
            assert gateway.core.counters["impostors"] == 1
            assert gateway.delivered == []

    run(test())


@asynccontextmanager
async def raw(pki: Path, url: str, host_id: str = "h1") -> AsyncIterator[ClientConnection]:
    async with connect(url, ssl=host_tls(pki, host_id), compression=None, max_size=None, proxy=None) as socket:
        yield socket


async def farewell(socket: ClientConnection) -> str:
    """Reason of the Goodbye that ends the connection."""
    reason = ""
    with pytest.raises(ConnectionClosed):
        while True:
            frame = await socket.recv()
            assert isinstance(frame, bytes)
            message = decode_coordinator(frame)
            reason = message.reason if isinstance(message, Goodbye) else reason
    return reason


GARBAGE = {
    "no frame": (b"GET / HTTP/1.1", "frame starts with"),
    "empty": (b"", "shorter than its header"),
    "wrong version": (samples(0)[:3] + b"\x09" + samples(0)[4:], "frame version 9: this side speaks version 1"),
    "bit flip": (samples(0)[:-1] + bytes([samples(0)[-1] ^ 1]), "checksum"),
    "before hello": (samples(0), "Samples is not allowed in state connecting"),
    "text": ("hello", "shorter than its header"),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_closes_that_peer_only(pki: Path, tmp_path: Path, kind: str) -> None:
    sent, expected = GARBAGE[kind]

    async def test() -> None:
        async with Gateway(pki, tmp_path).running() as gateway, Agent(pki, [gateway.url]).running() as agent:
            await until(lambda: agent.link.up)
            async with raw(pki, gateway.url, "h2") as socket:
                await socket.send(sent)
                assert expected in await farewell(socket)
            assert gateway.core.counters["garbage"] == 1
            agent.spool.frames[0] = samples(0)
            agent.link.notify()
            await until(lambda: not agent.spool.frames)
            assert gateway.sequences() == [0]
            assert agent.reasons() == ""

    run(test())


def test_a_garbage_block_is_neither_logged_nor_delivered(pki: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with Gateway(pki, tmp_path).running() as gateway:
            async with raw(pki, gateway.url) as socket:
                await socket.send(encode(hello()))
                await socket.send(encode(Samples(boot_id="b1", sequence=0, block=b"junk")))
                assert "sample block" in await farewell(socket)
            assert gateway.sequences() == []
            assert gateway.wal.next_token == 0

    run(test())


def test_a_too_large_frame_closes_that_peer_only(pki: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with Gateway(pki, tmp_path).running() as gateway, Agent(pki, [gateway.url]).running() as agent:
            await until(lambda: agent.link.up)
            async with raw(pki, gateway.url, "h2") as socket:
                with pytest.raises(ConnectionClosed) as closed:
                    await socket.send(bytes(MAX_FRAME_BYTES + 1))
                    await socket.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1009
            await until(lambda: gateway.server.counters["oversized"] == 1)
            assert agent.link.up

    run(test())


def test_a_newer_connection_replaces_the_older(pki: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with Gateway(pki, tmp_path).running() as gateway, raw(pki, gateway.url) as old, raw(pki, gateway.url) as new:
            await old.send(encode(hello()))
            assert isinstance(decode_coordinator(await old.recv(decode=False)), Welcome)
            await new.send(encode(hello()))
            assert isinstance(decode_coordinator(await new.recv(decode=False)), Welcome)
            assert "replaced by a newer connection" in await farewell(old)
            await new.send(samples(0))
            assert decode_coordinator(await new.recv(decode=False)) == Ack(boot_id="b1", sequence=0)
            assert list(gateway.server.connected()) == ["h1"]

    run(test())


def test_too_many_agents_wait_outside(pki: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with Gateway(pki, tmp_path, limits=AdmissionLimits(max_agents=1)).running() as gateway:
            async with Agent(pki, [gateway.url]).running() as first:
                await until(lambda: first.link.up)
                async with raw(pki, gateway.url, "h2") as socket:
                    with pytest.raises(ConnectionClosed) as closed:
                        await socket.recv()
                    assert closed.value.rcvd is not None
                    assert "1 agents are connected already" in closed.value.rcvd.reason
            await until(lambda: not gateway.server.connected())
            async with Agent(pki, [gateway.url], tls=host_tls(pki, "h2"), says=hello("h2")).running() as second:
                await until(lambda: second.link.up)

    run(test())


def test_a_silent_host_is_reported_and_comes_back(pki: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with Gateway(pki, tmp_path, tick_s=0.01).running() as gateway:
            async with Agent(pki, [gateway.url]).running():
                await until(lambda: gateway.hosts[:2] == [("h1", True, ""), ("h1", False, "silent")])
            async with Agent(pki, [gateway.url]).running():
                await until(lambda: ("h1", True, "") in gateway.hosts[2:])

    run(test())


def test_a_restarted_coordinator_gets_the_rest_once(pki: Path, tmp_path: Path) -> None:
    async def test() -> None:
        first = Gateway(pki, tmp_path)
        async with first.running():
            port = first.server.port
            agent = Agent(pki, ["wss://localhost:1", first.url], 200)
            task = asyncio.create_task(agent.link.run())
            await until(lambda: len(first.sequences()) >= 50)
        agent.spool.frames |= {200: samples(200)}
        async with Gateway(pki, tmp_path, port=port).running() as second:
            await until(lambda: not agent.spool.frames)
            assert sorted(first.sequences() + second.sequences()) == list(range(201))
            assert [record.sequence for _, record in second.wal.replay()] == list(range(201))
        await agent.link.close()
        await task

    run(test())


class StuckWal(Wal):
    """A log on a disk that hangs for ever once 30 frames are in."""

    stuck = threading.Event()

    def sync(self) -> int:
        if self.next_token >= 30:
            self.stuck.set()
            threading.Event().wait()
        return super().sync()


def _gateway_process(pki: Path, folder: Path, pipe: multiprocessing.connection.Connection) -> None:
    """A gateway that takes frames in which never become durable, until it is killed."""

    async def serve() -> None:
        wal = StuckWal(folder)
        gateway = Gateway(pki, wal)
        async with gateway.running():
            pipe.send(gateway.server.port)
            await until(wal.stuck.is_set)
            pipe.send(gateway.sequences())
            await asyncio.Event().wait()

    asyncio.run(serve())


def _hear(pipe: multiprocessing.connection.Connection) -> Any:
    """What the process says; EOFError when it died, an assertion when it says nothing."""
    assert pipe.poll(20), "the gateway process says nothing"
    return pipe.recv()


def test_a_coordinator_killed_before_its_ack_is_sent_the_frames_again(pki: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_gateway_process, args=(pki, tmp_path, theirs))
    process.start()
    theirs.close()

    async def test() -> None:
        port = await asyncio.to_thread(_hear, mine)
        agent = Agent(pki, [f"wss://localhost:{port}"], 100)
        async with agent.running():
            before = await asyncio.to_thread(_hear, mine)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            await asyncio.to_thread(process.join)
            durable = [record.sequence for _, record in Wal(tmp_path).replay()]
            async with Gateway(pki, tmp_path, port=port).running() as second:
                await until(lambda: not agent.spool.frames)
                assert len(durable) < len(before)  # some had arrived, and were lost with the process
                assert durable + second.sequences() == list(range(100))
                assert [record.sequence for _, record in second.wal.replay()] == list(range(100))

    try:
        run(test())
    finally:
        process.kill()
        process.join()
        mine.close()


def test_frames_sent_twice_are_acknowledged_twice_and_counted_once(pki: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with Gateway(pki, tmp_path).running() as gateway, raw(pki, gateway.url) as socket:
            await socket.send(encode(hello()))
            await socket.recv()
            for _ in range(2):
                await socket.send(samples(0))
                assert decode_coordinator(await socket.recv(decode=False)) == Ack(boot_id="b1", sequence=0)
            assert gateway.sequences() == [0]
            assert gateway.core.counters["duplicates"] == 1

    run(test())


def test_a_log_that_cannot_be_written_acknowledges_nothing_until_it_can(pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    async def test() -> None:
        gateway = Gateway(pki, tmp_path)
        await gateway.server.start()
        async with raw(pki, gateway.url) as socket:
            await socket.send(encode(hello()))
            await socket.recv()
            await socket.send(samples(0))
            assert decode_coordinator(await socket.recv(decode=False)) == Ack(boot_id="b1", sequence=0)
            monkeypatch.setattr(os, "fsync", broken)
            await socket.send(samples(1))  # it cannot be known yet that this one will not be durable
            await until(lambda: "no space left" in gateway.server.trouble)
            await socket.send(samples(2))
            answer = decode_coordinator(await socket.recv(decode=False))
            assert isinstance(answer, Goodbye)
            assert "no space left" in answer.reason
        monkeypatch.undo()
        await until(lambda: not gateway.server.trouble)
        async with raw(pki, gateway.url) as socket:
            await socket.send(encode(hello()))
            welcome = decode_coordinator(await socket.recv(decode=False))
            assert isinstance(welcome, Welcome)
            assert welcome.acked == 1, "what waited is durable by now, and is not to be sent again"
            await socket.send(samples(2))
            assert decode_coordinator(await socket.recv(decode=False)) == Ack(boot_id="b1", sequence=2)
        await gateway.server.stop()
        gateway.wal.close()
        again = Wal(tmp_path)
        assert [record.sequence for _, record in again.replay()] == [0, 1, 2]
        assert again.damaged_bytes == 0
        again.close()

    run(test())
