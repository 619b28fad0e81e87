"""History's writes wait for a store that is away, in order, bounded, and go on by themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from history_blocks import T0, bucket, forecast
from waiting import until

from coordinator.demand.signals import SignalBlock
from coordinator.store.history import ParquetHistory
from coordinator.store.history_queue import HistoryQueue
from shared.errors import HostError
from shared.units import BUCKET_S


class Refusing(ParquetHistory):
    """A history whose store refuses while `away`, and tells what it was given."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.away = threading.Event()
        self.tried = threading.Event()

    def append_buckets(self, block: object) -> None:
        self._ask()
        super().append_buckets(block)  # type: ignore[arg-type]

    def append_forecast(self, block: object) -> None:
        self._ask()
        super().append_forecast(block)  # type: ignore[arg-type]

    def _ask(self) -> None:
        self.tried.set()
        if self.away.is_set():
            raise HostError("no route to the store")


@pytest.fixture
def history(tmp_path: Path) -> Refusing:
    return Refusing(tmp_path)


Made = Callable[..., HistoryQueue]


@pytest.fixture
def queue_of(history: Refusing) -> object:
    made: list[HistoryQueue] = []
    bugs: list[BaseException] = []

    def make(**options: float) -> HistoryQueue:
        made.append(HistoryQueue(history, bugs.append, first_pause_s=0.01, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for queue in made:
        queue.close(5.0)
    assert bugs == []


def test_what_the_store_refused_is_stored_in_order_when_it_is_back(history: Refusing, queue_of: Made) -> None:
    queue, done = queue_of(), []
    history.away.set()
    for i in range(5):
        queue.put_bucket(bucket(T0 + i * BUCKET_S, value=float(i)), late=False, then=lambda i=i: done.append(i))
    until(lambda: queue.failures >= 3, "three failures", 10)
    assert queue.trouble is not None
    assert queue.trouble.why == "no route to the store"
    assert (queue.pending, done) == (5, [])
    assert not queue.settle(0.0)
    history.away.clear()
    assert queue.settle(10.0)
    assert (queue.trouble, done) == (None, [0, 1, 2, 3, 4])
    assert history.load(["a"], T0 + 4 * BUCKET_S, 5).mean[0, 0].tolist() == [0, 1, 2, 3, 4]


def test_full_is_told_and_a_bucket_closed_again_takes_no_more_room(history: Refusing, queue_of: Made) -> None:
    queue = queue_of(max_buckets=3)
    history.away.set()
    for i in range(2):
        queue.put_bucket(bucket(T0 + i * BUCKET_S), late=False)
    history.tried.wait(5.0)
    for samples in (61, 62, 63):
        grown = replace(bucket(T0 + BUCKET_S, value=float(samples)), samples=np.full(2, samples))
        queue.put_bucket(grown, late=True)
    assert (queue.pending, queue.full) == (2, False)
    part = replace(bucket(T0 + BUCKET_S, ("a",), 5.0), samples=np.array([1]))  # rebuilt from less: it must not replace
    queue.put_bucket(part, late=True)
    assert (queue.pending, queue.full) == (3, True)
    history.away.clear()
    assert queue.settle(10.0)
    assert not queue.full
    assert history.load(["a", "b"], T0 + BUCKET_S, 1).mean[:, 0, 0].tolist() == [63, 73]


def test_of_waiting_forecasts_the_oldest_are_given_up_and_buckets_never(history: Refusing, queue_of: Made) -> None:
    queue = queue_of(max_forecasts=2)
    history.away.set()
    queue.put_bucket(bucket(T0), late=False)
    history.tried.wait(5.0)
    for i in range(5):
        queue.put_forecast(forecast(T0 + i * BUCKET_S))
    assert (queue.pending, queue.forecasts_dropped) == (3, 3)
    history.away.clear()
    assert queue.settle(10.0)
    assert [issued.issued_s for issued in history.forecasts("a", 0)] == [T0 + 3 * BUCKET_S, T0 + 4 * BUCKET_S]


def test_signals_go_the_same_way(history: Refusing, queue_of: Made) -> None:
    queue, settled = queue_of(), threading.Event()
    queue.put_signals((SignalBlock(start_s=T0, vm_ids=("a",), means=np.array([[1.0, 2.0]])),), settled.set)
    assert queue.settle(10.0)
    assert settled.is_set()
    assert history.signals("a", T0, 1) is not None


def test_closing_does_not_wait_for_a_dead_store(history: Refusing, queue_of: Made) -> None:
    queue = queue_of()
    history.away.set()
    queue.put_bucket(bucket(T0), late=False)
    until(lambda: queue.trouble is not None, "trouble", 10)
    queue.close(5.0)
    assert queue.pending == 1
    assert history.newest_s() is None


def test_anything_but_the_store_failing_is_a_bug(history: Refusing) -> None:
    bugs: list[BaseException] = []
    queue = HistoryQueue(history, bugs.append)
    queue.put_bucket(bucket(T0 + 1), late=False)
    until(lambda: bugs, "a bug", 10)
    assert "allowed are multiples of 300" in str(bugs[0])
    queue.close(0.1)


def test_a_reader_waits_for_what_was_there_and_not_for_what_comes(history: Refusing, queue_of: Made) -> None:
    queue, second = queue_of(), threading.Event()
    stored = threading.Event()

    def then() -> None:
        stored.set()
        second.wait(10.0)  # as slow a store as one likes

    queue.put_bucket(bucket(T0), late=False)
    assert queue.settle(10.0)
    queue.put_bucket(bucket(T0 + BUCKET_S), late=False, then=then)
    assert stored.wait(10.0)
    assert not queue.settle(0.05), "this one was there and is not done"
    waited = threading.Thread(target=lambda: results.append(queue.settle(10.0)))
    results: list[bool] = []
    waited.start()
    time.sleep(0.2)  # nothing shows from outside that it waits
    history.away.set()
    queue.put_bucket(bucket(T0 + 2 * BUCKET_S), late=False)  # comes meanwhile, and is refused
    second.set()
    waited.join(10.0)
    history.away.clear()
    assert results == [True]
