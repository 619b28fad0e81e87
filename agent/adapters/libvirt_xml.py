"""What a live libvirt domain definition says that matters to us. Pure: text in, frozen data out. Source: libvirt.org/formatdomain.html."""

from __future__ import annotations

from xml.etree import ElementTree  # the text comes from libvirtd, which has parsed and rewritten it: no DTD, no entities

import msgspec

from shared.model import Capabilities, Domain, Policy, Priority
from shared.units import KIB, UNLIMITED

POLICY_NAMESPACE = "urn:tidegate:policy:1"
_FIXED_MACHINES = ("isapc", "microvm")
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
}


class DomainDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """One domain as its live XML describes it."""

    vm_id: str
    name: str
    vcpus: int
    vcpus_max: int
    memory_max_bytes: int
    taps: tuple[str, ...] = ()
    bandwidth: bool = False  # libvirt shapes one of the interfaces
    passthrough: bool = False  # a host device pins the guest's memory and place
    balloon: bool = False
    balloon_period_s: int = 0  # 0 = the guest is not asked for statistics
    memory_pinned: str | None = None  # why memory cannot be given back
    vcpus_fixed: str | None = None
    disk_limit_bytes_per_s: int = UNLIMITED
    policy: Policy = Policy()
    policy_error: str | None = None


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
    interfaces = root.findall("devices/interface")
    policy, policy_error = _policy(root)
    period = None if balloon is None else balloon.find("stats")
    return DomainDefinition(
        vm_id=uuid,
        name=name,
        vcpus=int(vcpu.get("current", vcpus_max)),
        vcpus_max=vcpus_max,
        memory_max_bytes=int(memory.text or "0") * _UNITS[memory.get("unit", "KiB")],
        taps=tuple(target.get("dev", "") for target in (entry.find("target") for entry in interfaces) if target is not None),
        bandwidth=any(entry.find("bandwidth") is not None for entry in interfaces),
        passthrough=root.find("devices/hostdev") is not None or any(entry.get("type") == "hostdev" for entry in interfaces),
        balloon=balloon is not None and balloon.get("model") != "none",
        balloon_period_s=0 if period is None else int(period.get("period", "0")),
        memory_pinned=_memory_pinned(root),
        vcpus_fixed=_vcpus_fixed(root, vcpus_max),
        disk_limit_bytes_per_s=_disk_limit(root),
        policy=policy,
        policy_error=policy_error,
    )


def domain_of(definition: DomainDefinition, running: bool, shaping: bool, quota_obstacle: str | None = None) -> Domain:
    """The Domain of a definition. `shaping`: whether this agent shapes traffic at all; `quota_obstacle`: why it can have no CPU quota.

    A policy that cannot be read excludes its VM: better no change than one the owner may have forbidden.
    """
    balloon = None
    if not definition.balloon:
        balloon = "the domain has no balloon device"
    elif definition.passthrough:
        balloon = "a passed-through device pins the guest's memory"
    elif definition.memory_pinned is not None:
        balloon = definition.memory_pinned
    shape = shaping_obstacle(definition) if shaping else "the agent shapes no traffic here"
    return Domain(
        vm_id=definition.vm_id,
        name=definition.name,
        running=running,
        vcpus_max=definition.vcpus_max,
        memory_max_bytes=definition.memory_max_bytes,
        tap=definition.taps[0] if definition.taps else None,
        policy=definition.policy,
        capabilities=Capabilities(
            balloon=balloon,
            vcpu_hot_add=definition.vcpus_fixed,
            cpu_quota=quota_obstacle,
            shape_rx=shape,
            shape_tx=shape,
            migrate="a passed-through device ties the guest to this host" if definition.passthrough else "not probed",
        ),
    )


def shaping_obstacle(definition: DomainDefinition) -> str | None:
    """Why this domain's traffic cannot be shaped; None when it can."""
    if definition.bandwidth:
        return "libvirt <bandwidth> shapes this interface"
    if not definition.taps:
        return "the domain has no tap interface"
    if len(definition.taps) > 1:
        return f"the domain has {len(definition.taps)} interfaces; only a single one can be shaped"
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


def _vcpus_fixed(root: ElementTree.Element, vcpus_max: int) -> str | None:
    if vcpus_max == 1:
        return "the domain is defined with a single vCPU"
    system = root.find("os/type")
    machine = "" if system is None else system.get("machine", "")
    if machine.startswith(_FIXED_MACHINES):
        return f"machine type {machine} cannot take vCPUs while running"
    return None


def _disk_limit(root: ElementTree.Element) -> int:
    """Sum over the disks of their <iotune>; UNLIMITED as soon as one disk has no limit, or there is no disk."""
    total = 0
    disks = [disk for disk in root.findall("devices/disk") if disk.get("device", "disk") == "disk"]
    for disk in disks:
        limits = {entry.tag: int(entry.text or "0") for entry in disk.findall("iotune/*") if (entry.text or "").isdigit()}
        both = limits.get("read_bytes_sec", 0), limits.get("write_bytes_sec", 0)
        limit = limits.get("total_bytes_sec", 0) or (sum(both) if all(both) else 0)
        if not limit:
            return UNLIMITED
        total += limit
    return total if disks else UNLIMITED


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
        return msgspec.convert(fields, Policy, strict=False), None
    except msgspec.ValidationError as error:
        return Policy(excluded=True), f"metadata {POLICY_NAMESPACE}: {error}; allowed are {', '.join(Policy.__struct_fields__)}"
