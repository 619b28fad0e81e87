"""The agents' door: a WebSocket server with mutual TLS that carries out what GatewayCore says. The only I/O of the gateway.

One asyncio thread runs the core; a second thread does the log's fsync, in groups (`commit_interval_s`). Order of a frame:
log buffer → `on_message` → fsync → Ack. Invariants: whatever a peer does ends at most its own connection; a bug of ours ends the
gateway, loudly (`failure()`). While the log cannot be written nothing is acknowledged, who sends frames is sent away with the
reason (`trouble`), and what came in before waits in memory and is tried again every COMMIT_RETRY_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from coordinator.gateway.admission import Admission
from coordinator.gateway.events import (
    LOG_FULL,
    AppendWal,
    Close,
    Connected,
    Deliver,
    Disconnected,
    Durable,
    Event,
    HostDown,
    HostUp,
    ModeOrdered,
    PauseOrdered,
    PlanReady,
    PlanUnsent,
    PoliciesOrdered,
    Received,
    Reply,
    StoreFull,
    Tick,
)
from coordinator.gateway.sessions import GatewayCore
from coordinator.store.wal import Wal
from shared.clock import Clock
from shared.errors import HostError, PeerError
from shared.frame import HEADER, MAX_BODY_BYTES
from shared.messages import AgentMessage, Hello, Samples
from shared.model import HostSample, Mode, Policy
from shared.plan import Plan
from shared.tls import peer_host_id
from shared.units import NS_PER_S

MAX_FRAME_BYTES: Final = HEADER.size + MAX_BODY_BYTES
OUTBOX_FRAMES: Final = 256  # replies waiting for one peer; acks are small, so a fuller box means that it stopped reading
HELLO_TIMEOUT_S: Final = 10.0
COMMIT_RETRY_S: Final = 1.0
KEEPALIVE_S: Final = 20.0
GONE_PEER: Final = 1008  # WebSocket close code "policy violation"

OnMessage = Callable[[str, AgentMessage], None]
OnSamples = Callable[[str, Samples, tuple[HostSample, ...]], None]
OnHost = Callable[[str, bool, str], None]
OnUnsent = Callable[[Plan], None]


class _Peer:
    """One connection: its socket and the frames that wait to be sent. None in the box = close after what came before."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self.outbox: asyncio.Queue[bytes | None] = asyncio.Queue(OUTBOX_FRAMES)
        self.reason = ""

    def put(self, frame: bytes | None) -> None:
        try:
            self.outbox.put_nowait(frame)
        except asyncio.QueueFull:
            self.socket.transport.abort()

    async def write(self) -> None:
        """Send until told to close or the peer is gone."""
        with contextlib.suppress(ConnectionClosed):
            while (frame := await self.outbox.get()) is not None:
                await self.socket.send(frame)
            # the protocol allows 123 bytes of reason; the whole one went out in Goodbye
            await self.socket.close(GONE_PEER, self.reason.encode()[:120].decode(errors="ignore"))


class GatewayServer:
    """Drives `core` and `wal`. `on_message(host_id, message)` gets every message once, in order, and must not block.

    `on_samples`, when given, gets Samples instead, with the block already decoded. `on_host(host_id, up, reason)` reports hosts
    that speak or fell silent, `on_unsent(plan)` plans that no host will ever see. All run in the event loop; an exception from
    them is a bug and ends the gateway.
    """

    def __init__(
        self,
        core: GatewayCore,
        wal: Wal,
        on_message: OnMessage,
        clock: Clock,
        *,
        ssl_context: ssl.SSLContext,
        host: str = "127.0.0.1",
        port: int = 0,
        admission: Admission | None = None,
        on_samples: OnSamples | None = None,
        on_host: OnHost | None = None,
        on_unsent: OnUnsent | None = None,
        commit_interval_s: float = 0.02,
        tick_s: float = 1.0,
    ) -> None:
        self.core = core
        self.admission = admission or Admission()
        self.counters = {"refused_certificates": 0, "oversized": 0, "commits": 0}
        self._wal, self._clock = wal, clock
        self._on_message, self._on_samples, self._on_host, self._on_unsent = on_message, on_samples, on_host, on_unsent
        self._ssl, self._host, self._port = ssl_context, host, port
        self._commit_interval_s, self._tick_s = commit_interval_s, tick_s
        self._peers: dict[int, _Peer] = {}
        self._present: dict[str, int] = {}  # connections by host, for admission
        self._next_conn_id = 1
        self.trouble = ""  # why the log cannot be written now
        self._refusing: dict[str, str] = {}  # by store: why frames are not wanted now
        self._store_full = ""
        self._logged: dict[tuple[str, str], int] = {}  # given to the log since the last commit
        self._dirty = asyncio.Event()
        self._server: Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[None] | None = None
        self._fsync = ThreadPoolExecutor(1, "wal")

    async def start(self) -> None:
        """Bind and serve. Raises OSError when the address cannot be had."""
        self._failed = asyncio.get_running_loop().create_future()
        self._server = await serve(
            self._serve,
            self._host,
            self._port,
            ssl=self._ssl,
            compression=None,  # samples are dense integers, and a compression bomb is not worth having
            max_size=MAX_FRAME_BYTES,
            max_queue=4,
            ping_interval=KEEPALIVE_S,
            ping_timeout=KEEPALIVE_S,
            open_timeout=HELLO_TIMEOUT_S,
            close_timeout=2,
            server_header=None,
            logger=logging.getLogger("tidegate.gateway"),
        )
        self._tasks = [asyncio.create_task(self._guard(self._commit_loop())), asyncio.create_task(self._guard(self._tick_loop()))]

    async def stop(self) -> None:
        """Make what came in durable, tell the peers, and close. The log stays open: it is the caller's."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._failed is not None and not self._failed.done():
            with contextlib.suppress(HostError):  # not acknowledged, so the agents have it still
                await self._commit()
            self._failed.cancel()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        self._fsync.shutdown()

    async def failure(self) -> None:
        """Waits for the bug or log error that ended the gateway, and raises it."""
        assert self._failed is not None, "start() first"
        await asyncio.shield(self._failed)

    @property
    def port(self) -> int:
        """The port in use, once started."""
        assert self._server is not None, "start() first"
        port: int = next(iter(self._server.sockets)).getsockname()[1]
        return port

    def send_plan(self, plan: Plan) -> None:
        """To its host, now or when it is back (unless the plan has expired by then)."""
        self._step(PlanReady(plan))

    def order_mode(self, host_id: str, mode: Mode) -> None:
        """Order a mode, now and in every later Welcome."""
        self._step(ModeOrdered(host_id, mode))

    def order_pause(self, host_id: str | None, paused: bool) -> None:
        """Throw or release the kill switch of one host or (None) of the fleet."""
        self._step(PauseOrdered(host_id, paused))

    def order_policies(self, host_id: str, policies: Mapping[str, Policy]) -> None:
        """Put policies over those that a host's domains state, if it is there and takes them."""
        self._step(PoliciesOrdered(host_id, policies))

    def paused(self, host_id: str) -> bool:
        """The kill switch is on, for this host or for the fleet."""
        return self.core.paused(host_id)

    def refuse(self, reason: str, of: str = "registry") -> None:
        """Take no more frames, for this reason of that store; "" = as far as it is concerned, take them again."""
        self._refusing[of] = reason
        self._tell_core()

    def connected(self) -> dict[str, Hello]:
        """Hosts with an open session."""
        return self.core.connected()

    async def _serve(self, socket: ServerConnection) -> None:
        try:
            await self._converse(socket)
        except Exception as error:  # noqa: BLE001  what is left here is our bug: websockets would log it and go on
            self._fail(error)

    async def _converse(self, socket: ServerConnection) -> None:
        try:
            host_id = peer_host_id(socket.transport.get_extra_info("ssl_object"))
        except PeerError as error:
            self.counters["refused_certificates"] += 1
            return await socket.close(GONE_PEER, str(error)[:120])
        if not self.admission.enter(host_id, time.monotonic_ns()):
            return await socket.close(1013, f"{self.admission.limits.max_agents} agents are connected already")
        conn_id, self._next_conn_id = self._next_conn_id, self._next_conn_id + 1
        peer = self._peers[conn_id] = _Peer(socket)
        self._present[host_id] = self._present.get(host_id, 0) + 1
        writer = asyncio.create_task(peer.write())
        self._step(Connected(conn_id, host_id))
        try:
            await self._read(socket, conn_id, host_id)
        except ConnectionClosed as error:
            # 1009: websockets itself refused a message larger than max_size
            self.counters["oversized"] += error.sent is not None and error.sent.code == 1009
        except TimeoutError:
            await socket.close(GONE_PEER, f"no hello within {HELLO_TIMEOUT_S:g} s")
        finally:
            self._step(Disconnected(conn_id))
            del self._peers[conn_id]
            self._present[host_id] -= 1
            if not self._present[host_id]:
                del self._present[host_id]
                self.admission.leave(host_id)
            peer.put(None)
            await writer
        return None

    async def _read(self, socket: ServerConnection, conn_id: int, host_id: str) -> None:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            message = await socket.recv()
        while True:
            frame = message.encode() if isinstance(message, str) else message  # text is garbage, and the core says so
            self._tell_core(len(frame))
            self._step(Received(conn_id, frame))
            wait_ns = self.admission.charge(host_id, len(frame), time.monotonic_ns())
            if wait_ns:
                await asyncio.sleep(wait_ns / NS_PER_S)
            message = await socket.recv()

    def _tell_core(self, frame_bytes: int = 0) -> None:
        """Whether a frame of this size can be made durable."""
        full = "" if self._wal.has_room(frame_bytes) else LOG_FULL
        why = next(filter(None, self._refusing.values()), "") or self.trouble or full
        if why != self._store_full:
            self._store_full = why
            self._step(StoreFull(bool(why), why))

    def _step(self, event: Event) -> None:
        for instruction in self.core.handle(event, self._clock.wall_ns()):
            match instruction:
                case AppendWal():
                    self._wal.append(instruction.host_id, instruction.boot_id, instruction.sequence, instruction.frame)
                    self._logged[instruction.host_id, instruction.boot_id] = instruction.sequence
                    self._dirty.set()
                case Deliver():
                    self._deliver(instruction)
                case Reply():
                    if (peer := self._peers.get(instruction.conn_id)) is not None:
                        peer.put(instruction.frame)
                case Close():
                    if (peer := self._peers.get(instruction.conn_id)) is not None:
                        peer.reason = instruction.reason
                        peer.put(None)
                case HostUp():
                    self._report(instruction.host_id, True, "")
                case HostDown():
                    self._report(instruction.host_id, False, instruction.reason)
                case PlanUnsent():
                    if self._on_unsent is not None:
                        self._on_unsent(instruction.plan)

    def _deliver(self, instruction: Deliver) -> None:
        if self._on_samples is not None and isinstance(instruction.message, Samples):
            self._on_samples(instruction.host_id, instruction.message, instruction.samples)
        else:
            self._on_message(instruction.host_id, instruction.message)

    def _report(self, host_id: str, up: bool, reason: str) -> None:
        if self._on_host is not None:
            self._on_host(host_id, up, reason)

    async def _commit_loop(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(self._commit_interval_s)  # the group: everything that arrives meanwhile shares one fsync
            try:
                await self._commit()
            except HostError as error:
                self.trouble = str(error)
                self._tell_core()
                await asyncio.sleep(COMMIT_RETRY_S)
                self._dirty.set()
            else:
                self.trouble = ""
                self._tell_core()

    async def _commit(self) -> None:
        self._dirty.clear()
        logged, self._logged = self._logged, {}
        if not logged:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(self._fsync, self._wal.sync)
        except HostError:
            self._logged = logged | self._logged
            raise
        self.counters["commits"] += 1
        self._step(Durable(logged))

    async def _tick_loop(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            self._step(Tick())

    async def _guard(self, loop: Awaitable[None]) -> None:
        try:
            await loop
        except Exception as error:  # noqa: BLE001  a loop's death is the gateway's death
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)
