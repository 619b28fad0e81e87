"""Readings that no host can have: each is taken for unknown, counted by its column, and the rest of the frame is taken as it is. Pure.

A host's counters jump when a device is replaced, a hypervisor has bugs, a hostile agent lies: one such reading would be the peak of a
bucket, and the size that a VM is given. Bounds are wide: only what cannot be is refused, what is odd is the forecast's business.
Invariant: a reading within its bounds is never touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from shared.frame import HOST_COLUMNS
from shared.model import VM_COLUMNS
from shared.units import UNLIMITED

Column = Sequence[int | None]

MOST: Final = 2**53  # bytes, bits, events a second: beyond what integers in JSON and floats hold exactly
SHARE_MOST: Final = 1_000_000  # permille of one CPU, summed over vCPUs: a thousand of them
STALL_MOST: Final = 1_100  # permille of wall time; a period is measured a little short at times
BUSY_MOST: Final = 1.25  # of the host's CPUs: readings of a busy host are some milliseconds apart
COUNT_MOST: Final = 4_096  # vCPUs
CPU_USED: Final = frozenset({"cpu_used_millicores", "cpu_used_peak_millicores"})
LIMITS: Final = frozenset(
    {
        "cpu_quota_millicores",
        "disk_limit_bytes_per_s",
        "net_rx_ceil_bits_per_s",
        "net_tx_ceil_bits_per_s",
        "memory_high_bytes",
        "disk_ops_limit_per_s",
        "net_tx_rate_bits_per_s",
    }
)
STAMPS: Final = frozenset({"wall_ns", "monotonic_ns", "period_ns"})


def _bounds(column: str) -> tuple[int, int]:
    low = UNLIMITED if column in LIMITS else 0
    if column.startswith("psi_"):
        return low, STALL_MOST
    if column.endswith("_permille"):
        return low, SHARE_MOST
    return low, COUNT_MOST if column in {"vcpus", "vcpus_online"} else MOST


BOUNDS: Final = {column: _bounds(column) for column in (*VM_COLUMNS, *HOST_COLUMNS) if column not in STAMPS}


def admitted(host_cpu_millicores: int | None, dropped: Counter[str]) -> Callable[[str, Column], Column]:
    """For shared.frame.decode_block: a column as it may be taken. `dropped` counts readings by column. None = a host of unknown size."""
    cpu_most = MOST if host_cpu_millicores is None else int(host_cpu_millicores * BUSY_MOST)

    def admit(column: str, values: Column) -> Column:
        bounds = BOUNDS.get(column)
        if bounds is None:
            return values
        low, high = bounds
        if column in CPU_USED:
            high = min(high, cpu_most)
        known = values if isinstance(values, tuple) else [value for value in values if value is not None]
        # a column without unknown readings comes as a tuple of integers: two passes in C, and no copy
        if not known or (min(known) >= low and max(known) <= high):
            return values
        kept = [value if value is not None and low <= value <= high else None for value in values]
        dropped[column] += len(known) - (len(kept) - kept.count(None))
        return kept

    return admit
