"""Usage to demand, sample by sample: what a VM would have used had no limit held it back, and whether one did.

A throttled, ballooned or rate-limited VM shows usage = min(demand, limit); such a reading is *censored*. Where the kernel measured what was
held back (throttling, run delay, drops, refaults, I/O stall) demand follows from the measure; where it did not the reading is *blind*: it
counts as the limit, and `tails` adds what the VM's own history says of demand above it. Every estimate is bounded, so a wrong counter
cannot invent an explosion. Invariants: demand >= usage; peak >= demand; unknown stays NaN; a reading below its limits is returned as it is.

Rules, per resource (limits of -1 = unlimited and None = unknown do not bind):

CPU      throttled >= 1 % of the time, or use >= 97 % of quota or vCPUs, or ready >= 10 % of a CPU: (used + ready) / (1 - share held);
         at most the vCPUs and 50 x limit, 2 x limit where vCPUs are unknown; used + 10 % where nothing was counted; all vCPUs busy: blind
memory   full (use >= 97 % of what the guest was given) and refaulting: used + what is missing, the mean of 20 s of refaults and
         need x PSI / 4; at most 50 % of what it was given; swapping or stalled but not full: the same, 5 to 25 %; full, and nothing known
         of refaults and stalls: blind
disk     use >= 97 % of the byte or operation limit: used / (1 - I/O stall), at most 20 x limit; no stall known: blind
network  use >= 95 % of the ceiling: ceiling + drops x 1500 bytes, at most 20 x ceiling, where drops are >= 5 % of it (senders that do not
         yield); fewer drops (TCP yields after 1-2 %) or none: blind; drops below the ceiling (a burst): used + drops, at least 10 %

Throttled time is summed over the vCPUs' groups by the kernel, and is one share of time in samples of a group as a whole. CPU PSI, a share
of time in both, tells them apart: throttled > 1.05 x PSI means several vCPUs waited at once (see `_held_vcpus`).
Worked: quota 1000 m of 4 vCPUs, used 990, throttled 400 permille: 1650 m. Quota 2000 of 4, used 2000, throttled 1000 permille, PSI 684: all
four were held for a quarter of the time, 2000 / .75 = 2667 m. Sources: Documentation/scheduler/sched-bwc.rst, accounting/psi.rst,
mm/workingset.c (what refaults is what is missing).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coordinator.model import F64, N_RESOURCES
from shared.model import VmSample
from shared.units import CPU, DISK, MEMORY, NET_RX, NET_TX

THROTTLED: Final = 0.01
AT_LIMIT: Final = 0.97
AT_CEILING: Final = 0.95
READY: Final = 0.1
SEVERAL: Final = 1.05  # throttled time per stalled time above which several vCPUs waited at once
MOST_HELD: Final = 0.98  # share of time held back that is believed: demand of fifty times what was used
MEMORY_PSI: Final = 0.05
MAJOR_FAULTS_PER_S: Final = 100.0
SWAP_BYTES_PER_S: Final = 64 * 1024.0  # below this a guest merely reads back cold pages
FAULT_BYTES: Final = 65_536.0  # per major fault: 8 pages of readahead in, as much pushed out for them
REUSE_S: Final = 20.0  # a page of the working set is wanted again within this time
STALL_PER_MISSING: Final = 4.0  # a guest that lacks 5 % of its need stalls 20 % of the time
MEMORY_LEAST, MEMORY_MODEST, MEMORY_MOST = 0.05, 0.25, 0.5
MODEST: Final = 1.10
WITH_DROPS: Final = 0.05  # of the ceiling dropped: above this the drops are the size of what is missing
MOST_TIMES: Final = 20.0  # disk and network: the limit times this
STALLED: Final = 0.02
PACKET_BITS: Final = 12_000.0
VCPU_COUNTS: Final = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)

# Fields read, in the order in which `columns_of` lays them out.
FIELDS: Final = (
    "cpu_used_millicores",
    "cpu_used_peak_millicores",
    "cpu_throttled_permille",
    "cpu_ready_permille",
    "psi_cpu_some_permille",
    "vcpus",
    "vcpus_online",
    "cpu_quota_millicores",
    "memory_used_bytes",
    "memory_allocated_bytes",
    "virtio_mem_bytes",
    "dimm_bytes",
    "memory_swap_bytes_per_s",
    "memory_major_faults_per_s",
    "psi_memory_some_permille",
    "psi_io_some_permille",
    "disk_read_bytes_per_s",
    "disk_write_bytes_per_s",
    "disk_limit_bytes_per_s",
    "disk_read_ops_per_s",
    "disk_write_ops_per_s",
    "disk_ops_limit_per_s",
    "net_rx_bits_per_s",
    "net_rx_dropped_per_s",
    "net_rx_ceil_bits_per_s",
    "net_tx_bits_per_s",
    "net_tx_dropped_per_s",
    "net_tx_ceil_bits_per_s",
)


class Demand(NamedTuple):
    """Rows are samples. `mean`, `peak`, `usage`, `limit` float64[m, r] (NaN unknown; limit NaN = none), `censored`, `blind` bool[m, r].

    `blind` is part of `censored`: held at the limit while nothing says by how much.
    """

    mean: F64
    peak: F64
    usage: F64
    limit: F64
    censored: NDArray[np.bool_]
    blind: NDArray[np.bool_]


def columns_of(samples: Sequence[VmSample]) -> dict[str, F64]:
    """The fields that demand needs as float64[m] columns, None as NaN."""
    return {name: np.array([getattr(sample, name) for sample in samples], dtype=np.float64) for name in FIELDS}


def demand_of(sample: VmSample) -> Demand:
    """Demand of one sample: arrays of one row. Rates are per second already, so the period does not enter."""
    return demand_of_columns(columns_of((sample,)))


def demand_of_columns(columns: dict[str, F64]) -> Demand:
    """Demand of many samples at once, by the rules above."""
    shape = (len(columns["cpu_used_millicores"]), N_RESOURCES)
    mean, peak, usage, limit = (np.full(shape, np.nan) for _ in range(4))
    out = Demand(mean, peak, usage, limit, np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_))
    with np.errstate(invalid="ignore", divide="ignore"):
        _cpu(columns, out)
        _memory(columns, out)
        _disk(columns, out)
        _network(columns, "net_rx", NET_RX, out)
        _network(columns, "net_tx", NET_TX, out)
    return out


def _positive(limit: F64) -> F64:
    return np.where(limit > 0, limit, np.nan)


def _permille(values: F64) -> F64:
    """Permille to a share, unknown as 0."""
    return np.fmax(np.nan_to_num(values) / 1000.0, 0.0)


def _cpu(columns: dict[str, F64], out: Demand) -> None:
    used = columns["cpu_used_millicores"]
    throttled = _permille(columns["cpu_throttled_permille"])
    ready = 1000.0 * _permille(columns["cpu_ready_permille"])  # permille of one CPU = millicores
    vcpus = 1000.0 * np.fmin(_positive(columns["vcpus"]), _positive(columns["vcpus_online"]))
    limit = np.fmin(_positive(columns["cpu_quota_millicores"]), vcpus)
    busy = used >= AT_LIMIT * vcpus
    pinned = used >= AT_LIMIT * limit
    held = (throttled >= THROTTLED) | pinned
    share = np.clip(throttled, 0.0, MOST_HELD)
    wanted = (used + ready) / (1.0 - share)
    longest = used + ready + 1000.0 * throttled  # vCPUs cannot have missed more than the time for which they were held
    several, missed = _held_vcpus(columns, throttled, limit, vcpus)
    # Held although the VM as a whole is below its quota: one vCPU spent its part (`missed`), or the whole did for some of the time
    # (`wanted`). Nothing tells which, and the two may be times apart: their geometric mean.
    below = np.sqrt(np.fmax(np.fmin(wanted, longest) - used - ready, 0.0) * missed) + used + ready
    wanted = np.where(several, np.fmin(used + ready + missed, longest), np.where(pinned | np.isnan(missed), wanted, below))
    wanted = np.where(held & ~busy & (throttled < THROTTLED), used * MODEST + ready, wanted)
    bound = np.where(np.isnan(vcpus), 2.0 * limit, np.fmin(limit / (1.0 - MOST_HELD), vcpus))
    wanted = np.where(busy, vcpus, wanted)
    demand = np.where(np.isnan(used), np.nan, np.fmax(used, np.fmin(wanted, bound)))
    out.usage[:, CPU] = used
    out.mean[:, CPU] = demand
    out.peak[:, CPU] = np.where(np.isnan(used), np.nan, np.fmax(demand, columns["cpu_used_peak_millicores"]))
    out.limit[:, CPU] = limit
    out.censored[:, CPU] = held | (ready >= READY * 1000.0)
    out.blind[:, CPU] = busy


def _held_vcpus(columns: dict[str, F64], throttled: F64, limit: F64, vcpus: F64) -> tuple[NDArray[np.bool_], F64]:
    """Whether throttled time is summed over several vCPUs, and the millicores they missed then. Arrays [m].

    With k vCPUs held for the share T / k each, at phases of their own, PSI is 1 - (1 - T / k)^k: k is the number that fits it best, all
    vCPUs where PSI is unknown. A vCPU runs its part q = limit / vCPUs of the quota in the 1 - T / k of the time left to it, so each misses
    q (T / k) / (1 - T / k), together q T / (1 - T / k).
    """
    stalled = columns["psi_cpu_some_permille"] / 1000.0
    count = np.fmax(np.nan_to_num(vcpus, nan=1000.0) / 1000.0, 1.0)
    # Without PSI: a share of the group as a whole cannot pass 1 - limit / vCPUs, the one at which all vCPUs want to run
    impossible = throttled > np.fmax(1.0 - limit / vcpus, 0.0) + 0.05
    several = np.where(np.isnan(stalled), impossible, throttled > SEVERAL * stalled + 0.005) & (count > 1)
    found, off = count.copy(), np.full_like(count, np.inf)
    for k in VCPU_COUNTS:
        misfit = np.abs(1.0 - (1.0 - np.fmin(throttled / k, 1.0)) ** k - stalled)
        better = (k <= count) & (k >= throttled) & (misfit < off)
        found, off = np.where(better, float(k), found), np.where(better, misfit, off)
    share = np.clip(throttled / found, 0.0, MOST_HELD)
    return several, limit / count * throttled / (1.0 - share)


def _memory(columns: dict[str, F64], out: Demand) -> None:
    used = columns["memory_used_bytes"]
    given = _positive(columns["memory_allocated_bytes"])
    given = given + np.nan_to_num(columns["virtio_mem_bytes"]) + np.nan_to_num(columns["dimm_bytes"])
    swap = np.nan_to_num(columns["memory_swap_bytes_per_s"])
    faults = np.nan_to_num(columns["memory_major_faults_per_s"])
    stalled = np.minimum(columns["psi_memory_some_permille"] / 1000.0, 1.0)
    full = used >= AT_LIMIT * given
    pressed = (swap >= SWAP_BYTES_PER_S) | (stalled >= MEMORY_PSI) | (faults >= MAJOR_FAULTS_PER_S)
    reference = np.where(np.isnan(given), used, given)
    # A guest with room reads its files for the first time; only one without room reads again what it had
    refaults = np.fmax(swap, np.where(full, faults * FAULT_BYTES, 0.0))
    by_refaults = refaults * REUSE_S / np.fmax(reference, 1.0)
    by_stall = stalled / STALL_PER_MISSING / np.fmax(1.0 - stalled / STALL_PER_MISSING, 0.5)
    by_refaults = np.where(by_refaults > 0, by_refaults, by_stall)
    missing = np.where(np.isnan(by_stall), by_refaults, (by_refaults + by_stall) / 2.0)
    missing = np.clip(np.nan_to_num(missing), np.where(full, 0.0, MEMORY_LEAST), np.where(full, MEMORY_MOST, MEMORY_MODEST))
    demand = np.where(pressed, used + missing * reference, used)
    known = ~np.isnan(used)
    silent = np.isnan(stalled) & np.isnan(columns["memory_swap_bytes_per_s"]) & np.isnan(columns["memory_major_faults_per_s"])
    out.usage[:, MEMORY] = used
    out.mean[:, MEMORY] = demand
    out.peak[:, MEMORY] = demand
    out.limit[:, MEMORY] = given
    out.censored[:, MEMORY] = (pressed | full) & known
    out.blind[:, MEMORY] = full & silent & known


def _disk(columns: dict[str, F64], out: Demand) -> None:
    used = _sum(columns["disk_read_bytes_per_s"], columns["disk_write_bytes_per_s"])
    operations = _sum(columns["disk_read_ops_per_s"], columns["disk_write_ops_per_s"])
    limit = _positive(columns["disk_limit_bytes_per_s"])
    by_operations = operations >= AT_LIMIT * _positive(columns["disk_ops_limit_per_s"])
    held = ((used >= AT_LIMIT * limit) | by_operations) & ~np.isnan(used)
    stalled = np.nan_to_num(columns["psi_io_some_permille"]) / 1000.0
    most = np.where(by_operations, used, np.fmax(used, limit))
    told = held & (stalled >= STALLED)
    demand = np.where(told, np.fmax(most, used / np.fmax(1.0 - stalled, 1.0 / MOST_TIMES)), np.where(held, most, used))
    out.usage[:, DISK] = used
    out.mean[:, DISK] = demand
    out.peak[:, DISK] = demand
    out.limit[:, DISK] = limit
    out.censored[:, DISK] = held
    out.blind[:, DISK] = held & ~told


def _sum(first: F64, second: F64) -> F64:
    return np.where(np.isnan(first) & np.isnan(second), np.nan, np.nan_to_num(first) + np.nan_to_num(second))


def _network(columns: dict[str, F64], prefix: str, index: int, out: Demand) -> None:
    used = columns[f"{prefix}_bits_per_s"]
    ceiling = _positive(columns[f"{prefix}_ceil_bits_per_s"])
    dropped = PACKET_BITS * np.nan_to_num(columns[f"{prefix}_dropped_per_s"])
    held = used >= AT_CEILING * ceiling
    burst = (dropped > 0) & ~held & ~np.isnan(ceiling) & ~np.isnan(used)
    told = held & (dropped >= WITH_DROPS * ceiling)
    most = np.fmax(used, ceiling)
    missing = np.fmin(dropped, (MOST_TIMES - 1.0) * ceiling)
    demand = np.where(held, np.where(told, most + missing, most), np.where(burst, np.fmax(used * MODEST, used + missing), used))
    out.usage[:, index] = used
    out.mean[:, index] = demand
    out.peak[:, index] = np.where(burst, np.fmax(demand, ceiling), demand)
    out.limit[:, index] = ceiling
    out.censored[:, index] = held | burst
    out.blind[:, index] = held & ~told
