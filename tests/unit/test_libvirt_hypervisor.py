"""LibvirtHypervisor on a libvirt of our own making: what is read again and when, what is asked of guests, what comes from files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.adapters import libvirt_events, libvirt_hypervisor, libvirt_inventory
from agent.adapters.kernel_files import RootedFiles
from agent.adapters.libvirt_hypervisor import LibvirtHypervisor
from shared.errors import HostError, Refusal
from shared.model import Allocation, Domain
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import MIB, UNLIMITED

VM = "d6245080-ba16-4159-a164-55b2a2603dac"
SCOPE = r"machine.slice/machine-qemu\x2d1\x2dweb.scope"
XML = """<domain type='kvm'><name>web</name><uuid>{uuid}</uuid><memory unit='MiB'>256</memory><vcpu current='2'>4</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><memballoon model='virtio'><stats period='5'/></memballoon>
<disk type='file' device='disk'><source file='/x'/><target dev='vda'/></disk>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel></devices></domain>"""


class LibvirtError(Exception):
    def __init__(self, code: int, text: str = "no") -> None:
        super().__init__(text)
        self.code = code

    def get_error_code(self) -> int:
        return self.code


class FakeDomain:
    def __init__(self, vm_id: str) -> None:
        self.vm_id = vm_id
        self.xml = XML.format(uuid=vm_id)
        self.reads = 0
        self.asked = 0
        self.online: str | None = "0-1"
        self.weight: int | LibvirtError = 100
        self.memory: list[dict[str, int]] = []
        self.on_read: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return {
            "UUIDString": lambda: self.vm_id,
            "name": lambda: "web",
            "isActive": lambda: 1,
            "info": lambda: [1, 262144, 131072, 2, 0],
            "schedulerParameters": lambda: {"cpu_shares": 100, "vcpu_quota": -1, "vcpu_period": 100_000},
            "memoryStats": lambda: {"actual": 131072},
            "setMemoryParameters": lambda parameters, _: self.memory.append(parameters),
            "setVcpusFlags": lambda *_: 0,
            "XMLDesc": self._describe,
            "guestVcpus": self._guest_vcpus,
            "blkioParameters": self._blkio,
        }[name]

    def _describe(self, _flags: int) -> str:
        self.reads += 1
        text = self.xml
        self.on_read()
        return text

    def _guest_vcpus(self, _flags: int) -> dict[str, str]:
        self.asked += 1
        if self.online is None:
            raise LibvirtError(86, "Guest agent is not responding")
        return {"online": self.online}

    def _blkio(self, _flags: int) -> dict[str, int]:
        if isinstance(self.weight, LibvirtError):
            raise self.weight
        return {"weight": self.weight}


class FakeLibvirt:
    """Module, connection and event loop in one."""

    libvirtError = LibvirtError  # noqa: N815  # libvirt's name
    VIR_ERR_NO_DOMAIN = 42
    VIR_ERR_INVALID_ARG = 8
    VIR_CONNECT_LIST_DOMAINS_ACTIVE = 1
    VIR_CONNECT_LIST_DOMAINS_INACTIVE = 2
    VIR_DOMAIN_STATS_BALLOON = 4
    VIR_DOMAIN_STATS_BLOCK = 32
    VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE = 1
    VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT = 2**29

    def __init__(self) -> None:
        self.vms = {VM: FakeDomain(VM), NEIGHBOUR: FakeDomain(NEIGHBOUR)}
        self.callbacks: dict[int, Callable[..., None]] = {}
        self.events = {f"VIR_DOMAIN_EVENT_ID_{name}": number for number, name in enumerate((*libvirt_events.EVENTS, libvirt_events.REBOOT))}
        self.answered = 1_795_305_357
        self.opened = 0
        self.alive = True

    def __getattr__(self, name: str) -> Any:
        if name in self.events:
            return self.events[name]
        raise AttributeError(name)

    def registerErrorHandler(self, *_: object) -> None: ...

    def open(self, _uri: str) -> FakeLibvirt:
        self.opened += 1
        self.alive = True
        return self

    def domainEventRegisterAny(self, _domain: None, number: int, callback: Callable[..., None], _opaque: None) -> int:
        self.callbacks[number] = callback
        return number

    def domainEventDeregisterAny(self, number: int) -> None:
        del self.callbacks[number]

    def setKeepAlive(self, _interval: int, _count: int) -> None: ...

    def isAlive(self) -> bool:
        return self.alive

    def close(self) -> None: ...

    def listAllDomains(self, flags: int) -> list[FakeDomain]:
        if not self.alive:
            raise LibvirtError(38, "Cannot recv data")
        return list(self.vms.values()) if flags == self.VIR_CONNECT_LIST_DOMAINS_ACTIVE else []

    def lookupByUUIDString(self, vm_id: str) -> FakeDomain:
        if vm_id not in self.vms:
            raise LibvirtError(42, "Domain not found")
        return self.vms[vm_id]

    def getAllDomainStats(self, _groups: int, _flags: int) -> list[tuple[FakeDomain, dict[str, int]]]:
        return [(vm, {"balloon.current": 131072, "balloon.last-update": self.answered}) for vm in self.vms.values()]

    def tell(self, event: str, vm_id: str) -> None:
        """libvirt's event loop calls back."""
        self.callbacks[self.events[f"VIR_DOMAIN_EVENT_ID_{event}"]](self, self.vms[vm_id], "details", None)


NEIGHBOUR = VM.replace("d", "e")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_795_305_357.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (libvirt_hypervisor, libvirt_inventory):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def libvirt(monkeypatch: pytest.MonkeyPatch) -> FakeLibvirt:
    fake = FakeLibvirt()
    monkeypatch.setitem(sys.modules, "libvirt", fake)  # type: ignore[arg-type]
    monkeypatch.setattr("agent.adapters.libvirt_connection.start_event_loop", lambda _libvirt: None)
    return fake


@pytest.fixture
def hypervisor(libvirt: FakeLibvirt, clock: Clock, tmp_path: Path) -> Iterator[LibvirtHypervisor]:
    """Of a host with cgroup v2 and systemd."""
    texts = {
        "proc/self/mountinfo": "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n31 25 8:1 / / rw - ext4 /dev/vda rw\n",
        "proc/77/comm": "qemu-system-x86\n",
        "proc/77/cmdline": f"qemu\0-uuid\0{VM}\0",
        "proc/77/stat": f"77 (qemu) S {' '.join(str(n) for n in range(40))}\n",
        "proc/77/cgroup": f"0::/{SCOPE}/libvirt/emulator\n",
        f"cgroup/{SCOPE}/memory.high": "max\n",
        f"cgroup/{SCOPE}/libvirt/memory.high": "max\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    files = RootedFiles(proc=tmp_path / "proc", sys=tmp_path / "sys", cgroup=tmp_path / "cgroup")
    hypervisor = LibvirtHypervisor("qemu:///fake", files)
    yield hypervisor
    hypervisor.close()


def domain(hypervisor: LibvirtHypervisor) -> Domain:
    return next(domain for domain in hypervisor.domains() if domain.vm_id == VM)


def test_a_guests_reboot_is_counted_and_told_and_its_definition_kept(libvirt: FakeLibvirt, hypervisor: LibvirtHypervisor) -> None:
    told: list[None] = []
    hypervisor.watch(lambda: told.append(None))
    assert [domain.reboots for domain in hypervisor.running()] == [0, 0]
    reads = libvirt.vms[VM].reads
    libvirt.tell("REBOOT", VM)
    assert told == [None] and {domain.vm_id: domain.reboots for domain in hypervisor.running()} == {VM: 1, NEIGHBOUR: 0}
    assert libvirt.vms[VM].reads == reads
    gone = libvirt.vms.pop(VM)
    hypervisor.running()
    libvirt.vms[VM] = gone  # another QEMU
    assert {domain.reboots for domain in hypervisor.running()} == {0}


def reads(libvirt: FakeLibvirt) -> tuple[int, int]:
    return libvirt.vms[VM].reads, libvirt.vms[NEIGHBOUR].reads


# What is read again, and when


def test_definitions_are_kept_until_an_event_names_their_domain(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: Clock) -> None:
    heard: list[None] = []
    hypervisor.watch(lambda: heard.append(None))
    hypervisor.running()
    hypervisor.running()
    assert reads(libvirt) == (1, 1)
    iotune = "<iotune><total_bytes_sec>5000</total_bytes_sec></iotune></disk>"
    libvirt.vms[VM].xml = libvirt.vms[VM].xml.replace("</disk>", iotune)
    assert hypervisor.running()[0].disk_limit_bytes_per_s == UNLIMITED, "nobody has told of it"
    libvirt.tell("TUNABLE", VM)
    assert len(heard) == 1
    assert hypervisor.running()[0].disk_limit_bytes_per_s == 5000
    assert reads(libvirt) == (2, 1)
    libvirt.vms[VM].weight = 700
    clock.now += libvirt_inventory.REREAD_S + 1
    assert [running.disk_weight for running in hypervisor.running()] == [700, 100]
    assert reads(libvirt) == (3, 2), "in case an event was lost"


def test_change_told_while_reading_makes_the_reading_void(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    libvirt.vms[VM].on_read = lambda: libvirt.tell("TUNABLE", VM) if libvirt.vms[VM].reads == 1 else None
    hypervisor.running()
    hypervisor.running()
    hypervisor.running()
    assert reads(libvirt) == (2, 1)


def test_without_events_every_round_reads_all(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    del libvirt.events["VIR_DOMAIN_EVENT_ID_TUNABLE"]
    heard: list[None] = []
    hypervisor.watch(lambda: heard.append(None))
    for _ in range(3):
        hypervisor.bulk_stats()
        hypervisor.running()
    assert len(heard) == 3 and reads(libvirt) == (3, 3)


def test_lost_connection_is_opened_anew_and_hears_events_again(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    hypervisor.running()
    libvirt.alive = False
    libvirt.callbacks.clear()
    assert len(hypervisor.running()) == 2
    assert libvirt.opened == 2
    libvirt.tell("LIFECYCLE", VM)
    hypervisor.running()
    assert reads(libvirt)[0] == 2


def test_domain_that_vanishes_is_left_out(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    def vanish() -> None:
        raise LibvirtError(42)

    libvirt.vms[NEIGHBOUR].on_read = vanish
    assert [running.vm_id for running in hypervisor.running()] == [VM]
    assert [found.vm_id for found in hypervisor.domains()] == [VM]


def test_nothing_is_remembered_of_vms_that_are_gone(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    assert hypervisor.allocation(VM).vcpus_online == 2
    vm = libvirt.vms.pop(VM)
    hypervisor.running()
    libvirt.vms[VM] = vm
    vm.online = "0"
    assert hypervisor.allocation(VM).vcpus_online == 1, "asked anew: it is another run of the VM"


# The guest agent


def online(hypervisor: LibvirtHypervisor) -> int | None:
    return hypervisor.allocation(VM).vcpus_online


def test_guest_agent_is_asked_now_and_then(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: Clock) -> None:
    assert (online(hypervisor), online(hypervisor), libvirt.vms[VM].asked) == (2, 2, 1)
    assert hypervisor.running()[0].vcpus_online == 2
    clock.now += 31
    libvirt.vms[VM].online = "0"
    assert (online(hypervisor), libvirt.vms[VM].asked) == (1, 2)
    hypervisor.submit(VM, StepKind.VCPUS_ONLINE, 2)
    for second in range(5):
        clock.now += 1
        assert (online(hypervisor), libvirt.vms[VM].asked) == (1, 3 + second), "it may change any moment"
    clock.now += 60
    online(hypervisor)
    clock.now += 5
    asked = libvirt.vms[VM].asked
    assert (online(hypervisor), libvirt.vms[VM].asked) == (1, asked)


def test_silent_agent_costs_its_timeout_once_in_a_while(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    libvirt.vms[VM].online = None
    assert (online(hypervisor), online(hypervisor), libvirt.vms[VM].asked) == (None, None, 1)
    libvirt.vms[VM].xml = libvirt.vms[VM].xml.replace("connected", "disconnected")
    assert (online(hypervisor), libvirt.vms[VM].asked) == (None, 1)


# What only libvirt or the kernel can say


def test_reasons_from_libvirt(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    able = domain(hypervisor).capabilities
    assert (able.balloon, able.disk_weight, able.cpu_quota, able.memory_high) == (None, None, None, None)
    assert "file on this host only (ext4)" in (able.migrate or "")
    assert reads(libvirt) == (1, 1)
    domain(hypervisor)
    assert reads(libvirt) == (1, 1), "the inventory costs no more than the list"
    libvirt.answered = 0
    libvirt.vms[VM].weight = LibvirtError(55, "blkio cgroup isn't mounted")
    libvirt.tell("LIFECYCLE", VM)
    able = domain(hypervisor).capabilities
    assert "never answered" in (able.balloon or "") and "isn't mounted" in (able.disk_weight or "")
    assert hypervisor.allocation(VM).disk_weight is None
    libvirt.vms[VM].weight = LibvirtError(38, "Cannot recv data")
    with pytest.raises(HostError, match="Cannot recv"):
        hypervisor.allocation(VM)


def test_memory_high_on_cgroup_v2(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, tmp_path: Path) -> None:
    assert hypervisor.allocation(VM).memory_high_bytes == UNLIMITED
    hypervisor.submit(VM, StepKind.MEMORY_HIGH, 512 * MIB)
    assert libvirt.vms[VM].memory == [{"soft_limit": 524288}]
    (tmp_path / f"cgroup/{SCOPE}/memory.high").write_text("536870912\n")
    assert hypervisor.allocation(VM).memory_high_bytes == 512 * MIB
    with pytest.raises(Refusal, match="not cgroup v2") as refusal:  # no process, no group
        hypervisor.submit(NEIGHBOUR, StepKind.MEMORY_HIGH, 512 * MIB)
    assert refusal.value.code is RefusalCode.NOT_CAPABLE


def test_allocation_of_a_v2_host(hypervisor: LibvirtHypervisor) -> None:
    found = hypervisor.allocation(VM)
    assert found == Allocation(
        vcpus=2,
        cpu_quota_millicores=UNLIMITED,
        cpu_shares=1024,
        memory_bytes=128 * MIB,
        disk_bytes_per_s=UNLIMITED,
        vcpus_online=2,
        cpu_period_us=100_000,
        virtio_mem_bytes=0,
        dimm_bytes=0,
        memory_high_bytes=UNLIMITED,
        disk_ops_per_s=UNLIMITED,
        disk_weight=100,
    )
