"""SimulatedHost behind the agent's ports, on a prepared workload: what any hypervisor owes the agent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.adapters.simulated_host import SimulatedHost
from agent.adapters.workload import Workload
from agent.ports import HostReader, Hypervisor
from coordinator.workloads import prepare
from shared.clock import ManualClock
from shared.errors import Refusal
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import MIB, NS_PER_S

START_S = 1_789_344_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_S * NS_PER_S)


@pytest.fixture
def host(clock: ManualClock) -> Iterator[SimulatedHost]:
    prepared = prepare(None, hosts=1, vms_per_host=4, start_s=START_S, hours_history=1, hours_run=1, seed=11)
    host = SimulatedHost(Workload(prepared[0].file), lambda: (clock.wall_ns(), clock.monotonic_ns()))
    yield host
    host.close()


def test_every_domain_can_be_read_and_shows_its_allocation(host: SimulatedHost) -> None:
    hypervisor: Hypervisor = host
    reader: HostReader = host
    raw = reader.read()
    assert raw.boot_id == hypervisor.boot_id()
    assert [vm.vm_id for vm in raw.vms] == [domain.vm_id for domain in hypervisor.domains()]
    for domain, vm in zip(hypervisor.domains(), raw.vms, strict=True):
        allocation = hypervisor.allocation(domain.vm_id)
        assert allocation.memory_bytes == vm.memory_actual_bytes
        assert allocation.cpu_quota_millicores == vm.cpu_quota_millicores
        assert (allocation.vcpus or 0) <= domain.vcpus_max


@pytest.mark.parametrize("kind", list(StepKind))
def test_each_lever_shows_its_new_value_once_it_is_done(host: SimulatedHost, clock: ManualClock, kind: StepKind) -> None:
    domain = host.domains()[0]
    value = {StepKind.VCPUS: domain.vcpus_max, StepKind.MEMORY: domain.memory_max_bytes - MIB, StepKind.CPU_SHARES: 512}.get(
        kind, 1_500_000
    )
    host.submit(domain.vm_id, kind, value)
    clock.advance(60)
    allocation = host.allocation(domain.vm_id)
    field = {
        StepKind.VCPUS: allocation.vcpus,
        StepKind.MEMORY: allocation.memory_bytes,
        StepKind.CPU_SHARES: allocation.cpu_shares,
        StepKind.CPU_QUOTA: allocation.cpu_quota_millicores,
        StepKind.NET_RX: allocation.net_rx_bits_per_s,
        StepKind.NET_TX: allocation.net_tx_bits_per_s,
    }
    assert field[kind] == value


def test_a_vm_that_is_not_here_is_refused(host: SimulatedHost) -> None:
    with pytest.raises(Refusal) as caught:
        host.allocation("00000000-0000-4000-8000-000000000000")
    assert caught.value.code is RefusalCode.UNKNOWN_VM
