"""Sampler on a small tree of files and a scripted hypervisor: what it reads, and that one failure never blanks the rest."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from agent.adapters.kernel_files import RootedFiles
from agent.ports import NumaNode, PerfCounts, RawHost, RawVm
from agent.sampling import sampler as sampler_module
from agent.sampling.sampler import RunningDomain, Sampler, ShapingReading, Stats
from shared.clock import ManualClock
from shared.errors import HostError, Refusal
from shared.plan import StepKind
from shared.refusal import RefusalCode
from shared.units import KIB, NS_PER_S, UNLIMITED

WEB, DB = "aaaaaaaa-0000-4000-8000-000000000001", "bbbbbbbb-0000-4000-8000-000000000002"
MOUNTS = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
PAGE = os.sysconf("SC_PAGE_SIZE")
STAT = "{pid} (qemu-system-x86) S 1 1 1 0 -1 0 20506 0 3 0 333 20 0 0 20 0 4 0 {started} 0 50 0 0\n"
NET = "h\nh\ntap-web: 1000 3 0 5 0 0 0 0 2000 4 0 6 0 0 0 0\n"
UPLINK = "h\nh\n  br0: 100 3 0 5 0 0 0 0 200 4 0 6 0 0 0 0\n"
ROUTE = "Iface ...\nbr0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"


class Host:
    """The files of two QEMU processes, and the hypervisor's part of DomainSource and ShapingSource."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.domains = [RunningDomain(vm_id=WEB, tap="tap-web", vcpus=9), RunningDomain(vm_id=DB)]
        self.stats: dict[str, Stats] = {
            WEB: {"balloon.current": 100, "balloon.major_fault": 4, "block.count": 0},
            DB: {},  # busy: its groups are missing
        }
        self.shaped: dict[tuple[str, StepKind], ShapingReading] = {}
        self.error: Exception | None = None
        self.blocked: threading.Event | None = None
        self.lists = 0
        self.write("proc/self/mountinfo", MOUNTS)
        self.write("proc/meminfo", "MemTotal: 100 kB\nMemAvailable: 40 kB\nHugePages_Total: 4\nHugePages_Free: 3\n")
        self.write("proc/stat", "cpu 10 0 0 500 0 0 0 2 0 0\n")
        self.write("proc/self/net/route", ROUTE)
        self.write("proc/self/net/dev", UPLINK)
        self.write("proc/sys/kernel/random/boot_id", "boot-1\n")
        self.write("proc/pressure/cpu", "some avg10=0 avg60=0 avg300=0 total=77\n")
        self.start(WEB, 10, "web")
        self.start(DB, 20, "db")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def start(self, uuid: str, pid: int, name: str, started: int = 500) -> None:
        group = f"machine/qemu-1-{name}.libvirt-qemu"
        self.write(f"proc/{pid}/comm", "qemu-system-x86\n")
        self.write(f"proc/{pid}/cmdline", f"qemu\0-uuid\0{uuid}\0")
        self.write(f"proc/{pid}/cgroup", f"0::/{group}/emulator\n")
        self.write(f"proc/{pid}/stat", STAT.format(pid=pid, started=started))
        self.write(f"proc/{pid}/net/dev", NET)
        (self.root / f"proc/{pid}/ns").mkdir(exist_ok=True)
        link = self.root / f"proc/{pid}/ns/net"
        if not link.is_symlink():
            link.symlink_to("net:[1]")
        for i in (0, 1):
            self.write(f"proc/{pid}/task/{pid + 1 + i}/comm", f"CPU {i}/KVM\n")
            self.write(f"proc/{pid}/task/{pid + 1 + i}/schedstat", "100 30 1\n")
        self.write(f"cgroup/{group}/cpu.stat", "usage_usec 7\nthrottled_usec 2\n")
        self.write(f"cgroup/{group}/cpu.max", "50000 100000\n")
        self.write(f"cgroup/{group}/cpu.weight", "100\n")
        self.write(f"cgroup/{group}/memory.pressure", "some avg10=0 avg60=0 avg300=0 total=5\nfull avg10=0 avg60=0 avg300=0 total=3\n")

    def running(self) -> Sequence[RunningDomain]:
        self.lists += 1
        return self.domains

    def bulk_stats(self) -> Mapping[str, Stats]:
        if self.blocked is not None:
            self.blocked.wait(30)
        if self.error is not None:
            raise self.error
        return self.stats

    def readings(self) -> Mapping[tuple[str, StepKind], ShapingReading]:
        return self.shaped


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_795_000_000 * NS_PER_S)


@pytest.fixture
def sampler(host: Host, clock: ManualClock) -> Sampler:
    files = RootedFiles(proc=host.root / "proc", sys=host.root / "sys", cgroup=host.root / "cgroup")
    return Sampler(files, host, clock, host)


def by_id(raw: RawHost) -> dict[str, RawVm]:
    return {vm.vm_id: vm for vm in raw.vms}


def test_everything_is_read_into_one_round(host: Host, sampler: Sampler) -> None:
    host.shaped = {
        ("tap-web", StepKind.NET_TX): ShapingReading(
            ceiling_bits_per_s=8000, dropped_total=6, overlimits_total=4, backlog_bytes=1514, rate_bits_per_s=2000
        )
    }
    raw = sampler.read()
    assert raw.failures == {}
    assert (raw.boot_id, raw.memory_available_bytes, raw.psi_cpu_some_us_total, raw.psi_memory_some_us_total) == (
        "boot-1",
        40 * KIB,
        77,
        None,
    )
    assert (raw.cpu_busy_ns_total, raw.cpu_steal_ns_total) == (120_000_000, 20_000_000)
    assert (raw.net_rx_bytes_total, raw.net_tx_bytes_total, raw.net_dropped_total) == (100, 200, 11)
    assert (raw.hugepages_total, raw.hugepages_free) == (4, 3)
    assert raw.memory_overhead_bytes is None, "the balloon of the busy domain is not known"
    assert by_id(raw)[WEB] == RawVm(
        vm_id=WEB,
        epoch="boot-1:10:500",
        cpu_used_ns_total=7000,
        throttled_ns_total=2000,
        run_delay_ns_total=60,
        psi_memory_some_us_total=5,
        psi_memory_full_us_total=3,
        memory_actual_bytes=100 * KIB,
        memory_rss_bytes=50 * PAGE,
        major_faults_total=3 + 4,
        disk_read_bytes_total=0,
        disk_write_bytes_total=0,
        net_rx_bytes_total=2000,  # what the host transmits into the tap the guest receives
        net_tx_bytes_total=1000,
        net_tx_dropped_total=6,
        vcpus=2,
        cpu_quota_millicores=500,
        cpu_shares=1024,
        net_rx_ceil_bits_per_s=UNLIMITED,
        net_tx_ceil_bits_per_s=8000,
        disk_read_ops_total=0,
        disk_write_ops_total=0,
        disk_read_time_ns_total=0,
        disk_write_time_ns_total=0,
        net_rx_packets_total=4,
        net_tx_packets_total=3,
        net_rx_tap_dropped_total=6,
        net_tx_tap_dropped_total=5,
        net_tx_overlimits_total=4,
        net_tx_backlog_bytes=1514,
        net_tx_rate_bits_per_s=2000,
        cpu_period_us=100_000,
    )


def test_busy_domain_keeps_what_files_give(sampler: Sampler) -> None:
    busy = by_id(sampler.read())[DB]
    assert (busy.cpu_used_ns_total, busy.run_delay_ns_total, busy.memory_rss_bytes) == (7000, 60, 50 * PAGE)
    assert (busy.memory_actual_bytes, busy.disk_read_bytes_total, busy.net_rx_bytes_total) == (None, None, None)
    assert busy.net_rx_ceil_bits_per_s is None, "without a tap nothing is known about its ceiling"


@pytest.mark.parametrize("error", [HostError("monitor gone"), Refusal(RefusalCode.NOT_CAPABLE, "monitor gone")])
def test_failing_libvirt_is_named_and_counted(host: Host, sampler: Sampler, error: Exception) -> None:
    sampler.read()
    host.error = error
    raw = sampler.read()
    assert raw.failures == {"libvirt": str(error)}
    assert by_id(raw)[WEB].cpu_used_ns_total == 7000
    assert by_id(raw)[WEB].memory_actual_bytes is None
    assert (sampler.collector_stats["libvirt"].succeeded, sampler.collector_stats["libvirt"].failed) == (1, 1)
    assert sampler.collector_stats["vms"].succeeded == 2


def test_hanging_libvirt_costs_a_deadline_and_a_bounded_number_of_threads(
    host: Host, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler_module, "LIBVIRT_DEADLINE_S", 0.05)
    host.blocked = threading.Event()
    *late, last = [sampler.read() for _ in range(sampler_module.STATS_CALLS + 1)]
    assert all("no answer within 0.05 s" in raw.failures["libvirt"] for raw in late)
    assert "earlier calls" in last.failures["libvirt"]
    assert by_id(last)[WEB].cpu_used_ns_total == 7000
    host.blocked.set()
    for thread in threading.enumerate():
        if thread.name.startswith("tidegate"):
            thread.join(10)
    host.blocked = None
    assert sampler.read().failures == {}


def test_a_bug_in_the_hypervisor_is_not_swallowed(host: Host, sampler: Sampler) -> None:
    host.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        sampler.read()


def test_vanished_process_is_named_and_found_again(host: Host, sampler: Sampler) -> None:
    sampler.read()
    host.start(WEB, 10, "web", started=900)  # the same pid, another process
    raw = sampler.read()
    assert WEB not in by_id(raw) and "gone" in raw.failures[WEB]
    assert DB in by_id(raw)
    assert by_id(sampler.read())[WEB].epoch == "boot-1:10:900"


def test_a_guest_that_was_reset_inside_its_process_is_another_run(host: Host, sampler: Sampler) -> None:
    sampler.read()
    host.domains = [msgspec.structs.replace(domain, reboots=int(domain.vm_id == WEB)) for domain in host.domains]
    sampler.invalidate()
    vms = by_id(sampler.read())
    assert (vms[WEB].epoch, vms[DB].epoch) == ("boot-1:10:500#1", "boot-1:20:500")


def test_domain_without_a_process_is_named_and_tried_again(host: Host, sampler: Sampler) -> None:
    host.write("proc/10/cmdline", "qemu\0")
    assert "UUID" in sampler.read().failures[WEB]
    host.write("proc/10/cmdline", f"qemu\0-uuid\0{WEB}\0")
    assert sampler.read().failures == {}


def test_list_is_renewed_only_when_there_is_a_reason(host: Host, sampler: Sampler, clock: ManualClock) -> None:
    for _ in range(3):
        sampler.read()
    assert host.lists == 1
    sampler.invalidate()
    sampler.read()
    assert host.lists == 2
    clock.advance(61)
    sampler.read()
    assert host.lists == 3
    host.stats["cccccccc-0000-4000-8000-000000000003"] = {}
    sampler.read()
    sampler.read()
    assert host.lists == 4


def test_unreadable_file_of_one_vm_takes_only_that_vm(host: Host, sampler: Sampler) -> None:
    sampler.read()
    sampler.close()
    pressure = host.root / "cgroup/machine/qemu-1-db.libvirt-qemu/memory.pressure"
    pressure.unlink()
    pressure.mkdir()
    raw = sampler.read()
    assert "directory" in raw.failures[DB]
    assert WEB in by_id(raw) and DB not in by_id(raw)


class Figure:
    def __init__(self, value: int) -> None:
        self.value = value

    def newest(self, vm_id: str) -> int | None:
        return self.value if vm_id == WEB else None


class Events:
    """A PerfReader that counts task clock, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, Sequence[int], Path | None]] = []
        self.forgotten: list[str] = []
        self.error: HostError | None = None

    def read(self, vm_id: str, pid: int, tids: Sequence[int], cgroup_dir: Path | None) -> PerfCounts | None:
        self.asked.append((vm_id, pid, tids, cgroup_dir))
        if self.error is not None:
            raise self.error
        return PerfCounts(task_clock_ns_total=5) if vm_id == WEB else None

    def forget(self, vm_id: str) -> None:
        self.forgotten.append(vm_id)


def test_what_others_measure_is_taken_along(host: Host, clock: ManualClock) -> None:
    files = RootedFiles(proc=host.root / "proc", sys=host.root / "sys", cgroup=host.root / "cgroup")
    events, node = Events(), NumaNode(node=0, cpus=2)
    host.domains[0] = RunningDomain(vm_id=WEB, tap="tap-web", virtio_mem_bytes=7, disk_weight=200)
    sampler = Sampler(
        files,
        host,
        clock,
        perf=events,
        guest_oom_kills=Figure(3),
        dirty_rate=Figure(9),
        numa=lambda _: (node,),
        kvm=lambda stats: {"exits": len(stats)},
    )
    sampler.read()
    raw = sampler.read()
    web = by_id(raw)[WEB]
    assert (web.perf, web.kvm, web.guest_oom_kills_total, web.dirty_bytes_per_s) == (PerfCounts(task_clock_ns_total=5), {"exits": 3}, 3, 9)
    assert (web.virtio_mem_bytes, web.disk_weight, web.net_tx_ceil_bits_per_s) == (7, 200, None)
    assert (raw.numa, by_id(raw)[DB].perf) == ((node,), None)
    assert events.asked[-2] == (WEB, 10, (11, 12), host.root / "cgroup/machine/qemu-1-web.libvirt-qemu")
    events.error = HostError("no counter left")
    raw = sampler.read()
    assert raw.failures == {"perf": "no counter left"}
    assert by_id(raw)[WEB].cpu_used_ns_total == 7000
    host.domains.pop()
    sampler.invalidate()
    sampler.read()
    assert events.forgotten == [DB]


def test_subsamples_give_the_peaks_of_the_period(host: Host, sampler: Sampler, clock: ManualClock) -> None:
    group = "cgroup/machine/qemu-1-web.libvirt-qemu/cpu.stat"
    sampler.read()
    for used_us, throttled_us, delay_ns in ((100_007, 2, 0), (1_000_007, 2, 30_000_000), (1_100_007, 200_002, 250_000_000)):
        clock.advance(1)
        host.write(group, f"usage_usec {used_us}\nthrottled_usec {throttled_us}\n")
        host.write("proc/10/task/11/schedstat", f"100 {30 + delay_ns} 1\n")
        sampler.subsample()
    clock.advance(2)
    web = by_id(sampler.read())[WEB]
    # seconds two and three: 0.9 CPUs used; 220 ms waited, of which 200 ms the VM's own quota
    assert (web.cpu_used_peak_millicores, web.cpu_ready_peak_permille) == (900, 30)
    clock.advance(5)
    web = by_id(sampler.read())[WEB]
    assert (web.cpu_used_peak_millicores, web.cpu_ready_peak_permille) == (None, None), "no look in between: the mean says as much"


def test_statistics_are_sent_for_ahead_by_the_last_look_before_a_round(host: Host, sampler: Sampler, clock: ManualClock) -> None:
    """Rounds at 0, 5, 10 s, looks at 1, 2, 3 and 4 s of each period: the one at 9 s asks, and what it got goes into the round at 10 s."""
    assert sampler.read().statistics_monotonic_ns == clock.now_ns
    clock.advance(5)
    sampler.read()
    for _ in range(3):
        clock.advance(1)
        sampler.subsample()
    host.stats = {WEB: {"balloon.current": 200}}
    clock.advance(1)
    sampler.subsample()
    for thread in threading.enumerate():
        if thread.name.startswith("tidegate"):
            thread.join(10)
    asked_ns = clock.now_ns
    host.stats = {WEB: {"balloon.current": 300}}
    clock.advance(1)
    raw = sampler.read()
    assert (by_id(raw)[WEB].memory_actual_bytes, raw.statistics_monotonic_ns) == (200 * KIB, asked_ns)
    clock.advance(5)
    raw = sampler.read()
    assert (by_id(raw)[WEB].memory_actual_bytes, raw.statistics_monotonic_ns) == (300 * KIB, clock.now_ns)


def test_list_is_sent_for_ahead_and_a_change_meanwhile_is_not_lost(host: Host, sampler: Sampler, clock: ManualClock) -> None:
    for _ in range(2):
        sampler.read()
        clock.advance(5)
    sampler.read()
    assert host.lists == 1
    sampler.invalidate()
    clock.advance(2)
    sampler.subsample()
    assert host.lists == 1, "another look fits in before the round"
    clock.advance(2)
    sampler.subsample()
    for thread in threading.enumerate():
        if thread.name.startswith("tidegate"):
            thread.join(10)
    assert host.lists == 2
    host.domains = host.domains[:1]
    sampler.invalidate()
    clock.advance(1)
    assert len(sampler.read().vms) == 2, "the list from before the change"
    clock.advance(5)
    assert len(sampler.read().vms) == 1
    assert host.lists == 3


def test_descriptors_are_given_back(host: Host, clock: ManualClock) -> None:
    files = RootedFiles(proc=host.root / "proc", sys=host.root / "sys", cgroup=host.root / "cgroup")
    sampler = Sampler(files, host, clock)
    sampler.read()
    both = files.kept
    host.domains.pop()
    sampler.invalidate()
    sampler.read()
    assert both // 2 <= files.kept < both
    for _ in range(3):
        sampler.invalidate()
        sampler.read()
    one = files.kept
    sampler.close()
    assert 0 < files.kept < one // 2, "the host's own files stay"
    few = RootedFiles(proc=host.root / "proc", sys=host.root / "sys", cgroup=host.root / "cgroup", max_kept=3)
    poor = Sampler(few, host, clock)
    host.shaped = {}
    assert poor.read().vms == sampler.read().vms
    assert few.kept == 3
