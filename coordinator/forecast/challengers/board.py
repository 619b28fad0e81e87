"""What challengers said, as one voice: for each series the forecast of the challenger that has done best there.

Every bucket that comes scores what was said of it, beside the last value known when it was said: that is fair between challengers that were
asked at different times. A challenger's score for a series is shrunk towards its score for that resource in the fleet; who does much worse
than the last value is not listened to there. What speaks is weighed against the pool (forecast/challenged.py). Quantiles of challengers
are not used: the engine's bands are calibrated around whatever leads.

A forecast stays until it has run out or the same challenger says something newer of the series; series nobody was asked about are NaN.
Pure; the same calls give the same answers. Axes: k challenger, v VM, r resource, m forecast held, n = v * resources + r. State: 288 bytes a
forecast held, one a challenger and series at most, and 12 bytes for each challenger and series of the fleet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.challengers.port import MOST_STEPS, ChallengerForecast
from coordinator.forecast.challengers.registry import find
from coordinator.forecast.features import FLOORS, LEVEL_FLOOR
from coordinator.forecast.rows import NEW, take_rows
from coordinator.model import F32, F64, N_RESOURCES
from shared.units import BUCKET_S, HORIZON_STEPS

I64 = NDArray[np.int64]

DECAY: Final = 0.986  # of scores per bucket: half-life four hours, as the Combiner's
EVIDENCE: Final = 6.0  # the fleet's score counts like this many buckets of the series' own
MUTE: Final = 0.7  # of the log ratio: who errs twice as much as the last value did is silent
LOOK: Final = 576  # buckets, two days
RANGE: Final = 1.0  # how far beyond what two days saw a challenger is believed, as a share of that range
_LEAST: Final = 0.05  # ratios beyond twenty say no more than twenty


class Spoken(NamedTuple):
    """The voice: its next hour, and which challenger (index into names, -1 = none) that is for each series."""

    mean: F64  # [v, r, 12]
    who: NDArray[np.int8]  # [v, r]


class Board:
    """`names`: the challengers listened to. Raises ValueError for one that is not registered."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names: tuple[str, ...] = tuple(find(name).name for name in names)
        self._key: I64 = np.zeros((2, 0), dtype=np.int64)  # challenger, series
        self._issued: I64 = np.zeros(0, dtype=np.int64)
        self._said: F32 = np.zeros((0, MOST_STEPS), dtype=np.float32)
        self._usual: F64 = np.zeros((2, 0))  # last value known when it was said, least error that counts
        self._score: F32 = np.zeros((3, len(self.names), 0, N_RESOURCES), dtype=np.float32)  # sums of error and of the last value's; weight

    @property
    def held(self) -> int:
        """Forecasts held now."""
        return len(self._issued)

    def rearrange(self, take: I64) -> None:
        """Follow the fleet (see forecast.rows)."""
        place = np.full(self._score.shape[2], NEW, dtype=np.int64)
        old = take != NEW
        place[take[old]] = np.flatnonzero(old)
        vm, resource = np.divmod(self._key[1], N_RESOURCES)
        moved = place[vm]
        self._key[1] = moved * N_RESOURCES + resource
        self._keep(moved != NEW)
        self._score = take_rows(self._score, take, 2, 0.0)

    def post(self, forecast: ChallengerForecast, row: Mapping[str, int], seen: F32, now_s: int) -> None:
        """Take a forecast: of one challenger and series the newest counts. VMs that are not in the fleet are passed over.

        row: VM -> its place in the fleet; seen float32[v, r, b]: bucket means, the newest of which ended at `now_s`. Raises ValueError when
        its challenger is not listened to.
        """
        if forecast.name not in self.names:
            raise ValueError(f"forecast of {forecast.name!r}: this board listens to {', '.join(self.names) or 'none'}")
        last = seen.shape[2] - (now_s - forecast.issued_s) // BUCKET_S  # columns known when it was said
        at = np.array([row.get(vm_id, NEW) for vm_id in forecast.vm_ids], dtype=np.int64)
        there = np.flatnonzero((at != NEW) & np.isfinite(forecast.mean).any(axis=1))
        if not 0 < last <= seen.shape[2] or not len(there):
            return
        at, resource = at[there], forecast.resource[there]
        past = seen[at, resource, max(0, last - LOOK) : last]
        newest = past.shape[1] - 1 - np.argmax(np.isfinite(past[:, ::-1]), axis=1)
        value = past[np.arange(len(at)), newest].astype(np.float64)
        low, high = np.fmin.reduce(past, axis=1), np.fmax.reduce(past, axis=1)
        room = RANGE * (high - low)
        said = np.full((len(there), MOST_STEPS), np.nan, dtype=np.float32)
        steps = min(MOST_STEPS, forecast.mean.shape[1])
        said[:, :steps] = np.clip(forecast.mean[there, :steps], (low - room)[:, None], (high + room)[:, None])
        floor = np.maximum(FLOORS[resource], LEVEL_FLOOR * np.abs(value))
        who = np.full(len(at), self.names.index(forecast.name))
        self._key = np.concatenate([self._key, [who, at * N_RESOURCES + resource]], axis=1)
        self._issued = np.append(self._issued, np.full(len(at), forecast.issued_s))
        self._said = np.concatenate([self._said, said])
        self._usual = np.concatenate([self._usual, [value, floor]], axis=1)
        order = np.lexsort((self._issued, self._key[1], self._key[0]))
        key = self._key[:, order]
        newest = np.append((key[:, 1:] != key[:, :-1]).any(axis=0), True)
        self._keep(np.sort(order[newest]))

    def learn(self, actual: F64, start_s: int) -> None:
        """Score what was said of the bucket that started at `start_s`; actual float64[v, r], NaN = unknown."""
        if not self.held:
            return
        step = (start_s - self._issued) // BUCKET_S
        inside = np.flatnonzero((step >= 0) & (step < MOST_STEPS))
        came = actual.reshape(-1)[self._key[1, inside]]
        last, floor = self._usual[:, inside]
        error = np.abs(self._said[inside, step[inside]] - came)
        scored = np.flatnonzero(np.isfinite(error))
        who, series = self._key[:, inside[scored]]
        score = self._score.reshape(3, len(self.names), -1)
        new = np.stack([error[scored] + floor[scored], np.abs(last - came)[scored] + floor[scored], np.ones(len(scored))])
        score[:, who, series] = score[:, who, series] * DECAY + new

    def speak(self, now_s: int) -> Spoken:
        """The next hour as seen at `now_s`, the end of the newest bucket. Forecasts that have run out are dropped."""
        v = self._score.shape[2]
        mean, chosen = np.full((v * N_RESOURCES, HORIZON_STEPS), np.nan), np.full(v * N_RESOURCES, -1, dtype=np.int8)
        self._keep(now_s < self._issued + MOST_STEPS * BUCKET_S)
        first = (now_s - self._issued) // BUCKET_S
        able = np.flatnonzero(first >= 0)
        able = able[np.isfinite(self._said[able, first[able]])]
        if len(able):
            merit = self._merit(*self._key[:, able])
            order = np.lexsort((self._key[0, able], merit, self._key[1, able]))
            series = self._key[1, able[order]]
            best = able[order[np.append(True, series[1:] != series[:-1]) & (merit[order] < MUTE)]]
            column = first[best][:, None] + np.arange(HORIZON_STEPS)
            ahead = np.take_along_axis(self._said[best], np.minimum(column, MOST_STEPS - 1), axis=1)
            mean[self._key[1, best]] = np.where(column < MOST_STEPS, ahead, np.nan)
            chosen[self._key[1, best]] = self._key[0, best]
        return Spoken(mean.reshape(v, N_RESOURCES, HORIZON_STEPS), chosen.reshape(v, N_RESOURCES))

    def _merit(self, who: I64, series: I64) -> F64:
        """Log of each one's error over the last value's, shrunk to its mean for that resource; below 0 is better, 0 = nothing known."""
        error, naive, weight = self._score.reshape(3, len(self.names), -1)[:, who, series].astype(np.float64)
        scored = weight > 0
        own = np.log(np.clip(np.where(scored, error, 1.0) / np.where(scored, naive, 1.0), _LEAST, 1.0 / _LEAST))
        kind = who * N_RESOURCES + series % N_RESOURCES
        votes = np.bincount(kind[scored], minlength=len(self.names) * N_RESOURCES)
        fleet = np.bincount(kind[scored], own[scored], minlength=len(votes)) / np.maximum(votes, 1)
        merit: F64 = fleet[kind] + weight / (weight + EVIDENCE) * (own - fleet[kind])
        return merit

    def _keep(self, which: I64 | NDArray[np.bool_]) -> None:
        if which.dtype == np.bool_ and which.all():
            return
        self._key, self._usual = self._key[:, which], self._usual[:, which]
        self._issued, self._said = self._issued[which], self._said[which]
