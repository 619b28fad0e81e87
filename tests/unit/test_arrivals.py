"""What the fleet notes of VMs that start or move, and of hosts whose tasks wait for disks."""

from __future__ import annotations

import msgspec
import pytest
from plain_host import plain_capacity

from coordinator.fleet import Fleet
from coordinator.model import HostState, VmState
from shared.messages import Hello, Inventory
from shared.model import Domain, HostSample, Mode
from shared.units import GIB, NS_PER_S

CAPACITY = plain_capacity(cpu_millicores=16_000, memory_bytes=64 * GIB, net_bits_per_s=10**10)
LONG_AGO = 1e9


def domain(vm_id: str, *, running: bool = True) -> Domain:
    return Domain(vm_id=vm_id, name=vm_id, vcpus_max=4, memory_max_bytes=8 * GIB, running=running)


def fleet(*hosts: str, now_s: int = 1000) -> Fleet:
    found = Fleet()
    for host_id in hosts:
        hello(found, host_id, now_s)
    return found


def hello(found: Fleet, host_id: str, now_s: int) -> None:
    message = Hello(host_id=host_id, boot_id="b", agent_version="0", wall_ns=0, capacity=CAPACITY, mode=Mode.PREDICTIVE, mode_pinned=False)
    found.hello(host_id, message, now_s * NS_PER_S)


def listed(found: Fleet, host_id: str, *domains: Domain) -> None:
    found.inventory(host_id, Inventory(domains=domains))


def seen(found: Fleet, vm_id: str, now_s: int) -> VmState:
    hosts: tuple[HostState, ...] = found.view(None, now_s * NS_PER_S)
    return next(vm for host in hosts for vm in host.vms if vm.domain.vm_id == vm_id)


def test_vms_of_a_host_that_is_heard_for_the_first_time_did_not_just_start() -> None:
    found = fleet("h")
    listed(found, "h", domain("old"))
    assert seen(found, "old", 1060).since_start_s == LONG_AGO


def test_a_vm_that_appears_on_a_known_host_or_is_switched_on_has_started() -> None:
    found = fleet("h")
    listed(found, "h", domain("off", running=False))
    hello(found, "h", 2000)
    listed(found, "h", domain("off"), domain("new"))
    assert [seen(found, vm_id, 2060).since_start_s for vm_id in ("off", "new")] == [60.0, 60.0]
    hello(found, "h", 3000)
    listed(found, "h", domain("off"), domain("new"))
    assert seen(found, "new", 3060).since_start_s == 1060.0


def test_a_vm_that_comes_from_another_host_has_moved() -> None:
    found = fleet("a", "b")
    listed(found, "a", domain("vm"))
    listed(found, "b")
    hello(found, "b", 2000)
    listed(found, "b", domain("vm"))
    moved = seen(found, "vm", 2030)
    assert (moved.host_id, moved.since_move_s, moved.since_start_s) == ("b", 30.0, LONG_AGO)


def test_waiting_for_disks_is_smoothed_over_a_minute_and_unknown_until_it_is_told() -> None:
    found = fleet("h")
    assert found.view(None, 0)[0].io_pressure != found.view(None, 0)[0].io_pressure  # NaN
    sample = HostSample(wall_ns=1, monotonic_ns=1, period_ns=5 * NS_PER_S)
    found.sample("h", sample, 1)
    found.sample("h", msgspec.structs.replace(sample, psi_io_some_permille=0), 2)
    for _ in range(12):
        found.sample("h", msgspec.structs.replace(sample, psi_io_some_permille=600), 3)
    assert found.view(None, 0)[0].io_pressure == pytest.approx(0.6 * (1 - (11 / 12) ** 12))
