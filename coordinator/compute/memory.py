"""What a forecast shard may take of memory, what it needs, and what it has.

Stated beforehand: a worker's own size plus, for each series, its ring of two float32 planes, the state of its members, scores and
calibration, and what a call needs for a moment. A test measures the engine against it. One series with the usual ring of 2,322
buckets: 8 x 2,610 = 20.9 kB of ring + 140 KiB of state + 48 KiB while a call runs = 213 kB, so 2 GiB carry 1,835 VMs of five resources.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from resource import getpagesize
from typing import Any, Final

import numpy as np

from coordinator.compute.sharding import least_shards
from coordinator.model import N_RESOURCES
from shared.units import MIB

WORKER_BYTES: Final = 180 * MIB  # interpreter, Ray, numba with its kernels: the bar of issue 4
RING_BYTES: Final = 8  # mean and peak of one bucket, float32
RING_SLACK: Final = 288  # buckets that the ring may run over before it is slid back
STATE_BYTES: Final = 140 * 1024  # per series: what members, scores and calibrators keep, 43 KiB of it for the outlook
CALL_BYTES: Final = 48 * 1024  # per series: what one call holds for a moment
SHARDS_MAX: Final = 1024
ROOM: Final = 0.8  # share of its budget that a shard is filled to when VMs are spread, so that a fleet can grow before the next time
MADV_DONTNEED: Final = 4  # madvise(2)


@dataclass(frozen=True, kw_only=True)
class ShardMemory:
    """What one shard has, beside what it may have. `state_bytes` are its arrays, `resident_bytes` the whole process."""

    vms: int
    state_bytes: int
    resident_bytes: int
    needed_bytes: int
    limit_bytes: int


@dataclass(frozen=True, kw_only=True)
class ShardBudget:
    """The memory of one shard whose series keep `ring` buckets."""

    ring: int
    limit_bytes: int

    @property
    def ring_bytes(self) -> int:
        """Of one series' history."""
        return RING_BYTES * (self.ring + RING_SLACK)

    @property
    def series_bytes(self) -> int:
        """Of one series, while a call runs."""
        return self.ring_bytes + STATE_BYTES + CALL_BYTES

    def needed(self, vms: int) -> int:
        """Bytes of a shard with this many VMs."""
        return WORKER_BYTES + vms * N_RESOURCES * self.series_bytes

    @property
    def most_vms(self) -> int:
        """How many VMs a shard can hold."""
        return max(0, (self.limit_bytes - WORKER_BYTES) // (N_RESOURCES * self.series_bytes))

    def shards_for(self, vm_ids: Sequence[str], least: int) -> int:
        """The smallest number of shards, at least `least`, of which none is fuller than ROOM of its budget.

        ValueError when SHARDS_MAX of them do not do.
        """
        most = int(self.most_vms * ROOM)
        shards = least_shards(vm_ids, least, most, SHARDS_MAX)
        if shards is None:
            raise ValueError(f"{len(vm_ids)} VMs: {SHARDS_MAX} shards of {self.limit_bytes} bytes cannot hold them, {most} VMs each")
        return shards

    def measured(self, engine: object, vms: int) -> ShardMemory:
        """What the shard of this engine, in this process, has now."""
        return ShardMemory(
            vms=vms,
            state_bytes=array_bytes(engine),
            resident_bytes=resident_bytes(),
            needed_bytes=self.needed(vms),
            limit_bytes=self.limit_bytes,
        )


def array_bytes(thing: object, _seen: set[int] | None = None) -> int:
    """Bytes of all NumPy arrays that an object of this project reaches, views counted as the array below them, each once."""
    seen: set[int] = set() if _seen is None else _seen
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        return array_bytes(thing.base, seen) if isinstance(thing.base, np.ndarray) else thing.nbytes
    inside: Sequence[Any] = ()
    if isinstance(thing, dict):
        inside = list(thing.values())
    elif isinstance(thing, list | tuple | set | frozenset):
        inside = list(thing)
    elif type(thing).__module__.partition(".")[0] == "coordinator":
        slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
        inside = [*getattr(thing, "__dict__", {}).values(), *(getattr(thing, name, None) for name in slots)]
    return sum(array_bytes(part, seen) for part in inside)


def resident_bytes() -> int:
    """Resident memory of this process, proc(5)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()


def machine_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * getpagesize()


def return_start_pages() -> None:
    """Let go of the library code that a worker needs only to start: LLVM loads its kernels, Ray looks at pyarrow, 80 MiB in all.

    These are clean pages of files: the kernel drops them, and reads again those that are used. Only mappings that can't be written and
    hold no page of their own are let go: where the linker has written relocations, madvise(2) would undo them.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    mapping: list[str] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):
            mapping = fields
        elif fields[:2] == ["Anonymous:", "0"] and len(mapping) == 6 and mapping[1] in ("r-xp", "r--p") and ".so" in mapping[5]:
            low, high = (int(part, 16) for part in mapping[0].split("-"))
            libc.madvise(low, high - low, MADV_DONTNEED)  # a refusal costs memory and nothing else
