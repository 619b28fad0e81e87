"""After a change of level: what the pool says is moved to where the new level is, as far as that has paid on this fleet. Pure.

Rolling medians and profiles need hours to follow a step; three readings tell it (regimes.py). The distribution keeps its width and shape,
its middle goes to the median of the readings since the shift, by the probability that they are nearer to what comes, times a weight that is
learned: on servers with jobs new levels last, on bursty desktops most are gone within the hour, and the pool's newest-value members do
better alone. Both middles are scored on every shifted series when the actual comes, per resource and part of the horizon over the fleet.
Only the pool is moved: the network sees the shift itself, and the mixer finds out which of the two serves a VM better.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.combine import GROUP_OF_STEP, GROUPS
from coordinator.forecast.regimes import Regimes
from coordinator.model import F32, F64, LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

YOUNG: Final = 36  # buckets: after three hours the windows have followed by themselves
DECAY: Final = 0.998  # of the scores, per bucket: half-life 29 hours, for shifts are rare
SHARPNESS: Final = 15.0
PRIOR: Final = (5.0, 5.0)  # sums of scaled errors before the first score: unmoved, moved
_MIDDLE: Final = LEVELS.index(0.5)


class _Issue(NamedTuple):
    """Shifted series of one issue: rows, resources, both middles [m, h]."""

    v: NDArray[np.int64]
    r: NDArray[np.int64]
    before: F32
    after: F32


class Restarter:
    """Scores of one target."""

    def __init__(self) -> None:
        self._errors: F64 = np.tile(np.array(PRIOR)[:, None, None], (1, N_RESOURCES, GROUPS))
        self._said: list[_Issue | None] = []  # newest first

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        place = np.full(int(take.max(initial=-1)) + 1, -1)
        place[take[take >= 0]] = np.flatnonzero(take >= 0)
        self._said = [None if issue is None else _moved(issue, place) for issue in self._said]

    def learn(self, actual: F64) -> None:
        """Actuals that became known: float64[v, r, h], for step h the target of the issue h + 1 buckets ago; NaN = none."""
        for step, issue in enumerate(self._said):
            if issue is None or not len(issue.v):
                continue
            came = actual[issue.v, issue.r, step]
            before, after = issue.before[:, step], issue.after[:, step]
            size = np.abs(after - before) + 1e-9
            known = np.isfinite(came)
            for i, said in enumerate((before, after)):
                # a wild reading counts like a few shifts
                error = np.where(known, np.minimum(np.abs(came - said) / size, 3.0), 0.0)
                np.add.at(self._errors[i, :, GROUP_OF_STEP[step]], issue.r, error)
        self._errors = (self._errors - np.array(PRIOR)[:, None, None]) * DECAY + np.array(PRIOR)[:, None, None]

    def restart(self, quantiles: F32, newest: F32, regimes: Regimes) -> F32:
        """Move quantiles [v, r, h, q] of shifted series, in place; `newest` float32[v, r, <= YOUNG] newest readings, NaN = missing."""
        width = newest.shape[-1]
        v, r = np.nonzero(regimes.age < width)
        doubtful = regimes.hold[v, r].min(axis=-1) < 1.0
        v, r = v[doubtful], r[doubtful]
        old = np.arange(width)[::-1] >= regimes.age[v, r][:, None]
        readings = np.where(old, np.nan, newest[v, r])
        told = np.isfinite(readings).any(axis=-1) & np.isfinite(quantiles[v, r, 0, 0])
        if not told.any():
            self._remember(None)
            return quantiles
        v, r = v[told], r[told]
        level = np.nanmedian(readings[told], axis=-1)
        before = quantiles[v, r, :, _MIDDLE]
        shift = (level[:, None] - before) * regimes.hold[v, r][:, GROUP_OF_STEP]
        self._remember(_Issue(v, r, before, (before + shift).astype(np.float32)))
        quantiles[v, r] = np.maximum(quantiles[v, r] + (shift * self._weight()[r][:, GROUP_OF_STEP])[..., None], 0.0)
        return quantiles

    def pause(self) -> None:
        """A bucket without an issue."""
        self._remember(None)

    def withdraw(self) -> None:
        """Take back the newest issue."""
        self._said = self._said[1:]

    def explain(self, row: int) -> tuple[F64, F64]:
        """What the newest issue added to each step of VM `row`, float64[r, h], NaN = not moved; and the share that pays, float64[r, g]."""
        added, weight = np.full((N_RESOURCES, HORIZON_STEPS), np.nan), self._weight()
        issue = self._said[0] if self._said else None
        if issue is not None:
            for i in np.flatnonzero(issue.v == row):
                r = issue.r[i]
                added[r] = (issue.after[i] - issue.before[i]) * weight[r][GROUP_OF_STEP]
        return added, weight

    def _remember(self, issue: _Issue | None) -> None:
        self._said = [issue, *self._said[: HORIZON_STEPS - 1]]

    def _weight(self) -> F64:
        """float64[r, g]."""
        result: F64 = 1.0 / (1.0 + (self._errors[1] / self._errors[0]) ** SHARPNESS)
        return result


def _moved(issue: _Issue, place: NDArray[np.int64]) -> _Issue:
    kept = issue.v < len(place)
    kept[kept] = place[issue.v[kept]] >= 0
    return _Issue(place[issue.v[kept]], issue.r[kept], issue.before[kept], issue.after[kept])
