"""Keeps the minutes of service objectives durable, and fills in from history what was never sampled: at start and when SLAs change.

Writes go behind the others in the store's thread; filling reads history in a thread of its own, a quarter of a day and at most
MAX_VMS VMs at a time (100 MB), oldest last, so what burn rates need comes first. An hour is asked of history once, and again where
other thresholds hold for it now.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import numpy as np
import structlog

from coordinator.cycle import DecisionCycle, MergeMinutes, StoreMinutes
from coordinator.learning.compliance import Kind, LateMinutes
from coordinator.learning.compliance_backfill import MEASURES, words_of
from coordinator.learning.compliance_hours import HOUR_S, SLOTS, U64, HourBits, Owner, Promise
from coordinator.learning.compliance_sums import PAIRS
from coordinator.model import F32
from coordinator.store.compliance_store import ComplianceStore
from shared.clock import Clock
from shared.errors import HostError
from shared.metrics import Metrics
from shared.model import Priority
from shared.units import BUCKET_S, NS_PER_S

CHUNK_HOURS: Final = 6
MAX_VMS: Final = 10_000
LOOK_S: Final = 60.0  # of the coordinator's clock: how often it is looked whether SLAs have changed
MOST_CLIENTS: Final = 100  # x 4 objectives: within what a metric may have
KEPT_HOURS: Final = 2  # beyond the longest period, for late samples

_T = TypeVar("_T")
log = structlog.get_logger("coordinator")


class Write(Protocol):
    """A store's write, in order behind the others; `then` gets its result in the event loop."""

    def __call__(self, function: Callable[..., _T], /, *arguments: object, then: Callable[[_T], None] | None = None) -> None: ...


class Read(Protocol):
    """A store's read or change, in order behind the writes before it."""

    async def __call__(self, function: Callable[..., _T], /, *arguments: object) -> _T: ...


class Past(Protocol):
    """What is asked of history."""

    def measures(self, vm_ids: Sequence[str], end_s: int, buckets: int, names: Sequence[str]) -> dict[str, F32]:
        """float32[v, r, buckets] of each measure, ending with bucket `end_s`."""
        ...


class ComplianceKeeper:
    """Of one coordinator. `restore` before the first tick, `run` beside the other loops."""

    def __init__(
        self,
        cycle: DecisionCycle,
        *,
        store: ComplianceStore,
        past: Past,
        clock: Clock,
        write: Write,
        read: Read,
        insist: Read,
        metrics: Metrics,
    ) -> None:
        """`insist`: a read of history, in a thread, as often as it takes."""
        self._cycle, self._store, self._past, self._clock, self._insist = cycle, store, past, clock, insist
        self._write, self._read, self._metrics = write, read, metrics
        self._book = cycle.compliance
        self._told: set[tuple[Kind, str, str]] = set()  # what metrics were set of
        self._version: int | None = None  # of the SLAs that the past was judged by

    def restore(self) -> None:
        """Read what was stored. Blocks: seconds for a month of 10,000 VMs."""
        self._book.restore(self._store.hours())

    def perform(self, instruction: StoreMinutes | MergeMinutes) -> None:
        """Make durable what the cycle counted."""
        match instruction:
            case StoreMinutes():
                for hour in instruction.hours:
                    self._write(self._store.save, hour, hour.hour_s - self._book.longest_s - KEPT_HOURS * HOUR_S)
                self.publish()
            case MergeMinutes():
                self._write(self._merge, instruction.late, then=self._book.counted)

    async def run(self) -> None:
        """For good: fill in the past whenever there is reason to."""
        while True:
            version = self._book.slas.version
            if version != self._version and self._cycle.fleet.vms:
                try:
                    await self._fill_past()
                    self._version = version
                except HostError as error:  # what was filled in stays; the rest comes when the store is back
                    log.warning("minutes of the past wait for their store", reason=str(error))
            await self._clock.sleep(LOOK_S)

    def publish(self) -> None:
        """Metrics of priorities and of the first MOST_CLIENTS clients by name; of who is gone NaN, not the last value."""
        kinds: tuple[tuple[Kind, int], ...] = (("client", MOST_CLIENTS), ("priority", len(Priority)))
        told = set()
        for kind, most in kinds:
            for name, parts in list(self._book.standings(kind).items())[:most]:
                for part in parts:
                    told.add((kind, name, part.metric))
                    spent = part.bad / part.budget if part.budget else math.nan
                    self._set(kind, name, part.metric, (math.nan if part.compliance is None else part.compliance, spent, part.alert))
        for kind, name, metric in self._told - told:
            self._set(kind, name, metric, (math.nan, math.nan, math.nan))
        self._told = told
        whole = self._book.standings("priority").values()
        for state in ("good", "bad", "unknown"):
            self._metrics.set("tidegate_sla_vm_seconds", 60 * sum(getattr(part, state) for parts in whole for part in parts), state=state)

    def _set(self, kind: Kind, name: str, metric: str, values: tuple[float, float, float]) -> None:
        for suffix, value in zip(("compliance", "budget_spent", "burn"), values, strict=True):
            self._metrics.set(f"tidegate_sla_{kind}_{suffix}_ratio", value, **{kind: name, "objective": metric})

    async def _fill_past(self) -> None:
        running, now_s = self._cycle.owners(), self._clock.wall_ns() // NS_PER_S
        promise = self._book.promise_of(running)
        newest_s = now_s // HOUR_S * HOUR_S - HOUR_S
        longest_s = max(self._book.longest_s, int(promise.periods.max(initial=1)) * HOUR_S)
        names, minutes = list(running), 0
        for end_s in range(newest_s, newest_s - longest_s, -CHUNK_HOURS * HOUR_S):
            for first in range(0, len(names), MAX_VMS):
                rows = np.arange(first, min(first + MAX_VMS, len(names)))
                part = _Part(
                    names=[names[row] for row in rows],
                    owners=[running[names[row]] for row in rows],
                    promise=promise.take(rows),
                    last=first + MAX_VMS >= len(names),
                )
                minutes += await self._fill(part, end_s)
        log.info("minutes of service objectives filled in from history", minutes=minutes, vms=len(names))

    async def _fill(self, part: _Part, end_s: int) -> int:
        """The hours up to the one that begins at `end_s`; how many minutes were filled in."""
        starts = [end_s - back * HOUR_S for back in range(CHUNK_HOURS - 1, -1, -1)]
        wanted = [start_s for start_s in starts if await self._read(self._wants, part, start_s)]
        if not wanted:
            return 0
        known, bad = await self._insist(self._words, part, end_s)
        minutes = 0
        for start_s in wanted:
            at = (start_s - starts[0]) // HOUR_S
            # read, changed and written in the store's own thread: a late bucket of the same hour comes before or after it
            hour, filled = await self._read(self._fill_hour, part, start_s, known[:, at], bad[:, at])
            minutes += filled
            whole = self._book.filled(hour, part.names, part.promise)
            if whole is not None:
                self._write(self._store.save, whole)
        return minutes

    def _wants(self, part: _Part, hour_s: int) -> bool:
        hour = self._store.load(hour_s)
        if hour is None:
            return True
        hour.rebase(part.names, part.promise)
        return not hour.tried

    def _words(self, part: _Part, end_s: int) -> tuple[U64, U64]:
        past = self._past.measures(part.names, end_s + HOUR_S - BUCKET_S, CHUNK_HOURS * SLOTS, MEASURES)
        return words_of(past, part.promise.thresholds)

    def _fill_hour(self, part: _Part, hour_s: int, known: U64, bad: U64) -> tuple[HourBits, int]:
        hour = self._store.load(hour_s) or HourBits(hour_s=hour_s)
        dropped = hour.rebase(part.names, part.promise)
        filled = hour.fill(part.names, part.owners, part.promise, known=known, bad=bad, dropped=dropped)
        hour.tried = part.last
        self._store.save(hour)
        return hour, filled

    def _merge(self, late: LateMinutes) -> HourBits:
        hour = self._store.load(late.hour_s) or HourBits(hour_s=late.hour_s)
        hour.merge(late.block, late.owners, late.promise)
        self._store.save(hour)
        return hour


@dataclass(frozen=True, kw_only=True)
class _Part:
    """VMs whose past is looked at together."""

    names: list[str]
    owners: list[Owner]
    promise: Promise
    last: bool  # of the hour


assert max(long for long, _, _ in PAIRS) == 3 * 86_400, "as far as the book looks back at least"
