"""The migrator contract on the fake and between simulated hosts. On libvirt it runs in tests/realhost/test_migration.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from migrator_contract import FAST, LIMITS, MigratorContract, Side
from migrator_fake import FakeMigrator
from simulated_world import START_S, steady_vm, workload

from agent.adapters.simulated_host import SimulatedHost
from agent.adapters.simulated_migration import SimulatedMigrator, uri_of
from agent.adapters.workload import Workload
from shared.clock import ClockAnchor, ScaledClock
from shared.errors import HostError
from shared.model import Allocation
from shared.units import MIB, NS_PER_S

VM = "vm-1"


def wait(condition: Callable[[], object], what: str) -> object:
    end = time.monotonic() + 10
    while not (value := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.001)
    return value


class TestFake(MigratorContract):
    @pytest.fixture
    def sides(self) -> tuple[Side, Side]:
        network: dict[str, FakeMigrator] = {}
        here, there = (FakeMigrator(uri, network) for uri in ("here", "there"))
        here.running.add(VM)
        return (
            Side(migrator=here, uri="here", runs=lambda: VM in here.running),
            Side(migrator=there, uri="there", runs=lambda: VM in there.running),
        )

    @pytest.fixture
    def vm_id(self) -> str:
        return VM

    @pytest.fixture
    def until(self) -> Callable[[Callable[[], object], str], object]:
        return wait


class Hosts:
    """Two simulated hosts on a clock that runs ten times as fast; `start` is what a restarted process does."""

    def __init__(self, folder: Path) -> None:
        self.clock = ScaledClock(ClockAnchor(simulated_start_ns=START_S * NS_PER_S, real_start_ns=time.time_ns(), speed=10.0))
        small = steady_vm(initial=Allocation(vcpus=1, memory_bytes=64 * MIB), memory_bytes=32 * MIB)
        self.files = {"here": workload(small, steady_vm("other")).file, "there": workload(steady_vm("third")).file}
        self.folders = {name: folder / name for name in self.files}
        self.hosts: dict[str, SimulatedHost] = {}
        self.migrators: dict[str, SimulatedMigrator] = {}
        for name in self.files:
            self.start(name)

    def start(self, name: str, snapshot: bytes | None = None) -> None:
        def now() -> tuple[int, int]:
            return self.clock.wall_ns(), self.clock.wall_ns()

        file = msgspec.structs.replace(self.files[name], host=name)
        self.hosts[name] = SimulatedHost(Workload(file), now, snapshot=snapshot, movable=True)
        self.migrators[name] = SimulatedMigrator(self.hosts[name], self.folders[name], self.clock)

    def on(self, name: str) -> set[str]:
        return {domain.vm_id for domain in self.hosts[name].domains()}

    def move(self, source: str, target: str) -> None:
        self.migrators[source].migrate("id-vm", uri_of(self.folders[target]), FAST, LIMITS)


class TestSimulated(MigratorContract):
    @pytest.fixture
    def sides(self, tmp_path: Path) -> tuple[Side, Side]:
        hosts = Hosts(tmp_path)

        def side(name: str) -> Side:
            return Side(migrator=hosts.migrators[name], uri=uri_of(hosts.folders[name]), runs=lambda: "id-vm" in hosts.on(name))

        return side("here"), side("there")

    @pytest.fixture
    def vm_id(self) -> str:
        return "id-vm"

    @pytest.fixture
    def until(self) -> Callable[[Callable[[], object], str], object]:
        return wait


def test_a_simulated_vm_is_on_one_host_whatever_is_restarted(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    before = hosts.hosts["here"].snapshot()
    hosts.move("here", "there")
    hosts.start("here", snapshot=before)  # killed before it could write another
    hosts.start("there")
    assert (hosts.on("here"), hosts.on("there")) == ({"id-other"}, {"id-third", "id-vm"})
    assert hosts.migrators["there"].arrived("id-vm") == LIMITS
    reading = next(vm for vm in hosts.hosts["there"].read().vms if vm.vm_id == "id-vm")
    assert reading.memory_actual_bytes == 64 * MIB, "its limits came with it"
    hosts.migrators["there"].taken_up("id-vm")
    hosts.move("there", "here")
    for name in hosts.files:
        hosts.start(name, snapshot=hosts.hosts[name].snapshot())
    assert (hosts.on("here"), hosts.on("there")) == ({"id-other", "id-vm"}, {"id-third"})
    assert hosts.migrators["here"].arrived("id-vm") == LIMITS


def test_a_target_that_cannot_take_it_leaves_it_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(HostError, match="No space left"):
        hosts.move("here", "there")
    monkeypatch.undo()
    hosts.start("here", snapshot=hosts.hosts["here"].snapshot())
    assert hosts.on("here") == {"id-vm", "id-other"}
