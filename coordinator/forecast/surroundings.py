"""What a forecast engine is told beside demand, kept for its VMs in its order, and handed to the global model as covariates. Pure.

Calendar and labels are worked out once a day or when they change: a tick only looks them up. Of what applications tell, only as much is
kept as the features look back on. Invariant: a VM's rows follow the fleet; a bucket that never came is NaN, so that ages stay right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coordinator.forecast.calendar import DAY_S
from coordinator.forecast.covariates import I64, Covariates, EventTimes, LocalDays, groups_of
from coordinator.forecast.events.model import Labels, Occurrences
from coordinator.forecast.rows import take_rows
from coordinator.model import F32, F64, SIGNALS


class SignalWindow:
    """The newest `keep` buckets of what applications told, float32[v, signal, b]; holds nothing until somebody tells something."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._data: F32 | None = None
        self._rows = 0
        self._end = 0

    @property
    def newest(self) -> F32 | None:
        """A view that ends with the newest bucket; None = nobody ever told anything."""
        return None if self._data is None else self._data[:, :, self._end - self._keep : self._end]

    def rearrange(self, take: I64) -> None:
        """Follow the fleet (see rows.take_rows)."""
        self._rows = len(take)
        if self._data is not None:
            self._data = take_rows(self._data, take, 0, np.nan)

    def append(self, told: F32 | F64 | None) -> None:
        """One bucket, [v, signal]; None = nobody told anything."""
        if self._data is None:
            if told is None or np.isnan(told).all():
                return
            self._data = np.full((self._rows, len(SIGNALS), 2 * self._keep), np.nan, dtype=np.float32)
            self._end = self._keep
        if self._end == self._data.shape[2]:
            self._data[:, :, : self._keep] = self._data[:, :, self._keep :]
            self._end = self._keep
        self._data[:, :, self._end] = np.nan if told is None else _finite(told)
        self._end += 1

    def merge_newest(self, told: F32 | F64 | None) -> None:
        """Overwrite what is known in the newest bucket (a second part of the same bucket)."""
        if told is None:
            return
        if self._data is None:
            self.append(told)
            return
        column = self._data[:, :, self._end - 1]
        np.copyto(column, told, where=np.isfinite(told), casting="same_kind")


def _finite(told: F32 | F64) -> F32:
    return np.where(np.isfinite(told), told, np.nan).astype(np.float32)


class Surroundings:
    """What a forecast engine is told beside demand, for its VMs in its order; rows follow through `rearrange`."""

    def __init__(self, days: LocalDays, keep: int) -> None:
        """`keep`: buckets of signals that features look back on."""
        self._days = days
        self._keep = keep
        self._calendar = Occurrences.none()
        self._told: Mapping[str, Labels] = {}
        self._vm_ids: tuple[str, ...] = ()
        self._signals = SignalWindow(keep)
        self._day: int | None = None  # for which the two below were worked out
        self._events: EventTimes | None = None
        self._groups: I64 | None = None

    def reset(self) -> None:
        """Forget the VMs and their signals; calendar and labels stay."""
        self._vm_ids, self._signals, self._day = (), SignalWindow(self._keep), None

    def announce(self, calendar: Occurrences) -> None:
        """The calendar from now on, in place of the earlier one."""
        self._calendar = calendar
        self._day = None

    def label(self, labels: Mapping[str, Labels]) -> None:
        """Client and application of VMs, in place of what was said before."""
        self._told = dict(labels)
        self._day = None

    def rearrange(self, take: I64, vm_ids: Sequence[str]) -> None:
        """Follow the fleet (see rows.take_rows); `vm_ids` in the new order."""
        self._vm_ids = tuple(vm_ids)
        self._signals.rearrange(take)
        self._day = None

    def append(self, told: F32 | F64 | None) -> None:
        """What the applications told in the bucket that was appended, [v, signal] in the order of the fleet."""
        self._signals.append(told)

    def merge_newest(self, told: F32 | F64 | None) -> None:
        """A second part of the newest bucket."""
        self._signals.merge_newest(told)

    def at(self, now_s: int) -> Covariates:
        """What is known when the bucket that starts at `now_s` is the newest."""
        day = now_s // DAY_S
        if self._day != day:
            self._day = day
            self._events = self._times(self._vm_ids, (day - 1) * DAY_S, (day + 3) * DAY_S)
            self._groups = self._numbers(self._vm_ids)
        return Covariates(days=self._days, events=self._events, signals=self._signals.newest, groups=self._groups)

    def during(self, vm_ids: Sequence[str], from_s: int, until_s: int, signals: F32 | None) -> Covariates:
        """What is known of a history of these VMs in [from_s, until_s); its own `signals` as HistoryBlock has them."""
        events = self._times(vm_ids, from_s - DAY_S, until_s + DAY_S)
        return Covariates(days=self._days, events=events, signals=signals, groups=self._numbers(vm_ids))

    def _times(self, vm_ids: Sequence[str], from_s: int, until_s: int) -> EventTimes | None:
        if not len(self._calendar):
            return None
        labels = [self._told.get(vm_id) or Labels() for vm_id in vm_ids]
        return EventTimes.between(self._calendar, vm_ids, labels, from_s, until_s)

    def _numbers(self, vm_ids: Sequence[str]) -> I64 | None:
        return groups_of([self._told.get(vm_id) or Labels() for vm_id in vm_ids]) if self._told else None
