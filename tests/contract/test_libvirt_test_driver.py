"""LibvirtHypervisor on libvirt's built-in test driver: connection, inventory and clear refusals, without root, cgroups or QEMU."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from agent.adapters.kernel_files import RootedFiles
from agent.adapters.libvirt_hypervisor import LibvirtHypervisor
from shared.errors import HostError, Refusal
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import MBIT, MIB

libvirt = pytest.importorskip("libvirt", reason="libvirt-python is not installed (pip install tidegate[libvirt])")


@pytest.fixture
def hypervisor() -> Iterator[LibvirtHypervisor]:
    hypervisor = LibvirtHypervisor("test:///default", RootedFiles())
    yield hypervisor
    hypervisor.close()


def test_inventory_says_what_the_driver_cannot_do(hypervisor: LibvirtHypervisor) -> None:
    (domain,) = hypervisor.domains()
    assert (domain.name, domain.running, domain.tap) == ("test", True, "testnet0")
    assert "no CPU quota" in (domain.capabilities.cpu_quota or "")
    assert "shapes no traffic" in (domain.capabilities.shape_rx or "")
    assert hypervisor.allocation(domain.vm_id).cpu_quota_millicores is None
    assert [running.vm_id for running in hypervisor.running()] == [domain.vm_id]
    assert domain.vm_id in hypervisor.bulk_stats()


@pytest.mark.parametrize("kind", [StepKind.CPU_QUOTA, StepKind.CPU_SHARES, StepKind.NET_RX])
def test_what_the_driver_cannot_do_fails_clearly(hypervisor: LibvirtHypervisor, kind: StepKind) -> None:
    (domain,) = hypervisor.domains()
    with pytest.raises(Refusal) as refusal:
        hypervisor.submit(domain.vm_id, kind, MBIT if kind is StepKind.NET_RX else 1024)
    assert refusal.value.code is RefusalCode.NOT_CAPABLE


def test_levers_that_the_driver_has_work(hypervisor: LibvirtHypervisor) -> None:
    (domain,) = hypervisor.domains()
    hypervisor.submit(domain.vm_id, StepKind.MEMORY, 64 * MIB)
    assert hypervisor.allocation(domain.vm_id).memory_bytes == 64 * MIB
    for count in (1, 2):  # this driver unplugs at once
        hypervisor.submit(domain.vm_id, StepKind.VCPUS, count)
        assert hypervisor.allocation(domain.vm_id).vcpus == count


def test_watchers_hear_of_submits_and_of_foreign_changes(hypervisor: LibvirtHypervisor) -> None:
    (domain,) = hypervisor.domains()
    heard = threading.Event()
    hypervisor.watch(heard.set)
    hypervisor.running()
    heard.clear()
    hypervisor.submit(domain.vm_id, StepKind.MEMORY, 48 * MIB)
    assert heard.is_set()
    heard.clear()
    with contextlib.closing(libvirt.open("test:///default")) as other:
        suspended = other.lookupByUUIDString(domain.vm_id)
        suspended.suspend()
        assert heard.wait(5)
        suspended.resume()


def test_no_libvirtd_is_a_host_error_with_the_address() -> None:
    hypervisor = LibvirtHypervisor("qemu:///system?socket=/nowhere/libvirt-sock", RootedFiles())
    with pytest.raises(HostError, match="/nowhere/libvirt-sock"):
        hypervisor.domains()
    hypervisor.close()
