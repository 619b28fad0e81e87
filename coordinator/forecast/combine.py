"""Who is listened to: weights per member, VM, resource and part of the horizon, from rolling validation.

Every issued forecast is scored when its actual arrives (dense rolling origins, one per bucket). Two memories of the absolute error are
kept for each series: of late (half-life about four hours) and at this half hour of the day on earlier days, because a surge that comes
once a day never shows among the last hours. Own scores are shrunk towards the fleet's, and the best few are averaged with weights
(score ratio)^-SHARPNESS: picking the winner of a few windows loses to the best fixed member on every trace measured.

Pure. Axes: k member, v VM, r resource, h step, g part of the horizon. State: 1.5 KiB per series and member, float32, most of it the
memory of the half hours. Source: Timmermann, "Forecast combinations" (2006), on shrinkage.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.calendar import SLOTS
from coordinator.forecast.kernels import weighing
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
TRIANGLE: Final = HORIZON_STEPS * (HORIZON_STEPS + 1) // 2  # step h is kept for its h + 1 newest issues only
CUT: Final = 1.5  # members whose shrunk score is worse than this times the best one's are left out


class Chosen(NamedTuple):
    """What the members come to together."""

    point: F64  # [v, r, 12]
    weights: F32  # [k, v, r, g], summing to 1 over k where any member speaks
    leader: NDArray[np.int8]  # [v, r] the member with the largest weight over the whole horizon


class Hearing(NamedTuple):
    """Why each member has its weight in the newest issue, for one VM. Axes [k, r, g] unless said otherwise; NaN = unknown."""

    said: F32  # [k, r, 12]
    weights: F32
    errors: F32  # mean absolute errors of late
    evidence: F32
    usual_errors: F32  # at this half hour of earlier days
    usual_evidence: F32
    fleet: F64  # log of the error over the members' mean, as the fleet has it; NaN = never scored in the fleet
    scores: F64  # log of what weights follow; infinite = silent


class Combiner:
    """Scores and weights of `members` for all VMs. Call once per bucket `learn`, then `issue` or `pause`."""

    def __init__(self, members: tuple[str, ...], fleet_evidence: float, *, parts: int = SLOTS, sharpness: float = SHARPNESS) -> None:
        """`fleet_evidence`: the fleet's score ratio counts like this many own scores. `parts` of the day are remembered apart."""
        self.members = members
        self._fleet_evidence = fleet_evidence
        self._sharpness = sharpness
        k = len(members)
        self._said: F32 = np.full((TRIANGLE, k, 0, N_RESOURCES), np.nan, dtype=np.float32)  # see said_at
        self._recent: F32 = np.zeros((2, k, GROUPS, 0, N_RESOURCES), dtype=np.float32)  # weighted sum, weight
        self._slots: F32 = np.zeros((parts, 2, k, GROUPS, 0, N_RESOURCES), dtype=np.float32)
        self._issues = 0
        self._newest: tuple[int, F64] | None = None  # half hour and fleet scores of the newest issue

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        self._said = take_rows(self._said, take, 2, np.nan)
        self._recent = take_rows(self._recent, take, 3, 0.0)
        self._slots = take_rows(self._slots, take, 4, 0.0)

    def learn(self, actual: F64, slots: tuple[int, ...]) -> None:
        """Score what the newest bucket decides.

        actual float64[v, r, h]: for step h the target of the issue h + 1 buckets ago, NaN = none; slots[g]: half hour of the day in which
        part g of the horizon was forecast.
        """
        weighing.score(
            self._flat(self._said),
            said_at(self._issues),
            np.ascontiguousarray(actual, dtype=np.float64).reshape(-1, HORIZON_STEPS),
            self._flat(self._recent),
            self._flat(self._slots),
            np.array(slots),
            RECENT_DECAY,
            SLOT_DECAY,
        )

    def issue(self, slot: int, forecasts: F32 | F64) -> Chosen:
        """Weigh and blend forecasts [k, v, r, 12] (NaN = a silent member) made in half hour `slot`; they are kept until they are scored."""
        k, v = forecasts.shape[:2]
        n = v * N_RESOURCES
        at = said_at(self._issues)
        logs = np.empty((k, GROUPS, n), dtype=np.float32)
        weights, fleet = np.empty_like(logs), np.zeros((2, k, N_RESOURCES, GROUPS))
        said, recent, slots = self._flat(self._said), self._flat(self._recent), self._flat(self._slots)
        made = np.ascontiguousarray(forecasts, dtype=np.float32).reshape(k, n, HORIZON_STEPS)
        weighing.own_logs(made, said, at, recent, slots[slot], slots[(slot + 1) % len(slots)], logs, fleet)
        weighing.weigh(logs, recent[1], fleet, self._fleet_evidence, NEWCOMER, CUT, self._sharpness, weights)
        point, leader = np.empty((n, HORIZON_STEPS)), np.zeros(n, dtype=np.int8)
        weighing.blend(said, at, weights, point, leader)
        self._issues += 1
        self._newest = (slot, fleet)
        shape = (v, N_RESOURCES)
        return Chosen(point.reshape(*shape, -1), np.moveaxis(weights.reshape(k, GROUPS, *shape), 1, -1), leader.reshape(shape))

    @property
    def evidence(self) -> F32:
        """How much of late each member was scored for each series, float32[k, g, v, r]: one a bucket, fading."""
        found: F32 = self._recent[1]
        return found

    def pause(self) -> None:
        """A bucket without an issue: keeps later actuals aligned with their origins."""
        self._said[said_at(self._issues)] = np.nan
        self._issues += 1
        self._newest = None

    def withdraw(self) -> None:
        """Take back the newest issue, because its bucket is issued again."""
        self._issues -= 1
        self._said[said_at(self._issues)] = np.nan
        self._newest = None

    def explain(self, row: int) -> Hearing | None:
        """Why the newest issue weighed the members of VM `row` as it did, worked out again for it alone; None = nothing was issued."""
        if self._newest is None:
            return None
        slot, fleet = self._newest
        said, recent = self._said[..., row, :].copy(), self._recent[..., row, :].copy()
        slots = np.stack([self._slots[half_hour % SLOTS][..., row, :] for half_hour in (slot, slot + 1)])
        at = said_at(self._issues - 1)
        made = np.ascontiguousarray(said[at].transpose(1, 2, 0), dtype=np.float64)
        logs = np.empty(recent.shape[1:], dtype=np.float32)
        weights = np.empty_like(logs)
        weighing.own_logs(made, said, at, recent, slots[0], slots[1], logs, np.zeros_like(fleet))
        weighing.weigh(logs, recent[1], fleet, self._fleet_evidence, NEWCOMER, CUT, SHARPNESS, weights)
        usual = slots.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            expected = np.moveaxis(fleet[0] / fleet[1], -1, 1)  # [k, g, r]
            lent = np.nan_to_num(expected) + NEWCOMER
            trust = recent[1] / (recent[1] + self._fleet_evidence)
            scores = np.where(np.isinf(logs), np.inf, np.where(np.isnan(logs), lent, lent + trust * (logs - lent)))
            errors, usual_errors = recent[0] / recent[1], usual[0] / usual[1]
        by_part: list[NDArray[Any]] = [weights, errors, recent[1], usual_errors, usual[1], expected, scores]
        return Hearing(made.astype(np.float32), *(np.moveaxis(part, 1, -1) for part in by_part))

    @staticmethod
    def _flat(state: F32) -> F32:
        return state.reshape(*state.shape[:-2], state.shape[-2] * N_RESOURCES)


def said_at(issue: int) -> NDArray[np.int64]:
    """Where step h of an issue is kept: int64[h] < TRIANGLE. Until then step h of the issue h + 1 earlier lies there."""
    return _TRIANGLE_STARTS + issue % _AGES


_AGES: Final = np.arange(1, HORIZON_STEPS + 1)
_TRIANGLE_STARTS: Final = _AGES * (_AGES - 1) // 2
assert len(GROUP_OF_STEP) == HORIZON_STEPS
