"""Why this forecast: what is told of each stage is what the stages did, so that the issued numbers can be recomputed from it."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hard_series import hard_series

from coordinator.forecast.calibrate import BAND
from coordinator.forecast.combine import CUT, GROUP_MIDDLES, GROUP_SIZES, SHARPNESS
from coordinator.forecast.engine import OFF_COVERAGE, ForecastEngine, ForecastOptions
from coordinator.forecast.events.model import Effect, Labels, Notice, Occurrences, Scope
from coordinator.forecast.explain import buckets_to_recover, reason_why
from coordinator.forecast.forecaster import Forecaster
from coordinator.forecast.kernels.hours import SOURCES
from coordinator.forecast.locality import COLD_BUCKETS
from coordinator.forecast.why import ForecastWhy
from coordinator.model import LEVELS, N_RESOURCES, BucketBlock, ForecastBlock, HistoryBlock, NoForecast
from coordinator.service.why import forecast_why_view
from shared.units import BUCKET_S, CPU, HORIZON_STEPS, MEMORY, MIB, RESOURCES

T0 = 1_700_006_400 // 86_400 * 86_400
LEAN = ForecastOptions(boosting=False, network=False, ring=600, replay=36)
SCALE = np.array([1000.0, 512.0 * MIB, 1e6, 1e7, 1e7])
CEILING = [4000.0, 4096.0 * MIB, math.nan, math.nan, math.nan]
SHOWN = [LEVELS.index(0.5), *BAND]


def fleet(v: int, b: int, seed: int = 0) -> np.ndarray:
    """Each VM noisier than the one before it."""
    spread = np.linspace(0.05, 0.4, v)[:, None, None]
    noise = np.exp(np.random.default_rng(seed).normal(0.0, 1.0, (v, N_RESOURCES, b)) * spread)
    return (noise * SCALE[:, None]).astype(np.float32)


def history(mean: np.ndarray) -> HistoryBlock:
    return HistoryBlock(
        vm_ids=tuple(f"vm{i}" for i in range(len(mean))),
        end_s=T0,
        mean=mean,
        peak=mean * np.float32(1.2),
        censored=np.zeros_like(mean),
        capacity=np.tile(np.array(CEILING, dtype=np.float32), (len(mean), 1)),
    )


def bucket(i: int, mean: np.ndarray, vm_ids: tuple[str, ...] | None = None) -> BucketBlock:
    names = vm_ids or tuple(f"vm{i}" for i in range(len(mean)))
    values = mean.astype(np.float64)
    return BucketBlock.unlimited(T0 + i * BUCKET_S, names, values, values * 1.2)


def ran(engine: ForecastEngine | Forecaster, mean: np.ndarray, buckets: int, vm_ids: tuple[str, ...] | None = None) -> ForecastBlock:
    """Loaded with all but the newest `buckets`, which come one by one; the last forecast."""
    engine.load(history(mean[..., :-buckets]))
    names = vm_ids or tuple(f"vm{i}" for i in range(len(mean)))
    for i in range(1, buckets + 1):
        block = engine.advance(bucket(i, mean[..., i - buckets - 1], names), dict.fromkeys(names, CEILING))
    return block


def told(engine: ForecastEngine | Forecaster, vm_id: str) -> ForecastWhy:
    why = engine.explain(vm_id)
    assert why is not None
    assert msgspec.json.decode(msgspec.json.encode(why), type=ForecastWhy) == why, "nothing in it that JSON has no word for"
    return why


def words(engine: ForecastEngine | Forecaster, block: ForecastBlock, vm_id: str, resource: int = CPU) -> str:
    """What people read."""
    view = forecast_why_view(vm_id, block, engine.explain(vm_id), None)
    assert view.not_now is None and view.resources[resource].details is not None
    return "\n".join(view.resources[resource].summary)


def assert_adds_up(why: ForecastWhy, block: ForecastBlock, row: int) -> None:
    """Weights times forecasts are the pool's answer; the last stage is what was issued."""
    for r, resource in enumerate(why.resources):
        for target, issued in zip(resource.targets, (block.quantiles, block.peak_quantiles), strict=True):
            for part, size, middle in zip(target.parts, GROUP_SIZES, GROUP_MIDDLES, strict=True):
                assert sum(member.weight for member in part.members) == pytest.approx(1.0, abs=1e-6)
                assert len(part.blended) == size
                heard = [member for member in part.members if member.weight > 0]
                for step, blended in enumerate(part.blended):
                    assert sum(member.weight * (member.forecast[step] or 0.0) for member in heard) == pytest.approx(blended, rel=1e-5)
                last = part.stages[-1]
                assert (last.median, last.low, last.high) == tuple(float(value) for value in issued[row, r, middle, SHOWN])


def test_weights_and_forecasts_of_the_members_make_the_forecast_that_was_issued() -> None:
    engine = ForecastEngine(LEAN)
    block = ran(engine, fleet(5, 120), 6)
    for row, vm_id in enumerate(block.vm_ids):
        why = told(engine, vm_id)
        assert why.issued_s == block.issued_s
        assert_adds_up(why, block, row)
        for r, resource in enumerate(why.resources):
            assert resource.reason is None
            assert resource.coverage.realised == block.coverage[row, r]
            parts = resource.targets[0].parts
            share = [sum(part.members[k].weight * size for part, size in zip(parts, GROUP_SIZES, strict=True)) for k in range(8)]
            assert int(np.argmax(share)) == block.model[row, r]


def test_weights_follow_the_scores_that_are_told() -> None:
    engine = ForecastEngine(LEAN)
    ran(engine, fleet(5, 120), 6)
    states = set()
    for vm in range(5):
        for resource in told(engine, f"vm{vm}").resources:
            for part in (part for target in resource.targets for part in target.parts):
                judged = [member for member in part.members if member.score is not None]
                raw = {member.member: member.score**-SHARPNESS if member.score <= CUT else 0.0 for member in judged}
                for member in part.members:
                    states.add(member.state)
                    assert member.weight == pytest.approx(raw.get(member.member, 0.0) / sum(raw.values()), rel=1e-3, abs=1e-6)
                    assert (member.state == "silent") == any(value is None for value in member.forecast)
                    if member.state == "cut":
                        assert member.score > CUT
                assert min(member.error_to_best for member in part.members if member.error is not None) == 1.0
                assert part.members[0].error_to_naive == 1.0
    assert states == {"heard", "cut", "silent"}  # nothing to say yet: a week of history


def test_a_newcomer_is_judged_by_what_the_fleet_expects() -> None:
    engine = ForecastEngine(LEAN)
    mean = fleet(5, 120)
    ran(engine, mean, 6)
    names = (*(f"vm{i}" for i in range(5)), "new")
    block = engine.advance(bucket(7, fleet(6, 1, seed=3)[..., 0], names), dict.fromkeys(names, CEILING))
    why = told(engine, "new")
    assert_adds_up(why, block, 5)
    member = why.resources[CPU].targets[0].parts[0].members[0]
    assert (member.evidence, member.error, member.error_to_naive) == (0.0, None, None)
    assert member.fleet_expects is not None and member.score is not None
    assert engine.explain("nobody") is None
    assert engine.explain("vm0") is not None
    engine.advance(bucket(8, fleet(1, 1)[..., 0], ("new",)), {})
    assert engine.explain("vm0") is None, "the newest forecast is not of this VM"


def test_the_same_bucket_again_and_a_gap_are_explained_as_they_were_issued() -> None:
    engine = ForecastEngine(LEAN)
    ran(engine, fleet(4, 120), 3)
    for i in (3, 3, 9):
        block = engine.advance(bucket(i, fleet(4, 1, seed=i)[..., 0]), {})
        assert_adds_up(told(engine, "vm2"), block, 2)


def test_explaining_changes_nothing() -> None:
    blocks = []
    for asked in (False, True):
        forecaster = Forecaster(LEAN)
        forecaster.load(history(fleet(5, 120)))
        for i in range(1, 4):
            block = forecaster.advance(bucket(i, fleet(5, 1, seed=i)[..., 0]), {})
            if asked:
                assert forecaster.explain("vm1") == forecaster.explain("vm1")
        blocks.append(block)
    for name in ("mean", "quantiles", "peak_quantiles", "model", "reason"):
        np.testing.assert_array_equal(getattr(blocks[0], name), getattr(blocks[1], name))


def test_the_network_is_told_apart_from_the_pool() -> None:
    engine = ForecastEngine(ForecastOptions(boosting=False, ring=600, replay=48, examples=2000))
    mean = fleet(8, 150)
    engine.load(history(mean[..., :-9]))
    assert told(engine, "vm0").resources[0].targets[0].parts[0].network is None
    models = engine.retrain(history(mean[..., :-9]), seed=1)
    engine.install(models)
    for i in range(1, 10):
        block = engine.advance(bucket(i, mean[..., i - 10]), dict.fromkeys((f"vm{i}" for i in range(8)), CEILING))
    why = told(engine, "vm3")
    assert_adds_up(why, block, 3)
    for resource in why.resources:
        for target in resource.targets:
            for part in target.parts:
                assert part.network is not None
                assert 0.0 < part.network.weight < 1.0
                assert part.network.pool_loss > 0 and part.network.network_loss > 0
                expected = ["mixed", "held", "agreed"] if target.target == "mean" else ["mixed", "hour", "held", "agreed"]
                assert [stage.stage for stage in part.stages][-len(expected) :] == expected
            assert [source.source for source in target.hour] == ([] if target.target == "mean" else list(SOURCES))
            if target.hour:
                assert sum(source.high_weight for source in target.hour) == pytest.approx(1.0, rel=1e-5)
                spoken = [source for source in target.hour if source.median is not None]
                assert [source.source for source in spoken] == ["mixed", "network", "past_hours"], "nobody trained trees"
                blend = engine._hours.explain(3)
                assert blend is not None
                middle = sum(source.median_weight * (source.median or 0.0) for source in spoken)
                assert middle == pytest.approx(blend.blended[RESOURCES.index(resource.resource), -1, LEVELS.index(0.5)], rel=1e-3)
    engine._mixers[0].inherit()
    renewed = told(engine, "vm3").resources[CPU].targets[0].parts[0].network
    assert renewed is not None and (renewed.pool_loss, renewed.weight) == (None, why.resources[CPU].targets[0].parts[0].network.weight)


def test_a_change_of_level_is_dated_and_what_was_moved_is_told() -> None:
    engine = ForecastEngine(LEAN)
    mean = fleet(5, 130) * 1.0
    mean[1, CPU, -8:] *= 3.0
    block = ran(engine, mean.astype(np.float32), 8)
    changed, steady = (told(engine, vm_id).resources[CPU] for vm_id in ("vm1", "vm0"))
    assert changed.level.since_s == block.issued_s - 8 * BUCKET_S
    assert changed.level.level == pytest.approx(3000.0, rel=0.2)
    assert changed.level.before == pytest.approx(1000.0, rel=0.2)
    part = changed.targets[0].parts[1]
    assert part.restart is not None and 0 < part.restart.paid < 1 and part.restart.holds < 1
    assert "moved" in [stage.stage for stage in part.stages]
    assert steady.level.since_s is None and steady.targets[0].parts[1].restart is None
    assert_adds_up(told(engine, "vm1"), block, 1)
    said = words(engine, block, "vm1")
    assert "The level went from 1" in said and "the pool's answer was moved by" in said
    assert "left out as too bad: " in said and "nothing to say yet: daily, weekly" in said
    assert "The level" not in words(engine, block, "vm0")
    for i in range(1, 80):
        block = engine.advance(bucket(8 + i, np.array(mean[..., -1], dtype=np.float64)), {})
    assert told(engine, "vm1").resources[CPU].level.since_s == changed.level.since_s
    assert "The level" not in words(engine, block, "vm1"), "a change of yesterday explains nothing"


def test_each_reason_says_what_it_means_since_when_and_what_would_end_it() -> None:
    engine = ForecastEngine(LEAN)
    names = ("young", "mute", "gone")
    mean = fleet(3, 60)
    mean[1] = np.nan
    for i in range(1, 41):
        now = mean[..., i].copy()
        if i <= 30:
            now[0] = np.nan
        if i > 34:
            now[2] = np.nan
        block = engine.advance(bucket(i, now, names), dict.fromkeys(names, CEILING))
    young, mute, gone = (told(engine, name).resources[MEMORY].reason for name in names)
    assert young is not None and mute is not None and gone is not None
    assert (young.code, young.readings, young.since_s) == ("cold_start", 10, T0 + 31 * BUCKET_S)
    assert (young.readings_needed, young.ends) == (14, "14 more readings")
    assert (mute.code, mute.readings_needed, mute.ends) == ("all_unknown", 1, "its first reading")
    assert (gone.code, gone.since_s, gone.ends) == ("gap", T0 + 35 * BUCKET_S, "one reading")
    assert told(engine, "gone").resources[MEMORY].gap_widening > 1.0
    assert "times as wide, because the newest reading is old" in words(engine, block, "gone", MEMORY)
    assert (
        words(engine, block, "mute", MEMORY) == "all_unknown: not one reading within a day: nothing is forecast. "
        "What would end it: its first reading."
    )
    assert told(engine, "gone").resources[MEMORY].newest_reading_age == 6
    for i in range(41, 41 + young.readings_needed):
        block = engine.advance(bucket(i, fleet(3, 1, seed=i)[..., 0], names), {})
    assert told(engine, "young").resources[MEMORY].reason is None
    assert block.reason[0, MEMORY] == NoForecast.OK, "so many readings were promised to do"


def test_the_way_back_into_calibration_is_as_long_as_told() -> None:
    needed = buckets_to_recover(0.5, 30.0, OFF_COVERAGE, 0.986)
    assert needed is not None
    inside, weight = 15.0, 30.0
    for count in range(1, needed + 1):
        inside, weight = inside * 0.986 + 1.0, weight * 0.986 + 1.0
        assert (inside / weight >= OFF_COVERAGE) == (count == needed)
    assert buckets_to_recover(0.0, 1e9, OFF_COVERAGE, 1.0) is None
    off = reason_why(NoForecast.OUT_OF_CALIBRATION, 200, 0, None, needed)
    assert off is not None and off.code == "out_of_calibration" and str(needed) in off.ends
    assert reason_why(NoForecast.OK, 200, 0, None, None) is None


def test_a_vm_out_of_calibration_says_so() -> None:
    engine = ForecastEngine(LEAN)
    block = ran(engine, fleet(4, 160), 1)
    engine._calibrator._covered[2, CPU] = (15.0, 30.0)
    block = engine.advance(bucket(2, fleet(4, 1, seed=8)[..., 0]), {})
    assert block.reason[2, CPU] == NoForecast.OUT_OF_CALIBRATION
    why = told(engine, "vm2").resources[CPU]
    assert why.reason is not None and why.reason.code == "out_of_calibration"
    assert why.reason.readings_needed is not None and why.reason.readings_needed > 1
    assert why.coverage.realised < OFF_COVERAGE


def test_a_cold_start_names_its_donors() -> None:
    forecaster = Forecaster(LEAN)
    names = (*(f"vm{i}" for i in range(8)), "new")
    forecaster.label({**dict.fromkeys(names[:6], Labels(client="aurora")), "new": Labels(client="aurora", app="web")})
    forecaster.load(history(fleet(8, 300)))
    block = forecaster.advance(bucket(1, fleet(9, 1)[..., 0], names), dict.fromkeys(names, CEILING))
    cold = told(forecaster, "new").resources[CPU]
    assert cold.cold_start is not None and cold.reason is not None
    assert (cold.reason.code, cold.reason.readings_needed) == ("cold_start", COLD_BUCKETS - 1)
    assert cold.cold_start.readings == 1 and cold.cold_start.own_level > 0.9
    classes = cold.cold_start.classes
    assert sum(part.share for part in classes) == pytest.approx(1.0)
    assert [(part.client, part.flavour, part.vms) for part in classes][:3] == [("", "", 8), ("", "4x4", 8), ("aurora", "", 6)]
    assert block.model[8, CPU] == block.models.index("class_prior")
    assert told(forecaster, "vm0").resources[CPU].cold_start is None
    said = words(forecaster, block, "new")
    assert said.startswith("cold_start: 1 of the 24 readings") and "What would end it: 23 more readings." in said
    assert "Borrowed from VMs of its kind, around its own level after 1 reading: " in said and "client aurora size 4x4 (6 VMs" in said


def test_events_are_named_with_what_they_add() -> None:
    effect = Effect(added=(1500.0, *(math.nan,) * (N_RESOURCES - 1)))
    notices = [Notice(id=name, name=name, category=name, scope=Scope(), effect=effect) for name in ("backup", "campaign")]
    calendar = Occurrences.of([(notice, T0 + (3 + i) * BUCKET_S, T0 + (9 + i) * BUCKET_S) for i, notice in enumerate(notices)])
    forecaster = Forecaster(LEAN)
    forecaster.announce(calendar)
    forecaster.load(history(fleet(6, 300)))
    names = tuple(f"vm{i}" for i in range(6))
    free = dict.fromkeys(names, [math.nan] * N_RESOURCES)
    block = forecaster.advance(bucket(1, fleet(6, 1, seed=5)[..., 0]), free)
    why = told(forecaster, "vm1").resources[CPU]
    assert [(event.name, event.start_s, event.end_s) for event in why.events] == [
        ("backup", T0 + 3 * BUCKET_S, T0 + 9 * BUCKET_S),
        ("campaign", T0 + 4 * BUCKET_S, T0 + 10 * BUCKET_S),
    ]
    together = [sum(event.mean_added[step] for event in why.events) for step in range(HORIZON_STEPS)]
    assert together == pytest.approx(list(why.events_added), rel=1e-6, abs=1e-6)
    assert why.events_added[3] > 1000.0 and why.events_added[0] == 0.0
    assert "campaign (" in words(forecaster, block, "vm1") and "adds up to 1.5 cores" in words(forecaster, block, "vm1")
    agreed = why.targets[0].parts[1].stages[-1].median
    assert block.quantiles[1, CPU, 4, SHOWN[0]] == pytest.approx(agreed + why.events_added[4], rel=1e-3)
    forecaster.announce(Occurrences.none())
    after = told(forecaster, "vm1").resources[CPU]
    assert (after.events, after.events_added) == ((), why.events_added), "the forecast stands, its calendar is gone"


def test_no_series_is_too_hard_to_explain() -> None:
    """Constant, zero, spike, gaps, one point, step, counter resets, huge; asked after every bucket."""
    b = 70
    mean = hard_series(b).astype(np.float32)
    for options, loaded in ((LEAN, 2), (ForecastOptions(network=False, ring=300, replay=4), b - 12)):
        forecaster = Forecaster(options)
        forecaster.load(history(mean[..., :loaded]))
        for i in range(1, b - loaded):
            block = forecaster.advance(bucket(i, mean[..., loaded + i - 1]), {f"vm{v}": [1e13] * N_RESOURCES for v in range(0, 9, 2)})
            for vm_id in block.vm_ids if i % 9 == 0 else ("vm7",):
                for r, resource in enumerate(told(forecaster, vm_id).resources):
                    row = block.vm_ids.index(vm_id)
                    assert (resource.reason is None) == (block.reason[row, r] == NoForecast.OK)
                    assert resource.reason is None or NoForecast[resource.reason.code.upper()] == block.reason[row, r]
                assert words(forecaster, block, vm_id, MEMORY)
