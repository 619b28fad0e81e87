"""Packing of moments and sizes, and the reading of fronts, in the forecast-then-pack bench."""

from __future__ import annotations

import numpy as np
import pytest

from bench.consolidation import Point, hosts_at, judged, moments, violated_at
from bench.consolidation_packers import PACKERS, fewest, shares
from coordinator.model import LEVELS
from coordinator.placement.packing.pooled import pack_pooled

CAPACITY = np.array([10.0, 20.0])


def sizes(vms: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 1.0, (vms, 2)) * np.array([1.0, 2.0])


@pytest.mark.parametrize("packer", PACKERS)
def test_a_packer_overfills_no_host_and_leaves_no_number_out(packer: str) -> None:
    for seed in range(3):
        wanted = np.minimum(sizes(40, seed), CAPACITY)
        place = PACKERS[packer](wanted, CAPACITY)
        load = np.zeros((place.max() + 1, 2))
        np.add.at(load, place, wanted)
        assert (load <= CAPACITY * (1 + 1e-6)).all()
        assert set(place) == set(range(place.max() + 1))
        assert place.max() + 1 >= fewest(shares(wanted, CAPACITY))


def test_the_exact_packer_finds_what_no_rule_does() -> None:
    wanted = np.array([[4.0], [4.0], [4.0], [3.0], [3.0], [3.0], [3.0], [6.0]])
    assert PACKERS["exact"](wanted, np.array([10.0])).max() + 1 == 3
    assert PACKERS["first fit"](wanted, np.array([10.0])).max() + 1 == 4


def test_what_is_larger_than_a_host_stands_alone() -> None:
    wanted = np.array([[1.0, 1.0], [50.0, 1.0], [1.0, 1.0]])
    for place in (PACKERS["best fit"](wanted, CAPACITY), pack_pooled(wanted, np.zeros_like(wanted), CAPACITY, z=0.0, seed=0)):
        assert (place == place[1]).sum() == 1


@pytest.mark.parametrize("z", [0.0, 1.0, 2.5])
def test_pooled_hosts_hold_their_sum_and_pooling_saves_hosts(z: float) -> None:
    mean = sizes(60, 4)
    variance = (0.5 * mean) ** 2
    place = pack_pooled(mean, variance, CAPACITY, z=z, seed=0)
    load, spread = np.zeros((place.max() + 1, 2)), np.zeros((place.max() + 1, 2))
    np.add.at(load, place, mean)
    np.add.at(spread, place, variance)
    alone = (mean + z * np.sqrt(variance) > CAPACITY).any(axis=1)
    shared = ~np.isin(np.arange(len(load)), place[alone])
    assert ((load + z * np.sqrt(spread))[shared] <= CAPACITY * (1 + 1e-5)).all()
    if z:
        assert place.max() < PACKERS["best fit"](mean + z * np.sqrt(variance), CAPACITY).max()
    assert (place == pack_pooled(mean, variance, CAPACITY, z=z, seed=0)).all()


def test_moments_of_quantiles() -> None:
    draws = np.random.default_rng(0).normal(50.0, 4.0, 200_000)
    mean, variance = moments(np.quantile(draws, LEVELS).astype(np.float32))
    assert mean == pytest.approx(50.0, abs=0.1) and variance == pytest.approx(16.0, rel=0.15)
    assert moments(np.full(len(LEVELS), 3.0, np.float32)) == pytest.approx((3.0, 0.0), abs=1e-6)


def point(hosts: float, violated: float) -> Point:
    return Point(knob=0.0, hosts=hosts, violated=violated, severity=0.0, utilisation=0.5, peak_to_average=1.0)


def test_a_front_is_read_between_its_points_and_nowhere_else() -> None:
    front = [point(10.0, 0.10), point(12.0, 0.02), point(15.0, 0.002)]
    assert hosts_at(front, 0.06) == pytest.approx(11.0) and hosts_at(front, 0.2) == 10.0
    assert np.isnan(hosts_at(front, 0.001)) and np.isnan(violated_at(front, 9.0))
    assert violated_at(front, 13.5) == pytest.approx(0.011) and violated_at(front, 99.0) == 0.002


def test_ours_must_need_a_tenth_less_or_break_half_as_often() -> None:
    rivals = {"r": [point(10.0, 0.05), point(20.0, 0.01)]}
    assert judged("s", 0.05, [point(8.9, 0.05)], rivals)[0].holds
    assert judged("s", 0.05, [point(9.5, 0.02)], rivals)[0].holds, "at ten hosts it breaks less than half"
    assert not judged("s", 0.05, [point(9.5, 0.05), point(30.0, 0.0)], rivals)[0].holds
