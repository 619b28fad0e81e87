"""The forecast shard: demand history in, calibrated distributions of the next hour out, one bucket at a time.

Each bucket: append → score what arrived (combine, calibrate) → forecast with every member → weigh → calibrate. A start from history
replays recent origins through exactly these steps, so scores and calibration exist at once. State is a cache: `load` rebuilds it.
Invariants: the same calls give the same bytes; never raises on data (constant, zero, short, gapped, spiky); quantiles are finite where
anything is known, monotone, inside [0, capacity].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast import boosting
from coordinator.forecast.calendar import slot_of
from coordinator.forecast.calibrate import Calibrator
from coordinator.forecast.challenged import Challenge
from coordinator.forecast.challengers import ChallengerForecast
from coordinator.forecast.combine import GROUP_MIDDLES, GROUP_SIZES, Combiner
from coordinator.forecast.events.model import Labels, Occurrences
from coordinator.forecast.explain import Issued, Parts, TargetParts, forecast_why
from coordinator.forecast.feature_kernels import DAY
from coordinator.forecast.features import FLOORS, LEVEL_FLOOR
from coordinator.forecast.history import DemandWindow
from coordinator.forecast.hours import HourPeaks, PastHours
from coordinator.forecast.kernels import fit_damped
from coordinator.forecast.kernels.agreement import agree
from coordinator.forecast.levels import LevelMixer
from coordinator.forecast.locality import COLD_BUCKETS, local_features, usual_change
from coordinator.forecast.members import MEMBERS, PEAK_MEMBERS, SMOOTHING_WINDOW, Window, look, mean_members, peak_members
from coordinator.forecast.mix import Mixer
from coordinator.forecast.network import QuantileNetwork
from coordinator.forecast.network import train as train_network
from coordinator.forecast.options import ForecastOptions
from coordinator.forecast.outlook import OutlookPlanner
from coordinator.forecast.regimes import ENDLESS, RegimeDetector, Regimes
from coordinator.forecast.restart import YOUNG, Restarter
from coordinator.forecast.rows import NEW, take_rows
from coordinator.forecast.seasons import Profile, Seasons
from coordinator.forecast.surroundings import Surroundings
from coordinator.forecast.track import Tracker
from coordinator.forecast.trained import HELD_OUT, Models, promoted, unpack
from coordinator.forecast.two_answers import TwoAnswers
from coordinator.forecast.why import ForecastWhy
from coordinator.model import F32, F64, N_RESOURCES, BucketBlock, ForecastBlock, HistoryBlock, NoForecast
from shared.units import BUCKET_S, HORIZON_STEPS

__all__ = ["ForecastEngine", "ForecastOptions"]

GAP_BUCKETS: Final = 3
WATCHED: Final = 1440  # five days: the fleet's memory of how new levels hold
FORGET_AFTER: Final = 288  # a VM unseen for a day loses its state
FLEET_EVIDENCE: Final = 12.0
PEAK_FLEET_EVIDENCE: Final = 100.0  # peaks of overlapping hours repeat each other: own scores say less
LIVE: Final = 36  # a replay hears the dear members in this many of its newest buckets
DENSE: Final = 72  # a replay issues in each of the newest six hours' buckets and in one of SPARSE before that
SPARSE: Final = 3
REFIT_EVERY: Final = 12  # each bucket refits the damped trend of one series in twelve
NETWORK: Final = "network"
CHALLENGER: Final = "challenger"
OFF_COVERAGE: Final = 0.62  # of the central 80 % band; the own correction brings it back, so lower is rare
OFF_EVIDENCE: Final = 24.0  # two hours
MEAN_PACE: Final = 0.4  # of a VM's own offset; faster steps cost a percent of the loss and gain no coverage
PEAK_PACE, PEAK_GAIN = 0.03, 2.0  # one high bucket is the peak of twelve hours that overlap: it must not count twelve times
UNHEARD: Final = (0.3, 0.1)  # log of a loss: LightGBM's own quantiles and the network count for so much worse until they were heard
PRIOR: Final = (-0.3, 0.55, 0.15, 0.15, 0.15, 0.0)  # intercept, own error, then the features of `locality.local_features`


class ForecastEngine:
    """Implements coordinator.ports.ForecastShard."""

    def __init__(self, options: ForecastOptions | None = None) -> None:
        self.options = options or ForecastOptions()
        self._booster: boosting.QuantileBooster | None = None
        self._boosted: bytes | None = None  # the same, as it came
        self._network: QuantileNetwork | None = None
        self._surroundings = Surroundings(self.options.days, DAY)
        self._reset()

    def _reset(self) -> None:
        self._challenge = Challenge(self.options.challengers)
        extra = ("boosting",) if self.options.boosting else ()
        self._pooled: tuple[str, ...] = (*MEMBERS, *extra)
        named = tuple(f"{CHALLENGER}:{name}" for name in self._challenge.names)
        self.members: tuple[str, ...] = (*self._pooled, *((NETWORK,) if self.options.network else ()), *named)
        self._vm_ids: list[str] = []
        self._row: dict[str, int] = {}
        self._unseen: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._capacity: F64 = np.zeros((0, N_RESOURCES))
        self._newest_s: int | None = None
        self._surroundings.reset()
        self._window = DemandWindow(self.options.ring)
        self._seasons = Seasons()
        self._regimes = RegimeDetector()
        self._restarters = (Restarter(), Restarter())
        self._regime: Regimes | None = None  # as of the newest bucket
        self._damped: F64 = np.zeros((0, N_RESOURCES, 3))
        self._combiners = (Combiner(self._pooled, FLEET_EVIDENCE), Combiner(PEAK_MEMBERS, PEAK_FLEET_EVIDENCE))  # as the mixers
        spreads = 4 + self.options.boosting
        self._calibrator = Calibrator(spreads, (*PRIOR, *([0.0] * self.options.boosting)))
        self._peak_calibrator = Calibrator(4, PRIOR)
        self._leaves = LevelMixer(UNHEARD[0])  # of the bucket mean: pool and LightGBM
        self._mixers = (LevelMixer(UNHEARD[1]), Mixer())  # of the bucket mean, of the peak: and the network
        self._hours = HourPeaks()
        self._trackers = (Tracker(MEAN_PACE), Tracker(PEAK_PACE, PEAK_GAIN, running=True))
        self._issued: Issued | None = None
        self._outlook = OutlookPlanner(self.options.outlook_replay) if self.options.outlook else None

    # ---- the port

    def load(self, history: HistoryBlock) -> None:
        """Start or restart: forget everything, take the history, replay its newest origins."""
        self._reset()
        self._follow(history.vm_ids)
        self._capacity[:] = history.capacity
        buckets = history.mean.shape[2]
        first = max(0, buckets - self.options.ring)
        replay_from = max(first, buckets - self.options.replay)
        for b in range(first, buckets):
            self._newest_s = history.end_s - (buckets - 1 - b) * BUCKET_S
            told = None if history.signals is None else history.signals[:, :, b]
            self._append(history.mean[:, :, b], history.peak[:, :, b], told, watched=b >= buckets - WATCHED)
            if b < replay_from:
                continue
            self._learn()
            if b >= buckets - DENSE or (buckets - 1 - b) % SPARSE == 0:
                self._issue(self._newest_s, live=b >= buckets - LIVE)
            else:
                self._pause()
        if self._outlook is not None:
            self._outlook.load(history)

    def advance(self, bucket: BucketBlock, capacity: Mapping[str, Sequence[float]]) -> ForecastBlock:
        """Append one closed bucket and forecast its VMs. Buckets in between that never came count as missing.

        The same bucket again adds VMs or values to it; an older bucket raises ValueError.
        """
        if self._newest_s is not None and bucket.start_s < self._newest_s:
            raise ValueError(f"start_s {bucket.start_s}: the newest bucket is {self._newest_s}, older ones are closed")
        if bucket.start_s % BUCKET_S:
            raise ValueError(f"start_s {bucket.start_s}: must be a multiple of {BUCKET_S}")
        self._follow(bucket.vm_ids)
        rows = np.array([self._row[vm_id] for vm_id in bucket.vm_ids], dtype=np.int64)
        mean = np.full((len(self._vm_ids), N_RESOURCES), np.nan, dtype=np.float32)
        peak = mean.copy()
        mean[rows], peak[rows] = bucket.mean, bucket.peak
        np.copyto(mean, np.nan, where=~np.isfinite(mean))
        np.copyto(peak, np.nan, where=~np.isfinite(peak))
        if bounded := [vm_id for vm_id in bucket.vm_ids if vm_id in capacity]:
            self._capacity[[self._row[vm_id] for vm_id in bounded]] = [capacity[vm_id] for vm_id in bounded]
        told = None
        if bucket.signals is not None:
            told = np.full((len(self._vm_ids), bucket.signals.shape[1]), np.nan)
            told[rows] = bucket.signals
        if bucket.start_s == self._newest_s:
            self._window.merge_newest(mean, peak)
            self._surroundings.merge_newest(told)
            for part in self._issuing:
                part.withdraw()
            if self._outlook is not None:
                self._outlook.again(bucket.start_s, self._window, self._capacity)
        else:
            self._skip_to(bucket.start_s)
            self._unseen += 1
            self._append(mean, peak, told)
            self._newest_s = bucket.start_s
            self._learn()
            if self._outlook is not None:
                self._outlook.bucket(bucket.start_s, self._window, self._capacity)
        self._unseen[rows] = 0
        said = self._issue(bucket.start_s, live=True).select(bucket.vm_ids, rows)
        outlook = self._outlook.take(self._vm_ids) if self._outlook is not None else None
        return said if outlook is None else replace(said, outlook=outlook.select(bucket.vm_ids, rows))

    def explain(self, vm_id: str) -> ForecastWhy | None:
        """Why the newest forecast of this VM is what it is, read from what it left behind; None where the newest bucket held no such VM."""
        row = self._row.get(vm_id)
        if row is None or self._issued is None or self._regime is None or self._unseen[row]:
            return None
        mean, peak = self._explained(0, row), self._explained(1, row)
        if mean is None or peak is None:
            return None
        covered, evidence = self._calibrator.coverage()
        parts = Parts(
            vm_id=vm_id,
            issued=self._issued,
            row=row,
            capacity=self._capacity[row],
            readings=np.isfinite(self._window.means(SMOOTHING_WINDOW)[row]),
            covered=covered[row],
            evidence=evidence[row],
            off_coverage=OFF_COVERAGE,
            level=self._regime.level[row],
            level_age=self._regime.age[row],
            level_endless=ENDLESS,
            level_before=self._regimes.before(row),
            holds=self._regime.hold[row],
            mean=mean,
            peak=peak,
        )
        return forecast_why(parts)

    def _explained(self, target: int, row: int) -> TargetParts | None:
        combiner = self._combiners[target]
        hearing, held = combiner.explain(row), self._trackers[target].explain(row)
        if hearing is None or held is None:
            return None
        moved, paid = self._restarters[target].explain(row)
        laid = (self._calibrator, self._peak_calibrator)[target].explain(row, self._capacity[row])
        mixing = self._mixers[target].explain(row)
        if mixing is not None and self.options.only == NETWORK:
            mixing = mixing._replace(weight=np.ones_like(mixing.weight), by_level=None)
        hour, leaves = (self._hours.explain(row), None) if target else (None, self._leaves.explain(row))
        return TargetParts(
            members=combiner.members, hearing=hearing, laid=laid, moved=moved, paid=paid, leaves=leaves, mixing=mixing, hour=hour, held=held
        )

    def announce(self, calendar: Occurrences) -> None:
        """When events are, from now on, in place of what was said before; a covariate of the trees. Demand comes without them."""
        self._surroundings.announce(calendar)

    def label(self, labels: Mapping[str, Labels]) -> None:
        """Client and application of VMs, in place of what was said before; a covariate of the trees."""
        self._surroundings.label(labels)

    def post(self, forecasts: Sequence[ChallengerForecast]) -> None:
        """Listen to what challengers said from the next bucket on; nothing leans on who has no score yet. VMs not here are passed over.

        Raises ValueError for a challenger that `options` does not name.
        """
        if self._newest_s is None:
            return
        seen = self._window.means(self.options.ring)
        self._challenge.post(forecasts, self._row, seen, self._newest_s + BUCKET_S)

    def retrain(self, history: HistoryBlock, seed: int = 0) -> bytes | None:
        """Train the global models; pure, meant to run elsewhere. `install` takes the result; None = too little history.

        Each is judged on buckets that it has not seen: the trees here, against those installed or the quantiles of the last hours, the
        network by `install`, which every shard does on the newest HELD_OUT buckets of its own VMs.
        """
        buckets = history.mean.shape[2]
        known = self._surroundings.during(history.vm_ids, history.end_s - buckets * BUCKET_S, history.end_s + BUCKET_S, history.signals)
        boosted = boosting.challenge(self._boosted, history, seed, known=known)[0] if self.options.boosting else None
        until = buckets - HELD_OUT
        network = train_network(history, seed, until=until, examples=self.options.examples) if self.options.network else None
        return Models(boosted, network).pack()

    def install(self, models: bytes | None) -> None:
        """Use models of `retrain` from the next bucket on; they earn their weight by their scores. None changes nothing.

        A network that does worse than the one in use (without one: than the quantiles of the last hours) on the newest buckets, unseen by
        both, is not taken. Raises ValueError when `models` is not what `retrain` gives.
        """
        if models is None:
            return
        given = unpack(models)
        if given.boosting is not None and self.options.boosting:
            self._booster, self._boosted = boosting.QuantileBooster(given.boosting), given.boosting
        if given.network is not None and self.options.network:
            self._promote(QuantileNetwork(given.network))

    def _promote(self, challenger: QuantileNetwork) -> None:
        columns = min(self._window.length, self.options.ring)
        if not self._vm_ids or columns <= HELD_OUT or self._newest_s is None:
            self._network = challenger
            return
        means, peaks = (part(columns).reshape(len(self._vm_ids) * N_RESOURCES, -1) for part in (self._window.means, self._window.peaks))
        losses = promoted(challenger, self._network, means, peaks, self._newest_s)
        if losses is None:
            return
        self._network = challenger
        of_mean, of_peak = self._mixers
        of_mean.inherit()  # who is promoted is no worse than who spoke before
        of_peak.rehearse(losses[:, :, 1].reshape(len(losses), len(self._vm_ids), N_RESOURCES, HORIZON_STEPS))

    # ---- fleet

    @property
    def _issuing(self) -> tuple[Combiner | Challenge | Calibrator | Restarter | TwoAnswers | HourPeaks | Tracker, ...]:
        """Who keeps what was issued until it can be scored."""
        calibrators = (self._calibrator, self._peak_calibrator)
        mixing = (self._leaves, *self._mixers, self._hours)
        return (*self._combiners, self._challenge, *calibrators, *self._restarters, *mixing, *self._trackers)

    def _follow(self, vm_ids: Sequence[str]) -> None:
        new = [vm_id for vm_id in vm_ids if vm_id not in self._row]
        stale = self._unseen >= FORGET_AFTER
        if not new and not stale.any():
            return
        wanted = set(vm_ids)
        kept = [row for row, vm_id in enumerate(self._vm_ids) if not stale[row] or vm_id in wanted]
        take = np.array(kept + [NEW] * len(new), dtype=np.int64)
        self._vm_ids = [self._vm_ids[row] for row in kept] + new
        self._row = {vm_id: row for row, vm_id in enumerate(self._vm_ids)}
        self._unseen = take_rows(self._unseen, take, 0, 0)
        self._capacity = take_rows(self._capacity, take, 0, np.nan)
        self._damped = take_rows(self._damped, take, 0, np.nan)
        for part in (
            self._window,
            self._seasons,
            self._regimes,
            *self._issuing,
        ):
            part.rearrange(take)
        self._surroundings.rearrange(take, self._vm_ids)
        if self._outlook is not None:
            self._outlook.rearrange(take)

    def _skip_to(self, start_s: int) -> None:
        """Empty columns for buckets that never came, so that seasons stay in phase. Beyond a whole ring only its length matters."""
        if self._newest_s is None:
            return
        missing = (start_s - self._newest_s) // BUCKET_S - 1
        empty = np.full((len(self._vm_ids), N_RESOURCES), np.nan, dtype=np.float32)
        for _ in range(min(missing, self.options.ring)):
            self._append(empty, empty, None)
            self._learn()
            self._pause()

    def _append(self, mean: F32, peak: F32, told: F32 | F64 | None, watched: bool = True) -> None:
        self._window.append(mean, peak)
        self._surroundings.append(told)
        if watched:
            values = mean.astype(np.float64)
            self._regime = self._regimes.update(values, np.fmax(FLOORS, LEVEL_FLOOR * np.abs(values)))

    def _pause(self) -> None:
        """A bucket in which nothing is issued."""
        for part in self._issuing:
            part.pause()

    def _learn(self) -> None:
        """Score everything that the newest bucket decides."""
        v = len(self._vm_ids)
        newest = self._window.means(1)[:, :, 0].astype(np.float64)
        actual = np.repeat(newest[..., None], HORIZON_STEPS, axis=-1)
        peaks = self._window.peaks(HORIZON_STEPS).astype(np.float64)
        highest = np.full((v, N_RESOURCES, HORIZON_STEPS), np.nan)
        highest[..., : peaks.shape[-1]] = np.maximum.accumulate(peaks[..., ::-1], axis=-1)
        now_s = self._newest_s or 0
        slots = tuple(slot_of(now_s - (step + 1) * BUCKET_S) for step in GROUP_MIDDLES)
        for target, combiner in zip((actual, highest), self._combiners, strict=True):
            combiner.learn(target, slots)
        self._challenge.learn(newest, actual, slots, now_s)
        self._calibrator.learn(actual)
        self._peak_calibrator.learn(highest)
        for target, restarter, mixer, tracker in zip((actual, highest), self._restarters, self._mixers, self._trackers, strict=True):
            restarter.learn(target)
            mixer.learn(target)
            tracker.learn(target)
        self._leaves.learn(actual)
        self._hours.learn(highest[..., -1])

    def _issue(self, now_s: int, live: bool) -> ForecastBlock:
        """Forecast all VMs from the window as it is. `live` = also run the members that are too dear for a long replay."""
        v = len(self._vm_ids)
        shape = (v, N_RESOURCES)
        series = self._window.means(self.options.ring).reshape(v * N_RESOURCES, -1)
        peaks = self._window.peaks(self.options.ring).reshape(v * N_RESOURCES, -1)
        seen, peaks_seen = look(series), look(peaks)
        self._refit(seen, now_s)
        profiles = self._seasons.renew(series, peaks, now_s // BUCKET_S)
        forecasts = np.empty((len(self._pooled), *shape, HORIZON_STEPS), dtype=np.float32)
        cheap = len(MEMBERS)
        mean_members(seen, self._damped.reshape(-1, 3), profiles, forecasts[:cheap].reshape(cheap, -1, HORIZON_STEPS))
        forecasts[cheap:] = np.nan
        boosted, boosted_peaks = self._ask_trees(series, peaks, now_s, live)
        boosted_spread = None
        if boosted is not None:
            low, middle, high = boosted.reshape(3, *shape, HORIZON_STEPS)
            forecasts[-1] = middle
            boosted_spread = np.stack([high - middle, middle - low], axis=-1)
        self._listen_to_one(forecasts)
        slot = slot_of(now_s)
        point, _, model = self._combiners[0].issue(slot, forecasts)
        point, led = self._challenge.issue(slot, point, now_s + BUCKET_S)
        model = np.where(led >= 0, len(self.members) - len(self._challenge.names) + led, model).astype(np.int8)
        unknown = (seen.readings == 0).reshape(shape)
        point[unknown] = np.nan
        peak_forecasts = peak_members(peaks_seen, seen.filled, np.nan_to_num(point).reshape(-1, HORIZON_STEPS), profiles)
        peak_forecasts = peak_forecasts.reshape(len(PEAK_MEMBERS), *shape, HORIZON_STEPS)
        peak_point = self._combiners[1].issue(slot, peak_forecasts).point
        peak_point[unknown] = np.nan
        unit, floor = usual_change(seen, shape)
        peak_unit, peak_floor = usual_change(peaks_seen, shape)
        if self.options.boosting and boosted_spread is None:
            boosted_spread = np.full((*shape, HORIZON_STEPS, 2), np.nan)
        local = local_features(seen, forecasts[:cheap], point, floor, boosted_spread)
        quantiles = self._calibrator.issue(point, unit, local, self._capacity)
        peak_local = local_features(peaks_seen, peak_forecasts, peak_point, peak_floor)
        peak_quantiles = self._peak_calibrator.issue(peak_point, peak_unit, peak_local, self._capacity)
        quantiles, peak_quantiles = self._restarted(quantiles, peak_quantiles)
        # the trees were trained on what a replay plays: only its newest buckets can judge them
        quantiles, _ = self._leaves.mix_three(quantiles, boosted if live and self.options.only is None else None, unit)
        network = self._ask_network(series, peaks, now_s, unknown, profiles.daily) if live else (None, None)
        (quantiles, weight), (peak_quantiles, _) = (
            mixer.mix(pool, said, size)
            for mixer, pool, said, size in zip(self._mixers, (quantiles, peak_quantiles), network, (unit, peak_unit), strict=True)
        )
        if network[0] is not None:
            if self.options.only == NETWORK:
                quantiles, peak_quantiles, weight = network[0], network[1], np.ones_like(weight)
            model = np.where((weight * GROUP_SIZES).sum(axis=-1) > HORIZON_STEPS / 2, self.members.index(NETWORK), model).astype(np.int8)
        peak_quantiles = self._blended(peak_quantiles, network[1], boosted_peaks, peaks_seen, peak_unit)
        level, peak_level = (part.level.reshape(shape) for part in (seen, peaks_seen))
        quantiles = self._trackers[0].hold(quantiles, unit, level, self._capacity)
        peak_quantiles = self._trackers[1].hold(peak_quantiles, peak_unit, peak_level, self._capacity)
        return self._block(now_s, seen, model=model, point=point, quantiles=quantiles, peaks=peak_quantiles)

    def _blended(self, mixed: F32, network: F32 | None, boosted: F64 | None, seen: Window, unit: F64) -> F32:
        """Running peaks with the whole hour from all who have an answer to it."""
        if self.options.only is not None:
            self._hours.pause()
            return mixed
        said = self._hours.blend(mixed, network, boosted, PastHours(seen.filled, seen.readings), unit)
        if self._hours.resumed:
            self._trackers[1].restart()
        return said

    def _listen_to_one(self, forecasts: F32) -> None:
        """Silence all members but the one of `only`, in place; where that one is silent the last value speaks."""
        if self.options.only not in {None, NETWORK}:
            chosen = self._pooled.index(str(self.options.only))
            forecasts[chosen] = np.where(np.isnan(forecasts[chosen]), forecasts[0], forecasts[chosen])
            forecasts[np.arange(len(self._pooled)) != chosen] = np.nan

    def _restarted(self, quantiles: F32, peak_quantiles: F32) -> tuple[F32, F32]:
        """Moved to new levels that hold."""
        if self._regime is None or self.options.only is not None:
            for restarter in self._restarters:
                restarter.pause()
            return quantiles, peak_quantiles
        return (
            self._restarters[0].restart(quantiles, self._window.means(YOUNG), self._regime),
            self._restarters[1].restart(peak_quantiles, self._window.peaks(YOUNG), self._regime),
        )

    def _ask_trees(self, series: F32, peaks: F32, now_s: int, live: bool) -> tuple[F64 | None, F64 | None]:
        """Quantiles float64[3, v * r, 12] of the bucket means and, live, [3, v * r] of the hour's peak; None = nothing is trained."""
        if self._booster is None:
            return None, None
        known = self._surroundings.at(now_s)
        described = self._booster.describe(series, peaks, self._capacity.reshape(-1), end=series.shape[1], now_s=now_s, known=known)
        return self._booster.bucket_quantiles(described), self._booster.peak_quantiles(described) if live else None

    def _ask_network(
        self, series: F32, peaks: F32, now_s: int, unknown: NDArray[np.bool_], daily: Profile
    ) -> tuple[F32, F32] | tuple[None, None]:
        """Its quantiles [v, r, 12, q] of both targets inside [0, capacity]; None where there is no network."""
        if self._network is None or self.options.only not in {None, NETWORK}:
            return None, None
        top = np.where(np.isnan(self._capacity), np.inf, self._capacity)[..., None, None].astype(np.float32)
        said = tuple(part.reshape(*unknown.shape, HORIZON_STEPS, -1) for part in self._network.forecast(series, peaks, now_s, daily))
        for part in said:
            np.minimum(part, top, out=part)
            part[unknown] = np.nan
        return said[0], said[1]

    def _refit(self, seen: Window, now_s: int) -> None:
        """Refit the damped trend of one series in twelve, and of those that have none."""
        flat = self._damped.reshape(-1, 3)
        due = (np.arange(len(flat)) + now_s // BUCKET_S) % REFIT_EVERY == 0
        due |= np.isnan(flat[:, 0])
        if due.any():
            flat[due] = fit_damped(seen.filled[due])[0]

    def _block(self, now_s: int, seen: Window, *, model: NDArray[np.int8], point: F64, quantiles: F32, peaks: F32) -> ForecastBlock:
        shape = point.shape[:2]
        age = seen.age.reshape(shape)
        gap = np.where(age > GAP_BUCKETS, np.sqrt(1.0 + age / HORIZON_STEPS), 1.0)
        mean, stddev, wide, highest = agree(point, quantiles, peaks, gap, self._capacity)
        covered, evidence = self._calibrator.coverage()
        readings = seen.readings.reshape(shape)
        reason = np.zeros(shape, dtype=np.int8)
        reason[(covered < OFF_COVERAGE) & (evidence >= OFF_EVIDENCE)] = NoForecast.OUT_OF_CALIBRATION
        reason[age > GAP_BUCKETS] = NoForecast.GAP
        reason[readings < COLD_BUCKETS] = NoForecast.COLD_START
        reason[readings == 0] = NoForecast.ALL_UNKNOWN
        self._issued = Issued(newest_s=now_s, readings=readings, age=age, gap=gap, reason=reason)
        return ForecastBlock(
            issued_s=now_s + BUCKET_S,
            vm_ids=tuple(self._vm_ids),
            mean=mean,
            stddev=stddev,
            quantiles=wide,
            peak_quantiles=highest,
            model=model,
            models=self.members,
            reason=reason,
            coverage=covered,
        )
