"""The profile of a workload: how much of it the hour and the day of the week explain, when it peaks, what kind it is, what size it needs.

Strength of a season is one minus the variance of what it leaves over the variance of what was there (Wang, Smith and Hyndman,
"Characteristic-based clustering for time series data", 2006), with one change: a day is compared with the profile of the *other* days.
With few days a profile fits what it was made of, noise included; so pure noise has strength 0, not 1/n. Days begin at local midnight by
one offset for the whole span: an hour's shift of the clocks costs a little strength and is worth no more than that.

| class | when, in this order |
| --- | --- |
| unknown | less than a day is known |
| idle | mean under 2 % and the 99th percentile of peaks under 10 % of its capacity |
| weekly | the day of the week explains half of what days differ by, and they differ by 15 % of the mean |
| daily | the time of day explains 40 % of the variation within days, and that is 10 % of the mean |
| bursty | the 99th percentile of peaks is three times the usual demand |
| steady | half hours differ by less than 20 % of the mean |
| irregular | the rest |

Pure. NaN = unknown: it counts for nothing, and a figure of which too little is known is None.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from coordinator.model import F64
from shared.units import BUCKET_S

WorkloadKind = Literal["unknown", "idle", "weekly", "daily", "bursty", "steady", "irregular"]

SLOT_S: Final = 1800
PER_SLOT: Final = SLOT_S // BUCKET_S
SLOTS: Final = 86_400 // SLOT_S
LEAST_DAYS: Final = 3  # for a strength by day
LEAST_WEEKS: Final = 2
MOST_PEAKS: Final = 3
APART: Final = 4  # slots between two peaks
PLATEAU: Final = 0.9  # a peak lasts while its half hours reach this share of the highest
LIFT: Final = 1.2  # a slot this far above the mean is a peak
DAY_NAMES: Final = ("Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday")  # of day 0 since 1970 on


class Peak(msgspec.Struct, frozen=True, kw_only=True):
    """A time of day at which demand is usually high."""

    minute_of_day: int  # local, of the half hour in which it begins
    minutes: int  # that it lasts
    height: float  # median over the days of the half hour's largest demand
    lift: float  # of the mean


class ResourceProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One resource, in its unit. Strengths and shares 0..1."""

    resource: str
    kind: WorkloadKind
    known: float  # share of the buckets
    mean: float | None
    highest: float | None
    day_strength: float | None
    week_strength: float | None
    peaks: tuple[Peak, ...]  # highest first; () where the time of day says little
    busiest_day: str | None
    burst_ratio: float | None  # 99th percentile of peaks over the median demand
    predictability: float | None  # 1 - mean absolute forecast error over mean demand; None = nothing scored yet
    recommended: float | None  # quantile `level` of the largest demand of an hour
    level: float
    drivers: tuple[str, ...]  # what the recommendation is driven by, in words


def resource_profile(
    resource: str,
    mean: ArrayLike,
    peak: ArrayLike,
    *,
    first_s: int,
    utc_offset_s: int = 0,
    capacity: float = math.nan,
    forecast_mae: float = math.nan,
    level: float = 0.95,
) -> ResourceProfile:
    """`mean`, `peak` float[b]: demand of 5-minute buckets from `first_s` on; `forecast_mae` in their unit; `level` 0.5 to 0.99."""
    means, peaks = np.asarray(mean, np.float64), np.asarray(peak, np.float64)
    if means.ndim != 1 or means.shape != peaks.shape:
        raise ValueError(f"mean {means.shape}, peak {peaks.shape}: allowed are two arrays [b] of one length")
    if not 0.5 <= level <= 0.99:
        raise ValueError(f"level {level}: allowed 0.5 to 0.99")
    tops = np.fmax(means, peaks)
    seen = np.isfinite(means)
    if seen.sum() < 86_400 // BUCKET_S:
        return _unknown(resource, float(seen.mean()) if len(seen) else 0.0, level)
    usual, grid, first_day = float(np.nanmean(means)), *_days(means, first_s + utc_offset_s)
    day, week = day_strength(grid), week_strength(grid, first_day)
    burst = _ratio(_quantile(tops, 0.99), float(np.nanmedian(means)))
    kind = _kind(grid, day, week, burst, usual / capacity, _quantile(tops, 0.99) / capacity)
    found = _peaks(_days(tops, first_s + utc_offset_s)[0], usual) if day is not None and day >= 0.2 else ()
    busiest = _busiest(grid, first_day) if week is not None and week >= 0.3 else None
    recommended = _quantile(_hourly(tops), level)
    return ResourceProfile(
        resource=resource,
        kind=kind,
        known=float(seen.mean()),
        mean=usual,
        highest=float(np.nanmax(tops)),
        day_strength=day,
        week_strength=week,
        peaks=found,
        busiest_day=busiest,
        burst_ratio=burst,
        predictability=None if math.isnan(forecast_mae) or usual <= 0.0 else max(0.0, 1.0 - forecast_mae / usual),
        recommended=recommended,
        level=level,
        drivers=_drivers(found, busiest, week, burst, recommended / usual if usual > 0.0 else math.nan, level),
    )


def day_strength(grid: F64) -> float | None:
    """Share of the variation within days that the profile of the other days explains. `grid` [day, slot]; None = too few days."""
    whole = np.isfinite(grid).sum(axis=1) >= SLOTS // 2
    rows = grid[whole]
    if len(rows) < LEAST_DAYS:
        return None
    within = rows - np.nanmean(rows, axis=1, keepdims=True)
    count, total = np.isfinite(within).sum(axis=0), np.nansum(within, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        others = np.where(count >= 2, (total - within) / (count - 1), np.nan)
    return _explained(within, within - others)


def week_strength(grid: F64, first_day: int) -> float | None:
    """Share of what days differ by that the same weekday of other weeks explains; None = under LEAST_WEEKS of them."""
    days = _day_means(grid)
    weekday = (first_day + np.arange(len(days))) % 7
    away = days - np.nanmean(days) if np.isfinite(days).any() else days
    others = np.full(len(days), np.nan)
    for name in range(7):
        mine = np.flatnonzero((weekday == name) & np.isfinite(days))
        if len(mine) >= LEAST_WEEKS:
            others[mine] = (away[mine].sum() - away[mine]) / (len(mine) - 1)
    compared = np.isfinite(others)
    if len(np.unique(weekday[compared])) < 5:
        return None
    return _explained(away[compared], (away - others)[compared])


def _explained(before: F64, after: F64) -> float:
    both = np.isfinite(before) & np.isfinite(after)
    there = float(np.square(before[both]).sum())
    return 0.0 if there <= 0.0 else max(0.0, 1.0 - float(np.square(after[both]).sum()) / there)


def _days(series: F64, local_s: int) -> tuple[F64, int]:
    """Half hours [day, slot] by local day, NaN where under half of one is known, and the number of the first day since 1970."""
    before = local_s % 86_400 // BUCKET_S
    after = -(before + len(series)) % (86_400 // BUCKET_S)
    slots = np.pad(series, (before, after), constant_values=np.nan).reshape(-1, PER_SLOT)
    count, total = np.isfinite(slots).sum(axis=1), np.nansum(slots, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        half_hours = np.where(count >= PER_SLOT // 2, total / count, np.nan)
    return half_hours.reshape(-1, SLOTS), local_s // 86_400


def _day_means(grid: F64) -> F64:
    count = np.isfinite(grid).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count >= SLOTS // 2, np.nansum(grid, axis=1) / count, np.nan)


def _hourly(tops: F64) -> F64:
    """The largest demand of each hour of the series, NaN where nothing of it is known."""
    hours = np.pad(tops, (0, -len(tops) % (2 * PER_SLOT)), constant_values=np.nan).reshape(-1, 2 * PER_SLOT)
    found: F64 = np.fmax.reduce(hours, axis=1)
    return found


def _peaks(tops: F64, usual: float) -> tuple[Peak, ...]:
    """Times of day of high demand, the highest first, at least APART slots between two."""
    seen = np.isfinite(tops).sum(axis=0) >= 2
    height = np.full(SLOTS, np.nan)
    height[seen] = np.nanmedian(tops[:, seen], axis=0)
    found: list[Peak] = []
    free = np.isfinite(height)
    while len(found) < MOST_PEAKS and free.any():
        top = int(np.argmax(np.where(free, height, -np.inf)))
        if usual <= 0.0 or height[top] < LIFT * usual:
            break
        first = last = top
        while first > 0 and height[first - 1] >= PLATEAU * height[top]:
            first -= 1
        while last < SLOTS - 1 and height[last + 1] >= PLATEAU * height[top]:
            last += 1
        if free[first : last + 1].all():
            minutes = (last - first + 1) * SLOT_S // 60
            high, lift = float(height[top]), float(height[top] / usual)
            found.append(Peak(minute_of_day=first * SLOT_S // 60, minutes=minutes, height=high, lift=lift))
        free[max(0, first - APART) : last + APART + 1] = False
    return tuple(found)


def _busiest(grid: F64, first_day: int) -> str | None:
    days = _day_means(grid)
    weekday = (first_day + np.arange(len(days))) % 7
    means = [float(np.nanmean(mine)) if np.isfinite(mine := days[weekday == name]).any() else -math.inf for name in range(7)]
    return DAY_NAMES[int(np.argmax(means))]


def _kind(grid: F64, day: float | None, week: float | None, burst: float | None, mean_share: float, top_share: float) -> WorkloadKind:  # noqa: PLR0917
    usual = float(np.nanmean(grid))
    if mean_share < 0.02 and top_share < 0.10:
        return "idle"
    within = float(np.nanstd(grid - _day_means(grid)[:, None])) if np.isfinite(_day_means(grid)).any() else 0.0
    between = float(np.nanstd(_day_means(grid))) if np.isfinite(_day_means(grid)).any() else 0.0
    if week is not None and week >= 0.5 and between >= 0.15 * usual:
        return "weekly"
    if day is not None and day >= 0.4 and within >= 0.1 * usual:
        return "daily"
    if burst is not None and burst >= 3.0:
        return "bursty"
    return "steady" if float(np.nanstd(grid)) < 0.2 * usual else "irregular"


def _drivers(  # noqa: PLR0917
    peaks: tuple[Peak, ...], busiest: str | None, week: float | None, burst: float | None, over: float, level: float
) -> tuple[str, ...]:
    said = []
    if math.isfinite(over):
        said.append(f"The largest demand of {100 * level:g} of 100 hours is at most {over:.2f} times the mean.")
    for peak in peaks[:1]:
        at = f"{peak.minute_of_day // 60:02d}:{peak.minute_of_day % 60:02d}"
        said.append(f"It peaks at {at} on most days, at {peak.lift:.2f} times the mean.")
    if busiest is not None and week is not None:
        said.append(f"{busiest} is its busiest day; the day of the week explains {100 * week:.0f} % of what days differ by.")
    if burst is not None and burst >= 3.0 and not peaks:
        said.append(f"Bursts reach {burst:.1f} times the usual demand at no particular time of day.")
    return tuple(said)


def _quantile(values: F64, level: float) -> float:
    return float(np.nanquantile(values, level))


def _ratio(top: float, bottom: float) -> float | None:
    return top / bottom if bottom > 0.0 else None


def _unknown(resource: str, known: float, level: float) -> ResourceProfile:
    return ResourceProfile(
        resource=resource,
        kind="unknown",
        known=known,
        mean=None,
        highest=None,
        day_strength=None,
        week_strength=None,
        peaks=(),
        busiest_day=None,
        burst_ratio=None,
        predictability=None,
        recommended=None,
        level=level,
        drivers=("Less than a day is known.",),
    )
