"""Prepares workload files for simulated hosts, and the history that the coordinator would have had of them.

Paired design: host i and host i + half carry the same VMs (same series and noise, other ids), so that two control modes can be compared
on identical demand. History is computed with the NumPy twin of the agent's demand function, bit by bit the same (a test compares them).
Hosts are overcommitted on purpose: capacity is 1.05 x the 99th percentile of the sum of the VMs' 5-minute peaks, over `overcommit`,
while the sum of the VMs' own maxima is far larger: when several ramps meet, the host cannot serve them all.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.model import N_RESOURCES, HistoryBlock
from coordinator.workload_sources import SourceVm, Window, pick
from shared import workload as wl
from shared.errors import ConfigError
from shared.model import Allocation, HostCapacity, Policy, Priority
from shared.units import BUCKET_S, CPU, MBIT, MEMORY, MIB, NET_RX, NET_TX
from shared.workload import VmWorkload, WorkloadFile

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U64 = NDArray[np.uint64]

PEAK_QUANTILE: Final = 0.99
PEAK_MARGIN: Final = 1.05
FLOOR_ROOM: Final = 1.2  # capacity is at least this many times the sum of the floors
START_SHARE: Final = 0.9  # of the commit limit that initial allocations may fill
PRIORITIES: Final = ((Priority.CRITICAL, 0.1), (Priority.HIGH, 0.2), (Priority.NORMAL, 0.5), (Priority.LOW, 0.2))
CPU_FLOOR_MILLICORES: Final = 100  # even an idle guest gets a tenth of a core
NET_FLOOR_BITS_PER_S: Final = MBIT
HOST_RESERVE_BYTES: Final = 1024 * MIB
HOST_NET_BITS_PER_S: Final = 10_000_000_000


Source = Callable[[int, Window, np.random.Generator], list[SourceVm]]  # so many VMs over a window


@dataclass(frozen=True, kw_only=True)
class HostWorkload:
    """One host's file and its VMs' demand before the run. `mean`, `peak` float32[v, r, b], NaN where the trace had a gap."""

    host: str
    file: WorkloadFile
    history_start_s: int
    mean: F32
    peak: F32

    def history(self) -> HistoryBlock:
        """The same as the coordinator's history block (nothing censored). Raises ConfigError when no history was asked for."""
        if not self.mean.shape[2]:
            raise ConfigError("hours_history 0: there is no history to load")
        capacity = np.full((len(self.file.vms), N_RESOURCES), np.nan, dtype=np.float32)
        for v, vm in enumerate(self.file.vms):
            capacity[v, CPU], capacity[v, MEMORY] = vm.vcpus_max * 1000, vm.memory_max_bytes
            capacity[v, NET_RX] = capacity[v, NET_TX] = vm.net_max_bits_per_s
        return HistoryBlock(
            vm_ids=tuple(vm.vm_id for vm in self.file.vms),
            end_s=self.history_start_s + BUCKET_S * (self.mean.shape[2] - 1),
            mean=self.mean,
            peak=self.peak,
            censored=np.where(np.isnan(self.mean), np.nan, 0.0).astype(np.float32),
            capacity=capacity,
        )


@dataclass(frozen=True, kw_only=True)
class _Vm:
    """A VM prepared once and used by both hosts of a pair. `spec` holds the series of the whole window."""

    spec: VmWorkload
    missing: NDArray[np.bool_]  # [buckets]
    mean: F64  # [r, buckets]
    peak: F64


def prepare(
    data_dir: Path | None,
    *,
    hosts: int,
    vms_per_host: int,
    start_s: int,
    hours_history: int,
    hours_run: int,
    seed: int,
    overcommit: float = 1.0,
    source: Source | None = None,
) -> list[HostWorkload]:
    """Workloads of `hosts` hosts; host i and i + ceil(hosts / 2) are twins. `data_dir` None or without traces: generated.

    `start_s` (a multiple of 300) begins the run; `hours_history` before it become history arrays. Larger `overcommit`, smaller hosts.
    `source`: another place to take VMs from than `data_dir`.
    Raises ConfigError for a value out of range or a trace that cannot be read.
    """
    for name, value, low, high in (
        ("hosts", hosts, 1, 10_000),
        ("vms_per_host", vms_per_host, 1, 1000),
        ("start_s", start_s, 0, 2**40),
        ("hours_history", hours_history, 0, 24 * 366),
        ("hours_run", hours_run, 1, 24 * 366),
        ("overcommit", overcommit, 0.1, 10.0),
    ):
        if not low <= value <= high:
            raise ConfigError(f"{name} {value}: allowed {low} to {high}")
    if start_s % BUCKET_S:
        raise ConfigError(f"start_s {start_s}: a multiple of {BUCKET_S} is needed")
    past, run = hours_history * 3600 // BUCKET_S, hours_run * 3600 // BUCKET_S
    lead = min(past, 1)  # one bucket before and after, so that the run's edges interpolate as the history does
    window = Window(start_s=start_s - BUCKET_S * past, buckets=past + run + 1)
    if window.start_s < 0:
        raise ConfigError(f"hours_history {hours_history}: reaches back before 1970 from start_s {start_s}")
    half = (hosts + 1) // 2
    rng = np.random.default_rng([seed, 1])
    sources = (source or partial(pick, data_dir))(half * vms_per_host, window, rng)
    prepared = []
    for group in range(half):
        vms = _group(sources[group * vms_per_host : (group + 1) * vms_per_host], window, past, np.random.default_rng([seed, 2, group]))
        capacity = _capacity(vms, overcommit)
        prepared.append((_fit(vms, capacity), capacity))
    width = len(str(hosts - 1))
    return [
        _host(f"host-{i:0{width}d}", *prepared[i % half], window=window, past=past, lead=lead, rng=np.random.default_rng([seed, 3, i]))
        for i in range(hosts)
    ]


def resized(workload: HostWorkload, capacity: HostCapacity) -> HostWorkload:
    """The same VMs on a host of another size; what they begin with is fitted to it."""
    none = np.zeros(0)
    vms = [_Vm(spec=spec, missing=none.astype(np.bool_), mean=none, peak=none) for spec in workload.file.vms]
    fitted = tuple(vm.spec for vm in _fit(vms, capacity))
    return replace(workload, file=msgspec.structs.replace(workload.file, capacity=capacity, vms=fitted))


def joined_history(workloads: Sequence[HostWorkload]) -> HistoryBlock:
    """The history of all hosts' VMs in one block, hosts in the order given. Raises ConfigError when there is none."""
    blocks = [workload.history() for workload in workloads]
    if not blocks:
        raise ConfigError("joined_history: no host given")
    mean, peak, censored, capacity = (
        np.concatenate([getattr(block, name) for block in blocks]) for name in ("mean", "peak", "censored", "capacity")
    )
    vm_ids = tuple(vm_id for block in blocks for vm_id in block.vm_ids)
    return HistoryBlock(vm_ids=vm_ids, end_s=blocks[0].end_s, mean=mean, peak=peak, censored=censored, capacity=capacity)


def write(path: Path, workload: HostWorkload) -> int:
    """Write the host's file for its agent; returns its size in bytes."""
    data = wl.encode_workload(workload.file)
    path.write_bytes(data)
    return len(data)


def demand_detail(vm: VmWorkload, start_s: int) -> F64:
    """Demand in every 5-second slot, float64[6, buckets, 60]: the twin of agent.adapters.workload, operation for operation.

    Rows in the order of SERIES; the VM's first bucket starts at `start_s`.
    """
    levels = [np.frombuffer(getattr(vm, name), dtype="<i8") for name in wl.SERIES]
    buckets = len(levels[0])
    slots = start_s // wl.SLOT_S + np.arange(buckets * wl.SLOTS_PER_BUCKET, dtype=np.int64)
    fine, middle, coarse = (
        np.repeat(_hash(wl.mix64(vm.seed ^ salt), blocks), counts)
        for salt, (blocks, counts) in zip(wl.BLOCK_SALTS, (_blocks(slots, length) for length in wl.BLOCK_SLOTS), strict=True)
    )
    scale = _bursts(slots, coarse, vm.burst_per_1024) * (1.0 / wl.burst_mean(vm.burst_per_1024))
    index, rest = np.divmod(10 * slots + wl.SLOT_S - 2 * start_s - BUCKET_S, 2 * BUCKET_S)
    f = rest / (2 * BUCKET_S)
    before, after = index.clip(0, buckets - 1), (index + 1).clip(0, buckets - 1)
    out = np.empty((6, len(slots)))
    for row, level in enumerate(levels):
        out[row] = level[before] + (level[after] - level[before]) * f
    hashes = (fine, middle, coarse)
    out[0] = np.minimum(out[0] * (_noise(hashes, wl.CPU_SHIFT, vm.noise_permille) * scale), 1000.0 * vm.vcpus_max)
    jitter = 1.0 + wl.MEMORY_JITTER * (_field(middle, wl.BURST_SHIFT) / 512 - 1.0)
    out[1] = np.minimum(out[1] * jitter, float(vm.memory_max_bytes))
    disk = _noise(hashes, wl.DISK_SHIFT, int(1000 * wl.DISK_SIGMA)) * scale
    out[2] *= disk
    out[3] *= disk
    for row, shift in ((4, wl.NET_RX_SHIFT), (5, wl.NET_TX_SHIFT)):
        out[row] = np.minimum(out[row] * (_noise(hashes, shift, int(1000 * wl.NET_SIGMA)) * scale), float(vm.net_max_bits_per_s))
    return out.reshape(6, buckets, wl.SLOTS_PER_BUCKET)


def _blocks(slots: NDArray[np.int64], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the blocks that the consecutive `slots` fall into, and how many slots fall into each."""
    blocks = np.arange(slots[0] // length, slots[-1] // length + 1)
    edges = np.concatenate([[slots[0]], blocks[1:] * length, [slots[-1] + 1]])
    return blocks, np.diff(edges)


def _hash(seed: int, blocks: NDArray[np.int64]) -> U64:
    """shared.workload.mix64(seed + block * MIX_STEP) for every block."""
    value = blocks.astype(np.uint64) * np.uint64(wl.MIX_STEP) + np.uint64(seed)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(wl.MIX_1)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(wl.MIX_2)
    return value ^ (value >> np.uint64(31))


def _field(hashes: U64, shift: int, mask: int = wl.NOISE_MASK) -> NDArray[np.int64]:
    return ((hashes >> np.uint64(shift)) & np.uint64(mask)).astype(np.int64)


def _noise(hashes: tuple[U64, U64, U64], shift: int, sigma_permille: int) -> F64:
    first, second, third = (np.array(wl.noise_factors(sigma_permille, i))[_field(h, shift)] for i, h in enumerate(hashes))
    return np.asarray(first * second * third)


def _bursts(slots: NDArray[np.int64], coarse: U64, burst_per_1024: int) -> F64:
    since = slots % 12 - _field(coarse, wl.BURST_START_SHIFT, 7)
    length = 2 + 2 * _field(coarse, wl.BURST_LENGTH_SHIFT, 3)
    on = (_field(coarse, wl.BURST_SHIFT) < burst_per_1024) & (since >= 0) & (since < length)
    return np.where(on, 1.5 + 0.5 * _field(coarse, wl.BURST_HEIGHT_SHIFT, 3), 1.0)


def _group(sources: list[SourceVm], window: Window, past: int, rng: np.random.Generator) -> list[_Vm]:
    clients = _clients(len(sources), rng)
    priorities = rng.choice([int(p) for p, _ in PRIORITIES], size=len(sources), p=[share for _, share in PRIORITIES])
    vms = []
    for source, client, priority in zip(sources, clients, priorities, strict=True):
        spec = _spec(source, seed=int(rng.integers(2**62)))
        detail = demand_detail(spec, window.start_s)
        demand = np.stack([detail[0], detail[1], detail[2] + detail[3], detail[4], detail[5]])
        mean, peak = demand.mean(axis=2), demand.max(axis=2)
        known = slice(0, past) if past else slice(None)
        cpu, memory = mean[CPU, known], mean[MEMORY, known]
        policy = Policy(
            priority=Priority(int(priority)),
            client=client,
            cpu_floor_millicores=max(CPU_FLOOR_MILLICORES, int(0.5 * np.median(cpu))),
            memory_floor_bytes=_mib(max(128 * MIB, 0.5 * float(np.quantile(memory, 0.05)))),
            net_floor_bits_per_s=NET_FLOOR_BITS_PER_S,
        )
        initial = Allocation(
            cpu_quota_millicores=math.ceil(1.2 * np.quantile(cpu, 0.95)),
            memory_bytes=int(1.15 * np.quantile(memory, 0.95)),
            net_rx_bits_per_s=math.ceil(1.2 * np.quantile(peak[NET_RX, known], 0.99)),
            net_tx_bits_per_s=math.ceil(1.2 * np.quantile(peak[NET_TX, known], 0.99)),
        )
        spec = msgspec.structs.replace(spec, policy=policy, initial=initial)
        vms.append(_Vm(spec=spec, missing=source.missing, mean=mean, peak=peak))
    return vms


def _clients(count: int, rng: np.random.Generator) -> list[str]:
    """A client for each VM, three to six VMs each (the last may get fewer)."""
    names: list[str] = []
    while len(names) < count:
        names += [f"client-{int(rng.integers(0x10000)):04x}"] * int(rng.integers(3, 7))
    return [names[i] for i in rng.permutation(count)]


def _capacity(vms: list[_Vm], overcommit: float) -> HostCapacity:
    """A host just too small for the sum of its VMs' peaks at the worst times."""

    def limit(total: F64, floors: int) -> int:
        return math.ceil(max(PEAK_MARGIN * float(np.quantile(total, PEAK_QUANTILE)) / overcommit, FLOOR_ROOM * floors))

    policies = [vm.spec.policy for vm in vms]
    peaks = np.sum([vm.peak for vm in vms], axis=0)
    cpu = limit(peaks[CPU], sum(policy.cpu_floor_millicores or 0 for policy in policies))
    memory = _mib(limit(peaks[MEMORY], sum(policy.memory_floor_bytes or 0 for policy in policies)))
    net = max(limit(peaks[direction], NET_FLOOR_BITS_PER_S * len(vms)) for direction in (NET_RX, NET_TX))  # full duplex: holds for each
    return HostCapacity(
        cpu_millicores=math.ceil(PEAK_MARGIN * cpu),  # room for the host's own work
        memory_bytes=memory + HOST_RESERVE_BYTES,
        net_bits_per_s=max(HOST_NET_BITS_PER_S, net),
        cpu_commit_millicores=cpu,
        memory_commit_bytes=memory,
        net_commit_bits_per_s=net,
    )


def _fit(vms: list[_Vm], capacity: HostCapacity) -> list[_Vm]:
    """Initial allocations within floors, maxima and START_SHARE of the commit limit: what is above the floors shrinks alike."""

    def scaled(lever: str, floor: str, room: float) -> list[int]:
        floors = [getattr(vm.spec.policy, floor) or 0 for vm in vms]
        extra = [max(0, getattr(vm.spec.initial, lever) - low) for vm, low in zip(vms, floors, strict=True)]
        factor = min(1.0, max(0.0, START_SHARE * room - sum(floors)) / max(1, sum(extra)))
        return [low + int(more * factor) for low, more in zip(floors, extra, strict=True)]

    cpu = scaled("cpu_quota_millicores", "cpu_floor_millicores", capacity.cpu_commit_millicores)
    memory = scaled("memory_bytes", "memory_floor_bytes", capacity.memory_commit_bytes - MIB * len(vms))
    rx = scaled("net_rx_bits_per_s", "net_floor_bits_per_s", capacity.net_commit_bits_per_s)
    tx = scaled("net_tx_bits_per_s", "net_floor_bits_per_s", capacity.net_commit_bits_per_s)
    fitted = []
    for i, vm in enumerate(vms):
        initial = Allocation(
            vcpus=min(vm.spec.vcpus_max, max(1, math.ceil(cpu[i] / 1000))),
            cpu_quota_millicores=min(cpu[i], 1000 * vm.spec.vcpus_max),
            memory_bytes=min(_mib(memory[i]), vm.spec.memory_max_bytes),
            net_rx_bits_per_s=rx[i],
            net_tx_bits_per_s=tx[i],
        )
        fitted.append(replace(vm, spec=msgspec.structs.replace(vm.spec, initial=initial)))
    return fitted


def _host(
    name: str, vms: list[_Vm], capacity: HostCapacity, *, window: Window, past: int, lead: int, rng: np.random.Generator
) -> HostWorkload:
    cut = past - lead
    specs = [
        msgspec.structs.replace(
            vm.spec,
            vm_id=str(uuid.UUID(bytes=rng.bytes(16), version=4)),
            name=f"{vm.spec.name}.{name}",
            **{series: getattr(vm.spec, series)[8 * cut :] for series in wl.SERIES},
        )
        for vm in vms
    ]
    mean, peak = (np.stack([getattr(vm, part)[:, :past] for vm in vms]).astype(np.float32) for part in ("mean", "peak"))
    for v, vm in enumerate(vms):
        mean[v][:, vm.missing[:past]] = np.nan
        peak[v][:, vm.missing[:past]] = np.nan
    file = WorkloadFile(
        host=name,
        start_s=window.start_s + BUCKET_S * cut,
        buckets=window.buckets - cut,
        seed=int(rng.integers(2**62)),
        capacity=capacity,
        vms=tuple(specs),
    )
    return HostWorkload(host=name, file=file, history_start_s=window.start_s, mean=mean, peak=peak)


def _spec(source: SourceVm, seed: int) -> VmWorkload:
    """The VM's entry without id, policy and initial allocation."""
    cpu, memory, read, written, rx, tx = (np.rint(row).astype("<i8").tobytes() for row in source.levels)
    return VmWorkload(
        vm_id="unnamed",
        name=source.name,
        source=source.source,
        vcpus_max=source.vcpus_max,
        memory_max_bytes=source.memory_max_bytes,
        initial=Allocation(),
        seed=seed,
        noise_permille=50 * round(20 * source.noise_sigma),  # few distinct values share their tables
        cpu_millicores=cpu,
        memory_bytes=memory,
        disk_read_bytes_per_s=read,
        disk_write_bytes_per_s=written,
        net_rx_bits_per_s=rx,
        net_tx_bits_per_s=tx,
    )


def _mib(value: float) -> int:
    """Up to whole MiB, as balloons are set."""
    return math.ceil(value / MIB) * MIB
