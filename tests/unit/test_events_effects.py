"""What events do is learnt from what they did: first occurrences from others or from what is declared, misses and moves followed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from forecast_blocks import forecast_block
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.forecast.events.apply import with_events
from coordinator.forecast.events.effects import EventEffects
from coordinator.forecast.events.kernels import AFTER, PHASES, onset, phase
from coordinator.forecast.events.model import Effect, Labels, Notice, Occurrences, Scope
from coordinator.forecast.events.replay import without_events
from coordinator.forecast.events.shard import EventShard
from coordinator.forecast.rows import NEW
from coordinator.model import F64, LEVELS, N_RESOURCES, BucketBlock, ForecastBlock, HistoryBlock
from shared.units import BUCKET_S, CPU, DISK, HORIZON_STEPS, MEMORY

DAY_S = 86_400
NIGHT_S = 7200
LEVEL, NOISE = 100.0, 4.0
LONG = 9  # buckets
NORMAL = np.array([-1.96, -1.28, -0.67, 0.0, 0.67, 1.28, 1.64, 1.96, 2.33])
NAN = float("nan")


def notice(id_: str = "backup", scope: Scope | None = None, category: str = "backup", **declared: float) -> Notice:
    added = tuple(declared.get("cpu", NAN) if r == CPU else NAN for r in range(N_RESOURCES))
    factor = tuple(declared.get("cpu_factor", NAN) if r == CPU else NAN for r in range(N_RESOURCES))
    return Notice(id=id_, name=id_, category=category, scope=scope or Scope(), effect=Effect(added=added, factor=factor))


def nightly(*days: int, of: Notice | None = None, later_s: int = 0) -> list[tuple[Notice, int, int]]:
    starts = [day * DAY_S + NIGHT_S + later_s for day in days]
    return [(of or notice(), start, start + LONG * BUCKET_S) for start in starts]


def base_at(issued_s: int, vm_ids: Sequence[str], level: float = LEVEL) -> ForecastBlock:
    shape = (len(vm_ids), N_RESOURCES, HORIZON_STEPS)
    quantiles = np.broadcast_to((level + NOISE * NORMAL).astype(np.float32), (*shape, len(LEVELS)))
    return forecast_block(
        tuple(vm_ids), issued_s, level, stddev=np.full(shape, NOISE, dtype=np.float32), quantiles=quantiles, models=("flat",)
    )


class Night:
    """A fleet whose level never changes, but for events: `amount` [v] on `resource` while `real(bucket start)`."""

    def __init__(self, vms: int, rows: list[tuple[Notice, int, int]], amount: Sequence[float], resource: int = DISK) -> None:
        self.vm_ids = [f"vm{i}" for i in range(vms)]
        self.effects = EventEffects()
        self.effects.rearrange(np.full(vms, NEW), self.vm_ids)
        self.effects.announce(Occurrences.of(rows))
        self.amount, self.resource = np.asarray(amount, dtype=np.float64), resource
        self.capacity = np.full((vms, N_RESOURCES), np.nan)
        self.rng = np.random.default_rng(3)
        self.bare: list[F64] = []

    def go(self, from_s: int, until_s: int, real: Callable[[int], bool]) -> None:
        for start_s in range(from_s, until_s, BUCKET_S):
            self.effects.lift(base_at(start_s, self.vm_ids), self.capacity)
            demand = LEVEL + self.rng.normal(0.0, NOISE, (len(self.vm_ids), N_RESOURCES))
            demand[:, self.resource] += self.amount * real(start_s)
            self.bare.append(self.effects.strip(start_s, demand, demand * 1.0)[0])
            self.effects.learn(start_s, demand, demand * 1.0)

    def foretold(self, issued_s: int) -> F64:
        """Mean lift [v, 12] of the resource."""
        return self.effects.lift(base_at(issued_s, self.vm_ids), self.capacity).mean[:, self.resource]


def at_night(start_s: int, later_s: int = 0) -> bool:
    return 0 <= start_s % DAY_S - NIGHT_S - later_s < LONG * BUCKET_S


def around(day: int) -> tuple[int, int]:
    return day * DAY_S + NIGHT_S - 3600, day * DAY_S + NIGHT_S + 2 * 3600


def test_every_bucket_of_an_event_has_one_phase() -> None:
    assert [phase(t, 9) for t in range(-1, 9 + AFTER + 1)] == [-1, 0, 1, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9, -1][: 9 + AFTER + 2]
    assert [phase(t, 1) for t in range(2)] == [0, 7]
    assert [phase(t, 2) for t in range(3)] == [0, 6, 7]
    for buckets in range(1, 400):
        found = [phase(t, buckets) for t in range(buckets + AFTER)]
        assert found == sorted(found)
        assert min(found) == 0
        assert max(found) < PHASES


def test_the_second_night_is_foretold_per_vm_and_only_during_the_event() -> None:
    night = Night(3, nightly(1, 2), [300.0, 500.0, 900.0])
    night.go(*around(1), at_night)
    issued_s = 2 * DAY_S + NIGHT_S - 2 * BUCKET_S
    lift = night.foretold(issued_s)
    assert np.allclose(lift[:, :2], 0.0)
    assert np.allclose(lift[:, 2:11], night.amount[:, None], rtol=0.25)
    assert np.all(np.abs(lift[:, 11]) < 20.0)
    other = night.effects.lift(base_at(issued_s, night.vm_ids), night.capacity).mean[:, MEMORY]
    assert np.all(np.abs(other) < 3 * NOISE)


def test_models_do_not_see_the_event() -> None:
    night = Night(3, nightly(1, 2), [300.0, 500.0, 900.0])
    for day in (1, 2):
        night.go(*around(day), at_night)
    assert np.all(np.abs(np.stack(night.bare)[:, :, DISK] - LEVEL) < 6 * NOISE)


def test_a_first_occurrence_is_foretold_from_the_clients_other_vms() -> None:
    first, second = Scope(vm_ids=frozenset(["vm0", "vm1", "vm3"])), Scope(vm_ids=frozenset(["vm2", "vm4"]))
    night = Night(5, nightly(1, of=notice("a", first)) + nightly(2, of=notice("b", second)), [400.0, 400.0, 0.0, 50.0, 0.0])
    night.effects.label({f"vm{i}": Labels(client="acme" if i < 3 else "other") for i in range(5)})
    night.go(*around(1), at_night)
    lift = night.foretold(2 * DAY_S + NIGHT_S)[:, 0]
    assert 300.0 < lift[2] < 450.0
    assert 0.0 < lift[4] < lift[2]
    assert np.all(lift[[0, 1, 3]] == 0.0)


def test_a_declared_effect_serves_until_something_was_measured() -> None:
    declared = notice(cpu=1500.0)
    night = Night(2, nightly(1, 2, 3, 4, of=declared), [500.0, 500.0], CPU)
    assert np.allclose(night.foretold(DAY_S + NIGHT_S)[:, :LONG], 1500.0)
    after = []
    for day in (1, 2, 3):
        night.go(*around(day), at_night)
        after.append(float(night.foretold((day + 1) * DAY_S + NIGHT_S)[0, 0]))
    assert 500.0 < after[-1] < after[0] < 1500.0
    assert after[-1] < 700.0


def test_a_declared_height_of_something_long_is_climbed_to_and_left_again() -> None:
    long = [(notice(cpu=1500.0), DAY_S + NIGHT_S, DAY_S + NIGHT_S + 30 * BUCKET_S)]
    night = Night(1, long, [0.0], CPU)
    first = night.foretold(DAY_S + NIGHT_S)[0]
    assert np.all(np.diff(first[:10]) > 0)
    assert 0.6 * 1500.0 < first[0] < 0.7 * 1500.0
    assert first[10] == pytest.approx(1500.0)
    for buckets in (1, 2, 9, 12):  # a job of up to an hour starts at once
        assert all(onset(t, buckets) == 1.0 for t in range(buckets))
    course = [onset(t, 30) for t in range(30)]
    assert course == course[::-1]
    assert onset(40, 30) == 1.0  # what overruns has no course of its own


def test_one_noisy_bucket_does_not_become_the_course_of_an_occurrence() -> None:
    night = Night(1, nightly(1, 2, 3), [500.0], CPU)
    night.go(*around(1), at_night)
    night.go(*around(2), at_night)
    begin = 3 * DAY_S + NIGHT_S
    night.go(around(3)[0], begin + 3 * BUCKET_S, lambda _: True)
    before = night.foretold(begin + 3 * BUCKET_S)[0, 1]
    night.amount = np.array([540.0])
    night.go(begin + 3 * BUCKET_S, begin + 4 * BUCKET_S, lambda _: True)
    assert night.foretold(begin + 4 * BUCKET_S)[0, 1] - before < 0.75 * 40.0


def test_a_declared_factor_is_of_the_level() -> None:
    night = Night(1, nightly(1, of=notice(cpu_factor=2.5)), [0.0], CPU)
    assert np.allclose(night.foretold(DAY_S + NIGHT_S)[0, :LONG], 1.5 * LEVEL)


def test_an_event_that_does_not_come_is_dropped_within_a_bucket_and_decays() -> None:
    night = Night(2, nightly(*range(1, 8)), [500.0, 500.0])
    for day in (1, 2):
        night.go(*around(day), at_night)
    begin = 3 * DAY_S + NIGHT_S
    night.go(around(3)[0], begin + BUCKET_S, lambda _: False)
    assert np.all(np.abs(night.foretold(begin + BUCKET_S)[:, :8]) < 50.0)
    before = float(night.foretold(4 * DAY_S + NIGHT_S)[0, 0])
    for day in (4, 5, 6):
        night.go(*around(day), lambda _: False)
    assert float(night.foretold(7 * DAY_S + NIGHT_S)[0, 0]) < min(0.6 * 500.0, before)
    assert np.all(np.abs(night.bare[-1] - LEVEL) < 6 * NOISE)


def test_a_moved_event_follows_the_calendar() -> None:
    night = Night(2, nightly(1, 2) + nightly(3, later_s=3600), [500.0, 500.0])
    for day in (1, 2):
        night.go(*around(day), at_night)
    assert np.all(night.foretold(3 * DAY_S + NIGHT_S)[:, :12] == 0.0)
    assert np.all(night.foretold(3 * DAY_S + NIGHT_S + 3600)[:, :LONG] > 400.0)


def test_an_occurrence_that_is_larger_than_ever_corrects_its_own_rest() -> None:
    night = Night(1, nightly(1, 2), [400.0])
    night.go(*around(1), at_night)
    night.amount[:] = 800.0
    begin = 2 * DAY_S + NIGHT_S
    night.go(around(2)[0], begin + 2 * BUCKET_S, at_night)
    assert np.all(night.foretold(begin + 2 * BUCKET_S)[0, :6] > 650.0)


def test_overlapping_entries_of_a_category_count_once() -> None:
    rows = [*nightly(1, 2), (notice("again"), 2 * DAY_S + NIGHT_S + 600, 2 * DAY_S + NIGHT_S + 1800)]
    night = Night(1, rows, [500.0])
    night.go(*around(1), at_night)
    assert np.all(night.foretold(2 * DAY_S + NIGHT_S)[0, :LONG] < 650.0)


def test_a_bucket_that_comes_twice_counts_once() -> None:
    one, two = (Night(1, nightly(1, 2), [500.0]) for _ in range(2))
    for night, times in ((one, 1), (two, 2)):
        for start_s in range(*around(1), BUCKET_S):
            night.effects.lift(base_at(start_s, night.vm_ids), night.capacity)
            demand = np.full((1, N_RESOURCES), LEVEL + 500.0 * at_night(start_s))
            for _ in range(times):
                night.effects.learn(start_s, demand, demand)
    assert np.array_equal(one.foretold(2 * DAY_S + NIGHT_S), two.foretold(2 * DAY_S + NIGHT_S))


def test_what_was_learnt_follows_the_fleet() -> None:
    night = Night(3, nightly(1, 2), [300.0, 500.0, 900.0])
    night.go(*around(1), at_night)
    before = night.foretold(2 * DAY_S + NIGHT_S)[:, 0]
    night.vm_ids, night.capacity = ["vm2", "new", "vm0"], np.full((3, N_RESOURCES), np.nan)
    night.effects.rearrange(np.array([2, NEW, 0]), night.vm_ids)
    after = night.foretold(2 * DAY_S + NIGHT_S)[:, 0]
    assert np.allclose(after[[0, 2]], before[[2, 0]])
    assert before[0] < after[1] < before[2]  # the newcomer gets what the category does


def test_history_is_stripped_and_learnt_from() -> None:
    buckets = 3 * 288
    starts = BUCKET_S * np.arange(buckets)
    rng = np.random.default_rng(1)
    demand = (LEVEL + rng.normal(0.0, NOISE, (2, N_RESOURCES, buckets))).astype(np.float32)
    demand[:, :, 40:44] = np.nan
    quiet = demand.copy()
    demand[:, DISK] += 500.0 * np.array([at_night(int(s)) for s in starts], dtype=np.float32)
    unlimited = np.full((2, N_RESOURCES), np.nan, dtype=np.float32)
    history = HistoryBlock(
        vm_ids=("vm0", "vm1"),
        end_s=int(starts[-1]),
        mean=demand,
        peak=demand,
        censored=demand * 0,
        capacity=unlimited,
    )
    night = Night(2, nightly(0, 1, 2, 3), [500.0, 500.0])
    bare = without_events(night.effects, history)
    assert np.array_equal(np.isnan(bare.mean), np.isnan(demand))
    assert np.nanmax(np.abs(bare.mean - quiet)) < 8 * NOISE
    assert np.allclose(night.foretold(3 * DAY_S + NIGHT_S)[:, :LONG], 500.0, rtol=0.2)


finite = st.floats(-1e6, 1e6)


def hour(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[float]]:
    return st.lists(values, min_size=HORIZON_STEPS, max_size=HORIZON_STEPS)


@settings(deadline=None, max_examples=25)
@given(hour(finite), hour(st.floats(0, 1e5)), st.integers(0, 12), st.floats(120, 1e4))
def test_quantiles_stay_ordered_and_within_capacity(lift: list[float], doubt: list[float], length: int, top: float) -> None:
    base = base_at(0, ["vm"])
    night = Night(1, [(notice(), 0, 300)], [0.0])
    shape = (1, N_RESOURCES, HORIZON_STEPS)
    active = (np.arange(HORIZON_STEPS) < length)[None]
    mean = np.broadcast_to(np.array(lift), shape) * active[:, None]
    spread = np.broadcast_to(np.array(doubt), shape) * active[:, None]
    asked = replace(night.effects.lift(base, night.capacity), mean=mean, peak=mean, mean_stddev=spread, peak_stddev=spread, active=active)
    capacity = np.full((1, N_RESOURCES), top)
    found = with_events(base, asked, capacity)
    if asked.idle:
        assert found is base
        return
    for quantiles in (found.quantiles, found.peak_quantiles):
        assert np.all(np.diff(quantiles, axis=-1) >= 0)
        touched = quantiles[..., :length, :] if length else quantiles[..., :0, :]
        assert np.all((touched >= 0) & (touched <= np.float32(top)))
        assert np.all(np.isfinite(quantiles))
    assert np.all(np.diff(found.peak_quantiles, axis=2) >= 0)


def test_a_lift_for_another_bucket_is_refused() -> None:
    night = Night(1, nightly(1), [0.0])
    lift = night.effects.lift(base_at(300, ["vm0"]), night.capacity)
    with pytest.raises(ValueError, match="issued_s 300"):
        with_events(base_at(0, ["vm0"]), lift, night.capacity)


class Flat:
    """An engine that always says LEVEL and keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[BucketBlock] = []
        self.loaded: HistoryBlock | None = None

    def load(self, history: HistoryBlock) -> None:
        self.loaded = history

    def advance(self, bucket: BucketBlock, capacity: object) -> ForecastBlock:
        self.shown.append(bucket)
        return base_at(bucket.start_s + BUCKET_S, bucket.vm_ids)

    def explain(self, vm_id: str) -> None:
        return None


def bucket(start_s: int, vm_ids: tuple[str, ...], extra: float) -> BucketBlock:
    values = np.full((len(vm_ids), N_RESOURCES), LEVEL)
    values[:, DISK] += extra
    return BucketBlock.unlimited(start_s, vm_ids, values)


def test_a_shard_hides_events_from_its_engine_and_announces_them_though_vms_come_and_go() -> None:
    engine = Flat()
    shard = EventShard(engine)
    shard.announce(Occurrences.of(nightly(1, 2)))
    for day in (1, 2):
        for start_s in range(*around(day), BUCKET_S):
            vms = ("vm0", "vm1") if start_s % 1500 else ("vm1", "late", "vm0")
            said = shard.advance(bucket(start_s, vms, 500.0 * at_night(start_s)), {"vm0": [1e4] * 5})
            assert said.vm_ids == vms
            if day == 2 and start_s == day * DAY_S + NIGHT_S - BUCKET_S:
                assert np.all(said.mean[:2, DISK, 0] > LEVEL + 400.0)
                assert np.all(said.peak_quantiles[:2, DISK, 11, 3] > LEVEL + 400.0)
    assert all(np.all(np.abs(shown.mean[:, DISK] - LEVEL) < 6 * NOISE) for shown in engine.shown)


def test_a_shard_without_events_changes_nothing() -> None:
    engine = Flat()
    shard = EventShard(engine)
    shown = bucket(300, ("vm0",), 250.0)
    said = shard.advance(shown, {})
    assert np.array_equal(engine.shown[0].mean, shown.mean)
    assert np.array_equal(said.quantiles, base_at(600, ("vm0",)).quantiles)


def test_a_shard_strips_the_history_it_loads() -> None:
    engine = Flat()
    shard = EventShard(engine)
    shard.announce(Occurrences.of(nightly(0)))
    demand = np.full((1, N_RESOURCES, 60), LEVEL, dtype=np.float32)
    demand[:, DISK, 24:33] += 500.0
    shard.load(HistoryBlock(vm_ids=("vm0",), end_s=59 * BUCKET_S, mean=demand, peak=demand, censored=demand * 0, capacity=demand[..., 0]))
    assert engine.loaded is not None
    assert np.all(np.abs(engine.loaded.mean - LEVEL) < 10.0)
