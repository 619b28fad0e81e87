"""The engine's own window on demand: float32 arrays [v, r, bucket] of means and peaks, appended on the right. Pure.

Appending is O(v): the arrays carry slack and slide left once it is used up.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.rows import take_rows
from coordinator.model import F32, N_RESOURCES

_SLACK: Final = 288


class DemandWindow:
    """The newest `keep` buckets of every VM; NaN where a bucket is missing."""

    def __init__(self, keep: int, slack: int = _SLACK) -> None:
        self.keep = keep
        self._slack = slack
        self._data: F32 = np.full((2, 0, N_RESOURCES, keep + slack), np.nan, dtype=np.float32)
        self._end = 0

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        self._data = take_rows(self._data, take, 1, np.nan)

    def append(self, mean: F32, peak: F32) -> None:
        """One bucket, float32[v, r] each."""
        if self._end == self._data.shape[-1]:
            self._data[..., : self.keep] = self._data[..., self._slack :]
            self._data[..., self.keep :] = np.nan
            self._end = self.keep
        self._data[0, :, :, self._end] = mean
        self._data[1, :, :, self._end] = peak
        self._end += 1

    def merge_newest(self, mean: F32, peak: F32) -> None:
        """Overwrite what is known in the newest bucket (a second part of the same bucket)."""
        for plane, values in ((0, mean), (1, peak)):
            column = self._data[plane, :, :, self._end - 1]
            np.copyto(column, values, where=~np.isnan(values))

    @property
    def length(self) -> int:
        """Buckets held, at most keep + slack."""
        return self._end

    def means(self, buckets: int) -> F32:
        """The newest `buckets` (fewer at the start) as a float32[v, r, b] view."""
        return self._data[0, :, :, max(self._end - buckets, 0) : self._end]

    def peaks(self, buckets: int) -> F32:
        """As `means`."""
        return self._data[1, :, :, max(self._end - buckets, 0) : self._end]
