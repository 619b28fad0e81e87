"""Sums of VMs forecast as sums: per application, client, host and fleet, each bucket, from the VMs' own forecasts.

Centre: the sum of the members' means (coherent with the VMs), moved by what a direct look at the summed series adds (its newest level,
its last hours, the same time yesterday, its errors of late), as far as rolling validation over all groups says that it helps.
Spread: never a sum of quantiles, and no assumed correlation. Each group's realised errors, measured in the error independent
members would make, show by themselves how far its members move together: a learned width, a pooled shape and an own correction per
step and level (adaptive conformal inference, Gibbs and Candes 2021) turn them into bands. Half of a band comes from there, half from the
members' own quantiles, added as those of independent members and widened as far as members were seen to move together: bursts of a few
members show in those before they show in any error of the sum. See laws.py, ledger.py.

When members come, go or migrate, the group's past is re-summed for the members it has now. Pure, no randomness: same input, same bytes.
State is a cache: `load` rebuilds it. O(v) per bucket. Axes: g group, r resource, h step, q level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.aggregate import replay
from coordinator.forecast.aggregate.answer import AggregateForecast
from coordinator.forecast.aggregate.features import centre_features, width_features
from coordinator.forecast.aggregate.groups import KINDS, NOWHERE, GroupKey, Membership, Roster, homes
from coordinator.forecast.aggregate.laws import PART_OF_STEP, PRIOR_SHAPE, TAU, Reservoir, Ridge
from coordinator.forecast.aggregate.ledger import GroupLedger
from coordinator.forecast.aggregate.store import DAY, WINDOW, MemberStore
from coordinator.forecast.rows import NEW, take_rows
from coordinator.model import F32, F64, I8, LEVELS, N_RESOURCES, BucketBlock, ForecastBlock, HistoryBlock, NoForecast
from shared.units import BUCKET_S, HORIZON_STEPS

HEARD: Final = 0.8  # a bucket in which members of less than this share of the demand were heard says nothing of the group
OFF_COVERAGE: Final = 0.62  # of the central 80 % band, as for VMs
OFF_EVIDENCE: Final = 24.0
TRACK: Final = 0.05  # step of the own correction, in widths: groups are few and steady, so larger than a VM's
TRACK_LIMIT: Final = 4.0
TRACK_LEAK: Final = 0.999
RESHAPE_EVERY: Final = 12
REPLAY: Final = DAY  # origins replayed on load: every hour of the day is among them
CENTRE_RIDGE: Final = 2000.0  # in widths squared: groups share VMs and neighbouring origins hours, so evidence looks larger than it is
WIDTH_RIDGE: Final = 100.0
SHIFT_LIMIT: Final = 4.0  # widths
CENTRE_CLIP: Final = 5.0  # the centre's law is about usual days, not about the wildest
CLIP: Final = 10.0  # errors beyond this many widths are clipped where laws are learned
# width = exp(intercept + ...): -.6 = log of the geometric mean of |error| / deviation; the rest as in features.width_features
WIDTH_PRIOR: Final = (-0.6, 0.15, 0.6, 0.0, 0.0, 0.0)
OWN_SHARE: Final = 0.5  # of the bands that the sums' own errors make; the rest is what the members' quantiles make
BAND: Final = (LEVELS.index(0.1), LEVELS.index(0.9))
MIDDLE: Final = LEVELS.index(0.5)
_STEPS: Final = np.arange(HORIZON_STEPS)
_LEAST: Final = 1e-9  # demand that even an idle VM stands for, so that shares of nothing are defined
_SUMMED_AT_ONCE: Final = 1 << 21  # values: bounds the scratch memory to some 16 MiB
_MISS: Final = TAU * TRACK * (1.0 + np.abs(PRIOR_SHAPE) / 2.0)
_HIT: Final = (TAU - 1.0) * TRACK * (1.0 + np.abs(PRIOR_SHAPE) / 2.0)
# The highest of s + 1 buckets that move together in part: like the highest of 1 + .3 s independent ones
_PEAK_PRIOR: Final = np.stack([np.interp(TAU ** (1.0 / (1.0 + 0.3 * s)), TAU, PRIOR_SHAPE) for s in range(HORIZON_STEPS)])
_BOUNDS: Final = np.array([0.0, *((a + b) / 2 for a, b in pairwise(LEVELS)), 1.0])
_LEVEL_WEIGHTS: Final = np.diff(_BOUNDS)


class Aggregator:
    """Give it every closed bucket with the VMs' forecasts that were made on it, in time order."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._newest_s: int | None = None
        self._store = MemberStore()
        self._ledger = GroupLedger()
        self._row_of: dict[GroupKey, int] = {}
        self._away: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._home: NDArray[np.int64] = np.full((0, len(KINDS)), NOWHERE, dtype=np.int64)
        self._roster = Roster(self._home, np.zeros(0, dtype=np.int64))
        self._centre = Ridge((0.0,) * self._ledger.centre_x.shape[-1], CENTRE_RIDGE, 0.998)
        self._width = Ridge(WIDTH_PRIOR, WIDTH_RIDGE, 0.998)
        self._shape = Reservoir(np.broadcast_to(PRIOR_SHAPE, _PEAK_PRIOR.shape))
        self._peak_shape = Reservoir(_PEAK_PRIOR)
        self._count = 0

    # ---- the two calls

    def load(self, history: HistoryBlock, groups: Mapping[str, Membership]) -> None:
        """Start or restart from the VMs' history: sums of the past exist at once, and how far members move together is learned by
        replaying a day with a simple stand-in for the VMs' forecasts (replay.py)."""
        self._reset()
        rows = self._follow(history.vm_ids)
        self._gather(rows, history.vm_ids, groups)
        self._store.capacity[rows] = history.capacity
        for values, said in replay.walk(history.mean, WINDOW + REPLAY, REPLAY):
            self._store.append(rows, values)
            self._close()
            if said is not None:
                self._learn()
                self._issue(rows, *said)
        self._sum_again(np.ones(len(self._roster.rows), dtype=np.bool_))  # now that it is known what each VM stands for
        self._ledger.losses[:] = 0.0
        self._centre.soften(0.0)  # the stand-in's faults are not the engine's
        self._width.soften(0.2)
        self._ledger.forget_issues()
        self._store.mean[:] = np.nan
        self._ledger.fade(np.arange(len(self._ledger)), np.full(len(self._ledger), 0.3))
        self._newest_s = history.end_s if history.mean.shape[2] else None

    def advance(
        self,
        bucket: BucketBlock,
        forecast: ForecastBlock,
        groups: Mapping[str, Membership],
        capacity: Mapping[str, Sequence[float]] | None = None,
    ) -> AggregateForecast:
        """Forecast the groups of the bucket's VMs. `forecast` was made on this bucket; VMs it does not hold count as unknown.

        groups: vm_id -> Membership (a VM without one is in the fleet alone); capacity: vm_id -> [r]. Buckets in between that never came
        count as missing; the same bucket again replaces it. Raises ValueError for an older bucket or a forecast of another moment.
        """
        self._check(bucket, forecast)
        again = bucket.start_s == self._newest_s
        rows = self._follow(bucket.vm_ids)
        for vm_id, row in zip(bucket.vm_ids, rows, strict=True):
            if capacity and vm_id in capacity:
                self._store.capacity[row] = capacity[vm_id]
        values = np.where(np.isfinite(bucket.mean), np.maximum(bucket.mean, 0.0), np.nan)
        if again:
            self._store.issue = (self._store.issue - 1) % HORIZON_STEPS  # what was learned of its first version stays
            self._store.put(rows, values)
        else:
            self._skip_to(bucket.start_s)
            self._store.append(rows, values)
        self._gather(rows, bucket.vm_ids, groups)
        self._close()
        if not again:
            self._learn()
        self._newest_s = bucket.start_s
        place = {vm_id: i for i, vm_id in enumerate(forecast.vm_ids)}
        at = np.array([place.get(vm_id, -1) for vm_id in bucket.vm_ids], dtype=np.int64)
        mean, stddev = take_rows(forecast.mean, at, 0, np.nan), take_rows(forecast.stddev, at, 0, np.nan)
        reason = take_rows(forecast.reason, at, 0, NoForecast.ALL_UNKNOWN)
        quantiles, peaks, centre = self._issue(rows, mean, stddev, take_rows(forecast.quantiles, at, 0, np.nan))
        return self._block(rows, reason, centre, quantiles, peaks)

    # ---- who is where

    def _check(self, bucket: BucketBlock, forecast: ForecastBlock) -> None:
        if bucket.start_s % BUCKET_S:
            raise ValueError(f"start_s {bucket.start_s}: must be a multiple of {BUCKET_S}")
        if self._newest_s is not None and bucket.start_s < self._newest_s:
            raise ValueError(f"start_s {bucket.start_s}: the newest bucket is {self._newest_s}, older ones are closed")
        if forecast.issued_s != bucket.start_s + BUCKET_S:
            raise ValueError(
                f"issued_s {forecast.issued_s}: a forecast made on bucket {bucket.start_s} is issued at {bucket.start_s + BUCKET_S}"
            )

    def _follow(self, vm_ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows for all VMs, old and new."""
        take = self._store.follow(vm_ids)
        if take is not None:
            self._home = take_rows(self._home, take, 0, NOWHERE)
            self._seat()
        return self._store.rows_of(vm_ids)

    def _seat(self) -> None:
        """The roster of whoever has a home."""
        present = np.flatnonzero((self._home != NOWHERE).any(axis=1))
        self._roster = Roster(self._home[present], present)

    def _gather(self, rows: NDArray[np.int64], vm_ids: Sequence[str], groups: Mapping[str, Membership]) -> None:
        """Put the VMs into their groups; groups whose members changed are summed again."""
        self._forget_groups()
        before = len(self._row_of)
        home = np.full_like(self._home, NOWHERE)
        home[rows] = homes(vm_ids, groups, self._row_of)
        if len(self._row_of) > before:
            self._take_groups(np.concatenate([np.arange(before), np.full(len(self._row_of) - before, NEW)]))
        moved = home != self._home
        if moved.any():
            count = len(self._row_of)
            old, new = (np.bincount(h[h != NOWHERE], minlength=count) for h in (self._home, home))
            stayed = np.bincount(home[(home != NOWHERE) & ~moved], minlength=count)
            self._home = home
            self._seat()
            changed = (old != stayed) | (new != stayed)
            self._sum_again(changed[self._roster.rows])
            lasting = np.flatnonzero(changed & (old > 0))
            self._ledger.fade(lasting, stayed[lasting] / np.maximum(old, new)[lasting])
        self._away += 1
        self._away[self._roster.rows] = 0

    def _take_groups(self, take: NDArray[np.int64]) -> None:
        self._ledger.rearrange(take)
        self._away = take_rows(self._away, take, 0, 0)

    def _forget_groups(self) -> None:
        """Give up groups that had no member for a day."""
        if not (self._away >= DAY).any():
            return
        kept = [(key, row) for key, row in self._row_of.items() if self._away[row] < DAY]
        place = np.full(len(self._away) + 1, NOWHERE, dtype=np.int64)
        place[[row for _, row in kept]] = np.arange(len(kept))
        self._home = place[self._home]  # NOWHERE indexes the last entry, which is NOWHERE
        self._row_of = {key: i for i, (key, _) in enumerate(kept)}
        self._take_groups(np.array([row for _, row in kept], dtype=np.int64))
        self._seat()

    def _sum_again(self, wanted: NDArray[np.bool_]) -> None:
        """Past sums and issues of the groups marked (over roster rows), for their present members."""
        part = self._roster.only(wanted)
        if not len(part.rows):
            return
        ledger, store = self._ledger, self._store
        inner = part.compact()
        level = store.level[part.vms] + _LEAST
        total = inner.sum(level)
        slots = max(1, _SUMMED_AT_ONCE // max(1, level.size))
        for first in range(0, WINDOW, slots):
            demand = np.moveaxis(store.demand[first : first + slots, part.vms], 0, 1)  # [pair, slot, r]
            heard = inner.sum(np.where(np.isnan(demand), 0.0, level[:, None])) / total[:, None]
            with np.errstate(invalid="ignore", divide="ignore"):
                # members not heard are taken to be like the others
                past = np.where(heard >= HEARD, inner.sum(demand) / heard, np.nan)
            ledger.sums[first : first + slots, part.rows] = np.moveaxis(past, 1, 0)
        for slot in range(HORIZON_STEPS):
            ledger.plain[slot, part.rows], ledger.unit[slot, part.rows] = _add_up(part, store.mean[slot], store.stddev[slot])

    # ---- one bucket

    def _close(self) -> None:
        """The newest bucket of the store is complete: sum it."""
        ledger, store, roster = self._ledger, self._store, self._roster
        ledger.sums[store.bucket] = np.nan
        # a member not heard now does what was expected of it: that is no error of the sum
        newest = store.demand[store.bucket]
        level = store.level + _LEAST
        heard = roster.sum(np.where(np.isnan(newest), 0.0, level)) / roster.sum(level)
        filled = np.where(np.isnan(newest), store.expected(), newest)
        ledger.sums[store.bucket, roster.rows] = np.where(heard >= HEARD, roster.sum(filled), np.nan)

    def _learn(self) -> None:
        """Score what the newest bucket decides: step h of the issue h + 1 buckets ago."""
        ledger, store = self._ledger, self._store
        origin = (store.issue - _STEPS) % HORIZON_STEPS

        def said(ring: NDArray[np.floating]) -> F64:
            return np.moveaxis(ring[origin, :, :, _STEPS].astype(np.float64), 0, 2)

        unit, relative = said(ledger.unit), said(ledger.width)
        width = relative * unit
        shift = said(ledger.shift)
        with np.errstate(invalid="ignore", divide="ignore"):
            plain_error = (ledger.sums[store.bucket][..., None] - said(ledger.plain)) / width
        scaled = plain_error - shift
        known = ~np.isnan(scaled)
        ledger.compare(np.clip(plain_error, -CLIP, CLIP), said(ledger.lean))
        ledger.cover(scaled, said(ledger.band))
        self._correct(ledger.offset, scaled, self._blend(self._shape.shape + ledger.offset, said(ledger.beside) - shift[..., None]))
        self._shape.add(scaled)
        self._centre.learn(said(ledger.centre_x), np.clip(np.nan_to_num(plain_error), -CENTRE_CLIP, CENTRE_CLIP), known)
        error = np.clip(scaled, -CLIP, CLIP) * relative
        self._width.learn(said(ledger.width_x), np.log(np.maximum(np.abs(np.nan_to_num(error)), 0.02)), known)
        ledger.remember(np.clip(plain_error, -CLIP, CLIP) * relative, error)
        self._learn_peaks(origin)
        self._count += 1
        if self._count % RESHAPE_EVERY == 0:
            self._shape.reshape()
            self._peak_shape.reshape()

    def _learn_peaks(self, origin: NDArray[np.int64]) -> None:
        """The same for the highest bucket within steps 0..s."""
        ledger, store = self._ledger, self._store
        highest = np.moveaxis(np.maximum.accumulate(ledger.sums[store.buckets_ago(_STEPS)], axis=0), 0, 2)  # [g, r, s]: newest s + 1
        scaled = np.full_like(highest, np.nan)
        for step, issue in enumerate(origin):
            ahead = (issue, slice(None), slice(None), slice(step + 1))
            width = ledger.width[ahead] * ledger.unit[ahead]
            centre = ledger.plain[ahead] + ledger.shift[ahead] * width
            scaled[..., step] = (highest[..., step] - centre.max(axis=-1)) / width.max(axis=-1)
        self._correct(ledger.peak_offset, scaled, self._peak_shape.shape + ledger.peak_offset)
        self._peak_shape.add(scaled)

    @staticmethod
    def _blend(own: F64, beside: F64) -> F64:
        """Half way between the bands that the sums' errors make and those that the members' quantiles make, all in widths."""
        return np.where(np.isnan(beside), own, OWN_SHARE * own + (1.0 - OWN_SHARE) * beside)

    @staticmethod
    def _correct(offset: F64, scaled: F64, said: F64) -> None:
        """Own correction: up by a miss of what was said, down by a hit, in the ratio of the level."""
        missed = scaled[..., None] > said
        moved = np.clip(offset * TRACK_LEAK + np.where(missed, _MISS, _HIT), -TRACK_LIMIT, TRACK_LIMIT)
        np.copyto(offset, moved, where=~np.isnan(scaled)[..., None])

    def _issue(self, rows: NDArray[np.int64], mean: F32, stddev: F32, law: F32 | None = None) -> tuple[F64, F64, F64]:
        """(quantiles, peak quantiles [g, r, h, q], centre [g, r, h]) of all groups from the forecasts [n, r, h] of the VMs in `rows`.

        law: the VMs' quantiles [n, r, h, q]; None = not known, bands come from the sums' own errors alone.
        """
        ledger, store, roster = self._ledger, self._store, self._roster
        one_step_error = ledger.sums[store.bucket] - ledger.plain[store.issue, :, :, 0]
        store.remember(rows, mean, stddev)
        at = store.issue
        for ring in (ledger.plain, ledger.unit):
            ring[at] = np.nan
        ledger.plain[at, roster.rows], ledger.unit[at, roster.rows] = _add_up(roster, store.mean[at], store.stddev[at])
        plain, unit = ledger.plain[at], ledger.unit[at]
        together = np.full_like(unit, np.nan)
        together[roster.rows] = roster.sum(np.where(np.isnan(store.mean[at]), np.nan, store.stddev[at]))
        past = ledger.sums[store.buckets_ago(np.arange(WINDOW))]
        ledger.width_x[at] = width_features(past, unit, together, ledger.own_error())
        ledger.width[at] = np.exp(np.clip(self._width.predict(ledger.width_x[at]), -4.0, 4.0))
        width = ledger.width[at] * unit
        ledger.centre_x[at] = centre_features(past, plain, width, one_step_error, ledger.own_bias()[:, :, PART_OF_STEP] * unit)
        ledger.lean[at] = np.clip(self._centre.predict(ledger.centre_x[at]), -SHIFT_LIMIT, SHIFT_LIMIT)
        ledger.shift[at] = ledger.lean[at] * ledger.trust()[:, :, PART_OF_STEP]
        centre = np.maximum(plain + ledger.shift[at] * width, 0.0)
        scale = width[..., None]
        z = np.maximum.accumulate(self._shape.shape + ledger.offset, axis=-1)
        ledger.beside[at] = (self._members_law(rows, law, ledger.width[at]) - plain[..., None]) / width[..., None]
        z = self._blend(z, ledger.beside[at] - ledger.shift[at][..., None])
        ledger.band[at] = z[..., BAND]
        top = np.full((len(ledger), N_RESOURCES), np.nan)
        top[roster.rows] = roster.sum(np.where(np.isnan(self._store.capacity), np.inf, self._store.capacity))
        quantiles = np.clip(centre[..., None] + z * scale, 0.0, top[..., None, None])
        peak_z = np.maximum.accumulate(self._peak_shape.shape + ledger.peak_offset, axis=-1)
        highest = np.maximum.accumulate(centre, axis=-1)[..., None] + peak_z * np.maximum.accumulate(scale, axis=-2)
        # whatever one bucket may reach, the highest of several may
        peaks = np.maximum.accumulate(np.maximum(highest, quantiles), axis=-2)
        return quantiles, np.clip(peaks, 0.0, top[..., None, None]), centre

    def _members_law(self, rows: NDArray[np.int64], law: F32 | None, relative: F32) -> F64:
        """Quantiles [g, r, h, q] that those of the members let expect of the sum; NaN where they are not known.

        Medians add; distances from them add level by level as deviations of independent members do, so that each side keeps its own reach,
        and one burster among idle members its own law. relative [g, r, h]: the width in units; what it has beyond that of independent
        members comes from their moving together, and widens the sum.
        """
        out = np.full((*relative.shape, len(TAU)), np.nan)
        if law is None:
            return out
        middle = law[..., MIDDLE, None]
        parts = np.concatenate([middle, (law - middle) ** 2], axis=-1)
        whole: F32 = np.full((len(self._home), *parts.shape[1:]), np.nan, dtype=np.float32)
        whole[rows] = parts
        added = self._roster.sum(whole)
        spoken = self._roster.sum(~np.isnan(whole[..., :1])) > 0
        together = np.maximum(relative[self._roster.rows] * np.exp(-WIDTH_PRIOR[0]), 1.0)
        away = np.sqrt(added[..., 1:]) * together[..., None] * np.sign(TAU - 0.5)
        out[self._roster.rows] = np.where(spoken, added[..., :1] + away, np.nan)
        return out

    def _skip_to(self, start_s: int) -> None:
        """Empty buckets for those that never came; beyond the window only its length matters."""
        if self._newest_s is None:
            return
        missing = (start_s - self._newest_s) // BUCKET_S - 1
        nobody = np.zeros(0, dtype=np.int64)
        silent: F32 = np.zeros((0, N_RESOURCES, HORIZON_STEPS), dtype=np.float32)
        self._away += max(0, missing)
        for _ in range(min(missing, WINDOW)):
            self._store.append(nobody, np.zeros((0, N_RESOURCES)))
            self._ledger.sums[self._store.bucket] = np.nan
            self._store.remember(nobody, silent, silent)
            for ring in (self._ledger.plain, self._ledger.unit, self._ledger.width):
                ring[self._store.issue] = np.nan

    # ---- the answer

    def _block(self, rows: NDArray[np.int64], reason: I8, centre: F64, quantiles: F64, peaks: F64) -> AggregateForecast:
        roster = self._roster
        here = roster.rows
        keys = list(self._row_of)
        v = len(self._home)
        spoken = np.zeros((v, N_RESOURCES))
        spoken[rows] = ~np.isnan(self._store.mean[self._store.issue, rows, :, 0])
        weight = np.nan_to_num(self._store.mean[self._store.issue].mean(axis=-1)) + _LEAST
        codes = np.full((v, N_RESOURCES), NoForecast.ALL_UNKNOWN, dtype=np.int8)
        codes[rows] = reason
        share = roster.sum(spoken) / roster.counts[:, None]
        heard, covered = self._ledger.heard[here], self._ledger.covered[here]
        with np.errstate(invalid="ignore", divide="ignore"):
            coverage = np.where(heard > 0, covered / heard, np.nan)
        total = roster.sum(np.where(spoken > 0, weight, 0.0))
        verdict = np.zeros(share.shape, dtype=np.int8)
        verdict[(coverage < OFF_COVERAGE) & (heard >= OFF_EVIDENCE)] = NoForecast.OUT_OF_CALIBRATION
        for code in (NoForecast.GAP, NoForecast.COLD_START):
            # most of the demand has no model of its own: neither has the sum
            part = roster.sum(np.where((codes == code) & (spoken > 0), weight, 0.0))
            verdict[part > 0.5 * total] = code
        verdict[share == 0] = NoForecast.ALL_UNKNOWN
        found = quantiles[here]
        middle = (found * _LEVEL_WEIGHTS).sum(axis=-1, keepdims=True)
        variance = ((found - middle) ** 2 * _LEVEL_WEIGHTS).sum(axis=-1)
        return AggregateForecast(
            issued_s=(self._newest_s or 0) + BUCKET_S,
            groups=tuple(keys[row] for row in here),
            members=roster.counts,
            known=share.astype(np.float32),
            mean=centre[here].astype(np.float32),
            stddev=np.sqrt(variance).astype(np.float32),
            quantiles=found.astype(np.float32),
            peak_quantiles=peaks[here].astype(np.float32),
            reason=verdict,
            coverage=coverage.astype(np.float32),
        )


def _add_up(roster: Roster, mean: F32, stddev: F32) -> tuple[F64, F64]:
    """(sum of means, root of the sum of variances) float64[g, r, h]; NaN where no member has a forecast."""
    spoken = roster.sum(~np.isnan(mean))
    total = np.where(spoken > 0, roster.sum(mean), np.nan)
    spread = np.sqrt(roster.sum(np.where(np.isnan(mean), 0.0, stddev.astype(np.float64) ** 2)))
    # even members that never moved may: a thousandth of the level keeps the unit from being zero
    return total, np.where(spoken > 0, np.maximum(spread, 1e-3 * np.abs(total) + 1e-6), np.nan)
