"""What the global model knows beside demand: the operator's days, scheduled events, whose VM it is, what applications tell. Pure.

    Covariates      what of it is known of some VMs, all optional; goes with every call of features.describe, in training and in a tick
    LocalDays       the operator's zone and the public holidays of his countries, as spans (events/public_holidays.py makes them)
    EventTimes      when events touch each VM, as spans of time per set of VMs that share them
    groups_of       client and application as numbers that mean the same on every shard and after every training

Of events the model is told how far away the next and the last one are, and nothing within one: its history is stripped of events
(events/effects.py), and where it was, demand is what the stripper made of it. A flag "event now" would teach the trees the stripper's
own work, and what an event does would be counted twice, for EventShard lays it on what they say. The hours around an event nobody else
looks at: before a release caches are warmed, before a backup jobs are drained.

Invariant: what is not known is NaN, -1 or None and costs nothing. Nothing after the origin is read, except what is known ahead.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.calendar import DAY_FEATURES, day_features
from coordinator.forecast.events.model import Labels, Occurrences, rows_in
from coordinator.model import F32, F64, SIGNALS
from shared.units import BUCKET_S, HORIZON_STEPS

I64 = NDArray[np.int64]
Spans = tuple[tuple[int, int], ...]  # [start, end) in Unix seconds, ascending, disjoint

GROUPS: Final = ("client", "application")
NOBODY: Final = -1
MAX_CALENDARS: Final = 16
_MIDDLE_S: Final = HORIZON_STEPS // 2 * BUCKET_S


@dataclass(frozen=True, kw_only=True)
class LocalDays:
    """Where days begin, and which of them are holidays: one calendar of spans for each country (or part of one) that was named."""

    zone: tzinfo = UTC
    holidays: tuple[Spans, ...] = ()

    def __post_init__(self) -> None:
        if len(self.holidays) > MAX_CALENDARS:
            raise ValueError(f"holidays of {len(self.holidays)} countries: allowed {MAX_CALENDARS}")
        for spans in self.holidays:
            edges = np.array(spans, dtype=np.int64).reshape(-1)
            if (np.diff(edges) <= 0).any():
                raise ValueError("holidays: allowed are spans [start, end) in ascending order that do not touch")

    def features(self, start_s: I64) -> F64:
        """float64[m, 6] in the order of DAY_FEATURES, of buckets that start at `start_s` int64[m].

        Holidays are shares of the calendars (half of two countries celebrate: 0.5), NaN where none was named.
        """
        different, back = np.unique(start_s, return_inverse=True)
        local = different + np.array([_offset_s(second, self.zone) for second in different.tolist()], dtype=np.int64)
        calendars = [np.array(spans, dtype=np.int64).reshape(-1, 2) for spans in self.holidays]
        found = day_features(local)
        first = DAY_FEATURES.index("holiday")
        found[:, first:] = np.mean([day_features(different, spans)[:, first:] for spans in calendars], axis=0) if calendars else np.nan
        every: F64 = found[back]
        return every

    def holiday_ahead(self, now_s: I64) -> F32 | None:
        """Share of the calendars that celebrate in the twelve buckets after those of `now_s`, float32[m, 12]; None = no calendar."""
        if not self.holidays:
            return None
        different, back = np.unique(now_s, return_inverse=True)
        ahead = different[:, None] + BUCKET_S * np.arange(1, HORIZON_STEPS + 1)
        share = self.features(ahead.reshape(-1))[:, DAY_FEATURES.index("holiday")]
        return share.astype(np.float32).reshape(ahead.shape)[back]


def _offset_s(second: int, zone: tzinfo) -> int:
    offset = datetime.fromtimestamp(second, zone).utcoffset()
    return 0 if offset is None else int(offset.total_seconds())


UTC_DAYS: Final = LocalDays()


class EventTimes(NamedTuple):
    """Spans of the VMs of set g: spans[first[g]:first[g + 1]], ascending and disjoint; of[v] is the set of VM v, NOBODY = no event."""

    spans: I64  # [k, 2] [start, end) in Unix seconds
    first: I64  # [g + 1]
    of: I64  # [v]

    @classmethod
    def none(cls, v: int) -> EventTimes:
        """No VM has an event."""
        return cls(np.zeros((0, 2), dtype=np.int64), np.zeros(1, dtype=np.int64), np.full(v, NOBODY, dtype=np.int64))

    @classmethod
    def between(cls, calendar: Occurrences, vm_ids: Sequence[str], labels: Sequence[Labels], from_s: int, until_s: int) -> EventTimes:
        """Those that overlap [from_s, until_s), whole. `labels` in the order of `vm_ids`."""
        near = calendar.near(from_s, until_s)
        row_of = {vm_id: row for row, vm_id in enumerate(vm_ids)}
        of = np.full(len(vm_ids), NOBODY, dtype=np.int64)
        notices: list[tuple[int, ...]] = []  # of each set
        for number in np.unique(calendar.notice[near]).tolist():
            rows = rows_in(calendar.notices[number].scope, row_of, labels)
            for old in np.unique(of[rows]).tolist():  # who was alike and is touched now is alike again
                notices.append((*(notices[old] if old >= 0 else ()), number))
                of[rows[of[rows] == old]] = len(notices) - 1
        used, place = np.unique(of[of >= 0], return_inverse=True)
        of[of >= 0] = place
        parts = [_merged(calendar, near[np.isin(calendar.notice[near], notices[old])]) for old in used.tolist()]
        first = np.cumsum([0, *(len(part) for part in parts)]).astype(np.int64)
        return cls(np.concatenate([np.zeros((0, 2), dtype=np.int64), *parts]), first, of)


def _merged(calendar: Occurrences, which: I64) -> I64:
    """Spans [n, 2] of these occurrences (by start), those that touch as one."""
    starts = calendar.start_s[which]
    reach = np.maximum.accumulate(starts + calendar.buckets[which] * BUCKET_S)
    opens = np.r_[True, starts[1:] > reach[:-1]]
    last = np.r_[np.flatnonzero(opens)[1:] - 1, len(starts) - 1]
    return np.stack([starts[opens], reach[last]], axis=1)


def groups_of(labels: Sequence[Labels]) -> I64:
    """Numbers of client and application int64[v, 2], NOBODY where unknown. An application is its client's: two clients' `web` differ."""
    known: dict[Labels, tuple[int, int]] = {}
    for label in labels:
        if label not in known:
            client = zlib.crc32(label.client.encode()) if label.client else NOBODY
            app = zlib.crc32(f"{label.client}\0{label.app}".encode()) if label.app else NOBODY
            known[label] = (client, app)
    return np.array([known[label] for label in labels], dtype=np.int64).reshape(-1, len(GROUPS))


@dataclass(frozen=True, kw_only=True)
class Covariates:
    """What is known of v VMs; a series belongs to VM `series // N_RESOURCES`.

    `events` None = no calendar; `signals` float32[v, len(SIGNALS), s], whose last column is the bucket of the demand arrays' last column
    (s may be smaller or larger than theirs), None = nobody told anything; `groups` int64[v, 2] as of `groups_of`, None = no labels.
    """

    days: LocalDays = UTC_DAYS
    events: EventTimes | None = None
    signals: F32 | None = None
    groups: I64 | None = None

    def checked(self, v: int) -> Covariates:
        """Itself. Raises ValueError naming the array whose shape is not that of v VMs."""
        if self.events is not None and self.events.of.shape != (v,):
            raise ValueError(f"events of {self.events.of.shape} VMs: allowed ({v},)")
        if self.signals is not None and (self.signals.ndim != 3 or self.signals.shape[:2] != (v, len(SIGNALS))):
            raise ValueError(f"signals {self.signals.shape}: allowed ({v}, {len(SIGNALS)}, any)")
        if self.groups is not None and self.groups.shape != (v, len(GROUPS)):
            raise ValueError(f"groups {self.groups.shape}: allowed ({v}, {len(GROUPS)})")
        return self

    def day_columns(self, now_s: I64) -> F64:
        """DAY_FEATURES of the middle of the hour after the buckets that start at `now_s` int64[m]."""
        return self.days.features(np.asarray(now_s, dtype=np.int64) + _MIDDLE_S)


NONE_KNOWN: Final = Covariates()
