"""Model of one simulated VM: levers with lead times, kernel-like counters, and the ground truth that no real host can show.

CPU: granted = min(demand, quota, vCPUs), less what the host cannot give; above the quota is throttled, lost to the host is run delay.
Memory: the balloon moves at a rate and never below what the guest needs; a need above it swaps: faults, PSI, and slower CPU work;
long and deep shortage kills the VM, which comes back with a new epoch. Network: demand above the ceiling is dropped. Disk has no lever.
Invariant: a total never falls within one epoch. Rates are constants of this model, chosen to be plausible, not measured.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from agent.adapters.workload import Demand
from agent.ports import RawVm
from shared.model import Allocation, Label
from shared.plan import StepKind
from shared.units import GIB, MIB, NS_PER_MS, NS_PER_S, UNLIMITED
from shared.workload import VmWorkload

Milliseconds = Annotated[int, Meta(ge=0, le=3_600_000)]
Rate = Annotated[int, Meta(ge=1, le=2**50)]
Permille = Annotated[int, Meta(ge=0, le=1000)]

TRUTH_RESOURCES: Final = ("cpu_millicores", "memory_bytes", "net_rx_bits_per_s", "net_tx_bits_per_s")
TOLERANCE: Final = 1.01  # demand this much above what is granted counts as a violation
WORKING_SET_MARGIN: Final = 1.02  # the guest gives no page back once the balloon leaves it only this much over its need
GUEST_PERIOD_NS: Final = 5 * NS_PER_S  # how often a healthy guest writes its memory statistics
SWAP_PER_SHORTFALL: Final = 0.05  # of the missing bytes cross the swap device each second ...
SWAP_MAX_BYTES_PER_S: Final = 200 * MIB  # ... as far as a disk can
FAULT_BYTES: Final = 32768  # read per major fault, 8 pages of readahead
STALL_PER_SHORTFALL: Final = 4.0  # share of time stalled per missing share of the need: 10 % missing = 40 % some
FULL_SHARE: Final = 0.5
OOM_SHARE: Final = 0.7  # a balloon below this share of the need ...
OOM_AFTER_S: Final = 180.0  # ... for this long ends in an out-of-memory kill
PACKET_BITS: Final = 8 * 1500
DISK_BYTES_PER_S: Final = 200 * MIB  # at this rate tasks wait for I/O 30 % of the time
CACHE_SHARE: Final = 0.6  # of usable memory that holds page cache, hence is not free


class SimulationFaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Lead times of the levers and what goes wrong. Names in `stuck_vms` and `late_guests` are vm_ids or VM names."""

    cpu_latency_ms: Milliseconds = 5
    net_latency_ms: Milliseconds = 5
    vcpu_online_ms: Milliseconds = 2000
    memory_inflate_bytes_per_s: Rate = 64 * MIB  # taking from the guest
    memory_deflate_bytes_per_s: Rate = GIB  # giving back
    submit_failure_permille: Permille = 0  # submit raises HostError
    submit_lost_permille: Permille = 0  # submit is accepted and nothing ever happens
    stuck_vms: tuple[Label, ...] = ()  # the monitor does not answer: no reading, no step
    late_guests: tuple[Label, ...] = ()  # memory statistics only every `late_guest_s`
    late_guest_s: Annotated[int, Meta(ge=1, le=86_400)] = 60

    def latency_ns(self, kind: StepKind) -> int:
        """Time from submit to effect (for memory: to the balloon's first move)."""
        if kind is StepKind.VCPUS:
            return self.vcpu_online_ms * NS_PER_MS
        if kind in (StepKind.NET_RX, StepKind.NET_TX):
            return self.net_latency_ms * NS_PER_MS
        return self.cpu_latency_ms * NS_PER_MS


class SimulatedVm:
    """State of one VM. The host calls `settle`, `want`, `advance` for every sub-step, in that order. Times in seconds, rates per second."""

    # everything that changes, i.e. what a snapshot holds
    STATE: Final = (
        *("epoch", "vcpus", "quota", "shares", "actual", "target", "net_rx", "net_tx", "pending", "starved_s", "reading_ns"),
        *("usable", "high_water", "used_ns", "throttled_ns", "run_delay_ns", "psi_cpu_us", "psi_some_us", "psi_full_us", "psi_io_us"),
        *("faults", "swap_bytes", "disk_read", "disk_write", "rx_bytes", "tx_bytes", "rx_dropped", "tx_dropped"),
        *("observed_s", "violated_s", "any_s", "unmet", "allocated", "used", "ooms"),
    )
    __slots__ = (*STATE, "index", "spec")
    high_water: float

    def __init__(self, spec: VmWorkload, index: int, wall_ns: int, demand: Demand) -> None:
        self.spec = spec
        self.index = index
        self.epoch = 0
        self.vcpus = spec.initial.vcpus or 1
        self.quota = _or_unlimited(spec.initial.cpu_quota_millicores)
        self.shares = spec.initial.cpu_shares or 1024
        self.actual = float(spec.initial.memory_bytes or spec.memory_max_bytes)
        self.target = self.actual
        self.net_rx = _or_unlimited(spec.initial.net_rx_bits_per_s)
        self.net_tx = _or_unlimited(spec.initial.net_tx_bits_per_s)
        self.pending: list[tuple[int, str, int]] = []  # (due wall_ns, kind, value) in order of submission
        self.ooms = 0
        self.reading_ns = wall_ns
        self.usable = max(0.0, self.actual - demand.memory_bytes)
        self._restart_counters(demand.memory_bytes)
        self.reset_truth()

    def submit(self, kind: StepKind, value: int, due_ns: int) -> None:
        """Have `value` take effect at `due_ns`."""
        self.pending.append((due_ns, kind.value, value))

    def settle(self, wall_ns: int) -> None:
        """Let every pending step that is due take effect."""
        due = [entry for entry in self.pending if entry[0] <= wall_ns]
        self.pending = [entry for entry in self.pending if entry[0] > wall_ns]
        for _, kind, value in due:
            if kind == StepKind.VCPUS:
                self.vcpus = max(self.vcpus, value)
            elif kind == StepKind.CPU_QUOTA:
                self.quota = value
            elif kind == StepKind.CPU_SHARES:
                self.shares = value
            elif kind == StepKind.MEMORY:
                self.target = float(value)
            elif kind == StepKind.NET_RX:
                self.net_rx = value
            else:
                self.net_tx = value

    def want(self, cpu_millicores: float) -> float:
        """CPU that the VM asks of the host: its demand within its vCPUs and quota."""
        limit = 1000.0 * self.vcpus
        if 0 <= self.quota < limit:
            limit = self.quota
        return min(cpu_millicores, limit)

    def advance(self, dt: float, end_ns: int, demand: Demand, granted: float, *, host_short: float, faults: SimulationFaults) -> None:
        """Live through `dt` seconds up to `end_ns` with `granted` millicores; `host_short` = share of its memory that the host lacks."""
        need = demand.memory_bytes
        if self.actual != self.target:
            self._move_balloon(dt, need, faults)
        held = self.actual
        if host_short > 0:  # the host swaps out a share of what is resident, needed or not
            held = min(held, need) * (1.0 - host_short)
        full = 0.0
        if need > held:
            full = self._starve(dt, need, held)
        else:
            self.starved_s = 0.0
        self._run(dt, demand.cpu_millicores, granted, full)
        self._carry(dt, demand)
        self._score(dt, demand, granted, held)
        self.high_water = min(max(self.high_water, need), self.actual)
        if end_ns % GUEST_PERIOD_NS == 0:
            late = self.named(faults.late_guests) and end_ns - self.reading_ns < faults.late_guest_s * NS_PER_S
            if not late:
                self.reading_ns = end_ns
                self.usable = max(0.0, held - need)
        if self.starved_s >= OOM_AFTER_S:
            self._die(need)

    def named(self, names: tuple[str, ...]) -> bool:
        """Whether one of the names means this VM."""
        return bool(names) and (self.spec.vm_id in names or self.spec.name in names)

    def allocation(self) -> Allocation:
        """What is in force now."""
        return Allocation(
            vcpus=self.vcpus,
            cpu_quota_millicores=self.quota,
            cpu_shares=self.shares,
            memory_bytes=int(self.actual),
            disk_bytes_per_s=UNLIMITED,
            net_rx_bits_per_s=self.net_rx,
            net_tx_bits_per_s=self.net_tx,
        )

    def reading(self, boot_id: str) -> RawVm:
        """Counters and gauges as a host would show them."""
        usable = int(self.usable)
        return RawVm(
            vm_id=self.spec.vm_id,
            epoch=f"{boot_id}.{self.index}.{self.epoch}",
            cpu_used_ns_total=int(self.used_ns),
            throttled_ns_total=int(self.throttled_ns),
            run_delay_ns_total=int(self.run_delay_ns),
            psi_cpu_some_us_total=int(self.psi_cpu_us),
            psi_memory_some_us_total=int(self.psi_some_us),
            psi_memory_full_us_total=int(self.psi_full_us),
            psi_io_some_us_total=int(self.psi_io_us),
            memory_actual_bytes=int(self.actual),
            memory_usable_bytes=usable,
            memory_unused_bytes=int(usable * (1.0 - CACHE_SHARE)),
            memory_rss_bytes=int(self.high_water),
            memory_reading_wall_ns=self.reading_ns,
            major_faults_total=int(self.faults),
            swap_bytes_total=int(self.swap_bytes),
            disk_read_bytes_total=int(self.disk_read),
            disk_write_bytes_total=int(self.disk_write),
            net_rx_bytes_total=int(self.rx_bytes),
            net_tx_bytes_total=int(self.tx_bytes),
            net_rx_dropped_total=int(self.rx_dropped),
            net_tx_dropped_total=int(self.tx_dropped),
            vcpus=self.vcpus,
            cpu_quota_millicores=self.quota,
            cpu_shares=self.shares,
            disk_limit_bytes_per_s=UNLIMITED,
            net_rx_ceil_bits_per_s=self.net_rx,
            net_tx_ceil_bits_per_s=self.net_tx,
        )

    def reset_truth(self) -> None:
        """Begin the ground truth anew; the VM itself is untouched. Lists follow TRUTH_RESOURCES."""
        self.observed_s = 0.0
        self.any_s = 0.0
        self.violated_s = [0.0, 0.0, 0.0, 0.0]
        self.unmet = [0.0, 0.0, 0.0, 0.0]
        self.allocated = [0.0, 0.0, 0.0, 0.0]
        self.used = [0.0, 0.0, 0.0, 0.0]
        self.ooms = 0

    def _restart_counters(self, need: float) -> None:
        self.starved_s = 0.0
        self.high_water = min(need, self.actual)
        self.used_ns = self.throttled_ns = self.run_delay_ns = 0.0
        self.psi_cpu_us = self.psi_some_us = self.psi_full_us = self.psi_io_us = 0.0
        self.faults = self.swap_bytes = 0.0
        self.disk_read = self.disk_write = 0.0
        self.rx_bytes = self.tx_bytes = self.rx_dropped = self.tx_dropped = 0.0

    def _move_balloon(self, dt: float, need: float, faults: SimulationFaults) -> None:
        if self.target > self.actual:
            self.actual = min(self.target, self.actual + dt * faults.memory_deflate_bytes_per_s)
            return
        lowest = max(self.target, need * WORKING_SET_MARGIN)
        if lowest < self.actual:
            self.actual = max(lowest, self.actual - dt * faults.memory_inflate_bytes_per_s)

    def _starve(self, dt: float, need: float, held: float) -> float:
        """Swap for `dt` seconds; returns the share of time in which nothing ran."""
        swapped = min(SWAP_MAX_BYTES_PER_S, SWAP_PER_SHORTFALL * (need - held)) * dt
        some = min(1.0, STALL_PER_SHORTFALL * (need - held) / need)
        self.swap_bytes += swapped
        self.faults += swapped / 2 / FAULT_BYTES  # half of it comes in
        self.psi_some_us += some * dt * 1e6
        self.psi_full_us += FULL_SHARE * some * dt * 1e6
        self.psi_io_us += FULL_SHARE * some * dt * 1e6
        self.starved_s = self.starved_s + dt if held < OOM_SHARE * need else 0.0
        return FULL_SHARE * some

    def _run(self, dt: float, demand: float, granted: float, full: float) -> None:
        self.used_ns += granted * (1.0 - full) * dt * 1e6  # one millicore for one second = 1e6 ns
        runnable = min(demand, 1000.0 * self.vcpus)
        if granted >= runnable:
            return
        wanted = self.want(demand)
        throttled = 1.0 - wanted / runnable  # runs at full rate until the quota is used up, then waits for the next period
        self.throttled_ns += throttled * dt * 1e9
        self.run_delay_ns += throttled * dt * 1e9 + (wanted - granted) * dt * 1e6  # the kernel counts throttling as run delay too
        waiting = (wanted - granted) / wanted if wanted > 0 else 0.0
        self.psi_cpu_us += max(throttled, waiting) * dt * 1e6

    def _carry(self, dt: float, demand: Demand) -> None:
        read, write = demand.disk_read_bytes_per_s, demand.disk_write_bytes_per_s
        self.disk_read += read * dt
        self.disk_write += write * dt
        self.psi_io_us += min(1.0, (read + write) / DISK_BYTES_PER_S) * 0.3 * dt * 1e6
        rx, tx = demand.net_rx_bits_per_s, demand.net_tx_bits_per_s
        if 0 <= self.net_rx < rx:
            self.rx_dropped += (rx - self.net_rx) * dt / PACKET_BITS
            rx = self.net_rx
        if 0 <= self.net_tx < tx:
            self.tx_dropped += (tx - self.net_tx) * dt / PACKET_BITS
            tx = self.net_tx
        self.rx_bytes += rx * dt / 8
        self.tx_bytes += tx * dt / 8

    def _score(self, dt: float, demand: Demand, granted: float, held: float) -> None:
        cpu, need, rx, tx = demand.cpu_millicores, demand.memory_bytes, demand.net_rx_bits_per_s, demand.net_tx_bits_per_s
        most = 1000.0 * self.vcpus
        quota = min(most, self.quota) if self.quota >= 0 else most
        rx_ceiling = self.net_rx if self.net_rx >= 0 else self.spec.net_max_bits_per_s
        tx_ceiling = self.net_tx if self.net_tx >= 0 else self.spec.net_max_bits_per_s
        allocated, used, unmet, violated = self.allocated, self.used, self.unmet, self.violated_s
        allocated[0] += quota * dt
        allocated[1] += self.actual * dt
        allocated[2] += rx_ceiling * dt
        allocated[3] += tx_ceiling * dt
        used[0] += granted * dt
        used[1] += min(need, held) * dt
        used[2] += min(rx, rx_ceiling) * dt
        used[3] += min(tx, tx_ceiling) * dt
        self.observed_s += dt
        missing = False
        if cpu > granted * TOLERANCE:
            violated[0] += dt
            unmet[0] += (cpu - granted) * dt
            missing = True
        if need > held:
            violated[1] += dt
            unmet[1] += (need - held) * dt
            missing = True
        if rx > rx_ceiling * TOLERANCE:
            violated[2] += dt
            unmet[2] += (rx - rx_ceiling) * dt
            missing = True
        if tx > tx_ceiling * TOLERANCE:
            violated[3] += dt
            unmet[3] += (tx - tx_ceiling) * dt
            missing = True
        if missing:
            self.any_s += dt

    def _die(self, need: float) -> None:
        self.ooms += 1
        self.epoch += 1
        self._restart_counters(need)


def _or_unlimited(value: int | None) -> int:
    return UNLIMITED if value is None else value
