"""The hypervisor contract on the simulated host. On libvirt it runs in tests/realhost/test_adapters.py, where a real host exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypervisor_contract import HypervisorContract

from agent.adapters.simulated_host import SimulatedHost
from agent.adapters.workload import Workload
from coordinator.workloads import prepare
from shared.clock import ManualClock
from shared.plan import StepKind
from shared.units import NS_PER_S

START_S = 1_789_344_000


class TestSimulatedHost(HypervisorContract):
    CANNOT = {StepKind.CPU_PERIOD: None} | dict.fromkeys(  # levers that the model does not have yet
        (
            *(StepKind.VCPUS_ONLINE, StepKind.VIRTIO_MEM, StepKind.DIMM, StepKind.MEMORY_HIGH),
            *(StepKind.DISK_BYTES, StepKind.DISK_OPS, StepKind.DISK_WEIGHT, StepKind.NET_TX_RATE),
        ),
        "not probed",
    )
    UNPLUG = "not probed"

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock(START_S * NS_PER_S)

    @pytest.fixture
    def hypervisor(self, clock: ManualClock) -> Iterator[SimulatedHost]:
        prepared = prepare(None, hosts=1, vms_per_host=4, start_s=START_S, hours_history=1, hours_run=1, seed=11)
        host = SimulatedHost(Workload(prepared[0].file), lambda: (clock.wall_ns(), clock.monotonic_ns()))
        yield host
        host.close()

    @pytest.fixture
    def reader(self, hypervisor: SimulatedHost) -> SimulatedHost:
        return hypervisor

    @pytest.fixture
    def vm_id(self, hypervisor: SimulatedHost) -> str:
        return next(domain.vm_id for domain in hypervisor.domains() if (hypervisor.allocation(domain.vm_id).vcpus or 0) < domain.vcpus_max)

    @pytest.fixture
    def settle(self, clock: ManualClock) -> Callable[[Callable[[], bool]], None]:
        def until(condition: Callable[[], bool]) -> None:
            for _ in range(120):
                if condition():
                    return
                clock.advance(1)
            raise AssertionError("did not settle in two simulated minutes")

        return until
