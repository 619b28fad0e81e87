"""What the coordinator knows of the fleet right now: hosts, their VMs, allocations in force, newest demand. Pure.

Invariant: an unknown or silent host counts as full; a VM belongs to the host that was the last to begin to name it as running, and as
long as any host names it, it is in the fleet: agents speak of changes only, and messages of two hosts overtake each other. Everything
here can be rebuilt from the registry, the log of frames and the agents' next messages.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from coordinator.model import F64, N_RESOURCES, BucketBlock, HistoryBlock, HostState, VmState
from coordinator.sizing.choice import memory_most
from coordinator.sizing.turns import RECENT_BUCKETS, TurnLog
from shared.messages import Hello, Inventory, Status
from shared.model import Allocation, Domain, HostCapacity, HostSample, Mode, Policy
from shared.plan import Outcome, OutcomeState, Step
from shared.units import CPU, DISK, MEMORY, NET_RX, NET_TX, NS_PER_S

# No domain has a maximum of its disk: 10 GB/s bounds a forecast without ever binding.
DISK_MAX_BYTES_PER_S = 1e10
STRAIN_KEPT = 0.7  # of a VM's strain from sample to sample: half of it is of the newest two
LEFT_KEPT = 10_000  # VMs that left a host and are remembered until another names them
PRESSURE_PERMILLE = 50  # memory PSI "some" above 5 % of a sample's time: the guest waits for memory

IO_SMOOTHING = 1 / 12  # per sample of five seconds: a minute


@dataclass(kw_only=True)
class VmRecord:
    """One VM as last seen. The working set is the largest guest-reported need of the newest buckets."""

    domain: Domain
    host_id: str
    allocation: Allocation = field(default_factory=Allocation)
    needs: list[float] = field(default_factory=list)  # [bucket maxima of memory_used_bytes], newest last, 3 kept
    need_now: float = float("nan")  # largest in the bucket being filled
    pressured: bool = False
    pressured_now: bool = False
    grown_ns: int = -(10**18)
    moved_ns: int = -(10**18)  # first seen on this host, coming from another
    dirty_bytes_per_s: float = float("nan")
    started_ns: int = -(10**18)
    turns: TurnLog = field(default_factory=TurnLog)
    strain: float | None = None  # share of time in which it waited for CPU or memory of late, 0..1; None = not known where it is now
    peaks: deque[F64] = field(default_factory=lambda: deque(maxlen=RECENT_BUCKETS))  # [r] of the newest buckets
    seen_ns: int = 0


@dataclass(kw_only=True)
class HostRecord:
    """One host as last seen."""

    host_id: str
    boot_id: str = ""
    capacity: HostCapacity | None = None
    mode: Mode = Mode.OBSERVE
    pinned: bool = False
    alive: bool = False
    why_silent: str = "not heard since the coordinator started"
    seen_ns: int = 0
    spool_frames: int = 0
    spool_dropped: int = 0
    paused_by: tuple[str, ...] = ()
    vms_yielded: int = 0
    cpu_used_millicores: float = float("nan")
    memory_available_bytes: float = float("nan")
    plan_sequence: int = 0
    open_steps: dict[str, Step] = field(default_factory=dict)  # of the newest plan sent, without an outcome yet
    io_pressure: float = float("nan")  # share of time in which tasks waited for disks, smoothed over a minute
    counted: bool = False  # its domains were listed once: one that appears later was started
    vm_ids: set[str] = field(default_factory=set)
    named: dict[str, Domain] = field(default_factory=dict)  # its newest inventory


@dataclass(frozen=True, kw_only=True)
class Relocation:
    """A VM is with another host than before; `host_id` None = with none that is known."""

    vm_id: str
    host_id: str | None
    at_ns: int


class Fleet:
    """Folds agents' messages into host and VM records; gives the decision cycle its frozen view."""

    def __init__(self) -> None:
        self.hosts: dict[str, HostRecord] = {}
        self.vms: dict[str, VmRecord] = {}
        self.policy_of: Callable[[Domain], Policy] = lambda domain: domain.policy  # what is in force for what the domain itself says
        self._relocated: dict[str, str | None] = {}  # since the last look; at most one entry a VM
        self._left: OrderedDict[str, str] = OrderedDict()  # VM -> the host that no longer names it; who shows up elsewhere has moved

    def restore(self, hosts: Iterable[tuple[str, HostCapacity]], domains: Mapping[str, tuple[str, Domain]]) -> None:
        """Start from the registry: every host silent (so full) until its agent speaks."""
        for host_id, capacity in hosts:
            self.hosts[host_id] = HostRecord(host_id=host_id, capacity=capacity)
        for vm_id, (host_id, domain) in sorted(domains.items()):
            self._place(vm_id, host_id, domain)
            self.host(host_id).named[vm_id] = domain
        self._relocated.clear()  # the registry knows these

    def relocations(self, now_ns: int) -> tuple[Relocation, ...]:
        """VMs whose host has changed since this was asked last."""
        found, self._relocated = self._relocated, {}
        return tuple(Relocation(vm_id=vm_id, host_id=host_id, at_ns=now_ns) for vm_id, host_id in sorted(found.items()))

    def hello(self, host_id: str, message: Hello, now_ns: int) -> HostRecord:
        """An agent came up or came back."""
        record = self.host(host_id)
        record.boot_id, record.capacity = message.boot_id, message.capacity
        record.mode, record.pinned = message.mode, message.mode_pinned
        record.alive, record.why_silent, record.seen_ns = True, "", now_ns
        return record

    def inventory(self, host_id: str, message: Inventory) -> None:
        """The host's domains, whole: those it no longer names are gone from it."""
        record = self.host(host_id)
        told, record.named = record.named, {domain.vm_id: domain for domain in message.domains}
        for vm_id in sorted(record.vm_ids - record.named.keys()):
            if self.vms[vm_id].host_id == host_id:
                self._leave(vm_id, host_id)
        record.vm_ids = set()
        for domain in message.domains:
            before = self.vms.get(domain.vm_id)
            if before is not None and self._stays_elsewhere(before, host_id, told.get(domain.vm_id), domain):
                continue
            ran, home = before is not None and before.domain.running, None if before is None else before.host_id
            self._place(domain.vm_id, host_id, domain)
            vm = self.vms[domain.vm_id]
            if domain.running and not ran and (before is not None or record.counted):
                vm.started_ns = record.seen_ns
            elif home not in (None, host_id):
                vm.moved_ns = record.seen_ns
        record.counted = True

    def status(self, host_id: str, message: Status, now_ns: int) -> None:
        """Heartbeat: mode and health. One that was silent may go on without another Hello: its connection has outlived the silence."""
        record = self.host(host_id)
        record.mode, record.pinned, record.seen_ns = message.mode, message.mode_pinned, now_ns
        record.alive, record.why_silent = True, ""
        record.spool_frames, record.spool_dropped = message.spool_frames, message.spool_dropped
        record.paused_by, record.vms_yielded = message.paused_by, message.vms_yielded

    def lost(self, host_id: str, why: str) -> None:
        """The host fell silent: from now on it counts as full."""
        record = self.host(host_id)
        record.alive, record.why_silent = False, why

    def sample(self, host_id: str, sample: HostSample, now_ns: int) -> None:
        """Newest allocation and memory need of every VM in one sample."""
        record = self.host(host_id)
        record.seen_ns = max(record.seen_ns, now_ns)
        if sample.cpu_used_millicores is not None:
            record.cpu_used_millicores = float(sample.cpu_used_millicores)
        if sample.memory_available_bytes is not None:
            record.memory_available_bytes = float(sample.memory_available_bytes)
        if sample.psi_io_some_permille is not None:
            waited = sample.psi_io_some_permille / 1000
            record.io_pressure = (
                waited if np.isnan(record.io_pressure) else record.io_pressure + IO_SMOOTHING * (waited - record.io_pressure)
            )
        for vm_id, cell in sample.vms.items():
            vm = self.vms.get(vm_id)
            if vm is None or vm.host_id != host_id or sample.wall_ns < vm.seen_ns:
                continue
            vm.seen_ns = sample.wall_ns
            vm.allocation = cell.allocation()
            waits = [each / 1000 for each in (cell.cpu_ready_permille, cell.psi_memory_some_permille) if each is not None]
            if waits:
                vm.strain = max(waits) if vm.strain is None else STRAIN_KEPT * vm.strain + (1.0 - STRAIN_KEPT) * max(waits)
            if cell.dirty_bytes_per_s is not None:
                vm.dirty_bytes_per_s = float(cell.dirty_bytes_per_s)
            if cell.memory_used_bytes is not None:
                vm.need_now = float(np.fmax(vm.need_now, cell.memory_used_bytes))
            vm.pressured_now |= (cell.psi_memory_some_permille or 0) > PRESSURE_PERMILLE or (cell.memory_swap_bytes_per_s or 0) > 0

    def outcome(self, outcome: Outcome) -> None:
        """Remember the newest verified growth of a VM, and its levers' turns."""
        vm = self.vms.get(outcome.step.vm_id)
        if vm is not None:
            vm.turns.record(outcome)
        grew = outcome.step.before is not None and outcome.value is not None and outcome.value > outcome.step.before >= 0
        if vm is not None and grew and outcome.state in (OutcomeState.VERIFIED, OutcomeState.PARTIAL):
            vm.grown_ns = max(vm.grown_ns, outcome.finished_ns)

    def close_bucket(self, bucket: BucketBlock) -> None:
        """A bucket ended: keep its peaks, roll the working sets and pressure marks."""
        for vm_id, peak in zip(bucket.vm_ids, bucket.peak, strict=True):
            if vm_id in self.vms:
                self.vms[vm_id].peaks.append(peak)
        for vm in self.vms.values():
            if not np.isnan(vm.need_now):
                vm.needs = [*vm.needs[-2:], vm.need_now]
            vm.need_now = float("nan")
            vm.pressured, vm.pressured_now = vm.pressured_now, False

    def own_policy(self, vm_id: str) -> Policy | None:
        """What a VM's domain itself says; None = no such VM."""
        vm = self.vms.get(vm_id)
        told = None if vm is None else self.host(vm.host_id).named.get(vm_id)
        return None if told is None else told.policy

    def merge_policies(self, vm_ids: Iterable[str] | None = None) -> None:
        """`policy_of` says something else of these VMs (None: of all): what it says is in force from now on."""
        for vm_id in list(self.vms if vm_ids is None else vm_ids):
            vm = self.vms.get(vm_id)
            told = None if vm is None else self.host(vm.host_id).named.get(vm_id)
            if vm is not None and told is not None:
                vm.domain = _with_policy(told, self.policy_of(told))

    def capacity_of(self, vm_ids: Iterable[str]) -> dict[str, list[float]]:
        """vm_id -> [r]: the most each VM could ever be given."""
        return {vm_id: _maxima(self.vms[vm_id].domain) for vm_id in vm_ids if vm_id in self.vms}

    def with_capacity(self, block: HistoryBlock) -> HistoryBlock:
        """The same history with the maxima of the VMs that are known."""
        capacity = np.array([_maxima(self.vms[vm_id].domain) if vm_id in self.vms else [np.nan] * N_RESOURCES for vm_id in block.vm_ids])
        return replace(block, capacity=capacity.reshape(len(block.vm_ids), N_RESOURCES).astype(np.float32))

    def view(self, bucket: BucketBlock | None, now_ns: int, host_id: str | None = None) -> tuple[HostState, ...]:
        """Frozen states of all hosts, or of one, VMs sorted by id, newest demand from `bucket` (NaN where it has none)."""
        hosts = sorted((name, record) for name, record in self.hosts.items() if host_id in (None, name))
        rows = {vm_id: i for i, vm_id in enumerate(bucket.vm_ids)} if bucket else {}
        return tuple(
            HostState(
                host_id=host_id,
                capacity=record.capacity,
                mode=record.mode,
                alive=record.alive,
                paused=bool(record.paused_by),
                io_pressure=record.io_pressure,
                vms=tuple(
                    self._vm_state(self.vms[vm_id], bucket, rows.get(vm_id), now_ns)
                    for vm_id in sorted(record.vm_ids)
                    if self.vms[vm_id].host_id == host_id and self.vms[vm_id].domain.running
                ),
            )
            for host_id, record in hosts
            if record.capacity is not None
        )

    def host(self, host_id: str) -> HostRecord:
        """The record of a host, made when it is new."""
        return self.hosts.setdefault(host_id, HostRecord(host_id=host_id))

    def _leave(self, vm_id: str, host_id: str) -> None:
        """Its host no longer names it: it is with another that does, or gone."""
        there = next((other for other, record in sorted(self.hosts.items()) if vm_id in record.named), None)
        if there is not None:
            self._place(vm_id, there, self.hosts[there].named[vm_id])
            return
        del self.vms[vm_id]
        self._relocated[vm_id] = None
        self._left[vm_id] = host_id
        if len(self._left) > LEFT_KEPT:
            self._left.popitem(last=False)

    def _stays_elsewhere(self, vm: VmRecord, host_id: str, told: Domain | None, domain: Domain) -> bool:
        """A host names a VM that is with another, which names it too: it has said so before, or does not run it. Old news, or a VM that
        is on its way there.
        """
        if vm.host_id == host_id or vm.domain.vm_id not in self.host(vm.host_id).named:
            return False
        begins = domain.running and (told is None or not told.running)
        return not begins and (vm.domain.running or told is not None)

    def _place(self, vm_id: str, host_id: str, domain: Domain) -> None:
        self.host(host_id).vm_ids.add(vm_id)
        domain = _with_policy(domain, self.policy_of(domain))
        known = self.vms.get(vm_id)
        if known is None or known.host_id != host_id:
            self._relocated[vm_id] = host_id
        if known is None:
            known = self.vms[vm_id] = VmRecord(domain=domain, host_id=self._left.pop(vm_id, host_id))
        if known.host_id != host_id:
            known.strain = None
            known.moved_ns = self.host(host_id).seen_ns
            if known.host_id in self.hosts:
                self.hosts[known.host_id].vm_ids.discard(vm_id)
        known.domain, known.host_id = domain, host_id

    def _vm_state(self, vm: VmRecord, bucket: BucketBlock | None, row: int | None, now_ns: int) -> VmState:
        unknown = np.full(N_RESOURCES, np.nan)
        known = bucket is not None and row is not None
        return VmState(
            domain=vm.domain,
            host_id=vm.host_id,
            allocation=vm.allocation,
            demand_now=bucket.mean[row] if known else unknown,  # type: ignore[union-attr]  # known implies a bucket
            peak_now=bucket.peak[row] if known else unknown,  # type: ignore[union-attr]
            censored_now=bucket.censored[row] if known else unknown,  # type: ignore[union-attr]
            working_set_bytes=float(np.nanmax([*vm.needs, vm.need_now])) if vm.needs or not np.isnan(vm.need_now) else float("nan"),
            since_grow_s=min(1e9, (now_ns - vm.grown_ns) / NS_PER_S),
            pressured=vm.pressured or vm.pressured_now,
            turns=vm.turns.view(now_ns),
            recent_peak=tuple(np.fmax.reduce([unknown, *vm.peaks]).tolist()),
            since_start_s=min(1e9, (now_ns - vm.started_ns) / NS_PER_S),
            since_move_s=min(1e9, (now_ns - vm.moved_ns) / NS_PER_S),
            dirty_bytes_per_s=vm.dirty_bytes_per_s,
        )


def _maxima(domain: Domain) -> list[float]:
    maxima = [0.0] * N_RESOURCES
    maxima[CPU] = domain.vcpus_max * 1000.0
    maxima[MEMORY] = float(max(domain.memory_max_bytes, memory_most(domain)))
    maxima[DISK] = DISK_MAX_BYTES_PER_S
    maxima[NET_RX] = maxima[NET_TX] = float(domain.net_max_bits_per_s)
    return maxima


def _with_policy(domain: Domain, policy: Policy) -> Domain:
    return domain if policy is domain.policy else msgspec.structs.replace(domain, policy=policy)
