"""Control groups of a VM, in every layout that libvirt uses: v1, v2 and hybrid, with and without systemd scopes.

The path comes from /proc/PID/cgroup and the mounts from mountinfo; nothing is assumed or built. libvirt nests like this:

    <machine partition>/qemu-1-web.libvirt-qemu/{emulator,vcpu0,vcpu1}                           no systemd
    machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt/{emulator,vcpu0,vcpu1}                systemd

`emulator` holds QEMU's main thread, so its path minus the leaf is the domain's group. A path that has no such group (a controller that
libvirt leaves to the root, a QEMU started by hand) belongs to others as well and is not used.
Both paths and mount roots are shown relative to the *reader's* cgroup namespace, possibly as `/../x`; they are compared as such.
Source: Documentation/admin-guide/cgroup-v2.rst, scheduler/sched-bwc.rst, man 7 cgroup_namespaces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from agent.sampling.files import KernelFiles, parse_flat, read_int
from shared.units import UNLIMITED

UNIFIED = ""  # the key of cgroup v2 in /proc/PID/cgroup, where a controller's name stands for v1
_LEAF = re.compile(r"^(emulator|vcpu\d+|iothread\d+)$")
_VCPU = re.compile(r"^vcpu\d+$")
_DOMAIN_GROUP = re.compile(r"(\.libvirt-qemu|^machine-qemu.*\.scope)$")
_ESCAPE = re.compile(r"\\([0-7]{3})")
DEFAULT_SHARES = 1024  # v1
DEFAULT_WEIGHT = 100  # v2


class CgroupMount(msgspec.Struct, frozen=True, kw_only=True):
    """One mounted hierarchy. `controllers` holds UNIFIED for cgroup v2."""

    controllers: frozenset[str]
    root: str
    mount_point: str


class VmGroups(msgspec.Struct, frozen=True, kw_only=True):
    """Directories of one VM; None where it has no group of its own. `domain` groups go from the innermost outwards."""

    cpu: tuple[Path, ...] = ()  # where quota and shares are
    cpu_is_v2: bool = False
    unified: Path | None = None  # v2: usage and pressure
    cpuacct: Path | None = None  # v1: usage


class CpuReading(msgspec.Struct, frozen=True, kw_only=True):
    """CPU accounting and limits of one VM."""

    used_ns_total: int | None = None
    throttled_ns_total: int | None = None  # of the domain's groups and of each vCPU's; not of emulator and I/O threads
    quota_millicores: int | None = None  # over all vCPUs; UNLIMITED = none
    shares: int | None = None  # v1 scale


def parse_proc_cgroup(text: str) -> dict[str, str]:
    """/proc/PID/cgroup: controller -> path (UNIFIED for v2; `name=systemd` as it stands)."""
    paths = {}
    for line in text.splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            for controller in fields[1].split(","):
                paths[controller] = fields[2]
    return paths


def parse_mountinfo(text: str) -> tuple[CgroupMount, ...]:
    """The cgroup mounts of a mountinfo, v1 and v2."""
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) < 5 or len(kinds) < 3 or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        controllers = {UNIFIED} if kinds[0] == "cgroup2" else set(kinds[2].split(",")) - {"rw", "ro"}
        mounts.append(CgroupMount(controllers=frozenset(controllers), root=_unescape(fields[3]), mount_point=_unescape(fields[4])))
    return tuple(mounts)


def below(path: str, root: str) -> str | None:
    """`path` relative to `root`, both absolute and possibly starting with `/..`; None when it lies outside.

    ("/../a/b", "/..") -> "a/b"; ("/a/b", "/a") -> "b"; ("/a", "/..") -> None, because the name of our own group is unknown.
    """
    parts, base = [part for part in path.split("/") if part], [part for part in root.split("/") if part]
    if parts[: len(base)] != base or ".." in parts[len(base) :]:
        return None
    return "/".join(parts[len(base) :])


def domain_group(path: str) -> str | None:
    """The domain's innermost group on the way to `path`; None when the path is not below one."""
    parts = path.rstrip("/").split("/")
    if _LEAF.match(parts[-1]):
        parts.pop()
    inner = parts[-2:] if parts[-1] == "libvirt" else parts[-1:]
    return "/".join(parts) if _DOMAIN_GROUP.search(inner[0]) else None


def locate(files: KernelFiles, pid: int) -> VmGroups:
    """The groups of the QEMU process `pid`. Looks through our own mounts first, then through those of the process."""
    paths = parse_proc_cgroup(files.read(files.proc / str(pid) / "cgroup") or "")
    mounts = parse_mountinfo(files.read(files.proc / "self" / "mountinfo") or "")
    theirs = files.proc / str(pid)
    found = {}
    for key in (UNIFIED, "cpu", "cpuacct"):
        group = domain_group(paths.get(key, "/"))
        if group is None:
            continue
        directory = _directory(mounts, key, group, files.cgroup, None)
        if directory is None:
            directory = _directory(parse_mountinfo(files.read(theirs / "mountinfo") or ""), key, group, files.cgroup, theirs / "root")
        if directory is not None:
            found[key] = directory
    innermost = found.get("cpu", found.get(UNIFIED))
    cpu: tuple[Path, ...] = ()
    if innermost is not None:
        cpu = (innermost, innermost.parent) if innermost.name == "libvirt" else (innermost,)
    return VmGroups(cpu=cpu, cpu_is_v2="cpu" not in found, unified=found.get(UNIFIED), cpuacct=found.get("cpuacct"))


def read_cpu(files: KernelFiles, groups: VmGroups) -> CpuReading:
    """Usage, throttled time, quota and shares of a VM."""
    if not groups.cpu:
        return CpuReading(used_ns_total=_used(files, groups))
    vcpus = tuple(groups.cpu[0] / name for name in files.names(groups.cpu[0]) if _VCPU.match(name))
    throttled = [_throttled(files, group) for group in (*groups.cpu, *vcpus)]
    known = [value for value in throttled if value is not None]
    return CpuReading(
        used_ns_total=_used(files, groups),
        throttled_ns_total=sum(known) if known else None,
        quota_millicores=_quota(files, groups, vcpus),
        shares=_shares(files, groups),
    )


def parse_cpu_max(text: str) -> float | None:
    """v2 cpu.max, `max 100000` or `20000 100000`: CPUs allowed; infinity = no quota; None = another shape."""
    fields = text.split()
    if len(fields) != 2 or not fields[1].isdigit() or int(fields[1]) == 0:
        return None
    if fields[0] == "max":
        return float("inf")
    return int(fields[0]) / int(fields[1]) if fields[0].isdigit() else None


def quota_millicores(per_vcpu: Sequence[float], overall: Sequence[float]) -> int:
    """Millicores that quotas (in CPUs, infinity = none) allow: the sum over vCPUs or the tightest group around, whichever is less.

    Two vCPUs of 0.25 under a group of 2.0: 500. No finite quota anywhere: UNLIMITED.
    """
    least = min([sum(per_vcpu) if per_vcpu else float("inf"), *overall])
    return UNLIMITED if least == float("inf") else round(least * 1000)


def shares_of_weight(weight: int) -> int:
    """v1 shares of a v2 weight, default to default (100 -> 1024)."""
    return max(2, round(weight * DEFAULT_SHARES / DEFAULT_WEIGHT))


def weight_of_shares(shares: int) -> int:
    """v2 weight (1..10000) of v1 shares, default to default (1024 -> 100)."""
    return min(10_000, max(1, round(shares * DEFAULT_WEIGHT / DEFAULT_SHARES)))


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def _directory(mounts: Sequence[CgroupMount], controller: str, path: str, cgroup_root: Path, process_root: Path | None) -> Path | None:
    for mount in mounts:
        relative = below(path, mount.root) if controller in mount.controllers else None
        if relative is None:
            continue
        if process_root is not None:
            return process_root / mount.mount_point.lstrip("/") / relative
        inside = Path(mount.mount_point)
        usual = Path("/sys/fs/cgroup")
        return (cgroup_root / inside.relative_to(usual) if inside.is_relative_to(usual) else inside) / relative
    return None


def _used(files: KernelFiles, groups: VmGroups) -> int | None:
    if groups.unified is not None:
        microseconds = _stat(files, groups.unified).get("usage_usec")
        if microseconds is not None:
            return microseconds * 1000
    return None if groups.cpuacct is None else read_int(files, groups.cpuacct / "cpuacct.usage")


def _stat(files: KernelFiles, group: Path) -> Mapping[str, int]:
    return parse_flat(files.read(group / "cpu.stat") or "")


def _throttled(files: KernelFiles, group: Path) -> int | None:
    stat = _stat(files, group)
    if "throttled_time" in stat:
        return stat["throttled_time"]
    return stat["throttled_usec"] * 1000 if "throttled_usec" in stat else None


def _quota(files: KernelFiles, groups: VmGroups, vcpus: Sequence[Path]) -> int | None:
    per_vcpu = [_cpus_allowed(files, group, groups.cpu_is_v2) for group in vcpus]
    overall = [_cpus_allowed(files, group, groups.cpu_is_v2) for group in groups.cpu]
    known_vcpu = [value for value in per_vcpu if value is not None]
    known_overall = [value for value in overall if value is not None]
    if len(known_vcpu) < len(per_vcpu) or not (known_vcpu or known_overall):
        return None
    return quota_millicores(known_vcpu, known_overall)


def _cpus_allowed(files: KernelFiles, group: Path, is_v2: bool) -> float | None:
    if is_v2:
        return parse_cpu_max(files.read(group / "cpu.max") or "")
    quota, period = read_int(files, group / "cpu.cfs_quota_us"), read_int(files, group / "cpu.cfs_period_us")
    if quota is None or not period:
        return None
    return float("inf") if quota < 0 else quota / period


def _shares(files: KernelFiles, groups: VmGroups) -> int | None:
    outermost = groups.cpu[-1]  # with systemd libvirt sets shares on the scope, which is what competes with the other scopes
    if groups.cpu_is_v2:
        weight = read_int(files, outermost / "cpu.weight")
        return None if weight is None else shares_of_weight(weight)
    return read_int(files, outermost / "cpu.shares")
