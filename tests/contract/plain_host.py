"""The capacity of a host for tests to which its size is a plain fact: whatever it has may be committed."""

from __future__ import annotations

from shared.model import HostCapacity
from shared.units import GIB


def plain_capacity(*, cpu_millicores: int = 8000, memory_bytes: int = 16 * GIB, net_bits_per_s: int = 10**9) -> HostCapacity:
    """A host that keeps nothing back for itself."""
    return HostCapacity(
        cpu_millicores=cpu_millicores,
        memory_bytes=memory_bytes,
        net_bits_per_s=net_bits_per_s,
        cpu_commit_millicores=cpu_millicores,
        memory_commit_bytes=memory_bytes,
        net_commit_bits_per_s=net_bits_per_s,
    )
