"""A stand-in for the VMs' forecasts on history alone, so that groups know after a restart how far their members move together. Pure.

Exponential smoothing of each VM with the deviations its own errors had: crude, but errors of the sums measured in errors of the members
hardly depend on the forecaster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F32, F64
from shared.units import HORIZON_STEPS

_ALPHA: Final = 0.3
_SPREAD_DECAY: Final = 0.97
_CARRIED: Final = 12  # buckets over which a gap of the history repeats the last value
_STEPS: Final = np.arange(HORIZON_STEPS)


def walk(history: F32, buckets: int, origins: int) -> Iterator[tuple[F64, tuple[F32, F32] | None]]:
    """The newest `buckets` of float32[v, r, b], each with what the stand-in says after it in the newest `origins`.

    Yields (demand float64[v, r], None or (mean, stddev) float32[v, r, 12]).
    """
    values = history[..., -buckets:].astype(np.float64)
    shape = values.shape[:2]
    level, last, age = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape)
    square, weight = np.zeros((*shape, HORIZON_STEPS)), np.zeros((*shape, HORIZON_STEPS))
    said: list[F64] = []  # levels at the newest origins, newest first
    count = values.shape[2]
    for b in range(count):
        raw = values[..., b]
        seen: NDArray[np.bool_] = np.isfinite(raw)
        now = np.where(seen, np.maximum(raw, 0.0), np.nan)
        age = np.where(seen, 0, age + 1)
        last = np.where(seen, now, np.where(age <= _CARRIED, last, np.nan))
        if said:
            steps = len(said)
            miss = now[..., None] - np.stack(said, axis=-1)
            known = ~np.isnan(miss)
            held = np.where(known, _SPREAD_DECAY, 1.0)
            square[..., :steps] = square[..., :steps] * held + np.where(known, miss, 0.0) ** 2
            weight[..., :steps] = weight[..., :steps] * held + known
        level = np.where(np.isnan(level), now, np.where(seen, level + _ALPHA * (now - level), level))
        said = [level.copy(), *said[: HORIZON_STEPS - 1]]
        if b < count - origins:
            yield last, None
            continue
        spread = np.sqrt(square / np.maximum(weight, 1.0))
        spread = np.where(weight > 0, spread, np.abs(level)[..., None] * 0.3)
        mean = np.repeat(level[..., None], HORIZON_STEPS, axis=-1)
        yield last, (mean.astype(np.float32), spread.astype(np.float32))


assert len(_STEPS) == HORIZON_STEPS
