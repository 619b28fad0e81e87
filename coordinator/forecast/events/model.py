"""Scheduled events as plain data: who is meant, what is expected, and when, on the 5-minute grid. Pure.

Invariant: everything here is bounded and validated at construction, so that the arrays built from it are. Times are Unix seconds UTC.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F64, N_RESOURCES
from shared.units import BUCKET_S

MAX_TEXT_BYTES: Final = 1 << 20  # of one calendar: ten thousand events of a hundred bytes
MAX_EVENTS: Final = 2000  # in one calendar
MAX_SCOPE_IDS: Final = 10_000
MAX_WINDOW_S: Final = 400 * 86_400  # one call to `occurrences`: a year and the month that a yearly event needs around it
MAX_OCCURRENCES: Final = 20_000  # one call: 2,000 nightly events over ten days
MAX_DURATION_S: Final = 366 * 86_400
MAX_FACTOR: Final = 1000.0
I64 = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a VM belongs to; empty = unknown."""

    client: str = ""
    app: str = ""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Whom an event touches: the VMs named, or all of a client and (or) an application, or everybody (all fields empty)."""

    vm_ids: frozenset[str] = frozenset()
    client: str = ""
    app: str = ""

    def __post_init__(self) -> None:
        if len(self.vm_ids) > MAX_SCOPE_IDS:
            raise ValueError(f"scope: {len(self.vm_ids)} VMs: allowed at most {MAX_SCOPE_IDS}; name a client or an application instead")

    def covers(self, vm_id: str, labels: Labels) -> bool:
        """True where the event touches this VM. Every field that is set must agree."""
        if self.vm_ids and vm_id not in self.vm_ids:
            return False
        return (not self.client or self.client == labels.client) and (not self.app or self.app == labels.app)


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What an event is declared to do to each VM, in the order and units of RESOURCES: an addition, or a factor. NaN = not declared."""

    added: tuple[float, ...] = (math.nan,) * N_RESOURCES
    factor: tuple[float, ...] = (math.nan,) * N_RESOURCES

    def __post_init__(self) -> None:
        for name in ("added", "factor"):
            values = getattr(self, name)
            if len(values) != N_RESOURCES or any(math.isinf(value) for value in values):
                raise ValueError(f"effect {name} {values!r}: allowed {N_RESOURCES} finite numbers or NaN")
        for value in self.factor:
            if not (math.isnan(value) or 0 <= value <= MAX_FACTOR):
                raise ValueError(f"effect factor {value!r}: allowed 0 to {MAX_FACTOR:g}")


class Schedule(Protocol):
    """When an event takes place."""

    def between(self, from_s: int, until_s: int) -> list[tuple[int, int]]:
        """Every [start, end) in Unix seconds that overlaps [from_s, until_s), in order of start."""
        ...


@dataclass(frozen=True, kw_only=True)
class Event:
    """One entry of a calendar. `id` is unique within a fleet's calendars: source and the entry's own id."""

    id: str
    name: str
    category: str
    scope: Scope = Scope()
    effect: Effect = Effect()
    schedule: Schedule


@dataclass(frozen=True, kw_only=True)
class Notice:
    """What the forecasters need of an event: everything but its schedule."""

    id: str
    name: str
    category: str
    scope: Scope
    effect: Effect


@dataclass(frozen=True, kw_only=True)
class Occurrences:
    """Events on the bucket grid, ordered by start: i is of `notices[notice[i]]` and takes `buckets[i]` buckets from `start_s[i]` on."""

    notices: tuple[Notice, ...] = ()
    notice: I64
    start_s: I64
    buckets: I64

    @classmethod
    def none(cls) -> Occurrences:
        """A calendar without entries."""
        empty = np.zeros(0, dtype=np.int64)
        return cls(notice=empty, start_s=empty, buckets=empty)

    @classmethod
    def of(cls, rows: Iterable[tuple[Notice, int, int]]) -> Occurrences:
        """From (notice, start, end) in seconds; starts are floored and ends raised to the grid. Raises ValueError for an empty span."""
        spans = sorted(rows, key=lambda row: (row[1], row[0].id, row[2]))
        notices = {notice.id: notice for notice, _, _ in spans}
        index = {id_: i for i, id_ in enumerate(notices)}
        for notice, start, end in spans:
            if end <= start:
                raise ValueError(f"event {notice.id!r}: ends at {end}, not after its start {start}")
        first = np.array([start // BUCKET_S * BUCKET_S for _, start, _ in spans], dtype=np.int64)
        last = np.array([-(-end // BUCKET_S) * BUCKET_S for _, _, end in spans], dtype=np.int64)
        which = np.array([index[notice.id] for notice, _, _ in spans], dtype=np.int64)
        return cls(notices=tuple(notices.values()), notice=which, start_s=first, buckets=(last - first) // BUCKET_S)

    def __len__(self) -> int:
        return len(self.start_s)

    def near(self, from_s: int, until_s: int) -> I64:
        """Indices of those that overlap [from_s, until_s)."""
        return np.flatnonzero((self.start_s < until_s) & (self.start_s + self.buckets * BUCKET_S > from_s))


def occurrences(events: Sequence[Event], from_s: int, until_s: int) -> Occurrences:
    """Every occurrence that overlaps [from_s, until_s).

    Raises ValueError for a window longer than MAX_WINDOW_S and for more than MAX_OCCURRENCES.
    """
    if not 0 < until_s - from_s <= MAX_WINDOW_S:
        raise ValueError(f"until_s {until_s}: allowed from_s + 1 to from_s + {MAX_WINDOW_S} (from_s {from_s})")
    rows: list[tuple[Notice, int, int]] = []
    for event in events:
        notice = Notice(id=event.id, name=event.name, category=event.category, scope=event.scope, effect=event.effect)
        rows += [(notice, start, end) for start, end in event.schedule.between(from_s, until_s)]
        if len(rows) > MAX_OCCURRENCES:
            raise ValueError(f"event {event.id!r}: brings the window's occurrences to {len(rows)}: allowed {MAX_OCCURRENCES}")
    return Occurrences.of(rows)


def declared(notices: Sequence[Notice]) -> F64:
    """Declared effects float64[notice, r, 2]: addition and factor, NaN = not declared."""
    return np.array([list(zip(n.effect.added, n.effect.factor, strict=True)) for n in notices], dtype=np.float64).reshape(
        -1, N_RESOURCES, 2
    )


def rows_in(scope: Scope, row_of: Mapping[str, int], labels: Sequence[Labels]) -> I64:
    """Rows of the VMs that a scope covers, ascending. `labels` is in row order."""
    if scope.vm_ids:
        candidates = sorted((row_of[vm_id], vm_id) for vm_id in scope.vm_ids if vm_id in row_of)
        return np.array([row for row, vm_id in candidates if scope.covers(vm_id, labels[row])], dtype=np.int64)
    if not scope.client and not scope.app:
        return np.arange(len(labels), dtype=np.int64)
    return np.array([row for row, label in enumerate(labels) if scope.covers("", label)], dtype=np.int64)
