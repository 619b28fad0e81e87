"""Features of the global model: what a series looks like at one origin, in its own scale, for any (series, origin) pairs in one pass.

Values are (x - anchor) / unit: the anchor is a blend of five simple forecasts by how well each did three buckets ahead of late, the unit
the usual change plus a floor. So one model serves idle and busy VMs of every resource, and trees need not learn the identity. Training
and forecasting run the same kernel on the same arrays: only the pairs differ, so what is learnt is what is asked.

Invariant: finite float32 or NaN (not known; the trees handle it), whatever the data hold; nothing after the origin is read, except the
covariates that are known ahead (calendar, holidays, events; covariates.py). Order of columns: STATIC, then STEP for each of the twelve
steps.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast import feature_kernels as kernels
from coordinator.forecast.calendar import DAY_FEATURES, phases
from coordinator.forecast.covariates import GROUPS, NONE_KNOWN, Covariates
from coordinator.model import F32, F64, N_RESOURCES
from shared.units import BUCKET_S, HORIZON_STEPS

I64 = NDArray[np.int64]

# The smallest change worth telling apart, per resource: 2 millicores, 1 MiB, 1 KiB/s, 8 kbit/s twice. Keeps idle VMs from dividing by 0.
FLOORS: Final = np.array([2.0, 1024.0**2, 1024.0, 8000.0, 8000.0])
LEVEL_FLOOR: Final = 0.005  # ... and half a percent of the level

CALENDAR: Final = ("sin_day", "cos_day", "week_day", "weekend", "slot_of_hour", "hour", *DAY_FEATURES)
STATIC: Final = (*kernels.SERIES_NAMES, *kernels.PEAK_NAMES, "resource", *GROUPS, *kernels.EVENT_NAMES, *kernels.METRIC_NAMES, *CALENDAR)
STEP: Final = kernels.STEP_NAMES
GROUP_COLUMNS: Final = slice(STATIC.index(GROUPS[0]), STATIC.index(GROUPS[0]) + len(GROUPS))


class Features(NamedTuple):
    """Of m (series, origin) pairs; and what turns a prediction back into the data's unit."""

    series: F32  # [m, len(STATIC)]
    steps: F32  # [m, 12, len(STEP)]
    anchor: F64  # [m] of the bucket means
    unit: F64  # [m] positive
    peak_anchor: F64  # [m] of the largest value of the next hour
    peak_unit: F64  # [m] positive
    readings: I64  # [m] in the newest day


def floor_of(level: F64) -> F64:
    """Smallest change that counts, float64[n] for series in [v, r] order flattened."""
    floors = np.tile(FLOORS, len(level) // N_RESOURCES)
    floor: F64 = np.maximum(floors, LEVEL_FLOOR * level)
    return floor


def calendar_of(now_s: I64, known: Covariates = NONE_KNOWN) -> F32:
    """CALENDAR columns float32[m, 12] for origins that start at `now_s` int64[m].

    Time of day and day of the week are UTC: the models learn the local pattern from the data. Month and holidays are the operator's days,
    at the middle of the coming hour.
    """
    different, back = np.unique(now_s, return_inverse=True)
    rows = np.empty((len(different), len(CALENDAR)), dtype=np.float32)
    rows[:, :4] = phases(different)
    rows[:, 4] = different % 3600 // BUCKET_S
    rows[:, 5] = different % 86_400 // 3600
    rows[:, 6:] = known.day_columns(different)
    return rows[back]


def describe(
    means: F32,
    peaks: F32,
    capacity: F64,
    *,
    which: I64,
    ends: I64,
    now_s: I64,
    known: Covariates = NONE_KNOWN,
    groups: F32 | None = None,
    ahead: bool = True,
) -> Features:
    """Features of the pairs (which, ends): series `which[i]` as it looked when bucket `ends[i] - 1` (start `now_s[i]`) was the newest.

    means, peaks float32[n, b] with n = v x r in that order; capacity float64[n] (NaN unknown); `groups` float32[m, 2] what client and
    application of the pairs usually do then (NaN unknown). C-contiguous arrays are read in place: pass a whole ring buffer and `ends`
    rather than a slice of it. `ahead` False: the steps stay unknown, for who asks about the peak alone.
    """
    m = len(which)
    static = np.full((m, len(STATIC)), np.nan, dtype=np.float32)
    steps = np.full((m, HORIZON_STEPS, len(STEP)), np.nan, dtype=np.float32)
    scales = np.zeros((m, 4))
    readings = np.zeros(m, dtype=np.int64)
    which, ends = np.ascontiguousarray(which, dtype=np.int64), np.ascontiguousarray(ends, dtype=np.int64)
    means, peaks = np.ascontiguousarray(means, dtype=np.float32), np.ascontiguousarray(peaks, dtype=np.float32)
    limits = np.ascontiguousarray(capacity, dtype=np.float64)
    kernels.describe(means, peaks, limits, FLOORS, LEVEL_FLOOR, which, ends, ahead, static, steps, scales, readings)
    seconds = np.ascontiguousarray(now_s, dtype=np.int64)
    static[:, STATIC.index("resource")] = which % N_RESOURCES
    if groups is not None:
        static[:, GROUP_COLUMNS] = groups
    _describe_known(
        known, which, ends + ((0 if known.signals is None else known.signals.shape[2]) - means.shape[1]), seconds, static, steps
    )
    static[:, -len(CALENDAR) :] = calendar_of(seconds, known)
    return Features(static, steps, scales[:, 0].copy(), scales[:, 1].copy(), scales[:, 2].copy(), scales[:, 3].copy(), readings)


def _describe_known(  # noqa: PLR0917  (as the kernels)
    known: Covariates, which: I64, told_until: I64, now_s: I64, static: F32, steps: F32
) -> None:
    """Columns of events, signals and holidays, in place; what is not known stays NaN. `told_until`: end of each pair's signals."""
    at = STATIC.index(kernels.EVENT_NAMES[0])
    if known.events is not None:
        told = static[:, at : at + len(kernels.EVENT_NAMES)], steps[:, :, STEP.index("to_event") :]
        kernels.describe_events(*known.events, which, N_RESOURCES, now_s, *told)
    at = STATIC.index(kernels.METRIC_NAMES[0])
    if known.signals is not None:
        signals = np.ascontiguousarray(known.signals, dtype=np.float32)
        kernels.describe_metrics(signals, which, N_RESOURCES, told_until, static[:, at : at + len(kernels.METRIC_NAMES)])
    share = known.days.holiday_ahead(now_s)
    if share is not None:
        steps[:, :, STEP.index("holiday")] = share
