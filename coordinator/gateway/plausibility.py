"""Readings that no host can have: each is taken for unknown, counted by its column, and the rest of the frame is taken as it is. Pure.

A host's counters jump when a device is replaced, a hypervisor has bugs, a hostile agent lies: one such reading would be the peak of a
bucket, and the size that a VM is given. Bounds are wide: only what cannot be is refused, what is odd is the forecast's business.
Invariant: a reading within its bounds is never touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.frame import HOST_COLUMNS
from shared.model import VM_COLUMNS
from shared.units import UNKNOWN_I64, UNLIMITED

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


def admitted(host_cpu_millicores: int | None, dropped: Counter[str]) -> Callable[[dict[str, bytes], int], dict[str, bytes]]:
    """For shared.frame.decode_block: packed columns as they may be taken. `dropped` counts readings by column. None = size unknown."""
    cpu_most = MOST if host_cpu_millicores is None else min(MOST, int(host_cpu_millicores * BUSY_MOST))

    def admit(columns: dict[str, bytes], cells: int) -> dict[str, bytes]:
        names = tuple(name for name in columns if name in BOUNDS)
        if not names or any(len(columns[name]) != 8 * cells for name in names):
            return columns  # a wrong length is the decoder's to refuse
        values = np.frombuffer(b"".join([columns[name] for name in names]), "<i8").reshape(len(names), cells)
        low, high = _limits(names, cpu_most)
        odd = (values > high) | ((values < low) & (values != UNKNOWN_I64))
        if not odd.any():
            return columns
        for row in np.flatnonzero(odd.any(axis=1)):
            dropped[names[row]] += int(odd[row].sum())
        kept = np.where(odd, UNKNOWN_I64, values)
        return columns | {name: kept[row].astype("<i8").tobytes() for row, name in enumerate(names)}

    return admit


@lru_cache(maxsize=256)  # hosts of a fleet send few different sets of columns
def _limits(names: tuple[str, ...], cpu_most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Least and most of each column, int64[column, 1]."""
    low = np.array([[BOUNDS[name][0]] for name in names], np.int64)
    high = np.array([[min(BOUNDS[name][1], cpu_most) if name in CPU_USED else BOUNDS[name][1]] for name in names], np.int64)
    return low, high
