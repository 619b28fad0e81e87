"""Why a VM's newest forecast is what it is, put together from what the tick left behind: nothing is kept for it but a few arrays.

The engine hands over what its parts say of one VM (`Parts`); here it becomes records (why.py) with names, times and states. What each
stage did to the middle step of a part of the horizon is told in the order in which it happened, so that the steps from the members'
forecasts to the issued distribution can be followed, and recomputed.

Pure. Axes: k member, r resource, h step, g part of the horizon, q level. Invariant: unknown is None.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.calibrate import BAND, COVERAGE_DECAY, Laid
from coordinator.forecast.combine import GROUP_MIDDLES, GROUP_SIZES, GROUP_STARTS, GROUPS, Hearing
from coordinator.forecast.hours import HourBlend
from coordinator.forecast.kernels.agreement import agree
from coordinator.forecast.locality import COLD_BUCKETS
from coordinator.forecast.two_answers import Mixing
from coordinator.forecast.why import (
    BandWhy,
    CoverageWhy,
    ForecastWhy,
    HourSourceWhy,
    LevelWhy,
    MemberState,
    MemberWhy,
    NetworkWhy,
    PartWhy,
    ReasonWhy,
    ResourceWhy,
    RestartWhy,
    StageName,
    StageWhy,
    Target,
    TargetWhy,
)
from coordinator.model import F32, F64, I8, LEVELS, NoForecast
from shared.units import BUCKET_S, RESOURCES

MINUTES: Final = ("5-10", "15-30", "35-60")
TARGETS: Final[tuple[Target, ...]] = ("mean", "peak")
MEANT_COVERAGE: Final = LEVELS[BAND[1]] - LEVELS[BAND[0]]
MOST_BUCKETS: Final = 288  # further ahead the way back into calibration is not worth telling
_MEDIAN: Final = LEVELS.index(0.5)
_HIGHER: Final = LEVELS.index(0.95)
_SHOWN: Final = (_MEDIAN, *BAND)


@dataclass(frozen=True, kw_only=True)
class Issued:
    """What the engine remembers of its newest issue: arrays [v, r] that the tick made anyway."""

    newest_s: int  # start of the newest bucket
    readings: F64  # in the newest day
    age: F64  # buckets since the newest reading
    gap: F64  # what widens the bands because of it
    reason: I8


@dataclass(frozen=True, kw_only=True)
class TargetParts:
    """What the stages say of one VM and target."""

    members: tuple[str, ...]
    hearing: Hearing
    laid: Laid
    moved: F64  # [r, h] towards a new level, NaN = not
    paid: F64  # [r, g]
    leaves: Mixing | None  # LightGBM's own quantiles in place of the network's
    mixing: Mixing | None
    hour: HourBlend | None
    held: F32  # [r, h, q]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the engine knows of one VM. Arrays [r] unless said otherwise."""

    vm_id: str
    issued: Issued
    row: int
    capacity: F64
    readings: NDArray[np.bool_]  # [r, b] buckets of the newest day that have one
    covered: F32
    evidence: F32
    off_coverage: float
    level: F64
    level_age: NDArray[np.int64]
    level_endless: int
    level_before: F64
    holds: F64  # [r, g]
    mean: TargetParts
    peak: TargetParts

    @property
    def targets(self) -> tuple[TargetParts, TargetParts]:
        """In the order of TARGETS."""
        return self.mean, self.peak


def forecast_why(parts: Parts) -> ForecastWhy:
    """The records of one VM."""
    agreed = _agreed(parts)
    resources = tuple(_resource(parts, r, agreed) for r in range(len(RESOURCES)))
    return ForecastWhy(vm_id=parts.vm_id, issued_s=parts.issued.newest_s + BUCKET_S, resources=resources)


def known(value: float | np.floating) -> float | None:
    """None for NaN and infinities."""
    return float(value) if np.isfinite(value) else None


def all_known(values: Iterable[np.floating]) -> tuple[float | None, ...]:
    """Each as `known`."""
    return tuple(known(value) for value in values)


def reason_why(code: int, readings: int, age: int, since_s: int | None, needed: int | None) -> ReasonWhy | None:
    """A reason code in words. `needed`: for OUT_OF_CALIBRATION buckets inside the band that would end it, None = a day does not do."""
    name = NoForecast(code).name.lower()
    if code == NoForecast.COLD_START:
        more = max(COLD_BUCKETS - readings, 1)
        meaning = f"{readings} of the {COLD_BUCKETS} readings within a day that a model of its own needs: the forecast is wide"
        return ReasonWhy(
            code=name, meaning=meaning, since_s=since_s, readings=readings, ends=f"{_count(more, 'more reading')}", readings_needed=more
        )
    if code == NoForecast.ALL_UNKNOWN:
        meaning = "not one reading within a day: nothing is forecast"
        return ReasonWhy(code=name, meaning=meaning, since_s=since_s, readings=0, ends="its first reading", readings_needed=1)
    if code == NoForecast.GAP:
        meaning = f"the newest {_count(age, 'bucket')} brought no reading: the forecast goes on from the last one, ever wider"
        return ReasonWhy(code=name, meaning=meaning, since_s=since_s, readings=readings, ends="one reading", readings_needed=1)
    if code == NoForecast.OUT_OF_CALIBRATION:
        meaning = "its 80 % band missed too many readings of late: the VM is sized by the reactive rule"
        ends = (
            "readings inside the band again: more than a day of them" if needed is None else f"{_count(needed, 'bucket')} inside the band"
        )
        return ReasonWhy(code=name, meaning=meaning, since_s=since_s, readings=readings, ends=ends, readings_needed=needed)
    return None


def buckets_to_recover(covered: float, evidence: float, bound: float, decay: float) -> int | None:
    """How many buckets wholly inside the band lift a coverage of `covered` with so much evidence to `bound`; None = MOST_BUCKETS do not."""
    inside, weight = covered * evidence, evidence
    for count in range(1, MOST_BUCKETS + 1):
        inside, weight = inside * decay + 1.0, weight * decay + 1.0
        if inside / weight >= bound:
            return count
    return None


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _agreed(parts: Parts) -> tuple[F32, F32]:
    """Quantiles of both targets [r, h, q] as the engine issued them, by its own last stage."""
    gap = parts.issued.gap[parts.row][None]
    point = parts.mean.laid.point[None].astype(np.float64)
    _, _, quantiles, peaks = agree(point, parts.mean.held[None], parts.peak.held[None], gap, parts.capacity[None])
    return quantiles[0], peaks[0]


def _resource(parts: Parts, r: int, agreed: tuple[F32, F32]) -> ResourceWhy:
    seen, newest_s = np.flatnonzero(parts.readings[r]), parts.issued.newest_s
    started = parts.level_age[r] < parts.level_endless
    return ResourceWhy(
        resource=RESOURCES[r],
        reason=_reason(parts, r, seen),
        coverage=CoverageWhy(realised=known(parts.covered[r]), evidence=float(parts.evidence[r]), meant=MEANT_COVERAGE),
        level=LevelWhy(
            since_s=newest_s - (int(parts.level_age[r]) - 1) * BUCKET_S if started else None,
            level=known(parts.level[r]),
            before=known(parts.level_before[r]),
        ),
        newest_reading_age=parts.readings.shape[1] - 1 - int(seen[-1]) if len(seen) else None,
        gap_widening=float(parts.issued.gap[parts.row, r]),
        capacity=known(parts.capacity[r]),
        targets=tuple(
            TargetWhy(target=name, parts=tuple(_part(parts, target, r, g, final[r]) for g in range(GROUPS)), hour=_hour(target.hour, r))
            for name, target, final in zip(TARGETS, parts.targets, agreed, strict=True)
        ),
    )


def _reason(parts: Parts, r: int, seen: NDArray[np.int64]) -> ReasonWhy | None:
    code = int(parts.issued.reason[parts.row, r])
    covered, evidence = float(parts.covered[r]), float(parts.evidence[r])
    since = None
    if len(seen) and code in {NoForecast.COLD_START, NoForecast.GAP}:
        # cold since its first reading; a gap begins behind the newest one
        at = int(seen[0]) if code == NoForecast.COLD_START else int(seen[-1]) + 1
        since = parts.issued.newest_s - (parts.readings.shape[1] - 1 - at) * BUCKET_S
    needed = None
    if code == NoForecast.OUT_OF_CALIBRATION:
        needed = buckets_to_recover(covered, evidence, parts.off_coverage, COVERAGE_DECAY)
    return reason_why(code, len(seen), int(parts.issued.age[parts.row, r]), since, needed)


def _part(parts: Parts, target: TargetParts, r: int, g: int, agreed: F32) -> PartWhy:
    first = int(GROUP_STARTS[g])
    steps, middle = slice(first, first + int(GROUP_SIZES[g])), GROUP_MIDDLES[g]
    chain = _chain(target, r, g, middle, agreed[middle])
    moved = target.moved[r, middle]
    restart = RestartWhy(moved=known(moved), holds=known(parts.holds[r, g]), paid=float(target.paid[r, g])) if np.isfinite(moved) else None
    return PartWhy(
        minutes=MINUTES[g],
        middle_minutes=(middle + 1) * BUCKET_S // 60,
        members=_members(target, r, g, steps),
        blended=all_known(target.laid.point[r, steps]),
        restart=restart,
        leaves=_network(target.leaves, r, g),
        network=_network(target.mixing, r, g),
        bands=_bands(target, r, middle, chain),
        stages=tuple(_stage(name, levels) for name, levels in chain.items()),
    )


def _members(target: TargetParts, r: int, g: int, steps: slice) -> tuple[MemberWhy, ...]:
    hearing = target.hearing
    errors, scores = hearing.errors[:, r, g], hearing.scores[:, r, g]
    told = errors[np.isfinite(errors)]
    smallest = float(told.min()) if len(told) else np.nan
    states = [_state(hearing, k, r, g) for k in range(len(target.members))]
    scored = scores[[state in {"heard", "cut"} for state in states]]
    best = float(scored.min()) if len(scored) else np.nan
    found = []
    for k, (name, state) in enumerate(zip(target.members, states, strict=True)):
        judged = state in {"heard", "cut"}
        found.append(
            MemberWhy(
                member=name,
                state=state,
                weight=float(hearing.weights[k, r, g]),
                forecast=all_known(hearing.said[k, r, steps]),
                error=known(errors[k]),
                error_to_naive=_ratio(errors[k], errors[0]),
                error_to_best=_ratio(errors[k], smallest),
                evidence=float(hearing.evidence[k, r, g]),
                error_at_this_hour=known(hearing.usual_errors[k, r, g]),
                evidence_at_this_hour=float(hearing.usual_evidence[k, r, g]),
                fleet_expects=known(np.exp(hearing.fleet[k, r, g])),
                score=known(np.exp(scores[k] - best)) if judged else None,
            )
        )
    return tuple(found)


def _state(hearing: Hearing, k: int, r: int, g: int) -> MemberState:
    if hearing.weights[k, r, g] > 0:
        return "heard"
    if np.isinf(hearing.scores[k, r, g]):
        return "silent"
    return "unscored" if np.isnan(hearing.fleet[k, r, g]) else "cut"


def _ratio(value: float | np.floating, to: float | np.floating) -> float | None:
    return known(value / to) if to > 0 else None


def _network(mixing: Mixing | None, r: int, g: int) -> NetworkWhy | None:
    if mixing is None:
        return None
    return NetworkWhy(
        weight=float(mixing.weight[r, g]),
        pool_loss=known(mixing.pool_loss[r, g]),
        network_loss=known(mixing.network_loss[r, g]),
        evidence=float(mixing.evidence[r, g]),
        fleet_expects=float(mixing.expected[r, g]),
    )


def _chain(target: TargetParts, r: int, g: int, h: int, agreed: F32) -> dict[StageName, F32]:
    """Levels [q] at step h after each stage that did something; of the point it is the median alone."""
    blended = np.full(len(LEVELS), np.nan, dtype=np.float32)
    blended[_MEDIAN] = target.laid.point[r, h]
    chain: dict[StageName, F32] = {"blended": blended, "calibrated": target.laid.bands[r, h]}
    if np.isfinite(target.moved[r, h]):
        chain["moved"] = np.maximum(target.laid.bands[r, h] + np.float32(target.moved[r, h]), np.float32(0.0))
    if target.leaves is not None:
        chain["leaves"] = _mixed(target.leaves, r, g, h)
    if target.mixing is not None:
        chain["mixed"] = _mixed(target.mixing, r, g, h)
    if target.hour is not None:
        chain["hour"] = target.hour.blended[r, h]
    return {**chain, "held": target.held[r, h], "agreed": agreed}


def _mixed(mixing: Mixing, r: int, g: int, h: int) -> F32:
    """What a mixer makes of two answers, [q]."""
    pool, other = mixing.pool[r, h], mixing.network[r, h]
    weight = mixing.weight[r, g] if mixing.by_level is None else mixing.by_level[r, g]
    both = pool * (1 - weight) + other * weight
    found: F32 = np.where(np.isnan(pool), other, np.where(np.isnan(other), pool, both))
    return found if mixing.by_level is None else np.sort(found)


def _hour(blend: HourBlend | None, r: int) -> tuple[HourSourceWhy, ...]:
    if blend is None:
        return ()
    return tuple(
        HourSourceWhy(
            source=name,
            median=known(blend.said[r, k, _MEDIAN]),
            high=known(blend.said[r, k, _HIGHER]),
            median_weight=float(blend.trust[r, k, _MEDIAN]),
            high_weight=float(blend.trust[r, k, _HIGHER]),
        )
        for k, name in enumerate(blend.sources)
    )


def _stage(name: StageName, levels: F32) -> StageWhy:
    median, low, high = all_known(levels[list(_SHOWN)])
    return StageWhy(stage=name, median=median, low=low, high=high)


def _bands(target: TargetParts, r: int, h: int, chain: dict[StageName, F32]) -> BandWhy:
    low, high = BAND
    own, bare = target.laid.bands[r, h], target.laid.bare[r, h]
    before = chain.get("hour", chain.get("mixed", chain.get("leaves", chain.get("moved", own))))
    held = target.held[r, h]
    return BandWhy(
        own_low=known(own[low] - bare[low]),
        own_high=known(own[high] - bare[high]),
        own_width=_ratio(own[high] - own[low], bare[high] - bare[low]),
        held_low=known(held[low] - before[low]),
        held_high=known(held[high] - before[high]),
        held_width=_ratio(held[high] - held[low], before[high] - before[low]),
    )
