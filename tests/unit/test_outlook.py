"""The six-hour outlook: blocks, awkward series, gaps, late data, shards, events, and that it finds what the day repeats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from coordinator.compute.local_pool import LocalPool
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.forecast.events.apply import outlook_with_events
from coordinator.forecast.events.effects import Lift
from coordinator.forecast.events.model import Effect, Notice, Occurrences, Scope
from coordinator.forecast.forecaster import Forecaster
from coordinator.forecast.outlook import BLOCK_S, join_outlooks
from coordinator.forecast.outlook.blocks import closes, fold
from coordinator.model import F32, LEVELS, N_RESOURCES, BucketBlock, HistoryBlock, Outlook
from coordinator.service.outlooks import outlook_view
from shared.units import BUCKET_S

END_S = 1_700_006_400 // BLOCK_S * BLOCK_S - BUCKET_S  # start of the newest bucket, which closes a half hour
OPTIONS = ForecastOptions(boosting=False, network=False, ring=600, replay=3)
MIDDLE = LEVELS.index(0.5)


def history(mean: F32, peak: F32 | None = None, capacity: float = 1e5, end_s: int = END_S) -> HistoryBlock:
    v = len(mean)
    return HistoryBlock(
        vm_ids=tuple(f"vm{i}" for i in range(v)),
        end_s=end_s,
        mean=mean,
        peak=mean if peak is None else peak,
        censored=np.zeros_like(mean),
        capacity=np.full((v, N_RESOURCES), capacity, dtype=np.float32),
    )


def bucket(mean: NDArray[np.float64], start_s: int, vm_ids: tuple[str, ...] | None = None) -> BucketBlock:
    names = vm_ids or tuple(f"vm{i}" for i in range(len(mean)))
    return BucketBlock.unlimited(start_s, names, mean)


def same(value: float, v: int = 1) -> NDArray[np.float64]:
    return np.full((v, N_RESOURCES), value)


def spread(series: NDArray[np.float64]) -> F32:
    """[v, b] -> [v, r, b], the same for every resource."""
    return np.repeat(series[:, None], N_RESOURCES, axis=1).astype(np.float32)


def days(count: int, v: int = 6, seed: int = 4) -> NDArray[np.float64]:
    """A day's course that repeats, with noise: quiet nights, a plateau by day that begins at once."""
    rng = np.random.default_rng(seed)
    b = (np.arange(count * 288) + (END_S + BUCKET_S) // BUCKET_S - count * 288) % 288
    course = np.where((b >= 96) & (b < 216), 900.0, 100.0)
    return course * rng.uniform(0.8, 1.2, (v, 1)) + rng.normal(0, 8.0, (v, count * 288))


def checked(outlook: Outlook | None, capacity: float = 1e5) -> Outlook:
    """It, if it keeps what it promises."""
    assert outlook is not None
    for part in (outlook.quantiles, outlook.peak_quantiles):
        told = np.isfinite(part)
        assert (told.all(axis=(2, 3)) == told.any(axis=(2, 3))).all()
        known = part[told.all(axis=(2, 3))]
        assert (np.diff(known, axis=-1) >= 0).all() and (known >= 0).all() and (known <= capacity).all()
    known = np.isfinite(outlook.quantiles)
    assert (outlook.peak_quantiles[known] >= outlook.quantiles[known]).all()
    return outlook


def told_after(engine: ForecastEngine | Forecaster, value: float = 50.0, start_s: int = END_S + BUCKET_S, v: int = 1) -> Outlook | None:
    return engine.advance(bucket(same(value, v), start_s), {}).outlook


def test_a_block_is_the_mean_of_its_known_buckets_and_their_highest_peak() -> None:
    means = np.array([1, 2, 3, 4, 5, 9, np.nan, np.nan, np.nan, np.nan, 4, 8, 6, np.nan, np.nan, np.nan, 2, 4], dtype=np.float32)
    mean, peak = fold(means, means * 2)
    np.testing.assert_allclose(mean, [4.0, np.nan, 4.0])
    np.testing.assert_allclose(peak, [18.0, np.nan, 12.0])
    mean, _ = fold(means[:3], means[:3])
    np.testing.assert_allclose(mean, [2.0])  # what lacks in front is unknown
    assert closes(1500) and not closes(1800) and closes(3300)


def test_it_comes_with_the_tick_after_a_half_hour_and_says_when_it_was_made() -> None:
    engine = ForecastEngine(OPTIONS)
    engine.load(history(spread(days(2))))
    issued = []
    for i in range(1, 20):
        said = told_after(engine, 100.0, END_S + i * BUCKET_S, v=6)
        if said is not None:
            issued.append((i, said.issued_s - END_S - BUCKET_S))
            assert checked(said).quantiles.shape == (6, N_RESOURCES, 12, len(LEVELS))
    # the first is that of the load; then the bucket that closes the half hour brings the means, the next one the peaks
    assert issued == [(1, 0), (7, BLOCK_S), (13, 2 * BLOCK_S), (19, 3 * BLOCK_S)]


@pytest.mark.parametrize(
    "series",
    [
        np.zeros(288),
        np.full(288, 7.0),
        np.where(np.arange(288) == 200, 1e6, 1.0),
        np.where(np.arange(288) % 7 < 5, np.nan, 3.0),
        np.where(np.arange(288) < 280, np.nan, 3.0),
        np.where(np.arange(288) > 200, np.nan, 3.0),
        np.where(np.arange(288) < 144, 1.0, 1e4),
        np.linspace(1e9, 0, 288),
        -np.ones(288),
        np.full(288, np.nan),
        *(np.full(n, 5.0) for n in range(1, 6)),
    ],
)
def test_awkward_series_raise_nothing_and_are_finite_or_silent(series: NDArray[np.float64]) -> None:
    engine = ForecastEngine(OPTIONS)
    engine.load(history(spread(np.stack([series, series * 3]))))
    for i in range(1, 26):
        value = np.nan if i % 5 == 0 else float(np.nan_to_num(series[-1]))
        said = told_after(engine, value, END_S + i * BUCKET_S, v=2)
        if said is not None:
            checked(said)


def test_it_speaks_once_two_hours_are_known() -> None:
    engine = ForecastEngine(OPTIONS)
    engine.load(history(np.zeros((0, N_RESOURCES, 0), dtype=np.float32)))
    first = {}
    for i in range(1, 32):
        said = told_after(engine, 40.0 + i % 3, END_S + i * BUCKET_S)
        if said is not None:
            first[i] = bool(np.isfinite(said.quantiles).all())
    assert first == {7: False, 13: False, 19: False, 25: True, 31: True}


def test_it_expects_the_morning_before_it_comes() -> None:
    past = days(5)
    morning = int(np.flatnonzero((past[0, :-1] < 400) & (past[0, 1:] > 400))[-1]) + 1
    cut = morning - 24  # two hours before
    engine = ForecastEngine(replace(OPTIONS, ring=2000))
    end_s = END_S - (past.shape[1] - cut) * BUCKET_S
    engine.load(history(spread(past[:, :cut]), end_s=end_s))
    said = checked(told_after(engine, 100.0, end_s + BUCKET_S, v=6))
    level = past[:, morning : morning + 60].mean(axis=1)
    at_night, by_day = said.quantiles[:, 0, 1, MIDDLE], said.quantiles[:, 0, 7, MIDDLE]
    assert (at_night < 0.3 * level).all()
    assert (by_day > 0.7 * level).all() and (by_day < 1.3 * level).all()
    assert (said.quantiles[:, 0, 1, LEVELS.index(0.9)] < 0.6 * level).all(), "sure of the night, too"


def test_bands_hold_what_they_promise_on_noise() -> None:
    rng = np.random.default_rng(11)
    values = rng.gamma(4.0, 25.0, (40, 5 * 288))
    engine = ForecastEngine(replace(OPTIONS, ring=2000))
    loaded = 4 * 288
    engine.load(history(spread(values[:, :loaded])))
    blocks = fold(spread(values[:, loaded:]), spread(values[:, loaded:]))[0]
    inside = []
    for i in range(288 - 72):
        said = engine.advance(bucket(np.repeat(values[:, loaded + i, None], N_RESOURCES, axis=1), END_S + (i + 1) * BUCKET_S), {}).outlook
        if said is not None:
            first = (said.issued_s - END_S - BUCKET_S) // BLOCK_S
            actual = blocks[:, :, first : first + 12]
            low, high = (said.quantiles[..., LEVELS.index(level)] for level in (0.1, 0.9))
            inside.append(((actual >= low) & (actual <= high))[:, 0])  # of the other resources this is below the least that counts
    covered = np.mean(inside)
    assert 0.75 < covered < 0.85, covered


def test_the_same_calls_give_the_same_bytes() -> None:
    def run() -> bytes:
        engine = ForecastEngine(OPTIONS)
        engine.load(history(spread(days(2))))
        said = [told_after(engine, 100.0 + i, END_S + i * BUCKET_S, v=6) for i in range(1, 14)]
        return b"".join(part.quantiles.tobytes() + part.peak_quantiles.tobytes() for part in said if part is not None)

    assert run() == run()


def test_a_gap_keeps_the_time_of_day() -> None:
    past = days(4)
    engine = ForecastEngine(replace(OPTIONS, ring=2000))
    hole = 100
    engine.load(history(spread(past[:, : -hole - 1]), end_s=END_S - (hole + 1) * BUCKET_S))
    said = None
    for i in range(18, -1, -1):  # an hour and a half after the silence
        said = engine.advance(bucket(np.repeat(past[:, -1 - i, None], N_RESOURCES, axis=1), END_S - i * BUCKET_S), {}).outlook or said
    outlook = checked(said)
    whole = ForecastEngine(replace(OPTIONS, ring=2000))
    whole.load(history(spread(past)))
    without = checked(told_after(whole, 100.0, v=6))
    assert outlook.issued_s == without.issued_s - BLOCK_S
    shifted = without.quantiles[:, 0, :11, MIDDLE]
    assert (np.abs(outlook.quantiles[:, 0, 1:, MIDDLE] - shifted) < 300.0).mean() > 0.8


def test_a_late_part_of_the_closing_bucket_is_taken_in() -> None:
    engine = ForecastEngine(OPTIONS)
    engine.load(history(spread(days(2)), end_s=END_S - BUCKET_S))
    engine.advance(bucket(same(100.0, 6), END_S), {})
    engine.advance(bucket(same(160.0, 1), END_S, ("late",)), {})
    said = checked(told_after(engine, 100.0, v=6))
    assert said.issued_s == END_S + BUCKET_S and said.vm_ids == tuple(f"vm{i}" for i in range(6))
    assert np.isfinite(said.quantiles).all()


def test_shards_join_to_what_one_would_say_of_each_vm() -> None:
    past = spread(days(2, v=8))
    blocks = []
    for shards in (1, 3):
        pool = LocalPool(OPTIONS, shards)
        pool.load_now(history(past))
        blocks.append(pool.forecast_now(bucket(same(100.0, 8), END_S + BUCKET_S), {}))
    alone, joined = (checked(block.outlook) for block in blocks)
    assert set(joined.vm_ids) == set(alone.vm_ids) and joined.issued_s == alone.issued_s
    order = np.array([joined.vm_ids.index(vm_id) for vm_id in alone.vm_ids])
    ratio = joined.quantiles[order][:, 0, :, MIDDLE] / alone.quantiles[:, 0, :, MIDDLE]
    assert np.median(np.abs(np.log(ratio))) < 0.2  # each shard has a fleet of its own to learn from


def one(issued_s: int, *vm_ids: str, value: float = 1.0) -> Outlook:
    shape = (len(vm_ids), N_RESOURCES, 12, len(LEVELS))
    said = np.full(shape, value, dtype=np.float32)
    return Outlook(issued_s=issued_s, vm_ids=vm_ids, quantiles=said, peak_quantiles=said, coverage=said[:, :, 0, 0])


def test_of_two_moments_the_newer_counts_and_of_one_moment_the_last_said() -> None:
    assert join_outlooks([]) is None
    newest = join_outlooks([one(0, "a"), one(1800, "b")])
    assert newest is not None and newest.vm_ids == ("b",)
    both = join_outlooks([one(0, "a", "b"), one(0, "b", "c", value=2.0)])
    assert both is not None and both.vm_ids == ("a", "b", "c")
    assert both.quantiles[:, 0, 0, 0].tolist() == [1.0, 2.0, 2.0]


def lift(steps: dict[int, float], issued_s: int = 0) -> Lift:
    shape = (1, N_RESOURCES, 72)
    mean, active = np.zeros(shape), np.zeros((1, 72), dtype=np.bool_)
    for step, amount in steps.items():
        mean[:, 0, step] = amount
        active[:, step] = True
    return Lift(issued_s=issued_s, mean=mean, mean_stddev=mean * 0, peak=mean * 2, peak_stddev=mean * 0, active=active)


def test_an_event_lifts_its_blocks_by_the_share_it_covers_and_their_peak_whole() -> None:
    base, free = one(0, "a", value=10.0), np.full((1, N_RESOURCES), np.nan)
    said = outlook_with_events(base, lift({12: 60.0, 13: 60.0, 14: 60.0}), free)
    np.testing.assert_allclose(said.quantiles[0, 0, :, MIDDLE], [10, 10, 40, *[10] * 9])
    np.testing.assert_allclose(said.peak_quantiles[0, 0, :, MIDDLE], [10, 10, 130, *[10] * 9])
    assert (said.quantiles[0, 1:] == 10).all()
    bounded = outlook_with_events(base, lift({12: 60.0}), np.full_like(free, 15.0))
    assert bounded.peak_quantiles.max() == 15.0
    assert outlook_with_events(base, lift({}), free) is base
    with pytest.raises(ValueError, match=r"issued_s 5: allowed that of the outlook, 0"):
        outlook_with_events(base, lift({1: 1.0}, issued_s=5), free)


def test_a_declared_campaign_is_in_the_outlook_hours_before() -> None:
    def said(calendar: Occurrences) -> Outlook:
        forecaster = Forecaster(OPTIONS)
        forecaster.announce(calendar)
        forecaster.load(history(spread(np.full((3, 576), 100.0) + np.arange(576) % 5)))
        return checked(told_after(forecaster, 100.0, v=3))

    nan = float("nan")
    notice = Notice(
        id="c", name="sale", category="campaign", scope=Scope(vm_ids=("vm1",)), effect=Effect(added=(500.0, nan, nan, nan, nan))
    )
    begin_s = END_S + BUCKET_S + 4 * 3600
    quiet, loud = said(Occurrences.none()), said(Occurrences.of([(notice, begin_s, begin_s + 3600)]))
    change = loud.quantiles[..., MIDDLE] - quiet.quantiles[..., MIDDLE]
    np.testing.assert_allclose(change[1, 0, 8:10], 500.0, rtol=0.02)
    assert np.abs(change[1, 0, :8]).max() == 0.0 and np.abs(change[[0, 2]]).max() == 0.0
    assert (loud.peak_quantiles[1, 0, 8:10, MIDDLE] > 590.0).all()


def test_the_view_leaves_out_what_is_not_known() -> None:
    outlook = one(1800, "a")
    outlook.quantiles[0, 1] = np.nan
    view = outlook_view(outlook, "a")
    assert view.issued_s == 1800 and view.levels == LEVELS
    assert [len(each.blocks) for each in view.resources] == [12, 0, 12, 12, 12]
    assert [block.start_s for block in view.resources[0].blocks[:2]] == [1800, 3600]
    for nothing in (outlook_view(outlook, "b"), outlook_view(None, "a")):
        assert nothing.issued_s is None and not any(each.blocks for each in nothing.resources)
