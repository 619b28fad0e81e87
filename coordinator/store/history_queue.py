"""Writes to history, in order, in a thread of their own: a slow or dead store delays nothing else and loses nothing.

A write that the store refuses is tried again, with growing pauses, until it is taken; what follows it waits. Frames stay in the log until
history holds their bucket (`then` cuts the log), so a kill loses nothing either. Bounds: waiting buckets are told of in `full` from
`max_buckets` on, and the caller stops taking samples in; a bucket that is closed again takes the place of its waiting older self; of
waiting forecasts, which are large and only score what has been decided, the oldest are given up.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog

from coordinator.demand.signals import SignalBlock
from coordinator.model import BucketBlock, ForecastBlock
from coordinator.store.history import ParquetHistory
from shared.errors import HostError

MAX_BUCKETS: Final = 36  # three hours; 10,000 VMs are 2 MB a bucket
MAX_FORECASTS: Final = 3  # 10,000 VMs are 50 MB each
FIRST_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 30.0

log = structlog.get_logger("coordinator")


@dataclass(frozen=True)
class Trouble:
    """Why history takes nothing, and since when (monotonic seconds)."""

    why: str
    since_s: float


@dataclass(eq=False)  # found by identity: arrays have no truth
class _Waiting:
    block: BucketBlock | ForecastBlock | tuple[SignalBlock, ...]
    late: bool = False
    then: Callable[[], None] | None = None
    number: int = 0  # in the order of coming


class HistoryQueue:
    """Owns the writing side of `history`. `on_bug(error)` is called in the queue's thread when anything but the store fails."""

    def __init__(
        self,
        history: ParquetHistory,
        on_bug: Callable[[BaseException], None],
        *,
        max_buckets: int = MAX_BUCKETS,
        max_forecasts: int = MAX_FORECASTS,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self.failures = 0
        self.forecasts_dropped = 0
        self.trouble: Trouble | None = None
        self._history, self._on_bug = history, on_bug
        self._max_buckets, self._max_forecasts, self._first_pause_s = max_buckets, max_forecasts, first_pause_s
        self._waiting: deque[_Waiting] = deque()  # the first one is being written
        self._put = 0  # number of the newest
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._thread.start()

    def put_bucket(self, block: BucketBlock, *, late: bool, then: Callable[[], None] | None = None) -> None:
        """Store a closed bucket (`late`: one that grew); `then` runs in the queue's thread when history holds it."""
        with self._changed:
            for waiting in list(self._waiting)[1:]:
                if isinstance(waiting.block, BucketBlock) and _contains(block, waiting.block):
                    waiting.block = block
                    return  # the older self's `then` cuts the log less far back than this one's: the next bucket's makes up for it
            self._add(_Waiting(block, late, then))

    def put_signals(self, blocks: tuple[SignalBlock, ...], then: Callable[[], None]) -> None:
        """Store what applications told."""
        with self._changed:
            self._add(_Waiting(blocks, then=then))

    def put_forecast(self, block: ForecastBlock) -> None:
        """Store an issued forecast."""
        with self._changed:
            older = [waiting for waiting in list(self._waiting)[1:] if isinstance(waiting.block, ForecastBlock)]
            if len(older) >= self._max_forecasts:
                self._waiting.remove(older[0])
                self.forecasts_dropped += 1
            self._add(_Waiting(block))

    @property
    def pending(self) -> int:
        """Writes not yet held by history."""
        with self._changed:
            return len(self._waiting)

    @property
    def full(self) -> bool:
        """As many buckets wait as may: take no more samples in."""
        with self._changed:
            return sum(isinstance(waiting.block, BucketBlock) for waiting in self._waiting) >= self._max_buckets

    def settle(self, within_s: float) -> bool:
        """Wait until what waits now is held, whatever comes meanwhile; False when it took too long."""
        with self._changed:
            last = self._put

            def settled() -> bool:
                return not self._waiting or self._waiting[0].number > last

            return self._changed.wait_for(lambda: settled() or self._closing, within_s) and settled()

    def close(self, within_s: float) -> None:
        """Finish what can be finished in time and stop. The rest is in the log, and comes again from there."""
        self.settle(within_s if self.trouble is None else 0.0)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(within_s)

    def _add(self, waiting: _Waiting) -> None:
        self._put += 1
        waiting.number = self._put
        self._waiting.append(waiting)
        self._changed.notify_all()

    def _run(self) -> None:
        try:
            while (waiting := self._next()) is not None:
                if not self._write(waiting):
                    return
                if waiting.then is not None:
                    waiting.then()
                with self._changed:
                    self._waiting.popleft()
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001  a loop's death is the process's death
            self._on_bug(error)

    def _next(self) -> _Waiting | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return None if self._closing or not self._waiting else self._waiting[0]

    def _write(self, waiting: _Waiting) -> bool:
        """Until it is done; False when the queue was closed meanwhile."""
        pause_s = self._first_pause_s
        while True:
            try:
                self._store(waiting)
            except HostError as error:
                self._failed(str(error))
            else:
                if self.trouble is not None:
                    log.warning("history takes writes again", pending=len(self._waiting))
                self.trouble = None
                return True
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, pause_s):
                    return False
            pause_s = min(MAX_PAUSE_S, 2 * pause_s)

    def _failed(self, why: str) -> None:
        self.failures += 1
        since_s = time.monotonic() if self.trouble is None else self.trouble.since_s
        if self.trouble is None:
            log.error("history takes no writes; they wait", reason=why)
        self.trouble = Trouble(why, since_s)

    def _store(self, waiting: _Waiting) -> None:
        block: Any = waiting.block
        if isinstance(block, ForecastBlock):
            self._history.append_forecast(block)
        elif isinstance(block, BucketBlock):
            (self._history.append_late if waiting.late else self._history.append_buckets)(block)
        else:
            for each in block:
                self._history.append_signals(each)


def _contains(newer: BucketBlock, older: BucketBlock) -> bool:
    """Whether the same bucket, closed again, holds all of its older self: a rebuilt one may hold less."""
    return newer.start_s == older.start_s and newer.vm_ids == older.vm_ids and bool((newer.samples >= older.samples).all())
