"""Growth for VMs that stand at their host's growth budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coordinator.planning.lift import FRESH_NS, lifts, stands_at_budget
from coordinator.sizing.policy import SizingPolicy
from shared.plan import Outcome, OutcomeState, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB

POLICY = SizingPolicy()
Q, M = StepKind.CPU_QUOTA, StepKind.MEMORY


def refused(vm_id: str = "a", kind: StepKind = Q, now: int | None = 1000, **over: Any) -> Outcome:
    step = Step(id="local", vm_id=vm_id, kind=kind, value=10**6, deadline_ns=0)
    told = {"state": OutcomeState.REFUSED, "code": RefusalCode.GROWTH_BUDGET, "finished_ns": 10**12, "origin": "reactive"}
    return Outcome(step=step, value=now, **(told | over))


def lifted(host: Any, *outcomes: Outcome, policy: SizingPolicy = POLICY) -> list[tuple[str, StepKind, int]]:
    steps = lifts(host, outcomes, policy, name="1-2-lift", deadline_ns=5)
    assert [step.id for step in steps] == [f"1-2-lift{n}" for n in range(len(steps))]
    assert all(step.deadline_ns == 5 and step.reason == "growth_budget" for step in steps)
    return [(step.vm_id, step.kind, step.value) for step in steps]


@pytest.mark.parametrize(
    ("over", "stands"),
    [
        ({}, True),
        ({"code": RefusalCode.HOST_COMMIT_LIMIT}, False),
        ({"kind": StepKind.DISK_BYTES}, False),
        ({"kind": StepKind.NET_TX}, False),  # bursts
        ({"now": None}, False),
        ({"now": -1}, False),
        ({"finished_ns": 10**12 - FRESH_NS - 1}, False),  # spooled while the link was down
    ],
)
def test_who_stands_at_the_budget(over: dict[str, Any], stands: bool) -> None:
    assert stands_at_budget(refused(**over), 10**12) is stands


def test_a_lift_lends_a_multiple_of_what_is_held(make: Any) -> None:
    host = make.host(make.vm(quota=1000, vcpus=8, memory=2 * GIB, memory_max=64 * GIB))
    assert lifted(host, refused(), refused(kind=M, now=2 * GIB)) == [("a", Q, 4000), ("a", M, 8 * GIB)]
    assert lifted(host, refused(now=1500)) == [("a", Q, 6000)]  # what the host says is in force is newer than the bucket
    assert lifted(host, refused(), refused()) == [("a", Q, 4000)]


def test_a_lift_ends_at_vcpus_ceilings_and_what_devices_hold(make: Any) -> None:
    host = make.host(make.vm(quota=1000, vcpus=2, memory=2 * GIB, memory_max=3 * GIB))
    assert lifted(host, refused(), refused(kind=M, now=2 * GIB)) == [("a", Q, 2000), ("a", M, 3 * GIB)]
    owned = make.host(make.vm(quota=1000, vcpus=8, policy={"cpu_ceiling_millicores": 1500}))
    assert lifted(owned, refused()) == [("a", Q, 1500)]
    assert lifted(owned, refused(now=1450)) == []  # 50 more are not worth a plan


def test_lifts_share_the_room_beyond_the_reserve_by_priority(make: Any) -> None:
    """16,000 to promise, 1,600 of them reserve, 11,000 held: 3,400 are left."""
    vms = [make.vm("a", quota=1000, vcpus=8, priority=0), make.vm("b", quota=1000, vcpus=8, priority=3), make.vm("c", quota=9000, vcpus=16)]
    host = make.host(*vms)
    assert lifted(host, refused("a"), refused("b")) == [("b", Q, 4000), ("a", Q, 1400)]
    assert lifted(host, refused("a"), policy=replace(POLICY, reserve_share=0.32)) == []


def test_nothing_is_lifted_that_is_not_ours(make: Any) -> None:
    host = make.host(make.vm(quota=1000, vcpus=8, policy={"excluded": True}))
    assert lifted(host, refused(), refused("elsewhere")) == []
