"""Usage to demand: what a VM would have used had no limit held it back, and whether one did.

A throttled, ballooned or rate-limited VM shows usage = min(demand, limit); such a reading is *censored*. The estimates are bounded
and modest on purpose: they must move a capped VM upwards step by step, never invent an explosion. Invariants: demand >= usage;
peak >= demand; unknown stays NaN; a reading below its limits is returned as it is.

Rules, per resource (limits of -1 = unlimited and None = unknown do not bind):

CPU      throttled >= 1 % of the time, or use >= 97 % of quota or vCPUs, or ready >= 10 % of a CPU:
         used / (1 - throttled) + ready, at most 2 x limit and the vCPUs (+ 10 % when all vCPUs are busy)
memory   swapping, major faults, memory PSI >= 5 %, or use >= 97 % of the balloon:
         used + 5 to 25 % of the balloon, growing with swap rate and PSI
disk     use >= 97 % of the limit: max(used, limit) + 10 %
network  use >= 95 % of the ceiling: max(used, ceiling) + 10 %, + 25 % with drops;
         drops below that (bursts hit the ceiling inside the sample): used + 10 %, peak at the ceiling

Worked: quota 1000 m, used 990 m, throttled 400 permille: 990 / .6 = 1650 m. Quota 1000 m, throttled 900 permille: 2000 m, the bound.
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
MEMORY_PSI: Final = 0.05
MAJOR_FAULTS_PER_S: Final = 100.0
SWAP_BYTES_PER_S: Final = 64 * 1024.0  # below this a guest merely reads back cold pages
MODEST: Final = 1.10
WITH_DROPS: Final = 1.25

# Fields read, in the order in which `columns_of` lays them out.
FIELDS: Final = (
    "cpu_used_millicores",
    "cpu_used_peak_millicores",
    "cpu_throttled_permille",
    "cpu_ready_permille",
    "vcpus",
    "cpu_quota_millicores",
    "memory_used_bytes",
    "memory_allocated_bytes",
    "memory_swap_bytes_per_s",
    "memory_major_faults_per_s",
    "psi_memory_some_permille",
    "disk_read_bytes_per_s",
    "disk_write_bytes_per_s",
    "disk_limit_bytes_per_s",
    "net_rx_bits_per_s",
    "net_rx_dropped_per_s",
    "net_rx_ceil_bits_per_s",
    "net_tx_bits_per_s",
    "net_tx_dropped_per_s",
    "net_tx_ceil_bits_per_s",
)


class Demand(NamedTuple):
    """Rows are samples. `mean`, `peak`, `usage`, `limit` float64[m, r] (NaN unknown; limit NaN = none), `censored` bool[m, r]."""

    mean: F64
    peak: F64
    usage: F64
    limit: F64
    censored: NDArray[np.bool_]


def columns_of(samples: Sequence[VmSample]) -> dict[str, F64]:
    """The fields that demand needs as float64[m] columns, None as NaN."""
    return {name: np.array([getattr(sample, name) for sample in samples], dtype=np.float64) for name in FIELDS}


def demand_of(sample: VmSample) -> Demand:
    """Demand of one sample: arrays of one row. Rates are per second already, so the period does not enter."""
    return demand_of_columns(columns_of((sample,)))


def demand_of_columns(columns: dict[str, F64]) -> Demand:
    """Demand of many samples at once, by the rules above."""
    rows = len(columns["cpu_used_millicores"])
    shape = (rows, N_RESOURCES)
    out = Demand(
        np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, dtype=np.bool_)
    )
    with np.errstate(invalid="ignore"):
        _cpu(columns, out)
        _memory(columns, out)
        _disk(columns, out)
        _network(columns, "net_rx", NET_RX, out)
        _network(columns, "net_tx", NET_TX, out)
    return out


def _positive(limit: F64) -> F64:
    return np.where(limit > 0, limit, np.nan)


def _cpu(columns: dict[str, F64], out: Demand) -> None:
    used = columns["cpu_used_millicores"]
    throttled = np.clip(np.nan_to_num(columns["cpu_throttled_permille"]) / 1000.0, 0.0, 0.9)
    ready = np.clip(np.nan_to_num(columns["cpu_ready_permille"]), 0.0, None)  # permille of one CPU = millicores
    vcpus = _positive(columns["vcpus"]) * 1000.0
    limit = np.fmin(_positive(columns["cpu_quota_millicores"]), vcpus)
    busy = used >= AT_LIMIT * vcpus
    held = (throttled >= THROTTLED) | (used >= AT_LIMIT * limit)
    wanted = np.where(held & (throttled < THROTTLED), used * MODEST, used / (1.0 - throttled)) + ready
    bound = np.fmin(2.0 * limit, np.where(busy, MODEST, 1.0) * vcpus)
    demand = np.fmax(used, np.fmin(wanted, bound))
    demand = np.where(np.isnan(used), np.nan, demand)
    out.usage[:, CPU] = used
    out.mean[:, CPU] = demand
    out.peak[:, CPU] = np.where(np.isnan(used), np.nan, np.fmax(demand, columns["cpu_used_peak_millicores"]))
    out.limit[:, CPU] = limit
    out.censored[:, CPU] = held | (ready >= READY * 1000.0)


def _memory(columns: dict[str, F64], out: Demand) -> None:
    used = columns["memory_used_bytes"]
    balloon = _positive(columns["memory_allocated_bytes"])
    swap = np.nan_to_num(columns["memory_swap_bytes_per_s"])
    psi = np.clip(np.nan_to_num(columns["psi_memory_some_permille"]) / 1000.0, 0.0, 1.0)
    faults = np.nan_to_num(columns["memory_major_faults_per_s"])
    full = used >= AT_LIMIT * balloon
    pressed = (swap >= SWAP_BYTES_PER_S) | (psi >= MEMORY_PSI) | (faults >= MAJOR_FAULTS_PER_S) | full
    # 10 s of swap traffic as a share of the balloon, plus half of the stall share: 1 GiB at 10 MiB/s and 20 % PSI = 5 + 10 + 10 %
    missing = np.clip(0.05 + swap * 10.0 / np.where(np.isnan(balloon), np.fmax(used, 1.0), balloon) + psi / 2.0, 0.05, 0.25)
    reference = np.where(np.isnan(balloon), used, balloon)
    demand = np.where(pressed, used + missing * reference, used)
    out.usage[:, MEMORY] = used
    out.mean[:, MEMORY] = demand
    out.peak[:, MEMORY] = demand
    out.limit[:, MEMORY] = balloon
    out.censored[:, MEMORY] = pressed & ~np.isnan(used)


def _disk(columns: dict[str, F64], out: Demand) -> None:
    read, write = columns["disk_read_bytes_per_s"], columns["disk_write_bytes_per_s"]
    used = np.where(np.isnan(read) & np.isnan(write), np.nan, np.nan_to_num(read) + np.nan_to_num(write))
    limit = _positive(columns["disk_limit_bytes_per_s"])
    held = used >= AT_LIMIT * limit
    demand = np.where(held, np.fmax(used, limit) * MODEST, used)
    out.usage[:, DISK] = used
    out.mean[:, DISK] = demand
    out.peak[:, DISK] = demand
    out.limit[:, DISK] = limit
    out.censored[:, DISK] = held


def _network(columns: dict[str, F64], prefix: str, index: int, out: Demand) -> None:
    used = columns[f"{prefix}_bits_per_s"]
    ceiling = _positive(columns[f"{prefix}_ceil_bits_per_s"])
    drops = columns[f"{prefix}_dropped_per_s"] > 0
    held = used >= AT_CEILING * ceiling
    burst = drops & ~held & ~np.isnan(ceiling) & ~np.isnan(used)
    demand = np.where(held, np.fmax(used, ceiling) * np.where(drops, WITH_DROPS, MODEST), np.where(burst, used * MODEST, used))
    out.usage[:, index] = used
    out.mean[:, index] = demand
    out.peak[:, index] = np.where(burst, np.fmax(demand, ceiling), demand)
    out.limit[:, index] = ceiling
    out.censored[:, index] = held | burst
