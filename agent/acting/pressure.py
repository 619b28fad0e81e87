"""What a sample says about a VM's limits: how much it uses of each, and whether it ran into one. Pure.

Invariant: what was not read is no pressure and no use (None); the guard refuses to shrink on it, the reactive rule ignores it.
"""

from __future__ import annotations

from typing import Final

from agent.acting.levers import MEMORY_LEVERS, VCPU_COUNTS
from shared.model import VmSample
from shared.plan import StepKind
from shared.units import KIB

# Held back by its quota for 2 % of the time: above CFS's accounting noise, below what an owner would notice.
THROTTLED_PERMILLE: Final = 20
# Tasks waited for memory 5 % of the time (PSI some): oomd's usual first alarm.
MEMORY_STALL_PERMILLE: Final = 50
# A guest that swaps this much is short of memory, not tidying up.
SWAPPING_BYTES_PER_S: Final = 256 * KIB
# Tasks waited for disks 20 % of the time: waiting is a disk's ordinary work, so four times memory's alarm.
DISK_STALL_PERMILLE: Final = 200

MEMORY_KINDS: Final = frozenset({*MEMORY_LEVERS, StepKind.MEMORY_HIGH})
CPU_KINDS: Final = frozenset({*VCPU_COUNTS, StepKind.CPU_QUOTA})
_DISK_KINDS: Final = frozenset({StepKind.DISK_BYTES, StepKind.DISK_OPS})


def held_back(reading: VmSample) -> bool:
    """The quota kept the VM from running in the last period: its use is not its demand."""
    return reading.cpu_throttled_permille is not None and reading.cpu_throttled_permille >= THROTTLED_PERMILLE


def short_of_memory(reading: VmSample) -> bool:
    """The VM stalls on memory, its guest swaps, or it killed for want of memory."""
    stalled = reading.psi_memory_some_permille
    swapped = reading.memory_swap_bytes_per_s
    killed = bool(reading.guest_oom_kills)
    return killed or (stalled is not None and stalled >= MEMORY_STALL_PERMILLE) or (swapped is not None and swapped >= SWAPPING_BYTES_PER_S)


def dropping(reading: VmSample, kind: StepKind) -> bool:
    """Packets hit our ceiling in this direction."""
    dropped = reading.net_rx_dropped_per_s if kind is StepKind.NET_RX else reading.net_tx_dropped_per_s
    return dropped is not None and dropped > 0


def waiting_for_disk(reading: VmSample) -> bool:
    """The VM's tasks wait for its disks."""
    return reading.psi_io_some_permille is not None and reading.psi_io_some_permille >= DISK_STALL_PERMILLE


def pressed(reading: VmSample, kind: StepKind) -> bool:
    """The VM ran into what this lever limits; for a move: into its CPU or its memory, which a move makes scarcer for its time."""
    if kind in MEMORY_KINDS:
        return short_of_memory(reading)
    if kind in CPU_KINDS:
        return held_back(reading)
    if kind in _DISK_KINDS:
        return waiting_for_disk(reading)
    if kind is StepKind.MIGRATE:
        return held_back(reading) or short_of_memory(reading)
    return dropping(reading, kind)


def used(reading: VmSample, kind: StepKind) -> int | None:
    """Measured use in the lever's unit (millicores for counts of vCPUs); for CPU the peak within the period where there was one."""
    if kind in CPU_KINDS:
        mean, peak = reading.cpu_used_millicores, reading.cpu_used_peak_millicores
        return mean if peak is None or mean is None else max(mean, peak)
    if kind in MEMORY_KINDS:
        return reading.memory_used_bytes
    match kind:
        case StepKind.NET_RX:
            return reading.net_rx_bits_per_s
        case StepKind.NET_TX | StepKind.NET_TX_RATE:
            return reading.net_tx_bits_per_s
        case StepKind.DISK_BYTES:
            return _sum(reading.disk_read_bytes_per_s, reading.disk_write_bytes_per_s)
        case StepKind.DISK_OPS:
            return _sum(reading.disk_read_ops_per_s, reading.disk_write_ops_per_s)
        case _:
            return None


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
