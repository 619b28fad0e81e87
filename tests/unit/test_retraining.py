"""When the global model is trained anew: by the clock of cycles, and after a drift, but never twice in a short time for one."""

from __future__ import annotations

import pytest

from coordinator.learning.retraining import EVERY_CYCLES, LEAST_S, SCHEDULE, RetrainSchedule
from shared.units import NS_PER_S

LEAST_NS = LEAST_S * NS_PER_S


def test_every_two_hours_without_a_drift() -> None:
    schedule = RetrainSchedule()
    assert [cycle for cycle in range(1, 60) if schedule.due(cycle, cycle * 300 * NS_PER_S)] == [EVERY_CYCLES, 2 * EVERY_CYCLES]
    assert schedule.begin(0) == SCHEDULE


def test_a_drift_trains_in_the_next_cycle_and_only_once() -> None:
    schedule = RetrainSchedule()
    schedule.drifted("fleet_loss")
    assert schedule.due(1, 0)
    assert schedule.begin(0) == "fleet_loss"
    assert not schedule.due(2, 10 * LEAST_NS)
    assert schedule.begin(1) == SCHEDULE


@pytest.mark.parametrize(("age_ns", "due"), [(0, False), (LEAST_NS - 1, False), (LEAST_NS, True)])
def test_soon_after_a_training_a_drift_waits_and_is_not_forgotten(age_ns: int, due: bool) -> None:
    schedule = RetrainSchedule()
    schedule.begin(7)
    schedule.drifted("many_series")
    assert schedule.due(1, 7 + age_ns) is due
    assert schedule.due(2, 7 + LEAST_NS)


def test_a_training_on_schedule_answers_a_waiting_drift_too() -> None:
    schedule = RetrainSchedule()
    schedule.begin(0)
    schedule.drifted("fleet_loss")
    assert schedule.due(EVERY_CYCLES, 1)
    assert schedule.begin(1) == "fleet_loss"
    assert not schedule.due(EVERY_CYCLES + 1, LEAST_NS + 1)
