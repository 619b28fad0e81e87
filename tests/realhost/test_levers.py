"""Every lever on a real libvirt, QEMU and guest: the hypervisor contract on a guest that has all devices, and what each lever does.

Rates are measured over seconds of real time; a guest under TCG is slow, so a bound is proved from above, and reached at the best of several
tries. vCPU unplug is refused here (TCG never reports it); its success is proved on fakes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest
from libvirt_contract import LibvirtContract
from real_host import WITHOUT_MEMORY_HIGH, Guest, RealHost, wait_for

from agent.adapters.libvirt_host import open_libvirt_host
from agent.adapters.libvirt_hypervisor import LibvirtHypervisor
from agent.adapters.libvirt_xml import OWED_NAMESPACE, THROTTLE_GROUP
from agent.ports import RawVm
from agent.sampling.sampler import Sampler
from shared.errors import HostError, Refusal
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import MIB, UNLIMITED

pytestmark = [pytest.mark.realhost, pytest.mark.timeout(240)]

Host = tuple[LibvirtHypervisor, Sampler]
LIVE = 1
SHARE = 0.15  # how far a limit may be off, as the issue says


@pytest.fixture(scope="module")
def guest(real_host: RealHost) -> Iterator[Guest]:
    guest = real_host.define_guest(
        "levers", vcpus=2, vcpus_max=5, memory_mib=192, ip="10.77.3.2/24", agent=True, disks=2, virtio_mem_mib=128, slots=3
    )
    yield guest
    guest.close()


@pytest.fixture(scope="module")
def host(real_host: RealHost, guest: Guest) -> Iterator[Host]:
    hypervisor, sampler = open_libvirt_host(libvirt_uri=real_host.uri, network_namespace=real_host.netns)
    wait_for(lambda: hypervisor.allocation(guest.vm_id).vcpus_online is not None, "the guest agent to answer", 60)
    yield hypervisor, sampler
    hypervisor.close()


def seen(sampler: Sampler, guest: Guest) -> RawVm:
    return next(vm for vm in sampler.read().vms if vm.vm_id == guest.vm_id)


def in_force(host: Host, guest: Guest, kind: StepKind, value: int, field: str) -> None:
    """Submit, and wait until it is read back."""
    host[0].submit(guest.vm_id, kind, value)
    wait_for(lambda: getattr(host[0].allocation(guest.vm_id), field) == value, f"{kind} {value}", 20)


def all_online(host: Host, guest: Guest) -> int:
    """Wait until the guest has brought up every vCPU that was plugged in; a step before that would race with its onliner."""
    plugged = host[0].allocation(guest.vm_id).vcpus or 0
    wait_for(lambda: guest.sh("nproc") == str(plugged), f"{plugged} vCPUs online in the guest", 30)
    return plugged


class TestLibvirtLevers(LibvirtContract):
    CANNOT = WITHOUT_MEMORY_HIGH


def test_added_vcpu_is_online_in_the_guest(host: Host, guest: Guest) -> None:
    now = host[0].allocation(guest.vm_id).vcpus or 0
    host[0].submit(guest.vm_id, StepKind.VCPUS, now + 1)
    wait_for(lambda: guest.sh("nproc") == str(now + 1), "the guest to online its new vCPU", 30)
    assert host[0].allocation(guest.vm_id).vcpus == now + 1


def test_quota_of_a_growth_that_was_cut_short_is_settled_by_the_next_reading(host: Host, guest: Guest) -> None:
    """As a kill between the two calls leaves it: the vCPU is there, the quota over all of them is larger by its share."""
    hypervisor, _ = host
    in_force(host, guest, StepKind.CPU_QUOTA, 400, "cpu_quota_millicores")
    now = guest.domain.info()[3]
    owed = f"<owed vcpus='{now + 1}' millicores='400' at_s='{int(time.time())}'/>"
    guest.domain.setMetadata(2, owed, "tidegate_owed", OWED_NAMESPACE, LIVE)
    assert hypervisor.allocation(guest.vm_id).cpu_quota_millicores == 400
    guest.domain.setVcpusFlags(now + 1, LIVE)
    allocation = hypervisor.allocation(guest.vm_id)
    assert (allocation.vcpus, allocation.cpu_quota_millicores) == (now + 1, 400)
    assert OWED_NAMESPACE not in guest.domain.XMLDesc(0)
    in_force(host, guest, StepKind.CPU_QUOTA, UNLIMITED, "cpu_quota_millicores")
    all_online(host, guest)


def test_offline_vcpu_is_gone_for_the_guest(host: Host, guest: Guest) -> None:
    all_online(host, guest)
    in_force(host, guest, StepKind.VCPUS_ONLINE, 1, "vcpus_online")
    assert guest.sh("nproc") == "1"
    plugged = host[0].allocation(guest.vm_id).vcpus or 0
    in_force(host, guest, StepKind.VCPUS_ONLINE, plugged, "vcpus_online")
    assert guest.sh("nproc") == str(plugged)


def test_virtio_mem_and_dimm_reach_the_guest_and_leave_it(host: Host, guest: Guest) -> None:
    def total_kib() -> int:
        return int(guest.sh("grep MemTotal /proc/meminfo").split()[1])

    before, balloon = total_kib(), host[0].allocation(guest.vm_id).memory_bytes
    host[0].submit(guest.vm_id, StepKind.VIRTIO_MEM, 96 * MIB)
    wait_for(lambda: total_kib() >= before + 90 * 1024, "the guest to take virtio-mem", 30)
    in_force(host, guest, StepKind.DIMM, 128 * MIB, "dimm_bytes")
    wait_for(lambda: total_kib() >= before + 210 * 1024, "the guest to online the DIMM", 30)
    assert host[0].allocation(guest.vm_id).memory_bytes == balloon, "the balloon's own value stays"
    in_force(host, guest, StepKind.DIMM, 0, "dimm_bytes")
    host[0].submit(guest.vm_id, StepKind.VIRTIO_MEM, 0)
    wait_for(lambda: (host[0].allocation(guest.vm_id).virtio_mem_bytes or 0) <= 4 * MIB, "the guest to give virtio-mem back", 30)
    assert total_kib() <= before + 8 * 1024


def test_dimms_leave_newest_first_and_whole(host: Host, guest: Guest) -> None:
    for size in (256 * MIB, 384 * MIB):
        in_force(host, guest, StepKind.DIMM, size, "dimm_bytes")
    assert guest.domain.XMLDesc(0).count("ua-tidegate-") == 2
    with pytest.raises(Refusal, match="newest first") as refusal:
        host[0].submit(guest.vm_id, StepKind.DIMM, 128 * MIB)
    assert refusal.value.code is RefusalCode.INVALID_VALUE
    in_force(host, guest, StepKind.DIMM, 256 * MIB, "dimm_bytes")
    assert "ua-tidegate-0" in guest.domain.XMLDesc(0)
    in_force(host, guest, StepKind.DIMM, 0, "dimm_bytes")


@pytest.mark.parametrize("period_us", [100_000, 20_000])
def test_quota_holds_in_any_period(host: Host, guest: Guest, period_us: int) -> None:
    """vCPU time by libvirt's own account (dom.vcpus), which leaves QEMU's other threads out."""
    in_force(host, guest, StepKind.CPU_PERIOD, period_us, "cpu_period_us")
    in_force(host, guest, StepKind.CPU_QUOTA, 300, "cpu_quota_millicores")
    guest.cpu(1000, all_online(host, guest))

    def millicores() -> float:
        began, before = time.monotonic(), sum(vcpu[2] for vcpu in guest.domain.vcpus()[0])
        time.sleep(2)  # a rate needs real time to pass
        return (sum(vcpu[2] for vcpu in guest.domain.vcpus()[0]) - before) / 1e6 / (time.monotonic() - began)

    try:
        rates = [millicores() for _ in range(2)]
        while max(rates) < 300 * (1 - SHARE) and len(rates) < 60:  # others use this machine too
            rates.append(millicores())
    finally:
        guest.cpu(0)
        in_force(host, guest, StepKind.CPU_QUOTA, UNLIMITED, "cpu_quota_millicores")
        in_force(host, guest, StepKind.CPU_PERIOD, 100_000, "cpu_period_us")
    assert max(rates) == pytest.approx(300, rel=SHARE)


def test_shares_are_what_the_kernel_holds(host: Host, guest: Guest) -> None:
    in_force(host, guest, StepKind.CPU_SHARES, 2048, "cpu_shares")
    assert seen(host[1], guest).cpu_shares == 2048
    in_force(host, guest, StepKind.CPU_SHARES, 1024, "cpu_shares")


def disk_rate(guest: Guest, operations: bool) -> tuple[float, float]:
    """What each disk did in 2 s: bytes/s, or operations/s."""
    field = "reqs" if operations else "bytes"

    def counters() -> tuple[int, int]:
        stats = guest.host.connection.domainListGetStats([guest.domain], guest.host.libvirt.VIR_DOMAIN_STATS_BLOCK)[0][1]
        return stats[f"block.0.rd.{field}"], stats[f"block.1.rd.{field}"]

    began, before = time.monotonic(), counters()
    time.sleep(2)  # a rate needs real time to pass
    after, seconds = counters(), time.monotonic() - began
    return (after[0] - before[0]) / seconds, (after[1] - before[1]) / seconds


@pytest.mark.parametrize(
    ("kind", "field", "limit", "block"),
    [(StepKind.DISK_BYTES, "disk_bytes_per_s", 3 * MIB, "64k"), (StepKind.DISK_OPS, "disk_ops_per_s", 60, "4k")],
)
def test_two_disks_share_one_limit(host: Host, guest: Guest, kind: StepKind, field: str, limit: int, block: str) -> None:
    """O_DIRECT (cache=none) reads on both disks at once: together they get the limit, neither alone."""
    in_force(host, guest, kind, limit, field)
    read = f"while dd if=/dev/vd$d of=/dev/null bs={block} iflag=direct; do :; done"
    guest.sh(f"for d in a b; do ({read}) >/dev/null 2>&1 & done")
    try:
        disk_rate(guest, kind is StepKind.DISK_OPS)  # the bucket is full at first
        rates = [disk_rate(guest, kind is StepKind.DISK_OPS) for _ in range(2)]
    finally:
        guest.sh("killall dd")
        in_force(host, guest, kind, UNLIMITED, field)
    together = [sum(pair) for pair in rates]
    assert max(together) == pytest.approx(limit, rel=SHARE), rates
    assert min(min(pair) for pair in rates) > limit / 4, "each disk gets its part"
    assert "<iotune>" not in guest.domain.XMLDesc(0), "an unlimited disk bears no trace of us"


def test_owners_disk_limit_is_not_touched(host: Host, guest: Guest) -> None:
    hypervisor, sampler = host
    seen(sampler, guest)
    guest.domain.setBlockIoTune("vdb", {"read_bytes_sec": 10 * MIB}, LIVE)
    try:
        reason = next(domain for domain in hypervisor.domains() if domain.vm_id == guest.vm_id).capabilities.disk_limit
        assert "vdb" in (reason or "")
        for kind in (StepKind.DISK_BYTES, StepKind.DISK_OPS):
            with pytest.raises(Refusal) as refusal:
                hypervisor.submit(guest.vm_id, kind, 5000)
            assert refusal.value.code is RefusalCode.FOREIGN_LIMIT
        assert guest.domain.blockIoTune("vda", LIVE)["total_bytes_sec"] == 0
    finally:
        guest.domain.setBlockIoTune("vdb", {"read_bytes_sec": 0}, LIVE)
    assert hypervisor.allocation(guest.vm_id).disk_bytes_per_s == UNLIMITED


def test_foreign_changes_are_seen_in_the_next_sample(host: Host, guest: Guest) -> None:
    """By libvirt's events: the sampler reads the definition again before it looks."""
    _, sampler = host
    assert seen(sampler, guest).disk_limit_bytes_per_s == UNLIMITED
    for disk in ("vda", "vdb"):
        guest.domain.setBlockIoTune(disk, {"total_bytes_sec": 7 * MIB, "group_name": THROTTLE_GROUP}, LIVE)
    wait_for(lambda: seen(sampler, guest).disk_limit_bytes_per_s == 7 * MIB, "the event", 5)
    for disk in ("vda", "vdb"):
        guest.domain.setBlockIoTune(disk, {"total_bytes_sec": 0}, LIVE)
    wait_for(lambda: seen(sampler, guest).disk_limit_bytes_per_s == UNLIMITED, "the event", 5)
    dimm = "<memory model='dimm'><target><size unit='MiB'>128</size><node>0</node></target><alias name='ua-tidegate-9'/></memory>"
    guest.domain.attachDeviceFlags(dimm, LIVE)
    wait_for(lambda: seen(sampler, guest).dimm_bytes == 128 * MIB, "the event", 5)
    in_force(host, guest, StepKind.DIMM, 0, "dimm_bytes")
    wait_for(lambda: seen(sampler, guest).dimm_bytes == 0, "the event", 5)


def test_unplug_is_refused_under_tcg_and_nothing_is_asked(host: Host, guest: Guest) -> None:
    plugged = all_online(host, guest)
    with pytest.raises(Refusal, match="TCG") as refusal:
        host[0].submit(guest.vm_id, StepKind.VCPUS, plugged - 1)
    assert refusal.value.code is RefusalCode.NOT_CAPABLE
    assert (guest.domain.info()[3], guest.sh("nproc")) == (plugged, str(plugged))


def test_local_disks_keep_the_guest_here(host: Host, guest: Guest) -> None:
    reason = next(domain for domain in host[0].domains() if domain.vm_id == guest.vm_id).capabilities.migrate
    assert "disk vda is a file on this host only" in (reason or "")


def test_reasons_are_found_in_what_libvirt_makes_of_a_definition(real_host: RealHost, host: Host) -> None:
    """libvirt rewrites what it is given: the probe must know its spelling."""
    odd = real_host.domain_xml("odd", vcpus_max=1, disks=1, interface="<bandwidth><inbound average='1000'/></bandwidth>")
    odd = odd.replace("<features>", "<memoryBacking><locked/></memoryBacking><cputune><vcpupin vcpu='0' cpuset='0'/></cputune><features>")
    odd = odd.replace("<memballoon", "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel><memballoon")
    defined = real_host.connection.defineXML(odd)
    try:
        able = next(domain for domain in host[0].domains() if domain.name == "odd").capabilities
    finally:
        defined.undefine()
    expected = {
        "balloon": "memory is locked",
        "vcpu_hot_add": "single vCPU",
        "vcpu_unplug": "TCG",
        "vcpu_offline": "no guest agent is connected",
        "shape_rx": "<bandwidth>",
        "net_rate": "<bandwidth>",
        "migrate": "pinned to CPUs",
        "virtio_mem": "no virtio-mem",
        "dimm": "<maxMemory",
    }
    assert {name: part in (getattr(able, name) or "") for name, part in expected.items()} == dict.fromkeys(expected, True)
    assert able.disk_limit is None


def test_unplug_that_qemu_refuses_is_an_error_in_its_words(real_host: RealHost, host: Host) -> None:
    """With KVM the unplug is asked for. This machine has no guest: SeaBIOS alone knows no ACPI hot-plug."""
    text = """<domain type='kvm'><name>bios</name><memory unit='MiB'>64</memory><vcpu current='1'>2</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/><apic/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices></domain>"""
    try:
        bios = real_host.connection.createXML(text)
    except real_host.libvirt.libvirtError as error:
        pytest.skip(f"no domain can be run with KVM here: {error}")
    try:
        vm_id, hypervisor = bios.UUIDString(), host[0]
        hypervisor.submit(vm_id, StepKind.VCPUS, 2)
        wait_for(lambda: hypervisor.allocation(vm_id).vcpus == 2, "the vCPU", 20)
        assert next(domain for domain in hypervisor.domains() if domain.vm_id == vm_id).capabilities.vcpu_unplug is None
        with contextlib.suppress(HostError):  # refused at once, or left to a guest that is not there: in no case taken for done
            hypervisor.submit(vm_id, StepKind.VCPUS, 1)
        assert hypervisor.allocation(vm_id).vcpus == 2
    finally:
        bios.destroy()
