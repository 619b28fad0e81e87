"""The hypervisor contract on the simulated host. On libvirt it runs in tests/realhost/test_adapters.py, where a real host exists."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypervisor_contract import HypervisorContract
from simulated_world import World, steady_vm, workload

from agent.adapters.simulated_host import SimulatedHost


class TestSimulatedHost(HypervisorContract):
    @pytest.fixture
    def world(self) -> World:
        return World(workload(steady_vm("a"), steady_vm()))

    @pytest.fixture
    def hypervisor(self, world: World) -> SimulatedHost:
        return world.host

    @pytest.fixture
    def reader(self, world: World) -> SimulatedHost:
        return world.host

    @pytest.fixture
    def vm_id(self) -> str:
        return "id-vm"

    @pytest.fixture
    def settle(self, world: World) -> Callable[[Callable[[], bool]], None]:
        def until(condition: Callable[[], bool]) -> None:
            for _ in range(120):
                if condition():
                    return
                world.clock.advance(1)
            raise AssertionError("did not settle in two simulated minutes")

        return until
