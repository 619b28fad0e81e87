"""The capability probe: for each lever, can this domain have it moved, and if not, why. Pure.

A definition says most; `HostFacts` carries what only libvirt or the kernel could say about this domain. Every reason is written for the
owner who asks why nothing happens to a VM, and is at most 256 characters (Label).
Sources: libvirt.org/formatdomain.html; QEMU docs/system/cpu-hotplug, virtio-mem; REALHOST runs recorded in tests/realhost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from agent.adapters.libvirt_xml import THROTTLE_GROUP, DomainDefinition
from shared.model import Capabilities, Domain
from shared.units import MIB

DIMM_BYTES: Final = 128 * MIB  # a memory section of x86_64: smaller DIMMs are not onlined by Linux
_FIXED_MACHINES = ("isapc", "microvm")
_HOT_ADD_ARCHES = ("x86_64", "i686", "ppc64", "ppc64le", "s390x")  # QEMU has no CPU hot-plug for the others
_UNPLUG_ARCHES = ("x86_64", "i686", "ppc64", "ppc64le")  # s390x adds and never removes
_DEVICE_NAMES: Final[Mapping[str, str]] = {
    "pci": "a passed-through device",
    "usb": "a USB device of this host",
    "mdev": "a mediated device",
}
# File systems that several hosts can mount: a disk image there need not be copied.
SHARED_FILE_SYSTEMS: Final = frozenset(
    ("nfs", "nfs4", "ceph", "glusterfs", "fuse.glusterfs", "cifs", "smb3", "gfs2", "ocfs2", "lustre", "beegfs", "gpfs", "fuse.sshfs", "9p")
)


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What libvirt and the kernel said about one running domain. Each obstacle: None = there is none."""

    running: bool = True
    cpu_quota: str | None = None
    disk_weight: str | None = None
    memory_high: str | None = None
    balloon_driver: str | None = None
    perf: str | None = "not probed"
    shaping: bool = True  # this agent shapes traffic at all
    file_systems: Mapping[str, str] = {}  # mount point -> type, of the host


def capabilities_of(definition: DomainDefinition, facts: HostFacts) -> Capabilities:
    """None = it can; a string = it cannot, and why."""
    shape = shaping_obstacle(definition) if facts.shaping else "the agent shapes no traffic here"
    agent = agent_obstacle(definition)
    found = Capabilities(
        balloon=balloon_obstacle(definition) or facts.balloon_driver,
        vcpu_hot_add=hot_add_obstacle(definition),
        cpu_quota=facts.cpu_quota,
        shape_rx=shape,
        shape_tx=shape,
        migrate=migration_obstacle(definition, facts.file_systems),
        vcpu_unplug=unplug_obstacle(definition),
        vcpu_offline=agent,
        virtio_mem=virtio_mem_obstacle(definition),
        dimm=dimm_obstacle(definition),
        memory_high=facts.memory_high,
        disk_limit=disk_limit_obstacle(definition),
        disk_weight=facts.disk_weight,
        net_rate=shape,
        guest_agent=agent,
        perf=facts.perf,
    )
    return Capabilities(**{name: reason and reason[:256] for name, reason in msgspec.structs.asdict(found).items()})


def domain_of(definition: DomainDefinition, facts: HostFacts) -> Domain:
    """The Domain of a definition. A policy that cannot be read excludes its VM: better no change than one the owner may have forbidden."""
    return Domain(
        vm_id=definition.vm_id,
        name=definition.name,
        running=facts.running,
        vcpus_max=definition.vcpus_max,
        memory_max_bytes=definition.memory_max_bytes,
        tap=definition.taps[0] if definition.taps else None,
        virtio_mem_max_bytes=sum(device.size_bytes for device in definition.virtio_mem),
        dimm_max_bytes=dimm_max_bytes(definition),
        policy=definition.policy,
        capabilities=capabilities_of(definition, facts),
    )


def balloon_obstacle(definition: DomainDefinition) -> str | None:
    """Why memory cannot be taken by the balloon, as far as the definition says."""
    if not definition.balloon:
        return "the domain has no balloon device"
    if _passed_through(definition):
        return "a passed-through device pins the guest's memory"
    return definition.memory_pinned


def hot_add_obstacle(definition: DomainDefinition) -> str | None:
    """Why no vCPU can be added. Pinning is none: an added vCPU runs where the domain's emulator may."""
    if definition.vcpus_max == 1:
        return "the domain is defined with a single vCPU"
    if definition.machine.startswith(_FIXED_MACHINES):
        return f"machine type {definition.machine} cannot take vCPUs while running"
    if definition.arch not in _HOT_ADD_ARCHES:
        return f"QEMU adds no vCPUs to a running {definition.arch} machine"
    return None


def unplug_obstacle(definition: DomainDefinition) -> str | None:
    """Why no vCPU can be unplugged by ACPI."""
    if definition.kind == "qemu":
        return "QEMU's TCG never reports the unplug"  # 7.2: libvirt's count goes stale, and the next hot-add aborts QEMU
    if definition.arch not in _UNPLUG_ARCHES:
        return f"QEMU takes no vCPUs from a running {definition.arch} machine"
    if hot_add_obstacle(definition) is not None:
        return hot_add_obstacle(definition)
    if definition.vcpus_removable == 0:
        return "all vCPUs have been there since the start: such a vCPU cannot be unplugged"
    return None


def agent_obstacle(definition: DomainDefinition) -> str | None:
    """Why the guest agent cannot be asked."""
    if definition.guest_agent is None:
        return "the domain has no channel for a guest agent"
    return None if definition.guest_agent else "no guest agent is connected"


def virtio_mem_obstacle(definition: DomainDefinition) -> str | None:
    """Why there is no virtio-mem to size."""
    return None if definition.virtio_mem else "the domain has no virtio-mem device"


def dimm_obstacle(definition: DomainDefinition) -> str | None:
    """Why no DIMM can be plugged in; DIMMs of ours can be taken out in any case."""
    if definition.dimm_slots_free is None:
        return "the domain is defined without <maxMemory slots=...>"
    if not definition.numa_cell:
        return "the domain is defined without a NUMA cell"
    if definition.dimms:
        return None
    if definition.dimm_slots_free == 0:
        return "all memory slots are taken"
    if definition.dimm_room_bytes < DIMM_BYTES:
        return "the domain's <maxMemory> leaves no room for a DIMM"
    return None


def dimm_max_bytes(definition: DomainDefinition) -> int:
    """What DIMMs of ours may come to: those that are plugged in, and one more as large as <maxMemory> allows."""
    possible = definition.dimm_slots_free and definition.numa_cell
    return definition.dimm_bytes + (definition.dimm_room_bytes // DIMM_BYTES * DIMM_BYTES if possible else 0)


def disk_limit_obstacle(definition: DomainDefinition) -> str | None:
    """Why the disks' throughput cannot be limited."""
    if not definition.limited_disks:
        return "the domain has no disk that QEMU itself reads and writes"
    foreign = foreign_limit(definition)
    return None if foreign is None else f"disk {foreign} has an <iotune> that is not ours"


def foreign_limit(definition: DomainDefinition) -> str | None:
    """The first disk with somebody else's limit."""
    return next((disk.target for disk in definition.limited_disks if any(disk.iotune.values()) and disk.group != THROTTLE_GROUP), None)


def shaping_obstacle(definition: DomainDefinition) -> str | None:
    """Why this domain's traffic cannot be shaped."""
    for interface in definition.interfaces:
        if interface.bandwidth:
            return "libvirt <bandwidth> shapes this interface"
        if interface.kind == "vhostuser":
            return "a vhost-user interface bypasses the kernel's queues"
        if interface.kind == "hostdev":
            return "an SR-IOV interface bypasses the kernel's queues"
        if interface.openvswitch:
            return "Open vSwitch polices this interface itself"
    if not definition.taps:
        return "the domain has no tap interface"
    if len(definition.taps) > 1:
        return f"the domain has {len(definition.taps)} interfaces; only a single one can be shaped"
    return None


def migration_obstacle(definition: DomainDefinition, file_systems: Mapping[str, str]) -> str | None:
    """Why this domain cannot move to another host. A missing driver or agent in the guest is none, huge pages only ask for some there."""
    for device in definition.host_devices:
        return f"{_DEVICE_NAMES.get(device, f'a host device ({device})')} ties the guest to this host"
    if any(interface.kind == "hostdev" for interface in definition.interfaces):
        return "an SR-IOV interface ties the guest to this host"
    if definition.bound is not None:
        return definition.bound
    for disk in definition.disks:
        if disk.kind == "nvme":
            return f"disk {disk.target} is an NVMe device of this host"
        if disk.kind not in ("file", "dir") or disk.source is None:
            continue  # a network disk, a block device (taken for shared storage, as libvirt does), or an empty drive
        kind = file_system_of(disk.source, file_systems)
        if kind in SHARED_FILE_SYSTEMS:
            continue
        what = "CD or floppy drive" if disk.device in ("cdrom", "floppy") else "disk"
        return f"{what} {disk.target} is a file on this host only{f' ({kind})' if kind else ''}"
    return None


def file_system_of(path: str, file_systems: Mapping[str, str]) -> str | None:
    """Type of the file system that holds `path`; None where it is not known."""
    best = max((point for point in file_systems if path == point or path.startswith(point.rstrip("/") + "/")), key=len, default=None)
    return None if best is None else file_systems[best]


def parse_file_systems(mountinfo: str) -> dict[str, str]:
    """Mount point -> type, of /proc/self/mountinfo; the topmost where several lie on one point."""
    found = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) >= 5 and kinds:
            found[fields[4]] = kinds[0]
    return found


def _passed_through(definition: DomainDefinition) -> bool:
    """A device of the host that reads and writes guest memory by itself; a USB device does not."""
    return any(kind != "usb" for kind in definition.host_devices) or any(i.kind in ("hostdev", "vdpa") for i in definition.interfaces)
