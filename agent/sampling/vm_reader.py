"""Everything that kernel files say of one VM: its kept files, and one RawVm per round out of them and what others have read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from agent.ports import PerfCounts, RawVm
from agent.sampling.block import GroupWeight, parse_block
from agent.sampling.cgroup import VmGroups
from agent.sampling.files import KernelFiles, Watched
from agent.sampling.group_cpu import GroupCpu, may_throttle
from agent.sampling.host import TICK_NS
from agent.sampling.memory import GroupMemory, parse_balloon
from agent.sampling.nic import InterfaceCounters
from agent.sampling.peaks import Peaks
from agent.sampling.process import ProcessStat, parse_stat
from agent.sampling.psi import RESOURCES, Pressure, watch_pressure
from agent.sampling.sched import ThreadFiles
from shared.errors import HostError

Stats = Mapping[str, object]


class RunningDomain(msgspec.Struct, frozen=True, kw_only=True):
    """A running domain as far as sampling needs it."""

    vm_id: str
    tap: str | None = None
    vcpus: int | None = None
    disk_limit_bytes_per_s: int | None = None
    disk_ops_limit_per_s: int | None = None
    disk_weight: int | None = None
    virtio_mem_bytes: int | None = None
    dimm_bytes: int | None = None
    vcpus_online: int | None = None
    reboots: int = 0  # of the guest inside its QEMU, as far as the hypervisor told


class ShapingReading(msgspec.Struct, frozen=True, kw_only=True):
    """Our class on one interface and direction."""

    ceiling_bits_per_s: int
    dropped_total: int | None = None  # drops plus overlimits
    overlimits_total: int | None = None
    backlog_bytes: int | None = None  # waiting in the class and its leaf now
    rate_bits_per_s: int | None = None  # what the class is guaranteed


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """What a round has read of one VM elsewhere than in its own files."""

    stats: Stats = {}
    nic: InterfaceCounters | None = None
    receive: ShapingReading | None = None  # None = not known
    send: ShapingReading | None = None
    perf: PerfCounts | None = None
    kvm: dict[str, int] = {}
    guest_oom_kills: int | None = None
    dirty_bytes_per_s: int | None = None


class VmReader:
    """One QEMU process. Bound to that process: when it is gone, `read` raises HostError, also if another one has taken its pid."""

    def __init__(self, files: KernelFiles, domain: RunningDomain, pid: int, started: int, groups: VmGroups) -> None:
        self.domain = domain
        self.pid = pid
        self.started = started
        self.groups = groups
        self._stat: Watched[ProcessStat | None] = Watched(files.opened(files.proc / str(pid) / "stat"), parse_stat, None)
        self._cpu = GroupCpu(files, groups)
        self._memory = GroupMemory(files, groups)
        self._weight = GroupWeight(files, groups)
        self._threads = ThreadFiles(files, pid)
        self._pressure: tuple[Watched[Pressure], ...] = ()
        if groups.unified is not None:
            self._pressure = tuple(watch_pressure(files, groups.unified / f"{name}.pressure") for name in RESOURCES)
        self._peaks = Peaks()
        self._throttles = True
        self._used: int | None = None

    @property
    def tids(self) -> tuple[int, ...]:
        """Threads of the vCPUs as of the newest reading."""
        return self._threads.tids

    @property
    def directory(self) -> Path | None:
        """The VM's cgroup v2 directory."""
        return self.groups.unified

    def is_alive(self) -> bool:
        """Whether it is still this process that has the pid."""
        process = self._stat.read()
        return process is not None and process.started == self.started

    def subsample(self, now_ns: int) -> None:
        """Look at CPU use and run delay between two rounds."""
        used, throttled = self._cpu.read_use(self._throttles)
        delay = self._threads.delay_ns(has_run=self._has_run(used))
        if used is not None or delay is not None:
            self._peaks.look(now_ns, used, delay, throttled)

    def _has_run(self, used_ns_total: int | None) -> bool:
        """Whether any of its threads has run since this was asked last, or may have."""
        before, self._used = self._used, used_ns_total
        return used_ns_total is None or used_ns_total != before

    def read(self, epoch: str, now_ns: int, beside: Beside) -> RawVm:
        """One reading at monotonic `now_ns`. Raises HostError when the process is gone or one of its files cannot be read."""
        process = self._stat.read()
        if process is None or process.started != self.started:
            raise HostError(f"QEMU process {self.pid} is gone")
        cpu = self._cpu.read()
        threads = self._threads.read((process.threads, self._cpu.vcpu_groups), has_run=self._has_run(cpu.used_ns_total))
        used = process.ticks * TICK_NS if cpu.used_ns_total is None else cpu.used_ns_total
        self._throttles = may_throttle(cpu.quota_millicores)
        self._peaks.look(now_ns, cpu.used_ns_total, threads.delay_ns_total, cpu.throttled_ns_total if self._throttles else None)
        used_peak, ready_peak = self._peaks.take()
        on_cpu, on_memory, on_io = (file.read() for file in self._pressure) if self._pressure else (Pressure(),) * 3
        memory = self._memory.read(on_memory.some_us_total)
        balloon, disks = parse_balloon(beside.stats), parse_block(beside.stats)
        nic, receive, send, domain = beside.nic, beside.receive, beside.send, self.domain
        weight = self._weight.read()
        return RawVm(
            vm_id=domain.vm_id,
            epoch=epoch,
            cpu_used_ns_total=used,
            throttled_ns_total=cpu.throttled_ns_total,
            run_delay_ns_total=threads.delay_ns_total,
            psi_cpu_some_us_total=on_cpu.some_us_total,
            psi_memory_some_us_total=on_memory.some_us_total,
            psi_memory_full_us_total=on_memory.full_us_total,
            psi_io_some_us_total=on_io.some_us_total,
            memory_actual_bytes=balloon.actual_bytes,
            memory_usable_bytes=balloon.usable_bytes,
            memory_unused_bytes=balloon.unused_bytes,
            memory_rss_bytes=process.rss_bytes,
            memory_reading_wall_ns=balloon.reading_wall_ns,
            # waits for a disk inside the guest and below it; only together, or the guest's share would come and go as a jump
            major_faults_total=None if balloon.major_faults_total is None else process.major_faults + balloon.major_faults_total,
            swap_bytes_total=balloon.swap_bytes_total,
            disk_read_bytes_total=disks.read_bytes_total,
            disk_write_bytes_total=disks.write_bytes_total,
            net_rx_bytes_total=None if nic is None else nic.tx_bytes_total,
            net_tx_bytes_total=None if nic is None else nic.rx_bytes_total,
            net_rx_dropped_total=None if receive is None else receive.dropped_total,
            net_tx_dropped_total=None if send is None else send.dropped_total,
            vcpus=threads.count or domain.vcpus,
            cpu_quota_millicores=cpu.quota_millicores,
            cpu_shares=cpu.shares,
            disk_limit_bytes_per_s=domain.disk_limit_bytes_per_s,
            net_rx_ceil_bits_per_s=None if receive is None else receive.ceiling_bits_per_s,
            net_tx_ceil_bits_per_s=None if send is None else send.ceiling_bits_per_s,
            periods_total=cpu.periods_total,
            throttled_periods_total=cpu.throttled_periods_total,
            cpu_used_peak_millicores=used_peak,
            cpu_ready_peak_permille=ready_peak,
            psi_cpu_full_us_total=on_cpu.full_us_total,
            psi_io_full_us_total=on_io.full_us_total,
            memory_current_bytes=memory.current_bytes,
            memory_anon_bytes=memory.stat.anon_bytes,
            memory_file_bytes=memory.stat.file_bytes,
            memory_high_events_total=memory.high_events_total,
            memory_refaults_total=memory.stat.refaults,
            disk_read_ops_total=disks.read_ops_total,
            disk_write_ops_total=disks.write_ops_total,
            disk_read_time_ns_total=disks.read_time_ns_total,
            disk_write_time_ns_total=disks.write_time_ns_total,
            net_rx_packets_total=None if nic is None else nic.tx_packets_total,
            net_tx_packets_total=None if nic is None else nic.rx_packets_total,
            net_rx_tap_dropped_total=None if nic is None else nic.tx_dropped_total,
            net_tx_tap_dropped_total=None if nic is None else nic.rx_dropped_total,
            net_rx_overlimits_total=None if receive is None else receive.overlimits_total,
            net_tx_overlimits_total=None if send is None else send.overlimits_total,
            net_rx_backlog_bytes=None if receive is None else receive.backlog_bytes,
            net_tx_backlog_bytes=None if send is None else send.backlog_bytes,
            dirty_bytes_per_s=beside.dirty_bytes_per_s,
            guest_oom_kills_total=beside.guest_oom_kills,
            perf=beside.perf,
            kvm=beside.kvm,
            vcpus_online=domain.vcpus_online,
            cpu_period_us=cpu.period_us,
            virtio_mem_bytes=domain.virtio_mem_bytes,
            dimm_bytes=domain.dimm_bytes,
            memory_high_bytes=memory.high_bytes,
            disk_ops_limit_per_s=domain.disk_ops_limit_per_s,
            disk_weight=domain.disk_weight if weight is None else weight,
            net_tx_rate_bits_per_s=None if send is None else send.rate_bits_per_s,
        )

    def retry(self) -> None:
        """Look again for files that were absent: a controller may have been switched on meanwhile."""
        self._cpu.retry()
        self._memory.retry()
        self._weight.retry()
        self._threads.retry()
        for file in self._pressure:
            file.retry()

    def close(self) -> None:
        """Give all descriptors back."""
        self._stat.close()
        self._cpu.close()
        self._memory.close()
        self._weight.close()
        self._threads.close()
        for file in self._pressure:
            file.close()
