"""Records tests/fixtures/kernel_trees from real runs: `python tests/realhost/record_trees.py [NAME ...]` (root, a minute each).

`v1-hybrid-plain` is this machine's libvirt with a busy, throttled guest (only on a machine with v1 and hybrid cgroups). The v2 trees are
recorded inside a guest with Debian's kernel: cgroup2 mounted, groups made and named as libvirt does without and with systemd, a stand-in
for QEMU (stand_in.c) in them, so that quotas, memory.high, I/O and pressure have real values.
Left out or replaced, because it would tell of the machine: QEMU's command line but for its UUID, mounts other than cgroups, our own group.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from real_host import CACHE, HERE, Guest, RealHost, reason_to_skip, wait_for

from agent.adapters.kernel_files import RootedFiles
from agent.adapters.libvirt_host import open_libvirt_host
from agent.sampling.cgroup import UNIFIED, parse_mountinfo, parse_proc_cgroup
from agent.sampling.process import find_qemu

sys.path.insert(0, str(HERE.parent / "contract"))
from kernel_tree import pack

TREES = HERE.parent / "fixtures" / "kernel_trees"
MOST_BYTES = 16_384
HOST_FILES = (
    "meminfo",
    "stat",
    "loadavg",
    "pressure/cpu",
    "pressure/memory",
    "pressure/io",
    "sys/kernel/random/boot_id",
    "net/route",
    "self/net/dev",
)
PROCESS_FILES = ("comm", "cgroup", "stat", "statm", "status", "io", "net/dev")
TASK_FILES = ("comm", "schedstat", "stat")
UUID = "aaaaaaaa-0000-4000-8000-00000000000"


class Recording:
    """Files and links by the path they have below the roots `proc`, `sys` and `cgroup`."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.links: dict[str, str] = {}

    def cgroup_mounts_only(self, name: str) -> None:
        lines = self.files[name].splitlines(keepends=True)
        self.files[name] = "".join(line for line in lines if " - cgroup" in line)

    def save(self, name: str, head: str, domains: Mapping[str, object]) -> None:
        self.files["domains.json"] = json.dumps(domains, indent=1, sort_keys=True) + "\n"
        TREES.mkdir(parents=True, exist_ok=True)
        (TREES / f"{name}.tree").write_text(pack(head, self.files, self.links))
        print(f"{name}: {len(self.files)} files")


def record_host() -> None:
    """The v1 and hybrid tree."""
    with RealHost() as host:
        guest = host.define_guest("golden", vcpus=2, vcpus_max=2, disks=1)
        hypervisor, _ = open_libvirt_host(libvirt_uri=host.uri, network_namespace=host.netns, guest_probe_s=0)
        guest.domain.setSchedulerParametersFlags({"vcpu_quota": 20_000, "vcpu_period": 100_000, "cpu_shares": 2048}, 1)
        guest.cpu(1000, 2)
        guest.mem(24)
        guest.net(2000)
        guest.sh("dd if=/dev/vda of=/dev/null bs=1M count=8 2>&1")
        pid = find_qemu(RootedFiles())[guest.vm_id]
        groups = parse_proc_cgroup(Path(f"/proc/{pid}/cgroup").read_text())
        mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_text())
        directories = {
            key: Path(mount.mount_point + path.removesuffix("/emulator"))
            for mount in mounts
            for key, path in groups.items()
            if key in mount.controllers and "qemu-" in path
        }
        wait_for(lambda: "nr_throttled 0\n" not in (directories["cpu"] / "vcpu0/cpu.stat").read_text(), "throttling", 30)
        wait_for(lambda: hypervisor.bulk_stats()[guest.vm_id].get("balloon.usable"), "the guest's balloon statistics", 30)
        recording = _copy(pid, directories.values())
        running = [msgspec.to_builtins(domain) for domain in hypervisor.running()]
        stats = {vm_id: dict(values) for vm_id, values in hypervisor.bulk_stats().items()}
        hypervisor.close()
    for name in ("self/mountinfo", f"{pid}/mountinfo"):
        recording.cgroup_mounts_only(f"proc/{name}")
    recording.files[f"proc/{pid}/cmdline"] = f"qemu-system-x86_64\0-uuid\0{guest.vm_id}\0"
    _hide_our_group(recording)
    for values in stats.values():
        for key in [key for key in values if key.endswith((".path", ".name"))]:
            del values[key]
    head = (
        "cgroup v1 and v2 beside it (hybrid), no systemd: libvirt 9.0, QEMU 7.2, Linux 6.18; quota, shares, load, disk and network in use"
    )
    recording.save("v1-hybrid-plain", head, {"running": running, "stats": stats})


def _copy(pid: int, directories: Iterable[Path]) -> Recording:
    recording = Recording()
    proc = Path("/proc")
    for name in (*HOST_FILES, "self/mountinfo", f"{pid}/mountinfo", *(f"{pid}/{name}" for name in PROCESS_FILES)):
        recording.files[f"proc/{name}"] = (proc / name).read_text()
    for task in (proc / str(pid) / "task").iterdir():
        for name in TASK_FILES:
            recording.files[f"proc/{pid}/task/{task.name}/{name}"] = (task / name).read_text()
    for owner in ("self", str(pid)):
        recording.links[f"proc/{owner}/ns/net"] = str((proc / owner / "ns/net").readlink())
    for name in ("cpulist", "meminfo"):
        recording.files[f"sys/devices/system/node/node0/{name}"] = Path(f"/sys/devices/system/node/node0/{name}").read_text()
    for directory in directories:
        for path in sorted(directory.rglob("*")):
            try:
                text = path.read_text() if path.is_file() else ""
            except OSError:  # write-only, or not for this hierarchy
                continue
            if text and len(text) <= MOST_BYTES and not path.name.startswith(("cgroup.", "tasks")):
                recording.files[f"cgroup/{path.relative_to('/sys/fs/cgroup')}"] = text
    return recording


def _hide_our_group(recording: Recording) -> None:
    own = max(parse_proc_cgroup(Path("/proc/self/cgroup").read_text()).values(), key=len)
    if own == "/":
        return
    recording.files = {name.replace(own.lstrip("/"), "caller"): text.replace(own, "/caller") for name, text in recording.files.items()}


def record_v2() -> None:
    """Both v2 trees, in one guest."""
    with RealHost() as host:
        guest = _boot(host)
        guest.sh("mount -t cgroup2 cgroup2 /sys/fs/cgroup; echo '+cpu +memory +io' > /sys/fs/cgroup/cgroup.subtree_control")
        plain = _start(guest, 1, "machine", "qemu-1-web.libvirt-qemu", "")
        scope = _start(guest, 2, "machine.slice", "machine-qemu\\x2d2\\x2ddb.scope", "libvirt")
        for pid, group in (plain, scope):

            def filled(group: str = group) -> bool:
                wanted = ("vcpu0/cpu.stat:nr_throttled", "memory.events:high", "memory.stat:anon", "io.stat:rbytes")
                shown = {name: _sh(guest, f"cat '{group}/{name.split(':')[0]}'") for name in wanted}
                values = {name: re.search(rf"{name.split(':')[1]}[ =](\d+)", text) for name, text in shown.items()}
                return all(match is not None and int(match[1]) > 0 for match in values.values())

            wait_for(filled, f"values in {group} of {pid}", 60)
        for name, (pid, group), number in (("v2-plain", plain, 1), ("v2-systemd", scope, 2)):
            recording = _fetch(guest, pid, group)
            recording.files[f"proc/{pid}/cmdline"] = f"qemu-system-x86_64\0-uuid\0{UUID}{number}\0"
            for owner in ("self", str(pid)):
                recording.cgroup_mounts_only(f"proc/{owner}/mountinfo")
            running = [{"vm_id": f"{UUID}{number}"}]
            kernel = _sh(guest, "cat /proc/sys/kernel/osrelease").strip()
            manner = "with" if number == 2 else "without"
            head = f"cgroup v2 alone, groups as libvirt makes them {manner} systemd: Linux {kernel} in a guest, a stand-in for QEMU"
            recording.save(name, head, {"running": running, "stats": {}})


def _boot(host: RealHost) -> Guest:
    """A guest whose initramfs also has the stand-in: archives may follow each other in one image."""
    image = host.directory / "initrd-v2.img"
    with tempfile.TemporaryDirectory() as work:
        root = Path(work) / "root"
        (root / "bin").mkdir(parents=True)
        program = root / "bin" / "qemu-system-x86_64"
        subprocess.run(["gcc", "-O1", "-static", "-pthread", "-o", program, HERE / "stand_in.c"], check=True)
        names = "bin\nbin/qemu-system-x86_64\n"
        archive = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], input=names.encode(), cwd=root, capture_output=True, check=True)
    image.write_bytes((CACHE / "initrd.img").read_bytes() + gzip.compress(archive.stdout, 1))
    ip = "10.77.9.2/24"
    xml = host.domain_xml("golden2", 2, 2, 192, 192, ip, disks=1)
    guest = Guest(host, "golden2", xml.replace(str(CACHE / "initrd.img"), str(image)), ip)
    host.guests.append(guest)
    guest.wait_until_up()
    return guest


def _start(guest: Guest, number: int, partition: str, name: str, nested: str) -> tuple[int, str]:
    """A stand-in in its groups; (pid, its innermost group). Shares go to the outermost group of a VM, as libvirt has it."""
    top = f"/sys/fs/cgroup/{partition}"
    outer = f"{top}/{name}"
    inner = f"{outer}/{nested}".rstrip("/")
    lines = [
        f"mkdir {top} '{outer}'",
        f"echo '+cpu +memory +io' > {top}/cgroup.subtree_control",
        f"echo 200 > '{outer}/cpu.weight'",
        *([f"mkdir '{inner}'; echo '+cpu +memory +io' > '{outer}/cgroup.subtree_control'"] if nested else []),
        f"for leaf in emulator vcpu0 vcpu1; do mkdir '{inner}'/$leaf; echo threaded > '{inner}'/$leaf/cgroup.type; done",
        f"echo +cpu > '{inner}/cgroup.subtree_control'",
        f"echo 12M > '{inner}/memory.high'",
        f"for leaf in vcpu0 vcpu1; do echo '15000 50000' > '{inner}'/$leaf/cpu.max; done",
        f"(qemu-system-x86_64 -uuid {UUID}{number} 2 20 /dev/vda > /dev/null 2>&1 & echo $! > /tmp/pid{number})",
    ]
    for line in lines:
        answer = _sh(guest, f"{line} 2>&1")
        assert not answer, f"{line}: {answer}"
    pid = int(_sh(guest, f"cat /tmp/pid{number}"))
    wait_for(lambda: "CPU 1/KVM" in _sh(guest, f"cat /proc/{pid}/task/*/comm"), "the stand-in's threads")
    _sh(guest, f"echo {pid} > '{inner}/cgroup.procs'")
    for tid in _sh(guest, f"ls /proc/{pid}/task").split():
        thread = re.match(r"CPU (\d)/KVM", _sh(guest, f"cat /proc/{pid}/task/{tid}/comm"))
        _sh(guest, f"echo {tid} > '{inner}'/{f'vcpu{thread[1]}' if thread else 'emulator'}/cgroup.threads")
    assert _sh(guest, f"cat /proc/{pid}/cgroup").strip().endswith("/emulator")
    return pid, inner


def _fetch(guest: Guest, pid: int, group: str) -> Recording:
    """Out of the guest, file by file."""
    recording = Recording()
    outer = group.removesuffix("/libvirt")
    tids = _sh(guest, f"ls /proc/{pid}/task").split()
    names = [
        *(f"/proc/{name}" for name in (*HOST_FILES, "self/mountinfo", f"{pid}/mountinfo")),
        *(f"/proc/{pid}/{name}" for name in PROCESS_FILES),
        *(f"/proc/{pid}/task/{tid}/{name}" for tid in tids for name in TASK_FILES),
        *(f"/sys/devices/system/node/node0/{name}" for name in ("cpulist", "meminfo")),
    ]
    for directory in dict.fromkeys((outer, group, *(f"{group}/{leaf}" for leaf in ("emulator", "vcpu0", "vcpu1")))):
        shown = _sh(guest, f"cd '{directory}' && ls -p").split("\n")
        names += [
            f"{directory}/{name}" for name in shown if name and not name.endswith(("/", "reclaim")) and not name.startswith("cgroup.")
        ]
    for name in names:
        text = _sh(guest, f"cat '{name}' 2>/dev/null")
        if text or "pressure" in name:
            recording.files[name.lstrip("/").replace("sys/fs/cgroup", "cgroup")] = text
    for owner in ("self", str(pid)):
        recording.links[f"proc/{owner}/ns/net"] = "net:[4026531840]"  # the guest has one
    return recording


def _sh(guest: Guest, command: str) -> str:
    """Output with its last newline, which `Guest.sh` takes off."""
    text = guest.sh(command)
    return f"{text}\n" if text else ""


RECORDINGS = {"v1-hybrid-plain": record_host, "v2": record_v2}


def main() -> None:
    """Record what is named, or all."""
    reason = reason_to_skip()
    if reason is not None:
        sys.exit(reason)
    if UNIFIED not in parse_proc_cgroup(Path("/proc/self/cgroup").read_text()):
        sys.exit("this machine has no cgroup v2")
    for name in sys.argv[1:] or RECORDINGS:
        RECORDINGS[name]()


if __name__ == "__main__":
    main()
