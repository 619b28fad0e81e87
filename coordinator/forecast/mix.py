"""Two answers with one weight for all levels of a part of the horizon: the pool's peaks and the network's, or two laws of half hours.

A weight follows the mean loss over the levels (see two_answers.py). One for each (levels.py) is no gain here: small cuts of the public sets
say 2 % more pinball for the peaks of Bitbrains' CPU and memory, .4 % more for PlanetLab's, 2 % less for disk, at 17 ms of CPU against 8 for
40,000 series. The first answer's record outlives the model behind the other, whose own begins with what it would have said of the past.

Pure. Axes as in two_answers.py. State: 5,616 bytes a series for what was said (nothing before the other speaks) and 52 for scores.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.combine import GROUPS
from coordinator.forecast.kernels import mixing
from coordinator.forecast.rows import NEW, take_rows
from coordinator.forecast.triangle import Decided
from coordinator.forecast.two_answers import TwoAnswers
from coordinator.model import F32, F64, N_RESOURCES
from shared.units import HORIZON_STEPS

PRIOR_RATIO: Final = -0.1  # of the logs: a network that passed its gate is trusted a little more
PRIOR_EVIDENCE: Final = 6.0  # buckets of the fleet


class Mixer(TwoAnswers):
    """Scores and weights of both answers to one target."""

    def __init__(self) -> None:
        super().__init__(weights=1, prior=PRIOR_RATIO, prior_evidence=PRIOR_EVIDENCE)
        self._own: F32 = np.zeros((0, N_RESOURCES, GROUPS, 4), dtype=np.float32)  # sum and weight of the first, of the other

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        super().rearrange(take)
        self._own = take_rows(self._own, take, 0, 0.0)

    def rehearse(self, loss: F64) -> None:
        """Another model speaks from now on: its losses [o, v, r, h] at origins that are new to it replace those of the one before."""
        total, weight = self._own[..., 0], self._own[..., 1]
        before = np.where(weight > 0, total / np.maximum(weight, 1.0), np.float32(np.nan)).reshape(-1, GROUPS)
        self._own[..., 2:] = 0.0
        self._loss[:], self._votes[:] = 0.0, 0.0
        self._renewed = True
        for each in loss:
            again = np.ascontiguousarray(each, dtype=np.float32).reshape(-1, each.shape[-1])
            losses, votes = mixing.rehearse(again, before, self._unit.ravel(), self._scores)
            self._hear(losses[..., None], votes)

    @property
    def _scores(self) -> F32:
        return self._own.reshape(-1, GROUPS, 4)

    def _score(self, decided: Decided, unit: F32) -> tuple[F64, F64]:
        total, votes = mixing.score(*decided, unit, self._scores)
        return total[..., None], votes

    def _combine(self, ours: F32, theirs: F32, expected: F32) -> tuple[F32, F32]:
        found: tuple[F32, F32] = mixing.mix(ours, theirs, self._scores, expected[..., 0], self._said.rows, self._said.places)
        return found

    def _record(self, row: int) -> tuple[F32, F32]:
        own = self._own[row]
        with np.errstate(invalid="ignore", divide="ignore"):
            return own[..., ::2] / own[..., 1::2], own[..., 1]


def exercise() -> None:
    """Run every kernel once, with production's types (see warm.py): the engine of a warming has no network."""
    mixer = Mixer()
    mixer.rearrange(np.array([NEW]))
    said = np.ones((1, N_RESOURCES, HORIZON_STEPS, mixing.Q), dtype=np.float32)
    mixer.mix(said, said, np.ones((1, N_RESOURCES)))
    mixer.learn(np.ones((1, N_RESOURCES, HORIZON_STEPS)))
    mixer.rehearse(np.ones((1, 1, N_RESOURCES, HORIZON_STEPS)))
