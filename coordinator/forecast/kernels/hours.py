"""Quantiles of the next hour's peak from several answers, series by series: what `coordinator.forecast.hours` does with the fleet.

Arrays are C-contiguous float32 unless said otherwise; s = VM * resources + resource, k = source in the order of SOURCES.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from coordinator.model import F32, F64, LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

SOURCES: Final = ("mixed", "network", "boosting", "past_hours")
MIXED, NETWORK, BOOSTING, PAST_HOURS = range(4)
K: Final = len(SOURCES)
Q: Final = len(LEVELS)
HOURS: Final = 35  # overlapping hours of the newest day whose peaks are ranked, APART buckets apart
APART: Final = 8
LEAST_HOURS: Final = 4
_f = np.float32
_LEVELS: Final = np.array(LEVELS, dtype=np.float32)
_MIDDLE, _THREE_QUARTERS, _HIGH, _HIGHER = (LEVELS.index(level) for level in (0.5, 0.75, 0.9, 0.95))
_BEYOND: Final = 7  # the first level that ranks of so few hours cannot tell
# What the highest hour of a day must be multiplied with to hold in 97.5 and in 99 % of the hours, and the 95th rank in 95: 1.3 to 1.7 and
# 1.0 to 1.2 on PlanetLab's days and the resources of Bitbrains. A margin learned online from the fleet's misses was no better anywhere.
_HIGHER_BY, _BEYOND_BY, _LAST_BY = _f(1.03), _f(1.15), _f(1.35)
_NARROWEST, _WIDEST, _OUTER = _f(0.05), _f(20.0), _f(1.5)
_MOST: Final = _f(1e30)
_NOUGHT, _ONE, _TINY = _f(0.0), _f(1.0), _f(1e-9)
_H: Final = HORIZON_STEPS


@njit(cache=True, error_model="numpy")
def past_hours(day: F32, readings: F64, turn: int, turns: int, found: F32) -> None:
    """Quantiles of the newest day's hourly peaks, into found [s, q]: day [s, b <= 288] without gaps, readings [s].

    One series in `turns` is ranked anew, and those that have no ranks or whose newest hour is above all that were ranked.
    """
    ranked = np.empty(HOURS, dtype=np.float32)
    buckets = day.shape[1]
    for s in range(len(day)):
        hours = min(HOURS, (min(buckets, int(readings[s])) - _H) // APART + 1)
        if hours < LEAST_HOURS:
            found[s] = np.nan
            continue
        newest = day[s, buckets - _H]
        for t in range(buckets - _H + 1, buckets):
            newest = max(newest, day[s, t])
        if (s + turn) % turns and newest * _BEYOND_BY <= found[s, _BEYOND]:
            continue
        for k in range(hours):
            last = buckets - APART * k
            top = day[s, last - _H]
            for t in range(last - _H + 1, last):
                top = max(top, day[s, t])
            at = k
            while at > 0 and ranked[at - 1] > top:
                ranked[at] = ranked[at - 1]
                at -= 1
            ranked[at] = top
        highest = ranked[hours - 1]
        for q in range(_BEYOND):
            place = _LEVELS[q] * _f(hours - 1)
            below = int(place)
            above = min(below + 1, hours - 1)
            found[s, q] = ranked[below] + (place - _f(below)) * (ranked[above] - ranked[below])
        found[s, _HIGHER] = min(found[s, _HIGHER] * _HIGHER_BY, highest * _BEYOND_BY)
        found[s, _BEYOND] = highest * _BEYOND_BY
        found[s, _BEYOND + 1] = highest * _LAST_BY


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def blend(mixed: F32, network: F32, boosted: F64, past: F32, trust: F32, said: F32, out: F32) -> None:
    """mixed [s, h, q], network likewise or of no series, boosted float64[3, s] (.5, .9, .95) or of none, past [s, q], trust [r, k, q].

    Keeps what each source said of the whole hour in said [s, k, q]; out [s, h, q].
    """
    total = np.empty(Q, dtype=np.float32)
    weight = np.empty(Q, dtype=np.float32)
    for s in range(len(mixed)):
        own = said[s]
        own[:] = np.nan
        own[MIXED] = mixed[s, _H - 1]
        if len(network):
            own[NETWORK] = network[s, _H - 1]
        if boosted.shape[1]:
            _widened(_f(boosted[0, s]), _f(boosted[1, s]), _f(boosted[2, s]), own[MIXED], own[BOOSTING])
        own[PAST_HOURS] = past[s]
        if not abs(own[MIXED, 0]) <= _MOST:
            out[s] = mixed[s]
            continue
        total[:] = _NOUGHT
        weight[:] = _NOUGHT
        for k in range(K):
            if abs(own[k, 0]) <= _MOST and abs(own[k, Q - 1]) <= _MOST:
                for q in range(Q):
                    part = trust[s % N_RESOURCES, k, q]
                    total[q] += part * own[k, q]
                    weight[q] += part
        for q in range(Q):
            total[q] = total[q] / weight[q] if weight[q] > _TINY else own[MIXED, q]
        _in_order(total)
        _laid_out(mixed[s], total, out[s])


@njit(cache=True, error_model="numpy")
def score(said: F32, came: F32, unit: F32, loss: F64, votes: F64) -> None:
    """Add the pinball losses of one issue, said [s, k, q], against the hour's peak came [s], to loss [r, k, q].

    Only series of which every source that speaks at all has spoken count, so that all are compared on the same; votes [r]. A loss counts
    by the fourth root of the series' size: what is allocated is paid for by the core, and an idle VM's first packet, a hundred times what
    it ever had, must not outweigh a fleet.
    """
    speaks = np.zeros((N_RESOURCES, K), dtype=np.bool_)
    for s in range(len(came)):
        for k in range(K):
            if abs(said[s, k, 0]) <= _MOST:
                speaks[s % N_RESOURCES, k] = True
    for s in range(len(came)):
        r = s % N_RESOURCES
        usable = abs(came[s]) <= _MOST and unit[s] > _NOUGHT
        for k in range(K):
            if speaks[r, k] and not abs(said[s, k, 0]) <= _MOST:
                usable = False
        if not usable:
            continue
        votes[r] += 1.0
        highest = said[s, PAST_HOURS, _BEYOND]
        size = np.sqrt(np.sqrt(unit[s] + (highest if abs(highest) <= _MOST else said[s, MIXED, _HIGH])))
        for k in range(K):
            if speaks[r, k]:
                for q in range(Q):
                    error = (came[s] - said[s, k, q]) / size
                    loss[r, k, q] += _LEVELS[q] * error - min(error, _NOUGHT)


@njit(cache=True, error_model="numpy")
def _widened(middle: np.float32, high: np.float32, higher: np.float32, like: F32, out: F32) -> None:
    """Three quantiles into all levels, laid out as those of `like` are."""
    if not (abs(middle) <= _MOST and abs(like[0]) <= _MOST):
        return
    within = min(max((high - middle) / max(like[_HIGH] - like[_MIDDLE], _TINY), _NARROWEST), _WIDEST)
    beyond = min(max((higher - middle) / max(like[_HIGHER] - like[_MIDDLE], _TINY), _NARROWEST), _OUTER)
    for q in range(Q):
        out[q] = middle + (like[q] - like[_MIDDLE]) * within
    out[_MIDDLE], out[_HIGH], out[_HIGHER] = middle, high, higher
    share = (like[_THREE_QUARTERS] - like[_MIDDLE]) / max(like[_HIGH] - like[_MIDDLE], _TINY)
    out[_THREE_QUARTERS] = middle + (high - middle) * min(max(share, _NOUGHT), _ONE)
    for q in range(_HIGHER + 1, Q):
        out[q] = higher + (like[q] - like[_HIGHER]) * beyond
    for q in range(Q):
        out[q] = max(out[q], _NOUGHT)
    _in_order(out)


@njit(cache=True)
def _in_order(values: F32) -> None:
    for q in range(1, len(values)):  # nearly in order already
        value, at = values[q], q
        while at > 0 and values[at - 1] > value:
            values[at] = values[at - 1]
            at -= 1
        values[at] = value


@njit(cache=True, error_model="numpy")
def _laid_out(mixed: F32, hour: F32, out: F32) -> None:
    """The running peak [h, q] that ends in `hour`: each level's distance from the middle in the ratio that the whole hour's came to."""
    last = mixed[_H - 1]
    shift = hour[_MIDDLE] - last[_MIDDLE]
    for q in range(Q):
        before, now = last[q] - last[_MIDDLE], hour[q] - hour[_MIDDLE]
        ratio = min(max(now / before, _NARROWEST), _WIDEST) if abs(before) > _TINY else _ONE
        for h in range(_H - 1):
            moved = mixed[h, _MIDDLE] + shift * _f(h + 1) / _f(_H) + (mixed[h, q] - mixed[h, _MIDDLE]) * ratio
            out[h, q] = max(min(moved, hour[q]), _NOUGHT)
        out[_H - 1, q] = hour[q]
    for h in range(_H - 1):
        _in_order(out[h])
        if h:
            for q in range(Q):
                out[h, q] = max(out[h, q], out[h - 1, q])
