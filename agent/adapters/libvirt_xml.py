"""What a live libvirt domain definition says that matters to us. Pure: text in, frozen data out. Source: libvirt.org/formatdomain.html.

Memory, as libvirt 9 and QEMU 7.2 count it: `<memory>` is what the domain was started with, plus every DIMM, plus the full size of every
virtio-mem device; the balloon covers the first two and knows nothing of the third. DIMMs of ours are a lever of their own: what the
balloon's lever calls memory is without them, so that neither lever moves the other's value.
"""

from __future__ import annotations

from typing import Final
from xml.etree import ElementTree  # the text comes from libvirtd, which has parsed and rewritten it: no DTD, no entities

import msgspec

from shared.model import Mode, Policy, Priority
from shared.units import KIB, UNLIMITED

POLICY_NAMESPACE = "urn:tidegate:policy:1"
OWED_NAMESPACE: Final = "urn:tidegate:owed:1"
DIMM_ALIAS: Final = "ua-tidegate-"  # libvirt leaves aliases that begin with "ua-" to its users
THROTTLE_GROUP: Final = "tidegate"  # of our disk limits: shared by all disks, and the name that tells ours from an owner's
MOST_THROTTLE: Final = 10**15  # THROTTLE_VALUE_MAX of QEMU: a limit that nothing reaches
_UNITS = {
    "b": 1,
    "bytes": 1,
    "KB": 10**3,
    "k": KIB,
    "KiB": KIB,
    "MB": 10**6,
    "M": KIB**2,
    "MiB": KIB**2,
    "GB": 10**9,
    "G": KIB**3,
    "GiB": KIB**3,
    "TiB": KIB**4,
}


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """One drive."""

    target: str  # "vda"
    device: str = "disk"  # or cdrom, floppy, lun
    kind: str = "file"  # or block, network, volume, ...
    source: str | None = None  # path of a file or device; None = an empty drive, or no path
    present: bool = True  # something is in the drive
    iotune: dict[str, int] = {}
    group: str = ""


class Dimm(msgspec.Struct, frozen=True, kw_only=True):
    """One DIMM that was plugged in by us; `xml` is what detaches it."""

    number: int
    size_bytes: int
    xml: str


class VirtioMem(msgspec.Struct, frozen=True, kw_only=True):
    """One virtio-mem device; `xml` is the device as it stands."""

    size_bytes: int
    block_bytes: int
    requested_bytes: int
    current_bytes: int
    xml: str


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """One network interface."""

    kind: str  # bridge, ethernet, network, vhostuser, hostdev, ...
    tap: str = ""
    openvswitch: bool = False
    bandwidth: bool = False


class OwedQuota(msgspec.Struct, frozen=True, kw_only=True):
    """A quota over all vCPUs that is to be divided anew when the domain has `vcpus` of them; kept in the domain's own metadata."""

    vcpus: int
    millicores: int
    at_s: int  # Unix time


class DomainDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """One domain as its live XML describes it."""

    vm_id: str
    name: str
    kind: str = "kvm"  # "qemu" = TCG
    arch: str = "x86_64"
    machine: str = ""
    vcpus: int
    vcpus_max: int
    vcpus_removable: int | None = None  # plugged in and not there since the start; None = not said
    memory_max_bytes: int  # of the balloon, without DIMMs of ours
    interfaces: tuple[Interface, ...] = ()
    disks: tuple[Disk, ...] = ()
    balloon: bool = False
    balloon_period_s: int = 0  # 0 = the guest is not asked for statistics
    virtio_mem: tuple[VirtioMem, ...] = ()
    dimms: tuple[Dimm, ...] = ()  # of ours, oldest first
    dimm_slots_free: int | None = None  # None = the domain was defined without <maxMemory>
    dimm_room_bytes: int = 0  # below <maxMemory>
    numa_cell: bool = False
    guest_agent: bool | None = None  # its channel is connected; None = there is no channel
    host_devices: tuple[str, ...] = ()  # pci, usb, mdev, ...
    memory_pinned: str | None = None  # why memory cannot be given back
    bound: str | None = None  # why the guest belongs to this host's CPUs, nodes or files
    policy: Policy = Policy()
    policy_error: str | None = None
    owed: OwedQuota | None = None

    @property
    def taps(self) -> tuple[str, ...]:
        """Interfaces of the host that lead to this guest."""
        return tuple(interface.tap for interface in self.interfaces if interface.tap)

    @property
    def limited_disks(self) -> tuple[Disk, ...]:
        """The disks that a limit has to cover: no CD and floppy drives, nothing that QEMU does not read itself."""
        return tuple(disk for disk in self.disks if disk.device == "disk" and disk.kind != "vhostuser" and disk.present)

    @property
    def disk_limit_bytes_per_s(self) -> int:
        """Over all disks; UNLIMITED as soon as one has no limit, or there is none."""
        return _disk_limit(self.limited_disks, "bytes_sec")

    @property
    def disk_ops_limit_per_s(self) -> int:
        """As `disk_limit_bytes_per_s`, in operations."""
        return _disk_limit(self.limited_disks, "iops_sec")

    @property
    def virtio_mem_bytes(self) -> int:
        """What the guest has of its virtio-mem devices."""
        return sum(device.current_bytes for device in self.virtio_mem)

    @property
    def dimm_bytes(self) -> int:
        """Plugged in as DIMMs of ours."""
        return sum(dimm.size_bytes for dimm in self.dimms)


def parse_definition(text: str) -> DomainDefinition:
    """The definition in a domain's XML. Raises ValueError when it is not one."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"domain XML: {error}") from error
    vcpu, balloon = root.find("vcpu"), root.find("devices/memballoon")
    uuid, name, memory = root.findtext("uuid"), root.findtext("name"), root.find("memory")
    if vcpu is None or memory is None or not uuid or not name:
        raise ValueError("domain XML: uuid, name, vcpu or memory is missing")
    vcpus_max = int(vcpu.text or "1")
    system, period = root.find("os/type"), None if balloon is None else balloon.find("stats")
    devices = root.findall("devices/memory")
    virtio_mem = tuple(_virtio_mem(device) for device in devices if device.get("model") == "virtio-mem")
    dimms = tuple(sorted((dimm for dimm in map(_own_dimm, devices) if dimm is not None), key=lambda dimm: dimm.number))
    total, most = _bytes(memory), root.find("maxMemory")
    policy, policy_error = _policy(root)
    return DomainDefinition(
        vm_id=uuid,
        name=name,
        kind=root.get("type", "kvm"),
        arch="x86_64" if system is None else system.get("arch", "x86_64"),
        machine="" if system is None else system.get("machine", ""),
        vcpus=int(vcpu.get("current", vcpus_max)),
        vcpus_max=vcpus_max,
        vcpus_removable=_removable(root),
        memory_max_bytes=total - sum(device.size_bytes for device in virtio_mem) - sum(dimm.size_bytes for dimm in dimms),
        interfaces=tuple(_interface(entry) for entry in root.findall("devices/interface")),
        disks=tuple(_disk(entry) for entry in root.findall("devices/disk")),
        balloon=balloon is not None and balloon.get("model") != "none",
        balloon_period_s=0 if period is None else int(period.get("period", "0")),
        virtio_mem=virtio_mem,
        dimms=dimms,
        dimm_slots_free=None if most is None else max(0, int(most.get("slots", "0")) - sum(_takes_slot(device) for device in devices)),
        dimm_room_bytes=0 if most is None else max(0, _bytes(most) - total),
        numa_cell=root.find("cpu/numa/cell") is not None,
        guest_agent=_guest_agent(root),
        host_devices=tuple(entry.get("type", "?") for entry in root.findall("devices/hostdev")),
        memory_pinned=_memory_pinned(root),
        bound=_bound(root),
        policy=policy,
        policy_error=policy_error,
        owed=_owed(root),
    )


def with_requested(device: VirtioMem, requested_bytes: int) -> str:
    """The device's XML with another <requested> and without <current>, as libvirt's updateDevice wants it."""
    element = ElementTree.fromstring(device.xml)
    target, requested = element.find("target"), element.find("target/requested")
    if target is None or requested is None:
        raise ValueError("virtio-mem device without target or requested size")
    requested.text = str(requested_bytes // KIB)
    requested.set("unit", "KiB")
    for current in target.findall("current"):
        target.remove(current)
    return _xml(element)


def owed_xml(owed: OwedQuota) -> str:
    """For libvirt's setMetadata, which puts the namespace to it."""
    return f"<owed vcpus='{owed.vcpus}' millicores='{owed.millicores}' at_s='{owed.at_s}'/>"


def dimm_xml(number: int, size_bytes: int) -> str:
    """A DIMM of ours for libvirt's attachDevice, on the first NUMA cell."""
    size = f"<target><size unit='KiB'>{size_bytes // KIB}</size><node>0</node></target>"
    return f"<memory model='dimm'>{size}<alias name='{DIMM_ALIAS}{number}'/></memory>"


def _bytes(element: ElementTree.Element | None) -> int:
    if element is None:
        return 0
    unit = element.get("unit", "KiB")
    if unit not in _UNITS:
        raise ValueError(f"domain XML: {element.tag}: unit {unit[:32]!r}")
    return int(element.text or "0") * _UNITS[unit]


def _xml(element: ElementTree.Element) -> str:
    return ElementTree.tostring(element, encoding="unicode").strip()


def _virtio_mem(device: ElementTree.Element) -> VirtioMem:
    return VirtioMem(
        size_bytes=_bytes(device.find("target/size")),
        block_bytes=_bytes(device.find("target/block")) or 2 * KIB**2,
        requested_bytes=_bytes(device.find("target/requested")),
        current_bytes=_bytes(device.find("target/current")),
        xml=_xml(device),
    )


def _own_dimm(device: ElementTree.Element) -> Dimm | None:
    alias = device.find("alias")
    number = "" if alias is None else alias.get("name", "").removeprefix(DIMM_ALIAS)
    if device.get("model") != "dimm" or not number.isdigit():
        return None
    return Dimm(number=int(number), size_bytes=_bytes(device.find("target/size")), xml=_xml(device))


def _takes_slot(device: ElementTree.Element) -> bool:
    return device.get("model") in ("dimm", "nvdimm")


def _removable(root: ElementTree.Element) -> int | None:
    entries = root.findall("vcpus/vcpu")
    if not entries:
        return None
    return sum(entry.get("enabled") == "yes" and entry.get("hotpluggable") == "yes" for entry in entries)


def _interface(entry: ElementTree.Element) -> Interface:
    target, port = entry.find("target"), entry.find("virtualport")
    return Interface(
        kind=entry.get("type", ""),
        tap="" if target is None else target.get("dev", ""),
        openvswitch=port is not None and port.get("type") == "openvswitch",
        bandwidth=entry.find("bandwidth") is not None,
    )


def _disk(entry: ElementTree.Element) -> Disk:
    source, target = entry.find("source"), entry.find("target")
    return Disk(
        target="" if target is None else target.get("dev", ""),
        device=entry.get("device", "disk"),
        kind=entry.get("type", "file"),
        source=None if source is None else source.get("file") or source.get("dev"),
        present=source is not None or entry.get("device", "disk") == "disk",
        iotune={limit.tag: int(limit.text or "0") for limit in entry.findall("iotune/*") if (limit.text or "").isdigit()},
        group=entry.findtext("iotune/group_name") or "",
    )


def _disk_limit(disks: tuple[Disk, ...], unit: str) -> int:
    """Disks of one throttle group share its limit; disks of none have each their own."""
    groups, total = set(), 0
    for disk in disks:
        both = disk.iotune.get(f"read_{unit}", 0), disk.iotune.get(f"write_{unit}", 0)
        limit = disk.iotune.get(f"total_{unit}", 0) or (sum(both) if all(both) else 0)
        if not 0 < limit < MOST_THROTTLE:
            return UNLIMITED
        if not disk.group or disk.group not in groups:
            total += limit
        groups.add(disk.group)
    return total if disks else UNLIMITED


def _guest_agent(root: ElementTree.Element) -> bool | None:
    for target in root.findall("devices/channel/target"):
        if target.get("name") == "org.qemu.guest_agent.0":
            return target.get("state") == "connected"
    return None


def _memory_pinned(root: ElementTree.Element) -> str | None:
    for path, reason in (
        ("memoryBacking/locked", "the domain's memory is locked"),
        ("memoryBacking/hugepages", "huge pages are not given back by a balloon"),
        ("launchSecurity", "encrypted guest memory is pinned"),
    ):
        if root.find(path) is not None:
            return reason
    return None


def _bound(root: ElementTree.Element) -> str | None:
    vcpu = root.find("vcpu")
    if root.find("cputune/vcpupin") is not None or (vcpu is not None and vcpu.get("cpuset")):
        return "its vCPUs are pinned to CPUs of this host"
    memory = root.find("numatune/memory")
    if memory is not None and memory.get("mode", "strict") in ("strict", "restrictive") and memory.get("nodeset"):
        return f"its memory is bound to NUMA nodes {memory.get('nodeset')} of this host"
    for path, reason in (
        ("devices/shmem", "it shares memory with processes of this host"),
        ("devices/filesystem", "a directory of this host is mounted in the guest"),
        ("devices/memory[@model='nvdimm']", "its NVDIMM is a file of this host"),
        ("launchSecurity", "encrypted guest memory cannot be moved"),
    ):
        if root.find(path) is not None:
            return reason
    return None


def _owed(root: ElementTree.Element) -> OwedQuota | None:
    element = root.find(f"metadata/{{{OWED_NAMESPACE}}}owed")
    if element is None:
        return None
    try:
        return msgspec.convert(dict(element.attrib), OwedQuota, strict=False)
    except msgspec.ValidationError:  # not written by us: nothing is owed
        return None


def _policy(root: ElementTree.Element) -> tuple[Policy, str | None]:
    """`<t:policy xmlns:t="urn:tidegate:policy:1" priority="high" cpu_floor_millicores="500"/>`: attributes are Policy's fields."""
    element = root.find(f"metadata/{{{POLICY_NAMESPACE}}}policy")
    if element is None:
        return Policy(), None
    fields: dict[str, object] = dict(element.attrib)
    priority = str(fields.get("priority", "normal")).upper()
    if priority in Priority.__members__:
        fields["priority"] = Priority[priority].value
    try:
        if strange := sorted(fields.keys() - set(Policy.__struct_fields__)):
            raise msgspec.ValidationError(f"unknown attribute {strange[0]}")
        policy = msgspec.convert(fields, Policy, strict=False)
        return (msgspec.structs.replace(policy, excluded=True) if policy.mode in (Mode.OFF, Mode.OBSERVE) else policy), None
    except msgspec.ValidationError as error:
        return Policy(excluded=True), f"metadata {POLICY_NAMESPACE}: {error}; allowed are {', '.join(Policy.__struct_fields__)}"
