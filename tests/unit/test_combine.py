"""Weights from rolling validation: shrunk, dense, aware of the time of day."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.forecast import combine
from coordinator.forecast.calendar import SLOTS
from coordinator.forecast.combine import GROUP_OF_STEP, GROUP_SIZES, GROUP_STARTS, GROUPS, Chosen, Combiner, said_at
from coordinator.model import N_RESOURCES
from shared.units import HORIZON_STEPS

SHAPE = (N_RESOURCES, HORIZON_STEPS)
SILENT = np.nan


def combiner(k: int, v: int) -> Combiner:
    made = Combiner(tuple(f"m{i}" for i in range(k)), 16.0)
    made.rearrange(np.full(v, -1))
    return made


def says(*per_member: float, v: int = 1) -> np.ndarray:
    return np.broadcast_to(np.array(per_member)[:, None, None, None], (len(per_member), v, *SHAPE)).copy()


def score(made: Combiner, errors: np.ndarray, slots: tuple[int, ...], times: int) -> None:
    """Let members be off by `errors` [k, v, r, 12] in buckets whose forecasts were made in `slots`, until every score counts `times`."""
    for _ in range(times):
        for _ in range(HORIZON_STEPS):
            made.issue(47, errors)
        made.learn(np.zeros(errors.shape[1:]), slots)


def ask(made: Combiner, slot: int, k: int, v: int = 1) -> Chosen:
    chosen = made.issue(slot, np.zeros((k, v, *SHAPE)))
    made.withdraw()
    return chosen


def test_weights_sum_to_one_and_follow_the_scores() -> None:
    made = combiner(3, 2)
    score(made, says(1.0, 1.2, 5.0, v=2), (0, 0, 0), 60)
    chosen = ask(made, 20, 3, 2)
    np.testing.assert_allclose(chosen.weights.sum(axis=0), 1.0, rtol=1e-6)
    assert (chosen.weights[0] > chosen.weights[1]).all()
    assert (chosen.weights[2] == 0).all()
    assert (chosen.leader == 0).all()


def test_without_scores_all_able_members_share() -> None:
    made = combiner(3, 1)
    chosen = made.issue(0, says(10.0, SILENT, 20.0))
    np.testing.assert_allclose(chosen.weights[:, 0, 0, 0], [0.5, 0.0, 0.5])
    np.testing.assert_allclose(chosen.point, 15.0)


def test_where_nobody_speaks_nothing_weighs() -> None:
    chosen = combiner(2, 1).issue(0, says(SILENT, SILENT))
    assert (chosen.weights == 0).all()
    assert (chosen.point == 0).all()  # the caller knows that nothing is known


def test_few_own_windows_lean_on_the_fleet() -> None:
    made = combiner(2, 11)
    usual = says(1.0, 2.0, v=11)
    usual[:, 10] = np.nan  # a newcomer
    score(made, usual, (0, 0, 0), 100)
    lucky = np.full_like(usual, np.nan)
    lucky[0, 10], lucky[1, 10] = 1.3, 1.0
    score(made, lucky, (0, 0, 0), 1)
    assert (ask(made, 20, 2, 11).leader[10] == 0).all()
    score(made, lucky, (0, 0, 0), 100)
    assert (ask(made, 20, 2, 11).leader[10] == 1).all()


def test_yesterday_at_this_time_counts() -> None:
    made = combiner(2, 1)
    score(made, says(10.0, 1.0), (17, 17, 17), 6)  # the surge: only the second member saw it coming
    score(made, says(1.0, 1.1), (30, 30, 30), 500)
    assert (ask(made, 17, 2).leader == 1).all()
    assert (ask(made, 16, 2).leader == 1).all()  # half an hour ahead
    assert (ask(made, 40, 2).leader == 0).all()


def test_scores_may_be_missing_anywhere() -> None:
    made = combiner(2, 1)
    holes = says(1.0, 2.0)
    holes[:, :, 2] = np.nan
    holes[0, :, :, 6:] = np.nan
    score(made, holes, (0, 1, 2), 5)
    weights = ask(made, 0, 2).weights
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights[:, 0, 2], 0.5)  # nothing known of that resource
    np.testing.assert_allclose(weights[:, 0, 0, 2], [0.0, 1.0])  # scored before never scored
    assert (weights[0, 0, 0, :2] > 0.9).all()


def test_rearranging_keeps_the_scores_with_their_vm() -> None:
    made = combiner(2, 2)
    scores = says(1.0, 3.0, v=2)
    scores[:, 1] = scores[::-1, 1]
    score(made, scores, (0, 0, 0), 80)
    made.rearrange(np.array([1, -1, 0]))
    chosen = ask(made, 20, 2, 3)
    assert chosen.leader[0, 0] == 1
    assert chosen.leader[2, 0] == 0
    assert chosen.weights[:, 1].sum(axis=0) == pytest.approx(1.0)


def test_an_actual_scores_what_was_said_for_it() -> None:
    made = combiner(2, 1)
    for said in (0.0, 1.0):  # the first member is right about whatever the older issue said
        made.issue(0, np.stack([np.full((1, *SHAPE), said), np.full((1, *SHAPE), 9.0)]))
    made.pause()
    made.learn(np.full((1, *SHAPE), 1.0), (0, 0, 0))
    # step 0 fell into the pause, step 1 was said by the second issue, step 2 by the first
    recent, weight = made._recent[:, :, :, 0, 0]
    np.testing.assert_allclose(recent, [[0.0, 1.0, 0.0], [8.0, 8.0, 0.0]])
    np.testing.assert_allclose(weight, [[1, 1, 0], [1, 1, 0]])


def test_an_issue_made_again_takes_the_place_of_the_first() -> None:
    made = combiner(2, 1)
    made.issue(0, says(5.0, 5.0))
    made.withdraw()
    made.issue(0, says(1.0, SILENT))
    made.learn(np.full((1, *SHAPE), 3.0), (0, 0, 0))
    np.testing.assert_allclose(made._recent[0, :, 0, 0, 0], [2.0, 0.0])


def test_each_step_has_a_place_of_its_own_for_as_long_as_it_is_needed() -> None:
    for issue in range(30):
        later = [set(said_at(issue + ahead)[ahead:]) for ahead in range(HORIZON_STEPS)]
        assert all(said_at(issue)[step] not in later[ahead] for step in range(HORIZON_STEPS) for ahead in range(1, step + 1))
        assert (said_at(issue) == [said_at(issue + step + 1)[step] for step in range(HORIZON_STEPS)]).all()


class Reference:
    """The same rules in plain numpy, float64, whole issues kept."""

    def __init__(self, k: int, v: int, fleet_evidence: float) -> None:
        self.evidence = fleet_evidence
        self.recent = np.zeros((2, k, v, N_RESOURCES, GROUPS))
        self.slots = np.zeros((2, SLOTS, k, v, N_RESOURCES, GROUPS))
        self.said: list[np.ndarray] = []

    def learn(self, actual: np.ndarray, slots: tuple[int, ...]) -> None:
        errors = np.full((*self.recent.shape[1:4], HORIZON_STEPS), np.nan)
        for step, said in enumerate(self.said[:HORIZON_STEPS]):
            errors[..., step] = np.abs(said[..., step] - actual[..., step])
        known = ~np.isnan(errors)
        count = np.add.reduceat(known.astype(float), GROUP_STARTS, axis=-1)
        new = np.stack([np.add.reduceat(np.where(known, errors, 0.0), GROUP_STARTS, axis=-1) / np.maximum(count, 1), count > 0])
        self.recent = self.recent * np.where(count > 0, combine.RECENT_DECAY, 1.0) + new
        for g, slot in enumerate(slots):
            held = np.where(count[..., g] > 0, combine.SLOT_DECAY, 1.0)
            self.slots[:, slot, ..., g] = self.slots[:, slot, ..., g] * held + new[..., g]

    def weights(self, slot: int, forecasts: np.ndarray) -> np.ndarray:
        ahead = self.slots[:, slot] + self.slots[:, (slot + 1) % SLOTS]
        with np.errstate(invalid="ignore", divide="ignore"):
            share = 0.5 * np.minimum(ahead[1] / 3.0, 1.0)
            loss = self.recent[0] / self.recent[1] * (1.0 - share) + np.where(ahead[1] > 0, ahead[0] / ahead[1], 0.0) * share
            able = np.logical_and.reduceat(~np.isnan(forecasts), GROUP_STARTS, axis=-1)
            usable = able & ~np.isnan(loss)
            centre = np.where(usable, loss, 0.0).sum(axis=0) / np.maximum(usable.sum(axis=0), 1)
            logs = np.log(np.where(usable & (centre > 0), np.clip(loss / centre, 0.05, 20.0), 1.0))
        seen = usable.sum(axis=1, keepdims=True)
        fleet = logs.sum(axis=1, keepdims=True, where=usable) / np.maximum(seen, 1)
        trust = np.where(usable, self.recent[1] / (self.recent[1] + self.evidence), 0.0)
        shrunk = trust * logs + (1.0 - trust) * (fleet + combine.NEWCOMER)
        allowed = able & (seen > 0)
        allowed |= able & ~allowed.any(axis=0)
        shrunk = np.where(allowed, shrunk, np.inf)
        best = np.where(allowed.any(axis=0), shrunk.min(axis=0), 0.0)
        raw = np.where(shrunk <= best + np.log(combine.CUT), np.exp(-combine.SHARPNESS * (shrunk - best)), 0.0)
        return raw / np.maximum(raw.sum(axis=0), 1e-12)


def test_the_kernels_do_what_plain_numpy_does() -> None:
    k, v = 4, 70  # more series than lie side by side, and not a multiple of it
    rng = np.random.default_rng(5)
    made, reference = Combiner(tuple("abcd"), 12.0), Reference(k, v, 12.0)
    made.rearrange(np.full(v, -1))
    skill = rng.lognormal(0, 0.3, (k, v, *SHAPE))
    for bucket in range(60):
        actual = rng.lognormal(0, 1, (v, *SHAPE))
        actual[rng.random(actual.shape) < 0.1] = np.nan
        slots = tuple((bucket // 6 - back) % 5 for back in range(GROUPS))
        made.learn(actual, slots)
        reference.learn(actual, slots)
        forecasts = np.maximum(50.0 + skill * rng.normal(0, 1, skill.shape), 0.0)
        forecasts[rng.random(k) < 0.2] = np.nan
        forecasts[3, : bucket + 5] = np.nan  # heard of late only, never for the last of the fleet
        forecasts[rng.random((k, v)) < 0.05] = np.nan
        if bucket % 7 == 3:
            made.pause()
            reference.said.insert(0, np.full_like(forecasts, np.nan))
            continue
        chosen, weights = made.issue(slots[0], forecasts), reference.weights(slots[0], forecasts)
        reference.said.insert(0, forecasts)
        spread = weights[..., GROUP_OF_STEP]
        np.testing.assert_allclose(chosen.weights, weights, rtol=2e-4, atol=1e-5)
        np.testing.assert_allclose(chosen.point, (np.where(spread > 0, forecasts, 0.0) * spread).sum(axis=0), rtol=1e-5)
        overall = np.sort((weights * GROUP_SIZES).sum(axis=-1), axis=0)
        clear = overall[-1] > overall[-2] + 1e-3
        assert (chosen.leader == (weights * GROUP_SIZES).sum(axis=-1).argmax(axis=0))[clear].all()
