"""The compiled passes behind features.py: one series at a time, all of its windows in registers and L1, no temporaries per feature.

A window of the newest day is filled (a missing bucket repeats the last known value); sliding ordered windows of 12 and 36 give the medians
of the trials and the newest quantiles alike; everything else is a running sum. Seasonal values are read from the raw arrays, NaN = none.
One file, though long: numba's cache does not notice that a kernel's callee in another file has changed.
"""
# mypy: disallow-untyped-decorators=false
# (numba.njit is untyped)

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.model import F32, F64, SIGNALS
from shared.units import BUCKET_S

I64 = NDArray[np.int64]

DAY: Final = 288
WEEK: Final = 2016
STEPS: Final = 12
DAYS: Final = 7
CLIP: Final = 1e4  # in units: beyond it trees can't tell and need not
BACK: Final = 6  # the newest half hour fixes how far today lies above its profile
FADE: Final = 0.97 ** np.arange(1, STEPS + 1)
LEAD: Final = 3  # the blend is chosen by errors this many buckets ahead
TRIALS: Final = 36
EXPERTS: Final = 5
LAGS: Final = np.array([0, 1, 2, 3, 5, 8, 11])
HALF: Final = 6  # buckets of the blocks that hourly maxima are made of

SERIES_NAMES: Final = (
    *(f"lag_{lag}" for lag in LAGS),
    *("hour_low", "hour_median", "hour_high", "hours3_low", "hours3_q25", "hours3_median", "hours3_q75", "hours3_high"),
    *("hours6_low", "hours6_median", "hours6_high", "day_low", "day_q25", "day_median", "day_q75", "day_high", "day_q97"),
    *("smooth_05", "smooth_15", "smooth_40", "mean_half_hour", "mean_hour", "mean_3_hours", "mean_day", "slope_hour"),
    *("change_hour", "change_3_hours", "deviation_3_hours", "repeats", "memory_1", "memory_hour"),
    *(f"error_{name}" for name in ("last", "smooth_15", "smooth_40", "median_hour", "median_3_hours")),
    *("log_unit", "log_level", "log_capacity", "headroom", "readings", "age"),
)
PEAK_NAMES: Final = (
    *("top_half_hour", "top_hour", "top_2_hours", "top_3_hours", "top_6_hours", "top_day"),
    *("hours8_median", "hours8_q75", "hours8_q90", "tops_day_q25", "tops_day_median", "tops_day_q75", "tops_day_q90"),
    *("peak_now", "peak_ratio", "peak_change"),
    *("top_yesterday", "top_days_median", "top_days_max", "top_last_week", "log_peak_unit"),
)
METRIC_NAMES: Final = tuple(f"{name}_{part}" for name in SIGNALS for part in ("now", "change", "to_hour", "hour", "slope", "yesterday"))
EVENT_NAMES: Final = ("event_in", "event_ago")
STEP_NAMES: Final = (
    *("step", "profile", "profile_lifted", "yesterday", "last_week", "hour_ago", "hours_median", "profile_spread"),
    *("holiday", "to_event", "since_event"),
)


@njit(cache=True)
def _relative(value: float, anchor: float, unit: float) -> float:
    return min(max((value - anchor) / unit, -CLIP), CLIP)  # NaN stays NaN


@njit(cache=True)
def _fill(row: F32, end: int, window: F64) -> tuple[int, int, int]:
    """The newest buckets up to `end`, gaps filled, at the front of `window`: (their number, readings among them, age of the newest)."""
    width = min(end, window.shape[0])
    last, first, readings, age = 0.0, -1, 0, width
    for t in range(width):
        value = float(row[end - width + t])
        if np.isfinite(value):
            last = value
            if first < 0:
                first = t
            readings += 1
            age = width - 1 - t
        window[t] = last
    for t in range(first):
        window[t] = window[first]
    return width, readings, age


@njit(cache=True)
def _insert(ordered: F64, count: int, value: float) -> None:
    """`value` to its place among the first `count` ordered ones."""
    place = count
    while place > 0 and ordered[place - 1] > value:
        ordered[place] = ordered[place - 1]
        place -= 1
    ordered[place] = value


@njit(cache=True)
def _replace(ordered: F64, count: int, old: float, value: float) -> None:
    """One of the `count` ordered values by another."""
    place, target = 0, 0
    for j in range(count):  # counting has no branch to mispredict
        place += ordered[j] < old
        target += ordered[j] < value
    if target > place:
        for j in range(place, target - 1):
            ordered[j] = ordered[j + 1]
        ordered[target - 1] = value
    else:
        for j in range(place, target, -1):
            ordered[j] = ordered[j - 1]
        ordered[target] = value


@njit(cache=True)
def _at(ordered: F64, count: int, level: float) -> float:
    """Quantile of the first `count` ordered values, linear between them."""
    position = level * (count - 1)
    low = int(position)
    high = min(low + 1, count - 1)
    value: float = ordered[low] + (position - low) * (ordered[high] - ordered[low])
    return value


@njit(cache=True)
def _trials(window: F64, width: int, hour: F64, hours3: F64, errors: F64) -> float:
    """Blend of last value, two smoothings and two medians by their errors LEAD ahead over the newest TRIALS buckets; fills `errors` [5].

    Weights are inverse fourth powers of the mean absolute error: near the best one, smooth where they are alike; equal in a short window.
    """
    said = np.zeros((EXPERTS, LEAD + 1))
    errors[:] = 0.0
    start = max(0, width - TRIALS - LEAD)
    n12, n36 = 0, 0
    slow = fast = window[max(start - 36, 0)]
    for t in range(max(start - 36, 0), width):
        value = window[t]
        slow += 0.15 * (value - slow)
        fast += 0.4 * (value - fast)
        if n12 == 12:
            _replace(hour, 12, window[t - 12], value)
        else:
            _insert(hour, n12, value)
            n12 += 1
        if n36 == 36:
            _replace(hours3, 36, window[t - 36], value)
        else:
            _insert(hours3, n36, value)
            n36 += 1
        if t < start:
            continue
        if t - LEAD >= start:
            for k in range(EXPERTS):
                errors[k] += abs(said[k, (t - LEAD) % (LEAD + 1)] - value)
        slot = t % (LEAD + 1)
        said[0, slot], said[1, slot], said[2, slot] = value, slow, fast
        said[3, slot] = 0.5 * (hour[(n12 - 1) // 2] + hour[n12 // 2])
        said[4, slot] = 0.5 * (hours3[(n36 - 1) // 2] + hours3[n36 // 2])
    best = errors.min()
    total, blend = 0.0, 0.0
    slot = (width - 1) % (LEAD + 1)
    for k in range(EXPERTS):
        weight = ((best + 1e-12) / (errors[k] + 1e-12)) ** 4
        total += weight
        blend += weight * said[k, slot]
    blended: float = blend / total
    return blended


@njit(cache=True)
def _windows(window: F64, width: int, hour: F64, hours3: F64, ordered: F64, anchor: float, unit: float, out: F32) -> int:  # noqa: PLR0917
    """Lags and ordered windows (`hour` and `hours3` as _trials left them); number of features written."""
    k = 0
    for lag in LAGS:
        out[k] = _relative(window[max(width - 1 - lag, 0)], anchor, unit)
        k += 1
    for level in (0.1, 0.5, 0.9):
        out[k] = _relative(_at(hour, min(12, width), level), anchor, unit)
        k += 1
    for level in (0.1, 0.25, 0.5, 0.75, 0.9):
        out[k] = _relative(_at(hours3, min(36, width), level), anchor, unit)
        k += 1
    count = 0
    for back in range(0, min(72, width), 2):  # every second bucket of six hours tells their quantiles
        _insert(ordered, count, window[width - 1 - back])
        count += 1
    for level in (0.1, 0.5, 0.9):
        out[k] = _relative(_at(ordered, count, level), anchor, unit)
        k += 1
    count = 0
    for back in range(0, width, 8):  # ... and every eighth those of the day
        _insert(ordered, count, window[width - 1 - back])
        count += 1
    for level in (0.1, 0.25, 0.5, 0.75, 0.9, 0.97):
        out[k] = _relative(_at(ordered, count, level), anchor, unit)
        k += 1
    return k


@njit(cache=True)
def _sums(window: F64, width: int, level: float, anchor: float, unit: float, out: F32) -> int:  # noqa: PLR0917
    """Smoothings, means, changes and autocorrelations; number of features written."""
    slow = middle = fast = window[max(width - 96, 0)]  # what is older weighs below 1 %
    for t in range(max(width - 96, 0), width):
        value = window[t]
        slow += 0.05 * (value - slow)
        middle += 0.15 * (value - middle)
        fast += 0.4 * (value - fast)
    spread, with_last, with_hour, repeats = 0.0, 0.0, 0.0, 0
    for t in range(width):
        centred = window[t] - level
        spread += centred * centred
        if t >= 1:
            with_last += centred * (window[t - 1] - level)
            repeats += window[t] == window[t - 1]
        if t >= 12:
            with_hour += centred * (window[t - 12] - level)
    means = np.zeros(4)  # newest half hour, hour, hour before, three hours
    changes = np.zeros(2)
    square = 0.0
    for back in range(min(36, width)):
        value = window[width - 1 - back]
        change = abs(value - window[max(width - 2 - back, 0)])
        means[0] += value if back < 6 else 0.0
        means[1] += value if back < 12 else 0.0
        means[2] += value if 12 <= back < 24 else 0.0
        means[3] += value
        changes[0] += change if back < 12 else 0.0
        changes[1] += change
        square += (value - anchor) ** 2
    hour, hours3 = min(12, width), min(36, width)
    before = means[2] / max(min(24, width) - 12, 1) if width > 12 else means[1] / hour
    out[0], out[1], out[2] = _relative(slow, anchor, unit), _relative(middle, anchor, unit), _relative(fast, anchor, unit)
    out[3], out[4] = _relative(means[0] / min(6, width), anchor, unit), _relative(means[1] / hour, anchor, unit)
    out[5], out[6] = _relative(means[3] / hours3, anchor, unit), _relative(level, anchor, unit)
    out[7] = _relative(means[1] / hour, before, unit)
    out[8], out[9] = _relative(changes[0] / hour, 0.0, unit), _relative(changes[1] / hours3, 0.0, unit)
    out[10], out[11] = _relative(np.sqrt(square / hours3), 0.0, unit), repeats / width
    out[12], out[13] = (with_last / spread, with_hour / spread) if spread > 0.0 else (0.0, 0.0)
    return 14


@njit(cache=True)
def _tops(row: F32, window: F64, width: int, end: int, ordered: F64, mean_now: float, scale: F64, out: F32) -> int:  # noqa: PLR0917
    """Maxima of half hours to the day, quantiles of hourly maxima, the next hour on earlier days; sets the peak's anchor and unit."""
    change = 0.0
    for t in range(1, width):
        change += abs(window[t] - window[t - 1])
    reach = np.empty(6)
    highest, at = -np.inf, 0
    for back in range(width):
        highest = max(highest, window[width - 1 - back])
        while at < 6 and back + 1 == min((6, 12, 24, 36, 72, DAY)[at], width):
            reach[at] = highest
            at += 1
    hours, count = width // HALF - 1, 0
    quantiles = np.full(7, reach[5])
    before = -np.inf
    for j in range(hours + 1):
        half = -np.inf
        for back in range(j * HALF, j * HALF + HALF):
            half = max(half, window[width - 1 - back])
        top, before = max(half, before), half
        if j == 0:
            continue
        _insert(ordered, count, top)
        count += 1
        if count == min(15, hours):  # the newest eight hours
            quantiles[0], quantiles[1], quantiles[2] = _at(ordered, count, 0.5), _at(ordered, count, 0.75), _at(ordered, count, 0.9)
    if count > 0:
        quantiles[3], quantiles[4] = _at(ordered, count, 0.25), _at(ordered, count, 0.5)
        quantiles[5], quantiles[6] = _at(ordered, count, 0.75), _at(ordered, count, 0.9)
    anchor = 0.5 * (reach[1] + quantiles[0])
    unit = change / width + scale[1]
    scale[2], scale[3] = anchor, unit
    for k in range(6):
        out[k] = _relative(reach[k], anchor, unit)
    for k in range(7):
        out[6 + k] = _relative(quantiles[k], anchor, unit)
    out[13] = _relative(window[width - 1], anchor, unit)
    out[14] = min(max(reach[1] / max(mean_now, 1e-9), 0.0), CLIP)
    out[15] = _relative(change / width, 0.0, scale[1])
    _earlier_tops(row, end, ordered, anchor, unit, out[16:20])
    out[20] = np.log(unit)
    return 21


@njit(cache=True)
def _earlier_tops(row: F32, end: int, ordered: F64, anchor: float, unit: float, out: F32) -> None:  # noqa: PLR0917
    """The largest value of the coming hour yesterday, median and largest over a week, a week ago."""
    out[:] = np.nan
    days = 0
    for d in range(1, DAYS + 1):
        begin = end - d * DAY
        if begin < 0:
            break
        top = -np.inf
        for t in range(begin, begin + STEPS):
            if np.isfinite(row[t]):
                top = max(top, float(row[t]))
        if top > -np.inf:
            _insert(ordered, days, top)
            days += 1
            if d == 1:
                out[0] = _relative(top, anchor, unit)
            if d == DAYS:
                out[3] = _relative(top, anchor, unit)
    if days > 0:
        out[1] = _relative(_at(ordered, days, 0.5), anchor, unit)
        out[2] = _relative(ordered[days - 1], anchor, unit)


@njit(cache=True, error_model="numpy")  # 0 / 0 = NaN: none known
def _seasons(row: F32, end: int, window: F64, width: int, anchor: float, unit: float, out: F32) -> None:  # noqa: PLR0917
    """STEP_NAMES up to profile_spread: [12, 8]."""
    near = np.empty((DAYS, BACK + STEPS))  # smoothed over three buckets
    values, weights = np.empty(BACK + STEPS + 2), np.empty(BACK + STEPS + 2)
    ordered = np.empty(DAYS + 1)
    days = 0
    for d in range(1, DAYS + 1):
        begin = end - d * DAY - BACK
        if begin < 1:
            break
        for c in range(BACK + STEPS + 2):
            value = row[begin + c - 1]
            known_at = np.isfinite(value)
            values[c], weights[c] = (value, 1.0) if known_at else (0.0, 0.0)
        for c in range(BACK + STEPS):
            near[d - 1, c] = (values[c] + values[c + 1] + values[c + 2]) / (weights[c] + weights[c + 1] + weights[c + 2])
        days = d
    shift, known = 0.0, 0
    for c in range(BACK + STEPS):
        count = 0
        for d in range(days):
            if not np.isnan(near[d, c]):
                _insert(ordered, count, near[d, c])
                count += 1
        middle = _at(ordered, count, 0.5) if count > 0 else np.nan
        if c < BACK:
            if count > 0:
                shift += window[max(width - BACK + c, 0)] - middle
                known += 1
            continue
        step = c - BACK
        lifted = middle + (shift / known if known > 0 else 0.0) * FADE[step]
        out[step, 1] = _relative(middle, anchor, unit)
        out[step, 2] = _relative(lifted, anchor, unit)
        out[step, 7] = _relative(_at(ordered, count, 0.8) - _at(ordered, count, 0.2), 0.0, unit) if count > 1 else np.nan
        out[step, 3] = _relative(near[0, c], anchor, unit) if days > 0 else np.nan
        out[step, 4] = _relative(near[DAYS - 1, c], anchor, unit) if days == DAYS else np.nan


@njit(cache=True)
def _hours(window: F64, width: int, anchor: float, unit: float, out: F32) -> None:
    """The same minute an hour ago, and its median over six hours: columns 5 and 6; the step itself: column 0."""
    ordered = np.empty(7)
    for step in range(STEPS):
        out[step, 0] = step + 1
        count = 0
        for hour in range(1, 7):
            t = width - 12 * hour + step
            if t < 0:
                break
            _insert(ordered, count, window[t])
            count += 1
        out[step, 5] = _relative(window[width - 12 + step], anchor, unit) if width >= 12 else np.nan
        out[step, 6] = _relative(_at(ordered, count, 0.5), anchor, unit) if count > 0 else np.nan


@njit(cache=True)
def describe(  # noqa: PLR0917  (numba: no structures)
    means: F32,
    peaks: F32,
    capacity: F64,
    floors: F64,
    level_floor: float,
    which: I64,
    ends: I64,
    ahead: bool,
    static: F32,
    steps: F32,
    scales: F64,
    readings: I64,
) -> None:
    """All but what is known beside demand, for every pair; scales [m, 4] = anchor, unit, peak anchor, peak unit. No reading: stays NaN."""
    window, tops, ordered = np.zeros(DAY), np.zeros(DAY), np.empty(80)
    hour, hours3, errors = np.empty(13), np.empty(37), np.empty(EXPERTS)
    for i in range(which.shape[0]):
        row, end = which[i], ends[i]
        width, found, age = _fill(means[row], end, window)
        readings[i] = found
        scales[i, :] = 1.0
        if found == 0:
            continue
        change, level = 0.0, window[0]
        for t in range(1, width):
            change += abs(window[t] - window[t - 1])
            level += window[t]
        level /= width
        unit = change / width + max(floors[row % floors.shape[0]], level_floor * level)
        anchor = _trials(window, width, hour, hours3, errors)
        scales[i, 0], scales[i, 1] = anchor, unit
        out = static[i]
        k = _windows(window, width, hour, hours3, ordered, anchor, unit, out)
        k += _sums(window, width, level, anchor, unit, out[k:])
        for expert in range(EXPERTS):
            out[k + expert] = _relative(errors[expert] / max(min(width - LEAD, TRIALS), 1), 0.0, unit)
        k += EXPERTS
        limit = capacity[row]
        out[k] = np.log(unit)
        out[k + 1] = np.log1p(max(anchor, 0.0) / unit)
        out[k + 2] = np.log1p(max(limit, 0.0) / unit) if np.isfinite(limit) else np.nan
        out[k + 3] = _relative(limit, anchor, unit) if np.isfinite(limit) else np.nan
        out[k + 4] = found / DAY
        out[k + 5] = age
        k += 6
        width_peaks, found, _ = _fill(peaks[row], end, tops)
        if found == 0:
            tops[:width] = window[:width]
        k += _tops(peaks[row], tops, width_peaks, end, ordered, level, scales[i], out[k:])
        if ahead:
            _seasons(means[row], end, window, width, anchor, unit, steps[i])
            _hours(window, width, anchor, unit, steps[i])


@njit(cache=True)
def describe_events(spans: I64, first: I64, of: I64, which: I64, resources: int, now_s: I64, static: F32, steps: F32) -> None:  # noqa: PLR0917
    """Buckets to the next event and since the last one, at most a day: EVENT_NAMES [m, 2] of the first step, and of each step [m, s, 2].

    Within an event both stay NaN (see covariates.py), and so does what is more than a day away.
    """
    for i in range(which.shape[0]):
        held = of[which[i] // resources]
        if held < 0:
            continue
        own = spans[first[held] : first[held + 1]]
        begin = now_s[i] + BUCKET_S
        last = np.searchsorted(own[:, 0], begin, side="right")  # the first that has not begun
        for step in range(STEPS):
            at = begin + step * BUCKET_S
            while last < own.shape[0] and own[last, 0] <= at:
                last += 1
            if last > 0 and at < own[last - 1, 1]:
                continue
            if last < own.shape[0]:
                _tell(own[last, 0] - at, i, step, 0, static, steps)
            if last > 0:
                _tell(at - own[last - 1, 1] + BUCKET_S, i, step, 1, static, steps)


@njit(cache=True)
def _tell(seconds: int, i: int, step: int, column: int, static: F32, steps: F32) -> None:  # noqa: PLR0917
    if seconds > DAY * BUCKET_S:
        return
    buckets = np.float32(seconds / BUCKET_S)
    if step == 0:
        static[i, column] = buckets
    if steps.shape[1] > 0:
        steps[i, step, column] = buckets


@njit(cache=True)
def describe_metrics(signals: F32, which: I64, resources: int, ends: I64, out: F32) -> None:
    """METRIC_NAMES of pairs whose newest bucket is signals[..., end - 1]: ratios to the day's mean, `to_hour` to the hour's."""
    parts = out.shape[1] // signals.shape[1]
    for i in range(which.shape[0]):
        end = ends[i]
        if end <= 0:
            continue
        if i > 0 and end == ends[i - 1] and which[i] // resources == which[i - 1] // resources:
            out[i] = out[i - 1]  # a tick asks for all resources of a VM in turn
            continue
        for k in range(signals.shape[1]):
            own, found = signals[which[i] // resources, k], out[i, k * parts : (k + 1) * parts]
            level = _mean(own, max(end - DAY, 0), end)
            if not level > 0.0:
                continue
            hour, before = _mean(own, max(end - 12, 0), end), _mean(own, max(end - 24, 0), max(end - 12, 0))
            found[0] = _ratio(own[end - 1], level)
            found[1] = _ratio(own[end - 1] - own[end - 2], level) if end > 1 else np.nan
            found[2] = _ratio(own[end - 1], hour) if hour > 0.0 else np.nan
            found[3] = _ratio(hour, level)
            found[4] = _ratio(hour - before, level)
            found[5] = _ratio(_mean(own, end - DAY, end - DAY + STEPS), level) if end >= DAY else np.nan


@njit(cache=True)
def _ratio(value: float, level: float) -> float:
    return min(max(value / level, -CLIP), CLIP) if np.isfinite(value) else np.nan


@njit(cache=True)
def _mean(row: F32, begin: int, end: int) -> float:
    total, weight = 0.0, 0
    for t in range(begin, end):
        if np.isfinite(row[t]):
            total += row[t]
            weight += 1
    return total / weight if weight > 0 else np.nan
