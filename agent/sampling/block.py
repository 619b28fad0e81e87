"""A VM's disks: what they did, from libvirt's bulk statistics (cgroup blkio counters miss buffered writes), and their weight.

The weight is read from the group, in every round: libvirt has no event for it. Source: Documentation/block/bfq-iosched.rst,
admin-guide/cgroup-v2.rst (io.weight).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import msgspec

from agent.sampling.cgroup import VmGroups
from agent.sampling.files import KernelFiles, Watched, whole_number

# Of these a group has those of its cgroup version; what is absent is looked for once.
WEIGHT_FILES: Final = ("io.bfq.weight", "io.weight", "blkio.bfq.weight", "blkio.weight")
_COUNTERS: Final = ("rd.bytes", "wr.bytes", "rd.reqs", "wr.reqs", "rd.times", "wr.times")


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

    def total(keys: tuple[str, ...]) -> int | None:
        sum_ = 0
        for key in keys:
            value = stats.get(key)
            if not isinstance(value, int):
                return None
            sum_ += value
        return sum_

    read_bytes, write_bytes, read_ops, write_ops, read_times, write_times = map(total, _keys(count))
    return DiskCounters(
        read_bytes_total=read_bytes,
        write_bytes_total=write_bytes,
        read_ops_total=read_ops,
        write_ops_total=write_ops,
        read_time_ns_total=read_times,
        write_time_ns_total=write_times,
    )


@lru_cache(maxsize=64)  # a VM has a few disks, and all VMs share the names
def _keys(count: int) -> tuple[tuple[str, ...], ...]:
    """For each counter its name of each disk."""
    return tuple(tuple(f"block.{i}.{name}" for i in range(count)) for name in _COUNTERS)


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
