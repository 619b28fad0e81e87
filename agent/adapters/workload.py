"""Demand of a simulated host's VMs at any moment, replayed from a workload file.

Pure: the same time gives the same demand, whatever was asked before (the memories below only save work). Constant within a 5-second
slot, O(1), standard library only: it runs inside every simulated agent. Model and format: shared/workload.py.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from shared.errors import ConfigError
from shared.units import BUCKET_S, NS_PER_S
from shared.workload import (
    BLOCK_SALTS,
    BURST_HEIGHT_SHIFT,
    BURST_LENGTH_SHIFT,
    BURST_SHIFT,
    BURST_START_SHIFT,
    DISK_SHIFT,
    DISK_SIGMA,
    MEMORY_JITTER,
    MIX_STEP,
    NET_RX_SHIFT,
    NET_SIGMA,
    NET_TX_SHIFT,
    NOISE_MASK,
    SERIES,
    SLOT_S,
    VmWorkload,
    WorkloadFile,
    burst_mean,
    decode_workload,
    mix64,
    noise_factors,
)

SLOT_NS = SLOT_S * NS_PER_S


class Demand(NamedTuple):
    """What one VM would use if nothing limited it: millicores, bytes, bytes/s, bits/s."""

    cpu_millicores: float
    memory_bytes: float
    disk_read_bytes_per_s: float
    disk_write_bytes_per_s: float
    net_rx_bits_per_s: float
    net_tx_bits_per_s: float


class Workload:
    """A workload file made ready to be asked. `vms` keeps the file's order; a VM is addressed by its index there."""

    def __init__(self, file: WorkloadFile) -> None:
        self.file = file
        self.vms: Sequence[VmWorkload] = file.vms
        self._detail = [VmDemand(vm, file.start_s, file.buckets) for vm in file.vms]

    @classmethod
    def load(cls, path: Path) -> Workload:
        """Read a file. Raises ConfigError when it is missing or not a workload file."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"workload file {path}: {error.strerror}") from error
        return cls(decode_workload(data))

    def demand(self, vm: int, wall_ns: int) -> Demand:
        """Demand of VM number `vm` in the 5-second slot that holds `wall_ns`."""
        return self._detail[vm].at(wall_ns // SLOT_NS)

    def demands(self, slot: int) -> list[Demand]:
        """Demand of every VM in slot `slot` (Unix seconds // 5)."""
        return [detail.at(slot) for detail in self._detail]

    def sources(self) -> list[VmDemand]:
        """Demand of each VM by itself, in the file's order: what follows a VM that moves to another host."""
        return list(self._detail)


class VmDemand:
    """One VM's levels and noise. Holds the last slot's and blocks' results, nothing that changes an answer."""

    __slots__ = (
        "_blocks",
        "_burst_limit",
        "_burst_scale",
        "_cpu",
        "_cpu_max",
        "_demand",
        "_disk",
        "_last",
        "_memory_max",
        "_net",
        "_net_max",
        "_origin",
        "_rows",
        "_seeds",
        "_slot",
        "buckets",
        "start_s",
    )

    def __init__(self, vm: VmWorkload, start_s: int, buckets: int) -> None:
        columns = [_unpack(getattr(vm, name)) for name in SERIES]
        self._rows: list[tuple[int, ...]] = list(zip(*columns, strict=True))
        self._last = buckets - 1
        self._origin = 2 * start_s + BUCKET_S  # centre of the first bucket, in half seconds
        self._seeds = tuple(mix64(vm.seed ^ salt) for salt in BLOCK_SALTS)
        self._cpu = tuple(noise_factors(vm.noise_permille, block) for block in range(3))
        self._disk = tuple(noise_factors(int(1000 * DISK_SIGMA), block) for block in range(3))
        self._net = tuple(noise_factors(int(1000 * NET_SIGMA), block) for block in range(3))
        self._burst_limit = vm.burst_per_1024
        self._burst_scale = 1.0 / burst_mean(vm.burst_per_1024)
        self._cpu_max = 1000.0 * vm.vcpus_max
        self._memory_max = float(vm.memory_max_bytes)
        self._net_max = float(vm.net_max_bits_per_s)
        self.start_s, self.buckets = start_s, buckets
        self._slot = -1
        self._demand = Demand(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        self._blocks = (-1, 0, -1, 0)  # 20 s block and its hash, 60 s block and its hash

    def at(self, slot: int) -> Demand:
        """Demand in slot `slot`."""
        if slot == self._slot:
            return self._demand
        fine = mix64(self._seeds[0] + slot * MIX_STEP)
        middle, coarse = self._hashes(slot)
        index, rest = divmod(10 * slot + SLOT_S - self._origin, 2 * BUCKET_S)
        f = rest / (2 * BUCKET_S)
        a = self._rows[min(max(index, 0), self._last)]
        b = self._rows[min(max(index + 1, 0), self._last)]
        scale = self._burst_scale * self._burst(slot, coarse)
        c0, c1, c2 = self._cpu
        d0, d1, d2 = self._disk
        n0, n1, n2 = self._net
        cpu = c0[fine & NOISE_MASK] * c1[middle & NOISE_MASK] * c2[coarse & NOISE_MASK] * scale
        disk = d0[_field(fine, DISK_SHIFT)] * d1[_field(middle, DISK_SHIFT)] * d2[_field(coarse, DISK_SHIFT)] * scale
        rx = n0[_field(fine, NET_RX_SHIFT)] * n1[_field(middle, NET_RX_SHIFT)] * n2[_field(coarse, NET_RX_SHIFT)] * scale
        tx = n0[_field(fine, NET_TX_SHIFT)] * n1[_field(middle, NET_TX_SHIFT)] * n2[_field(coarse, NET_TX_SHIFT)] * scale
        jitter = 1.0 + MEMORY_JITTER * (_field(middle, BURST_SHIFT) / 512 - 1.0)
        demand = Demand(
            min(self._cpu_max, (a[0] + (b[0] - a[0]) * f) * cpu),
            min(self._memory_max, (a[1] + (b[1] - a[1]) * f) * jitter),
            (a[2] + (b[2] - a[2]) * f) * disk,
            (a[3] + (b[3] - a[3]) * f) * disk,
            min(self._net_max, (a[4] + (b[4] - a[4]) * f) * rx),
            min(self._net_max, (a[5] + (b[5] - a[5]) * f) * tx),
        )
        self._slot, self._demand = slot, demand
        return demand

    def _hashes(self, slot: int) -> tuple[int, int]:
        block20, hash20, block60, hash60 = self._blocks
        if slot >> 2 != block20:
            block20, block60 = slot >> 2, slot // 12
            hash20 = mix64(self._seeds[1] + block20 * MIX_STEP)
            hash60 = mix64(self._seeds[2] + block60 * MIX_STEP)
            self._blocks = (block20, hash20, block60, hash60)
        return hash20, hash60

    def _burst(self, slot: int, coarse: int) -> float:
        if _field(coarse, BURST_SHIFT) >= self._burst_limit:
            return 1.0
        since = slot % 12 - ((coarse >> BURST_START_SHIFT) & 7)
        if not 0 <= since < 2 + 2 * ((coarse >> BURST_LENGTH_SHIFT) & 3):
            return 1.0
        return 1.5 + 0.5 * ((coarse >> BURST_HEIGHT_SHIFT) & 3)


def _field(value: int, shift: int) -> int:
    return (value >> shift) & NOISE_MASK


def _unpack(packed: bytes) -> array[int]:
    values = array("q")
    values.frombytes(packed)
    if sys.byteorder == "big":
        values.byteswap()
    return values
