"""What all groups teach each other: how far off sums of forecasts are, how wide, in what shape. Pure, bounded, row-free.

Everything is measured in the group's own unit, the error that independent members would make (root of the sum of their variances), so
one law serves an application of five VMs and the fleet, and a group that appeared a minute ago. Two online ridge regressions (what
moves the centre; what widens the band: errors of one sign in all members widen it far beyond that unit) and a reservoir of scaled
residuals, whose quantiles are the bands (pooled signed conformal).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F32, F64, LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

TAU: Final = np.array(LEVELS)
PART_OF_STEP: Final = np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2])  # near, middle, far: laws are learned for each
PART_STARTS: Final = np.array([0, 2, 6])
PARTS: Final = 3
RESERVOIR: Final = 3456  # scaled residuals per resource and step
RESERVOIR_PRIOR: Final = 6.0  # the prior shape counts like this many independent residuals beyond a level
DRAW: Final = 12  # groups that speak in one bucket: with thousands of groups the reservoir still spans a day
# |error| over its geometric mean, half way between a normal law (exp of -.635) and a Laplace law (exp of -Euler's gamma)
_Z: Final = np.array([-1.95996, -1.28155, -0.67449, 0.0, 0.67449, 1.28155, 1.64485, 1.95996, 2.32635])
_LAPLACE: Final = -np.sign(TAU - 0.5) * np.log(2.0 * np.minimum(TAU, 1.0 - TAU))
PRIOR_SHAPE: Final = 0.5 * (_Z / 0.5299 + _LAPLACE / 0.5615)


class Ridge:
    """Online ridge regression per resource and part of the horizon: target ≈ features · beta, `beta` float64[r, part, p]."""

    def __init__(self, prior: tuple[float, ...], ridge: float, forget: float) -> None:
        """`ridge`: the prior counts like this much feature energy; `forget`: share of the evidence kept per bucket."""
        p = len(prior)
        self._prior: F64 = np.array(prior)
        self._ridge, self._forget = ridge, forget
        self._normal: F64 = np.zeros((N_RESOURCES, PARTS, p, p))
        self._moment: F64 = np.zeros((N_RESOURCES, PARTS, p))
        self.beta: F64 = np.broadcast_to(self._prior, self._moment.shape).copy()

    def learn(self, features: NDArray[np.floating], target: F64, known: NDArray[np.bool_]) -> None:
        """features [g, r, h, p], target float64[g, r, h], known bool[g, r, h]; solves again at once."""
        rows = np.where(known[..., None], features, 0.0).astype(np.float64).transpose(1, 2, 3, 0)  # [r, h, p, g]
        heard = np.where(known, target, 0.0).transpose(1, 2, 0)[..., None]
        self._normal = self._normal * self._forget + np.add.reduceat(rows @ rows.swapaxes(-1, -2), PART_STARTS, axis=1)
        self._moment = self._moment * self._forget + np.add.reduceat((rows @ heard)[..., 0], PART_STARTS, axis=1)
        energy = self._normal + self._ridge * np.eye(len(self._prior))
        solved: F64 = np.linalg.solve(energy, (self._moment + self._ridge * self._prior)[..., None])[..., 0].astype(np.float64)
        self.beta = solved

    def predict(self, features: NDArray[np.floating]) -> F64:
        """features [g, r, h, p] -> float64[g, r, h]."""
        said: F64 = np.einsum("grhp,rhp->grh", features, self.beta[:, PART_OF_STEP])
        return said

    def soften(self, keep: float) -> None:
        """Let all evidence count for `keep` of what it did (0 = back to the prior)."""
        self._normal *= keep
        self._moment *= keep
        if keep == 0.0:
            self.beta[:] = self._prior


class Reservoir:
    """The newest scaled residuals of any group, per resource and step, and the quantiles they have: `shape` float64[r, 12, q]."""

    def __init__(self, prior: F64) -> None:
        """prior float64[12, q]."""
        self._prior = prior
        self._values: F32 = np.full((RESERVOIR, N_RESOURCES, HORIZON_STEPS), np.nan, dtype=np.float32)
        self._next = 0
        self._speakers = 1.0  # groups that speak in a bucket, about
        self._turn = 0
        self.shape: F64 = np.broadcast_to(prior, (N_RESOURCES, HORIZON_STEPS, len(TAU))).copy()

    def add(self, scaled: F64) -> None:
        """Scaled residuals float64[g, r, 12] of one bucket; NaN = none. Of more than DRAW groups the next ones in turn speak."""
        heard = scaled[~np.isnan(scaled).all(axis=(1, 2))]
        if not len(heard):
            return
        if len(heard) > DRAW:
            heard = heard[(self._turn + np.arange(DRAW)) % len(heard)]
            self._turn += DRAW
        self._values[(self._next + np.arange(len(heard))) % RESERVOIR] = heard
        self._next += len(heard)
        self._speakers += 0.05 * (len(heard) - self._speakers)

    def reshape(self) -> None:
        """Look at the residuals again."""
        ordered = np.sort(self._values, axis=0).astype(np.float64)  # NaN last
        count = (~np.isnan(ordered)).sum(axis=0)
        place = np.maximum(count - 1, 0)[..., None] * TAU
        low = place.astype(np.int64)
        high = np.minimum(low + 1, np.maximum(count - 1, 0)[..., None])
        below, above = (np.moveaxis(np.take_along_axis(ordered, np.moveaxis(at, -1, 0), axis=0), 0, -1) for at in (low, high))
        # groups share VMs, and neighbouring origins share hours: few of the residuals are independent, and of those few lie in a tail
        independent = count / np.sqrt(max(1.0, self._speakers)) / (1.0 + np.arange(HORIZON_STEPS)) ** 0.5
        outside = independent[..., None] * 2.0 * np.minimum(TAU, 1.0 - TAU)
        trust = outside / (outside + RESERVOIR_PRIOR)
        empirical = np.where(count[..., None] > 0, below + (place - low) * (above - below), 0.0)
        mixed = trust * empirical + (1.0 - trust) * self._prior
        # tails mix as factors: a day with one wild hour must not make every band as wide as that hour
        same = empirical * self._prior > 0
        factor = np.exp(trust * np.log(np.where(same, empirical / np.where(same, self._prior, 1.0), 1.0)))
        self.shape = np.maximum.accumulate(np.where(same, self._prior * factor, mixed), axis=-1)
