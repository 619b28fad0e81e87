"""Champion and challenger: a new model replaces the one in use only when it is better on the newest windows, unseen by both. Pure.

Both answer for the same (series, origin) pairs, whose horizons lie in the buckets that training holds out. The loss is the mean pinball
of all quantiles of bucket means and of the hour's peak, each in the series' own unit and capped, so that no single series decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.boosting.model import PEAK_QUANTILES, QUANTILES, QuantileBooster
from coordinator.forecast.boosting.training import LEAST_READINGS, Rows, Settings, held_out, rows_of, train
from coordinator.forecast.covariates import NONE_KNOWN, Covariates
from coordinator.forecast.features import STATIC
from coordinator.model import F64, HistoryBlock
from shared.units import HORIZON_STEPS

I64 = NDArray[np.int64]

PAIRS: Final = 4000
LEAST_PAIRS: Final = 100
CAP: Final = 30.0  # units; what a lost series can add
BASELINE: Final = ("hours3_low", "hours3_median", "hours3_high")  # what stands in for the first champion
PEAK_BASELINE: Final = ("hours8_median", "hours8_q90", "tops_day_q90")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Losses are mean pinballs in units of each series; NaN = could not be measured."""

    promote: bool
    champion_loss: float
    challenger_loss: float
    pairs: int
    why: str


def gate(
    champion: bytes | None,
    challenger: bytes | None,
    history: HistoryBlock,
    seed: int = 0,
    *,
    settings: Settings | None = None,
    known: Covariates = NONE_KNOWN,
) -> Verdict:
    """Judge on the newest windows of `history`, the one that the challenger was trained on with the same settings.

    Without a champion the challenger must beat the empirical quantiles of the last hours. Raises ValueError for bytes that are no model.
    """
    if challenger is None:
        return _refused("no challenger: too little history to train on")
    b = history.mean.shape[2]
    unseen = held_out(b, (settings or Settings()).hold_out)
    rng = np.random.default_rng(seed)
    ends = np.arange(b - unseen, b - HORIZON_STEPS + 1)
    live = np.flatnonzero(np.isfinite(history.mean[..., b - unseen :]).any(axis=2))
    if not len(ends) or not len(live):
        return _refused(f"{unseen} unseen buckets of {len(live)} series: no whole hour to judge on")
    which = np.sort(rng.choice(live, size=PAIRS))
    at = rng.choice(ends, size=PAIRS)
    challenger_loss, pairs = _loss_of(challenger, history, which, at, known)
    if pairs < LEAST_PAIRS:
        return _refused(f"{pairs} windows with readings: fewer than {LEAST_PAIRS} tell nothing")
    if champion is None:
        champion_loss, name = _baseline_loss(history, which, at, known), "the last three hours' quantiles"
    else:
        champion_loss, name = _loss_of(champion, history, which, at, known)[0], "the champion"
    promote = challenger_loss < champion_loss
    why = f"challenger {challenger_loss:.4f} {'below' if promote else 'not below'} {champion_loss:.4f} of {name} on {pairs} unseen windows"
    return Verdict(promote=promote, champion_loss=champion_loss, challenger_loss=challenger_loss, pairs=pairs, why=why)


def challenge(
    champion: bytes | None, history: HistoryBlock, seed: int = 0, *, settings: Settings | None = None, known: Covariates = NONE_KNOWN
) -> tuple[bytes | None, Verdict]:
    """Train and judge, in one pure call for a task elsewhere: (the model to use from now on, why).

    A champion that this code cannot read (another version's) counts as none.
    """
    if champion is not None:
        try:
            QuantileBooster(champion)
        except ValueError:
            champion = None
    challenger = train(history, seed, settings=settings, known=known)
    verdict = gate(champion, challenger, history, seed, settings=settings, known=known)
    return challenger if verdict.promote else champion, verdict


def _refused(why: str) -> Verdict:
    return Verdict(promote=False, champion_loss=float("nan"), challenger_loss=float("nan"), pairs=0, why=why)


def _loss_of(model: bytes, history: HistoryBlock, which: I64, ends: I64, known: Covariates) -> tuple[float, int]:
    """Loss of a model and the number of pairs it was measured on."""
    booster = QuantileBooster(model)
    rows = rows_of(history, which, ends, known, booster.profiles)
    return _loss(rows, booster.bucket_quantiles(rows.features), booster.peak_quantiles(rows.features))


def _baseline_loss(history: HistoryBlock, which: I64, ends: I64, known: Covariates) -> float:
    """Loss of empirical quantiles: of the last three hours' means, and of the hourly maxima of eight hours and a day."""
    rows = rows_of(history, which, ends, known)
    found = rows.features
    said = [found.series[:, STATIC.index(name)] * found.unit + found.anchor for name in BASELINE]
    peaks = [found.series[:, STATIC.index(name)] * found.peak_unit + found.peak_anchor for name in PEAK_BASELINE]
    return _loss(rows, np.repeat(np.stack(said)[:, :, None], HORIZON_STEPS, axis=2), np.stack(peaks))[0]


def _loss(rows: Rows, said: F64, peaks: F64) -> tuple[float, int]:
    good = (rows.features.readings >= LEAST_READINGS) & np.isfinite(rows.actual).any(axis=1)
    if not good.any():
        return float("nan"), 0
    means = _pinball(rows.actual[good] - said[:, good], QUANTILES, rows.features.unit[good, None])
    tops = _pinball(rows.peak[good] - peaks[:, good], PEAK_QUANTILES, rows.features.peak_unit[good])
    return (means if np.isnan(tops) else (means + tops) / 2), int(good.sum())


def _pinball(errors: F64, quantiles: tuple[float, ...], unit: F64) -> float:
    """Mean capped pinball in units; errors = actual - said, [q, ...]."""
    levels = np.array(quantiles).reshape(-1, *([1] * (errors.ndim - 1)))
    losses = np.minimum(np.maximum(levels * errors, (levels - 1.0) * errors) / unit, CAP)
    return float(np.mean(losses[np.isfinite(losses)])) if np.isfinite(losses).any() else float("nan")
