"""What a sample says about limits: pressure and use, by lever."""

from __future__ import annotations

import pytest

from agent.acting.pressure import pressed, used
from shared.model import VmSample
from shared.plan import StepKind
from shared.units import KIB

K = StepKind
WEIGHTS = {K.CPU_SHARES, K.CPU_PERIOD, K.DISK_WEIGHT}
MEMORY = {K.MEMORY, K.VIRTIO_MEM, K.DIMM, K.MEMORY_HIGH}
CPU = {K.CPU_QUOTA, K.VCPUS, K.VCPUS_ONLINE}


@pytest.mark.parametrize(
    ("reading", "kinds"),
    [
        (VmSample(), set()),
        (VmSample(cpu_throttled_permille=19), set()),
        (VmSample(cpu_throttled_permille=20), {*CPU, K.MIGRATE}),
        (VmSample(psi_memory_some_permille=49), set()),
        (VmSample(psi_memory_some_permille=50), {*MEMORY, K.MIGRATE}),
        (VmSample(memory_swap_bytes_per_s=256 * KIB - 1), set()),
        (VmSample(memory_swap_bytes_per_s=256 * KIB), {*MEMORY, K.MIGRATE}),
        (VmSample(guest_oom_kills=0), set()),
        (VmSample(guest_oom_kills=1), {*MEMORY, K.MIGRATE}),
        (VmSample(psi_io_some_permille=199), set()),
        (VmSample(psi_io_some_permille=200), {K.DISK_BYTES, K.DISK_OPS}),
        (VmSample(net_rx_dropped_per_s=0, net_tx_dropped_per_s=0), set()),
        (VmSample(net_rx_dropped_per_s=1), {K.NET_RX}),
        (VmSample(net_tx_dropped_per_s=1), {K.NET_TX, K.NET_TX_RATE}),
    ],
)
def test_pressure(reading: VmSample, kinds: set[StepKind]) -> None:
    assert {kind for kind in StepKind if kind not in WEIGHTS and pressed(reading, kind)} == kinds


def test_use() -> None:
    reading = VmSample(
        cpu_used_millicores=1,
        memory_used_bytes=2,
        net_rx_bits_per_s=3,
        net_tx_bits_per_s=4,
        disk_read_bytes_per_s=5,
        disk_write_bytes_per_s=10,
        disk_read_ops_per_s=20,
        disk_write_ops_per_s=40,
    )
    uses = {kind: used(reading, kind) for kind in StepKind}
    assert uses == {
        **dict.fromkeys(CPU, 1),
        **dict.fromkeys(MEMORY, 2),
        K.NET_RX: 3,
        K.NET_TX: 4,
        K.NET_TX_RATE: 4,
        K.DISK_BYTES: 15,
        K.DISK_OPS: 60,
        **dict.fromkeys((*WEIGHTS, K.MIGRATE)),
    }
    assert all(used(VmSample(), kind) is None for kind in StepKind)


def test_use_of_cpu_is_the_peak_where_there_was_one_and_half_a_disk_is_unknown() -> None:
    assert used(VmSample(cpu_used_millicores=5, cpu_used_peak_millicores=9), K.VCPUS) == 9
    assert used(VmSample(cpu_used_millicores=9, cpu_used_peak_millicores=5), K.CPU_QUOTA) == 9
    assert used(VmSample(cpu_used_peak_millicores=5), K.CPU_QUOTA) is None
    assert used(VmSample(disk_read_bytes_per_s=1), K.DISK_BYTES) is None
    assert used(VmSample(disk_write_ops_per_s=1), K.DISK_OPS) is None
