"""Compiled passes over (VM, category) pairs: what an event is expected to add, and who is to blame for what was seen. Pure.

k = kind, 10 of them: the five resources' bucket means, then their peaks. p = phase of an event (`phase`). A pair has one slot per level of
pooling (whole category, client, application, the VM itself; -1 = none) in shared tables:
    count[slot, p, k]       weight of the evidence, capped per level so that the old fades (CAPS)
    moments[slot, p, k, 3]  weighted means of the lift, of the level without the event, and of the VM's size
A lift is thought of in three forms at once: as an amount, as a share of the level, as a share of the size. Each form is shrunk from the
declared effect through the levels to the VM (James-Stein with fixed pulls); forms are weighted by how well each foretold of late.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from coordinator.model import F64, N_RESOURCES

I64 = NDArray[np.int64]

KINDS: Final = 2 * N_RESOURCES
FORMS: Final = 3
LEVELS_OF_POOLING: Final = 4  # category, client, application, VM
DURING: Final = 7  # phases 0-2 the first buckets, 3-5 thirds of the middle, 6 the last bucket
HOUR: Final = 12  # buckets
AFTER: Final = 3  # phases 7-9: the quarter hour after the announced end, for what overruns
PHASES: Final = DURING + AFTER

# What is expected from above counts as this many occurrences against a level's own: the declared effect against the category's, that
# against the client's, that against the application's. What it counts against the VM's own is measured (`trust_of`).
PULLS: Final = (2.0, 3.0, 3.0)
OWN_PULL: Final = (0.1, 3.0)  # bounds
CAPS: Final = (400.0, 200.0, 100.0, 5.0)  # a VM's own effect follows within about five occurrences
SPIKE: Final = 3.0  # standard deviations
STEADY: Final = 0.9  # how much of an occurrence's own course holds from bucket to bucket where its shape is not known
FOLLOW: Final = 0.6  # how much of a bucket's surprise becomes part of the occurrence's own course
PATIENCE: Final = 6.0  # buckets after which half of the belief in an announcement that does not come true is gone
MOST_RATIO: Final = 3.0  # one bucket of an event to the next
LEAST_DOUBT: Final = 0.25  # of the forecast's own variance: an effect believed to be nothing may still turn out to be something
SCORE_RATE: Final = 0.02  # of a form's standing, once many buckets have been scored
SCORE_PRIOR: Final = 4.0
SPREAD_CAP: Final = 200.0
_TINY: Final = 1e-9


@njit(cache=True)
def phase(t: int, buckets: int) -> int:
    """Phase of bucket t of an event that takes `buckets`; -1 before it and once it has long ended."""
    if t < 0 or t >= buckets + AFTER:
        return -1
    if t >= buckets:
        return DURING + t - buckets
    if t == buckets - 1 and buckets > 1:
        return DURING - 1
    if t < 3:
        return t
    return 3 + min(2, 3 * (t - 3) // max(buckets - 4, 1))


@njit(cache=True)
def onset(t: int, buckets: int) -> float:
    """Share of its declared effect that bucket t of an event is expected to have reached, before any such event was seen.

    What is declared is a height, not a course. What takes up to an hour is a job that starts at once. Of what takes longer, half is taken
    to jump to its height, half to climb to it in up to a third of its length (all such lengths alike) and to fall likewise: 30 buckets
    make .65 .74 .81 .87 .90 .93 ... 1.
    """
    longest = buckets // 3 if buckets > HOUR else 1
    edge = min(t, buckets - 1 - t) + 1
    if edge <= 0 or edge >= longest:
        return 1.0
    climbed = 0.0
    for length in range(1, longest + 1):
        climbed += min(edge / length, 1.0)
    return 0.5 + 0.5 * climbed / longest


@njit(cache=True)
def _evident(count: F64, slots: I64, levels: int, p: int, k: int) -> int:
    """The phase whose evidence speaks for phase p: itself, else the nearest during the event that has any, else -1."""
    for distance in range(DURING if p < DURING else 1):
        for other in (p - distance, p + distance):
            if other < 0 or (p < DURING <= other):
                continue
            for level in range(levels):
                if slots[level] >= 0 and count[slots[level], other, k] > 0.0:
                    return other
    return -1


@njit(cache=True)
def expected(
    count: F64, moments: F64, slots: I64, levels: int, p: int, k: int, base: float, size: float, told: F64, reached: float,
    trust: F64, said: F64,
) -> tuple[float, bool]:  # fmt: skip
    """(lift, whether anything is known) by the first `levels` of pooling. `told` float64[2]: declared addition, factor; `reached`: the
    share of it that counts (`onset`).

    `said` float64[3] takes what each form foretells (NaN = silent).
    """
    added, factor = told
    declared = p < DURING and not (math.isnan(added) and math.isnan(factor))
    amount = reached * (added if not math.isnan(added) else (factor - 1.0) * base)
    source = _evident(count, slots, levels, p, k)
    heard = False
    for form in range(FORMS):
        said[form] = math.nan
        unit = 1.0 if form == 0 else (base if form == 1 else size)
        if not unit > 0.0:
            continue
        share, known = 0.0, False
        if declared:
            share, known = amount / unit, True
        if source >= 0:
            for level in range(levels):
                slot = slots[level]
                if slot < 0 or count[slot, source, k] <= 0.0:
                    continue
                middle = 1.0 if form == 0 else moments[slot, source, k, form]
                if not middle > 0.0:
                    continue
                own = moments[slot, source, k, 0] / middle
                evidence = count[slot, source, k]
                pull = PULLS[level] if level < len(PULLS) else trust[FORMS]
                share = (evidence * own + pull * share) / (evidence + pull) if known else own
                known = True
        if known:
            said[form] = share * unit
            heard = True
    return (_middle(said, trust), True) if heard else (0.0, False)


@njit(cache=True)
def _middle(said: F64, trust: F64) -> float:
    """Weighted median of what the forms say: a share of an idle VM's level may be off by any factor, a mean would follow it."""
    best, least = 0.0, math.inf
    for form in range(FORMS):
        if math.isnan(said[form]):
            continue
        miss = 0.0
        for other in range(FORMS):
            if not math.isnan(said[other]):
                miss += trust[other] * abs(said[other] - said[form])
        if miss < least:
            best, least = said[form], miss
    return best


@njit(cache=True)
def _now(
    count: F64, moments: F64, slots: I64, p: int, k: int, base: float, size: float, told: F64, trust: F64, spread: F64, last: float,
    was: float, last_phase: int, ahead: int, t: int, buckets: int, said: F64,
) -> tuple[float, float, float, bool]:  # fmt: skip
    """(lift, its standard deviation, lift expected before the occurrence began, whether that is known).

    An occurrence under way (`last` is not NaN) goes on from its last bucket's lift in the shape that earlier ones had: the VM's own (which
    let `was` be expected of that bucket), or the others' where it had none (`was` is NaN). Infinite standard deviation = nobody knows.
    `said` float64[2 FORMS]: its first half as in `expected`, the rest is for work.
    """
    own = slots[LEVELS_OF_POOLING - 1]
    reached = onset(t, buckets)
    before, known = expected(count, moments, slots, LEVELS_OF_POOLING, p, k, base, size, told, reached, trust, said)
    if math.isnan(last):
        seen = 1 if count[own, min(p, DURING - 1), k] > 0.0 else 0
        return max(before, -base), (math.sqrt(spread[seen]) * abs(before) if known else math.inf), before, known
    if p >= DURING and not known:
        return 0.0, 0.0, before, known
    here, there, shaped = before, was, known
    if math.isnan(was) or count[own, p, k] <= 0.0:
        shape = said[FORMS:]
        here, shaped = expected(count, moments, slots, LEVELS_OF_POOLING - 1, p, k, base, size, told, reached, trust, shape)
        before_now = onset(max(t - 1 - ahead, 0), buckets)
        there, there_known = expected(
            count, moments, slots, LEVELS_OF_POOLING - 1, last_phase, k, base, size, told, before_now, trust, shape
        )
        shaped = shaped and there_known
    ratio = 1.0 if p < DURING else 0.0
    if shaped:
        floor = 0.1 * abs(last) + _TINY
        ratio = min((abs(here) + (floor if p < DURING else 0.0)) / (abs(there) + floor), MOST_RATIO)
    now = last * ratio
    if p < DURING and known and _evident(count, slots, LEVELS_OF_POOLING, p, k) != p:
        # nobody has seen this part of such an event: a slow start does not yet disprove what was announced
        now += (before - now) * (1.0 - STEADY**ahead) * PATIENCE / (PATIENCE + t)
    now = max(now, -base)
    return now, math.sqrt(spread[2]) * max(abs(now), 0.5 * abs(before) if p < DURING else 0.0), before, known


@njit(cache=True)
def lifts(
    pairs: I64, slots: I64, first: int, base: F64, size: F64, told: F64, count: F64, moments: F64, trust: F64, spread: F64,
    last: F64, was: F64, last_phase: I64, begun: I64, out: F64, variance: F64, tell: bool,
) -> None:  # fmt: skip
    """Sum the lift of every pair into out[v, k, step], its variance into variance[v, k, step].

    pairs int64[n, 6]: row, category, first bucket, buckets, buckets until a successor begins, notice. first = bucket number of step 0.
    base [v, k, step] without events; size [v, k]; told [notice, r, 2]. `tell`: unknown effects get an infinite variance (else none).
    """
    said = np.empty(2 * FORMS)
    for i in range(len(pairs)):
        row, category, begin, buckets, limit, notice = pairs[i]
        own = slots[i, LEVELS_OF_POOLING - 1]
        for step in range(base.shape[2]):
            t = first + step - begin
            p = phase(t, buckets)
            if p < 0 or t >= limit:
                continue
            for k in range(KINDS):
                level = base[row, k, step]
                if math.isnan(level):
                    continue
                so_far = last[own, k] if begun[own] == begin else math.nan
                now, doubt, _, _ = _now(
                    count, moments, slots[i], p, k, level, size[row, k], told[notice, k % N_RESOURCES], trust[category, k],
                    spread[category, k], so_far, was[own, k], last_phase[own],
                    0 if first + step < begin else step, t, buckets, said,
                )  # fmt: skip
                out[row, k, step] += now
                if not math.isinf(doubt):
                    variance[row, k, step] += doubt * doubt
                elif tell and p < DURING:
                    variance[row, k, step] = math.inf


@njit(cache=True)
def _keep(count: F64, moments: F64, slots: I64, p: int, k: int, weight: float, lift: float, base: float, size: float) -> None:
    for level in range(LEVELS_OF_POOLING):
        slot = slots[level]
        if slot < 0:
            continue
        total = min(count[slot, p, k] + weight, CAPS[level])
        rate = min(weight / total, 1.0)
        count[slot, p, k] = total
        moments[slot, p, k, 0] += rate * (lift - moments[slot, p, k, 0])
        moments[slot, p, k, 1] += rate * (base - moments[slot, p, k, 1])
        moments[slot, p, k, 2] += rate * ((size if size > 0.0 else 0.0) - moments[slot, p, k, 2])


@njit(cache=True)
def learn(
    pairs: I64, slots: I64, bucket: int, actual: F64, base: F64, doubt: F64, size: F64, told: F64, lift: F64, variance: F64,
    count: F64, moments: F64, trust: F64, scores: F64, spread: F64, spread_count: F64, last: F64, was: F64, last_phase: I64,
    begun: I64, seen: I64,
) -> None:  # fmt: skip
    """Take a bucket's evidence into the tables. lift, variance [v, k]: what `lifts` (with tell) gave for it; actual, base, doubt [v, k].

    First all evidence is weighed by the tables as they were, then it is kept: the order of the pairs does not matter to what each VM shows.
    """
    said = np.empty(2 * FORMS)
    evidence, weight = np.full((len(pairs), KINDS), math.nan), np.zeros((len(pairs), KINDS))
    spread_before = spread.copy()
    for i in range(len(pairs)):
        row, category, begin, buckets, limit, notice = pairs[i]
        p = phase(bucket - begin, buckets)
        own = slots[i, LEVELS_OF_POOLING - 1]
        if p < 0 or bucket - begin >= limit or seen[own] >= bucket:
            continue
        if begun[own] != begin and p < DURING:
            begun[own] = begin
            last[own] = math.nan
        for k in range(KINDS):
            level, got = base[row, k], actual[row, k]
            if math.isnan(level) or math.isnan(got):
                continue
            so_far = last[own, k] if begun[own] == begin else math.nan
            had = count[own, min(p, DURING - 1), k] > 0.0
            now, mine, before, known = _now(
                count, moments, slots[i], p, k, level, size[row, k], told[notice, k % N_RESOURCES], trust[category, k],
                spread_before[category, k], so_far, was[own, k], last_phase[own], 0, bucket - begin, buckets, said,
            )  # fmt: skip
            rest = got - level - lift[row, k]  # what nobody foretold
            noise = doubt[row, k] * doubt[row, k] + _TINY
            least = LEAST_DOUBT * noise
            all_doubt = variance[row, k] + least
            if math.isinf(all_doubt):  # some event here is new: it takes the rest, less what chance alone would leave
                part, blame = (max(1.0 - noise / (rest * rest + _TINY), 0.0) if math.isinf(mine) else 0.0), 1.0
            else:
                part, blame = min((mine * mine + least) / all_doubt, 1.0), all_doubt / (all_doubt + noise)
            found = now + part * rest
            if known:  # a spike of the VM's own does not become a habit of the event; what is really larger gets there in a few occurrences
                reach = SPIKE * (doubt[row, k] + math.sqrt(spread_before[category, k, 0]) * abs(before))
                found = min(max(found, before - reach), before + reach)
            if p < DURING:
                # the first bucket decides whether the event came at all; later ones move its course gently, as each has noise of its own
                last[own, k] = now + (1.0 if math.isnan(so_far) else FOLLOW) * part * blame * rest
                was[own, k] = before if count[own, p, k] > 0.0 else math.nan
                expected(
                    count, moments, slots[i], LEVELS_OF_POOLING - 1, p, k, level, size[row, k], told[notice, k % N_RESOURCES],
                    onset(bucket - begin, buckets), trust[category, k], said,
                )  # fmt: skip
                _score_forms(scores[category, k], found, doubt[row, k], said)
                if known and math.isnan(so_far):
                    _score_spread(spread, spread_count, category, k, 1 if had else 0, found, before, doubt[row, k])
                elif not math.isnan(so_far):
                    _score_spread(spread, spread_count, category, k, 2, found, now, doubt[row, k])
            evidence[i, k], weight[i, k] = found, blame
    for i in range(len(pairs)):
        row, _, begin, buckets, _, _ = pairs[i]
        p = phase(bucket - begin, buckets)
        own = slots[i, LEVELS_OF_POOLING - 1]
        for k in range(KINDS):
            if not math.isnan(evidence[i, k]):
                seen[own] = bucket
                _keep(count, moments, slots[i], p, k, weight[i, k], evidence[i, k], base[row, k], size[row, k])
        if 0 <= p < DURING and seen[own] == bucket:
            last_phase[own] = p


@njit(cache=True)
def _score_forms(scores: F64, lift: float, doubt: float, said: F64) -> None:
    """How far each form was off, by what others showed, as a share of what there was to foretell. scores[FORMS] counts."""
    heard = False
    for form in range(FORMS):
        if not math.isnan(said[form]) and abs(lift) + abs(said[form]) > doubt:
            miss = abs(lift - said[form]) / (abs(lift) + abs(said[form]))
            scores[form] += max(SCORE_RATE, 1.0 / (scores[FORMS] + SCORE_PRIOR)) * (miss - scores[form])
            heard = True
    if heard:
        scores[FORMS] += 1.0


@njit(cache=True)
def _score_spread(spread: F64, counts: F64, category: int, k: int, which: int, lift: float, before: float, doubt: float) -> None:
    """Squared relative error of a lift beyond what the base forecast's own error explains, averaged."""
    if abs(before) <= doubt:
        return
    miss = max((lift - before) ** 2 - doubt * doubt, 0.0) / (before * before)
    counts[category, k, which] = min(counts[category, k, which] + 1.0, SPREAD_CAP)
    spread[category, k, which] += (min(miss, 4.0) - spread[category, k, which]) / counts[category, k, which]


def trust_of(scores: F64, spread: F64) -> F64:
    """float64[category, k, 4]: weights of the forms by their mean relative misses, then the pull on a VM's own evidence.

    The fourth power leaves a clear winner nearly alone. The pull is the variance of own occurrences over that among VMs, as both show in
    how far occurrences were from what was foretold of them.
    """
    sharp: Any = (scores[..., :FORMS] + 0.05) ** -4.0
    pull = np.clip(spread[..., 1] / np.maximum(spread[..., 0], _TINY), *OWN_PULL)
    return np.concatenate([sharp / sharp.sum(axis=-1, keepdims=True), pull[..., None]], axis=-1)
