"""Minutes from history: what 5-minute buckets say of objectives where no sample was counted, as of a time before the sampling of minutes
began or of an SLA that is newer than the samples.

All five minutes of a bucket are taken to be what the bucket is on the whole; they are marked as filled, at a resolution of 300 s. History
holds demand, use, limits in force and the share of samples that ran into one, not the readings themselves, so much stays unknown:

ready        good where no sample was held and the threshold is at least the 10 % of a CPU that de-censoring tells of; else unknown
memory_pressure  bad where the share of samples that were pressed or full is above the threshold, else good
unmet_demand     bad where (demand - use) / demand is above the threshold for any resource that ran into its limit (where use is not
                 known: (peak - limit) / peak), good where nothing ran into a limit
network_drops    good where nothing ran into a ceiling; else unknown: what ran into one need not have lost anything

Pure. Arrays are float32[v, r, b] as in history, NaN unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.demand.censoring import READY
from coordinator.demand.minutes import MINUTES, NAMES, TENTHS
from coordinator.learning.compliance_hours import I32, SLOTS, U64
from coordinator.model import F32
from shared.units import CPU, MEMORY, NET_RX, NET_TX

MEASURES: Final = ("mean", "peak", "usage", "censored", "allocation")
READY_PERMILLE: Final = READY * 1000.0
_SLOT: Final = np.uint64((1 << MINUTES) - 1)


def words_of(history: Mapping[str, F32], thresholds: I32) -> tuple[U64, U64]:
    """(known, bad) uint64[v, hours, 4] of MEASURES float32[v, r, 12 x hours] that begin with an hour; `thresholds` as Promise's."""
    known, bad = verdicts(history, thresholds)
    v, metrics, b = known.shape
    shifts = np.arange(SLOTS, dtype=np.uint64) * np.uint64(MINUTES)
    words = []
    for flags in (known, bad):
        slots = flags.reshape(v, metrics, b // SLOTS, SLOTS).astype(np.uint64) * _SLOT
        words.append(np.moveaxis((slots << shifts).sum(axis=-1, dtype=np.uint64), 1, 2))
    return words[0], words[1]


def verdicts(history: Mapping[str, F32], thresholds: I32) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(known, bad) bool[v, 4, b] of each bucket."""
    mean, peak, usage, censored, allocation = (history[name] for name in MEASURES)
    limit = thresholds[:, :, None] / float(TENTHS)
    with np.errstate(invalid="ignore", divide="ignore"):
        by_limit = (peak - allocation) / np.where(peak > 0, peak, np.nan)
        lacking = np.where(np.isnan(usage), by_limit, (mean - usage) / np.where(mean > 0, mean, np.nan))
    held = censored > 0
    seen = ~np.isnan(censored) & ~np.isnan(mean)
    missing = 1000.0 * np.where(held, lacking, 0.0)  # NaN where it was held and nobody knows by how much
    free = seen & ~held

    ready_known = free[:, CPU] & (limit[:, 0] >= READY_PERMILLE)
    pressed = 1000.0 * censored[:, MEMORY]
    worst = np.fmax.reduce(missing, axis=1)
    unmet_known = seen[:, CPU] & ~np.isnan(np.where(seen, missing, 0.0)).any(axis=1)
    unmet_bad = seen.any(axis=1) & (worst > limit[:, 2])
    rates = [NET_RX, NET_TX]
    # a direction that nobody knows of has no reading to be bad
    drop_known = free[:, rates].any(axis=1) & ~(seen[:, rates] & held[:, rates]).any(axis=1)

    bad = np.stack([np.zeros_like(ready_known), seen[:, MEMORY] & (pressed > limit[:, 1]), unmet_bad, np.zeros_like(drop_known)], axis=1)
    known = np.stack([ready_known, seen[:, MEMORY], unmet_known, drop_known], axis=1) | bad
    asked = (thresholds >= 0)[:, :, None]
    return known & asked, bad & asked


assert NAMES == ("ready", "memory_pressure", "unmet_demand", "network_drops"), "the order above"
