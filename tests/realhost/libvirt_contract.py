"""The hypervisor contract on a real libvirtd: the fixtures that its subclasses share. A module gives `host` and `guest`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypervisor_contract import HypervisorContract
from real_host import Guest, wait_for

from agent.adapters.libvirt_hypervisor import LibvirtHypervisor
from agent.sampling.sampler import Sampler


class LibvirtContract(HypervisorContract):
    """TCG never reports that a vCPU was unplugged, so it is refused."""

    UNPLUG = "TCG"

    @pytest.fixture
    def hypervisor(self, host: tuple[LibvirtHypervisor, Sampler]) -> LibvirtHypervisor:
        return host[0]

    @pytest.fixture
    def reader(self, host: tuple[LibvirtHypervisor, Sampler]) -> Sampler:
        return host[1]

    @pytest.fixture
    def vm_id(self, guest: Guest) -> str:
        return guest.vm_id

    @pytest.fixture
    def settle(self) -> Callable[[Callable[[], bool]], None]:
        return lambda condition: wait_for(condition, "the value to be in force", 40)
