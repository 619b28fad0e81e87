"""One small network for the whole fleet: quantiles of the next hour's buckets and of its running peak, for every series at once.

A perceptron of two hidden layers answers, from the scale-free sight of a series (network_inputs), how far each quantile of each step lies
from the empirical quantiles of the newest hours, in units of their spread. It learns by pinball loss on random (series, origin) examples
of the fleet's own history: so it weighs levels, medians, seasons and peaks by what the series looks like now, which no choice among fixed
members can. Inputs are dropped at random while it learns, because a fleet's history is small.

Training is NumPy alone, deterministic for a seed, seconds of one core; a forecast is three matrix products. Its answer is a member of the
pool: mixed by its scores, calibrated like any other (mix.py). Sources: Koenker and Bassett (1978) for the loss, Kingma and Ba (2015) for
the steps, Srivastava et al. (2014) for dropout.
"""

from __future__ import annotations

import zlib
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.forecast.kernels.perceptron import bend, by_level, compress, quantiles, standardise
from coordinator.forecast.network_inputs import INPUTS, SIGHT, TARGETS, Sight, see
from coordinator.forecast.seasons import Profile
from coordinator.model import F32, F64, LEVELS, N_RESOURCES, HistoryBlock
from shared.units import BUCKET_S, HORIZON_STEPS

HIDDEN: Final = 64
LEAST_HISTORY: Final = 36  # buckets before the first example's origin
LEAST_EXAMPLES: Final = 2000
MAX_EXAMPLES: Final = 160_000  # ten passes over them take about ten seconds of one core
PASSES: Final = 10
JUDGED_SHARE: Final = 8
MAX_JUDGED: Final = 6000
BATCH: Final = 512
RATE: Final = 2e-3
DROPOUT: Final = 0.1
WEIGHT_DECAY: Final = 1e-4
EDGE: Final = 6.0
UNHEARD: Final = 1e9
CLIP: Final = 1e4  # in units: beyond it a reading is no more telling
_Q: Final = len(LEVELS)
_OUT: Final = TARGETS * HORIZON_STEPS * _Q
_TAU: Final = np.array(LEVELS, dtype=np.float32)
_LEAK: Final = np.float32(0.1)
_ROWS: Final = 512  # of a forecast at once: what they pass on from product to product stays in the second-level cache


class _Weights(msgspec.Struct, frozen=True):
    """What travels between workers: float32, little endian, C order."""

    inputs: int
    hidden: int
    outputs: int
    data: bytes
    sight: int = 0


class QuantileNetwork:
    """A trained network. Raises ValueError when `model` is not one of `train`'s."""

    def __init__(self, model: bytes) -> None:
        try:
            weights = msgspec.msgpack.decode(zlib.decompress(model), type=_Weights)
        except (zlib.error, msgspec.MsgspecError) as error:
            raise ValueError(f"model of {len(model)} bytes is not a trained network: {error}") from error
        if (weights.inputs, weights.hidden, weights.outputs, weights.sight) != (INPUTS, HIDDEN, _OUT, SIGHT):
            raise ValueError(
                f"model for {weights.inputs} inputs of kind {weights.sight} and {weights.outputs} outputs: "
                f"this release has {INPUTS} of kind {SIGHT} and {_OUT}; train it again"
            )
        self._layers = _ready(_split(np.frombuffer(weights.data, dtype="<f4")))

    def forecast(self, means: F32, peaks: F32, newest_s: int, daily: Profile | None = None) -> tuple[F32, F32]:
        """Quantiles of the bucket mean and of the running peak as of the newest bucket: float32[n, 12, q] each, monotone, >= 0.

        means, peaks float32[n, b] with NaN, series in [v, r] order; `newest_s` is the start of their last bucket.
        `daily`: what earlier days say of the means, where it is known (seasons.Profiles).
        """
        n, b = means.shape
        said = np.empty((TARGETS, n, HORIZON_STEPS, _Q), dtype=np.float32)
        for first in range(0, n, _ROWS):
            rows = np.arange(first, min(first + _ROWS, n))
            sight = see(means, peaks, rows, np.full(len(rows), b - 1), np.full(len(rows), newest_s), daily=daily)
            _answer_into(self._layers, sight, said[0, first : first + _ROWS], said[1, first : first + _ROWS])
        return said[0], said[1]

    def answer(self, sight: Sight) -> F32:
        """float32[m, 2, 12, q] for examples seen."""
        return _answer(self._layers, sight)


def train(
    history: HistoryBlock, seed: int = 0, passes: int = PASSES, until: int | None = None, examples: int = MAX_EXAMPLES
) -> bytes | None:
    """Fit on random examples of the history before bucket column `until` (None = all of it); None when there is too little of it.

    The newest eighth of that time only judges: of the states after each pass the one that foretells it best is kept, because a small
    fleet's examples are soon learned by heart.
    """
    v, _, b = history.mean.shape
    end = (b if until is None else until) - HORIZON_STEPS
    if v == 0 or end - LEAST_HISTORY < 2 * HORIZON_STEPS:
        return None
    judged = end - max(HORIZON_STEPS, (end - LEAST_HISTORY) // JUDGED_SHARE)
    rng = np.random.default_rng(seed)
    taught = _drawn(history, rng, LEAST_HISTORY, judged - HORIZON_STEPS, examples)
    judge = _drawn(history, rng, judged, end, min(MAX_JUDGED, examples))
    if taught is None or judge is None:
        return None
    layers = _learn(taught, judge, rng, passes)
    data = np.concatenate([layer.ravel() for layer in layers]).astype("<f4").tobytes()
    return _packed(data)


def _packed(data: bytes) -> bytes:
    return zlib.compress(msgspec.msgpack.encode(_Weights(INPUTS, HIDDEN, _OUT, data, SIGHT)), 6)


def _drawn(history: HistoryBlock, rng: np.random.Generator, first: int, last: int, count: int) -> tuple[Sight, F64] | None:
    """Random examples with origins in [first, last) of which something came; None where there are too few."""
    alive = np.flatnonzero(np.isfinite(history.mean[..., first : last + HORIZON_STEPS]).any(axis=2).ravel())
    if last - first < 1 or len(alive) * (last - first) < LEAST_EXAMPLES // 10:
        return None
    count = min(count, max(4 * len(alive) * (last - first), LEAST_EXAMPLES))  # what is seen more often is only learned by heart
    sight, truth = examples(history, alive[rng.integers(0, len(alive), count)], rng.integers(first, last, count))
    known = np.flatnonzero(np.isfinite(truth).any(axis=(1, 2)) & (sight.inputs != 0.0).any(axis=1))
    if len(known) < LEAST_EXAMPLES // 10:
        return None
    return Sight(**{name: part[known] for name, part in sight._asdict().items()}), truth[known]


def examples(history: HistoryBlock, rows: NDArray[np.int64], newest: NDArray[np.int64]) -> tuple[Sight, F64]:
    """What is seen of series `rows` as of column `newest`, and what came: float64[m, 2, 12], NaN = not known."""
    v, r, b = history.mean.shape
    means, peaks = history.mean.reshape(v * r, b), history.peak.reshape(v * r, b)
    start_s = history.end_s - (b - 1) * BUCKET_S
    sight = see(means, peaks, rows, newest, start_s + newest * BUCKET_S)
    ahead = newest[:, None] + np.arange(1, HORIZON_STEPS + 1)
    inside = ahead < b
    at = np.minimum(ahead, b - 1)
    truth = np.full((len(rows), TARGETS, HORIZON_STEPS), np.nan)
    truth[:, 0] = np.where(inside, means[rows[:, None], at], np.nan)
    came = np.where(inside, peaks[rows[:, None], at], np.nan)
    truth[:, 1] = np.where(np.isfinite(came), np.fmax.accumulate(came, axis=1), np.nan)
    return sight, truth


def rehearsal(network: QuantileNetwork | None, means: F32, peaks: F32, newest_s: int, buckets: int) -> F64:
    """Pinball losses float64[o, n, 2, 12] at one origin in four among the newest `buckets`, oldest first, where actuals are known.

    means, peaks float32[n, b] as in `QuantileNetwork.forecast`. None = what a network starts from: empirical quantiles of the newest hours.
    """
    n, b = means.shape
    rows = np.arange(n)
    found = []
    for newest in range(b - buckets - 1, b - 1, 4):
        columns = np.full(n, newest)
        sight = see(means, peaks, rows, columns, columns * BUCKET_S + newest_s - (b - 1) * BUCKET_S)
        ahead = np.arange(newest + 1, newest + 1 + HORIZON_STEPS)
        truth = np.full((n, TARGETS, HORIZON_STEPS), np.nan)
        inside = ahead < b
        truth[:, 0, inside] = means[:, ahead[inside]]
        truth[:, 1, inside] = np.fmax.accumulate(peaks[:, ahead[inside]], axis=1)
        said = sight.base[:, :, None, :] if network is None else network.answer(sight)
        error = truth[..., None] - said
        found.append(np.maximum(_TAU * error, (_TAU - 1.0) * error).mean(axis=-1))
    return np.stack(found)


def scaled_loss(said: F32, sight: Sight, truth: F64) -> F64:
    """Mean pinball of quantiles [m, 2, 12, q] in units, by target."""
    error = truth[..., None] - said
    each = np.maximum(_TAU * error, (_TAU - 1.0) * error).mean(axis=-1) / sight.unit[:, :, None]
    result: F64 = np.array([np.nanmean(each[:, k]) if np.isfinite(each[:, k]).any() else np.nan for k in range(TARGETS)])
    return result


def exercise() -> None:
    """Every kernel of an answer, with a tick's types, on a network that knows nothing (warm.py)."""
    centre, deviation = np.zeros(INPUTS, dtype=np.float32), np.ones(INPUTS, dtype=np.float32)
    data = np.concatenate([layer.ravel() for layer in (centre, deviation, *_fresh(np.random.default_rng(0)))]).astype("<f4").tobytes()
    network = QuantileNetwork(_packed(data))
    series = np.ones((N_RESOURCES, 48), dtype=np.float32)
    network.forecast(series, series, 0)


# ---- the perceptron: layers = [mean, deviation, w1, b1, w2, b2, w3, b3]

_SHAPES: Final = ((INPUTS,), (INPUTS,), (INPUTS, HIDDEN), (HIDDEN,), (HIDDEN, HIDDEN), (HIDDEN,), (HIDDEN, _OUT), (_OUT,))


def _split(flat: F32) -> list[F32]:
    sizes = [int(np.prod(shape)) for shape in _SHAPES]
    if len(flat) != sum(sizes):
        raise ValueError(f"{len(flat)} weights: {sum(sizes)} expected")
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    return [part.reshape(shape).astype(np.float32) for part, shape in zip(parts, _SHAPES, strict=True)]


def _ready(layers: list[F32]) -> list[F32]:
    """As the answer wants them: what divides turned over, the last layer level by level."""
    centre, deviation, *hidden, weights, bias = layers
    return [centre, np.float32(1.0) / deviation, *hidden, by_level(weights), by_level(bias)]


def _answer(ready: list[F32], sight: Sight) -> F32:
    said = np.empty((TARGETS, len(sight.inputs), HORIZON_STEPS, _Q), dtype=np.float32)
    for first in range(0, len(sight.inputs), _ROWS):
        part = slice(first, first + _ROWS)
        _answer_into(ready, Sight(**{name: array[part] for name, array in sight._asdict().items()}), said[0, part], said[1, part])
    result: F32 = said.swapaxes(0, 1)
    return result


def _answer_into(ready: list[F32], sight: Sight, means: F32, peaks: F32) -> None:
    """Quantiles of a few rows, written to float32[m, 12, q] each."""
    centre, scale, w1, b1, w2, b2, w3, b3 = ready
    x = np.empty_like(sight.inputs)
    compress(sight.inputs, CLIP, x)
    standardise(x, centre, scale, EDGE)
    first = x @ w1
    bend(first, b1, _LEAK)
    second = first @ w2
    bend(second, b2, _LEAK)
    quantiles(second @ w3, b3, sight.base, sight.spread, means, peaks)


def _run(layers: list[F32], x: F32) -> tuple[F32, F32, F32]:
    """Both hidden layers and the answer."""
    first = x @ layers[2] + layers[3]
    first = np.maximum(first, _LEAK * first)
    second = first @ layers[4] + layers[5]
    second = np.maximum(second, _LEAK * second)
    return first, second, second @ layers[6] + layers[7]


def _learn(taught: tuple[Sight, F64], judge: tuple[Sight, F64], rng: np.random.Generator, passes: int) -> list[F32]:
    sight, truth = taught
    x = np.empty_like(sight.inputs)
    compress(sight.inputs, CLIP, x)
    centre, deviation = x.mean(axis=0), x.std(axis=0)
    # an input that never moved (no week of history yet) must not speak when it first does
    deviation = np.where(deviation < 1e-6, np.float32(UNHEARD), deviation + np.float32(0.1))
    standardise(x, centre, np.float32(1.0) / deviation, EDGE)
    # everything in units of the target's usual change
    goal = ((truth - sight.anchor[..., None]) / sight.unit[..., None]).astype(np.float32)
    base = ((sight.base - sight.anchor[..., None]) / sight.unit[..., None]).astype(np.float32)
    spread = (sight.spread / sight.unit).astype(np.float32)
    layers = [centre, deviation, *_fresh(rng)]
    first, second = [np.zeros_like(w) for w in layers[2:]], [np.zeros_like(w) for w in layers[2:]]
    batch = min(BATCH, len(x))
    total = passes * (len(x) // batch)
    best, kept, step = np.inf, layers, 0
    for _ in range(passes):
        order = rng.permutation(len(x))
        for begin in range(0, len(x) - batch + 1, batch):
            pick = order[begin : begin + batch]
            heard = (rng.random((batch, INPUTS), dtype=np.float32) > DROPOUT) / np.float32(1.0 - DROPOUT)
            gradients = _gradients(layers, (x[pick] * heard).astype(np.float32), goal[pick], base[pick], spread[pick])
            step += 1
            rate = RATE * min(1.0, step / 100.0) * (0.5 * (1.0 + np.cos(np.pi * step / total)) + 0.02)
            _move(layers, gradients, first, second, step, rate)
        loss = float(np.nansum(scaled_loss(_answer(_ready(layers), judge[0]), *judge)))
        if loss < best:
            best, kept = loss, [layer.copy() for layer in layers]
    return kept


def _fresh(rng: np.random.Generator) -> list[F32]:
    def draw(rows: int, columns: int, size: float) -> F32:
        return rng.normal(0.0, size / np.sqrt(rows), (rows, columns)).astype(np.float32)

    zeros = [np.zeros(shape, dtype=np.float32) for shape in (HIDDEN, HIDDEN, _OUT)]
    return [draw(INPUTS, HIDDEN, 1.0), zeros[0], draw(HIDDEN, HIDDEN, 1.0), zeros[1], draw(HIDDEN, _OUT, 0.3), zeros[2]]


def _slope(out: F32, goal: F32, base: F32, spread: F32) -> F32:
    """Gradient of the mean pinball loss by the network's answer. A wild example counts by the root of its spread: it is one of many."""
    said = base[:, :, None, :] + out.reshape(-1, TARGETS, HORIZON_STEPS, _Q) * spread[:, :, None, None]
    known = np.isfinite(goal)
    above = np.where(known, goal, np.float32(0.0))[..., None] > said
    slope = np.where(above, -_TAU, 1.0 - _TAU) * known[..., None] * np.sqrt(spread)[:, :, None, None]
    result: F32 = (slope.reshape(len(out), -1) / np.float32(len(out) * _Q)).astype(np.float32)
    return result


def _gradients(layers: list[F32], x: F32, goal: F32, base: F32, spread: F32) -> list[F32]:
    first, second, out = _run(layers, x)
    at_out = _slope(out, goal, base, spread)
    at_second = (at_out @ layers[6].T) * np.where(second > 0, np.float32(1.0), _LEAK)
    at_first = (at_second @ layers[4].T) * np.where(first > 0, np.float32(1.0), _LEAK)
    return [x.T @ at_first, at_first.sum(axis=0), first.T @ at_second, at_second.sum(axis=0), second.T @ at_out, at_out.sum(axis=0)]


def _move(layers: list[F32], gradients: list[F32], first: list[F32], second: list[F32], step: int, rate: float) -> None:  # noqa: PLR0917
    """One step of Adam with decoupled weight decay, in place."""
    lift1, lift2 = 1.0 - 0.9**step, 1.0 - 0.999**step
    for k, gradient in enumerate(gradients):
        first[k] += np.float32(0.1) * (gradient - first[k])
        second[k] += np.float32(0.001) * (gradient * gradient - second[k])
        change = first[k] / np.float32(lift1) / (np.sqrt(second[k] / np.float32(lift2)) + np.float32(1e-8))
        layers[k + 2] -= np.float32(rate) * (change + np.float32(WEIGHT_DECAY) * layers[k + 2])
