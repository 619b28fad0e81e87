"""Who is listened to: weights per member, VM, resource and part of the horizon, from rolling validation.

Every issued forecast is scored when its actual arrives (dense rolling origins, one per bucket). Two memories of the absolute error are
kept for each series: of late (half-life about four hours) and at this half hour of the day on earlier days, because a surge that comes
once a day never shows among the last hours. Own scores are shrunk towards the fleet's, and the best few are averaged with weights
(score ratio)^-SHARPNESS: picking the winner of a few windows loses to the best fixed member on every trace measured.

Pure. Axes: k member, v VM, r resource, g part of the horizon. Source: Timmermann, "Forecast combinations" (2006), on shrinkage.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.calendar import SLOTS
from coordinator.forecast.rows import take_rows
from coordinator.model import F32, F64, N_RESOURCES
from shared.units import HORIZON_STEPS

GROUP_OF_STEP: Final = np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2])
GROUPS: Final = 3
GROUP_STARTS: Final = np.array([0, 2, 6])
GROUP_SIZES: Final = np.array([2, 4, 6])
GROUP_MIDDLES: Final = (1, 4, 9)  # the step whose origin stands for the group's
RECENT_DECAY: Final = 0.986  # half-life 49 buckets, about four hours
SLOT_DECAY: Final = 0.9  # a slot is visited six times a day: one day ago weighs .53
SHARPNESS: Final = 30.0
NEWCOMER: Final = 0.15  # handicap on the log score of a member without evidence of its own
CUT: Final = 1.5  # members whose shrunk score is worse than this times the best one's are left out


class Combiner:
    """Scores and weights of `members` for all VMs. Errors are non-negative, NaN = no score."""

    def __init__(self, members: tuple[str, ...], fleet_evidence: float) -> None:
        """`fleet_evidence`: the fleet's score ratio counts like this many own scores."""
        self.members = members
        self._fleet_evidence = fleet_evidence
        k = len(members)
        self._recent: F64 = np.zeros((2, k, 0, N_RESOURCES, GROUPS))  # weighted sum, weight
        self._slots: F32 = np.zeros((2, SLOTS, k, 0, N_RESOURCES, GROUPS), dtype=np.float32)

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        self._recent = take_rows(self._recent, take, 2, 0.0)
        self._slots = take_rows(self._slots, take, 3, 0.0)

    def score(self, errors: F64, slots: tuple[int, ...]) -> None:
        """Take absolute errors float64[k, v, r, 12] that became known now; `slots[g]` = half hour in which group g was forecast."""
        known = ~np.isnan(errors)
        total = np.add.reduceat(np.where(known, errors, 0.0), GROUP_STARTS, axis=-1)
        count = np.add.reduceat(known.astype(np.float64), GROUP_STARTS, axis=-1)
        scored = count > 0
        mean = total / np.maximum(count, 1.0)
        decay = np.where(scored, RECENT_DECAY, 1.0)
        self._recent[0] = self._recent[0] * decay + mean
        self._recent[1] = self._recent[1] * decay + scored
        for group, slot in enumerate(slots):
            held = np.where(scored[..., group], SLOT_DECAY, 1.0)
            self._slots[0, slot, ..., group] = self._slots[0, slot, ..., group] * held + mean[..., group]
            self._slots[1, slot, ..., group] = self._slots[1, slot, ..., group] * held + scored[..., group]

    def losses(self, slot: int) -> tuple[F64, F64]:
        """Own mean absolute error for forecasts issued in this half hour and its evidence, both float64[k, v, r, g]; NaN = never scored."""
        recent, weight = self._recent
        ahead = self._slots[:, [slot, (slot + 1) % SLOTS]].sum(axis=1, dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            of_late = recent / weight
            here = ahead[0] / ahead[1]
        # this half hour of earlier days counts as much as the last hours once it has been seen
        share = np.where(ahead[1] > 0, 0.5 * np.minimum(ahead[1] / 3.0, 1.0), 0.0)
        loss = of_late * (1.0 - share) + np.where(share > 0, here, 0.0) * share
        return loss, weight

    def weights(self, slot: int, forecasts: F64) -> F64:
        """Weights float64[k, v, r, g], summing to 1 over k, of the members that have a forecast [k, v, r, 12] (not NaN)."""
        loss, evidence = self.losses(slot)
        able = np.logical_and.reduceat(~np.isnan(forecasts), GROUP_STARTS, axis=-1)
        usable = able & ~np.isnan(loss)
        own = np.where(usable, loss, np.nan)
        count = np.maximum(usable.sum(axis=0), 1)
        centre = np.where(usable, loss, 0.0).sum(axis=0) / count
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(centre > 0, np.clip(own / centre, 0.05, 20.0), 1.0)
        ratio = np.where(usable, ratio, 1.0)
        logs = np.log(ratio)
        seen = usable.sum(axis=1, keepdims=True)
        fleet = np.where(usable, logs, 0.0).sum(axis=1, keepdims=True) / np.maximum(seen, 1)
        trust = evidence / (evidence + self._fleet_evidence)
        # a member never scored for this series speaks with the fleet's score; never scored at all: not at all
        shrunk = np.where(usable, trust * logs + (1.0 - trust) * fleet, fleet) + NEWCOMER * (1.0 - np.where(usable, trust, 0.0))
        allowed = able & (usable | (seen > 0))
        allowed |= able & ~allowed.any(axis=0, keepdims=True)
        shrunk = np.where(allowed, shrunk, np.inf)
        best = shrunk.min(axis=0, keepdims=True)
        best = np.where(np.isfinite(best), best, 0.0)
        raw = np.where(shrunk <= best + np.log(CUT), np.exp(-SHARPNESS * np.minimum(shrunk - best, 10.0)), 0.0)
        total: F64 = raw / np.maximum(raw.sum(axis=0, keepdims=True), 1e-12)
        return total


def blend(forecasts: F64, weights: F64) -> F64:
    """Weighted mean of forecasts [k, v, r, 12] by weights [k, v, r, g]: float64[v, r, 12]."""
    spread = weights[..., GROUP_OF_STEP]
    mixed: F64 = (np.where(spread > 0, forecasts, 0.0) * spread).sum(axis=0)
    return mixed


def leader(weights: F64) -> NDArray[np.int8]:
    """The member with the largest weight over the whole horizon: int8[v, r]."""
    overall = (weights * GROUP_SIZES).sum(axis=-1)
    best: NDArray[np.int8] = overall.argmax(axis=0).astype(np.int8)
    return best


assert len(GROUP_OF_STEP) == HORIZON_STEPS
