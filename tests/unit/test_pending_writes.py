"""The queue of writes: order, `then`, retries, reads past an outage, keys and bounds. Properties over random outages."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.store.pending import BATCH, PendingWrites, Trouble
from shared.errors import HostError


class Store:
    """Takes writes while it is up; `fails_after` fails once a write was stored, as where an answer is lost."""

    def __init__(self) -> None:
        self.up = True
        self.lose_answers = 0
        self.stored: list[Any] = []

    def write(self, value: Any) -> Any:
        if not self.up:
            raise HostError("the store is away")
        self.stored.append(value)
        if self.lose_answers:
            self.lose_answers -= 1
            raise HostError("the answer was lost")
        return value

    def read(self) -> list[Any]:
        if not self.up:
            raise HostError("the store is away")
        return list(self.stored)


class Queue(PendingWrites):
    """With what it told."""

    def __init__(self, **options: Any) -> None:
        self.told: list[Trouble | None] = []
        self.bugs: list[BaseException] = []
        super().__init__(self.told.append, self.bugs.append, retry_first_s=0.001, **options)


def run(test: Callable[[Store, Queue], Awaitable[None]], **options: Any) -> Queue:
    async def whole() -> Queue:
        store, queue = Store(), Queue(**options)
        await asyncio.wait_for(test(store, queue), 30)
        store.up = True
        assert await queue.close(10) == 0 or queue.bugs
        return queue

    return asyncio.run(whole())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # the queue tells of troubles, not of every try
        await asyncio.sleep(0.001)


async def settled(queue: Queue) -> None:
    await until(lambda: not queue.pending)


def test_writes_are_done_in_order_and_told_once() -> None:
    async def test(store: Store, queue: Queue) -> None:
        told: list[int] = []
        for n in range(3 * BATCH):
            queue.add(store.write, n, then=told.append)
        await settled(queue)
        assert store.stored == told == list(range(3 * BATCH))
        assert queue.told == []

    run(test)


def test_an_outage_keeps_order_and_says_why_once() -> None:
    async def test(store: Store, queue: Queue) -> None:
        told: list[int] = []
        store.up = False
        for n in range(10):
            queue.add(store.write, n, then=told.append)
        await until(lambda: queue.failures >= 3)
        assert told == []
        assert queue.trouble is not None
        assert [each.why for each in queue.told if each] == ["the store is away"]
        store.up = True
        await settled(queue)
        assert store.stored == told == list(range(10))
        assert queue.told[-1] is None
        assert queue.trouble is None

    run(test)


def test_reads_wait_for_writes_before_them_but_not_for_an_outage() -> None:
    async def test(store: Store, queue: Queue) -> None:
        for n in range(5):
            queue.add(store.write, n)
        assert await queue.read(store.read) == [0, 1, 2, 3, 4]
        store.up = False
        queue.add(store.write, 5)
        with pytest.raises(HostError, match="the store is away"):
            await queue.read(store.read)  # it stood behind the write when that failed
        assert queue.trouble is not None
        with pytest.raises(HostError, match="the store is away"):
            await queue.read(store.read)
        assert await queue.read(lambda: "another store") == "another store"
        store.up = True
        await settled(queue)
        assert await queue.read(store.read) == [0, 1, 2, 3, 4, 5]

    run(test)


def test_a_read_that_fails_stops_no_write() -> None:
    async def test(store: Store, queue: Queue) -> None:
        def bad() -> None:
            raise ZeroDivisionError

        read = asyncio.ensure_future(queue.read(bad))
        await asyncio.sleep(0)
        queue.add(store.write, 1)
        with pytest.raises(ZeroDivisionError):
            await read
        await settled(queue)
        assert store.stored == [1]

    assert run(test).bugs == []


def test_what_waits_with_the_same_key_is_replaced_by_the_newer() -> None:
    async def test(store: Store, queue: Queue) -> None:
        store.up = False
        queue.add(store.write, "first")
        await until(lambda: bool(queue.failures))
        for n in range(100):
            queue.add(store.write, f"a{n}", key="a")
            queue.add(store.write, f"b{n}", key="b")
        assert queue.pending == 3
        store.up = True
        await settled(queue)
        assert store.stored == ["first", "a99", "b99"]

    run(test)


def test_a_store_that_does_not_answer_is_seen_and_nobody_waits_for_it() -> None:
    async def test(store: Store, queue: Queue) -> None:
        assert queue.stuck_s == 0.0
        gate = threading.Event()
        queue.add(gate.wait)
        queue.add(store.write, 1)
        with pytest.raises(HostError, match=r"the store has not answered within 0\.05 s"):
            await queue.read(store.read)
        assert queue.stuck_s >= 0.05
        gate.set()
        await settled(queue)
        assert (store.stored, queue.stuck_s) == ([1], 0.0)

    assert run(test, answer_s=0.05).bugs == []


class Transactional(Store):
    """Keeps what a transaction wrote, or nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.transactions: list[int] = []
        self.fail_at: Any = None

    @contextmanager
    def together(self) -> Iterator[None]:
        before = len(self.stored)
        try:
            yield
        except HostError:
            del self.stored[before:]
            raise
        self.transactions.append(len(self.stored) - before)

    def put(self, value: Any) -> Any:
        if value == self.fail_at:
            self.fail_at = None
            raise HostError("in the middle")
        return self.write(value)


def test_neighbours_share_a_transaction_and_its_failure() -> None:
    async def test(_: Store, queue: Queue) -> None:
        store, other, told = Transactional(), Store(), []
        store.fail_at = 7
        queue.add(lambda: time.sleep(0.02))  # the others come meanwhile
        for n in range(10):
            queue.add(store.put, n, then=told.append)
        queue.add(other.write, "file", then=told.append)
        queue.add(store.put, 10, then=told.append)
        await settled(queue)
        assert store.stored == list(range(11))
        assert told == [*range(10), "file", 10]
        assert store.transactions == [10, 1], "what another store writes comes between"
        assert queue.failures == 1

    run(test)


def test_a_look_waits_for_no_write() -> None:
    async def test(store: Store, queue: Queue) -> None:
        gate = threading.Event()
        queue.add(gate.wait)
        queue.add(store.write, 1)
        assert await queue.look(store.read) == []
        gate.set()
        await settled(queue)
        assert await queue.look(store.read) == [1]

    run(test)


def test_a_bug_in_a_write_or_after_it_is_told_and_ends_the_queue() -> None:
    def wrong(*_: object) -> None:
        raise ZeroDivisionError

    async def in_write(store: Store, queue: Queue) -> None:
        queue.add(wrong)
        queue.add(store.write, 1)
        await until(lambda: bool(queue.bugs))
        assert store.stored == []

    async def after_write(store: Store, queue: Queue) -> None:
        queue.add(store.write, 1, then=wrong)
        await until(lambda: bool(queue.bugs))

    for test in (in_write, after_write):
        queue = run(test)
        assert isinstance(queue.bugs[0], ZeroDivisionError)


def test_the_queue_is_bounded() -> None:
    async def test(store: Store, queue: Queue) -> None:
        store.up = False
        for n in range(21):
            queue.add(store.write, n)
        assert isinstance(queue.bugs[0], HostError)
        assert "21 writes wait for their store: allowed 20" in str(queue.bugs[0])

    run(test, most=20)


def test_close_says_how_many_were_left() -> None:
    async def whole() -> int:
        store, queue = Store(), Queue()
        store.up = False
        for n in range(4):
            queue.add(store.write, n)
        return await queue.close(0.05)

    assert asyncio.run(whole()) == 4


@given(st.lists(st.tuples(st.sampled_from(["write", "down", "up", "lose", "pause"]), st.integers(0, 3)), max_size=60))
def test_whatever_happens_each_write_is_stored_in_order(story: list[tuple[str, int]]) -> None:
    async def test(store: Store, queue: Queue) -> None:
        told: list[int] = []
        count = 0
        for what, much in story:
            if what == "write":
                for _ in range(much):
                    queue.add(store.write, count, then=told.append)
                    count += 1
            elif what == "lose":
                store.lose_answers = much
            elif what == "pause":
                await asyncio.sleep(0.002)
            else:
                store.up = what == "up"
        store.up = True
        await settled(queue)
        assert told == list(range(count)), "each told once, in order"
        # an answer that was lost may store a write twice, but never out of order
        assert store.stored == sorted(store.stored)
        assert sorted(set(store.stored)) == list(range(count))

    assert run(test).bugs == []
