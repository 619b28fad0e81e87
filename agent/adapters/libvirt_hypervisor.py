"""The Hypervisor port over libvirt: inventory, allocation read back, and `submit`, which hands on to the levers.

Also the DomainSource of sampling. Every call may block on a busy domain: the service bounds it.
libvirt's `vcpu_quota` is per vCPU; ours is over all vCPUs: it is divided among them, and divided anew when one comes or goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import structlog

from agent.adapters.libvirt_capabilities import HostFacts, agent_obstacle, domain_of, parse_file_systems, shaping_obstacle
from agent.adapters.libvirt_connection import LIVE, LibvirtConnection, translate
from agent.adapters.libvirt_inventory import Inventory, Known, read_weight
from agent.adapters.libvirt_levers import LEVERS, Target, quota_in_force, settle_quota
from agent.adapters.libvirt_xml import DomainDefinition, parse_definition
from agent.ports import TrafficShaper
from agent.sampling import cgroup, host, process
from agent.sampling.files import KernelFiles, read_int
from agent.sampling.numa import read_numa
from agent.sampling.sampler import RunningDomain
from agent.sampling.sched import read_vcpu_threads
from shared.errors import HostError, Refusal
from shared.model import Allocation, Domain, HostCapacity
from shared.plan import StepKind
from shared.units import GIB, KIB, UNLIMITED

BALLOON_PERIOD_S: Final = 5
ONLINE_FRESH_S: Final = 30.0  # the guest agent is asked at most this often, and a silent one costs its 5 s no more often than this ...
ONLINE_MOVING_S: Final = 30.0  # ... but each second for this long after a step that changes what is online: a guest takes seconds
_log = structlog.get_logger(__name__)


class CommitLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the host may be promised to VMs."""

    cpu_commit_ratio: float = 4.0  # sum of quotas, per core
    memory_commit_ratio: float = 1.0  # sum of balloons, per byte after the reserve
    memory_reserve_bytes: int = GIB
    net_bits_per_s: int = 10_000_000_000  # of the uplink


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
        self._inventory = Inventory()
        self._connection = LibvirtConnection(uri, self._inventory.changed, self._inventory.rebooted)
        self._libvirt = self._connection.libvirt
        self._files = files
        self._shaper = shaper
        self._limits = limits or CommitLimits()
        self._pids: dict[str, tuple[int, int]] = {}  # VM -> pid, start time
        self._located: dict[str, tuple[tuple[int, int], cgroup.VmGroups]] = {}  # VM -> pid and start time, its groups
        self._online: dict[str, tuple[float, int | None]] = {}  # VM -> when the guest agent was asked, its answer
        self._online_moving: dict[str, float] = {}  # VM -> until when its answer may change

    def close(self) -> None:
        """Close the connection; nothing on the host changes."""
        self._connection.close()

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed`, in any thread, whenever a domain's limits or devices may have changed."""
        self._inventory.watch(changed)

    # Hypervisor

    def boot_id(self) -> str:
        return host.read_boot_id(self._files)

    def capacity(self) -> HostCapacity:
        """CPUs and memory of the host; commit limits are ratios of them, memory after the host's own reserve."""
        limits, cpu, memory = self._limits, host.cpu_count() * 1000, host.read_memory(self._files).total_bytes
        if memory is None:
            raise HostError(f"{self._files.proc}/meminfo: no MemTotal")
        nodes = read_numa(self._files)
        return HostCapacity(
            cpu_millicores=cpu,
            memory_bytes=memory,
            net_bits_per_s=limits.net_bits_per_s,
            cpu_commit_millicores=max(1, int(cpu * limits.cpu_commit_ratio)),
            memory_commit_bytes=max(1, int((memory - limits.memory_reserve_bytes) * limits.memory_commit_ratio)),
            net_commit_bits_per_s=limits.net_bits_per_s,
            numa_memory_bytes=tuple(node.memory_bytes or 0 for node in nodes),
            numa_cpus=tuple(node.cpus for node in nodes),
        )

    def domains(self) -> Sequence[Domain]:
        """Every domain, running or not. One that vanishes meanwhile is left out."""
        active = self._connection.call(lambda connection: self._inventory.active(self._connection, connection))
        stopped = self._connection.call(
            lambda connection: self._inventory.read(
                self._libvirt, connection.listAllDomains(self._libvirt.VIR_CONNECT_LIST_DOMAINS_INACTIVE)
            )
        )
        balloons = self._balloon_answers() if active else {}
        systems = parse_file_systems(self._files.read(self._files.proc / "self" / "mountinfo") or "")
        shared = HostFacts(shaping=self._shaper is not None, file_systems=systems)
        found = [domain_of(known.definition, self._facts(shared, known, balloons)) for known in active]
        idle = msgspec.structs.replace(shared, running=False)
        seen = {domain.vm_id for domain in found}  # one that stopped between the two lists is in both
        return (*found, *(domain_of(definition, idle) for definition, _, _ in stopped if definition.vm_id not in seen))

    def allocation(self, vm_id: str) -> Allocation:
        """What libvirt, the vCPU threads, the guest agent and the kernel say now. Raises Refusal(UNKNOWN_VM, VM_NOT_RUNNING)."""
        return self._connection.call(lambda connection: self._allocation(self._connection.domain(connection, vm_id)))

    def submit(self, vm_id: str, kind: StepKind, value: int) -> None:
        """Ask for `value`, live. Raises HostError or Refusal: no such VM, not running, not capable, no such value, limited by others."""
        try:
            self._connection.call(lambda connection: LEVERS[kind](self._target(self._connection.domain(connection, vm_id)), value))
        finally:
            if kind in (StepKind.VCPUS, StepKind.VCPUS_ONLINE):
                self._online_moving[vm_id] = time.monotonic() + ONLINE_MOVING_S
            self._inventory.changed(vm_id)

    # DomainSource

    def running(self) -> Sequence[RunningDomain]:
        """Running domains for sampling. Switches balloon statistics on where the guest is not asked for any (a poll, no limit)."""
        known = self._connection.call(lambda connection: self._inventory.active(self._connection, connection))
        for entry in known:
            if entry.definition.balloon and not entry.definition.balloon_period_s:
                self._ask_for_balloon_statistics(entry.definition)
            self._assign_tap(entry.definition)
        self._forget_others({entry.definition.vm_id for entry in known})
        return tuple(
            RunningDomain(
                vm_id=entry.definition.vm_id,
                tap=entry.definition.taps[0] if len(entry.definition.taps) == 1 else None,
                vcpus=entry.definition.vcpus,
                disk_limit_bytes_per_s=entry.definition.disk_limit_bytes_per_s,
                disk_ops_limit_per_s=entry.definition.disk_ops_limit_per_s,
                disk_weight=entry.disk_weight,
                virtio_mem_bytes=entry.definition.virtio_mem_bytes,
                dimm_bytes=entry.definition.dimm_bytes,
                vcpus_online=self._online.get(entry.definition.vm_id, (0.0, None))[1],
                reboots=self._inventory.reboots(entry.definition.vm_id),
            )
            for entry in known
        )

    def bulk_stats(self) -> Mapping[str, Mapping[str, object]]:
        """balloon.* and block.* of every running domain, in one call that waits for none: a busy domain's groups are missing."""
        if not self._connection.tells_changes:
            self._inventory.tell()
        return self._statistics(self._libvirt.VIR_DOMAIN_STATS_BALLOON | self._libvirt.VIR_DOMAIN_STATS_BLOCK)

    # The probe: what only libvirt or the kernel can say

    def _facts(self, shared: HostFacts, known: Known, balloons: Mapping[str, bool]) -> HostFacts:
        definition = known.definition
        silent = definition.balloon and definition.balloon_period_s and balloons.get(definition.vm_id) is False
        return msgspec.structs.replace(
            shared,
            running=known.running,
            cpu_quota=known.quota_obstacle,
            disk_weight=known.weight_obstacle,
            memory_high=self._memory_high_obstacle(definition.vm_id),
            balloon_driver="the guest's balloon driver has never answered" if silent else None,
        )

    def _balloon_answers(self) -> dict[str, bool]:
        """VM -> whether its driver has ever sent statistics; a VM that is busy now is left out."""
        try:
            found = self._statistics(self._libvirt.VIR_DOMAIN_STATS_BALLOON)
        except (HostError, Refusal) as error:  # the test driver has none
            _log.debug("no balloon statistics", error=str(error))
            return {}
        return {vm_id: bool(stats.get("balloon.last-update")) for vm_id, stats in found.items() if "balloon.current" in stats}

    def _memory_high_obstacle(self, vm_id: str) -> str | None:
        if self._read_memory_high(vm_id) is not None:
            return None
        return "this host has no memory.high for the VM: its memory controller is not cgroup v2"

    # Reading

    def _target(self, domain: Any) -> Target:
        definition = parse_definition(domain.XMLDesc(0))
        return Target(
            domain=domain,
            definition=definition,
            libvirt=self._libvirt,
            vcpus=self._vcpus(domain),
            cpu_is_v2=self._groups(definition.vm_id).cpu_is_v2,
            memory_high=self._memory_high_obstacle(definition.vm_id),
            shaper=self._shaper,
            now_s=int(time.time()),
        )

    def _allocation(self, domain: Any) -> Allocation:
        target = self._target(domain)
        settle_quota(target)
        definition, vcpus, parameters = target.definition, target.vcpus, domain.schedulerParameters()
        tap = definition.taps[0] if len(definition.taps) == 1 else None
        receive, send = (
            None if tap is None or self._shaper is None else self._shaper.ceiling(tap, kind) for kind in (StepKind.NET_RX, StepKind.NET_TX)
        )
        shares = parameters.get("cpu_shares")
        return Allocation(
            vcpus=vcpus,
            cpu_quota_millicores=quota_in_force(parameters, vcpus),
            cpu_shares=cgroup.shares_of_weight(shares) if target.cpu_is_v2 and shares is not None else shares,
            memory_bytes=_memory(definition, domain),
            disk_bytes_per_s=definition.disk_limit_bytes_per_s,
            net_rx_bits_per_s=receive,
            net_tx_bits_per_s=send,
            vcpus_online=self._vcpus_online(definition, domain),
            cpu_period_us=parameters.get("vcpu_period"),
            virtio_mem_bytes=definition.virtio_mem_bytes,
            dimm_bytes=definition.dimm_bytes,
            memory_high_bytes=self._read_memory_high(definition.vm_id),
            disk_ops_per_s=definition.disk_ops_limit_per_s,
            disk_weight=read_weight(self._libvirt, domain),
            net_tx_rate_bits_per_s=None if tap is None or self._shaper is None else self._shaper.rate(tap),
        )

    def _vcpus(self, domain: Any) -> int:
        """vCPUs by count of QEMU's threads: after a hot-unplug that timed out, libvirt's own number is stale."""
        known, pid = int(domain.info()[3]), self._pid(domain.UUIDString())
        threads = 0 if pid is None else read_vcpu_threads(self._files, pid).count
        if threads and threads != known:
            _log.warning("libvirt and QEMU disagree about vCPUs", vm=domain.UUIDString(), libvirt=known, threads=threads)
        return threads or known

    def _vcpus_online(self, definition: DomainDefinition, domain: Any) -> int | None:
        """What the guest says, asked no more often than ONLINE_FRESH_S; None where no agent answers."""
        now = time.monotonic()
        asked_at, answer = self._online.get(definition.vm_id, (0.0, None))
        fresh_s = 1.0 if now < self._online_moving.get(definition.vm_id, 0.0) else ONLINE_FRESH_S
        if agent_obstacle(definition) is not None:
            self._online.pop(definition.vm_id, None)
            return None
        if asked_at and now - asked_at < fresh_s:
            return answer
        try:
            answer = count_vcpus(str(domain.guestVcpus(0).get("online", "")))
        except self._libvirt.libvirtError as error:
            _log.info("guest agent does not say which vCPUs are online", vm=definition.vm_id, error=str(error))
            answer = None
        known = self._online.get(definition.vm_id)
        self._online[definition.vm_id] = (time.monotonic(), answer)
        if known is None or known[1] != answer:
            self._inventory.tell()
        return answer

    def _read_memory_high(self, vm_id: str) -> int | None:
        """The tightest memory.high around the VM; UNLIMITED = none is set, None = this host has no such file."""
        unified = self._groups(vm_id).unified
        if unified is None:
            return None
        highs = []
        for group in (unified, unified.parent) if unified.name == "libvirt" else (unified,):
            text = (self._files.read(group / "memory.high") or "").strip()
            if text:
                highs.append(UNLIMITED if text == "max" else read_int(self._files, group / "memory.high"))
        set_ones = [high for high in highs if high is not None and high != UNLIMITED]
        return min(set_ones) if set_ones else (UNLIMITED if highs else None)

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
        """Where a process is in the hierarchies does not change while it lives."""
        pid, process_id = self._pid(vm_id), self._pids.get(vm_id)
        if pid is None or process_id is None:
            return cgroup.VmGroups()
        known, groups = self._located.get(vm_id, (None, cgroup.VmGroups()))
        if known != process_id:
            groups = cgroup.locate(self._files, pid)
            self._located[vm_id] = (process_id, groups)
        return groups

    def _statistics(self, groups: int) -> Mapping[str, Mapping[str, object]]:
        flags = self._libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | self._libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        found = self._connection.call(lambda connection: connection.getAllDomainStats(groups, flags))
        return {domain.UUIDString(): stats for domain, stats in found}

    def _ask_for_balloon_statistics(self, definition: DomainDefinition) -> None:
        try:
            self._connection.call(
                lambda connection: connection.lookupByUUIDString(definition.vm_id).setMemoryStatsPeriod(BALLOON_PERIOD_S, LIVE)
            )
        except (HostError, Refusal) as error:
            _log.warning("balloon statistics cannot be switched on", vm=definition.vm_id, error=str(error))
        else:
            _log.info("balloon statistics switched on", vm=definition.vm_id, name=definition.name, period_s=BALLOON_PERIOD_S)
            self._inventory.changed(definition.vm_id)

    def _forget_others(self, vm_ids: set[str]) -> None:
        """What is remembered of VMs that are gone."""
        tables: tuple[dict[str, Any], ...] = (self._pids, self._located, self._online, self._online_moving)
        for table in tables:
            for gone in [vm_id for vm_id in tuple(table) if vm_id not in vm_ids]:
                table.pop(gone, None)

    def _assign_tap(self, definition: DomainDefinition) -> None:
        """Say whose tap it is: where we shape what this guest sends, its client's share follows the owner's policy."""
        if self._shaper is None or shaping_obstacle(definition) is not None:
            return
        try:
            self._shaper.assign(definition.taps[0], definition.policy.client, definition.policy.priority)
        except (HostError, Refusal) as error:
            _log.warning("tap could not be assigned to its client", vm=definition.vm_id, tap=definition.taps[0], error=str(error))


def count_vcpus(ranges: str) -> int:
    """How many CPUs a list like "0-1,3" names."""
    total = 0
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


def _memory(definition: DomainDefinition, domain: Any) -> int | None:
    """What the balloon leaves the guest, without virtio-mem and DIMMs of ours (see libvirt_xml)."""
    if not definition.balloon:
        return int(domain.info()[2]) * KIB - definition.virtio_mem_bytes - definition.dimm_bytes
    actual = domain.memoryStats().get("actual")
    return None if actual is None else int(actual) * KIB - definition.dimm_bytes


__all__ = ["CommitLimits", "LibvirtHypervisor", "count_vcpus", "quota_in_force", "translate"]
