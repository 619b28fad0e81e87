"""Parsers of agent/sampling, fed with text as the kernel and libvirt wrote it on a real host, and with what they may also write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.adapters.kernel_files import RootedFiles
from agent.sampling.block import DiskCounters, parse_block
from agent.sampling.files import field, parse_flat, read_int
from agent.sampling.host import HostCpu, HostFiles, parse_cpu, parse_meminfo, read_boot_id, read_memory
from agent.sampling.memory import Balloon, MemoryStat, parse_balloon, parse_high, parse_high_events, parse_stat_v1, parse_stat_v2
from agent.sampling.nic import InterfaceCounters, parse_default_route, parse_net_dev, read_default_interface
from agent.sampling.process import ProcessStat, find_qemu, parse_stat, parse_uuid, start_time
from agent.sampling.psi import Pressure, parse_pressure
from agent.sampling.sched import ThreadFiles, VcpuThreads, parse_schedstat, read_vcpu_threads
from shared.errors import HostError
from shared.units import KIB, NS_PER_S, UNLIMITED

STAT = "8568 (qemu (x) 86) S 1 8567 8567 0 -1 138412416 20506 0 3 0 333 20 0 0 20 0 4 0 146771 470609920 42301 18446744073709551615"
UUID = "d6245080-ba16-4159-a164-55b2a2603dac"


def tree(root: Path, files: dict[str, str]) -> RootedFiles:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return RootedFiles(proc=root / "proc", sys=root / "sys", cgroup=root / "cgroup")


def test_pressure() -> None:
    text = b"some avg10=54.85 avg60=0.00 avg300=0.00 total=5243\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5141\n"
    assert parse_pressure(text) == Pressure(some_us_total=5243, full_us_total=5141)
    assert parse_pressure(b"some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n") == Pressure(some_us_total=1)
    assert parse_pressure(b"") == parse_pressure(b"some total=x") == Pressure()


def test_schedstat_and_flat_files() -> None:
    assert parse_schedstat(b"3316652617 1762242 531\n") == (3316652617, 1762242)
    assert parse_schedstat(b"") is None
    stat = b"anon 7\nfile 8\nworkingset_refault_anon 9\n"
    assert [field(stat, key) for key in (b"anon", b"file", b"workingset_refault_anon", b"refault_anon", b"fil")] == [7, 8, 9, None, None]
    assert field(b"high max\n", b"high") is None
    assert parse_flat("usage_usec 3539520\nnice_usec 0\nodd line here\nname text\n") == {"usage_usec": 3539520, "nice_usec": 0}


def test_vcpu_threads_are_told_from_the_others(tmp_path: Path) -> None:
    task = "proc/70/task"
    threads = {"70": "qemu-system-x86", "71": "IO mon_iothread", "72": "CPU 0/KVM", "73": "CPU 1/TCG", "74": "vhost-70"}
    files = tree(tmp_path, {f"{task}/{tid}/comm": f"{comm}\n" for tid, comm in threads.items()})
    tree(tmp_path, {f"{task}/{tid}/schedstat": f"{tid}0 {tid} 1\n" for tid in threads})
    assert read_vcpu_threads(files, 70) == VcpuThreads(count=2, run_ns_total=1450, delay_ns_total=145)
    (tmp_path / task / "73/schedstat").unlink()
    assert read_vcpu_threads(files, 70) == VcpuThreads(count=2), "half of a sum is no sum"
    assert read_vcpu_threads(files, 71) == VcpuThreads(count=0)


def test_vcpu_threads_are_listed_anew_only_when_something_hints_at_it(tmp_path: Path) -> None:
    names = {"71": "CPU 0/KVM", "72": "worker"}
    files = tree(tmp_path, {f"proc/70/task/{tid}/comm": f"{comm}\n" for tid, comm in names.items()})
    tree(tmp_path, {f"proc/70/task/{tid}/schedstat": f"{tid} 5 1\n" for tid in ("71", "72")})
    threads = ThreadFiles(files, 70)
    assert threads.read(2) == VcpuThreads(count=1, run_ns_total=71, delay_ns_total=5)
    tree(tmp_path, {"proc/70/task/73/comm": "CPU 1/KVM\n", "proc/70/task/73/schedstat": "73 5 1\n", "proc/70/task/72/comm": "CPU 2/KVM\n"})
    assert threads.read(2).count == 1
    assert threads.read(3).count == 2, "a known thread is not asked for its name again"
    assert (threads.tids, threads.delay_ns()) == ((71, 73), 10)
    threads.retry()
    assert threads.read(3).count == 3
    threads.close()


def test_vcpu_threads_that_have_not_run_are_not_read(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/70/task/71/comm": "CPU 0/KVM\n"})
    threads = ThreadFiles(tree(tmp_path, {}), 70)

    def write(delay_ns: int) -> None:
        tree(tmp_path, {"proc/70/task/71/schedstat": f"{delay_ns} {delay_ns} 1\n"})

    write(5)
    assert threads.read(2, has_run=False).delay_ns_total == 5, "the first time in any case"
    write(6)
    assert (threads.delay_ns(has_run=False), threads.read(2, has_run=False).delay_ns_total) == (5, 5)
    assert threads.delay_ns() == threads.delay_ns(has_run=False) == 6
    write(7)
    assert threads.read(2, has_run=False).run_ns_total == 7, "a look has no run time"
    write(8)
    assert threads.delay_ns(has_run=False) == 7
    assert threads.read(3, has_run=False).delay_ns_total == 8
    write(9)
    threads.retry()
    assert threads.delay_ns(has_run=False) == 9
    threads.close()


def test_process_stat_survives_brackets_in_the_name(tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    expected = ProcessStat(major_faults=3, ticks=353, threads=4, started=146771, rss_bytes=42301 * page)
    assert parse_stat(STAT.encode()) == expected
    assert parse_stat(b"") is parse_stat(b"1 (x) S 1") is None
    assert start_time(tree(tmp_path, {"proc/8568/stat": STAT}), 8568) == 146771
    assert start_time(tree(tmp_path, {}), 1) is None


def test_qemu_is_found_by_uuid_and_libvirts_own_wins(tmp_path: Path) -> None:
    command_line = f"/usr/bin/qemu-system-x86_64\0-name\0guest=g1\0-uuid\0{UUID}\0-display\0none\0"
    impostor = {"comm": "qemu-fake\n", "cmdline": command_line, "cgroup": "0::/user.slice/user-1000.slice/session-1.scope\n"}
    real = {"comm": "qemu-system-x86\n", "cmdline": command_line, "cgroup": "0::/machine/qemu-1-g1.libvirt-qemu/emulator\n"}
    other = {"comm": "bash\n", "cmdline": command_line, "cgroup": "0::/\n"}
    for first, second in ((impostor, real), (real, impostor)):
        content = {"10": first, "11": second, "12": other, "self": other}
        files = tree(tmp_path, {f"proc/{pid}/{name}": text for pid, texts in content.items() for name, text in texts.items()})
        assert find_qemu(files) == {UUID: 10 if first is real else 11}
    assert parse_uuid("qemu\0-uuid") is None


def test_balloon() -> None:
    stats = {
        "balloon.current": 131072,
        "balloon.swap_in": 2,
        "balloon.swap_out": 3,
        "balloon.major_fault": 7,
        "balloon.unused": 67936,
        "balloon.usable": 73508,
        "balloon.last-update": 1795294160,
    }
    assert parse_balloon(stats) == Balloon(
        actual_bytes=131072 * KIB,
        usable_bytes=73508 * KIB,
        unused_bytes=67936 * KIB,
        reading_wall_ns=1795294160 * NS_PER_S,
        major_faults_total=7,
        swap_bytes_total=5 * KIB,
    )
    no_driver_yet = {"balloon.current": 131072, "balloon.last-update": 0, "balloon.usable": 2**64 - 1}
    assert parse_balloon(no_driver_yet) == Balloon(actual_bytes=131072 * KIB)
    assert parse_balloon({}) == Balloon()


def test_group_memory_of_both_versions() -> None:
    v1 = (
        b"cache 1\nrss 2\nworkingset_refault_anon 3\ntotal_cache 532480\ntotal_rss 15011840\n"
        b"total_workingset_refault_anon 5\ntotal_workingset_refault_file 128\n"
    )
    assert parse_stat_v1(v1) == MemoryStat(anon_bytes=15011840, file_bytes=532480, refaults=133)
    v2 = b"anon 10\nfile 20\nkernel 5\nworkingset_refault_anon 1\nworkingset_refault_file 2\n"
    assert parse_stat_v2(v2) == MemoryStat(anon_bytes=10, file_bytes=20, refaults=3)
    assert parse_stat_v2(b"anon 10\nworkingset_refault 4\n") == MemoryStat(anon_bytes=10, refaults=4), "before Linux 5.9"
    assert (parse_high(b"max\n"), parse_high(b"4096\n"), parse_high(b"")) == (UNLIMITED, 4096, None)
    assert parse_high_events(b"low 0\nhigh 17\nmax 0\noom 0\noom_kill 0\n") == 17


def test_block_counters_add_up_or_are_unknown() -> None:
    first = {"block.0.rd.bytes": 5, "block.0.wr.bytes": 1, "block.0.rd.reqs": 2, "block.0.wr.reqs": 1, "block.0.rd.times": 70}
    disks = {"block.count": 2, **first, "block.1.rd.bytes": 6, "block.1.wr.bytes": 2, "block.1.rd.reqs": 3, "block.1.rd.times": 30}
    assert parse_block(disks) == DiskCounters(read_bytes_total=11, write_bytes_total=3, read_ops_total=5, read_time_ns_total=100)
    assert parse_block({**disks, "block.count": 3}) == DiskCounters()
    assert parse_block({"block.count": 0}) == DiskCounters(**dict.fromkeys(DiskCounters.__struct_fields__, 0))
    assert parse_block({}) == DiskCounters()


def test_net_dev() -> None:
    text = (
        b"Inter-|   Receive                            |  Transmit\n"
        b" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n"
        b"    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0\n"
        b"tap-g1:1250       3    0    4    0     0          0         0      516       6    0    5    0     0       0          0\n"
    )
    expected = InterfaceCounters(
        rx_bytes_total=1250, tx_bytes_total=516, rx_packets_total=3, tx_packets_total=6, rx_dropped_total=4, tx_dropped_total=5
    )
    assert parse_net_dev(text)["tap-g1"] == expected
    assert parse_net_dev(text, {"tap-g1", "tap-g2"}) == {"tap-g1": expected}
    assert parse_net_dev(b"") == {}


def test_default_route(tmp_path: Path) -> None:
    head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    near = "eth1\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    slow = "wlan0\t00000000\t010200C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n"
    fast = "br0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
    refused = "eth9\t00000000\t00000000\t0200\t0\t0\t0\t00000000\t0\t0\t0\n"
    assert parse_default_route(head + near + slow + fast + refused) == "br0"
    assert parse_default_route(head + near) is parse_default_route("") is None
    zero = "0" * 32
    refusing = f"{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n"
    six = f"{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n"
    assert parse_default_route(head + near, refusing + six) == "eth0"
    assert read_default_interface(tree(tmp_path, {"proc/self/net/route": head + fast})) == "br0"


def test_host_files(tmp_path: Path) -> None:
    meminfo = "MemTotal:       24684096 kB\nMemFree:  1 kB\nMemAvailable:    9 kB\nHugePages_Total:       0\n"
    files = tree(tmp_path, {"proc/meminfo": meminfo, "proc/sys/kernel/random/boot_id": "0f\n"})
    assert (read_memory(files).total_bytes, read_memory(files).available_bytes) == (24684096 * KIB, 9 * KIB)
    assert parse_meminfo("MemFree: 1 kB").available_bytes is None
    assert read_boot_id(files) == "0f"
    assert HostFiles(files).pressure("cpu") == Pressure()
    huge = parse_meminfo("HugePages_Total:      12\nHugePages_Free:        5\nHugepagesize:       2048 kB\n")
    assert (huge.hugepages_total, huge.hugepages_free) == (12, 5)
    with pytest.raises(HostError, match="boot_id"):
        read_boot_id(RootedFiles(proc=tmp_path / "empty"))


def test_cpu_time_of_the_host() -> None:
    text = b"cpu  10 20 30 1000 2000 4 5 6 9 9\ncpu0 10 20 30 1000 2000 4 5 6 9 9\n"
    assert parse_cpu(text) == HostCpu(busy_ns_total=75 * 10_000_000, steal_ns_total=6 * 10_000_000), "idle, iowait and guest left out"
    assert parse_cpu(b"") == parse_cpu(b"intr 5 6 7 8 9\n") == HostCpu()


def test_absent_is_none_and_forbidden_is_an_error(tmp_path: Path) -> None:
    files = tree(tmp_path, {"cgroup/max": "max\n", "cgroup/minus": "-1\n"})
    assert files.read(tmp_path / "nothing") is None
    assert files.read(tmp_path / "cgroup/max/below-a-file") is None
    assert files.names(tmp_path / "nothing") == []
    assert files.link(tmp_path / "nothing") is None
    assert read_int(files, tmp_path / "cgroup/max") is None
    assert read_int(files, tmp_path / "cgroup/minus") == -1
    with pytest.raises(HostError, match="directory"):
        files.read(tmp_path)
    if os.geteuid() != 0:
        (tmp_path / "cgroup/max").chmod(0)
        with pytest.raises(HostError, match="ermission"):
            files.read(tmp_path / "cgroup/max")
