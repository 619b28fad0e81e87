"""What a VM's disks did, from libvirt's bulk statistics (cgroup blkio counters miss buffered writes)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


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
