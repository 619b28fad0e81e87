"""Scores and weights of two answers, series by series: what `coordinator.forecast.mix` does with the fleet, without a temporary.

Arrays are C-contiguous float32 unless said otherwise; s = VM * resources + resource. A row of the triangle holds the pool's levels, then
the network's. Own scores float32[s, g, 4]: decayed sum and weight of the pool, then of the network. Sums over the fleet are float64.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.forecast.combine import GROUP_STARTS, GROUPS
from coordinator.model import F32, F64, LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

Q: Final = len(LEVELS)
_f = np.float32
DECAY: Final = _f(0.9976)  # half-life a day: what costs most are rare bursts, and a few hours hold none
EVIDENCE: Final = _f(100.0)  # the fleet counts like so many own scores, eight hours
SHARPNESS: Final = _f(15.0)  # a tenth less loss: weight .8
LEAST_RATIO, MOST_RATIO = _f(0.05), _f(20.0)
TAU: Final = np.array(LEVELS, dtype=np.float32)
EDGES: Final = np.array([*GROUP_STARTS, HORIZON_STEPS])
_NOUGHT, _ONE, _MEAN = _f(0.0), _f(1.0), _f(1.0 / Q)
MOST: Final = _f(1e30)  # larger losses are no losses: a day of them must not overflow


@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def score(rows: F32, places: NDArray[np.int64], spoke: NDArray[np.bool_], actual: F32, unit: F32, own: F32) -> tuple[F64, F64]:
    """Score the newest bucket: rows [78, s, 2 q], actual [s, h], unit [s]; changes own. -> sums in units [2, r, g], votes [r, g]."""
    total = np.zeros((2, N_RESOURCES, GROUPS))
    votes = np.zeros((N_RESOURCES, GROUPS))
    for s in range(len(actual)):
        for g in range(GROUPS):
            pool, network, count = _NOUGHT, _NOUGHT, _NOUGHT
            for h in range(EDGES[g], EDGES[g + 1]):
                if not spoke[h]:
                    continue
                place, came = places[h], actual[s, h]
                first, second = _NOUGHT, _NOUGHT
                for q in range(Q):
                    error = came - rows[place, s, q]
                    first += TAU[q] * error - min(error, _NOUGHT)
                    error = came - rows[place, s, Q + q]
                    second += TAU[q] * error - min(error, _NOUGHT)
                if first + second <= MOST:  # only what both were asked compares
                    pool += first
                    network += second
                    count += _ONE
            if count > _NOUGHT:
                share = _MEAN / count
                _take_in(s, g, pool * share, network * share, unit[s], own, total, votes)
    return total, votes


@njit(cache=True, error_model="numpy")
def rehearse(loss: F32, before: F32, unit: F32, own: F32) -> tuple[F64, F64]:
    """Score one origin that was played again: the network's loss [s, h] beside the pool's of before [s, g], NaN = unknown."""
    total = np.zeros((2, N_RESOURCES, GROUPS))
    votes = np.zeros((N_RESOURCES, GROUPS))
    for s in range(len(loss)):
        for g in range(GROUPS):
            network, count = _NOUGHT, _NOUGHT
            for h in range(EDGES[g], EDGES[g + 1]):
                if abs(loss[s, h]) <= MOST:
                    network += loss[s, h]
                    count += _ONE
            if count > _NOUGHT and abs(before[s, g]) <= MOST:
                _take_in(s, g, before[s, g], network / count, unit[s], own, total, votes)
    return total, votes


@njit(cache=True, error_model="numpy")
def _take_in(s: int, g: int, pool: np.float32, network: np.float32, unit: np.float32, own: F32, total: F64, votes: F64) -> None:
    own[s, g, 0] = own[s, g, 0] * DECAY + pool
    own[s, g, 1] = own[s, g, 1] * DECAY + _ONE
    own[s, g, 2] = own[s, g, 2] * DECAY + network
    own[s, g, 3] = own[s, g, 3] * DECAY + _ONE
    if unit > _NOUGHT:
        r = s % N_RESOURCES
        total[0, r, g] += float(pool) / float(unit)
        total[1, r, g] += float(network) / float(unit)
        votes[r, g] += 1.0


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def mix(pool: F32, network: F32, own: F32, fleet: F32, rows: F32, places: NDArray[np.int64]) -> tuple[F32, F32]:
    """Weigh and mix pool and network [s, h, q], and keep both in rows. fleet [r, g]: log of the loss ratio. -> mixed, weights [s, g]."""
    mixed = np.empty_like(pool)
    weights = np.empty((len(pool), GROUPS), dtype=np.float32)
    for s in range(len(pool)):
        for g in range(GROUPS):
            ratio = (own[s, g, 2] / own[s, g, 3]) / (own[s, g, 0] / own[s, g, 1])
            weight = weigh(ratio, min(own[s, g, 1], own[s, g, 3]), fleet[s % N_RESOURCES, g], EVIDENCE)
            weights[s, g] = weight
            for h in range(EDGES[g], EDGES[g + 1]):
                place = places[h]
                for q in range(Q):
                    a, b = pool[s, h, q], network[s, h, q]
                    rows[place, s, q] = a
                    rows[place, s, Q + q] = b
                    both = a * (_ONE - weight) + b * weight
                    one = b if np.isnan(a) else a
                    mixed[s, h, q] = one if np.isnan(both) else both
    return mixed, weights


@njit(cache=True, error_model="numpy")
def weigh(ratio: np.float32, trust: np.float32, fleet: np.float32, evidence: np.float32) -> np.float32:
    """Weight of the second answer. ratio: its loss over the first's in `trust` buckets; fleet: the log to expect, worth `evidence` more."""
    shrunk = fleet
    if _NOUGHT < ratio <= MOST:
        log = math.log(min(max(ratio, LEAST_RATIO), MOST_RATIO))
        shrunk = (trust * log + evidence * fleet) / (trust + evidence)
    return _ONE / (_ONE + math.exp(SHARPNESS * shrunk))
