"""Search of the damped trend's gains: a grid, then a search along the axes, for a block of series in step.

The search only compares squared errors, so it runs in float32 on series scaled to mean 0 and deviation 1: twice the lanes a register.
The recursion is written in the forecast p and the damped trend c instead of level and trend: with error e = y - p,
c' = phi c + phi beta e and p' = (p + phi c) + (alpha + phi beta) e, which puts two operations between one error and the next, not four.
What a pass works on lies in one flat array, field after field: LLVM then sees that fields do not overlap, and vectorises without asking
in every bucket (measured: 42 against 80 ns a series and pass).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from coordinator.forecast.kernels.gaps import LANES
from coordinator.model import F32, F64

PHI_MIN: Final = 0.8
PHI_MAX: Final = 0.98  # the bounds of StatsForecast's AutoETS
ALPHA_MIN: Final = 1e-4
ALPHA_MAX: Final = 0.9999
_LOW: Final = (ALPHA_MIN, 1e-4, PHI_MIN)  # of alpha, beta / alpha, phi
_HIGH: Final = (ALPHA_MAX, 0.9999, PHI_MAX)
_TRENDS: Final = ((0.01, 0.98), (0.1, 0.8), (0.1, 0.98), (0.4, 0.8), (0.4, 0.98))  # where beta is small phi hardly counts
_GRID: Final = np.array([(a, *trend) for a in (0.05, 0.2, 0.5, 0.9) for trend in _TRENDS])
_FIELDS: Final = 6  # of the flat array: point, carried, phi, phi beta + alpha, phi beta, squared error


@njit(cache=True)
def scale_block(block: F64, scale: F64, scaled: F32) -> None:
    """Block f64[b, LANES] to mean 0 and deviation 1 in scaled f32[b, LANES]; scale f64[2 LANES] = means, deviations (1 for a constant)."""
    b = block.shape[0]
    scale[:] = 0.0
    for t in range(b):
        row = block[t]
        for j in range(LANES):
            scale[j] += row[j]
    for j in range(LANES):
        scale[j] /= b
    for t in range(b):
        row = block[t]
        for j in range(LANES):
            scale[LANES + j] += (row[j] - scale[j]) * (row[j] - scale[j])
    for j in range(LANES):
        deviation = np.sqrt(scale[LANES + j] / b)
        scale[LANES + j] = deviation if deviation > 0.0 else 1.0
    for t in range(b):
        row = block[t]
        target = scaled[t]
        for j in range(LANES):
            target[j] = np.float32((row[j] - scale[j]) / scale[LANES + j])


@njit(cache=True)
def search_grid(scaled: F32, scale: F64, start: F64, best: F64) -> None:
    """The best point of the grid for each lane, into best f64[3, LANES] = alpha, beta / alpha, phi. start f64[2, LANES] = level, trend."""
    trial, work = np.empty((3, LANES)), np.empty(_FIELDS * LANES, dtype=np.float32)
    least = np.full(LANES, np.inf)
    for g in range(_GRID.shape[0]):
        for k in range(3):
            trial[k, :] = _GRID[g, k]
        _try(scaled, scale, start, trial, work)
        for j in range(LANES):
            if work[5 * LANES + j] < least[j]:
                least[j] = work[5 * LANES + j]
                for k in range(3):
                    best[k, j] = trial[k, j]


@njit(cache=True)
def improve(scaled: F32, scale: F64, start: F64, best: F64, reach: float, rounds: int) -> None:
    """Search along the axes from `best` f64[3, LANES]: a step that helps is taken and grows, one that does not turns back half as long.

    `reach`: the first step of alpha and beta / alpha; a quarter of it for phi.
    """
    trial, work = best.copy(), np.empty(_FIELDS * LANES, dtype=np.float32)
    least, step = np.empty(LANES), np.empty((3, LANES))
    step[:2] = reach
    step[2] = -reach / 4.0
    _try(scaled, scale, start, trial, work)
    least[:] = work[5 * LANES :]
    for turn in range(3 * rounds):
        k = turn % 3
        trial[:] = best
        for j in range(LANES):
            trial[k, j] = min(max(best[k, j] + step[k, j], _LOW[k]), _HIGH[k])
        _try(scaled, scale, start, trial, work)
        for j in range(LANES):
            if work[5 * LANES + j] < least[j]:
                least[j] = work[5 * LANES + j]
                best[k, j] = trial[k, j]
                step[k, j] *= 1.3
            else:
                step[k, j] *= -0.5


@njit(cache=True)
def _try(scaled: F32, scale: F64, start: F64, trial: F64, work: F32) -> None:
    """Squared errors of `trial` into the last field of work f32[_FIELDS LANES]."""
    for j in range(LANES):
        alpha, beta, phi = trial[0, j], trial[0, j] * trial[1, j], trial[2, j]
        carried = phi * start[1, j] / scale[LANES + j]
        work[j] = (start[0, j] - scale[j]) / scale[LANES + j] + carried
        work[LANES + j] = carried
        work[2 * LANES + j] = phi
        work[3 * LANES + j] = alpha + phi * beta
        work[4 * LANES + j] = phi * beta
        work[5 * LANES + j] = 0.0
    _run(scaled, work)


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
def _run(scaled: F32, work: F32) -> None:
    """One pass of the recursion."""
    for t in range(scaled.shape[0]):
        row = scaled[t]
        for j in range(LANES):
            error = row[j] - work[j]
            damped = work[2 * LANES + j] * work[LANES + j]
            work[j] = (work[j] + damped) + work[3 * LANES + j] * error
            work[LANES + j] = damped + work[4 * LANES + j] * error
            work[5 * LANES + j] += error * error
