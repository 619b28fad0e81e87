"""Between the cycle and history: what is stored, when the frames' log may be cut, what history's troubles mean for the rest.

The log is cut only behind buckets that history holds. While history takes nothing, buckets wait (store/history_queue.py), decisions go on,
`trouble` says so; when as many wait as may, agents are sent away and keep their frames. All of it ends by itself when the store is back.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import structlog

from coordinator import cycle as cy
from coordinator.store.history import ParquetHistory
from coordinator.store.history_queue import HistoryQueue
from coordinator.store.signal_log import SignalLog
from coordinator.store.wal import Wal
from shared.errors import HostError
from shared.metrics import Metrics, Rising

LOG_BUCKETS: Final = 36  # closed buckets that the log reaches back over: three hours
LEAST_LOG_BUCKETS: Final = 3
UNREADY_S: Final = 30.0  # a store that is away for moments makes nobody unready
READ_BEHIND_S: Final = 2.0  # how long a read waits for the writes before it; a page shows five minutes less rather than nothing
READERS: Final = 2  # threads; pages that read a year must not queue all others behind them
CLOSE_S: Final = 10.0
RETRY_S: Final = 2.0

_T = TypeVar("_T")
log = structlog.get_logger("coordinator")


class HistoryKeeper:
    """Wiring around one history. `hold(why)` is told when samples may not be taken in, "" when they may again."""

    def __init__(
        self,
        history: ParquetHistory,
        wal: Wal,
        signal_log: SignalLog,
        metrics: Metrics,
        *,
        hold: Callable[[str], None],
        on_bug: Callable[[BaseException], None],
    ) -> None:
        self._history, self._wal, self._signal_log = history, wal, signal_log
        self._metrics, self._rising = metrics, Rising(metrics)
        self._hold, self._held = hold, False
        self._queue = HistoryQueue(history, on_bug)
        self._readers = ThreadPoolExecutor(READERS, "history-read")
        self._marks: deque[int] = deque(maxlen=LOG_BUCKETS)

    def store_bucket(self, instruction: cy.StoreBucket) -> None:
        """Queue a closed bucket; the log is cut when history holds it."""
        if not instruction.late:
            self._metrics.add("tidegate_buckets_closed_total")
            self._metrics.set("tidegate_newest_bucket_timestamp_seconds", instruction.bucket.start_s)
            self._marks.append(self._wal.next_token)
        cut = self._log_cut()
        self._queue.put_bucket(instruction.bucket, late=instruction.late, then=lambda: self._wal.trim(cut))

    def store_signals(self, instruction: cy.StoreSignals) -> None:
        """Queue what applications told of buckets that have ended."""
        place = self._signal_log.close_bucket(instruction.closed_s)
        self._queue.put_signals(instruction.blocks, lambda: self._signal_log.settled(place))

    def store_forecast(self, instruction: cy.StoreForecast) -> None:
        """Queue an issued forecast."""
        self._queue.put_forecast(instruction.forecast)

    async def read(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Run a read of history behind the writes before it. HostError when the store does not answer."""

        def behind() -> _T:
            if self._queue.trouble is None:
                self._queue.settle(READ_BEHIND_S)
            return function(*arguments)

        return await asyncio.get_running_loop().run_in_executor(self._readers, behind)

    async def insist(self, function: Callable[..., _T], *arguments: object) -> _T:
        """As `read`, again and again until the store answers: for what the process cannot go on without."""
        while True:
            try:
                return await self.read(function, *arguments)
            except HostError as error:
                log.error("waiting for history", reason=str(error))
            await asyncio.sleep(RETRY_S)

    @property
    def trouble(self) -> str:
        """Why history is not up to date, where that has lasted; "" = it is."""
        trouble = self._queue.trouble
        if trouble is None or time.monotonic() - trouble.since_s < UNREADY_S:
            return ""
        return f"history takes no writes for {time.monotonic() - trouble.since_s:.0f} s, {self._queue.pending} wait: {trouble.why}"

    def settle(self, within_s: float) -> bool:
        """Wait until history holds what it was given; False when it took too long. Blocks."""
        return self._queue.settle(within_s)

    def look(self) -> None:
        """Once a tick: pass on what has changed."""
        full = self._queue.full
        if full != self._held:
            self._held = full
            trouble = self._queue.trouble
            self._hold(f"history is behind: {trouble.why if trouble else 'its store is slow'}" if full else "")
        self._metrics.set("tidegate_history_bytes", self._history.total_bytes)
        self._metrics.set("tidegate_history_pending_writes", self._queue.pending)
        self._metrics.set("tidegate_history_damaged_parts", len(self._history.damaged))
        self._rising.follow("tidegate_history_write_failures_total", self._queue.failures)
        self._rising.follow("tidegate_history_forecasts_dropped_total", self._queue.forecasts_dropped)
        self._rising.follow("tidegate_history_dropped_partitions_total", self._history.days_dropped)

    def close(self) -> None:
        """Store what can be stored within moments; the rest comes from the log at the next start. Blocks."""
        self._queue.close(CLOSE_S)
        self._readers.shutdown(wait=True)

    def _log_cut(self) -> int:
        """Token up to which the log may go. A long log lets late samples find the rest of their bucket after a restart; a full one must
        be cut, and then three buckets behind: a frame logged before a bucket closed reaches into the next one at most.
        """
        marks = self._marks
        if len(marks) == LOG_BUCKETS:
            return marks[0]
        crowded = self._wal.total_bytes > self._wal.max_bytes // 2
        return marks[-LEAST_LOG_BUCKETS] if crowded and len(marks) >= LEAST_LOG_BUCKETS else 0
