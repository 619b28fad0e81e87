"""Which lever serves a resource, and that the host's own guard takes what is planned."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from guard_scene import CALM, CAN, DOMAIN
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.acting.guard import Guard, View
from agent.acting.levers import FIELDS, PROMISE_OF, incapable
from coordinator.model import HostState, VmState
from coordinator.planning.plan import plan_host
from coordinator.planning.weights import weights_of
from coordinator.sizing.levers import in_force
from coordinator.sizing.margin import host_loads
from coordinator.sizing.policy import SizingPolicy
from coordinator.sizing.size import size_host
from shared.config import GuardConfig
from shared.model import Allocation, Policy
from shared.plan import VALUE_MAX, Step, StepKind
from shared.refusal import RefusalCode
from shared.units import CPU, DISK, GIB, MBIT, MEMORY, MIB, NS_PER_S, UNLIMITED

K = StepKind
NOW = Allocation(
    vcpus=4,
    vcpus_online=4,
    cpu_quota_millicores=2000,
    cpu_shares=1024,
    memory_bytes=4 * GIB,
    virtio_mem_bytes=0,
    dimm_bytes=0,
    memory_high_bytes=UNLIMITED,
    disk_bytes_per_s=UNLIMITED,
    disk_ops_per_s=UNLIMITED,
    disk_weight=100,
    net_rx_bits_per_s=100 * MBIT,
    net_tx_bits_per_s=100 * MBIT,
    net_tx_rate_bits_per_s=0,
)
# No evidence to wait for, and cuts as large as the host takes them.
EAGER = replace(SizingPolicy(), price=(0.0,) * 5, shrink_evidence=(1,) * 5, shrink_cooldown_s=0.0)


def machine(cannot: dict[str, str] | None = None, policy: dict[str, Any] | None = None, **now: Any) -> VmState:
    able = msgspec.structs.replace(CAN, **(cannot or {}))
    domain = msgspec.structs.replace(DOMAIN, capabilities=able, policy=Policy(**(policy or {})))
    return VmState(
        domain=domain,
        host_id="h",
        allocation=msgspec.structs.replace(NOW, **now),
        demand_now=np.full(5, np.nan),
        peak_now=np.full(5, np.nan),
        censored_now=np.zeros(5),
        working_set_bytes=0.5 * GIB,
    )


def planned(make: Any, vm: VmState, policy: SizingPolicy = EAGER, disk: float = 20.0 * MIB, **need: float) -> tuple[Step, ...]:
    mean = make.need(**need)
    mean[DISK] = disk
    block = make.forecast((vm.domain.vm_id,), mean)
    host = make.host(vm)
    sizes, _ = size_host(host, block, policy, {})
    plan, _ = plan_host(
        host, sizes, block, epoch=1, sequence=1, now_ns=make.issued_s * NS_PER_S, deadline_s=600, shadow=False, policy=policy
    )
    return () if plan is None else plan.steps


def told(steps: tuple[Step, ...], *kinds: StepKind) -> list[tuple[StepKind, int]]:
    return [(step.kind, step.value) for step in steps if step.kind in kinds]


CPU_KINDS = (K.VCPUS, K.VCPUS_ONLINE, K.CPU_QUOTA)
MEMORY_KINDS = (K.MEMORY, K.VIRTIO_MEM, K.MEMORY_HIGH)
DISK_KINDS = (K.DISK_BYTES, K.DISK_OPS)


def test_a_quota_first_and_vcpus_that_are_off_come_back_before_it(make: Any) -> None:
    assert told(planned(make, machine(), cpu=3000.0), *CPU_KINDS) == [(K.CPU_QUOTA, 3000)]
    off = planned(make, machine(vcpus_online=2), cpu=3000.0)
    assert told(off, *CPU_KINDS) == [(K.VCPUS_ONLINE, 3), (K.CPU_QUOTA, 3000)]
    assert told(planned(make, machine(), cpu=500.0), *CPU_KINDS) == [(K.CPU_QUOTA, 1000)]  # half of it in one cycle; vCPUs stay


@pytest.mark.parametrize(
    ("cannot", "cpu", "steps"),
    [
        ({"cpu_quota": "no cgroup"}, 1500.0, [(K.VCPUS_ONLINE, 2)]),
        ({"cpu_quota": "no cgroup"}, 3900.0, []),
        ({"cpu_quota": "no cgroup"}, 5500.0, [(K.VCPUS, 6)]),  # and online by the next plan, once they are there
        ({"cpu_quota": "no cgroup", "vcpu_offline": "no agent"}, 1500.0, [(K.VCPUS, 2)]),
        ({"cpu_quota": "no cgroup", "vcpu_offline": "no agent", "vcpu_unplug": "no ACPI"}, 1500.0, []),
        ({"cpu_quota": "no cgroup", "vcpu_offline": "no agent", "vcpu_unplug": "no ACPI"}, 5500.0, [(K.VCPUS, 6)]),
        ({"cpu_quota": "no cgroup", "vcpu_offline": "no agent", "vcpu_hot_add": "machine type"}, 5500.0, []),
    ],
)
def test_without_a_quota_the_cpu_is_sized_in_vcpus(make: Any, cannot: dict[str, str], cpu: float, steps: list[Any]) -> None:
    vm = machine(cannot, cpu_quota_millicores=None)
    assert told(planned(make, vm, cpu=cpu), *CPU_KINDS) == steps


def test_memory_beyond_the_balloon_is_plugged_only_where_the_owner_allows_more(make: Any) -> None:
    more = {"memory_ceiling_bytes": 11 * GIB}
    assert told(planned(make, machine(), memory=10.0 * GIB), *MEMORY_KINDS) == [(K.MEMORY, 8 * GIB)]
    grown = planned(make, machine(policy=more), memory=10.0 * GIB)
    assert told(grown, *MEMORY_KINDS) == [(K.MEMORY, 8 * GIB), (K.VIRTIO_MEM, 2 * GIB)]
    assert told(planned(make, machine({"balloon": "vfio"}), memory=6.0 * GIB), *MEMORY_KINDS) == [(K.VIRTIO_MEM, 2 * GIB)]


def test_what_was_plugged_last_goes_first_in_steps_that_the_host_takes(make: Any) -> None:
    vm = machine(memory_bytes=8 * GIB, virtio_mem_bytes=GIB)
    assert in_force(vm)[MEMORY] == 9 * GIB
    steps = told(planned(make, vm, memory=5.0 * GIB), *MEMORY_KINDS)
    assert {kind for kind, _ in steps} == {K.VIRTIO_MEM}
    values = [GIB, *(value for _, value in steps)]
    assert values[-1] == 0
    assert all(0 < a - b <= 0.05 * 9 * GIB for a, b in pairwise(values))


def test_a_memory_high_is_lifted_before_memory_grows_and_never_set(make: Any) -> None:
    steps = planned(make, machine(memory_high_bytes=4 * GIB), memory=6.0 * GIB)
    assert told(steps, *MEMORY_KINDS) == [(K.MEMORY_HIGH, UNLIMITED), (K.MEMORY, 6 * GIB)]


def test_a_disk_is_limited_only_where_somebody_asked(make: Any) -> None:
    assert told(planned(make, machine(), disk=20.0 * MIB), *DISK_KINDS) == []
    ceiling = {"disk_ceiling_bytes_per_s": 200 * MIB}
    # from unlimited, which counts for 1 GiB/s, by half in one step
    assert told(planned(make, machine(policy=ceiling), disk=900.0 * MIB), *DISK_KINDS) == [(K.DISK_BYTES, 512 * MIB)]
    limited = machine(disk_bytes_per_s=100 * MIB, disk_ops_per_s=1000)
    grown = told(planned(make, limited, disk=200.0 * MIB), *DISK_KINDS)
    assert grown == [(K.DISK_BYTES, 300 * MIB), (K.DISK_OPS, 3000)]  # the forecast and half as much again
    assert told(planned(make, limited, disk=1.0 * MIB), *DISK_KINDS) == [(K.DISK_BYTES, 50 * MIB)]
    absurd = machine(disk_bytes_per_s=1, disk_ops_per_s=2**40)  # in force, whoever set them: growth has to fit a step all the same
    assert told(planned(make, absurd, disk=200.0 * MIB), K.DISK_OPS) == [(K.DISK_OPS, VALUE_MAX)]
    assert told(planned(make, machine(disk_bytes_per_s=1, disk_ops_per_s=2**60), disk=200.0 * MIB), K.DISK_OPS) == []
    assert told(planned(make, machine({"disk_limit": "qemu"}, ceiling), disk=900.0 * MIB), *DISK_KINDS) == []


def test_a_disks_limit_waits_for_an_hour_of_evidence_before_it_shrinks(make: Any) -> None:
    limited = machine(disk_bytes_per_s=100 * MIB)
    policy = replace(EAGER, shrink_evidence=SizingPolicy().shrink_evidence)
    assert told(planned(make, limited, policy, disk=1.0 * MIB), *DISK_KINDS) == []


def test_disk_weights_and_guarantees_follow_priority_while_the_host_is_contended(make: Any) -> None:
    vms = [machine(policy={"priority": p, "net_floor_bits_per_s": 5 * MBIT}) for p in (0, 3)]
    vms = [replace(vm, domain=msgspec.structs.replace(vm.domain, vm_id=f"v{i}")) for i, vm in enumerate(vms)]
    block = make.forecast(("v0", "v1"), np.stack([make.need(net=60.0 * MBIT)] * 2))

    def weights(host: HostState) -> list[tuple[int | None, int | None]]:
        found = weights_of(host, vms, block, host_loads([host], block, None), SizingPolicy())
        return [(found[vm.domain.vm_id].disk_weight, found[vm.domain.vm_id].tx_rate) for vm in vms]

    net = 110 * MBIT
    calm = make.host(*vms)
    crowded = make.host(*vms, net_bits_per_s=net, net_commit_bits_per_s=net, io_pressure=0.5)
    assert weights(calm) == [(None, None), (None, None)]
    assert weights(crowded) == [(50, 5 * MBIT), (400, 60 * MBIT)]
    narrow = make.host(*vms, net_bits_per_s=net, net_commit_bits_per_s=62 * MBIT)
    assert weights(narrow) == [(None, 2 * MBIT), (None, 60 * MBIT)]  # the higher priority first, in sum what may be promised


def test_who_has_just_booted_or_moved_gets_more_and_loses_nothing(make: Any) -> None:
    steady, booted, moved = (
        planned(make, replace(machine(), **at), cpu=3000.0) for at in ({}, {"since_start_s": 60.0}, {"since_move_s": 60.0})
    )
    assert [told(each, K.CPU_QUOTA)[0][1] for each in (steady, booted, moved)] == [3000, 4500, 3750]
    assert told(planned(make, replace(machine(), since_start_s=60.0), cpu=300.0), *CPU_KINDS, *MEMORY_KINDS) == []
    assert told(planned(make, replace(machine(), since_start_s=601.0), cpu=300.0), K.CPU_QUOTA) == [(K.CPU_QUOTA, 1000)]


def judged(vm: VmState, steps: tuple[Step, ...]) -> list[tuple[Step, Any]]:
    """The guard's verdicts on the steps of a plan, each looked at with what was in force after those before it."""
    now, verdicts = vm.allocation, []
    guard = Guard(GuardConfig())
    for step in steps:
        field = FIELDS[step.kind][0]
        at_ns = max(step.not_before_ns, 1)
        seen = View(
            domain=vm.domain,
            in_force=getattr(now, field),
            vcpus=now.vcpus or 1,
            reading=CALM,
            reading_at_ns=at_ns,
            room=10**15 if step.kind in PROMISE_OF else None,
            memory_bytes=now.memory_bytes,
            memory_sum_bytes=(now.memory_bytes or 0) + (now.virtio_mem_bytes or 0) + (now.dimm_bytes or 0),
            vms=10,
        )
        verdicts.append((step, guard.check(step, seen, at_ns)))
        now = msgspec.structs.replace(now, **{field: step.value})
    return verdicts


able = st.sets(st.sampled_from(["cpu_quota", "vcpu_offline", "vcpu_unplug", "balloon", "virtio_mem", "disk_limit", "shape_rx", "net_rate"]))
policies = st.fixed_dictionaries(
    {
        "cpu_ceiling_millicores": st.sampled_from([None, 3500, 6000]),
        "cpu_floor_millicores": st.sampled_from([None, 1500]),
        "memory_ceiling_bytes": st.sampled_from([None, 7 * GIB, 11 * GIB]),
        "disk_ceiling_bytes_per_s": st.sampled_from([None, 200 * MIB]),
        "net_floor_bits_per_s": st.sampled_from([None, 30 * MBIT]),
    }
)
allocations = st.fixed_dictionaries(
    {
        "vcpus_online": st.integers(1, 4),
        "cpu_quota_millicores": st.sampled_from([UNLIMITED, 1500, 3000]),
        "virtio_mem_bytes": st.sampled_from([0, GIB]),
        "disk_bytes_per_s": st.sampled_from([UNLIMITED, 100 * MIB]),
        "disk_ops_per_s": st.sampled_from([UNLIMITED, 2000]),
    }
)


@settings(deadline=None, max_examples=80)
@given(able, policies, allocations, st.floats(300, 9000), st.floats(1.5, 12), st.floats(5, 500))
def test_the_hosts_guard_takes_what_is_planned(
    make: Any, lacking: set[str], policy: dict[str, Any], now: dict[str, Any], cpu: float, memory: float, disk: float
) -> None:
    vm = machine(dict.fromkeys(lacking, "cannot"), policy, **now)
    for step, verdict in judged(vm, planned(make, vm, disk=disk * MIB, cpu=cpu, memory=memory * GIB)):
        growing = step.before is not None and (step.value == UNLIMITED or step.value > step.before >= 0)
        assert incapable(step.kind, vm.domain, growing) is None
        assert verdict.value is not None, (step, verdict)
        # a growth of memory is made in strides, each of them verified; nothing else is cut down to size
        assert verdict.code in (None, RefusalCode.STEP_TOO_LARGE if step.kind in (K.MEMORY, K.VIRTIO_MEM) else None), (step, verdict)


def test_every_sized_resource_has_a_lever_with_a_lead_time() -> None:
    leads = SizingPolicy().lead_s
    assert all(kind in leads for kind in (*CPU_KINDS, *MEMORY_KINDS, *DISK_KINDS, K.NET_RX, K.NET_TX, K.NET_TX_RATE, K.DISK_WEIGHT))
    assert in_force(machine(cpu_quota_millicores=UNLIMITED, vcpus_online=2))[CPU] == 4000.0  # as the host counts its promise
    assert in_force(machine({"cpu_quota": "none"}, vcpus_online=2))[CPU] == 2000.0
