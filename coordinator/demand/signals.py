"""What applications tell of their own load (requests per second, queue length) as 5-minute means. Sans-I/O, time comes with the calls.

A bucket has SLOTS slots of SLOT_S seconds for each VM: of readings in the same slot the last one told counts, so telling again is harmless
and a chatty application weighs no more than a calm one. The mean of a bucket weighs its filled slots alike. A value may come up to LATE_S
late: the models then decided without it, and history is given it when the next bucket closes.
Invariants: unknown is NaN, never 0; a reading changes only the signals that it names; kept are the buckets that may still be told of, so
240 bytes a VM and bucket, 17 MB for 10,000 VMs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.model import F32, F64, SIGNALS
from shared.units import BUCKET_S

SLOT_S: Final = 10
SLOTS: Final = BUCKET_S // SLOT_S
LATE_BUCKETS: Final = 3
LATE_S: Final = LATE_BUCKETS * BUCKET_S  # a reading older than this is refused
AHEAD_S: Final = 60  # an application's clock may be so far ahead of ours
MAX_SIGNAL: Final = 1_000_000_000
REMEMBERED_S: Final = 86_400  # what was told last is shown for a day
_ROWS: Final = 16


class SignalReading(msgspec.Struct, frozen=True, array_like=True):
    """What was measured at one moment, for each of these VMs. `values` in the order of SIGNALS, None = not told."""

    at_s: float
    vm_ids: tuple[str, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class SignalBlock:
    """Means of one bucket, float64[v, signal], NaN = not told. A VM's row holds all that is known of it in this bucket."""

    start_s: int
    vm_ids: tuple[str, ...]
    means: F64


@dataclass(frozen=True, kw_only=True)
class SignalCounts:
    """What became of the values of VMs: new ones, those that took the place of another, and new ones for a bucket that was closed."""

    taken: int = 0
    replaced: int = 0
    late: int = 0


@dataclass
class _Bucket:
    rows: dict[str, int] = field(default_factory=dict)
    slots: F32 = field(default_factory=lambda: _unknown(_ROWS))  # [row, slot, signal]
    owed: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(_ROWS, dtype=np.bool_))  # [row] changed since it was given out

    def rows_of(self, vm_ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows of these VMs, made where they are new."""
        found = np.array([self.rows.setdefault(vm_id, len(self.rows)) for vm_id in vm_ids], dtype=np.int64)
        missing = len(self.rows) - len(self.owed)
        if missing > 0:
            more = max(missing, len(self.owed))
            self.slots = np.concatenate([self.slots, _unknown(more)])
            self.owed = np.concatenate([self.owed, np.zeros(more, dtype=np.bool_)])
        return found

    def means(self, rows: NDArray[np.int64]) -> F64:
        """float64[len(rows), signal]."""
        told = self.slots[rows].astype(np.float64)
        known = ~np.isnan(told)
        count = known.sum(axis=1)
        total = np.where(known, told, 0.0).sum(axis=1)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


class SignalFolder:
    """Collects readings of all VMs. Whether a reading's time may be taken is the caller's question, see `span_s`."""

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}
        self._newest: dict[str, tuple[float, list[float | None]]] = {}
        self._closed_s = -1

    def tell(self, reading: SignalReading) -> SignalCounts:
        """Take a reading. A VM that is named twice counts once."""
        start_s = int(reading.at_s) // BUCKET_S * BUCKET_S
        slot = int(reading.at_s - start_s) // SLOT_S
        bucket = self._buckets.setdefault(start_s, _Bucket())
        vm_ids = tuple(dict.fromkeys(reading.vm_ids))
        rows = bucket.rows_of(vm_ids)
        told = [k for k, value in enumerate(reading.values) if value is not None]
        replaced = int((~np.isnan(bucket.slots[rows, slot][:, told])).any(axis=1).sum())
        for k in told:
            bucket.slots[rows, slot, k] = reading.values[k]
        bucket.owed[rows] = True
        for vm_id in vm_ids:
            self._note(vm_id, reading)
        new = len(vm_ids) - replaced
        late = start_s <= self._closed_s
        return SignalCounts(taken=0 if late else new, replaced=replaced, late=new if late else 0)

    def means(self, start_s: int, vm_ids: Sequence[str]) -> F64 | None:
        """float64[v, signal] of a bucket, to be stored by the caller; None = nobody told anything of these VMs."""
        bucket = self._buckets.get(start_s)
        places = [] if bucket is None else [(i, bucket.rows[vm_id]) for i, vm_id in enumerate(vm_ids) if vm_id in bucket.rows]
        if bucket is None or not places:
            return None
        at, rows = np.array(places, dtype=np.int64).T
        means = np.full((len(vm_ids), len(SIGNALS)), np.nan)
        means[at] = bucket.means(rows)
        bucket.owed[rows] = False
        return means

    def close(self, ripe_s: int) -> tuple[SignalBlock, ...] | None:
        """All that is to be stored of buckets that start at or before `ripe_s` and was not given out by `means`, oldest first.

        Buckets too old to be told of are forgotten. None = no bucket has ended since the last call, or none was told of.
        """
        closed_s = ripe_s // BUCKET_S * BUCKET_S
        if closed_s <= self._closed_s or not self._buckets:
            return None
        self._closed_s = closed_s
        ended = sorted(start_s for start_s in self._buckets if start_s <= closed_s)
        blocks = tuple(block for start_s in ended if (block := self._owed(start_s)).vm_ids)
        for start_s in ended:
            if start_s <= closed_s - LATE_S:
                del self._buckets[start_s]
        self._newest = {vm_id: told for vm_id, told in self._newest.items() if told[0] > closed_s - REMEMBERED_S}
        return blocks

    def newest(self, vm_id: str) -> tuple[float, tuple[float | None, ...]] | None:
        """(time, values in the order of SIGNALS) of what was told last of a VM; None = nothing within a day."""
        found = self._newest.get(vm_id)
        return None if found is None else (found[0], tuple(found[1]))

    def span_s(self, now_s: float) -> tuple[int, int]:
        """Oldest and newest time, whole Unix seconds, that a reading may have: never of a forgotten bucket, even after a clock set back."""
        return max(int(now_s) - LATE_S, self._closed_s - LATE_S + BUCKET_S), int(now_s) + AHEAD_S

    @property
    def closed_s(self) -> int:
        """Start of the newest bucket that `close` was called for, -1 = none."""
        return self._closed_s

    def _owed(self, start_s: int) -> SignalBlock:
        bucket = self._buckets[start_s]
        vm_ids = tuple(sorted(vm_id for vm_id, row in bucket.rows.items() if bucket.owed[row]))
        rows = np.array([bucket.rows[vm_id] for vm_id in vm_ids], dtype=np.int64)
        bucket.owed[:] = False
        return SignalBlock(start_s=start_s, vm_ids=vm_ids, means=bucket.means(rows))

    def _note(self, vm_id: str, reading: SignalReading) -> None:
        at_s, values = self._newest.get(vm_id, (reading.at_s, [None] * len(SIGNALS)))
        if reading.at_s >= at_s:
            merged = [old if new is None else new for old, new in zip(values, reading.values, strict=True)]
            self._newest[vm_id] = (reading.at_s, merged)


def _unknown(rows: int) -> F32:
    return np.full((rows, SLOTS, len(SIGNALS)), np.nan, dtype=np.float32)
