"""Good, bad and unknown VM-minutes over time, from the bitmaps of the hours, at any resolution of whole minutes up to an hour. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.demand.minutes import MINUTE_S, MINUTES
from coordinator.learning.compliance_hours import HOUR_S, N_METRICS, SLOTS, HourBits, Owner

GOOD, BAD, UNKNOWN, FILLED = range(4)
_BITS: Final = np.arange(HOUR_S // MINUTE_S, dtype=np.uint64)


def minute_series(
    hours: Iterable[HourBits], belongs: Callable[[str, Owner], bool], from_s: int, until_s: int, resolution_s: int
) -> NDArray[np.int64]:
    """VM-minutes int64[steps, 4, 4] (metric; good, bad, unknown, of the known ones filled in) of steps that begin at `from_s`.

    All times are multiples of `resolution_s`, which divides an hour.
    """
    found = np.zeros(((until_s - from_s) // resolution_s, N_METRICS, 4), np.int64)
    for hour in hours:
        whose = zip(hour.vm_ids, hour.owners, strict=True)
        rows = np.array([i for i, (vm_id, owner) in enumerate(whose) if belongs(vm_id, owner)], np.int64)
        if not len(rows):
            continue
        known, bad, filled = (_by_minute(words[rows]) for words in (hour.known, hour.bad, hour.filled))
        slots = (hour.present[rows, None] >> np.arange(SLOTS, dtype=np.uint16)) & 1
        asked = hour.promise.thresholds[rows] >= 0
        there = np.repeat((asked[:, :, None] & (slots[:, None, :] != 0)).sum(axis=0), MINUTES, axis=1)
        minutes = np.stack([known - bad, bad, np.maximum(there - known, 0), filled], axis=-1)  # [metric, minute, 4]
        steps = (hour.hour_s - from_s + MINUTE_S * np.arange(minutes.shape[1])) // resolution_s
        inside = (steps >= 0) & (steps < len(found))
        np.add.at(found, steps[inside], np.moveaxis(minutes, 1, 0)[inside])
    return found


def _by_minute(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many of the VMs [v, 4] have each minute's bit, int64[4, 60]."""
    counted: NDArray[np.int64] = ((words[:, :, None] >> _BITS) & np.uint64(1)).sum(axis=0).astype(np.int64)
    return counted


def minutes_by_vm(hours: Iterable[HourBits], vm_ids: Sequence[str], from_s: int, until_s: int) -> NDArray[np.int64]:
    """Good, bad and unknown minutes of each VM that begin in [from_s, until_s), int64[v, 4, 3]."""
    place = {vm_id: i for i, vm_id in enumerate(vm_ids)}
    found = np.zeros((len(vm_ids), N_METRICS, 3), np.int64)
    for hour in hours:
        pairs = np.array([(place[vm_id], row) for vm_id, row in hour.index.items() if vm_id in place], np.int64).reshape(-1, 2)
        if not len(pairs):
            continue
        at, rows = pairs.T
        first, last = (min(max((each - hour.hour_s) // MINUTE_S, 0), len(_BITS)) for each in (from_s, until_s))
        mask = np.uint64((1 << last) - (1 << first))
        present = np.zeros(len(rows), np.uint64)
        for slot in range(SLOTS):
            there = (hour.present[rows] >> np.uint16(slot)) & np.uint16(1)
            present |= np.where(there != 0, np.uint64(((1 << MINUTES) - 1) << (slot * MINUTES)), np.uint64(0))
        asked = hour.promise.thresholds[rows] >= 0
        known, bad = (np.bitwise_count(words[rows] & mask).astype(np.int64) for words in (hour.known, hour.bad))
        all_ = np.where(asked, np.bitwise_count(present & mask).astype(np.int64)[:, None], 0)
        found[at] += np.stack([known - bad, bad, np.maximum(all_ - known, 0)], axis=-1)
    return found
