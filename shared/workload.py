"""Workload files: what the VMs of one simulated host demand, and how detail inside a 5-minute sample comes about.

A file is msgpack, written by the coordinator's demo and read by the agent (which may not import each other, hence here). It holds
5-minute levels; the 5-second detail is a pure function of (seed of the VM, 5-second slot), so every process, and the NumPy twin
that pre-loads history, sees the same demand. Detail = level, linear between bucket centres
  x product of three lognormal factors that hold for 5, 20 and 60 seconds (autocorrelation falls linearly over a minute, like an
    AR(1) of that length; each factor has mean exactly 1, so noise does not change the mean)
  x a burst of 10-40 seconds and 1.5-3 times the level in some minutes (its expectation is divided out).
Memory is smooth: at most 0.25 % of jitter.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from shared.errors import ConfigError
from shared.model import Allocation, HostCapacity, Identifier, Label, Policy
from shared.units import BUCKET_S

SERIES: Final = (
    "cpu_millicores",
    "memory_bytes",
    "disk_read_bytes_per_s",
    "disk_write_bytes_per_s",
    "net_rx_bits_per_s",
    "net_tx_bits_per_s",
)
Packed = Annotated[bytes, Meta(max_length=8 * 200_000)]  # int64 little-endian, one value per bucket; two years at most

SLOT_S: Final = 5
SLOTS_PER_BUCKET: Final = BUCKET_S // SLOT_S
BLOCK_SLOTS: Final = (1, 4, 12)  # how long the three noise factors hold: 5, 20, 60 s
BLOCK_SHARES: Final = (0.35, 0.35, 0.30)  # of the variance of the log
DISK_SIGMA: Final = 0.5
NET_SIGMA: Final = 0.35
NOISE_BITS: Final = 10
NOISE_MASK: Final = (1 << NOISE_BITS) - 1
MEMORY_JITTER: Final = 0.0025
# where the fields of one 64-bit hash lie; a block's hash serves all resources of a VM
CPU_SHIFT, DISK_SHIFT, NET_RX_SHIFT, NET_TX_SHIFT = 0, 10, 20, 30
BURST_SHIFT, BURST_START_SHIFT, BURST_LENGTH_SHIFT, BURST_HEIGHT_SHIFT = 40, 50, 53, 55
MIX_STEP, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
MASK_64: Final = 2**64 - 1
BLOCK_SALTS: Final = (0x5D1B_0E2F_9C31_7A05, 0xA3C5_91E8_77B4_2D6B, 0x1F83_D9AB_FB41_BD6B)


class VmWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """One VM: its definition, what it starts with, and its demand. `source` says where the series come from."""

    vm_id: Identifier
    name: Label
    source: Label
    policy: Policy = Policy()
    vcpus_max: Annotated[int, Meta(ge=1, le=4096)]
    memory_max_bytes: Annotated[int, Meta(ge=1, le=2**53)]
    net_max_bits_per_s: Annotated[int, Meta(ge=1, le=2**53)] = 10_000_000_000
    initial: Allocation  # vcpus and memory_bytes are needed; None elsewhere = not limited
    seed: Annotated[int, Meta(ge=0, lt=2**62)]
    noise_permille: Annotated[int, Meta(ge=0, le=1500)] = 250  # sigma of the log of CPU demand within a bucket
    burst_per_1024: Annotated[int, Meta(ge=0, le=1024)] = 8  # minutes of 1024 that hold a burst
    cpu_millicores: Packed
    memory_bytes: Packed
    disk_read_bytes_per_s: Packed
    disk_write_bytes_per_s: Packed
    net_rx_bits_per_s: Packed
    net_tx_bits_per_s: Packed


class WorkloadFile(msgspec.Struct, frozen=True, kw_only=True, tag_field="format", tag="tidegate-workload"):
    """One host. Bucket b covers [start_s + 300 b, start_s + 300 (b + 1)); outside, the first or last level holds."""

    version: Literal[1] = 1
    host: Identifier
    start_s: Annotated[int, Meta(ge=0, le=2**40, multiple_of=BUCKET_S)]
    buckets: Annotated[int, Meta(ge=1, le=200_000)]
    seed: Annotated[int, Meta(ge=0, lt=2**62)]
    capacity: HostCapacity
    vms: Annotated[tuple[VmWorkload, ...], Meta(max_length=4096)]


def encode_workload(workload: WorkloadFile) -> bytes:
    """The file's bytes."""
    return msgspec.msgpack.encode(workload)


def decode_workload(data: bytes) -> WorkloadFile:
    """Parse and check a workload file. Raises ConfigError naming the field."""
    try:
        workload = msgspec.msgpack.decode(data, type=WorkloadFile)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ConfigError(f"not a workload file of version 1: {error}") from error
    seen: set[str] = set()
    for vm in workload.vms:
        if vm.vm_id in seen:
            raise ConfigError(f"workload file: vm_id {vm.vm_id} appears twice")
        seen.add(vm.vm_id)
        for name in SERIES:
            length = len(getattr(vm, name))
            if length != 8 * workload.buckets:
                raise ConfigError(f"workload file: {name} of {vm.name} has {length} bytes, {8 * workload.buckets} are needed")
        _check_initial(vm)
    return workload


def _check_initial(vm: VmWorkload) -> None:
    vcpus, memory = vm.initial.vcpus, vm.initial.memory_bytes
    if vcpus is None or not 1 <= vcpus <= vm.vcpus_max:
        raise ConfigError(f"workload file: initial vcpus {vcpus} of {vm.name}: allowed 1 to {vm.vcpus_max}")
    if memory is None or not 1 <= memory <= vm.memory_max_bytes:
        raise ConfigError(f"workload file: initial memory_bytes {memory} of {vm.name}: allowed 1 to {vm.memory_max_bytes}")


@lru_cache(maxsize=128)  # preparation rounds sigma to 50: at most 31 sigmas x 3 blocks
def noise_factors(sigma_permille: int, block: int) -> tuple[float, ...]:
    """Factors of one of the three blocks for the 1024 values of a hash field: lognormal by inverse CDF, mean exactly 1."""
    sigma = sigma_permille / 1000 * math.sqrt(BLOCK_SHARES[block])
    size = 1 << NOISE_BITS
    raw = [math.exp(sigma * NormalDist().inv_cdf((i + 0.5) / size)) for i in range(size)]
    mean = math.fsum(raw) / size
    return tuple(value / mean for value in raw)


def burst_mean(burst_per_1024: int) -> float:
    """Expectation of the burst factor over a minute, by which detail is divided.

    start 0-7, length 2, 4, 6 or 8 slots, cut at the minute's 12th slot; height 1.5, 2, 2.5 or 3, mean 2.25.
    """
    slots = sum(min(12, start + length) - start for start in range(8) for length in (2, 4, 6, 8)) / 32
    return 1.0 + burst_per_1024 / 1024 * slots / 12 * 1.25


def mix64(value: int) -> int:
    """Finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): 64 well-mixed bits of any integer."""
    value &= MASK_64
    value = ((value ^ (value >> 30)) * MIX_1) & MASK_64
    value = ((value ^ (value >> 27)) * MIX_2) & MASK_64
    return value ^ (value >> 31)
