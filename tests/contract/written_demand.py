"""VMs whose demand a test writes down bucket by bucket, and the past that a coordinator remembers of such VMs."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from coordinator.model import HistoryBlock
from shared.units import GIB, MBIT
from shared.workload import VmWorkload

NET_MAX = 1000 * MBIT


def written_vm(
    vm_id: str, cpu: Sequence[int], memory: int | Sequence[int], *, disk: int = 10**6, net: int = 5 * MBIT, **more: Any
) -> VmWorkload:
    """Millicores and bytes wanted in each bucket, one number = in all of them; disk, net: bytes/s and bits/s each way."""
    buckets = len(cpu)

    def levels(values: int | Sequence[int]) -> bytes:
        return array("q", [values] * buckets if isinstance(values, int) else values).tobytes()

    fields = {"source": "test", "vcpus_max": 4, "memory_max_bytes": 4 * GIB, "net_max_bits_per_s": NET_MAX, "noise_permille": 20}
    return VmWorkload(
        vm_id=vm_id,
        name=vm_id,
        burst_per_1024=0,
        cpu_millicores=levels(cpu),
        memory_bytes=levels(memory),
        disk_read_bytes_per_s=levels(disk),
        disk_write_bytes_per_s=levels(disk),
        net_rx_bits_per_s=levels(net),
        net_tx_bits_per_s=levels(net),
        **(fields | more),
    )


def past_of(vms: Sequence[VmWorkload], end_s: int, mean: np.ndarray, peak: float = 1.1) -> HistoryBlock:
    """What is stored of these VMs up to the bucket that begins at `end_s`: mean float32[v, r, b], `peak` times that, nothing censored."""
    top = [[1000 * vm.vcpus_max, vm.memory_max_bytes, 1e10, vm.net_max_bits_per_s, vm.net_max_bits_per_s] for vm in vms]
    return HistoryBlock(
        vm_ids=tuple(vm.vm_id for vm in vms),
        end_s=end_s,
        mean=mean,
        peak=mean * np.float32(peak),
        censored=np.zeros_like(mean),
        capacity=np.array(top, dtype=np.float32),
    )
