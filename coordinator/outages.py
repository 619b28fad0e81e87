"""What the process does while it cannot make things durable: decides nothing, sends agents away, says why, and takes up again by itself.

A write of a store that fails waits and is tried again (coordinator/store/pending.py); the frames' log does so in the gateway. The cycle is
held at once: a plan that is not stored is not sent. Agents are sent away once it has lasted AGENTS_AFTER_S; what they say until then is
durable in the frames' log, and a database that only changes its primary costs them nothing. Real time throughout: an outage is one of this
machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final, TypeVar

import structlog

from coordinator.store.pending import PendingWrites, Trouble
from shared.errors import HostError
from shared.metrics import Metrics, Rising
from shared.notify import notify

AGENTS_AFTER_S: Final = 5.0
STUCK_S: Final = 15.0  # a batch of writes takes a fraction of a second; a table that is pruned takes seconds
LOG_S: Final = 60.0  # from one reminder in the log to the next
START_RETRY_S: Final = 2.0
START_EXTENDS_S: Final = 60  # what systemd is asked for with every attempt

_T = TypeVar("_T")
log = structlog.get_logger("coordinator")


class Outages:
    """`writes` is the queue of every store. `hold(why)` and `refuse_agents(why)` get "" when it is over."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        hold: Callable[[str], None],
        refuse_agents: Callable[[str], None],
        log_trouble: Callable[[], str],
        on_bug: Callable[[BaseException], None],
    ) -> None:
        self.writes = PendingWrites(self._changed, on_bug)
        self._metrics, self._rising = metrics, Rising(metrics)
        self._hold, self._refuse_agents, self._log_trouble = hold, refuse_agents, log_trouble
        self._held = self._refused = ""
        self._log_due_s = 0.0

    @property
    def why(self) -> str:
        """Why nothing is decided now; "" = all is well."""
        trouble = self.writes.trouble
        if trouble is not None:
            return trouble.why
        if self.writes.stuck_s >= STUCK_S:
            return "a store has not answered for a while"
        if self.writes.behind:
            return f"{self.writes.pending} writes wait for their store"
        return self._log_trouble()

    def look(self) -> None:
        """Once a tick: act on what has changed or lasted, and publish it."""
        now_s, trouble = time.monotonic(), self.writes.trouble
        self._follow()
        lasted_s = self.writes.stuck_s if trouble is None else now_s - trouble.since_s
        away = trouble is not None or lasted_s >= STUCK_S
        refused = f"the coordinator cannot store: {self.why}" if away and lasted_s >= AGENTS_AFTER_S else ""
        if refused != self._refused:
            self._refused = refused
            self._refuse_agents(refused)
        if self._held and now_s >= self._log_due_s:
            self._log_due_s = now_s + LOG_S
            log.error("nothing can be stored: decisions are held", reason=self._held, pending=self.writes.pending, for_s=round(lasted_s))
        self._metrics.set("tidegate_store_pending_writes", self.writes.pending)
        self._metrics.set("tidegate_store_unreachable_seconds", now_s - self.writes.reached_s if away else 0.0)
        self._metrics.set("tidegate_store_held", bool(self._held))
        self._rising.follow("tidegate_store_write_failures_total", self.writes.failures)

    def _changed(self, trouble: Trouble | None) -> None:
        if trouble is None:
            log.warning("stores take writes again", pending=self.writes.pending)
            self._log_due_s = 0.0
        self._follow()

    def _follow(self) -> None:
        why = self.why
        if why != self._held:
            self._held = why
            self._hold(why)


async def opened(make: Callable[[], _T], stop: asyncio.Event) -> _T | None:
    """What `make` gives once its stores can be reached: an outage at the start is no reason to give up. None = told to stop meanwhile."""
    while not stop.is_set():
        try:
            return make()
        except HostError as error:
            log.error("waiting for the stores", reason=str(error))
            notify(f"EXTEND_TIMEOUT_USEC={START_EXTENDS_S * 1_000_000}")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), START_RETRY_S)
    return None
