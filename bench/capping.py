"""A host that caps what traces show uncapped: 5-second detail, what is served, and the counters that its kernel would show. Pure.

Detail: each 5-minute mean x a lognormal that holds for 5, 20 and 60 s (shares and sigmas of shared/workload.py: CPU .25, disk .5, network
.35, memory a jitter of .25 %), scaled so that the bucket's mean is the trace's. Two hosts:

simulated  the product's simulated guest (agent/adapters/simulated_vm.py, same constants): the VM is throttled as a whole, nothing
           queues, all that is above a ceiling is dropped and counted, I/O above a limit stalls, a short guest swaps 5 % of what it lacks a
           second and stalls four times the lacking share of its need.
kernel     each vCPU has its own group with an equal part of the quota and uneven work (1, 1/2, 1/3, ...), runs until its part is used up
           and waits; a quarter of what was not served comes again in the next 5 s, the rest is given up; throttled time is summed over
           vCPUs, CPU PSI is the share of time in which any waits. Senders yield at a ceiling: 1 % of it is dropped. QEMU throttles the
           disk out of PSI's sight. A short guest swaps and stalls at half the simulated guest's rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agent.adapters.simulated_vm import FAULT_BYTES, OOM_SHARE, PACKET_BITS, STALL_PER_SHORTFALL, SWAP_MAX_BYTES_PER_S, SWAP_PER_SHORTFALL
from coordinator.demand.censoring import FIELDS
from coordinator.model import F64, N_RESOURCES
from shared.units import CPU, DISK, MEMORY, NET_RX, NET_TX
from shared.workload import BLOCK_SHARES, BLOCK_SLOTS, DISK_SIGMA, MEMORY_JITTER, NET_SIGMA, SLOTS_PER_BUCKET

HOSTS: Final = ("simulated", "kernel")
SIGMA: Final = {CPU: 0.25, DISK: DISK_SIGMA, NET_RX: NET_SIGMA, NET_TX: NET_SIGMA}
QUEUED: Final = 0.25  # of what the kernel host did not serve
YIELDING: Final = 0.01  # of the ceiling dropped by senders that yield
SLOW_GUEST: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class Capped:
    """A capped stretch: `columns` float64[v, slot] per field of a sample, `demand` float64[v, r, slot] the truth behind them."""

    columns: dict[str, F64]
    demand: F64


def detail(mean: F64, seed: int) -> F64:
    """5-second demand float64[v, r, b * 60] of 5-minute means [v, r, b]; NaN stays NaN."""
    v, _, buckets = mean.shape
    rng = np.random.default_rng(seed)
    slots = buckets * SLOTS_PER_BUCKET
    out = np.repeat(mean, SLOTS_PER_BUCKET, axis=2)
    for r in range(N_RESOURCES):
        if r == MEMORY:
            out[:, r] *= 1.0 + MEMORY_JITTER * rng.uniform(-1.0, 1.0, (v, slots))
            continue
        log = np.zeros((v, slots))
        for length, share in zip(BLOCK_SLOTS, BLOCK_SHARES, strict=True):
            log += np.repeat(rng.normal(0.0, SIGMA[r] * np.sqrt(share), (v, slots // length)), length, axis=1)
        factor = np.exp(log).reshape(v, buckets, SLOTS_PER_BUCKET)
        out[:, r] *= (factor / factor.mean(axis=2, keepdims=True)).reshape(v, slots)
    return out


def limits_of(mean: F64, level: float) -> F64:
    """The limit float64[v, r] at quantile `level` of each VM's own 5-minute demand [v, r, b]; inf where that would be no life.

    That is: where the demand at that level is nothing, or hardly less than ever. A balloon leaves a guest as much as it survives.
    """
    known = np.isfinite(mean).sum(axis=2) >= 24
    filled = np.where(known[..., None], mean, 0.0)
    limit, top = np.nanquantile(filled, level, axis=2), np.nanmax(filled, axis=2)
    limit[:, MEMORY] = np.maximum(limit[:, MEMORY], 1.02 * OOM_SHARE * top[:, MEMORY])
    return np.where(known & (limit > 0.01 * top) & (limit < 0.95 * top) & (top > 0), limit, np.inf)


def cap(demand: F64, limit: F64, host: str) -> Capped:
    """Run `demand` [v, r, slot] on a capping host with limits [v, r] (inf = none). Raises ValueError for an unknown host."""
    if host not in HOSTS:
        raise ValueError(f"host {host!r}: allowed {', '.join(HOSTS)}")
    unlimited = np.where(np.isinf(limit), -1.0, limit)
    columns = {name: np.full(demand[:, 0].shape, np.nan) for name in FIELDS}
    vcpus = np.clip(np.ceil(1.2 * np.nan_to_num(np.nanmax(np.nan_to_num(demand[:, CPU]), axis=1)) / 1000.0), 1.0, None)
    columns["vcpus"] = np.broadcast_to(vcpus[:, None], demand[:, CPU].shape)
    columns["cpu_quota_millicores"] = _wide(unlimited[:, CPU], demand)
    columns["disk_limit_bytes_per_s"] = _wide(unlimited[:, DISK], demand)
    columns["net_rx_ceil_bits_per_s"] = _wide(unlimited[:, NET_RX], demand)
    columns["net_tx_ceil_bits_per_s"] = _wide(unlimited[:, NET_TX], demand)
    _memory(columns, demand[:, MEMORY], limit[:, MEMORY, None], 1.0 if host == "simulated" else SLOW_GUEST)
    _rates(columns, demand, limit, host)
    if host == "simulated":
        _group(columns, demand[:, CPU], limit[:, CPU, None], 1000.0 * vcpus[:, None])
    else:
        _vcpu_groups(columns, demand[:, CPU], limit[:, CPU], vcpus)
    return Capped(columns={name: np.rint(values) for name, values in columns.items()}, demand=demand)


def _wide(values: F64, demand: F64) -> F64:
    return np.broadcast_to(values[:, None], demand[:, 0].shape).astype(np.float64)


def _group(columns: dict[str, F64], demand: F64, quota: F64, vcpus: F64) -> None:
    runnable = np.minimum(demand, vcpus)
    used = np.minimum(runnable, quota)
    held = np.where(runnable > 0, 1.0 - used / np.maximum(runnable, 1e-9), 0.0)
    columns["cpu_used_millicores"] = np.where(np.isnan(demand), np.nan, used)
    columns["cpu_throttled_permille"] = columns["psi_cpu_some_permille"] = 1000.0 * held
    columns["cpu_ready_permille"] = np.zeros_like(used)


def _vcpu_groups(columns: dict[str, F64], demand: F64, quota: F64, vcpus: F64) -> None:
    index = np.arange(int(vcpus.max()))
    part = np.where(index < vcpus[:, None], 1.0 / (index + 1.0), 0.0)
    own = quota / vcpus
    queue = np.zeros_like(part)
    used, throttled, some = (np.full_like(demand, np.nan) for _ in range(3))
    for slot in range(demand.shape[1]):
        wanted = _spread(np.nan_to_num(demand[:, slot]), part) + queue
        runnable = np.minimum(wanted, 1000.0)
        served = np.minimum(runnable, own[:, None])
        held = np.where(runnable > 0, 1.0 - served / np.maximum(runnable, 1e-9), 0.0)
        queue = QUEUED * (wanted - served)
        used[:, slot] = served.sum(axis=1)
        throttled[:, slot] = held.sum(axis=1)
        some[:, slot] = 1.0 - np.prod(1.0 - held, axis=1)
    unknown = np.isnan(demand)
    columns["cpu_used_millicores"] = np.where(unknown, np.nan, used)
    columns["cpu_throttled_permille"] = np.where(unknown, np.nan, 1000.0 * throttled)
    columns["psi_cpu_some_permille"] = np.where(unknown, np.nan, 1000.0 * some)
    columns["cpu_ready_permille"] = np.zeros_like(demand)


def _spread(demand: F64, part: F64) -> F64:
    """Demand [v] over vCPUs [v, n] by their parts; what one cannot run goes to the others."""
    left, out = demand.copy(), np.zeros_like(part)
    for _ in range(4):
        room = np.maximum(1000.0 * (part > 0) - out, 0.0)
        open_part = np.where(room > 0, part, 0.0)
        given = np.minimum(room, left[:, None] * open_part / np.maximum(open_part.sum(axis=1), 1e-9)[:, None])
        out += given
        left = left - given.sum(axis=1)
    return out


def _memory(columns: dict[str, F64], need: F64, given: F64, rate: float) -> None:
    roomy = np.where(np.isinf(given), np.nan_to_num(np.nanmax(np.nan_to_num(need), axis=1))[:, None] * 1.5 + 1.0, given)
    short = np.maximum(need - roomy, 0.0)
    swap = np.minimum(SWAP_MAX_BYTES_PER_S, rate * SWAP_PER_SHORTFALL * short)
    columns["memory_used_bytes"] = np.minimum(need, roomy)
    columns["memory_allocated_bytes"] = np.broadcast_to(roomy, need.shape)
    columns["memory_swap_bytes_per_s"] = swap
    columns["memory_major_faults_per_s"] = swap / 2.0 / FAULT_BYTES
    columns["psi_memory_some_permille"] = 1000.0 * np.minimum(1.0, rate * STALL_PER_SHORTFALL * short / np.maximum(need, 1.0))


def _rates(columns: dict[str, F64], demand: F64, limit: F64, host: str) -> None:
    served = np.minimum(demand, limit[..., None])
    columns["disk_read_bytes_per_s"] = np.zeros_like(demand[:, DISK])
    columns["disk_write_bytes_per_s"] = served[:, DISK]
    if host == "simulated":
        lost = 1.0 - served[:, DISK] / np.maximum(demand[:, DISK], 1e-9)
        columns["psi_io_some_permille"] = 1000.0 * np.where(demand[:, DISK] > 0, lost, 0.0)
    for r, name in ((NET_RX, "net_rx"), (NET_TX, "net_tx")):
        above = demand[:, r] - served[:, r]
        dropped = above if host == "simulated" else np.where(above > 0, np.minimum(above, YIELDING * served[:, r]), 0.0)
        columns[f"{name}_bits_per_s"] = served[:, r]
        columns[f"{name}_dropped_per_s"] = dropped / PACKET_BITS


def bucket(columns: dict[str, F64], b: int) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """(rows [m], columns [m]) of all samples of bucket `b`."""
    span = slice(b * SLOTS_PER_BUCKET, (b + 1) * SLOTS_PER_BUCKET)
    v = len(columns["vcpus"])
    return np.repeat(np.arange(v), SLOTS_PER_BUCKET), {name: values[:, span].reshape(-1) for name, values in columns.items()}
