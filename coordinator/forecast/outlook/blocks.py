"""The half-hour grid of the outlook: five-minute buckets folded to blocks of UTC half hours. Pure.

A block's mean is the mean of its known buckets, its peak the highest of their peaks; fewer than LEAST_KNOWN of the six known = unknown
(NaN), because half a block says little of the other half. A block is closed by the bucket that ends on a half hour.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from coordinator.model import F32
from shared.units import BUCKET_S

BLOCK_S: Final = 1800
BUCKETS: Final = BLOCK_S // BUCKET_S  # in a block
LEAST_KNOWN: Final = 3
DAY_BLOCKS: Final = 86_400 // BLOCK_S
WEEK_BLOCKS: Final = 7 * DAY_BLOCKS


def closes(start_s: int) -> bool:
    """Whether the bucket that starts at `start_s` is the last of a block."""
    return (start_s + BUCKET_S) % BLOCK_S == 0


def fold(means: F32, peaks: F32) -> tuple[F32, F32]:
    """Blocks float32[..., n] of mean and of peak from buckets float32[..., <= 6 n], the newest last; what lacks in front is unknown."""
    lacking = -means.shape[-1] % BUCKETS
    if lacking:
        wide = ((0, 0),) * (means.ndim - 1) + ((lacking, 0),)
        means, peaks = (np.pad(part, wide, constant_values=np.nan) for part in (means, peaks))
    shape = (*means.shape[:-1], means.shape[-1] // BUCKETS, BUCKETS)
    mean, known = _mean(means.reshape(shape))
    there = np.where(np.isnan(peaks), -np.inf, peaks).reshape(shape).max(axis=-1)
    peak = np.where(np.isfinite(there), there, np.nan)
    silent = known < LEAST_KNOWN
    mean[silent], peak[silent] = np.nan, np.nan
    return mean.astype(np.float32), np.fmax(peak, mean).astype(np.float32)


def _mean(values: F32) -> tuple[F32, F32]:
    """Mean and number of the known along the last axis; the sum in float64, or a byte count of a day would lose its last digits."""
    known = np.isfinite(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1, dtype=np.float64)
    return total / np.maximum(count, 1), count
