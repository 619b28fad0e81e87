"""How much at a price: every VM of a host is raised along its own peak distribution until the next unit saves too little.

Minimises  sum over VMs of weight * P(peak > size)  +  price * sum of sizes / capacity  for one resource of one host: the newsvendor's
problem (Arrow, Harris, Marschak 1951) with one price for all, so that the marginal risk is equal. A small or steady VM gets a level near 1
because that costs next to nothing; a large and jumpy one gets less. When the sizes do not fit, shortage.py says who goes short.
Worked: capacity 10,000, price 12: one unit costs 0.0012. A VM whose chance of a higher peak falls from 10 to 1 % over the next 50 units
gets them (0.09 > 0.06); one that would need 200 units for the same does not (0.09 < 0.24).
Invariant: floor <= size <= top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.model import F64

# Levels below the median are no sizes. Between two levels the chance of a higher peak falls exponentially, three points each.
LEAST_LEVEL: Final = 0.5
POINTS: Final = 3
# Beyond the last level the tail is exponential with the steeper of the last two levels' scales, at least 1 % of the value.
TAIL: Final = np.concatenate([[0.0], np.geomspace(0.1, 5.0, 14)])
TAIL_LEAST: Final = 0.01


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Sizes to choose from and the chance that the peak is higher, both float64[v, k]; sizes rise, chances fall along k."""

    size: F64
    exceed: F64


def curves_of(peaks: F64, levels: tuple[float, ...]) -> Curves:
    """Curves from peak quantiles float64[v, q] (monotone, finite) at `levels`."""
    grid = np.asarray(levels)
    first = int(np.searchsorted(grid, LEAST_LEVEL))
    left = np.repeat(np.arange(first, len(grid) - 1), POINTS)
    part = np.tile(np.arange(POINTS) / POINTS, len(grid) - 1 - first)
    chance = 1.0 - grid
    inner = peaks[:, left] + (peaks[:, left + 1] - peaks[:, left]) * part
    falling = chance[left] ** (1.0 - part) * chance[left + 1] ** part
    last = peaks[:, -1]
    scale = TAIL_LEAST * last
    for k in (2, 3):
        scale = np.maximum(scale, (last - peaks[:, -k]) / math.log(chance[-k] / chance[-1]))
    size = np.concatenate([inner, last[:, None] + scale[:, None] * TAIL], axis=1)
    exceed = np.concatenate([falling, chance[-1] * np.exp(-TAIL)])
    return Curves(size=size, exceed=np.broadcast_to(exceed, size.shape))


def buy(curves: Curves, *, weight: F64, floor: F64, top: F64, price: float, capacity: float) -> F64:
    """Sizes float64[v] at `price`. weight, floor, top float64[v]."""
    chosen = np.argmin(weight[:, None] * curves.exceed + (price / capacity) * curves.size, axis=1)
    size: F64 = np.clip(np.take_along_axis(curves.size, chosen[:, None], axis=1)[:, 0], floor, top)
    return size


def exceed_at(curves: Curves, size: F64) -> F64:
    """The chance of a peak above each size: a size below the curve's first counts as its first."""
    return np.array([np.interp(s, x, p) for s, x, p in zip(size, curves.size, curves.exceed, strict=True)])
