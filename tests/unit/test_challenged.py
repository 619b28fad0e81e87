"""The pool against challengers: heard only once scored, at the same moments, with places only for VMs that they speak of."""

from __future__ import annotations

import numpy as np

from coordinator.compute.memory import array_bytes
from coordinator.forecast.challenged import LEAST, LINGER, Challenge
from coordinator.forecast.challengers import MOST_STEPS, ChallengerForecast
from coordinator.model import F32, N_RESOURCES
from shared.units import BUCKET_S, HORIZON_STEPS

NOW_S = 1_700_006_400 // BUCKET_S * BUCKET_S
POOL, TRUTH = 80.0, 120.0
SEEN: F32 = np.tile(np.array([50.0, 150.0, 100.0], dtype=np.float32), (3, N_RESOURCES, 100))


class Fleet:
    """A challenge, and time."""

    def __init__(self, vm_ids: tuple[str, ...] = ("a", "b", "c")) -> None:
        self.made = Challenge(("auto_ets",))
        self.vm_ids = vm_ids
        self.made.rearrange(np.full(len(vm_ids), -1))
        self.now_s = NOW_S

    def post(self, *vm_ids: str, value: float = TRUTH, steps: int = 40) -> None:
        mean = np.full((len(vm_ids), steps), value, dtype=np.float32)
        said = ChallengerForecast(
            name="auto_ets", issued_s=self.now_s, vm_ids=vm_ids, resource=np.zeros(len(vm_ids), dtype=np.int64), mean=mean
        )
        row = {vm_id: i for i, vm_id in enumerate(self.vm_ids)}
        self.made.post([said], row, SEEN[: len(self.vm_ids)], self.now_s)

    def issue(self) -> tuple[np.ndarray, np.ndarray]:
        return self.made.issue(0, np.full((len(self.vm_ids), N_RESOURCES, HORIZON_STEPS), POOL), self.now_s)

    def lives(self, buckets: int) -> tuple[np.ndarray, np.ndarray]:
        for _ in range(buckets):
            actual = np.full((len(self.vm_ids), N_RESOURCES), TRUTH)
            self.made.learn(actual, np.repeat(actual[..., None], HORIZON_STEPS, axis=-1), (0, 0, 0), self.now_s)
            self.now_s += BUCKET_S
            last = self.issue()
        return last


def test_nothing_leans_on_a_challenger_before_it_was_scored() -> None:
    fleet = Fleet()
    fleet.post("a")
    point, led = fleet.issue()
    assert (point == POOL).all() and (led == -1).all()
    for _ in range(int(LEAST) - 1):
        point, led = fleet.lives(1)
        assert (point == POOL).all() and (led == -1).all()
    point, led = fleet.lives(20)
    np.testing.assert_allclose(point[0, 0], TRUTH, rtol=0.01)
    assert led.tolist() == [[0, -1, -1, -1, -1], [-1] * 5, [-1] * 5]
    assert (point[1:] == POOL).all() and (point[0, 1:] == POOL).all()


def test_where_it_has_run_out_the_pool_speaks() -> None:
    fleet = Fleet()
    fleet.post("a", steps=36)
    fleet.issue()
    point, _ = fleet.lives(30)  # six buckets are left of it
    np.testing.assert_allclose(point[0, 0, :6], TRUTH, rtol=0.01)
    assert (point[0, 0, 6:] == POOL).all()
    point, led = fleet.lives(6)
    assert (point == POOL).all() and (led == -1).all()


def test_one_that_is_worse_is_not_heard_and_the_pool_stays_as_it_is() -> None:
    fleet = Fleet()
    fleet.post("a", value=10.0)
    fleet.issue()
    point, led = fleet.lives(30)
    np.testing.assert_allclose(point, POOL, rtol=1e-3)
    assert (led == -1).all()


def test_it_follows_the_fleet_and_keeps_what_it_knows() -> None:
    fleet = Fleet()
    fleet.post("a", "c")
    fleet.issue()
    fleet.lives(20)
    fleet.made.rearrange(np.array([-1, 2]))
    fleet.vm_ids = ("new", "c")
    point, led = fleet.lives(1)
    assert led[:, 0].tolist() == [-1, 0]
    np.testing.assert_allclose(point[1, 0], TRUTH, rtol=0.01)
    fleet.made.rearrange(np.array([0]))
    fleet.vm_ids = ("new",)
    point, led = fleet.lives(3)
    assert (point == POOL).all()


def test_a_bucket_issued_again_is_scored_once() -> None:
    once, twice = Fleet(), Fleet()
    for fleet in (once, twice):
        fleet.post("a")
        fleet.issue()
    for _ in range(20):
        expected = once.lives(1)[0]
        twice.lives(1)
        twice.made.withdraw()
        got = twice.issue()[0]
        np.testing.assert_array_equal(got, expected)


def test_places_are_given_back() -> None:
    fleet = Fleet()
    before = array_bytes(fleet.made)
    for _ in range(3):
        fleet.post("a", "b", "c")
        fleet.issue()
        fleet.lives(3)
    held = array_bytes(fleet.made)
    fleet.lives(MOST_STEPS + LINGER + 2)
    after = array_bytes(fleet.made)
    assert before <= after < held
