"""What scheduled events do, learned online: a lift over the forecast without the event, per category, phase, resource, client, app and VM.

The base models must never see an event: each bucket is stripped of it before they learn, and each forecast gets the lift of what the
calendar announces on top. So a nightly backup is not counted twice, its end is known, and a moved one follows the calendar. In one bucket
    engine sees  strip(demand)          = demand - what the events are to blame for
    tables learn demand - base          = the lift, by phase of the event
    issued       apply.with_events(base forecast, lift(base forecast))
Blame for the surprise is split as a Kalman filter would: by the variance of the lift against that of the base forecast. A first occurrence
is foretold from other VMs' ones of its category, or from its declared effect; what an occurrence did so far corrects the rest of it.

Pure: no clock, no randomness; same calls, same numbers. Invariant: lifts are finite, base + lift is not negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.events import kernels
from coordinator.forecast.events.model import Labels, Notice, Occurrences, declared
from coordinator.forecast.events.pairs import BEGIN, BUCKETS, NOTICE, ROW, Roster, grown
from coordinator.forecast.rows import take_rows
from coordinator.model import F32, F64, LEVELS, N_RESOURCES, ForecastBlock
from shared.units import BUCKET_S, HORIZON_STEPS

I64 = NDArray[np.int64]

FIRST_SPREAD: Final = 0.25  # squared relative error expected of a first occurrence, until it is measured
OWN_SPREAD: Final = 0.09  # ... of one that the VM had before
NEXT_SPREAD: Final = 0.09  # ... of the next bucket of an occurrence under way
FIRST_STANDING: Final = (0.3, 0.35, 0.35)  # relative misses expected of the forms: as an amount, a share of the level, of the size
PRIOR_COUNT: Final = 5.0
USUAL_DOUBT: Final = 0.5  # of the usual level, as a forecast
SIZE_RATE: Final = 1.0 / 144.0  # a VM's usual level follows within half a day
_MEDIAN, _LOW, _HIGH = LEVELS.index(0.5), LEVELS.index(0.1), LEVELS.index(0.9)
_BY_SLOT: Final = (
    ("_count", 0.0),
    ("_moments", 0.0),
    ("_last", np.nan),
    ("_was", np.nan),
    ("_last_phase", 0),
    ("_begun", -1),
    ("_seen", -1),
)  # tables by slot, and what a fresh slot holds
_TEN_TO_NINETY: Final = 2.563  # standard deviations of a normal between its .1 and .9 quantiles


@dataclass(frozen=True, kw_only=True)
class Lift:
    """What events add to the forecast of `issued_s`: float64[v, r, steps] means and standard deviations, of bucket mean and bucket peak.

    Twelve steps, of an outlook six for each of its blocks.
    """

    issued_s: int
    mean: F64
    mean_stddev: F64
    peak: F64
    peak_stddev: F64
    active: NDArray[np.bool_]  # [v, steps] an event of the calendar covers this bucket of this VM

    @staticmethod
    def none(issued_s: int, vms: int) -> Lift:
        """Nothing is added to anything; takes no room."""
        nothing, nobody = np.broadcast_to(0.0, (vms, N_RESOURCES, HORIZON_STEPS)), np.broadcast_to(np.False_, (vms, HORIZON_STEPS))
        return Lift(issued_s=issued_s, mean=nothing, mean_stddev=nothing, peak=nothing, peak_stddev=nothing, active=nobody)

    @property
    def idle(self) -> bool:
        """True where nothing is to be added to anything."""
        return not (self.mean.any() or self.peak.any())


class _Base:
    """The newest forecast without events: what is kept of it costs little, `kinds` is for when an event needs it."""

    def __init__(self, issued_s: int, rows: I64, vms: int, level: F32 | F64, doubt: F64, first_peak: F64 | None) -> None:
        """Of the forecast's VMs: their row in a fleet of `vms`; level [i, r or k, step], doubt [i, k]; first_peak [i, r], None: level
        holds peaks, too."""
        self.issued_s, self._rows, self._vms, self._level, self._doubt, self._first_peak = issued_s, rows, vms, level, doubt, first_peak
        self._kinds: tuple[F64, F64] | None = None

    @staticmethod
    def of(base: ForecastBlock, rows: I64, vms: int) -> _Base:
        """Of a forecast whose VM i is the fleet's row rows[i]. Peaks of single buckets are given for the first step only."""
        first = base.peak_quantiles[:, :, 0].astype(np.float64)
        doubt = np.concatenate([base.stddev[:, :, 0].astype(np.float64), (first[..., _HIGH] - first[..., _LOW]) / _TEN_TO_NINETY], axis=1)
        return _Base(base.issued_s, rows, vms, base.mean, doubt, first[..., _MEDIAN])

    def rearranged(self, take: I64) -> _Base:
        """In the fleet's new order (rows.take_rows)."""
        place = np.full(self._vms, -1)
        old = take >= 0
        place[take[old]] = np.flatnonzero(old)
        rows = place[self._rows]
        kept = rows >= 0
        first_peak = None if self._first_peak is None else self._first_peak[kept]
        return _Base(self.issued_s, rows[kept], len(take), self._level[kept], self._doubt[kept], first_peak)

    def kinds(self) -> tuple[F64, F64]:
        """Level [v, k, step] and standard deviation of its first step [v, k] of the fleet, NaN = not forecast; peaks move with the mean."""
        if self._kinds is not None:
            return self._kinds
        level = self._level.astype(np.float64)
        if self._first_peak is not None:
            peak = np.maximum(self._first_peak[..., None] + level - level[..., :1], level)
            level = np.concatenate([level, peak], axis=1)
        whole, doubt = np.full((self._vms, *level.shape[1:]), np.nan), np.full((self._vms, kernels.KINDS), np.nan)
        whole[self._rows], doubt[self._rows] = level, self._doubt
        self._kinds = whole, doubt
        return self._kinds


class _Look(NamedTuple):
    """Pairs that bear on some buckets, their slots, and the number of the first of these buckets."""

    pairs: I64
    slots: I64
    first: int


class _At(NamedTuple):
    """What is expected of one bucket without its events [v, k]."""

    level: F64
    doubt: F64


class EventEffects:
    """The events of one forecast shard. Rows follow the engine's through `rearrange`; no events = no cost."""

    def __init__(self) -> None:
        self._calendar = Occurrences.none()
        self._category: I64 = np.zeros(0, dtype=np.int64)
        self._told: F64 = np.zeros((0, N_RESOURCES, 2))
        self._roster = Roster()
        self._usual: F64 = np.zeros((0, kernels.KINDS))
        self._capacity: F64 = np.zeros((0, N_RESOURCES))
        self._base: _Base | None = None
        # tables by slot; rows beyond the roster's size are spare
        self._count: F64 = np.zeros((0, kernels.PHASES, kernels.KINDS))
        self._moments: F64 = np.zeros((0, kernels.PHASES, kernels.KINDS, kernels.FORMS))
        self._last: F64 = np.zeros((0, kernels.KINDS))  # lift in the newest bucket of the occurrence that began at `_begun`
        self._was: F64 = np.zeros((0, kernels.KINDS))  # ... and what earlier occurrences of the VM let expect of it
        self._last_phase: I64 = np.zeros(0, dtype=np.int64)
        self._begun: I64 = np.zeros(0, dtype=np.int64)
        self._seen: I64 = np.zeros(0, dtype=np.int64)
        # tables by category
        self._scores: F64 = np.zeros((0, kernels.KINDS, kernels.FORMS + 1))
        self._spread: F64 = np.zeros((0, kernels.KINDS, 3))
        self._spread_count: F64 = np.zeros((0, kernels.KINDS, 3))

    # ---- what is known from outside

    def announce(self, calendar: Occurrences) -> None:
        """The calendar from now on, in place of the earlier one; what was learnt of its categories stays. Raises ValueError (too many)."""
        self._category = self._roster.categories_of(calendar.notices)
        self._told = declared(calendar.notices)
        self._calendar = calendar
        self._roster.forget_scopes()
        new = len(self._roster.categories) - len(self._scores)
        standing = np.zeros((new, kernels.KINDS, kernels.FORMS + 1))
        standing[..., : kernels.FORMS] = FIRST_STANDING
        self._scores = np.concatenate([self._scores, standing])
        fresh = np.broadcast_to(np.array([FIRST_SPREAD, OWN_SPREAD, NEXT_SPREAD]), (new, kernels.KINDS, 3))
        self._spread = np.concatenate([self._spread, fresh])
        self._spread_count = np.concatenate([self._spread_count, np.full((new, kernels.KINDS, 3), PRIOR_COUNT)])

    def label(self, labels: Mapping[str, Labels]) -> None:
        """Client and application of VMs, for scopes and pooling; VMs that are not named keep theirs."""
        self._roster.label(dict(labels))

    def rearrange(self, take: I64, vm_ids: Sequence[str]) -> None:
        """Follow the fleet (rows.take_rows); `vm_ids` in the new order."""
        kept = self._roster.fleet(take, vm_ids)
        for name, _ in _BY_SLOT:
            setattr(self, name, getattr(self, name)[kept])
        self._usual = take_rows(self._usual, take, 0, np.nan)
        self._capacity = take_rows(self._capacity, take, 0, np.nan)
        if self._base is not None:
            self._base = self._base.rearranged(take)

    # ---- one bucket

    def lift(self, base: ForecastBlock, capacity: F64, rows: I64 | None = None) -> Lift:
        """What to add to `base`, a forecast without events; its VM i is the fleet's row rows[i] (None: rows agree).

        capacity float64[v, r] of these VMs, NaN = unknown. The result is in the order of `base`.
        """
        at = np.arange(len(base.vm_ids), dtype=np.int64) if rows is None else rows
        v = len(self._usual)
        self._capacity[at] = capacity
        self._base = _Base.of(base, at, v)
        look = self._look(base.issued_s, HORIZON_STEPS)
        if not len(look.pairs):
            return Lift.none(base.issued_s, len(at))
        return self._lift(base.issued_s, look, self._base.kinds()[0], at)

    def ahead(self, issued_s: int, level: F64, rows: I64) -> Lift:
        """What to add farther ahead than `lift` looks: level float64[n, k, steps] without events, of the fleet's `rows`."""
        whole = np.full((len(self._usual), *level.shape[1:]), np.nan)
        whole[rows] = level
        return self._lift(issued_s, self._look(issued_s, level.shape[2]), whole, rows)

    def _lift(self, issued_s: int, look: _Look, whole: F64, at: I64) -> Lift:
        steps_ahead = whole.shape[2]
        active = np.zeros((len(whole), steps_ahead), dtype=np.bool_)
        total, variance = self._sum(look, whole, tell=False)
        steps = look.first + np.arange(steps_ahead)
        during = (steps >= look.pairs[:, BEGIN, None]) & (steps < (look.pairs[:, BEGIN] + look.pairs[:, BUCKETS])[:, None])
        np.logical_or.at(active, look.pairs[:, ROW], during)
        total = np.maximum(total, -np.nan_to_num(whole))[at]
        spread = np.sqrt(variance)[at]
        return Lift(
            issued_s=issued_s,
            mean=total[:, :N_RESOURCES],
            mean_stddev=spread[:, :N_RESOURCES],
            peak=total[:, N_RESOURCES:],
            peak_stddev=spread[:, N_RESOURCES:],
            active=active[at],
        )

    def shares(self, row: int) -> list[tuple[Notice, int, int, F64]]:
        """What each event adds to the newest forecast of the VM in `row`: notice, start and end in seconds, lift float64[k, 12] (means,
        then peaks). Those that add nothing at all are left out."""
        if self._base is None:
            return []
        look, level, size = (
            self._look(self._base.issued_s, HORIZON_STEPS),
            self._base.kinds()[0][row : row + 1],
            self._size()[row : row + 1],
        )
        found = []
        for i in np.flatnonzero(look.pairs[:, ROW] == row):
            pair = look.pairs[i : i + 1].copy()
            pair[:, ROW] = 0
            lift, variance = np.zeros(level.shape), np.zeros(level.shape)
            self._lifts(pair, look.slots[i : i + 1], look.first, level, size, lift, variance, tell=False)
            start_s = int(pair[0, BEGIN]) * BUCKET_S
            if lift.any():
                notice = self._calendar.notices[int(pair[0, NOTICE])]
                found.append((notice, start_s, start_s + int(pair[0, BUCKETS]) * BUCKET_S, lift[0]))
        return sorted(found, key=lambda share: (share[1], share[0].id))

    def expect(self, start_s: int, level: F64, doubt: F64) -> None:
        """What bucket `start_s` would bring without events, [v, k] (means, then peaks): in place of `lift` where nothing was forecast."""
        whole = np.full((*level.shape, HORIZON_STEPS), np.nan)
        whole[:, :, 0] = level
        self._base = _Base(start_s, np.arange(len(level)), len(level), whole, doubt, None)

    def touched(self, from_s: int, buckets: int) -> NDArray[np.bool_]:
        """bool[buckets]: in which of them an event, or what trails behind it, may be seen on any VM."""
        out = np.zeros(buckets, dtype=np.bool_)
        first = from_s // BUCKET_S
        calendar = self._calendar
        for i in calendar.near(from_s - kernels.AFTER * BUCKET_S, from_s + buckets * BUCKET_S):
            begin = int(calendar.start_s[i]) // BUCKET_S - first
            out[max(begin, 0) : max(begin + int(calendar.buckets[i]) + kernels.AFTER, 0)] = True
        return out

    def strip(self, start_s: int, mean: F64, peak: F64) -> tuple[F64, F64]:
        """Demand of the bucket without its events, as the base models are to see it. Arrays [v, r]; unknown stays NaN; learns nothing."""
        look = self._look(start_s, 1)
        bare = _joined(mean, peak)
        if len(look.pairs):
            bare = self._stripped(look, self._at(start_s), bare)
        return bare[:, :N_RESOURCES], np.maximum(bare[:, N_RESOURCES:], bare[:, :N_RESOURCES])

    def learn(self, start_s: int, mean: F64, peak: F64) -> None:
        """Take the bucket's demand (as it was, with its events) into the tables; a VM counts once a bucket however often it comes."""
        look = self._look(start_s, 1)
        actual = usual = _joined(mean, peak)
        if len(look.pairs):
            at = self._at(start_s)
            usual = self._stripped(look, at, actual)
            self._learn(look, at, actual)
        unknown = np.isnan(self._usual)
        step = np.where(unknown, usual, self._usual + SIZE_RATE * (usual - self._usual))
        np.copyto(self._usual, step, where=~np.isnan(usual))

    def strength(self, from_s: int, buckets: int) -> F32:
        """float32[v, buckets]: 1 where an event covers the bucket, else 0; a covariate for models that learn effects themselves."""
        out = np.zeros((len(self._usual), buckets), dtype=np.float32)
        first = from_s // BUCKET_S
        pairs = self._roster.pairs(self._calendar, self._category, from_s, from_s + buckets * BUCKET_S)
        for row, begin, length in pairs[:, [ROW, BEGIN, BUCKETS]]:
            out[row, max(begin - first, 0) : max(begin + length - first, 0)] = 1.0
        return out

    # ---- inside

    def _look(self, from_s: int, buckets: int) -> _Look:
        pairs = self._roster.pairs(self._calendar, self._category, from_s, from_s + buckets * BUCKET_S)
        slots = self._roster.slots(pairs)
        for name, fill in _BY_SLOT:
            setattr(self, name, grown(getattr(self, name), self._roster.size, fill))
        return _Look(pairs, slots, from_s // BUCKET_S)

    def _size(self) -> F64:
        """[v, k]: the VM's capacity where it is known, else its usual level."""
        capacity = np.concatenate([self._capacity, self._capacity], axis=1)
        return np.where(np.isnan(capacity), np.nan_to_num(self._usual), capacity)

    def _at(self, start_s: int) -> _At:
        """Where nothing was forecast for the bucket (a gap, a VM that was away), the VM's usual level stands in."""
        level, doubt = self._usual.copy(), USUAL_DOUBT * self._usual
        step = (start_s - self._base.issued_s) // BUCKET_S if self._base is not None else -1
        if self._base is not None and 0 <= step < HORIZON_STEPS:
            whole, its_doubt = self._base.kinds()
            said = whole[:, :, step]
            np.copyto(level, said, where=~np.isnan(said))
            np.copyto(doubt, its_doubt, where=~np.isnan(said))
        return _At(level, doubt)

    def _sum(self, look: _Look, level: F64, *, tell: bool) -> tuple[F64, F64]:
        """(lift, variance) [v, k, step] over `level` [v, k, step]; see kernels.lifts."""
        total, variance = np.zeros(level.shape), np.zeros(level.shape)
        self._lifts(look.pairs, look.slots, look.first, level, self._size(), total, variance, tell=tell)
        return total, variance

    def _lifts(self, pairs: I64, slots: I64, first: int, level: F64, size: F64, total: F64, variance: F64, *, tell: bool) -> None:
        kernels.lifts(
            pairs, slots, first, level, size, self._told, self._count, self._moments,
            kernels.trust_of(self._scores, self._spread), self._spread,
            self._last, self._was, self._last_phase, self._begun, total, variance, tell,
        )  # fmt: skip

    def _stripped(self, look: _Look, at: _At, actual: F64) -> F64:
        total, variance = (part[:, :, 0] for part in self._sum(look, at.level[:, :, None], tell=True))
        noise = at.doubt**2
        least = kernels.LEAST_DOUBT * noise
        with np.errstate(invalid="ignore"):
            blame = np.nan_to_num(np.where(np.isinf(variance), 1.0, (variance + least) / (variance + least + noise)))
        bare = np.maximum(at.level + (1.0 - blame) * (actual - at.level - total), 0.0)
        touched = np.zeros((len(actual), 1), dtype=np.bool_)
        touched[look.pairs[:, ROW]] = True
        return np.where(touched & ~np.isnan(at.level), bare, actual)

    def _learn(self, look: _Look, at: _At, actual: F64) -> None:
        total, variance = (np.ascontiguousarray(part[:, :, 0]) for part in self._sum(look, at.level[:, :, None], tell=True))
        kernels.learn(
            look.pairs, look.slots, look.first, actual, at.level, np.nan_to_num(at.doubt), self._size(), self._told, total, variance,
            self._count, self._moments, kernels.trust_of(self._scores, self._spread), self._scores, self._spread, self._spread_count,
            self._last, self._was, self._last_phase, self._begun, self._seen,
        )  # fmt: skip


def _joined(mean: F64, peak: F64) -> F64:
    return np.concatenate([mean, peak], axis=1).astype(np.float64)
