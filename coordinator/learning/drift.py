"""Have the forecasts worsened for long? A test for drift on the loss relative to Naive, which asks for retraining.

What is watched is log(our pinball / Naive's) per bucket: where the load itself grows wilder, Naive suffers too, and the ratio stays. For
each resource of the fleet (every VM scaled by its own usual loss, so that no large one rules) and for every series apart, the ratio is
held against what is usual at this hour of the day, and what lies above it is summed by the Page-Hinkley test (Page 1954; Gama et al.,
"A survey on concept drift adaptation", ACM Computing Surveys 2014): sum of (excess - allowance), minus its minimum so far. Retraining is
wanted when the sum of a resource passes its limit, or when many series pass theirs. Worked times of the fleet's test, 50 to 300
VMs: a loss twice the usual is told after half an hour, 35 % above it after one to two hours, 15 % after five to eleven, 5 % never.

Then the sums start anew and nothing is asked for REST_S; each request that brought no recovery doubles the rest, up to a day, and an
hour of recovery restores it. What stays as bad becomes the usual within about a week. Pure; the same losses give the same answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.rows import take_rows
from coordinator.learning.accuracy import FLOORS, BucketLoss
from coordinator.model import F64, N_RESOURCES
from shared.units import BUCKET_S, RESOURCES

DAY_S: Final = 86_400
HOURS: Final = 24
WARM: Final = 144  # scored buckets of a resource before it is judged: half a day
WARM_SERIES: Final = 288
LIMIT: Final = 2.0
ALLOWANCE: Final = 0.06  # of the log ratio: 6 % worse than usual is forgiven
SERIES_LIMIT: Final = 30.0  # single series are noisy: three hours at three times the usual loss
SERIES_ALLOWANCE: Final = 0.25
MANY: Final = 0.15  # share of series that drift at once
LEAST_SERIES: Final = 20  # fewer say nothing of the fleet
REST_S: Final = 6 * 3600
LONGEST_REST_S: Final = DAY_S
CLIP: Final = 1.5
_USUAL_GAIN: Final = 0.01  # an hour of the day is seen twelve times a day: a tenth of the way each day
_SERIES_GAIN: Final = 0.002
_SCALE_GAIN: Final = 0.005
RECOVERY: Final = 12  # buckets without excess after which the fleet is well again


@dataclass(frozen=True, kw_only=True)
class RetrainWanted:
    """The forecasts have worsened for long.

    `since_s` = when the fleet's loss began to exceed its usual (now, when only single series do); `worse` = loss relative to Naive over
    its usual value since then, of the worst resource.
    """

    reason: Literal["fleet_loss", "many_series"]
    since_s: int
    resources: tuple[str, ...]
    worse: float


class DriftWatch:
    """Give it the loss of every bucket, in time order."""

    def __init__(self, *, rest_s: int = REST_S) -> None:
        if not BUCKET_S <= rest_s <= 7 * DAY_S:
            raise ValueError(f"rest_s {rest_s}: allowed {BUCKET_S} to {7 * DAY_S}")
        self._least_rest_s = self._rest_s = rest_s
        self._asked_s: int | None = None
        self._vain = False  # the last request has brought no recovery yet
        self._well = 0  # buckets in a row without any excess
        self._usual: F64 = np.zeros((2, HOURS + 1, N_RESOURCES))  # of the log ratio by hour of the day and (last) overall; readings
        self._noise: F64 = np.zeros(N_RESOURCES)
        self._sum: F64 = np.zeros(N_RESOURCES)
        self._since: NDArray[np.int64] = np.zeros(N_RESOURCES, np.int64)
        self._excess: F64 = np.zeros((2, N_RESOURCES))  # of the log ratio since `_since`: sum, buckets
        # of each series: usual Naive loss, usual log ratio, test sum, readings
        self._series: F64 = np.zeros((4, 0, N_RESOURCES))

    @property
    def drifting(self) -> NDArray[np.bool_]:
        """Series whose own loss has worsened for long, bool[rows, r], rows as in the newest BucketLoss."""
        found: NDArray[np.bool_] = self._series[2] > SERIES_LIMIT
        return found

    def update(self, loss: BucketLoss) -> RetrainWanted | None:
        """One bucket; a request at most once in the rest time."""
        if loss.take is not None:
            self._series = take_rows(self._series, loss.take, 1, 0.0)
        known = loss.count > 0
        many = self._watch_series(loss, known)
        self._watch_fleet(loss, known)
        limit = LIMIT + 15.0 * self._noise
        over = self._sum > limit
        self._recover(over)
        resting = self._asked_s is not None and loss.start_s - self._asked_s < self._rest_s
        if resting or not (over.any() or many.any()):
            return None
        return self._ask(loss.start_s, over, many)

    def _ask(self, now_s: int, over: NDArray[np.bool_], many: NDArray[np.bool_]) -> RetrainWanted:
        picked = over if over.any() else many
        excess, buckets = self._excess[:, picked]
        wanted = RetrainWanted(
            reason="fleet_loss" if over.any() else "many_series",
            since_s=int(self._since[picked].min()) or now_s,
            resources=tuple(name for name, pick in zip(RESOURCES, picked, strict=True) if pick),
            worse=float(np.exp((excess / np.maximum(buckets, 1.0)).max())),
        )
        if self._vain:
            self._rest_s = min(2 * self._rest_s, max(LONGEST_REST_S, self._least_rest_s))
        self._asked_s, self._vain, self._well = now_s, True, 0
        self._sum[:] = 0.0
        self._excess[:] = 0.0
        self._series[2] = 0.0
        return wanted

    def _recover(self, over: NDArray[np.bool_]) -> None:
        """Once the fleet has been well for an hour, the last request was not in vain: the next one need not wait longer."""
        calm = not over.any() and bool((self._sum <= 0.0).all())
        self._well = self._well + 1 if calm else 0
        if self._well >= RECOVERY:
            self._vain, self._rest_s = False, self._least_rest_s

    def _watch_fleet(self, loss: BucketLoss, known: NDArray[np.bool_]) -> None:
        """Add this bucket's excess of every resource over its usual ratio at this hour."""
        scale = self._series[0] + FLOORS
        ours, naive = (
            np.where(known, values / np.maximum(loss.count, 1.0) / scale, 0.0).sum(axis=0) for values in (loss.pinball, loss.naive)
        )
        told = (known.sum(axis=0) > 0) & (naive > 0) & (ours > 0)
        ratio = np.log(np.where(told, ours, 1.0) / np.where(told, naive, 1.0))
        hour = loss.start_s % DAY_S // 3600
        value, seen = self._usual
        own = seen[hour] / (seen[hour] + 6.0)  # a new hour leans on all the others
        usual = own * value[hour] + (1.0 - own) * value[HOURS]
        judged = told & (seen[HOURS] >= WARM)
        excess = np.where(judged, np.clip(ratio - usual, -CLIP, CLIP), 0.0)
        allowance = ALLOWANCE + 0.5 * self._noise
        self._sum = np.where(judged, np.maximum(0.0, self._sum + excess - allowance), self._sum)
        running = self._sum > 0.0
        began = running & (self._excess[1] == 0.0)
        self._since = np.where(began, loss.start_s, np.where(running, self._since, 0))
        self._excess = np.where(running, self._excess + np.stack([excess, judged.astype(np.float64)]), 0.0)
        # what lies far above the usual moves it slowly: a drift must not become the usual before it is told
        step = np.clip(ratio - usual, -4.0 * (self._noise + 0.02), 2.0 * (self._noise + 0.02))
        for place in (hour, HOURS):
            gain = np.where(told, np.maximum(1.0 / (seen[place] + 1.0), _USUAL_GAIN / (1 if place == hour else 6)), 0.0)
            young = seen[place] < WARM / 6
            value[place] += gain * np.where(young, ratio - value[place], step)
            seen[place] += told
        # a drift is no noise: while one seems to be under way the noise is learned slowly, or it would hide what comes next
        patience = np.where(self._sum > LIMIT / 2, 0.2, 1.0)
        noise_gain = np.where(told & (seen[HOURS] > 12), patience * _SCALE_GAIN + 1.0 / np.maximum(seen[HOURS], 1.0), 0.0)
        self._noise += noise_gain * (np.minimum(np.abs(ratio - usual), 2.5 * self._noise + 0.05) - self._noise)

    def _watch_series(self, loss: BucketLoss, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The same test for each series; True for resources of which many series drift."""
        scale, usual, total, seen = self._series
        count = np.maximum(loss.count, 1.0)
        ratio = np.clip(np.log((loss.pinball / count + FLOORS) / (loss.naive / count + FLOORS)), -CLIP, CLIP)
        judged = known & (seen >= WARM_SERIES)
        total[:] = np.where(judged, np.maximum(0.0, total + ratio - usual - SERIES_ALLOWANCE), total)
        gain = np.where(known, np.maximum(1.0 / (seen + 1.0), _SERIES_GAIN), 0.0)
        usual += gain * (ratio - usual)
        scale += np.where(known, np.maximum(1.0 / (seen + 1.0), _SCALE_GAIN), 0.0) * (loss.naive / count - scale)
        seen += known
        watched = (seen > WARM_SERIES).sum(axis=0)
        share = (total > SERIES_LIMIT).sum(axis=0) / np.maximum(watched, 1)
        many: NDArray[np.bool_] = (watched >= LEAST_SERIES) & (share >= MANY)
        return many
