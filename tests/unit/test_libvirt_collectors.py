"""Collectors of a libvirt host with scripted parts: reasons in the capabilities, KVM's counters among the statistics, who is hurried."""

from __future__ import annotations

from typing import Any

import pytest

from agent.adapters import libvirt_collectors
from agent.adapters.libvirt_collectors import KvmCounters, LibvirtCollectors
from agent.adapters.libvirt_dirty import parse_dirty_rate
from agent.adapters.libvirt_host import KVM_SUMS, kvm_sums
from agent.ports import RawHost, RawVm
from agent.sampling.guest import short_of_memory
from shared.clock import ManualClock
from shared.errors import HostError
from shared.model import Capabilities, Domain
from shared.units import MIB

VM = "aaaaaaaa-0000-4000-8000-000000000001"
WITHOUT_COUNTERS = "bbbbbbbb-0000-4000-8000-000000000002"


class Connection:
    """A LibvirtConnection whose libvirt knows the statistics of two domains."""

    VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE = 1
    VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT = 2
    VIR_DOMAIN_STATS_VCPU = 8

    def __init__(self, uri: str = "") -> None:
        self.libvirt = self
        self.error: Exception | None = None
        self.asked = 0

    def call(self, work: Any) -> Any:
        if self.error is not None:
            raise self.error
        return work(self)

    def getAllDomainStats(self, groups: int, flags: int) -> list[tuple[Any, dict[str, object]]]:
        assert (groups, flags) == (8, 3)
        self.asked += 1
        return [(_Named(VM), {"vcpu.0.exits.sum": 3, "vcpu.1.exits.sum": 4}), (_Named(WITHOUT_COUNTERS), {"vcpu.0.time": 1})]

    def close(self) -> None:
        self.error = HostError("closed")


class _Named:
    def __init__(self, uuid: str) -> None:
        self.uuid = uuid

    def UUIDString(self) -> str:
        return self.uuid


@pytest.fixture(autouse=True)
def no_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_collectors, "LibvirtConnection", Connection)


def domain(**fields: Any) -> Domain:
    return Domain(vm_id=VM, name="web", vcpus_max=2, memory_max_bytes=64 * MIB, **fields)


def test_counters_of_kvm_domains_are_kept_and_others_left_out() -> None:
    connection: Any = Connection()
    counters = KvmCounters(connection)
    assert counters.newest(VM) == {}
    assert counters.read() == {VM: {"exits": 7}}
    connection.error = HostError("libvirtd is away")
    with pytest.raises(HostError):
        counters.read()


def test_a_bug_in_the_worker_is_not_swallowed() -> None:
    connection: Any = Connection()
    connection.error = ZeroDivisionError()
    counters = KvmCounters(connection)
    counters.start()
    counters._thread.join(10)
    with pytest.raises(ZeroDivisionError):
        counters.newest(VM)


def test_sums_come_out_of_the_statistics_as_they_went_in() -> None:
    assert kvm_sums({"balloon.current": 1, KVM_SUMS: {"exits": 7}}) == {"exits": 7}
    assert kvm_sums({"balloon.current": 1}) == {}


def test_reasons_are_those_of_the_collectors_after_libvirts_own() -> None:
    collectors = LibvirtCollectors("", ManualClock(0), perf=False, guest_probe_s=0)
    assert collectors.guest is None and collectors.perf is None
    able = domain(capabilities=Capabilities(guest_agent=None, perf="not probed"))
    (seen,) = collectors.with_reasons([able])
    assert (seen.capabilities.perf, seen.capabilities.guest_agent) == ("switched off (sampling.perf)", None)
    shut = domain(running=False)
    assert collectors.with_reasons([shut]) == (shut,)
    collectors.close()
    collectors = LibvirtCollectors("", ManualClock(0), perf=True, guest_probe_s=60)
    assert collectors.guest is not None
    collectors.guest._reasons[VM] = "blocked"
    (seen,) = collectors.with_reasons([able])
    assert (seen.capabilities.perf, seen.capabilities.guest_agent) == (None, "blocked")
    (seen,) = collectors.with_reasons([domain(capabilities=Capabilities(guest_agent="there is no channel"))])
    assert seen.capabilities.guest_agent == "there is no channel"
    collectors.close()


def test_a_guest_short_of_memory_is_hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    collectors = LibvirtCollectors("", ManualClock(0), perf=False, guest_probe_s=60)
    hurried: list[str] = []
    assert collectors.guest is not None
    monkeypatch.setattr(collectors.guest, "hurry", hurried.append)

    def round_of(usable: int, swapped: int) -> RawHost:
        vm = RawVm(vm_id=VM, epoch="1", memory_actual_bytes=160 * MIB, memory_usable_bytes=usable * MIB, swap_bytes_total=swapped)
        return RawHost(wall_ns=0, monotonic_ns=0, boot_id="b", vms=(vm,))

    for usable, swapped in ((50, 7), (50, 7), (9, 7), (50, 8), (50, 8)):
        collectors.look(round_of(usable, swapped))
    assert hurried == [VM, VM], "once for 9 of 160 MiB, once for what was swapped"
    collectors.close()


def test_shortness_is_unknown_without_figures_and_across_processes() -> None:
    before = RawVm(vm_id=VM, epoch="1", swap_bytes_total=5)
    assert not short_of_memory(None, RawVm(vm_id=VM, epoch="1"))
    assert not short_of_memory(None, RawVm(vm_id=VM, epoch="1", memory_actual_bytes=16, swap_bytes_total=5))
    assert not short_of_memory(before, RawVm(vm_id=VM, epoch="2", swap_bytes_total=9))
    assert short_of_memory(before, RawVm(vm_id=VM, epoch="1", swap_bytes_total=9))


@pytest.mark.parametrize(
    ("stats", "rate"),
    [
        ({"dirtyrate.calc_status": 2, "dirtyrate.megabytes_per_second": 28}, 28 * MIB),
        ({"dirtyrate.calc_status": 2, "dirtyrate.megabytes_per_second": 0}, 0),
        ({"dirtyrate.calc_status": 1, "dirtyrate.megabytes_per_second": 28}, None),
        ({"dirtyrate.calc_status": 2, "dirtyrate.megabytes_per_second": -1}, None),
        ({"dirtyrate.calc_status": 2}, None),
        ({}, None),
    ],
)
def test_a_dirty_rate_is_bytes_once_it_is_measured(stats: dict[str, object], rate: int | None) -> None:
    assert parse_dirty_rate(stats) == rate
