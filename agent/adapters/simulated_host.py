"""A host that exists only as numbers: `Hypervisor` and `HostReader` over a replayed workload, for demos, benches and the simulation.

The model moves when it is asked: every call first lives through the time since the last one, cut at 5-second slots and at the
moments when a submitted step takes effect, so that counters do not depend on how often they are read. Everything follows from
the workload file and `now`; a lock lets the service call from several threads. `truth` is the scoreboard's ground truth and is
never shown to decisions. A snapshot carries the host over a restart of the agent, as limits on a real host outlive it.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from agent.adapters.simulated_levers import check_value, simulated_domain
from agent.adapters.simulated_vm import TRUTH_RESOURCES, SimulatedVm, SimulationFaults
from agent.adapters.workload import SLOT_NS, Demand, VmDemand, Workload
from agent.ports import RawHost, RawVm
from shared.errors import ConfigError, HostError, Refusal
from shared.model import Allocation, Domain, HostCapacity
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import BUCKET_S, NS_PER_S
from shared.workload import SLOT_S, mix64

OVERHEAD_SHARE: Final = 0.02  # of the VMs' CPU time that the host itself needs for them
MAX_LAPSE_NS: Final = 7 * 86_400 * NS_PER_S  # a longer silence is lived through only for its last week: bounds one call's work


class Moving(NamedTuple):
    """A VM on its way between two hosts."""

    vm: SimulatedVm
    demand: VmDemand


class SimulatedHost:
    """One host of a workload file. `now` gives (wall_ns, monotonic_ns); the model runs on monotonic time, anchored at the start.

    `step_s` is the model's resolution: above 5, demand is taken at the beginning of each step, for worlds of many hosts.
    `movable`: VMs may leave for other hosts (`release` or `hand_over`, `admit`); a snapshot then holds whatever VMs were here.
    `arrivals` is called before the host is looked at, so that VMs that came meanwhile are seen.
    """

    def __init__(
        self,
        workload: Workload,
        now: Callable[[], tuple[int, int]],
        faults: SimulationFaults | None = None,
        snapshot: bytes | None = None,
        step_s: int = SLOT_S,
        *,
        movable: bool = False,
    ) -> None:
        if step_s % SLOT_S or not SLOT_S <= step_s <= BUCKET_S:
            raise ConfigError(f"step_s {step_s}: allowed multiples of {SLOT_S} from {SLOT_S} to {BUCKET_S}")
        self._step_ns = step_s * NS_PER_S
        self.faults = faults or SimulationFaults()  # may be replaced at any time
        self._workload = workload
        self._now = now
        self._lock = threading.Lock()
        wall_ns, monotonic_ns = now()
        self._offset_ns = wall_ns - monotonic_ns
        self._reached_ns = wall_ns
        self._since_ns = wall_ns
        self._submits = 0
        self._busy_ns = self._psi_cpu_us = self._psi_memory_us = 0.0
        self._boot_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"tidegate:{workload.file.host}:{workload.file.seed}:{wall_ns}"))
        self._movable = movable
        self._sources: list[VmDemand] | None = None  # of each VM, once one has come or gone; until then the file's own
        demands = workload.demands(wall_ns // SLOT_NS)
        self._vms = [SimulatedVm(spec, i, wall_ns, demands[i]) for i, spec in enumerate(workload.vms)]
        self._by_id = {vm.spec.vm_id: vm for vm in self._vms}
        self._domains = {spec.vm_id: simulated_domain(spec, i, movable=movable) for i, spec in enumerate(workload.vms)}
        self._arrivals = len(self._vms)
        self.arrivals: Callable[[], None] = lambda: None
        self._saved: dict[str, list[Any]] = {}  # snapshot of VMs that are not in the workload file
        if snapshot is not None:
            self._restore(snapshot)

    def boot_id(self) -> str:
        """Fixed by host, seed and moment of the start; kept by a snapshot."""
        return self._boot_id

    def capacity(self) -> HostCapacity:
        """As in the workload file."""
        return self._workload.file.capacity

    def domains(self) -> Sequence[Domain]:
        """Every VM that is here."""
        self.arrivals()
        with self._lock:
            return tuple(self._domains.values())

    def release(self, vm_id: str) -> Moving:
        """A VM leaves, with its limits and its demand. Raises Refusal(UNKNOWN_VM), HostError for a stuck VM."""
        gone: list[Moving] = []
        self.hand_over(vm_id, gone.append)
        return gone[0]

    def hand_over(self, vm_id: str, take: Callable[[Moving], None]) -> None:
        """A VM leaves once `take` has it; what `take` raises leaves it here as it was. Raises as `release`."""
        with self._lock:
            self._advance()
            vm = self._answering(vm_id)
            at = self._vms.index(vm)
            take(Moving(vm=vm, demand=self._own_sources()[at]))
            self._own_sources().pop(at)
            del self._vms[at], self._by_id[vm_id], self._domains[vm_id]

    def admit(self, moving: Moving) -> None:
        """A VM that another host released comes: its counters begin anew, as those of a new QEMU process; steps under way are lost.

        One that had come before this process began goes on as the snapshot has it.
        """
        with self._lock:
            self._advance()
            vm = moving.vm
            vm.index, self._arrivals = self._arrivals, self._arrivals + 1
            vm.arrive(self._reached_ns)
            saved = self._saved.pop(vm.spec.vm_id, None)
            if saved is not None:
                _put_back(vm, saved)
            self._vms.append(vm)
            self._by_id[vm.spec.vm_id] = vm
            self._own_sources().append(moving.demand)
            self._domains[vm.spec.vm_id] = simulated_domain(vm.spec, vm.index, movable=self._movable)

    def allocation(self, vm_id: str) -> Allocation:
        """What is in force now. Raises Refusal(UNKNOWN_VM), HostError for a stuck VM."""
        with self._lock:
            self._advance()
            return self._answering(vm_id).allocation()

    def submit(self, vm_id: str, kind: StepKind, value: int) -> None:
        """Accept a step; it takes effect after the lever's lead time. Raises Refusal or HostError."""
        with self._lock:
            self._advance()
            vm = self._answering(vm_id)
            check_value(self._domains[vm_id], kind, value, vm.vcpus)
            self._submits += 1
            draw = mix64(self._workload.file.seed ^ mix64(self._submits)) % 1000
            if draw < self.faults.submit_failure_permille:
                raise HostError(f"simulated failure of {kind} on {vm.spec.name}")
            if draw < self.faults.submit_failure_permille + self.faults.submit_lost_permille:
                return
            vm.submit(kind, value, self._reached_ns, self.faults)

    def subsample(self) -> None:
        """Nothing to do: a workload is even between two rounds, so its peak is its mean."""

    def read(self) -> RawHost:
        """All counters and gauges now; stuck VMs are left out and named in `failures`."""
        self.arrivals()
        with self._lock:
            monotonic_ns = self._advance()
            readings: list[RawVm] = []
            failures: dict[str, str] = {}
            for vm in self._vms:
                if vm.named(self.faults.stuck_vms):
                    failures[vm.spec.vm_id] = "the monitor does not answer (simulated)"
                else:
                    readings.append(vm.reading(self._boot_id))
            resident = sum(vm.high_water for vm in self._vms)
            return RawHost(
                wall_ns=self._reached_ns,
                monotonic_ns=monotonic_ns,
                boot_id=self._boot_id,
                cpu_busy_ns_total=int(self._busy_ns),
                memory_available_bytes=max(0, int(self._workload.file.capacity.memory_bytes - resident)),
                psi_cpu_some_us_total=int(self._psi_cpu_us),
                psi_memory_some_us_total=int(self._psi_memory_us),
                vms=tuple(readings),
                failures=failures,
            )

    @property
    def machines(self) -> Sequence[SimulatedVm]:
        """The VMs' models, in the order of the file: for benches, never for decisions."""
        return self._vms

    def demand_at(self, index: int, slot: int) -> Demand:
        """What VM number `index` would use in slot `slot` (Unix seconds // 5); for benches."""
        return self._workload.demand(index, slot * SLOT_NS)

    def truth(self) -> dict[str, Any]:
        """Ground truth since the start or the last reset, JSON-able: {"since_ns", "until_ns", "total": {...}, "vms": {vm_id: {...}}}.

        Each of total and vms holds observed_s, violation_any_s, ooms, and per resource of TRUTH_RESOURCES violation_s, unmet,
        allocated and used (the last three integrated over seconds: millicore seconds, byte seconds, bits). Total = sum over VMs.
        """
        with self._lock:
            self._advance()
            vms = {vm.spec.vm_id: _truth_of(vm) for vm in self._vms}
            return {"since_ns": self._since_ns, "until_ns": self._reached_ns, "total": _total(list(vms.values())), "vms": vms}

    def reset_truth(self) -> None:
        """Begin the ground truth anew now, e.g. after a warm-up."""
        with self._lock:
            self._advance()
            self._since_ns = self._reached_ns
            for vm in self._vms:
                vm.reset_truth()

    def snapshot(self) -> bytes:
        """All that changes, for `SimulatedHost(snapshot=...)` in the next process."""
        with self._lock:
            self._advance()
            return msgspec.msgpack.encode(
                {
                    "host": self._workload.file.host,
                    "boot_id": self._boot_id,
                    "host_state": [self._reached_ns, self._since_ns, self._submits],
                    "totals": [self._busy_ns, self._psi_cpu_us, self._psi_memory_us],
                    "vms": {vm.spec.vm_id: [getattr(vm, name) for name in SimulatedVm.STATE] for vm in self._vms},
                }
            )

    def close(self) -> None:
        """Nothing to release."""

    def _own_sources(self) -> list[VmDemand]:
        if self._sources is None:
            self._sources = self._workload.sources()
        return self._sources

    def _restore(self, data: bytes) -> None:
        try:
            state = msgspec.msgpack.decode(data)
            if state["host"] != self._workload.file.host or (set(state["vms"]) != set(self._by_id) and not self._movable):
                raise ConfigError(f"snapshot of {state['host']!r} does not fit the workload of {self._workload.file.host!r}")
            self._boot_id = state["boot_id"]
            self._reached_ns, self._since_ns, self._submits = state["host_state"]
            self._busy_ns, self._psi_cpu_us, self._psi_memory_us = state["totals"]
            for vm_id, values in state["vms"].items():
                vm = self._by_id.get(vm_id)
                if vm is None:
                    self._saved[vm_id] = values
                else:
                    _put_back(vm, values)
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a snapshot of a simulated host: {error}") from error

    def _answering(self, vm_id: str) -> SimulatedVm:
        vm = self._by_id.get(vm_id)
        if vm is None:
            raise Refusal(RefusalCode.UNKNOWN_VM, f"no VM {vm_id!r} on {self._workload.file.host}")
        if vm.named(self.faults.stuck_vms):
            raise HostError(f"the monitor of {vm.spec.name} does not answer (simulated)")
        return vm

    def _advance(self) -> int:
        """Live through the time up to now; returns now's monotonic time."""
        monotonic_ns = self._now()[1]
        end = monotonic_ns + self._offset_ns
        self._reached_ns = max(self._reached_ns, end - MAX_LAPSE_NS)
        while self._reached_ns < end:
            start = self._reached_ns
            stop = min(end, (start // self._step_ns + 1) * self._step_ns)
            for vm in self._vms:
                if vm.pending:
                    self._settle(vm, start)
                    stop = min([stop, *(due for due, _, _ in vm.pending)])
            self._step(start, stop)
            self._reached_ns = stop
        for vm in self._vms:
            if vm.pending:
                self._settle(vm, self._reached_ns)
        return monotonic_ns

    def _settle(self, vm: SimulatedVm, wall_ns: int) -> None:
        vm.settle(wall_ns, vm.named(self.faults.keeping_guests))

    def _step(self, start: int, stop: int) -> None:
        """One sub-step, within one slot (or `step_s`), during which no lever changes."""
        dt = (stop - start) / NS_PER_S
        capacity = self._workload.file.capacity
        slot = start // self._step_ns * self._step_ns // SLOT_NS
        demands = self._workload.demands(slot) if self._sources is None else [source.at(slot) for source in self._sources]
        vms = self._vms
        wants = [vm.want(demand[0]) for vm, demand in zip(vms, demands, strict=True)]
        total, available = sum(wants), capacity.cpu_millicores / (1.0 + OVERHEAD_SHARE)
        grants = wants
        if total > available:
            grants = share_out(wants, [vm.shares for vm in vms], available)
            self._psi_cpu_us += dt * 1e6 * (1.0 - available / total)
        resident = sum([vm.high_water for vm in vms])
        short = max(0.0, 1.0 - capacity.memory_bytes / resident) if resident else 0.0
        self._psi_memory_us += min(1.0, 4 * short) * dt * 1e6
        for i, vm in enumerate(vms):
            vm.advance(dt, stop, demands[i], grants[i], host_short=short, faults=self.faults)
        self._busy_ns += sum(grants) * (1.0 + OVERHEAD_SHARE) * dt * 1e6


def share_out(wants: Sequence[float], shares: Sequence[int], available: float) -> list[float]:
    """Divide `available` by shares, nobody getting more than it wants (what CFS converges to); the result sums to `available` at most."""
    grants = [0.0] * len(wants)
    weight = float(sum(shares))
    for i in sorted(range(len(wants)), key=lambda i: wants[i] / shares[i]):
        grants[i] = min(wants[i], available * shares[i] / weight)
        available -= grants[i]
        weight -= shares[i]
    return grants


def _put_back(vm: SimulatedVm, values: Sequence[Any]) -> None:
    """The state of a snapshot, unless it is of an earlier stay than this one. Raises ValueError for a state of another length."""
    names = SimulatedVm.FIRST_STATE if len(values) == len(SimulatedVm.FIRST_STATE) else SimulatedVm.STATE
    fresh = dict(zip(names, values, strict=True))
    if fresh["epoch"] >= vm.epoch:
        for name, value in fresh.items():
            setattr(vm, name, value)


def _truth_of(vm: SimulatedVm) -> dict[str, Any]:
    columns = (("violation_s", vm.violated_s), ("unmet", vm.unmet), ("allocated", vm.allocated), ("used", vm.used))
    named: dict[str, Any] = {name: dict(zip(TRUTH_RESOURCES, values, strict=True)) for name, values in columns}
    return {"name": vm.spec.name, "observed_s": vm.observed_s, "violation_any_s": vm.any_s, "ooms": vm.ooms, **named}


def _total(vms: Sequence[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {name: sum(vm[name] for vm in vms) for name in ("observed_s", "violation_any_s", "ooms")}
    for name in ("violation_s", "unmet", "allocated", "used"):
        total[name] = {resource: sum(vm[name][resource] for vm in vms) for resource in TRUTH_RESOURCES}
    return total
