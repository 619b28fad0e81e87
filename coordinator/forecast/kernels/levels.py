"""Two answers scored and mixed level by level: what `coordinator.forecast.levels` does with the fleet.

Arrays are C-contiguous float32 unless said otherwise; s = VM * resources + resource. A row of the triangle holds the first
answer's levels, then the other's. Own scores float32[s, g, q, 2]: decayed sums of both answers' losses; `heard` float32[s, g] their weight.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.forecast.combine import GROUPS
from coordinator.forecast.kernels.mixing import DECAY, EDGES, MOST, TAU, Q, weigh
from coordinator.model import F32, F64, LEVELS, N_RESOURCES

EVIDENCE: Final = np.float32(200.0)  # the fleet counts like so many own scores; one level's losses are rarer than an answer's
_MIDDLE: Final = LEVELS.index(0.5)
_NOUGHT, _ONE = np.float32(0.0), np.float32(1.0)


@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def score(rows: F32, places: NDArray[np.int64], spoke: NDArray[np.bool_], actual: F32, unit: F32, own: F32, heard: F32) -> tuple[F64, F64]:
    """Score the newest bucket: rows [78, s, 2 q], actual [s, h], unit [s]; changes own and heard.

    -> sums in units [2, r, g, q], votes [r, g].
    """
    total = np.zeros((2, N_RESOURCES, GROUPS, Q))
    votes = np.zeros((N_RESOURCES, GROUPS))
    loss = np.empty((2, Q), dtype=np.float32)
    for s in range(len(actual)):
        r = s % N_RESOURCES
        for g in range(GROUPS):
            loss[:] = _NOUGHT
            count = _NOUGHT
            for h in range(EDGES[g], EDGES[g + 1]):
                if not spoke[h]:
                    continue
                place, came = places[h], actual[s, h]
                if not abs(came + rows[place, s, _MIDDLE] + rows[place, s, Q + _MIDDLE]) <= MOST:
                    continue  # only what both were asked compares
                for q in range(Q):
                    error = came - rows[place, s, q]
                    loss[0, q] += TAU[q] * error - min(error, _NOUGHT)
                    error = came - rows[place, s, Q + q]
                    loss[1, q] += TAU[q] * error - min(error, _NOUGHT)
                count += _ONE
            if count == _NOUGHT:
                continue
            heard[s, g] = heard[s, g] * DECAY + _ONE
            for k in range(2):
                for q in range(Q):
                    share = loss[k, q] / count
                    own[s, g, q, k] = own[s, g, q, k] * DECAY + share
                    if unit[s] > _NOUGHT:
                        total[k, r, g, q] += float(share) / float(unit[s])
            votes[r, g] += 1.0
    return total, votes


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def mix(pool: F32, other: F32, own: F32, heard: F32, fleet: F32, rows: F32, places: NDArray[np.int64]) -> tuple[F32, F32]:
    """Mix pool and other [s, h, q], and keep both in rows. fleet [r, g, q]: log of the loss ratio.

    -> mixed [s, h, q], monotone; weights of the other [s, g, q].
    """
    mixed = np.empty_like(pool)
    weights = np.empty((len(pool), GROUPS, Q), dtype=np.float32)
    for s in range(len(pool)):
        for g in range(GROUPS):
            for q in range(Q):
                weights[s, g, q] = weigh(own[s, g, q, 1] / own[s, g, q, 0], heard[s, g], fleet[s % N_RESOURCES, g, q], EVIDENCE)
            for h in range(EDGES[g], EDGES[g + 1]):
                place = places[h]
                own_levels = mixed[s, h]
                for q in range(Q):
                    a, b = pool[s, h, q], other[s, h, q]
                    rows[place, s, q] = a
                    rows[place, s, Q + q] = b
                    both = a + (b - a) * weights[s, g, q]
                    value = (b if np.isnan(a) else a) if np.isnan(both) else both
                    # weights differ from level to level: levels that cross change places, which never costs pinball
                    at = q
                    while at > 0 and own_levels[at - 1] > value:
                        own_levels[at] = own_levels[at - 1]
                        at -= 1
                    own_levels[at] = value
    return mixed, weights
