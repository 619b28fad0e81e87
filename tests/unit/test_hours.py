"""The peak of the next hour from several answers: who is right at a level gets that level's weight, and the running peak stays one."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.forecast.hours import AT_FIRST, DECAY, EVIDENCE, NEIGHBOURS, SHARPNESS, HourPeaks, PastHours
from coordinator.forecast.kernels import hours
from coordinator.forecast.kernels.hours import APART, BOOSTING, HOURS, LEAST_HOURS, MIXED, NETWORK, PAST_HOURS, Q
from coordinator.model import F32, F64, LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

V = 3
N = V * N_RESOURCES
TAU = np.array(LEVELS)
SPREAD = np.linspace(-1.0, 3.0, Q)
TOP = LEVELS.index(0.99)
MIDDLE = LEVELS.index(0.5)


def answer(centre: float, width: float = 10.0) -> F32:
    """A running peak that rises to `centre` within the hour."""
    rise = np.linspace(0.7, 1.0, HORIZON_STEPS)[:, None]
    return np.broadcast_to(centre * rise + width * SPREAD, (V, N_RESOURCES, HORIZON_STEPS, Q)).astype(np.float32)


def quiet(level: float = 50.0) -> PastHours:
    return PastHours(np.full((N, 288), level, dtype=np.float32), np.full(N, 288.0))


def boosted(middle: float, high: float, higher: float) -> F64:
    return np.repeat(np.array([[middle], [high], [higher]]), N, axis=1)


def fleet() -> HourPeaks:
    made = HourPeaks()
    made.rearrange(np.full(V, -1))
    return made


UNIT = np.ones((V, N_RESOURCES))


def test_at_first_all_are_believed_as_far_as_most_fleets_do() -> None:
    mixed, network = answer(100.0), answer(140.0)
    said = fleet().blend(mixed, network, boosted(120.0, 150.0, 160.0), quiet(130.0), UNIT)[0, 0, -1]
    parts = [mixed[0, 0, -1, MIDDLE], network[0, 0, -1, MIDDLE], 120.0, 130.0]
    assert said[MIDDLE] == pytest.approx(np.average(parts, weights=AT_FIRST[:, MIDDLE]), rel=1e-5)
    parts = [mixed[0, 0, -1, 6], network[0, 0, -1, 6], 160.0, 130.0 * 1.03]
    assert said[LEVELS.index(0.95)] == pytest.approx(np.average(parts, weights=AT_FIRST[:, 6]), rel=1e-5)
    np.testing.assert_allclose(AT_FIRST.sum(axis=0), 1.0)


def test_nobody_else_has_an_answer() -> None:
    part, mixed = fleet(), answer(100.0)
    assert part.blend(mixed, None, None, quiet(), UNIT) is mixed


@pytest.mark.parametrize(("right", "which"), [("network", NETWORK), ("boosting", BOOSTING), ("past", PAST_HOURS), ("mixed", MIXED)])
def test_who_was_right_is_believed(right: str, which: int) -> None:
    part = fleet()
    centre = {name: 100.0 if name == right else 400.0 for name in ("mixed", "network", "boosting", "past")}
    made = (answer(centre["mixed"]), answer(centre["network"]), boosted(*([centre["boosting"]] * 3)), quiet(centre["past"]))
    for _ in range(60):
        part.learn(np.full((V, N_RESOURCES), 100.0))
        part.blend(*made, UNIT)
    trust = part.trust()
    assert trust.shape == (N_RESOURCES, hours.K, Q) and np.allclose(trust.sum(axis=1), 1.0, atol=1e-6)
    assert (trust[:, which, MIDDLE] > 0.95).all()
    said = part.blend(*made, UNIT)
    assert said[..., -1, MIDDLE] == pytest.approx(100.0, rel=0.15)


def test_each_level_has_weights_of_its_own() -> None:
    """The network is right in the middle and far too low above; the day's hours are the other way round."""
    rng = np.random.default_rng(5)
    part, mixed, network = fleet(), answer(400.0), answer(100.0, 0.1)
    past = PastHours(np.full((N, 288), 300.0, dtype=np.float32), np.full(N, 288.0))
    for _ in range(300):
        came = np.where(rng.random((V, N_RESOURCES)) < 0.06, 300.0, 100.0)
        part.learn(came)
        part.blend(mixed, network, None, past, UNIT)
    trust = part.trust()
    assert (trust[:, NETWORK, MIDDLE] > 0.9).all() and (trust[:, PAST_HOURS, TOP] > 0.7).all()
    assert (trust[:, BOOSTING] == 0.0).all(), "it did not speak"


def test_losses_are_what_plain_arithmetic_gives() -> None:
    rng = np.random.default_rng(1)
    said = np.sort(rng.gamma(2.0, 50.0, (N, hours.K, Q)), axis=-1).astype(np.float32)
    said[4, NETWORK] = np.nan  # was not asked: this series compares nobody
    came = rng.gamma(2.0, 60.0, N).astype(np.float32)
    came[7] = np.nan
    unit = rng.gamma(2.0, 2.0, N).astype(np.float32)
    loss, votes = np.zeros((N_RESOURCES, hours.K, Q)), np.zeros(N_RESOURCES)
    hours.score(said, came, unit, loss, votes)
    size = (unit + said[:, PAST_HOURS, LEVELS.index(0.975)]) ** 0.25
    error = (came[:, None, None] - said) / size[:, None, None]
    each = np.maximum(TAU * error, (TAU - 1.0) * error)
    each[[4, 7]] = np.nan
    by_resource = each.reshape(V, N_RESOURCES, hours.K, Q)
    np.testing.assert_allclose(loss, np.nansum(by_resource, axis=0), rtol=1e-5)
    assert votes.tolist() == [V, V, V - 1, V, V - 1]


def test_weights_follow_the_ratio_of_the_losses_as_far_as_there_is_evidence() -> None:
    part, made = fleet(), (answer(101.0), answer(102.0), None, quiet(103.0))
    for _ in range(HORIZON_STEPS + 30):
        part.learn(np.full((V, N_RESOURCES), 100.0))
        part.blend(*made, UNIT)
    weight = sum(DECAY**age for age in range(30))
    assert part._weight == pytest.approx(np.full(N_RESOURCES, weight))
    assert part._loss[0, PAST_HOURS, MIDDLE] > 0
    lost = np.log(np.clip(part._loss[0] / part._loss[0, 0], 0.05, 20.0))[[MIXED, NETWORK, PAST_HOURS]]
    beside = (lost[:, MIDDLE - 1] + lost[:, MIDDLE + 1]) / 2.0
    sure = weight / (weight + EVIDENCE)
    logs = -SHARPNESS * sure * ((1.0 - NEIGHBOURS) * lost[:, MIDDLE] + NEIGHBOURS * beside)
    worth = np.exp(logs) * AT_FIRST[[MIXED, NETWORK, PAST_HOURS], MIDDLE] ** (1.0 - sure)
    assert part.trust()[0, [MIXED, NETWORK, PAST_HOURS], MIDDLE] == pytest.approx(worth / worth.sum(), rel=1e-4)


def test_the_days_hours_are_ranked() -> None:
    rng = np.random.default_rng(2)
    day = rng.gamma(2.0, 50.0, (N, 288)).astype(np.float32)
    found = np.full((N, Q), np.nan, dtype=np.float32)
    hours.past_hours(day, np.full(N, 288.0), 0, 8, found)
    peaks = np.stack([day[:, 288 - APART * k - 12 : 288 - APART * k].max(axis=1) for k in range(HOURS)], axis=1)
    ranks = np.quantile(peaks, TAU[:7], axis=1).T
    np.testing.assert_allclose(found[:, :6], ranks[:, :6], rtol=1e-5)
    np.testing.assert_allclose(found[:, 6], ranks[:, 6] * 1.03, rtol=1e-5)
    np.testing.assert_allclose(found[:, 7:], peaks.max(axis=1)[:, None] * [1.15, 1.35], rtol=1e-5)
    before = found.copy()
    day[:, -1] = 0.5
    day[2, -1] = 1e5  # the highest hour of the day is told at once, all else in its turn
    hours.past_hours(day, np.full(N, 288.0), 1, 8, found)
    moved = set(np.flatnonzero((found != before).any(axis=1)).tolist())
    assert found[2, 7] == pytest.approx(1.15e5) and moved <= {2, 7}
    hours.past_hours(day, np.full(N, APART * (LEAST_HOURS - 2) + 12.0), 2, 8, found)
    assert np.isnan(found).all(), "too few hours to rank"


def test_running_peaks_stay_running_peaks() -> None:
    rng = np.random.default_rng(3)
    part = fleet()
    for _ in range(40):
        part.learn(rng.gamma(2.0, 50.0, (V, N_RESOURCES)))
        raw = np.sort(np.maximum.accumulate(rng.gamma(2.0, 50.0, (2, V, N_RESOURCES, HORIZON_STEPS, Q)), axis=3), axis=-1)
        mixed, network = np.maximum.accumulate(raw, axis=3).astype(np.float32)
        mixed[1, 2] = np.nan
        trees = np.sort(rng.gamma(2.0, 60.0, (3, N)), axis=0)
        trees[:, 3] = np.nan
        day = rng.gamma(2.0, 40.0, (N, 288)).astype(np.float32)
        said = part.blend(mixed, network, trees, PastHours(day, np.full(N, 288.0)), UNIT)
        known = ~np.isnan(mixed).any(axis=(2, 3))
        assert (np.isnan(said).any(axis=(2, 3)) == ~known).all() and known.sum() == N - 1
        assert (np.diff(said[known], axis=-1) >= 0).all() and (np.diff(said[known], axis=-2) >= 0).all() and (said[known] >= 0).all()


def test_a_bucket_that_is_issued_again_is_scored_once() -> None:
    one, other = fleet(), fleet()
    made = (answer(100.0), answer(120.0), None, quiet(100.0))
    for k in range(HORIZON_STEPS + 3):
        for part in (one, other):
            part.learn(np.full((V, N_RESOURCES), 100.0))
            part.blend(*made, UNIT)
        if k == 4:
            other.withdraw()
            other.blend(*made, UNIT)
    np.testing.assert_array_equal(one.trust(), other.trust())
    one.rearrange(np.array([2, -1]))
    assert one.blend(*(part[:2] for part in made[:2]), None, PastHours(*(p[: 2 * N_RESOURCES] for p in made[3])), UNIT[:2]).shape[0] == 2


def test_a_source_that_comes_starts_a_comparison_of_all() -> None:
    part = fleet()
    for _ in range(HORIZON_STEPS + 5):
        part.learn(np.full((V, N_RESOURCES), 100.0))
        part.blend(answer(100.0), answer(400.0), None, quiet(), UNIT)
    assert (part._weight > 0).all()
    part.blend(answer(100.0), answer(400.0), boosted(100.0, 110.0, 120.0), quiet(), UNIT)
    assert (part._weight == 0).all() and np.allclose(part.trust(), AT_FIRST) and part.resumed
    for _ in range(HORIZON_STEPS - 1):
        part.learn(np.full((V, N_RESOURCES), 100.0))
        part.pause()
    assert (part._weight == 0).all() and not part.resumed
    part.learn(np.full((V, N_RESOURCES), 100.0))
    assert (part._weight == 1).all()
