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
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.sampling.files import KernelFiles
from shared.units import UNLIMITED

UNIFIED = ""  # the key of cgroup v2 in /proc/PID/cgroup, where a controller's name stands for v1
_LEAF = re.compile(r"^(emulator|vcpu\d+|iothread\d+)$")
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
    """Directories of one VM; None where it has no group of its own. Tuples go from the innermost outwards."""

    cpu: tuple[Path, ...] = ()  # where quota and shares are
    cpu_is_v2: bool = False
    unified: Path | None = None  # v2: usage and pressure
    cpuacct: Path | None = None  # v1: usage
    memory: tuple[Path, ...] = ()
    memory_is_v2: bool = False
    disk: Path | None = None  # where the weight is that libvirt sets: on the outermost


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


def read_mounts(files: KernelFiles) -> tuple[CgroupMount, ...]:
    """The cgroup mounts that we see."""
    return parse_mountinfo(files.read(files.proc / "self" / "mountinfo") or "")


def locate(files: KernelFiles, pid: int, mounts: Sequence[CgroupMount] | None = None) -> VmGroups:
    """The groups of the QEMU process `pid`. Looks through our own mounts (read when not given) first, then through those of the process."""
    paths = parse_proc_cgroup(files.read(files.proc / str(pid) / "cgroup") or "")
    if mounts is None:
        mounts = read_mounts(files)
    theirs = files.proc / str(pid)
    found = {}
    for key in (UNIFIED, "cpu", "cpuacct", "memory", "blkio"):
        group = domain_group(paths.get(key, "/"))
        if group is None:
            continue
        directory = _directory(mounts, key, group, files.cgroup, None)
        if directory is None:
            directory = _directory(parse_mountinfo(files.read(theirs / "mountinfo") or ""), key, group, files.cgroup, theirs / "root")
        if directory is not None:
            found[key] = directory
    return VmGroups(
        cpu=_outwards(found.get("cpu", found.get(UNIFIED))),
        cpu_is_v2="cpu" not in found,
        unified=found.get(UNIFIED),
        cpuacct=found.get("cpuacct"),
        memory=_outwards(found.get("memory", found.get(UNIFIED))),
        memory_is_v2="memory" not in found,
        disk=next(iter(_outwards(found.get("blkio", found.get(UNIFIED)))[-1:]), None),
    )


def _outwards(innermost: Path | None) -> tuple[Path, ...]:
    """The domain's own groups: with systemd libvirt makes a group `libvirt` inside the scope, and both belong to the VM alone."""
    if innermost is None:
        return ()
    return (innermost, innermost.parent) if innermost.name == "libvirt" else (innermost,)


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
