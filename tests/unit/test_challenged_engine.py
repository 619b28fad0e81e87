"""A challenger in the engine: one that is right takes the weight, one that is wrong costs next to nothing; none costs nothing."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from coordinator.compute.memory import array_bytes
from coordinator.forecast.challengers import MOST_STEPS, ChallengerForecast
from coordinator.forecast.engine import ForecastEngine, ForecastOptions
from coordinator.forecast.forecaster import Forecaster
from coordinator.forecast.warm import compiling
from coordinator.model import LEVELS, N_RESOURCES, BucketBlock, ForecastBlock, HistoryBlock
from shared.units import BUCKET_S, HORIZON_STEPS

OPTIONS = ForecastOptions(boosting=False, network=False, ring=600, replay=24, challengers=("auto_ets", "auto_arima"))
END_S = 1_700_006_400 // BUCKET_S * BUCKET_S
VMS = tuple(f"vm{i}" for i in range(8))
LOADED, LIVE = 300, 72
ASKED = 4  # of the VMs, the first
LEVEL = np.array(LEVELS)


@cache
def demand() -> np.ndarray:
    """Square waves of odd periods and random phase, no profile of the pool's: only who knows the rule foretells them."""
    rng = np.random.default_rng(4)
    t = np.arange(LOADED + LIVE + MOST_STEPS)
    period = rng.integers(17, 41, (len(VMS), N_RESOURCES, 1))
    phase = rng.integers(0, 40, period.shape)
    wave = np.where((t + phase) % period < period // 2, 9e5, 3e5)
    return np.asarray(wave * rng.lognormal(0.0, 0.02, wave.shape))


def history() -> HistoryBlock:
    mean = demand()[..., :LOADED].astype(np.float32)
    capacity = np.full(mean.shape[:2], np.nan, dtype=np.float32)
    return HistoryBlock(vm_ids=VMS, end_s=END_S, mean=mean, peak=mean * np.float32(1.1), censored=mean * 0, capacity=capacity)


def bucket(i: int) -> BucketBlock:
    mean = demand()[..., LOADED + i]
    return BucketBlock.unlimited(END_S + (i + 1) * BUCKET_S, VMS, mean, mean * 1.1)


def answer(i: int, kind: str, name: str = "auto_ets") -> ChallengerForecast:
    """Said after live bucket i - 1, of all resources of the first VMs: the truth, or its opposite, or nonsense."""
    first = LOADED + i
    truth = demand()[:ASKED, :, first : first + 40].reshape(ASKED * N_RESOURCES, -1).astype(np.float32)
    mean = {"right": truth, "wrong": 1.2e6 - truth, "wild": truth * 1e6}[kind]
    vm_ids = tuple(vm_id for vm_id in VMS[:ASKED] for _ in range(N_RESOURCES))
    return ChallengerForecast(
        name=name, issued_s=END_S + (i + 1) * BUCKET_S, vm_ids=vm_ids, resource=np.tile(np.arange(N_RESOURCES), ASKED), mean=mean
    )


@cache
def lived(*kinds: tuple[str, str]) -> tuple[list[ForecastBlock], ForecastEngine]:
    """A turn every hour, in which these (challenger, kind) answer."""
    engine = ForecastEngine(OPTIONS)
    engine.load(history())
    blocks = []
    for i in range(LIVE):
        if i % 12 == 0:
            engine.post([answer(i, kind, name) for name, kind in kinds])
        blocks.append(engine.advance(bucket(i), {}))
    return blocks, engine


def loss(blocks: list[ForecastBlock], first: int = 0, vms: slice = slice(0, ASKED)) -> float:
    losses = []
    for i, block in enumerate(blocks[first:], first):
        ahead = demand()[vms, :, LOADED + i + 1 : LOADED + i + 1 + HORIZON_STEPS, None]
        miss = ahead - block.quantiles[vms]
        losses.append(np.maximum(LEVEL * miss, (LEVEL - 1) * miss).mean())
    return float(np.mean(losses))


def led(block: ForecastBlock) -> set[str]:
    return {block.models[index] for index in block.model[:ASKED].ravel()}


def test_one_that_is_right_takes_the_weight_and_is_named() -> None:
    silent, _ = lived()
    right, _ = lived(("auto_ets", "right"))
    assert right[-1].models[-2:] == ("challenger:auto_ets", "challenger:auto_arima")
    assert led(right[-1]) == {"challenger:auto_ets"}
    assert not any(name.startswith("challenger") for name in led(silent[-1]))
    assert loss(right, 24) < 0.5 * loss(silent, 24)


@pytest.mark.parametrize("kind", ["wrong", "wild"])
def test_one_that_is_wrong_costs_next_to_nothing(kind: str) -> None:
    silent, _ = lived()
    fooled, _ = lived(("auto_ets", kind))
    assert loss(fooled) < 1.02 * loss(silent)
    assert loss(fooled, vms=slice(ASKED, None)) < 1.005 * loss(silent, vms=slice(ASKED, None))
    assert not any(name.startswith("challenger") for name in led(fooled[-1]))


def test_of_two_the_one_that_is_right_speaks() -> None:
    both, _ = lived(("auto_ets", "wrong"), ("auto_arima", "right"))
    alone, _ = lived(("auto_ets", "right"))
    assert led(both[-1]) == {"challenger:auto_arima"}
    assert loss(both, 24) < 1.05 * loss(alone, 24)


def test_the_same_turns_give_the_same_bytes_and_the_state_stays_as_large() -> None:
    lived.cache_clear()
    once, engine = lived(("auto_ets", "right"), ("auto_arima", "wrong"))
    lived.cache_clear()
    again, _ = lived(("auto_ets", "right"), ("auto_arima", "wrong"))
    assert once[-1].quantiles.tobytes() == again[-1].quantiles.tobytes()
    size = array_bytes(engine)
    for _ in range(5):
        engine.post([answer(LIVE, "right"), answer(LIVE, "wrong", "auto_arima")])
    assert array_bytes(engine) == size


def test_without_answers_it_is_as_without_challengers() -> None:
    silent, _ = lived()
    plain = ForecastEngine(ForecastOptions(boosting=False, network=False, ring=600, replay=24))
    plain.load(history())
    for i in range(6):
        np.testing.assert_array_equal(plain.advance(bucket(i), {}).quantiles, silent[i].quantiles)
    assert not any("challenger" in name for name in plain.members)


def test_a_reloaded_engine_has_none_until_the_next_turn() -> None:
    engine = ForecastEngine(OPTIONS)
    engine.post([answer(0, "right")])  # before any history: nothing to compare it with
    engine.load(history())
    engine.post([answer(0, "right")])
    for i in range(3):
        engine.advance(bucket(i), {})
    engine.load(history())
    silent, _ = lived()
    np.testing.assert_array_equal(engine.advance(bucket(0), {}).quantiles, silent[0].quantiles)


def test_a_bucket_issued_again_and_gaps_do_no_harm() -> None:
    engine = ForecastEngine(OPTIONS)
    engine.load(history())
    engine.post([answer(0, "right")])
    engine.advance(bucket(0), {})
    engine.advance(bucket(0), {})
    after = engine.advance(bucket(5), {})
    assert np.isfinite(after.quantiles).all()


def test_a_forecaster_passes_answers_on() -> None:
    forecaster = Forecaster(OPTIONS)
    forecaster.load(history())
    forecaster.post([answer(0, "right")])
    silent, _ = lived()
    blocks = [forecaster.advance(bucket(i), {}) for i in range(12)]
    assert not np.array_equal(blocks[-1].quantiles, silent[11].quantiles)
    with pytest.raises(ValueError, match="'mfles': this board listens to auto_ets, auto_arima"):
        forecaster.post([answer(0, "right", "mfles")])
    with pytest.raises(ValueError, match="challenger 'oracle': allowed"):
        ForecastOptions(challengers=("oracle",))


def test_answers_compile_nothing_that_a_tick_has_not() -> None:
    """A worker's kernels are warmed without challengers; the first answer must not hold a tick up for seconds."""
    engine = ForecastEngine(OPTIONS)
    engine.load(history())
    for i in range(2):
        engine.advance(bucket(i), {})
    with compiling() as seen:
        engine.post([answer(2, "right")])
        for i in range(2, 12):
            engine.advance(bucket(i), {})
    assert seen.names == []
