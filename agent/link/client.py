"""The agent's one connection to the coordinator: WebSocket over mutual TLS, spool first, back-off for ever.

After Welcome the spool is replayed from what the coordinator has durably, then new frames follow; at most `window` frames are
under way unacknowledged. Nothing leaves the spool here: only the owner of the spool trims it, on Ack. Invariant: losing the
link loses no spooled frame and stops nothing else in the agent. Back-off is in real seconds whatever clock the agent runs on:
a network's pace is real.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from shared.errors import HostError, PeerError
from shared.frame import HEADER, MAX_BODY_BYTES, decode_coordinator, encode
from shared.messages import Ack, AgentMessage, CoordinatorMessage, Goodbye, Hello, Welcome
from shared.session import Session, Side

MAX_FRAME_BYTES: Final = HEADER.size + MAX_BODY_BYTES
FIRST_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 30.0
ANSWER_TIMEOUT_S: Final = 10.0  # connecting, and from Hello to Welcome
KEEPALIVE_S: Final = 20.0
OUTBOX_MESSAGES: Final = 256  # unspooled messages waiting; the oldest goes, the newest is the truth


class SpoolReader(Protocol):
    """What the link needs of the spool. Sequences rise strictly in the order of `pending`."""

    def pending(self, after_sequence: int) -> Iterable[tuple[int, bytes]]:
        """Frames kept with a sequence above `after_sequence`, oldest first, as (sequence, whole frame)."""
        ...


@dataclass(frozen=True, kw_only=True)
class LinkUp:
    """The session is open. The owner of the spool must number new frames above `welcome.acked`: a spool that was lost within
    one boot would otherwise start anew below it, and its frames would be taken for duplicates."""

    url: str
    welcome: Welcome


@dataclass(frozen=True, kw_only=True)
class LinkDown:
    """The link broke or could not be made. The next try follows in `retry_in_s` (0 = another URL, at once)."""

    url: str
    reason: str
    retry_in_s: float


@dataclass(frozen=True, kw_only=True)
class LinkMessage:
    """An Ack, plan or mode order from the coordinator."""

    message: CoordinatorMessage


LinkEvent = LinkUp | LinkDown | LinkMessage


class _SentAway(Exception):
    def __init__(self, goodbye: Goodbye) -> None:
        super().__init__(goodbye.reason)
        self.retry_after_s = goodbye.retry_after_s


class LinkClient:
    """Keeps the link. `hello` is asked anew for each connection; `on_event` runs in the event loop and must not block."""

    def __init__(
        self,
        urls: Sequence[str],
        ssl_context: ssl.SSLContext,
        hello: Callable[[], Hello],
        spool: SpoolReader,
        on_event: Callable[[LinkEvent], None],
        *,
        window: int = 64,
        first_backoff_s: float = FIRST_BACKOFF_S,
    ) -> None:
        if not urls or any(not url.startswith("wss://") for url in urls):
            raise ValueError(f"urls {list(urls)!r}: at least one, each starting with wss://")
        if not 1 <= window <= 4096:
            raise ValueError(f"window {window}: allowed 1 to 4096 frames")
        self._urls, self._ssl, self._hello, self._spool, self._on_event = tuple(urls), ssl_context, hello, spool, on_event
        self._window = window
        self._first_backoff_s = first_backoff_s
        self._outbox: deque[AgentMessage] = deque(maxlen=OUTBOX_MESSAGES)
        self._in_flight: deque[int] = deque()
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._failures = 0
        self._open = False

    @property
    def up(self) -> bool:
        """True between Welcome and loss."""
        return self._open

    async def run(self) -> None:
        """Connect and stay connected until `close()`. Only a bug gets out of here."""
        # seeded by identity: a fleet that lost its coordinator must not come back in step, and a test must see the same waits
        jitter = random.Random(self._hello().host_id)
        for url in itertools.cycle(self._urls):
            reason, least_s = await self._attempt(url)
            if self._closing.is_set():
                return
            self._failures += 1
            # the other URLs are tried at once; the pause comes after each full round
            rounds, rest = divmod(self._failures, len(self._urls))
            ceiling = min(MAX_BACKOFF_S, self._first_backoff_s * 2 ** min(rounds - 1, 16))
            # full jitter: a fleet that was cut off at one moment comes back spread over the whole pause, and one that was told when to
            # come back, over half as long again
            pause = max(least_s * jitter.uniform(1.0, 1.5), 0.0 if rest else ceiling * jitter.uniform(0.0, 1.0))
            self._on_event(LinkDown(url=url, reason=reason, retry_in_s=pause))
            if await self._closed_within(pause):
                return

    def notify(self) -> None:
        """A frame was added to the spool."""
        self._wake.set()

    def send(self, message: AgentMessage) -> bool:
        """Send an unspooled message (Inventory, Status). False when there is no link: say it again after LinkUp."""
        if self._open:
            self._outbox.append(message)
            self._wake.set()
        return self._open

    async def close(self) -> None:
        """End `run()`."""
        self._closing.set()

    async def _attempt(self, url: str) -> tuple[str, float]:
        """One connection from start to end: why it ended, and the shortest pause the coordinator asked for."""
        try:
            async with connect(
                url,
                ssl=self._ssl,
                compression=None,
                max_size=MAX_FRAME_BYTES,
                open_timeout=ANSWER_TIMEOUT_S,
                ping_interval=KEEPALIVE_S,
                ping_timeout=KEEPALIVE_S,
                close_timeout=2,
                proxy=None,  # the coordinator is ours; a proxy of the environment would only see ciphertext or break it
                user_agent_header=None,
            ) as socket:
                await self._converse(url, socket)
        except _SentAway as away:
            return f"coordinator: {away}", away.retry_after_s
        except (OSError, WebSocketException, PeerError, HostError) as error:
            return str(error) or type(error).__name__, 0.0
        finally:
            self._open = False
            self._in_flight.clear()
            self._outbox.clear()
        return "closed", 0.0

    async def _converse(self, url: str, socket: ClientConnection) -> None:
        session = Session(Side.AGENT)
        hello = self._hello()
        session.sending(hello)
        await socket.send(encode(hello))
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            welcome = await self._receive(socket, session)
        if not isinstance(welcome, Welcome):
            raise PeerError(f"expected Welcome, got {type(welcome).__name__}")
        self._failures, self._open = 0, True
        self._on_event(LinkUp(url=url, welcome=welcome))
        tasks = [
            asyncio.create_task(self._read(socket, session)),
            asyncio.create_task(self._write(socket, session, welcome.acked)),
            asyncio.create_task(self._closing_set()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        # the reader first: when both fail, it knows why (Goodbye), the writer only that the socket is gone
        for task in tasks:
            if task in done:
                task.result()

    async def _read(self, socket: ClientConnection, session: Session) -> None:
        while True:
            message = await self._receive(socket, session)
            if isinstance(message, Ack):
                while self._in_flight and self._in_flight[0] <= message.sequence:
                    self._in_flight.popleft()
                self._wake.set()
            self._on_event(LinkMessage(message=message))

    async def _write(self, socket: ClientConnection, session: Session, acked: int) -> None:
        cursor = acked
        while True:
            self._wake.clear()
            while self._outbox:
                message = self._outbox.popleft()
                session.sending(message)
                await socket.send(encode(message))
            # spooled frames are Samples and Outcomes: legal whenever the session is open, and it is
            for sequence, frame in list(itertools.islice(self._spool.pending(cursor), self._window - len(self._in_flight))):
                cursor = sequence
                self._in_flight.append(sequence)
                self._wake.set()
                await socket.send(frame)
            await self._wake.wait()

    @staticmethod
    async def _receive(socket: ClientConnection, session: Session) -> CoordinatorMessage:
        try:
            frame = await socket.recv()
        except ConnectionClosed as error:
            raise PeerError(f"connection closed: {error}") from error
        if isinstance(frame, str):
            raise PeerError("coordinator sent text, expected binary frames")
        message = decode_coordinator(frame)
        session.received(message)
        if isinstance(message, Goodbye):
            raise _SentAway(message)
        return message

    async def _closing_set(self) -> None:
        await self._closing.wait()

    async def _closed_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except TimeoutError:
            return False
        return True
