"""What the ledger's tests set out from: a host, two VMs, and one allocation in force."""

from __future__ import annotations

from agent.acting.ledger import Ledger
from shared.config import GuardConfig
from shared.model import Allocation, Capabilities, Domain, HostCapacity
from shared.plan import StepKind
from shared.units import GIB, NS_PER_S

K = StepKind
S = NS_PER_S
T0 = 1_000_000 * S
CONFIG = GuardConfig()
CAN = Capabilities(**dict.fromkeys(Capabilities.__struct_fields__))
CAPACITY = HostCapacity(
    cpu_millicores=8000,
    memory_bytes=64 * GIB,
    net_bits_per_s=10**10,
    cpu_commit_millicores=16_000,
    memory_commit_bytes=60 * GIB,
    net_commit_bits_per_s=10**10,
)
ALLOCATION = Allocation(
    vcpus=2,
    cpu_quota_millicores=1000,
    cpu_shares=1024,
    memory_bytes=2 * GIB,
    net_rx_bits_per_s=10**8,
    net_tx_bits_per_s=2 * 10**8,
    virtio_mem_bytes=GIB,
    dimm_bytes=GIB // 2,
    net_tx_rate_bits_per_s=10**6,
)


def domain(vm_id: str = "a", **changes: object) -> Domain:
    fields: dict[str, object] = {
        "vm_id": vm_id,
        "name": vm_id,
        "vcpus_max": 4,
        "memory_max_bytes": 8 * GIB,
        "virtio_mem_max_bytes": 2 * GIB,
        "dimm_max_bytes": GIB,
        "net_max_bits_per_s": 10**9,
        "capabilities": CAN,
    }
    return Domain(**{**fields, **changes})  # type: ignore[arg-type]


def ledger(*domains: Domain, config: GuardConfig = CONFIG, read: bool = True) -> Ledger:
    made = Ledger(config, CAPACITY)
    given = domains or (domain("a"), domain("b"))
    made.define(given)
    for one in given if read else ():
        assert made.note_allocation(one.vm_id, ALLOCATION, T0)
    return made
