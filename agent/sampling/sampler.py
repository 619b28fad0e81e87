"""The HostReader of a libvirt host: keeps the list of running VMs and reads each kernel interface once per round.

Files give what files can. libvirt is asked for one thing only, its bulk statistics without waiting (balloon, block), in a thread with a
deadline: while it does not answer, everything that comes from files goes on, and the silence is named in `failures`. "Without waiting"
passes by a domain that another call keeps busy. A stuck QEMU hangs the first call, which then is the one that keeps it busy: so a second
call may run beside it, and gets the statistics of all the others.
The list of VMs is renewed on `invalidate()` (lifecycle), when a process vanishes or an unknown domain shows up, and every minute.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Generic, Protocol, TypeVar

import msgspec

from agent.ports import RawHost, RawVm
from agent.sampling import cgroup, host, process
from agent.sampling.block import parse_block
from agent.sampling.files import KernelFiles
from agent.sampling.memory import parse_balloon, read_rss
from agent.sampling.nic import InterfaceCounters, namespace_of, read_interfaces
from agent.sampling.psi import read_group_pressure, read_host_pressure
from agent.sampling.sched import read_vcpu_threads
from shared.clock import Clock
from shared.errors import HostError, Refusal
from shared.plan import StepKind
from shared.units import NS_PER_S, UNLIMITED

LIBVIRT_DEADLINE_S: Final = 2.0  # of a 5 s round
STATS_CALLS: Final = 3  # at once: more than two stuck VMs within one deadline are rare, and libvirtd serves five calls of one client
REFRESH_NS: Final = 60 * NS_PER_S
_TICK_NS: Final = 10_000_000  # USER_HZ is 100 on every Linux architecture that runs KVM

Stats = Mapping[str, object]
Interfaces = dict[int, dict[str, InterfaceCounters]]  # by pid
_T = TypeVar("_T")


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


class DomainSource(Protocol):
    """What sampling asks of the hypervisor. May block; raises HostError."""

    def running(self) -> Sequence[RunningDomain]:
        """Every running domain."""
        ...

    def bulk_stats(self) -> Mapping[str, Stats]:
        """VM -> libvirt's statistics (`balloon.*`, `block.*`), without waiting for a busy domain: its groups are missing then."""
        ...


class ShapingReading(msgspec.Struct, frozen=True, kw_only=True):
    """Our class on one interface and direction."""

    ceiling_bits_per_s: int
    dropped_total: int | None = None  # drops plus overlimits
    overlimits_total: int | None = None
    backlog_bytes: int | None = None  # waiting in the class and its leaf now
    rate_bits_per_s: int | None = None  # what the class is guaranteed


class ShapingSource(Protocol):
    """All of our traffic classes in one round."""

    def readings(self) -> Mapping[tuple[str, StepKind], ShapingReading]:
        """(tap, NET_RX | NET_TX) -> reading; what is not in it is not shaped by us. Raises HostError."""
        ...


class CollectorStat(msgspec.Struct, frozen=True, kw_only=True):
    """Rounds in which a collector succeeded and failed, and how long the last one took."""

    succeeded: int = 0
    failed: int = 0
    seconds: float = 0.0


class _Vm(msgspec.Struct, frozen=True, kw_only=True):
    domain: RunningDomain
    pid: int
    started: int
    groups: cgroup.VmGroups


class Sampler:
    """Implements HostReader. One caller at a time; `invalidate` may come from any thread."""

    def __init__(self, files: KernelFiles, source: DomainSource, clock: Clock, shaping: ShapingSource | None = None) -> None:
        self._files = files
        self._source = source
        self._clock = clock
        self._shaping = shaping
        self._list = _Deadline("domain list", source.running, 1)
        self._stats = _Deadline("bulk statistics", source.bulk_stats, STATS_CALLS)
        self._vms: tuple[_Vm, ...] = ()
        self._stale = threading.Event()
        self._stale.set()
        self._refreshed_ns = 0
        self._failures: dict[str, str] = {}
        self.collector_stats: dict[str, CollectorStat] = {}

    def invalidate(self) -> None:
        """The list of domains may have changed: renew it in the next round."""
        self._stale.set()

    def read(self) -> RawHost:
        """Everything once. Raises HostError only where the host itself cannot be identified."""
        self._failures = {}
        if self._stale.is_set() or self._clock.monotonic_ns() - self._refreshed_ns > REFRESH_NS:
            self._collect("domains", self._refresh, None)
        boot_id = host.read_boot_id(self._files)
        stats: Mapping[str, Stats] = self._collect("libvirt", lambda: self._stats.call(LIBVIRT_DEADLINE_S), {})
        if stats.keys() - {vm.domain.vm_id for vm in self._vms}:
            self.invalidate()
        shaping: Mapping[tuple[str, StepKind], ShapingReading] | None = (
            None if self._shaping is None else self._collect("shaping", self._shaping.readings, None)
        )
        no_interfaces: Interfaces = {}
        interfaces = self._collect("nic", self._read_interfaces, no_interfaces)
        wall_ns, monotonic_ns = self._clock.wall_ns(), self._clock.monotonic_ns()
        no_vms: tuple[RawVm, ...] = ()
        vms = self._collect("vms", lambda: self._read_vms(boot_id, stats, interfaces, shaping), no_vms)
        memory = self._collect("memory", lambda: host.read_memory(self._files), host.HostMemory())
        return RawHost(
            wall_ns=wall_ns,
            monotonic_ns=monotonic_ns,
            boot_id=boot_id,
            cpu_busy_ns_total=self._collect("cpu", host.read_cpu_busy_ns, None),
            memory_available_bytes=memory.available_bytes,
            psi_cpu_some_us_total=self._collect("psi_cpu", lambda: read_host_pressure(self._files, "cpu").some_us_total, None),
            psi_memory_some_us_total=self._collect("psi_memory", lambda: read_host_pressure(self._files, "memory").some_us_total, None),
            vms=vms,
            failures=dict(self._failures),
        )

    def _collect(self, name: str, collector: Callable[[], _T], missing: _T) -> _T:
        began = self._clock.monotonic_ns()
        old = self.collector_stats.get(name, CollectorStat())
        try:
            value = collector()
            succeeded, failed = old.succeeded + 1, old.failed
        except (HostError, Refusal) as error:  # a refusal: this hypervisor does not have what was asked
            self._failures[name] = str(error)
            value, succeeded, failed = missing, old.succeeded, old.failed + 1
        seconds = (self._clock.monotonic_ns() - began) / NS_PER_S
        self.collector_stats[name] = CollectorStat(succeeded=succeeded, failed=failed, seconds=seconds)
        return value

    def _refresh(self) -> None:
        self._stale.clear()
        try:
            domains = self._list.call(LIBVIRT_DEADLINE_S)
        except (HostError, Refusal):
            self._stale.set()  # the old list stays in use
            raise
        pids = process.find_qemu(self._files)
        vms = []
        for domain in domains:
            pid = pids.get(domain.vm_id)
            started = None if pid is None else process.start_time(self._files, pid)
            if pid is None or started is None:
                self._failures[domain.vm_id] = "no QEMU process carries this domain's UUID"
                self._stale.set()
                continue
            vms.append(_Vm(domain=domain, pid=pid, started=started, groups=cgroup.locate(self._files, pid)))
        self._vms = tuple(vms)
        self._refreshed_ns = self._clock.monotonic_ns()

    def _read_interfaces(self) -> Interfaces:
        """pid -> interfaces of its network namespace; each namespace is read once."""
        by_namespace: dict[str, dict[str, InterfaceCounters]] = {}
        by_pid = {}
        for vm in self._vms:
            namespace = namespace_of(self._files, vm.pid)
            if namespace is None:
                continue
            if namespace not in by_namespace:
                by_namespace[namespace] = read_interfaces(self._files, vm.pid)
            by_pid[vm.pid] = by_namespace[namespace]
        return by_pid

    def _read_vms(
        self,
        boot_id: str,
        stats: Mapping[str, Stats],
        interfaces: Interfaces,
        shaping: Mapping[tuple[str, StepKind], ShapingReading] | None,
    ) -> tuple[RawVm, ...]:
        vms = []
        for vm in self._vms:
            vm_id = vm.domain.vm_id
            try:
                if process.start_time(self._files, vm.pid) != vm.started:
                    raise HostError(f"QEMU process {vm.pid} is gone")
                nic = interfaces.get(vm.pid, {}).get(vm.domain.tap or "")
                vms.append(self._read_vm(vm, f"{boot_id}:{vm.pid}:{vm.started}", stats.get(vm_id, {}), nic, shaping))
            except HostError as error:
                self._failures[vm_id] = str(error)
                self.invalidate()
        return tuple(vms)

    def _read_vm(
        self,
        vm: _Vm,
        epoch: str,
        stats: Stats,
        nic: InterfaceCounters | None,
        shaping: Mapping[tuple[str, StepKind], ShapingReading] | None,
    ) -> RawVm:
        files, groups = self._files, vm.groups
        cpu = cgroup.read_cpu(files, groups)
        used = cpu.used_ns_total
        if used is None:
            ticks = process.cpu_ticks(files, vm.pid)
            used = None if ticks is None else ticks * _TICK_NS
        threads = read_vcpu_threads(files, vm.pid)
        pressure = {resource: read_group_pressure(files, groups.unified, resource) for resource in ("cpu", "memory", "io")}
        balloon = parse_balloon(stats)
        read, written = parse_block(stats)
        faults = process.major_faults(files, vm.pid)
        receive = _shaped(shaping, vm.domain.tap, StepKind.NET_RX)
        send = _shaped(shaping, vm.domain.tap, StepKind.NET_TX)
        return RawVm(
            vm_id=vm.domain.vm_id,
            epoch=epoch,
            cpu_used_ns_total=used,
            throttled_ns_total=cpu.throttled_ns_total,
            run_delay_ns_total=threads.delay_ns_total,
            psi_cpu_some_us_total=pressure["cpu"].some_us_total,
            psi_memory_some_us_total=pressure["memory"].some_us_total,
            psi_memory_full_us_total=pressure["memory"].full_us_total,
            psi_io_some_us_total=pressure["io"].some_us_total,
            memory_actual_bytes=balloon.actual_bytes,
            memory_usable_bytes=balloon.usable_bytes,
            memory_unused_bytes=balloon.unused_bytes,
            memory_rss_bytes=read_rss(files, vm.pid),
            memory_reading_wall_ns=balloon.reading_wall_ns,
            # waits for a disk inside the guest and below it; only together, or the guest's share would come and go as a jump
            major_faults_total=None if faults is None or balloon.major_faults_total is None else faults + balloon.major_faults_total,
            swap_bytes_total=balloon.swap_bytes_total,
            disk_read_bytes_total=read,
            disk_write_bytes_total=written,
            net_rx_bytes_total=None if nic is None else nic.tx_bytes_total,
            net_tx_bytes_total=None if nic is None else nic.rx_bytes_total,
            net_rx_dropped_total=None if receive is None else receive.dropped_total,
            net_tx_dropped_total=None if send is None else send.dropped_total,
            vcpus=threads.count or vm.domain.vcpus,
            cpu_quota_millicores=cpu.quota_millicores,
            cpu_shares=cpu.shares,
            disk_limit_bytes_per_s=vm.domain.disk_limit_bytes_per_s,
            net_rx_ceil_bits_per_s=None if receive is None else receive.ceiling_bits_per_s,
            net_tx_ceil_bits_per_s=None if send is None else send.ceiling_bits_per_s,
        )


def _shaped(shaping: Mapping[tuple[str, StepKind], ShapingReading] | None, tap: str | None, kind: StepKind) -> ShapingReading | None:
    """None = not known; a tap that we do not shape is known to be without a ceiling of ours."""
    if shaping is None or tap is None:
        return None
    return shaping.get((tap, kind), ShapingReading(ceiling_bits_per_s=UNLIMITED))


class _Deadline(Generic[_T]):
    """Runs a blocking call in a thread and stops waiting for it after a while; never more than `most` such threads at a time."""

    def __init__(self, name: str, blocking: Callable[[], _T], most: int) -> None:
        self._name = name
        self._blocking = blocking
        self._most = most
        self._hanging: list[threading.Thread] = []

    def call(self, seconds: float) -> _T:
        """The call's value. Raises its error, or a HostError of our own when it is late or too many earlier ones still hang."""
        self._hanging = [thread for thread in self._hanging if thread.is_alive()]
        if len(self._hanging) >= self._most:
            raise HostError(f"{self._name}: {self._most} earlier calls have not returned yet")
        values: list[_T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                values.append(self._blocking())
            except BaseException as error:  # noqa: BLE001  # handed to the caller, who raises it
                errors.append(error)

        thread = threading.Thread(target=work, name=f"tidegate {self._name}", daemon=True)
        thread.start()
        thread.join(seconds)
        if errors:
            raise errors[0]
        if not values:
            self._hanging.append(thread)
            raise HostError(f"{self._name}: no answer within {seconds} s")
        return values[0]
