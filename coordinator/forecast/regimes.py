"""Has the level moved for good? A batched change detector with O(1) state a series, so that rolling windows can restart at the shift.

A median of three hours needs eighteen buckets to follow a step. Each series keeps a slow level and scale of its own; the distance of
every reading from the level, in scales, feeds a two-sided CUSUM (Page, "Continuous inspection schemes", Biometrika 1954) whose steps are
clipped, so that one spike alone never fills it. A shift is declared when the sum passes THRESHOLD and at least CONFIRM readings in a row
lie on its side: a step of 3.5 mean absolute deviations is told with its third reading. The regime begins at the first of them, and level
and scale start anew.

An excursion is no shift: when readings come back nearer to the old level than to the new one within RETURN buckets, the regime from before
goes on as if there had been none; a series that keeps coming back (square waves, hourly jobs) has to confirm longer each time. How often
new levels hold is counted over the fleet, per resource, age and part of the horizon, and told as `hold`: what windows restarted at the
shift say deserves that weight, the unrestricted ones the rest (best as a mixture of distributions: both levels stay possible).

Pure; NaN is no reading and neither confirms nor denies. Shifts told on stationary noise (normal to lognormal(1), autocorrelation to .95):
at most .2 a series and day. A median of three hours so restarted and weighed errs .57x (cpu) and .74x (memory) as much as the unrestricted
one in the three hours after a shift on the Bitbrains trace, five minutes ahead; .76x and .94x an hour ahead.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.forecast.rows import take_rows
from coordinator.model import F64, N_RESOURCES

CONFIRM: Final = 3  # readings on one side before a shift is declared
THRESHOLD: Final = 7.5  # of the CUSUM, in scales
DRIFT: Final = 1.0  # what the CUSUM forgives each reading: a mean absolute deviation
CLIP: Final = 5.0  # no reading counts for more
WARM: Final = 6  # readings of a regime before it can end: its own scale must be known
HOMECOMING: Final = 2  # readings that prove it: the old level is known, so fewer than for a new one
RETURN: Final = 72  # six hours: an excursion that ends within them leaves the regime as it was
STAGES: Final = (6, 12, 24, 48, RETURN)  # last ages of the groups for which it is counted how levels hold
ENDLESS: Final = 1 << 30  # age of a regime whose start was never seen
NEAR: Final = 1.5  # mean distance in scales asked of a run of independent readings
FAR: Final = 4.0  # ... and of readings that repeat each other
_LEVEL_GAIN: Final = 0.04
_SCALE_GAIN: Final = 0.03
_HABIT_DECAY: Final = 0.9985  # half-life 1.6 days of what is remembered of returns
_HABIT_LIMIT: Final = 24.0
_HABIT_STEP: Final = 3.0  # readings more to confirm for each return
_YOUNG_DECAY: Final = 0.9995  # half-life five days of the fleet's counts
_PRIOR_SEEN: Final = 30.0  # the prior counts like so many readings after shifts, of which
_PRIOR_HELD: Final = (0.9, 0.85, 0.8)  # ... so many lay nearer to the new level, by part of the horizon
AHEAD: Final = (2, 5, 10)  # buckets that stand for 5-10, 15-30 and 35-60 minutes
_YOUNG: Final = 4.0  # a scale learned from c readings is widened by 1 + _YOUNG / c
_MEMORY_GAIN: Final = 0.01  # of the autocorrelation
_COLUMNS: Final = 22
_LEVEL, _SCALE, _COUNT, _UP, _DOWN, _RUN, _SUM, _REACH, _SPAN, _BEFORE, _BEFORE_SCALE, _BEFORE_AGE, _HABIT, _AGE = range(14)
_LAST, _CROSS, _POWER, _NEW, _HOME, _BEFORE_COUNT, _ELAPSED, _BACK = range(14, _COLUMNS)


class Regimes(NamedTuple):
    """What the newest bucket says. `age` = buckets since the present level began, counting the newest one: windows may look that far
    back and no further. ENDLESS and a little more where no shift was ever seen."""

    shifted: NDArray[np.bool_]  # [v, r] a shift was declared with this bucket
    hold: F64  # [v, r, 3] probability that readings in 5-10, 15-30, 35-60 minutes lie nearer to the new level; 1 where it is old
    age: NDArray[np.int64]  # [v, r]
    level: F64  # [v, r] of the present regime; NaN before the first reading


class RegimeDetector:
    """State of all series [v, r]. The end of an excursion is not a shift: `age` is again what it would be without it."""

    def __init__(self, *, threshold: float = THRESHOLD, confirm: int = CONFIRM) -> None:
        if not 3.0 <= threshold <= 100.0:
            raise ValueError(f"threshold {threshold}: allowed 3 to 100")
        if not 1 <= confirm <= 12:
            raise ValueError(f"confirm {confirm}: allowed 1 to 12")
        self._threshold, self._confirm = threshold, confirm
        self._state: F64 = np.zeros((0, N_RESOURCES, _COLUMNS))
        self._young: F64 = np.zeros((N_RESOURCES, len(STAGES), len(AHEAD), 2))  # by age: readings seen, nearer to the new level

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet (see rows.take_rows)."""
        self._state = take_rows(self._state, take, 0, 0.0)
        self._state[take < 0, :, _AGE] = float(ENDLESS)
        self._state[take < 0, :, _ELAPSED] = float(ENDLESS)

    def update(self, values: F64, floor: F64) -> Regimes:
        """One bucket: values float64[v, r] (NaN = no reading), floor float64[v, r] > 0 the smallest change that counts.

        Raises ValueError when the shapes are not those of the fleet.
        """
        shape = self._state.shape[:2]
        if values.shape != shape or floor.shape != shape:
            raise ValueError(f"values {values.shape}, floor {floor.shape}: both must be {shape}")
        shifted = np.zeros(shape, dtype=np.bool_)
        flat = self._state.reshape(-1, _COLUMNS)
        self._young *= _YOUNG_DECAY
        _step(
            np.ascontiguousarray(values, np.float64).ravel(),
            np.ascontiguousarray(floor, np.float64).ravel(),
            flat,
            shifted.reshape(-1),
            self._young,
            self._threshold,
            self._confirm,
        )
        level = np.where(self._state[..., _COUNT] > 0, self._state[..., _LEVEL], np.nan)
        age = self._state[..., _AGE].astype(np.int64)
        return Regimes(shifted=shifted, hold=self._hold(age), age=age, level=level)

    def before(self, row: int) -> F64:
        """Level before the present one, float64[r] of VM `row`; NaN = there was none, or the present one has come back since."""
        state = self._state[row]
        known = (state[:, _AGE] < ENDLESS) & np.isfinite(state[:, _BEFORE_AGE])
        level: F64 = np.where(known, state[:, _BEFORE], np.nan)
        return level

    def _hold(self, age: NDArray[np.int64]) -> F64:
        """How often, of late and in this fleet, readings after a shift of this resource and age lay nearer to the new level."""
        seen, near = self._young[..., 0] + _PRIOR_SEEN, self._young[..., 1] + _PRIOR_SEEN * np.array(_PRIOR_HELD)
        by_stage = np.append(near / seen, np.ones((N_RESOURCES, 1, len(AHEAD))), axis=1)
        hold: F64 = by_stage[np.arange(N_RESOURCES), np.searchsorted(np.array(STAGES), age)]
        return hold


@njit(cache=True)
def _step(values: F64, floor: F64, state: F64, shifted: NDArray[np.bool_], young: F64, threshold: float, confirm: int) -> None:  # noqa: PLR0917  (numba: no keyword-only)
    for i in range(values.shape[0]):
        s = state[i]
        s[_AGE] = min(s[_AGE] + 1.0, 2.0 * ENDLESS)
        s[_BEFORE_AGE] += 1.0
        s[_SPAN] += 1.0  # buckets since the run began, gaps included
        s[_HABIT] *= _HABIT_DECAY
        s[_ELAPSED] = min(s[_ELAPSED] + 1.0, 2.0 * ENDLESS)
        x = values[i]
        if not np.isfinite(x):
            continue
        if s[_COUNT] == 0.0:
            s[_LEVEL] = x
            s[_COUNT] = 1.0
            continue
        _witness(s, x, young[i % N_RESOURCES])
        if _home(s, x):
            continue
        scale = max(s[_SCALE], floor[i])
        z = min(max((x - s[_LEVEL]) / (scale * (1.0 + _YOUNG / s[_COUNT])), -CLIP), CLIP)
        s[_UP] = max(0.0, s[_UP] + z - DRIFT)
        s[_DOWN] = max(0.0, s[_DOWN] - z - DRIFT)
        _run(s, x, z)
        reach = _asked(s, z)
        passed = (s[_UP] if z > 0.0 else s[_DOWN]) >= threshold and abs(s[_RUN]) >= confirm + s[_HABIT]
        if s[_COUNT] >= WARM and passed and s[_REACH] >= reach * abs(s[_RUN]):
            _begin(s, floor[i])
            shifted[i] = True
            continue
        gain = max(1.0 / (s[_COUNT] + 1.0), _LEVEL_GAIN)
        off = abs(x - s[_LEVEL])
        bound = CLIP * scale if s[_COUNT] >= WARM else np.inf
        s[_SCALE] += max(1.0 / s[_COUNT], _SCALE_GAIN) * (min(off, bound) - s[_SCALE])
        # a warm level follows at most two scales at once: a spike must not carry it away
        s[_LEVEL] += gain * (x - s[_LEVEL] if off < 2.0 * scale or s[_COUNT] < WARM else np.sign(z) * 2.0 * scale)
        s[_COUNT] += 1.0


@njit(cache=True)
def _run(s: F64, x: float, z: float) -> None:
    """Follow the readings in a row beyond DRIFT on one side. A jump begins anew: what lay before it was noise, not the new level."""
    side = 1.0 if z > DRIFT else (-1.0 if z < -DRIFT else 0.0)
    if side == 0.0:
        s[_RUN] = 0.0
    elif side * s[_RUN] > 0.0 and not (abs(z) > 3.0 and s[_REACH] < 0.5 * abs(z * s[_RUN])):
        s[_RUN] += side
        s[_SUM] += x
        s[_REACH] += abs(z)
    else:
        s[_RUN] = side
        s[_SUM] = x
        s[_REACH] = abs(z)
        s[_SPAN] = 1.0


@njit(cache=True)
def _asked(s: F64, z: float) -> float:
    """Mean distance asked of a run, in scales. Readings that follow each other (autocorrelation) prove less together than apart."""
    small = min(max(z, -3.0), 3.0)
    gain = max(1.0 / s[_COUNT], _MEMORY_GAIN)
    s[_CROSS] += gain * (small * s[_LAST] - s[_CROSS])
    s[_POWER] += gain * (small * small - s[_POWER])
    s[_LAST] = small
    memory = min(max(s[_CROSS] / s[_POWER], 0.0), 1.0) if s[_POWER] > 0.0 else 0.0
    return FAR * memory + NEAR * (1.0 - memory)


@njit(cache=True)
def _witness(s: F64, x: float, young: F64) -> None:
    """Count, for each part of the horizon in which this reading was ahead of a young regime, whether it lies nearer to that level."""
    for g in range(len(AHEAD)):
        origin = s[_ELAPSED] - AHEAD[g]
        if CONFIRM <= origin <= RETURN and origin < s[_BACK]:
            stage = 0
            while origin > STAGES[stage]:
                stage += 1
            young[stage, g, 0] += 1.0
            young[stage, g, 1] += 1.0 if abs(x - s[_NEW]) <= abs(x - s[_BEFORE]) else 0.0


@njit(cache=True)
def _home(s: F64, x: float) -> bool:
    """True when a young regime ended where the one before it was: HOMECOMING readings nearer to the old level than to the new one."""
    if s[_BEFORE_AGE] <= 0.0 or s[_AGE] > RETURN:
        return False
    s[_HOME] = s[_HOME] + 1.0 if abs(x - s[_BEFORE]) < abs(x - s[_NEW]) else 0.0
    if s[_HOME] < HOMECOMING:
        return False
    s[_LEVEL], s[_SCALE], s[_COUNT], s[_AGE] = s[_BEFORE], s[_BEFORE_SCALE], s[_BEFORE_COUNT], s[_BEFORE_AGE]
    s[_BEFORE_AGE] = -np.inf
    s[_BACK] = s[_ELAPSED]
    s[_UP] = 0.0
    s[_DOWN] = 0.0
    s[_RUN] = 0.0
    s[_HABIT] = min(s[_HABIT] + _HABIT_STEP, _HABIT_LIMIT)
    return True


@njit(cache=True)
def _begin(s: F64, floor: float) -> None:
    """The run becomes the regime."""
    run = abs(s[_RUN])
    fresh = s[_SUM] / run
    s[_BEFORE], s[_BEFORE_SCALE], s[_BEFORE_COUNT], s[_BEFORE_AGE] = s[_LEVEL], s[_SCALE], s[_COUNT], s[_AGE]
    # noise tends to grow with the level: until the new regime has shown its own, expect it in proportion
    ratio = min(max(abs(fresh) / max(abs(s[_LEVEL]), floor), 0.5), 4.0)
    s[_SCALE] = max(s[_SCALE], floor) * ratio
    s[_LEVEL] = fresh
    s[_NEW] = fresh
    s[_HOME] = 0.0
    s[_COUNT] = run
    s[_AGE] = s[_SPAN]
    s[_ELAPSED] = s[_SPAN]
    s[_BACK] = np.inf
    s[_UP] = 0.0
    s[_DOWN] = 0.0
    s[_RUN] = 0.0
