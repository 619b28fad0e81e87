"""Takes the events out of a history and learns from them on the way: what a start needs before the base models may see it. Pure.

No forecasts of the past are kept, so the level without the event is the median of the VM's last hour outside of it, and its doubt their
standard deviation: a forecaster of the simplest kind in place of the engine, the rest is the live path.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from coordinator.forecast.events.effects import EventEffects
from coordinator.model import F64, N_RESOURCES, HistoryBlock
from shared.units import BUCKET_S

_PAST: Final = 12
_LEAST_DOUBT: Final = 0.02  # of the level: an hour of equal values does not make a forecast certain


def without_events(effects: EventEffects, history: HistoryBlock) -> HistoryBlock:
    """The history as it would have been without the events announced to `effects`, which learns from all of them.

    Rows of `history` are the fleet of `effects`. Buckets that no event touches stay as they are.
    """
    buckets = history.mean.shape[2]
    first_s = history.end_s - (buckets - 1) * BUCKET_S
    both = np.concatenate([history.mean, history.peak], axis=1)
    for b in np.flatnonzero(effects.touched(first_s, buckets)):
        start_s = first_s + int(b) * BUCKET_S
        past = both[:, :, max(b - _PAST, 0) : b].astype(np.float64)
        level, doubt = _level(past)
        effects.expect(start_s, level, doubt)
        actual = both[:, :, b].astype(np.float64)
        mean, peak = effects.strip(start_s, actual[:, :N_RESOURCES], actual[:, N_RESOURCES:])
        effects.learn(start_s, actual[:, :N_RESOURCES], actual[:, N_RESOURCES:])
        both[:, :, b] = np.concatenate([mean, peak], axis=1)
    return replace(history, mean=both[:, :N_RESOURCES], peak=both[:, N_RESOURCES:])


def _level(past: F64) -> tuple[F64, F64]:
    """Median and standard deviation [v, k] of the last hour [v, k, b]; NaN and 0 where nothing is known."""
    known = ~np.isnan(past)
    count = known.sum(axis=-1)
    ordered = np.sort(past, axis=-1)  # NaN go last
    if not ordered.shape[-1]:
        return np.full(count.shape, np.nan), np.zeros(count.shape)
    low = np.take_along_axis(ordered, np.maximum((count - 1) // 2, 0)[..., None], axis=-1)[..., 0]
    high = np.take_along_axis(ordered, np.minimum(count // 2, ordered.shape[-1] - 1)[..., None], axis=-1)[..., 0]
    level = np.where(count > 0, (low + np.where(count > 1, high, low)) / 2.0, np.nan)
    off = np.where(known, past - np.nan_to_num(level)[..., None], 0.0)
    doubt = np.sqrt((off**2).sum(axis=-1) / np.maximum(count, 1))
    return level, np.maximum(doubt, _LEAST_DOUBT * np.abs(np.nan_to_num(level)))
