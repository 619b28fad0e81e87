"""The pool of critical VMs: theirs at once, lent only to what one step takes back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from coordinator.model import LeverTurns, VmSize
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.size import size_host
from shared.units import CPU, GIB, MEMORY

POOL = replace(
    SizingPolicy(), price=(0.0,) * 5, critical_pool=(0.4, 0.4, 0.0, 0.4, 0.4), dead_band=(0.0,) * 5, max_shrink=(0.5, 0.15, 0.5, 0.5, 0.5)
)


def sized(make: Any, vms: list[Any], need: list[tuple[float, float]], policy: SizingPolicy = POOL) -> dict[str, VmSize]:
    block = make.forecast(tuple(vm.domain.vm_id for vm in vms), np.stack([make.need(cpu=cpu, memory=memory * GIB) for cpu, memory in need]))
    sizes, _ = size_host(make.host(*vms, cpu_commit_millicores=10_000, memory_commit_bytes=10 * GIB), block, policy, {})
    return {size.vm_id: size for size in sizes}


def vms_of(make: Any, **over: Any) -> list[Any]:
    return [make.vm("vip", priority=3, quota=1000, memory=GIB, vcpus=16, vcpus_max=16), make.vm("b", vcpus=16, vcpus_max=16, **over)]


def test_others_may_hold_of_it_what_one_step_takes_back_but_no_memory(make: Any) -> None:
    found = sized(make, vms_of(make, quota=5000, memory=2 * GIB), [(500.0, 1.0), (9000.0, 9.0)])
    # half of 9,000 stays when a step takes the rest: 4,500 are firm, which is less than the 6,000 that are not the pool
    assert found["b"].target[CPU] == 9000
    assert found["b"].target[MEMORY] == 6 * GIB  # a balloon gives back too little at once: nothing of the pool is lent
    assert any("the pool of critical VMs cuts" in line for line in found["b"].trail)
    assert found["b"].shadow_price["memory_bytes"] > 0.0


def test_a_critical_vm_has_its_pool_whatever_the_others_want(make: Any) -> None:
    found = sized(make, vms_of(make, quota=9000, memory=2 * GIB), [(4000.0, 4.0), (9000.0, 9.0)])
    assert found["vip"].target[CPU] == 4000
    assert found["b"].target[CPU] == 6000
    assert found["vip"].target[MEMORY] == 4 * GIB


def test_what_cannot_be_taken_back_is_lent_nothing(make: Any) -> None:
    for over in ({"censored": 0.5}, {"turns": (LeverTurns(turning=True, refused_s=1.0), *(LeverTurns(),) * 4)}):
        found = sized(make, vms_of(make, quota=5000, memory=2 * GIB, **over), [(500.0, 1.0), (9000.0, 1.0)])
        assert found["b"].target[CPU] == 6000, over


def test_a_host_without_critical_vms_keeps_no_pool(make: Any) -> None:
    vms = [make.vm("a", quota=1000, memory=GIB), make.vm("b", vcpus=16, vcpus_max=16, quota=5000, memory=2 * GIB)]
    found = sized(make, vms, [(500.0, 1.0), (9000.0, 9.0)])
    assert found["b"].target[CPU] == 9000
    assert found["b"].target[MEMORY] == 8 * GIB  # the domain's most


def test_what_others_hold_that_are_not_sized_here_counts_against_the_pool(make: Any) -> None:
    vms = [*vms_of(make, quota=5000, memory=2 * GIB), make.vm("x", quota=3000, memory=GIB, policy={"excluded": True})]
    found = sized(make, vms, [(500.0, 1.0), (9000.0, 9.0), (1.0, 0.1)])
    assert found["b"].target[MEMORY] == 5 * GIB
    assert found["b"].target[CPU] == 6000  # of 6,000 that are not the pool x holds 3,000: 3,000 may be firm, half of 6,000
