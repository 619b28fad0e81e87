"""Features of the global model: what a series looks like at one origin, in its own scale, for any (series, origin) pairs in one pass.

Values are (x - anchor) / unit: the anchor is a blend of five simple forecasts by how well each did three buckets ahead of late, the unit
the usual change plus a floor. So one model serves idle and busy VMs of every resource, and trees need not learn the identity. Training
and forecasting run the same kernel on the same arrays: only the pairs differ, so what is learnt is what is asked.

Invariant: finite float32 or NaN (not known; the trees handle it), whatever the data hold; nothing after the origin is read, except the
covariates that are known ahead (calendar, holidays, events). Order of columns: STATIC, then STEP for each of the twelve steps.
"""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast import feature_kernels as kernels
from coordinator.forecast.calendar import phases
from coordinator.model import F32, F64, N_RESOURCES
from shared.units import BUCKET_S, HORIZON_STEPS

I64 = NDArray[np.int64]

# The smallest change worth telling apart, per resource: 2 millicores, 1 MiB, 1 KiB/s, 8 kbit/s twice. Keeps idle VMs from dividing by 0.
FLOORS: Final = np.array([2.0, 1024.0**2, 1024.0, 8000.0, 8000.0])
LEVEL_FLOOR: Final = 0.005  # ... and half a percent of the level
METRICS: Final = ("tps", "queue")  # application metrics, one optional series a VM each

CALENDAR: Final = ("sin_day", "cos_day", "week_day", "weekend", "slot_of_hour", "hour", "day_of_month", "days_to_month_end")
STATIC: Final = (*kernels.SERIES_NAMES, *kernels.PEAK_NAMES, "resource", "class", *kernels.METRIC_NAMES, *CALENDAR)
STEP: Final = kernels.STEP_NAMES


@dataclass(frozen=True, kw_only=True)
class Covariates:
    """What else is known, all of it optional. v VMs, b buckets as in the demand arrays; a series belongs to VM `series // N_RESOURCES`.

    `holiday` float32[v or 1, b + 12] and `event` float32[v or 1, b + 12] (0 none, 1 certain, between: strength) reach twelve buckets
    beyond the newest; `tps`, `queue` float32[v, b]; `group` int64[v] names the client or application of each VM, negative = none.
    NaN = not known.
    """

    holiday: F32 | None = None
    event: F32 | None = None
    tps: F32 | None = None
    queue: F32 | None = None
    group: I64 | None = None

    def checked(self, v: int, b: int) -> Covariates:
        """Itself. Raises ValueError naming the array whose shape is not that of v VMs and b buckets."""
        for name, rows, columns in (
            ("holiday", (1, v), b + HORIZON_STEPS),
            ("event", (1, v), b + HORIZON_STEPS),
            ("tps", (v,), b),
            ("queue", (v,), b),
        ):
            array = getattr(self, name)
            if array is not None and (array.ndim != 2 or array.shape[0] not in rows or array.shape[1] != columns):
                raise ValueError(f"{name} {array.shape}: allowed ({' or '.join(map(str, rows))}, {columns})")
        if self.group is not None and self.group.shape != (v,):
            raise ValueError(f"group {self.group.shape}: allowed ({v},)")
        return self


NONE_KNOWN: Final = Covariates()


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


def calendar_of(now_s: I64) -> F32:
    """CALENDAR columns float32[m, 8] for origins that start at `now_s` int64[m]; UTC: the models learn the local pattern from the data."""
    different, back = np.unique(now_s, return_inverse=True)
    rows = np.empty((len(different), len(CALENDAR)), dtype=np.float32)
    rows[:, :4] = phases(different)
    rows[:, 4] = different % 3600 // BUCKET_S
    rows[:, 5] = different % 86_400 // 3600
    for i, second in enumerate(different.tolist()):
        day = datetime.fromtimestamp(second, UTC)
        rows[i, 6] = day.day
        rows[i, 7] = calendar.monthrange(day.year, day.month)[1] - day.day
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
    groups: dict[int, float] | None = None,
    ahead: bool = True,
) -> Features:
    """Features of the pairs (which, ends): series `which[i]` as it looked when bucket `ends[i] - 1` (start `now_s[i]`) was the newest.

    means, peaks float32[n, b] with n = v x r in that order; capacity float64[n] (NaN unknown); `groups` maps group ids to their learnt
    value. C-contiguous arrays are read in place: pass a whole ring buffer and `ends` rather than a slice of it. `ahead` False: the steps
    stay unknown, for who asks about the peak alone.
    """
    m = len(which)
    static = np.full((m, len(STATIC)), np.nan, dtype=np.float32)
    steps = np.full((m, HORIZON_STEPS, len(STEP)), np.nan, dtype=np.float32)
    scales = np.zeros((m, 4))
    readings = np.zeros(m, dtype=np.int64)
    empty = np.zeros((0, 0), dtype=np.float32)
    dates = [empty if array is None else np.ascontiguousarray(array, dtype=np.float32) for array in (known.holiday, known.event)]
    metrics = [empty if array is None else np.ascontiguousarray(array, dtype=np.float32) for array in (known.tps, known.queue)]
    which, ends = np.ascontiguousarray(which, dtype=np.int64), np.ascontiguousarray(ends, dtype=np.int64)
    means, peaks = np.ascontiguousarray(means, dtype=np.float32), np.ascontiguousarray(peaks, dtype=np.float32)
    limits = np.ascontiguousarray(capacity, dtype=np.float64)
    kernels.describe(means, peaks, limits, FLOORS, LEVEL_FLOOR, which, ends, ahead, static, steps, scales, readings)
    if ahead:
        kernels.describe_ahead(means, which, ends, dates[0], dates[1], N_RESOURCES, scales, steps)
    at = len(kernels.SERIES_NAMES) + len(kernels.PEAK_NAMES)
    static[:, at] = which % N_RESOURCES
    if known.group is not None and groups:
        value = np.array([groups.get(int(group), np.nan) for group in known.group], dtype=np.float32)
        static[:, at + 1] = value[which // N_RESOURCES]
    kernels.describe_metrics(metrics[0], metrics[1], which // N_RESOURCES, ends, static[:, at + 2 : at + 2 + len(kernels.METRIC_NAMES)])
    static[:, -len(CALENDAR) :] = calendar_of(np.asarray(now_s, dtype=np.int64))
    return Features(static, steps, scales[:, 0].copy(), scales[:, 1].copy(), scales[:, 2].copy(), scales[:, 3].copy(), readings)
