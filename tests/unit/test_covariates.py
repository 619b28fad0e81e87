"""What LightGBM is told beside demand: right for every VM at every moment, and forecasts are better for it where it matters."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from coordinator.forecast.boosting import QuantileBooster, Settings, train
from coordinator.forecast.boosting.newborn import newborn
from coordinator.forecast.boosting.profiles import CELLS, MOST_GROUPS, Profiles, learn, packed, restored
from coordinator.forecast.calendar import DAY_FEATURES
from coordinator.forecast.covariates import NOBODY, Covariates, EventTimes, LocalDays, groups_of
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.forecast.events.model import Effect, Labels, Notice, Occurrences, Scope
from coordinator.forecast.events.public_holidays import holiday_spans
from coordinator.forecast.forecaster import Forecaster
from coordinator.forecast.surroundings import SignalWindow, Surroundings
from coordinator.model import N_RESOURCES, SIGNALS, BucketBlock, HistoryBlock
from coordinator.settings import forecast_options, local_days
from shared.config import CoordinatorConfig, ForecastConfig
from shared.errors import ConfigError
from shared.units import BUCKET_S

DAY = 288
DAY_S = 86_400
SCALE = np.array([500.0, 1e9, 1e6, 1e7, 1e7])[:, None]
QUICK = Settings(rounds=60, pairs=16_000)


def at(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp())  # type: ignore[arg-type]


def history(mean: np.ndarray, start_s: int, signals: np.ndarray | None = None, vm_ids: tuple[str, ...] = ()) -> HistoryBlock:
    return HistoryBlock(
        vm_ids=vm_ids or tuple(f"vm{i}" for i in range(len(mean))),
        end_s=start_s + (mean.shape[2] - 1) * BUCKET_S,
        mean=mean,
        peak=mean * np.float32(1.2),
        censored=np.zeros_like(mean),
        capacity=np.full(mean.shape[:2], np.nan, dtype=np.float32),
        signals=signals,
    )


def noisy(shape: np.ndarray, v: int, seed: int = 0) -> np.ndarray:
    """`shape` [b] or [v, b] as the demand of every resource, float32[v, r, b]."""
    noise = np.random.default_rng(seed).lognormal(0.0, 0.05, (v, N_RESOURCES, shape.shape[-1]))
    return (SCALE * np.atleast_2d(shape)[:, None, :] * noise).astype(np.float32)


def medians(model: bytes, mean: np.ndarray, start_s: int, end: int, known: Covariates) -> np.ndarray:
    """Median forecasts [v, r, 12] after `end` buckets, in units of SCALE."""
    series = mean.reshape(-1, mean.shape[2])
    booster = QuantileBooster(model)
    found = booster.describe(series, series, np.full(len(series), np.nan), end=end, now_s=start_s + (end - 1) * BUCKET_S, known=known)
    return np.asarray(booster.bucket_quantiles(found)[1].reshape(*mean.shape[:2], 12) / SCALE)


# ---- days


def working_days(days: int, start_s: int, free: list[int], closing: list[int]) -> np.ndarray:
    """Work from eight to six, none on free days, twice as much on the days on which books are closed."""
    now = start_s + BUCKET_S * np.arange(days * DAY)
    hour, day = now % DAY_S / 3600, (now - start_s) // DAY_S
    work = np.where((hour >= 8) & (hour < 18), np.where(np.isin(day, closing), 9.0, 3.0), 1.0)
    return np.where(np.isin(day, free), 1.0, work)


def test_a_holiday_is_foretold_as_one_where_its_country_was_named() -> None:
    start_s, days = at(2026, 4, 1), 45
    spans = holiday_spans("DE", UTC, [2026])
    free = [day for day in range(days) if any(begin <= start_s + day * DAY_S < end for begin, end in spans)]
    assert free == [2, 5, 30, 43]  # Good Friday, Easter Monday, first of May, Ascension
    mean = noisy(working_days(days, start_s, free, []), 5)
    seen = history(mean[:, :, : 43 * DAY], start_s)
    end = 43 * DAY + 8 * 12 - 3  # Ascension, a quarter to eight
    said = {}
    for name, known in (("named", Covariates(days=LocalDays(holidays=(tuple(map(tuple, spans.tolist())),)))), ("not named", Covariates())):
        model = train(seen, settings=Settings(rounds=50, pairs=10_000), known=known)
        assert model is not None
        said[name] = medians(model, mean, start_s, end, known)[:, :, 4:]
    assert (said["named"] < 1.5).mean() > 0.95
    assert (said["not named"] > 2.0).mean() > 0.95


def test_the_end_of_the_month_is_foretold_from_those_before() -> None:
    start_s, days = at(2026, 1, 1), 119
    closing = [day for day in range(days) if datetime.fromtimestamp(start_s + (day + 1) * DAY_S, UTC).day == 1]
    mean = noisy(working_days(days + 1, start_s, [], [*closing, days]), 5)  # Thursday 30 April is the fourth
    model = train(history(mean[:, :, : days * DAY], start_s), settings=Settings(pairs=32_000))
    assert model is not None
    last, ordinary = (medians(model, mean, start_s, day * DAY + 8 * 12 - 3, Covariates())[:, :, 4:] for day in (days, days - 2))
    assert (ordinary < 3.6).all()
    assert np.median(last) > 4.5  # of nine: a third of the way at least, where nothing else tells the days apart
    assert (last > ordinary).mean() > 0.95


def test_days_begin_where_the_operator_is() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    days = LocalDays(zone=berlin, holidays=(tuple(map(tuple, holiday_spans("DE", berlin, [2026]).tolist())),))
    found = days.features(np.array([at(2026, 7, 31, 21, 55), at(2026, 7, 31, 22), at(2025, 12, 31, 23), at(2026, 1, 1, 23)]))
    month_end, holiday, after = (DAY_FEATURES.index(name) for name in ("to_month_end", "holiday", "after_holiday"))
    assert found[:2, month_end].tolist() == [1, 0]  # summer time: midnight is 22:00 UTC
    assert found[:, holiday].tolist() == [0, 0, 1, 0]
    assert found[3, after] == 1


def test_two_countries_share_a_holiday_or_half_of_one() -> None:
    both = LocalDays(holidays=tuple(tuple(map(tuple, holiday_spans(name, UTC, [2026]).tolist())) for name in ("DE", "AT")))
    found = both.features(np.array([at(2026, 12, 25, 9), at(2026, 10, 26, 9), at(2026, 6, 9, 9)]))[:, DAY_FEATURES.index("holiday")]
    assert found.tolist() == [1.0, 0.5, 0.0]  # Austria's national day
    ahead = both.holiday_ahead(np.array([at(2026, 12, 24, 23, 30)]))
    assert ahead is not None
    assert ahead[0].tolist() == [0.0] * 5 + [1.0] * 7
    assert LocalDays().holiday_ahead(np.array([0])) is None


def test_broken_spans_are_refused() -> None:
    with pytest.raises(ValueError, match="ascending"):
        LocalDays(holidays=(((5, 9), (9, 12)),))
    with pytest.raises(ValueError, match="17 countries: allowed 16"):
        LocalDays(holidays=((),) * 17)


def test_the_setting_reaches_the_engine_and_names_what_is_wrong() -> None:
    config = CoordinatorConfig(forecast=ForecastConfig(holidays=("DE-BY", "AT")), time_zone="Europe/Berlin")
    days = forecast_options(config).days
    assert days == local_days(config)
    assert (days.zone, len(days.holidays)) == (ZoneInfo("Europe/Berlin"), 2)
    epiphany = (at(2026, 1, 5, 23), at(2026, 1, 6, 23))
    assert any(begin <= epiphany[0] and epiphany[1] <= end for begin, end in days.holidays[0])
    assert forecast_options(CoordinatorConfig()).days == LocalDays(zone=ZoneInfo("UTC"))
    with pytest.raises(ConfigError, match=r"forecast\.holidays\[1\]: holidays 'QQ'.*allowed an ISO 3166 country \(DE\)"):
        local_days(CoordinatorConfig(forecast=ForecastConfig(holidays=("DE", "QQ"))))
    with pytest.raises(ConfigError, match="time_zone"):
        local_days(CoordinatorConfig(time_zone="Mars/Olympus"))


# ---- events


def notice(name: str, **scope: object) -> Notice:
    return Notice(id=name, name=name, category=name, scope=Scope(**scope), effect=Effect())  # type: ignore[arg-type]


def test_each_vm_has_the_times_of_its_own_events() -> None:
    calendar = Occurrences.of(
        [
            (notice("all"), 3000, 3600),
            (notice("all"), 9000, 9600),
            (notice("acme", client="acme"), 3600, 4200),  # touches the one before: one span
            (notice("b", vm_ids=frozenset("b")), 6000, 6300),
            (notice("far"), 10**9, 10**9 + 300),
        ]
    )
    labels = [Labels(client="acme"), Labels(client="acme"), Labels()]
    found = EventTimes.between(calendar, ("a", "b", "c"), labels, 0, 86_400)
    own = [found.spans[found.first[held] : found.first[held + 1]].tolist() for held in found.of]
    assert own == [
        [[3000, 4200], [9000, 9600]],
        [[3000, 4200], [6000, 6300], [9000, 9600]],
        [[3000, 3600], [9000, 9600]],
    ]
    alone = EventTimes.between(Occurrences.of([(notice("b", vm_ids=frozenset("b")), 6000, 6300)]), ("a", "b"), labels[:2], 0, 86_400)
    assert alone.of.tolist() == [NOBODY, 0]


def test_what_leads_up_to_an_event_is_foretold() -> None:
    start_s, rng = at(2026, 3, 2), np.random.default_rng(5)
    buckets = 10 * DAY
    begins = {f"vm{v}": np.sort(rng.choice(np.arange(24, buckets - 24, 36), size=30, replace=False)) for v in range(6)}
    shape = np.ones((6, buckets))
    for v, own in enumerate(begins.values()):
        for begin in own:
            shape[v, begin - 4 : begin] = 4.0  # caches are warmed for twenty minutes; the event itself is EventShard's
    mean = noisy(shape, 6)
    rows = [
        (notice(vm_id, vm_ids=frozenset({vm_id})), start_s + int(begin) * BUCKET_S, start_s + int(begin + 2) * BUCKET_S)
        for vm_id, own in begins.items()
        for begin in own
    ]
    told = Surroundings(LocalDays(), DAY)
    told.announce(Occurrences.of(rows))
    past = history(mean[:, :, : 9 * DAY], start_s)
    known = told.during(past.vm_ids, start_s, past.end_s, None)
    model = train(past, settings=QUICK, known=known)
    assert model is not None
    vm = 0
    begin = next(int(begin) for begin in begins["vm0"] if begin > 9 * DAY + 12)
    now_s = start_s + (begin - 9) * BUCKET_S
    told.rearrange(np.full(6, -1), past.vm_ids)
    with_it = medians(model, mean, start_s, begin - 8, told.at(now_s))[vm]
    without = medians(model, mean, start_s, begin - 8, Covariates())[vm]
    assert (with_it[:, :3] < 2.0).all()
    assert (with_it[:, 4:8] > 2.5).mean() > 0.8
    assert (without[:, 4:8] < 2.0).all()


# ---- whose VM it is


def test_groups_are_numbers_that_mean_the_same_everywhere() -> None:
    found = groups_of([Labels(client="a", app="web"), Labels(client="b", app="web"), Labels(), Labels(client="a", app="web")])
    assert (found[0] == found[3]).all()
    assert found[0, 1] != found[1, 1]  # two clients' web
    assert found[2].tolist() == [NOBODY, NOBODY]
    assert groups_of([]).shape == (0, 2)


def test_a_new_vm_rises_with_its_siblings() -> None:
    start_s, days = at(2026, 3, 2), 9
    hour = (np.arange(days * DAY) % DAY) // 12
    shapes = np.stack([np.where((hour >= 6 + 2 * client) & (hour < 12 + 2 * client), 4.0, 1.0) for client in (0, 1, 2, 3)])
    of = np.arange(16) % 4
    mean = noisy(shapes[of], 16)
    past = history(mean[:, :, : 8 * DAY], start_s)
    labels = [Labels(client=f"client{client}") for client in of]
    known = Covariates(groups=groups_of(labels))
    fresh = mean[:4].copy()
    end = 8 * DAY + 8 * 12 - 3  # a quarter to eight: client 1 begins in a quarter of an hour
    fresh[:, :, : 8 * DAY + 3 * 12] = np.nan  # born at three this night
    model = train(past, settings=Settings(pairs=32_000), known=known)
    blind = train(past, settings=QUICK)
    assert model is not None and blind is not None
    siblings, strangers = Covariates(groups=groups_of(labels[:4])), Covariates(groups=groups_of([Labels(client="nobody else")] * 4))
    told, untold = medians(model, fresh, start_s, end, siblings), medians(blind, fresh, start_s, end, Covariates())
    rises, rests = [1], [2, 3]  # client 0 works since six
    assert np.median(told[rises, :, 5:]) > 1.6
    assert (untold[rises, :, 5:] < 1.2).all()
    assert (told[rests] < 1.3).all()
    assert np.isfinite(medians(model, fresh, start_s, end, strangers)).all()


def test_who_is_shown_on_his_first_day_is_shown_nothing_of_the_newest_windows() -> None:
    past = history(noisy(np.ones(2 * DAY), 4), at(2026, 3, 2))
    known = Covariates(groups=groups_of([Labels(client="acme")] * 3 + [Labels()]))
    found = newborn(np.random.default_rng(0), past, known, 400, 1000)
    assert found is not None
    assert len(found.which) == 150
    assert np.isnan(found.means[:, :, :DAY]).all()
    assert np.isfinite(found.means[:, :, DAY:]).all()
    assert set(found.original // N_RESOURCES) == {0, 1, 2}  # who has no label has no siblings
    ends = (found.now_s - at(2026, 3, 2)) // BUCKET_S + 1
    assert ends.max() + 12 <= 400
    for i in range(20):
        row, resource = divmod(int(found.original[i]), N_RESOURCES)
        newest = found.means.reshape(-1, found.means.shape[2])[found.which[i], found.ends[i] - 1]
        assert newest == past.mean[row, resource, ends[i] - 1]
    assert newborn(np.random.default_rng(0), past, Covariates(), 400, 1000) is None
    assert newborn(np.random.default_rng(0), past, known, 100, 1000) is None


def test_what_a_forecaster_is_told_reaches_the_trees() -> None:
    days = LocalDays(zone=ZoneInfo("Europe/Berlin"))
    forecaster = Forecaster(ForecastOptions(network=False, ring=300, replay=0, days=days))
    now_s = at(2026, 3, 2)
    forecaster.announce(Occurrences.of([(notice("acme", client="acme"), now_s + 3600, now_s + 7200)]))
    forecaster.label({"vm0": Labels(client="acme", app="shop")})
    forecaster.load(history(noisy(np.ones(60), 2), now_s - 59 * BUCKET_S))
    known = forecaster.engine._surroundings.at(now_s)
    assert known.days == days
    assert known.events is not None and known.groups is not None
    assert known.events.of.tolist() == [0, NOBODY]
    np.testing.assert_array_equal(known.groups, groups_of([Labels(client="acme", app="shop"), Labels()]))
    forecaster.announce(Occurrences.none())
    forecaster.label({})
    nothing = forecaster.engine._surroundings.at(now_s)
    assert (nothing.events, nothing.groups) == (None, None)


def test_a_pair_is_not_told_of_its_own_future() -> None:
    groups = np.array([[7, NOBODY], [7, NOBODY]])
    which, now_s = np.array([0, 0, N_RESOURCES]), np.zeros(3, dtype=np.int64)
    target = np.array([5.0, 5.0, -5.0])
    learnt = learn(Covariates(groups=groups), which, now_s, target)
    apart = learnt.apart(Covariates(groups=groups), which, now_s)
    assert apart is not None
    assert apart[0, 0] < 0 < apart[2, 0]  # of the other VM alone
    assert np.isnan(apart[:, 1]).all()
    both = learnt.every.of(Covariates(groups=groups), which, now_s)
    assert both is not None
    assert both[0, 0] == both[2, 0] > 0
    assert learn(Covariates(), which, now_s, target).apart(Covariates(), which, now_s) is None


def test_profiles_travel_and_broken_ones_are_refused() -> None:
    profiles = Profiles(numbers=np.array([3, 9]), values=np.ones((2, CELLS), dtype=np.float32))
    back = restored(packed(profiles))
    np.testing.assert_array_equal(back.numbers, profiles.numbers)
    np.testing.assert_array_equal(back.values, profiles.values)
    good = dict(packed(profiles))
    for bad in (
        {"numbers": good["numbers"]},
        {**good, "values": good["values"][:-4]},
        {**good, "values": np.full(2 * CELLS, np.nan, dtype="<f4").tobytes()},
        {**good, "numbers": np.array([9, 3], dtype="<i8").tobytes()},
        {"numbers": np.arange(MOST_GROUPS + 1, dtype="<i8").tobytes(), "values": np.ones((MOST_GROUPS + 1) * CELLS, "<f4").tobytes()},
    ):
        with pytest.raises(ValueError, match="profiles of"):
            restored(bad)


# ---- what applications tell


def test_signals_follow_the_fleet_and_hold_nothing_until_somebody_tells() -> None:
    window = SignalWindow(4)
    window.rearrange(np.array([-1, -1]))
    window.append(None)
    window.append(np.full((2, 2), np.nan))
    assert window.newest is None
    for k in range(1, 7):
        window.append(np.array([[k, -k], [10 * k, np.inf]], dtype=np.float64))
    assert window.newest is not None
    np.testing.assert_array_equal(window.newest[:, 0], [[3, 4, 5, 6], [30, 40, 50, 60]])
    assert np.isnan(window.newest[1, 1]).all()  # infinite is not known
    window.rearrange(np.array([1, -1, 0]))
    window.append(None)  # a bucket that never came
    window.merge_newest(np.array([[np.nan, 1.0], [7.0, np.nan], [np.nan, np.nan]]))
    np.testing.assert_array_equal(window.newest[:, 0], [[40, 50, 60, np.nan], [np.nan, np.nan, np.nan, 7], [4, 5, 6, np.nan]])
    assert window.newest[0, 1, -1] == 1.0


def queues(v: int, days: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Surges of half an hour at random times: demand [v, r, b], and signals [v, signal, b] whose queue grows ten minutes before."""
    rng = np.random.default_rng(seed)
    shape, queue = np.ones((v, days * DAY)), np.full((v, days * DAY), 5.0)
    for vm in range(v):
        for begin in np.sort(rng.choice(np.arange(20, days * DAY - 20, 24), size=6 * days, replace=False)):
            shape[vm, begin : begin + 6] = 4.0
            queue[vm, begin - 2 : begin + 3] = 50.0
    signals = np.full((v, len(SIGNALS), days * DAY), np.nan, dtype=np.float32)
    signals[:, SIGNALS.index("queue_length")] = queue
    return noisy(shape, v, seed), signals


def test_a_queue_that_grows_foretells_demand() -> None:
    start_s = at(2026, 3, 2)
    mean, signals = queues(6, 9)
    told, untold = Covariates(signals=signals[:, :, : 8 * DAY]), Covariates()
    past = history(mean[:, :, : 8 * DAY], start_s)
    errors = {}
    for name, known in (("told", told), ("untold", untold)):
        model = train(past, settings=QUICK, known=known)
        assert model is not None
        ends = range(8 * DAY + 12, 9 * DAY - 12, 5)
        now = [Covariates(signals=signals[:, :, :end]) if name == "told" else untold for end in ends]
        said = np.stack([medians(model, mean[:, :, :end], start_s, end, seen) for end, seen in zip(ends, now, strict=True)])
        actual = np.stack([mean[:, :, end : end + 12] / SCALE for end in ends])
        errors[name] = np.abs(said - actual)[..., :6].mean()
    assert errors["told"] < 0.8 * errors["untold"]


def test_the_engine_keeps_signals_through_starts_gaps_and_changes_of_the_fleet() -> None:
    start_s, ids = at(2026, 3, 2), ("a", "b", "c")
    mean, signals = queues(3, 3, seed=4)
    options = ForecastOptions(network=False, ring=600, replay=12, examples=4000)
    teacher = ForecastEngine(options)
    teacher.label({"a": Labels(client="acme")})
    model = teacher.retrain(history(*_upto(mean, signals, 2 * DAY, start_s), ids))
    assert model is not None

    def started(buckets: int, order: tuple[int, ...] = (0, 1, 2), with_signals: bool = True) -> ForecastEngine:
        engine = ForecastEngine(options)
        engine.label({"a": Labels(client="acme")})
        engine.install(model)
        rows = list(order)
        part = mean[rows][:, :, :buckets]
        engine.load(history(part, start_s, signals[rows][:, :, :buckets] if with_signals else None, tuple(ids[i] for i in rows)))
        return engine

    def advanced(engine: ForecastEngine, b: int, rows: tuple[int, ...] = (0, 1, 2), with_signals: bool = True) -> np.ndarray:
        return engine.advance(_bucket(mean, signals if with_signals else None, b, rows, ids, start_s), {}).quantiles

    def engine_signals(engine: ForecastEngine, b: int) -> np.ndarray:
        found = engine._surroundings.at(start_s + b * BUCKET_S).signals
        assert found is not None
        return found

    whole, stepped = started(700), started(640)
    for b in range(640, 700):
        if b != 650:
            advanced(stepped, b)
    left, right = engine_signals(whole, 699), engine_signals(stepped, 699)
    gap = 650 - (700 - DAY)
    np.testing.assert_array_equal(np.delete(left, gap, axis=2), np.delete(right, gap, axis=2))
    assert np.isnan(right[:, :, gap]).all()
    advanced(whole, 700, (2, 0))  # b says nothing
    heard = engine_signals(whole, 700)
    np.testing.assert_array_equal(heard[[0, 2], 1, -1], signals[[0, 2], 1, 700])
    assert np.isnan(heard[1, :, -1]).all()
    deaf = advanced(started(650, with_signals=False), 650, with_signals=False)
    assert not np.array_equal(deaf, advanced(started(650), 650))


def _upto(mean: np.ndarray, signals: np.ndarray, b: int, start_s: int) -> tuple[np.ndarray, int, np.ndarray]:
    return mean[:, :, :b], start_s, signals[:, :, :b]


def _bucket(mean: np.ndarray, signals: np.ndarray | None, b: int, rows: tuple[int, ...], ids: tuple[str, ...], start_s: int) -> BucketBlock:
    values = mean[list(rows)][:, :, b].astype(np.float64)
    return BucketBlock.unlimited(
        start_s + b * BUCKET_S,
        tuple(ids[i] for i in rows),
        values,
        values * 1.2,
        signals=None if signals is None else signals[list(rows)][:, :, b].astype(np.float64),
    )
