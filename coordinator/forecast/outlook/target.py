"""One target of the outlook, the mean of a block or the peak within it: a pool of members, weighed, calibrated, mixed and held.

The same parts that the hour's engine is made of, at a twelfth of a block's pace: twelve blocks in place of twelve buckets, learning
whenever a half hour closes. What differs is the pool (seasons count for more than the last value, the farther one looks) and the second
opinion: quantiles of the day before and of the same time on earlier days, which need no law of errors.

Pure. State: 19 KiB a series, float32, most of it what was said until it is scored.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.calibrate import Calibrator
from coordinator.forecast.combine import GROUP_MIDDLES, Combiner
from coordinator.forecast.kernels import half_hours
from coordinator.forecast.locality import local_features, usual_change
from coordinator.forecast.members import look
from coordinator.forecast.mix import Mixer
from coordinator.forecast.outlook.blocks import BLOCK_S, DAY_BLOCKS
from coordinator.forecast.track import Tracker
from coordinator.model import F32, F64, LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

MEMBERS: Final = (
    "last", "median_day", "yesterday", "last_week", "usual_day", "usual_day_shifted", "usual_day_scaled", "drift", "damped_trend",
)  # fmt: skip
FLEET_EVIDENCE: Final = 24.0  # blocks: errors of neighbouring ones repeat each other
SHARPNESS: Final = 6.0  # hours ahead few errors are independent: more members are heard than in the hour's pool
PARTS_OF_DAY: Final = 8
SPREADS: Final = 4
PRIOR: Final = (-0.2, 0.4, 0.3, 0.0, 0.3, 0.0)  # as engine.PRIOR; hours ahead the spread says more than own errors do
LEAST_BLOCKS: Final = 4  # known in the last days; below that nothing is said
GAP_BLOCKS: Final = 6  # silent for longer: nothing is said


class BlockTarget:
    """Call once per block `learn`, then `issue` or `pause`, as the parts do."""

    def __init__(self) -> None:
        self._combiner = Combiner(MEMBERS, FLEET_EVIDENCE, parts=PARTS_OF_DAY, sharpness=SHARPNESS)
        self._calibrator = Calibrator(SPREADS, PRIOR)
        self._mixer = Mixer()
        self._tracker = Tracker()
        self._parts = (self._combiner, self._calibrator, self._mixer, self._tracker)

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        for part in self._parts:
            part.rearrange(take)

    def learn(self, newest: F32, end_s: int) -> None:
        """Score everything that the block which ended at `end_s` decides: float32[v, r], NaN = unknown."""
        actual = np.repeat(newest.astype(np.float64)[..., None], HORIZON_STEPS, axis=-1)
        slots = tuple(part_of_day(end_s - (middle + 1) * BLOCK_S) for middle in GROUP_MIDDLES)
        self._combiner.learn(actual, slots)
        self._calibrator.learn(actual)
        self._mixer.learn(actual)
        self._tracker.learn(actual)

    def issue(self, blocks: F32, now_s: int, capacity: F64) -> F32:
        """Quantiles float32[v, r, 12, q] of the blocks after `now_s`; blocks float32[v, r, b] until then; capacity [v, r] or NaN."""
        v = len(blocks)
        shape = (v, N_RESOURCES)
        series = blocks.reshape(v * N_RESOURCES, -1)
        seen = look(series)
        known, lately = np.zeros(len(series), dtype=np.int64), np.zeros((len(series), len(LEVELS)), dtype=np.float32)
        forecasts = np.full((len(MEMBERS), v * N_RESOURCES, HORIZON_STEPS), np.nan)
        if series.size:
            half_hours.members(seen.filled, series, forecasts, known, lately)
        pool = forecasts.reshape(len(MEMBERS), *shape, HORIZON_STEPS)
        point = self._combiner.issue(part_of_day(now_s), pool).point
        silent = ((seen.readings < LEAST_BLOCKS) | (seen.age > GAP_BLOCKS)).reshape(shape)
        point[silent] = np.nan
        unit, floor = usual_change(seen, shape)
        quantiles = self._calibrator.issue(point, unit, local_features(seen, pool, point, floor), capacity)
        second = np.full_like(quantiles, np.nan)
        if series.size:
            first, said = (part.reshape(-1, HORIZON_STEPS, len(LEVELS)) for part in (quantiles, second))
            half_hours.law(seen.filled, known, lately, first, np.ascontiguousarray(capacity).ravel(), said)
        mixed, _ = self._mixer.mix(quantiles, second, unit)
        return self._tracker.hold(mixed, unit, seen.level.reshape(shape), capacity)

    def pause(self) -> None:
        """A block in which nothing is issued."""
        for part in self._parts:
            part.pause()

    def withdraw(self) -> None:
        """Take back the newest issue, because its block is issued again."""
        for part in self._parts:
            part.withdraw()

    def coverage(self) -> F32:
        """Realised share inside the pool's central 80 % band of late, float32[v, r]; NaN = not known yet."""
        return self._calibrator.coverage()[0]


def part_of_day(end_s: int) -> int:
    """Which of PARTS_OF_DAY begins with, or holds, this moment."""
    return end_s // BLOCK_S % DAY_BLOCKS * PARTS_OF_DAY // DAY_BLOCKS
