"""Weights from rolling validation: shrunk, dense, aware of the time of day."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.forecast.combine import GROUPS, Combiner, blend, leader
from coordinator.model import N_RESOURCES
from shared.units import HORIZON_STEPS

SHAPE = (N_RESOURCES, HORIZON_STEPS)


def combiner(k: int, v: int) -> Combiner:
    made = Combiner(tuple(f"m{i}" for i in range(k)), 16.0)
    made.rearrange(np.full(v, -1))
    return made


def errors(*per_member: float, v: int = 1) -> np.ndarray:
    return np.broadcast_to(np.array(per_member)[:, None, None, None], (len(per_member), v, *SHAPE)).copy()


def test_weights_sum_to_one_and_follow_the_scores() -> None:
    made = combiner(3, 2)
    for _ in range(60):
        made.score(errors(1.0, 1.2, 5.0, v=2), (0, 0, 0))
    weights = made.weights(20, np.zeros((3, 2, *SHAPE)))
    np.testing.assert_allclose(weights.sum(axis=0), 1.0)
    assert (weights[0] > weights[1]).all()
    assert (weights[2] == 0).all()
    assert (leader(weights) == 0).all()


def test_without_scores_all_able_members_share() -> None:
    made = combiner(3, 1)
    forecasts = np.zeros((3, 1, *SHAPE))
    forecasts[1] = np.nan
    weights = made.weights(0, forecasts)
    np.testing.assert_allclose(weights[:, 0, 0, 0], [0.5, 0.0, 0.5])


def test_few_own_windows_lean_on_the_fleet() -> None:
    made = combiner(2, 11)
    usual = errors(1.0, 2.0, v=11)
    usual[:, 10] = np.nan  # a newcomer
    for _ in range(100):
        made.score(usual, (0, 0, 0))
    lucky = np.full_like(usual, np.nan)
    lucky[0, 10], lucky[1, 10] = 1.3, 1.0
    made.score(lucky, (0, 0, 0))
    assert (leader(made.weights(20, np.zeros((2, 11, *SHAPE))))[10] == 0).all()
    for _ in range(100):
        made.score(lucky, (0, 0, 0))
    assert (leader(made.weights(20, np.zeros((2, 11, *SHAPE))))[10] == 1).all()


def test_yesterday_at_this_time_counts() -> None:
    made = combiner(2, 1)
    for _ in range(6):
        made.score(errors(10.0, 1.0), (17, 17, 17))  # the surge: only the second member saw it coming
    for _ in range(500):
        made.score(errors(1.0, 1.1), (30, 30, 30))
    forecasts = np.zeros((2, 1, *SHAPE))
    assert (leader(made.weights(17, forecasts)) == 1).all()
    assert (leader(made.weights(16, forecasts)) == 1).all()  # half an hour ahead
    assert (leader(made.weights(40, forecasts)) == 0).all()


def test_scores_may_be_missing_anywhere() -> None:
    made = combiner(2, 1)
    holes = errors(1.0, 2.0)
    holes[:, :, 2] = np.nan
    holes[0, :, :, 6:] = np.nan
    for _ in range(5):
        made.score(holes, (0, 1, 2))
    loss, evidence = made.losses(10)
    assert loss.shape == (2, 1, N_RESOURCES, GROUPS)
    assert np.isnan(loss[:, 0, 2]).all()
    assert evidence[0, 0, 0, 2] == 0
    assert np.isfinite(made.weights(0, np.zeros((2, 1, *SHAPE)))).all()


def test_blend_ignores_the_silent() -> None:
    forecasts = np.stack([np.full((1, *SHAPE), 10.0), np.full((1, *SHAPE), np.nan), np.full((1, *SHAPE), 20.0)])
    weights = np.zeros((3, 1, N_RESOURCES, GROUPS))
    weights[0], weights[2] = 0.25, 0.75
    np.testing.assert_allclose(blend(forecasts, weights), 17.5)


def test_rearranging_keeps_the_scores_with_their_vm() -> None:
    made = combiner(2, 2)
    scores = errors(1.0, 3.0, v=2)
    scores[:, 1] = scores[::-1, 1]
    for _ in range(80):
        made.score(scores, (0, 0, 0))
    made.rearrange(np.array([1, -1, 0]))
    weights = made.weights(20, np.zeros((2, 3, *SHAPE)))
    assert leader(weights)[0, 0] == 1
    assert leader(weights)[2, 0] == 0
    assert weights[:, 1].sum(axis=0) == pytest.approx(1.0)
