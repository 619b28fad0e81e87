"""Scoring and weighing of members, compiled: one pass over the fleet each, LANES series side by side so that the loops vectorise.

What combine.py says is done here; the arrays belong to its Combiner. Series are numbered n = v * resources + r and come last in every
state array. Pure. Layouts: said f32[78, k, n] (see combine.said_at), recent f32[2, k, g, n] and one slot f32[2, k, g, n] (decayed sum of
errors, evidence), forecasts f32[k, n, 12]. NaN = silent or unknown.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.model import F32, F64

LANES: Final = 64
_STARTS: Final = (0, 2, 6, 12)  # of the parts of the horizon
_SIZES: Final = (2.0, 4.0, 6.0)
_STEPS: Final = 12
_LOG_2: Final = math.log(2.0)
_ROOT_HALF: Final = int(np.float64(math.sqrt(0.5)).view(np.int64))
_LEAST_RATIO: Final = 0.05  # a member twenty times better or worse than the mean is as good as any more


@njit(cache=True, error_model="numpy")
def score(
    said: F32, at: NDArray[np.int64], target: F64, recent: F32, slots: F32, where: NDArray[np.int64], recent_decay: float, slot_decay: float
) -> None:
    """Add to both memories how far each member was from `target` f64[n, 12]; slots f32[slot, 2, k, g, n], `where` the slot of each g."""
    k, n = said.shape[1], said.shape[2]
    truth = np.empty((_STEPS, LANES), dtype=np.float32)
    total, count = np.empty(LANES, dtype=np.float32), np.empty(LANES, dtype=np.float32)
    one, late, there = np.float32(1.0), np.float32(recent_decay), np.float32(slot_decay)
    for low in range(0, n, LANES):
        width = min(LANES, n - low)
        for i in range(width):
            for h in range(_STEPS):
                truth[h, i] = target[low + i, h]
        for m in range(k):
            for g in range(3):
                total[:] = 0.0
                count[:] = 0.0
                for h in range(_STARTS[g], _STARTS[g + 1]):
                    row = said[at[h], m, low : low + width]
                    for i in range(width):
                        error = abs(row[i] - truth[h, i])
                        known = not math.isnan(error)
                        total[i] += error if known else np.float32(0.0)
                        count[i] += one if known else np.float32(0.0)
                for j in range(2):
                    of_late = recent[j, m, g, low : low + width]
                    here = slots[where[g], j, m, g, low : low + width]
                    for i in range(width):
                        scored = count[i] > 0
                        new = total[i] / max(count[i], one) if j == 0 else min(count[i], one)
                        of_late[i] = of_late[i] * (late if scored else one) + new
                        here[i] = here[i] * (there if scored else one) + new


@njit(cache=True, error_model="numpy")
def own_logs(forecasts: F32, said: F32, at: NDArray[np.int64], recent: F32, now: F32, soon: F32, logs: F32, fleet: F64) -> None:
    """Keep the forecasts in `said`, and write to `logs` f32[k, g, n] each member's loss against the mean of the members, as a logarithm.

    logs: NaN = able but never scored for this series, infinite = silent. fleet f64[2, k, r, g] (zeros) takes sum and number of the logs.
    """
    k, n = forecasts.shape[0], forecasts.shape[1]
    resources = fleet.shape[2]
    lost = np.empty((k, LANES), dtype=np.float32)
    silent, centre, heard = np.empty(LANES, dtype=np.float32), np.empty(LANES), np.empty(LANES)
    for low in range(0, n, LANES):
        width = min(LANES, n - low)
        for g in range(3):
            centre[:] = 0.0
            heard[:] = 0.0
            for m in range(k):
                silent[:] = 0.0
                for h in range(_STARTS[g], _STARTS[g + 1]):
                    row = said[at[h], m, low : low + width]
                    for i in range(width):
                        row[i] = forecasts[m, low + i, h]
                    for i in range(width):
                        silent[i] += np.float32(1.0) if math.isnan(row[i]) else np.float32(0.0)
                loss = lost[m]
                _losses(
                    recent[0, m, g, low : low + width],
                    recent[1, m, g, low : low + width],
                    now[0, m, g, low : low + width],
                    now[1, m, g, low : low + width],
                    soon[0, m, g, low : low + width],
                    soon[1, m, g, low : low + width],
                    loss,
                )
                for i in range(width):
                    loss[i] = np.float32(np.inf) if silent[i] > 0 else loss[i]
                for i in range(width):
                    usable = loss[i] < np.inf
                    centre[i] += loss[i] if usable else 0.0
                    heard[i] += 1.0 if usable else 0.0
            for i in range(width):
                centre[i] /= max(heard[i], 1.0)
            for m in range(k):
                loss, log = lost[m], logs[m, g, low : low + width]
                for i in range(width):
                    ratio = min(max(loss[i] / centre[i], _LEAST_RATIO), 1.0 / _LEAST_RATIO) if centre[i] > 0 else 1.0
                    log[i] = _log(ratio) if loss[i] < np.inf else loss[i]
                r = low % resources
                for i in range(width):
                    if loss[i] < np.inf:
                        fleet[0, m, r, g] += log[i]
                        fleet[1, m, r, g] += 1.0
                    r = r + 1 if r + 1 < resources else 0


@njit(cache=True, error_model="numpy")
def _losses(recent: F32, heard: F32, now: F32, now_heard: F32, soon: F32, soon_heard: F32, loss: F32) -> None:
    """Mean error of late and at this half hour of earlier days, which counts as much as the last hours once it has been seen."""
    one = np.float32(1.0)
    for i in range(recent.shape[0]):
        evidence = now_heard[i] + soon_heard[i]
        share = np.float32(0.5) * min(evidence / np.float32(3.0), one)
        here = (now[i] + soon[i]) / (evidence if evidence > 0 else one)
        loss[i] = recent[i] / heard[i] * (one - share) + here * share


@njit(cache=True, error_model="numpy")
def _log(value: float) -> float:
    """Natural logarithm of a normal positive number to 2e-11, by bits and a series: unlike the library's it runs on many at once."""
    bits = np.float64(value).view(np.int64)
    power = (bits - _ROOT_HALF) >> 52
    rest = np.int64(bits - (power << 52)).view(np.float64)  # within the square roots of a half and of two
    s = (rest - 1.0) / (rest + 1.0)
    z = s * s
    return power * _LOG_2 + 2.0 * s * (1.0 + z * (1 / 3 + z * (1 / 5 + z * (1 / 7 + z * (1 / 9 + z / 11)))))


@njit(cache=True, error_model="numpy")
def weigh(logs: F32, evidence: F32, fleet: F64, fleet_evidence: float, newcomer: float, cut: float, sharpness: float, weights: F32) -> None:
    """Weights f32[k, g, n] from `logs` and `fleet` of own_logs and the evidence f32[k, g, n] of late."""
    k, n = logs.shape[0], logs.shape[2]
    resources = fleet.shape[2]
    shrunk = np.empty(k)
    limit = math.log(cut)
    usual = fleet[0] / np.maximum(fleet[1], 1.0)
    for g in range(3):
        for s in range(n):
            r = s % resources
            best, backed = np.inf, False
            for m in range(k):
                log = logs[m, g, s]
                if log == np.inf:
                    shrunk[m] = np.inf
                    continue
                # a member never scored for this series speaks with the fleet's score; never scored at all: only where none is
                backed |= fleet[1, m, r, g] > 0
                lent = usual[m, r, g] + newcomer
                shrunk[m] = lent
                if not math.isnan(log):
                    shrunk[m] = lent + evidence[m, g, s] / (evidence[m, g, s] + fleet_evidence) * (log - lent)
            for m in range(k):
                if backed and fleet[1, m, r, g] == 0:
                    shrunk[m] = np.inf
                best = min(best, shrunk[m])
            total = 0.0
            for m in range(k):
                raw = 0.0
                if shrunk[m] <= best + limit and shrunk[m] < np.inf:
                    raw = math.exp(-sharpness * (shrunk[m] - best))
                shrunk[m] = raw
                total += raw
            share = 1.0 / max(total, 1e-12)
            for m in range(k):
                weights[m, g, s] = shrunk[m] * share


@njit(cache=True, error_model="numpy")
def blend(said: F32, at: NDArray[np.int64], weights: F32, point: F64, leader: NDArray[np.int8]) -> None:
    """Weighted mean of what is `said` f32[.., k, n] at `at`: point f64[n, 12]; and the member with the largest weight, int8[n]."""
    k, n = weights.shape[0], weights.shape[2]
    mixed = np.empty((_STEPS, LANES))
    most, held = np.empty(LANES), np.empty(LANES)
    for low in range(0, n, LANES):
        width = min(LANES, n - low)
        mixed[:] = 0.0
        most[:] = -1.0
        for m in range(k):
            held[:] = 0.0
            for g in range(3):
                weight = weights[m, g, low : low + width]
                for i in range(width):
                    held[i] += weight[i] * _SIZES[g]
                for h in range(_STARTS[g], _STARTS[g + 1]):
                    row = said[at[h], m, low : low + width]
                    for i in range(width):
                        mixed[h, i] += np.float64(weight[i]) * np.float64(row[i]) if weight[i] > 0 else 0.0
            for i in range(width):
                if held[i] > most[i]:
                    most[i] = held[i]
                    leader[low + i] = m
        for i in range(width):
            for h in range(_STEPS):
                point[low + i, h] = mixed[h, i]
