"""Training of the global model: random (series, origin) pairs of the whole history but its newest windows. Pure and deterministic.

One booster a quantile, gradient boosting or a random forest; each pair gives one row for the peak of its next hour and one for a random
step of each half of the horizon. Days that come once a month or less are shown more often than they come: of a month's last day a plain
sample holds too few rows for a single split; the trees tell them from the others by the calendar, so that these do not suffer. The newest
windows stay unseen, for the gate (gate.py). No quantile above .95 is trained: an extreme quantile objective is unstable on heavy tails.
Source: Ke et al., "LightGBM", NeurIPS 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.boosting import profiles as profiling
from coordinator.forecast.boosting.model import PEAK_QUANTILES, QUANTILES, Learnt, encode, scaled
from coordinator.forecast.boosting.newborn import Newborn, newborn
from coordinator.forecast.boosting.profiles import Profiles
from coordinator.forecast.boosting.trees import Forest, parse
from coordinator.forecast.calendar import DAY_FEATURES
from coordinator.forecast.covariates import NONE_KNOWN, Covariates
from coordinator.forecast.features import GROUP_COLUMNS, Features, describe
from coordinator.model import F32, F64, HistoryBlock
from shared.units import BUCKET_S, HORIZON_STEPS

I64 = NDArray[np.int64]

ROUNDS: Final = 80
PAIRS: Final = 48_000
STRATA: Final = 2  # rows a pair: one step of each half of the horizon; more pairs teach more than more steps of each
LEAST_HISTORY: Final = 24  # buckets before the first origin
LEAST_READINGS: Final = 12
LEAST_ROWS: Final = 200
RARE_SHARE: Final = 1.0 / 12.0  # of the pairs, for each kind of rare day: two kinds cost a sixth of the training's time
HOLD_OUT: Final = 72  # six hours; a quarter of what a short history can spare
MODES: Final = ("gbdt", "rf")
PARAMETERS: Final[dict[str, Any]] = {
    "objective": "quantile",
    "learning_rate": 0.08,
    "num_leaves": 31,
    "min_data_in_leaf": 60,
    "feature_fraction": 0.6,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "max_bin": 63,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
# Peaks come one a pair, and a high quantile of them hangs on few rows: smaller steps and larger leaves cost up to 15 % less pinball at .95
# on PlanetLab, Google and Bitbrains (network: as much), and 5 instead of 6 % of other VMs' hours are above it
PEAKS: Final[dict[str, Any]] = {"learning_rate": 0.05, "min_data_in_leaf": 120}
LEAST_PEAKS: Final = 16_000  # with fewer rows such leaves leave too few of them, and small steps get nowhere in ROUNDS
FOREST: Final[dict[str, Any]] = {"boosting": "rf", "num_leaves": 63, "min_data_in_leaf": 20, "feature_fraction": 0.5, "lambda_l2": 0.0}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`mode` gbdt (gradient boosting) or rf (random forest); `pairs` the most (series, origin) pairs; `rounds` trees a quantile."""

    mode: str = "gbdt"
    rounds: int = ROUNDS
    pairs: int = PAIRS
    hold_out: int = HOLD_OUT

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r}: allowed {' or '.join(MODES)}")
        for name, low, high in (("rounds", 1, 1000), ("pairs", 1, 1_000_000), ("hold_out", 0, 2016)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} {value}: allowed {low} to {high}")


class _Asked(NamedTuple):
    which: I64  # [m] series
    ends: I64  # [m] buckets before the origin's horizon
    now_s: I64  # [m] start of the newest bucket


class Rows(NamedTuple):
    """Pairs of a history and what came after them."""

    now_s: I64  # [m] start of the newest bucket
    features: Features
    actual: F64  # [m, 12] bucket means after the origin; NaN = never came
    peak: F64  # [m] largest peak of the twelve; NaN when more than half of them never came


def train(
    history: HistoryBlock, seed: int = 0, rounds: int | None = None, *, settings: Settings | None = None, known: Covariates = NONE_KNOWN
) -> bytes | None:
    """Fit on the history but its newest windows; None when there is too little of it. Same input, same bytes."""
    chosen = settings or Settings()
    v, _, b = history.mean.shape
    known.checked(v)
    rng = np.random.default_rng(seed)
    origins = np.arange(LEAST_HISTORY, b - held_out(b, chosen.hold_out) - HORIZON_STEPS + 1)
    known_series = np.flatnonzero(np.isfinite(history.mean).any(axis=2))
    if not len(origins) or not len(known_series):
        return None
    chosen_series, at = _pairs(rng, len(known_series), _rare(known, history.end_s - (b - origins) * BUCKET_S), chosen.pairs)
    which, ends = known_series[chosen_series], origins[at]
    steps = rng.integers(0, HORIZON_STEPS // STRATA, size=(len(which), STRATA)) + np.arange(STRATA) * (HORIZON_STEPS // STRATA)
    rows, profiles = _with_groups(history, which, ends, known)
    until = b - held_out(b, chosen.hold_out)
    young = newborn(rng, history, known, until, len(which))
    if young is not None:
        rows = _with_young(rows, young, profiles.apart(known, young.original, young.now_s))
        steps = np.concatenate([steps, steps[rng.integers(0, len(steps), size=len(young.which))]])
    good = rows.features.readings >= LEAST_READINGS
    z = scaled(rows.actual, rows.features.anchor[:, None], rows.features.unit[:, None])
    pair, stratum = np.nonzero(good[:, None] & np.isfinite(np.take_along_axis(z, steps, axis=1)))
    if len(pair) < LEAST_ROWS:
        return None
    step = steps[pair, stratum]
    with_step = np.concatenate([rows.features.series[pair], rows.features.steps[pair, step]], axis=1)
    peak_z = scaled(rows.peak, rows.features.peak_anchor, rows.features.peak_unit)
    peaked = np.flatnonzero(good & np.isfinite(peak_z))
    trees = rounds or chosen.rounds
    modes = FOREST if chosen.mode == "rf" else {}
    means = _fit(with_step, z[pair, step], QUANTILES, seed=seed, rounds=trees, parameters={**PARAMETERS, **modes})
    peak_parameters = {**PARAMETERS, **(PEAKS if len(peaked) >= LEAST_PEAKS else {}), **modes}
    peaks = _fit(rows.features.series[peaked], peak_z[peaked], PEAK_QUANTILES, seed=seed, rounds=trees, parameters=peak_parameters)
    return encode(Learnt(chosen.mode, means, peaks, profiles.every))


def _with_groups(history: HistoryBlock, which: I64, ends: I64, known: Covariates) -> tuple[Rows, profiling.Learnt]:
    """The pairs, with what other VMs of their client and application usually do."""
    rows = rows_of(history, which, ends, known)
    z = scaled(rows.actual, rows.features.anchor[:, None], rows.features.unit[:, None])
    target = np.where(rows.features.readings >= LEAST_READINGS, _mean_of(z), np.nan)
    learnt = profiling.learn(known, which, rows.now_s, target)
    usual = learnt.apart(known, which, rows.now_s)
    if usual is not None:
        rows.features.series[:, GROUP_COLUMNS] = usual
    return rows, learnt


def _with_young(rows: Rows, young: Newborn, usual: F32 | None) -> Rows:
    """The pairs, and after them those of VMs shown on their first day."""
    shape = (-1, young.means.shape[2])
    more = _rows(young.means.reshape(shape), young.peaks.reshape(shape), young.capacity, young, young.known, usual)
    before, after = rows.features, more.features
    features = Features(*(np.concatenate([getattr(before, name), getattr(after, name)]) for name in Features._fields))
    return rows._replace(features=features, actual=np.concatenate([rows.actual, more.actual]), peak=np.concatenate([rows.peak, more.peak]))


def _rare(known: Covariates, now_s: I64) -> NDArray[np.bool_]:
    """Which origins, bool[kind, origins], speak of a month's last day, its first, or a holiday."""
    days = known.day_columns(now_s)
    last, first, free = (days[:, DAY_FEATURES.index(name)] for name in ("to_month_end", "from_month_start", "holiday"))
    return np.stack([last == 1.0, first == 1.0, free > 0.0])


def _pairs(rng: np.random.Generator, series: int, rare: NDArray[np.bool_], wanted: int) -> tuple[I64, I64]:
    """Series and origins, int64[m] each, of `wanted` pairs and what lacks of RARE_SHARE of each kind of rare day, by series."""
    origins = rare.shape[1]
    parts = [_sample(rng, series * origins, wanted)]
    for kind in rare:
        share = float(kind.mean())
        if not 0.0 < share < RARE_SHARE:
            continue
        found = np.flatnonzero(kind)
        extra_series, at = np.divmod(_sample(rng, series * len(found), int((RARE_SHARE - share) * wanted)), len(found))
        parts.append(extra_series * origins + found[at])
    chosen_series, at = np.divmod(np.sort(np.concatenate(parts)), origins)
    return chosen_series, at


def _sample(rng: np.random.Generator, total: int, wanted: int) -> I64:
    """At most `wanted` different numbers below `total`, ascending."""
    if total <= 4 * wanted:
        return np.sort(rng.choice(total, size=min(total, wanted), replace=False))
    return np.unique(rng.integers(0, total, size=wanted))


def held_out(buckets: int, wanted: int = HOLD_OUT) -> int:
    """Newest buckets that training leaves to the gate: `wanted`, at most a quarter of what lies beyond the first origin."""
    return max(0, min(wanted, (buckets - LEAST_HISTORY - HORIZON_STEPS) // 4))


def rows_of(history: HistoryBlock, which: I64, ends: I64, known: Covariates = NONE_KNOWN, profiles: Profiles | None = None) -> Rows:
    """Pairs with what came after them; `ends` between 1 and b - 12. Quickest in order of the series."""
    v, r, b = history.mean.shape
    now_s = history.end_s - (b - ends) * BUCKET_S
    groups = None if profiles is None else profiles.of(known, which, now_s)
    asked = _Asked(which, ends, now_s)
    return _rows(history.mean.reshape(v * r, b), history.peak.reshape(v * r, b), history.capacity, asked, known, groups)


def _rows(means: F32, peaks: F32, capacity: F32, asked: _Asked | Newborn, known: Covariates, groups: F32 | None) -> Rows:  # noqa: PLR0917
    which, ends = asked.which, asked.ends
    limits = capacity.reshape(-1).astype(np.float64)
    features = describe(means, peaks, limits, which=which, ends=ends, now_s=asked.now_s, known=known, groups=groups)
    ahead = ends[:, None] + np.arange(HORIZON_STEPS)
    actual = means[which[:, None], ahead].astype(np.float64)
    coming = peaks[which[:, None], ahead].astype(np.float64)
    came = np.isfinite(coming)
    highest = np.where(came, coming, -np.inf).max(axis=1)
    peak = np.where(came.sum(axis=1) > HORIZON_STEPS // 2, highest, np.nan)
    return Rows(asked.now_s, features, np.where(np.isfinite(actual), actual, np.nan), peak)


def _mean_of(z: F64) -> F64:
    """Mean target of each pair's steps; NaN where none came."""
    count = np.isfinite(z).sum(axis=1)
    mean: F64 = np.where(count > 0, np.nan_to_num(z).sum(axis=1) / np.maximum(count, 1), np.nan)
    return mean


def _fit(rows: F32, targets: F64, quantiles: tuple[float, ...], *, seed: int, rounds: int, parameters: dict[str, Any]) -> Forest:
    import lightgbm  # noqa: PLC0415  (1.7 s and 120 MiB that only training pays)

    parameters = {**parameters, "min_data_in_leaf": max(5, min(parameters["min_data_in_leaf"], len(rows) // 40))}
    data = lightgbm.Dataset(rows, label=targets, params={"max_bin": parameters["max_bin"], "verbosity": -1}, free_raw_data=False)
    texts = []
    for quantile in quantiles:
        booster = lightgbm.train({**parameters, "alpha": quantile, "seed": seed}, data, num_boost_round=rounds)
        texts.append(booster.model_to_string())
    return parse(texts)
