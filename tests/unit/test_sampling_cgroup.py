"""cgroup: the layouts of v1, v2, hybrid and systemd as small trees copied from real hosts; nothing shared is taken for a VM's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.adapters.kernel_files import RootedFiles
from agent.sampling.block import GroupWeight
from agent.sampling.cgroup import (
    VmGroups,
    below,
    domain_group,
    locate,
    parse_mountinfo,
    parse_proc_cgroup,
    quota_millicores,
    shares_of_weight,
    weight_of_shares,
)
from agent.sampling.files import KernelFiles
from agent.sampling.group_cpu import CpuReading, CpuStat, GroupCpu, parse_cpu_max, parse_cpu_stat
from agent.sampling.memory import GroupMemory, MemoryReading
from shared.units import UNLIMITED

PID = 8568
PLAIN = "machine/qemu-1-g1.libvirt-qemu"
SCOPE = "machine.slice/machine-qemu\\x2d1\\x2dg1.scope"
V1_STAT = "nr_periods 336\nnr_throttled 335\nthrottled_time {}\nnr_bursts 0\nburst_time 0\n"
V2_STAT = "usage_usec {}\nuser_usec 3330125\nsystem_usec 209394\nnr_periods 336\nnr_throttled 335\nthrottled_usec {}\n"

HYBRID_MOUNTS = """31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:7 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
V2_MOUNTS = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
V1_MOUNTS = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"


def build(root: Path, mounts: str, cgroup: str, files: dict[str, str]) -> RootedFiles:
    texts = {"proc/self/mountinfo": mounts, f"proc/{PID}/cgroup": cgroup} | {f"cgroup/{name}": text for name, text in files.items()}
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return RootedFiles(proc=root / "proc", sys=root / "sys", cgroup=root / "cgroup")


def read_cpu(files: KernelFiles, groups: VmGroups) -> CpuReading:
    return GroupCpu(files, groups).read()


def v1_group(path: str, quota: int, throttled: int, shares: int = 1024) -> dict[str, str]:
    return {
        f"{path}/cpu.cfs_quota_us": f"{quota}\n",
        f"{path}/cpu.cfs_period_us": "100000\n",
        f"{path}/cpu.shares": f"{shares}\n",
        f"{path}/cpu.stat": V1_STAT.format(throttled),
    }


def v2_group(path: str, quota: str, throttled: int, usage: int = 0, weight: int = 100) -> dict[str, str]:
    return {
        f"{path}/cpu.max": f"{quota} 100000\n",
        f"{path}/cpu.weight": f"{weight}\n",
        f"{path}/cpu.stat": V2_STAT.format(usage, throttled),
    }


def test_hybrid_as_libvirt_uses_it_without_systemd(tmp_path: Path) -> None:
    cgroup = (
        f"9:name=systemd:/\n7:blkio:/{PLAIN}\n4:memory:/own/group/{PLAIN}\n2:cpuacct:/\n1:cpu:/{PLAIN}/emulator\n0::/{PLAIN}/emulator\n"
    )
    files = build(
        tmp_path,
        HYBRID_MOUNTS + "34 31 0:31 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio\n",
        cgroup,
        v1_group(f"cpu/{PLAIN}", -1, 1000, shares=2048)
        | v1_group(f"cpu/{PLAIN}/vcpu0", 25_000, 200)
        | v1_group(f"cpu/{PLAIN}/vcpu1", 25_000, 30)
        | v1_group(f"cpu/{PLAIN}/emulator", 5_000, 7_000_000)
        | {"cpuacct/cpuacct.usage": "1\n", f"unified/{PLAIN}/cpu.stat": "usage_usec 3539520\nuser_usec 3330125\nnice_usec 0\n"},
    )
    groups = locate(files, PID)
    assert groups == VmGroups(
        cpu=(tmp_path / "cgroup/cpu" / PLAIN,),
        unified=tmp_path / "cgroup/unified" / PLAIN,
        memory=(tmp_path / "cgroup/memory/own/group" / PLAIN,),
        disk=tmp_path / "cgroup/blkio" / PLAIN,
    )
    expected = CpuReading(
        used_ns_total=3_539_520_000,
        throttled_ns_total=1230,
        periods_total=3 * 336,
        throttled_periods_total=3 * 335,
        quota_millicores=500,
        period_us=100_000,
        shares=2048,
    )
    assert read_cpu(files, groups) == expected


def test_v2_with_systemd(tmp_path: Path) -> None:
    files = build(
        tmp_path,
        V2_MOUNTS,
        f"0::/{SCOPE}/libvirt/emulator\n",
        v2_group(SCOPE, "max", 5, usage=9, weight=200)
        | v2_group(f"{SCOPE}/libvirt", "60000", 100, usage=1_000_000)
        | v2_group(f"{SCOPE}/libvirt/vcpu0", "50000", 20)
        | v2_group(f"{SCOPE}/libvirt/vcpu1", "50000", 3),
    )
    groups = locate(files, PID)
    inner = tmp_path / "cgroup" / SCOPE / "libvirt"
    both = (inner, inner.parent)
    assert groups == VmGroups(cpu=both, cpu_is_v2=True, unified=inner, memory=both, memory_is_v2=True, disk=inner.parent)
    expected = CpuReading(
        used_ns_total=1_000_000_000,
        throttled_ns_total=128_000,
        periods_total=4 * 336,
        throttled_periods_total=4 * 335,
        quota_millicores=600,
        period_us=100_000,
        shares=2048,
    )
    assert read_cpu(files, groups) == expected


def test_pure_v1_with_joined_controllers(tmp_path: Path) -> None:
    where = f"cpu,cpuacct/{SCOPE}"
    files = build(
        tmp_path,
        V1_MOUNTS,
        f"3:cpu,cpuacct:/{SCOPE}/emulator\n1:name=systemd:/{SCOPE}\n",
        v1_group(where, -1, 0) | v1_group(f"{where}/vcpu0", -1, 4) | {f"{where}/cpuacct.usage": "77\n"},
    )
    groups = locate(files, PID)
    assert groups.cpuacct == groups.cpu[0] == tmp_path / "cgroup" / where
    expected = CpuReading(
        used_ns_total=77,
        throttled_ns_total=4,
        periods_total=2 * 336,
        throttled_periods_total=2 * 335,
        quota_millicores=UNLIMITED,
        period_us=100_000,
        shares=1024,
    )
    assert read_cpu(files, groups) == expected


@pytest.mark.parametrize(
    ("texts", "weight"),
    [
        ({"io.weight": "default 100\n"}, 100),
        ({"io.weight": "default 300\n8:0 200\n"}, 300),
        ({"io.weight": "default 300\n", "io.bfq.weight": "default 700\n"}, 700),
        ({"io.bfq.weight": "600\n"}, 600),
        ({"blkio.weight": "500\n"}, 500),
        ({"blkio.bfq.weight": "400\n", "blkio.weight": "500\n"}, 400),
        ({"io.weight": "\n"}, None),
        ({}, None),
    ],
)
def test_the_disk_weight_is_read_where_libvirt_sets_it(tmp_path: Path, texts: dict[str, str], weight: int | None) -> None:
    files = RootedFiles(cgroup=tmp_path)
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    kept = GroupWeight(files, VmGroups(disk=tmp_path))
    assert kept.read() == weight
    for name, text in texts.items():
        (tmp_path / name).write_text(text.replace("00", "01"))
    assert kept.read() == (None if weight is None else weight + 1), "somebody changed it"
    kept.close()
    assert GroupWeight(files, VmGroups()).read() is None


def test_a_disk_weight_that_comes_later_is_found_when_looked_for_again(tmp_path: Path) -> None:
    kept = GroupWeight(RootedFiles(cgroup=tmp_path), VmGroups(disk=tmp_path))
    assert kept.read() is None
    (tmp_path / "io.weight").write_text("default 100\n")
    assert kept.read() is None
    kept.retry()
    assert kept.read() == 100
    kept.close()


def test_a_group_shared_with_others_is_nobodys(tmp_path: Path) -> None:
    files = build(tmp_path, V2_MOUNTS, "0::/user.slice/user-1000.slice/session-1.scope\n", {"cpu.stat": V2_STAT.format(5, 5)})
    assert locate(files, PID) == VmGroups(cpu_is_v2=True, memory_is_v2=True)
    assert read_cpu(files, locate(files, PID)) == CpuReading()
    assert locate(files, 1) == VmGroups(cpu_is_v2=True, memory_is_v2=True)


def test_v2_without_the_cpu_controller_has_usage_and_no_limits(tmp_path: Path) -> None:
    files = build(
        tmp_path, V2_MOUNTS, f"0::/{PLAIN}/emulator\n", {f"{PLAIN}/cpu.stat": "usage_usec 4\n", f"{PLAIN}/vcpu0/cpu.stat": "usage_usec 3\n"}
    )
    assert read_cpu(files, locate(files, PID)) == CpuReading(used_ns_total=4000)


def test_one_unreadable_vcpu_makes_the_quota_unknown(tmp_path: Path) -> None:
    files = build(
        tmp_path,
        HYBRID_MOUNTS,
        f"1:cpu:/{PLAIN}/emulator\n",
        v1_group(f"cpu/{PLAIN}", -1, 0) | v1_group(f"cpu/{PLAIN}/vcpu0", 25_000, 0) | {f"cpu/{PLAIN}/vcpu1/cpu.cfs_quota_us": "25000\n"},
    )
    assert read_cpu(files, locate(files, PID)).quota_millicores is None


def test_reader_and_vm_in_different_namespaces(tmp_path: Path) -> None:
    """The reader's cgroup namespace lies beside the VM's group; its mount was made from above."""
    mounts = "30 23 0:26 /.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    files = build(tmp_path, mounts, f"0::/../{PLAIN}/emulator\n", {})
    assert locate(files, PID).unified == tmp_path / "cgroup" / PLAIN


def test_mounts_of_the_process_serve_where_we_have_none(tmp_path: Path) -> None:
    files = build(tmp_path, "22 27 0:21 / /proc rw - proc proc rw\n", f"0::/{PLAIN}/emulator\n", {})
    (tmp_path / f"proc/{PID}/mountinfo").write_text(V2_MOUNTS)
    assert locate(files, PID).unified == tmp_path / f"proc/{PID}/root/sys/fs/cgroup" / PLAIN


def test_mount_elsewhere_and_with_a_space(tmp_path: Path) -> None:
    mounts = f"30 23 0:26 / {tmp_path}/my\\040groups rw - cgroup2 cgroup2 rw\n"
    assert parse_mountinfo(mounts)[0].mount_point == f"{tmp_path}/my groups"
    files = build(tmp_path, mounts, f"0::/{PLAIN}/vcpu0\n", {})
    assert locate(files, PID).unified == tmp_path / "my groups" / PLAIN


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        ("/a/b", "/", "a/b"),
        ("/a/b", "/a", "b"),
        ("/a", "/a", ""),
        ("/ab", "/a", None),
        ("/../a/b", "/..", "a/b"),
        ("/../a/b", "/../a", "b"),
        ("/../../a", "/..", None),
        ("/../a", "/", None),
        ("/a", "/..", None),
    ],
)
def test_below(path: str, root: str, expected: str | None) -> None:
    assert below(path, root) == expected


@pytest.mark.parametrize(
    ("path", "group"),
    [
        (f"/{PLAIN}/emulator", f"/{PLAIN}"),
        (f"/{PLAIN}/vcpu12", f"/{PLAIN}"),
        (f"/{PLAIN}", f"/{PLAIN}"),
        (f"/{SCOPE}/libvirt/emulator", f"/{SCOPE}/libvirt"),
        (f"/{SCOPE}/emulator", f"/{SCOPE}"),
        (f"/machine/gold.partition/{PLAIN.rpartition('/')[2]}/emulator", f"/machine/gold.partition/{PLAIN.rpartition('/')[2]}"),
        ("/", None),
        ("/libvirt", None),
        ("/system.slice/libvirtd.service", None),
        ("/emulator", None),
    ],
)
def test_domain_group(path: str, group: str | None) -> None:
    assert domain_group(path) == group


@pytest.mark.parametrize(
    ("per_vcpu", "overall", "expected"),
    [
        ([0.25, 0.25], [2.0], 500),
        ([0.5, 0.5], [0.6, float("inf")], 600),
        ([float("inf"), 0.5], [float("inf")], UNLIMITED),
        ([0.33333, 0.33333, 0.33333], [], 1000),
        ([], [1.5], 1500),
    ],
)
def test_quota_millicores(per_vcpu: list[float], overall: list[float], expected: int) -> None:
    assert quota_millicores(per_vcpu, overall) == expected


def test_cpu_max_and_proc_cgroup() -> None:
    assert parse_cpu_max(b"20000 100000\n") == (0.2, 100_000)
    assert parse_cpu_max(b"max 50000\n") == (float("inf"), 50_000)
    assert parse_cpu_max(b"") is parse_cpu_max(b"5 0") is parse_cpu_max(b"x 100000") is None
    assert parse_cpu_stat(V1_STAT.format(9).encode()) == CpuStat(periods=336, throttled_periods=335, throttled_ns=9)
    assert parse_cpu_stat(V2_STAT.format(4, 9).encode()) == CpuStat(used_ns=4000, periods=336, throttled_periods=335, throttled_ns=9000)
    assert parse_cpu_stat(b"") == parse_cpu_stat(b"odd line here\n") == CpuStat()
    assert parse_proc_cgroup("3:cpu,cpuacct:/a:b\n0::/c\nrubbish\n") == {"cpu": "/a:b", "cpuacct": "/a:b", "": "/c"}


@given(st.integers(1, 10_000))
def test_weights_survive_the_way_through_shares(weight: int) -> None:
    assert weight_of_shares(shares_of_weight(weight)) == weight


def test_a_vcpu_that_is_added_counts_at_once(tmp_path: Path) -> None:
    files = build(
        tmp_path, HYBRID_MOUNTS, f"1:cpu:/{PLAIN}/emulator\n", v1_group(f"cpu/{PLAIN}", -1, 0) | v1_group(f"cpu/{PLAIN}/vcpu0", 25_000, 7)
    )
    cpu = GroupCpu(files, locate(files, PID))
    assert (cpu.read().quota_millicores, cpu.vcpu_groups) == (250, 1)
    for name, text in v1_group(f"cpu/{PLAIN}/vcpu1", 50_000, 8).items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    reading = cpu.read()
    assert (reading.quota_millicores, reading.throttled_ns_total, cpu.vcpu_groups) == (750, 15, 2)
    (tmp_path / f"cgroup/cpu/{PLAIN}/cpu.cfs_quota_us").write_text("60000\n")
    assert cpu.read().quota_millicores == 600, "a change by somebody else shows in the next reading"
    assert cpu.read_use(with_throttling=True) == (None, 15)
    assert cpu.read_use(with_throttling=False) == (None, None)
    kept = files.kept
    cpu.close()
    assert (kept > 10, files.kept) == (True, 0)


def test_throttling_stands_still_without_a_quota_and_counts_with_the_first_one(tmp_path: Path) -> None:
    files = build(
        tmp_path, HYBRID_MOUNTS, f"1:cpu:/{PLAIN}/emulator\n", v1_group(f"cpu/{PLAIN}", -1, 0) | v1_group(f"cpu/{PLAIN}/vcpu0", -1, 7)
    )
    vcpu = tmp_path / "cgroup/cpu" / PLAIN / "vcpu0"
    cpu = GroupCpu(files, locate(files, PID))

    def throttled(quota: int, counted: int) -> int | None:
        (vcpu / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (vcpu / "cpu.stat").write_text(V1_STAT.format(counted))
        return cpu.read().throttled_ns_total

    assert throttled(-1, 7) == 7
    assert (cpu.read().quota_millicores, cpu.read().period_us) == (UNLIMITED, 100_000)
    assert throttled(-1, 8) == 7, "not read: there is nothing that could have throttled"
    assert throttled(25_000, 20) == 20
    assert throttled(25_000, 30) == cpu.read_use(with_throttling=True)[1] == 30
    assert throttled(-1, 35) == 35, "what came before the quota went"
    assert throttled(-1, 36) == 35
    cpu.retry()
    assert cpu.read().throttled_ns_total == 36
    cpu.close()


def test_a_look_at_v2_reads_the_use(tmp_path: Path) -> None:
    files = build(tmp_path, V2_MOUNTS, f"0::/{SCOPE}/libvirt/emulator\n", v2_group(f"{SCOPE}/libvirt", "max", 0, usage=1000))
    cpu = GroupCpu(files, locate(files, PID))
    assert cpu.read().used_ns_total == 1_000_000
    (tmp_path / f"cgroup/{SCOPE}/libvirt/cpu.stat").write_text(V2_STAT.format(3000, 0))
    assert cpu.read_use(with_throttling=False) == (3_000_000, None)
    assert cpu.read_use(with_throttling=True) == (3_000_000, 0)
    assert cpu.read().used_ns_total == 3_000_000
    cpu.close()


def test_memory_stat_is_read_when_the_size_or_a_stall_says_so(tmp_path: Path) -> None:
    texts = {"memory.current": "50\n", "memory.stat": "anon 30\nfile 9\n", "memory.events": "high 0\n", "memory.high": "max\n"}
    files = build(tmp_path, V2_MOUNTS, f"0::/{SCOPE}/libvirt/emulator\n", {f"{SCOPE}/libvirt/{name}": text for name, text in texts.items()})
    group = tmp_path / "cgroup" / SCOPE / "libvirt"
    memory = GroupMemory(files, VmGroups(memory=(group,), memory_is_v2=True))

    def anon(written: int, current: int, stalled_us: int | None) -> int | None:
        (group / "memory.stat").write_text(f"anon {written}\nfile 9\n")
        (group / "memory.current").write_text(f"{current}\n")
        return memory.read(stalled_us).stat.anon_bytes

    assert anon(30, 50, 7) == 30
    assert anon(31, 50, 7) == 30
    assert anon(32, 50, 8) == 32
    assert anon(33, 51, 8) == 33
    assert anon(34, 51, None) == 34
    assert anon(35, 51, None) == 35, "who cannot see stalls reads every time"
    memory.close()


def test_memory_of_a_v2_group_and_its_scope(tmp_path: Path) -> None:
    inner = {"memory.current": "50\n", "memory.stat": "anon 30\nfile 9\n", "memory.events": "low 0\nhigh 2\n", "memory.high": "max\n"}
    outer = {"memory.current": "60\n", "memory.stat": "anon 31\nfile 9\n", "memory.events": "low 0\nhigh 3\n", "memory.high": "4096\n"}
    files = build(
        tmp_path,
        V2_MOUNTS,
        f"0::/{SCOPE}/libvirt/emulator\n",
        {f"{SCOPE}/libvirt/{name}": text for name, text in inner.items()} | {f"{SCOPE}/{name}": text for name, text in outer.items()},
    )
    memory = GroupMemory(files, locate(files, PID))
    reading = memory.read()
    assert (reading.current_bytes, reading.stat.anon_bytes, reading.high_events_total, reading.high_bytes) == (60, 31, 3, 4096)
    (tmp_path / "cgroup" / SCOPE / "memory.high").write_text("max\n")
    assert memory.read().high_bytes == UNLIMITED
    memory.close()
    assert GroupMemory(files, VmGroups()).read() == MemoryReading()
    v1 = VmGroups(memory=(tmp_path / "cgroup" / SCOPE,))
    assert GroupMemory(files, v1).read().high_bytes is None, "cgroup v1 knows no such limit"
