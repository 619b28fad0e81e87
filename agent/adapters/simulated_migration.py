"""Live migration between simulated hosts of one machine, each its own process: a `Migrator` over two folders and a clock.

A VM that has ever moved is a file in the folder of the host where it runs, and a move is one rename of that file: whoever is killed when,
the VM is on one host. A host that a VM of its workload file has left keeps a mark, so that a restart does not bring it back. The target
sees what has come when it next looks at itself (one sampling round); until then the VM does nothing. A move dies with its process, where
libvirtd would carry on: the VM then stays where it was. Memory is sent as fast as the bandwidth allows, on the hosts' clock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import msgspec

from agent.adapters.simulated_host import Moving, SimulatedHost
from agent.adapters.simulated_vm import SimulatedVm
from agent.adapters.workload import SLOT_NS, VmDemand
from agent.ports import MigrationProgress
from shared.clock import Clock
from shared.errors import HostError, Refusal
from shared.model import Allocation
from shared.refusal import RefusalCode
from shared.units import NS_PER_MS, NS_PER_S, UNLIMITED
from shared.workload import VmWorkload

SCHEME: Final = "simulated"
POLL_S: Final = 0.01  # real seconds between two looks at the clock
MOST_BITS_PER_S: Final = 100_000_000_000  # what "unlimited" is on a simulated network


def uri_of(folder: Path) -> str:
    """Where the host whose state is in `folder` takes VMs in, for `migration.targets` of others."""
    return f"{SCHEME}://{quote(str(folder.absolute()))}"


class Passenger(msgspec.Struct, frozen=True, kw_only=True):
    """A VM as its file holds it: what it is, its demand's time axis, its state, and limits that nobody has taken up yet."""

    spec: VmWorkload
    start_s: int
    buckets: int
    state: list[Any]
    limits: Allocation | None = None


class _Job:
    def __init__(self, bits_per_s: int, left: float, began_ns: int) -> None:
        self.bits_per_s, self.left, self.sent, self.began_ns = bits_per_s, left, 0.0, began_ns
        self.cancelled = threading.Event()


class SimulatedMigrator:
    """One side. Made before the host's first use: it sends away VMs that have left and brings those that have come."""

    def __init__(self, host: SimulatedHost, folder: Path, clock: Clock) -> None:
        self._host, self._clock = host, clock
        self._machines, self._left = folder / "machines", folder / "left"
        for each in (self._machines, self._left):
            each.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._limits: dict[str, Allocation] = {}
        self._here: set[str] = set()  # VMs of files that the host has
        came = {path.name for path in self._machines.iterdir()}
        gone = {path.name for path in self._left.iterdir()}
        for vm_id in sorted({domain.vm_id for domain in host.domains()}):
            if _name(vm_id) in gone | came:
                host.release(vm_id)
        host.arrivals = self._take_in
        self._take_in()

    def migrate(self, vm_id: str, uri: str, bits_per_s: int, limits: Allocation) -> MigrationProgress | None:
        """As Migrator.migrate."""
        self._take_in()
        memory = self._host.allocation(vm_id).memory_bytes or 0
        with self._lock:
            if vm_id in self._jobs:
                raise Refusal(RefusalCode.VM_BUSY, f"{vm_id} is being migrated")
            job = self._jobs[vm_id] = _Job(bits_per_s, float(memory), self._clock.wall_ns())
        try:
            target = _folder(uri)
            self._send(job)
            with self._lock:
                self._host.hand_over(vm_id, lambda moving: self._rename(moving, target, limits))
                self._here.discard(vm_id)
                self._limits.pop(vm_id, None)
        finally:
            with self._lock:
                del self._jobs[vm_id]
        elapsed_ms = max(1, (self._clock.wall_ns() - job.began_ns) // NS_PER_MS)
        return MigrationProgress(elapsed_ms=elapsed_ms, memory_remaining_bytes=0, memory_processed_bytes=int(job.sent))

    def progress(self, vm_id: str) -> MigrationProgress | None:
        """As Migrator.progress."""
        job = self._jobs.get(vm_id)
        if job is None:
            return None
        return MigrationProgress(
            elapsed_ms=(self._clock.wall_ns() - job.began_ns) // NS_PER_MS,
            memory_remaining_bytes=int(job.left),
            memory_processed_bytes=int(job.sent),
            iteration=1,
        )

    def set_bandwidth(self, vm_id: str, bits_per_s: int) -> None:
        """As Migrator.set_bandwidth."""
        if (job := self._jobs.get(vm_id)) is not None:
            job.bits_per_s = bits_per_s

    def abort(self, vm_id: str) -> None:
        """As Migrator.abort."""
        if (job := self._jobs.get(vm_id)) is not None:
            job.cancelled.set()

    def arrived(self, vm_id: str) -> Allocation | None:
        """As Migrator.arrived."""
        self._take_in()
        return self._limits.get(vm_id)

    def taken_up(self, vm_id: str) -> None:
        """As Migrator.taken_up."""
        with self._lock:
            if self._limits.pop(vm_id, None) is not None:
                path = self._machines / _name(vm_id)
                _write(path, msgspec.structs.replace(_read(path), limits=None))

    def _send(self, job: _Job) -> None:
        seen_ns = job.began_ns
        while job.left > 0.0:
            if job.cancelled.wait(POLL_S):
                raise HostError("aborted")
            now_ns = self._clock.wall_ns()
            rate = MOST_BITS_PER_S if job.bits_per_s == UNLIMITED else job.bits_per_s
            part = min(job.left, rate / 8 * (now_ns - seen_ns) / NS_PER_S)
            job.sent, job.left, seen_ns = job.sent + part, job.left - part, now_ns

    def _rename(self, moving: Moving, target: Path, limits: Allocation) -> None:
        """The moment at which the VM is there and no longer here."""
        vm, name = moving.vm, _name(moving.vm.spec.vm_id)
        state = [getattr(vm, each) for each in SimulatedVm.STATE]
        demand = moving.demand
        mine = self._machines / name
        stayed = mine.exists()
        _write(mine, Passenger(spec=vm.spec, start_s=demand.start_s, buckets=demand.buckets, state=state, limits=limits))
        try:
            (self._left / name).touch()
            mine.rename(target / name)
        except OSError as error:
            if not stayed:
                mine.unlink(missing_ok=True)
                (self._left / name).unlink(missing_ok=True)
            raise HostError(f"{target.parent}: {error.strerror}") from error

    def _take_in(self) -> None:
        """Admit what has come since the last look."""
        with self._lock:
            known = {_name(vm_id) for vm_id in self._here}
            for path in sorted(self._machines.iterdir()):
                if path.name in known or path.name.startswith("."):
                    continue
                passenger = _read(path)
                self._host.admit(_moving(passenger, self._clock.wall_ns))
                self._here.add(passenger.spec.vm_id)
                if passenger.limits is not None:
                    self._limits[passenger.spec.vm_id] = passenger.limits


def _moving(passenger: Passenger, now: Callable[[], int]) -> Moving:
    demand = VmDemand(passenger.spec, passenger.start_s, passenger.buckets)
    wall_ns = now()
    vm = SimulatedVm(passenger.spec, 0, wall_ns, demand.at(wall_ns // SLOT_NS))
    for name, value in zip(SimulatedVm.STATE, passenger.state, strict=True):
        setattr(vm, name, value)
    return Moving(vm=vm, demand=demand)


def _folder(uri: str) -> Path:
    """Where the host at this URI takes VMs in. Raises HostError where none does."""
    parts = urlsplit(uri)
    folder = Path(unquote(parts.path)) / "machines"
    if parts.scheme != SCHEME or not folder.is_dir():
        raise HostError(f"{uri}: no simulated host takes VMs in there (its own migration.targets names no other host, or it never ran)")
    return folder


def _name(vm_id: str) -> str:
    return quote(vm_id, safe="@:")  # begins with a letter or a digit, as every id: no hidden file


def _write(path: Path, passenger: Passenger) -> None:
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("wb") as file:
            file.write(msgspec.msgpack.encode(passenger))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error


def _read(path: Path) -> Passenger:
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Passenger)
    except (OSError, msgspec.DecodeError) as error:
        raise HostError(f"{path}: no simulated VM: {error}") from error
