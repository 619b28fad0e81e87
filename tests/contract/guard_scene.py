"""What the guard's tests set out from: one VM with every lever in force, calm, with room to move both ways."""

from __future__ import annotations

import msgspec

from agent.acting.guard import Guard, Verdict, View
from agent.acting.levers import WEIGHTS
from shared.config import GuardConfig
from shared.model import Capabilities, Domain, Policy, VmSample
from shared.plan import Step, StepKind
from shared.refusal import RefusalCode
from shared.units import GIB, MIB, NS_PER_S

K, R = StepKind, RefusalCode
S = NS_PER_S
NOW = 1_000_000 * S
CONFIG = GuardConfig()
CAN = Capabilities(**dict.fromkeys(Capabilities.__struct_fields__))
DOMAIN = Domain(
    vm_id="vm-1",
    name="web",
    vcpus_max=8,
    memory_max_bytes=8 * GIB,
    virtio_mem_max_bytes=4 * GIB,
    dimm_max_bytes=4 * GIB,
    net_max_bits_per_s=10**9,
    capabilities=CAN,
)
CALM = VmSample(
    cpu_used_millicores=300,
    cpu_throttled_permille=0,
    memory_used_bytes=GIB,
    memory_usable_bytes=7 * GIB,
    memory_reading_age_ms=0,
    psi_memory_some_permille=0,
    psi_io_some_permille=0,
    net_rx_bits_per_s=1_000_000,
    net_tx_bits_per_s=1_000_000,
    disk_read_bytes_per_s=MIB,
    disk_write_bytes_per_s=MIB,
    disk_read_ops_per_s=30,
    disk_write_ops_per_s=30,
)
# One value in force for every lever, with room to move both ways.
IN_FORCE = {
    K.VCPUS: 4,
    K.VCPUS_ONLINE: 4,
    K.CPU_QUOTA: 2000,
    K.CPU_SHARES: 1024,
    K.CPU_PERIOD: 100_000,
    K.MEMORY: 4 * GIB,
    K.VIRTIO_MEM: 2 * GIB,
    K.DIMM: 2 * GIB,
    K.MEMORY_HIGH: 4 * GIB,
    K.DISK_BYTES: 100 * MIB,
    K.DISK_OPS: 1000,
    K.DISK_WEIGHT: 100,
    K.NET_RX: 10**8,
    K.NET_TX: 10**8,
    K.NET_TX_RATE: 10**7,
}
LESS = {kind: value - value // 4 for kind, value in IN_FORCE.items()} | {K.VCPUS: 3, K.VCPUS_ONLINE: 3, K.DIMM: GIB}
MORE = {kind: value + value // 4 for kind, value in IN_FORCE.items()} | {K.VCPUS: 5, K.VCPUS_ONLINE: 5, K.DIMM: 3 * GIB}
TAKES = tuple(kind for kind in IN_FORCE if kind not in WEIGHTS)
MEMORY = (K.MEMORY, K.VIRTIO_MEM, K.DIMM, K.MEMORY_HIGH)


def view(kind: StepKind = K.CPU_QUOTA, **changes: object) -> View:
    fields: dict[str, object] = {
        "domain": DOMAIN,
        "in_force": IN_FORCE.get(kind),
        "vcpus": 8,
        "reading": CALM,
        "reading_at_ns": NOW,
        "room": 10**15,
        "memory_bytes": 4 * GIB,
        "memory_sum_bytes": 4 * GIB,
        "vms": 10,
    }
    return View(**{**fields, **changes})  # type: ignore[arg-type]


def check(kind: StepKind, value: int, seen: View, config: GuardConfig = CONFIG, /, **how: bool) -> Verdict:
    return Guard(config).check(Step(id="s", vm_id="vm-1", kind=kind, value=value, deadline_ns=NOW), seen, NOW, **how)


def ago(seconds: float) -> int:
    return NOW - int(seconds * S)


def reading(**changes: object) -> VmSample:
    return msgspec.structs.replace(CALM, **changes)


def policy(**fields: object) -> Domain:
    return msgspec.structs.replace(DOMAIN, policy=Policy(**fields))  # type: ignore[arg-type]
