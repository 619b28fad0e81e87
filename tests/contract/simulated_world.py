"""A simulated host of steady VMs with its clock, for the tests of its model."""

from __future__ import annotations

import struct
from typing import Any

from plain_host import plain_capacity

from agent.adapters.simulated_host import SimulatedHost
from agent.adapters.simulated_vm import SimulationFaults
from agent.adapters.workload import Workload
from agent.ports import RawVm
from shared.clock import ManualClock
from shared.model import Allocation
from shared.units import GIB, NS_PER_S
from shared.workload import SERIES, VmWorkload, WorkloadFile

START_S = 1_800_000_000
BUCKETS = 48


def steady_vm(name: str = "vm", *, initial: Allocation | None = None, noise: int = 0, bursts: int = 0, **levels: int) -> VmWorkload:
    """A VM of 4 vCPUs and 8 GiB with the same demand in every bucket."""
    demand: dict[str, int] = {"cpu_millicores": 1000, "memory_bytes": GIB, **dict.fromkeys(SERIES[2:], 100_000), **levels}
    series: dict[str, Any] = {key: struct.pack(f"<{BUCKETS}q", *[value] * BUCKETS) for key, value in demand.items()}
    return VmWorkload(
        vm_id=f"id-{name}",
        name=name,
        source="test",
        vcpus_max=4,
        memory_max_bytes=8 * GIB,
        initial=initial or Allocation(vcpus=2, memory_bytes=2 * GIB),
        seed=7,
        noise_permille=noise,
        burst_per_1024=bursts,
        **series,
    )


def workload(*vms: VmWorkload, cpu: int = 64_000, memory: int = 64 * GIB) -> Workload:
    capacity = plain_capacity(cpu_millicores=cpu, memory_bytes=memory, net_bits_per_s=10**10)
    return Workload(WorkloadFile(host="h", start_s=START_S, buckets=BUCKETS, seed=3, capacity=capacity, vms=vms))


class World:
    """A host with its clock. Wall and monotonic time differ, as on a real machine."""

    def __init__(self, load: Workload, faults: SimulationFaults | None = None, snapshot: bytes | None = None, at_s: float = 0.0) -> None:
        self.clock = ManualClock(int((START_S + at_s) * NS_PER_S))
        self.host = SimulatedHost(load, self._now, faults, snapshot)

    def _now(self) -> tuple[int, int]:
        return self.clock.wall_ns(), self.clock.monotonic_ns() - (START_S - 1000) * NS_PER_S

    def after(self, seconds: float) -> RawVm:
        """The first VM's reading after `seconds` more."""
        self.clock.advance(seconds)
        return self.host.read().vms[0]

    def vm_truth(self, vm_id: str = "id-vm") -> dict[str, Any]:
        return dict(self.host.truth()["vms"][vm_id])


def number(value: int | None) -> int:
    assert value is not None
    return value
