"""The Hypervisor port over libvirt: inventory, allocation read back, and the levers.

Also the DomainSource of sampling. libvirt-python is imported only here and only when a connection is made, so that the agent runs
without it on simulated hosts. Every call may block on a busy domain: the service bounds it. Values are absolute, so a call that met a
lost connection is repeated once on a new one.
libvirt's `vcpu_quota` is per vCPU; ours is over all vCPUs: it is divided among them, and divided anew when one is added.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
import structlog

from agent.adapters.libvirt_xml import DomainDefinition, domain_of, parse_definition, shaping_obstacle
from agent.ports import TrafficShaper
from agent.sampling import cgroup, host, process
from agent.sampling.files import KernelFiles
from agent.sampling.sampler import RunningDomain
from agent.sampling.sched import read_vcpu_threads
from shared.errors import ConfigError, HostError, Refusal
from shared.model import Allocation, Domain, HostCapacity
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, KIB, UNLIMITED

PERIOD_US: Final = 100_000
LEAST_QUOTA_US: Final = 1_000  # the kernel's and libvirt's lower bound: 10 millicores for each vCPU
SHARES: Final = (2, 262_144)
BALLOON_PERIOD_S: Final = 5
_LIVE: Final = 1  # VIR_DOMAIN_AFFECT_LIVE
_RUNNING: Final = (1, 2)  # VIR_DOMAIN_RUNNING, VIR_DOMAIN_BLOCKED
_NO_QUOTA: Final = 17_592_186_044_415  # what libvirt reports where the kernel has no limit
_REFUSALS: Final = {
    3: RefusalCode.NOT_CAPABLE,  # VIR_ERR_NO_SUPPORT
    8: RefusalCode.INVALID_VALUE,  # VIR_ERR_INVALID_ARG
    42: RefusalCode.UNKNOWN_VM,  # VIR_ERR_NO_DOMAIN
    55: RefusalCode.VM_NOT_RUNNING,  # VIR_ERR_OPERATION_INVALID
    67: RefusalCode.NOT_CAPABLE,  # VIR_ERR_CONFIG_UNSUPPORTED
    74: RefusalCode.NOT_CAPABLE,  # VIR_ERR_ARGUMENT_UNSUPPORTED
    84: RefusalCode.NOT_CAPABLE,  # VIR_ERR_OPERATION_UNSUPPORTED
}
_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


class CommitLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the host may be promised to VMs."""

    cpu_commit_ratio: float = 4.0  # sum of quotas, per core
    memory_commit_ratio: float = 1.0  # sum of balloons, per byte after the reserve
    memory_reserve_bytes: int = GIB
    net_bits_per_s: int = 10_000_000_000  # of the uplink


def quota_us(millicores: int, vcpus: int) -> int:
    """Quota of each vCPU in a period of PERIOD_US: 500 millicores on two vCPUs → 25,000 µs each."""
    return round(millicores * PERIOD_US / (1000 * vcpus))


def quota_in_force(parameters: Mapping[str, int], vcpus: int) -> int | None:
    """Millicores that libvirt's scheduler parameters allow over all vCPUs; UNLIMITED, or None where there are no such parameters."""
    if "vcpu_quota" not in parameters:
        return None

    def cpus(scope: str) -> float:
        quota = parameters.get(f"{scope}_quota", -1)
        return float("inf") if not 0 < quota < _NO_QUOTA else quota / (parameters.get(f"{scope}_period") or PERIOD_US)

    return cgroup.quota_millicores([cpus("vcpu")] * vcpus, [cpus("global")])


class LibvirtHypervisor:
    """Implements Hypervisor and sampling's DomainSource."""

    def __init__(
        self,
        uri: str,
        files: KernelFiles,
        shaper: TrafficShaper | None = None,
        limits: CommitLimits | None = None,
    ) -> None:
        """Connects at the first call. Raises ConfigError when libvirt-python is missing."""
        self._libvirt = _import_libvirt()
        self._uri = uri
        self._files = files
        self._shaper = shaper
        self._limits = limits or CommitLimits()
        self._lock = threading.Lock()
        self._connection: Any = None
        self._pids: dict[str, tuple[int, int]] = {}  # VM -> pid, start time

    def close(self) -> None:
        """Close the connection; nothing on the host changes."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except self._libvirt.libvirtError as error:
                _log.warning("libvirt connection did not close", error=str(error))

    # Hypervisor

    def boot_id(self) -> str:
        return host.read_boot_id(self._files)

    def capacity(self) -> HostCapacity:
        """CPUs and memory of the host; commit limits are ratios of them, memory after the host's own reserve."""
        limits, cpu, memory = self._limits, host.cpu_count() * 1000, host.read_memory(self._files).total_bytes
        if memory is None:
            raise HostError(f"{self._files.proc}/meminfo: no MemTotal")
        return HostCapacity(
            cpu_millicores=cpu,
            memory_bytes=memory,
            net_bits_per_s=limits.net_bits_per_s,
            cpu_commit_millicores=max(1, int(cpu * limits.cpu_commit_ratio)),
            memory_commit_bytes=max(1, int((memory - limits.memory_reserve_bytes) * limits.memory_commit_ratio)),
            net_commit_bits_per_s=limits.net_bits_per_s,
        )

    def domains(self) -> Sequence[Domain]:
        """Every domain, running or not. One that vanishes meanwhile is left out."""
        found = self._call(lambda connection: self._definitions(connection, 0))
        return tuple(
            domain_of(definition, running, self._shaper is not None, self._quota_obstacle(definition) if running else None)
            for definition, running in found
        )

    def allocation(self, vm_id: str) -> Allocation:
        """What libvirt, the vCPU threads and the kernel's traffic classes say now. Raises Refusal(UNKNOWN_VM, VM_NOT_RUNNING)."""
        return self._call(lambda connection: self._allocation(self._running(connection, vm_id)))

    def submit(self, vm_id: str, kind: StepKind, value: int) -> None:
        """Ask for `value`, live. Raises HostError or Refusal: no such VM, not running, not capable, no such value, shaped by others."""
        levers: dict[StepKind, Callable[[Any, int], None]] = {
            StepKind.VCPUS: self._add_vcpus,
            StepKind.CPU_QUOTA: self._set_quota,
            StepKind.CPU_SHARES: self._set_shares,
            StepKind.MEMORY: self._set_memory,
            StepKind.NET_RX: lambda domain, bits: self._shape(domain, StepKind.NET_RX, bits),
            StepKind.NET_TX: lambda domain, bits: self._shape(domain, StepKind.NET_TX, bits),
        }
        self._call(lambda connection: levers[kind](self._running(connection, vm_id), value))

    # DomainSource

    def running(self) -> Sequence[RunningDomain]:
        """Running domains for sampling. Switches balloon statistics on where the guest is not asked for any (a poll, no limit)."""
        found = self._call(lambda connection: self._definitions(connection, self._libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE))
        for definition, _ in found:
            if definition.balloon and not definition.balloon_period_s:
                self._ask_for_balloon_statistics(definition)
        return tuple(
            RunningDomain(
                vm_id=definition.vm_id,
                tap=definition.taps[0] if len(definition.taps) == 1 else None,
                vcpus=definition.vcpus,
                disk_limit_bytes_per_s=definition.disk_limit_bytes_per_s,
            )
            for definition, _ in found
        )

    def bulk_stats(self) -> Mapping[str, Mapping[str, object]]:
        """balloon.* and block.* of every running domain, in one call that waits for none: a busy domain's groups are missing."""
        groups = self._libvirt.VIR_DOMAIN_STATS_BALLOON | self._libvirt.VIR_DOMAIN_STATS_BLOCK
        flags = self._libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | self._libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        found = self._call(lambda connection: connection.getAllDomainStats(groups, flags))
        return {domain.UUIDString(): stats for domain, stats in found}

    # Connection and errors

    def _connected(self) -> Any:
        with self._lock:
            if self._connection is None:
                self._connection = self._libvirt.open(self._uri)
            return self._connection

    def _call(self, work: Callable[[Any], _T]) -> _T:
        for attempt in (1, 2):
            connection = None
            try:
                connection = self._connected()
                return work(connection)
            except self._libvirt.libvirtError as error:
                if attempt == 1 and connection is not None and self._drop_dead(connection):
                    continue
                raise translate(error.get_error_code(), str(error), self._uri) from error
            except LookupError as error:  # libvirt-python's answer to a parameter the driver does not have
                raise Refusal(RefusalCode.NOT_CAPABLE, str(error)) from error
        raise AssertionError("unreachable: the second attempt returns or raises")

    def _drop_dead(self, connection: Any) -> bool:
        """Forget the connection if it is dead; whether it was."""
        try:
            if connection.isAlive():
                return False
        except self._libvirt.libvirtError as error:
            _log.info("libvirt connection lost", error=str(error))
        with self._lock:
            if self._connection is connection:
                self._connection = None
        return True

    def _definitions(self, connection: Any, flags: int) -> list[tuple[DomainDefinition, bool]]:
        found = []
        for domain in connection.listAllDomains(flags):
            try:
                definition = parse_definition(domain.XMLDesc(0))
                found.append((definition, domain.info()[0] in _RUNNING))
            except self._libvirt.libvirtError as error:
                if error.get_error_code() != self._libvirt.VIR_ERR_NO_DOMAIN:
                    raise
                continue
            if definition.policy_error is not None:
                _log.warning("policy cannot be read, VM excluded", vm=definition.vm_id, error=definition.policy_error)
        return found

    def _quota_obstacle(self, definition: DomainDefinition) -> str | None:
        """Why the domain can have no CPU quota (no cpu controller, session mode, another driver); None when it can."""
        try:
            parameters = self._call(lambda connection: connection.lookupByUUIDString(definition.vm_id).schedulerParameters())
        except (HostError, Refusal) as error:
            return f"libvirt offers no CPU quota: {error}"[:256]
        return None if "vcpu_quota" in parameters else "libvirt offers no CPU quota for this domain"

    def _running(self, connection: Any, vm_id: str) -> Any:
        try:
            domain = connection.lookupByUUIDString(vm_id)
        except self._libvirt.libvirtError as error:
            if error.get_error_code() in (self._libvirt.VIR_ERR_NO_DOMAIN, self._libvirt.VIR_ERR_INVALID_ARG):
                raise Refusal(RefusalCode.UNKNOWN_VM, f"no domain {vm_id} at {self._uri}") from error
            raise
        if not domain.isActive():
            raise Refusal(RefusalCode.VM_NOT_RUNNING, f"domain {domain.name()} is not running")
        return domain

    # Reading

    def _allocation(self, domain: Any) -> Allocation:
        definition = parse_definition(domain.XMLDesc(0))
        vcpus, parameters = self._vcpus(domain), domain.schedulerParameters()
        actual = domain.memoryStats().get("actual") if definition.balloon else domain.info()[2]
        tap = definition.taps[0] if len(definition.taps) == 1 else None
        ceilings = [
            None if tap is None or self._shaper is None else self._shaper.ceiling(tap, kind) for kind in (StepKind.NET_RX, StepKind.NET_TX)
        ]
        shares, is_v2 = parameters.get("cpu_shares"), self._groups(definition.vm_id).cpu_is_v2
        return Allocation(
            vcpus=vcpus,
            cpu_quota_millicores=quota_in_force(parameters, vcpus),
            cpu_shares=cgroup.shares_of_weight(shares) if is_v2 and shares is not None else shares,
            memory_bytes=None if actual is None else actual * KIB,
            disk_bytes_per_s=definition.disk_limit_bytes_per_s,
            net_rx_bits_per_s=ceilings[0],
            net_tx_bits_per_s=ceilings[1],
        )

    def _vcpus(self, domain: Any) -> int:
        """vCPUs by count of QEMU's threads: after a hot-unplug that timed out, libvirt's own number is stale."""
        known, pid = int(domain.info()[3]), self._pid(domain.UUIDString())
        threads = 0 if pid is None else read_vcpu_threads(self._files, pid).count
        if threads and threads != known:
            _log.warning("libvirt and QEMU disagree about vCPUs", vm=domain.UUIDString(), libvirt=known, threads=threads)
        return threads or known

    def _pid(self, vm_id: str) -> int | None:
        pid, started = self._pids.get(vm_id, (0, 0))
        if pid and process.start_time(self._files, pid) == started:
            return pid
        for uuid, found in process.find_qemu(self._files).items():
            began = process.start_time(self._files, found)
            if began is not None:
                self._pids[uuid] = (found, began)
        pid, started = self._pids.get(vm_id, (0, 0))
        if pid and process.start_time(self._files, pid) == started:
            return pid
        self._pids.pop(vm_id, None)
        return None

    def _groups(self, vm_id: str) -> cgroup.VmGroups:
        pid = self._pid(vm_id)
        return cgroup.VmGroups() if pid is None else cgroup.locate(self._files, pid)

    # Levers

    def _add_vcpus(self, domain: Any, count: int) -> None:
        definition, now = parse_definition(domain.XMLDesc(0)), self._vcpus(domain)
        numbers = {"value": count, "now": now, "maximum": definition.vcpus_max}
        if count > definition.vcpus_max:
            raise Refusal(RefusalCode.ABOVE_DOMAIN_MAXIMUM, f"{count} vCPUs: the domain's maximum is {definition.vcpus_max}", numbers)
        if count < 1:
            raise Refusal(RefusalCode.INVALID_VALUE, f"{count} vCPUs: allowed 1 to {definition.vcpus_max}", numbers)
        if count < now:
            raise Refusal(RefusalCode.NOT_CAPABLE, f"vCPUs are only added, not removed: {now} now, {count} asked for", numbers)
        if count == now:
            return
        quota = quota_in_force(domain.schedulerParameters(), now)
        domain.setVcpusFlags(count, _LIVE)
        if quota is not None and quota != UNLIMITED:
            self._set_quota(domain, max(quota, _least_quota(count)))

    def _set_quota(self, domain: Any, millicores: int) -> None:
        vcpus = self._vcpus(domain)
        if millicores != UNLIMITED and millicores < _least_quota(vcpus):
            numbers = {"value": millicores, "least": _least_quota(vcpus)}
            detail = f"cpu_quota {millicores} millicores: at least {_least_quota(vcpus)} for {vcpus} vCPUs, or {UNLIMITED}"
            raise Refusal(RefusalCode.INVALID_VALUE, detail, numbers)
        parameters = (
            {"vcpu_quota": -1} if millicores == UNLIMITED else {"vcpu_period": PERIOD_US, "vcpu_quota": quota_us(millicores, vcpus)}
        )
        domain.setSchedulerParametersFlags(parameters, _LIVE)

    def _set_shares(self, domain: Any, shares: int) -> None:
        if not SHARES[0] <= shares <= SHARES[1]:
            numbers = {"value": shares, "least": SHARES[0], "most": SHARES[1]}
            raise Refusal(RefusalCode.INVALID_VALUE, f"cpu_shares {shares}: allowed {SHARES[0]} to {SHARES[1]}", numbers)
        weight = cgroup.weight_of_shares(shares) if self._groups(domain.UUIDString()).cpu_is_v2 else shares
        domain.setSchedulerParametersFlags({"cpu_shares": weight}, _LIVE)

    def _set_memory(self, domain: Any, target: int) -> None:
        definition = parse_definition(domain.XMLDesc(0))
        numbers = {"value": target, "maximum": definition.memory_max_bytes}
        obstacle = domain_of(definition, running=True, shaping=True).capabilities.balloon
        if obstacle is not None:
            raise Refusal(RefusalCode.NOT_CAPABLE, obstacle, numbers)
        if target > definition.memory_max_bytes:
            raise Refusal(
                RefusalCode.ABOVE_DOMAIN_MAXIMUM, f"memory {target}: the domain's maximum is {definition.memory_max_bytes}", numbers
            )
        if target < KIB:
            raise Refusal(RefusalCode.INVALID_VALUE, f"memory {target} bytes: allowed {KIB} to {definition.memory_max_bytes}", numbers)
        domain.setMemoryFlags(target // KIB, _LIVE)

    def _shape(self, domain: Any, kind: StepKind, bits_per_s: int) -> None:
        definition = parse_definition(domain.XMLDesc(0))
        obstacle = "the agent shapes no traffic here" if self._shaper is None else shaping_obstacle(definition)
        if self._shaper is None or obstacle is not None:
            code = RefusalCode.FOREIGN_SHAPING if definition.bandwidth else RefusalCode.NOT_CAPABLE
            raise Refusal(code, f"{definition.name}: {obstacle}")
        self._shaper.set_ceiling(definition.taps[0], kind, bits_per_s)

    def _ask_for_balloon_statistics(self, definition: DomainDefinition) -> None:
        try:
            self._call(lambda connection: connection.lookupByUUIDString(definition.vm_id).setMemoryStatsPeriod(BALLOON_PERIOD_S, _LIVE))
        except (HostError, Refusal) as error:
            _log.warning("balloon statistics cannot be switched on", vm=definition.vm_id, error=str(error))
        else:
            _log.info("balloon statistics switched on", vm=definition.vm_id, name=definition.name, period_s=BALLOON_PERIOD_S)


def translate(code: int, message: str, uri: str) -> HostError | Refusal:
    """libvirt's error number as one of ours: a stable refusal where libvirt said no for good, else HostError (try again later)."""
    refusal = RefusalCode.NOT_CAPABLE if "unsupported flags" in message else _REFUSALS.get(code)
    if refusal is None or (refusal is RefusalCode.VM_NOT_RUNNING and "not running" not in message):
        return HostError(f"{uri}: {message} (libvirt error {code})")
    return Refusal(refusal, message)


def _least_quota(vcpus: int) -> int:
    return LEAST_QUOTA_US * vcpus * 1000 // PERIOD_US


def _import_libvirt() -> Any:
    try:
        import libvirt  # noqa: PLC0415  # no wheel exists: only hosts that have libvirt install it
    except ImportError as error:
        raise ConfigError(
            f"hypervisor libvirt: libvirt-python is not installed (pip install 'tidegate[agent,libvirt]'): {error}"
        ) from error
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # errors are raised; libvirt would print each one as well
    return libvirt
