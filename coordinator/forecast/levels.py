"""Two answers to one target, mixed level by level by what their quantiles cost.

One weight for a whole answer is ruled by its dearest levels: on bursts LightGBM's tails are better than the pool's while its middle is
worse, on smooth load the other way round. So each level of each part of the horizon has a weight of its own, which follows the losses of
both there: the VM's own, shrunk towards its resource's in the fleet. On Bitbrains' CPU this costs 2.4 % less pinball than one weight, and
a twentieth less absolute error (docs/forecasting.md); the peak of the hour is blended so too, from more sources (hours.py).
Levels that cross change places, which never costs pinball (Chernozhukov, Fernandez-Val, Galichon 2010).

Pure. Axes: v VM, r resource, h step, g part of the horizon, q level. Invariants: quantiles stay monotone, NaN only where both are; only
what both were asked compares. State: 5,616 bytes a series for what was said (nothing before the other speaks) and 304 for scores.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.combine import GROUPS
from coordinator.forecast.kernels import levels
from coordinator.forecast.kernels.widening import widened
from coordinator.forecast.mix import Mixing
from coordinator.forecast.rows import NEW, take_rows
from coordinator.forecast.triangle import Triangle
from coordinator.model import F32, F64, N_RESOURCES
from shared.units import HORIZON_STEPS

FLEET_DECAY: Final = 0.995
PRIOR_EVIDENCE: Final = 12.0  # buckets of the fleet
INHERITED: Final = 0.5  # of its predecessor's record counts for an answer that takes its place


class LevelMixer:
    """Scores and weights of both answers. Call once per bucket `learn`, then `mix` or `pause`.

    `prior`: log of what the other's losses are over the first's, as long as nobody has heard them.
    """

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._own: F32 = np.zeros((0, N_RESOURCES, GROUPS, levels.Q, 2), dtype=np.float32)
        self._heard: F32 = np.zeros((0, N_RESOURCES, GROUPS), dtype=np.float32)
        self._loss: F64 = np.zeros((2, N_RESOURCES, GROUPS, levels.Q))  # of the fleet, in units
        self._votes: F64 = np.zeros((N_RESOURCES, GROUPS))
        self._unit: F32 = np.ones((0, N_RESOURCES), dtype=np.float32)
        self._said = Triangle(2 * levels.Q)
        self._weight: F32 = np.zeros((0, N_RESOURCES, GROUPS, levels.Q), dtype=np.float32)  # of the newest mixture
        self._renewed = False  # the scores are those of a predecessor

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        self._own = take_rows(self._own, take, 0, 0.0)
        self._heard = take_rows(self._heard, take, 0, 0.0)
        self._unit = take_rows(self._unit, take, 0, 1.0)
        self._said.rearrange(take)

    def learn(self, actual: F32 | F64) -> None:
        """Actuals that became known: float[v, r, h], for step h the target of the issue h + 1 buckets ago; NaN = none."""
        spoke = self._said.spoke
        if not spoke.any():
            return
        came = np.ascontiguousarray(actual, dtype=np.float32).reshape(-1, actual.shape[-1])
        total, votes = levels.score(self._said.rows, self._said.places, spoke, came, self._unit.ravel(), *self._flat)
        told = votes > 0
        decay = np.where(told, FLEET_DECAY, 1.0)
        self._loss = self._loss * decay[..., None] + total / np.maximum(votes, 1.0)[..., None]
        self._votes = self._votes * decay + told

    def succeed(self, loss: F64) -> None:
        """Another model speaks from now on. Which levels such a model is good at was learned already; how good it is, it must show.

        `loss`, as Mixer.succeed has it, is not told by levels, and not needed: who is promoted is no worse than who spoke before.
        """
        del loss
        self._own *= INHERITED
        self._heard *= INHERITED
        self._loss *= INHERITED
        self._votes *= INHERITED
        self._renewed = True

    def mix(self, pool: F32, other: F32 | None, unit: F32 | F64) -> tuple[F32, F32]:
        """Quantiles float32[v, r, h, q] of both -> (mixed, weight of the other float32[v, r, g]). unit float[v, r] > 0."""
        self._unit = np.array(unit, dtype=np.float32)
        if other is None:
            self._said.close(spoke=False)
            return pool, np.zeros((*pool.shape[:2], GROUPS), dtype=np.float32)
        series = (-1, *pool.shape[2:])
        ours, theirs = (np.ascontiguousarray(part, dtype=np.float32).reshape(series) for part in (pool, other))
        mixed, weight = levels.mix(ours, theirs, *self._flat, self._expectation(), self._said.rows, self._said.places)
        self._said.close(spoke=True)
        self._weight, self._renewed = weight.reshape(*pool.shape[:2], GROUPS, levels.Q), False
        mean: F32 = self._weight.mean(axis=-1)
        return mixed.reshape(pool.shape), mean

    def mix_three(self, pool: F32, three: F64 | None, unit: F32 | F64) -> tuple[F32, F32]:
        """The same with an answer of three quantiles, float64[3, v * r, h]: .1, .5 and .9; the pool's shape fills in the others."""
        if three is None:
            return self.mix(pool, None, unit)
        ours = np.ascontiguousarray(pool, dtype=np.float32).reshape(-1, *pool.shape[2:])
        return self.mix(pool, widened(np.ascontiguousarray(three), ours).reshape(pool.shape), unit)

    def explain(self, row: int) -> Mixing | None:
        """The newest mixture of VM `row`; None where the other did not speak. Losses are means over the levels."""
        said = self._said.said_last(row)
        if said is None:
            return None
        heard = self._heard[row]
        with np.errstate(invalid="ignore", divide="ignore"):
            loss = self._own[row].mean(axis=-2) / np.where(heard > 0, heard, np.float32(np.nan))[..., None]
        if self._renewed:
            loss[:] = np.nan
        by_resource, weight = said.swapaxes(0, 1), self._weight[row]
        return Mixing(
            pool=by_resource[..., : levels.Q],
            network=by_resource[..., levels.Q :],
            weight=weight.mean(axis=-1),
            pool_loss=loss[..., 0],
            network_loss=loss[..., 1],
            evidence=np.where(self._renewed, np.float32(0.0), heard),
            expected=np.exp(self._expectation().mean(axis=-1)),
            by_level=weight,
        )

    def pause(self) -> None:
        """A bucket without an issue."""
        self._said.close(spoke=False)

    def withdraw(self) -> None:
        """Take back the newest issue."""
        self._said.withdraw()

    @property
    def _flat(self) -> tuple[F32, F32]:
        return self._own.reshape(-1, GROUPS, levels.Q, 2), self._heard.reshape(-1, GROUPS)

    def _expectation(self) -> F32:
        """float32[r, g, q]: log of the other's loss over the first's in the fleet, leaning on the prior."""
        first, other = self._loss
        usable = (first > 0) & (other > 0)
        ratio = np.where(usable, other, 1.0) / np.where(usable, first, 1.0)
        logs = np.log(np.clip(ratio, levels.LEAST_RATIO, levels.MOST_RATIO))
        votes = np.where(usable, self._votes[..., None], 0.0)
        expected: F32 = ((logs * votes + self._prior * PRIOR_EVIDENCE) / (votes + PRIOR_EVIDENCE)).astype(np.float32)
        return expected


def exercise() -> None:
    """Run every kernel once, with production's types (see warm.py): the engine of a warming has neither network nor LightGBM."""
    mixer = LevelMixer(0.0)
    mixer.rearrange(np.array([NEW]))
    said = np.ones((1, N_RESOURCES, HORIZON_STEPS, levels.Q), dtype=np.float32)
    mixer.mix_three(said, np.ones((3, N_RESOURCES, HORIZON_STEPS)), np.ones((1, N_RESOURCES)))
    mixer.learn(np.ones((1, N_RESOURCES, HORIZON_STEPS)))
