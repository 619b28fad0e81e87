"""Parsers of agent/sampling, fed with text as the kernel and libvirt wrote it on a real host, and with what they may also write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.adapters.kernel_files import RootedFiles
from agent.sampling.block import parse_block
from agent.sampling.files import parse_flat, read_int
from agent.sampling.host import parse_meminfo, read_boot_id, read_memory
from agent.sampling.memory import Balloon, parse_balloon, parse_rss
from agent.sampling.nic import InterfaceCounters, parse_net_dev
from agent.sampling.process import find_qemu, parse_stat, parse_uuid, start_time
from agent.sampling.psi import Pressure, parse_pressure, read_host_pressure
from agent.sampling.sched import VcpuThreads, parse_schedstat, read_vcpu_threads
from shared.errors import HostError
from shared.units import KIB, NS_PER_S

STAT = "8568 (qemu (x) 86) S 1 8567 8567 0 -1 138412416 20506 0 3 0 333 20 0 0 20 0 4 0 146771 470609920 42301 18446744073709551615"
UUID = "d6245080-ba16-4159-a164-55b2a2603dac"


def tree(root: Path, files: dict[str, str]) -> RootedFiles:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return RootedFiles(proc=root / "proc", sys=root / "sys", cgroup=root / "cgroup")


def test_pressure() -> None:
    text = "some avg10=54.85 avg60=0.00 avg300=0.00 total=5243\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5141\n"
    assert parse_pressure(text) == Pressure(some_us_total=5243, full_us_total=5141)
    assert parse_pressure("some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n") == Pressure(some_us_total=1)
    assert parse_pressure("") == parse_pressure("some total=x") == Pressure()


def test_schedstat_and_flat_files() -> None:
    assert parse_schedstat("3316652617 1762242 531\n") == (3316652617, 1762242)
    assert parse_schedstat("") is None
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


def test_process_stat_survives_brackets_in_the_name(tmp_path: Path) -> None:
    assert parse_stat(STAT)[0] == "S"
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


def test_memory_of_process_and_balloon() -> None:
    assert parse_rss("Name:\tqemu\nVmHWM:\t  170696 kB\nVmRSS:\t  169268 kB\n") == 169268 * KIB
    assert parse_rss("Name:\tkthreadd\n") is None
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


def test_block_counters_add_up_or_are_unknown() -> None:
    disks = {"block.count": 2, "block.0.rd.bytes": 5, "block.0.wr.bytes": 1, "block.1.rd.bytes": 6, "block.1.wr.bytes": 2}
    assert parse_block(disks) == (11, 3)
    assert parse_block({**disks, "block.count": 3}) == (None, None)
    assert parse_block({"block.count": 0}) == (0, 0)
    assert parse_block({}) == (None, None)


def test_net_dev() -> None:
    text = (
        "Inter-|   Receive                            |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n"
        "    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0\n"
        "tap-g1:1250       3    0    0    0     0          0         0      516       6    0    0    0     0       0          0\n"
    )
    assert parse_net_dev(text)["tap-g1"] == InterfaceCounters(rx_bytes_total=1250, tx_bytes_total=516)
    assert parse_net_dev("") == {}


def test_host_files(tmp_path: Path) -> None:
    meminfo = "MemTotal:       24684096 kB\nMemFree:  1 kB\nMemAvailable:    9 kB\nHugePages_Total:       0\n"
    files = tree(tmp_path, {"proc/meminfo": meminfo, "proc/sys/kernel/random/boot_id": "0f\n"})
    assert (read_memory(files).total_bytes, read_memory(files).available_bytes) == (24684096 * KIB, 9 * KIB)
    assert parse_meminfo("MemFree: 1 kB").available_bytes is None
    assert read_boot_id(files) == "0f"
    assert read_host_pressure(files, "cpu") == Pressure()
    with pytest.raises(HostError, match="boot_id"):
        read_boot_id(RootedFiles(proc=tmp_path / "empty"))


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
