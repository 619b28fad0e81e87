"""Features of the global model: against plain numpy, blind to the future, finite whatever comes, alike in training and forecasting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coordinator.forecast.covariates import Covariates, EventTimes, LocalDays
from coordinator.forecast.features import CALENDAR, FLOORS, STATIC, STEP, Features, calendar_of, describe, floor_of
from coordinator.model import N_RESOURCES, SIGNALS

NOW_S = 1_700_000_100
BUCKETS = 2100


def noise(n: int, b: int = BUCKETS, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).lognormal(0, 0.4, (n, b)) * 1e8).astype(np.float32)


def at(means: np.ndarray, peaks: np.ndarray | None = None, end: int | None = None, **known: object) -> Features:
    n = len(means)
    ends = np.full(n, means.shape[1] if end is None else end)
    seconds = np.full(n, NOW_S)
    tops = means if peaks is None else peaks
    return describe(means, tops, np.full(n, np.nan), which=np.arange(n), ends=ends, now_s=seconds, **known)


def value(found: Features, name: str, row: int = 0) -> float:
    scaled = found.series[row, STATIC.index(name)]
    return float(scaled * found.unit[row] + found.anchor[row])


def top(found: Features, name: str, row: int = 0) -> float:
    return float(found.series[row, STATIC.index(name)] * found.peak_unit[row] + found.peak_anchor[row])


def test_windows_are_what_numpy_says() -> None:
    means, peaks = noise(N_RESOURCES), noise(N_RESOURCES, seed=1)
    found = at(means, peaks)
    for row in range(N_RESOURCES):
        own = means[row].astype(float)
        assert value(found, "lag_0", row) == pytest.approx(own[-1], rel=1e-5)
        assert value(found, "lag_11", row) == pytest.approx(own[-12], rel=1e-5)
        assert value(found, "hour_low", row) == pytest.approx(np.quantile(own[-12:], 0.1), rel=1e-5)
        assert value(found, "hours3_q75", row) == pytest.approx(np.quantile(own[-36:], 0.75), rel=1e-5)
        assert value(found, "hours6_median", row) == pytest.approx(np.quantile(own[-71::2][-36:], 0.5), rel=1e-5)
        assert value(found, "mean_day", row) == pytest.approx(own[-288:].mean(), rel=1e-5)
        assert found.unit[row] == pytest.approx(
            np.abs(np.diff(own[-288:])).sum() / 288 + floor_of(own[None, -288:].mean(axis=1).repeat(5))[row]
        )
        assert top(found, "top_hour", row) == pytest.approx(peaks[row, -12:].max(), rel=1e-5)
        assert top(found, "top_day", row) == pytest.approx(peaks[row, -288:].max(), rel=1e-5)
        assert top(found, "top_yesterday", row) == pytest.approx(peaks[row, -288:-276].max(), rel=1e-5)
        hours = [peaks[row, len(peaks[row]) - 12 - 6 * j :][:12].max() for j in range(47)]
        assert top(found, "tops_day_median", row) == pytest.approx(np.median(hours), rel=1e-5)


def test_steps_are_what_numpy_says() -> None:
    means = noise(2 * N_RESOURCES)
    found = at(means)
    for row in range(len(means)):
        own = means[row].astype(float)
        smooth = np.convolve(own, np.ones(3) / 3, mode="same")
        for step in (0, 5, 11):
            days = [smooth[BUCKETS + step - 288 * d] for d in range(1, 8)]
            said = found.steps[row, step] * found.unit[row] + found.anchor[row]
            assert said[STEP.index("profile")] == pytest.approx(np.median(days), rel=1e-5)
            assert said[STEP.index("last_week")] == pytest.approx(days[6], rel=1e-5)
            assert said[STEP.index("hour_ago")] == pytest.approx(own[BUCKETS + step - 12], rel=1e-5)
            assert said[STEP.index("hours_median")] == pytest.approx(
                np.median([own[BUCKETS + step - 12 * k] for k in range(1, 7)]), rel=1e-5
            )
            assert found.steps[row, step, STEP.index("step")] == step + 1


def test_the_anchor_is_the_forecast_that_did_best_of_late() -> None:
    rng = np.random.default_rng(3)
    walk = 1e9 + 1e6 * np.cumsum(rng.normal(size=(N_RESOURCES, 600)), axis=1)
    noisy = 1e9 + 1e8 * rng.normal(size=(N_RESOURCES, 600))
    noisy[:, ::17] *= 5.0  # spikes: medians win
    found = at(np.concatenate([walk, noisy]).astype(np.float32))
    error = np.abs(found.anchor[:N_RESOURCES] - walk[:, -1]) / np.abs(np.diff(walk)).mean()
    assert (error < 2.5).all()
    assert (np.abs(found.anchor[N_RESOURCES:] - 1e9) < 1e8).all()


def test_nothing_after_the_origin_is_read() -> None:
    means = noise(N_RESOURCES)
    later = means.copy()
    later[:, 1500:] = 7.0
    for a, b in zip(at(means, end=1500), at(later, end=1500), strict=True):
        np.testing.assert_array_equal(a, b)


def test_origins_of_a_whole_array_are_those_of_its_slices() -> None:
    means = noise(N_RESOURCES)
    which, ends = np.array([0, 0, 3, 4]), np.array([40, 900, 2100, 13])
    seconds = NOW_S + ends * 300
    whole = describe(means, means, np.full(5, 1e9), which=which, ends=ends, now_s=seconds)
    for i, (row, end) in enumerate(zip(which, ends, strict=True)):
        one = describe(
            means[:, :end], means[:, :end], np.full(5, 1e9), which=np.array([row]), ends=np.array([end]), now_s=seconds[i : i + 1]
        )
        for a, b in zip(whole, one, strict=True):
            np.testing.assert_array_equal(a[i], b[0])


numbers = st.one_of(st.just(float("nan")), st.floats(-(2.0**99), 2.0**99, width=32), st.sampled_from([0.0, np.inf, -np.inf]))


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (N_RESOURCES, 320), elements=numbers, fill=st.sampled_from([0.0, np.nan, 5.0, 1e12])), st.integers(1, 320))
def test_whatever_comes_features_are_finite_or_unknown(data: np.ndarray, end: int) -> None:
    found = at(data, end=end)
    assert not np.isinf(found.series).any()
    assert not np.isinf(found.steps).any()
    for scale in (found.anchor, found.unit, found.peak_anchor, found.peak_unit):
        assert np.isfinite(scale).all()
    assert (found.unit > 0).all()
    assert (found.peak_unit > 0).all()
    known = found.readings > 0
    assert np.isfinite(found.series[known][:, : STATIC.index("log_capacity")]).all()
    assert np.isnan(found.series[~known][:, : STATIC.index("resource")]).all()


def test_calendar_knows_the_day_the_hour_and_the_end_of_the_month() -> None:
    thursday = 1_709_251_200 - 86_400 + 13 * 3600 + 25 * 60  # 29 February 2024, 13:25 UTC
    row = dict(zip(CALENDAR, calendar_of(np.array([thursday, thursday + 2 * 86_400]))[0], strict=True))
    assert (row["hour"], row["slot_of_hour"], row["to_month_end"], row["from_month_start"]) == (13, 5, 1, 0)
    assert row["day_of_month"] == pytest.approx(28 / 29)
    assert np.isnan(row["holiday"])  # no country was named
    saturday = calendar_of(np.array([thursday + 2 * 86_400]))[0]
    assert saturday[CALENDAR.index("weekend")] == 1
    assert saturday[CALENDAR.index("to_month_end")] == 0


def test_covariates_reach_the_columns_of_their_vm_and_stay_unknown_where_absent() -> None:
    means = noise(2 * N_RESOURCES)
    signals = np.full((2, len(SIGNALS), 300), np.nan, dtype=np.float32)  # shorter than demand: both end with the newest bucket
    signals[1, 0] = 50.0
    signals[1, 0, -12:] = 100.0
    signals[1, 0, -1] = 200.0
    first = NOW_S + 300
    spans = np.array([[first - 2400, first - 900], [first + 1200, first + 1800]])
    events = EventTimes(spans, np.array([0, 2]), np.array([-1, 0]))
    known = Covariates(days=LocalDays(holidays=(((first + 1500, first + 90_000),), ())), events=events, signals=signals).checked(2)
    found = at(means, known=known, groups=np.array([[0.25, np.nan]], dtype=np.float32).repeat(10, axis=0))

    def told(name: str) -> np.ndarray:
        return found.series[5:, STATIC.index(name)]

    level = (276 * 50 + 11 * 100 + 200) / 288
    assert told("requests_per_s_now") == pytest.approx(200 / level, rel=1e-5)
    assert told("requests_per_s_change") == pytest.approx(100 / level, rel=1e-5)
    assert told("requests_per_s_to_hour") == pytest.approx(200 / (1300 / 12), rel=1e-5)
    assert told("requests_per_s_yesterday") == pytest.approx(50 / level, rel=1e-5)
    assert np.isnan(told("queue_length_now")).all()
    assert np.isnan(found.series[:5, STATIC.index("requests_per_s_now")]).all()
    assert (found.series[:, STATIC.index("client")] == 0.25).all()
    assert np.isnan(found.series[:, STATIC.index("application")]).all()
    assert (told("event_in"), told("event_ago")) == (pytest.approx(4), pytest.approx(4))
    ahead, since = (found.steps[5, :, STEP.index(name)] for name in ("to_event", "since_event"))
    np.testing.assert_array_equal(ahead, [4, 3, 2, 1, *[np.nan] * 8])  # nothing within an event, nothing after the last
    np.testing.assert_array_equal(since, [4, 5, 6, 7, np.nan, np.nan, 1, 2, 3, 4, 5, 6])
    assert np.isnan(found.steps[:5, :, STEP.index("to_event") :]).all()
    np.testing.assert_array_equal(found.steps[:, :, STEP.index("holiday")], [[0] * 5 + [0.5] * 7] * 10)  # one of two calendars
    plain = at(means)
    for name in ("holiday", "to_event", "since_event"):
        assert np.isnan(plain.steps[:, :, STEP.index(name)]).all()


def test_signals_end_with_the_newest_bucket_of_demand_whatever_the_origin() -> None:
    means = noise(N_RESOURCES, 400)
    signals = np.arange(2 * 400, dtype=np.float32).reshape(1, 2, 400) + 1.0
    whole = at(means, end=390, known=Covariates(signals=signals))
    one = at(means[:, :390], known=Covariates(signals=signals[:, :, :390]))
    np.testing.assert_array_equal(whole.series, one.series)
    longer = at(means[:, 100:390], known=Covariates(signals=signals[:, :, :390]))
    name = STATIC.index("queue_length_now")
    np.testing.assert_array_equal(whole.series[:, name], longer.series[:, name])


def test_covariates_of_another_shape_are_named() -> None:
    with pytest.raises(ValueError, match=r"signals \(3, 2, 9\): allowed \(2, 2, any\)"):
        Covariates(signals=np.zeros((3, 2, 9), dtype=np.float32)).checked(2)
    with pytest.raises(ValueError, match=r"groups \(2,\): allowed \(2, 2\)"):
        Covariates(groups=np.zeros(2, dtype=np.int64)).checked(2)
    with pytest.raises(ValueError, match=r"events of \(1,\) VMs: allowed \(2,\)"):
        Covariates(events=EventTimes.none(1)).checked(2)


def test_floors_are_per_resource_and_never_below_half_a_percent() -> None:
    assert floor_of(np.zeros(10)).tolist() == [*FLOORS, *FLOORS]
    assert floor_of(np.full(5, 1e12)).tolist() == [5e9] * 5
