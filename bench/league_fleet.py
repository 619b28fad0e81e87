"""Fleets of bench/league: hosts with VMs of one trace, and how large a host must be for an oracle.

Bitbrains brings all resources; Azure CPU only, memory and network are made up from it (coordinator/workload_sources.py says how); Google's
jobs bring CPU and memory, network is made up from CPU. Detail within a 5-minute sample is drawn with the width that the trace tells:
Azure's maximum over its mean, for the others the steps between samples (shared/workload.py has the model).
A host's size is what its VMs' oracle allocations (bench/league_oracle.py) need at their worst moment, times `room`: 1 = the oracle just
fits, 1.3 = 30 % more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.league_oracle import demand_peaks, foresight, needed
from coordinator.model import F64
from coordinator.workload_sources import DAY, SourceVm, Window, pick
from coordinator.workloads import FLOOR_ROOM, HOST_RESERVE_BYTES, HostWorkload, prepare, resized
from shared.errors import ConfigError
from shared.model import Allocation, HostCapacity, Policy
from shared.units import BUCKET_S, GIB

SETS: Final = {"bitbrains": "bitbrains_rnd", "azure": "azure2019_vms", "google": "google2011_jobs"}
START_SHARE: Final = 0.95
HISTORY_H: Final = 168
TUESDAY_S: Final = 1_699_833_600 + 86_400  # a Tuesday, 00:00 UTC
GOOGLE_CORES, GOOGLE_BYTES = 4, 16 * GIB  # the trace gives shares only
GOOGLE_LEAST_DAYS: Final = 5
MEMORY_UNIT: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fleet. `trace`: one of SETS; `room`: capacity over what the oracle needs."""

    trace: str
    seed: int
    hosts: int
    vms: int
    hours: float
    room: float

    @property
    def start_s(self) -> int:
        """The hour of the week differs with the seed: quick runs see mornings and nights."""
        return TUESDAY_S + 3600 * (6 + 5 * (self.seed % 4))


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Hosts ready to run, beginning with what they need at once and a share of what their owner wishes.

    `ahead`: vm_id -> float64[4, buckets from start_s] the oracle's allocation of CPU, memory, rx, tx;
    `peaks`: the true largest 5-second demand of each bucket, likewise."""

    works: tuple[HostWorkload, ...]
    static: tuple[HostWorkload, ...]  # the same, beginning with what a static owner gives: a share of its VMs' 95th percentiles
    start_s: int
    ahead: dict[str, F64]
    peaks: dict[str, F64]


def fleet_of(case: Case, data: Path) -> Fleet:
    """The case's hosts. Raises ConfigError where the trace is not in `data`."""
    if not sorted((data / SETS[case.trace]).glob("*.parquet")):
        raise ConfigError(f"{case.trace}: nothing in {data / SETS[case.trace]}")
    source = partial(_google, data) if case.trace == "google" else partial(pick, data, sets=(case.trace,))
    works = prepare(
        None,
        hosts=2 * case.hosts,  # twins: only the first half is used
        vms_per_host=case.vms,
        start_s=case.start_s,
        hours_history=HISTORY_H,
        hours_run=math.ceil(case.hours) + 1,
        seed=case.seed,
        source=source,
    )[: case.hosts]
    peaks = {spec.vm_id: demand_peaks(spec, work.file.start_s, case.start_s) for work in works for spec in work.file.vms}
    ahead = {vm_id: foresight(peak) for vm_id, peak in peaks.items()}
    capacities = [_capacity(work, [ahead[spec.vm_id] for spec in work.file.vms], case.room) for work in works]
    return Fleet(
        works=tuple(_begun(work, capacity, ahead) for work, capacity in zip(works, capacities, strict=True)),
        static=tuple(resized(work, capacity) for work, capacity in zip(works, capacities, strict=True)),
        start_s=case.start_s,
        ahead=ahead,
        peaks=peaks,
    )


def _begun(work: HostWorkload, capacity: HostCapacity, ahead: Mapping[str, F64]) -> HostWorkload:
    """The host at this capacity, every VM with what it needs in the first two buckets and of what its owner wishes as much as fits."""
    limits = (capacity.cpu_commit_millicores, capacity.memory_commit_bytes, capacity.net_commit_bits_per_s, capacity.net_commit_bits_per_s)
    levers = ("cpu_quota_millicores", "memory_bytes", "net_rx_bits_per_s", "net_tx_bits_per_s")
    given: list[dict[str, int]] = [{} for _ in work.file.vms]
    for i, (lever, limit) in enumerate(zip(levers, limits, strict=True)):
        least = [max(float(ahead[spec.vm_id][i, :2].max()), _floor(spec.policy, lever)) for spec in work.file.vms]
        more = [max(0.0, getattr(spec.initial, lever) - low) for spec, low in zip(work.file.vms, least, strict=True)]
        share = min(1.0, max(0.0, START_SHARE * limit - sum(least)) / max(1.0, sum(more)))
        for mine, low, extra in zip(given, least, more, strict=True):
            mine[lever] = math.ceil(low + share * extra)
    vms = []
    for spec, mine in zip(work.file.vms, given, strict=True):
        mine["cpu_quota_millicores"] = min(mine["cpu_quota_millicores"], 1000 * spec.vcpus_max)
        mine["memory_bytes"] = min(math.ceil(mine["memory_bytes"] / MEMORY_UNIT) * MEMORY_UNIT, spec.memory_max_bytes)
        vcpus = min(spec.vcpus_max, max(1, math.ceil(mine["cpu_quota_millicores"] / 1000)))
        vms.append(msgspec.structs.replace(spec, initial=Allocation(vcpus=vcpus, **mine)))
    return replace(work, file=msgspec.structs.replace(work.file, capacity=capacity, vms=tuple(vms)))


def _floor(policy: Policy, lever: str) -> float:
    """What the owner has at least, of one lever."""
    floors = {
        "cpu_quota_millicores": policy.cpu_floor_millicores,
        "memory_bytes": policy.memory_floor_bytes,
        "net_rx_bits_per_s": policy.net_floor_bits_per_s,
        "net_tx_bits_per_s": policy.net_floor_bits_per_s,
    }
    return float(floors[lever] or 0)


def _capacity(work: HostWorkload, ahead: Sequence[F64], room: float) -> HostCapacity:
    """What the oracle needs at the worst moment, resource by resource, and at least what the floors need."""
    cpu, memory, rx, tx = (float(most) * room for most in needed(ahead))
    policies = [spec.policy for spec in work.file.vms]
    cpu = max(cpu, FLOOR_ROOM * sum(policy.cpu_floor_millicores or 0 for policy in policies))
    memory = max(memory, FLOOR_ROOM * sum(policy.memory_floor_bytes or 0 for policy in policies))
    net = max(rx, tx, FLOOR_ROOM * sum(policy.net_floor_bits_per_s or 0 for policy in policies))
    bytes_ = math.ceil(memory / MEMORY_UNIT) * MEMORY_UNIT
    return HostCapacity(
        cpu_millicores=math.ceil(1.05 * cpu),
        memory_bytes=bytes_ + HOST_RESERVE_BYTES,
        net_bits_per_s=max(10_000_000_000, math.ceil(net)),
        cpu_commit_millicores=math.ceil(cpu),
        memory_commit_bytes=bytes_,
        net_commit_bits_per_s=math.ceil(net),
    )


def _google(data: Path, count: int, window: Window, rng: np.random.Generator) -> list[SourceVm]:
    """Jobs with the most days, their days one after another and again from the start: ten days are all there is. Network from CPU."""
    files = sorted((data / SETS["google"]).glob("*.parquet"))
    table: Any = pa.concat_tables([pq.read_table(path) for path in files]).to_pandas().sort_values(["job", "day", "step"])
    days = table.groupby("job").size() // DAY
    jobs = rng.permutation(sorted(days[days >= min(GOOGLE_LEAST_DAYS, int(days.max()))].index))
    rows = dict(iter(table.groupby("job")))
    vms = []
    for i in range(count):
        job, again = jobs[i % len(jobs)], i // len(jobs)
        part = rows[job]
        length = len(part) // DAY * DAY
        # a job drawn again is another VM: its days begin elsewhere; the time of day stays
        offset = window.start_s // BUCKET_S + again * 3 * DAY
        at = (offset + np.arange(window.buckets)) % length
        cpu = part.cpu_pct.to_numpy(np.float64)[at].clip(0, 100) / 100
        memory = part.mem_pct.to_numpy(np.float64)[at].clip(0, 95) / 100
        steps = np.abs(np.diff(np.log(np.maximum(cpu, 1e-3))))
        levels = np.zeros((6, window.buckets))
        levels[0], levels[1] = cpu * GOOGLE_CORES * 1000, memory * GOOGLE_BYTES
        levels[2], levels[3] = cpu * rng.uniform(0.2, 2.0) * MEMORY_UNIT, cpu * rng.uniform(0.5, 4.0) * MEMORY_UNIT
        levels[4], levels[5] = cpu * rng.uniform(5e6, 80e6), cpu * rng.uniform(5e6, 80e6)
        vms.append(
            SourceVm(
                name=f"google{job}.{again}",
                source="google2011_jobs (network synthetic)",
                vcpus_max=GOOGLE_CORES,
                memory_max_bytes=GOOGLE_BYTES,
                levels=levels,
                missing=np.zeros(window.buckets, np.bool_),
                noise_sigma=float(np.clip(3.5 * np.median(steps), 0.15, 0.6)),
            )
        )
    return vms
