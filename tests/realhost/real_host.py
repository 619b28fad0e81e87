"""A private libvirtd with tiny TCG guests, for tests: what `host.sh` and `build_guest.sh` make, as objects.

Everything lives in its own namespaces and one temporary directory; `close()` takes all of it away again. Guests run without hardware
virtualization, so they are slow: allow a minute for a boot on a busy machine.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import platform
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pyroute2 import NetNS

from shared.plan import StepKind

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidegate-realhost"
PREFIX = "tghost"
DISK_MIB = 64
SLOTS_MIB = 1024  # room for DIMMs
_V2 = Path("/sys/fs/cgroup/cgroup.controllers")
# What the contract's CANNOT needs where the memory controller is not cgroup v2.
WITHOUT_MEMORY_HIGH = {} if _V2.exists() and "memory" in _V2.read_text().split() else {StepKind.MEMORY_HIGH: "not cgroup v2"}
PROGRAMS = ("qemu-system-x86_64", "/usr/sbin/libvirtd", "ip", "nsenter", "unshare", "gcc", "cpio", "/bin/busybox", "apt-get", "dpkg-deb")


def reason_to_skip() -> str | None:
    """Why no real host can be built here; None when it can, and its guest's kernel and file system are ready in CACHE."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the guest is made for x86_64 Linux, this is {platform.machine()} {sys.platform}"
    if os.geteuid() != 0:
        return "needs root"
    for program in PROGRAMS:
        if shutil.which(program) is None:
            return f"{program} is missing (tests/realhost/install_packages.sh installs what is needed)"
    try:
        pwd.getpwnam("libvirt-qemu")
    except KeyError:
        return "user libvirt-qemu is missing (tests/realhost/install_packages.sh makes it)"
    try:
        import libvirt  # noqa: F401, PLC0415  # only its presence is asked
    except ImportError:
        return "libvirt-python is not installed (pip install tidegate[libvirt])"
    probe = f"tgp{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not permitted: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    built = subprocess.run([HERE / "build_guest.sh", CACHE], capture_output=True, text=True, timeout=300, check=False)
    return f"the guest cannot be built: {built.stderr.strip()[-500:]}" if built.returncode else None


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """The first true value of `condition`, asked every 50 ms; AssertionError naming `what` when the time is over."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.05)
    return value


class Guest:
    """One running guest and its control channel."""

    def __init__(self, host: RealHost, name: str, xml: str, address: str) -> None:
        self.host = host
        self.name = name
        self.tap = f"tap-{name}"
        self.address = str(ipaddress.ip_interface(address).ip)
        self.host_address = str(next(ipaddress.ip_interface(address).network.hosts()))
        self.console = host.directory / f"{name}.console"
        self._channel: socket.socket | None = None
        self.domain = host.connection.defineXML(xml)
        self.domain.create()
        self.vm_id: str = self.domain.UUIDString()

    def wait_until_up(self, seconds: float = 90.0) -> None:
        """Return when the guest's init has finished."""

        def up() -> bool:
            return self.console.exists() and b"TIDEGATE-GUEST-UP" in self.console.read_bytes()

        wait_for(up, f"guest {self.name} to boot (see {self.console})", seconds)

    def command(self, line: str, seconds: float = 30.0) -> str:
        """One line of the load agent's protocol (see load_agent.c); its answer without the final dot."""
        if self._channel is None:
            path = re.findall(r"<source mode='bind' path='/var/lib/libvirt([^']+)'", self.domain.XMLDesc(0))[0]
            self._channel = socket.socket(socket.AF_UNIX)
            self._channel.connect(f"{self.host.directory}/lib{path}")
        self._channel.settimeout(seconds)
        self._channel.sendall(line.encode() + b"\n")
        answer = b""
        while answer != b".\n" and not answer.endswith(b"\n.\n"):
            received = self._channel.recv(65536)
            if not received:
                raise AssertionError(f"guest {self.name} closed its control channel")
            answer += received
        return answer[:-2].decode().strip()

    def cpu(self, permille: int, threads: int = 1) -> None:
        """Burn `permille` of a CPU in each of `threads` threads."""
        self.command(f"cpu {permille} {threads}")

    def mem(self, mib: int) -> None:
        """Hold and keep touching `mib` of memory."""
        self.command(f"mem {mib}")

    def net(self, kbit: int, address: str | None = None, port: int = 9999) -> None:
        """Send UDP at `kbit` kbit/s, to the host's end of the tap by default; 0 stops."""
        self.command(f"net {address or self.host_address} {port} {kbit}")

    def work(self) -> int:
        """Units of CPU work done since boot."""
        return int(self.command("work"))

    def sh(self, command: str) -> str:
        """Output of a shell command in the guest."""
        return self.command(f"sh {command}")

    def moved_to(self, host: RealHost) -> None:
        """It migrated: from now on it is a guest of `host`."""
        self.hang_up()
        self.host.guests.remove(self)
        host.guests.append(self)
        self.host, self.domain = host, host.connection.lookupByUUIDString(self.vm_id)
        host.connect_tap(self.tap, self.host_address)

    def hang_up(self) -> None:
        """Give the control channel up: after a reboot there is another one."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def close(self) -> None:
        """Destroy and undefine the guest."""
        self.hang_up()
        with contextlib.suppress(self.host.libvirt.libvirtError):  # it may have ended by itself a moment ago
            self.domain.destroy()
        self.domain.undefine()
        if self in self.host.guests:
            self.host.guests.remove(self)


class RealHost:
    """A libvirtd of our own in a network namespace of its own. Use as a context manager or call `close`; ask `reason_to_skip` first."""

    def __init__(self, suffix: str = "", address: str = "") -> None:
        """Several hosts of one test session differ in `suffix`; `address` (in its own namespace) is where it takes migrations."""
        import libvirt  # noqa: PLC0415  # absent where these tests are skipped

        self.libvirt = libvirt
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        remove_stale()
        self.name = f"{PREFIX}{os.getpid()}{suffix}"
        self.address = address
        self._uuid = str(uuid.uuid4())
        self.netns = f"/run/netns/{self.name}"
        self.directory = Path("/tmp") / self.name  # short: socket paths must stay under 108 characters
        self.directory.mkdir(mode=0o700)
        (CACHE / "probed").mkdir(exist_ok=True)
        (self.directory / "cache").symlink_to(CACHE / "probed")  # libvirt's knowledge of this QEMU: 7 s the first time
        self.uri = f"qemu:///system?socket={self.directory}/run/libvirt-sock"
        self.guests: list[Guest] = []
        self.connection: Any = None
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        try:
            subprocess.run(["ip", "-n", self.name, "link", "set", "lo", "up"], check=True)
            self._daemon = self._start()
            self.connection = wait_for(self._connect, "libvirtd to answer")
            self._raise_machine_shares()
        except BaseException:
            remove(self.name)
            raise

    def __enter__(self) -> RealHost:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        with (self.directory / "daemon.out").open("ab") as output:
            command = [HERE / "host.sh", self.name, self.directory, self._uuid, "listen" if self.address else ""]
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)

    def _connect(self) -> Any:
        if self._daemon.poll() is not None:
            raise AssertionError(f"libvirtd ended with {self._daemon.returncode}: {(self.directory / 'daemon.out').read_text()[-2000:]}")
        try:
            return self.libvirt.open(self.uri)
        except self.libvirt.libvirtError:
            return None

    def stop_daemon(self) -> None:
        """Kill libvirtd; the guests stay."""
        self._daemon.kill()
        self._daemon.wait(30)

    def start_daemon(self) -> None:
        """Start libvirtd again after `stop_daemon`; it finds its guests."""
        self._daemon = self._start()
        self.connection = wait_for(self._connect, "libvirtd to answer again")
        for guest in self.guests:
            guest.domain = self.connection.lookupByName(guest.name)

    def define_guest(
        self,
        name: str,
        vcpus: int = 1,
        vcpus_max: int = 2,
        memory_mib: int = 128,
        ip: str = "10.77.0.2/24",
        *,
        memory_max_mib: int | None = None,
        interface: str = "",
        metadata: str = "",
        agent: bool = False,
        disks: int = 0,
        virtio_mem_mib: int = 0,
        slots: int = 0,
        wait: bool = True,
    ) -> Guest:
        """Define and start a guest, give its tap the first address of the guest's network, and wait until it is up.

        `memory_mib` is the balloon's size at start, `memory_max_mib` the domain's maximum (the same when left out);
        `interface` and `metadata` are XML put inside <interface> and <metadata>; `agent`: QEMU's guest agent runs in it.
        It has `disks` raw disks of DISK_MIB (vda, vdb, ...; direct I/O), a virtio-mem device of `virtio_mem_mib`, and `slots` for DIMMs.
        """
        xml = self.domain_xml(
            name,
            vcpus,
            vcpus_max,
            memory_mib,
            memory_max_mib or memory_mib,
            ip,
            interface,
            metadata,
            agent=agent,
            disks=disks,
            virtio_mem_mib=virtio_mem_mib,
            slots=slots,
        )
        guest = Guest(self, name, xml, ip)
        self.guests.append(guest)
        self.connect_tap(guest.tap, guest.host_address, ipaddress.ip_interface(ip).network.prefixlen)
        if wait:
            guest.wait_until_up()
        return guest

    def connect_tap(self, tap: str, address: str, prefixlen: int = 24) -> None:
        """Give a guest's tap the host's address and set it up."""
        with NetNS(self.netns) as namespace:
            index = namespace.link_lookup(ifname=tap)[0]
            namespace.addr("add", index=index, address=address, prefixlen=prefixlen)
            namespace.link("set", index=index, state="up")

    def domain_xml(
        self,
        name: str,
        vcpus: int = 1,
        vcpus_max: int = 2,
        memory_mib: int = 128,
        memory_max_mib: int = 128,
        ip: str = "10.77.0.2/24",
        interface: str = "",
        metadata: str = "",
        *,
        agent: bool = False,
        disks: int = 0,
        virtio_mem_mib: int = 0,
        slots: int = 0,
    ) -> str:
        """The definition that `define_guest` makes, for tests that define a domain themselves.

        tb-cache: a vCPU that is added needs a free region of TCG's code cache. With 16 MiB one busy vCPU soon holds all regions, and
        QEMU 7.2 aborts at the hot-add (tcg/region.c:372: assertion failed).
        """
        image = "initrd.img"
        agent_channel = ""
        if agent:
            subprocess.run([HERE / "build_guest.sh", CACHE, "ga"], check=True, timeout=300)
            image = "initrd-ga.img"
            agent_channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
        devices, growing, cell = [self._disk_xml(name, number) for number in range(disks)], "", ""
        if virtio_mem_mib or slots:
            most = memory_max_mib + virtio_mem_mib + (SLOTS_MIB if slots else 0)
            growing = f"<maxMemory slots='{slots + bool(virtio_mem_mib)}' unit='MiB'>{most}</maxMemory>"
            cell = f"<numa><cell id='0' cpus='0-{vcpus_max - 1}' memory='{memory_max_mib}' unit='MiB'/></numa>"
        if virtio_mem_mib:
            devices.append(
                f"<memory model='virtio-mem'><target><size unit='MiB'>{virtio_mem_mib}</size><node>0</node>"
                "<block unit='MiB'>2</block><requested unit='MiB'>0</requested></target></memory>"
            )
        return f"""<domain type='qemu'><name>{name}</name><metadata>{metadata}</metadata>{growing}
<memory unit='MiB'>{memory_max_mib}</memory><currentMemory unit='MiB'>{memory_mib}</currentMemory>
<vcpu placement='static' current='{vcpus}'>{vcpus_max}</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type><kernel>{CACHE}/vmlinuz</kernel><initrd>{CACHE}/{image}</initrd>
<cmdline>console=ttyS0 quiet panic=-1 mitigations=off nokaslr guest_ip={ip}</cmdline></os>
<features><acpi/><apic/><tcg><tb-cache unit='MiB'>128</tb-cache></tcg></features>
<cpu mode='custom' match='exact'><model fallback='allow'>qemu64</model>{cell}</cpu>
<on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<serial type='file'><source path='{self.directory}/{name}.console'/><target port='0'/></serial>
<channel type='unix'><target type='virtio' name='tidegate.control'/></channel>{agent_channel}
<interface type='ethernet'><target dev='tap-{name}' managed='yes'/><model type='virtio'/>{interface}</interface>
<memballoon model='virtio' autodeflate='off'/>{"".join(devices)}</devices></domain>"""

    def _disk_xml(self, name: str, number: int) -> str:
        path = self.directory / f"{name}.{number}.raw"
        with path.open("wb") as image:
            image.truncate(DISK_MIB * 1024 * 1024)
        return (
            f"<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/><source file='{path}'/>"
            f"<target dev='vd{'abcdefgh'[number]}' bus='virtio'/></disk>"
        )

    def _raise_machine_shares(self) -> None:
        """On cgroup v1 all guests together weigh as much as one ordinary process; a busy machine would starve them."""
        for directory in machine_groups(self.name if self.address else ""):
            if directory.parent.name in ("cpu", "cpu,cpuacct") and (directory.parent / "cpu.shares").exists():
                directory.mkdir(exist_ok=True)
                (directory / "cpu.shares").write_text("8192")

    def close(self) -> None:
        """End everything and leave nothing behind: guests, daemon, namespace, cgroups, files."""
        for guest in list(self.guests):
            with contextlib.suppress(self.libvirt.libvirtError):
                guest.close()
        with contextlib.suppress(self.libvirt.libvirtError):
            self.connection.close()
        self._daemon.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._daemon.wait(10)
        remove(self.name)
        self._daemon.wait(10)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[RealHost, RealHost]]:
    """Two hosts joined by a cable: VMs can migrate both ways, peer to peer by `qemu+tcp://ADDRESS/system`, memory by `tcp://ADDRESS`."""
    with RealHost("-a", "10.98.0.1") as first, RealHost("-b", "10.98.0.2") as second:
        join(first.name, second.name, (first.address, second.address))
        yield first, second


def join(first: str, second: str, addresses: tuple[str, str]) -> None:
    """Lay a cable (a veth pair) between two network namespaces."""
    subprocess.run(["ip", "link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second], check=True)
    for name, address in zip((first, second), addresses, strict=True):
        subprocess.run(["ip", "-n", name, "addr", "add", f"{address}/24", "dev", "cable"], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "cable", "up"], check=True)


def remove_stale() -> None:
    """Take away what test sessions that were killed have left: their names end in the pid of a process that is gone."""
    for path in (*Path("/run/netns").glob(f"{PREFIX}*"), *Path("/tmp").glob(f"{PREFIX}*")):
        owner = path.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            remove(path.name)


def remove(name: str) -> None:
    """End every process in the namespace `name`; remove it, its directory, and libvirt's groups as far as nobody else uses them."""
    for pid in processes_in(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not processes_in(name), f"the last processes in {name} to end", 10)
    if Path(f"/run/netns/{name}").exists():
        subprocess.run(["ip", "netns", "del", name], check=True)
    for group in (*machine_groups(), *(machine.parent for machine in machine_groups(name))):
        for directory, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):  # in use by another libvirtd
                Path(directory).rmdir()
    shutil.rmtree(f"/tmp/{name}", ignore_errors=True)


def processes_in(name: str) -> list[int]:
    """Pids in a network namespace; empty when there is none of that name."""
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def machine_groups(below: str = "") -> list[Path]:
    """libvirt's group in each hierarchy: below our own group, or its child `below`: host.sh makes that the root of its namespace."""
    groups = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for mount in {"": ("unified", "."), "name=systemd": ("systemd",)}.get(controllers, (controllers,)):
            directory = Path("/sys/fs/cgroup") / mount / path.lstrip("/") / below / "machine"
            if directory.parent.is_dir():
                groups.append(directory)
    return groups
