"""Writes that wait for their store: one at a time, in the order asked for, tried again for as long as the store is away or full.

The event loop owns the queue; one thread runs the writes, in batches. A write that meets a HostError or OSError goes back to the head and
is tried again after RETRY_FIRST_S, doubling to RETRY_MOST_S; whatever else it raises is a bug and ends the process. Invariants: `then` of a
write runs once, after it and all before it are durable; nothing overtakes; a write is idempotent, so one whose answer was lost may run
twice. `read` waits for the writes before it, except while the store is in trouble; `look` waits for none. Neighbouring writes of a store
that has `together` share one transaction: two thousand commits a cycle would be most of it. A store that neither takes nor refuses leaves
its thread waiting; `stuck_s` tells, and no caller waits longer than ANSWER_S.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Final, TypeVar

from shared.errors import HostError

# A cycle of 5,000 hosts asks for two writes a host; its agents' words about themselves replace each other (`key`). Beyond it the process
# ends: what the agents were promised is in the log, which is cut only behind these writes.
MAX_PENDING: Final = 100_000
HOLD_PENDING: Final = 20_000  # so far behind, further decisions wait
BATCH: Final = 64  # how long a read waits at most; how seldom the loop is woken
RETRY_FIRST_S: Final = 0.25
RETRY_MOST_S: Final = 5.0
READERS: Final = 4
ANSWER_S: Final = 20.0

_T = TypeVar("_T")


@dataclass(frozen=True)
class Trouble:
    """Why the head of the queue does not get through, and since when (monotonic seconds)."""

    why: str
    since_s: float


@dataclass(eq=False)
class _Item:
    call: Callable[[], Any]
    then: Callable[[Any], None] | None = None
    key: Hashable = None
    answer: asyncio.Future[Any] | None = None  # of a read
    together: Callable[[], Any] | None = None  # the transaction that it may share with its neighbours


class PendingWrites:
    """`on_change(trouble)` hears that writing stopped (and other words for it) or works again (None); `on_bug` what must end the process.

    All methods belong to the event loop.
    """

    def __init__(
        self,
        on_change: Callable[[Trouble | None], None],
        on_bug: Callable[[BaseException], None],
        *,
        most: int = MAX_PENDING,
        retry_first_s: float = RETRY_FIRST_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        self.trouble: Trouble | None = None
        self.failures = 0
        self.reached_s = time.monotonic()  # when a write last got through, or none was waiting
        self._on_change, self._on_bug = on_change, on_bug
        self._most, self._retry_first_s, self._delay_s = most, retry_first_s, retry_first_s
        self._answer_s = answer_s
        self._queue: deque[_Item] = deque()
        self._by_key: dict[Hashable, _Item] = {}
        self._running = 0
        self._begun_s = 0.0
        self._retry: asyncio.TimerHandle | None = None
        self._ended = False
        self._idle: asyncio.Future[None] | None = None
        self._writer = ThreadPoolExecutor(1, "store")
        self._readers = ThreadPoolExecutor(READERS, "store-read")

    @property
    def pending(self) -> int:
        """Writes that are not durable yet."""
        return len(self._queue) + self._running

    @property
    def stuck_s(self) -> float:
        """For how long the store has not answered the writes that it was given; 0 = it has none."""
        return time.monotonic() - self._begun_s if self._running else 0.0

    @property
    def behind(self) -> bool:
        """So many wait that no more should be asked for."""
        return self.pending >= HOLD_PENDING

    def add(self, function: Callable[..., _T], *arguments: object, then: Callable[[_T], None] | None = None, key: Hashable = None) -> None:
        """Write in order behind the others; `then` gets the result in the event loop. One that waits with the same `key` is left out."""
        if key is not None and (older := self._by_key.pop(key, None)) is not None:
            self._queue.remove(older)
        store = getattr(function, "__self__", None)
        item = _Item(partial(function, *arguments), then, key, together=getattr(store, "together", None))
        if key is not None:
            self._by_key[key] = item
        self._queue.append(item)
        if self.pending > self._most:
            why = self.trouble.why if self.trouble else "the store is too slow"
            self._on_bug(HostError(f"{self.pending} writes wait for their store: allowed {self._most}; {why}"))
            return
        self._go()

    async def read(self, function: Callable[..., _T], *arguments: object) -> _T:
        """The result of a read, or of a write that somebody waits for, behind the writes before it. Raises what it raises.

        HostError where that takes too long; a write may be done all the same then.
        """
        if self.trouble is not None:
            return await self.look(function, *arguments)
        answer: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._queue.append(_Item(partial(function, *arguments), answer=answer))
        self._go()
        return await self._in_time(answer)

    async def look(self, function: Callable[..., _T], *arguments: object) -> _T:
        """The result of a read that need not know of writes that are under way. Raises as `read`."""
        return await self._in_time(asyncio.get_running_loop().run_in_executor(self._readers, partial(function, *arguments)))

    async def close(self, patience_s: float) -> int:
        """Finish what waits, for so long; how many writes were left. Nothing that an agent was promised is among them."""
        loop = asyncio.get_running_loop()
        if not self._ended and (self._queue or self._running):
            self._idle = loop.create_future()
            await asyncio.wait({self._idle}, timeout=patience_s)
        self._ended = True
        if self._retry is not None:
            self._retry.cancel()
        left = self.pending
        # a write that hangs in a dead connection ends with its own deadline
        await loop.run_in_executor(None, partial(self._writer.shutdown, wait=True))
        self._readers.shutdown(wait=False, cancel_futures=True)
        return left

    async def _in_time(self, answer: asyncio.Future[_T]) -> _T:
        try:
            async with asyncio.timeout(self._answer_s) as deadline:
                return await answer
        except TimeoutError as error:
            if not deadline.expired():
                raise  # the store's own
            raise HostError(f"the store has not answered within {self._answer_s:g} s") from error

    def _go(self) -> None:
        if self._running or self._retry is not None or self._ended or not self._queue:
            return
        batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
        for item in batch:
            if item.key is not None and self._by_key.get(item.key) is item:
                del self._by_key[item.key]
        self._running, self._begun_s = len(batch), time.monotonic()
        future = asyncio.get_running_loop().run_in_executor(self._writer, _run, batch)
        future.add_done_callback(partial(self._done, batch))

    def _done(self, batch: list[_Item], future: asyncio.Future[tuple[list[Any], BaseException | None]]) -> None:
        self._running = 0
        results, error = future.result()
        rest = batch[len(results) :]
        self._queue.extendleft(reversed(rest))
        for item in rest:
            if item.key is not None:
                self._by_key.setdefault(item.key, item)
        try:
            for item, result in zip(batch, results, strict=False):
                _tell(item, result)
        except Exception as bug:  # noqa: BLE001  # what follows a write is our own code
            self._stop(bug)
            return
        if error is None:
            self._reached()
        elif isinstance(error, HostError | OSError):
            self._failed(str(error))
        else:
            self._stop(error)
            return
        self._go()
        if self._idle is not None and not self._queue and not self._running and not self._idle.done():
            self._idle.set_result(None)

    def _reached(self) -> None:
        self._delay_s, self.reached_s = self._retry_first_s, time.monotonic()
        if self.trouble is not None:
            self.trouble = None
            self._on_change(None)

    def _failed(self, why: str) -> None:
        self.failures += 1
        known = self.trouble
        self.trouble = Trouble(why, time.monotonic() if known is None else known.since_s)
        reads = [item for item in self._queue if item.answer is not None]
        self._queue = deque(item for item in self._queue if item.answer is None)
        loop = asyncio.get_running_loop()
        for item in reads:
            loop.run_in_executor(self._readers, _run, [item]).add_done_callback(partial(self._read_past, item))
        if known is None or known.why != why:
            self._on_change(self.trouble)
        self._retry = loop.call_later(self._delay_s, self._again)
        self._delay_s = min(RETRY_MOST_S, 2 * self._delay_s)

    def _again(self) -> None:
        self._retry = None
        self._go()

    def _stop(self, error: BaseException) -> None:
        self._ended = True
        self._on_bug(error)

    @staticmethod
    def _read_past(item: _Item, future: asyncio.Future[tuple[list[Any], BaseException | None]]) -> None:
        if not future.cancelled():
            _tell(item, future.result()[0][0])


class _Raised:
    """What a read raised: it is for who asked, and stops no write."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _run(batch: list[_Item]) -> tuple[list[Any], BaseException | None]:
    """Results of those that were done, and what stopped the next one."""
    results: list[Any] = []
    for _, items in groupby(enumerate(batch), lambda placed: placed[0] if placed[1].together is None else placed[1].together):
        group = [item for _, item in items]
        together = group[0].together
        try:
            with nullcontext() if together is None else together():
                done = [item.call() if item.answer is None else _read(item) for item in group]
        except BaseException as error:  # noqa: BLE001  # sorted out in the event loop
            return results, error
        results += done
    return results, None


def _read(item: _Item) -> Any:
    try:
        return item.call()
    except BaseException as error:  # noqa: BLE001  # for who asked
        return _Raised(error)


def _tell(item: _Item, result: Any) -> None:
    if item.answer is None:
        if item.then is not None:
            item.then(result)
    elif not item.answer.done():  # its caller may have gone
        if isinstance(result, _Raised):
            item.answer.set_exception(result.error)
        else:
            item.answer.set_result(result)
