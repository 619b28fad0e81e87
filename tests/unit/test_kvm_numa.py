"""KVM's counters out of libvirt's statistics, and NUMA nodes out of sysfs."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.adapters.kernel_files import RootedFiles
from agent.ports import NumaNode
from agent.sampling.kvm import NAMES, parse_kvm
from agent.sampling.numa import count_cpus, read_numa
from shared.units import KIB


def test_counters_are_summed_over_vcpus_and_only_known_ones_are_taken() -> None:
    stats: dict[str, object] = {
        "vcpu.current": 2,
        "vcpu.0.time": 5,
        "vcpu.0.exits.sum": 10,
        "vcpu.1.exits.sum": 4,
        "vcpu.0.halt_wait_ns.sum": 2**62,
        "vcpu.1.halt_wait_ns.sum": 2**62,
        "vcpu.0.guest_mode.cur": 1,
        "vcpu.0.brand_new_counter.sum": 9,
        "vcpu.1.halt_exits.sum": "many",
        "vcpu.1.io_exits.sum": -1,
        "block.0.exits.sum": 3,
    }
    assert parse_kvm(stats) == {"exits": 14, "halt_wait_ns": 2**63}
    assert parse_kvm({"vcpu.0.time": 1}) == {}, "TCG has none"
    assert len(parse_kvm({f"vcpu.0.{name}.sum": 1 for name in NAMES} | {f"vcpu.0.x{i}.sum": 1 for i in range(1000)})) == len(NAMES)


def test_nodes_by_number_with_what_they_have(tmp_path: Path) -> None:
    for node, cpus, memory in (
        (0, "0-1,4", "MemTotal: 13461720 kB\nNode 0 MemFree: 12463484 kB"),
        (10, "", "MemTotal: 8 kB"),
        (2, "2-3", ""),
    ):
        directory = tmp_path / f"sys/devices/system/node/node{node}"
        directory.mkdir(parents=True)
        (directory / "cpulist").write_text(f"{cpus}\n")
        (directory / "meminfo").write_text(f"Node {node} {memory}\n" if memory else "")
    (tmp_path / "sys/devices/system/node/possible").write_text("0-15\n")
    files = RootedFiles(sys=tmp_path / "sys")
    assert read_numa(files) == (
        NumaNode(node=0, cpus=3, memory_bytes=13461720 * KIB, memory_free_bytes=12463484 * KIB),
        NumaNode(node=2, cpus=2),
        NumaNode(node=10, cpus=0, memory_bytes=8 * KIB),
    )
    assert read_numa(RootedFiles(sys=tmp_path / "absent")) == ()


def test_this_machine_has_a_node_or_no_directory() -> None:
    nodes = read_numa(RootedFiles())
    if Path("/sys/devices/system/node/node0").exists():
        assert nodes[0].node == 0 and sum(node.cpus for node in nodes) > 0 and nodes[0].memory_bytes
    else:
        assert nodes == ()


@pytest.mark.parametrize(("text", "count"), [("", 0), ("\n", 0), ("0\n", 1), ("0-3,8\n", 5), ("0-63,128-191", 128)])
def test_a_list_of_cpus_is_counted(text: str, count: int) -> None:
    assert count_cpus(text) == count
