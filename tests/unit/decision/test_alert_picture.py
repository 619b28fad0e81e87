"""What the rules are shown of a real decision cycle: hosts asleep and silent, sleepers that can help, and what cannot be judged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from alerts_double import alert_of

from coordinator.alert_picture import PictureOf, Seen
from coordinator.cycle import DecisionCycle
from coordinator.learning.alert_conditions import judged_by_bucket, judged_now
from coordinator.learning.alert_rules import rules_of
from coordinator.learning.alerts import Alert, AlertState
from coordinator.model import N_RESOURCES
from coordinator.planning.sleep import HostPower, Power, PowerBook
from coordinator.sizing.feasible import Objectives
from coordinator.sizing.foresight import look_at_fleet
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.weigh import Terms
from shared.config import AlertsConfig, CoordinatorConfig, CycleConfig
from shared.messages import Status
from shared.model import Mode
from shared.plan import Outcome, OutcomeState, Step, StepKind
from shared.units import GIB, NS_PER_S

NOW = 1_700_000_000 * NS_PER_S
RULES = rules_of(AlertsConfig())


@pytest.fixture
def running() -> Any:
    return SimpleNamespace(
        config=CoordinatorConfig(),
        cycle=DecisionCycle(CycleConfig(), SizingPolicy(), 1),
        gateway=SimpleNamespace(connected=lambda: {"h0": None}),
        wal=SimpleNamespace(total_bytes=0),
        started_ns=NOW - 60 * NS_PER_S,
        cycle_done_ns=None,
    )


def add(running: Any, make: Any, host_id: str, alive: bool = True, power: Power = Power.AWAKE) -> Any:
    record = running.cycle.fleet.host(host_id)
    record.capacity, record.alive = make.host(host_id=host_id).capacity, alive
    if power is not Power.AWAKE:
        known = running.cycle.execution.book.hosts
        running.cycle.execution.book = PowerBook(hosts={**known, host_id: HostPower(state=power)})
    return record


def rules_now(picture: PictureOf, seen: Seen | None = None, now_ns: int = NOW) -> list[tuple[str, str]]:
    found = judged_now(picture.now(now_ns, seen or Seen()), RULES)
    return [(each.rule, each.labels.get("host", "")) for each in found]


def test_a_host_that_sleeps_is_not_stale_and_one_that_did_not_wake_is(running: Any, make: Any) -> None:
    add(running, make, "h0")
    for name, power in (("asleep", Power.ASLEEP), ("waking", Power.WAKING), ("falling", Power.FALLING), ("failed", Power.FAILED)):
        add(running, make, name, alive=False, power=power)
    add(running, make, "dead", alive=False)
    assert sorted(rules_now(PictureOf(running, 3))) == [("AgentStale", "dead"), ("AgentStale", "failed")]


def test_a_busy_host_and_a_wrong_clock(running: Any, make: Any) -> None:
    record = add(running, make, "h0")
    record.cpu_used_millicores, record.memory_available_bytes = 0.99 * record.capacity.cpu_millicores, 0.5 * record.capacity.memory_bytes
    picture = PictureOf(running, 3)
    status = Status(wall_ns=NOW + 5 * NS_PER_S, mode=Mode.OBSERVE, mode_pinned=False, spool_dropped=4)
    picture.heard("h0", status, NOW)
    assert sorted(rules_now(picture)) == [("AgentLosesSamples", "h0"), ("ClockOffset", "h0"), ("HostBusy", "h0")]


def test_decisions_are_stuck_only_while_agents_are_connected(running: Any) -> None:
    later = NOW + 1000 * NS_PER_S
    picture = PictureOf(running, 3)
    assert ("DecisionsStuck", "") in rules_now(picture, now_ns=later)
    running.cycle_done_ns = later - 100 * NS_PER_S
    assert rules_now(picture, now_ns=later) == []
    running.cycle_done_ns, running.gateway = None, SimpleNamespace(connected=dict)
    assert rules_now(picture, now_ns=later) == []


def test_turns_of_a_vm_are_those_that_the_fleet_knows(running: Any, make: Any) -> None:
    add(running, make, "h0")
    vm = make.vm("v")
    running.cycle.fleet._place("v", "h0", vm.domain)
    picture = PictureOf(running, 3)
    for turn in range(4):
        for before, value in ((1000, 2000), (2000, 1000)):
            step = Step(id=f"{turn}-{value}", vm_id="v", kind=StepKind.CPU_QUOTA, value=value, before=before, deadline_ns=1)
            outcome = Outcome(step=step, state=OutcomeState.VERIFIED, value=value, started_ns=NOW, finished_ns=NOW + turn)
            running.cycle.fleet.outcome(outcome)
            picture.outcomes("h0", (outcome,), NOW)
    (found,) = judged_now(picture.now(NOW + 60 * NS_PER_S, Seen()), RULES)
    assert (found.rule, found.value, found.labels) == ("VmFlapping", 4, {"vm": "v", "host": "h0"})
    assert rules_now(picture, now_ns=NOW + 7 * 3600 * NS_PER_S)[:1] != [("VmFlapping", "h0")]


def test_a_pool_that_will_be_short_is_told_with_the_sleepers_that_close_it(running: Any, make: Any) -> None:
    hosts = [make.host(make.vm("v0"), host_id="h0")]
    mean = np.zeros((1, N_RESOURCES, 12))
    mean[0, 1] = 100 * GIB  # on 60
    forecast = make.forecast(("v0",), mean)
    cycle = running.cycle
    cycle.pool_of = lambda _host_id: "a"
    cycle.forecast, cycle.cycles = forecast, 1
    cycle.foresight = look_at_fleet(hosts, forecast, None, Terms(policy=SizingPolicy()), objectives=Objectives(), pools={"h0": "a"})
    add(running, make, "s1", alive=False, power=Power.ASLEEP)
    picture = PictureOf(running, 3)
    assert picture.decided() and not picture.decided()
    (found,) = [each for each in judged_by_bucket(picture.bucket(), RULES) if each.rule == "CapacityShortfall"]
    assert found.labels == {"pool": "a", "resource": "memory_bytes"}
    assert "pool a short of 40 GiB at " in found.summary
    assert found.advice == "wake 1 hosts (s1)"


def firing(rule: str, **labels: str) -> Alert:
    return alert_of(rule, AlertState.FIRING, 1_700_000_000, **labels)


def test_what_cannot_be_judged_is_known_as_such(running: Any, make: Any) -> None:
    add(running, make, "up")
    add(running, make, "down", alive=False)
    picture = PictureOf(running, 3)
    before, after = picture.blind(Seen(disk_free=0.5)), picture.blind(Seen(judged=True))
    assert (
        before(firing("HostBusy", host="down"))
        and not before(firing("HostBusy", host="up"))
        and not before(firing("HostBusy", host="gone"))
    )
    assert not before(firing("AgentStale", host="down"))
    both = picture.blind(Seen(judged=True, disk_free=0.5))
    assert not any(both(firing(rule, others="true")) for rule in RULES)  # what counts the others is about nothing in particular
    assert before(firing("CapacityShortfall", pool="a")) and not after(firing("CapacityShortfall", pool="a"))
    assert after(firing("DiskFilling")) and not before(firing("DiskFilling"))
    assert after(firing("ForecastInaccurate", resource="memory_bytes"))  # nothing was scored yet
    assert not after(firing("VmAtItsLimit", vm="gone"))
    running.cycle.fleet._place("v", "up", make.vm("v").domain)
    assert after(firing("VmAtItsLimit", vm="v"))  # known, and in no bucket yet
