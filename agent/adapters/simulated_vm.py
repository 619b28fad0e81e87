"""Model of one simulated VM: levers with lead times, kernel-like counters, and the ground truth that no real host can show.

CPU: granted = min(demand, quota, vCPUs online), less what the host cannot give; above the quota is throttled, lost to the host is run
delay. Memory: the balloon and virtio-mem move at a rate and never below what the guest needs, DIMMs come and go whole; a need above all
of them swaps: faults, PSI, and slower CPU work; long and deep shortage makes the guest's kernel kill a process and then costs the VM, which
comes back with a new epoch. memory.high makes the host reclaim: what the guest needs above it is slow, but nobody dies of it.
Network and disk: demand above the limit is dropped, or waits. A guarantee and a disk weight are kept and shown, but have no effect: the
model's uplink and disks are never full.
Invariant: a total never falls within one epoch. Rates are constants of this model, chosen to be plausible, not measured.
"""

from __future__ import annotations

from typing import Final

from agent.adapters.simulated_levers import BLOCK_BYTES, SimulationFaults
from agent.adapters.workload import Demand
from agent.ports import RawVm
from shared.model import Allocation
from shared.plan import StepKind
from shared.units import MIB, NS_PER_S, UNLIMITED
from shared.workload import VmWorkload

__all__ = ["TRUTH_RESOURCES", "SimulatedVm", "SimulationFaults"]

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
OOM_KILL_AFTER_S: Final = 120.0  # ... for this long makes the guest's kernel kill a process
OOM_AFTER_S: Final = 180.0  # ... and for this long costs the VM
PACKET_BITS: Final = 8 * 1500
DISK_BYTES_PER_S: Final = 200 * MIB  # at this rate tasks wait for I/O 30 % of the time
OP_BYTES: Final = 16 * 1024  # of one disk operation
OP_NS: Final = 500_000  # and the time that it takes ...
OP_WAITING: Final = 10  # ... times this at a limit of ours
RECLAIM_BYTES_PER_S: Final = 64 * MIB  # what memory.high takes from the VM's process
PERIOD_US: Final = 100_000
CACHE_SHARE: Final = 0.6  # of usable memory that holds page cache, hence is not free


class SimulatedVm:
    """State of one VM. The host calls `settle`, `want`, `advance` for every sub-step, in that order. Times in seconds, rates per second."""

    # everything that changes, i.e. what a snapshot holds; a snapshot of an older version ends after `ooms`
    FIRST_STATE: Final = (
        *("epoch", "vcpus", "quota", "shares", "actual", "target", "net_rx", "net_tx", "pending", "starved_s", "reading_ns"),
        *("usable", "high_water", "used_ns", "throttled_ns", "run_delay_ns", "psi_cpu_us", "psi_some_us", "psi_full_us", "psi_io_us"),
        *("faults", "swap_bytes", "disk_read", "disk_write", "rx_bytes", "tx_bytes", "rx_dropped", "tx_dropped"),
        *("observed_s", "violated_s", "any_s", "unmet", "allocated", "used", "ooms"),
    )
    STATE: Final = (
        *FIRST_STATE,
        *("offline", "period_us", "virtio_mem", "virtio_target", "dimm", "memory_high", "disk_bytes", "disk_ops", "disk_weight", "tx_rate"),
        *("need", "oom_kills", "high_events", "periods", "throttled_periods", "read_ops", "write_ops", "disk_ns"),
    )
    __slots__ = (*STATE, "index", "spec")
    high_water: float
    high_events: float
    starved_s: float

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
        self.offline = 0  # vCPUs that the guest keeps offline at its agent's request
        self.period_us = spec.initial.cpu_period_us or PERIOD_US
        self.virtio_mem = self.virtio_target = float(spec.initial.virtio_mem_bytes or 0)
        self.dimm = spec.initial.dimm_bytes or 0
        self.memory_high = _or_unlimited(spec.initial.memory_high_bytes)
        self.disk_bytes = _or_unlimited(spec.initial.disk_bytes_per_s)
        self.disk_ops = _or_unlimited(spec.initial.disk_ops_per_s)
        self.disk_weight = spec.initial.disk_weight or 100
        self.tx_rate = spec.initial.net_tx_rate_bits_per_s or 0
        self.need = demand.memory_bytes
        self.oom_kills = 0
        self.pending: list[tuple[int, str, int]] = []  # (due wall_ns, kind or "unplug", value) in order of submission
        self.ooms = 0
        self.reading_ns = wall_ns
        self.usable = max(0.0, self.memory - demand.memory_bytes)
        self._restart_counters(demand.memory_bytes)
        self.reset_truth()

    @property
    def memory(self) -> float:
        """Bytes that the guest has: balloon, virtio-mem and DIMMs."""
        return self.actual + self.virtio_mem + self.dimm

    def submit(self, kind: StepKind, value: int, now_ns: int, faults: SimulationFaults) -> None:
        """Have `value` take effect after the lever's lead time."""
        lowering = kind is StepKind.VCPUS and value < self.vcpus
        self.pending.append((now_ns + faults.latency_ns(kind, lowering), "unplug" if lowering else kind.value, value))

    def settle(self, wall_ns: int, keeps: bool = False) -> None:
        """Let every pending step that is due take effect; a guest that `keeps` lets go of no vCPU and no DIMM."""
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
            elif kind == StepKind.NET_TX:
                self.net_tx = value
            else:
                self._settle_rare(kind, value, keeps)

    def _settle_rare(self, kind: str, value: int, keeps: bool) -> None:
        if kind == "unplug":
            if not keeps and value < self.vcpus:
                self.offline = max(0, self.offline - (self.vcpus - value))  # those that are offline go first
                self.vcpus = value
        elif kind == StepKind.VCPUS_ONLINE:
            self.offline = max(0, self.vcpus - value)
        elif kind == StepKind.VIRTIO_MEM:
            self.virtio_target = float(value // BLOCK_BYTES * BLOCK_BYTES)
        elif kind == StepKind.DIMM:
            left = self.memory - self.dimm + value
            if value >= self.dimm or not (keeps or left < self.need * WORKING_SET_MARGIN):
                self.dimm = value
        else:
            setattr(self, _PLAIN[StepKind(kind)], value)

    def arrive(self, wall_ns: int) -> None:
        """It runs on another host from now on: what was submitted and had no effect yet is lost, counters begin anew."""
        self.pending.clear()
        self.target, self.virtio_target = self.actual, self.virtio_mem
        self.epoch += 1
        self.reading_ns = wall_ns
        self._restart_counters(self.need)

    def want(self, cpu_millicores: float) -> float:
        """CPU that the VM asks of the host: its demand within its vCPUs and quota."""
        limit = 1000.0 * (self.vcpus - self.offline)
        if 0 <= self.quota < limit:
            limit = self.quota
        return min(cpu_millicores, limit)

    def advance(self, dt: float, end_ns: int, demand: Demand, granted: float, *, host_short: float, faults: SimulationFaults) -> None:
        """Live through `dt` seconds up to `end_ns` with `granted` millicores; `host_short` = share of its memory that the host lacks."""
        need = demand.memory_bytes
        if self.actual != self.target:
            self._move_balloon(dt, need, faults)
        if self.virtio_mem != self.virtio_target:
            self._move_virtio_mem(dt, need, faults)
        self.need = need
        memory = held = self.actual + self.virtio_mem + self.dimm
        if host_short > 0:  # the host swaps out a share of what is resident, needed or not
            held = min(held, need) * (1.0 - host_short)
        full = 0.0
        if need > held:
            starved_s = self.starved_s
            full = self._starve(dt, need, held)
            self.oom_kills += starved_s < OOM_KILL_AFTER_S <= self.starved_s
        else:
            self.starved_s = 0.0
            if 0 <= self.memory_high < need:  # the host takes what the guest reaches for again: slow, but nothing is missing
                full = self._starve(dt, need, self.memory_high)
                self.starved_s = 0.0
        self._run(dt, demand.cpu_millicores, granted, full)
        self._carry(dt, demand)
        self._score(dt, demand, granted, held, memory)
        resident = self.high_water
        self.high_water = min(max(resident, need), memory)
        if 0 <= self.memory_high < self.high_water:
            self.high_events += dt
            self.high_water = min(self.high_water, max(self.memory_high, resident - dt * RECLAIM_BYTES_PER_S))
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
            disk_bytes_per_s=self.disk_bytes,
            net_rx_bits_per_s=self.net_rx,
            net_tx_bits_per_s=self.net_tx,
            vcpus_online=self.vcpus - self.offline,
            cpu_period_us=self.period_us,
            virtio_mem_bytes=int(self.virtio_mem) // BLOCK_BYTES * BLOCK_BYTES,
            dimm_bytes=self.dimm,
            memory_high_bytes=self.memory_high,
            disk_ops_per_s=self.disk_ops,
            disk_weight=self.disk_weight,
            net_tx_rate_bits_per_s=self.tx_rate,
        )

    def reading(self, boot_id: str) -> RawVm:
        """Counters and gauges as a host would show them."""
        usable = int(self.usable)
        virtio_mem = int(self.virtio_mem) // BLOCK_BYTES * BLOCK_BYTES
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
            memory_actual_bytes=int(self.actual) + virtio_mem + self.dimm,  # as libvirt's figure
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
            disk_limit_bytes_per_s=self.disk_bytes,
            net_rx_ceil_bits_per_s=self.net_rx,
            net_tx_ceil_bits_per_s=self.net_tx,
            periods_total=int(self.periods),
            throttled_periods_total=int(self.throttled_periods),
            memory_current_bytes=int(self.high_water),
            memory_high_events_total=int(self.high_events),
            disk_read_ops_total=int(self.read_ops),
            disk_write_ops_total=int(self.write_ops),
            disk_read_time_ns_total=int(self.disk_ns[0]),
            disk_write_time_ns_total=int(self.disk_ns[1]),
            guest_oom_kills_total=self.oom_kills,
            vcpus_online=self.vcpus - self.offline,
            cpu_period_us=self.period_us,
            virtio_mem_bytes=virtio_mem,
            dimm_bytes=self.dimm,
            memory_high_bytes=self.memory_high,
            disk_ops_limit_per_s=self.disk_ops,
            disk_weight=self.disk_weight,
            net_tx_rate_bits_per_s=self.tx_rate,
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
        self.high_water = min(need, self.memory)
        self.high_events = self.periods = self.throttled_periods = 0.0
        self.read_ops = self.write_ops = 0.0
        self.disk_ns = [0.0, 0.0]  # read, write
        self.used_ns = self.throttled_ns = self.run_delay_ns = 0.0
        self.psi_cpu_us = self.psi_some_us = self.psi_full_us = self.psi_io_us = 0.0
        self.faults = self.swap_bytes = 0.0
        self.disk_read = self.disk_write = 0.0
        self.rx_bytes = self.tx_bytes = self.rx_dropped = self.tx_dropped = 0.0

    def _move_balloon(self, dt: float, need: float, faults: SimulationFaults) -> None:
        if self.target > self.actual:
            self.actual = min(self.target, self.actual + dt * faults.memory_deflate_bytes_per_s)
            return
        lowest = max(self.target, need * WORKING_SET_MARGIN - self.virtio_mem - self.dimm)
        if lowest < self.actual:
            self.actual = max(lowest, self.actual - dt * faults.memory_inflate_bytes_per_s)

    def _move_virtio_mem(self, dt: float, need: float, faults: SimulationFaults) -> None:
        """The guest gives back what it does not need, but for one block that it never lets go of (seen with Linux 6.1)."""
        if self.virtio_target > self.virtio_mem:
            self.virtio_mem = min(self.virtio_target, self.virtio_mem + dt * faults.memory_deflate_bytes_per_s)
            return
        lowest = max(self.virtio_target, float(BLOCK_BYTES), need * WORKING_SET_MARGIN - self.actual - self.dimm)
        if lowest < self.virtio_mem:
            self.virtio_mem = max(lowest, self.virtio_mem - dt * faults.memory_inflate_bytes_per_s)

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
        runnable = min(demand, 1000.0 * (self.vcpus - self.offline))
        if self.quota >= 0:
            periods = dt * 1e6 / self.period_us
            self.periods += periods
            if self.quota < runnable:
                self.throttled_periods += periods
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
        slow = 1
        if self.disk_bytes >= 0 or self.disk_ops >= 0:
            read, write, slow = self._held_back(dt, read, write)
        self.read_ops += read / OP_BYTES * dt
        self.write_ops += write / OP_BYTES * dt
        self.disk_ns[0] += read / OP_BYTES * dt * OP_NS * slow
        self.disk_ns[1] += write / OP_BYTES * dt * OP_NS * slow
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

    def _held_back(self, dt: float, read: float, write: float) -> tuple[float, float, int]:
        """What the disk limits let through of reads and writes, and how many times longer an operation takes."""
        most = min([limit for limit in (self.disk_bytes, self.disk_ops * OP_BYTES) if limit >= 0])
        wanted = read + write
        if wanted <= most:
            return read, write, 1
        share = most / wanted
        self.psi_io_us += (1.0 - share) * dt * 1e6
        return read * share, write * share, OP_WAITING

    def _score(self, dt: float, demand: Demand, granted: float, held: float, memory: float) -> None:
        cpu, need, rx, tx = demand.cpu_millicores, demand.memory_bytes, demand.net_rx_bits_per_s, demand.net_tx_bits_per_s
        most = 1000.0 * (self.vcpus - self.offline)
        quota = min(most, self.quota) if self.quota >= 0 else most
        rx_ceiling = self.net_rx if self.net_rx >= 0 else self.spec.net_max_bits_per_s
        tx_ceiling = self.net_tx if self.net_tx >= 0 else self.spec.net_max_bits_per_s
        allocated, used, unmet, violated = self.allocated, self.used, self.unmet, self.violated_s
        allocated[0] += quota * dt
        allocated[1] += memory * dt
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
        self.oom_kills += 1
        self.epoch += 1
        self._restart_counters(need)


_PLAIN: Final = {  # kinds whose value takes effect as it is
    StepKind.CPU_PERIOD: "period_us",
    StepKind.MEMORY_HIGH: "memory_high",
    StepKind.DISK_BYTES: "disk_bytes",
    StepKind.DISK_OPS: "disk_ops",
    StepKind.DISK_WEIGHT: "disk_weight",
    StepKind.NET_TX_RATE: "tx_rate",
}


def _or_unlimited(value: int | None) -> int:
    return UNLIMITED if value is None else value
