"""Live updates: one hub, many readers. What happened is kept in a ring, so a reader that was away for a moment goes on where it was.

Invariant: publishing never waits. A reader that does not keep up is cut off when its queue is full; it comes back with Last-Event-ID and
gets what the ring still holds, or `reset` where that is not all. A caller of role client gets only what is told of its own client.
Source: HTML Living Standard, 9.2 Server-sent events.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Final, Literal, get_args

import msgspec

from shared.errors import Refusal
from shared.refusal import RefusalCode

Topic = Literal["fleet", "host", "vm", "plan", "outcome", "alert"]
TOPICS: Final[tuple[str, ...]] = get_args(Topic)
RING: Final = 4096  # events; about 2 MB, and some minutes of a busy fleet
QUEUE: Final = 512  # events that a slow reader may be behind
CUT_S: Final = 5.0  # to send what is queued to a reader that was cut off
HEARTBEAT_S: Final = 15.0  # proxies close what is silent for 30 to 60 s
RESET: Final = "reset"


class StreamEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened. `client` None = concerns the fleet or several clients."""

    number: int
    topic: str
    data: bytes  # JSON
    client: str | None


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader sends on. `topic` None = a heartbeat."""

    id: str | None
    topic: str | None
    data: str


class Hub:
    """`epoch` tells ids of this start of the coordinator from those before. For one event loop."""

    def __init__(self, epoch: int, *, streams: int = 64, per_caller: int = 8) -> None:
        self.epoch = epoch
        self._streams, self._per_caller = streams, per_caller
        self._ring: deque[StreamEvent] = deque(maxlen=RING)
        self._number = 0
        self._readers: set[Reader] = set()
        self._callers: Counter[str] = Counter()
        self.dropped = 0  # readers that were cut off

    @property
    def readers(self) -> int:
        """Open streams."""
        return len(self._readers)

    def publish(self, topic: Topic, what: Mapping[str, object], *, client: str | None = None) -> None:
        """Tell every reader of the topic. Cheap where nobody reads: the ring alone gets it."""
        self._number += 1
        event = StreamEvent(number=self._number, topic=topic, data=msgspec.json.encode(what), client=client)
        self._ring.append(event)
        for reader in tuple(self._readers):
            if not reader.offer(event):
                self.dropped += 1
                self._readers.discard(reader)
                reader.cut()

    def open(
        self,
        caller: str,
        topics: Collection[str],
        client: str | None = None,
        last_id: str | None = None,
        abort: Callable[[], None] | None = None,
    ) -> Reader:
        """A reader of these topics; of one client's events alone where `client` is given. `abort` breaks its connection.

        Refusal(RATE_LIMITED): too many are open.
        """
        if len(self._readers) >= self._streams:
            raise Refusal(RefusalCode.RATE_LIMITED, f"{self._streams} streams are open: access.streams allows no more")
        if self._callers[caller] >= self._per_caller:
            raise Refusal(RefusalCode.RATE_LIMITED, f"{self._per_caller} streams of this caller are open: access.streams_per_caller")
        reader = Reader(self, caller, frozenset(topics), client, abort)
        self._replay(reader, last_id)
        self._readers.add(reader)
        self._callers[caller] += 1
        return reader

    def close_unbegun(self, reader: Reader) -> None:
        """Forget a reader that nobody ever iterated: its connection was lost before the answer began."""
        if not reader.begun:
            self.close(reader)

    def close(self, reader: Reader) -> None:
        """Forget a reader. Idempotent."""
        self._readers.discard(reader)
        if not reader.gone:
            reader.gone = True
            self._callers[reader.caller] -= 1
            if self._callers[reader.caller] <= 0:
                del self._callers[reader.caller]

    def end(self) -> None:
        """End every stream after what is queued for it: the process stops. A reader comes back by itself."""
        for reader in tuple(self._readers):
            reader.end()

    def _replay(self, reader: Reader, last_id: str | None) -> None:
        if last_id is None:
            return
        epoch, _, number = last_id.partition("-")
        seen = int(number) if epoch == str(self.epoch) and number.isascii() and number.isdigit() and len(number) < 19 else -1
        oldest = self._ring[0].number if self._ring else self._number + 1
        if not oldest - 1 <= seen <= self._number:
            reader.lost, seen = True, -1  # events are missing: the reader must read the state anew
        missed = [event for event in self._ring if event.number > seen and reader.wants(event)]
        if len(missed) > QUEUE:
            reader.lost, missed = True, missed[-QUEUE:]
        reader.missed = missed


class Reader:
    """One open stream. Iterate it; `Hub.close` ends it."""

    def __init__(self, hub: Hub, caller: str, topics: frozenset[str], client: str | None, abort: Callable[[], None] | None = None) -> None:
        self.caller = caller
        self.lost = False
        self.gone = False
        self.begun = False
        self._abort = abort
        self.missed: list[StreamEvent] = []
        self._hub, self._topics, self._client = hub, topics, client
        self._queue: asyncio.Queue[StreamEvent | None] = asyncio.Queue(QUEUE + 1)  # one more: the word that it was cut off

    def wants(self, event: StreamEvent) -> bool:
        """Its topic, and nothing of another's."""
        return event.topic in self._topics and (self._client is None or event.client == self._client)

    def offer(self, event: StreamEvent) -> bool:
        """False = it is too far behind and has been cut off."""
        if not self.wants(event):
            return True
        if self._queue.qsize() >= QUEUE:
            self._queue.put_nowait(None)
            return False
        self._queue.put_nowait(event)
        return True

    def end(self) -> None:
        """Nothing more is told."""
        with contextlib.suppress(asyncio.QueueFull):  # then it was cut off, and that word is in the queue
            self._queue.put_nowait(None)

    def cut(self) -> None:
        """End it soon, even where it hangs on a connection that takes nothing more."""
        if self._abort is not None:
            asyncio.get_running_loop().call_later(CUT_S, self._abort)

    async def told(self, heartbeat_s: float = HEARTBEAT_S) -> AsyncIterator[Told]:
        """What to send on, until the reader is cut off; heartbeats where nothing happens."""
        self.begun = True
        if self.lost:
            yield Told(id=None, topic=RESET, data='{"reason":"events were lost: read the state anew"}')
        for event in self.missed:
            yield self._said(event)
        self.missed = []
        while True:
            try:
                async with asyncio.timeout(heartbeat_s):
                    event_or_end = await self._queue.get()
            except TimeoutError:
                yield Told(id=None, topic=None, data="")
                continue
            if event_or_end is None:
                return
            yield self._said(event_or_end)

    def _said(self, event: StreamEvent) -> Told:
        return Told(id=f"{self._hub.epoch}-{event.number}", topic=event.topic, data=event.data.decode())
