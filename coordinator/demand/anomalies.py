"""Buckets that should not teach: one-off spikes and drop-outs, told from bursts that recur and from changes of level. Pure, O(1) a bucket.

Each series keeps a robust level and a usual deviation (exponential, both fed with clipped deviations, so that a spike hardly moves them),
and an envelope on each side: the largest deviation met, which fades by half in two and a half days. A bucket is an anomaly when it deviates
by more than THRESHOLD usual deviations and by more than 1.5 times the envelope. What happened once is thereby part of the picture: the
same burst tomorrow is no anomaly. The third bucket in a row on the same side is a change of level: it is no anomaly, the level jumps to
the median of the three, and `shifted` says that the two buckets before were flagged in error. Its return is then no anomaly either.
Flags concern training only: alerts and sizes must see the bucket as it was. Training sees it clipped to the edge of what is usual, so that
even two buckets of a real change are not lost altogether.
Invariants: never more than two flags in a row; unknown stays NaN and unflagged; the first hour flags nothing; a cleaned value lies between
the level and the value; the same calls give the same bytes.
Source: Hampel, "The influence curve and its role in robust estimation", JASA 69 (1974); Huber, Robust Statistics, 1981 (clipped updates).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F64, N_RESOURCES
from shared.units import KIB, MIB

THRESHOLD: Final = 8.0  # mean absolute deviations, about 6.4 standard deviations of a normal series
ENVELOPE: Final = 1.5
PERSISTENCE: Final = 3  # buckets on one side that make a new level
WARM: Final = 12  # readings before anything is flagged: one hour
_LEVEL_RATE: Final = 0.1  # follows a slow ramp within two hours
_SCALE_RATE: Final = 0.05
_CLIP: Final = 3.0  # usual deviations: one bucket moves the level by 0.3 of them at most
_FADE: Final = 2.0 ** (-1.0 / 720.0)  # after a day .76 is left: 1.5 times that still covers the same burst
_LEVEL_FLOOR: Final = 0.02  # deviations below this share of the level never matter
# and none below these: 10 millicores, 16 MiB, 32 KiB/s, 64 kbit/s
_FLOORS: Final = np.array([10.0, 16.0 * MIB, 32.0 * KIB, 64e3, 64e3])

# _PENDING: largest deviation of the run that is going on; it joins the envelope of its side when the run ends, both when it is a new level.
_PLANES: Final = 8
_LEVEL, _SCALE, _UP, _DOWN, _PENDING, _FIRST, _SECOND, _READINGS = range(_PLANES)


class Cleaned(NamedTuple):
    """`value` float64[v, r] to train on; `anomalous`, `shifted` bool[v, r]: a one-off; a new level, two buckets old."""

    value: F64
    anomalous: NDArray[np.bool_]
    shifted: NDArray[np.bool_]


class AnomalyFilter:
    """State of every series of a fleet: 65 bytes each, 3.3 MB for 10,000 VMs."""

    def __init__(self, vms: int = 0) -> None:
        self._planes: F64 = np.full((_PLANES, vms, N_RESOURCES), np.nan)
        self._planes[_READINGS] = 0.0
        self._run: NDArray[np.int8] = np.zeros((vms, N_RESOURCES), dtype=np.int8)  # buckets in a row beyond the threshold, signed

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Follow the fleet: new row i is old row take[i], or a fresh one where take[i] is negative."""
        old = AnomalyFilter(len(take))
        kept = take >= 0
        old._planes[:, kept] = self._planes[:, take[kept]]
        old._run[kept] = self._run[take[kept]]
        self._planes, self._run = old._planes, old._run

    def clean(self, values: F64) -> Cleaned:
        """Take in one bucket, float64[v, r] (NaN = unknown), of every row. Raises ValueError for another shape."""
        if values.shape != self._run.shape:
            raise ValueError(f"values {values.shape}: the filter holds {self._run.shape}")
        planes, known = self._planes, np.isfinite(values)
        fresh = known & (planes[_READINGS] == 0)
        np.copyto(planes[_LEVEL], values, where=fresh)
        for plane in (_SCALE, _UP, _DOWN, _PENDING):
            np.copyto(planes[plane], 0.0, where=fresh)
        with np.errstate(invalid="ignore"):
            usual = np.maximum(planes[_SCALE], np.maximum(_FLOORS, _LEVEL_FLOOR * np.abs(planes[_LEVEL])))
            off = values - planes[_LEVEL]
            edge = np.maximum(THRESHOLD * usual, ENVELOPE * np.where(off > 0, planes[_UP], planes[_DOWN]))
            beyond = known & (np.abs(off) > edge) & (planes[_READINGS] >= WARM)
        side = np.where(beyond, np.sign(np.nan_to_num(off)), 0.0).astype(np.int8)
        same = (self._run * side) > 0
        run = np.where(known, np.where(same, self._run + side, side), self._run).astype(np.int8)  # a gap ends no run
        shifted = np.abs(run) >= PERSISTENCE
        anomalous = beyond & ~shifted
        value = np.where(anomalous, planes[_LEVEL] + np.clip(off, -edge, edge), values)
        self._spread_envelopes(off, known, run, shifted)
        self._learn(values, usual, off, shifted)
        self._run = np.where(shifted, 0, run).astype(np.int8)
        planes[_FIRST], planes[_SECOND] = np.where(known, planes[_SECOND], planes[_FIRST]), np.where(known, values, planes[_SECOND])
        planes[_READINGS] += known
        return Cleaned(value, anomalous, shifted)

    def _learn(self, values: F64, usual: F64, off: F64, shifted: NDArray[np.bool_]) -> None:
        """Move level, usual deviation and envelopes; `_FIRST` and `_SECOND` are the two readings before this one."""
        planes, known = self._planes, np.isfinite(values)
        early = planes[_READINGS] < WARM  # the plain mean at first: the level of one odd first bucket must not last
        rate = np.where(early, 1.0 / (planes[_READINGS] + 1.0), _LEVEL_RATE)
        clipped = np.where(early, off, np.clip(off, -_CLIP * usual, _CLIP * usual))
        first, second = planes[_FIRST], planes[_SECOND]
        middle = np.maximum(np.minimum(first, second), np.minimum(np.maximum(first, second), values))
        level = np.where(shifted, middle, planes[_LEVEL] + rate * clipped)
        scale = planes[_SCALE] + np.maximum(rate / 2.0, _SCALE_RATE) * (np.abs(clipped) - planes[_SCALE])
        np.copyto(planes[_LEVEL], level, where=known)
        np.copyto(planes[_SCALE], scale, where=known)

    def _spread_envelopes(self, off: F64, known: NDArray[np.bool_], run: NDArray[np.int8], shifted: NDArray[np.bool_]) -> None:
        """Fade both envelopes and let them hold what was met. `run` is the run after this bucket, `self._run` the one before."""
        planes = self._planes
        ended = (self._run * run <= 0) & (self._run != 0)
        ordinary = known & (run == 0)
        distance = np.nan_to_num(off)
        longest = np.where(ended, np.abs(distance), np.maximum(planes[_PENDING], np.abs(distance)))
        jump = np.where(shifted, longest, 0.0)  # what went up comes down again, and may be back tomorrow
        for plane, sign in ((_UP, 1), (_DOWN, -1)):
            burst = np.where(ended & (self._run * sign > 0), planes[_PENDING], 0.0)
            met = np.maximum(np.maximum(burst, jump), np.where(ordinary, sign * distance, 0.0))
            np.copyto(planes[plane], np.maximum(planes[plane] * _FADE, met), where=known)
        np.copyto(planes[_PENDING], np.where((run == 0) | shifted, 0.0, longest), where=known)
