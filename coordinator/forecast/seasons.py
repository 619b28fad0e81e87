"""What earlier days, weeks and hours say of the buckets around now, carried from bucket to bucket.

A profile's columns are buckets, from a little before the newest one to an hour after it; a column is the median of that phase over earlier
seasons. Those seasons lie wholly in the past once the column is the farthest one, so each bucket works out the newest column and keeps
the others: reading the seasons anew fetches seven days from memory for every series.

Pure. Invariant: `renew` gives what working out all columns anew would give, whatever came between (gaps, the same bucket again, VMs that
come and go): a column is kept only while the seasons within the window are the same ones. 264 bytes a series.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.kernels.lanes import PAIRS_7, PAIRS_12, flat, sorting_pairs
from coordinator.forecast.kernels.seasons import renew
from coordinator.forecast.rows import take_rows
from coordinator.model import F32, N_RESOURCES
from shared.units import HORIZON_STEPS

DAY: Final = 288
WEEK: Final = 2016
BASE: Final = 6  # the newest half hour fixes how far today lies above its profile
_PAIRS_3: Final = sorting_pairs(3)


class Profile(NamedTuple):
    """Columns in the order of their buckets: column c stands in `rows[(turn + c) % len(rows)]`, float32[columns, n]; NaN = unknown."""

    rows: F32
    turn: int


class Profiles(NamedTuple):
    """Of the bucket means from BASE buckets before the next one to twelve behind it; of the peaks from the next one on."""

    daily: Profile
    weekly: Profile
    hourly: Profile
    daily_peaks: Profile


class _Season:
    """One profile of all series."""

    def __init__(self, season: int, pairs: NDArray[np.int64], most: int, reach: int, base: int, per: int) -> None:  # noqa: PLR0917
        self._season, self._pairs, self._most, self._reach, self._base = season, pairs, most, reach, base
        self._rows: F32 = np.full((base + HORIZON_STEPS, 0, per), np.nan, dtype=np.float32)
        self._newest, self._fit = 0, -1

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows): a VM that comes has no earlier season."""
        self._rows = take_rows(self._rows, take, 1, np.nan)

    def renew(self, series: F32, number: int) -> Profile:
        """As of bucket `number`, the last of series float32[n, b]."""
        columns, b = len(self._rows), series.shape[1]
        first = b - self._base
        fit = min(max(first // self._season, 0), self._most)
        since = number - self._newest
        # the newest bucket may have come again, with more readings than before
        stale = columns - max(since, 1) if fit == self._fit and 0 <= since < columns else 0
        rows = self._rows.reshape(columns, -1)
        turn = (number - self._base) % columns
        if rows.shape[1]:
            renew(*flat(series), b, first, self._season, fit, self._reach, stale, turn, self._most, self._pairs, rows)
        self._newest, self._fit = number, fit
        return Profile(rows, turn)


class Seasons:
    """The profiles of all VMs."""

    def __init__(self, per: int = N_RESOURCES) -> None:
        """`per`: series of one row of `rearrange`."""
        self._daily = _Season(DAY, PAIRS_7, 7, 1, BASE, per)
        self._weekly = _Season(WEEK, _PAIRS_3, 3, 1, BASE, per)
        self._hourly = _Season(HORIZON_STEPS, PAIRS_12, 12, 0, BASE, per)
        self._daily_peaks = _Season(DAY, PAIRS_7, 7, 0, 0, per)

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        for part in (self._daily, self._weekly, self._hourly, self._daily_peaks):
            part.rearrange(take)

    def renew(self, means: F32, peaks: F32, number: int) -> Profiles:
        """As of bucket `number` (counted since any day, every bucket one more), the last of float32[n, b] each, NaN = missing.

        The arrays hold what they held at the last call but for the newest bucket, later ones, and what has slid out on the left.
        """
        daily, weekly, hourly = (part.renew(means, number) for part in (self._daily, self._weekly, self._hourly))
        return Profiles(daily, weekly, hourly, self._daily_peaks.renew(peaks, number))
