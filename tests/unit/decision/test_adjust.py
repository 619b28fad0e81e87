"""An operator's order for one VM."""

from __future__ import annotations

import math
from typing import Any

import pytest

from coordinator.planning.adjust import Adjustment, adjust
from shared.errors import Refusal
from shared.plan import Plan, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, NS_PER_S, UNLIMITED


def ask(make: Any, vm: Any, host: dict[str, Any] | None = None, **wanted: int) -> Plan:
    return adjust(vm, make.host(vm, **(host or {})), Adjustment(**wanted), epoch=2, sequence=5, now_ns=NS_PER_S, deadline_s=60)


def test_a_good_order_becomes_steps_vcpus_first(make: Any) -> None:
    plan = ask(make, make.vm(), vcpus=6, cpu_quota_millicores=6000, memory_bytes=4 * GIB)
    assert [(s.id, s.kind, s.value, s.before, s.reason) for s in plan.steps] == [
        ("2-5-0", StepKind.VCPUS, 6, 4, "operator"),
        ("2-5-1", StepKind.CPU_QUOTA, 6000, 1000, "operator"),
        ("2-5-2", StepKind.MEMORY, 4 * GIB, 2 * GIB, "operator"),
    ]
    assert (plan.epoch, plan.sequence, plan.deadline_ns) == (2, 5, 61 * NS_PER_S)


def test_shrink_comes_before_growth_and_a_quota_may_be_lifted(make: Any) -> None:
    plan = ask(make, make.vm(), vcpus=5, memory_bytes=GIB)
    assert [s.kind for s in plan.steps] == [StepKind.MEMORY, StepKind.VCPUS]
    assert ask(make, make.vm(), cpu_quota_millicores=UNLIMITED).steps[0].value == UNLIMITED


@pytest.mark.parametrize(
    ("vm", "wanted", "code"),
    [
        ({}, {"vcpus": 9}, RefusalCode.ABOVE_DOMAIN_MAXIMUM),
        ({}, {"vcpus": 3}, RefusalCode.NOT_CAPABLE),
        ({}, {"vcpus": 0}, RefusalCode.INVALID_VALUE),
        ({}, {}, RefusalCode.INVALID_VALUE),
        ({"vcpus": None}, {"vcpus": 4}, RefusalCode.READING_STALE),
        ({"cannot": {"vcpu_hot_add": "guest"}}, {"vcpus": 5}, RefusalCode.NOT_CAPABLE),
        ({}, {"memory_bytes": 9 * GIB}, RefusalCode.ABOVE_DOMAIN_MAXIMUM),
        ({"cannot": {"balloon": "vfio"}}, {"memory_bytes": 3 * GIB}, RefusalCode.NOT_CAPABLE),
        ({"memory": None}, {"memory_bytes": 3 * GIB}, RefusalCode.READING_STALE),
        ({"working_set_bytes": 1.5 * GIB}, {"memory_bytes": GIB}, RefusalCode.BELOW_WORKING_SET),
        ({"working_set_bytes": math.nan}, {"memory_bytes": GIB}, RefusalCode.READING_STALE),
        ({"pressured": True}, {"memory_bytes": GIB}, RefusalCode.PRESSURE_VETO),
        ({"policy": {"memory_floor_bytes": 2 * GIB}}, {"memory_bytes": GIB}, RefusalCode.BELOW_FLOOR),
        ({"policy": {"memory_ceiling_bytes": 3 * GIB}}, {"memory_bytes": 4 * GIB}, RefusalCode.ABOVE_CEILING),
        ({}, {"cpu_quota_millicores": 9000}, RefusalCode.ABOVE_DOMAIN_MAXIMUM),
        ({}, {"cpu_quota_millicores": 10}, RefusalCode.BELOW_FLOOR),
        ({"policy": {"cpu_ceiling_millicores": 2000}}, {"cpu_quota_millicores": 3000}, RefusalCode.ABOVE_CEILING),
        ({"policy": {"cpu_ceiling_millicores": 2000}}, {"cpu_quota_millicores": UNLIMITED}, RefusalCode.ABOVE_CEILING),
        ({"policy": {"excluded": True}}, {"vcpus": 5}, RefusalCode.VM_EXCLUDED),
        ({"running": False}, {"vcpus": 5}, RefusalCode.VM_NOT_RUNNING),
        ({}, {"vcpus": 4, "memory_bytes": 2 * GIB, "cpu_quota_millicores": 1000}, RefusalCode.NOTHING_TO_DO),
    ],
)
def test_refusals(make: Any, vm: dict[str, Any], wanted: dict[str, int], code: RefusalCode) -> None:
    with pytest.raises(Refusal) as caught:
        ask(make, make.vm(**vm), **wanted)
    assert caught.value.code is code


def test_the_hosts_commit_limit_and_a_silent_host(make: Any) -> None:
    with pytest.raises(Refusal) as caught:
        ask(make, make.vm(), {"memory_commit_bytes": 3 * GIB}, memory_bytes=4 * GIB)
    assert caught.value.code is RefusalCode.HOST_COMMIT_LIMIT
    assert caught.value.numbers == {"need": 2 * GIB, "room": GIB}
    with pytest.raises(Refusal) as caught:
        ask(make, make.vm(), {"alive": False}, vcpus=5)
    assert caught.value.code is RefusalCode.HOST_UNKNOWN_STATE


def test_vcpus_under_no_quota_take_room_too(make: Any) -> None:
    with pytest.raises(Refusal) as caught:
        ask(make, make.vm(quota=UNLIMITED), {"cpu_commit_millicores": 5000}, vcpus=6)
    assert caught.value.code is RefusalCode.HOST_COMMIT_LIMIT
    assert ask(make, make.vm(quota=1000), {"cpu_commit_millicores": 5000}, vcpus=6).steps


def test_a_step_up_towards_the_floor_is_allowed(make: Any) -> None:
    vm = make.vm(memory=GIB, working_set_bytes=3.0 * GIB)
    assert ask(make, vm, memory_bytes=2 * GIB).steps[0].value == 2 * GIB
