"""Coverage of what was said at last, held by online steps: up by a miss and down by a hit in the ratio of the level.

Adaptive conformal inference (Gibbs and Candes 2021) with two offsets: one per resource, restlessness, step and level for the fleet, which
moves fast because many VMs vote, and one per VM, part of the horizon and level on top. A value that equals several quantiles (idle at zero)
counts for all levels that it may stand for, so that it moves none of them away.

Pure. Axes: v VM, r resource, h step, g part of the horizon, q level. Invariants: quantiles stay monotone, >= 0, NaN only where they were.
State: 2,808 bytes a series for what was said, 108 for offsets, 12 for classes.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.combine import GROUPS
from coordinator.forecast.kernels import tracking
from coordinator.forecast.kernels.tracking import CLASSES, LIMIT, SIZE, Q
from coordinator.forecast.rows import take_rows
from coordinator.forecast.triangle import Triangle
from coordinator.model import F32, F64, N_RESOURCES
from shared.units import HORIZON_STEPS

POOLED_GAIN: Final = 6.0


class Tracker:
    """Holds the coverage of one target."""

    def __init__(self, pace: float = 1.0, gain: float = POOLED_GAIN, running: bool = False) -> None:
        """`pace`: how far a VM's own offset moves by one bucket, of the usual step; targets that overlap repeat themselves.

        `gain`: how many usual steps the fleet's offset moves at most. `running`: the target does not fall from step to step.
        """
        self._pace, self._gain, self._running = pace, gain, running
        self._own: F32 = np.zeros((0, N_RESOURCES, GROUPS, Q), dtype=np.float32)
        self._pooled: F64 = np.zeros((N_RESOURCES, CLASSES, HORIZON_STEPS, Q))
        self._classes: NDArray[np.int8] = np.zeros((HORIZON_STEPS, 0, N_RESOURCES), dtype=np.int8)  # at the newest twelve issues
        self._said = Triangle(Q)

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        self._own = take_rows(self._own, take, 0, 0.0)
        self._classes = take_rows(self._classes, take, 1, 0)
        self._said.rearrange(take)

    def learn(self, actual: F32 | F64) -> None:
        """Actuals that became known: float[v, r, h], for step h the target of the issue h + 1 buckets ago; NaN = none."""
        decided = self._said.decided(actual)
        if decided is None:
            return
        classes = self._classes.reshape(HORIZON_STEPS, -1)
        own = self._own.reshape(-1, GROUPS, Q)
        rows, places, spoke, came = decided
        excess, votes = tracking.learn(rows, places, spoke, classes, self._said.origins, came, own, self._pace)
        share = excess / np.maximum(votes, 1.0)[..., None]
        # few votes move it like one VM's own would
        gain = np.where(votes > 0, np.minimum(self._gain, 1.0 + votes / 8.0), 0.0)[..., None]
        self._pooled = np.clip(self._pooled - gain * SIZE * share, -LIMIT, LIMIT)

    def hold(self, quantiles: F32, unit: F32 | F64, level: F32 | F64, capacity: F32 | F64) -> F32:
        """Quantiles [v, r, h, q] -> the same with their offsets. unit, level float[v, r]; capacity NaN = unbounded."""
        classes = self._classes[self._said.newest]
        classes[:] = _classes(unit / (level + unit))
        said = np.ascontiguousarray(quantiles, dtype=np.float32).reshape(-1, *quantiles.shape[2:])
        size, top = (np.ascontiguousarray(part, dtype=np.float32).ravel() for part in (unit, capacity))
        own = self._own.reshape(-1, GROUPS, Q)
        fleet = self._pooled.astype(np.float32)
        held: F32 = tracking.hold(said, size, top, own, fleet, classes.ravel(), self._running, self._said.rows, self._said.places)
        self._said.close(spoke=True)
        return held.reshape(quantiles.shape)

    def restart(self) -> None:
        """Others speak from now on: what was learned of those before is no offset of theirs."""
        self._own[:] = 0.0
        self._pooled[:] = 0.0
        self._said.forget()

    def pause(self) -> None:
        """A bucket without an issue."""
        self._said.close(spoke=False)

    def withdraw(self) -> None:
        """Take back the newest issue."""
        self._said.withdraw()

    def explain(self, row: int) -> F32 | None:
        """What the newest issue said of VM `row` in the end, float32[r, h, q]; None where nothing was issued."""
        said = self._said.said_last(row)
        return None if said is None else said.swapaxes(0, 1)


def _classes(restless: F32 | F64) -> NDArray[np.int8]:
    """Third of its resource that each VM is in, int8[v, r], by how restless it is, float[v, r]; unknown and very small fleets: 0."""
    classes = np.zeros(restless.shape, dtype=np.int8)
    for resource in range(N_RESOURCES):
        ours = np.ascontiguousarray(restless[:, resource])
        known = ours[np.isfinite(ours)]
        if len(known) >= 3 * CLASSES:
            for bound in np.quantile(known, (1 / 3, 2 / 3)):
                classes[:, resource] += ours > bound
    return classes
