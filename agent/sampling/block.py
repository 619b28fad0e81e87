"""Bytes read and written by a VM's disks, from libvirt's bulk statistics (cgroup blkio counters miss buffered writes)."""

from __future__ import annotations

from collections.abc import Mapping


def parse_block(stats: Mapping[str, object]) -> tuple[int | None, int | None]:
    """(read, written) bytes over all `block.N.*`; None, None when the statistics have no block group, 0 for a VM without disks."""
    count = stats.get("block.count")
    if not isinstance(count, int):
        return None, None
    totals = []
    for direction in ("rd", "wr"):
        values = [stats.get(f"block.{i}.{direction}.bytes") for i in range(count)]
        known = [value for value in values if isinstance(value, int)]
        totals.append(sum(known) if len(known) == count else None)
    return totals[0], totals[1]
