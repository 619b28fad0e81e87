"""What history's troubles mean for the rest: the log is kept, agents are held when too much waits, reads say why, and it ends by itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from history_blocks import T0, bucket
from waiting import until

from coordinator import cycle as cy
from coordinator import history_keeper
from coordinator.history_keeper import HistoryKeeper
from coordinator.store import history_queue
from coordinator.store.history import ParquetHistory
from coordinator.store.signal_log import SignalLog
from coordinator.store.wal import Wal
from shared.errors import HostError
from shared.metrics import COORDINATOR_METRICS, Metrics
from shared.units import BUCKET_S


class Away(ParquetHistory):
    """A history whose store answers nothing while `away`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.away = threading.Event()

    def append_buckets(self, block: Any) -> None:
        self._ask()
        super().append_buckets(block)

    def newest_s(self) -> int | None:
        self._ask()
        return super().newest_s()

    def _ask(self) -> None:
        if self.away.is_set():
            raise HostError("no route to the store")


class Kept:
    def __init__(self, folder: Path) -> None:
        self.history = Away(folder / "history")
        self.wal = Wal(folder / "wal", segment_bytes=4096)
        self.signal_log = SignalLog(folder / "signals")
        self.metrics = Metrics(COORDINATOR_METRICS)
        self.held: list[str] = []
        self.bugs: list[BaseException] = []
        self.keeper = HistoryKeeper(self.history, self.wal, self.signal_log, self.metrics, hold=self.held.append, on_bug=self.bugs.append)

    def close_buckets(self, first: int, count: int) -> None:
        """Frames of each bucket are logged, then it closes."""
        for i in range(first, first + count):
            for _ in range(3):
                self.wal.append("h", "b", self.wal.next_token, bytes(2000))
            self.wal.sync()
            self.keeper.store_bucket(cy.StoreBucket(bucket=bucket(T0 + i * BUCKET_S, value=float(i))))


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    monkeypatch.setattr(history_queue, "MAX_PAUSE_S", 0.05)
    monkeypatch.setattr(history_keeper, "UNREADY_S", 0.0)
    monkeypatch.setattr(history_keeper, "RETRY_S", 0.01)
    made = Kept(tmp_path)
    yield made
    made.history.away.clear()
    made.keeper.close()
    made.signal_log.close()
    made.wal.close()
    assert made.bugs == []


def test_the_log_keeps_every_frame_until_history_holds_its_bucket(kept: Kept) -> None:
    kept.close_buckets(0, history_keeper.LOG_BUCKETS + 2)
    assert kept.keeper.settle(20.0)
    kept.keeper.look()
    assert (kept.keeper.trouble, kept.held) == ("", [])
    first, cut = min(token for token, _ in kept.wal.replay()), kept.wal.total_bytes
    assert first > 0
    kept.history.away.set()
    kept.close_buckets(history_keeper.LOG_BUCKETS + 2, 10)
    until(lambda: "no route to the store" in kept.keeper.trouble, "trouble", 10)
    assert min(token for token, _ in kept.wal.replay()) == first
    assert kept.wal.total_bytes > cut
    kept.history.away.clear()
    assert kept.keeper.settle(20.0)
    assert min(token for token, _ in kept.wal.replay()) > first
    assert kept.keeper.trouble == ""


def test_agents_are_held_while_too_many_buckets_wait(kept: Kept) -> None:
    kept.history.away.set()
    kept.close_buckets(0, history_queue.MAX_BUCKETS)
    until(lambda: kept.keeper.trouble, "trouble", 10)
    kept.keeper.look()
    kept.keeper.look()
    assert kept.held == ["history is behind: no route to the store"]
    assert b"tidegate_history_pending_writes 36.0" in kept.metrics.render()
    kept.history.away.clear()
    assert kept.keeper.settle(20.0)
    kept.keeper.look()
    assert kept.held == ["history is behind: no route to the store", ""]
    assert kept.history.newest_s() == T0 + (history_queue.MAX_BUCKETS - 1) * BUCKET_S


def test_a_read_says_why_and_one_that_insists_waits(kept: Kept) -> None:
    kept.close_buckets(0, 1)
    assert kept.keeper.settle(20.0)

    async def both() -> tuple[str, int | None]:
        kept.history.away.set()
        with pytest.raises(HostError) as refused:
            await kept.keeper.read(kept.history.newest_s)
        insisting = asyncio.create_task(kept.keeper.insist(kept.history.newest_s))
        await asyncio.sleep(0)
        assert not insisting.done()
        kept.history.away.clear()
        return str(refused.value), await insisting

    assert asyncio.run(both()) == ("no route to the store", T0)
