"""The libvirt adapters against a real libvirtd, QEMU, cgroups and tc: the hypervisor contract, and what only a running guest can show."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from libvirt_contract import LibvirtContract
from real_host import WITHOUT_MEMORY_HIGH, Guest, RealHost, wait_for

from agent.adapters.libvirt_host import open_libvirt_host
from agent.adapters.libvirt_hypervisor import LibvirtHypervisor
from agent.adapters.shaping_tree import SHARED_IFB
from agent.ports import RawHost, RawVm
from agent.sampling.derive import derive
from agent.sampling.sampler import LIBVIRT_DEADLINE_S, Sampler
from shared.errors import HostError, Refusal
from shared.model import Priority, VmSample
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import MBIT, MIB, UNLIMITED

pytestmark = [pytest.mark.realhost, pytest.mark.timeout(240)]

POLICY = '<t:policy xmlns:t="urn:tidegate:policy:1" priority="high" client="acme" cpu_floor_millicores="250"/>'
Host = tuple[LibvirtHypervisor, Sampler]


@pytest.fixture(scope="module")
def guest(real_host: RealHost) -> Iterator[Guest]:
    guest = real_host.define_guest("adapters", vcpus=1, vcpus_max=3, memory_mib=112, memory_max_mib=128, ip="10.77.1.2/24", metadata=POLICY)
    yield guest
    guest.close()


@pytest.fixture(scope="module")
def host(real_host: RealHost, guest: Guest) -> Iterator[Host]:
    hypervisor, sampler = open_libvirt_host(libvirt_uri=real_host.uri, network_namespace=real_host.netns)
    yield hypervisor, sampler
    hypervisor.close()


def vm_of(raw: RawHost, guest: Guest) -> RawVm:
    assert guest.vm_id not in raw.failures, raw.failures
    return next(vm for vm in raw.vms if vm.vm_id == guest.vm_id)


def over(sampler: Sampler, guest: Guest, seconds: float) -> VmSample:
    """The sample of `seconds` from now."""
    first = sampler.read()
    time.sleep(seconds)  # a rate needs real time to pass
    return derive(first, sampler.read(), {guest.vm_id: 128 * MIB}).vms[guest.vm_id]


class TestLibvirtHypervisor(LibvirtContract):
    """A plain guest: no agent, no disk, no memory devices. tests/realhost/test_levers.py has one with all of them."""

    CANNOT = {
        StepKind.VCPUS_ONLINE: "no channel for a guest agent",
        StepKind.VIRTIO_MEM: "no virtio-mem device",
        StepKind.DIMM: "<maxMemory",
        StepKind.DISK_BYTES: "no disk",
        StepKind.DISK_OPS: "no disk",
    } | WITHOUT_MEMORY_HIGH


def test_domain_carries_its_policy(host: Host, guest: Guest) -> None:
    domain = next(domain for domain in host[0].domains() if domain.vm_id == guest.vm_id)
    assert (domain.name, domain.tap, domain.vcpus_max, domain.memory_max_bytes) == ("adapters", "tap-adapters", 3, 128 * MIB)
    assert (domain.policy.priority, domain.policy.client, domain.policy.cpu_floor_millicores) == (Priority.HIGH, "acme", 250)


def test_quota_throttles_and_the_sampler_sees_it(host: Host, guest: Guest) -> None:
    hypervisor, sampler = host
    guest.cpu(1000, 1)
    free = wait_for(lambda: (s := over(sampler, guest, 0.5)).cpu_used_millicores and s.cpu_used_millicores > 300 and s, "load", 20)
    assert free.cpu_throttled_permille == 0
    hypervisor.submit(guest.vm_id, StepKind.CPU_QUOTA, 200)
    wait_for(lambda: hypervisor.allocation(guest.vm_id).cpu_quota_millicores == 200, "the quota")
    held = over(sampler, guest, 3)
    for _ in range(30):  # less throttling where others contend for the CPU
        if (held.cpu_throttled_permille or 0) > 150:
            break
        held = over(sampler, guest, 3)
    hypervisor.submit(guest.vm_id, StepKind.CPU_QUOTA, UNLIMITED)
    guest.cpu(0)
    assert held.cpu_quota_millicores == 200
    # the quota binds vCPUs; QEMU's other threads (timers, monitor) come on top
    assert held.cpu_used_millicores is not None and held.cpu_used_millicores < 200 * 1.15 + 60
    assert held.cpu_throttled_permille is not None and held.cpu_throttled_permille > 150
    assert held.psi_cpu_some_permille is not None and held.psi_cpu_some_permille > 200
    # a throttled vCPU is not a waiting one: what remains is contention, which a busy test machine may well have
    assert held.cpu_ready_permille is not None
    assert None not in (held.psi_io_some_permille, held.psi_memory_some_permille, held.memory_rss_bytes)


def test_balloon_shrink_shows_in_the_guests_reading(host: Host, guest: Guest) -> None:
    hypervisor, sampler = host

    def fresh() -> RawVm | None:
        vm = vm_of(sampler.read(), guest)
        return vm if vm.memory_usable_bytes is not None else None

    before = wait_for(fresh, "balloon statistics", 20)
    hypervisor.submit(guest.vm_id, StepKind.MEMORY, 96 * MIB)
    after = wait_for(
        lambda: (
            (vm := fresh()) and vm.memory_actual_bytes == 96 * MIB and vm.memory_usable_bytes < before.memory_usable_bytes - 8 * MIB and vm
        ),
        "the guest to report less usable memory",
        20,
    )
    sample = derive(sampler.read(), sampler.read(), {guest.vm_id: 128 * MIB}).vms[guest.vm_id]
    hypervisor.submit(guest.vm_id, StepKind.MEMORY, 112 * MIB)
    assert after.memory_reading_wall_ns > before.memory_reading_wall_ns
    assert sample.memory_allocated_bytes == 96 * MIB
    assert sample.memory_used_bytes is not None and 0 < sample.memory_used_bytes < 96 * MIB


def test_added_vcpu_reaches_the_guest(host: Host, guest: Guest) -> None:
    hypervisor, _ = host
    now = int(guest.sh("nproc"))
    hypervisor.submit(guest.vm_id, StepKind.VCPUS, now + 1)
    assert hypervisor.allocation(guest.vm_id).vcpus == now + 1
    wait_for(lambda: guest.sh("nproc") == str(now + 1), "the guest to online its new vCPU", 20)


def test_ceiling_from_the_guest_is_kept(host: Host, guest: Guest) -> None:
    """The tap counts before the class, the IFB's class behind it: only the class shows what was let through.

    No second may exceed the ceiling; that it is also reached needs a guest that gets enough CPU to send, so the best second counts.
    """
    hypervisor, sampler = host
    guest.net(12_000)
    hypervisor.submit(guest.vm_id, StepKind.NET_TX, 2 * MBIT)
    passed = class_bytes(guest)
    first = sampler.read()
    rates: list[float] = []
    while len(rates) < 3 or (max(rates) < 1.8 * MBIT and len(rates) < 15):
        began, before = time.monotonic(), passed()
        time.sleep(1)  # a rate needs real time to pass
        rates.append((passed() - before) * 8 / (time.monotonic() - began))
    sample = derive(first, sampler.read(), {}).vms[guest.vm_id]
    hypervisor.submit(guest.vm_id, StepKind.NET_TX, UNLIMITED)
    guest.net(0)
    assert max(rates) == pytest.approx(2 * MBIT, rel=0.1)
    assert sample.net_tx_ceil_bits_per_s == 2 * MBIT
    assert sample.net_tx_bits_per_s is not None and sample.net_tx_bits_per_s > 2 * MBIT
    assert sample.net_tx_dropped_per_s is not None and sample.net_tx_dropped_per_s > 50


def class_bytes(guest: Guest) -> Callable[[], int]:
    """Bytes that went through the tree of what guests send, as tc reports them."""

    def read() -> int:
        command = ["tc", "-n", guest.host.name, "-s", "class", "show", "dev", SHARED_IFB]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return int(re.findall(r"Sent (\d+) bytes", shown)[0])

    return read


def test_collectors_report_and_a_lost_libvirtd_blanks_only_its_part(real_host: RealHost, host: Host, guest: Guest) -> None:
    hypervisor, sampler = host
    assert sampler.read().failures == {}
    assert {"domains", "libvirt", "shaping", "nic", "vms"} <= sampler.collector_stats.keys()
    real_host.stop_daemon()
    down = sampler.read()
    assert "libvirt" in down.failures
    assert vm_of(down, guest).cpu_used_ns_total is not None, "files need no libvirtd"
    assert vm_of(down, guest).memory_actual_bytes is None
    with pytest.raises(HostError):
        hypervisor.allocation(guest.vm_id)
    real_host.start_daemon()

    def reconnected() -> bool:
        with contextlib.suppress(HostError):  # libvirtd answers before it has taken up its guests: "cgroup CPU controller is not mounted"
            return hypervisor.allocation(guest.vm_id).vcpus is not None
        return False

    wait_for(reconnected, "the hypervisor to reconnect", 20)
    assert sampler.read().failures == {}


def test_stuck_qemu_does_not_stop_sampling(host: Host, guest: Guest) -> None:
    _, sampler = host
    pid = int(vm_of(sampler.read(), guest).epoch.split(":")[1])
    os.kill(pid, signal.SIGSTOP)
    try:
        rounds, seconds = [], []
        for _ in range(3):
            began = time.monotonic()
            rounds.append(sampler.read())
            seconds.append(time.monotonic() - began)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert max(seconds) < 1.5 * LIBVIRT_DEADLINE_S
    assert "no answer" in rounds[0].failures["libvirt"]
    assert "libvirt" not in rounds[2].failures, "a later call passes by the VM that hangs the earlier ones"
    for raw in rounds:
        assert next(vm for vm in raw.vms if vm.vm_id == guest.vm_id).cpu_used_ns_total is not None
    wait_for(lambda: vm_of(sampler.read(), guest).memory_usable_bytes, "the balloon statistics to come back", 20)


def test_interface_that_libvirt_shapes_is_refused(host: Host, guest: Guest) -> None:
    """Where the kernel has no sfq, libvirt fails half-way and leaves its htb 1: behind; where it has, the live XML shows <bandwidth>."""
    hypervisor, _ = host
    with contextlib.suppress(guest.host.libvirt.libvirtError):
        guest.domain.setInterfaceParameters(guest.tap, {"inbound.average": 1000}, 1)
    try:
        with pytest.raises(Refusal) as refusal:
            hypervisor.submit(guest.vm_id, StepKind.NET_RX, MBIT)
        assert refusal.value.code is RefusalCode.FOREIGN_SHAPING
        assert "htb 1:" in subprocess.run(["tc", "-n", guest.host.name, "qdisc"], check=True, capture_output=True, text=True).stdout
    finally:
        with contextlib.suppress(guest.host.libvirt.libvirtError):
            guest.domain.setInterfaceParameters(guest.tap, {"inbound.average": 0}, 1)
        subprocess.run(["tc", "-n", guest.host.name, "qdisc", "del", "dev", guest.tap, "root"], check=False, capture_output=True)


def test_stopped_domain_is_refused_and_not_sampled(real_host: RealHost, host: Host) -> None:
    hypervisor, sampler = host
    bandwidth = "<bandwidth><inbound average='1000'/></bandwidth>"
    shut = real_host.connection.defineXML(real_host.domain_xml("bandwidth", interface=bandwidth))
    try:
        domain = next(domain for domain in hypervisor.domains() if domain.name == "bandwidth")
        assert not domain.running
        assert "bandwidth" in (domain.capabilities.shape_rx or "")
        for call in (lambda: hypervisor.allocation(domain.vm_id), lambda: hypervisor.submit(domain.vm_id, StepKind.NET_RX, MBIT)):
            with pytest.raises(Refusal) as refusal:
                call()
            assert refusal.value.code is RefusalCode.VM_NOT_RUNNING
    finally:
        shut.undefine()
    assert domain.vm_id not in {vm.vm_id for vm in sampler.read().vms}
