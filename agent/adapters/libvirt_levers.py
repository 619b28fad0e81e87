"""The levers over libvirt, one small function per StepKind: check what the domain allows, then ask libvirt once.

A lever returns when the request was accepted; what is in force is read back elsewhere. What cannot be is refused with the numbers before
anything is touched, and in our words: libvirt's own message for the same value differs from release to release.
Compound levers (several libvirt calls) call the failpoint between their parts and are ordered so that a kill there leaves what a second
submit of the same value completes.
Source: libvirt.org/html/libvirt-libvirt-domain.html; QEMU 7.2 docs/throttle.txt, docs/devel/virtio-mem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from agent.adapters.libvirt_capabilities import (
    DIMM_BYTES,
    agent_obstacle,
    balloon_obstacle,
    dimm_max_bytes,
    dimm_obstacle,
    disk_limit_obstacle,
    foreign_limit,
    hot_add_obstacle,
    shaping_obstacle,
    unplug_obstacle,
    virtio_mem_obstacle,
)
from agent.adapters.libvirt_connection import LIVE, TIMED_OUT
from agent.adapters.libvirt_xml import (
    MOST_THROTTLE,
    OWED_NAMESPACE,
    THROTTLE_GROUP,
    Disk,
    DomainDefinition,
    OwedQuota,
    VirtioMem,
    dimm_xml,
    owed_xml,
    with_requested,
)
from agent.ports import TrafficShaper
from agent.sampling import cgroup
from shared.errors import Refusal
from shared.failpoint import hit
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import KIB, UNLIMITED

PERIOD_US: Final = 100_000  # the kernel's default
PERIODS_US: Final = (1_000, 1_000_000)  # the kernel's and libvirt's bounds
LEAST_QUOTA_US: Final = 1_000  # the kernel's and libvirt's lower bound: 10 millicores for each vCPU at the default period
SHARES: Final = (2, 262_144)
WEIGHTS: Final = (1, 1_000)  # BFQ's, and what libvirt lets through
NO_MEMORY_LIMIT_KIB: Final = 9_007_199_254_740_991  # VIR_DOMAIN_MEMORY_PARAM_UNLIMITED
OWED_S: Final = 3600  # a guest that has not unplugged by then will not; planning has long gone on from what it saw
_ELEMENT: Final = 2  # VIR_DOMAIN_METADATA_ELEMENT
_GUEST: Final = 8  # VIR_DOMAIN_VCPU_GUEST
_NO_QUOTA: Final = 17_592_186_044_415  # what libvirt reports where the kernel has no limit
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """One running domain, read at the moment of the submit."""

    domain: Any
    definition: DomainDefinition
    libvirt: Any
    vcpus: int  # threads of QEMU
    cpu_is_v2: bool
    memory_high: str | None  # why there is none
    shaper: TrafficShaper | None
    now_s: int  # Unix time


def quota_us(millicores: int, vcpus: int, period_us: int = PERIOD_US) -> int:
    """Quota of each vCPU in one period: 500 millicores on two vCPUs -> 25,000 µs of 100,000 each."""
    return round(millicores * period_us / (1000 * vcpus))


def quota_in_force(parameters: Mapping[str, int], vcpus: int) -> int | None:
    """Millicores that libvirt's scheduler parameters allow over all vCPUs; UNLIMITED, or None where there are no such parameters."""
    if "vcpu_quota" not in parameters:
        return None

    def cpus(scope: str) -> float:
        quota = parameters.get(f"{scope}_quota", -1)
        return float("inf") if not 0 < quota < _NO_QUOTA else quota / (parameters.get(f"{scope}_period") or PERIOD_US)

    return cgroup.quota_millicores([cpus("vcpu")] * vcpus, [cpus("global")])


def settle_quota(target: Target) -> None:
    """Divide the quota over all vCPUs anew once they are as many as were waited for; until then each vCPU keeps its share.

    What is owed stands in the domain's metadata: the guest may take minutes to unplug, and the agent may be killed meanwhile.
    """
    owed = target.definition.owed
    if owed is not None and target.vcpus == owed.vcpus and target.now_s - owed.at_s < OWED_S:
        set_quota(target, max(owed.millicores, _least_quota(target.vcpus, _period(target))))


def set_vcpus(target: Target, count: int) -> None:
    """Plug in or unplug. The quota over all vCPUs stays what it was."""
    definition, now = target.definition, target.vcpus
    numbers = {"value": count, "now": now, "maximum": definition.vcpus_max}
    if count > definition.vcpus_max:
        raise Refusal(RefusalCode.ABOVE_DOMAIN_MAXIMUM, f"{count} vCPUs: the domain's maximum is {definition.vcpus_max}", numbers)
    if count < 1:
        raise Refusal(RefusalCode.INVALID_VALUE, f"{count} vCPUs: allowed 1 to {definition.vcpus_max}", numbers)
    if count == now:
        return
    obstacle = hot_add_obstacle(definition) if count > now else unplug_obstacle(definition)
    if obstacle is not None:
        raise Refusal(RefusalCode.NOT_CAPABLE, f"{count} vCPUs, {now} now: {obstacle}", numbers)
    removable = definition.vcpus_removable
    if removable is not None and now - count > removable:
        detail = f"{count} vCPUs, {now} now: only {removable} can be unplugged, the others have been there since the start"
        raise Refusal(RefusalCode.NOT_CAPABLE, detail, numbers | {"removable": removable})
    quota = quota_in_force(target.domain.schedulerParameters(), now)
    limited = quota is not None and quota != UNLIMITED
    if limited:
        _owe(target, OwedQuota(vcpus=count, millicores=quota or 0, at_s=target.now_s))
    elif definition.owed is not None:
        _owe(target, None)
    try:
        target.domain.setVcpusFlags(count, LIVE)
    except target.libvirt.libvirtError as error:
        # libvirt waits 5 s for the guest; the request stays with the guest, which may yet follow it: the count of threads tells
        if count > now or error.get_error_code() != TIMED_OUT or "unplug" not in str(error):
            if limited:
                _owe(target, None)
            raise
        _log.info("vCPU unplug is left to the guest", vm=definition.vm_id, wanted=count)
    hit("submit.between")
    if count > now and quota is not None and quota != UNLIMITED:
        _write_quota(target, max(quota, _least_quota(count, _period(target))), count)
        _owe(target, None)


def set_vcpus_online(target: Target, count: int) -> None:
    """Let the guest agent take vCPUs offline or online."""
    numbers = {"value": count, "maximum": target.vcpus}
    if count < 1:
        raise Refusal(RefusalCode.INVALID_VALUE, f"{count} vCPUs online: allowed 1 to {target.vcpus}", numbers)
    if count > target.vcpus:
        raise Refusal(RefusalCode.ABOVE_DOMAIN_MAXIMUM, f"{count} vCPUs online: {target.vcpus} are plugged in", numbers)
    _refuse_where(agent_obstacle(target.definition), target, numbers)
    target.domain.setVcpusFlags(count, _GUEST)


def set_quota(target: Target, millicores: int) -> None:
    """In the period that is in force."""
    _write_quota(target, millicores, target.vcpus)
    if target.definition.owed is not None:
        _owe(target, None)


def set_period(target: Target, period_us: int) -> None:
    """The quota's ratio stays."""
    if not PERIODS_US[0] <= period_us <= PERIODS_US[1]:
        raise _out_of_range("cpu_period", period_us, *PERIODS_US)
    parameters = target.domain.schedulerParameters()
    quota, old = parameters.get("vcpu_quota", -1), parameters.get("vcpu_period") or PERIOD_US
    if not 0 < quota < _NO_QUOTA:
        target.domain.setSchedulerParametersFlags({"vcpu_period": period_us}, LIVE)
        return
    each = round(quota * period_us / old)
    if each < LEAST_QUOTA_US:
        least = -(-LEAST_QUOTA_US * old // quota)
        raise _out_of_range("cpu_period", period_us, least, PERIODS_US[1], f" at {quota / old:.3f} CPUs for each vCPU")
    target.domain.setSchedulerParametersFlags({"vcpu_period": period_us, "vcpu_quota": each}, LIVE)


def set_shares(target: Target, shares: int) -> None:
    """v1 shares; libvirt wants a weight where the host has v2."""
    if not SHARES[0] <= shares <= SHARES[1]:
        raise _out_of_range("cpu_shares", shares, *SHARES)
    target.domain.setSchedulerParametersFlags({"cpu_shares": cgroup.weight_of_shares(shares) if target.cpu_is_v2 else shares}, LIVE)


def set_memory(target: Target, size: int) -> None:
    """The balloon's target. libvirt counts DIMMs into it, we do not (see libvirt_xml)."""
    most = target.definition.memory_max_bytes
    numbers = {"value": size, "maximum": most}
    _refuse_where(balloon_obstacle(target.definition), target, numbers)
    if size > most:
        raise Refusal(RefusalCode.ABOVE_DOMAIN_MAXIMUM, f"memory {size}: the domain's maximum is {most}", numbers)
    if size < KIB:
        raise _out_of_range("memory", size, KIB, most)
    target.domain.setMemoryFlags((size + target.definition.dimm_bytes) // KIB, LIVE)


def set_virtio_mem(target: Target, size: int) -> None:
    """Over all virtio-mem devices, one filled after the other; rounded to whole blocks towards what is requested now."""
    devices = target.definition.virtio_mem
    most = sum(device.size_bytes for device in devices)
    _refuse_where(virtio_mem_obstacle(target.definition), target, {"value": size})
    if size > most:
        numbers = {"value": size, "maximum": most}
        raise Refusal(RefusalCode.ABOVE_DOMAIN_MAXIMUM, f"virtio_mem {size}: the devices hold {most}", numbers)
    if size < 0:
        raise _out_of_range("virtio_mem", size, 0, most)
    for device, requested in divide(devices, size):
        if requested != device.requested_bytes:
            target.domain.updateDeviceFlags(with_requested(device, requested), LIVE)
            hit("submit.between")


def divide(devices: tuple[VirtioMem, ...], size: int) -> list[tuple[VirtioMem, int]]:
    """What to request of each device so that they come to `size`, one filled after the other, in whole blocks."""
    wanted, left = [], size
    for device in devices:
        share, block = min(left, device.size_bytes), device.block_bytes
        blocks = share // block if share >= device.requested_bytes else -(-share // block)
        wanted.append((device, blocks * block))
        left -= share
    return wanted


def set_dimm(target: Target, size: int) -> None:
    """Plug in one DIMM of what is missing, or take ours out, newest first."""
    definition = target.definition
    most, numbers = dimm_max_bytes(definition), {"value": size, "now": definition.dimm_bytes, "maximum": dimm_max_bytes(definition)}
    if size < 0 or size % DIMM_BYTES:
        raise Refusal(RefusalCode.INVALID_VALUE, f"dimm {size}: allowed are multiples of {DIMM_BYTES} up to {most}", numbers)
    _refuse_where(dimm_obstacle(definition), target, numbers)
    if size == definition.dimm_bytes:
        return
    if size > definition.dimm_bytes:
        _refuse_where("all memory slots are taken" if definition.dimm_slots_free == 0 else None, target, numbers)
        if size > most:
            raise Refusal(RefusalCode.ABOVE_DOMAIN_MAXIMUM, f"dimm {size}: the domain's <maxMemory> allows {most}", numbers)
        number = max((dimm.number for dimm in definition.dimms), default=-1) + 1
        target.domain.attachDeviceFlags(dimm_xml(number, size - definition.dimm_bytes), LIVE)
        return
    left, leaving = definition.dimm_bytes, []
    for dimm in reversed(definition.dimms):
        if left <= size:
            break
        leaving.append(dimm)
        left -= dimm.size_bytes
    if left != size:
        detail = f"dimm {size}: DIMMs come out whole, newest first; {left} and {left + leaving[-1].size_bytes} can be reached"
        raise Refusal(RefusalCode.INVALID_VALUE, detail, numbers)
    for dimm in leaving:
        target.domain.detachDeviceFlags(dimm.xml, LIVE)
        hit("submit.between")


def set_memory_high(target: Target, size: int) -> None:
    """libvirt's soft_limit, which is memory.high where the host has cgroup v2."""
    _refuse_where(target.memory_high, target, {"value": size})
    if size != UNLIMITED and size < KIB:
        raise _out_of_range("memory_high", size, KIB, NO_MEMORY_LIMIT_KIB * KIB, f", or {UNLIMITED}")
    target.domain.setMemoryParameters({"soft_limit": NO_MEMORY_LIMIT_KIB if size == UNLIMITED else size // KIB}, LIVE)


def set_disk_bytes(target: Target, per_s: int) -> None:
    """Over all disks, in both directions."""
    _throttle(target, "disk_bytes", per_s, per_s, target.definition.disk_ops_limit_per_s)


def set_disk_ops(target: Target, per_s: int) -> None:
    """Over all disks, in both directions."""
    _throttle(target, "disk_ops", per_s, target.definition.disk_limit_bytes_per_s, per_s)


def set_disk_weight(target: Target, weight: int) -> None:
    """The VM's share of the host's disks among the other VMs."""
    if not WEIGHTS[0] <= weight <= WEIGHTS[1]:
        raise _out_of_range("disk_weight", weight, *WEIGHTS)
    target.domain.setBlkioParameters({"weight": weight}, LIVE)


def set_net_rx(target: Target, bits_per_s: int) -> None:
    """Ceiling towards the guest."""
    shaper, tap = _shaped(target)
    shaper.set_ceiling(tap, StepKind.NET_RX, bits_per_s)


def set_net_tx(target: Target, bits_per_s: int) -> None:
    """Ceiling from the guest."""
    shaper, tap = _shaped(target)
    shaper.assign(tap, target.definition.policy.client, target.definition.policy.priority)
    shaper.set_ceiling(tap, StepKind.NET_TX, bits_per_s)


def set_net_tx_rate(target: Target, bits_per_s: int) -> None:
    """Guarantee from the guest, where the uplink is full."""
    shaper, tap = _shaped(target)
    shaper.assign(tap, target.definition.policy.client, target.definition.policy.priority)
    shaper.set_rate(tap, bits_per_s)


def migrate(target: Target, bits_per_s: int) -> None:
    """Not a value to set."""
    detail = f"{target.definition.name}: a migration is run by the Migrator, not set as a value"
    raise Refusal(RefusalCode.NOT_CAPABLE, detail, {"value": bits_per_s})


LEVERS: Final[Mapping[StepKind, Callable[[Target, int], None]]] = {
    StepKind.VCPUS: set_vcpus,
    StepKind.CPU_QUOTA: set_quota,
    StepKind.CPU_SHARES: set_shares,
    StepKind.MEMORY: set_memory,
    StepKind.NET_RX: set_net_rx,
    StepKind.NET_TX: set_net_tx,
    StepKind.VCPUS_ONLINE: set_vcpus_online,
    StepKind.CPU_PERIOD: set_period,
    StepKind.VIRTIO_MEM: set_virtio_mem,
    StepKind.DIMM: set_dimm,
    StepKind.MEMORY_HIGH: set_memory_high,
    StepKind.DISK_BYTES: set_disk_bytes,
    StepKind.DISK_OPS: set_disk_ops,
    StepKind.DISK_WEIGHT: set_disk_weight,
    StepKind.NET_TX_RATE: set_net_tx_rate,
    StepKind.MIGRATE: migrate,
}


def _refuse_where(obstacle: str | None, target: Target, numbers: Mapping[str, int]) -> None:
    if obstacle is not None:
        raise Refusal(RefusalCode.NOT_CAPABLE, f"{target.definition.name}: {obstacle}", numbers)


def _out_of_range(name: str, value: int, least: int, most: int, besides: str = "") -> Refusal:
    numbers = {"value": value, "least": least, "most": most}
    return Refusal(RefusalCode.INVALID_VALUE, f"{name} {value}: allowed {least} to {most}{besides}", numbers)


def _period(target: Target) -> int:
    return int(target.domain.schedulerParameters().get("vcpu_period") or PERIOD_US)


def _least_quota(vcpus: int, period_us: int) -> int:
    return -(-LEAST_QUOTA_US * vcpus * 1000 // period_us)


def _owe(target: Target, owed: OwedQuota | None) -> None:
    text = None if owed is None else owed_xml(owed)
    target.domain.setMetadata(_ELEMENT, text, "tidegate_owed", OWED_NAMESPACE, LIVE)


def _write_quota(target: Target, millicores: int, vcpus: int) -> None:
    if millicores == UNLIMITED:
        target.domain.setSchedulerParametersFlags({"vcpu_quota": -1}, LIVE)
        return
    period_us = _period(target)
    least = _least_quota(vcpus, period_us)
    if millicores < least:
        numbers = {"value": millicores, "least": least}
        detail = f"cpu_quota {millicores} millicores: at least {least} for {vcpus} vCPUs in periods of {period_us} µs, or {UNLIMITED}"
        raise Refusal(RefusalCode.INVALID_VALUE, detail, numbers)
    parameters = {"vcpu_period": period_us, "vcpu_quota": quota_us(millicores, vcpus, period_us)}
    target.domain.setSchedulerParametersFlags(parameters, LIVE)


def _throttle(target: Target, name: str, value: int, bytes_per_s: int, ops_per_s: int) -> None:
    """One throttle group over all disks: what they do together is limited (measured: two disks at 3 MiB/s got 1.5 each).

    What is written for one member holds for the group, at once. So disks join with the limit that the group has (none: one that nothing
    reaches), and leave after the group was freed: a kill between two calls leaves the old limit or the new one, never half of one.
    """
    definition = target.definition
    foreign = foreign_limit(definition)
    if foreign is not None:
        detail = f"{definition.name}: disk {foreign} has an <iotune> that is not ours"
        raise Refusal(RefusalCode.FOREIGN_LIMIT, detail, {"value": value})
    _refuse_where(disk_limit_obstacle(definition), target, {"value": value})
    if value != UNLIMITED and not 1 <= value <= MOST_THROTTLE:
        raise _out_of_range(name, value, 1, MOST_THROTTLE, f", or {UNLIMITED}")
    disks = definition.limited_disks
    members = [disk for disk in disks if disk.group == THROTTLE_GROUP and any(disk.iotune.values())]
    if UNLIMITED == bytes_per_s == ops_per_s:
        if members:
            _write_throttle(target, members[0], MOST_THROTTLE, 0)
        for disk in members:
            target.domain.setBlockIoTune(disk.target, {"total_bytes_sec": 0, "total_iops_sec": 0}, LIVE)
        return
    tune = members[0].iotune if members else {"total_bytes_sec": MOST_THROTTLE}
    for disk in disks[1:]:
        if disk not in members:
            _write_throttle(target, disk, tune.get("total_bytes_sec", 0), tune.get("total_iops_sec", 0))
    _write_throttle(target, disks[0], max(0, bytes_per_s), max(0, ops_per_s))


def _write_throttle(target: Target, disk: Disk, bytes_per_s: int, ops_per_s: int) -> None:
    limits = {"total_bytes_sec": bytes_per_s, "total_iops_sec": ops_per_s, "group_name": THROTTLE_GROUP}
    target.domain.setBlockIoTune(disk.target, limits, LIVE)
    hit("submit.between")


def _shaped(target: Target) -> tuple[TrafficShaper, str]:
    definition = target.definition
    obstacle = "the agent shapes no traffic here" if target.shaper is None else shaping_obstacle(definition)
    if target.shaper is None or obstacle is not None:
        foreign = any(interface.bandwidth for interface in definition.interfaces)
        raise Refusal(RefusalCode.FOREIGN_SHAPING if foreign else RefusalCode.NOT_CAPABLE, f"{definition.name}: {obstacle}")
    return target.shaper, definition.taps[0]
