"""Scores to figures: the bars of the issue's table that speak of accuracy (rows 5 to 8 and 14), each with its verdict. Pure.

`ours` is the engine, `members` its single members in hindsight (the engine run with one member alone, so under the same calibrator),
`baselines` what anyone can run. The per-series oracle takes for every series the member that was best for it in hindsight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.forecast_protocol import BANDS, Score
from bench.report import Figure
from coordinator.model import F64

Scores = Mapping[str, Score]  # by forecaster
DRAWS: Final = 400


@dataclass(frozen=True, kw_only=True)
class PairResult:
    """Everything that was scored on one (set, resource), on the same origins and series."""

    pair: str
    ours: Score
    members: Scores
    baselines: Scores


def best(scores: Scores, of: str = "pinball") -> str:
    """Name of the forecaster with the least `of`."""
    return min(scores, key=lambda name: float(getattr(scores[name], of)))


def oracle(scores: Scores) -> float:
    """Pinball of the best member of each series in hindsight, weighted by scored points."""
    each = np.stack([score.by_series for score in scores.values()])
    points = next(iter(scores.values())).points
    there = ~np.isnan(each).all(axis=0) & (points > 0)
    return float((np.nanmin(each[:, there], axis=0) * points[there]).sum() / points[there].sum())


def ratio_interval(ours: Score, other: Score, seed: int = 0) -> tuple[float, float]:
    """90 % interval of the ratio of pinballs, series drawn again with replacement (both forecasters with the same draw)."""
    there = np.flatnonzero((ours.points > 0) & ~np.isnan(ours.by_series) & ~np.isnan(other.by_series))
    draws = np.random.default_rng(seed).choice(there, (DRAWS, len(there)))
    mine: F64 = (ours.by_series * ours.points)[draws].sum(axis=1)
    theirs: F64 = (other.by_series * other.points)[draws].sum(axis=1)
    low, high = np.quantile(mine / np.maximum(theirs, 1e-12), [0.05, 0.95])
    return float(low), float(high)


def at_most(name: str, value: float, bound: float, row: int, unit: str = "ratio") -> Figure:
    """A figure that must not exceed its bound."""
    return Figure(name=name, value=value, unit=unit, bar=f"<= {bound:g}", holds=bool(value <= bound), row=row)


def no_regret(results: Sequence[PairResult]) -> list[Figure]:
    """Row 6: against the best single member in hindsight, pair by pair, and against smoothing on Bitbrains."""
    figures, ratios = [], []
    for result in results:
        if result.members:
            name = best(result.members)
            ratios.append(result.ours.pinball / result.members[name].pinball)
            figures.append(at_most(f"{result.pair}: pinball / best single member ({name})", ratios[-1], 1.02, 6))
        rule = best(result.baselines)
        low, high = ratio_interval(result.ours, result.baselines[rule])
        label = f"{result.pair}: pinball / best rule ({rule}) [{low:.3f}, {high:.3f}]"
        figures.append(Figure(name=label, value=result.ours.pinball / result.baselines[rule].pinball, unit="ratio"))
        smooth = result.baselines["SES + pooled conformal"]
        if result.pair == "bitbrains memory":
            figures.append(at_most(f"{result.pair}: pinball / SES", result.ours.pinball / smooth.pinball, 0.85, 6))
        if result.pair == "bitbrains cpu":
            figures.append(at_most(f"{result.pair}: trimmed MASE / SES", result.ours.mase_trimmed / smooth.mase_trimmed, 0.95, 6))
    if ratios:
        figures.append(at_most("mean over pairs: pinball / best single member", float(np.mean(ratios)), 0.95, 6))
    return figures


def selection(results: Sequence[PairResult]) -> list[Figure]:
    """Row 7: better than the best fixed member everywhere, and how much of the way to the per-series oracle."""
    figures, gaps = [], []
    for result in results:
        if len(result.members) < 2:
            continue
        fixed = result.members[best(result.members)].pinball
        ideal = oracle(result.members)
        value = result.ours.pinball / fixed
        figures.append(
            Figure(name=f"{result.pair}: pinball / best fixed member", value=value, unit="ratio", bar="< 1", holds=value < 1, row=7)
        )
        if fixed - ideal > 1e-3 * fixed:  # one member best for every series: there is no way to go
            gaps.append((fixed - result.ours.pinball) / (fixed - ideal))
            figures.append(
                Figure(
                    name=f"{result.pair}: gap to per-series oracle closed",
                    value=gaps[-1],
                    unit="",
                    bar=">= 0.3",
                    holds=gaps[-1] >= 0.3,
                    row=7,
                )
            )
    if gaps:
        figures.append(Figure(name="median over pairs: gap closed", value=float(np.median(gaps)), unit="", row=7))
    return figures


def calibration(results: Sequence[PairResult]) -> list[Figure]:
    """Row 8: coverage by horizon, the upper bound overall, per volatility tercile and per VM; each pair, then all pairs alike."""
    figures = []
    for result in results:
        figures += _calibration(result.pair, [result.ours])
    return figures + _calibration("all pairs", [result.ours for result in results])


def _calibration(name: str, scores: Sequence[Score]) -> list[Figure]:
    figures = []
    for how in ("coverage", "closed_coverage"):
        mean = np.mean([getattr(score, how) for score in scores], axis=0)
        for (low, high), realised in zip(BANDS, mean, strict=True):
            nominal = high - low
            off = float(realised[np.argmax(np.abs(realised - nominal))] - nominal)
            label = f"{name}: {how.replace('_', ' ')} of {nominal:.0%}, worst step off by"
            figures.append(Figure(name=label, value=off, unit="", bar="within 0.02", holds=abs(off) <= 0.02, row=8))
    above = float(np.mean([score.above for score in scores]))
    figures.append(
        Figure(name=f"{name}: above the 97.5 % bound", value=above, unit="", bar="0.02 to 0.032", holds=0.02 <= above <= 0.032, row=8)
    )
    terciles = np.mean([score.above_by_tercile for score in scores if len(score.above_by_tercile) == 3], axis=0)
    if np.ndim(terciles):
        figures.append(at_most(f"{name}: above it, worst volatility tercile", float(np.max(terciles)), 0.04, 8, ""))
    poor = [score.poorly_covered for score in scores if not np.isnan(score.poorly_covered)]
    if poor:
        figures.append(at_most(f"{name}: VMs with < 90 % under it", float(np.mean(poor)), 0.01, 8, ""))
    return figures


def table(result: PairResult) -> str:
    """All forecasters of one pair, best pinball first."""
    rows = {"TIDEGATE": result.ours, **{f"member {name}": score for name, score in result.members.items()}, **result.baselines}
    lines = [
        f"\n{result.pair}: {int((result.ours.points > 0).sum())} series, {int(result.ours.points.sum())} scored values",
        f"  {'forecaster':<32} {'pinball':>8} {'trimmed':>8} {'MASE':>7} {'trimmed':>8} "
        f"{'cov80':>6} {'cov95':>6} {'>97.5':>6} {'CPU s':>7}",
    ]
    for name, score in sorted(rows.items(), key=lambda item: item[1].pinball):
        inner, outer = score.coverage.mean(axis=1)
        lines.append(
            f"  {name:<32} {score.pinball:>8.4f} {score.pinball_trimmed:>8.4f} {score.mase:>7.3f} {score.mase_trimmed:>8.3f} "
            f"{inner:>6.3f} {outer:>6.3f} {score.above:>6.3f} {score.cpu_s:>7.2f}"
            + (f"  no forecast for {score.silent:.1%}" if score.silent > 0 else "")
        )
    if len(result.members) > 1:
        lines.append(f"  {'oracle: best member per series':<32} {oracle(result.members):>8.4f}")
    return "\n".join(lines)
