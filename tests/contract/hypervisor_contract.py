"""What every Hypervisor, and the HostReader beside it, must do. A subclass gives the four fixtures.

The tests leave the VM's limits as they were, but for a vCPU that was added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from agent.ports import HostReader, Hypervisor
from shared.errors import Refusal
from shared.model import Allocation, Domain
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import KIB, MBIT, UNLIMITED

FIELDS = {
    StepKind.VCPUS: "vcpus",
    StepKind.CPU_QUOTA: "cpu_quota_millicores",
    StepKind.CPU_SHARES: "cpu_shares",
    StepKind.MEMORY: "memory_bytes",
    StepKind.NET_RX: "net_rx_bits_per_s",
    StepKind.NET_TX: "net_tx_bits_per_s",
}
NO_VM = "00000000-0000-0000-0000-000000000000"


class HypervisorContract:
    """Subclass as `TestX(HypervisorContract)`."""

    @pytest.fixture
    def hypervisor(self) -> Hypervisor:
        raise NotImplementedError

    @pytest.fixture
    def reader(self) -> HostReader:
        """Reads the host of `hypervisor`."""
        raise NotImplementedError

    @pytest.fixture
    def vm_id(self) -> str:
        """A running VM that can do everything, with at least 64 MiB of balloon."""
        raise NotImplementedError

    @pytest.fixture
    def settle(self) -> Callable[[Callable[[], bool]], None]:
        """Lets time pass until the condition holds; raises AssertionError when it never does."""
        raise NotImplementedError

    @pytest.fixture
    def domain(self, hypervisor: Hypervisor, vm_id: str) -> Domain:
        return next(domain for domain in hypervisor.domains() if domain.vm_id == vm_id)

    @pytest.fixture
    def before(self, hypervisor: Hypervisor, vm_id: str, settle: Callable[[Callable[[], bool]], None]) -> Iterator[Allocation]:
        """The allocation before the test; put back after it."""
        allocation = hypervisor.allocation(vm_id)
        yield allocation
        for kind, field in FIELDS.items():
            value = getattr(allocation, field)
            if kind is not StepKind.VCPUS and getattr(hypervisor.allocation(vm_id), field) != value:
                hypervisor.submit(vm_id, kind, value)
                settle(lambda field=field, value=value: getattr(hypervisor.allocation(vm_id), field) == value)

    def test_host_is_described(self, hypervisor: Hypervisor) -> None:
        assert hypervisor.boot_id() == hypervisor.boot_id() != ""
        capacity = hypervisor.capacity()
        assert capacity.cpu_millicores >= 1000
        assert capacity.memory_bytes >= capacity.memory_commit_bytes // 4 > 0

    def test_domains_are_listed_with_what_they_can_do(self, hypervisor: Hypervisor, domain: Domain) -> None:
        ids = [each.vm_id for each in hypervisor.domains()]
        assert len(ids) == len(set(ids))
        assert domain.running
        able = domain.capabilities
        assert (able.balloon, able.vcpu_hot_add, able.cpu_quota, able.shape_rx, able.shape_tx) == (None,) * 5

    def test_allocation_is_whole_and_within_the_domain(self, domain: Domain, before: Allocation) -> None:
        assert all(getattr(before, field) is not None for field in FIELDS.values())
        assert 1 <= (before.vcpus or 0) <= domain.vcpus_max
        assert 0 < (before.memory_bytes or 0) <= domain.memory_max_bytes

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            (StepKind.CPU_QUOTA, 350),
            (StepKind.CPU_QUOTA, 1_000),
            (StepKind.CPU_QUOTA, UNLIMITED),
            (StepKind.CPU_SHARES, 2048),
            (StepKind.NET_RX, 3 * MBIT),
            (StepKind.NET_TX, 4 * MBIT),
            (StepKind.NET_RX, UNLIMITED),
            (StepKind.NET_TX, UNLIMITED),
        ],
    )
    def test_limit_is_set_and_read_back(self, hypervisor, reader, vm_id, settle, before: Allocation, kind: StepKind, value: int) -> None:
        hypervisor.submit(vm_id, kind, value)
        settle(lambda: getattr(hypervisor.allocation(vm_id), FIELDS[kind]) == value)
        raw = next(vm for vm in reader.read().vms if vm.vm_id == vm_id)
        read = {
            StepKind.CPU_QUOTA: raw.cpu_quota_millicores,
            StepKind.CPU_SHARES: raw.cpu_shares,
            StepKind.NET_RX: raw.net_rx_ceil_bits_per_s,
            StepKind.NET_TX: raw.net_tx_ceil_bits_per_s,
        }
        assert read[kind] == value

    def test_memory_is_taken_and_given_back(self, hypervisor, reader, vm_id, settle, before: Allocation) -> None:
        assert before.memory_bytes is not None
        for target in (before.memory_bytes - 8 * KIB * KIB, before.memory_bytes):
            hypervisor.submit(vm_id, StepKind.MEMORY, target)
            settle(lambda target=target: hypervisor.allocation(vm_id).memory_bytes == target)
            settle(lambda target=target: next(vm for vm in reader.read().vms if vm.vm_id == vm_id).memory_actual_bytes == target)

    def test_vcpu_is_added_and_the_quota_over_all_stays(
        self, hypervisor, reader, vm_id, settle, domain: Domain, before: Allocation
    ) -> None:
        hypervisor.submit(vm_id, StepKind.CPU_QUOTA, 500)
        settle(lambda: hypervisor.allocation(vm_id).cpu_quota_millicores == 500)
        assert before.vcpus is not None and before.vcpus < domain.vcpus_max, "the VM given has no vCPU left to add"
        hypervisor.submit(vm_id, StepKind.VCPUS, before.vcpus + 1)
        settle(lambda: hypervisor.allocation(vm_id).vcpus == before.vcpus + 1)
        raw = next(vm for vm in reader.read().vms if vm.vm_id == vm_id)
        assert (raw.vcpus, raw.cpu_quota_millicores) == (before.vcpus + 1, 500)
        assert hypervisor.allocation(vm_id).cpu_quota_millicores == 500
        hypervisor.submit(vm_id, StepKind.VCPUS, before.vcpus + 1)
        with pytest.raises(Refusal) as refusal:
            hypervisor.submit(vm_id, StepKind.VCPUS, before.vcpus)
        assert refusal.value.code is RefusalCode.NOT_CAPABLE

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            (StepKind.VCPUS, 0),
            (StepKind.VCPUS, UNLIMITED),
            (StepKind.CPU_QUOTA, 0),
            (StepKind.CPU_QUOTA, 9),
            (StepKind.CPU_QUOTA, -2),
            (StepKind.CPU_SHARES, 1),
            (StepKind.CPU_SHARES, 262_145),
            (StepKind.MEMORY, 0),
            (StepKind.MEMORY, UNLIMITED),
            (StepKind.NET_RX, 0),
            (StepKind.NET_TX, -2),
        ],
    )
    def test_impossible_value_is_refused_and_changes_nothing(
        self, hypervisor, vm_id, before: Allocation, kind: StepKind, value: int
    ) -> None:
        with pytest.raises(Refusal) as refusal:
            hypervisor.submit(vm_id, kind, value)
        assert refusal.value.code is RefusalCode.INVALID_VALUE
        assert str(value) in refusal.value.detail
        assert hypervisor.allocation(vm_id) == before

    @pytest.mark.parametrize("kind", [StepKind.VCPUS, StepKind.MEMORY])
    def test_more_than_the_domain_was_defined_with_is_refused(self, hypervisor, vm_id, domain: Domain, kind: StepKind) -> None:
        above = domain.vcpus_max + 1 if kind is StepKind.VCPUS else domain.memory_max_bytes + KIB
        with pytest.raises(Refusal) as refusal:
            hypervisor.submit(vm_id, kind, above)
        assert refusal.value.code is RefusalCode.ABOVE_DOMAIN_MAXIMUM
        assert above in refusal.value.numbers.values()

    @pytest.mark.parametrize("vm_id_unknown", [NO_VM, "no-such-vm"])
    def test_unknown_vm_is_refused(self, hypervisor: Hypervisor, vm_id_unknown: str) -> None:
        with pytest.raises(Refusal) as refusal:
            hypervisor.allocation(vm_id_unknown)
        assert refusal.value.code is RefusalCode.UNKNOWN_VM
        for kind in StepKind:
            with pytest.raises(Refusal) as refusal:
                hypervisor.submit(vm_id_unknown, kind, 1)
            assert refusal.value.code is RefusalCode.UNKNOWN_VM

    def test_reader_sees_the_same_host_and_counters_only_grow(self, hypervisor, reader, vm_id: str) -> None:
        first, second = reader.read(), reader.read()
        assert first.boot_id == second.boot_id == hypervisor.boot_id()
        assert second.monotonic_ns >= first.monotonic_ns
        old, new = (next(vm for vm in raw.vms if vm.vm_id == vm_id) for raw in (first, second))
        assert old.epoch == new.epoch
        counters = [name for name in type(new).__struct_fields__ if name.endswith("_total")]
        known = [name for name in counters if getattr(old, name) is not None and getattr(new, name) is not None]
        assert {"cpu_used_ns_total", "net_rx_bytes_total", "net_tx_bytes_total"} <= set(known)
        assert all(getattr(new, name) >= getattr(old, name) for name in known)
        assert vm_id not in second.failures
