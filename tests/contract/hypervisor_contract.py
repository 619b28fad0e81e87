"""What every Hypervisor, and the HostReader beside it, must do. A subclass gives the fixtures, and names what its VM cannot do.

Every kind of step is either set, read back and seen by the reader, or refused with the reason that the VM's capabilities give.
The tests leave the VM's limits as they were, but for a vCPU that was added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import pytest

from agent.acting.levers import shows
from agent.ports import HostReader, Hypervisor, RawVm
from shared.errors import Refusal
from shared.model import Allocation, Domain
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import KIB, MBIT, MIB, UNLIMITED

FIELDS = {
    StepKind.VCPUS: "vcpus",
    StepKind.CPU_QUOTA: "cpu_quota_millicores",
    StepKind.CPU_SHARES: "cpu_shares",
    StepKind.MEMORY: "memory_bytes",
    StepKind.NET_RX: "net_rx_bits_per_s",
    StepKind.NET_TX: "net_tx_bits_per_s",
    StepKind.VCPUS_ONLINE: "vcpus_online",
    StepKind.CPU_PERIOD: "cpu_period_us",
    StepKind.VIRTIO_MEM: "virtio_mem_bytes",
    StepKind.DIMM: "dimm_bytes",
    StepKind.MEMORY_HIGH: "memory_high_bytes",
    StepKind.DISK_BYTES: "disk_bytes_per_s",
    StepKind.DISK_OPS: "disk_ops_per_s",
    StepKind.DISK_WEIGHT: "disk_weight",
    StepKind.NET_TX_RATE: "net_tx_rate_bits_per_s",
}
RAW_FIELDS = FIELDS | {
    StepKind.MEMORY: "memory_actual_bytes",
    StepKind.NET_RX: "net_rx_ceil_bits_per_s",
    StepKind.NET_TX: "net_tx_ceil_bits_per_s",
    StepKind.DISK_BYTES: "disk_limit_bytes_per_s",
    StepKind.DISK_OPS: "disk_ops_limit_per_s",
}
CAPABILITIES = {
    StepKind.VCPUS: "vcpu_hot_add",
    StepKind.CPU_QUOTA: "cpu_quota",
    StepKind.CPU_SHARES: "cpu_quota",
    StepKind.MEMORY: "balloon",
    StepKind.NET_RX: "shape_rx",
    StepKind.NET_TX: "shape_tx",
    StepKind.VCPUS_ONLINE: "vcpu_offline",
    StepKind.CPU_PERIOD: "cpu_quota",
    StepKind.VIRTIO_MEM: "virtio_mem",
    StepKind.DIMM: "dimm",
    StepKind.MEMORY_HIGH: "memory_high",
    StepKind.DISK_BYTES: "disk_limit",
    StepKind.DISK_OPS: "disk_limit",
    StepKind.DISK_WEIGHT: "disk_weight",
    StepKind.NET_TX_RATE: "net_rate",
}
# One value after the other: set, read back by the hypervisor, seen by the reader.
VALUES = {
    StepKind.CPU_QUOTA: (350, 1_000, UNLIMITED),
    StepKind.CPU_SHARES: (2048,),
    StepKind.NET_RX: (3 * MBIT, UNLIMITED),
    StepKind.NET_TX: (4 * MBIT, UNLIMITED),
    StepKind.CPU_PERIOD: (50_000, 250_000),
    StepKind.VIRTIO_MEM: (16 * MIB, 32 * MIB, 0),
    StepKind.DIMM: (128 * MIB, 0),
    StepKind.MEMORY_HIGH: (1024 * MIB, UNLIMITED),
    StepKind.DISK_BYTES: (5 * MIB, 3 * MIB, UNLIMITED),
    StepKind.DISK_OPS: (500, UNLIMITED),
    StepKind.DISK_WEIGHT: (300,),
    StepKind.NET_TX_RATE: (2 * MBIT, 0),
}
IMPOSSIBLE = (
    *((StepKind.VCPUS, 0), (StepKind.VCPUS, UNLIMITED)),
    *((StepKind.CPU_QUOTA, 0), (StepKind.CPU_QUOTA, 9), (StepKind.CPU_QUOTA, -2)),
    *((StepKind.CPU_SHARES, 1), (StepKind.CPU_SHARES, 262_145)),
    *((StepKind.MEMORY, 0), (StepKind.MEMORY, UNLIMITED)),
    *((StepKind.NET_RX, 0), (StepKind.NET_TX, -2), (StepKind.NET_TX_RATE, -1)),
    *((StepKind.VCPUS_ONLINE, 0), (StepKind.VCPUS_ONLINE, UNLIMITED)),
    *((StepKind.CPU_PERIOD, 999), (StepKind.CPU_PERIOD, 1_000_001), (StepKind.CPU_PERIOD, UNLIMITED)),
    *((StepKind.VIRTIO_MEM, UNLIMITED), (StepKind.DIMM, UNLIMITED), (StepKind.DIMM, 64 * MIB)),
    *((StepKind.MEMORY_HIGH, 0), (StepKind.MEMORY_HIGH, -2)),
    *((StepKind.DISK_BYTES, 0), (StepKind.DISK_BYTES, -2), (StepKind.DISK_OPS, 0), (StepKind.DISK_OPS, -2)),
    *((StepKind.DISK_WEIGHT, 0), (StepKind.DISK_WEIGHT, 1001)),
)
NO_VM = "00000000-0000-0000-0000-000000000000"
Settle = Callable[[Callable[[], bool]], None]


class HypervisorContract:
    """Subclass as `TestX(HypervisorContract)`."""

    # kinds that the VM cannot do -> part of the reason in its capabilities; None = the hypervisor does not have this lever at all
    CANNOT: ClassVar[Mapping[StepKind, str | None]] = {}
    UNPLUG: ClassVar[str | None] = None  # part of the reason why a vCPU cannot be unplugged; None = it can

    @pytest.fixture
    def hypervisor(self) -> Hypervisor:
        raise NotImplementedError

    @pytest.fixture
    def reader(self) -> HostReader:
        """Reads the host of `hypervisor`."""
        raise NotImplementedError

    @pytest.fixture
    def vm_id(self) -> str:
        """A running VM that can do everything but CANNOT, with at least 64 MiB of balloon and a vCPU left to add."""
        raise NotImplementedError

    @pytest.fixture
    def settle(self) -> Settle:
        """Lets time pass until the condition holds; raises AssertionError when it never does."""
        raise NotImplementedError

    @pytest.fixture
    def domain(self, hypervisor: Hypervisor, vm_id: str) -> Domain:
        return next(domain for domain in hypervisor.domains() if domain.vm_id == vm_id)

    @pytest.fixture
    def before(self, hypervisor: Hypervisor, vm_id: str, settle: Settle) -> Iterator[Allocation]:
        """The allocation before the test; put back after it."""
        allocation = hypervisor.allocation(vm_id)
        yield allocation
        for kind, field in FIELDS.items():
            value, now = getattr(allocation, field), hypervisor.allocation(vm_id)
            if kind is StepKind.VCPUS_ONLINE and value is not None:
                value += (now.vcpus or 0) - (allocation.vcpus or 0)  # an added vCPU is online as well
            if kind is not StepKind.VCPUS and value is not None and not shows(kind, value, getattr(now, field)):
                hypervisor.submit(vm_id, kind, value)
                settle(lambda kind=kind, field=field, value=value: shows(kind, value, getattr(hypervisor.allocation(vm_id), field)))

    def test_host_is_described(self, hypervisor: Hypervisor) -> None:
        assert hypervisor.boot_id() == hypervisor.boot_id() != ""
        capacity = hypervisor.capacity()
        assert len(capacity.numa_memory_bytes) == len(capacity.numa_cpus)
        assert capacity.cpu_millicores >= 1000
        assert capacity.memory_bytes >= capacity.memory_commit_bytes // 4 > 0

    def test_domains_are_listed_with_what_they_can_do(self, hypervisor: Hypervisor, vm_id: str, settle: Settle) -> None:
        ids = [each.vm_id for each in hypervisor.domains()]
        assert len(ids) == len(set(ids))

        def found() -> Domain:
            return next(domain for domain in hypervisor.domains() if domain.vm_id == vm_id)

        settle(lambda: found().capabilities.balloon is None or StepKind.MEMORY in self.CANNOT)  # its driver answers a while after the boot
        domain = found()
        assert domain.running
        reasons = {kind: getattr(domain.capabilities, name) for kind, name in CAPABILITIES.items()}
        expected = {kind: part for kind, part in self.CANNOT.items() if part is not None}
        assert {kind: reason for kind, reason in reasons.items() if reason is not None}.keys() == expected.keys(), reasons
        assert all(part in reasons[kind] for kind, part in expected.items())
        assert (domain.capabilities.vcpu_unplug is None) == (self.UNPLUG is None)
        assert (self.UNPLUG or "") in (domain.capabilities.vcpu_unplug or "")
        assert (domain.virtio_mem_max_bytes > 0) == (StepKind.VIRTIO_MEM not in self.CANNOT)
        assert (domain.dimm_max_bytes > 0) == (StepKind.DIMM not in self.CANNOT)

    def test_allocation_is_whole_and_within_the_domain(self, domain: Domain, before: Allocation) -> None:
        missing = {kind for kind, field in FIELDS.items() if getattr(before, field) is None}
        assert missing <= self.CANNOT.keys()
        assert 1 <= (before.vcpus or 0) <= domain.vcpus_max
        assert 0 < (before.memory_bytes or 0) <= domain.memory_max_bytes
        assert (before.virtio_mem_bytes or 0) <= domain.virtio_mem_max_bytes
        assert (before.dimm_bytes or 0) <= domain.dimm_max_bytes

    @pytest.mark.parametrize("kind", VALUES)
    def test_value_is_set_and_read_back_or_refused_for_the_reason_given(
        self, hypervisor, reader, vm_id, settle, before: Allocation, kind: StepKind
    ) -> None:
        for value in VALUES[kind]:
            if kind in self.CANNOT:
                self.refused(hypervisor, vm_id, kind, value, RefusalCode.NOT_CAPABLE)
                assert hypervisor.allocation(vm_id) == before
                continue
            hypervisor.submit(vm_id, kind, value)
            settle(lambda value=value: shows(kind, value, getattr(hypervisor.allocation(vm_id), FIELDS[kind])))
            settle(lambda value=value: shows(kind, value, getattr(self.seen(reader, vm_id), RAW_FIELDS[kind])))
            settle(lambda: self.balloon_seen(reader, vm_id) == before.memory_bytes)
            others = {name: getattr(hypervisor.allocation(vm_id), name) for other, name in FIELDS.items() if other is not kind}
            assert others == {name: getattr(before, name) for name in others}, "no lever moves another's value"

    def test_memory_is_taken_and_given_back(self, hypervisor, reader, vm_id, settle, before: Allocation) -> None:
        assert before.memory_bytes is not None
        for target in (before.memory_bytes - 8 * MIB, before.memory_bytes):
            hypervisor.submit(vm_id, StepKind.MEMORY, target)
            settle(lambda target=target: hypervisor.allocation(vm_id).memory_bytes == target)
            settle(lambda target=target: self.balloon_seen(reader, vm_id) == target)

    def test_period_changes_and_the_quota_stays(self, hypervisor, reader, vm_id, settle, before: Allocation) -> None:
        if StepKind.CPU_PERIOD in self.CANNOT:
            self.refused(hypervisor, vm_id, StepKind.CPU_PERIOD, 50_000, RefusalCode.NOT_CAPABLE)
            return
        hypervisor.submit(vm_id, StepKind.CPU_QUOTA, 600)
        settle(lambda: hypervisor.allocation(vm_id).cpu_quota_millicores == 600)
        hypervisor.submit(vm_id, StepKind.CPU_PERIOD, 50_000)
        settle(lambda: hypervisor.allocation(vm_id).cpu_period_us == 50_000)
        assert hypervisor.allocation(vm_id).cpu_quota_millicores == 600
        hypervisor.submit(vm_id, StepKind.CPU_QUOTA, 400)
        settle(lambda: hypervisor.allocation(vm_id).cpu_quota_millicores == 400)
        assert hypervisor.allocation(vm_id).cpu_period_us == 50_000
        raw = self.seen(reader, vm_id)
        assert (raw.cpu_quota_millicores, raw.cpu_period_us) == (400, 50_000)

    def test_vcpu_is_added_and_the_quota_over_all_stays(
        self, hypervisor, reader, vm_id, settle, domain: Domain, before: Allocation
    ) -> None:
        hypervisor.submit(vm_id, StepKind.CPU_QUOTA, 500)
        settle(lambda: hypervisor.allocation(vm_id).cpu_quota_millicores == 500)
        assert before.vcpus is not None and before.vcpus < domain.vcpus_max, "the VM given has no vCPU left to add"
        hypervisor.submit(vm_id, StepKind.VCPUS, before.vcpus + 1)
        settle(lambda: hypervisor.allocation(vm_id).vcpus == before.vcpus + 1)
        raw = self.seen(reader, vm_id)
        assert (raw.vcpus, raw.cpu_quota_millicores) == (before.vcpus + 1, 500)
        assert hypervisor.allocation(vm_id).cpu_quota_millicores == 500
        hypervisor.submit(vm_id, StepKind.VCPUS, before.vcpus + 1)
        if self.UNPLUG is not None:
            self.refused(hypervisor, vm_id, StepKind.VCPUS, before.vcpus, RefusalCode.NOT_CAPABLE)
            return
        hypervisor.submit(vm_id, StepKind.VCPUS, before.vcpus)
        settle(lambda: hypervisor.allocation(vm_id).vcpus == before.vcpus)
        settle(lambda: hypervisor.allocation(vm_id).cpu_quota_millicores == 500)

    def test_vcpu_goes_offline_in_the_guest_and_comes_back(self, hypervisor, reader, vm_id, settle, before: Allocation) -> None:
        if StepKind.VCPUS_ONLINE in self.CANNOT:
            self.refused(hypervisor, vm_id, StepKind.VCPUS_ONLINE, 1, RefusalCode.NOT_CAPABLE)
            return
        plugged = max(2, before.vcpus or 0)
        if plugged != before.vcpus:
            hypervisor.submit(vm_id, StepKind.VCPUS, plugged)
        settle(lambda: hypervisor.allocation(vm_id).vcpus_online == plugged)
        for count in (plugged - 1, plugged):
            hypervisor.submit(vm_id, StepKind.VCPUS_ONLINE, count)
            settle(lambda count=count: hypervisor.allocation(vm_id).vcpus_online == count)
            settle(lambda count=count: self.seen(reader, vm_id).vcpus_online == count)
            assert hypervisor.allocation(vm_id).vcpus == plugged

    @pytest.mark.parametrize(("kind", "value"), IMPOSSIBLE)
    def test_impossible_value_is_refused_and_changes_nothing(
        self, hypervisor, vm_id, before: Allocation, kind: StepKind, value: int
    ) -> None:
        also = {RefusalCode.NOT_CAPABLE} if kind in self.CANNOT else set()
        self.refused(hypervisor, vm_id, kind, value, RefusalCode.INVALID_VALUE, *also)
        assert hypervisor.allocation(vm_id) == before

    @pytest.mark.parametrize("kind", [StepKind.VCPUS, StepKind.MEMORY, StepKind.VIRTIO_MEM, StepKind.DIMM, StepKind.VCPUS_ONLINE])
    def test_more_than_the_domain_was_defined_with_is_refused(self, hypervisor, vm_id, domain: Domain, kind: StepKind) -> None:
        above = {
            StepKind.VCPUS: domain.vcpus_max + 1,
            StepKind.VCPUS_ONLINE: domain.vcpus_max + 1,
            StepKind.MEMORY: domain.memory_max_bytes + KIB,
            StepKind.VIRTIO_MEM: domain.virtio_mem_max_bytes + 2 * MIB,
            StepKind.DIMM: domain.dimm_max_bytes + 128 * MIB,
        }[kind]
        also = {RefusalCode.NOT_CAPABLE} if kind in self.CANNOT else set()
        refusal = self.refused(hypervisor, vm_id, kind, above, RefusalCode.ABOVE_DOMAIN_MAXIMUM, *also)
        assert kind in self.CANNOT or above in refusal.numbers.values()

    def test_migration_is_not_a_value_to_set(self, hypervisor, vm_id: str) -> None:
        self.refused(hypervisor, vm_id, StepKind.MIGRATE, UNLIMITED, RefusalCode.NOT_CAPABLE)

    @pytest.mark.parametrize("vm_id_unknown", [NO_VM, "no-such-vm"])
    def test_unknown_vm_is_refused(self, hypervisor: Hypervisor, vm_id_unknown: str) -> None:
        with pytest.raises(Refusal) as refusal:
            hypervisor.allocation(vm_id_unknown)
        assert refusal.value.code is RefusalCode.UNKNOWN_VM
        for kind in StepKind:
            self.refused(hypervisor, vm_id_unknown, kind, 1, RefusalCode.UNKNOWN_VM)

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

    @staticmethod
    def seen(reader: HostReader, vm_id: str) -> RawVm:
        return next(vm for vm in reader.read().vms if vm.vm_id == vm_id)

    @classmethod
    def balloon_seen(cls, reader: HostReader, vm_id: str) -> int | None:
        """What the balloon leaves the guest, as the reader sees it: its figure holds what is plugged in besides."""
        vm = cls.seen(reader, vm_id)
        plugged = (vm.virtio_mem_bytes or 0) + (vm.dimm_bytes or 0)
        return None if vm.memory_actual_bytes is None else vm.memory_actual_bytes - plugged

    @staticmethod
    def refused(hypervisor: Hypervisor, vm_id: str, kind: StepKind, value: int, *codes: RefusalCode) -> Refusal:
        """Submit what must be refused with one of `codes`; the detail names the value, unless VM or lever are missing as a whole."""
        with pytest.raises(Refusal) as refusal:
            hypervisor.submit(vm_id, kind, value)
        assert refusal.value.code in codes, refusal.value
        if refusal.value.code not in (RefusalCode.UNKNOWN_VM, RefusalCode.NOT_CAPABLE):
            assert str(value) in refusal.value.detail
        return refusal.value
