"""A new level is followed within three buckets where new levels hold, and not where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.forecast.regimes import ENDLESS, Regimes
from coordinator.forecast.restart import YOUNG, Restarter
from coordinator.model import LEVELS, N_RESOURCES
from shared.units import HORIZON_STEPS

SHAPE = (4, N_RESOURCES)
MIDDLE = LEVELS.index(0.5)


def said(level: float) -> np.ndarray:
    spread = np.linspace(-10.0, 10.0, len(LEVELS)) - 0.0
    spread -= spread[MIDDLE]
    return np.broadcast_to(level + spread, (*SHAPE, HORIZON_STEPS, len(LEVELS))).astype(np.float32).copy()


def shifted(age: int) -> Regimes:
    """VM 0 alone has a new level."""
    ages = np.full(SHAPE, ENDLESS, dtype=np.int64)
    ages[0] = age
    hold = np.ones((*SHAPE, 3))
    hold[0] = 0.9
    return Regimes(np.zeros(SHAPE, dtype=bool), hold, ages, np.full(SHAPE, 100.0))


def newest(level: float, age: int) -> np.ndarray:
    values = np.full((*SHAPE, YOUNG), 100.0, dtype=np.float32)
    values[0, :, YOUNG - age :] = level
    return values


def test_only_a_young_level_moves_what_is_said_and_the_width_stays() -> None:
    restarter = Restarter()
    moved = restarter.restart(said(100.0), newest(300.0, 3), shifted(3))
    assert (moved[1:] == said(100.0)[1:]).all()
    assert moved[0, :, :, MIDDLE] == pytest.approx(100.0 + 0.5 * 0.9 * 200.0)  # nothing scored yet: half of what holds
    np.testing.assert_allclose(np.diff(moved[0], axis=-1), np.diff(said(100.0)[0], axis=-1), rtol=1e-4)
    old = Restarter().restart(said(100.0), newest(300.0, 3), shifted(YOUNG))
    assert (old == said(100.0)).all()


@pytest.mark.parametrize(("came", "low", "high"), [(280.0, 0.85, 1.0), (100.0, 0.0, 0.15)])
def test_the_fleet_learns_whether_new_levels_hold(came: float, low: float, high: float) -> None:
    restarter = Restarter()
    for _ in range(24):
        restarter.restart(said(100.0), newest(300.0, 3), shifted(3))
        restarter.learn(np.full((*SHAPE, HORIZON_STEPS), came))
    moved = restarter.restart(said(100.0), newest(300.0, 3), shifted(3))
    share = (moved[0, :, :, MIDDLE] - 100.0) / 180.0
    assert (share >= low).all() and (share <= high).all()


def test_unknown_values_pauses_and_a_changing_fleet() -> None:
    restarter = Restarter()
    values = newest(300.0, 3)
    values[0, 0] = np.nan  # its newest readings are gone: nothing to move to
    moved = restarter.restart(said(100.0), values, shifted(3))
    assert (moved[0, 0] == said(100.0)[0, 0]).all()
    assert (moved[0, 1] != said(100.0)[0, 1]).all()
    restarter.pause()
    restarter.withdraw()
    restarter.rearrange(np.array([2, 0, -1]))  # VM 0 is row 1 now, two VMs left, one is new
    restarter.learn(np.full((3, N_RESOURCES, HORIZON_STEPS), np.nan))
    restarter.rearrange(np.array([], dtype=np.int64))
    restarter.learn(np.zeros((0, N_RESOURCES, HORIZON_STEPS)))


def test_nothing_below_zero() -> None:
    assert Restarter().restart(said(100.0), newest(0.0, 5), shifted(5)).min() >= 0.0
