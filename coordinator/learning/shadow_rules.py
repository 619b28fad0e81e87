"""What rules would have granted, replayed over 5-minute buckets of demand that came: the reactive rule, and predictive mode over it.

Reactive, as the agents' own (shared.config.ReactiveConfig): a bucket whose peak passes 85 % of the value grows it to 1.4 x the peak within
the bucket; at the end of a bucket the value falls to 1.25 x the largest peak of the last half hour. Predictive takes, at the start of each
bucket, the 95 % quantile of the peak within the next ten minutes as it was forecast then, never less than the peak of the last ten
minutes; where no forecast was stored it falls back on the reactive rule, and the reactive rule always guards it from below. Both stay
within the VM's static size (its maximum) and leave changes below 2 % out.

Time that a VM lacks something: until the guard has helped. CPU: 10 s (a sample and a step). Memory: 5 s and another 5 s for each balloon
step of 5 % that is missing, a whole bucket at most. A peak above the static size lacks the whole bucket under any rule. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F64
from shared.config import ReactiveConfig
from shared.units import BUCKET_S, MEMORY

_RULE: Final = ReactiveConfig()
GROW_AT: Final = _RULE.grow_at_permille / 1000
HEADROOM: Final = _RULE.headroom_permille / 1000
MARGIN: Final = _RULE.shrink_margin_permille / 1000
RECENT: Final = _RULE.turn_window_s // BUCKET_S  # buckets
JUST: Final = 2  # buckets whose peaks a forecast does not undercut
DEAD_BAND: Final = 0.02
FLOOR: Final = 0.02  # of the static size: no rule goes to nothing
CPU_LAG_S: Final = 10.0
STEP_S: Final = 5.0
BALLOON_STEP: Final = math.log(1.05)


@dataclass
class RuleState:
    """Of one rule over v VMs and one resource, between chunks of time."""

    value: F64  # [v] in force
    recent: F64 = field(default_factory=lambda: np.zeros((0, 0)))  # [v, RECENT] peaks, NaN none

    @classmethod
    def start(cls, static: F64) -> RuleState:
        """Everybody begins with the static size."""
        return cls(value=static.astype(np.float64).copy(), recent=np.full((len(static), RECENT), np.nan))


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Per VM and bucket, [v, b]: what was granted (NaN where nothing is known of the bucket), seconds of want, changes made."""

    granted: F64
    lack_s: F64
    steps: NDArray[np.int64]


def replay(peak: F64, static: F64, state: RuleState, resource: int, forecast: F64 | None = None) -> Replay:
    """Run a rule over peaks [v, b] of demand; `forecast` [v, b]: the quantile that was forecast at each bucket's start, NaN none.

    `state` goes on; `static` [v].
    """
    v, buckets = peak.shape
    granted, lack = np.full((v, buckets), np.nan), np.zeros((v, buckets))
    steps = np.zeros((v, buckets), np.int64)
    for b in range(buckets):
        came = peak[:, b]
        known = ~np.isnan(came)
        recent = np.fmax.reduce(state.recent, axis=1)
        said = np.full(v, np.nan) if forecast is None else forecast[:, b]
        told = ~np.isnan(said)
        target = np.where(told, np.fmax(said, np.fmax.reduce(state.recent[:, -JUST:], axis=1)), MARGIN * recent)
        target = np.clip(target, FLOOR * static, static)
        shrinks = target < state.value * (1.0 - DEAD_BAND)
        grows = told & (target > state.value * (1.0 + DEAD_BAND))
        value = np.where(shrinks | grows, target, state.value)
        steps[:, b] = shrinks | grows
        lack[:, b] = np.where(known & (came > value), _lag_s(came, value, resource), 0.0)
        lack[:, b] = np.where(known & (came > static), BUCKET_S, lack[:, b])
        guarded = np.where(known & (came > GROW_AT * value), np.minimum(HEADROOM * came, static), value)
        after = np.maximum(guarded, value)
        steps[:, b] += after > value * (1.0 + DEAD_BAND)
        granted[:, b] = np.where(known, after, np.nan)
        state.value = after
        state.recent = np.concatenate([state.recent[:, 1:], came[:, None]], axis=1)
    return Replay(granted=granted, lack_s=lack, steps=steps)


def _lag_s(came: F64, value: F64, resource: int) -> F64:
    """Seconds until the guard has given what is wanted."""
    if resource != MEMORY:
        return np.full(len(came), CPU_LAG_S)
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = np.ceil(np.log(came / value) / BALLOON_STEP)
    return np.minimum(STEP_S * (1.0 + np.nan_to_num(steps)), float(BUCKET_S))
