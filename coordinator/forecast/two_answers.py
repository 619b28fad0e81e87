"""Two answers to one target, mixed by what their quantiles cost each VM: what every way of weighing them has in common.

Both are scored by pinball loss when the actual arrives; a VM's own record is shrunk towards its resource's in the fleet, and the quantiles
are averaged with weights that follow the loss ratio. Averaging quantiles (not probabilities) keeps the answer sharp, and two answers that
err differently are better together (Lichtendahl, Grushka-Cockayne, Winkler 2013). mix.py has one weight for all levels, levels.py one for
each.

Pure. Axes: v VM, r resource, s = v * r, h step, g part of the horizon, q level, k weight (of all levels or of each). Invariants: quantiles
stay monotone, NaN only where both are; only what both were asked compares.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.combine import GROUPS
from coordinator.forecast.kernels.mixing import LEAST_RATIO, MOST_RATIO, Q
from coordinator.forecast.rows import take_rows
from coordinator.forecast.triangle import Decided, Triangle
from coordinator.model import F32, F64, N_RESOURCES

FLEET_DECAY: Final = 0.995


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


class TwoAnswers(ABC):
    """What both said, who spoke, and what the fleet lost by either. Call once per bucket `learn`, then `mix` or `pause`."""

    def __init__(self, *, weights: int, prior: float, prior_evidence: float) -> None:
        """`weights`: how many each part of the horizon has. `prior`: log of the other's losses over the first's while nobody has heard
        them; it counts like so many buckets of the fleet."""
        self._prior = prior
        self._prior_evidence = prior_evidence
        self._loss: F64 = np.zeros((2, N_RESOURCES, GROUPS, weights))  # of the fleet, in units
        self._votes: F64 = np.zeros((N_RESOURCES, GROUPS))
        self._unit: F32 = np.ones((0, N_RESOURCES), dtype=np.float32)
        self._said = Triangle(2 * Q)
        self._weight: F32 = np.zeros((0, N_RESOURCES, GROUPS, weights), dtype=np.float32)  # of the newest mixture
        self._renewed = False  # the scores are of another model than the one in it

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        self._unit = take_rows(self._unit, take, 0, 1.0)
        self._said.rearrange(take)

    def learn(self, actual: F32 | F64) -> None:
        """Actuals that became known: float[v, r, h], for step h the target of the issue h + 1 buckets ago; NaN = none."""
        decided = self._said.decided(actual)
        if decided is not None:
            self._hear(*self._score(decided, self._unit.ravel()))

    def mix(self, pool: F32, other: F32 | None, unit: F32 | F64) -> tuple[F32, F32]:
        """Quantiles float32[v, r, h, q] of both -> (mixed, weight of the other float32[v, r, g]). unit float[v, r] > 0."""
        self._unit = np.array(unit, dtype=np.float32)
        if other is None:
            self._said.close(spoke=False)
            return pool, np.zeros((*pool.shape[:2], GROUPS), dtype=np.float32)
        series = (-1, *pool.shape[2:])
        ours, theirs = (np.ascontiguousarray(part, dtype=np.float32).reshape(series) for part in (pool, other))
        mixed, weight = self._combine(ours, theirs, self._expectation())
        self._said.close(spoke=True)
        self._weight, self._renewed = weight.reshape(*pool.shape[:2], *self._weight.shape[2:]), False
        return mixed.reshape(pool.shape), _mean(self._weight)

    def explain(self, row: int) -> Mixing | None:
        """The newest mixture of VM `row`; None where the other did not speak. Losses are means over the levels."""
        said = self._said.said_last(row)
        if said is None:
            return None
        loss, heard = self._record(row)
        if self._renewed:
            loss, heard = np.full_like(loss, np.nan), np.zeros_like(heard)
        by_resource, weight = said.swapaxes(0, 1), self._weight[row]
        return Mixing(
            pool=by_resource[..., :Q],
            network=by_resource[..., Q:],
            weight=_mean(weight),
            pool_loss=loss[..., 0],
            network_loss=loss[..., 1],
            evidence=heard.copy(),
            expected=np.exp(_mean(self._expectation())),
            by_level=weight if weight.shape[-1] > 1 else None,
        )

    def pause(self) -> None:
        """A bucket without an issue."""
        self._said.close(spoke=False)

    def withdraw(self) -> None:
        """Take back the newest issue."""
        self._said.withdraw()

    @abstractmethod
    def _score(self, decided: Decided, unit: F32) -> tuple[F64, F64]:
        """Take what was decided into the VMs' own records; -> losses of both in units summed over VMs [2, r, g, k], votes [r, g]."""

    @abstractmethod
    def _combine(self, ours: F32, theirs: F32, expected: F32) -> tuple[F32, F32]:
        """Keep both answers [s, h, q] in the triangle; -> (mixed, weight of theirs [s, g, k]). expected [r, g, k]: `_expectation`."""

    @abstractmethod
    def _record(self, row: int) -> tuple[F32, F32]:
        """Of VM `row`: mean losses of both of late, float32[r, g, 2], NaN = none; over so many buckets [r, g]."""

    def _hear(self, total: F64, votes: F64) -> None:
        """The fleet's losses of one bucket, in units: sums [2, r, g, k] over so many votes [r, g]."""
        told = votes > 0
        decay = np.where(told, FLEET_DECAY, 1.0)
        self._loss = self._loss * decay[..., None] + total / np.maximum(votes, 1.0)[..., None]
        self._votes = self._votes * decay + told

    def _expectation(self) -> F32:
        """float32[r, g, k]: log of the other's loss over the first's in the fleet, leaning on the prior."""
        first, other = self._loss
        usable = (first > 0) & (other > 0)
        ratio = np.where(usable, other, 1.0) / np.where(usable, first, 1.0)
        logs = np.log(np.clip(ratio, LEAST_RATIO, MOST_RATIO))
        votes, prior = np.where(usable, self._votes[..., None], 0.0), self._prior_evidence
        expected: F32 = ((logs * votes + self._prior * prior) / (votes + prior)).astype(np.float32)
        return expected


def _mean(each: F32) -> F32:
    """Over the last axis; a copy of nothing where that holds one value."""
    mean: F32 = each[..., 0] if each.shape[-1] == 1 else each.mean(axis=-1)
    return mean
