"""Mixing two answers level by level: each level follows who was better at it, and the kernels do what plain numpy does."""

from __future__ import annotations

import math

import numpy as np
import pytest

from coordinator.forecast.combine import GROUP_STARTS, GROUPS
from coordinator.forecast.kernels import levels, mixing
from coordinator.forecast.kernels.widening import widened
from coordinator.forecast.levels import PRIOR_EVIDENCE, LevelMixer
from coordinator.forecast.rows import NEW
from coordinator.forecast.two_answers import FLEET_DECAY
from coordinator.model import F32, LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

H, Q = HORIZON_STEPS, mixing.Q
MIDDLE = LEVELS.index(0.5)
TAU = np.array(LEVELS)
PART = np.repeat(np.arange(GROUPS), np.diff([*GROUP_STARTS, H]))


def fresh(vms: int, prior: float = 0.0) -> LevelMixer:
    mixer = LevelMixer(prior)
    mixer.rearrange(np.full(vms, NEW))
    return mixer


def answer(values: np.ndarray, vms: int) -> F32:
    """The same levels [q] for every VM, resource and step."""
    return np.broadcast_to(np.asarray(values, np.float32), (vms, N_RESOURCES, H, Q)).copy()


def test_each_level_follows_who_is_better_at_it() -> None:
    random = np.random.default_rng(1)
    right = np.quantile(random.gamma(2.0, 5.0, 100_000), TAU)
    low_wrong, high_wrong = right.copy(), right.copy()
    low_wrong[:MIDDLE] *= 0.1
    high_wrong[MIDDLE + 1 :] *= 2.5
    mixer, vms = fresh(6), 6
    for _ in range(150):
        mixed, _ = mixer.mix(answer(low_wrong, vms), answer(high_wrong, vms), np.ones((vms, N_RESOURCES)))
        mixer.learn(random.gamma(2.0, 5.0, (vms, N_RESOURCES, H)))
    weight = mixer.explain(0).by_level  # type: ignore[union-attr]
    assert weight is not None
    assert (weight[..., : MIDDLE - 1] > 0.6).all(), "the low levels of the second are right"
    assert (weight[..., MIDDLE + 2 :] < 0.4).all(), "the high levels of the first are"
    assert np.abs(mixed[0, 0, 0] - right).sum() < 0.5 * min(np.abs(low_wrong - right).sum(), np.abs(high_wrong - right).sum())


class Plain:
    """The same, said in numpy without a ring of rows."""

    def __init__(self, vms: int, prior: float) -> None:
        self.prior, self.said = prior, []  # type: ignore[var-annotated]
        self.own, self.heard = np.zeros((2, vms, N_RESOURCES, GROUPS, Q)), np.zeros((vms, N_RESOURCES, GROUPS))
        self.loss, self.votes = np.zeros((2, N_RESOURCES, GROUPS, Q)), np.zeros((N_RESOURCES, GROUPS))

    def mix(self, pool: F32, other: F32 | None) -> np.ndarray:
        self.said = [(pool, other), *self.said[: H - 1]]
        if other is None:
            return pool
        use = (self.loss > 0).all(axis=0)
        with np.errstate(all="ignore"):
            fleet_log = np.where(use, np.log(np.clip(self.loss[1] / self.loss[0], 0.05, 20.0)), 0.0)
            own_log = np.log(np.clip(self.own[1] / self.own[0], 0.05, 20.0))
        votes = np.where(use, self.votes[..., None], 0.0)
        fleet = (fleet_log * votes + self.prior * PRIOR_EVIDENCE) / (votes + PRIOR_EVIDENCE)
        heard = self.heard[..., None] * np.isfinite(own_log)
        log = (heard * np.nan_to_num(own_log) + float(levels.EVIDENCE) * fleet) / (heard + float(levels.EVIDENCE))
        weight = (1.0 / (1.0 + np.exp(float(mixing.SHARPNESS) * log)))[:, :, PART]
        both = pool + (other - pool) * weight
        found = np.where(np.isnan(pool), other, np.where(np.isnan(other), pool, both))
        return np.sort(found, axis=-1)

    def learn(self, came: np.ndarray) -> None:
        total, count = np.zeros((2, *self.heard.shape, Q)), np.zeros(self.heard.shape)
        for h in range(min(H, len(self.said))):
            pool, other = self.said[h]
            if other is None:
                continue
            known = np.isfinite(came[..., h] + pool[..., h, MIDDLE] + other[..., h, MIDDLE])
            for k, said in enumerate((pool, other)):
                error = came[..., h, None] - said[..., h, :]
                total[k, :, :, PART[h]] += np.where(known[..., None], np.maximum(TAU * error, (TAU - 1) * error), 0.0)
            count[..., PART[h]] += known
        asked = count > 0
        share = total / np.maximum(count, 1)[..., None]
        decay = float(mixing.DECAY)
        self.own = np.where(asked[..., None], self.own * decay + share, self.own)
        self.heard = np.where(asked, self.heard * decay + 1.0, self.heard)
        votes = asked.sum(axis=0)
        self.loss = np.where(votes[..., None] > 0, self.loss * FLEET_DECAY + share.sum(axis=1) / np.maximum(votes, 1)[..., None], self.loss)
        self.votes = np.where(votes > 0, self.votes * FLEET_DECAY + 1.0, self.votes)


def test_the_kernels_do_what_numpy_does() -> None:
    random, vms = np.random.default_rng(2), 4
    mixer, plain = fresh(vms, 0.1), Plain(vms, 0.1)
    for bucket in range(40):
        pool, other = np.sort(random.gamma(2.0, 5.0, (2, vms, N_RESOURCES, H, Q)), axis=-1).astype(np.float32)
        pool[random.random((vms, N_RESOURCES)) < 0.1] = np.nan
        other[random.random((vms, N_RESOURCES)) < 0.1] = np.nan
        asked = None if bucket in {0, 15, 16} else other
        mixed, _ = mixer.mix(pool, asked, np.ones((vms, N_RESOURCES)))
        np.testing.assert_allclose(mixed, plain.mix(pool, asked), rtol=2e-4)
        came = random.gamma(2.0, 5.0, (vms, N_RESOURCES, H))
        came[random.random(came.shape) < 0.1] = np.nan
        mixer.learn(came)
        plain.learn(came)


def test_levels_stay_ordered_whatever_the_weights() -> None:
    random, vms = np.random.default_rng(3), 5
    mixer = fresh(vms)
    for _ in range(60):
        pool, other = np.sort(random.gamma(0.5, 50.0, (2, vms, N_RESOURCES, H, Q)), axis=-1).astype(np.float32)
        mixed, weight = mixer.mix(pool, other, np.ones((vms, N_RESOURCES)))
        assert (np.diff(mixed, axis=-1) >= 0).all()
        assert ((weight >= 0) & (weight <= 1)).all()
        mixer.learn(random.gamma(0.5, 50.0, (vms, N_RESOURCES, H)))


def test_who_was_not_heard_counts_for_a_little_less() -> None:
    mixer = fresh(1, prior=0.1)
    _, weight = mixer.mix(answer(TAU, 1), answer(TAU + 1.0, 1), np.ones((1, N_RESOURCES)))
    assert weight == pytest.approx(1.0 / (1.0 + math.exp(float(mixing.SHARPNESS) * 0.1)), rel=1e-5)


def test_without_the_other_the_pool_goes_through_and_nothing_is_scored() -> None:
    mixer, pool = fresh(2), answer(TAU, 2)
    for _ in range(20):
        mixed, weight = mixer.mix(pool, None, np.ones((2, N_RESOURCES)))
        mixer.learn(np.ones((2, N_RESOURCES, H)))
    assert mixed is pool and not weight.any() and mixer.explain(0) is None


def test_a_successor_inherits_the_levels_and_half_the_record() -> None:
    mixer, vms = fresh(3), 3
    for _ in range(80):
        mixer.mix(answer(TAU * 10.0, vms), answer(TAU * 10.0 + 5.0, vms), np.ones((vms, N_RESOURCES)))
        mixer.learn(np.full((vms, N_RESOURCES, H), 10.0))
    before = mixer.explain(0)
    mixer.inherit()
    renewed = mixer.explain(0)
    assert before is not None and renewed is not None
    assert np.isnan(renewed.pool_loss).all() and not renewed.evidence.any(), "what was measured was another model"
    _, weight = mixer.mix(answer(TAU * 10.0, vms), answer(TAU * 10.0 + 5.0, vms), np.ones((vms, N_RESOURCES)))
    after = mixer.explain(0)
    assert after is not None and after.evidence == pytest.approx(before.evidence / 2, rel=1e-3)
    assert np.sign(weight[0] - 0.5) == pytest.approx(np.sign(before.weight - 0.5))


def test_a_vm_that_comes_and_one_that_goes_keep_the_others_scores() -> None:
    mixer, vms = fresh(3), 3
    for _ in range(30):
        mixer.mix(answer(TAU, vms), answer(TAU + 3.0, vms), np.ones((vms, N_RESOURCES)))
        mixer.learn(np.array([1.0, 4.0, 9.0])[:, None, None] * np.ones((vms, N_RESOURCES, H)))
    kept = mixer.explain(2)
    mixer.rearrange(np.array([2, NEW]))
    moved = mixer.explain(0)
    assert kept is not None and moved is not None
    np.testing.assert_array_equal(kept.pool_loss, moved.pool_loss)
    np.testing.assert_array_equal(mixer.explain(1).evidence, 0.0)  # type: ignore[union-attr]


def test_a_withdrawn_issue_is_not_scored() -> None:
    once, twice = fresh(1), fresh(1)
    for _ in range(14):
        for mixer in (once, twice):
            mixer.mix(answer(TAU, 1), answer(TAU + 1.0, 1), np.ones((1, N_RESOURCES)))
        twice.withdraw()
        twice.mix(answer(TAU, 1), answer(TAU + 1.0, 1), np.ones((1, N_RESOURCES)))
        for mixer in (once, twice):
            mixer.learn(np.full((1, N_RESOURCES, H), 2.0))
    np.testing.assert_array_equal(once.explain(0).pool_loss, twice.explain(0).pool_loss)  # type: ignore[union-attr]


def test_three_quantiles_take_the_shape_of_the_pool() -> None:
    shape = np.arange(1.0, Q + 1.0, dtype=np.float32)[None, None]
    low, high = LEVELS.index(0.1), LEVELS.index(0.9)
    three = np.array([100.0 - 2.0 * (MIDDLE - low), 100.0, 100.0 + 3.0 * (high - MIDDLE)])[:, None, None]
    full = widened(three, shape)[0, 0]
    assert full[[low, MIDDLE, high]] == pytest.approx(three[:, 0, 0])
    assert np.diff(full[: MIDDLE + 1]) == pytest.approx(2.0) and np.diff(full[MIDDLE:]) == pytest.approx(3.0)
    assert (widened(three - 99.5, shape) >= 0).all()
    assert np.isnan(widened(three * np.nan, shape)).all()
    flat = widened(three, np.full_like(shape, 7.0))[0, 0]
    assert flat == pytest.approx(100.0), "a pool without any width lends none"
