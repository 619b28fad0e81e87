"""One hour of minutes of every VM as bitmaps: which minutes were known, which of them bad, and which were filled in from history.

Bit m of a word is minute m of the hour. A VM's hour is 4 metrics x 3 words, beside it how many samples made each of its 12 buckets, so
that a bucket built again from part of its samples (a late spool, a log that was cut) never replaces the whole one: the version with more
samples stays, as it does in history. Hours carry whose each VM was and what it was promised then; they are stored as one document each,
about 20 bytes a VM beyond its id (10,000 VMs: 0.3 MB an hour). Pure.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.demand.minutes import MINUTES, NAMES, MinuteBlock
from shared.units import BUCKET_S

HOUR_S: Final = 3600
SLOTS: Final = HOUR_S // BUCKET_S
N_METRICS: Final = len(NAMES)
MAX_DOCUMENT_BYTES: Final = 256 * 2**20  # of one hour when unpacked: half a million VMs
_SLOT_BITS: Final = np.uint64((1 << MINUTES) - 1)
_POWERS: Final = (np.uint64(1) << np.arange(MINUTES, dtype=np.uint64))[None, :, None]

U64 = NDArray[np.uint64]
I32 = NDArray[np.int32]


class Owner(msgspec.Struct, frozen=True, array_like=True):
    """Whose a VM is."""

    client: str = ""
    application: str = ""
    priority: int = 1


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What VMs were promised, rows as the caller's. thresholds int32[v, 4] tenths of a permille, negative = no objective; budgets float64
    [v, 4] share of the minutes that may be bad; periods int32[v, 4] hours.
    """

    thresholds: I32
    budgets: NDArray[np.float64]
    periods: I32

    def take(self, rows: NDArray[np.int64]) -> Promise:
        """Of these rows."""
        return Promise(thresholds=self.thresholds[rows], budgets=self.budgets[rows], periods=self.periods[rows])

    @classmethod
    def empty(cls) -> Promise:
        """Of nobody."""
        shape = (0, N_METRICS)
        return cls(thresholds=np.zeros(shape, np.int32), budgets=np.zeros(shape), periods=np.zeros(shape, np.int32))


@dataclass
class HourBits:
    """One hour; `bad`, `known`, `filled` uint64[v, 4], `samples` int64[v, 12], `present` uint16[v]: buckets in which the VM was there."""

    hour_s: int
    vm_ids: list[str] = field(default_factory=list)
    owners: list[Owner] = field(default_factory=list)
    promise: Promise = field(default_factory=Promise.empty)
    bad: U64 = field(default_factory=lambda: np.zeros((0, N_METRICS), np.uint64))
    known: U64 = field(default_factory=lambda: np.zeros((0, N_METRICS), np.uint64))
    filled: U64 = field(default_factory=lambda: np.zeros((0, N_METRICS), np.uint64))
    samples: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, SLOTS), np.int64))
    present: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    index: dict[str, int] = field(default_factory=dict)
    tried: bool = False  # history was asked for what is unknown here

    def merge(self, block: MinuteBlock, owners: Sequence[Owner], promise: Promise) -> None:
        """Take one bucket's minutes, rows of `owners` and `promise` being the block's; what has fewer samples than is held stays out."""
        rows = self._rows(block.vm_ids, owners, promise)
        slot = (block.start_s - self.hour_s) // BUCKET_S
        self.present[rows] |= np.uint16(1 << slot)
        fuller = block.samples >= self.samples[rows, slot]
        rows = rows[fuller]
        known = (block.known()[fuller].astype(np.uint64) * _POWERS).sum(axis=1, dtype=np.uint64)
        bad = (block.bad(promise.thresholds)[fuller].astype(np.uint64) * _POWERS).sum(axis=1, dtype=np.uint64)
        self.samples[rows, slot] = block.samples[fuller]
        self._put(rows, slot, np.where(promise.thresholds[fuller] >= 0, known, np.uint64(0)), bad)
        clear = ~(_SLOT_BITS << np.uint64(slot * MINUTES))
        self.filled[rows] &= clear
        for own, new in ((self.promise.thresholds, promise.thresholds), (self.promise.budgets, promise.budgets)):
            own[rows] = new[fuller]
        self.promise.periods[rows] = promise.periods[fuller]
        for i, row in zip(np.flatnonzero(fuller).tolist(), rows.tolist(), strict=True):
            self.owners[row] = owners[i]

    def see(self, slot: int, vm_ids: Sequence[str], owners: Sequence[Owner], promise: Promise) -> None:
        """These VMs ran during a bucket, whether anything was read of them or not."""
        rows = self._rows(vm_ids, owners, promise)
        self.present[rows] |= np.uint16(1 << slot)

    def rebase(self, vm_ids: Sequence[str], promise: Promise) -> U64:
        """Other thresholds hold for these VMs now, in hindsight as well. Minutes that the old ones cannot decide become unknown.

        A good minute stays good under a wider threshold, a bad one bad under a narrower. Which minutes were given up, [v, 4].
        History is to be asked anew where any threshold is another.
        """
        dropped = np.zeros((len(vm_ids), N_METRICS), np.uint64)
        at = [(i, self.index[vm_id]) for i, vm_id in enumerate(vm_ids) if vm_id in self.index]
        if not at:
            return dropped
        places, rows = np.array(at, np.int64).T
        new, old = promise.thresholds[places], self.promise.thresholds[rows]
        known, bad = self.known[rows], self.bad[rows]
        self.tried &= bool((new == old).all())
        undecided = np.where(new > old, bad, np.where(new < old, known & ~bad, np.uint64(0)))
        undecided = np.where(new < 0, known, np.where(old < 0, np.uint64(0), undecided))
        self.known[rows], self.bad[rows] = known & ~undecided, bad & ~undecided
        self.filled[rows] &= ~undecided
        self.promise.thresholds[rows], self.promise.budgets[rows] = new, promise.budgets[places]
        self.promise.periods[rows] = promise.periods[places]
        dropped[places] = np.where((old < 0) & (new >= 0), ~np.uint64(0), undecided)
        return dropped

    def fill(
        self, vm_ids: Sequence[str], owners: Sequence[Owner], promise: Promise, *, known: U64, bad: U64, dropped: U64 | None = None
    ) -> int:
        """Take words [v, 4] from history for buckets of which no minute is known, and for `dropped` minutes. How many were taken.

        What was measured stays as it is, and so do minutes that nobody saw of a bucket that was seen.
        """
        rows = self._rows(vm_ids, owners, promise)
        own_known = self.known[rows]
        free = np.zeros_like(own_known) if dropped is None else dropped & ~own_known
        there = np.zeros(len(rows), np.uint16)
        for slot in range(SLOTS):
            mask = _SLOT_BITS << np.uint64(slot * MINUTES)
            # a bucket that brought samples was seen: what is unknown of it stays so
            unseen = (self.samples[rows, slot] == 0)[:, None] & ((own_known & mask) == 0)
            free |= np.where(unseen, mask, np.uint64(0))
            there |= np.where(((known & mask) != 0).any(axis=1), np.uint16(1 << slot), np.uint16(0))
        taken = known & free
        self.known[rows] |= taken
        self.bad[rows] |= bad & taken
        self.filled[rows] |= taken
        self.present[rows] |= there
        return int(np.bitwise_count(taken).sum())

    def join(self, other: HourBits) -> None:
        """Take over what `other`, this hour filled in by somebody else, knows of minutes that are unknown here."""
        rows = self._rows(other.vm_ids, other.owners, other.promise)
        new = other.known & ~self.known[rows] & other.filled
        self.known[rows] |= new
        self.bad[rows] |= other.bad & new
        self.filled[rows] |= new
        self.present[rows] |= other.present
        self.tried |= other.tried

    def copy(self) -> HourBits:
        """One that another thread may read while this one changes."""
        promise = self.promise.take(np.arange(len(self.vm_ids)))
        return HourBits(
            hour_s=self.hour_s,
            vm_ids=list(self.vm_ids),
            owners=list(self.owners),
            promise=promise,
            bad=self.bad.copy(),
            known=self.known.copy(),
            filled=self.filled.copy(),
            samples=self.samples.copy(),
            present=self.present.copy(),
            index=dict(self.index),
            tried=self.tried,
        )

    def counts(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
        """Minutes of the hour: bad and known uint8[v, 4], and uint8[v] in which the VM was there."""
        return np.bitwise_count(self.bad), np.bitwise_count(self.known), np.bitwise_count(self.present) * np.uint8(MINUTES)

    def encode(self) -> bytes:
        """The document."""
        owners = {owner: i for i, owner in enumerate(dict.fromkeys(self.owners))}
        stored = _Stored(
            hour_s=self.hour_s,
            vm_ids=self.vm_ids,
            owners=list(owners),
            owner=np.array([owners[each] for each in self.owners], "<i4").tobytes(),
            thresholds=self.promise.thresholds.astype("<i4").tobytes(),
            budgets=self.promise.budgets.astype("<f8").tobytes(),
            periods=self.promise.periods.astype("<i4").tobytes(),
            bad=self.bad.astype("<u8").tobytes(),
            known=self.known.astype("<u8").tobytes(),
            filled=self.filled.astype("<u8").tobytes(),
            samples=np.minimum(self.samples, 2**31 - 1).astype("<i4").tobytes(),
            present=self.present.astype("<u2").tobytes(),
            tried=self.tried,
        )
        return zlib.compress(msgspec.msgpack.encode(stored), 1)

    @classmethod
    def decode(cls, document: bytes) -> HourBits:
        """The hour of a document. Raises ValueError where it is none."""
        try:
            unpacked = zlib.decompressobj().decompress(document, MAX_DOCUMENT_BYTES)
            stored = msgspec.msgpack.decode(unpacked, type=_Stored)
        except (zlib.error, msgspec.DecodeError) as error:
            raise ValueError(f"not an hour of minutes: {error}") from error
        n = len(stored.vm_ids)
        return cls(
            hour_s=stored.hour_s,
            vm_ids=stored.vm_ids,
            owners=[stored.owners[i] for i in _array(stored.owner, "<i4", n, 1)[:, 0]],
            promise=Promise(
                thresholds=_array(stored.thresholds, "<i4", n, N_METRICS).astype(np.int32),
                budgets=_array(stored.budgets, "<f8", n, N_METRICS).astype(np.float64),
                periods=_array(stored.periods, "<i4", n, N_METRICS).astype(np.int32),
            ),
            bad=_array(stored.bad, "<u8", n, N_METRICS).astype(np.uint64),
            known=_array(stored.known, "<u8", n, N_METRICS).astype(np.uint64),
            filled=_array(stored.filled, "<u8", n, N_METRICS).astype(np.uint64),
            samples=_array(stored.samples, "<i4", n, SLOTS).astype(np.int64),
            present=_array(stored.present, "<u2", n, 1)[:, 0].astype(np.uint16),
            index={vm_id: i for i, vm_id in enumerate(stored.vm_ids)},
            tried=stored.tried,
        )

    def _put(self, rows: NDArray[np.int64], slot: int, known: U64, bad: U64) -> None:
        shift = np.uint64(slot * MINUTES)
        keep = ~(_SLOT_BITS << shift)
        self.known[rows] = (self.known[rows] & keep) | (known << shift)
        self.bad[rows] = (self.bad[rows] & keep) | (bad << shift)

    def _rows(self, vm_ids: Sequence[str], owners: Sequence[Owner], promise: Promise) -> NDArray[np.int64]:
        """Rows of these VMs, made where they are new."""
        new = [i for i, vm_id in enumerate(vm_ids) if vm_id not in self.index]
        if new:
            for i in new:
                self.index[vm_ids[i]] = len(self.vm_ids)
                self.vm_ids.append(vm_ids[i])
                self.owners.append(owners[i])
            own, taken = self.promise, promise.take(np.array(new, np.int64))
            self.promise = Promise(
                thresholds=np.concatenate([own.thresholds, taken.thresholds]),
                budgets=np.concatenate([own.budgets, taken.budgets]),
                periods=np.concatenate([own.periods, taken.periods]),
            )
            words = np.zeros((len(new), N_METRICS), np.uint64)
            self.bad, self.known, self.filled = (np.concatenate([each, words]) for each in (self.bad, self.known, self.filled))
            self.present = np.concatenate([self.present, np.zeros(len(new), np.uint16)])
            self.samples = np.concatenate([self.samples, np.zeros((len(new), SLOTS), np.int64)])
        return np.array([self.index[vm_id] for vm_id in vm_ids], np.int64)


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    hour_s: int
    vm_ids: list[str]
    owners: list[Owner]
    owner: bytes
    thresholds: bytes
    budgets: bytes
    periods: bytes
    bad: bytes
    known: bytes
    filled: bytes
    samples: bytes
    present: bytes
    tried: bool


def _array(raw: bytes, kind: str, rows: int, width: int) -> NDArray[Any]:
    return np.frombuffer(raw, kind).reshape(rows, width)
