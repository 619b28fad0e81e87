"""Two calibrated answers into one: the pool's and the network's, mixed by what their quantiles cost each VM.

Both are scored by pinball loss when the actual arrives; a VM's own score is shrunk towards its resource's in the fleet, and the
quantiles are averaged with weights that follow the loss ratio. Averaging quantiles (not probabilities) keeps the answer sharp, and two
answers that err differently are better together (Lichtendahl, Grushka-Cockayne, Winkler 2013).

Pure. Axes: v VM, r resource, h step, g part of the horizon, q level. Invariants: quantiles stay monotone, NaN only where both are; only
what both were asked compares. State: 5,616 bytes a series for what was said (nothing before a network speaks) and 52 for scores.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.combine import GROUPS
from coordinator.forecast.kernels import mixing
from coordinator.forecast.rows import NEW, take_rows
from coordinator.forecast.triangle import Triangle
from coordinator.model import F32, F64, N_RESOURCES
from shared.units import HORIZON_STEPS

POOL, NETWORK = 0, 1
FLEET_DECAY: Final = 0.995
PRIOR_RATIO: Final = -0.1  # of the logs: a network that passed its gate is trusted a little more
PRIOR_EVIDENCE: Final = 6.0  # buckets of the fleet


class Mixing(NamedTuple):
    """The newest mixture for one VM; NaN = not scored."""

    pool: F32  # [r, h, q]
    network: F32
    weight: F32  # [r, g] of the network
    pool_loss: F32  # [r, g] mean pinball loss of late, in the data's unit
    network_loss: F32
    evidence: F32  # [r, g] buckets
    expected: F32  # [r, g] the network's loss over the pool's in the fleet
    by_level: F32 | None = None  # [r, g, q] weights of the network where each level has its own; `weight` is then their mean


class Mixer:
    """Scores and weights of both answers to one target."""

    def __init__(self) -> None:
        self._own: F32 = np.zeros((0, N_RESOURCES, GROUPS, 4), dtype=np.float32)  # sum and weight of the pool, of the network
        self._fleet: F64 = np.zeros((2, 2, N_RESOURCES, GROUPS))  # source; sum in units and weight
        self._unit: F32 = np.ones((0, N_RESOURCES), dtype=np.float32)
        self._said = Triangle(2 * mixing.Q)
        self._weight: F32 = np.zeros((0, N_RESOURCES, GROUPS), dtype=np.float32)  # of the newest mixture
        self._renewed = False  # the scores are of another network than the one in it

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        self._own = take_rows(self._own, take, 0, 0.0)
        self._unit = take_rows(self._unit, take, 0, 1.0)
        self._said.rearrange(take)

    def learn(self, actual: F32 | F64) -> None:
        """Actuals that became known: float[v, r, h], for step h the target of the issue h + 1 buckets ago; NaN = none."""
        spoke = self._said.spoke
        if not spoke.any():
            return
        came = np.ascontiguousarray(actual, dtype=np.float32).reshape(-1, actual.shape[-1])
        self._hear(*mixing.score(self._said.rows, self._said.places, spoke, came, self._unit.ravel(), self._scores))

    def succeed(self, loss: F64) -> None:
        """A new network: its losses [o, v, r, h] at origins that it was not trained on replace what was known of the one before."""
        total, weight = self._own[..., 0], self._own[..., 1]
        before = np.where(weight > 0, total / np.maximum(weight, 1.0), np.float32(np.nan)).reshape(-1, GROUPS)
        self._own[..., 2:] = 0.0
        self._fleet[:] = 0.0
        self._renewed = True
        for each in loss:
            again = np.ascontiguousarray(each, dtype=np.float32).reshape(-1, each.shape[-1])
            self._hear(*mixing.rehearse(again, before, self._unit.ravel(), self._scores))

    def mix(self, pool: F32, network: F32 | None, unit: F32 | F64) -> tuple[F32, F32]:
        """Quantiles float32[v, r, h, q] of both -> (mixed, weight of the network float32[v, r, g]). unit float[v, r] > 0."""
        self._unit = np.array(unit, dtype=np.float32)
        if network is None:
            self._said.close(spoke=False)
            return pool, np.zeros((*pool.shape[:2], GROUPS), dtype=np.float32)
        series = (-1, *pool.shape[2:])
        ours, theirs = (np.ascontiguousarray(part, dtype=np.float32).reshape(series) for part in (pool, network))
        mixed, weight = mixing.mix(ours, theirs, self._scores, self._expectation(), self._said.rows, self._said.places)
        self._said.close(spoke=True)
        self._weight, self._renewed = weight.reshape(*pool.shape[:2], GROUPS), False
        return mixed.reshape(pool.shape), self._weight

    def explain(self, row: int) -> Mixing | None:
        """The newest mixture of VM `row`; None where no network spoke."""
        said = self._said.said_last(row)
        if said is None:
            return None
        scores = np.full((N_RESOURCES, GROUPS, 4), np.nan, dtype=np.float32) if self._renewed else self._own[row]
        with np.errstate(invalid="ignore", divide="ignore"):
            pool_loss, network_loss = scores[..., 0] / scores[..., 1], scores[..., 2] / scores[..., 3]
        by_resource = said.swapaxes(0, 1)
        return Mixing(
            pool=by_resource[..., : mixing.Q],
            network=by_resource[..., mixing.Q :],
            weight=self._weight[row],
            pool_loss=pool_loss,
            network_loss=network_loss,
            evidence=np.nan_to_num(scores[..., 1]),
            expected=np.exp(self._expectation()),
        )

    def pause(self) -> None:
        """A bucket without an issue."""
        self._said.close(spoke=False)

    def withdraw(self) -> None:
        """Take back the newest issue."""
        self._said.withdraw()

    @property
    def _scores(self) -> F32:
        return self._own.reshape(-1, GROUPS, 4)

    def _hear(self, total: F64, votes: F64) -> None:
        """The fleet's losses of one bucket, in units: sums [2, r, g] over so many votes [r, g]."""
        told = votes > 0
        self._fleet *= np.where(told, FLEET_DECAY, 1.0)
        self._fleet[:, 0] += total / np.maximum(votes, 1.0)
        self._fleet[:, 1] += told

    def _expectation(self) -> F32:
        """float32[r, g]: log of the network's loss over the pool's in the fleet, leaning on the prior."""
        (pool, _), (network, votes) = self._fleet  # both were always scored together
        usable = (pool > 0) & (network > 0)
        ratio = np.where(usable, network, 1.0) / np.where(usable, pool, 1.0)
        logs = np.log(np.clip(ratio, mixing.LEAST_RATIO, mixing.MOST_RATIO))
        votes = np.where(usable, votes, 0.0)
        expected: F32 = ((logs * votes + PRIOR_RATIO * PRIOR_EVIDENCE) / (votes + PRIOR_EVIDENCE)).astype(np.float32)
        return expected


def exercise() -> None:
    """Run every kernel once, with production's types (see warm.py): the engine of a warming has no network."""
    mixer = Mixer()
    mixer.rearrange(np.array([NEW]))
    said = np.ones((1, N_RESOURCES, HORIZON_STEPS, mixing.Q), dtype=np.float32)
    mixer.mix(said, said, np.ones((1, N_RESOURCES)))
    mixer.learn(np.ones((1, N_RESOURCES, HORIZON_STEPS)))
    mixer.succeed(np.ones((1, 1, N_RESOURCES, HORIZON_STEPS)))
