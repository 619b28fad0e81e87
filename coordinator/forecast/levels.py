"""Two answers mixed level by level.

One weight for a whole answer is ruled by its dearest levels: on bursts LightGBM's tails are better than the pool's while its middle is
worse, on smooth load the other way round. So each level of each part of the horizon has a weight of its own, which follows the losses of
both there: the VM's own, shrunk towards its resource's in the fleet (see two_answers.py). On Bitbrains' CPU this costs 2.4 % less pinball
than one weight, and a twentieth less absolute error (docs/forecasting.md); the peak of the hour is blended so too, from more sources
(hours.py). Levels that cross change places, which never costs pinball (Chernozhukov, Fernandez-Val, Galichon 2010).

Pure. Axes as in two_answers.py. State: 5,616 bytes a series for what was said (nothing before the other speaks) and 304 for scores.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.combine import GROUPS
from coordinator.forecast.kernels import levels
from coordinator.forecast.kernels.mixing import Q
from coordinator.forecast.kernels.widening import widened
from coordinator.forecast.rows import NEW, take_rows
from coordinator.forecast.triangle import Decided
from coordinator.forecast.two_answers import TwoAnswers
from coordinator.model import F32, F64, N_RESOURCES
from shared.units import HORIZON_STEPS

PRIOR_EVIDENCE: Final = 12.0  # buckets of the fleet
INHERITED: Final = 0.5  # of its predecessor's record counts for an answer that takes its place


class LevelMixer(TwoAnswers):
    """Scores and weights of both answers to one target, level by level."""

    def __init__(self, prior: float) -> None:
        super().__init__(weights=Q, prior=prior, prior_evidence=PRIOR_EVIDENCE)
        self._own: F32 = np.zeros((0, N_RESOURCES, GROUPS, Q, 2), dtype=np.float32)
        self._heard: F32 = np.zeros((0, N_RESOURCES, GROUPS), dtype=np.float32)

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        super().rearrange(take)
        self._own = take_rows(self._own, take, 0, 0.0)
        self._heard = take_rows(self._heard, take, 0, 0.0)

    def inherit(self) -> None:
        """Another model speaks from now on. Which levels such a model is good at was learned already; how good it is, it must show."""
        self._own *= INHERITED
        self._heard *= INHERITED
        self._loss *= INHERITED
        self._votes *= INHERITED
        self._renewed = True

    def mix_three(self, pool: F32, three: F64 | None, unit: F32 | F64) -> tuple[F32, F32]:
        """`mix` with an answer of three quantiles, float64[3, v * r, h]: .1, .5 and .9; the pool's shape fills in the others."""
        if three is None:
            return self.mix(pool, None, unit)
        ours = np.ascontiguousarray(pool, dtype=np.float32).reshape(-1, *pool.shape[2:])
        return self.mix(pool, widened(np.ascontiguousarray(three), ours).reshape(pool.shape), unit)

    @property
    def _flat(self) -> tuple[F32, F32]:
        return self._own.reshape(-1, GROUPS, Q, 2), self._heard.reshape(-1, GROUPS)

    def _score(self, decided: Decided, unit: F32) -> tuple[F64, F64]:
        found: tuple[F64, F64] = levels.score(*decided, unit, *self._flat)
        return found

    def _combine(self, ours: F32, theirs: F32, expected: F32) -> tuple[F32, F32]:
        found: tuple[F32, F32] = levels.mix(ours, theirs, *self._flat, expected, self._said.rows, self._said.places)
        return found

    def _record(self, row: int) -> tuple[F32, F32]:
        heard = self._heard[row]
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._own[row].mean(axis=-2) / np.where(heard > 0, heard, np.float32(np.nan))[..., None], heard


def exercise() -> None:
    """Run every kernel once, with production's types (see warm.py): the engine of a warming has neither network nor LightGBM."""
    mixer = LevelMixer(0.0)
    mixer.rearrange(np.array([NEW]))
    said = np.ones((1, N_RESOURCES, HORIZON_STEPS, Q), dtype=np.float32)
    mixer.mix_three(said, np.ones((3, N_RESOURCES, HORIZON_STEPS)), np.ones((1, N_RESOURCES)))
    mixer.learn(np.ones((1, N_RESOURCES, HORIZON_STEPS)))
