"""A VM's disks: what they did, from libvirt's bulk statistics (cgroup blkio counters miss buffered writes), and their weight.

The weight is read from the group, in every round: libvirt has no event for it. Source: Documentation/block/bfq-iosched.rst,
admin-guide/cgroup-v2.rst (io.weight).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from agent.sampling.cgroup import VmGroups
from agent.sampling.files import KernelFiles, Watched, whole_number

# Of these a group has those of its cgroup version; what is absent is looked for once.
WEIGHT_FILES: Final = ("io.bfq.weight", "io.weight", "blkio.bfq.weight", "blkio.weight")


class DiskCounters(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over all disks; None where libvirt says nothing of one of them."""

    read_bytes_total: int | None = None
    write_bytes_total: int | None = None
    read_ops_total: int | None = None
    write_ops_total: int | None = None
    read_time_ns_total: int | None = None
    write_time_ns_total: int | None = None


def parse_block(stats: Mapping[str, object]) -> DiskCounters:
    """From all `block.N.*`; unknown when the statistics have no block group, 0 for a VM without disks."""
    count = stats.get("block.count")
    if not isinstance(count, int):
        return DiskCounters()

    def total(name: str) -> int | None:
        sum_ = 0
        for i in range(count):
            value = stats.get(f"block.{i}.{name}")
            if not isinstance(value, int):
                return None
            sum_ += value
        return sum_

    return DiskCounters(
        read_bytes_total=total("rd.bytes"),
        write_bytes_total=total("wr.bytes"),
        read_ops_total=total("rd.reqs"),
        write_ops_total=total("wr.reqs"),
        read_time_ns_total=total("rd.times"),
        write_time_ns_total=total("wr.times"),
    )


def parse_weight(text: bytes) -> int | None:
    """The group's own weight: `100`, or `default 100` before the lines of single devices."""
    line = text.partition(b"\n")[0]
    return whole_number(line.removeprefix(b"default "))


class GroupWeight:
    """The file that libvirt sets a VM's blkio weight in: BFQ's own where the kernel has it, like libvirt. It costs one read."""

    def __init__(self, files: KernelFiles, groups: VmGroups) -> None:
        self._files: tuple[Watched[int | None], ...] = ()
        if groups.disk is not None:
            self._files = tuple(Watched(files.opened(groups.disk / name), parse_weight, None) for name in WEIGHT_FILES)

    def read(self) -> int | None:
        """The weight now; None where the VM has no such group or this kernel no weights."""
        for file in self._files:
            weight = file.read()
            if weight is not None:
                return weight
        return None

    def retry(self) -> None:
        """Look again for files that were absent."""
        for file in self._files:
            file.retry()

    def close(self) -> None:
        """Give all descriptors back."""
        for file in self._files:
            file.close()
