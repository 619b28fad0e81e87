"""What was said waits in its place until its bucket comes, whatever becomes of the fleet meanwhile."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.forecast.rows import NEW, take_rows
from coordinator.forecast.triangle import ROWS, Triangle
from coordinator.model import N_RESOURCES
from shared.units import HORIZON_STEPS

STEPS = np.arange(HORIZON_STEPS)


def said(triangle: Triangle, vms: int) -> np.ndarray:
    """float32[h, v, r]: what stands in the rows that speak of the newest bucket, or take the issue to come."""
    return triangle.rows[triangle.places, : vms * N_RESOURCES, 0].reshape(HORIZON_STEPS, vms, N_RESOURCES)


def issue(triangle: Triangle, vms: int, number: float) -> None:
    triangle.rows[triangle.places, : vms * N_RESOURCES, 0] = number
    triangle.close(spoke=True)


def test_each_step_reads_what_was_said_of_it() -> None:
    triangle = Triangle(1)
    triangle.rearrange(np.full(2, NEW))
    for bucket in range(40):
        want = bucket - 1.0 - STEPS  # step h speaks of this bucket since h + 1 buckets ago
        np.testing.assert_array_equal(triangle.spoke, want >= 0)
        np.testing.assert_array_equal(
            said(triangle, 2)[want >= 0], np.broadcast_to(want[want >= 0, None, None], (sum(want >= 0), 2, N_RESOURCES))
        )
        issue(triangle, 2, bucket)
    assert triangle.rows.shape == (ROWS, 2 * N_RESOURCES, 1)


@pytest.mark.parametrize("seed", range(4))
def test_rows_follow_as_copies_would(seed: int) -> None:
    """VMs come, go and change places at random, by ones and by dozens: in place or with more room, the rows are the ones of `take_rows`."""
    rng = np.random.default_rng(seed)
    vms = 30
    triangle = Triangle(2)
    triangle.rearrange(np.full(vms, NEW))
    triangle.rows[:] = rng.random(triangle.rows.shape)
    plain = triangle.rows.reshape(ROWS, -1, N_RESOURCES, 2)[:, :vms].copy()
    for _ in range(60):
        kept = np.flatnonzero(rng.random(vms) < rng.choice([1.0, 0.9, 0.3]))
        if rng.random() < 0.3:
            rng.shuffle(kept)
        take = np.append(kept, np.full(rng.choice([0, 1, 2, 20]), NEW))
        triangle.rearrange(take)
        plain = take_rows(plain, take, 1, np.nan)
        vms = len(take)
        np.testing.assert_array_equal(triangle.rows.reshape(ROWS, -1, N_RESOURCES, 2)[:, :vms], plain)
        assert triangle.rows.shape[1] >= vms * N_RESOURCES


def test_a_vm_that_comes_finds_room() -> None:
    triangle = Triangle(1)
    triangle.rearrange(np.full(80, NEW))
    before = triangle.rows
    for vms in range(81, 91):
        triangle.rearrange(np.append(np.arange(vms - 1), NEW))
        assert np.shares_memory(before, triangle.rows)
    triangle.rearrange(np.append(np.arange(90), NEW))
    assert triangle.rows.shape[1] // N_RESOURCES == 91 + 91 // 8


def test_withdrawing_makes_room_for_the_same_bucket() -> None:
    triangle = Triangle(1)
    triangle.rearrange(np.full(1, NEW))
    triangle.withdraw()
    assert not triangle.spoke.any()
    for bucket in range(30):
        for _ in range(2):
            issue(triangle, 1, -1.0)
            triangle.withdraw()
        issue(triangle, 1, bucket)
    np.testing.assert_array_equal(said(triangle, 1)[:, 0, 0], 29.0 - STEPS)
    assert triangle.spoke.all()


def test_an_unspoken_issue_is_no_issue() -> None:
    triangle = Triangle(1)
    triangle.rearrange(np.full(1, NEW))
    for bucket in range(20):
        issue(triangle, 1, bucket) if bucket != 15 else triangle.close(spoke=False)
    assert triangle.spoke.tolist() == [step != 4 for step in STEPS]
