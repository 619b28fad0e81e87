"""The Sampler on recorded kernel files of each cgroup layout, against a golden reading beside each tree.

The trees are real (tests/realhost/record_trees.py made them), so what is compared is whether we read what a kernel really writes. When the
sampler reads more than before: `PYTHONPATH=tests/contract python tests/unit/test_golden_trees.py` writes the golden files anew; look at
their diff.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kernel_tree import pack, unpack

from agent.adapters.kernel_files import RootedFiles
from agent.ports import RawHost, RawVm
from agent.sampling.numa import read_numa
from agent.sampling.sampler import RunningDomain, Sampler, Stats
from shared.clock import ManualClock

TREES = Path(__file__).parents[1] / "fixtures" / "kernel_trees"
NAMES = ("v1-hybrid-plain", "v2-plain", "v2-systemd")


class Recorded:
    """The hypervisor's part of a recording. Implements DomainSource."""

    def __init__(self, domains: Mapping[str, Any]) -> None:
        self._running = msgspec.convert(domains["running"], list[RunningDomain])
        self._stats = domains["stats"]

    def running(self) -> Sequence[RunningDomain]:
        return self._running

    def bulk_stats(self) -> Mapping[str, Stats]:
        return {domain.vm_id: self._stats.get(domain.vm_id, {}) for domain in self._running}


def read(name: str, root: Path) -> RawHost:
    return read_text((TREES / f"{name}.tree").read_text(), root)


def read_text(tree: str, root: Path) -> RawHost:
    unpack(tree, root)
    files = RootedFiles(proc=root / "proc", sys=root / "sys", cgroup=root / "cgroup")
    sampler = Sampler(files, Recorded(json.loads((root / "domains.json").read_text())), ManualClock(0), numa=read_numa)
    try:
        return sampler.read()
    finally:
        sampler.close()


def shown(raw: RawHost) -> str:
    """What was read, without what was not: absent fields would make every golden file change with every new one."""
    host = {key: value for key, value in msgspec.to_builtins(raw).items() if value not in (None, {}, [])}
    host["vms"] = [{key: value for key, value in vm.items() if value not in (None, {})} for vm in host["vms"]]
    return json.dumps(host, indent=1, sort_keys=True) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_tree_reads_as_its_golden_file_says(name: str, tmp_path: Path) -> None:
    assert shown(read(name, tmp_path)) == (TREES / f"{name}.json").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_what_the_recording_was_made_for_is_in_it(name: str, tmp_path: Path) -> None:
    """Real values that are not zero, whatever the golden file says; and the figures agree with each other."""
    raw = read(name, tmp_path)
    assert raw.failures == {} and len(raw.vms) == 1
    vm: RawVm = raw.vms[0]
    assert vm.cpu_used_ns_total and vm.throttled_ns_total and vm.run_delay_ns_total and vm.memory_rss_bytes
    assert vm.vcpus == 2 and vm.cpu_shares == 2048
    assert vm.psi_cpu_some_us_total and vm.psi_io_some_us_total is not None
    assert vm.periods_total is not None and vm.throttled_periods_total is not None
    assert 0 < vm.throttled_periods_total <= vm.periods_total
    assert vm.cpu_quota_millicores == (400 if name.startswith("v1") else 600)
    assert vm.cpu_period_us == (100_000 if name.startswith("v1") else 50_000)
    if name.startswith("v2"):
        assert vm.memory_high_bytes == 12 * 2**20
        assert vm.psi_memory_some_us_total and vm.psi_io_some_us_total
        assert vm.memory_high_events_total and vm.memory_anon_bytes and vm.memory_current_bytes
        assert vm.memory_anon_bytes <= vm.memory_current_bytes
    else:
        assert vm.memory_usable_bytes and vm.disk_read_bytes_total and vm.net_tx_bytes_total
    assert [node.node for node in raw.numa] == [0]


def test_v1_under_systemd_reads_like_v1_without(tmp_path: Path) -> None:
    """The same files below a scope: on v1 libvirt nests no group of its own there."""
    plain = (TREES / "v1-hybrid-plain.tree").read_text()
    scope = plain.replace("machine/qemu-1-golden.libvirt-qemu", r"machine.slice/machine-qemu\x2d1\x2dgolden.scope")
    assert scope != plain
    assert read_text(scope, tmp_path / "scope") == read_text(plain, tmp_path / "plain")


def test_v1_alone_has_no_pressure_and_coarse_cpu_time(tmp_path: Path) -> None:
    """Without the v2 hierarchy beside it; libvirt left cpuacct to the root group, so the process's ticks are what there is."""
    tree = (TREES / "v1-hybrid-plain.tree").read_text()
    hybrid = read_text(tree, tmp_path / "hybrid").vms[0]
    lines = [line for line in tree.splitlines(keepends=True) if not re.search(r" - cgroup2 |^0::", line)]
    alone = read_text("".join(lines), tmp_path / "alone").vms[0]
    assert (alone.psi_cpu_some_us_total, alone.psi_memory_some_us_total, alone.psi_io_some_us_total) == (None, None, None)
    assert alone.cpu_used_ns_total == pytest.approx(hybrid.cpu_used_ns_total, rel=0.1)
    for field in ("throttled_ns_total", "cpu_quota_millicores", "cpu_shares", "run_delay_ns_total", "memory_current_bytes", "vcpus"):
        assert getattr(alone, field) == getattr(hybrid, field) is not None


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_machine_is_in_a_recording(name: str) -> None:
    text = (TREES / f"{name}.tree").read_text()
    assert not re.search(r"/(work|tmp|home|root|process_api|var)/|[0-9a-f]{32}", text)


def test_a_tree_comes_out_as_it_went_in(tmp_path: Path) -> None:
    files = {"a": "x\n", "b/machine-qemu\\x2d1.scope/c": "no end", "d": "", "e": "qemu\0-uuid\0x\0", "f": "\n\ntwo\n"}
    unpack(pack("head\nof two lines", files, {"g/ns/net": "net:[1]"}), tmp_path)
    assert {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == files
    assert str((tmp_path / "g/ns/net").readlink()) == "net:[1]"
    with pytest.raises(ValueError, match="begins like a header"):
        pack("", {"a": "@ b\n"}, {})


if __name__ == "__main__":
    for tree in NAMES:
        with tempfile.TemporaryDirectory() as directory:
            (TREES / f"{tree}.json").write_text(shown(read(tree, Path(directory))))
