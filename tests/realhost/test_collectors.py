"""The collectors that go beyond files, on real QEMU: perf events, KVM's counters, dirty rates, and kills for want of memory in a guest."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_host import Guest, RealHost, wait_for

from agent.adapters.guest_agent import LibvirtGuestAgent
from agent.adapters.kernel_files import RootedFiles
from agent.adapters.libvirt_connection import LibvirtConnection
from agent.adapters.libvirt_dirty import LibvirtDirtyRates
from agent.adapters.perf_events import KernelPerfEvents
from agent.sampling import cgroup, process
from agent.sampling.dirty import DirtyRates
from agent.sampling.guest import GuestProbe, parse_oom_kills
from agent.sampling.kvm import parse_kvm
from agent.sampling.numa import read_numa
from agent.sampling.perf import PerfReader
from shared.clock import SystemClock
from shared.errors import HostError, Refusal
from shared.units import MIB

pytestmark = [pytest.mark.realhost, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def guest(real_host: RealHost) -> Iterator[Guest]:
    guest = real_host.define_guest("collect", vcpus=1, vcpus_max=3, memory_mib=128, ip="10.77.5.2/24", agent=True)
    yield guest
    guest.close()


@pytest.fixture(scope="module")
def connection(real_host: RealHost) -> Iterator[LibvirtConnection]:
    connection = LibvirtConnection(real_host.uri)
    yield connection
    connection.close()


def pid_of(guest: Guest) -> int:
    return process.find_qemu(RootedFiles())[guest.vm_id]


def vcpu_tids(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    return [int(task.name) for task in tasks.iterdir() if (task / "comm").read_text().startswith("CPU ")]


def run_ns(pid: int) -> int:
    return sum(int(Path(f"/proc/{pid}/task/{tid}/schedstat").read_text().split()[0]) for tid in vcpu_tids(pid))


def test_perf_counts_what_the_vcpu_threads_do(guest: Guest) -> None:
    pid = pid_of(guest)
    reader = PerfReader(KernelPerfEvents())
    directory = cgroup.locate(RootedFiles(), pid).unified
    first = reader.read(guest.vm_id, pid, vcpu_tids(pid), directory)
    if first is None:
        pytest.skip(f"perf is not available here: {reader.obstacle(guest.vm_id)}")
    began_ns = run_ns(pid)
    guest.cpu(1000)

    def busy() -> bool:
        return run_ns(pid) - began_ns > 500_000_000

    wait_for(busy, "half a second of CPU time", 30)
    before_ns, counts, after_ns = run_ns(pid), reader.read(guest.vm_id, pid, vcpu_tids(pid), directory), run_ns(pid)
    guest.cpu(0)
    assert counts is not None and counts.task_clock_ns_total is not None and first.task_clock_ns_total is not None
    grown = counts.task_clock_ns_total - first.task_clock_ns_total
    assert (before_ns - began_ns) * 0.9 < grown < (after_ns - began_ns) * 1.1
    assert counts.context_switches_total
    assert None not in (counts.page_faults_total, counts.cpu_migrations_total)
    if counts.cycles_total is None:
        assert "cycles" in (reader.obstacle(guest.vm_id) or ""), "what is missing is said"
    reader.close()


def test_perf_follows_the_whole_group_and_a_hot_added_vcpu(guest: Guest, connection: LibvirtConnection) -> None:
    pid = pid_of(guest)
    reader = PerfReader(KernelPerfEvents())
    directory = cgroup.locate(RootedFiles(), pid).unified
    if reader.read(guest.vm_id, pid, vcpu_tids(pid), directory) is None:
        pytest.skip(f"perf is not available here: {reader.obstacle(guest.vm_id)}")
    one = reader.descriptors
    connection.call(lambda libvirt: libvirt.lookupByUUIDString(guest.vm_id).setVcpusFlags(2, 1))
    wait_for(lambda: len(vcpu_tids(pid)) == 2, "the new vCPU's thread", 20)
    before = reader.read(guest.vm_id, pid, vcpu_tids(pid), directory)
    assert before is not None and reader.descriptors == 2 * one
    wide = PerfReader(KernelPerfEvents())
    if directory is not None:  # pretend more vCPUs than CPUs: then the group is counted, emulator and all
        many = list(range(1, len(os.sched_getaffinity(0)) + (os.cpu_count() or 1) + 2))
        first = wide.read(guest.vm_id, pid, many, directory)
        used = int((directory / "cpu.stat").read_text().split()[1])
        wait_for(lambda: int((directory / "cpu.stat").read_text().split()[1]) > used + 50_000, "50 ms of CPU time", 30)
        last = wide.read(guest.vm_id, pid, many, directory)
        assert first is not None and last is not None
        assert (last.task_clock_ns_total or 0) - (first.task_clock_ns_total or 0) > 40_000_000
    for each in (reader, wide):
        each.close()
        assert each.descriptors == 0


def test_dirty_rate_is_measured_on_request(guest: Guest, connection: LibvirtConnection) -> None:
    rates = DirtyRates(LibvirtDirtyRates(connection), SystemClock())
    guest.mem(40)  # touched again every 200 ms or so
    try:

        def rate() -> int | None:
            rates.request(guest.vm_id)
            newest = rates.newest(guest.vm_id)
            return newest if newest and newest > 10 * MIB else None

        busy = wait_for(rate, "a dirty rate of a guest that rewrites 40 MiB", 60)
    finally:
        guest.mem(0)
    assert busy < 2000 * MIB
    age = rates.age_ns(guest.vm_id)
    assert age is not None and age < 60e9
    rates.request("00000000-0000-4000-8000-000000000000")
    rates.close(15)
    assert rates.newest("00000000-0000-4000-8000-000000000000") is None


def test_numa_nodes_of_this_machine() -> None:
    nodes = read_numa(RootedFiles())
    assert sum(node.cpus for node in nodes) == os.cpu_count()


def test_kvm_counters_of_a_bios_only_domain(real_host: RealHost) -> None:
    """No guest system is needed: SeaBIOS alone makes a vCPU leave the guest."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no /dev/kvm")
    xml = """<domain type='kvm'><name>bios</name><memory unit='MiB'>32</memory><vcpu>2</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices></domain>"""
    try:
        domain = real_host.connection.createXML(xml, 0)
    except real_host.libvirt.libvirtError as error:
        pytest.skip(f"KVM domains do not start here: {error}")
    try:

        def counters() -> dict[str, int]:
            return parse_kvm(real_host.connection.domainListGetStats([domain], real_host.libvirt.VIR_DOMAIN_STATS_VCPU, 0)[0][1])

        first = wait_for(lambda: (found := counters()).get("exits") and found, "KVM to count exits", 20)
        assert {"halt_exits", "io_exits", "halt_wait_ns"} <= first.keys()
        wait_for(lambda: counters()["exits"] > first["exits"], "more exits", 20)
    finally:
        domain.destroy()


def test_a_guest_that_kills_for_want_of_memory_is_noticed(guest: Guest, connection: LibvirtConnection) -> None:
    probe = GuestProbe(LibvirtGuestAgent(connection), SystemClock(), 60)
    probe.start()
    probe.follow([guest.vm_id])
    try:
        before: int = wait_for(lambda: (count := probe.newest(guest.vm_id)) is not None and [count], "the counter", 30)[0]
        # more than is to be had, less than there is (that would be refused); a child of the load agent's shell, or the channel would die
        available, total = (
            int(guest.sh(f"sed -n 's/^{name}: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) for name in ("MemAvailable", "MemTotal")
        )
        guest.sh(f"dd if=/dev/zero of=/dev/null bs={(available + 2 * total) // 3}k count=1 2>&1")

        def risen() -> bool:
            probe.hurry(guest.vm_id)
            now = probe.newest(guest.vm_id)
            return now is not None and now > before

        wait_for(risen, "the counter to rise", 60)
        assert probe.obstacle(guest.vm_id) is None
    finally:
        probe.close(10)


def test_a_blocked_absent_or_silent_agent_is_a_reason_and_bounded(real_host: RealHost, guest: Guest, connection: LibvirtConnection) -> None:
    agent = LibvirtGuestAgent(connection)

    def answers() -> bool:
        try:
            return parse_oom_kills(agent.read_file(guest.vm_id, "/proc/vmstat")) is not None
        except HostError:  # QEMU's channel to the guest's agent comes and goes with a busy guest
            return False

    wait_for(answers, "the guest's agent to answer")
    with pytest.raises(HostError, match="No such file"):
        agent.read_file(guest.vm_id, "/proc/none")
    with pytest.raises(Refusal):
        agent.read_file("00000000-0000-4000-8000-000000000000", "/proc/vmstat")
    guest.sh("kill -STOP $(cat /run/qga.pid)")
    began = time.monotonic()
    with pytest.raises(HostError, match="agent"):
        agent.read_file(guest.vm_id, "/proc/vmstat")
    took = time.monotonic() - began
    guest.sh("kill -CONT $(cat /run/qga.pid)")
    assert took < 8, "libvirt's handshake of 5 s and our own 2 s"

    def answers() -> bool:
        try:
            return parse_oom_kills(agent.read_file(guest.vm_id, "/proc/vmstat")) is not None
        except HostError:
            return False

    wait_for(answers, "the agent to answer again", 30)
