"""Units and fixed quantities of the whole system. Integers carry their unit last in the name (`cpu_millicores`)."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024**2
GIB: Final = 1024**3
KBIT: Final = 1000
MBIT: Final = 1000**2
NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000

SAMPLE_PERIOD_S: Final = 5
BUCKET_S: Final = 300
BUCKET_NS: Final = BUCKET_S * NS_PER_S
HORIZON_STEPS: Final = 12

# The resources that are forecast and sized, in the order of every array axis named "resource".
RESOURCES: Final = ("cpu_millicores", "memory_bytes", "disk_bytes_per_s", "net_rx_bits_per_s", "net_tx_bits_per_s")
CPU, MEMORY, DISK, NET_RX, NET_TX = range(5)

# Quota, rate or ceiling that does not limit anything.
UNLIMITED: Final = -1

# Stands for None in packed int64 columns; no reading can reach it.
UNKNOWN_I64: Final = -(2**63)


def bucket_start_s(wall_ns: int) -> int:
    """Start of the 5-minute bucket that holds `wall_ns` (Unix seconds, multiple of 300)."""
    return wall_ns // BUCKET_NS * BUCKET_S
