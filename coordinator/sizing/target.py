"""How much: the calibrated quantile of the peak within the horizon that the lever needs.

The horizon covers the lead time plus one cycle: what is decided now must hold until the next decision has taken effect.
The quantile rises with priority and with the burn rate of the VM's error budget.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from coordinator.model import F64, NoForecast
from coordinator.sizing.policy import SizingPolicy
from shared.units import BUCKET_S, HORIZON_STEPS

UNUSABLE = frozenset({NoForecast.ALL_UNKNOWN, NoForecast.GAP, NoForecast.OUT_OF_CALIBRATION})


def last_step(policy: SizingPolicy, resource: int, lead_s: float) -> int:
    """Index of the last step whose peak counts: the knob, or lead time + one cycle when that is longer."""
    needed = int(-(-(lead_s + policy.cycle_s) // BUCKET_S))
    return min(HORIZON_STEPS, max(policy.steps[resource], needed)) - 1


def raised(quantile: float, burn_rate: float, policy: SizingPolicy, top: float) -> float:
    """The quantile, moved towards `top` as the burn rate goes from 1 to `burn_full`. Unknown burn changes nothing."""
    if not burn_rate > 1.0 or quantile >= top:
        return quantile
    return quantile + (top - quantile) * min(1.0, (burn_rate - 1.0) / (policy.burn_full - 1.0))


def interpolate(values: F64, levels: tuple[float, ...], wanted: F64) -> F64:
    """Quantile at level `wanted` [...] from `values` [..., q] at `levels`: linear between levels, held flat outside them."""
    grid = np.asarray(levels, np.float64)
    want = np.clip(wanted, grid[0], grid[-1])
    right = np.clip(np.searchsorted(grid, want), 1, len(grid) - 1)
    weight = (want - grid[right - 1]) / (grid[right] - grid[right - 1])
    below = np.take_along_axis(values, (right - 1)[..., None], -1)[..., 0]
    above = np.take_along_axis(values, right[..., None], -1)[..., 0]
    result: F64 = np.where(weight <= 0.0, below, np.where(weight >= 1.0, above, below + weight * (above - below)))
    return result


def at_level(values: F64, levels: tuple[float, ...], level: float) -> F64:
    """`interpolate` at one level for all, [...]; a tenth of its time for a few values."""
    want = min(max(level, levels[0]), levels[-1])
    right = max(bisect_left(levels, want), 1)
    weight = (want - levels[right - 1]) / (levels[right] - levels[right - 1])
    below, above = values[..., right - 1], values[..., right]
    if weight <= 0.0:
        return below
    return above if weight >= 1.0 else below + weight * (above - below)
