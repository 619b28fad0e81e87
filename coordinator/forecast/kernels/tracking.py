"""Coverage held by online steps, series by series: what `coordinator.forecast.track` does with the fleet, without a temporary.

Arrays are C-contiguous float32 unless said otherwise; s = VM * resources + resource. A level's step is its
size times (level - 1 or 0: the value lay below it or not); what is summed is how many lay below in excess of the level, so that a
value tied with all levels, which lies below each by just the level's share, moves nothing at all.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.forecast.calibrate import PRIOR_SHAPE
from coordinator.forecast.combine import GROUP_STARTS, GROUPS
from coordinator.model import F32, LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

Q: Final = len(LEVELS)
CLASSES: Final = 3  # calm, middling and restless VMs of a resource err differently
STEP: Final = 0.012  # of the own offset, in units of the spread
LIMIT: Final = 3.0
LEAK: Final = 0.9995
_f = np.float32
_LEVELS: Final = np.array(LEVELS)
SIZE: Final = (STEP * (1.0 + np.abs(PRIOR_SHAPE))).astype(np.float32)  # outer levels move in larger steps
_TAU: Final = _LEVELS.astype(np.float32)
_HALFWAY: Final = np.array([0.0, *((_LEVELS[1:] + _LEVELS[:-1]) / 2.0), 1.0], dtype=np.float32)
_EDGES: Final = np.array([*GROUP_STARTS, HORIZON_STEPS])
_LOW, _HIGH = LEVELS.index(0.1), LEVELS.index(0.9)
_NOUGHT, _ONE, _HALF, _TENTH = _f(0.0), _f(1.0), _f(0.5), _f(0.1)
_CLOSE, _TINY, _MOST = _f(1e-6), _f(1e-9), np.finfo(np.float32).max
_LIMIT, _LEAK = _f(LIMIT), _f(LEAK)


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def learn(
    rows: F32,
    places: NDArray[np.int64],
    spoke: NDArray[np.bool_],
    classes: NDArray[np.int8],
    origins: NDArray[np.int64],
    actual: F32,
    own: F32,
    pace: float,
) -> tuple[F32, F32]:
    """Take in the newest bucket: rows [78, s, q], classes int8[12, s], actual [s, h]; changes own [s, g, q], by `pace` of the usual step.

    -> for the fleet how many values lay below each level in excess of it, [r, class, h, q], of how many, [r, class, h].
    """
    excess = np.zeros((N_RESOURCES, CLASSES, HORIZON_STEPS, Q), dtype=np.float32)
    votes = np.zeros((N_RESOURCES, CLASSES, HORIZON_STEPS), dtype=np.float32)
    own_excess = np.empty(Q, dtype=np.float32)
    for s in range(len(actual)):
        r = s % N_RESOURCES
        for g in range(GROUPS):
            heard = False
            for q in range(Q):
                own_excess[q] = _NOUGHT
            for h in range(_EDGES[g], _EDGES[g + 1]):
                came, place = actual[s, h], places[h]
                if not spoke[h] or not abs(came) <= _MOST or not abs(rows[place, s, 0]) <= _MOST:
                    continue
                c = classes[origins[h], s]
                votes[r, c, h] += _ONE
                heard = True
                slack = _CLOSE * abs(came) + _TINY
                nearest = _MOST
                for q in range(Q):
                    nearest = min(nearest, abs(came - rows[place, s, q]))
                if nearest <= slack:
                    _share(came, slack, rows[place, s], own_excess, excess[r, c, h])
                    continue
                for q in range(Q):
                    more = (_ONE if came < rows[place, s, q] else _NOUGHT) - _TAU[q]
                    own_excess[q] += more
                    excess[r, c, h, q] += more
            if heard:
                part = _f(pace) / _f(_EDGES[g + 1] - _EDGES[g])
                for q in range(Q):
                    moved = own[s, g, q] * _LEAK - SIZE[q] * own_excess[q] * part
                    own[s, g, q] = min(max(moved, -_LIMIT), _LIMIT)
    return excess, votes


@njit(cache=True, error_model="numpy")
def _share(came: np.float32, slack: np.float32, band: F32, own_excess: F32, excess: F32) -> None:
    """A tie with the levels first..last has any rank from half way before the first to half way after the last."""
    first, last = Q, 0
    for q in range(Q):
        if abs(came - band[q]) <= slack:
            first, last = min(first, q), max(last, q)
    low, high = _HALFWAY[first], _HALFWAY[last + 1]
    for q in range(Q):
        more = min(max((_TAU[q] - low) / (high - low), _NOUGHT), _ONE) - _TAU[q]
        own_excess[q] += more
        excess[q] += more


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def hold(
    quantiles: F32,
    unit: F32,
    capacity: F32,
    own: F32,
    fleet: F32,
    classes: NDArray[np.int8],
    running: bool,
    rows: F32,
    places: NDArray[np.int64],
) -> F32:
    """Offset, sort and bound quantiles [s, h, q], and keep them in rows.

    unit, capacity (NaN = unbounded), classes [s]; offsets own [s, g, q] and fleet [r, class, h, q], in units of the spread.
    `running`: what is foretold does not fall from step to step.
    """
    held = np.empty_like(quantiles)
    level = np.empty(Q, dtype=np.float32)
    for s in range(len(quantiles)):
        r, c = s % N_RESOURCES, classes[s]
        least = _TENTH * unit[s]
        top = _MOST if np.isnan(capacity[s]) else capacity[s]
        for g in range(GROUPS):
            for h in range(_EDGES[g], _EDGES[g + 1]):
                spread = (quantiles[s, h, _HIGH] - quantiles[s, h, _LOW]) * _HALF + least
                for q in range(Q):
                    level[q] = quantiles[s, h, q] + (own[s, g, q] + fleet[r, c, h, q]) * spread
                for q in range(1, Q):  # nearly in order already
                    value = level[q]
                    at = q
                    while at > 0 and level[at - 1] > value:
                        level[at] = level[at - 1]
                        at -= 1
                    level[at] = value
                place = places[h]
                for q in range(Q):
                    value = level[q]
                    value = _NOUGHT if value < _NOUGHT else value
                    value = top if value > top else value
                    if running and h > 0 and held[s, h - 1, q] > value:
                        value = held[s, h - 1, q]
                    held[s, h, q] = value
                    rows[place, s, q] = value
    return held
