"""VMs of the history as they looked on their first day, as if they had been born in its midst: training rows for VMs that are new. Pure.

Who has a week of history knows himself: in a history of such VMs nothing is gained by asking what siblings of the same client or
application do, so trees do not learn to ask, and are at a loss when a new VM appears. Shown without its past, a VM has only its siblings.

Invariant: nothing is shown that came after the windows training may see; without labels there is nothing to learn and no rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from coordinator.forecast.covariates import I64, NOBODY, Covariates
from coordinator.forecast.feature_kernels import DAY
from coordinator.model import F32, N_RESOURCES, HistoryBlock
from shared.units import BUCKET_S, HORIZON_STEPS

BIRTHS: Final = 256  # each shows one VM for half a day: 5 MB
SHARE: Final = 0.15  # of the pairs
YOUNGEST: Final = 24  # buckets: before that its kind's forecast is borrowed (cold_start.py)
OLDEST: Final = 144


class Newborn(NamedTuple):
    """Births as arrays like a history's, and pairs of them."""

    means: F32  # [birth, r, DAY + OLDEST + 12], a day of nothing first
    peaks: F32
    capacity: F32  # [birth, r]
    known: Covariates  # of the births; they have told nothing yet
    which: I64  # [m] series of the births
    ends: I64  # [m]
    now_s: I64  # [m]
    original: I64  # [m] the same as series of the history


def newborn(rng: np.random.Generator, history: HistoryBlock, known: Covariates, until: int, pairs: int) -> Newborn | None:
    """At most `pairs` x SHARE pairs from buckets before `until`; None = no VM has a label, or the history is too short."""
    width = OLDEST + HORIZON_STEPS
    if known.groups is None or until < width:
        return None
    labelled = np.flatnonzero((known.groups != NOBODY).any(axis=1))
    count = int(pairs * SHARE)
    if not len(labelled) or not count:
        return None
    vms = labelled[rng.integers(0, len(labelled), size=BIRTHS)]
    born = rng.integers(0, until - width + 1, size=BIRTHS)
    columns = born[:, None] + np.arange(width)
    births = rng.integers(0, BIRTHS, size=count)
    births.sort()
    resource = rng.integers(0, N_RESOURCES, size=count)
    age = rng.integers(YOUNGEST, OLDEST + 1, size=count)
    first_s = history.end_s - (history.mean.shape[2] - 1) * BUCKET_S
    return Newborn(
        means=_padded(history.mean[vms[:, None], :, columns]),
        peaks=_padded(history.peak[vms[:, None], :, columns]),
        capacity=history.capacity[vms],
        known=replace(
            known,
            signals=None,
            events=None if known.events is None else known.events._replace(of=known.events.of[vms]),
            groups=known.groups[vms],
        ),
        which=births * N_RESOURCES + resource,
        ends=DAY + age,
        now_s=first_s + (born[births] + age - 1) * BUCKET_S,
        original=vms[births] * N_RESOURCES + resource,
    )


def _padded(window: F32) -> F32:
    """[birth, b, r] -> [birth, r, DAY + b]."""
    out = np.full((len(window), N_RESOURCES, DAY + window.shape[1]), np.nan, dtype=np.float32)
    out[:, :, DAY:] = window.transpose(0, 2, 1)
    return out
