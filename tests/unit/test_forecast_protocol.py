"""How forecasts are scored: worked examples, nothing after the origin is seen, ties, and the figures that rest on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bench import forecast_foundation as foundation
from bench.forecast_bars import PairResult, calibration, no_regret, oracle, ratio_interval, selection, table
from bench.forecast_baselines import BASELINES, decayed, empirical
from bench.forecast_plots import CoveragePanel, Fan, FanPanel, coverage_charts, fan_charts
from bench.forecast_protocol import SCORED_LEVELS, Issued, Score, actuals, dense, evaluate, pinball, scales_of, score, shared_rank
from bench.headroom import Hours, hours_of, tuned_margin, windowed_maxima
from bench.traces import Pair, Trace
from coordinator.model import LEVELS, N_RESOURCES
from shared.units import CPU, HORIZON_STEPS, NET_RX


def trace(values: np.ndarray, loaded: int, resources: tuple[int, ...] = (CPU,)) -> Trace:
    """values [v, b] for each of `resources`."""
    data = np.full((len(values), N_RESOURCES, values.shape[1]), np.nan, dtype=np.float32)
    for r in resources:
        data[:, r] = values
    return Trace(
        name="made up",
        start_s=0,
        vm_ids=tuple(f"vm{i}" for i in range(len(values))),
        mean=data,
        peak=data,
        train_mean=data,
        train_peak=data,
        loaded=loaded,
        pairs=tuple(Pair(name=f"made up {r}", resources=(r,)) for r in resources),
    )


def noisy(v: int = 6, b: int = 260, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 100.0, (v, b))


def said(trace: Trace, value: np.ndarray | float) -> Issued:
    shape = (len(dense(trace)), len(trace.mean), len(trace.resources), HORIZON_STEPS, len(LEVELS))
    return Issued(np.broadcast_to(np.asarray(value, dtype=np.float32), shape))


def test_pinball_of_a_worked_example() -> None:
    quantiles = np.full((1, len(LEVELS)), 10.0, dtype=np.float32)
    over = pinball(quantiles, np.array([14.0], dtype=np.float32))
    under = pinball(quantiles, np.array([6.0], dtype=np.float32))
    assert over[0] == pytest.approx(4 * np.mean(SCORED_LEVELS))
    assert under[0] == pytest.approx(4 * np.mean([1 - level for level in SCORED_LEVELS]))


def test_score_of_a_constant_miss_is_the_miss_over_the_scale() -> None:
    made = trace(np.tile([100.0, 120.0], (2, 60)), loaded=60)
    assert scales_of(made)[0][0, 0] == pytest.approx(20.0)
    found = evaluate(made, lambda trace, _: said(trace, 105.0))["made up 0"]
    assert found.mase == pytest.approx((5 + 15) / 2 / 20)
    assert found.silent == 0
    assert found.points.tolist() == [len(dense(made)) * HORIZON_STEPS] * 2


def test_scale_has_a_floor_and_a_series_without_history_is_not_scored() -> None:
    values = np.zeros((2, 100))
    values[1, :60] = np.nan
    made = trace(values, loaded=60)
    scales, _ = scales_of(made)
    assert scales[0, 0] == 5.0
    assert np.isnan(scales[1, 0])
    assert evaluate(made, BASELINES["EmpQ36"])["made up 0"].points[1] == 0


def test_a_forecast_that_is_missing_counts_as_silent() -> None:
    made = trace(noisy(2), loaded=200)
    quiet = np.zeros((1, 2, 1, 1, 1)) + np.array([np.nan, 1.0]).reshape(1, 2, 1, 1, 1)
    assert evaluate(made, lambda trace, _: said(trace, quiet))["made up 0"].silent == pytest.approx(0.5)


def test_actuals_are_the_buckets_after_the_origin() -> None:
    made = trace(np.arange(100.0)[None], loaded=50)
    found = actuals(made.mean, made, np.array([50, 95]))
    assert found[0, 0, 0].tolist() == list(range(51, 63))
    assert found[1, 0, 0, :4].tolist() == [96, 97, 98, 99]
    assert np.isnan(found[1, 0, 0, 4:]).all()


def test_an_origin_in_the_history_is_refused() -> None:
    with pytest.raises(ValueError, match="origins 10 to 10: allowed 50 to 98"):
        evaluate(trace(noisy(1, 100), loaded=50), empirical(12), np.array([10]))


@pytest.mark.parametrize("name", BASELINES)
def test_rules_see_nothing_after_the_origin(name: str) -> None:
    before = trace(noisy(), loaded=200, resources=(CPU, NET_RX))
    origins = dense(before)[:20]
    changed = before.mean.copy()
    changed[..., origins[-1] + 1 :] = 1e6
    after = replace(before, mean=changed, peak=changed)
    one, two = BASELINES[name](before, origins), BASELINES[name](after, origins)
    np.testing.assert_array_equal(one.quantiles, two.quantiles)
    assert one.quantiles.shape == (20, 6, 2, HORIZON_STEPS, len(LEVELS))
    assert (np.diff(one.quantiles, axis=-1) >= 0).all()
    assert np.isfinite(one.quantiles).all()


@pytest.mark.parametrize("name", BASELINES)
def test_rules_bridge_gaps(name: str) -> None:
    values = noisy(3)
    values[0, 20:] = np.nan  # silent since long
    values[1, ::2] = np.nan
    issued = BASELINES[name](trace(values, loaded=200), np.arange(200, 220))
    assert np.isfinite(issued.quantiles).all()


def test_empirical_quantiles_of_independent_noise_cover_what_they_say() -> None:
    made = trace(noisy(40, 700), loaded=400)
    found = evaluate(made, empirical(288))["made up 0"]
    assert found.coverage[0] == pytest.approx(np.full(HORIZON_STEPS, 0.8), abs=0.015)
    assert found.closed_coverage[1] == pytest.approx(np.full(HORIZON_STEPS, 0.95), abs=0.015)
    assert found.above == pytest.approx(0.025, abs=0.01)
    assert found.poorly_covered == 0


def test_ties_share_their_rank() -> None:
    zero = np.zeros((1, len(LEVELS)), dtype=np.float32)
    low, high = shared_rank(zero, np.zeros(1, dtype=np.float32))
    assert (low[0], high[0]) == (0.0, 1.0)
    made = trace(np.zeros((3, 300)), loaded=200)
    found = evaluate(made, empirical(72))["made up 0"]
    np.testing.assert_allclose(found.coverage, np.array([[0.8], [0.95]]) * np.ones(HORIZON_STEPS), atol=1e-6)
    assert found.closed_coverage.min() == 1.0
    assert found.above == pytest.approx(0.025, abs=1e-5)
    assert found.plain_above == 0


def test_rank_without_ties_lies_between_the_levels() -> None:
    quantiles = np.arange(10.0, 10.0 + len(LEVELS), dtype=np.float32)[None]
    for actual, between in ((9.5, (0.0, 0.025)), (12.5, (0.25, 0.5)), (30.0, (0.99, 1.0))):
        low, high = shared_rank(quantiles, np.array([actual], dtype=np.float32))
        assert low[0] == high[0]
        assert between[0] < low[0] < between[1]


def test_decayed_percentiles_forget_and_bound_from_above() -> None:
    series = np.concatenate([np.full(300, 1000.0), np.full(300, 10.0)])[None]
    late = decayed(series, np.array([310, 599]), np.array([0.5, 0.9]), half_life=36)
    assert 1000 <= late[0, 0, 1] <= 1000 * 1.05
    assert 10 <= late[0, 1, 0] <= 10.5
    assert late[0, 1, 1] <= 10.5  # eight half-lives later nothing is left of the old level


def scores() -> tuple[Score, Score, Score]:
    made = trace(noisy(8), loaded=200)
    wide = evaluate(made, BASELINES["EmpQ72"])["made up 0"]
    return wide, evaluate(made, BASELINES["EmpQ36"])["made up 0"], evaluate(made, BASELINES["naive (empirical)"])["made up 0"]


def test_oracle_is_never_worse_than_any_member_and_is_the_best_per_series() -> None:
    wide, narrow, last = scores()
    pool = {"a": wide, "b": narrow, "c": last}
    each = np.minimum(np.minimum(wide.by_series, narrow.by_series), last.by_series)
    assert oracle(pool) == pytest.approx(np.average(each, weights=wide.points))
    assert oracle(pool) <= min(score.pinball for score in pool.values()) + 1e-6


def test_interval_of_a_ratio_holds_the_ratio() -> None:
    wide, _, last = scores()
    low, high = ratio_interval(wide, last)
    assert low <= wide.pinball / last.pinball <= high
    assert ratio_interval(wide, wide) == (1.0, 1.0)


def test_figures_name_their_rows_and_decide() -> None:
    wide, narrow, last = scores()
    rules = {"SES + pooled conformal": last, "EmpQ36": narrow}
    result = PairResult(pair="bitbrains memory", ours=wide, members={"naive": last, "wide": wide}, baselines=rules)
    by_name = {figure.name: figure for figure in no_regret([result]) + selection([result]) + calibration([result])}
    assert by_name["bitbrains memory: pinball / best single member (wide)"].value == pytest.approx(1.0)
    assert by_name["bitbrains memory: pinball / best single member (wide)"].holds is True
    assert by_name["bitbrains memory: pinball / best fixed member"].holds is False  # as good is not better
    assert by_name["bitbrains memory: pinball / SES"].value == pytest.approx(wide.pinball / last.pinball)
    assert by_name["mean over pairs: pinball / best single member"].row == 6
    assert {figure.row for figure in by_name.values()} == {0, 6, 7, 8}
    assert "TIDEGATE" in table(result)


def test_deciles_lie_between_their_neighbours_and_keep_what_is_known() -> None:
    quantiles = np.cumsum(np.ones(len(LEVELS), dtype=np.float32))
    found = foundation.deciles_of(quantiles)
    assert found[0] == pytest.approx(quantiles[LEVELS.index(0.1)])
    assert found[4] == pytest.approx(quantiles[LEVELS.index(0.5)])
    assert found[8] == pytest.approx(quantiles[LEVELS.index(0.9)])
    assert (np.diff(found) > 0).all()


def test_margin_violates_the_target_share_exactly() -> None:
    rng = np.random.default_rng(5)
    demand = rng.lognormal(0, 1, (50, 20))
    hours = Hours(demand=demand, unit=np.full(20, demand.mean()))
    allocation = np.ones_like(demand)
    for target in (0.05, 0.01):
        margin = hours.margin(allocation, target)
        assert hours.violated(allocation * margin) == pytest.approx(target, abs=1e-9)
    assert hours.cost(demand) == pytest.approx(1.0)
    assert np.isinf(hours.margin(np.zeros_like(demand), 0.05))
    assert tuned_margin(hours, {"nothing": np.zeros_like(demand)}, 0.05)[0] == np.inf


def test_hours_and_windows_meet_at_the_origin() -> None:
    values = np.zeros((1, 100))
    values[0, 60], values[0, 61] = 7.0, 9.0
    made = trace(values, loaded=50)
    origins = np.array([60])
    assert hours_of(made, made.pairs[0], origins).demand[0, 0] == 9.0
    assert dict(windowed_maxima(made, made.pairs[0], origins))["max of 1 h"][0, 0] == 7.0


def test_an_hour_with_gaps_is_left_out() -> None:
    values = np.ones((1, 100))
    values[0, 62:66] = np.nan
    made = trace(values, loaded=50)
    assert np.isnan(hours_of(made, made.pairs[0], np.array([60])).demand[0, 0])


def test_plots_are_well_formed(tmp_path: Path) -> None:
    quantiles = np.cumsum(np.ones((HORIZON_STEPS, len(LEVELS))), axis=1)
    values = np.append(np.arange(30.0), np.nan)
    fan_charts([FanPanel(title="a < b & c", first=0, values=values, fans=(Fan(origin=10, quantiles=quantiles),))], tmp_path / "fans.svg")
    curve = np.full(HORIZON_STEPS, 0.8)
    coverage_charts([CoveragePanel(title="x", curves=(("80 %", 0.8, curve),))] * 4, tmp_path / "coverage.svg")
    fans = ElementTree.parse(tmp_path / "fans.svg").getroot()
    assert len(fans.findall("{http://www.w3.org/2000/svg}polygon")) == 3
    assert len(ElementTree.parse(tmp_path / "coverage.svg").getroot().findall("{http://www.w3.org/2000/svg}rect")) == 5


def test_scale_at_the_origin_follows_the_series() -> None:
    calm_then_wild = np.concatenate([np.tile([100.0, 101.0], 100), np.tile([100.0, 300.0], 100)])[None]
    made = trace(calm_then_wild, loaded=200)
    origins = np.array([380])
    issued = empirical(12)(made, origins)
    fixed = score(made, origins, issued)["made up 0"].mase
    local = score(made, origins, issued, at_origin=100)["made up 0"].mase
    assert local == pytest.approx(fixed * scales_of(made)[0][0, 0] / 200.0, rel=1e-3)
