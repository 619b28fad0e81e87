"""The HostReader of a libvirt host: keeps the list of running VMs and reads each kernel interface once per round.

Files give what files can. libvirt is asked for one thing only, its bulk statistics without waiting (balloon, block), in a thread with a
deadline: while it does not answer, everything that comes from files goes on, and the silence is named in `failures`. "Without waiting"
passes by a domain that another call keeps busy. A stuck QEMU hangs the first call, which then is the one that keeps it busy: so a second
call may run beside it, and gets the statistics of all the others. It goes out to one QEMU after another (2 ms each), so the last look
before a round sends it ahead, like the list of VMs when it is due, and the round itself waits for nobody.
The list of VMs is renewed on `invalidate()` (lifecycle), when a process vanishes or an unknown domain shows up, and every minute.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec

from agent.ports import REBOOTS, NumaNode, PerfCounts, RawHost, RawVm
from agent.sampling import cgroup, host, process
from agent.sampling.deadline import Deadline
from agent.sampling.files import KeptFile, KernelFiles
from agent.sampling.nic import InterfaceCounters, namespace_of, parse_net_dev, read_default_interface
from agent.sampling.psi import RESOURCES, Pressure
from agent.sampling.vm_reader import Beside, RunningDomain, ShapingReading, Stats, VmReader
from shared.clock import Clock
from shared.errors import HostError, Refusal
from shared.plan import StepKind
from shared.units import NS_PER_S, UNLIMITED

__all__ = [
    "CollectorStat",
    "DomainSource",
    "PerfReader",
    "RunningDomain",
    "Sampler",
    "ShapingReading",
    "ShapingSource",
    "Stats",
    "VmFigure",
]

LIBVIRT_DEADLINE_S: Final = 2.0  # of a 5 s round
STATS_CALLS: Final = 4  # at once: three that hang at a stuck VM are rare, and libvirtd serves five calls of one connection
REFRESH_NS: Final = 60 * NS_PER_S

_OWN: Final = "self"  # the agent's own network namespace, where the uplink is
_T = TypeVar("_T")
Shaping = Mapping[tuple[str, StepKind], ShapingReading]


class DomainSource(Protocol):
    """What sampling asks of the hypervisor. May block; raises HostError."""

    def running(self) -> Sequence[RunningDomain]:
        """Every running domain."""
        ...

    def bulk_stats(self) -> Mapping[str, Stats]:
        """VM -> libvirt's statistics (`balloon.*`, `block.*`), without waiting for a busy domain: its groups are missing then."""
        ...


class ShapingSource(Protocol):
    """All of our traffic classes in one round."""

    def readings(self) -> Mapping[tuple[str, StepKind], ShapingReading]:
        """(tap, NET_RX | NET_TX) -> reading; what is not in it is not shaped by us. Raises HostError."""
        ...


class PerfReader(Protocol):
    """Event counters of VMs. `read` opens what is not open yet."""

    def read(self, vm_id: str, pid: int, tids: Sequence[int], cgroup_dir: Path | None) -> PerfCounts | None:
        """Counters now; None where this host has none for the VM. Raises HostError."""
        ...

    def forget(self, vm_id: str) -> None:
        """Close what is open for a VM that is gone."""
        ...


class VmFigure(Protocol):
    """A figure of a VM that is measured elsewhere, in its own time."""

    def newest(self, vm_id: str) -> int | None:
        """The newest value; None when there is none (any more)."""
        ...


class CollectorStat(msgspec.Struct, frozen=True, kw_only=True):
    """Rounds in which a collector succeeded and failed, and how long the last one took."""

    succeeded: int = 0
    failed: int = 0
    seconds: float = 0.0


class Sampler:
    """Implements HostReader. One caller at a time (`read` and `subsample` from one thread); `invalidate` may come from any thread."""

    def __init__(
        self,
        files: KernelFiles,
        source: DomainSource,
        clock: Clock,
        shaping: ShapingSource | None = None,
        *,
        uplink: str = "",
        perf: PerfReader | None = None,
        guest_oom_kills: VmFigure | None = None,
        dirty_rate: VmFigure | None = None,
        numa: Callable[[KernelFiles], tuple[NumaNode, ...]] | None = None,
        kvm: Callable[[Stats], dict[str, int]] | None = None,
    ) -> None:
        """`uplink`: the interface whose counters are the host's; empty = that of the default route. None = this collector is absent."""
        self._files = files
        self._source = source
        self._clock = clock
        self._shaping = shaping
        self._uplink_set = uplink
        self._uplink: str | None = uplink or None
        self._perf = perf
        self._guest_oom_kills = guest_oom_kills
        self._dirty_rate = dirty_rate
        self._numa = numa
        self._kvm = kvm
        self._host = host.HostFiles(files)
        self._list = Deadline("domain list", source.running, 1)
        self._stats = Deadline("bulk statistics", source.bulk_stats, STATS_CALLS)
        self._vms: dict[str, VmReader] = {}
        self._interfaces: dict[str, tuple[KeptFile, frozenset[str]]] = {}  # namespace -> its net/dev, the interfaces wanted of it
        self._namespaces: dict[str, str] = {}  # VM -> namespace
        self._nodes: tuple[NumaNode, ...] = ()
        self._stale = threading.Event()
        self._stale.set()
        self._refreshed_ns = 0
        self._failures: dict[str, str] = {}
        self._list_ahead = False
        self._asked_ns: int | None = None  # when the statistics that were sent for ahead were asked for
        self._read_ns = 0
        self._period_ns = 0
        self._looked_ns = 0
        self.collector_stats: dict[str, CollectorStat] = {}

    def invalidate(self) -> None:
        """The list of domains may have changed: renew it in the next round."""
        self._stale.set()

    def subsample(self) -> None:
        """Look at CPU use and run delay of every VM; the next round carries the peaks. A VM that cannot be read is left to the round."""
        now_ns = self._clock.monotonic_ns()
        for vm in self._vms.values():
            try:
                vm.subsample(self._clock.monotonic_ns())
            except HostError:
                self.invalidate()  # the next round says what is wrong with it
        gap_ns, self._looked_ns = now_ns - max(self._looked_ns, self._read_ns), now_ns
        due_ns = self._read_ns + self._period_ns
        # Another look would fit in half a gap before the round: then this one is not the last.
        if not self._period_ns or now_ns + gap_ns * 3 // 2 <= due_ns:
            return
        if self._stats.start():
            self._asked_ns = now_ns
        if self._wants_list(due_ns) and self._list.start():
            self._stale.clear()  # what changes from now on is not in this list any more
            self._list_ahead = True

    def read(self) -> RawHost:
        """Everything once. Raises HostError only where the host itself cannot be identified."""
        self._failures = {}
        if self._list_ahead or self._wants_list(self._clock.monotonic_ns()):
            self._collect("domains", self._refresh, None)
        boot_id = self._host.boot_id()
        asked_ns, self._asked_ns = self._asked_ns or self._clock.monotonic_ns(), None
        stats: Mapping[str, Stats] = self._collect("libvirt", lambda: self._stats.call(LIBVIRT_DEADLINE_S), {})
        if stats.keys() - self._vms.keys():
            self.invalidate()
        shaping: Shaping | None = None if self._shaping is None else self._collect("shaping", self._shaping.readings, None)
        no_interfaces: dict[str, dict[str, InterfaceCounters]] = {}
        interfaces = self._collect("nic", self._read_interfaces, no_interfaces)
        no_perf: dict[str, PerfCounts] = {}
        perf = no_perf if self._perf is None else self._collect("perf", self._read_perf, no_perf)
        wall_ns, monotonic_ns = self._clock.wall_ns(), self._clock.monotonic_ns()
        self._period_ns = monotonic_ns - self._read_ns if self._read_ns else 0
        self._read_ns = monotonic_ns

        def beside(vm_id: str, tap: str | None) -> Beside:
            statistics = stats.get(vm_id, _NO_STATS)
            return Beside(
                stats=statistics,
                nic=None if tap is None else interfaces.get(self._namespaces.get(vm_id, ""), {}).get(tap),
                receive=_shaped(shaping, tap, StepKind.NET_RX),
                send=_shaped(shaping, tap, StepKind.NET_TX),
                perf=perf.get(vm_id),
                kvm={} if self._kvm is None else self._kvm(statistics),
                guest_oom_kills=None if self._guest_oom_kills is None else self._guest_oom_kills.newest(vm_id),
                dirty_bytes_per_s=None if self._dirty_rate is None else self._dirty_rate.newest(vm_id),
            )

        no_vms: tuple[RawVm, ...] = ()
        vms = self._collect("vms", lambda: self._read_vms(boot_id, beside), no_vms)
        cpu = self._collect("cpu", self._host.cpu, host.HostCpu())
        memory = self._collect("memory", self._host.memory, host.HostMemory())
        pressure = {name: self._collect(f"psi_{name}", partial(self._host.pressure, name), Pressure()).some_us_total for name in RESOURCES}
        uplink = interfaces.get(_OWN, {}).get(self._uplink or "")
        return RawHost(
            wall_ns=wall_ns,
            monotonic_ns=monotonic_ns,
            boot_id=boot_id,
            statistics_monotonic_ns=asked_ns,
            cpu_busy_ns_total=cpu.busy_ns_total,
            cpu_steal_ns_total=cpu.steal_ns_total,
            memory_available_bytes=memory.available_bytes,
            hugepages_total=memory.hugepages_total,
            hugepages_free=memory.hugepages_free,
            memory_overhead_bytes=_overhead(vms),
            psi_cpu_some_us_total=pressure["cpu"],
            psi_memory_some_us_total=pressure["memory"],
            psi_io_some_us_total=pressure["io"],
            net_rx_bytes_total=None if uplink is None else uplink.rx_bytes_total,
            net_tx_bytes_total=None if uplink is None else uplink.tx_bytes_total,
            net_dropped_total=None if uplink is None else uplink.rx_dropped_total + uplink.tx_dropped_total,
            numa=self._nodes,
            vms=vms,
            failures=dict(self._failures),
        )

    def close(self) -> None:
        """Give all descriptors back."""
        for vm in self._vms.values():
            vm.close()
        for file, _ in self._interfaces.values():
            file.close()
        self._vms, self._interfaces = {}, {}
        self._stale.set()

    def _collect(self, name: str, collector: Callable[[], _T], missing: _T) -> _T:
        began = self._clock.monotonic_ns()
        old = self.collector_stats.get(name) or CollectorStat()
        try:
            value = collector()
            succeeded, failed = old.succeeded + 1, old.failed
        except (HostError, Refusal) as error:  # a refusal: this hypervisor does not have what was asked
            self._failures[name] = str(error)
            value, succeeded, failed = missing, old.succeeded, old.failed + 1
        seconds = (self._clock.monotonic_ns() - began) / NS_PER_S
        self.collector_stats[name] = CollectorStat(succeeded=succeeded, failed=failed, seconds=seconds)
        return value

    def _wants_list(self, at_ns: int) -> bool:
        return self._stale.is_set() or at_ns - self._refreshed_ns > REFRESH_NS

    def _refresh(self) -> None:
        if not self._list_ahead:
            self._stale.clear()
        self._list_ahead = False
        try:
            domains = self._list.call(LIBVIRT_DEADLINE_S)
        except (HostError, Refusal):
            self._stale.set()  # the old list stays in use
            raise
        alive = {vm_id: (vm.pid, vm.started) for vm_id, vm in self._vms.items() if vm.is_alive()}
        # a domain keeps its process as long as that lives: all of /proc is gone through only for those that have none yet
        found = {} if alive.keys() >= {domain.vm_id for domain in domains} else process.find_qemu(self._files)
        mounts = cgroup.read_mounts(self._files)
        vms = {}
        for domain in domains:
            pid, started = alive.get(domain.vm_id, (found.get(domain.vm_id), None))
            if pid is not None and started is None:
                started = process.start_time(self._files, pid)
            if pid is None or started is None:
                self._failures[domain.vm_id] = "no QEMU process carries this domain's UUID"
                self._stale.set()
                continue
            groups = cgroup.locate(self._files, pid, mounts)
            vm = self._vms.pop(domain.vm_id, None)
            if vm is not None and (vm.pid, vm.started, vm.groups) != (pid, started, groups):
                self._forget(vm)
                vm = None
            if vm is None:
                vm = VmReader(self._files, domain, pid, started, groups)
            vm.domain = domain
            vm.retry()
            vms[domain.vm_id] = vm
        for gone in self._vms.values():
            self._forget(gone)
        self._vms = vms
        self._find_interfaces()
        self._nodes = () if self._numa is None else self._numa(self._files)
        self._refreshed_ns = self._clock.monotonic_ns()

    def _forget(self, vm: VmReader) -> None:
        vm.close()
        if self._perf is not None:
            self._perf.forget(vm.domain.vm_id)

    def _find_interfaces(self) -> None:
        """One file for each network namespace: QEMU does not leave the one it was started in."""
        self._uplink = self._uplink_set or read_default_interface(self._files)
        own = namespace_of(self._files, "self") or _OWN
        wanted: dict[str, set[str]] = {_OWN: {self._uplink} if self._uplink else set()}
        through: dict[str, str] = {_OWN: "self"}
        self._namespaces = {}
        for vm_id, vm in self._vms.items():
            namespace = namespace_of(self._files, vm.pid)
            if namespace is None or vm.domain.tap is None:
                continue
            key = _OWN if namespace == own else namespace
            self._namespaces[vm_id] = key
            wanted.setdefault(key, set()).add(vm.domain.tap)
            through.setdefault(key, str(vm.pid))
        for file, _ in self._interfaces.values():
            file.close()
        self._interfaces = {
            key: (self._files.opened(self._files.proc / through[key] / "net" / "dev"), frozenset(names)) for key, names in wanted.items()
        }

    def _read_interfaces(self) -> dict[str, dict[str, InterfaceCounters]]:
        return {key: parse_net_dev(file.read() or b"", names) for key, (file, names) in self._interfaces.items() if names}

    def _read_perf(self) -> dict[str, PerfCounts]:
        found = {}
        for vm_id, vm in self._vms.items():
            counts = None if self._perf is None else self._perf.read(vm_id, vm.pid, vm.tids, vm.directory)
            if counts is not None:
                found[vm_id] = counts
        return found

    def _read_vms(self, boot_id: str, beside: Callable[[str, str | None], Beside]) -> tuple[RawVm, ...]:
        vms = []
        for vm_id, vm in self._vms.items():
            try:
                reboots = vm.domain.reboots
                epoch = f"{boot_id}:{vm.pid}:{vm.started}" + (f"{REBOOTS}{reboots}" if reboots else "")
                vms.append(vm.read(epoch, self._clock.monotonic_ns(), beside(vm_id, vm.domain.tap)))
            except HostError as error:
                self._failures[vm_id] = str(error)
                self.invalidate()
        return tuple(vms)


_NO_STATS: Final[Stats] = {}


def _shaped(shaping: Shaping | None, tap: str | None, kind: StepKind) -> ShapingReading | None:
    """None = not known; a tap that we do not shape is known to be without a ceiling of ours."""
    if shaping is None or tap is None:
        return None
    return shaping.get((tap, kind), _UNSHAPED)


_UNSHAPED: Final = ShapingReading(ceiling_bits_per_s=UNLIMITED, rate_bits_per_s=0)


def _overhead(vms: Sequence[RawVm]) -> int | None:
    """What QEMU processes hold beyond their guests' memory; too little as long as guests have not touched all of theirs."""
    known = [
        max(0, vm.memory_rss_bytes - vm.memory_actual_bytes)
        for vm in vms
        if vm.memory_rss_bytes is not None and vm.memory_actual_bytes is not None
    ]
    return sum(known) if len(known) == len(vms) else None
