"""Drift of the loss relative to Naive: told when it lasts, not on noise, days or harder load; with rest and recovery."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.learning.accuracy import BucketLoss
from coordinator.learning.drift import LONGEST_REST_S, REST_S, DriftWatch, RetrainWanted
from coordinator.model import N_RESOURCES
from shared.units import BUCKET_S, CPU

T0 = 1_700_006_400
DAY = 288
V = 30


class Fleet:
    """Losses of V VMs of very different size, with a daily swing of the ratio; `worse` multiplies ours."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.watch = DriftWatch()
        self.size = self.rng.lognormal(8, 2, (V, 1)) * np.array([1, 1e6, 1e3, 1e4, 1e4])
        self.t = 0

    def run(self, buckets: int, worse: float | np.ndarray = 1.0, harder: float = 1.0) -> list[tuple[int, RetrainWanted]]:
        found = []
        for _ in range(buckets):
            naive = harder * self.size * np.exp(0.8 * self.rng.standard_normal((V, N_RESOURCES)))
            swing = 1 + 0.15 * np.sin(2 * np.pi * self.t / DAY)
            ours = 0.6 * swing * worse * naive * np.exp(0.3 * self.rng.standard_normal((V, N_RESOURCES)))
            count = np.full((V, N_RESOURCES), 12.0)
            take = np.full(V, -1) if self.t == 0 else None
            loss = BucketLoss(start_s=T0 + self.t * BUCKET_S, take=take, pinball=ours * 12, naive=naive * 12, count=count)
            wanted = self.watch.update(loss)
            if wanted is not None:
                found.append((self.t, wanted))
            self.t += 1
        return found


def test_a_calm_fleet_and_one_whose_load_grows_wilder_ask_for_nothing() -> None:
    fleet = Fleet()
    assert fleet.run(3 * DAY) == []
    assert fleet.run(DAY, harder=5.0) == []
    assert fleet.run(DAY // 2, worse=1.04) == []


def test_lasting_harm_to_one_resource_is_told_with_its_beginning_then_rests() -> None:
    fleet = Fleet(1)
    fleet.run(3 * DAY)
    worse = np.ones(N_RESOURCES)
    worse[CPU] = 1.6
    found = fleet.run(DAY, worse)
    at, first = found[0]
    assert at - 3 * DAY <= 24
    assert (first.reason, first.resources) == ("fleet_loss", ("cpu_millicores",))
    assert abs(first.since_s - (T0 + 3 * DAY * BUCKET_S)) <= 6 * BUCKET_S
    assert first.worse == pytest.approx(1.6, rel=0.15)
    gaps = np.diff([at for at, _ in found]) * BUCKET_S
    assert len(gaps) >= 1
    assert gaps[0] >= REST_S
    assert (gaps[1:] >= 2 * REST_S).all()  # each request in vain doubles the rest
    assert (gaps <= LONGEST_REST_S + 12 * BUCKET_S).all()


def test_an_hour_of_harm_is_forgiven_and_recovery_shortens_the_rest_again() -> None:
    fleet = Fleet(2)
    fleet.run(2 * DAY)
    assert fleet.run(3, worse=1.5) == []
    assert fleet.run(DAY // 4) == []
    assert len(fleet.run(DAY, worse=1.7)) >= 2
    assert fleet.run(DAY) == []
    again = np.array([at for at, _ in fleet.run(DAY, worse=1.7)])
    assert REST_S <= (again[1] - again[0]) * BUCKET_S < 2 * REST_S


def test_many_series_may_drift_while_the_fleet_as_a_whole_does_not() -> None:
    fleet = Fleet(3)
    fleet.run(DAY + 40)
    worse = np.full((V, 1), 0.6)
    worse[: V // 4] = 2.4
    found = fleet.run(DAY // 2, worse)
    assert found[0][1].reason == "many_series"
    fleet.run(DAY // 3, worse)
    assert fleet.watch.drifting.shape == (V, N_RESOURCES)


def test_too_little_is_no_evidence() -> None:
    watch = DriftWatch()
    nothing = np.zeros((2, N_RESOURCES))
    for t in range(400):
        take = np.full(2, -1) if t == 0 else None
        assert watch.update(BucketLoss(start_s=T0 + t * BUCKET_S, take=take, pinball=nothing, naive=nothing, count=nothing)) is None
    with pytest.raises(ValueError, match="rest_s 1: allowed 300 to 604800"):
        DriftWatch(rest_s=1)
