"""Two hosts in memory between which VMs migrate, for tests of what stands on a Migrator. Held to migrator_contract like the real one.

Memory is sent in chunks as fast as the bandwidth allows, HASTE times real time.
"""

from __future__ import annotations

import threading
import time

from agent.ports import MigrationProgress
from shared.errors import HostError, Refusal
from shared.model import Allocation
from shared.refusal import RefusalCode
from shared.units import KIB, MIB, UNLIMITED

CHUNK_BYTES = 256 * KIB
HASTE = 100  # times real time
MOST_BITS_PER_S = 10**12


class _Job:
    def __init__(self, bits_per_s: int, left: int) -> None:
        self.bits_per_s = bits_per_s
        self.left = left
        self.sent = 0
        self.cancelled = threading.Event()


class FakeMigrator:
    """One side. `network` maps URIs to the sides; `memory_bytes` is what a VM has to send, `dirty_bytes` what it dirties per chunk sent."""

    def __init__(self, uri: str, network: dict[str, FakeMigrator], memory_bytes: int = 64 * MIB, dirty_bytes: int = 0) -> None:
        self.uri = uri
        self.running: set[str] = set()
        self.limits: dict[str, Allocation] = {}
        self.memory_bytes = memory_bytes
        self.dirty_bytes = dirty_bytes
        self._network = network
        self._jobs: dict[str, _Job] = {}
        self._lock = threading.Lock()
        network[uri] = self

    def migrate(self, vm_id: str, uri: str, bits_per_s: int, limits: Allocation) -> MigrationProgress | None:
        with self._lock:
            if vm_id in self._jobs:
                raise Refusal(RefusalCode.VM_BUSY)
            if vm_id not in self.running:
                raise Refusal(RefusalCode.UNKNOWN_VM)
            job = self._jobs[vm_id] = _Job(bits_per_s, self.memory_bytes)
        began = time.monotonic()
        try:
            target = self._network.get(uri)
            if target is None:
                raise HostError(f"{uri}: no such host")
            while job.left > 0:
                bits_per_s = MOST_BITS_PER_S if job.bits_per_s == UNLIMITED else job.bits_per_s
                if job.cancelled.wait(CHUNK_BYTES * 8 / bits_per_s / HASTE):
                    raise HostError("aborted")
                job.sent += CHUNK_BYTES
                job.left += self.dirty_bytes - CHUNK_BYTES
            self.running.remove(vm_id)
            target.running.add(vm_id)
            target.limits[vm_id] = limits
        finally:
            with self._lock:
                del self._jobs[vm_id]
        elapsed_ms = max(1, round((time.monotonic() - began) * 1000))
        return MigrationProgress(elapsed_ms=elapsed_ms, memory_remaining_bytes=0, memory_processed_bytes=job.sent, downtime_ms=1)

    def progress(self, vm_id: str) -> MigrationProgress | None:
        job = self._jobs.get(vm_id)
        if job is None:
            return None
        return MigrationProgress(elapsed_ms=1, memory_remaining_bytes=job.left, memory_processed_bytes=job.sent)

    def set_bandwidth(self, vm_id: str, bits_per_s: int) -> None:
        if (job := self._jobs.get(vm_id)) is not None:
            job.bits_per_s = bits_per_s

    def abort(self, vm_id: str) -> None:
        if (job := self._jobs.get(vm_id)) is not None:
            job.cancelled.set()

    def arrived(self, vm_id: str) -> Allocation | None:
        return self.limits.get(vm_id)

    def taken_up(self, vm_id: str) -> None:
        self.limits.pop(vm_id, None)
