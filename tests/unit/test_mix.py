"""Mixing two answers by what they cost: the better source gets the weight, and the kernels do what plain numpy does."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.forecast.combine import GROUP_OF_STEP, GROUP_STARTS, GROUPS
from coordinator.forecast.kernels import mixing
from coordinator.forecast.kernels.mixing import DECAY, EVIDENCE, SHARPNESS, Q
from coordinator.forecast.mix import PRIOR_EVIDENCE, PRIOR_RATIO, Mixer
from coordinator.forecast.two_answers import FLEET_DECAY
from coordinator.model import F32, F64, LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

TAU = np.array(LEVELS)
PRIOR_WEIGHT = 1.0 / (1.0 + np.exp(float(SHARPNESS) * PRIOR_RATIO))
SPREAD = np.linspace(-2.0, 2.0, Q)


def answer(centre: float | F64, v: int) -> F32:
    """Bands around a centre (a number or float[v])."""
    middle = np.broadcast_to(np.asarray(centre, dtype=np.float64), (v,))[:, None, None, None]
    return np.broadcast_to(middle + SPREAD, (v, N_RESOURCES, HORIZON_STEPS, Q)).astype(np.float32)


def actual(value: float | F64, v: int) -> F64:
    return np.broadcast_to(
        np.broadcast_to(np.asarray(value, dtype=np.float64), (v,))[:, None, None], (v, N_RESOURCES, HORIZON_STEPS)
    ).copy()


def fleet(v: int) -> Mixer:
    mixer = Mixer()
    mixer.rearrange(np.full(v, -1))
    return mixer


def run(mixer: Mixer, buckets: int, pool: F32, network: F32 | None, came: F64) -> tuple[F32, F32]:
    mixed, weight = mixer.mix(pool, network, np.ones(came.shape[:2]))
    for _ in range(buckets):
        mixer.learn(came)
        mixed, weight = mixer.mix(pool, network, np.ones(came.shape[:2]))
    return mixed, weight


class Plain:
    """The same rules in numpy, a list of whole issues and float64: what the kernels must come to."""

    def __init__(self, v: int) -> None:
        self.loss: F64 = np.zeros((2, 2, v, N_RESOURCES, GROUPS))
        self.fleet: F64 = np.zeros((2, 2, N_RESOURCES, GROUPS))
        self.unit: F64 = np.ones((v, N_RESOURCES))
        self.said: list[tuple[F32 | None, F32 | None]] = []

    def learn(self, came: F64) -> None:
        if not any(net is not None for _, net in self.said):
            return
        losses = np.full((2, *came.shape), np.nan)
        for step, said in enumerate(self.said):
            for source, quantiles in enumerate(said):
                if quantiles is not None:
                    error = came[..., step, None] - quantiles[:, :, step]
                    losses[source, ..., step] = np.maximum(TAU * error, (TAU - 1.0) * error).mean(axis=-1)
        losses[:, np.isnan(losses).any(axis=0)] = np.nan
        self.take_in(losses)

    def rehearse(self, loss: F64) -> None:
        pool = self.loss[0, 0] / np.maximum(self.loss[0, 1], 1.0)
        spoken = self.loss[0, 1] > 0
        self.loss[1] = 0.0
        self.fleet[:] = 0.0
        for each in loss:
            before = np.where(spoken, pool, np.nan)[..., GROUP_OF_STEP]
            self.take_in(np.stack([np.where(np.isnan(each), np.nan, before), np.where(np.isnan(before), np.nan, each)]))

    def mix(self, pool: F32, network: F32 | None, unit: F64) -> tuple[F32, F64]:
        self.said = [(pool, network), *self.said[: HORIZON_STEPS - 1]]
        self.unit = unit
        if network is None:
            return pool, np.zeros((*pool.shape[:2], GROUPS))
        ratio, trust = log_ratio(self.loss)
        fleet_ratio, votes = log_ratio(self.fleet)
        expected = (fleet_ratio * votes + PRIOR_RATIO * PRIOR_EVIDENCE) / (votes + PRIOR_EVIDENCE)
        shrunk = (trust * ratio + float(EVIDENCE) * expected) / (trust + float(EVIDENCE))
        weight = 1.0 / (1.0 + np.exp(float(SHARPNESS) * shrunk))
        share = weight[..., GROUP_OF_STEP][..., None]
        mixed = np.where(np.isnan(network), pool, np.where(np.isnan(pool), network, pool * (1.0 - share) + network * share))
        return mixed.astype(np.float32), weight

    def take_in(self, losses: F64) -> None:
        known = np.isfinite(losses)
        count = np.add.reduceat(known.astype(np.float64), GROUP_STARTS, axis=-1)
        scored = count > 0
        mean = np.add.reduceat(np.where(known, losses, 0.0), GROUP_STARTS, axis=-1) / np.maximum(count, 1.0)
        for part, more in ((0, mean), (1, scored)):
            self.loss[:, part] = self.loss[:, part] * np.where(scored, float(DECAY), 1.0) + more
        told = scored.any(axis=1)
        decay = np.where(told, FLEET_DECAY, 1.0)
        self.fleet[:, 0] = self.fleet[:, 0] * decay + (mean / self.unit[None, :, :, None]).sum(axis=1) / np.maximum(scored.sum(axis=1), 1)
        self.fleet[:, 1] = self.fleet[:, 1] * decay + told


def log_ratio(losses: F64) -> tuple[F64, F64]:
    (pool, pool_weight), (network, network_weight) = losses
    trust = np.minimum(pool_weight, network_weight)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = (network / network_weight) / (pool / pool_weight)
    usable = (trust > 0) & np.isfinite(ratio) & (ratio > 0)
    return np.where(usable, np.log(np.clip(np.where(usable, ratio, 1.0), 0.05, 20.0)), 0.0), np.where(usable, trust, 0.0)


def test_kernels_equal_plain_numpy() -> None:
    rng = np.random.default_rng(7)
    v = 9
    mixer, plain = fleet(v), Plain(v)
    for bucket in range(60):
        if bucket:
            came = rng.gamma(2.0, 5.0, (v, N_RESOURCES, HORIZON_STEPS)).astype(np.float32).astype(np.float64)
            came[rng.random((v, N_RESOURCES)) < 0.1] = np.nan
            mixer.learn(came)
            plain.learn(came)
        if bucket == 40:
            loss = rng.gamma(2.0, 1.0, (5, v, N_RESOURCES, HORIZON_STEPS)).astype(np.float32).astype(np.float64)
            loss[:, 0] = np.nan
            mixer.rehearse(loss)
            plain.rehearse(loss)
        pool, network = np.sort(rng.gamma(2.0, 5.0, (2, v, N_RESOURCES, HORIZON_STEPS, Q)), axis=-1).astype(np.float32)
        pool[rng.random((v, N_RESOURCES)) < 0.1] = np.nan
        network[rng.random((v, N_RESOURCES)) < 0.1] = np.nan
        unit = rng.uniform(0.5, 2.0, (v, N_RESOURCES))
        asked = network if bucket not in {0, 20, 21} else None
        mixed, weight = mixer.mix(pool, asked, unit)
        wanted, wanted_weight = plain.mix(pool, asked, unit)
        np.testing.assert_allclose(weight, wanted_weight, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mixed, wanted, rtol=1e-5)
        if bucket in {25, 26}:
            mixer.withdraw()
            plain.said = plain.said[1:]
            mixer.mix(pool * np.float32(1.1), asked, unit)
            plain.mix(pool * np.float32(1.1), asked, unit)


def test_without_evidence_the_prior_speaks() -> None:
    _, weight = fleet(3).mix(answer(5.0, 3), answer(9.0, 3), np.ones((3, N_RESOURCES)))
    np.testing.assert_allclose(weight, PRIOR_WEIGHT, rtol=1e-5)
    assert 0.8 < PRIOR_WEIGHT < 0.85


@pytest.mark.parametrize(("right", "wrong"), [(0, 1), (1, 0)])
def test_the_better_source_gets_the_weight(right: int, wrong: int) -> None:
    answers = {right: answer(10.0, 4), wrong: answer(16.0, 4)}
    mixed, weight = run(fleet(4), 40, answers[0], answers[1], actual(10.0, 4))
    assert (weight > 0.98).all() if right == 1 else (weight < 0.02).all()
    np.testing.assert_allclose(mixed, answers[right], atol=0.12)


def test_equal_sources_share() -> None:
    """What is left of the prior is its six buckets among 52, and half of that once own scores count for a third."""
    _, weight = run(fleet(2), 60, answer(12.0, 2), answer(12.0, 2), actual(10.0, 2))
    assert ((weight > 0.5) & (weight < 0.54)).all()


def test_own_evidence_departs_from_the_fleet() -> None:
    v = 40
    came = np.full(v, 10.0)
    came[0] = 14.0  # to this one alone the network is wrong
    mixer = fleet(v)
    _, early = run(mixer, 13, answer(14.0, v), answer(10.0, v), actual(came, v))
    assert (early > 0.9).all()  # a dozen of own scores do not outweigh the fleet
    _, late = run(mixer, 400, answer(14.0, v), answer(10.0, v), actual(came, v))
    assert (late[0] < 0.1).all()
    assert (late[1:] > 0.9).all()


def test_a_newcomer_hears_the_fleet() -> None:
    mixer = fleet(3)
    run(mixer, 40, answer(10.0, 3), answer(16.0, 3), actual(10.0, 3))
    mixer.rearrange(np.array([2, -1]))
    _, weight = mixer.mix(answer(10.0, 2), answer(16.0, 2), np.ones((2, N_RESOURCES)))
    assert (weight < 0.02).all()


def test_rows_follow_the_fleet() -> None:
    """VM 1 of three goes, one comes: the others' scores and what they were told go along."""
    centres = np.array([5.0, 50.0, 20.0])
    mixer, alone = fleet(3), fleet(2)
    kept = np.array([2, 0])
    for m, c in ((mixer, centres), (alone, centres[kept])):
        m.mix(answer(c, len(c)), answer(c + 3.0, len(c)), np.ones((len(c), N_RESOURCES)))
    mixer.rearrange(kept)
    for m in (mixer, alone):
        m.learn(actual(centres[kept], 2))
    for m in (mixer, alone):
        m.rearrange(np.array([0, 1, -1]))
    results = [run(m, 12, answer(7.0, 3), answer(9.0, 3), actual(8.0, 3)) for m in (mixer, alone)]
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_empty_fleet() -> None:
    mixer = fleet(2)
    run(mixer, 3, answer(1.0, 2), answer(2.0, 2), actual(1.0, 2))
    mixer.rearrange(np.zeros(0, dtype=np.int64))
    mixed, weight = run(mixer, 2, answer(1.0, 0), answer(2.0, 0), actual(1.0, 0))
    assert mixed.shape == (0, N_RESOURCES, HORIZON_STEPS, Q)
    assert weight.shape == (0, N_RESOURCES, GROUPS)


def test_a_silent_source_leaves_the_other() -> None:
    pool, network = answer(10.0, 3), answer(20.0, 3)
    pool[0], network[1] = np.nan, np.nan
    pool[2], network[2] = np.nan, np.nan
    mixer = fleet(3)
    mixed, weight = run(mixer, 20, pool, network, actual(10.0, 3))
    np.testing.assert_array_equal(mixed[0], network[0])
    np.testing.assert_array_equal(mixed[1], pool[1])
    assert np.isnan(mixed[2]).all()
    np.testing.assert_allclose(weight, PRIOR_WEIGHT, rtol=1e-5)  # nothing was ever compared


def test_without_network_the_pool_goes_through() -> None:
    mixer = fleet(2)
    pool = answer(3.0, 2)
    mixed, weight = run(mixer, 3, pool, None, actual(9.0, 2))
    assert mixed is pool
    assert not weight.any()
    assert mixer._said._rows is None  # and nothing is kept of it


def test_nothing_known_changes_nothing() -> None:
    mixer = fleet(2)
    _, before = run(mixer, 20, answer(10.0, 2), answer(12.0, 2), actual(10.0, 2))
    _, after = run(mixer, 20, answer(10.0, 2), answer(12.0, 2), actual(np.nan, 2))
    np.testing.assert_array_equal(before, after)


def rising(bucket: int) -> F32:
    """What is said of the bucket: step h of an issue is about the bucket h later, and that is the demand."""
    said = np.arange(bucket, bucket + HORIZON_STEPS, dtype=np.float64)[:, None] + 0.0 * SPREAD
    return np.broadcast_to(said, (1, N_RESOURCES, HORIZON_STEPS, Q)).astype(np.float32)


def own_loss(mixer: Mixer) -> F64:
    return mixer._own[..., 0].astype(np.float64)


@pytest.mark.parametrize("gaps", [(), (5,), (3, 4, 5, 6), tuple(range(4, 18))])
def test_pauses_keep_what_was_said_beside_what_came(gaps: tuple[int, ...]) -> None:
    """The pool is right about each bucket; any slip of alignment would cost it at least a whole unit."""
    mixer = fleet(1)
    for bucket in range(30):
        if bucket:
            mixer.learn(actual(float(bucket - 1), 1))
        if bucket in gaps:
            mixer.pause()
        else:
            mixer.mix(rising(bucket), rising(bucket) + np.float32(1.0), np.ones((1, N_RESOURCES)))
    assert (mixer._own[..., 1] > 5).all()  # it was scored
    np.testing.assert_array_equal(own_loss(mixer), 0.0)
    assert (mixer._own[..., 2] > 1.0).all()


def test_a_withdrawn_issue_never_was() -> None:
    once, twice = fleet(1), fleet(1)
    twice.withdraw()  # nothing to take back yet
    for bucket in range(30):
        for mixer in (once, twice):
            if bucket:
                mixer.learn(actual(float(bucket), 1))
        for mixer, says in ((once, (0.0,)), (twice, (70.0, 30.0, 0.0))):
            for n, off in enumerate(says):
                if n:
                    mixer.withdraw()
                mixer.mix(rising(bucket) + np.float32(off), rising(bucket) + np.float32(1.0), np.ones((1, N_RESOURCES)))
    np.testing.assert_array_equal(once._own, twice._own)


def test_rehearsal_replaces_the_network_before() -> None:
    mixer = fleet(3)
    pool, came = answer(10.0, 3), actual(10.0, 3)
    _, before = run(mixer, 100, pool, answer(30.0, 3), came)
    assert (before < 0.01).all()
    cost = mixer._own[..., 0] / mixer._own[..., 1]
    mixer.rehearse(np.broadcast_to(0.5 * cost[..., GROUP_OF_STEP], (36, 3, N_RESOURCES, HORIZON_STEPS)).astype(np.float64))
    _, after = mixer.mix(pool, pool, np.ones((3, N_RESOURCES)))
    assert (after > 0.99).all()


def test_rehearsal_without_a_pool_to_compare_leaves_the_prior() -> None:
    mixer = fleet(2)
    mixer.rehearse(np.ones((5, 2, N_RESOURCES, HORIZON_STEPS)))
    _, weight = mixer.mix(answer(1.0, 2), answer(1.0, 2), np.ones((2, N_RESOURCES)))
    np.testing.assert_allclose(weight, PRIOR_WEIGHT, rtol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e20, 3e38])
def test_floats_at_their_ends(size: float) -> None:
    """Any size of demand, two perfect answers, an infinite reading: finite, between both, and others unharmed."""
    pool, network = answer(10.0, 2), answer(12.0, 2)
    pool[0], network[0] = size, size / 2.0
    came = actual(10.0, 2)
    came[0] = size
    mixer = fleet(2)
    run(mixer, 20, pool, network, came)
    came[0, 0] = np.inf
    mixed, weight = run(mixer, 600, pool, network, came)
    assert np.isfinite(mixed).all()
    assert np.isfinite(weight).all()
    assert ((mixed[0] >= np.float32(size / 2.0)) & (mixed[0] <= np.float32(size))).all()
    assert (np.diff(mixed, axis=-1) >= 0).all()


def test_perfect_answers_do_not_divide_by_zero() -> None:
    flat = np.full((2, N_RESOURCES, HORIZON_STEPS, Q), 4.0, dtype=np.float32)
    _, weight = run(fleet(2), 20, flat, flat, actual(4.0, 2))
    np.testing.assert_allclose(weight, PRIOR_WEIGHT, rtol=1e-5)


def test_state_is_what_the_docstring_says() -> None:
    mixer = fleet(2)
    mixer.mix(answer(1.0, 2), answer(1.0, 2), np.ones((2, N_RESOURCES)))
    assert mixer._said.rows.nbytes // (2 * N_RESOURCES) == 5616
    assert (mixer._own.nbytes + mixer._unit.nbytes) // (2 * N_RESOURCES) == 52
    assert mixer._own.dtype == mixing.mix(*_one())[0].dtype == np.float32


def _one() -> tuple[object, ...]:
    mixer = fleet(1)
    said = answer(1.0, 1).reshape(-1, HORIZON_STEPS, Q)
    return said, said, mixer._scores, mixer._expectation()[..., 0], mixer._said.rows, mixer._said.places
