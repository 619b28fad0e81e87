"""The fleet's network: sees in a series' own scale, learns, answers soundly on anything, travels, and refuses what is not its own."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from hard_series import hard_series

from coordinator.forecast import network, network_inputs
from coordinator.forecast.network import QuantileNetwork, examples, rehearsal, scaled_loss, train
from coordinator.forecast.network_inputs import DAY, INPUTS, SIGHT, see
from coordinator.forecast.warm import compiling
from coordinator.model import LEVELS, N_RESOURCES, HistoryBlock
from shared.units import BUCKET_S, HORIZON_STEPS

T0 = 1_700_006_400 // 86_400 * 86_400
MEDIAN = LEVELS.index(0.5)


def history(mean: np.ndarray, peak_factor: float = 1.2) -> HistoryBlock:
    values = mean.astype(np.float32)
    return HistoryBlock(
        vm_ids=tuple(f"vm{i}" for i in range(len(mean))),
        end_s=T0,
        mean=values,
        peak=values * np.float32(peak_factor),
        censored=np.zeros_like(values),
        capacity=np.full(mean.shape[:2], np.nan, dtype=np.float32),
    )


def waves(v: int, b: int, seed: int = 1) -> np.ndarray:
    """A sharp two-hour wave with noise: the newest values lag behind it, its course is learned in no time."""
    rng = np.random.default_rng(seed)
    phase = rng.integers(0, 24, (v, N_RESOURCES, 1))
    return 4e8 * (1.5 + np.sin(2 * np.pi * (np.arange(b) + phase) / 24) + 0.05 * rng.standard_normal((v, N_RESOURCES, b)))


@pytest.fixture(scope="module", autouse=True)
def few_examples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "MAX_EXAMPLES", 12_000)
        patch.setattr(network, "MAX_JUDGED", 1000)
        yield


@pytest.fixture(scope="module")
def past() -> HistoryBlock:
    return history(waves(8, 400))


@pytest.fixture(scope="module")
def model(past: HistoryBlock) -> bytes:
    found = train(past, seed=3, passes=3)
    assert found is not None
    return found


def flat(block: HistoryBlock) -> tuple[np.ndarray, np.ndarray]:
    n = len(block.vm_ids) * N_RESOURCES
    return block.mean.reshape(n, -1), block.peak.reshape(n, -1)


def test_it_learns_what_the_newest_hours_do_not_say(model: bytes) -> None:
    unseen = history(waves(6, 400, seed=9))
    rows = np.arange(6 * N_RESOURCES).repeat(10)
    sight, truth = examples(unseen, rows, np.tile(np.arange(300, 380, 8), 6 * N_RESOURCES))
    said = QuantileNetwork(model).answer(sight)
    base = np.broadcast_to(sight.base[:, :, None, :], said.shape).astype(np.float32)
    assert (scaled_loss(said, sight, truth) < 0.5 * scaled_loss(base, sight, truth)).all()
    inside = (truth[:, 0] >= said[:, 0, :, LEVELS.index(0.1)]) & (truth[:, 0] <= said[:, 0, :, LEVELS.index(0.9)])
    assert 0.6 < inside.mean() < 0.97


def test_a_forecast_is_the_answer_as_of_the_newest_bucket(model: bytes, past: HistoryBlock) -> None:
    means, peaks = flat(past)
    found = QuantileNetwork(model)
    mean, peak = found.forecast(means, peaks, T0)
    n, b = means.shape
    sight = see(means, peaks, np.arange(n), np.full(n, b - 1), np.full(n, T0))
    np.testing.assert_array_equal(np.stack([mean, peak], axis=1), found.answer(sight))
    assert mean.shape == (n, HORIZON_STEPS, len(LEVELS))
    assert (mean[:, :, MEDIAN].std(axis=1) > 0).all()


def test_the_answer_is_the_plain_perceptron(model: bytes, past: HistoryBlock) -> None:
    """Products, quantiles around the base, order: all in NumPy and float64, as the training has it."""
    sight, _ = examples(past, np.arange(40), np.full(40, 380))
    weights = msgspec.msgpack.decode(zlib.decompress(model))
    centre, deviation, *layers = network._split(np.frombuffer(weights["data"], dtype="<f4"))
    x = np.arcsinh(np.clip(sight.inputs.astype(np.float64), -network.CLIP, network.CLIP))
    x = np.clip((x - centre) / deviation, -network.EDGE, network.EDGE)
    for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        x = x @ weight + bias
        x = np.maximum(x, 0.1 * x)
    out = (x @ layers[-2] + layers[-1]).reshape(-1, 2, HORIZON_STEPS, len(LEVELS))
    plain = np.maximum(np.sort(sight.base[:, :, None, :] + out * sight.spread[:, :, None, None], axis=-1), 0.0)
    plain[:, 1] = np.maximum.accumulate(plain[:, 1], axis=1)
    apart = np.abs(QuantileNetwork(model).answer(sight) - plain) / sight.spread[:, :, None, None]
    assert apart.max() < 1e-4


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(past: HistoryBlock) -> None:
    small = past.select([0, 1, 2])
    assert train(small, seed=5, passes=1) == train(small, seed=5, passes=1)
    assert train(small, seed=5, passes=1) != train(small, seed=6, passes=1)


def test_what_is_not_its_own_is_refused(model: bytes) -> None:
    for foreign in (b"", b"not a model", zlib.compress(b"x"), zlib.compress(msgspec.msgpack.encode({"inputs": 3}))):
        with pytest.raises(ValueError, match=f"model of {len(foreign)} bytes is not a trained network"):
            QuantileNetwork(foreign)
    fields = msgspec.msgpack.decode(zlib.decompress(model))
    for name, value in (("inputs", INPUTS + 1), ("outputs", 7), ("hidden", 3), ("sight", SIGHT - 1)):
        with pytest.raises(ValueError, match=r"this release has .*; train it again"):
            QuantileNetwork(zlib.compress(msgspec.msgpack.encode({**fields, name: value})))
    with pytest.raises(ValueError, match=r"weights: \d+ expected"):
        QuantileNetwork(zlib.compress(msgspec.msgpack.encode({**fields, "data": fields["data"][:-4]})))


def test_too_little_history_is_no_network() -> None:
    assert train(history(np.zeros((0, N_RESOURCES, 500)))) is None
    assert train(history(waves(3, 60))) is None
    assert train(history(waves(3, 400)), until=60) is None
    assert train(history(np.full((3, N_RESOURCES, 400), np.nan))) is None


def test_inputs_that_were_never_heard_do_not_speak_when_they_first_do(model: bytes, past: HistoryBlock) -> None:
    """The training's history held no week: a fleet that has one gets the same answer, whatever that week was."""
    found = QuantileNetwork(model)
    sight, _ = examples(past, np.arange(40), np.full(40, 380))
    week = slice(network_inputs._AT_SEASONS + 24, network_inputs._AT_SEASONS + 36)
    assert not sight.inputs[:, week].any()
    said = found.answer(sight)
    with_week = sight.inputs.copy()
    with_week[:, week] = 100.0
    with_week[:, network_inputs._AT_SEASONS + 37] = 1.0
    np.testing.assert_allclose(found.answer(sight._replace(inputs=with_week)), said, rtol=1e-4)
    with_week[:, 0] += 1.0  # the newest bucket was heard
    assert np.abs(found.answer(sight._replace(inputs=with_week)) / np.maximum(said, 1.0) - 1.0).max() > 1e-2


@pytest.mark.parametrize("b", [1, 2, 5, 40, 288, 2400])
def test_no_series_is_too_hard(model: bytes, b: int) -> None:
    block = history(hard_series(b))
    means, peaks = flat(block)
    sight = see(means, peaks, np.arange(45), np.full(45, b - 1), np.full(45, T0))
    assert np.isfinite(sight.inputs).all()
    assert (sight.unit > 0).all()
    assert (sight.spread >= sight.unit).all()
    for said in QuantileNetwork(model).forecast(means, peaks, T0):
        assert np.isfinite(said).all()
        assert (said >= 0).all()
        assert (np.diff(said, axis=-1) >= 0).all()
    assert (np.diff(said, axis=1) >= 0).all()


def test_scale_and_neighbours_change_nothing_but_the_unit() -> None:
    """A series a thousand times larger looks the same; so does one seen alone. CPU's floor is far below either."""
    rng = np.random.default_rng(8)
    small = (5e5 * rng.lognormal(0, 0.2, (N_RESOURCES, 600))).astype(np.float32)
    both = np.concatenate([small, small * 1024.0]).astype(np.float32)
    at = np.array([0, N_RESOURCES])
    sight = see(both, both, at, np.full(2, 599), np.full(2, T0))
    alone = see(both, both, at[1:], np.full(1, 599), np.full(1, T0))
    np.testing.assert_array_equal(sight.inputs[1:], alone.inputs)
    np.testing.assert_allclose(sight.unit[1], 1024.0 * sight.unit[0], rtol=1e-3)
    np.testing.assert_allclose(sight.inputs[1], sight.inputs[0], rtol=1e-3, atol=1e-3)


def test_what_is_seen() -> None:
    """A ramp of 1000 a bucket in CPU millicores, at Saturday noon: places and values by hand."""
    b = 2 * DAY + 100
    ramp = np.tile((1e6 + 1000.0 * np.arange(b)).astype(np.float32), (N_RESOURCES, 1))
    saturday_noon = 1_700_006_400 // 604_800 * 604_800 + 2 * 86_400 + 43_200
    sight = see(ramp, ramp + 500.0, np.array([0]), np.array([b - 1]), np.array([saturday_noon - BUCKET_S]))
    newest = float(ramp[0, -1])
    assert sight.anchor[0] == pytest.approx([newest - 5500.0, newest - 5000.0])
    unit = 1000.0 + 0.005 * ramp[0, -DAY:].mean()
    assert sight.unit[0, 0] == pytest.approx(unit, rel=1e-6)
    assert sight.base[0, 0, MEDIAN] == pytest.approx(newest - (5.5 + 17.5) / 2 * 1000.0, rel=1e-6)
    seen = sight.inputs[0]
    assert seen[:3] * unit == pytest.approx([5500.0, 4500.0, 3500.0], rel=1e-3)
    assert seen[network_inputs._AT_SEASONS] * unit == pytest.approx(5500.0 + 1000.0 - 1.5 * DAY * 1000.0, rel=1e-3)  # median of two days
    assert seen[network_inputs._AT_SEASONS + 12] * unit == pytest.approx(6500.0 - DAY * 1000.0, rel=1e-3)
    assert seen[network_inputs._AT_SEASONS + 36 : network_inputs._AT_PEAK].tolist() == [1.0, 0.0]
    context = seen[network_inputs._AT_CONTEXT + 6 :]
    assert context[2] == pytest.approx(1.0, abs=0.02)  # each bucket is like the one before
    assert context[6:11] == pytest.approx([0.0, -1.0, 0.0, 1.0, 1.0], abs=1e-6)
    assert context[11 : 11 + N_RESOURCES].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert context[-2] == 1.0


def test_a_rehearsal_scores_one_origin_in_four(model: bytes, past: HistoryBlock) -> None:
    means, peaks = flat(past)
    losses = rehearsal(QuantileNetwork(model), means, peaks, T0, 36)
    assert losses.shape == (9, len(means), 2, HORIZON_STEPS)
    assert np.isfinite(losses[0]).all()
    assert np.isnan(losses[-1, :, :, 4:]).all()
    assert np.isfinite(losses[-1, :, :, :4]).all()


def test_after_its_exercise_a_tick_compiles_nothing(model: bytes, past: HistoryBlock) -> None:
    network.exercise()
    means, peaks = flat(past)
    ring = np.full((len(means), 700), np.nan, dtype=np.float32)
    ring[:, :400] = means
    with compiling() as seen:
        QuantileNetwork(model).forecast(ring[:, :400], peaks, T0)
    assert not seen.names
