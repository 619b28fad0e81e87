"""Which VM is under which event now: pairs of VM and category, their times, and their slots in the tables of evidence. Pure.

Invariant: within one look no VM has two entries of the same category at the same moment (overlapping ones become one, which starts with the
earlier and ends with the later), so a lift is never counted twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.events import kernels
from coordinator.forecast.events.model import Labels, Notice, Occurrences, rows_in
from coordinator.forecast.rows import take_rows
from shared.units import BUCKET_S

I64 = NDArray[np.int64]

MAX_CATEGORIES: Final = 256
ROW, CATEGORY, BEGIN, BUCKETS, LIMIT, NOTICE = range(6)
_NOBODY: Final = np.zeros((0, 6), dtype=np.int64)


class Roster:
    """The fleet's rows and labels, the categories, and who is in which notice's scope."""

    def __init__(self) -> None:
        self.categories: list[str] = []
        self._vm_ids: tuple[str, ...] = ()
        self._labels: list[Labels] = []
        self._row: dict[str, int] = {}
        self._scopes: dict[str, I64] = {}
        # per level of pooling: the unit that each VM belongs to (-1 none) and the units' slots [unit, category] (-1 none yet)
        self._names: list[dict[tuple[str, str], int]] = [{}, {}]
        self._unit: list[I64] = []
        self._slots: list[I64] = [np.full((width, 0), -1, dtype=np.int64) for width in (1, 0, 0, 0)]
        self.size = 0  # slots given out
        self._relabel()

    def fleet(self, take: I64, vm_ids: Sequence[str]) -> I64:
        """Follow the fleet (see rows.take_rows). Returns the old slots that live on, in their new order."""
        known = dict(zip(self._vm_ids, self._labels, strict=True))
        self._vm_ids = tuple(vm_ids)
        self._row = {vm_id: row for row, vm_id in enumerate(vm_ids)}
        self._labels = [known.get(vm_id, Labels()) for vm_id in vm_ids]
        self._slots[3] = take_rows(self._slots[3], take, 0, -1)
        self._relabel()
        return self._compact()

    def label(self, labels: dict[str, Labels]) -> None:
        """Say which client and application each VM belongs to; VMs that are not named keep what they have."""
        changed = [labels.get(vm_id, old) for vm_id, old in zip(self._vm_ids, self._labels, strict=True)]
        if changed != self._labels:
            self._labels = changed
            self._relabel()

    def categories_of(self, notices: Sequence[Notice]) -> I64:
        """Index of each notice's category, new ones added. Raises ValueError beyond MAX_CATEGORIES."""
        for notice in notices:
            if notice.category not in self.categories:
                if len(self.categories) >= MAX_CATEGORIES:
                    raise ValueError(f"category {notice.category!r}: allowed {MAX_CATEGORIES} categories")
                self.categories.append(notice.category)
        missing = len(self.categories) - self._slots[0].shape[1]
        self._slots = [np.pad(table, ((0, 0), (0, missing)), constant_values=-1) for table in self._slots]
        index = {name: i for i, name in enumerate(self.categories)}
        return np.array([index[notice.category] for notice in notices], dtype=np.int64)

    def forget_scopes(self) -> None:
        """The calendar changed."""
        self._scopes.clear()

    def pairs(self, calendar: Occurrences, categories: I64, from_s: int, until_s: int) -> I64:
        """int64[n, 6] (ROW..NOTICE) of events in or shortly before [from_s, until_s), by row, category and start."""
        which = calendar.near(from_s - kernels.AFTER * BUCKET_S, until_s)
        parts = []
        for i in which:
            number = int(calendar.notice[i])
            notice = calendar.notices[number]
            rows = self._scopes.get(notice.id)
            if rows is None:
                rows = self._scopes[notice.id] = rows_in(notice.scope, self._row, self._labels)
            part = np.empty((len(rows), 6), dtype=np.int64)
            part[:, ROW] = rows
            part[:, CATEGORY] = categories[number]
            part[:, BEGIN] = calendar.start_s[i] // BUCKET_S
            part[:, BUCKETS] = calendar.buckets[i]
            part[:, NOTICE] = number
            parts.append(part)
        return _merged(np.concatenate(parts)) if parts else _NOBODY

    def slots(self, pairs: I64) -> I64:
        """int64[n, 4]: each pair's slot per level, given out where there was none; -1 where the VM has no such label."""
        found = np.full((len(pairs), kernels.LEVELS_OF_POOLING), -1, dtype=np.int64)
        for level, table in enumerate(self._slots):
            unit, category = self._unit[level][pairs[:, ROW]], pairs[:, CATEGORY]
            has = unit >= 0
            fresh = np.unique(unit[has] * table.shape[1] + category[has])
            fresh = fresh[table.reshape(-1)[fresh] < 0]
            table.reshape(-1)[fresh] = self.size + np.arange(len(fresh))
            self.size += len(fresh)
            found[has, level] = table[unit[has], category[has]]
        return found

    def _relabel(self) -> None:
        v = len(self._labels)
        keys = [[(label.client, "") for label in self._labels], [(label.client, label.app) for label in self._labels]]
        self._unit = [np.zeros(v, dtype=np.int64)]
        for level, names in enumerate(self._names):
            units = [names.setdefault(key, len(names)) if key[level] else -1 for key in keys[level]]
            self._unit.append(np.array(units, dtype=np.int64))
            table = self._slots[level + 1]
            self._slots[level + 1] = np.pad(table, ((0, len(names) - len(table)), (0, 0)), constant_values=-1)
        self._unit.append(np.arange(v, dtype=np.int64))
        self._scopes.clear()

    def _compact(self) -> I64:
        kept = np.concatenate([table[table >= 0] for table in self._slots])
        new = np.full(self.size, -1, dtype=np.int64)
        new[kept] = np.arange(len(kept))
        for table in self._slots:
            table[table >= 0] = new[table[table >= 0]]
        self.size = len(kept)
        return kept


def _merged(pairs: I64) -> I64:
    """Overlapping entries of one VM and category as one; LIMIT says after how many buckets the next one begins."""
    order = np.lexsort((pairs[:, BEGIN], pairs[:, CATEGORY], pairs[:, ROW]))
    sorted_pairs = pairs[order]
    key = sorted_pairs[:, ROW] * MAX_CATEGORIES + sorted_pairs[:, CATEGORY]
    end = sorted_pairs[:, BEGIN] + sorted_pairs[:, BUCKETS]
    if len(key) > 1 and np.any(key[1:] == key[:-1]):
        # a running maximum of the ends within a key: keys are spread further apart than any end
        far = int(end.max()) + 1
        reach = np.maximum.accumulate(end + (np.cumsum(np.r_[0, key[1:] != key[:-1]])) * far) % far
        reach = np.where(reach < end, end, reach)
        opens = np.r_[True, (key[1:] != key[:-1]) | (sorted_pairs[1:, BEGIN] >= reach[:-1])]
        last = np.r_[np.flatnonzero(opens)[1:] - 1, len(key) - 1]
        sorted_pairs, key, end = sorted_pairs[opens], key[opens], reach[last]
    sorted_pairs[:, BUCKETS] = end - sorted_pairs[:, BEGIN]
    follows = np.r_[key[1:] == key[:-1], False] if len(key) else np.zeros(0, dtype=np.bool_)
    gap = np.r_[sorted_pairs[1:, BEGIN], 0] - sorted_pairs[:, BEGIN]
    sorted_pairs[:, LIMIT] = np.where(follows, gap, sorted_pairs[:, BUCKETS] + kernels.AFTER)
    return sorted_pairs


def grown(array: NDArray[np.generic], rows: int, fill: float) -> NDArray[np.generic]:
    """`array` with at least `rows` rows, doubled when it must grow."""
    if rows <= len(array):
        return array
    out = np.full((max(rows, 2 * len(array)), *array.shape[1:]), fill, dtype=array.dtype)
    out[: len(array)] = array
    return out
