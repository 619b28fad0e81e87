"""What stood in the way of demand: causes account for every second that the hosts' truth holds."""

from __future__ import annotations

import pytest

from agent.adapters.simulated_vm import TRUTH_RESOURCES
from bench.reactive_vs_predictive import Case
from bench.world import Settings, World
from bench.world_causes import Causes
from shared.model import Mode


def test_every_second_of_violation_has_one_cause() -> None:
    case = Case(seed=3, data=None, hours=0.7, hosts=2, vms=4, overcommit=1.4)
    works = case.prepare()
    causes = Causes()
    modes = (Mode.REACTIVE, Mode.PREDICTIVE)
    settings = Settings(seed=3, hours=case.hours, modes=lambda i: modes[i], history=[work.history() for work in works], watch=causes)
    world = World([work.file for work in works], settings).run()
    found = causes.by_cause()
    for resource in TRUTH_RESOURCES:
        lost = sum(agent.host.truth()["total"]["violation_s"][resource] for agent in world.agents) / 60
        told = sum(minutes for (name, _), minutes in found.items() if name == resource)
        assert told == pytest.approx(lost, abs=0.2)  # what happened after the last sample has no cause yet
    assert sum(found.values()) > 1.0
    one = causes.by_cause(frozenset({world.agents[0].host_id}))
    assert 0.0 < sum(one.values()) < sum(found.values())
    assert {cause.rpartition(", ")[2] for _, cause in found} <= {"seen", "unseen", "-"}
