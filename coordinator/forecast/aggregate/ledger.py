"""State per group: sums over its members now, what was said of them, and what the group learned of itself. Pure.

`sums`, `plain` and `unit` are always those of the present members, re-summed from the members' own past when they change; all
else is kept in the group's unit, so that it stays valid when members come and go. Bounded: about 17 KB a resource and group.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.aggregate.laws import PART_STARTS, PARTS, TAU
from coordinator.forecast.aggregate.store import WINDOW
from coordinator.forecast.rows import take_rows
from coordinator.model import F32, F64, N_RESOURCES
from shared.units import HORIZON_STEPS

CENTRE_FEATURES: Final = 6
WIDTH_FEATURES: Final = 6
ERROR_DECAY: Final = 0.97  # own error memory: half-life 23 buckets
COVERAGE_DECAY: Final = 0.986
LOSS_DECAY: Final = 0.99
FLEET_EVIDENCE: Final = 100.0
SHARPNESS: Final = 16.0  # a ratio of .95 gives a share of .6, 1.05 one of .2
HANDICAP: Final = 1.03  # to lean must pay before it is done
_STEPS: Final = np.arange(HORIZON_STEPS)
_BY_TIME: Final = ("sums", "plain", "unit", "shift", "beside", "lean", "width", "centre_x", "width_x", "band")
_BY_GROUP: Final = ("bias", "errors", "weight", "losses", "offset", "peak_offset", "covered", "heard")


class GroupLedger:
    """Arrays over groups. g group, i issue (ring of twelve), h step, p feature, c part of the horizon."""

    def __init__(self) -> None:
        r, h, i = N_RESOURCES, HORIZON_STEPS, HORIZON_STEPS
        self.sums: F64 = np.full((WINDOW, 0, r), np.nan)  # demand of the members, ring as MemberStore.demand
        self.plain: F64 = np.full((i, 0, r, h), np.nan)  # sum of the members' means, ring as MemberStore.mean
        self.unit: F64 = np.full((i, 0, r, h), np.nan)  # root of the sum of their variances
        self.shift: F32 = np.full((i, 0, r, h), np.nan, dtype=np.float32)  # centre minus plain, in widths
        self.beside: F32 = np.full((i, 0, r, h, len(TAU)), np.nan, dtype=np.float32)  # the members' law minus plain, in widths
        self.lean: F32 = np.full((i, 0, r, h), np.nan, dtype=np.float32)  # the same if the centre's law were followed in full
        self.width: F32 = np.full((i, 0, r, h), np.nan, dtype=np.float32)  # usual size of an error, in units
        self.centre_x: NDArray[np.float16] = np.full((i, 0, r, h, CENTRE_FEATURES), np.nan, dtype=np.float16)
        self.width_x: NDArray[np.float16] = np.full((i, 0, r, h, WIDTH_FEATURES), np.nan, dtype=np.float16)
        self.band: F32 = np.full((i, 0, r, h, 2), np.nan, dtype=np.float32)  # the central 80 %, in widths
        self.bias: F64 = np.zeros((0, r, PARTS))  # decayed sums of signed and absolute errors in units, and their weight
        self.errors: F64 = np.zeros((0, r, PARTS))
        self.weight: F64 = np.zeros((0, r, PARTS))
        self.losses: F64 = np.zeros((0, r, PARTS, 2))  # decayed absolute errors in widths: plain, and leaning in full
        self.offset: F64 = np.zeros((0, r, h, len(TAU)))
        self.peak_offset: F64 = np.zeros((0, r, h, len(TAU)))
        self.covered: F64 = np.zeros((0, r))
        self.heard: F64 = np.zeros((0, r))

    def __len__(self) -> int:
        return len(self.bias)

    def rearrange(self, take: NDArray[np.int64]) -> None:
        """Rows as in rows.take_rows."""
        for name in _BY_TIME:
            setattr(self, name, take_rows(getattr(self, name), take, 1, np.nan))
        for name in _BY_GROUP:
            setattr(self, name, take_rows(getattr(self, name), take, 0, 0.0))

    def forget_issues(self) -> None:
        """Nothing said so far is to be scored."""
        self.width[:] = np.nan

    def fade(self, rows: NDArray[np.int64], keep: F64) -> None:
        """Own lessons of groups that changed: `keep` float64[len(rows)] = share of their members that stayed."""
        for name in _BY_GROUP:
            array = getattr(self, name)
            array[rows] *= keep.reshape(-1, *[1] * (array.ndim - 1))

    def own_bias(self) -> F64:
        """Mean error of late in units, leaning to 0 while there is little evidence: float64[g, r, c]."""
        own: F64 = self.bias / (self.weight + 6.0)
        return own

    def own_error(self) -> F64:
        """Mean absolute error of late in units; NaN while there is little evidence: float64[g, r, c]."""
        with np.errstate(invalid="ignore", divide="ignore"):
            own: F64 = np.where(self.weight >= 3.0, self.errors / self.weight, np.nan)
        return own

    def remember(self, plain_error: F64, error: F64) -> None:
        """Errors in units float64[g, r, h] of the plain sum of means (for the bias) and of the centre (for the width); NaN = none."""
        known = ~np.isnan(error) & ~np.isnan(plain_error)
        count = np.add.reduceat(known.astype(np.float64), PART_STARTS, axis=-1)
        scored = count > 0
        held = np.where(scored, ERROR_DECAY, 1.0)
        signed, size = (
            np.add.reduceat(np.where(known, values, 0.0), PART_STARTS, axis=-1) / np.maximum(count, 1.0)
            for values in (plain_error, np.abs(error))
        )
        self.bias = self.bias * held + signed
        self.errors = self.errors * held + size
        self.weight = self.weight * held + scored

    def compare(self, plain_error: F64, lean: F64) -> None:
        """Score the plain sum against leaning in full: float64[g, r, h] in widths, NaN = none."""
        known = ~np.isnan(plain_error)
        pair = np.stack([np.abs(plain_error), np.abs(plain_error - lean)], axis=-1)
        loss = np.add.reduceat(np.where(known[..., None], pair, 0.0), PART_STARTS, axis=2)
        scored = np.logical_or.reduceat(known, PART_STARTS, axis=-1)[..., None]
        self.losses = self.losses * np.where(scored, LOSS_DECAY, 1.0) + loss

    def trust(self) -> F64:
        """How far each group leans, float64[g, r, c] in 0..1: its own score, shrunk to that of all groups."""
        everybody = self.losses.sum(axis=0)
        shared = everybody * FLEET_EVIDENCE / np.maximum(everybody[..., :1] / max(1, len(self)), 1e-9)
        # the fleet's ratio counts like FLEET_EVIDENCE units of loss
        own = self.losses + shared / max(1, len(self))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(own[..., 0] > 0, own[..., 1] / own[..., 0], 1.0)
        ratio = np.where(self.losses[..., 0] + everybody[..., 0] > 0, ratio * HANDICAP, 10.0)
        share: F64 = 1.0 / (1.0 + np.minimum(ratio, 10.0) ** SHARPNESS)
        return share

    def cover(self, scaled: F64, band: F64) -> None:
        """Count what fell into the band that was issued: both in widths, [g, r, h] and [g, r, h, 2]."""
        known = ~np.isnan(scaled) & ~np.isnan(band[..., 0])
        inside = known & (scaled >= band[..., 0]) & (scaled <= band[..., 1])
        count = known.sum(axis=-1)
        held = COVERAGE_DECAY ** (count / HORIZON_STEPS)
        self.covered = self.covered * held + inside.sum(axis=-1) / HORIZON_STEPS
        self.heard = self.heard * held + count / HORIZON_STEPS
